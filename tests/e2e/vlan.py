"""VLAN interfaces on a test's host: the kernel's own, or, where the kernel has none, a TAP interface and a relay.

The relay moves frames between the TAP interface, which the host's stack takes for an ordinary one with all offloads, and
the host's link, putting tags in and taking them out. Super-frames and partial checksums stay as they are.
"""

from __future__ import annotations

import fcntl
import os
import select
import socket
import struct
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.lib.net import Host

_TUN = Path("/dev/net/tun")
_TUNSETIFF, _TUNSETOFFLOAD = 0x400454CA, 0x400454D0
_TAP, _NO_PI, _VNET = 0x0002, 0x1000, 0x4000
_OFFLOADS = (0x01 | 0x02 | 0x04 | 0x20 | 0x40, 0x01 | 0x02 | 0x04)  # checksum, TCP 4 and 6, with and without UDP
_SOL_PACKET, _AUXDATA, _VNET_HDR, _ETH_P_ALL = 263, 8, 15, 3
_HEADER = struct.Struct("=BBHHHH")  # flags, gso type, header length, gso size, checksum start and offset
_PARTIAL = 1
_TAG_VALID = 0x10


class Relay:
    """A TAP interface that stands for a VLAN on a host's link."""

    def __init__(self, host: Host, link: str, name: str, tags: Sequence[int]) -> None:
        """tags: VLAN ids, outermost first."""
        self._tags = tags
        self._inner = b"".join(struct.pack(">HH", 0x8100, tag) for tag in tags)
        self._end = threading.Event()
        with host.entered():
            self._tap = os.open(_TUN, os.O_RDWR | os.O_CLOEXEC)
            fcntl.ioctl(self._tap, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _TAP | _NO_PI | _VNET))
            self._line = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
        for offloads in _OFFLOADS:
            try:
                fcntl.ioctl(self._tap, _TUNSETOFFLOAD, offloads)
                break
            except OSError:
                continue
        self._line.setsockopt(_SOL_PACKET, _VNET_HDR, 1)
        self._line.setsockopt(_SOL_PACKET, _AUXDATA, 1)
        self._line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16_000_000)
        self._line.bind((link, _ETH_P_ALL))
        mac = host.mac(link)
        host.ip("link", "set", name, "address", mac, "mtu", "1500")
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._end.is_set():
            line = self._line.fileno()
            ready, _, _ = select.select([self._tap, line], [], [], 0.2)
            if self._tap in ready:
                self._outward(os.read(self._tap, 70000))
            if line in ready:
                self._inward()

    def _outward(self, data: bytes) -> None:
        flags, kind, head, size, start, offset = _HEADER.unpack_from(data)
        grown = len(self._inner)
        header = _HEADER.pack(
            flags, kind, head + grown if head else 0, size, start + grown if flags & _PARTIAL else 0, offset
        )
        frame = data[_HEADER.size :]
        try:
            self._line.send(header + frame[:12] + self._inner + frame[12:])
        except OSError:  # the link is going away
            if not self._end.is_set():
                raise

    def _inward(self) -> None:
        data, extra, _, address = self._line.recvmsg(70000, 256)
        if address[2] == socket.PACKET_OUTGOING:
            return
        for level, kind, value in extra:
            if (level, kind) == (_SOL_PACKET, _AUXDATA):
                status, _, _, _, _, tag, _ = struct.unpack("=IIIHHHH", value[:20])
                if status & _TAG_VALID and tag & 0xFFF == self._tags[0]:
                    self._unwrap(data)

    def _unwrap(self, data: bytes) -> None:
        """Take out the tags behind the first one, which the kernel took already."""
        flags, kind, head, size, start, offset = _HEADER.unpack_from(data)
        frame = data[_HEADER.size :]
        rest = self._inner[4:]
        if frame[12 : 12 + len(rest)] != rest or (not rest and frame[12:14] == b"\x81\x00"):
            return
        shrunk = len(rest)
        header = _HEADER.pack(
            flags, kind, head - shrunk if head else 0, size, start - shrunk if flags & _PARTIAL else 0, offset
        )
        os.write(self._tap, header + frame[:12] + frame[12 + shrunk :])

    def close(self) -> None:
        """End; the interface goes away."""
        self._end.set()
        self._thread.join()
        os.close(self._tap)
        self._line.close()


def add_vlan(host: Host, link: str, name: str, tags: Sequence[int], *addresses: str) -> Relay | None:
    """Give a host an interface for frames with these tags; close what is given, if anything is, at the end."""
    relay = None
    below = link
    for place, tag in enumerate(tags):
        above = name if place == len(tags) - 1 else f"{name}.{tag}"
        arguments = ("link", "add", "link", below, "name", above, "type", "vlan", "id", str(tag))
        if host.ip(*arguments, check=False).returncode != 0:
            if not _TUN.exists():
                pytest.skip("the kernel has no VLAN interfaces, and there is no /dev/net/tun to stand in for them")
            relay = Relay(host, link, name, tags)
            break
        host.ip("link", "set", above, "up")
        below = above
    host.ip("link", "set", name, "up")
    host.address(name, *addresses)
    return relay
