"""What packets meet while a component is down: drop, bypass, stop."""

from __future__ import annotations

from pathlib import Path

import pytest

from coven.dataplane.core import lib
from tests.lib.dataplane import Rig, c_component, chain_plan, gen, played
from tests.lib.parts import NULL

N = 20000
LOOKS = 100  # each lets the worker turn at least once; a port that is read gives N packets within a few


def assert_no_port_is_read(rig: Rig) -> None:
    first = rig.snapshot().check()
    for _ in range(LOOKS):
        assert rig.snapshot().rx == first.rx


@pytest.mark.parametrize("isolation", ["shared", "copy"])
def test_stop_reads_no_port_while_the_component_is_away(isolation: str, tmp_path: Path) -> None:
    plan = chain_plan([gen("in", N), gen("out")], [c_component("gate", NULL, isolation, on_failure="stop")])
    with Rig(plan, tmp_path) as rig:
        rig.start(attach=False)
        assert_no_port_is_read(rig)
        assert rig.snapshot().rx == 0
        rig.start_component(0)
        end = rig.wait(lambda s: s.tx == N, "all sent")
        assert end.drops == {}
        assert rig.stop() == 0


def test_stop_takes_nothing_in_between_death_and_return(tmp_path: Path) -> None:
    many = 3_000_000
    plan = chain_plan([gen("in", many), gen("out")], [c_component("gate", NULL, "copy", on_failure="stop")])
    with Rig(plan, tmp_path) as rig:
        rig.start()
        rig.wait(lambda s: s.tx > 100)
        rig.kill_component()
        lost, _ = rig.detach(0)
        assert_no_port_is_read(rig)
        down = rig.snapshot()
        assert 0 < down.rx < many
        rig.start_component(0)
        again = rig.wait(lambda s: s.tx > down.tx + 100, "forwarding again")
        assert again.drop("component-down") == 0
        assert again.drop("component-crash") == lost


def test_stop_lets_nothing_past_that_was_inside_already(tmp_path: Path) -> None:
    parts = [played("before"), c_component("gate", NULL, "copy", on_failure="stop")]
    with Rig(chain_plan([gen("in", 20), gen("out")], parts), tmp_path) as rig:
        rig.start()
        before = rig.stand_in("before")
        inside = before.take()
        while len(inside) < 20:
            inside += before.take()
        rig.kill_component(1)
        rig.detach(1)
        before.give(inside)
        end = rig.wait(lambda s: s.held == 0)
        assert end.drops == {("component gate", "component-down"): 20}
        assert end.tx == 0


@pytest.mark.parametrize("on_failure", ["drop", "bypass", "stop"])
def test_a_fused_component_whose_code_the_worker_was_not_given(on_failure: str, tmp_path: Path) -> None:
    plan = chain_plan([gen("in", N), gen("out")], [c_component("gate", NULL, on_failure=on_failure)])
    with Rig(plan, tmp_path) as rig:
        give = rig.send_code
        rig.send_code = lambda index, row: None  # type: ignore[method-assign]
        rig.start()
        if on_failure == "stop":
            assert_no_port_is_read(rig)
            assert rig.snapshot().rx == 0
            give(0, plan["components"][0])
            end = rig.wait(lambda s: s.tx == N)
            assert end.component(0, lib.COVEN_COMPONENT_IN_PKTS) == N
        else:
            end = rig.wait(lambda s: s.rx == N)
            expected = {("component gate", "component-down"): N} if on_failure == "drop" else {}
            assert (end.drops, end.tx) == (expected, N - end.dropped)
            assert end.component(0, lib.COVEN_COMPONENT_IN_PKTS) == 0
