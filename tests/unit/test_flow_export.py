"""Flows listed, exported and imported: the C part against tables in memory, names as text and bytes."""

from __future__ import annotations

import ipaddress
import mmap
import os
import struct
from typing import Any

import cffi
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coven import flows
from coven.dataplane.core import ffi, lib, sizeof
from coven.dataplane.layout import drop_reasons
from coven.errors import CovenError
from coven.flows import FlowFilter, FlowName
from tests.lib import builds
from tests.unit.test_flow import TCP, UDP, Table, datagram

MOVED = next(i for i, reason in enumerate(drop_reasons()) if reason.label == "flow-moved") + 1
BYTES = 24


class Kept:
    """A table with the flow state of one component beside it."""

    def __init__(
        self, capacity: int = 64, component: bytes = b"counter", version: int = 1, size: int = BYTES, memory: Any = None
    ) -> None:
        self.table = Table(capacity)
        slot = lib.coven_state_slot_bytes(size)
        if memory is None:
            self.memory = ffi.new("uint8_t[]", 4096 + capacity * slot)
        else:  # shared with children
            self.memory = ffi.from_buffer("uint8_t[]", memory)
            self.table.table = ffi.cast("struct coven_flow_table *", self.memory + 4096 + capacity * slot)
            lib.coven_flow_table_init(self.table.table, self.table.config)
        self.view = ffi.new("struct coven_state_view *")
        self.view.base, self.view.slots_offset, self.view.n_slots = self.memory, 4096, capacity
        self.view.slot_bytes, self.view.half_bytes, self.view.version = slot, lib.coven_state_half_bytes(size), version
        self.name = ffi.new("char[]", component)
        self.keepers = ffi.new("struct coven_flow_keeper[]", [(self.name, self.view, size, version)])

    def count(self, packet: bytes, now: int = 1) -> int:
        """Look a packet up and count it in the flow's state, as a component would; what the count is now."""
        meta = self.table.lookup(packet, now)
        burst, index = ffi.new("struct coven_state_burst *"), ffi.new("uint16_t *")
        half = ffi.cast("uint64_t *", lib.coven_state_begin(self.view, burst, meta.flow, meta.flow_epoch, index))
        half[0] += 1
        lib.coven_state_commit(self.view, burst)
        return int(half[0])

    def export(self, name: str) -> bytes:
        flow = lib.coven_flow_by_name(
            self.table.table, ffi.from_buffer("struct coven_flow_name *", FlowName.parse(name).pack())
        )
        assert flow != lib.COVEN_NO_FLOW
        blob = ffi.new("uint8_t[]", 4096)
        size = lib.coven_flow_export(self.table.table, flow, self.keepers, 1, blob, 4096)
        assert size > 0
        return bytes(ffi.buffer(blob, size))

    def put(self, blob: bytes, now: int = 5) -> tuple[int, str]:
        why = ffi.new("char[]", 256)
        flow = lib.coven_flow_import(self.table.table, self.keepers, 1, ffi.from_buffer(blob), len(blob), now, why, 256)
        return flow, ffi.string(why).decode()

    def set_moved(self, flow: int, moved: bool) -> None:
        lib.coven_flow_set_moved(self.table.table, flow, moved)

    def moved(self) -> list[tuple[str, bool]]:
        """Give names, and whether each was moved."""
        following, records = ffi.new("uint32_t *"), ffi.new("struct coven_flow_record[]", 512)
        given = ffi.from_buffer("struct coven_flow_filter *", FlowFilter().pack())
        n = lib.coven_flow_list(self.table.table, given, 9, following, records, 512)
        found = [FlowName.unpack(bytes(ffi.buffer(records + i))[:44]) for i in range(n)]
        return [(str(name), moved) for name, moved in found]

    def list(self, wanted: FlowFilter | None = None, most: int = 512) -> list[str]:
        following, found = ffi.new("uint32_t *"), []
        records = ffi.new("struct coven_flow_record[]", most)
        while following[0] != lib.COVEN_NO_FLOW:
            given = ffi.from_buffer("struct coven_flow_filter *", (wanted or FlowFilter()).pack())
            n = lib.coven_flow_list(self.table.table, given, 9, following, records, most)
            assert n <= most
            found += [str(FlowName.unpack(bytes(ffi.buffer(records + i))[:44])[0]) for i in range(n)]
        return found


NAME = "udp 10.0.0.1:1000 10.0.0.2:80"


def test_sizes_are_those_of_the_header() -> None:
    assert flows.NAME.size == sizeof("coven_flow_name")
    assert flows.RECORD.size == sizeof("coven_flow_record")
    assert flows.FILTER.size == sizeof("coven_flow_filter")
    assert flows.BLOB.size == sizeof("coven_flow_blob")
    assert flows.BLOB_STATE.size == sizeof("coven_flow_blob_state")
    assert flows.MAX_BLOB == lib.COVEN_FLOW_BLOB_MAX


