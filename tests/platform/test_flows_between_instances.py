"""The state of a flow goes from one instance to another, over REST and on the command line; the component goes on counting."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from coven import package
from tests.lib.platform import PlatformUnderTest
from tests.lib.rest import Rest
from tests.platform import components as sources

VNF = """
coven: 1
name: counted
version: "1.0.0"
provider: tests
summary: counts packets of flows
ports: {lan: {}, wan: {}}
components: {part: {source: part, isolation: %s}}
paths: {through: {hops: [lan, part, wan]}}
"""
COMPONENT = """
name: part
summary: counts
framework: c
entry: part.c
state: {bytes: 8, version: 1}
metrics:
  - {name: flows, type: counter, unit: flows, help: flows seen for the first time}
  - {name: flow-pkts, type: gauge, unit: packets, help: packets of the last flow}
"""
RATE = 2000


class Two:
    """Two instances of a function on a platform, each with one flow, the same."""

    def __init__(self, under_test: PlatformUnderTest, work: Path, isolation: str) -> None:
        self.under_test, self.isolation = under_test, isolation
        under_test.wait_for((under_test.run_dir / "agent.sock").exists, "no agent listens")
        self.rest = Rest(under_test.run_dir / "agent.sock")
        folder = work / "counted"
        (folder / "part").mkdir(parents=True)
        (folder / "vnf.yaml").write_text(VNF % isolation)
        (folder / "part" / "component.yaml").write_text(COMPONENT)
        (folder / "part" / "part.c").write_text(sources.COUNT_C)
        archive = package.build(folder, work)
        answer = self.rest.call("POST", "/v1/packages", raw=archive.read_bytes(), kind="application/zip")
        assert answer.status == 201, answer.body
        for name in ("one", "two"):
            ports = {"lan": {"tool": "gen", "packets": 2**40, "rate": RATE}, "wan": {"tool": "gen", "packets": 0}}
            body = {"package": answer.json["id"], "id": name, "ports": ports, "grants": {"*": isolation}}
            operation = self.rest.finish(self.rest.call("POST", "/v1/instances", body))
            assert operation["state"] == "succeeded", operation["error"]

    def metric(self, instance: str, name: str) -> float:
        found = self.under_test.request("metrics", instance=instance)
        return float(found["components"]["part"]["total"][name])

    def wait_metric(self, instance: str, name: str, least: float) -> float:
        return float(
            self.under_test.wait_for(
                lambda: value if (value := self.metric(instance, name)) >= least else None, f"{name} is not {least}"
            )
        )

    def flows(self, instance: str, query: str = "") -> list[dict[str, Any]]:
        return list(self.rest.get(f"/v1/instances/{instance}/flows{query}")["flows"])

    def export(self, instance: str, flow: str, **more: Any) -> Any:
        return self.rest.call("POST", f"/v1/instances/{instance}/flows/export", {"flow": flow, **more})

    def put(self, instance: str, blob: str) -> Any:
        return self.rest.call("POST", f"/v1/instances/{instance}/flows/import", {"blob": blob})

    def coven(self, *words: str) -> str:
        command = [sys.executable, "-m", "coven", "--socket", str(self.under_test.run_dir / "agent.sock"), *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(params=["fused", "shared", "copy"])
def two(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Two]:
    with PlatformUnderTest(tmp_path, agent=True, agent_arguments=("--listen", "none")) as under_test:
        yield Two(under_test, tmp_path, request.param)
    assert under_test.leftovers() == []


@pytest.mark.skipif(os.geteuid() != 0, reason="one run as another user is enough elsewhere")
@pytest.mark.root
def test_a_flow_moves_between_instances_under_traffic(two: Two, tmp_path: Path) -> None:
    two.wait_metric("one", "flow-pkts", 500)
    (flow,) = two.flows("one")
    name = flow["flow"]
    assert not flow["moved"]
    copied = two.export("one", name)
    assert copied.status == 200, copied.body
    assert copied.json["states"] == [{"component": "part", "version": 1, "bytes": 8}]
    assert two.put("two", copied.json["blob"]).json["code"] == "flow.exists"

    # "two" gives its own up, and goes on with what "one" had
    given_up = two.export("two", name, move=True)
    assert given_up.status == 200, given_up.body
    (there,) = two.flows("two")
    assert there["moved"]
    dropped = two.under_test.wait_for(lambda: drops(two, "two").get("flow-moved"), "no packet is refused")
    assert dropped > 0
    two.wait_metric("one", "flow-pkts", 3000)
    file = tmp_path / "flow"
    said = two.coven("flows", "export", "one", *name.split(), "--move", "--output", str(file))
    assert "part (8 bytes)" in said
    least = two.metric("one", "flow-pkts")
    assert least >= 3000
    assert two.metric("two", "flow-pkts") < least
    two.coven("flows", "import", "two", str(file))
    two.wait_metric("two", "flow-pkts", least + 1)
    assert two.metric("two", "flows") == 1  # never begun anew
    (there,) = json.loads(two.coven("flows", "list", "two", "--protocol", "udp", "--json"))["flows"]
    assert (there["flow"], there["moved"]) == (name, False)
    assert two.flows("two", "?protocol=tcp") == []
    for instance in ("one", "two"):
        assert two.rest.get(f"/v1/instances/{instance}/counters")["accounting"]["balanced"]
    assert set(drops(two, "two")) <= {"flow-moved", "ring-full"}


@pytest.mark.parametrize("two", ["fused"], indirect=True)
def test_what_cannot_be_exported_or_imported(two: Two) -> None:
    assert two.export("one", "udp 9.9.9.9:1 9.9.9.8:2").json["code"] == "flow.not-found"
    assert two.export("one", "nonsense").json["code"] == "request.invalid"
    assert two.put("one", "AAAA").json["code"] == "flow.invalid"
    assert two.put("one", "not base64!").json["code"] == "flow.invalid"
    assert two.rest.call("GET", "/v1/instances/one/flows?port=x").status in (400, 422)
    assert two.rest.call("GET", "/v1/instances/one/flows?after=9999.4").json == {"flows": [], "next": None}


def drops(two: Two, instance: str) -> dict[str, int]:
    """Give packets dropped by reason."""
    found = two.rest.get(f"/v1/instances/{instance}/counters")["drops"]
    return {each["reason"]: each["packets"] for each in found if each["packets"]}
