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
from coven.supervisor.backoff import BackOff
from coven.supervisor.context import Context
from coven.supervisor.guard import Guard
from coven.supervisor.health import Look, is_own_fault, is_starved
from coven.supervisor.launch import ENVIRONMENT, Sandbox, program_folders, spawn
from coven.supervisor.logs import BYTES_PER_SECOND, LogTail
from coven.supervisor.process import Process, exit_text
from coven.supervisor.program import Program, refused

if TYPE_CHECKING:
    from coven.forwarder.instance_plan import ComponentPlan

log = logging.getLogger(__name__)

STOP_GRACE = 1.0
LAST_WORDS_BYTES = 128
CHECK_TIMEOUT = 3.0  # of a component that is to be healed
OUTPUT_LINES = 20  # of a dead component, shown with its error
QUOTED_CHARACTERS = 300  # of each of them
LAUNCH_FAILED = 125  # exit status of coven-launch itself

# Descriptors of a component process, COVEN_FD_* of abi.h; a test compares them.
FD_DOORBELL, FD_AGENT, FD_REPLICA, FD_STATE, FD_WORKER, FD_POOL = 0, 3, 4, 5, 6, 7



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


class Replica:
    """One process of an isolated component, through all its restarts."""

    def __init__(
        self, context: Context, home: Home, plan: ComponentPlan, index: int, number: int, replica: int
    ) -> None:
        """index: of the component; number: through the worker's replicas; replica: through all of the component."""
        self._context, self._home = context, home
        self.plan, self.index, self.number, self.replica = plan, index, number, replica
        self.program: Program | None = None
        self.uid_number: int | None = None
        self.gid_number: int | None = None  # of the component's first replica: they share a state segment
        self.state = "stopped"  # starting, ready, restarting, parked, stopped
        self.restarts = 0
        self.last_exit: str | None = None
        self.process: Process | None = None
        self.log = LogTail(context.settings.logs_dir / self.group)
        self.guard = Guard(context.keeper, self.fds_name, self._tell_calls)
        self._agent: AsyncAgentClient | None = None
        self._agent_socket: socket.socket | None = None
        self._back_off = BackOff()
        self._before: Look | None = None  # when it had not moved for half its limit
        self._hung = False  # it was killed for that
        self._task: asyncio.Task[None] | None = None
        self._wanted = False
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
    def group(self) -> str:
        """Name of the control group."""
        return f"{self._home.instance}.{self.plan.name}.{self.replica}"

    @property
    def folders(self) -> tuple[Any, ...]:
        """Folders of the control group."""
        return tuple(root / self.group for root in self._context.cgroups.folders)

    @property
    def uid(self) -> int | None:
        """Numeric user, None without privileges."""
        return None if self.uid_number is None else self._context.uid(self.uid_number)

    def attach_fds(self) -> tuple[int, ...]:
        """Give segment, doorbell to the component, doorbell to the worker."""
        return self._context.keeper.get(self.fds_name)[:3]

    # ---- outside --------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start and return when it is ready. Raises CovenError; then nothing of it is left running."""
        self._wanted = True
        self._back_off.reset()
        try:
            await self._launch()
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """End it and let go of everything that one start made. May be called in any state."""
        self._wanted = False
        task, self._task = self._task, None
        if task is not None and task is not asyncio.current_task():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        if self.process is not None and self.process.alive:
            await self._farewell()
            await self.process.end(STOP_GRACE)
        await self._clear()
        self.state = "stopped"
        self._context.save()
        self._home.changed()

    async def remove(self) -> None:
        """Stop, and give back user and control group."""
        await self.stop()
        await cgroup.remove(self.folders)
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
                log.warning("instance=%s %s is replaced: %s", self._home.instance, self.part, error.message)
                await self._home.detach(self)
                await self.stop()
        if self.state in ("parked", "stopped"):
            await self.start()

    def expel(self, why: str) -> None:
        """Kill it for what it did; then it goes as with every death."""
        if self.state == "ready" and self.process is not None and self.process.alive:
            log.warning("instance=%s %s is killed: %s", self._home.instance, self.part, why)
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
        alive = self.process is not None and self.process.alive
        return {
            "pid": self.process.pid if alive and self.process else None,
            "state": self.state,
            "worker": self._home.worker or 0,
            "restarts": self.restarts,
            "uid": self.uid,
            "cgroup": str(self.folders[0]) if self.folders else None,
            "last_exit": self.last_exit,
            "last_output": self.log.texts(OUTPUT_LINES) if self.state in ("parked", "restarting") else [],
            "refused_calls": dict(self.guard.total),
        }

    # ---- manifest -------------------------------------------------------------------------------

    def remember(self) -> dict[str, Any]:
        """Give what a successor needs to take this replica over."""
        process = self.process if self.process is not None and self.process.alive else None
        return {
            "uid": self.uid_number,
            "gid": self.gid_number,
            "pid": process.pid if process else None,
            "start_time": process.started if process else None,
            "state": self.state,
            "wanted": self._wanted,
            "restarts": self.restarts,
            "last_exit": self.last_exit,
            "refused_calls": self.guard.total,
        }

    def recall(self, document: dict[str, Any]) -> None:
        """Take over what a predecessor left; a replica that was not ready is not kept."""
        self.uid_number, self.gid_number = document["uid"], document["gid"]
        if self.uid_number is not None:
            self._context.uids.add(self.uid_number)
        self.restarts, self.last_exit = int(document["restarts"]), document["last_exit"]
        self.guard.total = {str(call): int(number) for call, number in document["refused_calls"].items()}
        self._wanted, state = bool(document["wanted"]), str(document["state"])
        fds = self._context.keeper.get(self.fds_name)
        if state == "ready" and document["pid"] and len(fds) == 5:
            self.process = Process.adopted(document["pid"], document["start_time"], self._context.keeper, self._died)
        self.log.recall()
        if self.process is not None:
            self.state = state
            self._listen(fds)
            self.guard.follow()
        else:
            self.state = "parked" if state == "parked" else "restarting" if self._wanted else "stopped"

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
        ends = self._make_descriptors()
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
        context.emit("component-ready", self._home.instance, self.part, pid=pid)
        await self._home.attach(self)
        self._home.changed()

    def _make_descriptors(self) -> dict[int, int]:
        """Make what this start needs; give the process's ends by the numbers they will have there."""
        uid = self.uid if self.uid is not None else os.geteuid()
        segment = memory.make(self._home.segment(self.number), uid)
        # Pipes, not eventfds: of those both sides would share the flags, and a component could make the worker wait.
        bell_read, bell_ring = os.pipe()
        worker_read, worker_ring = os.pipe()
        os.set_blocking(bell_ring, False)
        os.set_blocking(worker_read, False)
        os.set_blocking(worker_ring, False)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        log_read, log_write = os.pipe()
        os.set_blocking(log_write, False)  # rather lose text than let packets wait for whoever reads it
        fds = (segment, bell_ring, worker_read, ours.detach(), log_read)
        self._context.keeper.put(self.fds_name, fds)
        self._listen(fds)
        return {FD_DOORBELL: bell_read, 1: log_write, FD_AGENT: theirs.detach(), FD_WORKER: worker_ring}

    def _listen(self, fds: tuple[int, ...]) -> None:
        self._agent_socket = socket.socket(fileno=os.dup(fds[3]))
        self._agent = AsyncAgentClient(self._agent_socket, self.part)
        self.log.follow(fds[4])

    def _spawn(self, ends: dict[int, int], cgroups: tuple[str, ...], watched: int) -> int:
        context, program, plan = self._context, self.program, self.plan
        if program is None:
            raise CovenError("platform.internal", f"{self.part} was not built")
        segment = self.attach_fds()[0]
        (state,) = context.keeper.get(self._home.name(f"state.{self.index}"))
        fds = {**ends, 2: ends[1], FD_REPLICA: segment, FD_STATE: state}
        if plan.isolation == "shared":
            (fds[FD_POOL],) = context.keeper.get(self._home.name("pool"))
        features = context.settings.features
        sandbox = Sandbox(
            uid=self.uid,
            gid=None if self.gid_number is None else context.uid(self.gid_number),
            cgroups=cgroups,
            limits=(("core", "0"), ("nofile", "1024"), ("memlock", "65536")),
            root=features.root,
            binds_ro=_unique((*program_folders(context.settings), *program.read)),
            binds_exact=(program.folder,),
            new_net=features.root,
            new_user=features.user,
            filter="component" if features.filter else None,
            scope=features.scope,
            cpus=self._home.cores(),
        )
        ours = strays.environment(context.settings.platform_id, self.group)
        env = {**ENVIRONMENT, "COVEN_COMPONENT": plan.name, **ours}
        fault = os.environ.get("COVEN_FAULT")
        if fault and self.restarts == 0:  # fault-injection builds only know it, and only the first start has it
            env["COVEN_FAULT"] = fault
        try:
            tell = watched if features.tell or features.user else None
            folder = program.folder
            return spawn(context.settings, program.argv, fds=fds, env=env, cwd=folder, sandbox=sandbox, tell=tell)
        except OSError as error:
            raise CovenError(
                "platform.no-resources", f"cannot start {self.part}: {error}", where=Where(part=self.part)
            ) from error

    async def _await_ready(self) -> None:
        """Send `start` and wait for the answer, the end of the process, or the end of our patience."""
        process, agent, program = self.process, self._agent, self.program
        if process is None or agent is None or program is None:
            raise CovenError("platform.internal", f"{self.part} has not been launched")
        lines = start_lines(
            self._home.declarations(self.index),
            instance=self._home.instance,
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
        output = self.log.texts(OUTPUT_LINES)
        hint = "its start must not wait for anything; look at what it does before the first packet"
        if self.log.throttled:
            hint = (
                f"it wrote more than {BYTES_PER_SECOND >> 20} MiB a second, of which most is lost: "
                "write less while starting"
            )
        return CovenError(
            "component.start-timeout",
            f"{self.part} was not ready within {self._context.settings.start_timeout:g} s" + _quote(output),
            hint=hint,
            where=Where(part=self.part),
        )

    def _exited(self) -> CovenError:
        self.log.stop()
        process = self.process
        output = self.log.texts(OUTPUT_LINES)
        complaint = any("coven-launch:" in line for line in output)
        if complaint and process is not None and process.exited_with(LAUNCH_FAILED):
            message = f"{self.part} cannot be launched" + _quote(output)
            return CovenError("platform.no-resources", message, where=Where(part=self.part))
        how = process.last_exit if process else "never ran"
        return CovenError(
            "component.exited",
            f"{self.part} ended while starting ({how})" + _quote(output),
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

    async def _farewell(self) -> None:
        """Ask it to stop in order; what it says does not matter."""
        if self._agent is None or self.state != "ready" or self.process is None:
            return
        try:
            await self._agent.ask("stop", timeout=STOP_GRACE)
            await asyncio.wait_for(self.process.ended.wait(), STOP_GRACE)
        except (CovenError, TimeoutError):
            log.info("instance=%s %s did not stop in order", self._home.instance, self.part)

    def _tell_calls(self, pid: int, calls: dict[str, int]) -> None:
        """Tell the operator what it asked the kernel for and may not."""
        log.warning("instance=%s %s pid=%d refused: %s", self._home.instance, self.part, pid, calls)
        self._context.emit(
            "component-violation", self._home.instance, self.part, kind="system-call", pid=pid, calls=calls
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
        self._context.emit("component-died", self._home.instance, self.part, pid=process.pid, exit=self.last_exit)
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
                log.warning("instance=%s %s gets no core, left alone", self._home.instance, self.part)
                return
            log.error("instance=%s %s hangs; killed", self._home.instance, self.part)
            self._hung = True
            self._context.emit(
                "component-hung", self._home.instance, self.part, pid=process.pid, hang_ms=self.plan.hang_ms,
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
        self._home.changed()
        await self._kill_group()  # its children must not write any more to what is swept and given to others
        await self._home.detach(self)
        await self._come_back(self._back_off.died())

    async def _come_back(self, wait: float | None) -> None:
        """Start again after `wait` seconds, as often as it takes; None: too often already."""
        while wait is not None:
            await asyncio.sleep(wait)
            self.restarts += 1
            try:
                await self._launch()
                return
            except (CovenError, OSError) as error:
                log.warning("instance=%s %s: %s", self._home.instance, self.part, error)
            if self._task is not asyncio.current_task():
                return  # it was ready already when it died: that death has begun the next start
            self.state = "restarting"
            if self.process is not None:
                if self.process.alive:
                    await self.process.end()
                self.last_exit = self.process.last_exit
            wait = self._back_off.start_failed()
        await self._park()

    async def _park(self) -> None:
        self.log.stop()
        self.state = "parked"
        output = self.log.texts(OUTPUT_LINES)
        await self._kill_group()
        self._context.save()
        self._context.emit("component-parked", self._home.instance, self.part, exit=self.last_exit, output=output)
        self._home.changed()


def _quote(output: list[str]) -> str:
    return ":\n" + "\n".join(f"  {line[:QUOTED_CHARACTERS]}" for line in output) if output else ""


def _unique(paths: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(paths))
