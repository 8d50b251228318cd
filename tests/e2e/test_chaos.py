"""Random kills under traffic: nothing is lost without a reason, nothing comes twice, all comes back.

`make chaos` runs it for longer (COVEN_CHAOS_SECONDS); the seed of a run is printed, and COVEN_CHAOS_SEED repeats its choices.
"""

from __future__ import annotations

import collections
import functools
import os
import random
import secrets
import time

import pytest

from tests.e2e.appliance import CLIENT, SERVER, Appliance, kill, wait_for
from tests.e2e.parts import answered, is_another, pin_neighbours, processes
from tests.e2e.probe import Probe

SECONDS = float(os.environ.get("COVEN_CHAOS_SECONDS", "10"))
SEED = int(os.environ.get("COVEN_CHAOS_SEED", str(secrets.randbits(32))))
pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.deadline(SECONDS + 180)]
PARTS = ("worker", "analyzer", "filter", "coven.management", "coven.supervisor")
PARKING_S = 30.0  # five deaths within this time park a component
DEATHS = 4


def test_random_kills(appliance: Appliance) -> None:
    """One part after the other, sometimes two at once, sometimes the same again before it is back."""
    choose = random.Random(SEED)
    print(f"COVEN_CHAOS_SEED={SEED}")
    pin_neighbours(appliance)
    deaths: dict[str, collections.deque[float]] = {part: collections.deque(maxlen=DEATHS) for part in PARTS}
    before = appliance.counters()["accounting"]
    end = time.monotonic() + SECONDS
    with Probe(appliance.client, appliance.server, CLIENT[0], SERVER[0]) as probe:
        while time.monotonic() < end:
            now = time.monotonic()
            alive = [part for part in PARTS if len(deaths[part]) < DEATHS or now - deaths[part][0] > PARKING_S]
            victims = choose.sample(alive, min(len(alive), choose.choice((1, 1, 1, 2))))
            found = wait_for("all parts run", answered(lambda: all_processes(appliance)))
            for part in victims:
                deaths[part].append(now)
                kill(found[part])
            for part in victims:
                wait_for(f"another {part} (seed {SEED})", answered(functools.partial(is_another, appliance, part, found[part])))
            if choose.random() < 0.5:
                probe.wait_for_arrivals(choose.randrange(1, 40))
    assert probe.twice == []
    after = appliance.check(missed=True)["accounting"]
    assert len(probe.lost) <= sum(after[key] - before[key] for key in ("drops", "rx_missed"))
    assert appliance.state()["health"] == "ok"


def all_processes(appliance: Appliance) -> dict[str, int] | None:
    """Give all processes by part, or None while one is missing."""
    found = processes(appliance)
    return found if set(PARTS) <= found.keys() else None
