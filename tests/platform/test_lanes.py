"""Several workers of one instance: shares, sums, deaths of one, takeover. On generators, so without root as well."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lib import plans
from tests.lib.platform import BIN, PlatformUnderTest
from tests.platform import components as sources

pytestmark = pytest.mark.skipif(not (BIN / "coven-worker").exists(), reason="the programs are not built")

INSTANCE = "fw-1"
FLOWS = 7
PACKETS = 7 * 300 + 3


@pytest.fixture
def platform(tmp_path: Path) -> Iterator[PlatformUnderTest]:
    with PlatformUnderTest(tmp_path) as made:
        yield made
    assert made.leftovers() == []


def plan_of(
    platform: PlatformUnderTest, isolation: str, workers: int, packets: int = PACKETS, **gen: Any
) -> dict[str, Any]:
    """A counting component between two generators, the second of which only swallows."""
    root = platform.package("demo", {"one/one.c": sources.COUNT_C})
    one = plans.component(
        "one",
        root,
        "c",
        isolation_asked=isolation,
        isolation=isolation,
        state=sources.COUNT_STATE,
        metrics=sources.COUNT_METRICS,
    )
    ports = [plans.gen_port("lan", packets, flows=FLOWS, **gen), plans.gen_port("wan")]
    plan = plans.chain(INSTANCE, root, [one], ports)
    plan["worker"]["cores"] = [None] * workers
    return plan


def all_sent(platform: PlatformUnderTest, packets: int = PACKETS) -> dict[str, Any]:
    def sent() -> dict[str, Any] | None:
        taken = platform.request("snapshot", instance=INSTANCE)
        balanced(taken)
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
