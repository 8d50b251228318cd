"""The process of a replica: its descriptors, what it may see, and how it is started (docs/internals.md, section 4)."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

from coven.errors import CovenError, Where
from coven.supervisor import strays
from coven.supervisor.config import Settings
from coven.supervisor.launch import ENVIRONMENT, Sandbox, program_folders, spawn
from coven.supervisor.program import Program

if TYPE_CHECKING:
    from collections.abc import Mapping

# Descriptors of a component process, COVEN_FD_* of abi.h; a test compares them.
FD_DOORBELL, FD_AGENT, FD_REPLICA, FD_STATE, FD_WORKER, FD_POOL = 0, 3, 4, 5, 6, 7


def make_descriptors(segment: int) -> tuple[tuple[int, ...], dict[int, int]]:
    """Make what one start needs besides its segment.

    Give ours (segment, doorbell to ring, the worker's doorbell to read, agent socket, log) and those that only the
    process needs, by the numbers they will have there.
    """
    # Pipes, not eventfds: of those both sides would share the flags, and a component could make the worker wait.
    bell_read, bell_ring = os.pipe()
    worker_read, worker_ring = os.pipe()
    os.set_blocking(bell_ring, False)
    os.set_blocking(worker_read, False)
    os.set_blocking(worker_ring, False)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    log_read, log_write = os.pipe()
    os.set_blocking(log_write, False)  # rather lose text than let packets wait for whoever reads it
    ends = {FD_DOORBELL: bell_read, 1: log_write, FD_AGENT: theirs.detach(), FD_WORKER: worker_ring}
    return (segment, bell_ring, worker_read, ours.detach(), log_read), ends


def replica_sandbox(
    settings: Settings,
    program: Program,
    *,
    uid: int | None,
    gid: int | None,
    cgroups: tuple[str, ...],
    cpus: tuple[int, ...],
) -> Sandbox:
    """Give a replica's user, limits and surroundings. uid, gid: None without privileges."""
    features = settings.features
    return Sandbox(
        uid=uid,
        gid=gid,
        cgroups=cgroups,
        limits=(("core", "0"), ("nofile", "1024"), ("memlock", "65536")),
        root=features.root,
        binds_ro=tuple(dict.fromkeys((*program_folders(settings), *program.read))),
        binds_exact=(program.folder,),
        new_net=features.root,
        new_user=features.user,
        filter="component" if features.filter else None,
        scope=features.scope,
        cpus=cpus,
    )


def spawn_replica(
    settings: Settings,
    program: Program,
    sandbox: Sandbox,
    fds: Mapping[int, int],
    watched: int,
    *,
    component: str,
    part: str,
    group: str,
    is_first: bool,
) -> int:
    """Start a replica; give its pid. watched: where the launcher sends what is to be watched.

    Raises CovenError platform.no-resources.
    """
    env = {**ENVIRONMENT, "COVEN_COMPONENT": component, **strays.environment(settings.platform_id, group)}
    fault = os.environ.get("COVEN_FAULT")
    if fault and is_first:  # fault-injection builds only know it, and only the first start has it
        env["COVEN_FAULT"] = fault
    tell = watched if settings.features.tell or settings.features.user else None
    try:
        return spawn(settings, program.argv, fds=dict(fds), env=env, cwd=program.folder, sandbox=sandbox, tell=tell)
    except OSError as error:
        raise CovenError("platform.no-resources", f"cannot start {part}: {error}", where=Where(part=part)) from error
