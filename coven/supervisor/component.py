"""The life of one isolated replica of a component: start, ready, death, restart, parking."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from coven.agents.client import AsyncAgentClient
from coven.agents.protocol import start_lines
from coven.errors import CovenError, Where
from coven.supervisor import cgroup, control, memory, strays
from coven.supervisor.component_process import (
    FD_POOL,
    FD_REPLICA,
    FD_STATE,
    make_descriptors,
    replica_sandbox,
    spawn_replica,
)
from coven.supervisor.context import Context
from coven.supervisor.guard import Guard
from coven.supervisor.health import Look, is_own_fault, is_starved
from coven.supervisor.life import Life
from coven.supervisor.logs import BYTES_PER_SECOND
from coven.supervisor.process import Process, exit_text
from coven.supervisor.program import Program, refused

if TYPE_CHECKING:
    from coven.forwarder.instance_plan import ComponentPlan

log = logging.getLogger(__name__)

STOP_GRACE = 1.0
LAST_WORDS_BYTES = 128
CHECK_TIMEOUT = 3.0  # of a component that is to be healed
LAUNCH_FAILED = 125  # exit status of coven-launch itself


@dataclass(slots=True)
class Home:
    """What a replica needs of its instance."""

    instance: str
    worker: int | None  # None: there is only one
    name: Callable[[str], str]  # of what belongs to this worker in the keeper
    declarations: Callable[[int], dict[str, Any]]  # index of a component -> its part of the plan as JSON
    cores: Callable[[], tuple[int, ...]]  # to be pinned to
    segment: Callable[[int], Any]  # number of a replica -> image of a new replica segment
    attach: Callable[[Replica], Awaitable[None]]  # tell the worker that it is ready
    detach: Callable[[Replica], Awaitable[None]]  # tell the worker that it died
    changed: Callable[[], None]


class Replica(Life):
    """One process of an isolated component, through all its restarts."""

    kind = "component"
    up = ("ready",)
    descriptors = 5

    def __init__(
        self, context: Context, home: Home, plan: ComponentPlan, index: int, number: int, replica: int
    ) -> None:
        """index: of the component; number: through the worker's replicas; replica: through all of the component."""
        super().__init__(context, home.instance, f"{home.instance}.{plan.name}.{replica}")
        self._home = home
        self.plan, self.index, self.number, self.replica = plan, index, number, replica
        self.program: Program | None = None
        self.uid_number: int | None = None
        self.gid_number: int | None = None  # of the component's first replica: they share a state segment
        self.hangs = 0  # how often it was killed for moving nothing
        self.guard = Guard(context.keeper, self.fds_name, self._tell_calls)
        self._agent: AsyncAgentClient | None = None
        self._agent_socket: socket.socket | None = None
        self._before: Look | None = None  # when it had not moved for half its limit
        self._hung = False  # it was killed for that
        self._expelled: str | None = None  # what it is being killed for

    # ---- names ----------------------------------------------------------------------------------

    @property
    def part(self) -> str:
        """Name in errors and events."""
        several = f" replica {self.replica}" if self.plan.replicas > 1 else ""
        whose = f" of worker {self._home.worker}" if self._home.worker is not None else ""
        return f"component {self.plan.name}{several}{whose}"

    @property
    def fds_name(self) -> str:
        """Name of the descriptors in the keeper: segment, doorbells in and out, agent socket, log."""
        return self._home.name(f"replica.{self.number}")

    @property
    def uid(self) -> int | None:
        """Numeric user, None without privileges."""
        return None if self.uid_number is None else self._context.uid(self.uid_number)

    def attach_fds(self) -> tuple[int, ...]:
        """Give segment, doorbell to the component, doorbell to the worker."""
        return self._context.keeper.get(self.fds_name)[:3]

    # ---- outside --------------------------------------------------------------------------------

    async def remove(self) -> None:
        """Stop, and give back user and control group."""
        await super().remove()
        self.log.clear()
        if self.uid_number is not None:
            self._context.uids.discard(self.uid_number)

    async def heal(self) -> None:
        """Start again if it is parked, stopped, or does not answer any more."""
        if self.state == "ready" and self._agent is not None:
            try:
                await self._agent.ask("check", timeout=CHECK_TIMEOUT)
                return
            except CovenError as error:
                log.warning("instance=%s %s is replaced: %s", self._instance, self.part, error.message)
                await self._home.detach(self)
                await self.stop()
        if self.state in ("parked", "stopped"):
            await self.start()

    def expel(self, why: str) -> None:
        """Kill it for what it did; then it goes as with every death."""
        if self.state == "ready" and self.process is not None and self.process.alive:
            log.warning("instance=%s %s is killed: %s", self._instance, self.part, why)
            self._expelled = why
            self.process.kill()

    async def ask(
        self, verb: str, name: str, lines: tuple[tuple[str, ...], ...], timeout: float
    ) -> tuple[tuple[str, ...], ...]:
        """Ask its Extended Agent. Raises CovenError."""
        if self.state != "ready" or self._agent is None:
            raise CovenError(
                "component.not-running",
                f"{self.part} is {self.state}",
                hint="`heal` starts a parked component again" if self.state == "parked" else None,
                where=Where(part=self.part),
            )
        return await self._agent.ask(verb, name, lines, timeout=timeout)

    def to_json(self) -> dict[str, Any]:
        """Give the replica as the protocol shows it."""
        return {
            **super().to_json(),
            "worker": self._home.worker or 0,
            "uid": self.uid,
            "cgroup": str(self.folders[0]) if self.folders else None,
            "refused_calls": dict(self.guard.total),
            "hangs": self.hangs,
        }

    # ---- manifest -------------------------------------------------------------------------------

    def remember(self) -> dict[str, Any]:
        """Give what a successor needs to take this replica over."""
        return {
            **super().remember(),
            "uid": self.uid_number,
            "gid": self.gid_number,
            "refused_calls": self.guard.total,
            "hangs": self.hangs,
        }

    def recall(self, document: dict[str, Any]) -> None:
        """Take over what a predecessor left; a replica that was not ready is not kept."""
        self.uid_number, self.gid_number = document["uid"], document["gid"]
        if self.uid_number is not None:
            self._context.uids.add(self.uid_number)
        self.hangs = int(document.get("hangs", 0))  # a predecessor of an earlier version counted none
        self.guard.total = {str(call): int(number) for call, number in document["refused_calls"].items()}
        super().recall(document)

    def _take_over(self, fds: tuple[int, ...], document: dict[str, Any]) -> None:
        self._listen(fds)
        self.guard.follow()

    async def revive(self) -> None:
        """After `recall`, when no operation is under way: start again what should run and does not."""
        if self.state == "restarting":
            self.last_exit = self.last_exit or "ended while the supervisor was being replaced"
            await self._home.detach(self)
            self._task = asyncio.create_task(self._come_back(0.0))

    # ---- one start ------------------------------------------------------------------------------

    async def _launch(self) -> None:
        context = self._context
        self.state = "starting"
        if self.uid_number is None and context.settings.privileged:
            self.uid_number = context.take_uid()
        context.save()
        await self._clear()
        folders = cgroup.create(context.cgroups, self.group, self.plan.limits)
        self.log.clear()
        segment = memory.make(self._home.segment(self.number), self.uid if self.uid is not None else os.geteuid())
        fds, ends = make_descriptors(segment)
        context.keeper.put(self.fds_name, fds)
        self._listen(fds)
        watched = self.guard.expect()
        try:
            pid = self._spawn(ends, tuple(map(str, folders)), watched.fileno())
        finally:
            watched.close()
            for fd in ends.values():
                os.close(fd)
        self._hung, self._before = False, None
        self.process = Process.spawned(pid, context.keeper, self._died)
        context.save()
        await self._await_ready()
        self.state = "ready"
        context.save()
        context.emit("component-ready", self._instance, self.part, pid=pid)
        await self._home.attach(self)
        self._changed()

    def _listen(self, fds: tuple[int, ...]) -> None:
        self._agent_socket = socket.socket(fileno=os.dup(fds[3]))
        self._agent = AsyncAgentClient(self._agent_socket, self.part)
        self.log.follow(fds[4])

    def _spawn(self, ends: dict[int, int], cgroups: tuple[str, ...], watched: int) -> int:
        context, program = self._context, self.program
        if program is None:
            raise CovenError("platform.internal", f"{self.part} was not built")
        (state,) = context.keeper.get(self._home.name(f"state.{self.index}"))
        fds = {**ends, 2: ends[1], FD_REPLICA: self.attach_fds()[0], FD_STATE: state}
        if self.plan.isolation == "shared":
            (fds[FD_POOL],) = context.keeper.get(self._home.name("pool"))
        gid = None if self.gid_number is None else context.uid(self.gid_number)
        box = replica_sandbox(
            context.settings, program, uid=self.uid, gid=gid, cgroups=cgroups, cpus=self._home.cores()
        )
        return spawn_replica(
            context.settings, program, box, fds, watched,
            component=self.plan.name, part=self.part, group=self.group, is_first=self.restarts == 0,
        )  # fmt: skip

    async def _await_ready(self) -> None:
        """Send `start` and wait for the answer, the end of the process, or the end of our patience."""
        process, agent, program = self.process, self._agent, self.program
        if process is None or agent is None or program is None:
            raise CovenError("platform.internal", f"{self.part} has not been launched")
        lines = start_lines(
            self._home.declarations(self.index),
            instance=self._instance,
            replica=self.replica,
            entry=program.entry,
            options=self.plan.options,
        )
        asking = asyncio.ensure_future(agent.ask("start", "", lines, timeout=self._context.settings.start_timeout))
        dying = asyncio.ensure_future(process.ended.wait())
        try:
            await asyncio.wait({asking, dying}, return_when=asyncio.FIRST_COMPLETED)
            error = asking.exception() if asking.done() else None
            if asking.done() and error is None and process.alive:
                return
            if isinstance(error, CovenError) and error.code in ("component.bad-code", "component.operation-failed"):
                raise refused(self.part, error)
            if isinstance(error, CovenError) and error.code == "component.not-answering":
                raise self._timed_out()
            if error is not None and process.alive:
                # it closed its socket, or refused: give it the moment it takes to die, for the exit status
                await asyncio.wait({dying}, timeout=STOP_GRACE)
            if isinstance(error, CovenError) and error.code != "component.not-running":
                raise error
            if process.alive:
                raise self._timed_out()
            raise self._exited()
        finally:
            for future in (asking, dying):
                future.cancel()
            await asyncio.gather(asking, dying, return_exceptions=True)

    def _timed_out(self) -> CovenError:
        hint = "its start must not wait for anything; look at what it does before the first packet"
        if self.log.throttled:
            hint = (
                f"it wrote more than {BYTES_PER_SECOND >> 20} MiB a second, of which most is lost: "
                "write less while starting"
            )
        return CovenError(
            "component.start-timeout",
            f"{self.part} was not ready within {self._context.settings.start_timeout:g} s" + self._quoted(),
            hint=hint,
            where=Where(part=self.part),
        )

    def _exited(self) -> CovenError:
        self.log.stop()
        process = self.process
        output = self.output()
        complaint = any("coven-launch:" in line for line in output)
        if complaint and process is not None and process.exited_with(LAUNCH_FAILED):
            message = f"{self.part} cannot be launched" + self._quoted()
            return CovenError("platform.no-resources", message, where=Where(part=self.part))
        how = process.last_exit if process else "never ran"
        return CovenError(
            "component.exited",
            f"{self.part} ended while starting ({how})" + self._quoted(),
            hint="its output is above" if output else "it wrote nothing before it ended",
            where=Where(part=self.part),
        )

    async def _clear(self) -> None:
        """Let go of what the last start made; no process of the replica is left."""
        await self._kill_group()
        if self.process is not None and self.process.alive:
            await self.process.end()
        self.process = None
        self.log.stop()
        self.guard.stop()
        if self._agent_socket is not None:
            self._agent_socket.close()
            self._agent_socket = self._agent = None
        self._context.keeper.drop(self.fds_name)

    async def _kill_group(self) -> None:
        platform = self._context.settings.platform_id
        await strays.kill_group(platform, self.group, self.folders, self.guard.namespace)

    async def _end(self, process: Process) -> None:
        await self._farewell()
        await process.end(STOP_GRACE)

    async def _farewell(self) -> None:
        """Ask it to stop in order; what it says does not matter."""
        if self._agent is None or self.state != "ready" or self.process is None:
            return
        try:
            await self._agent.ask("stop", timeout=STOP_GRACE)
            await asyncio.wait_for(self.process.ended.wait(), STOP_GRACE)
        except (CovenError, TimeoutError):
            log.info("instance=%s %s did not stop in order", self._instance, self.part)

    def _tell_calls(self, pid: int, calls: dict[str, int]) -> None:
        """Tell the operator what it asked the kernel for and may not."""
        log.warning("instance=%s %s pid=%d refused: %s", self._instance, self.part, pid, calls)
        self._context.emit(
            "component-violation", self._instance, self.part, kind="system-call", pid=pid, calls=calls
        )

    # ---- death ----------------------------------------------------------------------------------

    def _died(self) -> None:
        process = self.process
        if process is None:
            return
        self.last_exit = self._with_last_words(process.last_exit)
        why, self._expelled = self._expelled, None
        if self._hung:
            self.last_exit = f"hung: moved nothing for {self.plan.hang_ms} ms with packets waiting"
        if why is not None:
            self.last_exit = f"killed for {why}"
        elif process.status is None:
            self._context.keeper.on_reaped(process.pid, self._set_exit)
        if self.state != "ready" or not self._wanted:
            return  # whoever starts or stops it just now deals with it
        self.state = "restarting"
        self._context.emit("component-died", self._instance, self.part, pid=process.pid, exit=self.last_exit)
        self._task = asyncio.create_task(self._after_death())

    def _set_exit(self, status: int) -> None:
        if not self._hung:
            self.last_exit = self._with_last_words(exit_text(status))

    # ---- health ---------------------------------------------------------------------------------

    @property
    def is_to_blame(self) -> bool:
        """Whether its last process died of its own code or for hanging, so that its packets are suspects."""
        return self._hung or (self.process is not None and is_own_fault(self.process.status))

    def notice(self, kind: int, times: int) -> None:
        """Hear from the worker that it does not move (kind of control.py), for `times` of its limit, or moves again."""
        process = self.process
        if process is None or self.state != "ready":
            return
        now = Look.at_process(process.pid)
        if kind == control.STILL:
            self._before = now
        elif kind == control.MOVING:
            self._before = None
        elif kind == control.HUNG and now is not None:
            if is_starved(self._before, now, times):
                self._before = now
                log.warning("instance=%s %s gets no core, left alone", self._instance, self.part)
                return
            log.error("instance=%s %s hangs; killed", self._instance, self.part)
            self._hung = True
            self.hangs += 1
            self._context.emit(
                "component-hung", self._instance, self.part, pid=process.pid, hang_ms=self.plan.hang_ms,
                on_failure=str(self.plan.on_failure),
            )  # fmt: skip
            process.kill()  # the rest is as with every death

    def _with_last_words(self, how: str | None) -> str | None:
        """Add what the component left in its segment (struct coven_replica); it may be anything."""
        from coven.dataplane.core import ffi

        fds = self.attach_fds()
        offset = ffi.offsetof("struct coven_replica", "last_words")
        words = os.pread(fds[0], LAST_WORDS_BYTES, offset).split(b"\0")[0] if fds else b""
        text = "".join(c for c in words.decode("utf-8", "replace") if c.isprintable())
        return f"{how}: {text}" if text else how

    async def _after_death(self) -> None:
        self._changed()
        await self._kill_group()  # its children must not write any more to what is swept and given to others
        await self._home.detach(self)
        await self._come_back(self._back_off.died())

    def _start_failed(self) -> float | None:
        if self.process is not None:
            self.last_exit = self.process.last_exit
        return self._back_off.start_failed()

    def _changed(self) -> None:
        self._home.changed()
