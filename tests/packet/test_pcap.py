"""The NIC tool pcap, the reader of capture files, and the NIC tool gen."""

from __future__ import annotations

import contextlib
import errno
import os
import struct
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether

from coven.errors import CovenError
from coven.network import OpenedPort, adopt, tool_of
from coven.network.captures import mark_opening
from tests.lib.ports import Driver, capinfo, reasons
from tests.lib.segments import csum, pseudo

DATA = Path(os.environ.get("COVEN_TESTDATA") or Path(__file__).resolve().parents[3] / "shared" / "data")
CAPTURES = sorted((DATA / "captures").rglob("*.pcap"))
PCAP = tool_of({"tool": "pcap"})
FRAMES = [bytes([n]) * (60 + n) for n in range(40)]


def classic(frames: list[bytes], *, order: str = "<", magic: int = 0xA1B2C3D4, unit: int = 1, cut: int = 0, link: int = 1) -> bytes:
    made = struct.pack(f"{order}IHHiIII", magic, 2, 4, 0, 0, 65535, link)
    for n, frame in enumerate(frames):
        kept = frame[: len(frame) - cut]
        made += struct.pack(f"{order}IIII", 1000 + n, 5 * unit, len(kept), len(frame)) + kept
    return made


def block(order: str, kind: int, body: bytes) -> bytes:
    body += bytes(-len(body) % 4)
    return struct.pack(f"{order}II", kind, 12 + len(body)) + body + struct.pack(f"{order}I", 12 + len(body))


def section(order: str) -> bytes:
    return block(order, 0x0A0D0D0A, struct.pack(f"{order}IHHq", 0x1A2B3C4D, 1, 0, -1))


def interface(order: str, *, link: int = 1, snaplen: int = 0, resolution: int | None = None) -> bytes:
    options = b"" if resolution is None else struct.pack(f"{order}HHB3xHH", 9, 1, resolution, 0, 0)
    return block(order, 1, struct.pack(f"{order}HHI", link, 0, snaplen) + options)


def enhanced(order: str, number: int, units: int, frame: bytes, original: int | None = None) -> bytes:
    head = struct.pack(f"{order}IIIII", number, units >> 32, units & 0xFFFFFFFF, len(frame), original or len(frame))
    return block(order, 6, head + frame)


def open_pcap(tmp_path: Path, source: bytes | Path | None, *, out: str | None = "out.pcap", **options: object) -> OpenedPort:
    path = source if isinstance(source, Path) else None
    if isinstance(source, bytes):
        path = tmp_path / "in.pcap"
        path.write_bytes(source)
    binding = {"in": str(path) if path else None, "out": str(tmp_path / out) if out else None, **options}
    port = tool_of({"tool": "pcap"}).open({"name": "lan", "tool": "pcap", "options": binding})
    port.begin()
    return port


def pump(driver: Driver) -> None:
    while driver.lib.driver_pump(driver.handle, driver.handle, 32) or not driver.lib.driver_done(driver.handle):
        pass


def through(tmp_path: Path, source: bytes | Path, **options: object) -> Driver:
    opened = open_pcap(tmp_path, source, **options)
    driver = Driver(opened, buffer_bytes=4096)
    pump(driver)
    driver.close()
    opened.close()
    return driver


@pytest.mark.data
@pytest.mark.skipif(not CAPTURES, reason=f"no captures under {DATA}")
@pytest.mark.parametrize("path", CAPTURES, ids=lambda path: path.stem[-24:])
def test_captures_come_out_as_they_went_in(tmp_path: Path, path: Path) -> None:
    driver = through(tmp_path, path)
    assert (tmp_path / "out.pcap").read_bytes()[24:] == path.read_bytes()[24:] or capinfo(tmp_path / "out.pcap") == capinfo(path)
    assert driver.drops() == {}


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("magic", "unit"), [(0xA1B2C3D4, 1), (0xA1B23C4D, 1000)])
def test_byte_orders_and_resolutions(tmp_path: Path, order: str, magic: int, unit: int) -> None:
    through(tmp_path, classic(FRAMES, order=order, magic=magic, unit=unit))
    assert capinfo(tmp_path / "out.pcap") == [(1000 + n, 5, len(frame), frame) for n, frame in enumerate(FRAMES)]


