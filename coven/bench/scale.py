"""Cost of a packet against size: flows, rules, paths, components; from memory to memory, each with its own reference.

The reference of a series is the smallest of it or, for rules, a bare loop over the same list: what the machine asks for
memory that no longer fits its caches is in both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from coven.bench import memory
from coven.bench.function import PASS, Function, Part, chain, from_memory, gen
from coven.bench.measure import Sample, in_turn
from coven.bench.platform import Platform
from coven.bench.result import Result, of_samples
from coven.bench.session import Session

FLOWS = (1, 1_000, 10_000, 100_000, 1_000_000)
RULES = (1, 10, 100, 1_000, 10_000)
PATHS = (1, 2, 4, 8, 15)  # that carry packets: each begins at a port of its own, and 16 is the limit of ports
COMPONENTS = (1, 2, 4, 8, 16, 32, 64)
ISOLATED = (1, 2, 4, 8, 16)
QUICK = {"flows": (1, 1_000), "rules": (1, 10), "paths": (1, 2), "components": (1, 4), "isolated": (1, 2)}
ENDLESS = 2**63


@dataclass(frozen=True, slots=True)
class Point:
    """One size of a series."""

    series: str
    size: int
    function: Function
    bare: tuple[str, tuple[object, ...]] | None = None  # else the smallest of the series is the reference
    fill: int = 0  # packets before measuring, so that every flow is there

    @property
    def name(self) -> str:
        """Name of the case."""
        return f"{self.series}: {self.size}"


def _paths(n: int) -> Function:
    ports = {"in" if i == 0 else f"in-{i}": gen(ENDLESS) for i in range(n)}
    return Function(chain(PASS["C"], "fused", 3), {**ports, "out": gen()}, shared_paths=n)


def points(quick: bool) -> list[Point]:
    """Give all points, series by series."""

    def sizes(series: str, all_of_it: tuple[int, ...]) -> tuple[int, ...]:
        return QUICK[series] if quick else all_of_it

    found = [
        Point("flows", n, from_memory((Part("flow-firewall"),), flows=n, flow_capacity=max(64, n + n // 4)), fill=n)
        for n in sizes("flows", FLOWS)
    ]
    found += [
        Point("rules", n, from_memory((Part("rules", options={"count": n}),)), ("bare_loop", (0, n, 64)))
        for n in sizes("rules", RULES)
    ]
    found += [Point("paths", n, _paths(n)) for n in sizes("paths", PATHS)]
    found += [
        Point("components", n, from_memory(chain(PASS["C"], "fused", n)), ("bare_loop", (n, 0, 64)))
        for n in sizes("components", COMPONENTS)
    ]
    found += [
        Point("isolated", n, from_memory(chain(PASS["C"], "shared", n))) for n in sizes("isolated", ISOLATED)
    ]
    return found


def run(session: Session) -> list[Result]:
    """Measure all points in turn."""
    chosen = [point for point in points(session.quick) if session.wanted(point.name)]
    runs: dict[str, Callable[[], Sample]] = {}
    with Platform(bin_dir=session.bin_dir) as platform:
        for point in chosen:
            if point.bare:
                runs.setdefault(_title(point.bare), partial(memory.bare, session, *point.bare))
            runs[point.name] = partial(memory.measure, session, platform, point.function, fill=point.fill)
        samples = in_turn(runs, session.rounds, session.note)
    first = {point.series: point.name for point in reversed(chosen)}
    # a table of one flow never leaves the nearest cache: what is held against is the usual small one
    first |= {point.series: point.name for point in chosen if (point.series, point.size) == ("flows", 1_000)}
    rows = []
    for point in chosen:
        reference = _title(point.bare) if point.bare else first[point.series]
        rows.append(of_samples("scale", point.name, samples[point.name], samples[reference], reference))
    return rows


def _title(bare: tuple[str, tuple[object, ...]]) -> str:
    return f"{bare[0]} {' '.join(map(str, bare[1]))}"
