"""From memory to memory: port gen makes packets, components see them, port gen swallows them. No kernel in between.

What is measured is the worker and its components with everything that belongs to them: accounting, ledger, flow
lookup. Generator and sink are inside the worker and counted with it; the chain of no component tells what they cost.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from coven.dataplane.core import ffi, lib, sizeof
from tests.bench.measure import COMPONENT_CORE, WORKER_CORE, Sample, cpu_ns, in_turn, pin, rest, table_rows
from tests.lib.dataplane import COMPONENT_BASE, PORT_BASE, Rig, chain_plan, gen
from tests.lib.examples import EXAMPLES, described

ENDLESS = 2**63
WARM_UP_S, MEASURE_S, DEADLINE_S = 0.1, 0.3, 10.0
LEAST_PACKETS = 10_000
HERE = Path(__file__).parent / "components"


def component(folder: Path, name: str, isolation: str, **more: Any) -> dict[str, Any]:
    """Give a component of an example folder as a plan has it."""
    row, options = described(folder)
    size = {"ring_size": 1024, "copy_buffers": 1024} if isolation != "fused" else {}
    return {**row, "name": name, "source": str(folder), "isolation": isolation, "options": options, **size, **more}


def python(entry: str, isolation: str) -> dict[str, Any]:
    """Give a component in Python of this folder."""
    return {"name": "python", "framework": "python", "source": str(HERE), "entry": entry, "isolation": isolation,
            "ring_size": 1024, "copy_buffers": 1024}  # fmt: skip


def firewall() -> dict[str, Any]:
    """Give the firewall of this folder, fused."""
    return {"name": "firewall", "framework": "c", "source": str(HERE), "entry": "firewall.c", "isolation": "fused"}


def chain(name: str, isolation: str, length: int) -> list[dict[str, Any]]:
    """Give the same component several times in a row."""
    return [component(EXAMPLES / name, f"{name}-{i}", isolation) for i in range(length)]


SCENARIOS: dict[str, tuple[Sequence[dict[str, Any]], int]] = {
    "gen to gen, no component": ([], 1),
    **{f"fused C: null x {n}": (chain("null", "fused", n), 1) for n in (1, 2, 4, 8)},
    "fused C: filter": (chain("filter", "fused", 1), 1),
    "fused C: firewall, 8 rules": ([firewall()], 1),
    "fused C: counter, 1000 flows": (chain("counter", "fused", 1), 1000),
    "isolated C: null, shared": (chain("null", "shared", 1), 1),
    "isolated C: null, copy": (chain("null", "copy", 1), 1),
    "isolated C: null x 3, shared": (chain("null", "shared", 3), 1),
    "Python: burst, shared": ([python("burst.py", "shared")], 1),
    "Python: burst, copy": ([python("burst.py", "copy")], 1),
    "Python: each packet, shared": ([python("packet.py", "shared")], 1),
    "Python: analyzer, shared": (chain("analyzer", "shared", 1), 1),
}


def _cell(rig: Rig, cell: int) -> int:
    """Read a counter from the worker's memory, without asking it."""
    cells = ffi.cast("uint64_t *", ffi.from_buffer(rig.segments["stats"].memory) + sizeof("coven_stats"))
    return int(cells[cell])


def measure(components: Sequence[dict[str, Any]], flows: int, folder: Path, size: int = 64) -> Sample:
    """Start the chain, let it warm up, and count for a while."""
    plan = chain_plan([gen("in", packets=ENDLESS, size=size, flows=flows), gen("out")], components, buffers=4096)
    with Rig(plan, folder) as rig:
        rig.start(run=False)
        assert rig.worker is not None
        isolated = [c.pid for c in rig.components.values()]
        pin(rig.worker.pid, WORKER_CORE)
        for pid in isolated:
            pin(pid, COMPONENT_CORE)
        tx = PORT_BASE + 8 + lib.COVEN_PORT_TX_PKTS

        def now() -> tuple[int, int, int, int]:
            return _cell(rig, tx), time.monotonic_ns(), cpu_ns([rig.worker.pid]), cpu_ns(isolated)  # type: ignore[union-attr]

        def moved(packets: int, seconds: float) -> tuple[int, int, int, int]:
            """Let so much time go by, and more if others had the cores meanwhile."""
            wanted, end = _cell(rig, tx) + packets, time.monotonic() + DEADLINE_S
            rest(seconds)
            while _cell(rig, tx) < wanted:
                assert time.monotonic() < end, rig.snapshot()
                rest(seconds / 4)
            return now()

        rig.run()
        before = moved(LEAST_PACKETS, WARM_UP_S)
        after = moved(LEAST_PACKETS, MEASURE_S)
        packets, wall, worker, parts = (b - a for a, b in zip(before, after, strict=True))
        snapshot = rig.snapshot().check()
        assert snapshot.dropped == 0, snapshot
        for index in range(len(components)):
            seen = snapshot.cells[COMPONENT_BASE + 8 * index + lib.COVEN_COMPONENT_IN_PKTS]
            assert seen >= packets, (index, seen, packets)
        return Sample(packets, wall, {"worker": worker, "components": parts})


def run(repeats: int, note: Callable[[str], None], only: str = "") -> list[dict[str, object]]:
    """Measure all scenarios in turn."""
    with tempfile.TemporaryDirectory(prefix="coven-bench-") as name:
        runs = {
            title: partial(measure, components, flows, Path(name))
            for title, (components, flows) in SCENARIOS.items()
            if only in title
        }
        return table_rows(in_turn(runs, repeats, note))