def test_nanoseconds_are_kept_when_asked_for(tmp_path: Path) -> None:
    through(tmp_path, classic(FRAMES, magic=0xA1B23C4D, unit=123), nanosecond=True)
    assert (tmp_path / "out.pcap").read_bytes()[:4] == b"\x4d\x3c\xb2\xa1"
    assert {packet[1] for packet in capinfo(tmp_path / "out.pcap")} == {5 * 123}


def test_original_lengths_are_kept(tmp_path: Path) -> None:
    driver = through(tmp_path, classic(FRAMES, cut=7))
    assert [(packet[2], packet[3]) for packet in capinfo(tmp_path / "out.pcap")] == [(len(frame), frame[:-7]) for frame in FRAMES]
    assert driver.drops() == {}


def test_frames_that_were_cut_can_be_left_out(tmp_path: Path) -> None:
    driver = through(tmp_path, classic(FRAMES, cut=7), skip_cut=True)
    assert capinfo(tmp_path / "out.pcap") == []
    assert driver.drops() == {"truncated": len(FRAMES)}
    assert driver.shared.frames == len(FRAMES)


def test_frames_beyond_the_buffer_are_oversize(tmp_path: Path) -> None:
    driver = through(tmp_path, classic([b"x" * 3840, b"x" * 3841, b"y" * 60]))
    assert driver.drops() == {"oversize": 1}
    assert [packet[2] for packet in capinfo(tmp_path / "out.pcap")] == [3840, 60]


@pytest.mark.parametrize("order", ["<", ">"])
def test_pcapng(tmp_path: Path, order: str) -> None:
    """Two interfaces of different resolution, unknown blocks, simple and obsolete blocks, a second section."""
    other = ">" if order == "<" else "<"
    obsolete = block(order, 2, struct.pack(f"{order}HHIIII", 0, 3, 0, 6_000_000, 60, 60) + FRAMES[0])
    source = (
        section(order) + interface(order) + interface(order, resolution=9, snaplen=62)
        + enhanced(order, 0, 5_000_007, FRAMES[0]) + block(order, 0x0BAD, b"unknown") + enhanced(order, 1, 5_000_000_123, FRAMES[1])
        + enhanced(order, 0, 1, FRAMES[2][:50], len(FRAMES[2])) + obsolete
        + section(other) + interface(other, resolution=0x8A, snaplen=61) + enhanced(other, 0, 3 * 1024 + 512, FRAMES[3])
        + block(other, 3, struct.pack(f"{other}I", 100) + b"s" * 61)
    )  # fmt: skip
    through(tmp_path, source, nanosecond=True)
    assert capinfo(tmp_path / "out.pcap") == [
        (5, 7000, 60, FRAMES[0]),
        (5, 123, 61, FRAMES[1]),
        (0, 1000, 62, FRAMES[2][:50]),
        (6, 0, 60, FRAMES[0]),
        (3, 500_000_000, 63, FRAMES[3]),
        (0, 0, 100, b"s" * 61),
    ]


