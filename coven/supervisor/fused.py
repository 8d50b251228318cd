"""Components inside the worker: which of them killed it, and which are left out for having done so too often.

Before the worker calls into a fused component it leaves a breadcrumb in the ledger. After a death the breadcrumb
says who caused it; the deaths are counted for the component, not for the worker, and a component that has too many
is parked: the next worker does not get its code, so packets meet what its `on_failure` says.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

from coven.supervisor.backoff import BackOff


def guilty(ledger: int) -> int | None:
    """Give the component (index) in whose code the worker of this ledger (descriptor) died; None: its own fault."""
    from coven.dataplane.core import lib

    word = os.pread(ledger, 4, lib.coven_ledger_breadcrumb_offset())
    component = int.from_bytes(word, "little")
    return component - 1 if component > 0 else None


@dataclass(slots=True)
class FusedComponents:
    """Deaths and parking of one worker's fused components, by index."""

    parked: dict[int, str | None] = field(default_factory=dict)  # index -> how the worker died at last
    back_off: dict[int, BackOff] = field(default_factory=dict)
    hangs: dict[int, int] = field(default_factory=dict)  # index -> how often it did not return

    def died(self, index: int, how: str | None) -> float:
        """Note a death; give the seconds until the next worker. Parks the component when it has died too often."""
        wait = self.back_off.setdefault(index, BackOff()).died()
        if wait is None:
            self.parked[index] = how
        return wait or 0.0

    def hung(self, index: int) -> None:
        """Note that a component did not return."""
        self.hangs[index] = self.hangs.get(index, 0) + 1

    def release(self, index: int | None = None) -> None:
        """Give one component, or all, another chance."""
        for done in [index] if index is not None else [*self.back_off, *self.parked]:
            self.parked.pop(done, None)
            self.back_off.pop(done, None)

    def remember(self) -> dict[str, Any]:
        """Give what a successor needs."""
        return {str(index): how for index, how in self.parked.items()}

    def recall(self, document: dict[str, Any]) -> None:
        """Take over what a predecessor left."""
        self.parked = {int(index): how for index, how in document.items()}
