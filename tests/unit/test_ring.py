"""Rings: nothing is lost, doubled or reordered, and a peer that lies finds no way out of the arrays."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coven.dataplane.core import Ring, ffi
from tests.lib import builds

SIZE = 16
U32 = st.integers(0, 2**32 - 1)


class Memory:
    """A ring in ordinary memory, with both its sides."""

    def __init__(self, begin: int = 0) -> None:
        self.ring = ffi.new("struct coven_ring *")
        self.ring.tail = self.ring.head = begin
        self.entry = ffi.new("struct coven_entry[]", SIZE)
        self.meta = ffi.new("struct coven_meta[]", SIZE)
        self.ext = ffi.new("struct coven_meta_ext[]", SIZE)
        self.producer = Ring(self.ring, self.entry, self.meta, self.ext, SIZE, begin)
        self.consumer = Ring(self.ring, self.entry, self.meta, self.ext, SIZE, begin)
        self.scratch = ffi.new("struct coven_meta[]", 32)

    def put(self, values: list[int]) -> int:
        for i, value in enumerate(values):
            self.scratch[i].handle = value
        return self.producer.enqueue_burst(self.scratch, len(values))

    def get(self, n: int) -> list[int]:
        got = self.consumer.dequeue_burst(self.scratch, n)
        return [self.scratch[i].handle for i in range(got)]


@given(begin=st.sampled_from([0, 7, 2**32 - 3, 2**31 - 1]), steps=st.lists(st.tuples(st.booleans(), st.integers(0, 32)), max_size=60))
def test_a_ring_is_a_queue(begin: int, steps: list[tuple[bool, int]]) -> None:
    memory, model, next_value = Memory(begin), [], 0
    for is_put, n in steps:
        if is_put:
            values = list(range(next_value, next_value + n))
            taken = memory.put(values)
            assert taken == min(n, SIZE - len(model)), "as many as there is room for"
            model += values[:taken]
            next_value += taken
        else:
            assert memory.get(n) == model[:n]
            del model[: min(n, len(model))]
        assert memory.consumer.ready() == len(model)
        assert memory.producer.room(SIZE) == SIZE - len(model)
    assert memory.producer.broken == memory.consumer.broken == 0


@given(words=st.lists(st.tuples(U32, U32), max_size=30))
def test_a_peer_that_lies(words: list[tuple[int, int]]) -> None:
    """Whatever stands in the shared words, a side counts at most its size and stays within the arrays."""
    memory = Memory()
    for tail, head in words:
        memory.ring.tail, memory.ring.head = tail, head
        before = memory.consumer.position
        got = len(memory.get(32))
        possible = (tail - before) % 2**32
        assert got == (min(possible, 32) if possible <= SIZE else 0)
        assert memory.producer.room(SIZE) <= SIZE
        assert memory.put([1] * 32) <= SIZE


def test_sleeping_is_refused_when_there_is_something_to_read() -> None:
    memory = Memory()
    assert memory.consumer.sleep()
    assert memory.ring.sleeping == 1
    memory.consumer.awake()
    memory.put([1])
    assert not memory.consumer.sleep()
    assert memory.ring.sleeping == 0


@pytest.mark.parametrize("flags", [(), builds.SANITIZERS], ids=["plain", "sanitized"])
def test_between_two_processes(flags: tuple[str, ...]) -> None:
    source = Path(__file__).parent / "c" / "ring_two_processes.c"
    program = builds.program(source, ["ring.c"], *flags)
    done = subprocess.run([program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[1]) > 0, "the consumer never slept"
