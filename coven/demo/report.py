"""What the demo tells: steps while they happen, claims with the figures they stand on, a summary at the end.

On a terminal with colours and lines, elsewhere as plain text; with `--json` the steps go to standard error and one JSON
document to standard output.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table


@dataclass(frozen=True, slots=True)
class Claim:
    """Something that the demo says is true, the figures it concludes that from, and whether they bear it out."""

    text: str
    figure: str
    holds: bool


@dataclass(slots=True)
class Step:
    """One step: what was done, what happened, how long it took."""

    title: str
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0
    error: str | None = None


class Report:
    """Collects and shows."""

    def __init__(self, *, as_json: bool) -> None:
        """as_json: keep standard output for the document."""
        self.as_json = as_json
        self.console = Console(stderr=as_json, highlight=False, soft_wrap=True)
        if not self.console.is_terminal:
            self.console.width = 160
        self.steps: list[Step] = []
        self.claims: list[Claim] = []
        self.facts: dict[str, Any] = {}  # of the document: accounting, drops, answers, ...

    def title(self, text: str) -> None:
        """Show what this is."""
        self.console.print(Panel(text, expand=False) if self.console.is_terminal else text)

    @contextlib.contextmanager
    def step(self, title: str) -> Iterator[Step]:
        """Show a step while it goes on, and its end with the time it took."""
        step = Step(title)
        self.steps.append(step)
        number = len(self.steps)
        self.console.print(f"\n[bold cyan]{number:2}[/] [bold]{escape(title)}[/]")
        began = time.monotonic()
        try:
            yield step
        except BaseException as error:
            step.error = f"{type(error).__name__}: {error}"
            raise
        finally:
            step.seconds = time.monotonic() - began
            mark = "[red]failed[/]" if step.error else "[green]done[/]"
            self.console.print(f"   {mark} [dim]in {step.seconds:.2f} s[/]")

    def note(self, text: str) -> None:
        """Show something that happened within the step."""
        if self.steps:
            self.steps[-1].notes.append(text)
        self.console.print(f"   {escape(text)}")

    def claim(self, text: str, figure: str, *, holds: bool) -> None:
        """Make a claim; the demo succeeds only if all of them hold."""
        self.claims.append(Claim(text, figure, holds))
        mark = "[green]✓[/]" if holds else "[bold red]✗[/]"
        self.console.print(f"   {mark} {escape(text)}: [bold]{escape(figure)}[/]")

    def table(self, title: str, columns: list[str], rows: list[list[str]]) -> None:
        """Show a table; columns whose name ends in a blank are aligned to the right."""
        table = Table(title=title, title_justify="left", title_style="bold", expand=False)
        for column in columns:
            table.add_column(column.strip(), justify="right" if column.endswith(" ") else "left")
        for row in rows:
            table.add_row(*map(escape, row))
        self.console.print()
        self.console.print(table)

    def heading(self, text: str) -> None:
        """Begin a part of the summary."""
        self.console.print(f"\n[bold]{escape(text)}[/]")

    def line(self, text: str) -> None:
        """Show a line of the summary as it is."""
        self.console.print(escape(text))

    @property
    def holds(self) -> bool:
        """Tell whether something was claimed and all of it is true."""
        return bool(self.claims) and all(claim.holds for claim in self.claims)

    def finish(self, error: str | None = None) -> None:
        """Show the claims and the verdict; print the document if one is wanted."""
        rows = [["yes" if claim.holds else "NO", claim.text, claim.figure] for claim in self.claims]
        if rows:
            self.table("What was claimed, and is it true?", ["true", "claim", "figures"], rows)
        wrong = sum(not claim.holds for claim in self.claims)
        if error:
            verdict = f"[bold red]The demo ended early:[/] {escape(error)}"
        elif self.holds:
            verdict = f"[bold green]All {len(self.claims)} claims are true.[/]"
        else:
            verdict = f"[bold red]{wrong} of {len(self.claims)} claims are not true.[/]"
        self.console.print(f"\n{verdict}")
        if self.as_json:
            document = {
                "ok": self.holds and error is None,
                "error": error,
                "steps": [asdict(step) for step in self.steps],
                "claims": [asdict(claim) for claim in self.claims],
                **self.facts,
            }
            sys.stdout.write(json.dumps(document, indent=2) + "\n")
