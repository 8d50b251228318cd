"""What both forms of the demo do over REST: upload, deploy, ask, read the counters, say how to look further."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import coven
from coven import package
from coven.cli.client import Client
from coven.demo.platform import Platform, follow
from coven.demo.report import Report
from coven.errors import CovenError

INSTANCE = "demo"


def package_folder() -> Path:
    """Find packages/l7-firewall: in the repository, or where an installed COVEN carries it."""
    inside = Path(coven.__file__).parent
    for folder in (inside.parent / "packages" / "l7-firewall", inside / "examples" / "packages" / "l7-firewall"):
        if (folder / "vnf.yaml").exists():
            return folder
    raise CovenError("package.missing-file", "packages/l7-firewall is not there", hint="install COVEN again")


def upload(rest: Client) -> dict[str, Any]:
    """Build the package of l7-firewall and upload it; gives what the agent says of it."""
    with tempfile.TemporaryDirectory() as folder:
        archive = package.build(package_folder(), Path(folder))
        answer: dict[str, Any] = rest.upload("/v1/packages", archive)
    return answer


def introduce(report: Report, platform: Platform) -> None:
    """Say what answers, and what cannot be had on this machine."""
    about = platform.rest.get("/v1")
    report.facts["platform"] = about
    listeners = ", ".join(about["agent"]["listeners"])
    report.note(f"COVEN {about['version']} answers, health {about['health']}; REST at {listeners}")
    for text in about["degraded"]:
        report.note(f"not to be had here: {text}")


def deploy(report: Report, rest: Client, ports: dict[str, Any]) -> None:
    """Upload, instantiate and start; claims that the components run as the agent says they do."""
    with report.step("Upload the package l7-firewall"):
        uploaded = upload(rest)
        report.note(f"package {uploaded['id']}: {uploaded['summary']}, {uploaded['bytes']} bytes")
    with report.step("Deploy it: start its components, open its ports, begin to forward"):
        # asked for are `shared` and `fused`; granted is that both are processes that meet in shared memory
        body = {"id": INSTANCE, "package": uploaded["id"], "ports": ports, "grants": {"*": "shared"}}
        follow(rest, rest.post("/v1/instances", body), report.note)
        instance = rest.get(f"/v1/instances/{INSTANCE}")
        for component in instance["components"]:
            for replica in component["replicas"]:
                pid = replica["pid"]
                report.claim(
                    f"component {component['name']} ({component['framework']}) is ready",
                    "called inside the worker" if pid is None else f"process {pid}, isolation {component['isolation']}",
                    holds=replica["state"] in ("ready", "fused") and (pid is None or Path(f"/proc/{pid}").exists()),
                )
        report.claim(
            "the function is started and in health",
            f"{instance['state']}, {instance['health']}",
            holds=(instance["state"], instance["health"]) == ("started", "ok"),
        )


def request(rest: Client, component: str, operation: str, **arguments: Any) -> dict[str, Any]:
    """Ask a component to do something; gives its answer."""
    body = {"component": component, "operation": operation, "arguments": arguments}
    answer: dict[str, Any] = rest.post(f"/v1/instances/{INSTANCE}/request", body)["result"]
    return answer


def metric(rest: Client, component: str, name: str) -> int:
    """Read a metric of a component."""
    body = {"component": component, "metric": name}
    return int(rest.post(f"/v1/instances/{INSTANCE}/request", body)["value"])


def questions(report: Report, rest: Client) -> None:
    """Show the answers of list and check, and claim that every component answered."""
    listed = rest.get(f"/v1/instances/{INSTANCE}/list")
    checked = rest.get(f"/v1/instances/{INSTANCE}/check")
    report.facts["list"], report.facts["check"] = listed, checked
    rows = []
    for component in listed["components"]:
        for number, one in enumerate(component["metrics"]):
            name = component["name"] if number == 0 else ""
            rows.append([name, one["name"], f"{one['value']:g} {one['unit']}", one["help"]])
        for operation in component["operations"]:
            given = ", ".join(argument["name"] for argument in operation["arguments"])
            rows.append(["", f"{operation['name']}({given})", "operation", operation["help"]])
    report.table("list: what can be asked, and what the metrics say", ["component", "name", "value", "meaning"], rows)
    rows = [
        [one["component"], "yes" if one["answered"] else "no", f"{one['latency_ms']:.1f}", str(one.get("bursts", ""))]
        for one in checked["answers"]
    ]
    columns = ["component", "answers", "ms ", "bursts "]
    report.table("check: a heartbeat from the loop that handles packets", columns, rows)
    report.claim(
        "every component answers list and check",
        f"{sum(one['answered'] for one in listed['components'])} and "
        f"{sum(one['answered'] for one in checked['answers'])} of {len(listed['components'])}",
        holds=checked["healthy"] and all(one["answered"] for one in listed["components"]),
    )


def counters(report: Report, rest: Client) -> dict[str, Any]:
    """Show what was dropped and why, and claim that every packet is accounted for."""
    snapshot: dict[str, Any] = rest.get(f"/v1/instances/{INSTANCE}/counters")
    total = snapshot["accounting"]
    report.facts["counters"] = snapshot
    rows = [[drop["scope"], drop["reason"], str(drop["packets"])] for drop in snapshot["drops"]]
    report.table("What was dropped, where and why", ["where", "reason", "packets "], rows or [["nothing", "", "0"]])
    keys = ("rx_pkts", "rx_bytes", "tx_pkts", "tx_bytes", "created", "rx_missed")
    rows = [[name, *(str(port[key]) for key in keys)] for name, port in snapshot["ports"].items()]
    report.table("Ports", ["port", "rx ", "rx bytes ", "tx ", "tx bytes ", "created ", "missed "], rows)
    left = total["rx"] + total["created"]
    parts = [total[key] for key in ("tx", "consumed", "drops", "held")]
    report.claim(
        "every packet is accounted for: rx + created = tx + consumed + drops + held",
        f"{total['rx']} + {total['created']} = {' + '.join(map(str, parts))}",
        holds=left == sum(parts) and total["rx"] > 0,
    )
    return snapshot


def dropped_by_function(snapshot: dict[str, Any]) -> int:
    """Give how many packets the components decided to drop."""
    return sum(drop["packets"] for drop in snapshot["drops"] if drop["reason"] == "component-verdict")