BAD = {
    "empty": b"",
    "no capture": b"#!/bin/sh\n" * 10,
    "half a header": classic([])[:20],
    "record cut off": classic(FRAMES)[:-1],
    "record header cut off": classic(FRAMES[:1]) + b"1234567",
    "absurd length": classic([]) + struct.pack("<IIII", 0, 0, 0x7FFFFFFF, 60),
    "wireless": classic(FRAMES, link=105),
    "other version": b"\xd4\xc3\xb2\xa1\x09\x00" + bytes(18),
    "modified pcap": b"\x34\xcd\xb2\xa1" + bytes(20),
    "ng: no byte order": block("<", 0x0A0D0D0A, bytes(16)),
    "ng: packet without interface": section("<") + enhanced("<", 0, 1, FRAMES[0]),
    "ng: wireless": section("<") + interface("<", link=105) + enhanced("<", 0, 1, FRAMES[0]),
    "ng: block length 0": section("<") + struct.pack("<III", 6, 0, 0),
    "ng: block length 13": section("<") + struct.pack("<III", 77, 13, 13) + bytes(20),
    "ng: block beyond the end": section("<") + struct.pack("<II", 77, 1 << 30),
    "ng: more than its block has": section("<") + interface("<") + block("<", 6, struct.pack("<IIIII", 0, 0, 0, 999, 999) + bytes(40)),
    "ng: too many interfaces": section("<") + interface("<") * 65,
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_refused_with_a_sentence(tmp_path: Path, name: str) -> None:
    before = set(Path("/proc/self/fd").iterdir())
    with pytest.raises(CovenError) as caught:
        open_pcap(tmp_path, BAD[name])
    assert caught.value.code == "port.bad-file"
    assert str(tmp_path / "in.pcap") in str(caught.value) and "port lan" in str(caught.value)
    assert set(Path("/proc/self/fd").iterdir()) == before
    assert not (tmp_path / "out.pcap").exists()


@pytest.mark.parametrize("name", BAD)
def test_a_file_that_turns_bad_later_ends_the_port_only(tmp_path: Path, name: str) -> None:
    opened = open_pcap(tmp_path, classic(FRAMES))
    (tmp_path / "in.pcap").write_bytes(BAD[name])
    try:
        driver = Driver(opened)
    except ValueError as error:
        assert "input cannot be used" in str(error)
    else:
        pump(driver)
        driver.close()
    opened.close()


def test_every_cut_of_a_file_is_survived(tmp_path: Path) -> None:
    for whole in (classic(FRAMES[:2]), section(">") + interface(">", resolution=9) + enhanced(">", 0, 1, FRAMES[0])):
        for size in range(len(whole)):
            try:
                open_pcap(tmp_path, whole[:size]).close()
            except CovenError as error:
                assert error.code == "port.bad-file"


def test_outputs_that_would_destroy_something(tmp_path: Path) -> None:
    source = tmp_path / "in.pcap"
    source.write_bytes(classic(FRAMES))
    (tmp_path / "notes").write_text("important")
    (tmp_path / "link").symlink_to(tmp_path / "notes")
    for out in ("in.pcap", "notes", "link", ".", "missing/out.pcap"):
        with pytest.raises(CovenError) as caught:
            open_pcap(tmp_path, source, out=out)
        assert caught.value.code == "port.bad-file"
    assert source.read_bytes() == classic(FRAMES)
    assert (tmp_path / "notes").read_text() == "important"


def test_a_file_is_replaced_when_packets_can_come_and_not_before(tmp_path: Path) -> None:
    """Whatever opening found is there again after closing, unless `begin` was said between."""
    out = tmp_path / "out.pcap"
    for before in (None, b"", classic(FRAMES)):
        out.unlink(missing_ok=True)
        if before is not None:
            out.write_bytes(before)
        port = PCAP.open({"name": "lan", "options": {"out": str(out)}})
        assert before in (None, b"", out.read_bytes())
        note = port.to_json()
        port.close()
        assert (out.read_bytes() if out.exists() else None) == before
        for fd in PCAP.open({"name": "lan", "options": {"out": str(out)}}).fds:
            os.close(fd)  # whoever opened it was killed: its successor closes
        successor = adopt({**note, "output": {**note["output"], "inode": None}}, (-1, -1))
        successor.close()
        assert (out.read_bytes() if out.exists() else None) == before
        port = PCAP.open({"name": "lan", "options": {"out": str(out)}})
        port.begin()
        assert capinfo(out) == []
        Driver(port).send(FRAMES[0])
        port.begin()  # once is enough
        port.close()
        assert [packet[3] for packet in capinfo(out)] == FRAMES[:1]


def test_what_somebody_else_put_there_stays(tmp_path: Path) -> None:
    out = tmp_path / "out.pcap"
    port = PCAP.open({"name": "lan", "options": {"out": str(out)}})
    out.unlink()
    out.write_text("mine")
    port.close()
    assert out.read_text() == "mine"


def test_what_cannot_be_opened_leaves_no_file(tmp_path: Path) -> None:
    (tmp_path / "half").write_bytes(classic([])[:20])
    for out in ("new.pcap", "half"):
        with pytest.raises(CovenError):
            PCAP.open({"name": "lan", "options": {"in": str(tmp_path / "new.pcap"), "out": str(tmp_path / out)}})
    assert [path.name for path in tmp_path.iterdir()] == ["half"]


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[OpenedPort]:
    port = open_pcap(tmp_path, classic(FRAMES))
    yield port
    port.close()


def test_a_killed_worker_neither_loses_nor_repeats(tmp_path: Path, opened: OpenedPort) -> None:
    """Read but not booked: read again. Written but not booked: undone. Then the next one goes on."""
    driver = Driver(opened)
    for n, frame in enumerate(FRAMES):
        assert driver.receive(1, book=False) == [frame]  # killed here
        driver = Driver(opened, shared=driver.memory)
        assert driver.receive(1) == [frame]
        assert driver.send(frame, timestamp_ns=n, book=False) == 0xFF
        assert driver.send(b"lost" * 200, book=False) == 0xFF  # killed here
        driver = Driver(opened, shared=driver.memory)
        assert driver.lib.driver_undo(driver.handle)
        driver.send(frame, timestamp_ns=n * 1000)
    assert [packet[3] for packet in capinfo(tmp_path / "out.pcap")] == FRAMES


def test_a_pcapng_reader_goes_on_where_another_stopped(tmp_path: Path) -> None:
    source = section("<") + b"".join(interface("<", resolution=9) + enhanced("<", n, n, frame) for n, frame in enumerate(FRAMES))
    port = open_pcap(tmp_path, source)
    driver, frames = Driver(port), []
    for _ in range(8):
        frames += driver.receive(5)
        driver = Driver(port, shared=driver.memory)
    assert frames == FRAMES
    port.close()


def test_opening_anew_begins_anew(tmp_path: Path) -> None:
    first = open_pcap(tmp_path, classic(FRAMES))
    driver = Driver(first)
    pump(driver)
    first.close()
    second = open_pcap(tmp_path, tmp_path / "in.pcap")
    again = Driver(second, shared=driver.memory)
    pump(again)
    second.close()
    assert [packet[3] for packet in capinfo(tmp_path / "out.pcap")] == FRAMES


@pytest.mark.parametrize("largest", [2**63 - 1, 2**44 - 2**12, 2**31 - 1], ids=["tmpfs", "ext4", "old"])
def test_openings_differ_on_every_file_system(largest: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.lseek

    def lseek(fd: int, offset: int, whence: int) -> int:
        if offset > largest:
            raise OSError(errno.EINVAL, "beyond the largest file")
        return real(fd, offset, whence)

    found = set()
    with tempfile.TemporaryFile(dir="/dev/shm") as file:  # which takes any offset
        monkeypatch.setattr(os, "lseek", lseek)
        for _ in range(100):
            mark_opening(file.fileno())
            found.add(real(file.fileno(), 0, os.SEEK_CUR))
    assert len(found) == 100 and min(found) > 0


def test_recorded_pace(tmp_path: Path) -> None:
    """The second packet is due as much later as it was recorded, and not there before."""
    frames = struct.pack("<IIII", 10, 0, 60, 60) + FRAMES[0] + struct.pack("<IIII", 10, 150_000, 61, 61) + FRAMES[1]
    port = open_pcap(tmp_path, classic([]) + frames, paced=True)
    driver = Driver(port)
    due = driver.ffi.new("uint64_t *")
    before = time.monotonic_ns()
    assert driver.receive() == [FRAMES[0]]
    assert driver.receive() == [] or time.monotonic_ns() - before > 150_000_000
    assert driver.lib.driver_wait(driver.handle, due) == -1
    assert before + 150_000_000 <= due[0] <= time.monotonic_ns() + 150_000_000
    assert not driver.lib.driver_done(driver.handle)
    packets: list[bytes] = []
    while not packets:
        packets = driver.receive()
    assert packets == [FRAMES[1]] and time.monotonic_ns() >= due[0]
    port.close()


def test_descriptions_that_are_read_again_count_once(tmp_path: Path) -> None:
    """A packet that is not due yet is looked at again and again, with the interface block before it."""
    source = section("<") + interface("<") + enhanced("<", 0, 0, FRAMES[0])
    source += interface("<") + enhanced("<", 1, 100_000, FRAMES[1])
    port = open_pcap(tmp_path, source, paced=True)
    driver = Driver(port)
    due = driver.ffi.new("uint64_t *")
    frames = [frame for _ in range(100) for frame in driver.receive()]
    while not driver.lib.driver_done(driver.handle):
        frames += driver.receive()
        driver.lib.driver_wait(driver.handle, due)
    assert frames == FRAMES[:2]
    port.close()


def test_loop(tmp_path: Path) -> None:
    port = open_pcap(tmp_path, classic(FRAMES), loop=True)
    driver = Driver(port)
    frames = [frame for _ in range(12) for frame in driver.receive()]
    assert len(frames) > 3 * len(FRAMES) and frames == (FRAMES * 10)[: len(frames)]
    assert not driver.lib.driver_done(driver.handle)
    empty = open_pcap(tmp_path, classic([]), loop=True)
    driver = Driver(empty)
    driver.receive()
    assert driver.lib.driver_done(driver.handle)
    port.close()
    empty.close()


def test_a_direction_that_is_not_there(tmp_path: Path) -> None:
    port = open_pcap(tmp_path, None, out="only.pcap")
    driver = Driver(port)
    assert driver.receive() == [] and driver.lib.driver_done(driver.handle)
    assert driver.send(FRAMES[0]) == 0xFF
    port.close()
    port = open_pcap(tmp_path, classic(FRAMES), out=None)
    driver = Driver(port)
    assert driver.send(FRAMES[0]) == reasons()["port-down"]
    port.close()


def test_a_full_disk_is_a_drop_and_leaves_whole_records(opened: OpenedPort) -> None:
    import resource
    import signal

    driver = Driver(opened)
    driver.send(FRAMES[0])
    size = os.fstat(opened.fds[1]).st_size
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 30, before[1]))
        assert driver.send(FRAMES[1]) == reasons()["tx-error"]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert os.fstat(opened.fds[1]).st_size == size
    assert driver.send(FRAMES[2]) == 0xFF


