"""What people see: plain tables, in colour only on a terminal (and not with NO_COLOR)."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

COLOURS = {
    "ok": "green", "started": "green", "ready": "green", "up": "green", "succeeded": "green", "yes": "green",
    "running": "green", "done": "green", "fused": "green",
    "degraded": "yellow", "stopped": "yellow", "restarting": "yellow", "starting": "yellow",
    "rolled-back": "yellow", "undone": "yellow", "instantiated": "yellow",
    "failed": "red", "parked": "red", "absent": "red", "down": "red", "no": "red", "undo-failed": "red",
}  # fmt: skip


def as_json(document: object) -> None:
    """Print JSON for programs."""
    print(json.dumps(document, indent=2, ensure_ascii=False))


def line(text: str = "") -> None:
    """Print a line."""
    print(text, flush=True)


def table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, indent: int = 0) -> None:
    """Print a table; nothing but its heading if there are no rows."""
    cells = [["" if cell is None else str(cell) for cell in row] for row in rows]
    if sys.stdout.isatty():
        _rich_table(columns, cells, indent)
        return
    widths = [max(len(row[i]) for row in [list(columns), *cells]) for i in range(len(columns))]
    for row in [[column.upper() for column in columns], *cells]:
        text = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print(" " * indent + text.rstrip())


def _rich_table(columns: Sequence[str], rows: list[list[str]], indent: int) -> None:
    from rich.console import Console
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    made = Table(*[column.upper() for column in columns], box=None, header_style="bold", pad_edge=False)
    for row in rows:
        made.add_row(*[Text(cell, style=COLOURS.get(cell, "")) for cell in row])
    Console(highlight=False).print(Padding(made, (0, 0, 0, indent)))


def duration(seconds: float) -> str:
    """Give a duration for people."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def size(count: float) -> str:
    """Give a number of bytes for people."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


class Progress:
    """Prints the steps of an operation as they end."""

    def __init__(self, *, quiet: bool) -> None:
        """quiet: print nothing (with --json)."""
        self._quiet = quiet
        self._printed: set[tuple[int, str]] = set()

    def tell(self, operation: dict[str, Any]) -> None:
        """Take the operation as it stands now."""
        if self._quiet:
            return
        for number, step in enumerate(operation["steps"]):
            state = step["state"]
            if state in ("pending", "running") or (number, state) in self._printed:
                continue
            self._printed.add((number, state))
            name = step["name"]
            part = step.get("part")
            label = name if not part or part in name else f"{name} ({part})"
            line(f"  {state:<11} {label:<32} {step.get('ms') or 0:8.1f} ms")
