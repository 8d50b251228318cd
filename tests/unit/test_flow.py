"""The flow table against a model, with kills at its fault point."""

from __future__ import annotations

import mmap
import os
import struct
import subprocess
import sys
from dataclasses import dataclass, field
from typing import Any

import cffi
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coven.dataplane.core import ffi, lib
from coven.dataplane.layout import drop_reasons
from tests.lib import builds

SEED = (0x0706050403020100, 0x0F0E0D0C0B0A0908)
IDLE = 1_000_000_000
MINUTE = 60_000_000_000
NO_FLOW = lib.COVEN_NO_FLOW
FULL = next(i for i, reason in enumerate(drop_reasons()) if reason.label == "flow-table-full") + 1

TCP, UDP, ICMP, ICMPV6 = 6, 17, 1, 58


def address(number: int, version: int) -> bytes:
    """Give an address of its own for each small number."""
    return struct.pack(">BBH", 10, 0, number) if version == 4 else b"\x20\x01" + bytes(12) + struct.pack(">H", number)


def ip(
    version: int, source: int, destination: int, protocol: int, payload: bytes, *, fragment: tuple[int, int, bool] | None = None
) -> bytes:
    """Give an IP packet. fragment: id, offset in bytes, more."""
    ends = address(source, version) + address(destination, version)
    if version == 4:
        number, offset, more = fragment or (0, 0, False)
        word = (0x2000 if more else 0) | offset // 8
        return struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(payload), number, word, 64, protocol, 0) + ends + payload
    kind = protocol
    if fragment:
        number, offset, more = fragment
        payload = struct.pack(">BBHI", protocol, 0, offset | more, number) + payload
        kind = 44
    return struct.pack(">IHBB", 6 << 28, len(payload), kind, 64) + ends + payload


def frame(packet: bytes, vlans: tuple[int, ...] = ()) -> bytes:
    """Put an Ethernet header with VLAN tags before an IP packet."""
    tags = b"".join(struct.pack(">HH", 0x8100, tci) for tci in vlans)
    return bytes(12) + tags + struct.pack(">H", 0x0800 if packet[0] >> 4 == 4 else 0x86DD) + packet


def datagram(
    source: int = 1, destination: int = 2, ports: tuple[int, int] = (1000, 80), *, version: int = 4,
    vlans: tuple[int, ...] = (), protocol: int = UDP,
) -> bytes:  # fmt: skip
    return frame(ip(version, source, destination, protocol, struct.pack(">HHHH", *ports, 8, 0)), vlans)


