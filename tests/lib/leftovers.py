"""What tests may leave on the host: processes, shared memory, cgroups, namespaces, links, mounts, open descriptors.

Functions that begin with `all_` look at the whole host, where other test runs may be at work. `Watch` tells what of
that is of one run: what came since it began, belongs to a process of it, or is used by no process at all.
"""

from __future__ import annotations

import collections
import contextlib
import os
import re
import secrets
import select
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from coven.supervisor.process import start_time

ROOT = Path(__file__).resolve().parents[2]
MARKER = "COVEN_TEST_SESSION"
ENDING_S = 5.0  # for what is on its way out when the last test ends
DESCRIPTORS = 24  # more at the end than at the start that pass: caches of libraries, the log
PROGRAMS = tuple(os.fsencode(ROOT / folder) for folder in ("coven/bin/", "build/"))
PYTHON = os.fsencode(sys.executable)
MAKERS = re.compile(r"cvd?(\d+)(?:[-xlw]|$)")  # names of namespaces and links begin with their maker's pid


def all_shared_memory() -> set[str]:
    """Give the names of COVEN's segments that have one."""
    return {path.name for path in Path("/dev/shm").glob("coven-*")}  # noqa: S108


def all_cgroups() -> set[Path]:
    """Give the folders that platforms made, and those below."""
    # os.walk passes over folders that vanish meanwhile, as those of other test runs do; Path.glob raises
    return {Path(folder) for folder, _, _ in os.walk("/sys/fs/cgroup") if "/coven-" in folder}


def all_mounts() -> set[str]:
    """Give the mount points in the namespace of the tests."""
    return {line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()}


def all_namespaces_and_links() -> set[str]:
    """Give named network namespaces and the interfaces here that have names as tests and demo give them."""
    folders = (Path("/run/netns"), Path("/sys/class/net"))
    names = {path.name for folder in folders if folder.is_dir() for path in folder.iterdir()}
    return {name for name in names if MAKERS.match(name)}


def all_processes() -> Iterator[int]:
    """Give the processes that live, but for this one; zombies do not."""
    for path in Path("/proc").glob("[0-9]*"):
        pid = int(path.name)
        if pid != os.getpid() and start_time(pid) is not None:
            yield pid


def command_of(pid: int) -> bytes:
    """Give a process's command line, its words parted by blanks; empty when it is gone."""
    return _read(pid, "cmdline").replace(b"\0", b" ").strip()


def environment_of(pid: int) -> list[bytes]:
    """Give the variables that a process was started with; none when it is gone."""
    return _read(pid, "environ").split(b"\0")


def descendants(pid: int) -> list[int]:
    """Give all processes below one."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += [int(child), *descendants(int(child))]
    return found


def open_descriptors() -> dict[int, str]:
    """Give what this process has open."""
    found = {}
    for path in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found[int(path.name)] = str(path.readlink())
    return found


@dataclass(slots=True)
class Watch:
    """Marks what the run starts from its making on; `found` says what of it is still there."""

    token: str = field(default_factory=lambda: f"{os.getpid()}-{secrets.token_hex(4)}")
    began: int = field(default_factory=lambda: start_time(os.getpid()) or 0)
    memory: set[str] = field(default_factory=all_shared_memory)
    cgroups: set[Path] = field(default_factory=all_cgroups)
    mounts: set[str] = field(default_factory=all_mounts)
    descriptors: int = field(default_factory=lambda: len(open_descriptors()))

    def __post_init__(self) -> None:
        """Let every process that inherits the environment carry the mark."""
        os.environ[MARKER] = self.token

    def found(self, folder: Path, ending_s: float = ENDING_S) -> list[str]:
        """Say what the run has left. folder: where its tests worked. Waits for what is just ending."""
        deadline = time.monotonic() + ending_s
        while (left := list(self._found(folder))) and time.monotonic() < deadline:
            select.select([], [], [], 0.1)
        return left

    def _found(self, folder: Path) -> Iterator[str]:
        for pid in all_processes():
            if self._is_ours(pid, folder):
                yield f"process {pid}: {command_of(pid)[:160].decode(errors='replace')}"
        yield from (f"mount {point}" for point in all_mounts() - self.mounts if str(folder) in point or "coven" in point)
        for name in all_namespaces_and_links():
            maker = MAKERS.match(name)
            if maker and (int(maker[1]) == os.getpid() or start_time(int(maker[1])) is None):
                yield f"network namespace or link {name}"
        # Segments and groups have the name of their platform, which another run may be using at this moment.
        memory = all_shared_memory() - self.memory
        used = set(_mapped(memory)) if memory else set()
        yield from (f"shared memory {name}" for name in sorted(memory - used))
        for path in sorted(all_cgroups() - self.cgroups):
            platform = next(part for part in path.parts if part.startswith("coven-"))
            if not any(_has_processes(p) for p in all_cgroups() if platform in p.parts) and not self._is_served(platform):
                yield f"cgroup {path}"

    def _is_ours(self, pid: int, folder: Path) -> bool:
        if (start_time(pid) or 0) < self.began:
            return False
        marks = [entry for entry in environment_of(pid) if entry.startswith(MARKER.encode())]
        if marks:
            return f"{MARKER}={self.token}".encode() in marks
        # What coven-launch started has an environment of its own.
        command = command_of(pid)
        return os.fsencode(folder) in command or command.startswith(PROGRAMS) or (
            command.startswith(PYTHON) and b"coven.processing" in command
        )  # fmt: skip

    @staticmethod
    def _is_served(platform: str) -> bool:
        """Whether a supervisor lives whose platform this is."""
        from coven.supervisor.config import parse_arguments

        for pid in all_processes():
            words = command_of(pid).decode(errors="replace").split()
            if "coven.supervisor" in words and "--run-dir" in words[:-1]:
                run_dir = words[words.index("--run-dir") + 1]
                if parse_arguments(["--run-dir", run_dir]).platform_id == platform:
                    return True
        return False

    def descriptors_left(self) -> list[str]:
        """Say what this process has open beyond what may stay."""
        now = open_descriptors()
        if len(now) - self.descriptors <= DESCRIPTORS:
            return []
        kinds = collections.Counter(re.sub(r"\d+", "N", target) for target in now.values())
        return [f"{len(now)} open descriptors, {self.descriptors} at the start: {kinds.most_common(5)}"]


def _read(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""


def _mapped(names: Iterable[str]) -> Iterator[str]:
    """Give the segments that some process has mapped."""
    maps = [_read(pid, "maps") for pid in all_processes()]
    yield from (name for name in names if any(b"/" + os.fsencode(name) in text for text in maps))


def _has_processes(group: Path) -> bool:
    with contextlib.suppress(OSError):
        return bool((group / "cgroup.procs").read_text())
    return False
