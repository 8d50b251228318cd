"""Questions to components: list, check, request."""

from __future__ import annotations

import argparse
from typing import Any

from coven.cli.client import segment
from coven.cli.options import UNWELL, Commands, Context, add_json, pair
from coven.cli.show import as_json, line, table


def register(commands: Commands[argparse.ArgumentParser]) -> None:
    """Add the commands."""
    offers = commands.add_parser(
        "list",
        help="show what components can be asked",
        description="Show what each component says it can be asked: its metrics with present values, "
        "and its operations.",
    )
    offers.add_argument("instance", help="its id")
    add_json(offers)
    offers.set_defaults(run=run_list)

    check = commands.add_parser(
        "check",
        help="ask each component for a sign of life",
        description="Ask each component for a sign of life; it answers by the loop that handles packets. "
        "Exit status 4 if one does not.",
    )
    check.add_argument("instance", help="its id")
    add_json(check)
    check.set_defaults(run=run_check)

    request = commands.add_parser(
        "request",
        help="call an operation of a component, or read a metric",
        description="Call an operation of a component, or read a metric; 'coven list' shows both.",
    )
    request.add_argument("instance", help="its id")
    request.add_argument("component", help="its name")
    request.add_argument("operation", help="operation, or with --metric a metric")
    request.add_argument("arguments", nargs="*", type=pair, metavar="NAME=VALUE", help="arguments")
    request.add_argument("--metric", action="store_true", help="read a metric")
    request.add_argument("--replica", type=int, help="ask this one only, from 0 (operations)")
    add_json(request)
    request.set_defaults(run=run_request)


def run_list(context: Context, arguments: argparse.Namespace) -> None:
    """Show offers."""
    found = context.client.get(f"/v1/instances/{segment(arguments.instance)}/list")
    if arguments.json:
        as_json(found)
        return
    for component in found["components"]:
        _show_offers(component)


def _show_offers(component: dict[str, Any]) -> None:
    line(component["name"])
    if not component["answered"]:
        line(f"  does not answer: {component['error']['message']}")
        return
    metrics = [(m["name"], m["value"], m["unit"], m["type"], m["help"]) for m in component["metrics"]]
    table(("metric", "value", "unit", "type", "meaning"), metrics, indent=2)
    line()
    operations = [
        (each["name"], " ".join(_argument(given) for given in each["arguments"]), each["help"])
        for each in component["operations"]
    ]
    table(("operation", "arguments", "meaning"), operations, indent=2)
    line()


def _argument(given: dict[str, Any]) -> str:
    text = f"{given['name']}={given['type']}"
    return text if given.get("required", True) else f"[{text}]"


def run_check(context: Context, arguments: argparse.Namespace) -> int:
    """Show signs of life."""
    found = context.client.get(f"/v1/instances/{segment(arguments.instance)}/check")
    if arguments.json:
        as_json(found)
    else:
        rows = [
            (
                each["component"],
                each["replica"],
                "yes" if each["answered"] else "no",
                f"{each['latency_ms']:.2f} ms",
                f"{each['uptime_s']:.1f} s" if each["answered"] else "",
                each.get("bursts"),
                each.get("error", {}).get("message"),
            )
            for each in found["answers"]
        ]
        table(("component", "replica", "answers", "after", "up", "bursts", "error"), rows)
    return 0 if found["healthy"] else UNWELL


def run_request(context: Context, arguments: argparse.Namespace) -> None:
    """Call or read."""
    body: dict[str, Any] = {"component": arguments.component}
    if arguments.metric:
        body["metric"] = arguments.operation
    else:
        body |= {"operation": arguments.operation, "arguments": dict(arguments.arguments)}
        if arguments.replica is not None:
            body["replica"] = arguments.replica
    found = context.client.post(f"/v1/instances/{segment(arguments.instance)}/request", body)
    if arguments.json:
        as_json(found)
    elif arguments.metric:
        line(str(found["value"]))
    else:
        for name, text in found["result"].items():
            line(f"{name} = {text}")
        for number, answer in enumerate(found.get("results", [])):
            for name in answer.keys() - found["result"].keys():
                line(f"replica {number}: {name} = {answer[name]}")
        line(f"answered after {found['latency_ms']:.2f} ms")
