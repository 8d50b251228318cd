"""A component that is down for longer: what the function does meanwhile, what it says, and how it comes back."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from coven.errors import CovenError
from tests.lib import plans
from tests.lib.platform import BIN, PlatformUnderTest
from tests.platform import components as sources

pytestmark = pytest.mark.skipif(not (BIN / "coven-worker").exists(), reason="the programs are not built")
DEATHS = 5  # within 30 seconds: parked

DIES_WHEN_TOLD_C = """
#include <signal.h>
#include <unistd.h>
#include <coven/component.h>
static int die(struct coven_component *self, struct coven_answer *answer)
{
    (void)self; (void)answer;
    kill(getpid(), SIGKILL);
    return 0;
}
static void process_burst(struct coven_component *self, struct coven_packet *pkts, uint16_t n)
{
    (void)self; (void)pkts; (void)n;
}
static const struct coven_operation operations[] = {{"die", die}, {NULL, NULL}};
COVEN_COMPONENT(.process_burst = process_burst, .operations = operations);
"""
OPERATIONS = [{"name": "die", "help": "kills the process", "arguments": []}]

DIES_BY_PACKET_C = """
#include <signal.h>
#include <unistd.h>
#include <coven/component.h>
static void process_burst(struct coven_component *self, struct coven_packet *pkts, uint16_t n)
{
    (void)self; (void)pkts; (void)n;
    kill(getpid(), SIGKILL);
}
COVEN_COMPONENT(.process_burst = process_burst);
"""


@pytest.fixture
def platform(tmp_path: Path) -> Iterator[PlatformUnderTest]:
    under_test = PlatformUnderTest(tmp_path, arguments=("--start-timeout", "8"))
    with under_test:
        yield under_test
    assert under_test.leftovers() == []


def deploy(platform: PlatformUnderTest, source: str, **more: Any) -> None:
    root = platform.package("demo", {"gate/gate.c": source})
    ports = [plans.gen_port("lan", 2**40, rate=2000), plans.gen_port("wan")]
    platform.deploy(plans.chain("fw-1", root, [plans.component("gate", root, "c", **more)], ports))


def counters(platform: PlatformUnderTest) -> dict[str, Any]:
    return dict(platform.request("snapshot", instance="fw-1"))


def wait_more(platform: PlatformUnderTest, what: str, than: int) -> None:
    def more() -> bool:
        try:
            return int(counters(platform)["accounting"][what]) > than
        except CovenError:
            return False

    platform.wait_for(more, f"{what} does not exceed {than}")


def assert_stopped(platform: PlatformUnderTest) -> None:
    instance = platform.instance("fw-1")
    assert (instance["state"], instance["health"]) == ("started", "failed")
    assert any("forwarding is stopped until component gate" in text for text in instance["problems"])
    rx = counters(platform)["accounting"]["rx"]
    for _ in range(50):
        assert counters(platform)["accounting"]["rx"] == rx


def test_stop_of_an_isolated_component_until_it_is_healed(platform: PlatformUnderTest) -> None:
    deploy(platform, sources.FORWARD_C, on_failure="stop")
    wait_more(platform, "tx", 10)
    client = platform.connect()
    client.request("subscribe")
    pid = None
    for _ in range(DEATHS):
        pid = platform.wait_ready("fw-1", "gate", other_than=pid)["pid"]
        platform.kill(pid)
    client.wait_event(lambda e: e["type"] == "component-parked")
    stopped = client.wait_event(lambda e: e["type"] == "forwarding-stopped")
    assert (stopped["instance"], stopped["part"]) == ("fw-1", "component gate")
    assert_stopped(platform)
    assert platform.instance("fw-1")["workers"][0]["state"] == "running"
    tx = counters(platform)["accounting"]["tx"]
    client.events.clear()
    platform.execute("heal", "fw-1")
    client.wait_event(lambda e: e["type"] == "forwarding-resumed")
    wait_more(platform, "tx", tx + 10)
    assert platform.instance("fw-1")["health"] == "ok"
    assert "component-down" not in {row["reason"] for row in counters(platform)["drops"]}
    client.close()


def test_stop_of_a_fused_component_until_it_is_healed(platform: PlatformUnderTest) -> None:
    deploy(platform, DIES_WHEN_TOLD_C, operations=OPERATIONS, isolation="fused", isolation_asked="fused", on_failure="stop")
    wait_more(platform, "tx", 10)
    client = platform.connect()
    client.request("subscribe")
    pid = None
    for _ in range(DEATHS):
        pid = platform.wait_worker("fw-1", other_than=pid)["pid"]
        with pytest.raises(CovenError):
            platform.request("agent", instance="fw-1", component="gate", verb="call", name="die", arguments={})
    died = client.wait_event(lambda e: e["type"] == "worker-died")
    assert died["component"] == "gate"
    assert client.wait_event(lambda e: e["type"] == "component-parked")["part"] == "component gate"
    client.wait_event(lambda e: e["type"] == "forwarding-stopped")
    platform.wait_worker("fw-1", other_than=pid)
    assert platform.replica("fw-1", "gate")["state"] == "parked"
    assert_stopped(platform)
    with pytest.raises(CovenError) as caught:
        platform.request("agent", instance="fw-1", component="gate", verb="check")
    assert caught.value.code == "component.not-running"
    tx = counters(platform)["accounting"]["tx"]
    platform.execute("heal", "fw-1", component="gate")
    client.wait_event(lambda e: e["type"] == "forwarding-resumed")
    wait_more(platform, "tx", tx + 10)
    assert platform.instance("fw-1")["health"] == "ok"
    assert platform.replica("fw-1", "gate")["state"] == "fused"
    client.close()


@pytest.mark.parametrize("on_failure", ["drop", "bypass", "stop"])
def test_a_fused_component_that_kills_every_worker_is_left_out(on_failure: str, platform: PlatformUnderTest) -> None:
    deploy(platform, DIES_BY_PACKET_C, isolation="fused", isolation_asked="fused", on_failure=on_failure)
    platform.wait_for(lambda: platform.replica("fw-1", "gate")["state"] == "parked", "it is not parked")
    pid = platform.wait_worker("fw-1")["pid"]
    assert platform.instance("fw-1")["workers"][0]["restarts"] == DEATHS
    assert platform.instance("fw-1")["health"] == "failed"
    if on_failure == "stop":
        assert_stopped(platform)
        assert counters(platform)["accounting"]["tx"] == 0
    else:
        wait_more(platform, {"drop": "drops", "bypass": "tx"}[on_failure], 200)
    reasons = {row["reason"] for row in counters(platform)["drops"]}
    assert reasons == {"component-crash"} | ({"component-down"} if on_failure == "drop" else set())
    old = platform.supervisor_pid
    os.kill(old, 9)
    platform.wait_supervisor(other_than=old)
    assert platform.replica("fw-1", "gate")["state"] == "parked"
    assert platform.wait_worker("fw-1")["pid"] == pid
    platform.execute("restart", "fw-1")  # another chance, in vain
    platform.wait_for(lambda: platform.replica("fw-1", "gate")["state"] == "parked", "it is not parked again")
