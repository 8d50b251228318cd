"""A process that is watched by pidfd, whether we started it or took it over."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable
from pathlib import Path

from coven.supervisor.keeper import Keeper


def start_time(pid: int) -> int | None:
    """Give the start time of a process in clock ticks since boot; None when it is gone or a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = stat[stat.rfind(")") + 2 :].split()
    return None if fields[0] in "ZX" else int(fields[19])


def children(pid: int) -> list[int]:
    """Give the children of a process."""
    found: list[int] = []
    for task in _tasks(pid):
        with contextlib.suppress(OSError):
            found += map(int, (task / "children").read_text(encoding="ascii").split())
    return found


def _tasks(pid: int) -> list[Path]:
    try:
        return list(Path(f"/proc/{pid}/task").iterdir())
    except OSError:
        return []


def exit_text(status: int) -> str:
    """Say how a process ended, from its wait status."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        try:
            return f"killed by {signal.Signals(number).name}"
        except ValueError:
            return f"killed by signal {number}"
    return f"exit status {os.waitstatus_to_exitcode(status)}"


class Process:
    """One process. `ended` is set, and `on_exit` called once, when it has died."""

    def __init__(self, pid: int, pidfd: int, started: int, keeper: Keeper, on_exit: Callable[[], None]) -> None:
        """Watch a living process; use `spawned` or `adopted`."""
        self.pid = pid
        self.started = started
        self.status: int | None = None
        self.ended = asyncio.Event()
        self._pidfd = pidfd
        self._keeper = keeper
        self._on_exit = on_exit
        asyncio.get_running_loop().add_reader(pidfd, self._died)

    @classmethod
    def spawned(cls, pid: int, keeper: Keeper, on_exit: Callable[[], None]) -> Process:
        """Watch a child of ours; it cannot vanish before we wait for it."""
        return cls(pid, os.pidfd_open(pid), start_time(pid) or 0, keeper, on_exit)

    @classmethod
    def adopted(cls, pid: int, started: int, keeper: Keeper, on_exit: Callable[[], None]) -> Process | None:
        """Watch a process that runs already, or give None when it is not there any more."""
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            return None
        if start_time(pid) != started:  # another one with the same number, or dead
            os.close(pidfd)
            return None
        return cls(pid, pidfd, started, keeper, on_exit)

    @property
    def alive(self) -> bool:
        """Whether it has not been seen to end."""
        return not self.ended.is_set()

    @property
    def last_exit(self) -> str | None:
        """How it ended; None while it lives."""
        if self.alive:
            return None
        return "ended, status not known" if self.status is None else exit_text(self.status)

    def exited_with(self, code: int) -> bool:
        """Whether it ended by itself with this status."""
        return self.status is not None and os.WIFEXITED(self.status) and os.WEXITSTATUS(self.status) == code

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal; nothing happens if the process has ended."""
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    async def end(self, grace: float = 0.0) -> None:
        """Make it end: SIGTERM and up to `grace` seconds when given, then SIGKILL. Returns when it is gone."""
        if grace > 0:
            self.kill(signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.ended.wait(), grace)
        self.kill()
        await self.ended.wait()

    def forget(self) -> None:
        """Stop watching without ending it."""
        if self.alive:
            asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
            self.ended.set()

    def _died(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        try:
            self.status = os.waitpid(self.pid, 0)[1]
        except ChildProcessError:  # adopted: its parent is the keeper
            self._keeper.on_reaped(self.pid, self._set_status)
        os.close(self._pidfd)
        self.ended.set()
        self._on_exit()

    def _set_status(self, status: int) -> None:
        self.status = status
