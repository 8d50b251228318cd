"""What the analyzer looks for: patterns as data, and the two of Skype's log-in.

The fingerprints are facts of a recorded log-in: nfstream's tests/pcaps/skype.pcap, 26 hellos of clients and 9 of
servers on TCP port 443, all alike but for the last 16 bytes of the clients'.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

CLIENT, SERVER = "client", "server"
MAX_PATTERNS = 256
MAX_LENGTH = 65535


@dataclass(frozen=True, slots=True)
class Pattern:
    """A payload of exactly `length` bytes that begins with `prefix` and ends with a run of `run` bytes of a sequence.

    Sequence: each byte is the one before times `multiplier` plus `increment`, modulo 256. A run may begin anywhere.
    """

    name: str
    direction: str  # CLIENT: to one of the ports, SERVER: from one
    length: int
    prefix: bytes
    run: int = 0
    multiplier: int = 205
    increment: int = 113
    _runs: tuple[bytes, ...] = field(default=(), init=False, repr=False, compare=False)  # by first byte

    def __post_init__(self) -> None:
        """Refuse what cannot match anything. Raises ValueError."""
        if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,30}", self.name):
            raise ValueError(f"{self.name!r} is no name for a pattern")
        if self.direction not in (CLIENT, SERVER):
            raise ValueError(f"the direction is {CLIENT} or {SERVER}, not {self.direction!r}")
        if not 1 <= self.length <= MAX_LENGTH:
            raise ValueError(f"the length is 1 to {MAX_LENGTH} bytes, not {self.length}")
        if self.run < 0 or self.run > 256 or len(self.prefix) + self.run > self.length:
            raise ValueError(f"{len(self.prefix)} bytes and a run of {self.run} do not fit {self.length} bytes")
        if not self.prefix and not self.run:
            raise ValueError("a pattern without prefix and run would match every payload of its length")
        if self.run:
            object.__setattr__(self, "_runs", tuple(self._run_from(first) for first in range(256)))

    def matches(self, payload: memoryview) -> bool:
        """Say whether a payload of the right length is what the pattern describes."""
        if payload[: len(self.prefix)] != self.prefix:
            return False
        return not self.run or payload[-self.run :] == self._runs[payload[-self.run]]

    def __str__(self) -> str:
        run = f", last {self.run} a run of {self.multiplier} * x + {self.increment}" if self.run else ""
        return f"{self.direction}, {self.length} bytes, begins {self.prefix.hex()}{run}"

    def _run_from(self, first: int) -> bytes:
        run = bytearray((first,))
        while len(run) < self.run:
            run.append((self.multiplier * run[-1] + self.increment) % 256)
        return bytes(run)


class PatternSet:
    """Patterns by name, and by what can be told of a packet at once: direction and length."""

    def __init__(self, patterns: tuple[Pattern, ...] = ()) -> None:
        """patterns: to begin with."""
        self._by_name: dict[str, Pattern] = {}
        self._by_shape: dict[tuple[str, int], tuple[Pattern, ...]] = {}
        for pattern in patterns:
            self.add(pattern)

    def __len__(self) -> int:
        return len(self._by_name)

    def add(self, pattern: Pattern) -> None:
        """Take one more. Raises ValueError when the name is taken or there are too many."""
        if pattern.name in self._by_name:
            raise ValueError(f"there is already a pattern {pattern.name!r}")
        if len(self._by_name) >= MAX_PATTERNS:
            raise ValueError(f"there are already {MAX_PATTERNS} patterns")
        self._by_name[pattern.name] = pattern
        self._index()

    def remove(self, name: str) -> None:
        """Forget one. Raises ValueError when there is none of this name."""
        if name not in self._by_name:
            raise ValueError(f"there is no pattern {name!r}; there are: {', '.join(self._by_name) or 'none'}")
        del self._by_name[name]
        self._index()

    def describe(self) -> dict[str, str]:
        """Give each pattern by name, in words."""
        return {name: str(pattern) for name, pattern in self._by_name.items()}

    def find(self, direction: str, payload: memoryview) -> Pattern | None:
        """Give the first pattern that a payload matches."""
        for pattern in self._by_shape.get((direction, len(payload)), ()):
            if pattern.matches(payload):
                return pattern
        return None

    def _index(self) -> None:
        by_shape: dict[tuple[str, int], tuple[Pattern, ...]] = {}
        for pattern in self._by_name.values():
            shape = (pattern.direction, pattern.length)
            by_shape[shape] = (*by_shape.get(shape, ()), pattern)
        self._by_shape = by_shape


SKYPE_CLIENT = Pattern(
    "skype-client",
    CLIENT,
    72,
    bytes.fromhex(
        "8046010301002d0000001000000500000400000a000009000064000062000008"
        "0000030000060100800700c0030080060040020080040080"
    ),
    run=16,
)
SKYPE_SERVER = Pattern(
    "skype-server",
    SERVER,
    79,
    bytes.fromhex(
        "160301004a020000460301401be48602ade029e17774e544b9c99cb431315e02"
        "dd779d154a9609ba5da870201ca0e4f64c6351ae2f8e4ee1e6766a0a88d5d8c5"
        "5cae98c5e481f22a69bf9058000500"
    ),
)
SKYPE = (SKYPE_CLIENT, SKYPE_SERVER)
