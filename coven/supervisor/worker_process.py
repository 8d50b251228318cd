"""The process of a worker: what it may see, and how it is started."""

from __future__ import annotations

import os

from coven.errors import CovenError
from coven.supervisor import strays
from coven.supervisor.config import Settings
from coven.supervisor.launch import ENVIRONMENT, Sandbox, program_folders, spawn

CONTROL_FD = 3


def worker_sandbox(settings: Settings, cgroups: tuple[str, ...], core: int | None) -> Sandbox:
    """Give a worker's user, limits and surroundings. core: to be pinned to, or None."""
    return Sandbox(
        uid=settings.worker_uid if settings.privileged else None,
        gid=settings.worker_uid if settings.privileged else None,
        cgroups=cgroups,
        limits=(("core", "0"), ("nofile", "4096")),
        root=settings.privileged,
        binds_ro=program_folders(settings),
        new_net=settings.privileged,
        new_user=settings.features.user,
        filter="worker" if settings.features.filter else None,
        cpus=() if core is None else (core,),
    )


def spawn_worker(
    settings: Settings,
    instance: str,
    index: int,
    group: str,
    sandbox: Sandbox,
    control_end: int,
    log_end: int,
    *,
    is_first: bool,
) -> int:
    """Start a worker; give its pid. Raises CovenError platform.no-resources."""
    env = {**ENVIRONMENT, **strays.environment(settings.platform_id, group)}
    fault = os.environ.get("COVEN_FAULT")
    if fault and is_first:  # only fault-injection builds know it
        env["COVEN_FAULT"] = fault
    program = str(settings.bin_dir / "coven-worker")
    fds = {1: log_end, 2: log_end, CONTROL_FD: control_end}
    try:
        argv = (program, "--instance", instance, "--index", str(index))
        return spawn(settings, argv, fds=fds, env=env, cwd="/", sandbox=sandbox)
    except OSError as error:
        raise CovenError("platform.no-resources", f"cannot start worker {index}: {error}") from error
