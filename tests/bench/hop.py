"""The hop between two cores: how long one waits for what the other wrote. It decides what a ring can reach."""

from __future__ import annotations

import os
import subprocess

from tests.bench.measure import COMPONENT_CORE, WORKER_CORE, compiled

FAR_NS = 150.0  # cores of one cache take some 20 to 100 ns; other sockets, and cores a hypervisor takes away, more


def run() -> dict[str, object] | None:
    """Measure one way; None on a machine with one core."""
    if (os.cpu_count() or 1) < 2:
        return None
    program = compiled("hop", "-pthread")
    done = subprocess.run(
        [str(program), str(WORKER_CORE), str(COMPONENT_CORE)], capture_output=True, text=True, check=True, timeout=60
    )
    median, low, high = (float(word) for word in done.stdout.split())
    regime = "near" if median < FAR_NS else "far"
    return {"one_way_ns": {"median": median, "min": low, "max": high}, "regime": regime, "limit_ns": FAR_NS}
