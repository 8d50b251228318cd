"""Commands that look: status, counters, logs, events, operations."""

from __future__ import annotations

import argparse
import base64
import collections
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from coven.cli.client import segment
from coven.cli.files import written
from coven.cli.options import UNWELL, Commands, Context, add_json
from coven.cli.show import as_json, duration, line, size, table


def register(commands: Commands[argparse.ArgumentParser]) -> None:
    """Add the commands."""
    status = commands.add_parser(
        "status",
        help="show the agent and its instances, or one instance",
        description="Show the agent and its instances, or one instance with its CPU, memory and network use. "
        "Exit status 4 if something is not well.",
    )
    status.add_argument("instance", nargs="?", help="its id")
    add_json(status)
    status.set_defaults(run=run_status)

    counters = commands.add_parser(
        "counters",
        help="show packet counters of an instance",
        description="Show packet counters of an instance, read between two bursts.",
    )
    counters.add_argument("instance", help="its id")
    add_json(counters)
    counters.set_defaults(run=run_counters)

    poison = commands.add_parser(
        "poison",
        help="packets that killed a component twice",
        description="Show the packets that killed a component twice and are dropped since; save or forget them.",
    )
    poison.add_argument("instance", help="its id")
    poison.add_argument("component", help="its name")
    poison.add_argument("--save", metavar="DIR", help="write a capture of each there")
    poison.add_argument("--clear", action="store_true", help="let such packets come to the component again")
    add_json(poison)
    poison.set_defaults(run=run_poison)
    logs = commands.add_parser(
        "logs",
        help="show the output of a component or the worker",
        description="Show the last lines of the output of a component, or of the worker if none is named.",
    )
    logs.add_argument("instance", help="its id")
    logs.add_argument("component", nargs="?", help="its name")
    logs.add_argument("--replica", type=int, default=0, help="of which replica or worker, from 0 (0)")
    logs.add_argument("-n", "--lines", type=int, default=100, help="at most so many (100)")
    add_json(logs)
    logs.set_defaults(run=run_logs)

    events = commands.add_parser(
        "events", help="show what happened", description="Show what happened, the latest last."
    )
    events.add_argument("-f", "--follow", action="store_true", help="go on as events come")
    events.add_argument("-n", "--lines", type=int, default=100, help="at most so many (100)")
    add_json(events)
    events.set_defaults(run=run_events)

    operations = commands.add_parser(
        "operations",
        help="show operations, or one with its steps",
        description="Show the latest operations, or one with its steps.",
    )
    operations.add_argument("id", nargs="?", help="of the operation")
    add_json(operations)
    operations.set_defaults(run=run_operations)


def run_status(context: Context, arguments: argparse.Namespace) -> int:
    """Show the platform or an instance."""
    if arguments.instance:
        return _instance_status(context, arguments)
    platform = context.client.get("/v1")
    instances: list[dict[str, Any]] = []
    if platform["supervisor"] is not None:
        instances = context.client.get("/v1/instances")["instances"]
    if arguments.json:
        as_json({**platform, "instances": instances})
    else:
        line(f"coven {platform['version']}: {platform['health']}")
        for text in platform["problems"]:
            line(f"  problem: {text}")
        for text in platform["degraded"]:
            line(f"  not to be had here: {text}")
        for place in platform["agent"]["listeners"]:
            line(f"  listening at {place}")
        line()
        rows = [
            (
                each["id"],
                each["vnf"],
                each["vnf_version"],
                each["state"],
                each["health"],
                ", ".join(f"{port['name']}={port.get('interface') or port['tool']}" for port in each["ports"]),
            )
            for each in instances
        ]
        table(("instance", "function", "version", "state", "health", "ports"), rows)
    return 0 if platform["health"] == "ok" else UNWELL


def _instance_status(context: Context, arguments: argparse.Namespace) -> int:
    path = f"/v1/instances/{segment(arguments.instance)}"
    instance = context.client.get(path)
    deployed = instance["state"] not in ("absent", "pending")
    monitor = context.client.get(f"{path}/monitor") if deployed else None
    if arguments.json:
        as_json({**instance, "monitor": monitor})
    else:
        _show_instance(instance)
        if monitor is not None:
            _show_monitor(monitor)
    return 0 if instance["health"] == "ok" else UNWELL


