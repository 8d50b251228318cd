"""Operations: every slow verb, with id, steps, progress, errors and roll-back report.

An operation is written down as running before the supervisor hears of it, and settled once, together with
what its end means for the instance. The supervisor takes the id from here, so asking twice does it once.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from coven.errors import CovenError
from coven.management.events import EventLog
from coven.management.state import PENDING, Instance, Store
from coven.management.supervisor_client import OutcomeUnknown, SupervisorClient

log = logging.getLogger(__name__)

# States of an instance that a verb is possible in. ABSENT: it shall be there, but could not be deployed again.
ABSENT = "absent"
POSSIBLE: dict[str, frozenset[str]] = {
    "start": frozenset({"instantiated", "stopped", ABSENT}),
    "stop": frozenset({"started"}),
    "restart": frozenset({"started"}),
    "heal": frozenset({"started", "instantiated", "stopped", "failed"}),
    "terminate": frozenset({"instantiated", "stopped", "failed", ABSENT}),
}
DESIRED = {
    "deploy": "started",
    "instantiate": "instantiated",
    "start": "started",
    "restart": "started",
    "stop": "stopped",
}
ENDED = frozenset({"succeeded", "failed", "rolled-back"})


def new_operation(verb: str, instance: str) -> dict[str, Any]:
    """Give the document of an operation that has not begun."""
    return {
        "id": f"op-{secrets.token_hex(8)}",
        "verb": verb,
        "instance": instance,
        "state": "running",
        "steps": [],
        "progress": 0.0,
        "error": None,
        "started": time.time(),
        "ended": None,
    }


class Operations:
    """Begins operations, follows them and writes down how they end."""

    def __init__(self, store: Store, supervisor: SupervisorClient, events: EventLog) -> None:
        """All three are shared with the rest of the agent."""
        self._store = store
        self._supervisor = supervisor
        self._events = events
        self._changed = threading.Condition()
        self._live: dict[str, dict[str, Any]] = {}  # running ones, as the supervisor last told
        self._revision = 0
        self._closed = False
        self._beginning: set[str] = set()  # written down, and the supervisor is being asked

    # ---- begin -------------------------------------------------------------------------------------

    def create(self, instance: Instance, *, start: bool) -> dict[str, Any]:
        """Make an instance by its first deployment; raises instance.exists, package.not-found."""
        operation = new_operation("deploy" if start else "instantiate", instance.id)
        with self._begins(operation):
            self._store.add_instance(instance, operation)
            return self._execute(operation, plan=instance.plan, withdraw=instance.id)

    def redeploy(self, instance: Instance, *, start: bool) -> dict[str, Any]:
        """Deploy a known instance that the supervisor does not have (after a reboot)."""
        operation = new_operation("deploy" if start else "instantiate", instance.id)
        with self._begins(operation):
            self._store.claim(operation)
            return self._execute(operation, plan=instance.plan)

    @contextmanager
    def _begins(self, operation: dict[str, Any]) -> Iterator[None]:
        # What has no answer yet is not interrupted, only young: reconciliation leaves it alone.
        with self._changed:
            self._beginning.add(operation["id"])
        try:
            yield
        finally:
            with self._changed:
                self._beginning.discard(operation["id"])

    def is_beginning(self, operation_id: str) -> bool:
        """Tell whether the supervisor is being asked for an operation at this moment."""
        with self._changed:
            return operation_id in self._beginning

    def begin(
        self, verb: str, instance_id: str, *, force: bool = False, component: str | None = None
    ) -> dict[str, Any]:
        """Begin start, stop, restart, heal or terminate.

        Raises instance.not-found, instance.busy, instance.wrong-state, or what the supervisor says.
        """
        instance = self._store.instance(instance_id)
        operation = new_operation(verb, instance_id)
        with self._begins(operation):
            self._store.claim(operation)
            try:
                state = self._require_state(verb, instance_id, force=force)
            except BaseException:
                self._store.withdraw(operation["id"])
                raise
            if state != ABSENT:
                more: dict[str, Any] = {"force": True} if force else {}
                if component is not None:
                    more["component"] = component
                return self._execute(operation, **more)
            if verb == "terminate":
                return self._finish({**operation, "state": "succeeded", "progress": 1.0})
            # Asked to start what is not even deployed: the whole of it, as one operation.
            return self._execute({**operation, "verb": "deploy"}, plan=instance.plan)

    def _require_state(self, verb: str, instance_id: str, *, force: bool) -> str:
        state = self.actual_state(instance_id)
        if state in POSSIBLE[verb] or (verb == "terminate" and force):
            return state
        able = " or ".join(sorted(POSSIBLE[verb] - {ABSENT}))
        hint = f"'coven status {instance_id}' shows it"
        if verb == "terminate":
            hint = "stop it first, or use force"
        raise CovenError(
            "instance.wrong-state",
            f"'{verb}' needs an instance that is {able}; '{instance_id}' is {state}",
            hint=hint,
        )

    def actual_state(self, instance_id: str) -> str:
        """Give the supervisor's state of an instance, or ABSENT."""
        instances = self._supervisor.request("state")["instances"]
        return str(instances[instance_id]["state"]) if instance_id in instances else ABSENT

    def _execute(self, operation: dict[str, Any], *, withdraw: str | None = None, **more: Any) -> dict[str, Any]:
        request = {
            "operation": operation["id"],
            "verb": operation["verb"],
            "instance": operation["instance"],
            **more,
        }
        with self._changed:
            self._live[operation["id"]] = {**operation, "revision": self._revision}
        try:
            answer = self._supervisor.request("execute", **request)
        except OutcomeUnknown as error:
            # It may have begun. Reconciliation finds out when the supervisor is there again.
            log.warning("operation=%s outcome=unknown error=%s", operation["id"], error.message)
            raise
        except CovenError:
            with self._changed:
                self._live.pop(operation["id"], None)
                self._changed.notify_all()
            self._store.withdraw(operation["id"], instance=withdraw)
            raise
        return self.update(answer)

    # ---- follow ------------------------------------------------------------------------------------

    def on_event(self, event: dict[str, Any]) -> None:
        """Look at an operation again that an event speaks of."""
        operation_id = event.get("operation")
        if isinstance(operation_id, dict):
            operation_id = operation_id.get("id")
        if isinstance(operation_id, str) and operation_id in self._live:
            try:
                document = self._supervisor.request("operation", operation=operation_id)
            except CovenError as error:
                log.warning("operation=%s cannot be followed: %s", operation_id, error.message)
            else:
                self.update(document)

    def update(self, document: dict[str, Any]) -> dict[str, Any]:
        """Take what the supervisor says of an operation; settle it if it has ended."""
        if document["state"] in ENDED:
            return self._finish(document)
        with self._changed:
            self._revision += 1
            whole = {**document, "revision": self._revision}
            # An answer that was on its way while the end was settled comes too late.
            if document["id"] in self._live:
                self._live[document["id"]] = whole
            self._changed.notify_all()
        return whole

    def adopt(self, document: dict[str, Any]) -> None:
        """Follow an operation that was begun before this agent was there."""
        with self._changed:
            self._live[document["id"]] = {**document, "revision": self._revision}
        self.update(document)

    def _finish(self, document: dict[str, Any]) -> dict[str, Any]:
        with self._changed:
            self._revision += 1
            whole = {**document, "revision": self._revision}
        if whole.get("ended") is None:
            whole["ended"] = time.time()
        verb, succeeded = whole["verb"], whole["state"] == "succeeded"
        if verb == "terminate" and succeeded:
            self._store.settle(whole, forget=True)
        elif succeeded:
            self._store.settle(whole, desired=DESIRED.get(verb))
        else:
            self._settle_failure(whole)
        with self._changed:
            self._live.pop(whole["id"], None)
            self._changed.notify_all()
        return whole

    def _settle_failure(self, document: dict[str, Any]) -> None:
        instance_id = document["instance"]
        try:
            instance = self._store.instance(instance_id)
        except CovenError:
            self._store.settle(document)
            return
        if document["verb"] in ("deploy", "instantiate") and instance.desired == PENDING:
            # Gone if everything was undone; if not, it stays to be looked at and terminated.
            there = self.actual_state(instance_id) != ABSENT
            self._store.settle(document, forget=not there, problem=document["error"])
        else:
            self._store.settle(document, problem=document["error"])

    def interrupt(self, document: dict[str, Any], message: str) -> None:
        """Settle an operation that the supervisor knows nothing of."""
        error = CovenError("operation.interrupted", message, hint="nothing was changed by it; ask again")
        self._finish({**document, "state": "failed", "error": error.to_json(), "ended": time.time()})

    # ---- look --------------------------------------------------------------------------------------

    def get(self, operation_id: str, *, wait_s: float = 0, seen: int = -1) -> dict[str, Any]:
        """Give an operation; wait up to `wait_s` seconds until it ended or its revision is not `seen`."""
        deadline = time.monotonic() + wait_s
        with self._changed:
            while (live := self._live.get(operation_id)) is not None:
                left = deadline - time.monotonic()
                if left <= 0 or self._closed or live["revision"] != seen >= 0:
                    return live
                self._changed.wait(left)
        return _with_revision(self._store.operation(operation_id))

    def close(self) -> None:
        """End all waiting."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def list(self, *, instance: str | None = None, limit: int = 100) -> list[dict[str, Any]]:
        """Give the latest operations, newest first."""
        stored = self._store.operations(instance=instance, limit=limit)
        with self._changed:
            return [self._live.get(found["id"]) or _with_revision(found) for found in stored]

    def running_of(self, instance_id: str) -> str | None:
        """Give the id of the running operation of an instance."""
        return next(
            (found["id"] for found in self._store.running() if found["instance"] == instance_id),
            None,
        )


def _with_revision(document: dict[str, Any]) -> dict[str, Any]:
    return {"revision": 0, **document}
