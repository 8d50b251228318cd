"""The life that workers and replicas have in common: start, death, restart with back-off, parking, takeover."""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from typing import Any, ClassVar

from coven.errors import CovenError
from coven.supervisor import cgroup
from coven.supervisor.backoff import BackOff
from coven.supervisor.context import Context
from coven.supervisor.logs import LogTail
from coven.supervisor.process import Process

log = logging.getLogger(__name__)

OUTPUT_LINES = 20  # of what died, shown with its error
QUOTED_CHARACTERS = 300  # of each of them


class Life(ABC):
    """One process through all its restarts. Subclasses say how it is started and ended, and what it leaves."""

    kind: ClassVar[str]  # first word of its events
    up: ClassVar[tuple[str, ...]]  # states in which it does its work, or could
    descriptors: ClassVar[int]  # how many the keeper has of one that is up

    def __init__(self, context: Context, instance: str, group: str) -> None:
        """group: name of its control group and of its log."""
        self._context, self._instance, self.group = context, instance, group
        self.state = "stopped"  # starting, one of `up`, restarting, parked, stopped
        self.restarts = 0
        self.last_exit: str | None = None
        self.process: Process | None = None
        self.log = LogTail(context.settings.logs_dir / group)
        self._back_off = BackOff()
        self._task: asyncio.Task[None] | None = None
        self._wanted = False

    # ---- what it is -----------------------------------------------------------------------------

    @property
    @abstractmethod
    def part(self) -> str:
        """Name in errors and events."""

    @property
    @abstractmethod
    def fds_name(self) -> str:
        """Name of its descriptors in the keeper."""

    @property
    def folders(self) -> tuple[Any, ...]:
        """Folders of the control group."""
        return tuple(root / self.group for root in self._context.cgroups.folders)

    @property
    def is_up(self) -> bool:
        """Whether it is ready, or more."""
        return self.state in self.up

    # ---- what only the one or the other does ----------------------------------------------------

    @abstractmethod
    async def _launch(self) -> None:
        """Start it once, until it is ready. Raises CovenError, OSError."""

    @abstractmethod
    async def _end(self, process: Process) -> None:
        """End a process that lives, in order if it can be had."""

    @abstractmethod
    async def _clear(self) -> None:
        """Let go of what the last start made; no process of it is left."""

    @abstractmethod
    async def _kill_group(self) -> None:
        """Kill what it has started and left behind."""

    @abstractmethod
    def _start_failed(self) -> float | None:
        """Give the seconds until the next attempt, None for never."""

    @abstractmethod
    def _died(self) -> None:
        """Its process has ended."""

    @abstractmethod
    def _take_over(self, fds: tuple[int, ...], document: dict[str, Any]) -> None:
        """Go on with the process that runs already, from what `remember` gave."""

    @abstractmethod
    def _changed(self) -> None:
        """Tell the instance that the state is another."""

    async def _start_again(self) -> None:
        """Start it once after a death, and have it do what it did before."""
        await self._launch()

    # ---- start and end --------------------------------------------------------------------------

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
            await self._end(self.process)
        await self._clear()
        self.state = "stopped"
        self._context.save()
        self._changed()

    async def remove(self) -> None:
        """Stop, and give back the control group."""
        await self.stop()
        await cgroup.remove(self.folders)

    # ---- restart --------------------------------------------------------------------------------

    async def _come_back(self, wait: float | None) -> None:
        """Start again after `wait` seconds, as often as it takes; None: too often already."""
        while wait is not None:
            await asyncio.sleep(wait)
            self.restarts += 1
            try:
                await self._start_again()
                return
            except (CovenError, OSError) as error:
                log.warning("instance=%s %s: %s", self._instance, self.part, error)
            if self._task is not asyncio.current_task():
                return  # it was ready already when it died: that death has begun the next start
            self.state = "restarting"
            if self.process is not None and self.process.alive:
                await self.process.end()
            self._changed()
            wait = self._start_failed()
        await self._park()

    async def _park(self) -> None:
        self.log.stop()
        await self._kill_group()  # before it is parked: a `heal` from then on makes a group anew
        self.state = "parked"
        self._context.save()
        self._context.emit(f"{self.kind}-parked", self._instance, self.part, exit=self.last_exit, output=self.output())
        self._changed()

    # ---- what is told of it ---------------------------------------------------------------------

    def output(self) -> list[str]:
        """Give its last lines of output."""
        return self.log.texts(OUTPUT_LINES)

    def _quoted(self) -> str:
        """Give its last output as the end of an error's message."""
        output = self.output()
        return ":\n" + "\n".join(f"  {line[:QUOTED_CHARACTERS]}" for line in output) if output else ""

    def to_json(self) -> dict[str, Any]:
        """Give it as the protocol shows it."""
        alive = self.process is not None and self.process.alive
        return {
            "pid": self.process.pid if alive and self.process else None,
            "state": self.state,
            "restarts": self.restarts,
            "last_exit": self.last_exit,
            "last_output": self.output() if self.state in ("parked", "restarting") else [],
        }

    # ---- manifest -------------------------------------------------------------------------------

    def remember(self) -> dict[str, Any]:
        """Give what a successor needs to take it over."""
        process = self.process if self.process is not None and self.process.alive else None
        return {
            "pid": process.pid if process else None,
            "start_time": process.started if process else None,
            "state": self.state,
            "wanted": self._wanted,
            "restarts": self.restarts,
            "last_exit": self.last_exit,
        }

    def recall(self, document: dict[str, Any]) -> None:
        """Take over what a predecessor left; what was not ready is not kept."""
        self.restarts, self.last_exit = int(document["restarts"]), document["last_exit"]
        self._wanted, state = bool(document["wanted"]), str(document["state"])
        fds = self._context.keeper.get(self.fds_name)
        if state in self.up and document["pid"] and len(fds) == self.descriptors:
            self.process = Process.adopted(document["pid"], document["start_time"], self._context.keeper, self._died)
        self.log.recall()
        if self.process is not None:
            self.state = state
            self._take_over(fds, document)
        else:
            self.state = "parked" if state == "parked" else "restarting" if self._wanted else "stopped"
