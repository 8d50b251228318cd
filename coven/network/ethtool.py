"""Settings of an interface that only the ethtool call knows: queues, and what the NIC does to frames by itself."""

from __future__ import annotations

import array
import contextlib
import fcntl
import logging
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass

log = logging.getLogger(__name__)

# linux/sockios.h, linux/ethtool.h
SIOCETHTOOL = 0x8946
ETHTOOL_GFLAGS, ETHTOOL_SFLAGS, ETHTOOL_GCHANNELS, ETHTOOL_SCHANNELS = 0x25, 0x26, 0x3C, 0x3D
ETH_FLAG_RXVLAN, ETH_FLAG_LRO = 1 << 8, 1 << 15


@dataclass(frozen=True, slots=True)
class Channels:
    """Queues of an interface. A combined one receives and sends."""

    most_rx: int
    most_combined: int
    rx: int
    tx: int
    other: int
    combined: int

    @property
    def receiving(self) -> int:
        """Queues that packets come in by."""
        return self.rx + self.combined


def _ask(interface: str, request: bytes) -> bytes:
    """Make one call; gives the request as the kernel left it. Raises OSError."""
    data = array.array("B", request)
    address, _ = data.buffer_info()
    packed = struct.pack("=16sQ16x", interface.encode("ascii"), address)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as control:
        fcntl.ioctl(control, SIOCETHTOOL, packed)
    return data.tobytes()


def channels(interface: str) -> Channels | None:
    """Give the queues; None where the driver does not tell: then there is one."""
    try:
        answer = struct.unpack("=9I", _ask(interface, struct.pack("=9I", ETHTOOL_GCHANNELS, *[0] * 8)))
    except OSError:
        return None
    _, most_rx, _, _, most_combined, rx, tx, other, combined = answer
    return Channels(most_rx, most_combined, rx, tx, other, combined)


def set_channels(interface: str, rx: int, tx: int, other: int, combined: int) -> None:
    """Change the queues. Raises OSError."""
    _ask(interface, struct.pack("=9I", ETHTOOL_SCHANNELS, 0, 0, 0, 0, rx, tx, other, combined))


def flags(interface: str) -> int:
    """Give ETH_FLAG_*; 0 where the driver does not tell."""
    try:
        return int(struct.unpack("=2I", _ask(interface, struct.pack("=2I", ETHTOOL_GFLAGS, 0)))[1])
    except OSError:
        return 0


def set_flags(interface: str, value: int) -> None:
    """Change ETH_FLAG_*. Raises OSError."""
    _ask(interface, struct.pack("=2I", ETHTOOL_SFLAGS, value))


def hold(interface: str) -> dict[str, list[int]]:
    """Give what `restore` puts back."""
    found = channels(interface)
    before = {"flags": [flags(interface)]}
    if found is not None:
        before["channels"] = [found.rx, found.tx, found.other, found.combined]
    return before


def restore(interface: str, before: Mapping[str, list[int]]) -> None:
    """Put settings back that differ; the interface may be gone, which is no fault."""
    with contextlib.suppress(OSError):
        socket.if_nametoindex(interface)
        now = hold(interface)
        for name, change in (("flags", set_flags), ("channels", set_channels)):
            if name in before and before[name] != now.get(name):
                try:
                    change(interface, *before[name])
                except OSError as error:
                    log.warning("setting-not-restored interface=%s setting=%s error=%s", interface, name, error)
