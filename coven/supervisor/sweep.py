"""What a platform left that was killed as a whole, keeper included: found by its manifest and removed."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from typing import TYPE_CHECKING, Any

from coven.supervisor import cgroup, journal, logs, memory, strays
from coven.supervisor.config import Settings
from coven.supervisor.keeper import Keeper
from coven.supervisor.process import start_time

if TYPE_CHECKING:
    from coven.supervisor.platform import Platform

log = logging.getLogger(__name__)


async def sweep_dead(settings: Settings, keeper: Keeper, manifest: dict[str, Any]) -> None:
    """End the processes of a dead platform, and put back what it changed on the host.

    Its memory went with its descriptors, so nothing can be taken over. What the operator wanted is known to the
    Management Agent, which brings it back.
    """
    log.warning("a platform was killed as a whole; sweeping what it left")
    _kill(manifest.get("agent"))
    _kill({"pid": manifest.get("pid"), "start_time": None} if _is_supervisor(manifest.get("pid")) else None)
    for name, document in manifest.get("instances", {}).items():
        workers = document.get("workers", [])
        for remembered in (*workers, *document.get("replicas", [])):
            _kill(remembered)
        await asyncio.to_thread(_close_ports, document.get("ports", {}))
        for worker in range(len(workers)):
            memory.remove_stats(memory.stats_name(settings.platform_id, name, worker))
    await strays.kill_platform(settings.platform_id)
    for name, record in journal.read_all(settings.journal_dir).items():
        if record.end is None:
            pen = journal.Journal(settings.journal_dir / f"{name}.jsonl")
            fault = {"code": "operation.interrupted", "message": "the whole platform was killed"}
            pen.write(
                {"end": {"state": "failed", "error": fault, "ended": record.head.get("started"), "resumed": True}}
            )
            pen.close()


def _kill(remembered: dict[str, Any] | None) -> None:
    if not remembered or not remembered.get("pid"):
        return
    pid, started = int(remembered["pid"]), remembered.get("start_time")
    with contextlib.suppress(OSError):
        fd = os.pidfd_open(pid)
        try:
            if started is None or start_time(pid) == started:
                signal.pidfd_send_signal(fd, signal.SIGKILL)
        finally:
            os.close(fd)


def _is_supervisor(pid: object) -> bool:
    """Whether a supervisor of this run directory still lives without its keeper."""
    return False if not isinstance(pid, int) or pid == os.getpid() else _command(pid).find(b"coven.supervisor") >= 0


def _command(pid: int) -> bytes:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:  # noqa: PTH123 - a file of the kernel
            return file.read()
    except OSError:
        return b""


def _close_ports(ports: dict[str, Any]) -> None:
    from coven.network import adopt

    for name, document in ports.items():
        fds = [os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC) for _ in range(2)]
        try:
            adopt(document, fds).close()
        except Exception:  # one port's trouble must not keep the others
            log.exception("port=%s not put back", name)


async def sweep_groups(platform: Platform) -> None:
    """Remove control groups that belong to nothing, with what runs in them."""
    for folders in cgroup.sweep(platform.context.cgroups, platform.known_groups()):
        log.warning("cgroup=%s is nobody's; removed", folders[0].name)
        await cgroup.remove(folders)
    logs.sweep(platform.context.settings.logs_dir, platform.known_groups())
    from coven.supervisor.build import clean

    clean(platform.context.settings.build_dir)
