"""Where the TCP payload of a packet lies. Every length is checked before it is used; nothing here raises."""

from __future__ import annotations

from typing import NamedTuple

ETHERTYPE_IPV4, ETHERTYPE_IPV6 = 0x0800, 0x86DD
VLAN_TAGS = frozenset((0x8100, 0x88A8, 0x9100))  # IEEE 802.1Q, 802.1ad, and what was used before 802.1ad
PROTOCOL_TCP = 6
FRAGMENT, AUTHENTICATION = 44, 51  # RFC 8200 section 4.5, RFC 4302
SKIPPED_HEADERS = frozenset((0, 43, 60, 135, 139, 140))  # hop-by-hop, routing, destination, mobility, HIP, shim6


class Segment(NamedTuple):
    """A TCP segment: ports, and the payload as part of the packet's memory."""

    source: int
    destination: int
    payload: memoryview


UNREADABLE = "unreadable"  # an IP packet that contradicts itself
OTHER = "other"  # nothing with a TCP payload of its own


def tcp_segment(packet: memoryview) -> Segment | str:
    """Find the TCP segment of an Ethernet frame, through VLAN tags, IP options and extension headers.

    The payload ends where the IP header says, not where the frame does: short frames are padded. Fragments are OTHER,
    since the payload of a segment is not whole in any of them.
    """
    size = len(packet)
    at = 12
    while True:
        if size < at + 2:
            return OTHER
        ethertype = packet[at] << 8 | packet[at + 1]
        if ethertype not in VLAN_TAGS:
            break
        at += 4
    at += 2
    if ethertype == ETHERTYPE_IPV4:
        return _ipv4(packet, at)
    if ethertype == ETHERTYPE_IPV6:
        return _ipv6(packet, at)
    return OTHER


def _ipv4(packet: memoryview, at: int) -> Segment | str:
    """RFC 791 section 3.1."""
    if len(packet) < at + 20 or packet[at] >> 4 != 4:
        return UNREADABLE
    header = (packet[at] & 15) * 4
    total = packet[at + 2] << 8 | packet[at + 3]
    if header < 20 or total < header or len(packet) < at + total:
        return UNREADABLE
    if packet[at + 9] != PROTOCOL_TCP or (packet[at + 6] << 8 | packet[at + 7]) & 0x3FFF:  # MF and offset
        return OTHER
    return _tcp(packet, at + header, at + total)


def _ipv6(packet: memoryview, at: int) -> Segment | str:
    """RFC 8200 sections 3 and 4."""
    if len(packet) < at + 40 or packet[at] >> 4 != 6:
        return UNREADABLE
    end = at + 40 + (packet[at + 4] << 8 | packet[at + 5])
    if len(packet) < end:
        return UNREADABLE
    kind = packet[at + 6]
    at += 40
    while kind != PROTOCOL_TCP:
        if kind not in SKIPPED_HEADERS and kind not in (FRAGMENT, AUTHENTICATION):
            return OTHER
        if end < at + 8:
            return UNREADABLE
        if kind == FRAGMENT:
            if (packet[at + 2] << 8 | packet[at + 3]) & 0xFFF9:  # offset and M flag
                return OTHER
            length = 8
        elif kind == AUTHENTICATION:
            length = (packet[at + 1] + 2) * 4
        else:
            length = (packet[at + 1] + 1) * 8
        kind = packet[at]
        at += length
    return _tcp(packet, at, end)


def _tcp(packet: memoryview, at: int, end: int) -> Segment | str:
    """RFC 9293 section 3.1."""
    if end < at + 20:
        return UNREADABLE
    payload = at + (packet[at + 12] >> 4) * 4
    if payload < at + 20 or payload > end:
        return UNREADABLE
    return Segment(packet[at] << 8 | packet[at + 1], packet[at + 2] << 8 | packet[at + 3], packet[payload:end])
