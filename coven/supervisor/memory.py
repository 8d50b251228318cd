"""Shared-memory segments: made here, owned by the user that maps them, sealed so that nobody can resize them."""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path
from typing import TYPE_CHECKING

from coven.errors import CovenError

if TYPE_CHECKING:
    from coven.dataplane.layout import Layout, SegmentImage

SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


def check_room(layout: Layout, lanes: int) -> None:
    """Refuse an instance whose segments, `lanes` times, could not all be filled.

    Memory is taken when it is first touched, so what is too much would kill processes later instead.
    Raises CovenError platform.no-resources.
    """
    images = (layout.plan, layout.pool, layout.ledger, layout.stats, *layout.states, *layout.replicas)
    wanted = lanes * sum(image.size for image in images)
    flows = lanes * (layout.ledger.size + sum(image.size for image in layout.states))
    free = _available()
    if free is not None and wanted > free:
        raise CovenError(
            "platform.no-resources",
            f"the instance needs up to {_mib(wanted)} MiB of memory, {_mib(flows)} of them for its flows; "
            f"{_mib(free)} MiB are available",
            hint="lower flows.capacity or pool.buffers in vnf.yaml, or the state of its components",
        )


def _mib(size: int) -> int:
    return -(-size // (1 << 20))


def _available() -> int | None:
    """Give the bytes that could be had without swapping, as the kernel sees it; None where it does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return int(found[0]) * 1024 if found else None


def make(image: SegmentImage, uid: int, gid: int | None = None) -> int:
    """Make a segment and give its descriptor.

    Whoever has a descriptor could open the memory again through /proc by its owner and mode, so it belongs to
    `uid` with mode 0600, or to root and the group `gid` with 0660. Raises CovenError platform.no-resources.
    """
    fd = os.memfd_create(f"coven-{image.name}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, image.size)
        os.pwrite(fd, image.head, 0)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)
        os.fchmod(fd, 0o600 if gid is None else 0o660)
        if os.geteuid() == 0:
            os.fchown(fd, uid if gid is None else 0, uid if gid is None else gid)
    except OSError as error:
        os.close(fd)
        raise _no_memory(image, error) from error
    return fd


def stats_name(platform: str, instance: str, worker: int) -> str:
    """Give the POSIX name of a worker's stats segment."""
    return f"/{platform}-{instance}" + (f".{worker}" if worker else "")


def make_stats(image: SegmentImage, name: str, gid: int) -> int:
    """Make the stats segment under a POSIX name that the group `gid` may read."""
    import posix_ipc  # type: ignore[import-not-found]

    remove_stats(name)
    try:
        made = posix_ipc.SharedMemory(name, posix_ipc.O_CREX, mode=0o600, size=image.size)
    except (OSError, posix_ipc.Error) as error:
        raise _no_memory(image, error) from error
    fd = fcntl.fcntl(made.fd, fcntl.F_DUPFD_CLOEXEC, 20)
    made.close_fd()
    os.pwrite(fd, image.head, 0)
    if os.geteuid() == 0:
        os.fchown(fd, 0, gid)
    os.fchmod(fd, 0o640)
    return int(fd)


def remove_stats(name: str) -> None:
    """Remove the POSIX name; the memory goes with its last user."""
    import posix_ipc

    with contextlib.suppress(posix_ipc.ExistentialError):
        posix_ipc.unlink_shared_memory(name)


def _no_memory(image: SegmentImage, error: Exception) -> CovenError:
    return CovenError(
        "platform.no-resources",
        f"cannot make the segment {image.name} of {image.size} bytes: {error}",
        hint="free memory, or give the function a smaller pool",
    )