@pytest.fixture
def open_gen() -> Iterator[Callable[..., OpenedPort]]:
    """Open a port with options; it is closed with the test."""
    with contextlib.ExitStack() as ports:

        def opened(**options: int) -> OpenedPort:
            port = tool_of({"tool": "gen"}).open({"name": "lan", "tool": "gen", "options": options})
            ports.callback(port.close)
            return port

        yield opened


@pytest.mark.parametrize("size", [60, 64, 590, 1514, 3000])
def test_gen_makes_valid_packets(size: int, open_gen: Callable[..., OpenedPort]) -> None:
    driver = Driver(open_gen(packets=100, bytes=size, flows=7))
    packets = driver.receive_until(100)
    assert len(packets) == 100 and driver.lib.driver_done(driver.handle)
    for n, packet in enumerate(packets):
        assert len(packet) == size
        layers = Ether(packet)
        ip, udp = layers[IP], layers[UDP]
        assert csum(packet[14:34]) == 0
        assert csum(pseudo(packet[26:30], packet[30:34], 17, size - 34) + packet[34:]) == 0
        assert ip.src.startswith("198.18.") and ip.dst == "198.19.0.1" and ip.len == size - 14 and udp.len == size - 34
        assert udp.sport == 1024 + n % 7
        assert packet[42:58] == b"COVENGEN" + struct.pack("!Q", n)


