"""What all measurements share: the CPU clock of another process, samples, medians, runs in turn."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "bench"
WORKER_CORE, COMPONENT_CORE = 0, 1


def cpu_ns(pids: Iterable[int]) -> int:
    """Give the CPU time that processes have used so far, all threads, in nanoseconds.

    This is the process CPU clock of clock_getcpuclockid(3): exact also while the process runs, unlike /proc.
    """
    return sum(time.clock_gettime_ns((~pid << 3) | 2) for pid in pids)


def pin(pid: int, core: int) -> None:
    """Bind all threads of a process to a core; machines with one core are left alone."""
    if (os.cpu_count() or 1) < 2:
        return
    for task in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(task.name), {core})


def rest(seconds: float) -> None:
    """Let that much time go by: the length of a measurement, or of its warm-up."""
    threading.Event().wait(seconds)


def compiled(name: str, *flags: str) -> Path:
    """Compile a C program of this folder; give the executable."""
    source = Path(__file__).parent / f"{name}.c"
    target = BUILD / name
    BUILD.mkdir(parents=True, exist_ok=True)
    command = [os.environ.get("CC") or shutil.which("gcc") or "cc", "-std=gnu11", "-O2", "-Wall", "-Wextra"]
    subprocess.run([*command, str(source), "-o", str(target), *flags], check=True)
    return target


@dataclass(frozen=True, slots=True)
class Sample:
    """One measurement: packets in a time, and the CPU time of each part."""

    packets: int
    wall_ns: int
    cpu_ns: Mapping[str, int]
    more: Mapping[str, float] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        """Packets a second."""
        return self.packets * 1e9 / self.wall_ns

    def cost(self, part: str | None = None) -> float:
        """CPU nanoseconds for a packet, of one part or of all."""
        total = sum(self.cpu_ns.values()) if part is None else self.cpu_ns.get(part, 0)
        return total / self.packets if self.packets else float("nan")


@dataclass(frozen=True, slots=True)
class Spread:
    """Median, least and most of repeated measurements."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Give the spread of some values."""
        return cls(statistics.median(values), min(values), max(values))

    def to_json(self) -> dict[str, float]:
        """Give it as bench.json has it."""
        return {"median": self.median, "min": self.low, "max": self.high}


def in_turn(
    runs: Mapping[str, Callable[[], Sample]], repeats: int, note: Callable[[str], None]
) -> dict[str, list[Sample]]:
    """Take each measurement `repeats` times, one round after the other, so that what changes hits all alike."""
    samples: dict[str, list[Sample]] = {name: [] for name in runs}
    for number in range(repeats):
        for name, run in runs.items():
            sample = run()
            samples[name].append(sample)
            note(f"{number + 1}/{repeats} {name}: {sample.rate / 1e6:.3f} Mpps, {sample.cost():.0f} ns CPU a packet")
    return samples


def table_rows(samples: Mapping[str, Sequence[Sample]]) -> list[dict[str, object]]:
    """Give one row for each measurement as bench.json has it."""
    rows: list[dict[str, object]] = []
    for name, taken in samples.items():
        parts = list(taken[0].cpu_ns)
        rows.append({
            "name": name,
            "pps": Spread.of([s.rate for s in taken]).to_json(),
            "cpu_ns_per_packet": Spread.of([s.cost() for s in taken]).to_json(),
            "cpu_ns_by_part": {part: Spread.of([s.cost(part) for s in taken]).to_json() for part in parts},
            "more": {key: Spread.of([s.more[key] for s in taken]).to_json() for key in taken[0].more},
        })  # fmt: skip
    return rows
