"""Operations: lists of steps, each with its undo, run forward or rolled back, and journalled."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from coven.errors import CovenError, Where
from coven.supervisor.journal import Journal, Record

log = logging.getLogger(__name__)

Action = Callable[[], Awaitable[None]]


async def nothing() -> None:
    """Undo of a step that leaves nothing behind."""


@dataclass(slots=True)
class Step:
    """One step. Steps of equal `group` that follow each other run at the same time.

    undo is called as well for a step that was cut off in the middle, and may be called twice.
    """

    name: str
    part: str
    do: Action
    undo: Action = nothing
    group: int = 0
    state: str = "pending"  # pending, running, done, failed, undone, undo-failed
    ms: float = 0.0
    error: CovenError | None = None

    def to_json(self) -> dict[str, Any]:
        """Give the step as the protocol shows it."""
        return {
            "name": self.name,
            "part": self.part,
            "state": self.state,
            "ms": round(self.ms, 1),
            "error": self.error.to_json() if self.error else None,
        }


@dataclass(slots=True)
class Operation:
    """A verb on its way on one instance."""

    id: str
    verb: str
    instance: str
    request: Mapping[str, Any]  # what execute was given: plan, force, component
    steps: list[Step] = field(default_factory=list)
    state: str = "running"  # running, succeeded, failed, rolled-back
    error: CovenError | None = None
    started: float = field(default_factory=time.time)
    ended: float | None = None
    resumed: bool = False
    finished: asyncio.Event = field(default_factory=asyncio.Event)

    def to_json(self) -> dict[str, Any]:
        """Give the operation as the protocol shows it."""
        done = sum(step.state not in ("pending", "running") for step in self.steps)
        return {
            "id": self.id,
            "verb": self.verb,
            "instance": self.instance,
            "state": self.state,
            "steps": [step.to_json() for step in self.steps],
            "progress": 1.0 if self.ended else round(done / len(self.steps), 3) if self.steps else 0.0,
            "error": self.error.to_json() if self.error else None,
            "started": self.started,
            "ended": self.ended,
            "resumed": self.resumed,
        }

    def head(self) -> dict[str, Any]:
        """Give the journal's first line."""
        return {
            "operation": {
                "id": self.id,
                "verb": self.verb,
                "instance": self.instance,
                "request": dict(self.request),
                "started": self.started,
            }
        }


def from_record(record: Record) -> Operation:
    """Rebuild an operation that has ended, from its journal."""
    end = record.end or {}
    error = end.get("error")
    operation = Operation(
        id=str(record.head["id"]),
        verb=str(record.head["verb"]),
        instance=str(record.head["instance"]),
        request={},
        state=str(end.get("state", "failed")),
        error=CovenError.from_json(error) if error else None,
        started=float(record.head["started"]),
        ended=end.get("ended"),
        resumed=bool(end.get("resumed")),
    )
    for number in sorted(record.steps):
        line = record.steps[number]
        step = Step(str(line["name"]), str(line["part"]), nothing, state=str(line["state"]), ms=line.get("ms", 0.0))
        step.error = CovenError.from_json(line["error"]) if line.get("error") else None
        operation.steps.append(step)
    operation.finished.set()
    return operation


