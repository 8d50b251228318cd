"""Composition and main loop of the supervisor."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import signal
import sys
from dataclasses import replace
from pathlib import Path

from coven.supervisor import cgroup, sweep
from coven.supervisor.cgroup import Hierarchies
from coven.supervisor.config import Settings, fallback_dir, parse_arguments
from coven.supervisor.context import Context
from coven.supervisor.features import probe
from coven.supervisor.keeper import Keeper
from coven.supervisor.platform import Platform
from coven.supervisor.requests import handlers
from coven.supervisor.server import Server

log = logging.getLogger(__name__)


def main(arguments: list[str] | None = None) -> int:
    """Run until the platform ends. Gives the exit status."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s", stream=sys.stderr)
    settings = parse_arguments(sys.argv[1:] if arguments is None else arguments)
    os.umask(0o022)  # also for folders above ours that are missing
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: the keeper tells us
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    make_folders(settings)
    settings = replace(settings, features=probe(settings.launcher))
    try:
        keeper = Keeper(settings)
        keeper.load()
    except OSError as error:
        log.error("no keeper on descriptor 3 (%s): start the platform with coven-keeper", error)
        return 2
    return asyncio.run(run(settings, keeper))


def make_folders(settings: Settings) -> None:
    """Make state and run directory. The agent may make files in both, but not touch those of others (sticky)."""
    if not settings.privileged and settings.run_dir.parent == fallback_dir():
        _own_folder(settings.run_dir.parent, 0o700)  # below /tmp, where everybody could have made it
    for folder in (settings.state_dir, settings.run_dir):
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        if settings.privileged:
            os.chown(folder, 0, settings.agent_uid)
            folder.chmod(0o1775)
    _own_folder(settings.journal_dir, 0o700)
    _own_folder(settings.logs_dir, 0o700)
    _own_folder(settings.build_dir, 0o755)
    packages = settings.packages_dir
    packages.mkdir(mode=0o755, exist_ok=True)
    if settings.privileged and packages.stat(follow_symlinks=False).st_uid == 0:
        os.chown(packages, settings.agent_uid, settings.agent_uid, follow_symlinks=False)


def _own_folder(folder: Path, mode: int) -> None:
    """Make a folder that only we can write to; one that somebody else made is not trusted."""
    folder.mkdir(mode=mode, exist_ok=True)
    status = folder.stat(follow_symlinks=False)
    if folder.is_symlink() or status.st_uid != os.geteuid():
        raise SystemExit(f"{folder} belongs to user {status.st_uid}: remove it")
    folder.chmod(mode)


async def run(settings: Settings, keeper: Keeper) -> int:
    """Take over or begin, serve, end."""
    keeper.watch()
    cgroups = cgroup.find(settings.platform_id) if settings.privileged else Hierarchies(0)
    platform = Platform(Context(settings, keeper, cgroups))
    manifest = platform.read_manifest()
    if manifest is not None and keeper.names():
        platform.take_over(manifest)
    elif manifest is not None:
        await sweep.sweep_dead(settings, keeper, manifest)
    platform.read_journals()
    await sweep.sweep_groups(platform)
    platform.save()
    server = Server(platform.context, handlers(platform))
    platform.resume()
    await server.start()
    if settings.with_agent:
        platform.agent.start()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, platform.begin_shutdown)
    platform.context.emit("supervisor-started", None, None, pid=os.getpid(), took_over=manifest is not None)
    log.info("supervisor=%d ready instances=%d", os.getpid(), len(platform.instances))
    warm = asyncio.create_task(asyncio.to_thread(_warm_up))
    await platform.ending.wait()
    server.close()
    if platform.wants_reexec:
        await asyncio.sleep(0)  # answers that are on their way
        platform.replace_program()
    await platform.shut_down()
    with contextlib.suppress(Exception):
        await warm
    return 0


def _warm_up() -> None:
    """Load what the first deployment needs, after we can be asked and before somebody waits for it."""
    import importlib

    for module in (
        "coven.dataplane.layout",
        "coven.forwarder.plan_check",
        "coven.processing.framework",
        "coven.processing.c.framework",
        "coven.processing.python.framework",
        "coven.network",
        "coven.supervisor.build",
        "coven.supervisor.metrics",
        "coven.agents.schema",
        "posix_ipc",
        "pyroute2",
    ):
        with contextlib.suppress(ImportError):
            importlib.import_module(module)
