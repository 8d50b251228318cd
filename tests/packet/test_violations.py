"""A component that writes garbage: the worker counts it, drops what it must, and harms nobody else.

Everything a component can write is tried: entries (handles, lengths, offsets, outputs, verdicts, kinds), ring words, the header
of its segment. The worker must stay alive, keep its books, and find every buffer again at the end.
"""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from coven.dataplane.core import ffi, lib
from coven.supervisor import metrics
from tests.lib import builds
from tests.lib.dataplane import PlayedReplica, Rig, Snapshot, c_component, chain_plan, gen, played

ISOLATIONS = ("shared", "copy")
N = 64


@pytest.fixture(params=["plain", pytest.param("sanitized", marks=pytest.mark.slow)])
def bin_dir(request: pytest.FixtureRequest) -> Path:
    return builds.BIN if request.param == "plain" else builds.executables(*builds.SANITIZERS)


@pytest.fixture(params=ISOLATIONS)
def isolation(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def rig_of(isolation: str, folder: Path, bin_dir: Path, packets: int = N, **more: Any) -> Rig:
    hostile = played("hostile", isolation, outputs=2, ring_size=128, copy_buffers=96, **more)
    plan = chain_plan([gen("in", packets), gen("out")], [hostile], next_of={0: [{"port": 1}, None]}, buffers=512)
    return Rig(plan, folder, bin_dir=bin_dir)


def violations(taken: Snapshot) -> int:
    return taken.component(0, lib.COVEN_COMPONENT_VIOLATIONS)


def kinds(rig: Rig) -> dict[str, int]:
    """Violations by kind; together they are what the component's counter says."""
    found = metrics.violations_of(metrics.violation_cells(rig.segments["stats"].fd), 0)
    assert sum(found.values()) <= violations(rig.snapshot())  # it may go on meanwhile
    return found


def taken_all(hostile: PlayedReplica, n: int) -> list[Any]:
    entries: list[Any] = []
    while len(entries) < n:
        entries += hostile.take()
    return entries


def end_well(rig: Rig) -> None:
    """After the component's death nothing of it is left."""
    rig.detach(0)
    end = rig.snapshot().check()
    assert (end.held, end.free, end.quarantine) == (0, 512, 0)
    assert rig.stop() == 0, rig.log.read_text()


def change(**values: int) -> Callable[[Any], None]:
    def apply(entry: Any) -> None:
        for name, value in values.items():
            setattr(entry, name, value)

    return apply


WRONG = {
    "output": change(output=2),
    "output 255": change(output=255),
    "no length": change(length=0),
    "length beyond the buffer": change(length=1800),
    "length 65535": change(length=65535),
    "offset beyond the buffer": change(offset=2047),
    "offset 65535": change(offset=65535),
    "offset and length that overflow": change(offset=65535, length=65535),
    "verdict 4": change(verdict=4),
    "verdict 255": change(verdict=255),
}


@pytest.mark.parametrize("what", WRONG, ids=lambda name: name.replace(" ", "-"))
def test_entries_that_are_wrong_drop_their_packet(what: str, isolation: str, tmp_path: Path, bin_dir: Path) -> None:
    with rig_of(isolation, tmp_path, bin_dir) as rig:
        rig.start()
        hostile = rig.stand_in("hostile")
        for burst in (hostile.take(), hostile.take()):
            for entry in burst:
                WRONG[what](entry)
            hostile.give(burst)
        end = rig.wait(lambda s: s.held == 0)
        assert end.drops == {("component hostile", "component-violation"): N}
        assert (violations(end), end.tx, end.free) == (N, 0, 512)
        kind = {"output": "output", "verdict": "verdict"}.get(what.split()[0], "bounds")
        assert kinds(rig) == {kind: N}


@pytest.mark.parametrize("beyond", [0, 416, 0x7FFFFFFF, 0xFFFFFFFF, 0xFFFFFFFE])
def test_handles_that_do_not_exist(beyond: int, isolation: str, tmp_path: Path, bin_dir: Path) -> None:
    handle = beyond if beyond > 416 else {"copy": 96, "shared": 512}[isolation] + beyond
    with rig_of(isolation, tmp_path, bin_dir) as rig:
        rig.start()
        hostile = rig.stand_in("hostile")
        entries = taken_all(hostile, N)
        honest = [int(entry.handle) for entry in entries[:32]]
        for entry in entries[:32]:
            entry.handle = handle
        hostile.give(entries[:32])
        found = rig.wait(lambda s: violations(s) == 32)
        assert (found.held, found.dropped, found.tx) == (N, 0, 0), "no packet may suffer for a handle that names none"
        assert kinds(rig) == {"handle-range": 32}
        for entry, right in zip(entries[:32], honest, strict=True):
            entry.handle = right
        hostile.give(entries[:32])
        assert rig.wait(lambda s: s.tx == 32).held == N - 32
        end_well(rig)


def test_the_same_packet_twice(isolation: str, tmp_path: Path, bin_dir: Path) -> None:
    """In one burst and again later: it is forwarded once."""
    with rig_of(isolation, tmp_path, bin_dir) as rig:
        rig.start()
        hostile = rig.stand_in("hostile")
        entries = taken_all(hostile, N)
        hostile.give([entries[0]] * 32)
        assert rig.wait(lambda s: violations(s) == 31).tx == 1
        hostile.give([entries[0], entries[1], entries[1]])
        end = rig.wait(lambda s: violations(s) == 33)
        assert (end.tx, end.held, end.dropped) == (2, N - 2, 0)
        assert kinds(rig) == {"handle-twice" if isolation == "copy" else "handle-foreign": 33}
        end_well(rig)


def test_buffers_of_others(tmp_path: Path, bin_dir: Path) -> None:
    """A `shared` component names every buffer of the pool: only its own packets move."""
    with rig_of("shared", tmp_path, bin_dir) as rig:
        rig.start()
        hostile = rig.stand_in("hostile")
        entries = taken_all(hostile, N)
        own = {int(entry.handle) for entry in entries}
        for begin in range(0, 512, 32):
            burst = [entries[0]] * 32
            made = []
            for handle, entry in enumerate(burst, begin):
                copy = ffi.new("struct coven_meta *", entry[0])
                copy.handle = handle
                made.append(copy)
            hostile.give(made)
            rig.wait(lambda s, upto=begin + 32: s.tx + violations(s) == upto)  # type: ignore[misc]
        end = rig.snapshot().check()
        assert (end.tx, violations(end), end.held) == (len(own), 512 - len(own), 0)
        assert end.free == 512
        assert kinds(rig) == {"handle-foreign": 512 - len(own)}


def test_ends_of_flows_that_never_were(isolation: str, tmp_path: Path, bin_dir: Path) -> None:
    with rig_of(isolation, tmp_path, bin_dir) as rig:
        rig.start()
        hostile = rig.stand_in("hostile")
        entries = taken_all(hostile, N)
        for entry in entries[:32]:
            entry.kind, entry.flow, entry.flow_epoch = lib.COVEN_ENTRY_FLOW_REMOVED, 3, 1
        hostile.give(entries[:32])
        assert rig.wait(lambda s: violations(s) == 32).held == N
        assert kinds(rig) == {"flow-answer": 32}
        end_well(rig)


@pytest.mark.parametrize("word", ["out.tail", "in.head", "out.head", "in.tail", "sleeping"])
@pytest.mark.parametrize("value", [0x80000000, 0xFFFFFFFF, 100000])
def test_ring_words_that_cannot_be(word: str, value: int, isolation: str, tmp_path: Path, bin_dir: Path) -> None:
    with rig_of(isolation, tmp_path, bin_dir) as rig:
        rig.start()
        hostile = rig.stand_in("hostile")
        taken_all(hostile, N)
        head = hostile.head
        if word == "sleeping":
            getattr(head, "in").sleeping = value
            head.out.sleeping = value
        else:
            ring = head.out if word.startswith("out") else getattr(head, "in")
            setattr(ring, word.split(".")[1], value)
        if word == "out.tail":
            rig.wait(lambda s: violations(s) > 0)
            assert set(kinds(rig)) == {"ring-words"}
        taken = rig.snapshot().check()
        assert (taken.held, taken.tx) == (N, 0)
        end_well(rig)


def test_geometry_that_is_rewritten(isolation: str, tmp_path: Path, bin_dir: Path) -> None:
    """The worker takes sizes and offsets from the plan, so a header full of nonsense changes nothing."""
    with rig_of(isolation, tmp_path, bin_dir) as rig:
        rig.start()
        hostile = rig.stand_in("hostile")
        entries = taken_all(hostile, N)
        head = hostile.head
        head.ring_size, head.n_buffers, head.buffer_bytes, head.data_offset = 1 << 31, 0xFFFFFFFF, 1, 0xFFFFFFF0
        head.in_meta = head.in_ext = head.out_meta = head.out_ext = 2**64 - 64
        head.header.bytes, head.header.magic = 0, 0
        hostile.give(entries[:32])
        hostile.give(entries[32:])
        assert rig.wait(lambda s: s.tx == N).dropped == 0
        rig.kill_worker()
        rig.restart_worker()
        end_well(rig)


def test_headers_full_of_nonsense_do_not_stop_the_next_worker(isolation: str, tmp_path: Path, bin_dir: Path) -> None:
    """Pool, replica and state segment: a worker that starts asks the plan, and packets go on."""
    with rig_of(isolation, tmp_path, bin_dir, packets=2**62, state={"bytes": 8, "version": 1}) as rig:
        rig.start()
        hostile = rig.stand_in("hostile")
        hostile.give(hostile.take())
        headers = [(hostile.segment, lib.COVEN_SEGMENT_REPLICA), (rig.segments["state-hostile"], lib.COVEN_SEGMENT_STATE)]
        if isolation == "shared":
            headers.append((rig.segments["pool"], lib.COVEN_SEGMENT_POOL))
        for segment, _ in headers:
            ffi.memmove(segment.struct("coven_segment_header"), b"\xff" * 128, 128)
        rig.kill_worker()
        rig.restart_worker()
        before = rig.snapshot().check()
        while rig.snapshot().check().tx < before.tx + 64:
            hostile.give(hostile.take())
        rig.pause(20)
        end_well(rig)


def test_a_component_that_gives_nothing_back_leaves_buffers_to_others(
    isolation: str, tmp_path: Path, bin_dir: Path
) -> None:
    """It takes all it is given; what is taken away from it for its hold limit it may still write to."""
    hostile = played("hostile", isolation, ring_size=128, hold={"packets": 8, "ms": 5})
    plan = chain_plan([gen("in", 2**62, rate=200_000), gen("out")], [hostile], buffers=512)
    other = gen("in-b", 2**62, rate=2000)
    plan["ports"] += [{**other, "path": 1, "first": {"port": 1}}]
    plan["paths"].append({"name": "other", "ingress": "in-b", "spi": 0})
    with Rig(plan, tmp_path, bin_dir=bin_dir) as rig:
        rig.start()
        taker = rig.stand_in("hostile")

        def took_enough(now: Snapshot) -> bool:
            while taker.rx.ready():
                taker.take()
            return now.drop("hold-limit") + now.drop("hold-timeout") > 100 and now.drop("ring-full") > 512

        before = rig.wait(took_enough, "it is given no more")
        assert before.free > 0
        rig.wait(lambda s: s.tx > before.tx + 100, "the other path moves on")
        rig.kill_worker()
        rig.restart_worker()
        before = rig.snapshot()
        assert before.free > 0
        rig.wait(lambda s: s.tx > before.tx + 100, "so it does with the next worker")
        rig.pause(20)
        end_well(rig)


def test_children_that_write_on_after_the_death(isolation: str, tmp_path: Path, bin_dir: Path) -> None:
    """Its out-ring never becomes empty; the sweep takes what one ring has, and no more."""
    source = Path(__file__).parent / "components" / "orphan.c"
    plan = chain_plan([gen("in", 0), gen("out")], [c_component("orphan", source, isolation, ring_size=128)], buffers=512)
    with Rig(plan, tmp_path, bin_dir=bin_dir) as rig:
        rig.start()
        children = [int(pid) for pid in (tmp_path / "component-0.log").read_text().split()[1:]]
        try:
            rig.wait(lambda s: violations(s) > 0)
            rig.kill_component()
            assert rig.worker is not None
            os.kill(rig.worker.pid, signal.SIGSTOP)
            before = violations(rig.memory())
            sweep = rig.request(lib.COVEN_CONTROL_DETACH, 0, (1,), wait=False)
            os.kill(rig.worker.pid, signal.SIGCONT)
            rig.answer(sweep.seq)
            # it may have 64 turns of the loop, of four bursts each, before it looks at its socket
            allowed = 64 * 4 * lib.COVEN_BURST + 2 * 128
            assert violations(rig.snapshot().check()) - before <= allowed
        finally:
            for child in children:
                os.kill(child, signal.SIGKILL)
        end = rig.snapshot().check()
        assert (end.held, end.free, end.quarantine) == (0, 512, 0)
        assert rig.stop() == 0, rig.log.read_text()


def test_what_components_may_not_change(isolation: str, tmp_path: Path, bin_dir: Path) -> None:
    """Port, path, hop, flow are told, not asked: a changed hop does not send a packet elsewhere."""
    with rig_of(isolation, tmp_path, bin_dir) as rig:
        rig.start()
        hostile = rig.stand_in("hostile")
        entries = taken_all(hostile, N)
        for entry in entries:
            entry.port, entry.path, entry.hop, entry.flow = 15, 127, 255, 0xFFFFFF
            entry.direction, entry.flow_epoch, entry.timestamp_ns, entry.random = 255, 9, 0, 0
        hostile.give(entries[:32])
        hostile.give(entries[32:])
        end = rig.wait(lambda s: s.tx == N)
        assert (end.dropped, violations(end)) == (0, 0)


def test_a_late_return_after_the_hold_time(isolation: str, tmp_path: Path, bin_dir: Path) -> None:
    """The packet was counted as dropped; its buffer comes free with the return, and nothing is counted twice."""
    with rig_of(isolation, tmp_path, bin_dir, hold={"packets": 96, "ms": 20}) as rig:
        rig.start()
        hostile = rig.stand_in("hostile")
        entries = taken_all(hostile, N)
        out = rig.wait(lambda s: s.dropped == N)
        assert out.drops == {("component hostile", "hold-timeout"): N}
        assert out.quarantine == (N if isolation == "shared" else 0)
        hostile.give(entries[:32])
        hostile.give(entries[32:])
        end = rig.wait(lambda s: s.quarantine == 0)
        assert (end.free, end.tx, end.dropped) == (512, 0, N)
        hostile.give(entries[:32])
        assert rig.wait(lambda s: violations(s) == 32).free == 512


def test_a_late_return_to_a_successor(tmp_path: Path, bin_dir: Path) -> None:
    """Copy: what the component still has is not given out again by a new worker."""
    with rig_of("copy", tmp_path, bin_dir, packets=2**62, hold={"packets": 96, "ms": 200}) as rig:
        rig.start()
        hostile = rig.stand_in("hostile")
        first = hostile.take()
        rig.wait(lambda s: s.dropped >= len(first))
        rig.kill_worker()
        rig.restart_worker()
        kept = {int(entry.handle) for entry in first}
        for _ in range(20):
            fresh = hostile.take()
            assert not kept & {int(entry.handle) for entry in fresh}
            hostile.give(fresh)
        assert rig.wait(lambda s: s.tx > 96).drop("hold-timeout") == 32


def test_a_late_return_while_the_worker_dies(tmp_path: Path) -> None:
    """Copy: the successor reads the same late entries again; the buffers in them must not have new packets by then."""
    bin_dir = builds.executables(*builds.FAULTS)
    hostile = played("hostile", "copy", outputs=2, ring_size=128, copy_buffers=96, hold={"packets": 96, "ms": 20})
    plan = chain_plan([gen("in", N), gen("out")], [hostile], next_of={0: [{"port": 1}, None]}, buffers=512)
    with Rig(plan, tmp_path, bin_dir=bin_dir, env={"COVEN_FAULT": "worker-ring-taken:1"}) as rig:
        rig.start()
        hostile_end = rig.stand_in("hostile")
        entries = taken_all(hostile_end, N)
        rig.wait(lambda s: s.drop("hold-timeout") == N)
        hostile_end.give(entries[:32])
        assert rig.wait_worker_death() == -9
        rig.restart_worker()
        hostile_end.give(entries[32:])
        hostile_end.give(entries[:1])
        end = rig.wait(lambda s: violations(s) >= 1)
        assert (violations(end), end.tx, end.dropped, end.free) == (1, 0, N, 512)
        assert kinds(rig) == {"handle-twice": 1} or kinds(rig) == {"handle-foreign": 1}


def test_the_pool_header_is_not_believed_twice(tmp_path: Path, bin_dir: Path) -> None:
    with rig_of("shared", tmp_path, bin_dir) as rig:
        rig.start()
        hostile = rig.stand_in("hostile")
        entries = taken_all(hostile, N)
        pool = rig.segments["pool"].struct("coven_pool")
        pool.data_offset, pool.n_buffers, pool.buffer_bytes = 0xFFFFFFF0, 1 << 31, 1 << 31
        hostile.give(entries[:32])
        assert rig.wait(lambda s: s.tx == 32).dropped == 0


@pytest.mark.parametrize("seed", range(8))
def test_random_garbage(seed: int, isolation: str, tmp_path: Path, bin_dir: Path) -> None:
    """Bytes at random in entries and ring words, while packets keep coming."""
    chance = random.Random(seed)
    with rig_of(isolation, tmp_path, bin_dir, packets=2**62, hold={"packets": 64, "ms": 5}) as rig:
        rig.start()
        hostile = rig.stand_in("hostile")
        view = memoryview(hostile.segment.memory)
        begin, end = hostile.head.out_meta, hostile.head.out_ext
        for _ in range(150):
            for _ in range(chance.randrange(40)):
                at = chance.randrange(begin, end)
                view[at] = chance.randrange(256)
            getattr(hostile.head, "in").head = chance.choice([0, chance.getrandbits(32), getattr(hostile.head, "in").tail])
            hostile.head.out.tail = chance.choice([(hostile.head.out.head + chance.randrange(129)) & 0xFFFFFFFF, chance.getrandbits(32)])
            rig.snapshot().check()
        rig.pause(20)
        del view
        end_well(rig)