def test_a_flow_goes_on_in_another_table() -> None:
    here, there = Kept(), Kept()
    for _ in range(5):
        here.count(datagram(1, 2))
    here.count(datagram(2, 1, (80, 1000)))
    blob = here.export(NAME)
    about = flows.describe(blob)
    assert (about["flow"], about["packets"]) == (NAME, [5, 1])
    assert about["states"] == [{"component": "counter", "version": 1, "bytes": BYTES}]
    assert there.put(blob) == (0, "")
    meta = there.table.lookup(datagram(2, 1, (80, 1000)), 6)
    assert (meta.direction, meta.flow_seq) == (1, 1)
    assert there.count(datagram(1, 2), 7) == 7
    assert here.export(NAME) == blob  # a copy changes nothing


def test_the_direction_goes_along() -> None:
    here, there = Kept(), Kept()
    here.count(datagram(2, 1, (80, 1000)))
    there.put(here.export("udp 10.0.0.2:80 10.0.0.1:1000"))
    assert there.list() == ["udp 10.0.0.2:80 10.0.0.1:1000"]
    assert there.table.lookup(datagram(1, 2)).direction == 1


def test_packets_of_a_moved_flow_are_refused_until_it_comes_back() -> None:
    here = Kept()
    assert here.count(datagram()) == 1
    blob = here.export(NAME)
    here.set_moved(0, True)
    meta = ffi.new("struct coven_meta *")
    packet = datagram()
    assert lib.coven_flow_lookup(here.table.table, packet, len(packet), meta, 2) == MOVED
    assert meta.flow == lib.COVEN_NO_FLOW
    assert here.put(blob) == (0, "")
    assert here.count(datagram()) == 2


def test_a_moved_flow_ages() -> None:
    here = Kept()
    here.count(datagram())
    here.set_moved(0, True)
    assert here.table.sweep(1)[0] == [0]


def test_what_cannot_be_imported() -> None:
    here = Kept()
    here.count(datagram())
    blob = here.export(NAME)
    assert here.put(blob) == (-17, "the flow is here already")
    for other, number, words in (
        (Kept(version=2), -71, "version 1 with 24 bytes was exported, 2 with 24"),
        (Kept(size=32), -71, "version 1 with 24 bytes was exported, 1 with 32"),
        (Kept(component=b"other"), -2, "no component counter with flow state"),
    ):
        result, why = other.put(blob)
        assert result == number
        assert words in why
        assert other.table.count == 0
    full = Kept(capacity=2)
    for source in (8, 9):
        full.count(datagram(source))
    assert full.put(blob) == (-28, "the flow table is full")
    assert len(full.list()) == 2


def test_no_part_of_a_blob_can_be_changed_or_missing() -> None:
    here = Kept()
    here.count(datagram())
    blob = here.export(NAME)
    there = Kept()
    for bad in [blob[:cut] for cut in range(len(blob))] + [blob + b"\0"]:
        assert there.put(bad)[0] == -74
    for at in range(len(blob)):
        assert there.put(blob[:at] + bytes([blob[at] ^ 0x40]) + blob[at + 1 :])[0] == -74
    assert there.table.count == 0


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300))
def test_nonsense_with_a_right_sum_is_refused_or_fits(body: bytes) -> None:
    """Who makes a blob can make its sum."""
    there = Kept()
    head = (
        struct.pack("<QHHI", lib.COVEN_FLOW_BLOB_MAGIC, 1, 1, 80 + len(body)) + FlowName.parse(NAME).pack() + bytes(12)
    )
    seed = lib.coven_flow_hash((0, 0), head + bytes(8), 80)
    blob = head + struct.pack("<Q", lib.coven_flow_hash((seed, 0), body, len(body))) + body
    flow, _ = there.put(blob)
    assert flow in (0, -74, -71, -2)
    assert there.table.count == int(flow == 0)


def test_list_by_filter_and_in_pages() -> None:
    here = Kept(1024)
    for n in range(300):
        here.count(datagram(1 + n, 900, (n, 80)))
    here.count(datagram(5, 6, version=6, protocol=TCP))
    here.count(datagram(5, 6, vlans=(7, 8)))
    everything = here.list()
    assert len(everything) == len(set(everything)) == 302
    assert sorted(here.list(most=7)) == sorted(everything)
    assert here.list(FlowFilter.parse({"protocol": "tcp"})) == ["tcp [2001::5]:1000 [2001::6]:80"]
    assert here.list(FlowFilter.parse({"vlan": "7"})) == ["udp 10.0.0.5:1000 10.0.0.6:80 vlan 7.8"]
    assert here.list(FlowFilter.parse({"address": "10.0.0.5", "port": "4"})) == ["udp 10.0.0.5:4 10.0.3.132:80"]
    assert len(here.list(FlowFilter.parse({"address": "10.0.0.0/24"}))) == 256
    assert here.list(FlowFilter.parse({"address": "2001::/16"})) == ["tcp [2001::5]:1000 [2001::6]:80"]


