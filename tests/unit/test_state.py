"""Flow state slots: halves, commit words, and kills between any two stores of a commit."""

from __future__ import annotations

import mmap
import os
import struct
from typing import Any

import cffi
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coven.dataplane.build import header_declarations
from coven.dataplane.core import ffi, lib
from tests.lib import builds

N_SLOTS, STATE_BYTES, VERSION = 4, 20, 3
SLOTS_AT = 128 + 64 * 8


def segment() -> mmap.mmap:
    """Give a state segment of N_SLOTS slots with the metric cells of one replica."""
    slot_bytes = lib.coven_state_slot_bytes(STATE_BYTES)
    memory = mmap.mmap(-1, 8192)
    head = ffi.cast("struct coven_state *", ffi.from_buffer(memory))
    head.header.magic, head.header.abi_version = lib.COVEN_MAGIC, lib.COVEN_ABI_VERSION
    head.header.kind, head.header.bytes = lib.COVEN_SEGMENT_STATE, len(memory)
    head.n_slots, head.slot_bytes, head.half_bytes = N_SLOTS, slot_bytes, lib.coven_state_half_bytes(STATE_BYTES)
    head.version, head.slots_offset, head.metrics_offset = VERSION, SLOTS_AT, 128
    head.n_replicas, head.n_metrics = 1, 2
    return memory


class State:
    """The calls of state.h on one segment, by way of one build of them."""

    def __init__(self, memory: mmap.mmap, own: Any = ffi, code: Any = lib) -> None:
        self.memory, self.own, self.code = memory, own, code
        self.view = own.new("struct coven_state_view *")
        assert code.coven_state_view_open(self.view, own.from_buffer(memory), len(memory)) == 0
        self.burst = own.new("struct coven_state_burst *")
        self.index = own.new("uint16_t *")

    def begin(self, flow: int, epoch: int) -> tuple[Any, int, bool] | None:
        """Give the shadow half, the word and whether it is new."""
        shadow = self.code.coven_state_begin(self.view, self.burst, flow, epoch, self.index)
        if not shadow:
            return None
        opened = self.burst.open[self.index[0]]
        return self.own.buffer(shadow, self.view.half_bytes), int(opened.word), bool(opened.fresh)

    def commit(self) -> None:
        self.code.coven_state_commit(self.view, self.burst)

    def end(self, flow: int, epoch: int) -> bytes | None:
        half = self.code.coven_state_end(self.view, self.burst, flow, epoch)
        return bytes(self.own.buffer(half, self.view.half_bytes)) if half else None

    def current(self, flow: int, epoch: int) -> bytes | None:
        half = self.code.coven_state_current(self.view, flow, epoch)
        return bytes(self.own.buffer(half, self.view.half_bytes)) if half else None

    def is_committed(self, flow: int, epoch: int, word: int) -> bool:
        return bool(self.code.coven_state_committed(self.view, flow, epoch, word))


def test_sizes() -> None:
    assert lib.coven_state_half_bytes(20) == 24
    assert lib.coven_state_slot_bytes(20) == 128
    assert lib.coven_state_slot_bytes(16) == 64


def test_what_is_written_shows_with_the_commit() -> None:
    state = State(segment())
    opened = state.begin(1, 7)
    assert opened is not None
    half, word, is_new = opened
    assert (bytes(half), is_new) == (bytes(24), True)
    half[:3] = b"one"
    assert state.current(1, 7) is None
    assert not state.is_committed(1, 7, word)
    state.commit()
    assert state.current(1, 7) == b"one".ljust(24, b"\0")
    assert state.is_committed(1, 7, word)
    assert not state.is_committed(1, 7, word + 1)
    assert not state.is_committed(1, 8, word)
    assert not state.is_committed(1, 7, 0)


def test_a_burst_shares_the_shadow() -> None:
    state = State(segment())
    first, second = state.begin(1, 7), state.begin(1, 7)
    assert first is not None
    assert second is not None
    first[0][0] = b"x"
    assert second[0][0] == b"x"
    assert first[1] == second[1]
    other = state.begin(2, 7)
    assert other is not None
    assert other[0][0] == b"\0"


@pytest.mark.parametrize("flow", [N_SLOTS, 2**31, lib.COVEN_NO_FLOW])
def test_a_flow_outside_has_no_state(flow: int) -> None:
    state = State(segment())
    assert state.begin(flow, 1) is None
    assert state.current(flow, 1) is None
    assert state.end(flow, 1) is None
    assert not state.is_committed(flow, 1, 1)
    assert state.begin(0, 0) is None


def test_an_ended_flow_is_gone_after_the_commit() -> None:
    state = State(segment())
    opened = state.begin(1, 7)
    assert opened is not None
    opened[0][0] = b"x"
    ending = state.end(1, 7)
    assert ending is not None
    assert ending[:1] == b"x"
    state.commit()
    assert state.current(1, 7) is None
    again = state.begin(1, 7)
    assert again is not None
    assert again[2]
    assert bytes(again[0]) == bytes(24)


