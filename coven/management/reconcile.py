"""Brings what the agent remembers and what the supervisor has together: at start, and whenever it comes back.

Nothing that runs is touched. Operations that ended without the agent are settled, instances that run are
adopted, and instances that shall be there but are not (after a reboot) are deployed again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from coven.errors import CovenError
from coven.management.events import EventLog
from coven.management.operations import Operations
from coven.management.state import PENDING, Instance, Store
from coven.management.supervisor_client import SupervisorClient

log = logging.getLogger(__name__)


class Reconciler:
    """Follows the supervisor: its events, its ends and its beginnings."""

    def __init__(
        self,
        store: Store,
        supervisor: SupervisorClient,
        operations: Operations,
        events: EventLog,
        replan: Callable[[Instance], dict[str, Any]],
    ) -> None:
        """replan: makes the plan of an instance anew from its package and what was asked for."""
        self._store = store
        self._supervisor = supervisor
        self._operations = operations
        self._events = events
        self._replan = replan
        self._settled = threading.Event()

    def start(self) -> None:
        """Follow the supervisor from a thread of its own, until the process ends."""
        threading.Thread(target=self._follow, name="reconcile", daemon=True).start()

    def wait(self, seconds: float) -> bool:
        """Wait for the first reconciliation; tells whether it has happened."""
        return self._settled.wait(seconds)

    def _follow(self) -> None:
        pause = 0.02
        while True:
            try:
                for event in self._supervisor.events(self._reconcile_safely):
                    pause = 0.02
                    self._events.append(_for_log(event))
                    self._operations.on_event(event)
                log.warning("the supervisor closed the event connection")
            except OSError as error:
                log.info("no supervisor yet: %s", error)
            except CovenError as error:
                log.error("what happened cannot be written down yet: %s", error.message)
            except Exception:
                log.exception("following the supervisor failed")
            # Only while there is no supervisor; a connection that stands is waited on.
            time.sleep(pause)
            pause = min(pause * 2, 1.0)

    def _reconcile_safely(self) -> None:
        try:
            self.reconcile()
        except CovenError as error:
            log.error("reconciliation failed: %s", error)
            if error.code == "platform.no-resources":
                raise  # what could not be written down must be later: `_follow` tries again
        finally:
            self._settled.set()

    def reconcile(self) -> None:
        """Settle operations, adopt instances, deploy again what is missing."""
        running = self._store.running()  # before the look: what comes later is in good hands
        actual = self._supervisor.request("state")
        operations, instances = actual["operations"], actual["instances"]
        for document in running:
            known = operations.get(document["id"])
            if known is not None:
                self._operations.adopt(known)
            elif self._operations.is_beginning(document["id"]):
                continue
            elif document["verb"] == "terminate" and document["instance"] not in instances:
                self._operations.adopt({**document, "state": "succeeded", "progress": 1.0, "ended": time.time()})
            else:
                self._operations.interrupt(
                    document, "the agent or the machine stopped before the supervisor took it on"
                )
        busy = {document["instance"] for document in self._store.running()}
        known_ids = set()
        for instance in self._store.instances():
            known_ids.add(instance.id)
            if instance.id in instances or instance.id in busy or instance.desired == PENDING:
                continue
            self._deploy_again(instance)
        for instance_id, found in instances.items():
            if instance_id not in known_ids:
                self._take_on(instance_id, found)

    def _deploy_again(self, instance: Instance) -> None:
        try:
            # One that was taken on has no request any more, but its plan.
            plan = self._replan(instance) if instance.request else instance.plan
            self._store.set_plan(instance.id, plan)
            again = self._store.instance(instance.id)
            self._operations.redeploy(again, start=instance.desired == "started")
            self._events.append({"type": "instance-redeployed", "instance": instance.id})
        except CovenError as error:
            log.error("instance=%s cannot be deployed again: %s", instance.id, error)
            self._events.append(
                {
                    "type": "instance-not-redeployed",
                    "instance": instance.id,
                    "error": error.to_json(),
                }
            )

    def _take_on(self, instance_id: str, found: dict[str, Any]) -> None:
        plan = found.get("plan") or {}
        state = str(found.get("state"))
        desired = state if state in ("started", "stopped", "instantiated") else "stopped"
        package = found.get("package")
        package_id = package.get("id", "") if isinstance(package, dict) else str(package or "")
        self._store.add_instance(Instance(instance_id, package_id, time.time(), desired, {}, plan), None)
        self._events.append({"type": "instance-adopted", "instance": instance_id})


def _for_log(event: dict[str, Any]) -> dict[str, Any]:
    """Give an event without the operation's whole document, which has a resource of its own."""
    kept = {key: value for key, value in event.items() if key != "sequence"}
    operation = kept.get("operation")
    if isinstance(operation, dict):
        kept |= {key: operation.get(key) for key in ("verb", "state", "error")}
        kept["operation"] = operation.get("id")
    return kept
