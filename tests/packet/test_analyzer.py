"""The analyzer of the case study: header walk, patterns, real captures."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coven.errors import CovenError
from tests.lib.examples import DATA, EXAMPLES, call, capture, example, tcp
from tests.lib.replica import Replica, Returned

FOLDER = EXAMPLES / "analyzer"
SKYPE = DATA / "captures" / "skype.pcap"
WEB = sorted((DATA / "captures" / "web").glob("*.pcap"))


def load(name: str) -> Any:
    """Import a module of the component by itself."""
    sys.path.insert(0, str(FOLDER))
    try:
        return import_module(name)
    finally:
        sys.path.remove(str(FOLDER))


headers, patterns = load("headers"), load("patterns")
HELLO = patterns.SKYPE_CLIENT.prefix + patterns.SKYPE_CLIENT._runs[77]
ANSWER = patterns.SKYPE_SERVER.prefix

SHAPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "vlan": {"vlans": (0x8100,)},
    "stacked": {"vlans": (0x88A8, 0x8100, 0x9100)},
    "ip options": {"ip_options": b"\1" * 12},
    "tcp options": {"tcp_options": b"\1" * 40},
    "padded": {"padding": b"\0" * 20},
    "ipv6": {"version": 6},
    "ipv6 vlan padded": {"version": 6, "vlans": (0x8100,), "padding": b"\xff" * 4},
    "extensions": {
        "version": 6,
        "extensions": (
            (0, bytes((0,)) + bytes(6)),  # hop-by-hop, 8 bytes
            (60, bytes((1,)) + bytes(14)),  # destination options, 16 bytes
            (51, bytes((4,)) + bytes(22)),  # authentication header, 24 bytes
            (44, bytes(7)),  # atomic fragment
        ),
    },
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("payload", [b"", b"x", HELLO, ANSWER, bytes(1400)])
def test_the_payload_is_found(shape: str, payload: bytes) -> None:
    segment = headers.tcp_segment(memoryview(tcp(payload, **SHAPES[shape])))
    assert (segment.source, segment.destination, bytes(segment.payload)) == (40000, 443, payload)


@pytest.mark.parametrize("shape", SHAPES)
def test_packets_cut_at_every_byte_are_survived(shape: str) -> None:
    """Whatever is missing, no payload is made up."""
    frame = tcp(HELLO, **SHAPES[shape])
    whole = len(frame) - len(SHAPES[shape].get("padding", b""))
    for length in range(whole):
        assert isinstance(headers.tcp_segment(memoryview(frame[:length])), str), length


@given(st.sampled_from(sorted(SHAPES)), st.integers(12, 120), st.binary(min_size=1, max_size=8), st.integers(0, 260))
def test_packets_broken_anywhere_are_survived(shape: str, at: int, junk: bytes, length: int) -> None:
    frame = bytearray(tcp(HELLO, **SHAPES[shape]))
    frame[at : at + len(junk)] = junk
    result = headers.tcp_segment(memoryview(frame[:length]))
    assert isinstance(result, str) or len(result.payload) <= length


@given(st.binary(max_size=300))
def test_noise_is_survived(data: bytes) -> None:
    headers.tcp_segment(memoryview(data))


def changed(frame: bytes, at: int, value: int) -> bytes:
    """Give a frame with one other byte."""
    return frame[:at] + bytes((value,)) + frame[at + 1 :]


@pytest.mark.parametrize(
    ("frame", "expected"),
    [
        (b"", "other"), (bytes(14), "other"), (changed(tcp(HELLO), 23, 17), "other"),
        (changed(tcp(HELLO), 20, 0x20), "other"), (changed(tcp(HELLO), 21, 1), "other"),  # fragments
        (changed(tcp(HELLO, version=6, extensions=((44, bytes(7)),)), 57, 1), "other"),
        (changed(tcp(HELLO), 14, 0x44), "unreadable"), (changed(tcp(HELLO), 14, 0x65), "unreadable"),
        (changed(tcp(HELLO), 16, 9), "unreadable"), (changed(tcp(HELLO), 46, 0x40), "unreadable"),
        (changed(tcp(HELLO), 46, 0xF0), "seen"), (changed(tcp(b""), 46, 0xF0), "unreadable"),
        (changed(tcp(HELLO, version=6), 20, 59), "other"),
    ],
)  # fmt: skip
def test_what_is_no_whole_segment(frame: bytes, expected: str) -> None:
    result = headers.tcp_segment(memoryview(frame))
    assert (result if isinstance(result, str) else "seen") == expected


def test_patterns_need_every_bit() -> None:
    for pattern, payload in ((patterns.SKYPE_CLIENT, HELLO), (patterns.SKYPE_SERVER, ANSWER)):
        assert pattern.matches(memoryview(payload))
        for bit in range(8 * len(payload)):
            other = bytearray(payload)
            other[bit // 8] ^= 1 << bit % 8
            assert not pattern.matches(memoryview(other)), bit
    for first in range(256):
        assert patterns.SKYPE_CLIENT.matches(
            memoryview(patterns.SKYPE_CLIENT.prefix + patterns.SKYPE_CLIENT._runs[first])
        )


@pytest.fixture
def analyzer(tmp_path: Path) -> Iterator[Replica]:
    with example("analyzer", tmp_path / "log") as replica:
        replica.start()
        yield replica


def marks(replica: Replica, frames: list[bytes]) -> list[int]:
    """Send frames, all of them to be forwarded unchanged; their marks."""
    returned: list[Returned] = []
    for i in range(0, len(frames), 100):
        returned += replica.through(frames[i : i + 100])
    assert [r.data for r in returned] == frames
    assert {(r.verdict, r.output) for r in returned} <= {(0, 0)}
    return [r.mark for r in returned]


def test_the_log_in_is_marked_on_its_ports_only(analyzer: Replica) -> None:
    frames = [
        *(tcp(HELLO, **shape) for shape in SHAPES.values()),
        tcp(HELLO, destination=80),
        tcp(ANSWER, source=443, destination=40000),
        tcp(ANSWER, source=443, destination=80),
        tcp(HELLO, destination=8080),
        tcp(HELLO, source=443, destination=40000),
        tcp(ANSWER, source=8080, destination=40000),
        tcp(ANSWER),
        tcp(HELLO + b"\0"),
        tcp(HELLO[:-1], padding=HELLO[-1:]),
    ]
    n = len(SHAPES) + 3
    assert marks(analyzer, frames) == [1] * n + [0] * (len(frames) - n)
    assert analyzer.metric("marked") == n
    assert (analyzer.metric("marked_client"), analyzer.metric("marked_server")) == (n - 2, 2)
    assert analyzer.metric("seen") == len(frames)
    assert analyzer.metric("inspected") == len(frames) - 2
    assert analyzer.values()["marked"] == n


def test_broken_packets_are_forwarded_and_counted(analyzer: Replica) -> None:
    frame = tcp(HELLO)
    assert marks(analyzer, [frame[:length] for length in range(1, len(frame))]) == [0] * (len(frame) - 1)
    assert analyzer.metric("unreadable") == len(frame) - 1 - 13
    assert analyzer.metric("inspected") == 0


def test_patterns_come_and_go(analyzer: Replica) -> None:
    agent = analyzer.agent
    assert set(call(agent, "list-patterns")) == {"skype-client", "skype-server"}
    call(agent, "remove-pattern", name="skype-client")
    assert marks(analyzer, [tcp(HELLO), tcp(ANSWER, source=443, destination=1)]) == [0, 1]
    call(agent, "add-pattern", name="get-x", direction="client", length=8, prefix=b"GET /x".hex())
    call(agent, "add-pattern", name="run", direction="client", length=5, prefix="", run=5, multiplier=1, increment=1)
    assert marks(
        analyzer, [tcp(b"GET /x\r\n", destination=80), tcp(b"GET /y\r\n"), tcp(b"\xfe\xff\0\1\2"), tcp(b"\0\1\2\3\5")]
    ) == [1, 0, 1, 0]
    assert "begins 474554202f78" in call(agent, "list-patterns")["get-x"]
    assert analyzer.metric("patterns") == 3
    for arguments in (
        {"name": "get-x", "direction": "client", "length": 8, "prefix": "00"},
        {"name": "odd", "direction": "client", "length": 8, "prefix": "0"},
        {"name": "long", "direction": "server", "length": 1, "prefix": "0000"},
        {"name": "all", "direction": "server", "length": 1, "prefix": ""},
        {"name": "Bad Name", "direction": "server", "length": 1, "prefix": "00"},
        {"name": "nowhere", "direction": "up", "length": 1, "prefix": "00"},
    ):
        with pytest.raises(CovenError) as caught:
            call(agent, "add-pattern", **arguments)
        assert caught.value.code == "component.operation-failed"
    with pytest.raises(CovenError, match="there is no pattern"):
        call(agent, "remove-pattern", name="skype-client")
    assert analyzer.metric("patterns") == 3


def test_options(tmp_path: Path) -> None:
    with example("analyzer", tmp_path / "log", options={"ports": [8443], "mark": 9}) as replica:
        replica.start()
        assert marks(replica, [tcp(HELLO), tcp(HELLO, destination=8443)]) == [0, 9]


@pytest.mark.data
def test_the_real_log_in(analyzer: Replica) -> None:
    if not SKYPE.exists():
        pytest.skip(f"no test data at {SKYPE}")
    frames = list(capture(SKYPE))
    found = marks(analyzer, frames)
    assert (len(frames), sum(found)) == (3284, 35)
    assert (analyzer.metric("marked_client"), analyzer.metric("marked_server")) == (26, 9)
    assert analyzer.metric("seen") == 3284
    broken = []
    for frame in (frame for frame, mark in zip(frames, found, strict=True) if mark):
        payload = headers.tcp_segment(memoryview(frame)).payload
        start, n = len(frame) - len(payload), len(payload)
        assert frame[start:] == payload  # no padding behind it
        tcp_at = 14 + (frame[14] & 15) * 4
        port_at = tcp_at + (2 if n == 72 else 0)
        assert frame[port_at : port_at + 2] == (443).to_bytes(2)
        places = (start, start + 55, start + n - 16, start + n - 1, port_at + 1)
        broken += [changed(frame, at, frame[at] ^ 1) for at in places]
    assert marks(analyzer, broken) == [0] * 35 * 5


@pytest.mark.data
@pytest.mark.parametrize("path", WEB, ids=lambda path: path.stem[-30:])
def test_ordinary_traffic_is_not_marked(analyzer: Replica, path: Path) -> None:
    frames = [frame for frame in capture(path) if len(frame) <= 1700]
    assert not any(marks(analyzer, frames))
    assert analyzer.metric("seen") == len(frames)
