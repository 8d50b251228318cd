"""What all measurements share: clocks, cores, what others took from us, samples and their medians."""

from __future__ import annotations

import contextlib
import os
import shutil
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from coven.errors import CovenError

HERE = Path(__file__).resolve().parent
PROGRAMS = HERE / "programs"
TAKEN_LIMIT = 0.02  # of a core's time: above it a run says nothing about COVEN
TICK_S = 1.0 / os.sysconf("SC_CLK_TCK")


def cores() -> tuple[int, int]:
    """Give the core of the worker and the one of everything else; the same one twice where there is only one."""
    usable = sorted(os.sched_getaffinity(0))
    return usable[0], usable[1] if len(usable) > 1 else usable[0]


def cpu_ns(pids: Iterable[int]) -> int:
    """Give the CPU time that processes have used so far, all threads, in nanoseconds.

    This is the process CPU clock of clock_getcpuclockid(3): exact also while the process runs, unlike /proc.
    """
    return sum(time.clock_gettime_ns((~pid << 3) | 2) for pid in pids)


def pin(pid: int, core: int) -> None:
    """Bind all threads of a process to a core."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(int(task.name), {core})


def rest(seconds: float) -> None:
    """Let that much time go by: the length of a measurement, or of its warm-up."""
    threading.Event().wait(seconds)


def waited_ns(pids: Iterable[int]) -> int:
    """Give how long processes were ready to run while their core ran others (/proc/PID/schedstat), in nanoseconds."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{pid}/task").iterdir():
                total += int((task / "schedstat").read_text().split()[1])
    return total


def stolen_ns(wanted: Iterable[int]) -> int:
    """Give the time that the hypervisor took from cores so far (`steal` of /proc/stat), in nanoseconds."""
    names = {f"cpu{core}" for core in wanted}
    rows = (line.split() for line in Path("/proc/stat").read_text().splitlines())
    return sum(round(int(row[8]) * TICK_S * 1e9) for row in rows if row and row[0] in names and len(row) > 8)


class Taken:
    """How much of the cores' time others had during a measurement: other processes and the hypervisor."""

    def __init__(self, pids: Sequence[int]) -> None:
        """pids: the measured processes that have a core to themselves."""
        self._pids, self._cores = list(pids), set(cores())
        self._begin = time.monotonic_ns()
        self._waited, self._stolen = waited_ns(self._pids), stolen_ns(self._cores)

    def shares(self) -> dict[str, float]:
        """Give the shares of the time since the beginning: `waited` of the processes, `stolen` of the cores."""
        wall = max(1, time.monotonic_ns() - self._begin)
        return {
            "waited": max(0.0, (waited_ns(self._pids) - self._waited) / wall / max(1, len(self._pids))),
            "stolen": max(0.0, (stolen_ns(self._cores) - self._stolen) / wall / len(self._cores)),
        }


def taken_reasons(shares: Mapping[str, float]) -> list[str]:
    """Say why a run is invalid for what others took; nothing if they took little."""
    words = {"waited": "others had the worker's core", "stolen": "the hypervisor had the cores"}
    return [
        f"{text} {shares[key] * 100:.0f} % of the time"
        for key, text in words.items()
        if shares.get(key, 0.0) > TAKEN_LIMIT
    ]


# ---- programs ------------------------------------------------------------------------------------------


class Programs:
    """The bare forwarders and generators, compiled at first use into a folder of the run."""

    def __init__(self) -> None:
        """Make the folder."""
        self._folder = tempfile.TemporaryDirectory(prefix="coven-bench-bin-")
        self._made: dict[str, str] = {}

    def path(self, name: str) -> str:
        """Compile programs/<name>.c unless that is done; give the executable.

        Raises CovenError `component.toolchain-missing` or `platform.internal`.
        """
        if name not in self._made:
            compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("cc")
            if compiler is None:
                raise CovenError(
                    "component.toolchain-missing", "the bench needs a C compiler", hint="apt-get install gcc"
                )
            target = Path(self._folder.name) / name
            command = [compiler, "-std=gnu11", "-O2", "-pthread", str(PROGRAMS / f"{name}.c"), "-o", str(target)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise CovenError("platform.internal", f"{name}.c does not compile: {done.stderr.strip()}")
            self._made[name] = str(target)
        return self._made[name]

    def words(self, name: str, *arguments: object, timeout: float = 60) -> list[float]:
        """Run a program to its end and give the numbers it printed."""
        command = [self.path(name), *(str(argument) for argument in arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout)
        if done.returncode != 0:
            raise CovenError("platform.internal", f"{name} ended with {done.returncode}: {done.stderr.strip()}")
        return [float(word) for word in done.stdout.split()]

    def close(self) -> None:
        """Remove what was compiled."""
        self._folder.cleanup()


# ---- samples -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Sample:
    """One measurement: packets in a time, and the CPU time of each part."""

    packets: int
    wall_ns: int
    cpu_ns: Mapping[str, int]  # "worker", "components"
    more: Mapping[str, float] = field(default_factory=dict)
    regime: str | None = None  # of the hop between the cores just before: "near", "far"
    invalid: tuple[str, ...] = ()

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
        """Give it as the JSON file has it."""
        return {"median": self.median, "min": self.low, "max": self.high}


def in_turn(
    runs: Mapping[str, Callable[[], Sample]], rounds: int, note: Callable[[str], None]
) -> dict[str, list[Sample]]:
    """Take each measurement `rounds` times, one round after the other, so that what changes hits all alike."""
    samples: dict[str, list[Sample]] = {name: [] for name in runs}
    for number in range(rounds):
        for name, run in runs.items():
            sample = run()
            samples[name].append(sample)
            hop = f", hop {sample.regime}" if sample.regime else ""
            parts = " + ".join(f"{sample.cost(part):.1f}" for part in sample.cpu_ns)
            note(f"{number + 1}/{rounds} {name}: {sample.rate / 1e6:.3f} Mpps, {parts} ns CPU a packet{hop}")
    return samples
