"""Completed checksums and split super-frames against an independent implementation."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.lib.ports import build as module
from tests.lib.segments import ECN, NEEDS_CSUM, TCPV4, TCPV6, UDP_L4, Super, build, csum, expected, partial

DESTINATION_OPTIONS = bytes([0, 0, 1, 4, 0, 0, 0, 0])
TAGS = st.sampled_from([None, (0x8100, 7), (0x88A8, 0xE064)])


def split(frame: Super) -> list[bytes] | None:
    """Split by the C code; None when it says that the request is malformed."""
    core = module()
    data = core.ffi.from_buffer(frame.data)
    c_frame, plan = core.ffi.new("struct coven_frame *"), core.ffi.new("struct coven_split *")
    c_frame.data, c_frame.length = data, len(frame.data)
    core.lib.coven_frame_set_vnet(c_frame, frame.vnet())
    if frame.tag:
        c_frame.has_tag, (c_frame.tpid, c_frame.tci) = True, frame.tag
    if core.lib.coven_split_plan(c_frame, plan) != 0:
        return None
    made = []
    for number in range(plan.segments):
        size = core.lib.coven_split_bytes(c_frame, plan, number)
        out = core.ffi.new("uint8_t[]", b"\xa5" * (size + 8))
        core.lib.coven_split_write(c_frame, plan, number, out)
        assert bytes(core.ffi.buffer(out, size + 8))[size:] == b"\xa5" * 8, "written beyond the segment"
        made.append(bytes(core.ffi.buffer(out, size)))
    return made


@settings(max_examples=300, deadline=None)
@given(
    version=st.sampled_from([4, 6]), protocol=st.sampled_from([6, 17]), payload=st.binary(max_size=4000),
    gso_size=st.integers(1, 1500), flags=st.integers(0, 255), seq=st.integers(0, 2**32 - 1),
    ip_id=st.integers(0, 65535), options=st.integers(0, 10), ip_options=st.integers(0, 10), extended=st.booleans(),
    tag=TAGS, inner=st.lists(st.sampled_from([(0x8100, 3), (0x9100, 4)]), max_size=2), ecn=st.booleans(),
)  # fmt: skip
def test_super_frames_are_split_as_the_rfcs_say(
    version: int, protocol: int, payload: bytes, gso_size: int, flags: int, seq: int, ip_id: int, options: int,
    ip_options: int, extended: bool, tag: tuple[int, int] | None, inner: list[tuple[int, int]], ecn: bool,
) -> None:  # fmt: skip
    extended = extended and version == 6
    frame = build(
        version=version, protocol=protocol, payload=payload, gso_size=gso_size, tcp_flags=flags, seq=seq, ip_id=ip_id,
        tcp_options=b"\1" * 4 * options if protocol == 6 else b"", ip_options=b"\1" * 4 * ip_options if version == 4 else b"",
        extensions=bytes([protocol]) + DESTINATION_OPTIONS[1:] if extended else b"",
        first_extension=60 if extended else None, tag=tag, inner_tags=tuple(inner), ecn=ecn,
    )  # fmt: skip
    header = frame.csum_start + (20 + 4 * options if protocol == 6 else 8)
    assert split(frame) == expected(frame, version=version, protocol=protocol, l3=14 + 4 * len(inner), header=header)


def test_flags_of_tcp_segments() -> None:
    """CWR only in the first, FIN and PSH only in the last, the others in all."""
    made = split(build(version=4, protocol=6, payload=bytes(3000), gso_size=1000, tcp_flags=0xFF, ecn=True))
    assert made is not None
    assert [packet[14 + 20 + 13] for packet in made] == [0xF6, 0x76, 0x7F]
    assert [struct.unpack_from("!H", packet, 18)[0] for packet in made] == [7, 8, 9]


def test_a_routing_header_does_not_change_the_destination_of_the_checksum() -> None:
    """RFC 8200 section 8.1: the pseudo-header has the final destination, which the sender has put into its sum."""
    final = b"\xfd" + bytes(14) + b"\x77"
    routing = struct.pack("!BBBBI", 6, 2, 0, 1, 0) + final
    frame = build(version=6, protocol=6, payload=bytes(range(250)) * 8, gso_size=700, extensions=routing, first_extension=43)
    source, start = b"\xfd" + bytes(15), frame.csum_start
    field = start + 16
    total = len(frame.data) - start
    frame.data = frame.data[:field] + struct.pack("!H", partial(source, final, 6, total)) + frame.data[field + 2 :]
    made = split(frame)
    assert made is not None and len(made) == 3
    for packet in made:
        tcp = packet[start:]
        assert csum(source + final + struct.pack("!IHBB", len(tcp), 0, 0, 6) + tcp) == 0


@given(data=st.binary(min_size=36, max_size=300), start=st.integers(14, 20), tag=TAGS)
@settings(max_examples=100, deadline=None)
def test_partial_checksums_are_completed(data: bytes, start: int, tag: tuple[int, int] | None) -> None:
    data = data[:12] + b"\x88\xb5" + data[14:]
    made = split(Super(data, 0, 0, start, 6, tag))
    head = struct.pack("!HH", *tag) if tag else b""
    value = csum(data[start:]) or 0xFFFF
    filled = data[: start + 6] + struct.pack("!H", value) + data[start + 8 :]
    assert made == [filled[:12] + head + filled[12:]]


def test_udp_checksum_of_zero_is_sent_as_all_ones() -> None:
    packet = bytes(12) + b"\x88\xb5" + b"\xff\xff" + bytes(20)
    made = split(Super(packet, 0, 0, 14, 6))
    assert made is not None and made[0][20:22] == b"\xff\xff"


def test_sctp_gets_a_crc32c() -> None:
    """RFC 9260 appendix A; the check value of CRC32c over "123456789" is e3069283."""
    sctp = struct.pack("!HHII", 1, 2, 3, 0) + b"123456789abc"
    ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(sctp), 1, 0, 64, 132, 0, b"\x0a\0\0\1", b"\x0a\0\0\2")
    frame = Super(bytes(12) + b"\x08\0" + ip + sctp, 0, 0, 34, 8)
    made = split(frame)
    assert made is not None
    crc = 0xFFFFFFFF
    for byte in sctp:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    assert made[0][42:46] == struct.pack("<I", ~crc & 0xFFFFFFFF)


def test_a_frame_without_requests_is_copied() -> None:
    frame = Super(b"x" * 14 + b"anything", 0, 0, 0, 0, flags=0)
    assert split(frame) == [frame.data]


def malformed() -> list[tuple[str, Super]]:
    good = build(version=4, protocol=6, payload=bytes(3000), gso_size=1000)
    udp = build(version=4, protocol=17, payload=bytes(3000), gso_size=1000)

    def changed(frame: Super = good, **values: object) -> Super:
        return Super(**{**vars(frame), **values})  # type: ignore[arg-type]

    def byte(offset: int, value: int) -> Super:
        return changed(data=good.data[:offset] + bytes([value]) + good.data[offset + 1 :])

    return [
        ("no size", changed(gso_size=0)),
        ("tunnel", changed(gso_type=TCPV4 | 0x20)),
        ("fragmentation", changed(udp, gso_type=3)),
        ("unknown type", changed(gso_type=77)),
        ("wrong version", changed(gso_type=TCPV6)),
        ("UDP said, TCP there", changed(gso_type=UDP_L4)),
        ("TCP said, UDP there", changed(udp, gso_type=TCPV4 | ECN)),
        ("checksum of an inner header", changed(csum_start=good.csum_start + 30)),
        ("checksum at another field", changed(csum_offset=4)),
        ("IP header too short", byte(14, 0x44)),
        ("not IPv4", byte(14, 0x55)),
        ("fragment", byte(20, 0x20)),
        ("TCP header too short", byte(34 + 12, 0x40)),
        ("TCP header beyond the frame", changed(data=byte(46, 0xF0).data[: 34 + 40], gso_size=1)),
        ("runt", changed(data=good.data[:13])),
        ("headers cut", changed(data=good.data[:40])),
        ("unknown EtherType", byte(12, 0x77)),
        ("checksum before the packet", Super(bytes(60), 0, 0, 4, 6)),
        ("checksum beyond the frame", Super(bytes(60), 0, 0, 55, 4)),
        ("checksum far beyond", Super(bytes(60), 0, 0, 65535, 65535)),
        ("a segment longer than IP can say", changed(gso_size=65530, data=good.data + bytes(66000))),
    ]  # fmt: skip


@pytest.mark.parametrize(("name", "frame"), malformed(), ids=lambda value: value if isinstance(value, str) else "")
def test_contradictions_are_refused(name: str, frame: Super) -> None:
    assert split(frame) is None


@pytest.mark.parametrize("kind", [TCPV4, TCPV6, UDP_L4])
def test_super_frames_cut_at_every_byte_of_their_headers(kind: int) -> None:
    """Never a crash; whatever is written stays within what was announced (checked in split)."""
    whole = build(version=6 if kind == TCPV6 else 4, protocol=17 if kind == UDP_L4 else 6, payload=bytes(50), gso_size=20)
    results = [split(Super(**{**vars(whole), "data": whole.data[:size]})) for size in range(len(whole.data))]
    assert results[0] is None and results[-1] is not None
    assert whole.flags == NEEDS_CSUM


@given(
    data=st.binary(max_size=200), flags=st.integers(0, 255), gso_type=st.sampled_from([0, 1, 3, 4, 5, 0x81, 0x84, 0x20]),
    gso_size=st.integers(0, 65535), start=st.integers(0, 100), offset=st.integers(0, 50), tag=TAGS,
)  # fmt: skip
@settings(max_examples=300, deadline=None)
def test_arbitrary_requests_never_write_outside(
    data: bytes, flags: int, gso_type: int, gso_size: int, start: int, offset: int, tag: tuple[int, int] | None
) -> None:
    made = split(Super(data, gso_type, gso_size, start, offset, tag, flags))
    if made is not None and gso_type == 0:
        assert len(made) == 1
