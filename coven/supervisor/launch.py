"""The one place that starts processes: coven-launch with a sandbox, in a spawn of a few hundred microseconds."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from coven.supervisor.config import PACKAGE, Settings

# Bound by coven-launch itself.
SYSTEM_FOLDERS = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/etc")
ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8", "HOME": "/tmp"}  # noqa: S108 - its own


@dataclass(frozen=True, slots=True)
class Sandbox:
    """What a process is and may do. Only what coven-launch can be told."""

    uid: int | None = None  # None: as we are
    gid: int | None = None
    cgroups: tuple[str, ...] = ()
    limits: tuple[tuple[str, str], ...] = ()  # ("nofile", "256")
    root: bool = False  # a private root
    binds: tuple[str, ...] = ()
    binds_ro: tuple[str, ...] = ()
    binds_exact: tuple[str, ...] = ()  # read only as well; refused if there is a symbolic link anywhere in the path
    all_processes: bool = False  # sees other users' processes in /proc
    new_net: bool = False  # and its own IPC objects and host name
    new_user: bool = False  # a user namespace with nobody else in it
    filter: str | None = None  # of system calls: "component" or "worker"
    scope: bool = False  # signals reach only itself and what it starts
    nice: int | None = None
    cpus: tuple[int, ...] = ()  # to be pinned to; none: where we may run ourselves
    best_effort: bool = False

    def arguments(self) -> list[str]:
        """Give the options of coven-launch."""
        out: list[str] = []
        numbers = (("--uid", self.uid), ("--gid", self.gid), ("--nice", self.nice))
        for option, number in numbers:
            if number is not None:
                out += [option, str(number)]
        if self.cpus:
            out += ["--cpu", ",".join(map(str, self.cpus))]
        for flag, said in (
            ("--root", self.root),
            ("--proc-all", self.root and self.all_processes),
            ("--new-net", self.new_net),
            ("--new-ipc", self.new_net),
            ("--new-uts", self.new_net),
            ("--new-user", self.new_user),
            ("--scope", self.scope),
            ("--best-effort", self.best_effort),
        ):
            out += [flag] if said else []
        if self.filter is not None:
            out += ["--filter", self.filter]
        for cgroup in self.cgroups:
            out += ["--cgroup", cgroup]
        for name, value in self.limits:
            out += [f"--rlimit-{name}", value]
        if self.root:
            for path in self.binds_ro:
                out += ["--bind-ro", path]
            for path in self.binds_exact:
                out += ["--bind-exact", path]
            for path in self.binds:
                out += ["--bind", path]
        return out


def program_folders(settings: Settings) -> tuple[str, ...]:
    """Give the folders of COVEN and Python that a private root must show besides the system's."""
    wanted = [Path(sys.base_prefix), Path(sys.base_exec_prefix), Path(sys.prefix), PACKAGE, settings.bin_dir]
    kept: list[Path] = []
    for path in wanted:
        inside = [Path(x) for x in SYSTEM_FOLDERS] + kept
        if not any(path.is_relative_to(x) for x in inside) and path.is_dir():
            kept.append(path)
    return tuple(str(x) for x in kept)


def spawn(
    settings: Settings,
    argv: Sequence[str],
    *,
    fds: Mapping[int, int],
    env: Mapping[str, str],
    cwd: str,
    sandbox: Sandbox,
    tell: int | None = None,
) -> int:
    """Start a process and give its pid, which stays the same through coven-launch.

    fds: descriptor in the process -> descriptor here. Descriptor 2 is also where coven-launch complains.
    tell: a socket that coven-launch sends the process's user namespace and the filter's listener to (guard.py).
    Raises OSError when not even coven-launch can be started.
    """
    base = max([*fds.values(), tell or 0, 63]) + 1
    arguments = [settings.launcher, *sandbox.arguments(), "--cwd", cwd]
    actions: list[tuple[int, int, int]] = []
    for number, (target, source) in enumerate(fds.items()):
        actions.append((os.POSIX_SPAWN_DUP2, source, base + number))
        arguments += ["--fd", f"{target}={base + number}"]
    if tell is not None:
        actions.append((os.POSIX_SPAWN_DUP2, tell, base + len(fds)))
        arguments += ["--tell", str(base + len(fds))]
    if 2 in fds:
        actions.append((os.POSIX_SPAWN_DUP2, fds[2], 2))
    for key, value in env.items():
        arguments += ["--env", f"{key}={value}"]
    return os.posix_spawn(settings.launcher, [*arguments, "--", *argv], {}, file_actions=actions)
