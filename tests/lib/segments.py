"""What splitting a super-frame must give, written from the RFCs and not from the C code."""

from __future__ import annotations

import struct
from dataclasses import dataclass

NEEDS_CSUM = 1
TCPV4, TCPV6, UDP_L4, ECN = 1, 4, 5, 0x80


def csum(data: bytes) -> int:
    """Give the Internet checksum (RFC 1071) of bytes."""
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


@dataclass
class Super:
    """A super-frame as a sender's stack hands it over."""

    data: bytes  # without the tag that is in `tag`
    gso_type: int
    gso_size: int
    csum_start: int
    csum_offset: int
    tag: tuple[int, int] | None = None  # TPID, TCI
    flags: int = NEEDS_CSUM

    def vnet(self) -> bytes:
        """Give the virtio-net header."""
        return struct.pack("=BBHHHH", self.flags, self.gso_type, 0, self.gso_size, self.csum_start, self.csum_offset)


def pseudo(source: bytes, target: bytes, protocol: int, length: int) -> bytes:
    """Give the pseudo-header of IPv4 or IPv6."""
    if len(source) == 4:
        return source + target + struct.pack("!BBH", 0, protocol, length)
    return source + target + struct.pack("!IHBB", length, 0, 0, protocol)


def partial(source: bytes, target: bytes, protocol: int, length: int) -> int:
    """Give what a stack leaves in the field: the sum of the pseudo-header."""
    return ~csum(pseudo(source, target, protocol, length)) & 0xFFFF


def build(
    *, version: int, protocol: int, payload: bytes, gso_size: int, tcp_flags: int = 0x10, tcp_options: bytes = b"",
    seq: int = 1000, ip_id: int = 7, extensions: bytes = b"", first_extension: int | None = None,
    inner_tags: tuple[tuple[int, int], ...] = (), tag: tuple[int, int] | None = None, ip_options: bytes = b"",
    ecn: bool = False,
) -> Super:  # fmt: skip
    """Make a super-frame. extensions: IPv6 headers whose last one names the protocol."""
    if protocol == 6:
        offset = (20 + len(tcp_options)) // 4
        l4 = struct.pack("!HHIIBBHHH", 1234, 80, seq, 99, offset << 4, tcp_flags, 500, 0, 0) + tcp_options
        field = 16
    else:
        l4 = struct.pack("!HHHH", 1234, 53, 8 + len(payload), 0)
        field = 6
    length = len(l4) + len(payload)
    source, target = (bytes([10, 0, 0, 1]), bytes([10, 0, 0, 2])) if version == 4 else (b"\xfd" + bytes(15), b"\xfd" + bytes(14) + b"\2")
    l4 = l4[:field] + struct.pack("!H", partial(source, target, protocol, length)) + l4[field + 2 :]
    if version == 4:
        head = struct.pack("!BBHHHBBH", 0x45 + len(ip_options) // 4, 0, 20 + len(ip_options) + length, ip_id, 0x4000, 64, protocol, 0)
        l3 = head + source + target + ip_options
    else:
        following = protocol if first_extension is None else first_extension
        l3 = struct.pack("!IHBB", 0x60000000, len(extensions) + length, following, 64) + source + target + extensions
    kind = 0x0800 if version == 4 else 0x86DD
    tags = b"".join(struct.pack("!HH", *one) for one in inner_tags)
    eth = b"\x02\0\0\0\0\2\x02\0\0\0\0\1" + tags + struct.pack("!H", kind)
    gso = UDP_L4 if protocol == 17 else (TCPV4 if version == 4 else TCPV6) | (ECN if ecn else 0)
    return Super(eth + l3 + l4 + payload, gso, gso_size, len(eth + l3), field, tag)


def expected(frame: Super, *, version: int, protocol: int, l3: int, header: int) -> list[bytes]:
    """Split a super-frame. l3: offset of the IP header; header: bytes before the payload."""
    payload = frame.data[header:]
    pieces = [payload[at : at + frame.gso_size] for at in range(0, len(payload), frame.gso_size)] or [b""]
    l4 = frame.csum_start
    made = []
    for number, piece in enumerate(pieces):
        packet = bytearray(frame.data[:header] + piece)
        if version == 4:
            struct.pack_into("!H", packet, l3 + 2, len(packet) - l3)
            ip_id = struct.unpack_from("!H", packet, l3 + 4)[0]
            struct.pack_into("!H", packet, l3 + 4, (ip_id + number) & 0xFFFF)
            size = (packet[l3] & 15) * 4
            struct.pack_into("!H", packet, l3 + 10, 0)
            struct.pack_into("!H", packet, l3 + 10, csum(bytes(packet[l3 : l3 + size])))
            source, target = bytes(packet[l3 + 12 : l3 + 16]), bytes(packet[l3 + 16 : l3 + 20])
        else:
            struct.pack_into("!H", packet, l3 + 4, len(packet) - l3 - 40)
            source, target = bytes(packet[l3 + 8 : l3 + 24]), bytes(packet[l3 + 24 : l3 + 40])
        if protocol == 6:
            seq = struct.unpack_from("!I", packet, l4 + 4)[0]
            struct.pack_into("!I", packet, l4 + 4, (seq + number * frame.gso_size) & 0xFFFFFFFF)
            flags = packet[l4 + 13]
            if number:
                flags &= ~0x80
            if number < len(pieces) - 1:
                flags &= ~0x09
            packet[l4 + 13] = flags
        else:
            struct.pack_into("!H", packet, l4 + 4, len(packet) - l4)
        struct.pack_into("!H", packet, l4 + frame.csum_offset, 0)
        whole = csum(pseudo(source, target, protocol, len(packet) - l4) + bytes(packet[l4:])) or 0xFFFF
        struct.pack_into("!H", packet, l4 + frame.csum_offset, whole)
        if frame.tag:
            packet[12:12] = struct.pack("!HH", *frame.tag)
        made.append(bytes(packet))
    return made