def _show_instance(instance: dict[str, Any]) -> None:
    line(
        f"{instance['id']}: {instance['vnf']} {instance['vnf_version']}, {instance['state']}, "
        f"{instance['health']}"
    )
    for text in instance["problems"]:
        line(f"  problem: {text}")
    if instance["operation"]:
        line(f"  operation {instance['operation']} is under way")
    for name, given in instance["parameters"].items():
        line(f"  parameter {name} = {given}")
    line()
    rows = [
        (
            component["name"],
            component["framework"],
            component["isolation"],
            number,
            replica["state"],
            replica.get("pid"),
            replica.get("restarts"),
            replica.get("last_exit"),
        )
        for component in instance["components"]
        for number, replica in enumerate(component["replicas"])
    ]
    columns = ("component", "framework", "isolation", "replica", "state", "pid", "restarts", "last exit")
    table(columns, rows)
    for component in instance["components"]:
        for text in _misdeeds(instance["id"], component):
            line(f"component {component['name']} {text}")
    line()
    keys = ("state", "pid", "core", "restarts", "last_exit")
    workers = [(number, *(each.get(key) for key in keys)) for number, each in enumerate(instance["workers"])]
    table(("worker", "state", "pid", "core", "restarts", "last exit"), workers)
    line(f"profile: {instance['profile']}")
    for port in instance["ports"]:
        if port.get("note"):
            line(f"port {port['name']}: {port['note']}")


def _misdeeds(instance: str, component: dict[str, Any]) -> list[str]:
    """Say what a component did since the instance was made that it should not have done."""
    found, calls = [], collections.Counter[str]()
    for replica in component["replicas"]:
        calls.update(replica.get("refused_calls") or {})
    hangs = sum(replica.get("hangs") or 0 for replica in component["replicas"])
    poison = component.get("poison") or {"packets": 0, "dropped": 0}
    if calls:
        found.append(f"asked the kernel for what it may not: {_times(calls)}")
    if component.get("violation_kinds"):
        found.append(f"broke the rules of its ring: {_times(component['violation_kinds'])}")
    if hangs:
        found.append(f"hung and was ended: {hangs} times" if hangs > 1 else "hung and was ended: once")
    if poison["packets"]:
        found.append(
            f"was killed twice by each of {poison['packets']} packets, {poison['dropped']} like them dropped since: "
            f"'coven poison {instance} {component['name']}' shows them"
        )
    return found


def _times(counts: Mapping[str, int]) -> str:
    """Give names with their numbers, the most frequent first."""
    ordered = sorted(counts.items(), key=lambda each: (-each[1], each[0]))
    return ", ".join(f"{name} {number}" for name, number in ordered)


def _show_monitor(monitor: dict[str, Any]) -> None:
    line()
    table(
        ("port", "tool", "interface", "state", "rx pkts", "rx bytes", "tx pkts", "tx bytes"),
        [
            tuple(
                port.get(key)
                for key in (
                    "name", "tool", "interface", "state", "rx_pkts", "rx_bytes", "tx_pkts", "tx_bytes"
                )
            )
            for port in monitor["ports"]
        ],
    )
    line()
    rows = [
        (
            each["part"],
            each["pid"],
            f"{each['cpu_percent']:.1f} %",
            size(each["memory_bytes"]),
            duration(each["uptime_s"]),
        )
        for each in monitor["processes"]
    ]
    core = monitor["core"]
    rows.append(("whole core", "", f"{core['cpu_percent']:.1f} %", size(core["memory_bytes"]), ""))
    table(("process", "pid", "cpu", "memory", "up"), rows)


def run_counters(context: Context, arguments: argparse.Namespace) -> int:
    """Show counters."""
    found = context.client.get(f"/v1/instances/{segment(arguments.instance)}/counters")
    if arguments.json:
        as_json(found)
        return 0
    whole = found["accounting"]
    line(
        f"rx {whole['rx']} + created {whole['created']} == tx {whole['tx']} + consumed {whole['consumed']} "
        f"+ drops {whole['drops']} + held {whole['held']}: {'yes' if whole['balanced'] else 'no'}"
    )
    line(f"lost by the kernel before: {whole.get('rx_missed', 0)}")
    shares = found.get("workers", [])
    if len(shares) > 1:
        line()
        terms = ("rx", "created", "tx", "consumed", "drops", "held", "rx_missed", "balanced")
        each_share = [(n, *(share["accounting"].get(key) for key in terms)) for n, share in enumerate(shares)]
        table(("worker", *terms), each_share)
    for title in ("ports", "components", "paths"):
        flat = {name: _flat(each) for name, each in found[title].items()}
        keys = list(dict.fromkeys(key for each in flat.values() for key in each))
        line()
        rows = [(name, *(each.get(key) for key in keys)) for name, each in flat.items()]
        table((title[:-1], *keys), rows)
    line()
    drops = [(each["scope"], each["reason"], each["packets"]) for each in found["drops"]]
    table(("dropped by", "reason", "packets"), drops)
    return 0 if whole["balanced"] else UNWELL


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    """Give a row whose inner rows have become columns of their own."""
    flat: dict[str, Any] = {}
    for key, value in row.items():
        inner = value if isinstance(value, dict) else None
        flat |= {key: value} if inner is None else {f"{key}.{name}": each for name, each in inner.items()}
    return flat


