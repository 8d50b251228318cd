"""A worker that dies anywhere: its successor finds exact books, loses no buffer and goes on."""

from __future__ import annotations

import contextlib
import os
import random
import select
import signal
from pathlib import Path
from typing import Any

import pytest

from coven.dataplane.core import lib
from tests.lib import builds
from tests.lib.dataplane import Rig, Snapshot, WorkerDied, c_component, chain_plan, gen, pcap
from tests.lib.parts import NULL, capture, counter, frame, frames_of, obedient

N = 30000
POINTS = ("worker-after-rx", "worker-intent-valid", "worker-intent-half", "worker-intent-applied", "worker-free-list", "worker-flow-index",
          "worker-before-tx", "worker-after-tx", "worker-ring-publish", "worker-ring-taken")  # fmt: skip
PASSES = (1, 2, 3, 5, 8, 13, 40, 100, 150, 200)


def whole_plan(flows: int = 300) -> dict[str, Any]:
    """Every kind of component in one path, with flow state in two of them."""
    parts = [counter("fused"), c_component("copied", NULL, "copy"), counter("shared", "shared"),
             obedient("branch", outputs=3)]  # fmt: skip
    plan = chain_plan([gen("in", N, flows=flows), gen("out")], parts, next_of={3: [{"port": 1}, {"port": 1}, None]})
    plan["flows"] = {"capacity": 1024, "idle_timeout_ms": 60000}
    return plan


def lost(taken: Snapshot) -> int:
    return taken.drop("worker-crash") + taken.drop("component-crash") + taken.drop("tx-uncertain")


def test_the_fault_points_are_in_the_build() -> None:
    program = (builds.executables(*builds.FAULTS) / "coven-worker").read_bytes()
    for point in POINTS:
        assert point.encode() in program


@pytest.mark.parametrize("n", PASSES)
@pytest.mark.parametrize("point", POINTS)
def test_it_dies_at_a_fault_point(point: str, n: int, tmp_path: Path) -> None:
    bin_dir = builds.executables(*builds.FAULTS)
    with Rig(whole_plan(), tmp_path, bin_dir=bin_dir, env={"COVEN_FAULT": f"{point}:{n}"}) as rig:
        with contextlib.suppress(WorkerDied):
            rig.start()
        assert rig.wait_worker_death() == -9
        answer = rig.restart_worker()
        assert answer.args[0] == 1
        end = rig.wait(lambda s: s.rx == N and s.held == 0)
        assert end.free == 2048
        assert end.tx + end.drop("no-output") + lost(end) == N
        assert lost(end) <= 64, end
        assert set(end.drops) <= {("component obedient", "no-output"), ("worker", "worker-crash"), ("port out", "tx-uncertain")}
        assert end.worker(lib.COVEN_WORKER_RECOVERIES) == 1
        assert rig.stop() == 0


@pytest.mark.parametrize("point", POINTS)
def test_its_successor_dies_at_the_same_point(point: str, tmp_path: Path) -> None:
    """A recovery that is interrupted is done again."""
    bin_dir = builds.executables(*builds.FAULTS)
    with Rig(whole_plan(), tmp_path, bin_dir=bin_dir, env={"COVEN_FAULT": f"{point}:20"}) as rig:
        with contextlib.suppress(WorkerDied):
            rig.start()
        assert rig.wait_worker_death() == -9
        for n in (1, 1, 2, 3):
            with contextlib.suppress(WorkerDied):
                rig.restart_worker(env={"COVEN_FAULT": f"{point}:{n}"})
            assert rig.wait_worker_death() == -9
        rig.restart_worker()
        end = rig.wait(lambda s: s.rx == N and s.held == 0)
        assert end.free == 2048
        assert lost(end) <= 5 * 64, end
        assert end.tx + end.drop("no-output") + lost(end) == N


