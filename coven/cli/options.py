"""What several commands share: what they are called with, and options of the same meaning."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from typing import Any

from coven.cli.client import Client
from coven.cli.show import Progress, as_json, line
from coven.errors import CovenError

Commands = argparse._SubParsersAction  # what add_subparsers gives; generic only when checked
UNWELL = 4


@dataclass(frozen=True, slots=True)
class Context:
    """What a command works with."""

    client: Client


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add --json."""
    parser.add_argument("--json", action="store_true", help="print JSON")


def add_wait(parser: argparse.ArgumentParser) -> None:
    """Add --no-wait."""
    parser.add_argument(
        "--wait",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="wait until the operation has ended",
    )


def pair(text: str) -> tuple[str, str]:
    """Read NAME=VALUE."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise argparse.ArgumentTypeError(f"'{text}' is not NAME=VALUE")
    return name, value


def finish(
    context: Context, operation: dict[str, Any], *, wait: bool, as_document: bool
) -> dict[str, Any]:
    """Follow an operation and show it; raises its error if it did not succeed."""
    if wait:
        operation = context.client.follow(operation, Progress(quiet=as_document).tell)
    if as_document:
        as_json(operation)
    elif not wait:
        line(f"{operation['id']} is under way")
    if operation["state"] in ("failed", "rolled-back"):
        raise outcome(operation)
    return operation


def outcome(operation: dict[str, Any]) -> CovenError:
    """Give the error of an operation that failed, with what was done about it."""
    error = CovenError.from_json(operation["error"] or {"message": "the operation failed"})
    stuck = [step["name"] for step in operation["steps"] if step["state"] == "undo-failed"]
    if stuck:
        what = f"could not be undone: {', '.join(stuck)}"
    elif operation["state"] == "rolled-back":
        what = "everything was undone"
    else:
        what = "nothing was undone"
    return CovenError(
        error.code,
        f"{operation['verb']} of {operation['instance']} failed, {what}: {error.message}",
        hint=error.hint,
        where=error.where,
        findings=error.findings,
    )


def value(text: str) -> Any:
    """Give a value as JSON if it is that, else as text."""
    try:
        return json.loads(text)
    except ValueError:
        return text