def test_gen_mix_flows_and_sink(open_gen: Callable[..., OpenedPort]) -> None:
    driver = Driver(open_gen(packets=1200, bytes=0, flows=20_000))
    packets = driver.receive_until(1200)
    sizes = [len(packet) for packet in packets]
    assert [sizes.count(size) for size in (60, 590, 1514)] == [700, 400, 100]
    assert len({(packet[26:30], packet[34:36]) for packet in packets}) == 1200
    assert driver.send(packets[0]) == 0xFF


def test_gen_goes_on_after_a_crash_and_begins_anew_when_opened(open_gen: Callable[..., OpenedPort]) -> None:
    opened = open_gen(packets=100)
    driver = Driver(opened)
    first = driver.receive(10)
    driver.receive(10, book=False)
    driver = Driver(opened, shared=driver.memory)
    assert [packet[50:58] for packet in driver.receive(2)] == [struct.pack("!Q", n) for n in (10, 11)]
    assert Driver(open_gen(packets=100), shared=driver.memory).receive(10) == first


def test_gen_keeps_to_its_rate(open_gen: Callable[..., OpenedPort]) -> None:
    driver = Driver(open_gen(packets=1000, rate=10))
    due = driver.ffi.new("uint64_t *")
    before = time.monotonic_ns()
    packets = driver.receive() + driver.receive()
    assert 1 <= len(packets) <= 2 + (time.monotonic_ns() - before) // 100_000_000
    driver.lib.driver_wait(driver.handle, due)
    assert before < due[0] <= time.monotonic_ns() + 100_000_000