def run_logs(context: Context, arguments: argparse.Namespace) -> None:
    """Show output."""
    path = f"/v1/instances/{segment(arguments.instance)}"
    if arguments.component:
        path += f"/components/{segment(arguments.component)}"
    found = context.client.get(f"{path}/logs?lines={arguments.lines}&replica={arguments.replica}")
    if arguments.json:
        as_json(found)
        return
    for each in found["lines"]:
        line(f"{_clock(each['time'])}  {each['text']}")


def run_poison(context: Context, arguments: argparse.Namespace) -> None:
    """Show, save or forget the packets that killed a component twice."""
    path = f"/v1/instances/{segment(arguments.instance)}/components/{segment(arguments.component)}/poison"
    found = context.client.get(path)
    if arguments.save:
        _save_captures(Path(arguments.save), arguments.component, found["packets"])
    if arguments.clear:  # what could not be saved above is not forgotten
        context.client.delete(path)
    if arguments.json:
        as_json(found)
        return
    for packet in found["packets"]:
        counts = f"{packet['bytes']} bytes  {packet['deaths']} deaths  {packet['dropped']} dropped"
        line(f"{packet['fingerprint']}  {counts}{'  forgotten' if arguments.clear else ''}")
    if not found["packets"]:
        line(f"no packet is known to kill {arguments.component}")


def _save_captures(folder: Path, component: str, packets: list[dict[str, Any]]) -> None:
    for packet in packets:
        if packet["pcap"]:
            with written(folder / f"{component}-{packet['fingerprint']}.pcap") as file:
                file.write(base64.b64decode(packet["pcap"]))


def run_events(context: Context, arguments: argparse.Namespace) -> None:
    """Show events."""
    page = context.client.get(f"/v1/events?limit={max(1, min(arguments.lines, 1000))}")
    if arguments.json and not arguments.follow:
        as_json(page)
        return
    show = _show_event_json if arguments.json else _show_event
    for event in page["events"]:
        show(event)
    if arguments.follow:
        for event in context.client.events(page["next"]):
            show(event)


def _show_event(event: dict[str, Any]) -> None:
    rest = " ".join(
        f"{key}={_brief(found)}"
        for key, found in event.items()
        if key not in ("time", "type", "sequence") and found is not None
    )
    line(f"{_clock(event['time'])}  {event['type']:<20} {rest}")


def _brief(found: Any) -> Any:
    """Give an error's sentence and a step's name and state, instead of all of it."""
    if not isinstance(found, dict):
        return found
    return found.get("message") or " ".join(str(found[key]) for key in ("name", "state") if key in found)


def _show_event_json(event: dict[str, Any]) -> None:
    import json

    line(json.dumps(event))


def run_operations(context: Context, arguments: argparse.Namespace) -> None:
    """Show operations."""
    if arguments.id:
        found = context.client.get(f"/v1/operations/{segment(arguments.id)}")
        listed = [found]
    else:
        found = context.client.get("/v1/operations")
        listed = found["operations"]
    if arguments.json:
        as_json(found)
        return
    rows = [
        (
            each["id"],
            each["verb"],
            each["instance"],
            each["state"],
            f"{100 * each['progress']:.0f} %",
            _clock(each["started"]),
            (each["error"] or {}).get("code"),
        )
        for each in listed
    ]
    table(("operation", "verb", "instance", "state", "progress", "started", "error"), rows)
    if arguments.id:
        line()
        steps = [(s["name"], s["state"], s.get("ms"), (s.get("error") or {}).get("message")) for s in found["steps"]]
        table(("step", "state", "ms", "error"), steps)


def _clock(seconds: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(seconds)) + f".{int(seconds * 1000) % 1000:03}"