@pytest.mark.parametrize("point", POINTS)
def test_a_capture_survives_without_loss_or_duplicate(point: str, tmp_path: Path) -> None:
    """File offsets tell what was read and written: what is missing was dropped by name, nothing comes twice."""
    frames = [frame(i, 60 + i % 400) for i in range(4000)]
    read = capture(tmp_path / "in.pcap", frames)
    bin_dir = builds.executables(*builds.FAULTS)
    plan = chain_plan([pcap("in", read), pcap("out", write=tmp_path / "out.pcap")],
                      [counter("fused"), c_component("copied", NULL, "copy")])  # fmt: skip
    with Rig(plan, tmp_path, bin_dir=bin_dir, env={"COVEN_FAULT": f"{point}:7"}) as rig:
        with contextlib.suppress(WorkerDied):
            rig.start()
        if point == "worker-flow-index":  # one flow at most: the point may not be passed so often
            rig.kill_worker()
        else:
            assert rig.wait_worker_death() == -9
        rig.restart_worker()
        end = rig.wait(lambda s: s.rx == len(frames) and s.held == 0)
        assert end.drop("tx-uncertain") == 0
        out = [data for _, _, data in frames_of(tmp_path / "out.pcap")]
        assert len(out) == end.tx == len(frames) - lost(end)
        numbers = [int.from_bytes(data[14:18], "big") for data in out]
        assert numbers == sorted(set(numbers))
        assert all(data == frames[n] for n, data in zip(numbers, out, strict=True))


@pytest.mark.parametrize("seed", range(5))
def test_random_kills_under_load(seed: int, tmp_path: Path) -> None:
    chance = random.Random(seed)
    plan = whole_plan()
    plan["ports"][0]["options"]["packets"] = 200_000
    kills = 0
    with Rig(plan, tmp_path) as rig:
        rig.start()
        for _ in range(20):
            select.select([], [], [], chance.uniform(0, 0.004))
            rig.kill_worker()
            kills += 1
            rig.restart_worker()
        end = rig.wait(lambda s: s.rx == 200_000 and s.held == 0)
        assert end.free == 2048
        assert lost(end) <= kills * 64
        assert end.tx + end.drop("no-output") + lost(end) == 200_000
        assert end.worker(lib.COVEN_WORKER_RECOVERIES) == kills


def test_a_fused_component_that_crashes_is_named(tmp_path: Path) -> None:
    parts = [c_component("before", NULL), obedient("forward", options={"die_at": 1000}, name="mortal")]
    with Rig(chain_plan([gen("in", N), gen("out")], parts), tmp_path) as rig:
        with contextlib.suppress(WorkerDied):
            rig.start()
        assert rig.wait_worker_death() == -9
        answer = rig.start_worker()
        assert answer.args[5] == 2  # component 1
        assert "mortal" in answer.payload.decode()
        found = rig.snapshot().check()
        assert found.drops == {("component mortal", "component-crash"): 32}
        assert found.component(1, lib.COVEN_COMPONENT_IN_PKTS) == found.component(1, lib.COVEN_COMPONENT_OUT_PKTS) + 32
        assert found.held == 0


@pytest.mark.parametrize("isolation", ["shared", "copy"])
def test_packets_in_a_living_component_outlive_the_worker(isolation: str, tmp_path: Path) -> None:
    part = obedient("hold", isolation, hold={"packets": 512, "ms": 60000})
    with Rig(chain_plan([gen("in", 300), gen("out")], [part]), tmp_path) as rig:
        rig.start(run=False)
        os.kill(rig.components[0].pid, signal.SIGSTOP)
        try:
            rig.run()
            rig.wait(lambda s: s.held_by_component[0] == 300)
            rig.kill_worker()
            answer = rig.restart_worker()
            assert answer.args[4] == 300
        finally:
            os.kill(rig.components[0].pid, signal.SIGCONT)
        end = rig.wait(lambda s: s.tx == 300)
        assert (end.dropped, end.free) == (0, 2048)


@pytest.mark.parametrize("isolation", ["shared", "copy"])
def test_worker_and_component_die_together(isolation: str, tmp_path: Path) -> None:
    """The successor gets a new segment for the replica: what the old one had is gone, by name."""
    part = obedient("keep", isolation, hold={"packets": 512, "ms": 60000})
    with Rig(chain_plan([gen("in", 200), gen("out")], [part]), tmp_path) as rig:
        rig.start()
        rig.wait(lambda s: s.held == 200)
        rig.kill_worker()
        rig.kill_component()
        rig.start_worker()
        rig.start_component(0)
        end = rig.snapshot().check()
        assert end.drops == {("component obedient", "component-crash"): 200}
        assert (end.held, end.free) == (0, 2048)
        assert end.component(0, lib.COVEN_COMPONENT_RESTARTS) == 1
