"""Ends of flows: a component that does not say that it forgot them must not keep the table from others."""

from __future__ import annotations

from pathlib import Path

import pytest

from coven.dataplane.core import lib
from tests.lib.dataplane import Rig, chain_plan, gen, played
from tests.lib.parts import counter

N = 3000


@pytest.mark.parametrize("isolation", ["shared", "copy"])
def test_a_component_that_forgets_nothing_keeps_no_places(isolation: str, tmp_path: Path) -> None:
    """It reads nothing, so its ring is full of ends soon. The other path has a new flow with each packet."""
    mute = played("mute", isolation, ring_size=64, state={"bytes": 8, "version": 1})
    plan = chain_plan([gen("in"), gen("out")], [mute, counter("fused")], next_of={0: [{"port": 1}]}, buffers=512)
    plan["flows"] = {"capacity": 512, "idle_timeout_ms": 50}
    plan["ports"].append({**gen("in-b", N, rate=N, flows=N), "path": 1, "first": {"hop": 1}})
    plan["paths"].append({"name": "other", "ingress": "in-b", "spi": 0})
    plan["hops"][1]["path"] = 1
    with Rig(plan, tmp_path) as rig:
        rig.start()
        end = rig.wait(lambda s: s.rx == N and s.held == 0)
        assert set(end.drops) <= {("worker", "flow-table-full")}
        assert end.tx > N * 3 // 4, "flows of another path are refused"
        late, before = rig.stand_in("mute"), rig.snapshot().component(0, lib.COVEN_COMPONENT_VIOLATIONS)
        while late.rx.ready():
            late.give(late.take())
            rig.wait(lambda _: late.tx.room(64) == 64)
        after = rig.snapshot().check().component(0, lib.COVEN_COMPONENT_VIOLATIONS)
        assert after == before, "to answer late is no violation, or was counted as silence"
