"""Flows: list, export, import."""

from __future__ import annotations

import argparse
import base64
import urllib.parse
from pathlib import Path
from typing import Any

from coven.cli.client import segment
from coven.cli.files import written
from coven.cli.options import Commands, Context, add_json
from coven.cli.show import as_json, line, table
from coven.errors import CovenError

FILTERS = ("address", "port", "protocol", "vlan")


def register(commands: Commands[argparse.ArgumentParser]) -> None:
    """Add the commands."""
    flows = commands.add_parser(
        "flows",
        help="list flows, take the state of one along, put it in elsewhere",
        description="List the flows of an instance, export the state of one, and import it into another instance.",
    )
    which = flows.add_subparsers(dest="which", metavar="COMMAND", required=True)
    found = which.add_parser("list", help="show flows", description="Show flows, in no order that means anything.")
    found.add_argument("instance", help="its id")
    found.add_argument("--address", metavar="NETWORK", help="address or network of either end")
    found.add_argument("--port", type=int, help="port of either end")
    found.add_argument("--protocol", help="tcp, udp, or a number")
    found.add_argument("--vlan", type=int, help="outermost VLAN")
    found.add_argument("--limit", type=int, default=100, help="at most so many, 0 for all (default 100)")
    add_json(found)
    found.set_defaults(run=run_list)

    export = which.add_parser(
        "export",
        help="write the state of a flow to a file",
        description="Write the state of a flow, as all components committed it between two bursts, to a file. "
        "With --move, packets of the flow are dropped as `flow-moved` from then on.",
    )
    export.add_argument("instance", help="its id")
    export.add_argument("flow", nargs="+", help="as 'coven flows list' shows it: udp 10.0.0.1:1000 10.0.0.2:80")
    export.add_argument("--output", "-o", type=Path, required=True, metavar="FILE", help="to write")
    export.add_argument("--move", action="store_true", help="the flow does not go on here")
    add_json(export)
    export.set_defaults(run=run_export)

    put = which.add_parser(
        "import",
        help="put an exported flow in",
        description="Put an exported flow in; the components go on where they were.",
    )
    put.add_argument("instance", help="its id")
    put.add_argument("file", type=Path, help="what export wrote")
    put.add_argument("--worker", type=int, default=0, help="which worker's, from 0 (default 0)")
    add_json(put)
    put.set_defaults(run=run_import)


def run_list(context: Context, arguments: argparse.Namespace) -> None:
    """Show flows."""
    given = {key: getattr(arguments, key) for key in FILTERS}
    query = {key: str(value) for key, value in given.items() if value is not None}
    found: list[dict[str, Any]] = []
    after: str | None = ""
    while after is not None and (not arguments.limit or len(found) < arguments.limit):
        query["limit"] = str(min(1000, arguments.limit - len(found)) if arguments.limit else 1000)
        query["after"] = after
        path = f"/v1/instances/{segment(arguments.instance)}/flows?{urllib.parse.urlencode(query)}"
        answer = context.client.get(path)
        found += answer["flows"]
        after = answer["next"]
    if arguments.json:
        as_json({"flows": found, "next": after})
        return
    rows = [
        (each["flow"], *each["packets"], f"{each['idle_ms'] / 1000:.1f} s", "moved" if each["moved"] else "")
        for each in found
    ]
    table(("flow", "packets", "back", "idle", ""), rows)
    if after is not None:
        line("there are more; --limit 0 shows all")


def run_export(context: Context, arguments: argparse.Namespace) -> None:
    """Write a flow to a file."""
    body = {"flow": " ".join(arguments.flow), "move": arguments.move}
    with written(arguments.output) as output:  # opened first: a flow that has moved is nowhere but in its file
        answer = context.client.post(f"/v1/instances/{segment(arguments.instance)}/flows/export", body)
        output.write(base64.b64decode(answer.pop("blob")))
    if arguments.json:
        as_json(answer)
        return
    states = ", ".join(f"{each['component']} ({each['bytes']} bytes)" for each in answer["states"]) or "no component"
    line(f"{answer['flow']}: state of {states} written to {arguments.output}")


def run_import(context: Context, arguments: argparse.Namespace) -> None:
    """Put a flow in."""
    try:
        blob = arguments.file.read_bytes()
    except OSError as error:
        raise CovenError(
            "request.invalid",
            f"cannot read {arguments.file}: {error.strerror}",
            hint="name the file that 'coven flows export' wrote",
        ) from error
    body = {"blob": base64.b64encode(blob).decode("ascii"), "worker": arguments.worker}
    answer = context.client.post(f"/v1/instances/{segment(arguments.instance)}/flows/import", body)
    if arguments.json:
        as_json(answer)
        return
    line(f"{answer['flow']} is in {arguments.instance} now")