addresses = st.one_of(
    st.tuples(st.ip_addresses(v=4), st.ip_addresses(v=4)), st.tuples(st.ip_addresses(v=6), st.ip_addresses(v=6))
)
ports = st.integers(0, 65535)


@given(addresses, ports, ports, st.integers(1, 255), st.lists(st.integers(0, 4095), max_size=2), st.integers(0, 3))
def test_names_are_read_as_they_are_written(
    ends: tuple[Any, Any], source: int, destination: int, protocol: int, vlans: list[int], more: int
) -> None:
    n_vlans = len(vlans) + more if len(vlans) == 2 else len(vlans)
    name = FlowName(protocol, ends[0], source, ends[1], destination, tuple(vlans), n_vlans)
    assert FlowName.parse(str(name)) == name
    assert FlowName.unpack(name.pack()) == (name, False)


@pytest.mark.parametrize(
    "text",
    ["", "udp", "udp 10.0.0.1:1 10.0.0.2", "udp 10.0.0.1:1 [::1]:2", "udp 10.0.0.1:70000 10.0.0.2:1", "x 1.1.1.1:1 1.1.1.1:2",
     "udp 10.0.0.1:1 10.0.0.2:2 vlan", "udp 10.0.0.1:1 10.0.0.2:2 vlan 5000", "udp 10.0.0.1:1 10.0.0.2:2 vlan 5+1",
     "0 10.0.0.1:1 10.0.0.2:2", "udp 300.0.0.1:1 10.0.0.2:2"],
)  # fmt: skip
def test_what_is_no_name(text: str) -> None:
    with pytest.raises(CovenError) as caught:
        FlowName.parse(text)
    assert caught.value.code == "request.invalid"


@pytest.mark.parametrize("words", [{"port": "x"}, {"address": "nowhere"}, {"vlan": "4096"}, {"protocol": "0"}])
def test_what_is_no_filter(words: dict[str, str]) -> None:
    with pytest.raises(CovenError):
        FlowFilter.parse(words)


@given(st.binary(max_size=200))
def test_anything_can_be_described_or_is_refused(blob: bytes) -> None:
    for data in (blob, FlowName(UDP, *[ipaddress.ip_address("1.2.3.4"), 5] * 2).pack() + os.urandom(40)):
        try:
            flows.describe(data)
        except CovenError as error:
            assert error.code == "flow.invalid"


# ---- kills ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def faulty() -> tuple[Any, Any]:
    """Table and state compiled with fault points, loaded beside the core."""
    path = builds.shared_object([*builds.FLOW_PARTS, "flow_export.c", "state.c", "segment.c"], *builds.FAULTS)
    own = cffi.FFI()
    own.cdef(
        "int64_t coven_flow_import(void *, const void *, uint32_t, const void *, size_t, uint64_t, char *, size_t);"
    )
    return own, own.dlopen(str(path))


def import_until_killed(faulty: tuple[Any, Any], there: Kept, blob: bytes, fault: str) -> bool:
    """Import in a child; whether it was killed on the way."""
    own, code = faulty
    pid = os.fork()
    if pid == 0:
        os.environ["COVEN_FAULT"] = fault
        try:
            why = own.new("char[]", 256)
            table, keepers = (
                own.cast("void *", int(ffi.cast("uintptr_t", there.table.table))),
                own.cast("void *", int(ffi.cast("uintptr_t", there.keepers))),
            )
            code.coven_flow_import(table, keepers, 1, blob, len(blob), 5, why, 256)
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -9


# Before the entry is believed, and while the state is written: the second leaves the entry.
@pytest.mark.parametrize(("fault", "left"), [("worker-flow-index:1", []), ("within-commit:1", [(NAME, True)])])
def test_a_kill_leaves_no_flow_or_one_that_refuses_packets(
    faulty: tuple[Any, Any], fault: str, left: list[tuple[str, bool]]
) -> None:
    here = Kept()
    for _ in range(5):
        here.count(datagram())
    blob = here.export(NAME)
    memory = mmap.mmap(-1, 1 << 20)
    there = Kept(memory=memory)
    assert import_until_killed(faulty, there, blob, fault)
    there.table.recover()
    assert there.moved() == left
    assert there.put(blob)[0] >= 0  # again, now to its end
    assert there.count(datagram()) == 6


def test_a_table_without_kills_takes_the_flow(faulty: tuple[Any, Any]) -> None:
    here, there = Kept(), Kept(memory=mmap.mmap(-1, 1 << 20))
    here.count(datagram())
    assert not import_until_killed(faulty, there, here.export(NAME), "worker-flow-index:2")
    assert there.count(datagram()) == 2
