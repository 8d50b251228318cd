"""A component that does not move while it has packets: the worker says so, goes around it if it may, and comes back to it."""

from __future__ import annotations

import os
import select
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from coven.dataplane.core import Control, lib, unpack_control
from tests.lib.dataplane import DEADLINE_S, Rig, c_component, chain_plan, gen, played
from tests.lib.parts import NULL, obedient

HANG_MS = 100
RATE = 20_000


def notices(rig: Rig, kind: int) -> Control:
    """Wait until the worker tells this."""
    control = rig._control
    assert control is not None
    end = time.monotonic() + DEADLINE_S
    while True:
        assert select.select([control], [], [], max(0.0, end - time.monotonic()))[0], "the worker told nothing"
        message = unpack_control(control.recv(65536))
        if message.op == lib.COVEN_CONTROL_NOTIFY and message.args[0] == kind:
            return message


def rig_of(folder: Path, part: dict[str, Any], packets: int = 2**40) -> Rig:
    plan = chain_plan([gen("in", packets, rate=RATE), gen("out")], [{**part, "hang_ms": HANG_MS}])
    return Rig(plan, folder)


@pytest.mark.parametrize("isolation", ["shared", "copy"])
def test_packets_go_around_it_while_it_hangs_and_not_after(isolation: str, tmp_path: Path) -> None:
    with rig_of(tmp_path, c_component("gate", NULL, isolation, on_failure="bypass")) as rig:
        rig.start()
        rig.wait(lambda s: s.tx > 100)
        os.kill(rig.components[0].pid, signal.SIGSTOP)
        assert notices(rig, lib.COVEN_NOTICE_HUNG).index == 0
        stopped = rig.snapshot().check()
        seen = stopped.component(0, lib.COVEN_COMPONENT_IN_PKTS)
        around = rig.wait(lambda s: s.tx > stopped.tx + 500)
        assert around.component(0, lib.COVEN_COMPONENT_IN_PKTS) == seen
        os.kill(rig.components[0].pid, signal.SIGCONT)
        notices(rig, lib.COVEN_NOTICE_MOVING)
        rig.wait(lambda s: s.component(0, lib.COVEN_COMPONENT_IN_PKTS) > seen + 100)
        rig.pause()
        assert set(rig.snapshot().check().drops) <= {("component gate", "ring-full")}


def test_with_drop_nothing_more_is_given_to_it(tmp_path: Path) -> None:
    with rig_of(tmp_path, played("gate", ring_size=1024), packets=RATE) as rig:
        rig.start()
        notices(rig, lib.COVEN_NOTICE_HUNG)
        end = rig.wait(lambda s: s.rx == RATE)
        assert end.drop("component-down") > 0
        assert end.dropped + end.held == RATE


def test_with_stop_no_port_is_read(tmp_path: Path) -> None:
    with rig_of(tmp_path, played("gate", ring_size=1024, on_failure="stop")) as rig:
        rig.start()
        notices(rig, lib.COVEN_NOTICE_HUNG)
        rx = rig.snapshot().check().rx
        for _ in range(50):
            assert rig.snapshot().rx == rx
        gate = rig.stand_in("gate")
        gate.give(gate.take())
        notices(rig, lib.COVEN_NOTICE_MOVING)
        rig.wait(lambda s: s.rx > rx)


def test_it_is_told_half_way_and_each_limit(tmp_path: Path) -> None:
    with rig_of(tmp_path, played("gate"), packets=1) as rig:
        rig.start()
        notices(rig, lib.COVEN_NOTICE_STILL)
        for times in (1, 2, 3):
            assert notices(rig, lib.COVEN_NOTICE_HUNG).args[1] == times


def test_one_that_holds_packets_does_not_hang(tmp_path: Path) -> None:
    """What it has taken and keeps is for the hold limits; an empty ring accuses nobody."""
    part = obedient("keep", "copy", hold={"packets": 512, "ms": 600})
    with rig_of(tmp_path, part, packets=50) as rig:
        rig.start()
        end = rig.wait(lambda s: s.drop("hold-timeout") == 50)
        assert end.held == 0
        assert rig._control is not None
        rig.request(lib.COVEN_CONTROL_ATTENTION, wait=False)
        assert unpack_control(rig._control.recv(65536)).op != lib.COVEN_CONTROL_NOTIFY


FUSED_C = """
#include <unistd.h>
#include <coven/component.h>
static void process_burst(struct coven_component *self, struct coven_packet *pkts, uint16_t n)
{
    (void)self; (void)pkts; (void)n;
    %s
}
COVEN_COMPONENT(.process_burst = process_burst);
"""


@pytest.mark.parametrize("how", ["for (volatile int forever = 1; forever;);", "for (;;) pause();"], ids=["loop", "deadlock"])
def test_a_fused_component_that_does_not_return_ends_the_worker(how: str, tmp_path: Path) -> None:
    source = tmp_path / "hangs.c"
    source.write_text(FUSED_C % how)
    with rig_of(tmp_path, c_component("hangs", source), packets=20) as rig:
        rig.start()
        assert rig.wait_worker_death() == 4
        assert "hangs" in rig.log.read_text()
        plan = rig.plan["components"][0]
        rig.send_code = lambda index, row: None  # type: ignore[method-assign]
        rig.restart_worker()
        end = rig.wait(lambda s: s.rx == 20)
        assert plan["hang_ms"] == HANG_MS
        assert end.drop("component-crash") >= 1
        assert set(end.drops) == {("component hangs", "component-crash"), ("component hangs", "component-down")} or (
            set(end.drops) == {("component hangs", "component-crash")}
        )


def test_a_fused_component_that_is_slow_is_none_that_hangs(tmp_path: Path) -> None:
    """It takes half its limit for each burst, again and again."""
    source = tmp_path / "slow.c"
    source.write_text(FUSED_C % "usleep(50000);")
    with rig_of(tmp_path, c_component("slow", source), packets=320) as rig:
        rig.start()
        assert rig.wait(lambda s: s.tx == 320).drops == {}
        assert rig.stop() == 0
