"""Everything that belongs to a replica or worker, also what it left behind, and its end.

A process may fork, leave its session and outlive its parent: nothing of the family tree is left then. A control group
holds it all the same. Where there is none (always without root), the user namespace of a component does, which its
children cannot leave either. Where there is not even that, the environment that a process began with tells whose it
is: a child that is started with another one escapes then.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Callable
from pathlib import Path

from coven.supervisor import cgroup
from coven.supervisor.process import start_time

log = logging.getLogger(__name__)

VARIABLE = "COVEN_GROUP"
ROUNDS = 200  # what forks meanwhile is found again
PAUSE = 0.005  # seconds between them; they are no children of ours, so nothing tells their end


def environment(platform: str, group: str) -> dict[str, str]:
    """Give what a process of a group gets into its environment, and its children with it."""
    return {VARIABLE: f"{platform}/{group}"}


async def kill_group(
    platform: str, group: str, folders: tuple[Path, ...], namespace: int | None = None
) -> None:
    """Kill every process of a group; returns when none is left. folders: of its control group, none if it has none.

    namespace: number of its user namespace, which somebody holds open, so that no other can have it.
    """
    await cgroup.kill_all(folders)
    if not folders:
        wanted = os.fsencode(f"{VARIABLE}={platform}/{group}")
        await _kill_all(lambda pid: _is_in(pid, namespace) or _has(pid, lambda word: word == wanted))


async def kill_platform(platform: str) -> None:
    """Kill every process of all groups of a platform that is dead."""
    wanted = os.fsencode(f"{VARIABLE}={platform}/")
    await _kill_all(lambda pid: _has(pid, lambda word: word.startswith(wanted)))


async def _kill_all(wanted: Callable[[int], bool]) -> None:
    for _ in range(ROUNDS):
        if not any([_kill(pid, wanted) for pid in _others()]):
            return
        await asyncio.sleep(PAUSE)
    log.error("what a component left behind cannot be killed")


def _others() -> list[int]:
    return [int(path.name) for path in Path("/proc").glob("[0-9]*") if int(path.name) != os.getpid()]


def _kill(pid: int, wanted: Callable[[int], bool]) -> bool:
    """Kill a process that lives and is one of them."""
    if not wanted(pid):
        return False
    with contextlib.suppress(OSError):
        fd = os.pidfd_open(pid)
        try:
            if wanted(pid) and start_time(pid) is not None:  # still the same one, and no zombie
                signal.pidfd_send_signal(fd, signal.SIGKILL)
                return True
        finally:
            os.close(fd)
    return False


def _is_in(pid: int, namespace: int | None) -> bool:
    try:
        return namespace is not None and Path(f"/proc/{pid}/ns/user").stat().st_ino == namespace
    except OSError:
        return False


def _has(pid: int, wanted: Callable[[bytes], bool]) -> bool:
    try:
        return any(map(wanted, Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")))
    except OSError:  # another user's, or gone
        return False
