"""Packets through a real worker: in at a port, along the path, out at a port or dropped for a reason."""

from __future__ import annotations

import select
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from coven.dataplane.core import ffi, lib
from coven.supervisor import metrics
from tests.lib import builds
from tests.lib.dataplane import Rig, c_component, chain_plan, gen, pcap, played
from tests.lib.parts import NULL, capture, counter, frame, frames_of, obedient

ISOLATIONS = ("fused", "shared", "copy")
N = 20000


@pytest.fixture(params=[pytest.param("plain"), pytest.param("sanitized", marks=pytest.mark.slow)])
def bin_dir(request: pytest.FixtureRequest) -> Path:
    """Every test here runs with the ordinary executables and with AddressSanitizer and UBSan."""
    return builds.BIN if request.param == "plain" else builds.executables(*builds.SANITIZERS)


@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_generated_packets_reach_the_sink(isolation: str, tmp_path: Path, bin_dir: Path) -> None:
    plan = chain_plan([gen("in", N), gen("out")], [c_component("nothing", NULL, isolation)])
    with Rig(plan, tmp_path, bin_dir=bin_dir) as rig:
        rig.start()
        end = rig.wait(lambda s: s.tx == N, "all sent")
        assert (end.rx, end.dropped, end.held, end.free) == (N, 0, 0, 2048)
        assert end.component(0, lib.COVEN_COMPONENT_IN_PKTS) == end.component(0, lib.COVEN_COMPONENT_OUT_PKTS) == N
        assert rig.stop() == 0, rig.log.read_text()


def test_time_is_counted_at_each_fused_component(tmp_path: Path, bin_dir: Path) -> None:
    """One burst in eight is timed, at random; there are several hundred."""
    plan = chain_plan([gen("in", N), gen("out")], [c_component("nothing", NULL), obedient("grow")])
    with Rig(plan, tmp_path, bin_dir=bin_dir) as rig:
        rig.start()
        end = rig.wait(lambda s: s.tx == N)
        assert all(end.component(i, lib.COVEN_COMPONENT_CYCLES) > 0 for i in (0, 1))


def test_a_path_without_components(tmp_path: Path, bin_dir: Path) -> None:
    with Rig(chain_plan([gen("in", N, size="imix"), gen("out")], []), tmp_path, bin_dir=bin_dir) as rig:
        rig.start()
        end = rig.wait(lambda s: s.tx == N)
        assert end.port(0, lib.COVEN_PORT_RX_BYTES) == end.port(1, lib.COVEN_PORT_TX_BYTES) > 0
        assert rig.stop() == 0


@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_a_capture_comes_out_as_it_went_in(isolation: str, tmp_path: Path, bin_dir: Path) -> None:
    frames = [frame(i, 60 + 11 * (i % 130)) for i in range(3000)] + [b"\x01", b"short", bytes(13), bytes(14)]
    read = capture(tmp_path / "in.pcap", frames)
    plan = chain_plan([pcap("in", read), pcap("out", write=tmp_path / "out.pcap")],
                      [c_component("one", NULL, isolation), c_component("two", NULL, isolation)])  # fmt: skip
    with Rig(plan, tmp_path, bin_dir=bin_dir) as rig:
        rig.start()
        end = rig.wait(lambda s: s.tx == len(frames))
        assert end.dropped == 0
        assert frames_of(tmp_path / "out.pcap") == frames_of(read)


