"""The worker of an instance: start it, feed it descriptors, keep it running (docs/internals.md, section 3)."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from coven.dataplane.core import Control, lib
from coven.errors import CovenError, Where
from coven.supervisor import cgroup, control, strays
from coven.supervisor.context import Context
from coven.supervisor.control import WorkerControl, WorkerGone, WorkerSilent
from coven.supervisor.fused import FusedComponents
from coven.supervisor.health import is_own_fault
from coven.supervisor.heartbeat import Heartbeat
from coven.supervisor.life import Life
from coven.supervisor.process import Process, exit_text
from coven.supervisor.violations import Violations
from coven.supervisor.worker_process import spawn_worker, worker_sandbox

if TYPE_CHECKING:
    from coven.supervisor.component import Replica

log = logging.getLogger(__name__)

EXIT_GRACE = 2.0
HUNG_STATUS = 4  # exit status of a worker with a fused component that does not return: COVEN_EXIT_HUNG
PING_TIMEOUT = 2.0  # of a worker that was silent before: then it hangs
READY_TIMEOUT = 20.0  # a large ledger is recovered and pages of the pool are touched


@dataclass(slots=True)
class Feed:
    """What a worker is given before it is ready; asked for anew at each start."""

    segments: Callable[[], list[tuple[int, int, int]]]  # kind, index, descriptor
    ports: Callable[[], list[tuple[int, tuple[int, ...]]]]  # index, descriptors
    code: Callable[[], list[tuple[int, int, bytes]]]  # component, shared object, start message
    replicas: Callable[[], list[Replica]]
    guilty: Callable[[], int | None]  # component that the last worker died in
    components: int
    component: Callable[[int], str]  # its name
    name: Callable[[str], str]  # of what this worker has in the keeper
    marked: Callable[[], None]  # poison packets may have been marked
    changed: Callable[[], None]


class Worker(Life):
    """One worker process through all its restarts."""

    kind = "worker"
    up = ("ready", "running")
    descriptors = 3

    def __init__(self, context: Context, instance: str, index: int, core: int | None, feed: Feed) -> None:
        """index: of the worker within the instance. core: to be pinned to, or None."""
        # no component's group: theirs have three parts, and one may be called worker
        super().__init__(context, instance, f"{instance}.worker-{index}" if index else f"{instance}.worker")
        self.index, self._core, self._feed = index, core, feed
        self.recovered = ""
        self.fused = FusedComponents()
        self._violations = Violations(self.violations_of, self._tell_violations, self._expel)
        self._heartbeat = Heartbeat(self._watched_stats, self._suspect)
        self._control: WorkerControl | None = None
        self._attached: dict[int, int] = {}  # replica -> pid of the process that was attached
        self._changing = asyncio.Lock()  # one ATTACH or DETACH at a time
        self._suspicion: asyncio.Task[None] | None = None
        self._run = False
        self._is_blamed = False  # the last process died of its own code
        self._held_back = False
        self._holding: asyncio.Task[None] | None = None

    @property
    def part(self) -> str:
        """Name in errors and events."""
        return f"worker {self.index}"

    @property
    def fds_name(self) -> str:
        """Name of the descriptors in the keeper: both ends of the control socket, log."""
        return self._feed.name("worker")

    # ---- outside --------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start it up to READY with all ready replicas attached. Raises CovenError; then nothing is left running."""
        self._run = False
        self.fused.release()
        await super().start()

    async def run(self) -> None:
        """Let it take packets."""
        self._run = True
        if self._held_back:
            await self.request(control.HALT, args=(1,))
        await self.request(control.RUN)
        self.state = "running"
        self._context.save()

    async def pause(self, deadline_ms: int) -> int:
        """Stop taking packets; what is inside gets `deadline_ms`. Give how many were dropped."""
        self._run = False
        answer = await self.request(control.PAUSE, args=(deadline_ms,), timeout=control.TIMEOUT + deadline_ms / 1000)
        if self.state == "running":
            self.state = "ready"
        return answer.args[0]

    def hold_back(self, held: bool) -> None:
        """Let it read its ports, or not: a component with `on_failure: stop` is down in another worker."""
        self._held_back = held
        if self.is_up:
            self._holding = asyncio.create_task(self._tell_held_back())

    async def _tell_held_back(self) -> None:
        try:
            await self.request(control.HALT, args=(int(self._held_back),))
        except CovenError as error:  # it has died: its successor is told before it runs
            log.info("instance=%s %s is not told to halt: %s", self._instance, self.part, error.message)

    async def stop(self) -> None:
        """End it in order, by force if need be. May be called in any state."""
        self._run = False
        self._heartbeat.stop()
        await super().stop()

    async def _end(self, process: Process) -> None:
        if not self.is_up:
            return  # `_clear` does it by force
        try:
            await self.request(control.EXIT, timeout=EXIT_GRACE)
            await asyncio.wait_for(process.ended.wait(), EXIT_GRACE)
        except (CovenError, WorkerGone, TimeoutError):
            log.info("instance=%s %s did not end in order", self._instance, self.part)

    async def heal(self) -> None:
        """Start again if it is parked; one that hangs is killed, and comes back."""
        if self.is_up:
            await self._ping()
        elif self.state == "parked":
            run = self._run
            await self.start()
            if run:
                await self.run()

    async def heal_fused(self, index: int) -> None:
        """Give a fused component that is parked another chance: the worker gets its code."""
        if index not in self.fused.parked:
            return
        self.fused.release(index)
        self._context.save()
        if self.is_up:
            for number, fd, start in self._feed.code():
                if number == index:
                    await self.request(control.CODE, index=number, payload=start, fds=(fd,))
        self._changed()

    async def request(self, op: int, **more: Any) -> Control:
        """Ask the worker. Raises CovenError, also when there is none just now."""
        if self._control is None or self.process is None or not self.process.alive:
            raise self._absent()
        try:
            return await self._control.request(op, **more)
        except WorkerGone as error:
            raise self._absent() from error
        except WorkerSilent:
            self._suspect()
            raise

    async def attach(self, replica: Replica) -> None:
        """Tell the worker that a replica is ready; a worker that starts meanwhile finds it by itself."""
        async with self._changing:
            if self.is_up:
                await self._attach(replica)

    async def detach(self, replica: Replica, crashed: bool = True) -> None:
        """Tell the worker that a replica has gone."""
        async with self._changing:
            if self._attached.pop(replica.number, None) is None or not self.is_up:
                return
            try:
                await self.request(control.DETACH, index=replica.number, args=(int(crashed), int(replica.is_to_blame)))
                self._feed.marked()
            except CovenError as error:
                log.warning("instance=%s detach of %s: %s", self._instance, replica.part, error.message)

    def to_json(self) -> dict[str, Any]:
        """Give the worker as the protocol shows it."""
        return {**super().to_json(), "core": self._core, "recovered": self.recovered}

    # ---- manifest -------------------------------------------------------------------------------

    def remember(self) -> dict[str, Any]:
        """Give what a successor needs to take the worker over."""
        return {
            **super().remember(),
            "run": self._run,
            "attached": {str(number): pid for number, pid in self._attached.items()},
            "fused_parked": self.fused.remember(),
            "fused_hangs": {str(index): times for index, times in self.fused.hangs.items()},
        }

    def recall(self, document: dict[str, Any]) -> None:
        """Take over what a predecessor left; a worker that was not ready is not kept."""
        self._run = bool(document["run"])
        self.fused.recall(document.get("fused_parked", {}))
        self.fused.hangs = {int(index): int(times) for index, times in document.get("fused_hangs", {}).items()}
        super().recall(document)

    def _take_over(self, fds: tuple[int, ...], document: dict[str, Any]) -> None:
        self._attached = {int(number): pid for number, pid in document["attached"].items()}
        self._hear(fds[0], fds[2])

    async def revive(self) -> None:
        """After `recall`, when no operation is under way: make true what should be."""
        if not self._wanted or self.state == "parked":
            return
        if self.process is None or not self.process.alive:
            self.state = "restarting"
            self._task = asyncio.create_task(self._come_back(0.0))
            return
        async with self._changing:
            for replica in self._feed.replicas():
                # ready, but its predecessor or nobody is attached: the supervisor died between the two
                if replica.process and self._attached.get(replica.number) != replica.process.pid:
                    if self._attached.pop(replica.number, None) is not None:
                        await self.request(control.DETACH, index=replica.number, args=(1,))
                    await self._attach(replica)
        if self._run and self.state != "running":
            await self.run()

    # ---- one start ------------------------------------------------------------------------------

    async def _launch(self) -> None:
        context = self._context
        self.state = "starting"
        context.save()
        await self._clear()
        folders = cgroup.create(context.cgroups, self.group, None)
        self.log.clear()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (ours, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 18)
        log_read, log_write = os.pipe()
        os.set_blocking(log_write, False)  # rather lose text of a chatty component than let packets wait
        fds = (ours.detach(), theirs.detach(), log_read)
        context.keeper.put(self.fds_name, fds)
        try:
            box = worker_sandbox(context.settings, tuple(map(str, folders)), self._core)
            first = self.restarts == 0
            names = (self._instance, self.index, self.group)
            pid = spawn_worker(context.settings, *names, box, fds[1], log_write, is_first=first)
        finally:
            os.close(log_write)
        self.process = Process.spawned(pid, context.keeper, self._died)
        self._hear(fds[0], log_read)
        context.save()
        try:
            await self._feed_all()
        except WorkerGone as error:
            raise self._exited() from error

    def _hear(self, channel: int, output: int) -> None:
        """Begin to follow a process that runs: its answers, notices, output and heartbeat."""
        self._control = WorkerControl(channel, self.part, self._noticed)
        self._violations.begin(self._feed.components)
        self.log.follow(output)
        self._heartbeat.begin()

    async def _feed_all(self) -> None:
        """SEGMENT*, PORT*, CODE*, READY, ATTACH*, in this order."""
        channel = self._control
        if channel is None:
            raise WorkerGone
        for kind, index, fd in self._feed.segments():
            await channel.request(control.SEGMENT, index, (kind,), fds=(fd,))
        for index, fds in self._feed.ports():
            await channel.request(control.PORT, index, fds=fds)
        for index, fd, start in self._feed.code():
            if index not in self.fused.parked:
                await channel.request(control.CODE, index, payload=start, fds=(fd,))
        answer = await channel.request(control.READY, args=(int(self._is_blamed),), timeout=READY_TIMEOUT)
        self._is_blamed = False
        self.recovered = answer.payload.split(b"\0")[0].decode("utf-8", "replace")
        async with self._changing:
            self._attached = {}
            self.state = "ready"
            for replica in self._feed.replicas():
                await self._attach(replica)
        self._context.save()
        pid = self.process.pid if self.process else None
        self._context.emit("worker-ready", self._instance, self.part, pid=pid, recovered=self.recovered)
        self._feed.marked()
        self._changed()

    async def _attach(self, replica: Replica) -> None:
        fds = replica.attach_fds()
        process = replica.process
        if replica.state != "ready" or len(fds) != 3 or process is None or self._control is None:
            return
        if self._attached.get(replica.number) == process.pid:
            return
        try:
            await self._control.request(control.ATTACH, index=replica.number, fds=fds)
        except WorkerGone:
            return  # the next worker attaches all
        self._attached[replica.number] = process.pid
        self._context.save()

    async def _clear(self) -> None:
        if self._control is not None:
            self._control.close()
            self._control = None
        self._violations.stop()
        await self._kill_group()
        if self.process is not None and self.process.alive:
            await self.process.end()
        self.process = None
        self.log.stop()
        self._attached = {}
        self._context.keeper.drop(self.fds_name)

    async def _kill_group(self) -> None:
        await strays.kill_group(self._context.settings.platform_id, self.group, self.folders)

    # ---- death ----------------------------------------------------------------------------------

    def _died(self) -> None:
        process = self.process
        if process is None:
            return
        self.last_exit = process.last_exit
        self._is_blamed = is_own_fault(process.status)
        if process.exited_with(HUNG_STATUS):
            self.last_exit = "hung: a fused component did not return"
        if process.status is None:
            self._context.keeper.on_reaped(process.pid, self._set_exit)
        if self._control is not None:
            self._control.close()
        if not self.is_up or not self._wanted:
            return
        self.state = "restarting"
        culprit = self._feed.guilty()
        inside = None if culprit is None else self._feed.component(culprit)
        if culprit is not None and process.exited_with(HUNG_STATUS):
            self.fused.hung(culprit)
        self._context.emit(
            "worker-died", self._instance, self.part, pid=process.pid, exit=self.last_exit, component=inside
        )
        self._task = asyncio.create_task(self._after_death())

    # ---- what it tells unasked ----------------------------------------------------------------------

    def _noticed(self, notice: Control) -> None:
        """Hear what the worker tells: which replica does not move, or moves again, and who breaks the rules."""
        kind, times = notice.args[0], notice.args[1]
        for each in self._feed.replicas():
            if kind in (control.STILL, control.HUNG, control.MOVING) and each.number == notice.index:
                each.notice(kind, times)
        if notice.args[0] == control.VIOLATION and notice.index < self._feed.components:
            replica = None if notice.args[1] == lib.COVEN_NO_REPLICA else notice.args[1]
            self._violations.notice(notice.index, replica, notice.args[2])

    def violations_of(self, component: int) -> dict[str, int]:
        """Give how often a component broke which rule of its ring since the instance was made."""
        from coven.supervisor import metrics

        fds = self._context.keeper.get(self._feed.name("stats"))
        return metrics.violations_of(metrics.violation_cells(fds[0]), component) if fds else {}

    def _tell_violations(self, component: int, counts: dict[str, int]) -> None:
        part = f"component {self._feed.component(component)}"
        log.warning("instance=%s %s breaks the rules of its ring: %s", self._instance, part, counts)
        self._context.emit("component-violation", self._instance, part, kind="ring", counts=counts)

    def _expel(self, number: int, why: str) -> None:
        for replica in self._feed.replicas():
            if replica.number == number:
                replica.expel(why)

    def _watched_stats(self) -> int | None:
        fds = self._context.keeper.get(self._feed.name("stats"))
        return fds[0] if self.state == "running" and fds else None

    def _suspect(self) -> None:
        """Something is wrong with the worker: find out whether it hangs."""
        if self._suspicion is None or self._suspicion.done():
            self._suspicion = asyncio.create_task(self._ping())

    async def _ping(self) -> None:
        process, channel = self.process, self._control
        if process is None or channel is None or not self.is_up:
            return
        try:
            await channel.request(control.ATTENTION, timeout=PING_TIMEOUT)
        except WorkerSilent:
            log.error("instance=%s worker=%d hangs; killed", self._instance, process.pid)
            process.kill()  # the rest is as with every death
        except (WorkerGone, CovenError):
            return

    def _set_exit(self, status: int) -> None:
        self.last_exit = exit_text(status)

    async def _after_death(self) -> None:
        self._changed()
        await self._come_back(self._next_wait(was_ready=True))

    def _next_wait(self, *, was_ready: bool) -> float | None:
        """Give the seconds until the next start, None for never; parks the component that is to blame."""
        culprit = self._feed.guilty()
        if culprit is not None and culprit not in self.fused.parked:
            wait = self.fused.died(culprit, self.last_exit)
            if culprit in self.fused.parked:
                self._parked_fused(culprit)
            return wait
        return self._back_off.died() if was_ready else self._back_off.start_failed()

    def _parked_fused(self, index: int) -> None:
        self._context.save()
        part = f"component {self._feed.component(index)}"
        self._context.emit("component-parked", self._instance, part, exit=self.last_exit, output=self.output())
        self._changed()

    def _start_failed(self) -> float | None:
        return self._next_wait(was_ready=False)

    async def _start_again(self) -> None:
        await super()._start_again()
        if self._run:
            await self.run()

    def _changed(self) -> None:
        self._feed.changed()

    def _absent(self) -> CovenError:
        return CovenError(
            "component.not-running",
            f"{self.part} of {self._instance} is {self.state}",
            hint="`heal` starts it again" if self.state == "parked" else None,
            where=Where(part=self.part),
        )

    def _exited(self) -> CovenError:
        self.log.stop()
        how = self.process.last_exit if self.process and self.process.last_exit else "no answer"
        message = f"{self.part} ended while starting ({how})" + self._quoted()
        return CovenError("platform.internal", message, where=Where(part=self.part))
