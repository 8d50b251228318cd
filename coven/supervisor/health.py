"""Processes that live but do not move: told by the worker (NOTIFY, docs/internals.md section 3), judged here.

The worker knows that a replica has packets and moves none. Whether it hangs or was given no time on a core is seen in
/proc: one that could run and got next to none is starved by others, and killing it would make that worse.
"""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

STARVED_SHARE = 0.1  # of a core while it could run: less is starving
PATIENCE = 10  # limits after which a starved one is taken for hung all the same


@dataclass(frozen=True, slots=True)
class Look:
    """A process at one moment."""

    runs: bool  # or could run; else it sleeps, waits or is stopped
    cpu: float  # seconds that all its threads used
    at: float  # monotonic seconds

    @classmethod
    def at_process(cls, pid: int) -> Look | None:
        """Look at a process; None when it is gone."""
        try:
            stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return None
        fields = stat[stat.rfind(")") + 2 :].split()
        used = int(fields[11]) + int(fields[12])
        return cls(fields[0] == "R", used / os.sysconf("SC_CLK_TCK"), time.monotonic())


def is_starved(before: Look | None, now: Look, times: int) -> bool:
    """Whether a process that did not move for `times` of its limit lacks a core rather than hangs."""
    if before is None or not now.runs or times >= PATIENCE:
        return False
    return now.cpu - before.cpu < STARVED_SHARE * (now.at - before.at)


def is_own_fault(status: int | None) -> bool:
    """Whether a process died of its own code, from its wait status: then what it had in its hands is a suspect.

    SIGKILL and SIGTERM come from outside: an operator, or the kernel for want of memory.
    """
    if status is None:
        return False
    if os.WIFSIGNALED(status):
        return os.WTERMSIG(status) not in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    return os.waitstatus_to_exitcode(status) != 0
