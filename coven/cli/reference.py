"""The command's reference, made from its parser; part of docs/cli.md."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from coven.cli.main import STATUSES, make_parser


def commands() -> str:
    """Give the Markdown of all commands."""
    parser = make_parser()
    text = "### coven\n\n" + _options(parser) + f"\n```text\n{STATUSES}\n```\n"
    for words, command in _leaves(parser, ()):
        text += f"\n### coven {' '.join(words)}\n\n{command.description}\n\n"
        text += f"```text\n{_usage(command, words)}\n```\n\n{_options(command)}"
    return text.rstrip("\n") + "\n"


def _leaves(
    parser: argparse.ArgumentParser, words: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], argparse.ArgumentParser]]:
    nested = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    if not nested:
        yield words, parser
    for action in nested:
        for name, child in action.choices.items():
            yield from _leaves(child, (*words, name))


def _usage(command: argparse.ArgumentParser, words: tuple[str, ...]) -> str:
    # Not format_usage(), which breaks lines by the width of whoever's terminal it is.
    parts = ["coven", *words]
    for action in _actions(command):
        name = _name(action)
        if action.option_strings:
            parts.append(f"[{name}]" if not action.required else name)
        elif action.nargs == "*":
            parts.append(f"[{name} ...]")
        else:
            parts.append(f"[{name}]" if action.nargs == "?" else name)
    return " ".join(parts)


def _actions(command: argparse.ArgumentParser) -> list[argparse.Action]:
    hidden = (argparse._HelpAction, argparse._VersionAction, argparse._SubParsersAction)
    return [action for action in command._actions if not isinstance(action, hidden)]


def _name(action: argparse.Action) -> str:
    value = action.metavar or action.dest.upper()
    if isinstance(value, tuple):
        value = " ".join(value)
    if not action.option_strings:
        return value if action.metavar else action.dest
    flags = action.option_strings[-1]
    if isinstance(action, argparse.BooleanOptionalAction):
        return " | ".join(action.option_strings)
    return flags if action.nargs == 0 else f"{flags} {value}"


def _options(command: argparse.ArgumentParser) -> str:
    rows = []
    for action in _actions(command):
        text = (action.help or "").replace("%(default)s", str(action.default)).replace("%%", "%")
        rows.append(f"| `{_name(action)}`".replace(" | -", "`, `-") + f" | {text} |")
    return "| | |\n|---|---|\n" + "\n".join(rows) + "\n" if rows else ""
