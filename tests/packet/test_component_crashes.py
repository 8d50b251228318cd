"""A component in C that dies anywhere, under a real worker: what its flow state counts is what left it."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from coven.dataplane.core import ffi, lib
from tests.lib import builds
from tests.lib.dataplane import Rig, chain_plan, gen
from tests.lib.parts import counter

N = 20000
FLOWS = 40
POINTS = ("after-dequeue", "after-state-write", "after-staging", "after-commit", "within-commit", "after-counter")


def counted(rig: Rig) -> int:
    """Packets that the slots of all flows count together."""
    state = rig.segments["state-counter"]
    head = state.struct("coven_state")
    total = 0
    for flow in range(head.n_slots):
        at = head.slots_offset + flow * head.slot_bytes
        slot = state.struct("coven_slot", at)
        if slot.epoch == 0:
            continue
        half = at + ffi.sizeof("struct coven_slot") + (slot.commit & 1) * head.half_bytes
        total += struct.unpack_from("<Q", state.memory, half)[0]
    return total


@pytest.mark.parametrize("nth", [1, 2, 3, 5, 8, 13, 21, 34, 55, 89])
@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("isolation", ["copy", "shared"])
def test_a_component_dies_at_a_fault_point(isolation: str, point: str, nth: int, tmp_path: Path) -> None:
    plan = chain_plan([gen("in", N, flows=FLOWS), gen("out")], [counter(isolation)])
    bin_dir = builds.executables(*builds.FAULTS)
    with Rig(plan, tmp_path, bin_dir=bin_dir, component_env={"COVEN_FAULT": f"{point}:{nth}"}) as rig:
        rig.start()
        assert rig.wait_component_death() == -9
        dropped, staged = rig.detach(0)
        after = rig.snapshot().check()
        assert after.component(0, lib.COVEN_COMPONENT_OUT_PKTS) == counted(rig)
        assert after.drop("component-crash") == dropped
        assert after.held_by_component[0] == 0
        if point in ("after-dequeue", "after-state-write", "after-counter"):
            assert staged == 0
        if point == "after-commit" and nth == 1:
            assert staged > 0
        del rig.component_env["COVEN_FAULT"]
        rig.start_component(0)
        end = rig.wait(lambda s: s.rx == N and s.held == 0)
        assert end.component(0, lib.COVEN_COMPONENT_OUT_PKTS) == counted(rig) == end.tx
        assert end.tx + end.dropped == N
        assert set(end.drops) <= {("component counter", reason) for reason in ("component-crash", "component-down", "ring-full")}
        assert rig.stop() == 0
