"""The Management Agent put together: what the routes call."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import coven
from coven.errors import CovenError
from coven.management.events import EventLog
from coven.management.instances import Instances
from coven.management.monitor import Monitor
from coven.management.operations import Operations
from coven.management.packages import Packages
from coven.management.reconcile import Reconciler
from coven.management.state import Store
from coven.management.supervisor_client import SupervisorClient

MAX_WAITERS = 8  # requests that wait for something to happen; more than that are answered at once


@dataclass(frozen=True, slots=True)
class Settings:
    """What the agent is started with."""

    state_dir: Path
    run_dir: Path
    supervisor: Path
    max_upload_bytes: int


class Platform:
    """Everything behind the routes."""

    def __init__(self, settings: Settings) -> None:
        """Open the state and clean up what a killed agent left behind; nothing is started yet."""
        self.settings = settings
        self.store = Store(settings.state_dir / "agent.sqlite")
        self.events = EventLog(settings.state_dir / "events.jsonl")
        self.supervisor = SupervisorClient(settings.supervisor)
        self.packages = Packages(settings.state_dir, self.store, self.events, settings.max_upload_bytes)
        self.operations = Operations(self.store, self.supervisor, self.events)
        self.instances = Instances(self.store, self.supervisor, self.operations, self.packages)
        self.reconciler = Reconciler(self.store, self.supervisor, self.operations, self.events, self.instances.plan)
        self.listeners: list[str] = []
        self.served: Callable[[], dict[str, int]] = lambda: {"rx_bytes": 0, "tx_bytes": 0}
        self._monitor = Monitor()
        self._waiters = threading.BoundedSemaphore(MAX_WAITERS)

    def start(self) -> None:
        """Say that the agent is there and follow the supervisor."""
        self.events.append({"type": "agent-ready", "pid": os.getpid()})
        self.reconciler.start()

    def stop(self) -> None:
        """Let nobody wait any longer."""
        self.events.append({"type": "agent-stopped", "pid": os.getpid()})
        self.operations.close()
        self.events.close()

    @contextmanager
    def waiting(self, seconds: float) -> Iterator[float]:
        """Give how long a request may wait: as asked for, or not at all when too many do already."""
        if not seconds or not self._waiters.acquire(blocking=False):
            yield 0.0
            return
        try:
            yield float(seconds)
        finally:
            self._waiters.release()

    def describe(self) -> dict[str, Any]:
        """Give version, health and what could not be had; answers without a supervisor, too."""
        document: dict[str, Any] = {
            "name": "coven",
            "version": coven.__version__,
            "health": "ok",
            "problems": [],
            "agent": {"pid": os.getpid(), "uid": os.getuid(), "listeners": self.listeners},
            "supervisor": None,
            "degraded": [],
            "instances": {},
        }
        try:
            hello = self.supervisor.request("hello")
            actual = self.supervisor.request("state")["instances"]
        except CovenError as error:
            document["health"] = "failed"
            document["problems"] = [error.message]
            return document
        document["supervisor"] = hello
        document["degraded"] = hello.get("degraded", [])
        for known in self.store.instances():
            found = actual.get(known.id)
            health = found.get("health", "ok") if found else "failed"
            document["instances"][known.id] = found["state"] if found else "absent"
            if health != "ok" and document["health"] == "ok":
                document["health"] = "degraded"
                document["problems"].append(f"instance {known.id} is {health}")
        document["storage"] = {"free_bytes": shutil.disk_usage(self.settings.state_dir).free}
        return document

    def monitor(self, instance_id: str) -> dict[str, Any]:
        """Give CPU, memory and network use of the whole and of each process."""
        found = self.instances.live(instance_id)
        snapshot = self.supervisor.request("snapshot", instance=instance_id)
        hello = self.supervisor.request("hello")
        pids = {
            "supervisor": hello.get("pid"),
            "keeper": hello.get("keeper_pid") or hello.get("keeper"),
            "agent": os.getpid(),
        }
        return self._monitor.instance(found, snapshot, pids, self.served)

    def turn_off(self, *, force: bool) -> None:
        """End agent, supervisor and keeper; raises platform.running if functions run and not forced."""
        self.events.append({"type": "agent-off", "force": force})
        self.supervisor.request("shutdown", force=force)
