"""Cores that workers and components are pinned to: which there are, which may be used, and who gets which."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from coven.errors import CovenError, Where

if TYPE_CHECKING:
    from coven.forwarder.instance_plan import WorkerPlan

ONLINE = Path("/sys/devices/system/cpu/online")


def check_cores(plan: WorkerPlan) -> None:
    """Raise CovenError worker.bad-core when a core of the plan is not there or not ours to use."""
    allowed = os.sched_getaffinity(0)
    pinned = [(core, f"worker {worker}") for worker, core in enumerate(plan.cores) if core is not None]
    for core, part in [*pinned, *((core, "components") for core in plan.component_cores)]:
        if core in allowed:
            continue
        known = _online()
        why = "may not be used by this platform (cgroup cpuset or CPU affinity)" if core in known else "is not there"
        raise CovenError(
            "worker.bad-core",
            f"core {core} for {part} {why}",
            hint=f"cores that can be used: {', '.join(map(str, sorted(allowed)))}",
            where=Where(part=part),
        )


def component_cores(plan: WorkerPlan) -> tuple[int, ...]:
    """Give the cores of isolated components: those asked for, else those that no worker is pinned to.

    None: where nobody is pinned, and where workers have every core, so that components share them.
    """
    if plan.component_cores:
        return plan.component_cores
    pinned = {core for core in plan.cores if core is not None}
    return tuple(sorted(os.sched_getaffinity(0) - pinned)) if pinned else ()


def _online() -> set[int]:
    """Give the cores that the machine has."""
    found: set[int] = set()
    for part in ONLINE.read_text(encoding="ascii").strip().split(","):
        first, _, last = part.partition("-")
        found |= set(range(int(first), int(last or first) + 1))
    return found
