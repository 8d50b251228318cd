"""Looks at TCP packets from or to the ports of servers and marks those that match a pattern."""

from __future__ import annotations

from headers import UNREADABLE, tcp_segment
from patterns import CLIENT, SERVER, SKYPE, Pattern, PatternSet

from coven.component import Burst, Component, Refused, operation


class Analyzer(Component):
    """Marks; what becomes of marked packets is decided by a component behind it."""

    def init(self) -> None:
        """Begin with the patterns of Skype's log-in."""
        self.ports = frozenset(self.options.get("ports", (80, 443)))
        self.mark = self.options.get("mark", 1)
        self.patterns = PatternSet(SKYPE)
        self.metrics["patterns"].set(len(self.patterns))

    def process_burst(self, burst: Burst) -> None:
        """Look at each packet; all are forwarded."""
        inspected = unreadable = 0
        found: list[Pattern] = []
        for packet in burst:
            segment = tcp_segment(packet.data)
            if isinstance(segment, str):
                unreadable += segment is UNREADABLE
                continue
            to_server, from_server = segment.destination in self.ports, segment.source in self.ports
            if not to_server and not from_server:
                continue
            inspected += 1
            pattern = self.patterns.find(CLIENT, segment.payload) if to_server else None
            if pattern is None and from_server:
                pattern = self.patterns.find(SERVER, segment.payload)
            if pattern is not None:
                packet.mark = self.mark
                found.append(pattern)
        self._count(len(burst), inspected, unreadable, found)

    def _count(self, seen: int, inspected: int, unreadable: int, found: list[Pattern]) -> None:
        """Count once for a burst what was found in it."""
        self.metrics["seen"].add(seen)
        if inspected:
            self.metrics["inspected"].add(inspected)
        if unreadable:
            self.metrics["unreadable"].add(unreadable)
        for pattern in found:
            self.metrics["marked"].add(1)
            self.metrics[f"marked_{pattern.direction}"].add(1)

    @operation("list-patterns")
    def list_patterns(self) -> dict[str, str]:
        """Give every pattern by name."""
        return self.patterns.describe()

    @operation("add-pattern")
    def add_pattern(
        self, *, name: str, direction: str, length: int, prefix: str, run: int, multiplier: int, increment: int
    ) -> None:
        """Look for one more pattern."""
        try:
            content = bytes.fromhex(prefix)
        except ValueError as error:
            raise Refused(f"the prefix is no hexadecimal number: {error}") from error
        try:
            self.patterns.add(Pattern(name, direction, length, content, run, multiplier, increment))
        except ValueError as error:
            raise Refused(str(error)) from error
        self.metrics["patterns"].set(len(self.patterns))

    @operation("remove-pattern")
    def remove_pattern(self, *, name: str) -> None:
        """Look for a pattern no longer."""
        try:
            self.patterns.remove(name)
        except ValueError as error:
            raise Refused(str(error)) from error
        self.metrics["patterns"].set(len(self.patterns))
