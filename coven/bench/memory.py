"""From memory to memory: port gen makes packets, components see them, port gen swallows them. No kernel in between.

What is measured is the worker and its components with everything that belongs to them: accounting, ledger, checks.
Generator and sink are inside the worker and counted with it; the chain of no component tells what they cost.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from coven.bench.function import PASS, Function, Part, chain, from_memory
from coven.bench.measure import Sample, Taken, cores, cpu_ns, in_turn, taken_reasons
from coven.bench.platform import Platform
from coven.bench.result import Result, of_samples
from coven.bench.session import Session

LEAST_PACKETS = 10_000
LENGTHS = (1, 2, 4, 8)


@dataclass(frozen=True, slots=True)
class Case:
    """A function, and the bare program with its arguments that does the least of the same."""

    function: Function
    bare: tuple[str, tuple[object, ...]]

    @property
    def reference(self) -> str:
        """Name of the bare program with what it did."""
        name, arguments = self.bare
        return f"{name} {' '.join(map(str, arguments))}"


def _fused(parts: tuple[Part, ...], *, functions: int = 0, rules: int = 0, flows: int = 1) -> Case:
    return Case(from_memory(parts, flows=flows), ("bare_loop", (functions, rules, 64)))


def _isolated(parts: tuple[Part, ...], size: int = 64) -> Case:
    copies = int(parts[0].isolation == "copy")
    # bare_ring has at most 8 processes: what is measured against it never has more
    return Case(from_memory(parts, size=size), ("bare_ring", (len(parts), copies, size)))


def cases() -> dict[str, Case]:
    """Give all cases by name."""
    return dict(_cases())


def _cases() -> Iterator[tuple[str, Case]]:
    yield "fused: no component", _fused(())
    for n in LENGTHS:
        yield f"fused C: null x {n}", _fused(chain(PASS["C"], "fused", n), functions=n)
    yield "fused C: firewall, 8 rules", _fused((Part("firewall"),), rules=8)
    yield "fused C: firewall, 8 rules x 2", _fused(chain("firewall", "fused", 2), rules=8)
    yield "fused C: flow state, 1000 flows", _fused((Part("flow-firewall"),), functions=1, flows=1000)
    for workers in (1, 2):
        function = from_memory((Part("firewall"),), flows=1000, workers=workers)
        yield f"fused C: firewall, 1000 flows, workers: {workers}", Case(function, ("bare_loop", (0, 8, 64)))
    for isolation in ("shared", "copy"):
        for language, kind in PASS.items():
            for n in (1, 2, 3, 4, 8) if language == "C" else (1,):
                yield f"{isolation} {language}: null x {n}", _isolated(chain(kind, isolation, n))
    yield "copy C: null x 1, 1500 B", _isolated(chain(PASS["C"], "copy", 1), 1500)
    yield "copy C: null x 3, 1500 B", _isolated(chain(PASS["C"], "copy", 3), 1500)
    yield "shared Python: each packet", _isolated((Part("pass-packet", "shared"),))


def measure(session: Session, platform: Platform, function: Function, fill: int = 0) -> Sample:
    """Deploy a function, let it warm up, and count for a while. fill: packets that must have passed before."""
    near = session.hop() if function.isolated else None
    with platform.deployed(function) as running:
        pids = running.workers
        running.moved(max(LEAST_PACKETS, fill), session.warm_up_s)
        taken = Taken(pids)
        before = (running.tx(), time.monotonic_ns(), cpu_ns(pids), cpu_ns(running.components))
        running.moved(LEAST_PACKETS, session.measure_s)
        after = (running.tx(), time.monotonic_ns(), cpu_ns(pids), cpu_ns(running.components))
        shares = taken.shares()
        lost = running.snapshot()["accounting"]["drops"]
    packets, wall, worker, parts = (b - a for a, b in zip(before, after, strict=True))
    reasons = [*taken_reasons(shares), *([f"COVEN dropped {lost} packets"] if lost else [])]
    return Sample(
        packets, wall, {"worker": worker, "components": parts},
        {f"taken_{key}": value for key, value in shares.items()}, near.regime if near else None, tuple(reasons),
    )  # fmt: skip


def bare(session: Session, name: str, arguments: tuple[object, ...]) -> Sample:
    """Run a bare program over the same work."""
    one, other = cores()
    near = session.hop() if name == "bare_ring" else None
    where: tuple[int, ...] = (one, other) if name == "bare_ring" else (one,)
    words = session.programs.words(name, *where, *arguments, round(session.measure_s * 1000))
    packets, wall, worker, *components = (int(word) for word in words)
    cpu = {"worker": worker, "components": sum(components)}
    # it never sleeps: what it did not have of its core, others had
    shares = {"waited": 1 - worker / wall}
    return Sample(
        packets, wall, cpu, regime=near.regime if near else None, invalid=tuple(taken_reasons(shares))
    )


def run(session: Session) -> list[Result]:
    """Measure all cases in turn, each bare program among them once a round."""
    chosen = {name: case for name, case in cases().items() if session.wanted(name)}
    if session.quick:
        chosen = {name: chosen[name] for name in list(chosen) if name in QUICK or session.only}
    runs: dict[str, Callable[[], Sample]] = {}
    with Platform(bin_dir=session.bin_dir) as platform:
        for name, case in chosen.items():
            runs.setdefault(case.reference, partial(bare, session, *case.bare))
            runs[name] = partial(measure, session, platform, case.function)
        samples = in_turn(runs, session.rounds, session.note)
    return [
        of_samples("memory", name, samples[name], samples[case.reference], case.reference)
        for name, case in chosen.items()
    ]


QUICK = ("fused C: null x 1", "shared C: null x 1", "copy C: null x 1", "shared Python: null x 1")
