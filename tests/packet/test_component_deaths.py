"""An isolated component that dies anywhere: what it had finished goes on, the rest is dropped by name, its state fits."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from coven.dataplane.core import ffi, lib
from tests.lib import builds
from tests.lib.dataplane import Rig, chain_plan, gen
from tests.lib.parts import counter, obedient

N = 20000
POINTS = ("after-dequeue", "after-state-write", "after-staging", "within-commit", "after-commit", "after-counter")
PASSES = (1, 2, 5, 31, 32, 33, 64, 100, 200, 300)  # `after-counter` is passed once a burst


def packets_in_state(rig: Rig) -> int:
    """Sum of what the counter has committed for its flows."""
    segment = rig.segments["state-counter"]
    head = segment.struct("coven_state")
    total = 0
    for i in range(head.n_slots):
        at = head.slots_offset + i * head.slot_bytes
        slot = segment.struct("coven_slot", at)
        if slot.epoch:
            half = at + ffi.sizeof("struct coven_slot") + (slot.commit & 1) * head.half_bytes
            total += int(ffi.cast("uint64_t *", segment.struct("coven_slot", half))[0])
    return total


@pytest.mark.parametrize("n", PASSES)
@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("isolation", ["shared", "copy"])
def test_it_dies_at_a_fault_point(isolation: str, point: str, n: int, tmp_path: Path) -> None:
    """A packet that came out is in its flow's state, and one that was dropped is not."""
    bin_dir = builds.executables(*builds.FAULTS)
    plan = chain_plan([gen("in", N, flows=50), gen("out")], [counter(isolation)])
    with Rig(plan, tmp_path, bin_dir=bin_dir, component_env={"COVEN_FAULT": f"{point}:{n}"}) as rig:
        rig.start()
        assert rig.wait_component_death() == -9
        dropped, staged = rig.detach(0)
        found = rig.snapshot().check()
        assert (found.held, found.quarantine) == (0, 0)
        assert found.drop("component-crash") == dropped
        assert found.tx == found.component(0, lib.COVEN_COMPONENT_OUT_PKTS) == packets_in_state(rig)
        if point in ("after-dequeue", "after-state-write", "after-counter"):
            assert staged == 0
        if point == "after-commit":
            assert staged > 0
        rig.component_env.pop("COVEN_FAULT")
        rig.start_component(0)
        end = rig.wait(lambda s: s.rx == N and s.held == 0)
        assert set(end.drops) <= {("component counter", "component-crash"), ("component counter", "component-down")}
        assert end.tx == N - end.dropped == packets_in_state(rig)
        assert end.free == 2048
        assert end.component(0, lib.COVEN_COMPONENT_RESTARTS) <= 1
        assert rig.stop() == 0


def test_packets_pass_by_while_it_is_down(tmp_path: Path) -> None:
    part = obedient("forward", "shared", options={"die_at": 5000}, on_failure="bypass")
    with Rig(chain_plan([gen("in", N), gen("out")], [part]), tmp_path) as rig:
        rig.start()
        assert rig.wait_component_death() == -9
        rig.detach(0)
        end = rig.wait(lambda s: s.rx == N and s.held == 0)
        assert set(end.drops) == {("component obedient", "component-crash")}
        assert end.tx == N - end.dropped


def test_an_orderly_detach(tmp_path: Path) -> None:
    part = obedient("keep", "copy", hold={"packets": 512, "ms": 60000})
    with Rig(chain_plan([gen("in", 100), gen("out")], [part]), tmp_path) as rig:
        rig.start()
        rig.wait(lambda s: s.held == 100)
        assert rig.detach(0, crashed=False) == (100, 0)
        end = rig.snapshot().check()
        assert (end.drops, end.free) == ({("component obedient", "stopped"): 100}, 2048)


@pytest.mark.parametrize("isolation", ["shared", "copy"])
def test_many_deaths_under_load(isolation: str, tmp_path: Path) -> None:
    plan = chain_plan([gen("in", 500_000, flows=50), gen("out")], [counter(isolation)])
    with Rig(plan, tmp_path) as rig:
        rig.start()
        for _ in range(15):
            before = rig.snapshot().check()
            with contextlib.suppress(AssertionError):
                rig.wait(lambda s, b=before: s.tx > b.tx + 500 or s.rx == 500_000)  # type: ignore[misc]
            rig.kill_component()
            rig.detach(0)
            rig.start_component(0)
        end = rig.wait(lambda s: s.rx == 500_000 and s.held == 0)
        assert end.tx == 500_000 - end.dropped == packets_in_state(rig)
        assert end.free == 2048
