"""One interface for several workers: packet sockets that the kernel divides the packets among, by flow.

PACKET_FANOUT_HASH takes the kernel's symmetric flow hash (addresses, protocol, ports), whose key all interfaces have in
common, and picks the socket by its place in the group. Sockets join in the order of their workers, so both directions
of a flow get to the same worker, also when they come in by two ports. Fragments are divided by addresses alone, and
packets of tunnels (GRE, IP in IP) by what is inside.
"""

from __future__ import annotations

import ctypes
import socket
import struct
from collections.abc import Mapping, Sequence
from typing import Any

SOL_PACKET = 263
PACKET_FANOUT = 18
# linux/if_packet.h; a group takes over no socket's PACKET_IGNORE_OUTGOING, it has a flag of its own (Linux 5.10)
FANOUT_HASH, FLAG_IGNORE_OUTGOING, FLAG_UNIQUE_ID = 0, 0x4000, 0x2000
SO_ATTACH_FILTER, SO_DETACH_FILTER = 26, 27
BPF_RETURN = 0x06


def workers_of(port: Mapping[str, Any]) -> int:
    """Give the number of workers that share a port of an instance plan."""
    return int(port.get("workers", 1))


def shut(made: socket.socket) -> None:
    """Let a packet socket take nothing until `share_packets`: bound, but not yet in its group, it would get all."""
    program = ctypes.create_string_buffer(struct.pack("=HBBI", BPF_RETURN, 0, 0, 0))
    made.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("@HP", 1, ctypes.addressof(program)))


def share_packets(sockets: Sequence[socket.socket]) -> None:
    """Make one group of the sockets, all bound to one interface and shut, and open them. Raises OSError.

    No packet gets to two of them, and none to a wrong one; what comes before the last is open may be missed, as before
    the opening of any port.
    """
    kind = FANOUT_HASH | FLAG_IGNORE_OUTGOING
    sockets[0].setsockopt(SOL_PACKET, PACKET_FANOUT, (kind | FLAG_UNIQUE_ID) << 16)
    group = sockets[0].getsockopt(SOL_PACKET, PACKET_FANOUT) & 0xFFFF
    for made in sockets[1:]:
        made.setsockopt(SOL_PACKET, PACKET_FANOUT, kind << 16 | group)
    for made in sockets:
        made.setsockopt(socket.SOL_SOCKET, SO_DETACH_FILTER, 0)
