"""How a worker waits: what each profile does when there is nothing to do, told by its own counters."""

from __future__ import annotations

import select
from pathlib import Path
from typing import Any

import pytest

from coven.dataplane.core import lib
from tests.lib.dataplane import Rig, Snapshot, c_component, chain_plan, gen
from tests.lib.parts import NULL

N = 20000
WAKES = 50
YIELDS = 64  # of the profile balanced, before it sleeps
PROFILES = ("balanced", "low-latency", "power-save")


def plan_of(profile: str, isolation: str) -> dict[str, Any]:
    plan = chain_plan([gen("in", N), gen("out")], [c_component("one", NULL, isolation)])
    plan["worker"] = {"cores": [None], "profile": profile}
    return plan


@pytest.mark.parametrize("isolation", ["fused", "shared", "copy"])
@pytest.mark.parametrize("profile", PROFILES)
def test_it_forwards(profile: str, isolation: str, tmp_path: Path) -> None:
    with Rig(plan_of(profile, isolation), tmp_path) as rig:
        rig.start()
        end = rig.wait(lambda s: s.tx == N, "all sent")
        assert (end.dropped, end.held) == (0, 0)
        assert rig.stop() == 0


def idle_turns(rig: Rig) -> tuple[int, int]:
    """Wake an idle worker again and again; give its turns and its sleeps meanwhile."""
    rig.wait(lambda s: s.tx == N)
    first = rig.snapshot()
    pace = select.poll()
    for _ in range(WAKES):
        slept = rig.memory().worker(lib.COVEN_WORKER_SLEEPS)
        rig.request(lib.COVEN_CONTROL_ATTENTION)
        while rig.memory().worker(lib.COVEN_WORKER_SLEEPS) == slept:
            pace.poll(1)
    last = rig.snapshot()
    assert last.worker(lib.COVEN_WORKER_BUSY_LOOPS) == first.worker(lib.COVEN_WORKER_BUSY_LOOPS)
    loops = last.worker(lib.COVEN_WORKER_LOOPS) - first.worker(lib.COVEN_WORKER_LOOPS)
    return loops, last.worker(lib.COVEN_WORKER_SLEEPS) - first.worker(lib.COVEN_WORKER_SLEEPS)


def test_low_latency_never_sleeps(tmp_path: Path) -> None:
    with Rig(plan_of("low-latency", "copy"), tmp_path) as rig:
        rig.start()
        done = rig.wait(lambda s: s.tx == N).worker(lib.COVEN_WORKER_LOOPS)
        end = rig.wait(lambda s: s.worker(lib.COVEN_WORKER_LOOPS) > done + 10_000, "it does not turn")
        assert end.worker(lib.COVEN_WORKER_SLEEPS) == 0


def test_power_save_sleeps_at_once(tmp_path: Path) -> None:
    with Rig(plan_of("power-save", "fused"), tmp_path) as rig:
        rig.start()
        loops, sleeps = idle_turns(rig)
        assert sleeps > 0
        assert loops - sleeps <= 2, "every turn without work ends in a sleep"


def after_packets_far_apart(profile: str, packets: int, folder: Path) -> Snapshot:
    """Let packets half a millisecond apart through and give the counters when all are out."""
    plan = plan_of(profile, "fused")
    plan["ports"][0]["options"] |= {"packets": packets, "rate": 2000}
    with Rig(plan, folder) as rig:
        rig.start()
        end = rig.wait(lambda s: s.tx == packets, "all sent")
        assert (end.dropped, end.held) == (0, 0)
        assert rig.stop() == 0
    return end


def test_power_save_lets_packets_gather(tmp_path: Path) -> None:
    """Each time it is woken by packets it sleeps once more before it takes them."""
    end = after_packets_far_apart("power-save", 500, tmp_path)
    turns, sleeps = end.worker(lib.COVEN_WORKER_BUSY_LOOPS), end.worker(lib.COVEN_WORKER_SLEEPS)
    assert 2 * sleeps > 3 * turns, (turns, sleeps)


def test_balanced_looks_a_while_before_it_sleeps(tmp_path: Path) -> None:
    with Rig(plan_of("balanced", "fused"), tmp_path) as rig:
        rig.start()
        loops, sleeps = idle_turns(rig)
        assert sleeps >= WAKES
        # once it sleeps, a wake-up without packets makes it sleep again in the next turn
        assert loops - sleeps <= YIELDS + 2


def test_balanced_sleeps_at_once_between_packets_that_are_far_apart(tmp_path: Path) -> None:
    packets = 500
    end = after_packets_far_apart("balanced", packets, tmp_path)
    idle = end.worker(lib.COVEN_WORKER_LOOPS) - end.worker(lib.COVEN_WORKER_BUSY_LOOPS)
    # one more look for a sleep, and the first millisecond, in which it does not know yet
    assert idle - end.worker(lib.COVEN_WORKER_SLEEPS) < packets * YIELDS / 8


@pytest.mark.parametrize("isolation", ["fused", "copy"])
@pytest.mark.parametrize("profile", ["balanced", "power-save"])
def test_an_idle_appliance_hardly_wakes(profile: str, isolation: str, tmp_path: Path) -> None:
    """Between two of its timers nothing wakes the worker, nor the component: told by the kernel's count of switches."""
    with Rig(plan_of(profile, isolation), tmp_path) as rig:
        rig.start()
        rig.wait(lambda s: s.tx == N)
        assert rig.worker is not None
        pids = [rig.worker.pid, *(component.pid for component in rig.components.values())]
        before = [switches(pid) for pid in pids]
        sleeps = rig.memory().worker(lib.COVEN_WORKER_SLEEPS)
        pace = select.poll()
        while rig.memory().worker(lib.COVEN_WORKER_SLEEPS) < sleeps + 3:  # its own timers; at most a second each
            pace.poll(20)
        slept = rig.memory().worker(lib.COVEN_WORKER_SLEEPS) - sleeps
        for pid, n in zip(pids, before, strict=True):
            assert switches(pid) - n <= slept + YIELDS + 8


def switches(pid: int) -> int:
    """How often a process gave its core away by itself."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in text.splitlines() if line.startswith("voluntary")).split()[1])


