"""Several workers of one instance: shares, sums, deaths of one, takeover. On generators, so without root as well."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from coven.errors import CovenError
from tests.lib import plans
from tests.lib.platform import BIN, OperationFailed, PlatformUnderTest
from tests.platform import components as sources

pytestmark = pytest.mark.skipif(not (BIN / "coven-worker").exists(), reason="the programs are not built")

INSTANCE = "fw-1"
FLOWS = 7
PACKETS = 7 * 300 + 3
ENDLESS = 2**64 - 1
ASKED_C = """
#include <coven/component.h>
#include <stdio.h>
#include <string.h>
static char kept[32] = "nothing";
static void process_burst(struct coven_component *self, struct coven_packet *pkts, uint16_t n)
{
    (void)self; (void)pkts; (void)n;
}
static int put(struct coven_component *self, struct coven_answer *answer)
{
    coven_answer(answer, self, "had", kept);
    snprintf(kept, sizeof(kept), "%s", coven_argument(self, "word"));
    return 0;
}
static int once(struct coven_component *self, struct coven_answer *answer)
{
    if (!strcmp(kept, "done")) {
        coven_answer(answer, self, "error", "it is done already");
        return -1;
    }
    snprintf(kept, sizeof(kept), "done");
    return 0;
}
static const struct coven_operation operations[] = {{"put", put}, {"once", once}, {NULL, NULL}};
COVEN_COMPONENT(.process_burst = process_burst, .operations = operations);
"""
WORD = {"name": "word", "type": "string", "help": "to keep", "required": True, "default": None, "enum": []}
ASKED_OPERATIONS = [
    {"name": "put", "help": "keep a word, give the one before", "arguments": [WORD]},
    {"name": "once", "help": "can be done once", "arguments": []},
]


@pytest.fixture
def platform(tmp_path: Path) -> Iterator[PlatformUnderTest]:
    with PlatformUnderTest(tmp_path) as made:
        yield made
    assert made.leftovers() == []


def plan_of(
    platform: PlatformUnderTest, isolation: str, workers: int, packets: int = PACKETS, *, rate: int = 0, **more: Any
) -> dict[str, Any]:
    """A counting component between two generators, the second of which only swallows."""
    root = platform.package("demo", {"one/one.c": sources.COUNT_C})
    what = {"state": sources.COUNT_STATE, "metrics": sources.COUNT_METRICS, **more}
    one = plans.component("one", root, "c", isolation_asked=isolation, isolation=isolation, **what)
    ports = [plans.gen_port("lan", packets, flows=FLOWS, rate=rate), plans.gen_port("wan")]
    plan = plans.chain(INSTANCE, root, [one], ports)
    plan["worker"]["cores"] = [None] * workers
    return plan


def books(platform: PlatformUnderTest) -> dict[str, Any]:
    """Give the counters, which must balance."""
    taken = platform.request("snapshot", instance=INSTANCE)
    balanced(taken)
    return taken


def sent_by(platform: PlatformUnderTest, worker: int) -> int:
    return int(books(platform)["workers"][worker]["accounting"]["tx"])


def moves_on(platform: PlatformUnderTest, worker: int) -> None:
    first = sent_by(platform, worker)
    platform.wait_for(lambda: sent_by(platform, worker) > first + 100, f"worker {worker} does not move on")


def all_sent(platform: PlatformUnderTest, packets: int = PACKETS) -> dict[str, Any]:
    def sent() -> dict[str, Any] | None:
        taken = books(platform)
        return taken if taken["accounting"]["tx"] == packets else None

    return dict(platform.wait_for(sent, "not all packets were sent"))


def balanced(taken: dict[str, Any]) -> None:
    """The books balance for each worker, and the sums are sums."""
    shares = [share["accounting"] for share in taken["workers"]]
    assert all(share["balanced"] for share in shares), shares
    assert taken["accounting"]["balanced"]
    for key in ("rx", "created", "tx", "consumed", "drops", "held"):
        assert taken["accounting"][key] == sum(share[key] for share in shares), key


@pytest.mark.parametrize("isolation", ["fused", "shared", "copy"])
def test_each_worker_has_its_flows(platform: PlatformUnderTest, isolation: str) -> None:
    platform.deploy(plan_of(platform, isolation, 2))
    end = all_sent(platform)
    assert end["drops"] == []
    # 7 flows, dealt out 3 and 4; 3 packets more than 7 flows of 300
    assert [share["ports"]["lan"]["rx_pkts"] for share in end["workers"]] == [3 * 300 + 3, 4 * 300]
    metrics = platform.request("metrics", instance=INSTANCE)["components"]["one"]
    assert [row["flows"] for row in metrics["replicas"]] == [3, 4]
    assert metrics["total"]["flows"] == FLOWS
    found = platform.instance(INSTANCE)
    assert [worker["state"] for worker in found["workers"]] == ["running"] * 2
    assert len({worker["pid"] for worker in found["workers"]}) == 2
    assert len({worker["stats_name"] for worker in found["workers"]}) == 2
    assert len(found["components"][0]["replicas"]) == 2
    platform.execute("restart", INSTANCE)
    platform.execute("terminate", INSTANCE, force=True)


def test_capture_files_belong_to_worker_0(platform: PlatformUnderTest, tmp_path: Path) -> None:
    capture = tmp_path / "in.pcap"
    frame = bytes(12) + b"\x08\x00" + bytes(50)
    head = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1)
    packet = struct.pack("<4I", 1, 0, len(frame), len(frame)) + frame
    capture.write_bytes(head + packet * 100)
    plan = plan_of(platform, "copy", 2)
    ends = [plans.pcap_port("lan", capture), plans.pcap_port("wan", None, tmp_path / "out.pcap")]
    plan["ports"] = [{**port, **end} for port, end in zip(plan["ports"], ends, strict=True)]
    platform.deploy(plan)
    end = all_sent(platform, 100)
    assert [share["accounting"]["tx"] for share in end["workers"]] == [100, 0]
    platform.execute("terminate", INSTANCE, force=True)
    assert (tmp_path / "out.pcap").read_bytes().count(frame) == 100


def pids(platform: PlatformUnderTest) -> list[int]:
    found = platform.instance(INSTANCE)
    return [part["pid"] for part in (*found["workers"], *found["components"][0]["replicas"])]


def running(platform: PlatformUnderTest, worker: int, other_than: int) -> dict[str, Any] | None:
    found = platform.instance(INSTANCE)["workers"][worker]
    return found if found["state"] == "running" and found["pid"] != other_than else None


@pytest.mark.parametrize("isolation", ["fused", "copy"])
def test_one_worker_dies_and_the_other_goes_on(platform: PlatformUnderTest, isolation: str) -> None:
    platform.deploy(plan_of(platform, isolation, 2, ENDLESS, rate=20_000))
    for worker in (0, 1):
        moves_on(platform, worker)
    before = platform.instance(INSTANCE)["workers"]
    platform.kill(before[1]["pid"])
    platform.wait_for(lambda: running(platform, 1, before[1]["pid"]), "worker 1 does not come back")
    for worker in (0, 1):
        moves_on(platform, worker)
    after = platform.instance(INSTANCE)["workers"]
    assert (after[0]["pid"], after[0]["restarts"]) == (before[0]["pid"], 0)
    assert after[1]["restarts"] == 1
    shares = books(platform)["workers"]
    assert [share["worker"]["recoveries"] for share in shares] == [0, 1]
    assert len(books(platform)["workers"]) == 2
    platform.execute("terminate", INSTANCE, force=True)


def test_a_component_dies_for_one_worker_only(platform: PlatformUnderTest) -> None:
    platform.deploy(plan_of(platform, "copy", 2, ENDLESS, rate=20_000))
    moves_on(platform, 1)
    first, second = pids(platform)[2:]
    platform.kill(second)

    def back() -> bool:
        row = platform.replica(INSTANCE, "one", 1)
        return row["state"] == "ready" and row["pid"] != second

    platform.wait_for(back, "the copy of worker 1 does not come back")
    for worker in (0, 1):
        moves_on(platform, worker)
    assert pids(platform)[2] == first
    reasons = [{row["reason"] for row in share["drops"]} for share in books(platform)["workers"]]
    assert not reasons[0] & {"component-crash", "component-down"}, reasons
    platform.execute("terminate", INSTANCE, force=True)


def test_a_new_supervisor_takes_over_all_workers(platform: PlatformUnderTest) -> None:
    platform.deploy(plan_of(platform, "copy", 2, ENDLESS, rate=20_000))
    before, old = pids(platform), platform.supervisor_pid
    platform.kill(old)
    platform.wait_supervisor(other_than=old)
    assert pids(platform) == before
    for worker in (0, 1):
        moves_on(platform, worker)
    lost = platform.instance(INSTANCE)["workers"][1]["pid"]
    platform.kill(lost)
    platform.wait_for(lambda: running(platform, 1, lost), "it does not look after worker 1")
    platform.execute("terminate", INSTANCE, force=True)


@pytest.mark.parametrize("isolation", ["fused", "copy"])
def test_operations_reach_all_copies(platform: PlatformUnderTest, isolation: str) -> None:
    root = platform.package("asked", {"one/one.c": ASKED_C})
    plan = plan_of(platform, isolation, 2, operations=ASKED_OPERATIONS, state=None, metrics=[])
    plan["package"], plan["components"][0]["source"] = {"id": "asked", "root": str(root)}, str(root / "one")
    platform.deploy(plan)
    all_sent(platform)

    def ask(name: str, **more: Any) -> dict[str, Any]:
        return platform.request("agent", instance=INSTANCE, component="one", verb="call", name=name, **more)

    assert ask("put", arguments={"word": "all"}) == {"result": {"had": "nothing"}}
    assert ask("put", arguments={"word": "second"}, replica=1) == {"result": {"had": "all"}}
    assert ask("put", arguments={"word": "end"}) == {"result": {}, "results": [{"had": "all"}, {"had": "second"}]}
    # all or an error that says who has not done it
    assert ask("once") == {"result": {}}
    assert ask("put", arguments={"word": "free"}, replica=0) == {"result": {"had": "done"}}
    with pytest.raises(CovenError) as refused:
        ask("once")
    assert refused.value.code == "component.operation-failed"
    said = str(refused.value)
    whose = ("in worker 0", "in worker 1") if isolation == "fused" else ("of worker 0", "of worker 1")
    assert f"component one {whose[1]}: " in said
    assert f"done by component one {whose[0]}" in said
    platform.execute("stop", INSTANCE)
    if isolation == "fused":
        with pytest.raises(CovenError) as silent:
            ask("put", arguments={"word": "x"})
        assert silent.value.code == "component.not-running"
    platform.execute("terminate", INSTANCE)


def test_on_failure_stop_stops_all_workers(platform: PlatformUnderTest) -> None:
    platform.deploy(plan_of(platform, "copy", 2, ENDLESS, on_failure="stop"))
    for worker in (0, 1):
        moves_on(platform, worker)

    def die() -> bool:
        row = platform.replica(INSTANCE, "one", 1)
        if row["state"] == "ready" and row["pid"]:
            platform.kill(row["pid"])
        return bool(row["state"] == "parked")

    platform.wait_for(die, "the copy of worker 1 is not parked")
    assert platform.instance(INSTANCE)["health"] == "failed"

    def halted() -> bool:
        """Generators without a rate never wait: each turn of a worker that reads its ports takes packets."""
        taken = [books(platform)["workers"][0] for _ in range(10)]
        turns = taken[-1]["worker"]["loops"] - taken[0]["worker"]["loops"]
        return turns >= 9 and len({share["accounting"]["rx"] for share in taken}) == 1

    platform.wait_for(halted, "worker 0 goes on")
    # so does its successor
    before = platform.instance(INSTANCE)["workers"][0]["pid"]
    platform.kill(before)
    platform.wait_for(lambda: running(platform, 0, before), "worker 0 does not come back")
    platform.wait_for(halted, "the successor of worker 0 goes on")
    # and under another supervisor, which lets all go on when the component is back
    old = platform.supervisor_pid
    platform.kill(old)
    platform.wait_supervisor(other_than=old)
    platform.wait_for(halted, "worker 0 goes on under another supervisor")
    platform.execute("heal", INSTANCE)
    for worker in (0, 1):
        moves_on(platform, worker)
    platform.execute("terminate", INSTANCE, force=True)


def cores_of(pid: int) -> set[int]:
    text = Path(f"/proc/{pid}/status").read_text()
    words = next(line for line in text.splitlines() if line.startswith("Cpus_allowed_list")).split()[1]
    ranges = [part.partition("-") for part in words.split(",")]
    return {core for first, _, last in ranges for core in range(int(first), int(last or first) + 1)}


def test_workers_and_components_are_pinned(platform: PlatformUnderTest) -> None:
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        pytest.skip("needs two cores")
    plan = plan_of(platform, "copy", 1)
    plan["worker"]["cores"] = [cores[-1]]
    platform.deploy(plan)
    worker, component = pids(platform)
    assert cores_of(worker) == {cores[-1]}
    assert cores_of(component) == set(cores[:-1])
    assert platform.instance(INSTANCE)["workers"][0]["core"] == cores[-1]
    platform.kill(worker)
    platform.wait_for(lambda: running(platform, 0, worker), "the worker does not come back")
    assert cores_of(pids(platform)[0]) == {cores[-1]}
    platform.execute("terminate", INSTANCE, force=True)
    plan["worker"] |= {"cores": cores[:2], "component_cores": [cores[1]]}
    platform.deploy(plan)
    assert [cores_of(pid) for pid in pids(platform)] == [{cores[0]}, {cores[1]}, {cores[1]}, {cores[1]}]
    platform.execute("terminate", INSTANCE, force=True)


@pytest.mark.parametrize(("key", "part"), [("cores", "worker 0"), ("component_cores", "components")])
def test_a_core_that_is_not_there_is_refused(platform: PlatformUnderTest, key: str, part: str) -> None:
    plan = plan_of(platform, "copy", 1)
    plan["worker"][key] = [4095]
    with pytest.raises(OperationFailed) as refused:
        platform.deploy(plan)
    assert refused.value.code == "worker.bad-core"
    assert f"core 4095 for {part} is not there" in refused.value.operation["error"]["message"]
    assert platform.request("state")["instances"] == {}


def test_a_core_that_is_not_allowed_is_refused(tmp_path: Path) -> None:
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        pytest.skip("needs two cores")
    os.sched_setaffinity(0, cores[:1])
    try:
        with PlatformUnderTest(tmp_path) as platform:
            plan = plan_of(platform, "copy", 1)
            plan["worker"]["cores"] = [cores[-1]]
            with pytest.raises(OperationFailed) as refused:
                platform.deploy(plan)
            assert "may not be used by this platform" in refused.value.operation["error"]["message"]
            assert f"cores that can be used: {cores[0]}" in refused.value.operation["error"]["hint"]
    finally:
        os.sched_setaffinity(0, cores)
