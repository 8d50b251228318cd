"""Offsets into packets: every layer, and what is cut, malformed or unknown."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption
from scapy.layers.inet6 import (
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
)
from scapy.layers.l2 import ARP, Dot1AD, Dot1Q, Ether
from scapy.packet import Raw

from tests.lib.ports import build as module

TRUNCATED, MALFORMED, FRAGMENT, LATER, PORTS = 1, 2, 4, 8, 16


def parse(data: bytes) -> Any:
    core = module()
    out = core.ffi.new("struct coven_parsed *")
    buffer = core.ffi.new("uint8_t[]", data) if data else core.ffi.NULL
    core.lib.coven_parse(buffer, len(data), out)
    return out


def packets() -> dict[str, tuple[Any, int]]:
    """Well-formed packets by name, and the type of the L4 header that must be found."""
    eth = Ether(dst="02:00:00:00:00:02", src="02:00:00:00:00:01")
    tcp, udp = TCP(sport=1234, dport=80), UDP(sport=1234, dport=80)
    return {
        "ipv4 tcp": (eth / IP() / tcp / b"data", 6),
        "ipv4 udp": (eth / IP() / udp / b"data", 17),
        "ipv4 options": (eth / IP(options=[IPOption(b"\x83\x03\x10")]) / tcp, 6),
        "ipv4 icmp": (eth / IP() / ICMP(), 1),
        "ipv6 tcp": (eth / IPv6() / tcp, 6),
        "ipv6 chain": (eth / IPv6() / IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt() / IPv6ExtHdrRouting() / udp / b"x", 17),
        "ipv6 atomic fragment": (eth / IPv6() / IPv6ExtHdrFragment() / udp / b"x", 17),
        "vlan": (eth / Dot1Q(vlan=7) / IP() / tcp, 6),
        "stacked vlans": (eth / Dot1AD(vlan=100) / Dot1Q(vlan=7) / IPv6() / tcp, 6),
        "three tags": (eth / Dot1AD(vlan=1) / Dot1Q(vlan=2) / Dot1Q(vlan=3) / IP() / udp, 17),
    }


@pytest.mark.parametrize("name", packets())
def test_well_formed_packets(name: str) -> None:
    packet, protocol = packets()[name]
    data = bytes(packet)
    found = parse(data)
    layer = packet.lastlayer() if not isinstance(packet.lastlayer(), Raw) else packet.lastlayer().underlayer
    offset = len(data) - len(bytes(layer))
    assert (found.protocol, found.l4_offset) == (protocol, offset)
    assert found.ip_version == (6 if IPv6 in packet else 4)
    assert data[found.protocol_offset] == protocol
    assert found.l3_end == len(data)
    assert found.flags == (PORTS if protocol in (6, 17) else 0)
    if found.flags & PORTS:
        assert (found.src_port, found.dst_port) == (1234, 80)


@pytest.mark.parametrize("name", packets())
def test_packets_cut_at_every_byte(name: str) -> None:
    """What is reported lies inside what there is, and a cut header is never used."""
    whole = bytes(packets()[name][0])
    reference = parse(whole)
    for size in range(len(whole)):
        found = parse(whole[:size])
        for field in ("l3_offset", "l4_offset", "l3_end"):
            assert getattr(found, field) <= size
        if found.l4_offset:
            assert found.l4_offset == reference.l4_offset < size
        if found.ip_version:
            assert found.flags & TRUNCATED
        if found.flags & PORTS:
            assert size >= reference.l4_offset + 4


def test_tags() -> None:
    found = parse(bytes(packets()["three tags"][0]))
    assert (found.n_vlans, found.vlan[0], found.vlan[1], found.ether_type) == (3, 1, 2, 0x0800)


def test_more_tags_than_are_walked_over() -> None:
    found = parse(bytes(12) + b"\x81\x00\x00\x07" * 9 + b"\x08\x00" + bytes(40))
    assert found.flags & MALFORMED and found.n_vlans == 8


@pytest.mark.parametrize(("offset", "more", "flags"), [(0, 1, FRAGMENT | PORTS), (3, 1, FRAGMENT | LATER), (3, 0, FRAGMENT | LATER)])
@pytest.mark.parametrize("version", [4, 6])
def test_fragments(version: int, offset: int, more: int, flags: int) -> None:
    eth, udp = Ether(type=0x0800 if version == 4 else 0x86DD), bytes(UDP(sport=1, dport=2) / bytes(24))
    if version == 4:
        packet = eth / IP(id=77, flags=more, frag=offset, proto=17) / udp
    else:
        packet = eth / IPv6() / IPv6ExtHdrFragment(id=77, offset=offset, m=more, nh=17) / udp
    found = parse(bytes(packet))
    assert found.flags == flags
    assert (found.fragment_id, found.fragment_offset, found.fragment_more) == (77, offset * 8, more)
    assert found.protocol == 17
    assert bool(found.l4_offset) == (not offset)


@pytest.mark.parametrize(
    ("ip", "flags"),
    [
        (b"\x44" + bytes(19), MALFORMED),  # header shorter than it can be
        (b"\x65" + bytes(19), MALFORMED),  # version 6 behind the EtherType of 4
        (b"\x45\x00\x00\x13" + bytes(16), MALFORMED),  # total length below the header
        (b"\x4f\x00\x00\x3c" + bytes(16), TRUNCATED),  # options beyond the end
        (b"\x45\x00\xff\xff" + bytes(16), TRUNCATED),  # longer than the packet
    ],
)
def test_wrong_ipv4_headers(ip: bytes, flags: int) -> None:
    found = parse(bytes(12) + b"\x08\x00" + ip)
    assert found.flags & flags
    assert not found.l4_offset


def test_ipv6_chains_that_do_not_end() -> None:
    header = struct.pack("!IHBB", 0x60000000, 800, 60, 64) + bytes(32)
    found = parse(bytes(12) + b"\x86\xdd" + header + bytes([60, 0, 1, 4, 0, 0, 0, 0]) * 100)
    assert found.flags & MALFORMED and not found.l4_offset and found.n_extensions == 16
    beyond = parse(bytes(12) + b"\x86\xdd" + header + bytes([6, 200, 1, 4, 0, 0, 0, 0]) * 10)
    assert beyond.flags & TRUNCATED and not beyond.l4_offset


@pytest.mark.parametrize("kind", [0x88B5, 0x0806, 0x05DC, 0x894F])
def test_other_ether_types_are_left_alone(kind: int) -> None:
    found = parse(bytes(12) + struct.pack("!H", kind) + bytes(50))
    assert (found.ether_type, found.l3_offset, found.ip_version, found.l4_offset, found.flags) == (kind, 14, 0, 0, 0)
    assert parse(bytes(Ether() / ARP())).ether_type == 0x0806


def test_padding_is_not_payload() -> None:
    data = bytes(Ether(type=0x0800) / IP(len=28) / UDP(sport=1, dport=2, len=8)) + bytes(18)
    assert parse(data).l3_end == 14 + 28


def test_the_header_an_icmp_error_quotes() -> None:
    inner = bytes(IP(src="10.0.0.1", dst="10.0.0.2") / UDP(sport=7, dport=9) / bytes(100))[:28]
    data = bytes(Ether(type=0x0800) / IP() / ICMP(type=3, code=4) / inner)
    core = module()
    out = core.ffi.new("struct coven_parsed *")
    core.lib.coven_parse_ip(core.ffi.new("uint8_t[]", data), len(data), 42, 0x0800, out)
    assert (out.l3_end, out.protocol, out.src_port, out.dst_port) == (len(data), 17, 7, 9)


@given(st.binary(max_size=200), st.sampled_from([0x0800, 0x86DD, 0x8100, 0x88A8]))
@settings(max_examples=500, deadline=None)
def test_anything_is_survived(data: bytes, kind: int) -> None:
    packet = bytes(12) + struct.pack("!H", kind) + data
    found = parse(packet)
    assert found.l4_offset < max(1, len(packet)) and found.l3_end <= len(packet)