class Table:
    """A flow table in memory of its own."""

    def __init__(self, capacity: int, idle_ns: int = IDLE, when_full: int = 0) -> None:
        self.capacity, self.idle_ns = capacity, idle_ns
        self.config = ffi.new("struct coven_flow_config *", [capacity, when_full, SEED, idle_ns])
        self.memory = ffi.new("uint64_t[]", lib.coven_flow_table_bytes(capacity) // 8)
        self.table = ffi.cast("struct coven_flow_table *", self.memory)
        lib.coven_flow_table_init(self.table, self.config)

    def recover(self) -> None:
        lib.coven_flow_table_recover(self.table, self.config)

    def lookup(self, packet: bytes, now: int = 1) -> Any:
        """Give the metadata that the packet gets; a full table is an IndexError."""
        meta = ffi.new("struct coven_meta *")
        result = lib.coven_flow_lookup(self.table, packet, len(packet), meta, now)
        if result:
            assert result == FULL
            raise IndexError
        return meta

    def expire(self, now: int, most: int = 32) -> list[int]:
        flows = ffi.new("uint32_t[]", most)
        return list(flows[0 : lib.coven_flow_expire(self.table, now, flows, most)])

    def sweep(self, now: int) -> tuple[list[int], int]:
        """Expire until the sweep has gone around twice; the flows and the time then."""
        found = []
        for _ in range(64):
            now += self.idle_ns // 4
            found += self.expire(now)
        return found, now

    def release(self, flow: int) -> None:
        lib.coven_flow_release(self.table, flow)

    @property
    def count(self) -> int:
        return int(lib.coven_flow_count(self.table))


def test_hash_is_siphash_13() -> None:
    if sys.hash_info.algorithm != "siphash13":
        pytest.skip("this Python hashes with another function")
    texts = [bytes(range(n)) for n in range(1, 70)]
    program = "import sys; print([hash(bytes(range(n))) for n in range(1, 70)])"
    done = subprocess.run(
        [sys.executable, "-c", program], env={"PYTHONHASHSEED": "0"}, capture_output=True, text=True, check=True
    )
    wanted = [int(x) % 2**64 for x in done.stdout.strip("[]\n").split(",")]
    assert [lib.coven_flow_hash((0, 0), text, len(text)) for text in texts] == wanted


def test_no_capacity_means_no_table() -> None:
    assert lib.coven_flow_table_bytes(0) == 0


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("protocol", [TCP, UDP, 132, 136])
def test_both_directions_are_one_flow(version: int, protocol: int) -> None:
    table = Table(16)
    there = datagram(1, 2, (1000, 80), version=version, protocol=protocol)
    back = datagram(2, 1, (80, 1000), version=version, protocol=protocol)
    got = [table.lookup(packet) for packet in (there, back, there, back, back)]
    assert {m.flow for m in got} == {got[0].flow}
    assert [m.direction for m in got] == [0, 1, 0, 1, 1]
    assert [m.flow_seq for m in got] == [0, 0, 1, 1, 2]
    assert len({m.flow_epoch for m in got}) == 1
    assert got[0].flow_epoch != 0
    assert table.count == 1


def test_direction_is_that_of_the_first_packet() -> None:
    table = Table(16)
    assert [table.lookup(p).direction for p in (datagram(2, 1, (80, 1000)), datagram(1, 2, (1000, 80)))] == [0, 1]


def test_what_differs_is_another_flow() -> None:
    table = Table(64)
    packets = [
        datagram(), datagram(3), datagram(1, 3), datagram(ports=(1001, 80)), datagram(ports=(1000, 81)), datagram(version=6),
        datagram(protocol=TCP), datagram(vlans=(5,)), datagram(vlans=(6,)), datagram(vlans=(5, 6)), datagram(vlans=(6, 5)),
        datagram(vlans=(5, 6, 7)), datagram(ports=(80, 1000)), datagram(1, 1, (5, 6)), datagram(1, 1, (5, 5)),
    ]  # fmt: skip
    assert len({table.lookup(p).flow for p in packets}) == len(packets)
    assert table.lookup(datagram(vlans=(5 | 7 << 13,))).flow == table.lookup(datagram(vlans=(5,))).flow


@pytest.mark.parametrize(
    "packet",
    [
        b"", b"x", bytes(60), frame(ip(4, 1, 2, ICMP, b"\x08" + bytes(7))), frame(ip(6, 1, 2, ICMPV6, b"\x80" + bytes(7))),
        frame(ip(4, 1, 2, 50, bytes(40))), frame(ip(4, 1, 2, UDP, b"ab")), datagram()[:30],
        frame(ip(4, 1, 2, UDP, bytes(16), fragment=(9, 64, True))),
    ],
)  # fmt: skip
def test_other_packets_have_no_flow(packet: bytes) -> None:
    table = Table(16)
    meta = table.lookup(packet)
    assert (meta.flow, meta.flow_epoch, meta.flow_seq, meta.direction, table.count) == (NO_FLOW, 0, 0, 0, 0)


# ---- fragments and errors ---------------------------------------------------------------------------


def fragments(version: int, *, number: int = 7, source: int = 1, destination: int = 2) -> tuple[bytes, bytes, bytes]:
    body = struct.pack(">HHHH", 1000, 80, 8, 0) + bytes(56)
    parts = [(body, 0, True), (bytes(64), 64, True), (bytes(10), 128, False)]
    first, middle, last = (
        ip(version, source, destination, UDP, part, fragment=(number, offset, more)) for part, offset, more in parts
    )
    return first, middle, last


@pytest.mark.parametrize("version", [4, 6])
def test_later_fragments_follow_the_first(version: int) -> None:
    table = Table(16)
    flow = table.lookup(datagram(2, 1, (80, 1000), version=version)).flow
    got = [table.lookup(frame(part)) for part in fragments(version)]
    assert [(m.flow, m.direction, m.flow_seq) for m in got] == [(flow, 1, 0), (flow, 1, 1), (flow, 1, 2)]


@pytest.mark.parametrize("version", [4, 6])
def test_a_later_fragment_of_another_datagram_has_no_flow(version: int) -> None:
    table = Table(16)
    table.lookup(frame(fragments(version)[0]))
    others = [
        frame(fragments(version, number=8)[1]), frame(fragments(version, source=3)[1]),
        frame(fragments(version, source=2, destination=1)[1]), frame(fragments(version)[1], (5,)),
    ]  # fmt: skip
    assert {table.lookup(p).flow for p in others} == {NO_FLOW}
    assert table.lookup(frame(fragments(version)[1]), MINUTE).flow != NO_FLOW
    assert table.lookup(frame(fragments(version)[1]), MINUTE + 1).flow == NO_FLOW


def test_a_later_fragment_does_not_follow_to_the_next_flow_of_the_slot() -> None:
    table = Table(1)
    table.lookup(frame(fragments(4)[0]))
    assert table.sweep(IDLE)[0] == [0]
    assert table.lookup(frame(fragments(4)[1]), 2 * IDLE).flow == NO_FLOW
    table.release(0)
    assert table.lookup(datagram(5, 6), 2 * IDLE).flow == 0
    assert table.lookup(frame(fragments(4)[1]), 2 * IDLE).flow == NO_FLOW


def test_many_datagrams_at_once() -> None:
    table = Table(16)
    parts = [fragments(4, number=number) for number in range(400)]
    for first, _, _ in parts:
        table.lookup(frame(first))
    followed = sum(table.lookup(frame(middle)).flow != NO_FLOW for _, middle, _ in parts)
    assert followed > 380


def icmp_error(version: int, quoted: bytes, *, kind: int | None = None) -> bytes:
    kind = (3 if version == 4 else 1) if kind is None else kind
    return frame(ip(version, 9, 1, ICMP if version == 4 else ICMPV6, struct.pack(">BBHI", kind, 3, 0, 0) + quoted))


@pytest.mark.parametrize("version", [4, 6])
def test_errors_follow_the_quoted_packet_backwards(version: int) -> None:
    table = Table(16)
    sent = datagram(1, 2, version=version)
    flow = table.lookup(sent).flow
    got = table.lookup(icmp_error(version, sent[14:]))
    assert (got.flow, got.direction, got.flow_seq) == (flow, 1, 0)
    answer = datagram(2, 1, (80, 1000), version=version)
    got = table.lookup(icmp_error(version, answer[14:]))
    assert (got.flow, got.direction, got.flow_seq) == (flow, 0, 1)


@pytest.mark.parametrize("version", [4, 6])
def test_errors_about_fragments_follow_too(version: int) -> None:
    table = Table(16)
    first, middle, _ = fragments(version)
    flow = table.lookup(frame(first)).flow
    for quoted in (first, middle):
        got = table.lookup(icmp_error(version, quoted))
        assert (got.flow, got.direction) == (flow, 1)


@pytest.mark.parametrize("version", [4, 6])
def test_errors_make_no_flow(version: int) -> None:
    table = Table(16)
    sent = datagram(version=version)[14:]
    assert table.lookup(icmp_error(version, sent)).flow == NO_FLOW
    assert table.count == 0
    table.lookup(frame(sent))
    assert table.lookup(icmp_error(version, sent, kind=0 if version == 4 else 128)).flow == NO_FLOW
    for cut in range(len(sent)):
        table.lookup(icmp_error(version, sent[:cut]))
    assert table.count == 1


# ---- age, reuse, full table -------------------------------------------------------------------------


def test_idle_flows_end_and_others_stay() -> None:
    table = Table(64)
    for source in range(10):
        table.lookup(datagram(100 + source), 1)
    found: list[int] = []
    now = 1
    for _ in range(32):
        now += IDLE // 8
        found += table.expire(now)
        table.lookup(datagram(100), now)
    assert sorted(found) == list(range(1, 10))
    assert table.count == 10  # not released yet
    for flow in found:
        table.release(flow)
    assert table.count == 1
    assert lib.coven_flow_removed(table.table) == 9


def test_an_ended_flow_is_not_found_and_its_slot_not_reused_before_release() -> None:
    table = Table(2)
    first = table.lookup(datagram(1), 1)
    (ended,), now = table.sweep(1)
    assert ended == first.flow
    again = table.lookup(datagram(1), now)
    assert again.flow != first.flow
    with pytest.raises(IndexError):
        table.lookup(datagram(3), now)
    table.release(ended)
    other = table.lookup(datagram(3), now)
    assert other.flow == first.flow
    assert other.flow_epoch == first.flow_epoch + 1
    assert (other.flow_seq, other.direction) == (0, 0)


def test_release_of_what_has_not_ended_does_nothing() -> None:
    table = Table(4)
    flow = table.lookup(datagram()).flow
    for number in (flow, 3, 4, 2**32 - 1):
        table.release(number)
    assert table.count == 1
    assert table.lookup(datagram()).flow == flow


def test_a_full_table_drops_and_idle_flows_give_way() -> None:
    table = Table(8)
    for source in range(8):
        table.lookup(datagram(source), 1)
    with pytest.raises(IndexError):
        table.lookup(datagram(50), 2)
    table.lookup(datagram(3), IDLE)
    taken = table.lookup(datagram(50), IDLE + 1)
    assert taken.flow != 3
    assert taken.flow_epoch == 2
    assert table.count == 8


_, REFUSE, ONE_WAY, OLDEST = (
    lib.COVEN_WHEN_FULL_IDLE, lib.COVEN_WHEN_FULL_REFUSE, lib.COVEN_WHEN_FULL_ONE_WAY, lib.COVEN_WHEN_FULL_OLDEST,
)  # fmt: skip


def test_nothing_gives_way_where_new_flows_are_refused() -> None:
    table = Table(4, when_full=REFUSE)
    flows = [table.lookup(datagram(source), 1).flow for source in range(4)]
    with pytest.raises(IndexError):
        table.lookup(datagram(50), 5 * IDLE)
    assert [table.lookup(datagram(source), 5 * IDLE).flow for source in range(4)] == flows


def test_the_oldest_gives_way() -> None:
    table = Table(4, when_full=OLDEST)
    for source in (3, 1, 0, 2):
        table.lookup(datagram(source, 9), 10 + source)
    oldest = table.lookup(datagram(0, 9), 10).flow
    assert table.lookup(datagram(50), 20).flow == oldest
    young = Table(4, when_full=OLDEST)
    for source in range(4):
        young.lookup(datagram(source, 9), 20)
    with pytest.raises(IndexError):  # no time has passed: all of them are of this burst
        young.lookup(datagram(50), 20)


def test_what_is_established_does_not_give_way_to_beginnings() -> None:
    table = Table(64, when_full=ONE_WAY)
    for source in range(32):
        table.lookup(datagram(source, 99, (5, 6)), 1)
        table.lookup(datagram(99, source, (6, 5)), 1)
    for flood in range(1000):
        table.lookup(datagram(100 + flood, 99, (5, 6)), 2 + flood)
    found = [table.lookup(datagram(source, 99, (5, 6)), 2000) for source in range(32)]
    assert [(m.flow, m.flow_epoch, m.flow_seq) for m in found] == [(source, 1, 1) for source in range(32)]


def burst_of(table: Table, packets: list[bytes], now: int) -> tuple[Any, Any]:
    """Look a burst up; give the metadata and what was refused."""
    metas = ffi.new("struct coven_meta[]", len(packets))
    texts = [ffi.from_buffer(packet) for packet in packets]
    burst = ffi.new("struct coven_flow_packet[]", [(t, metas + i, len(t), 9) for i, t in enumerate(texts)])
    lib.coven_flow_lookup_burst(table.table, burst, len(packets), now, ffi.NULL, 0)
    return metas, [one.refused for one in burst]


def test_a_burst_is_looked_up_as_its_packets_one_by_one() -> None:
    """The same flow twice, a new one, fragments, packets of none, and a full table, in one burst."""
    packets = [
        datagram(1), datagram(2, 1, (80, 1000)), b"x", datagram(1), *map(frame, fragments(4)), datagram(7), datagram(8), datagram(7),
        icmp_error(4, datagram(1)[14:]), *(datagram(20 + n) for n in range(12)), datagram(8),
    ]  # fmt: skip
    one, many = Table(8), Table(8)
    wanted = []
    for packet in packets:
        try:
            m = one.lookup(packet, 5)
            wanted.append((m.flow, m.flow_epoch, m.direction, m.flow_seq, 0))
        except IndexError:
            wanted.append((NO_FLOW, 0, 0, 0, FULL))
    metas, refused = burst_of(many, packets, 5)
    got = [(m.flow, m.flow_epoch, m.direction, m.flow_seq, r) for m, r in zip(metas, refused, strict=True)]
    assert got == wanted
    assert {m[4] for m in wanted} == {0, FULL}


def test_all_that_gave_way_in_a_burst_are_told() -> None:
    table = Table(4, when_full=OLDEST)
    first = [table.lookup(datagram(source, 9), 1).flow for source in range(4)]
    lib.coven_flow_let_give_way(table.table, 3)
    metas, refused = burst_of(table, [datagram(40 + n, 9) for n in range(6)], 2)
    assert refused == [0, 0, 0, FULL, FULL, FULL]
    flow, epoch, told = ffi.new("uint32_t *"), ffi.new("uint16_t *"), []
    while lib.coven_flow_gave_way(table.table, flow, epoch):
        told.append((flow[0], epoch[0]))
    assert told == [(metas[i].flow, 1) for i in range(3)]
    assert {number for number, _ in told} < set(first)


def test_what_expire_had_no_room_for_is_not_forgotten() -> None:
    table = Table(2000)
    for n in range(2000):
        table.lookup(datagram(1 + n, 9999), 1)
    table.expire(1)
    found = [table.expire(1 + 2 * IDLE, 100) for _ in range(20)]
    assert [len(part) for part in found] == [100] * 20
    assert len({flow for part in found for flow in part}) == 2000


def test_an_empty_table_need_not_be_looked_at() -> None:
    table = Table(64)
    assert lib.coven_flow_due(table.table, 5) == 2**64 - 1
    table.lookup(datagram(), 5)
    assert 5 < lib.coven_flow_due(table.table, 5) <= 5 + IDLE // 4 + 1


def test_epochs_are_never_zero() -> None:
    table = Table(1)
    now, epochs = 1, []
    for source in range(65537):
        epochs.append(table.lookup(datagram(source & 0x7FFF, 0x8000), now).flow_epoch)
        now += IDLE
    assert epochs[:3] == [1, 2, 3]
    assert epochs[65534:] == [65535, 1, 2]


def test_100k_flows() -> None:
    table = Table(100_000)
    there = [datagram(1 + n // 1000, 200, (n % 1000, 80)) for n in range(100_000)]
    flows = [table.lookup(packet).flow for packet in there]
    assert len(set(flows)) == 100_000
    back = [datagram(200, 1 + n // 1000, (80, n % 1000)) for n in range(100_000)]
    got = [table.lookup(packet) for packet in back]
    assert [m.flow for m in got] == flows
    assert all(m.direction == 1 and m.flow_seq == 0 for m in got)
    with pytest.raises(IndexError):
        table.lookup(datagram(3000))
    table.recover()
    assert [table.lookup(packet).flow for packet in there[::997]] == flows[::997]
    assert table.count == 100_000


# ---- model ------------------------------------------------------------------------------------------


@dataclass
class Known:
    """What the model knows of one flow."""

    flow: int
    epoch: int
    last: int
    source: int
    sequence: list[int] = field(default_factory=lambda: [0, 0])


OPS = st.one_of(
    st.tuples(st.just("packet"), st.integers(1, 4), st.integers(1, 4), st.integers(1, 3)),
    st.tuples(st.just("pass"), st.sampled_from([1, IDLE // 5, IDLE // 2, IDLE, 3 * IDLE])),
    st.tuples(st.just("expire"), st.integers(1, 8)),
    st.tuples(st.just("release"), st.integers(0, 7)),
    st.tuples(st.just("recover")),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(OPS, max_size=120), st.integers(1, 8))
def test_against_a_model(ops: list[tuple[Any, ...]], capacity: int) -> None:
    table, now = Table(capacity), 1
    live: dict[frozenset[int], Known] = {}
    ended: set[int] = set()
    for op in ops:
        match op:
            case ("packet", source, destination, _) if source == destination:
                continue
            case ("packet", source, destination, port):
                key = frozenset({source, destination, 100 + port})
                packet = datagram(source, destination, (port, port))
                known = live.get(key)
                idle = [k for k, x in live.items() if now - x.last >= IDLE]
                if known is None and len(live) + len(ended) == capacity and not idle:
                    with pytest.raises(IndexError):
                        table.lookup(packet, now)
                    continue
                meta = table.lookup(packet, now)
                if known is None:
                    for gone in [k for k, x in live.items() if x.flow == meta.flow]:
                        assert gone in idle and len(live) + len(ended) == capacity
                        del live[gone]
                    assert meta.flow not in ended
                    known = live[key] = Known(meta.flow, meta.flow_epoch, now, source)
                direction = int(source != known.source)
                assert (meta.flow, meta.flow_epoch, meta.direction) == (known.flow, known.epoch, direction)
                assert meta.flow_seq == known.sequence[direction]
                known.sequence[direction] += 1
                known.last = now
            case ("pass", ns):
                now += ns
            case ("expire", most):
                found = table.expire(now, most)
                assert len(found) <= most
                for flow in found:
                    keys = [k for k, x in live.items() if x.flow == flow and now - x.last >= IDLE]
                    assert (len(keys) == 1) != (flow in ended)  # the latter: again, after a recovery
                    live = {k: x for k, x in live.items() if k not in keys}
                    ended.add(flow)
            case ("release", flow):
                was = table.count
                table.release(flow)
                if table.count < was:
                    ended.remove(flow)
            case ("recover",):
                table.recover()
        assert table.count == len(live) + len(ended)


# ---- kills ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def faulty() -> tuple[Any, Any]:
    """The table compiled with fault points, loaded beside the core."""
    path = builds.shared_object(builds.FLOW_PARTS, *builds.FAULTS)
    own = cffi.FFI()
    own.cdef(
        "void coven_flow_table_init(void *, const void *);"
        "int coven_flow_lookup(void *, const uint8_t *, uint32_t, void *, uint64_t);"
        "uint16_t coven_flow_expire(void *, uint64_t, uint32_t *, uint16_t);"
        "void coven_flow_release(void *, uint32_t);"
    )
    return own, own.dlopen(str(path))


CAPACITY = 12
# How often the point is passed: by each place in the source, so 40 is deep in reuse.
KILLS = list(range(1, 41))


def churn(own: Any, faulty_lib: Any, memory: Any, log: mmap.mmap) -> None:
    """Make, end, reuse flows until killed; the log says what is done: 8 words for each of 30 keys."""
    table = own.from_buffer(memory)
    flows = own.new("uint32_t[]", 4)
    meta = own.new("uint8_t[64]")
    now = 1
    for turn in range(400):
        now += IDLE // 16
        key = turn * 7 % 30
        packet = datagram(1 + key, 200)
        struct.pack_into("<II", log, 0, key + 1, turn + 1)  # the key being worked on, and when
        if faulty_lib.coven_flow_lookup(table, packet, len(packet), meta, now) == 0:
            (flow,) = struct.unpack_from("<I", own.buffer(meta), ffi.offsetof("struct coven_meta", "flow"))
            (epoch,) = struct.unpack_from("<H", own.buffer(meta), ffi.offsetof("struct coven_meta", "flow_epoch"))
            struct.pack_into("<III", log, 16 + 16 * key, flow + 1, epoch, turn + 1)
        struct.pack_into("<I", log, 0, 0)
        for i in range(faulty_lib.coven_flow_expire(table, now, flows, 4)):
            faulty_lib.coven_flow_release(table, flows[i])


@pytest.mark.parametrize("nth", KILLS)
def test_a_killed_table_is_rebuilt(faulty: tuple[Any, Any], nth: int) -> None:
    own, faulty_lib = faulty
    memory = mmap.mmap(-1, lib.coven_flow_table_bytes(CAPACITY))
    log = mmap.mmap(-1, 4096)
    config = Table(CAPACITY).config
    faulty_lib.coven_flow_table_init(own.from_buffer(memory), own.from_buffer(ffi.buffer(config)))
    pid = os.fork()
    if pid == 0:
        os.environ["COVEN_FAULT"] = f"worker-flow-index:{nth}"
        try:
            churn(own, faulty_lib, memory, log)
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -9

    table = ffi.cast("struct coven_flow_table *", ffi.from_buffer(memory))
    lib.coven_flow_table_recover(table, config)
    rebuilt = Table(CAPACITY)
    rebuilt.table = table
    current, turn = struct.unpack_from("<II", log, 0)
    done = {key: struct.unpack_from("<III", log, 16 + 16 * key) for key in range(30)}
    now = turn * (IDLE // 16) + 1
    # What was told to a packet and cannot have aged is found again as it was.
    young = {key: x for key, x in done.items() if x[0] and turn - x[2] < 14 and key + 1 != current}
    assert young or nth == 1
    for key, (flow, epoch, _) in young.items():
        meta = rebuilt.lookup(datagram(1 + key, 200), now)
        assert (meta.flow, meta.flow_epoch) == (flow - 1, epoch)
        assert meta.flow_seq >= 1
    # Every slot can be had again: none is lost, none is given twice.
    found, now = rebuilt.sweep(now)
    for flow in found:
        rebuilt.release(flow)
    assert rebuilt.count == 0
    fresh = [rebuilt.lookup(datagram(300 + n), now).flow for n in range(CAPACITY)]
    assert sorted(fresh) == list(range(CAPACITY))


def test_a_table_of_nonsense_is_made_usable() -> None:
    table = Table(32)
    ffi.buffer(table.memory)[:] = os.urandom(len(ffi.buffer(table.memory)))
    table.recover()
    found, now = table.sweep(2**63)
    for flow in found:
        table.release(flow)
    for n in range(8):
        table.lookup(datagram(n), now)
