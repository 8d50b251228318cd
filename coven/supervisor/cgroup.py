"""Control groups: limits for each replica, and the means to find every process of it.

Version 1 hierarchies (memory, cpu, pids) or version 2, whichever the host has the controllers in. Everything lies
below one folder of the platform in each hierarchy, so that it can be swept.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import signal
from dataclasses import dataclass, field
from pathlib import Path

from coven.model import Limits
from coven.supervisor import cgroup_v2
from coven.supervisor.process import children

log = logging.getLogger(__name__)

CONTROLLERS = ("memory", "cpu", "pids")
SWAP = "memory.swap.max"  # memory.max does not count what is swapped out
PERIOD_US = 100_000  # of the CPU quota


@dataclass(slots=True)
class Hierarchies:
    """Where controllers are to be had. `roots`: folder below which this platform makes its groups."""

    version: int  # 0: none
    roots: dict[str, Path] = field(default_factory=dict)  # controller -> folder
    missing: list[str] = field(default_factory=list)  # sentences for `degraded`

    @property
    def folders(self) -> list[Path]:
        """Give each root once."""
        return list(dict.fromkeys(self.roots.values()))


def find(platform_id: str, mounts: str | None = None, own: str | None = None) -> Hierarchies:
    """Find the hierarchies and make the platform's folder in each.

    mounts, own: texts in the form of /proc/mounts and /proc/self/cgroup, for tests.
    """
    mounts = Path("/proc/mounts").read_text(encoding="utf-8") if mounts is None else mounts
    own = Path("/proc/self/cgroup").read_text(encoding="ascii") if own is None else own
    v1: dict[str, Path] = {}
    v2: Path | None = None
    for line in mounts.splitlines():
        fields = line.split()
        if len(fields) < 4:
            continue
        if fields[2] == "cgroup2":
            v2 = Path(fields[1])
        elif fields[2] == "cgroup":
            for controller in set(fields[3].split(",")) & set(CONTROLLERS):
                v1[controller] = Path(fields[1])
    mine = {os.getpid(), os.getppid(), *children(os.getppid())} - {0, 1}  # with the keeper and what else it started
    root = cgroup_v2.prepare(v2, own, platform_id, CONTROLLERS, mine) if v2 else None
    if root is not None:
        found = Hierarchies(2, dict.fromkeys(CONTROLLERS, root))
    else:
        found = Hierarchies(1 if v1 else 0, {c: path / platform_id for c, path in v1.items()})
    for controller in CONTROLLERS:
        if controller not in found.roots:
            found.missing.append(f"no {controller} limits: the host has no cgroup controller {controller!r} for us")
    for folder in found.folders:
        try:
            folder.mkdir(exist_ok=True)
        except OSError as error:
            found.missing.append(f"no cgroup limits at {folder}: {error.strerror}")
            found.roots = {c: path for c, path in found.roots.items() if path != folder}
    return found


def create(hierarchies: Hierarchies, name: str, limits: Limits | None) -> tuple[Path, ...]:
    """Make a group in each hierarchy and set its limits; give its folders. `name` has no slash."""
    folders: list[Path] = []
    for root in hierarchies.folders:
        folder = root / name
        folder.mkdir(exist_ok=True)
        folders.append(folder)
    if limits:
        for controller, root in hierarchies.roots.items():
            for file, value in _values(hierarchies.version, controller, limits):
                if file != SWAP or (root / name / file).exists():  # a kernel without swap accounting has no such file
                    (root / name / file).write_text(value, encoding="ascii")
    return tuple(folders)


def _values(version: int, controller: str, limits: Limits) -> list[tuple[str, str]]:
    quota = max(1000, int(limits.cpu * PERIOD_US))
    if controller == "pids":
        return [("pids.max", str(limits.pids))]
    if version == 2:
        if controller == "cpu":
            return [("cpu.max", f"{quota} {PERIOD_US}")]
        return [("memory.max", str(limits.memory_bytes)), (SWAP, "0"), ("memory.oom.group", "1")]
    if controller == "cpu":
        return [("cpu.cfs_period_us", str(PERIOD_US)), ("cpu.cfs_quota_us", str(quota))]
    return [("memory.limit_in_bytes", str(limits.memory_bytes))]


def processes(folders: tuple[Path, ...]) -> set[int]:
    """Give the pids in a group."""
    found: set[int] = set()
    for folder in folders:
        with contextlib.suppress(OSError):
            found |= set(map(int, (folder / "cgroup.procs").read_text(encoding="ascii").split()))
    return found - {0}


async def kill_all(folders: tuple[Path, ...]) -> None:
    """Kill every process of a group; returns when none is left. Processes that fork meanwhile are found again."""
    for folder in folders:
        cgroup_v2.kill(folder)
    for _ in range(200):
        pids = processes(folders)
        if not pids:
            return
        await asyncio.gather(*(_kill(pid) for pid in pids))
    log.error("cgroup=%s processes cannot be killed", folders)


async def _kill(pid: int) -> None:
    try:
        fd = os.pidfd_open(pid)
    except OSError:
        return
    loop = asyncio.get_running_loop()
    gone = asyncio.Event()
    try:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(fd, signal.SIGKILL)
        loop.add_reader(fd, gone.set)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(gone.wait(), 5)
    finally:
        loop.remove_reader(fd)
        os.close(fd)


async def remove(folders: tuple[Path, ...]) -> None:
    """Kill what is in a group and remove it. No harm if it is gone already."""
    await kill_all(folders)
    for folder in folders:
        for attempt in range(50):
            try:
                folder.rmdir()
            except FileNotFoundError:
                break
            except OSError as error:
                # a zombie that its parent has not reaped yet still counts
                if error.errno != errno.EBUSY or attempt == 49:
                    log.error("cgroup=%s not removed: %s", folder, error)
                    break
                await asyncio.sleep(0.01)
            else:
                break


def sweep(hierarchies: Hierarchies, keep: set[str]) -> list[tuple[Path, ...]]:
    """Give the groups of this platform that nobody knows, one tuple of folders for each."""
    found: dict[str, list[Path]] = {}
    for root in hierarchies.folders:
        with contextlib.suppress(OSError):
            for folder in root.iterdir():
                if folder.is_dir() and folder.name not in keep:
                    found.setdefault(folder.name, []).append(folder)
    return [tuple(folders) for folders in found.values()]
