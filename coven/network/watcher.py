"""Tells when interfaces go up, down or away; one descriptor for an event loop to watch."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass

# linux/rtnetlink.h, linux/if_link.h, linux/if.h
RTMGRP_LINK = 1
RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK = 16, 17, 18
NLM_F_REQUEST, NLM_F_DUMP = 0x1, 0x300
IFLA_IFNAME = 3
IFF_UP, IFF_RUNNING = 0x1, 0x40
HEADER_BYTES, INFO_BYTES = 16, 16


@dataclass(frozen=True, slots=True)
class LinkEvent:
    """A change of one interface. state: "up", "down" (also: no carrier) or "gone"."""

    interface: str
    state: str


class LinkWatcher:
    """Watches interfaces of this network namespace.

        watcher = LinkWatcher()
        loop.add_reader(watcher.fileno(), lambda: [handle(event) for event in watcher.read()])
        watcher.watch("eth1")

    An event comes for each change of a watched interface, and one for its state when the watch begins. Nothing is
    lost when the kernel's queue overflows: all states are asked for again.
    """

    def __init__(self, interfaces: Iterable[str] = ()) -> None:
        """interfaces: names to watch from the beginning."""
        self._socket = socket.socket(
            socket.AF_NETLINK,
            socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC,
            socket.NETLINK_ROUTE,
        )
        self._socket.bind((0, RTMGRP_LINK))
        self._names: dict[int, str] = {}  # interfaces by index, for renames
        self._seen: set[str] = set()
        self._states: dict[str, str | None] = dict.fromkeys(interfaces)
        self._dumping = False
        self._again = False
        self._dump()

    def fileno(self) -> int:
        """Give the descriptor that becomes readable when `read` may have events."""
        return self._socket.fileno()

    def watch(self, interface: str) -> None:
        """Watch one more interface; its state comes as an event."""
        self._states.setdefault(interface)
        self._dump()

    def unwatch(self, interface: str) -> None:
        """Forget an interface."""
        self._states.pop(interface, None)

    def close(self) -> None:
        """Close the descriptor."""
        self._socket.close()

    def read(self) -> list[LinkEvent]:
        """Give what has changed since the last call. Never blocks."""
        events: list[LinkEvent] = []
        while True:
            try:
                datagram = self._socket.recv(1 << 18)
            except BlockingIOError:
                return events
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self._dumping = False
                self._dump()  # some changes are lost: ask for all states
                continue
            at = 0
            while at + HEADER_BYTES <= len(datagram):
                length, kind = struct.unpack_from("=IH", datagram, at)
                if length < HEADER_BYTES:
                    break
                events += self._message(kind, datagram[at + HEADER_BYTES : at + length])
                at += length + 3 & ~3

    def _dump(self) -> None:
        """Ask for all interfaces; answers come in `read`."""
        if self._dumping:
            self._again = True
            return
        self._dumping, self._again, self._seen = True, False, set()
        body = struct.pack("=BxHiII", socket.AF_UNSPEC, 0, 0, 0, 0)
        header = struct.pack("=IHHII", HEADER_BYTES + len(body), RTM_GETLINK, NLM_F_REQUEST | NLM_F_DUMP, 1, 0)
        self._socket.sendto(header + body, (0, 0))

    def _message(self, kind: int, body: bytes) -> list[LinkEvent]:
        if kind == 3:  # NLMSG_DONE
            self._dumping = False
            missing = [name for name in self._states if name not in self._seen]
            if self._again:
                self._dump()
            return [event for name in missing for event in self._change(name, "gone")]
        if kind not in (RTM_NEWLINK, RTM_DELLINK) or len(body) < INFO_BYTES:
            return []
        index, flags = struct.unpack_from("=iI", body, 4)
        name = _interface_name(body)
        if name is None:
            return []
        events = []
        before = self._names.get(index)
        if before is not None and before != name:
            events += self._change(before, "gone")  # renamed: the name that was bound is no more
        if kind == RTM_DELLINK:
            self._names.pop(index, None)
            self._seen.discard(name)
            return events + self._change(name, "gone")
        self._names[index] = name
        self._seen.add(name)
        both = IFF_UP | IFF_RUNNING
        return events + self._change(name, "up" if flags & both == both else "down")

    def _change(self, name: str, state: str) -> list[LinkEvent]:
        if name not in self._states or self._states[name] == state:
            return []
        self._states[name] = state
        return [LinkEvent(name, state)]


def _interface_name(body: bytes) -> str | None:
    at = INFO_BYTES
    while at + 4 <= len(body):
        length, kind = struct.unpack_from("=HH", body, at)
        if length < 4:
            return None
        if kind & 0x3FFF == IFLA_IFNAME:
            return os.fsdecode(body[at + 4 : at + length].rstrip(b"\0"))
        at += length + 3 & ~3
    return None