class Runner:
    """Carries out one operation."""

    def __init__(self, operation: Operation, journal: Journal, tell: Callable[[Operation, Step | None], None]) -> None:
        """tell: called after each change of a step, and with None at the end."""
        self._operation = operation
        self._journal = journal
        self._tell = tell
        self._rolling_back = False

    def restore(self, record: Record) -> None:
        """Take over from a dead supervisor: states of the steps as the journal has them."""
        self._operation.resumed = True
        self._rolling_back = record.rolling_back
        for number, line in record.steps.items():
            if number < len(self._operation.steps):
                step = self._operation.steps[number]
                step.state = str(line["state"])
                step.ms = float(line.get("ms", 0.0))
                step.error = CovenError.from_json(line["error"]) if line.get("error") else None

    async def run(self) -> None:
        """Go forward to the end, or back to the beginning. Never raises."""
        operation = self._operation
        try:
            if not self._rolling_back:
                await self._settle_cut_off()
                await self._forward()
                operation.state = "succeeded"
        except CovenError as error:
            operation.error = error
            self._rolling_back = True
            self._journal.write({"rolling_back": True})
        if self._rolling_back:
            if operation.error is None:
                operation.error = next((step.error for step in operation.steps if step.error), None)
            if operation.error is None:
                operation.error = CovenError(
                    "operation.interrupted", "the supervisor died while the operation was being rolled back"
                )
            operation.state = "rolled-back" if await self._back() else "failed"
        self._end()

    async def _settle_cut_off(self) -> None:
        """A step in the middle of which a supervisor died is undone and done anew."""
        for number, step in reversed(list(enumerate(self._operation.steps))):
            if step.state == "running":
                await self._undo(number, step)
                if step.state == "undo-failed":
                    raise step.error or CovenError("platform.internal", "a step could not be undone")
                step.state = "pending"

    async def _forward(self) -> None:
        steps = list(enumerate(self._operation.steps))
        at = 0
        while at < len(steps):
            group = [steps[at]]
            while at + len(group) < len(steps) and steps[at + len(group)][1].group == group[0][1].group != 0:
                group.append(steps[at + len(group)])
            at += len(group)
            todo = [self._do(number, step) for number, step in group if step.state != "done"]
            errors = [x for x in await asyncio.gather(*todo, return_exceptions=True) if x is not None]
            if errors:
                raise _combine(errors)

    async def _do(self, number: int, step: Step) -> None:
        begun = time.monotonic()
        step.state = "running"
        self._note(number, step)
        try:
            await step.do()
        except Exception as error:
            step.error = _as_coven_error(error, step)
            step.state = "failed"
            raise step.error from error
        else:
            step.state = "done"
        finally:
            step.ms = (time.monotonic() - begun) * 1000
            self._note(number, step)

    async def _back(self) -> bool:
        clean = True
        for number, step in reversed(list(enumerate(self._operation.steps))):
            if step.state in ("done", "failed", "running"):
                await self._undo(number, step)
            clean = clean and step.state != "undo-failed"
        return clean

    async def _undo(self, number: int, step: Step) -> None:
        try:
            await step.undo()
            step.state = "failed" if step.state == "failed" else "undone"
        except Exception as error:  # the other undos must be tried all the same
            log.exception("operation=%s undo of step %s failed", self._operation.id, step.name)
            step.state = "undo-failed"
            step.error = _as_coven_error(error, step)
        self._note(number, step)

    def _note(self, number: int, step: Step) -> None:
        self._journal.write({"step": number, **step.to_json()})
        self._tell(self._operation, step)

    def _end(self) -> None:
        operation = self._operation
        operation.ended = time.time()
        self._journal.write(
            {
                "end": {
                    "state": operation.state,
                    "error": operation.error.to_json() if operation.error else None,
                    "ended": operation.ended,
                    "resumed": operation.resumed,
                }
            }
        )
        self._journal.close()
        operation.finished.set()
        self._tell(operation, None)


def _as_coven_error(error: Exception, step: Step) -> CovenError:
    if isinstance(error, CovenError):
        return error
    log.error("step=%s unexpected", step.name, exc_info=error)
    return CovenError(
        "platform.internal",
        f"{type(error).__name__}: {error}",
        hint="the supervisor's log has the details",
        where=Where(part=step.part),
    )


def _combine(errors: list[BaseException]) -> CovenError:
    """Make one error of those that steps at the same time gave."""
    found: list[CovenError] = []
    for error in errors:
        if not isinstance(error, CovenError):
            raise error
        found.append(error)
    if len(found) == 1:
        return found[0]
    first = found[0]
    return CovenError(first.code, first.message, hint=first.hint, where=first.where, findings=tuple(found))
