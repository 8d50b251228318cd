"""kill -9 of each process under traffic: what goes on, what comes back, and that every lost packet has its reason."""

from __future__ import annotations

import functools
import hashlib
import os
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.appliance import CLIENT, SERVER, Appliance, drops_by_reason, kill, wait_for
from tests.e2e.parts import answered, is_another, pin_neighbours, processes
from tests.e2e.probe import Probe

pytestmark = pytest.mark.root


@pytest.fixture(autouse=True)
def _pinned(appliance: Appliance) -> None:
    """Pin the neighbours of both hosts."""
    pin_neighbours(appliance)


@pytest.fixture
def probe(appliance: Appliance) -> Probe:
    """A probe that has not begun."""
    return Probe(appliance.client, appliance.server, CLIENT[0], SERVER[0])


@pytest.fixture(autouse=True)
def _accounted(appliance: Appliance) -> Iterator[None]:
    """Hold the accounting rule and the peers' counters after each test."""
    yield
    appliance.check(missed=True)


def counted(appliance: Appliance, before: dict[str, Any]) -> int:
    """Give how many packets were dropped, or lost by the kernel on the way in, since `before`."""
    after = appliance.counters()["accounting"]
    return int(sum(after[key] - before[key] for key in ("drops", "rx_missed")))


def test_the_agent_dies_and_no_packet_is_lost(appliance: Appliance, probe: Probe) -> None:
    """The next agent adopts: same processes, and it answers list, check and request."""
    before = processes(appliance)
    with probe:
        kill(before["coven.management"])
        wait_for("the next agent answers", answered(lambda: appliance.rest.get("/v1")))
        instance = f"/v1/instances/{appliance.instance}"
        checked = wait_for("check is answered", answered(lambda: appliance.rest.get(f"{instance}/check")))
        listed = appliance.rest.get(f"{instance}/list")
        assert appliance.metric("analyzer", "seen") > 0
        probe.wait_for_arrivals(50)
    assert probe.lost == []
    assert probe.twice == []
    assert checked
    assert listed
    after = processes(appliance)
    assert after.pop("coven.management") != before.pop("coven.management")
    assert after == before


def test_the_supervisor_dies_and_nothing_stops(appliance: Appliance, probe: Probe) -> None:
    """The next supervisor takes over what runs."""
    before = processes(appliance)
    with probe:
        kill(before["coven.supervisor"])
        wait_for(
            "the next supervisor knows the instance",
            answered(lambda: appliance.state()["workers"][0]["pid"] == before["worker"]),
        )
        wait_for(
            "the components answer", answered(lambda: appliance.rest.get(f"/v1/instances/{appliance.instance}/check"))
        )
        probe.wait_for_arrivals(50)
    assert probe.lost == []
    assert probe.twice == []
    after = processes(appliance)
    assert after.pop("coven.supervisor") != before.pop("coven.supervisor")
    for part in ("worker", "analyzer", "filter", "coven-keeper"):
        assert after.get(part) == before.get(part)


def test_the_python_component_dies_and_comes_back(appliance: Appliance, probe: Probe) -> None:
    """What is lost in between is counted under its reason; its counters go on where they were."""
    before = processes(appliance)
    accounting = appliance.counters()["accounting"]
    reasons = drops_by_reason(appliance.counters())
    seen = appliance.metric("analyzer", "seen")
    with probe:
        kill(before["analyzer"])
        wait_for("another process", lambda: processes(appliance).get("analyzer") not in (None, before["analyzer"]))
        probe.wait_for_arrivals(50)
    lost = len(probe.lost)
    assert probe.twice == []
    assert lost <= counted(appliance, accounting)
    grown = {name for name, n in drops_by_reason(appliance.counters()).items() if n > reasons.get(name, 0)}
    assert grown <= {"component-crash", "component-down", "ring-full"}
    assert appliance.metric("analyzer", "seen") > seen
    after = processes(appliance)
    assert {**after, "analyzer": 0} == {**before, "analyzer": 0}


def test_the_worker_dies_and_comes_back(appliance: Appliance, probe: Probe) -> None:
    """Another worker goes on with the same memory; the components are not restarted."""
    before = processes(appliance)
    counters = appliance.counters()
    reasons = drops_by_reason(counters)
    with probe:
        kill(before["worker"])
        wait_for("another worker", lambda: processes(appliance)["worker"] not in (None, before["worker"]))
        probe.wait_for_arrivals(50)
    assert probe.twice == []
    assert len(probe.lost) <= counted(appliance, counters["accounting"])
    grown = {name for name, n in drops_by_reason(appliance.counters()).items() if n > reasons.get(name, 0)}
    assert grown <= {"worker-crash", "tx-uncertain", "component-crash"}
    now = appliance.counters()
    assert now["worker"]["recoveries"] == counters["worker"]["recoveries"] + 1
    assert now["worker"]["flows"] >= counters["worker"]["flows"]
    after = processes(appliance)
    assert {**after, "worker": 0} == {**before, "worker": 0}


def test_a_download_survives_every_kill(appliance: Appliance, tmp_path_factory: pytest.TempPathFactory) -> None:
    """One TCP connection over the deaths of worker, component, agent and supervisor, equal digest at the end."""
    folder = tmp_path_factory.mktemp("web")
    data = os.urandom(60_000_000)
    (folder / "file").write_bytes(data)
    appliance.serve(folder)
    results: list[dict[str, Any]] = []
    thread = threading.Thread(target=lambda: results.append(appliance.fetch(f"http://{SERVER[0]}/file")))
    thread.start()
    for part in ("worker", "analyzer", "coven.management", "coven.supervisor"):
        old = processes(appliance)[part]
        kill(old)
        wait_for(f"another {part}", answered(functools.partial(is_another, appliance, part, old)))
    thread.join()
    assert results[0]["failures"] == []
    assert results[0]["digests"] == [hashlib.sha256(data).hexdigest()]
