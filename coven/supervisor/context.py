"""What all parts of the supervisor share: settings, descriptors, cgroups, events and the manifest's pen."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from coven.supervisor.cgroup import Hierarchies
from coven.supervisor.config import REPLICA_UID, Settings
from coven.supervisor.keeper import Keeper


@dataclass(slots=True)
class Context:
    """Handed to every part; made once in `main`."""

    settings: Settings
    keeper: Keeper
    cgroups: Hierarchies
    save: Callable[[], None] = lambda: None  # write the manifest; to be called before an effect
    listeners: list[Callable[[dict[str, Any]], None]] = field(default_factory=list)
    uids: set[int] = field(default_factory=set)  # numbers in the pool that are in use
    interfaces: dict[str, str] = field(default_factory=dict)  # taken by a port -> "<instance> port <name>"

    def emit(self, kind: str, instance: str | None = None, part: str | None = None, /, **more: Any) -> None:
        """Tell an event to everybody who subscribed."""
        event = {"time": time.time(), "type": kind, "instance": instance, "part": part, **more}
        for listener in list(self.listeners):
            listener(event)

    def take_uid(self) -> int:
        """Give a number of the pool that no other replica has."""
        number = next(n for n in range(len(self.uids) + 1) if n not in self.uids)
        self.uids.add(number)
        return number

    def uid(self, number: int) -> int | None:
        """Give the numeric user for a number of the pool; None without privileges."""
        return self.settings.uid_base + REPLICA_UID + number if self.settings.privileged else None
