"""Commands that change an instance: start, stop, restart, heal, terminate; and off, which ends the agent."""

from __future__ import annotations

import argparse

from coven.cli.client import segment
from coven.cli.options import Commands, Context, add_json, add_wait, finish
from coven.cli.show import as_json, line

DONE = {
    "start": "started",
    "stop": "stopped",
    "restart": "restarted",
    "heal": "healed",
    "terminate": "terminated",
}
HELP = {
    "start": "open the ports and take packets",
    "stop": "take no more packets; components stay ready",
    "restart": "stop and start",
    "heal": "restart what is parked or failed",
    "terminate": "take everything away and forget the instance",
}


def register(commands: Commands[argparse.ArgumentParser]) -> None:
    """Add the commands."""
    for verb, text in HELP.items():
        parser = commands.add_parser(verb, help=text, description=f"{text.capitalize()}.")
        parser.add_argument("instance", help="its id")
        if verb == "heal":
            parser.add_argument("--component", help="only this one")
        if verb == "terminate":
            parser.add_argument("--force", action="store_true", help="even when it is started")
        add_wait(parser)
        add_json(parser)
        parser.set_defaults(run=run, verb=verb)
    off = commands.add_parser(
        "off", help="end the agent", description="End the agent, the supervisor and the keeper."
    )
    off.add_argument("--force", action="store_true", help="even when functions are running")
    add_json(off)
    off.set_defaults(run=run_off)


def run(context: Context, arguments: argparse.Namespace) -> None:
    """Carry out a verb."""
    body = {
        key: found
        for key in ("component", "force")
        if (found := getattr(arguments, key, None)) not in (None, False)
    }
    path = f"/v1/instances/{segment(arguments.instance)}/{arguments.verb}"
    operation = context.client.post(path, body)
    finish(context, operation, wait=arguments.wait, as_document=arguments.json)
    if arguments.wait and not arguments.json:
        line(f"{arguments.instance} is {DONE[arguments.verb]}")


def run_off(context: Context, arguments: argparse.Namespace) -> None:
    """End the agent."""
    answer = context.client.post("/v1/agent/off", {"force": arguments.force})
    if arguments.json:
        as_json(answer)
    else:
        line("the agent ends")