def test_the_word_is_never_zero() -> None:
    memory = segment()
    state = State(memory)
    words = []
    for last in (0xFFFFFFFE, 0xFFFFFFFF):
        ffi.cast("struct coven_slot *", ffi.from_buffer(memory) + SLOTS_AT).commit = last
        opened = state.begin(0, 1)
        assert opened is not None
        opened[0][0] = b"%d" % len(words)
        words.append(opened[1])
        state.commit()
        assert state.is_committed(0, 1, words[-1])
        current = state.current(0, 1)
        assert current is not None
        assert current[:1] == b"%d" % (len(words) - 1)
    assert words == [0xFFFFFFFF, 2]


def test_another_version_is_another_layout() -> None:
    memory = segment()
    state = State(memory)
    state.begin(1, 7)
    state.commit()
    ffi.cast("struct coven_state *", ffi.from_buffer(memory)).version = VERSION + 1
    newer = State(memory)
    assert newer.current(1, 7) is None
    opened = newer.begin(1, 7)
    assert opened is not None
    assert opened[2]


BAD = [
    ("n_slots", 2**31), ("slot_bytes", 64), ("slot_bytes", 120), ("half_bytes", 0), ("half_bytes", 9), ("half_bytes", 2**31),
    ("slots_offset", 0), ("slots_offset", 8192), ("slots_offset", 2**64 - 64), ("metrics_offset", 4), ("metrics_offset", 8000),
    ("n_replicas", 2**32 - 1), ("n_metrics", 65), ("version", 70000),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), BAD)
def test_a_header_that_does_not_fit_is_refused(name: str, value: int) -> None:
    memory = segment()
    setattr(ffi.cast("struct coven_state *", ffi.from_buffer(memory)), name, value)
    assert lib.coven_state_view_open(ffi.new("struct coven_state_view *"), ffi.from_buffer(memory), 8192) == -34


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["begin", "commit", "end", "abort"]), st.integers(0, 3), st.integers(1, 2))))
def test_against_a_model(ops: list[tuple[str, int, int]]) -> None:
    state = State(segment())
    committed: dict[int, tuple[int, int]] = {}  # flow: epoch, number
    pending: dict[tuple[int, int], int] = {}
    ended: list[tuple[int, int]] = []
    for number, (op, flow, epoch) in enumerate(ops, 1):
        if op == "begin" and (flow, 3 - epoch) not in pending and len(ended) < 20:
            opened = state.begin(flow, epoch)
            assert opened is not None
            was = pending.get((flow, epoch))
            if was is None:
                was = committed[flow][1] if committed.get(flow, (0, 0))[0] == epoch else 0
            assert struct.unpack_from("<Q", opened[0])[0] == was
            opened[0][:8] = struct.pack("<Q", number)
            pending[flow, epoch] = number
        elif op == "end" and len(ended) < 20:
            state.end(flow, epoch)
            ended.append((flow, epoch))
        elif op == "commit":
            state.commit()
            committed |= {f: (e, n) for (f, e), n in pending.items()}
            for f, e in ended:
                if committed.get(f, (0, 0))[0] == e:
                    del committed[f]
            pending, ended = {}, []
        elif op == "abort":  # the process died; another one begins
            state.burst = ffi.new("struct coven_state_burst *")
            pending, ended = {}, []
        for f in range(N_SLOTS):
            for e in (1, 2):
                current = state.current(f, e)
                wanted = committed[f][1] if f in committed and committed[f][0] == e else None
                assert (None if current is None else struct.unpack_from("<Q", current)[0]) == wanted


@pytest.fixture(scope="module")
def faulty() -> tuple[Any, Any]:
    """The slots compiled with fault points, loaded beside the core."""
    path = builds.shared_object(["state.c"], *builds.FAULTS)
    own = cffi.FFI()
    own.cdef(header_declarations(builds.INCLUDE / "coven" / "abi.h") + header_declarations(builds.HERE / "state.h"))
    return own, own.dlopen(str(path))


@pytest.mark.parametrize("nth", range(1, 13))
@pytest.mark.parametrize("point", ["within-commit", "after-commit"])
def test_a_kill_within_a_commit_leaves_one_state(faulty: tuple[Any, Any], point: str, nth: int) -> None:
    memory, log = segment(), mmap.mmap(-1, 4096)
    pid = os.fork()
    if pid == 0:
        os.environ["COVEN_FAULT"] = f"{point}:{nth}"
        try:
            state = State(memory, *faulty)
            for number in range(1, 100):  # an epoch of its own for every third turn
                flow, epoch = number % 2, number // 3 + 1
                opened = state.begin(flow, epoch)
                assert opened is not None
                half, word, _ = opened
                half[:] = struct.pack("<QQQ", number, number ^ epoch, epoch)
                log[:16] = struct.pack("<IIII", flow, epoch, word, number)
                state.commit()
                log[64 + 16 * flow : 80 + 16 * flow] = struct.pack("<QII", number, epoch, word)
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -9

    state = State(memory)
    flow, epoch, word, number = struct.unpack("<IIII", log[:16])
    for f in range(2):
        last, last_epoch, last_word = struct.unpack_from("<QII", log, 64 + 16 * f)
        current = state.current(f, epoch if f == flow else last_epoch)
        if f == flow and state.is_committed(f, epoch, word):
            assert current == struct.pack("<QQQ", number, number ^ epoch, epoch)
        elif last and (f != flow or last_epoch == epoch):
            assert current == struct.pack("<QQQ", last, last ^ last_epoch, last_epoch)
            assert state.is_committed(f, last_epoch, last_word)
        else:
            assert current is None