def test_branches_meet_again(tmp_path: Path, bin_dir: Path) -> None:
    """Three outputs: one straight to the join, one through another component, one that leads nowhere."""
    parts = [obedient("branch", outputs=3), c_component("detour", NULL), c_component("join", NULL)]
    plan = chain_plan([gen("in", N), gen("out")], parts,
                      next_of={0: [{"hop": 1}, {"hop": 2}, None], 1: [{"hop": 2}], 2: [{"port": 1}]})  # fmt: skip
    with Rig(plan, tmp_path, bin_dir=bin_dir) as rig:
        rig.start()
        end = rig.wait(lambda s: s.rx == N)
        nowhere = end.drops.pop(("component obedient", "no-output"))
        assert end.drops == {}
        assert abs(nowhere - N // 3) <= 1
        assert end.tx == N - nowhere
        assert end.component(1, lib.COVEN_COMPONENT_IN_PKTS) == N // 3
        assert end.component(2, lib.COVEN_COMPONENT_IN_PKTS) == end.tx
        assert rig.stop() == 0


def test_a_branch_between_isolated_components(tmp_path: Path, bin_dir: Path) -> None:
    parts = [obedient("branch", "shared", outputs=3), c_component("left", NULL, "copy"), c_component("right", NULL, "shared")]
    plan = chain_plan([gen("in", N), gen("out")], parts,
                      next_of={0: [{"hop": 1}, {"hop": 2}, {"port": 1}], 1: [{"port": 1}], 2: [{"port": 1}]})  # fmt: skip
    with Rig(plan, tmp_path, bin_dir=bin_dir) as rig:
        rig.start()
        assert rig.wait(lambda s: s.tx == N).dropped == 0


def test_latency_is_from_rx_to_tx(tmp_path: Path, bin_dir: Path) -> None:
    """The one packet waits in a component; what is told of it lies between what the test saw of that and of the whole."""
    plan = chain_plan([gen("in", 1), gen("out")], [played("slow", "shared")])
    with Rig(plan, tmp_path, bin_dir=bin_dir) as rig:
        before = time.monotonic_ns()
        rig.start()
        replica = rig.stand_in("slow")
        entries = replica.take()
        taken = time.monotonic_ns()
        rig.snapshot()
        waited = time.monotonic_ns() - taken
        replica.give(entries)
        rig.wait(lambda s: s.tx == 1)
        whole = time.monotonic_ns() - before
        counts = metrics.from_memory(rig.segments["stats"].fd, rig.segments["ledger"].fd)["latency"]
        assert sum(counts) == 1
        bucket = counts.index(1)
        assert bucket < lib.COVEN_LATENCY_BUCKETS, "not that of the path"
        assert metrics.bucket_begin_ns(bucket) <= whole
        assert metrics.bucket_begin_ns(bucket + 1) > waited
        begin, end = (metrics.bucket_begin_ns(b) / 1000 for b in (bucket, bucket + 1))
        assert begin < metrics.latency(counts[:lib.COVEN_LATENCY_BUCKETS])["p50"] < end


def test_buckets_of_latency_are_quarters_of_powers_of_two() -> None:
    begins = [metrics.bucket_begin_ns(bucket) for bucket in range(lib.COVEN_LATENCY_BUCKETS)]
    assert begins[:7] == [0, 64, 80, 96, 112, 128, 160]
    assert begins == sorted(begins)
    assert metrics.latency([0] * 10) == {"packets": 0, "p50": None, "p99": None, "p999": None}


def test_packets_of_a_capture_have_no_latency(tmp_path: Path, bin_dir: Path) -> None:
    read = capture(tmp_path / "in.pcap", [frame(i, 100) for i in range(200)])
    plan = chain_plan([pcap("in", read), pcap("out", write=tmp_path / "out.pcap")], [])
    with Rig(plan, tmp_path, bin_dir=bin_dir) as rig:
        rig.start()
        rig.wait(lambda s: s.tx == 200)
        assert sum(metrics.from_memory(rig.segments["stats"].fd, rig.segments["ledger"].fd)["latency"]) == 0


def test_no_path_begins_at_the_port(tmp_path: Path, bin_dir: Path) -> None:
    plan = chain_plan([gen("in", N), gen("out")], [])
    plan["ports"][0] |= {"path": None, "first": None}
    with Rig(plan, tmp_path, bin_dir=bin_dir) as rig:
        rig.start()
        assert rig.wait(lambda s: s.rx == N).drops == {("port in", "no-path"): N}


@pytest.mark.parametrize("isolation", ISOLATIONS)
@pytest.mark.parametrize(
    ("what", "reason"),
    [("drop", "component-verdict"), ("wrong-output", "component-violation"), ("consume", None)],
)
def test_what_components_decide(what: str, reason: str | None, isolation: str, tmp_path: Path, bin_dir: Path) -> None:
    plan = chain_plan([gen("in", N), gen("out")], [obedient(what, isolation)])
    with Rig(plan, tmp_path, bin_dir=bin_dir) as rig:
        rig.start()
        end = rig.wait(lambda s: s.rx == N and s.held == 0)
        assert end.drops == ({("component obedient", reason): N} if reason else {})
        assert end.consumed == (0 if reason else N)
        assert end.component(0, lib.COVEN_COMPONENT_VIOLATIONS) == (N if what == "wrong-output" else 0)


@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_packets_grow(isolation: str, tmp_path: Path, bin_dir: Path) -> None:
    """A component moves a packet's begin and end; in `copy` what it wrote must come back."""
    read = capture(tmp_path / "in.pcap", [frame(i, 100) for i in range(200)])
    plan = chain_plan([pcap("in", read), pcap("out", write=tmp_path / "out.pcap")], [obedient("grow", isolation)])
    with Rig(plan, tmp_path, bin_dir=bin_dir) as rig:
        rig.start()
        rig.wait(lambda s: s.tx == 200)
        for _, _, data in frames_of(tmp_path / "out.pcap"):
            assert len(data) == 112
            assert data[4:104] == b"\xee" * 100


@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_each_component_sees_packets_as_they_are(isolation: str, tmp_path: Path, bin_dir: Path) -> None:
    """Whatever one does to its own view of a packet, by the rules or not, the next one sees where the packet is."""
    read = capture(tmp_path / "in.pcap", [frame(i, 100) for i in range(200)])
    chain = [obedient(what, isolation, name=f"at-{i}") for i, what in enumerate(("grow", "scribble", "shift", "grow"))]
    plan = chain_plan([pcap("in", read), pcap("out", write=tmp_path / "out.pcap")], chain)
    with Rig(plan, tmp_path, bin_dir=bin_dir) as rig:
        rig.start()
        rig.wait(lambda s: s.tx == 200)
        for _, _, data in frames_of(tmp_path / "out.pcap"):
            assert len(data) == 122
            assert data[4:114] == b"\xee" * 110


def test_an_egress_port_that_is_not_there(tmp_path: Path, bin_dir: Path) -> None:
    with Rig(chain_plan([gen("in", N), gen("out")], [c_component("nothing", NULL)]), tmp_path, bin_dir=bin_dir) as rig:
        rig.withheld.add(1)
        rig.start()
        end = rig.wait(lambda s: s.rx == N and s.held == 0)
        assert end.drops == {("port out", "port-down"): N}
        rig.request(lib.COVEN_CONTROL_PORT, 1, fds=rig.ports[1].fds)


def test_code_that_is_none(tmp_path: Path) -> None:
    """READY says why, and the worker ends."""
    plan = chain_plan([gen("in"), gen("out")], [c_component("broken", NULL)])
    with Rig(plan, tmp_path) as rig:
        rig.send_code = lambda index, row: rig.request(  # type: ignore[method-assign]
            lib.COVEN_CONTROL_CODE, index, payload=b"1\tstart\t\n", fds=(rig.segments["pool"].fd,)) and None
        with pytest.raises(AssertionError, match="names no component"):
            rig.start()
        assert rig.wait_worker_death() == 1


def test_larger_than_the_egress_port_takes(tmp_path: Path, bin_dir: Path) -> None:
    tagged = frame(0)[:12] + b"\x81\x00\x00\x05\x88\xb5" + bytes(500)
    twice = frame(0)[:12] + b"\x88\xa8\x00\x05\x81\x00\x00\x05\x88\xb5" + bytes(500)
    frames = [frame(1, 514), tagged, twice, frame(2, 515), tagged + b"x", twice + b"x"]
    read = capture(tmp_path / "in.pcap", frames)
    plan = chain_plan([pcap("in", read), pcap("out", write=tmp_path / "out.pcap") | {"mtu": 500}], [])
    with Rig(plan, tmp_path, bin_dir=bin_dir) as rig:
        rig.start()
        end = rig.wait(lambda s: s.rx == len(frames))
        assert end.drops == {("port out", "mtu-exceeded"): 3}
        assert [data for _, _, data in frames_of(tmp_path / "out.pcap")] == frames[:3]


@pytest.mark.parametrize("isolation", ["shared", "copy"])
def test_a_component_that_does_not_take_packets(isolation: str, tmp_path: Path, bin_dir: Path) -> None:
    """The generator has a rate, so it does not wait for room as files do."""
    plan = chain_plan([gen("in", 1000, rate=1_000_000), gen("out")], [played("lazy", isolation, ring_size=64)])
    with Rig(plan, tmp_path, bin_dir=bin_dir) as rig:
        rig.start()
        end = rig.wait(lambda s: s.rx == 1000)
        assert end.drops == {("component lazy", "ring-full"): 1000 - 64}
        assert end.held_by_component[0] == end.held == 64


def test_too_few_buffers_in_copy(tmp_path: Path, bin_dir: Path) -> None:
    plan = chain_plan([gen("in", 1000, rate=1_000_000), gen("out")], [played("lazy", "copy", ring_size=64, copy_buffers=40)])
    with Rig(plan, tmp_path, bin_dir=bin_dir) as rig:
        rig.start()
        end = rig.wait(lambda s: s.rx == 1000)
        assert (end.drops, end.held) == ({("component lazy", "ring-full"): 960}, 40)


@pytest.mark.parametrize("on_failure", ["drop", "bypass"])
@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_a_component_that_is_down(isolation: str, on_failure: str, tmp_path: Path, bin_dir: Path) -> None:
    plan = chain_plan([gen("in", N), gen("out")], [played("away", isolation, on_failure=on_failure)])
    with Rig(plan, tmp_path, bin_dir=bin_dir) as rig:
        rig.start(attach=False)
        end = rig.wait(lambda s: s.rx == N and s.held == 0)
        if on_failure == "drop":
            assert end.drops == {("component away", "component-down"): N}
        else:
            assert (end.drops, end.tx) == ({}, N)


# ---- holding -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_held_packets_come_back(isolation: str, tmp_path: Path, bin_dir: Path) -> None:
    plan = chain_plan([gen("in", 500), gen("out")], [obedient("hold", isolation, hold={"packets": 512, "ms": 20000})])
    with Rig(plan, tmp_path, bin_dir=bin_dir) as rig:
        rig.start()
        assert rig.wait(lambda s: s.tx == 500).dropped == 0


@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_more_held_than_allowed(isolation: str, tmp_path: Path, bin_dir: Path) -> None:
    plan = chain_plan([gen("in", 400), gen("out")], [obedient("keep", isolation, hold={"packets": 100, "ms": 60000})])
    with Rig(plan, tmp_path, bin_dir=bin_dir) as rig:
        rig.start()
        end = rig.wait(lambda s: s.rx == 400 and s.held == 100)
        assert end.drops == {("component obedient", "hold-limit"): 300}
        # what a `shared` component still can write to is nobody else's
        assert end.quarantine == (300 if isolation == "shared" else 0)
        assert end.free == 2048 - 100 - end.quarantine


@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_held_for_too_long(isolation: str, tmp_path: Path, bin_dir: Path) -> None:
    plan = chain_plan([gen("in", 50), gen("out")], [obedient("keep", isolation, hold={"packets": 100, "ms": 30})])
    with Rig(plan, tmp_path, bin_dir=bin_dir) as rig:
        rig.start()
        end = rig.wait(lambda s: s.dropped == 50)
        assert end.drops == {("component obedient", "hold-timeout"): 50}
        assert (end.held, end.quarantine) == (0, 50 if isolation == "shared" else 0)
        if isolation == "shared":
            rig.kill_component()
            rig.detach(0)
            assert rig.snapshot().check().free == 2048


# ---- flows -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_flows_have_state(isolation: str, tmp_path: Path, bin_dir: Path) -> None:
    plan = chain_plan([gen("in", N, flows=100), gen("out")], [counter(isolation)])
    plan["flows"] = {"capacity": 256, "idle_timeout_ms": 200}
    with Rig(plan, tmp_path, bin_dir=bin_dir) as rig:
        rig.start()
        rig.wait(lambda s: s.tx == N)
        gone = rig.wait(lambda s: s.worker(lib.COVEN_WORKER_FLOWS) == 0, "all flows ended")
        assert gone.worker(lib.COVEN_WORKER_FLOWS_CREATED) == gone.worker(lib.COVEN_WORKER_FLOWS_REMOVED) == 100
        state = rig.segments["state-counter"].struct("coven_state")
        cells = rig.segments["state-counter"].struct("coven_slot", state.metrics_offset)
        words = ffi.cast("uint64_t *", cells)
        assert (words[0], list(words[2:5])) == (N, [100, 100, 0])
        assert rig.stop() == 0


@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_flows_that_give_way_in_a_full_table_are_deallocated(isolation: str, tmp_path: Path, bin_dir: Path) -> None:
    """Every packet is of another flow, and there are fewer slots than flows within the idle time."""
    plan = chain_plan([gen("in", 4000, flows=4000, rate=4000), gen("out")], [counter(isolation)])
    plan["flows"] = {"capacity": 64, "idle_timeout_ms": 100}
    with Rig(plan, tmp_path, bin_dir=bin_dir) as rig:
        rig.start()
        rig.wait(lambda s: s.rx == 4000)
        gone = rig.wait(lambda s: s.worker(lib.COVEN_WORKER_FLOWS) == 0, "all flows ended")
        created = gone.worker(lib.COVEN_WORKER_FLOWS_CREATED)
        assert created == gone.worker(lib.COVEN_WORKER_FLOWS_REMOVED) == gone.tx > 128
        assert set(gone.drops) == {("worker", "flow-table-full")}
        state = rig.segments["state-counter"].struct("coven_state")
        words = ffi.cast("uint64_t *", rig.segments["state-counter"].struct("coven_slot", state.metrics_offset))
        assert list(words[2:4]) == [created, created]  # flows begun, flows ended
        assert gone.component(0, lib.COVEN_COMPONENT_VIOLATIONS) == 0


def test_a_removal_that_is_not_answered_is_a_violation(tmp_path: Path, bin_dir: Path) -> None:
    plan = chain_plan([gen("in", 3), gen("out")], [played("silent", state={"bytes": 8, "version": 1})])
    plan["flows"] = {"capacity": 64, "idle_timeout_ms": 100}
    with Rig(plan, tmp_path, bin_dir=bin_dir) as rig:
        rig.start()
        silent = rig.stand_in("silent")
        packets = silent.take()
        while len(packets) < 3:
            packets += silent.take()
        silent.give(packets)
        rig.wait(lambda s: s.tx == 3)
        assert [entry.kind for entry in silent.take()] == [lib.COVEN_ENTRY_FLOW_REMOVED]
        assert rig.snapshot().worker(lib.COVEN_WORKER_FLOWS) == 1
        end = rig.wait(lambda s: s.worker(lib.COVEN_WORKER_FLOWS) == 0, "the slot is free again")
        assert end.component(0, lib.COVEN_COMPONENT_VIOLATIONS) == 1
        assert end.drops == {}


def test_no_room_for_another_flow(tmp_path: Path, bin_dir: Path) -> None:
    plan = chain_plan([gen("in", 1000, flows=1000), gen("out")], [counter("fused")])
    plan["flows"] = {"capacity": 64, "idle_timeout_ms": 60000}
    with Rig(plan, tmp_path, bin_dir=bin_dir) as rig:
        rig.start()
        end = rig.wait(lambda s: s.rx == 1000)
        assert set(end.drops) == {("worker", "flow-table-full")}
        assert end.tx == 1000 - end.dropped > 0


# ---- control -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_pause_drops_what_does_not_come_out(isolation: str, tmp_path: Path, bin_dir: Path) -> None:
    plan = chain_plan([gen("in", 80), gen("out")], [obedient("keep", isolation, hold={"packets": 100, "ms": 60000})])
    with Rig(plan, tmp_path, bin_dir=bin_dir) as rig:
        rig.start()
        rig.wait(lambda s: s.held == 80)
        assert rig.pause(20) == 80
        end = rig.snapshot().check()
        assert (end.drops, end.held) == ({("component obedient", "stopped"): 80}, 0)


def test_pause_waits_for_what_comes_out(tmp_path: Path, bin_dir: Path) -> None:
    plan = chain_plan([gen("in", 2**63), gen("out")], [c_component("one", NULL, "copy"), c_component("two", NULL, "shared")])
    with Rig(plan, tmp_path, bin_dir=bin_dir) as rig:
        rig.start()
        rig.wait(lambda s: s.tx > 10000)
        assert rig.pause() == 0
        paused = rig.snapshot().check()
        assert (paused.held, paused.dropped, paused.free) == (0, 0, 2048)
        assert rig.snapshot().rx == paused.rx
        rig.run()
        rig.wait(lambda s: s.tx > paused.tx)


def test_every_snapshot_under_traffic_is_consistent(tmp_path: Path, bin_dir: Path) -> None:
    parts = [obedient("branch", "fused", outputs=3), c_component("one", NULL, "copy"), obedient("drop", "shared", name="two")]
    plan = chain_plan([gen("in", 2**63), gen("out")], parts,
                      next_of={0: [{"hop": 1}, {"hop": 2}, None], 1: [{"port": 1}], 2: [{"port": 1}]})  # fmt: skip
    with Rig(plan, tmp_path, bin_dir=bin_dir) as rig:
        rig.start()
        last = 0
        for _ in range(50):
            taken = rig.snapshot().check()
            assert taken.rx >= last
            last = taken.rx
        assert last > 0


def test_the_worker_outlives_its_supervisor(tmp_path: Path, bin_dir: Path) -> None:
    plan = chain_plan([gen("in", 2**63), gen("out")], [c_component("nothing", NULL)])
    with Rig(plan, tmp_path, bin_dir=bin_dir) as rig:
        rig.start()
        assert rig._control is not None and rig._peer is not None
        rig._control.close()
        rig._peer.close()
        rig._control = rig._peer = None
        before = rig.memory().tx
        deadline = turns()
        while rig.memory().tx <= before + 1000:
            assert next(deadline), "it stopped forwarding"
        assert rig.worker is not None and rig.worker.poll() is None


def turns(seconds: float = 30.0) -> Iterator[bool]:
    """True about every millisecond until the time is over."""
    end = time.monotonic() + seconds
    while True:
        select.select([], [], [], 0.001)
        yield time.monotonic() < end


def test_an_idle_worker_sleeps(tmp_path: Path) -> None:
    plan = chain_plan([gen("in"), gen("out")], [c_component("one", NULL, "copy")])
    with Rig(plan, tmp_path) as rig:
        rig.start()
        first = rig.wait(lambda s: s.worker(lib.COVEN_WORKER_SLEEPS) > 0)
        then = rig.wait(lambda s: s.worker(lib.COVEN_WORKER_SLEEPS) > first.worker(lib.COVEN_WORKER_SLEEPS) + 2)
        loops = then.worker(lib.COVEN_WORKER_LOOPS) - first.worker(lib.COVEN_WORKER_LOOPS)
        sleeps = then.worker(lib.COVEN_WORKER_SLEEPS) - first.worker(lib.COVEN_WORKER_SLEEPS)
        assert loops <= 100 * sleeps, "it spins"


def test_a_segment_of_another_plan_is_refused(tmp_path: Path) -> None:
    plan = chain_plan([gen("in"), gen("out")], [])
    bigger = chain_plan([gen("in"), gen("out")], [], buffers=8192)
    with Rig(plan, tmp_path) as rig, Rig(bigger, tmp_path) as other:
        rig.segments["plan"], other.segments["plan"] = other.segments["plan"], rig.segments["plan"]
        with pytest.raises(AssertionError, match="smaller than the plan needs"):
            rig.start()
        assert rig.wait_worker_death() == 3
