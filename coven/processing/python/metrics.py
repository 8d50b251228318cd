"""Metric cells in shared memory: the platform reads them without asking the component."""

from __future__ import annotations

from collections.abc import Iterable


class Counter:
    """A number that only grows."""

    __slots__ = ("_cells", "_i")

    def __init__(self, cells: memoryview, i: int) -> None:
        """cells: format Q. i: number of the cell."""
        self._cells = cells
        self._i = i

    def add(self, n: int = 1) -> None:
        """Count n more; n is 0 or positive."""
        if n < 0:
            raise ValueError("a counter does not go down; declare a gauge")
        self._cells[self._i] += n

    @property
    def value(self) -> int:
        """What was counted so far, also before a restart of the component."""
        return self._cells[self._i]


class Gauge:
    """A number that goes up and down."""

    __slots__ = ("_cells", "_i")

    def __init__(self, cells: memoryview[float], i: int) -> None:
        """cells: format d. i: number of the cell."""
        self._cells = cells
        self._i = i

    def set(self, value: float) -> None:
        """Take a new value."""
        self._cells[self._i] = value

    def add(self, n: float = 1) -> None:
        """Go up by n, or down when it is negative."""
        self._cells[self._i] += n

    @property
    def value(self) -> float:
        """The value now."""
        return self._cells[self._i]


class Metrics(dict[str, "Counter | Gauge"]):
    """Metrics by name, in the order of component.yaml."""

    def __init__(self, declared: Iterable[tuple[str, str]], cells: memoryview) -> None:
        """declared: name and type. cells: the replica's cells, format B."""
        counters, gauges = cells.cast("Q"), cells.cast("d")
        super().__init__(
            (name, Counter(counters, i) if kind == "counter" else Gauge(gauges, i))
            for i, (name, kind) in enumerate(declared)
        )

    def __missing__(self, name: str) -> Counter | Gauge:
        """Say what is wrong better than a bare KeyError."""
        raise KeyError(f"no metric {name!r} in component.yaml; there are: {', '.join(self) or 'none'}")
