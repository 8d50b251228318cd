"""The public module for components in Python: `from coven.component import Component, operation`.

A component is one class in the file that component.yaml names as `entry`:

    class Counter(Component):
        def process_packet(self, packet: Packet) -> None:
            self.metrics["seen"].add(1)

It runs in a process of its own (docs/write_a_component.md). Everything here is called by one thread.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from coven.processing.python.metrics import Counter, Gauge, Metrics
from coven.processing.python.packets import (
    CONSUME,
    DROP,
    FORWARD,
    HOLD,
    Burst,
    Held,
    Packet,
)

__all__ = [
    "CONSUME",
    "DROP",
    "FORWARD",
    "HOLD",
    "Burst",
    "Component",
    "Counter",
    "Gauge",
    "Held",
    "Packet",
    "Refused",
    "operation",
]

F = TypeVar("F", bound=Callable[..., object])


class Refused(Exception):
    """Raised by an operation that does not do what it was asked; the text goes to the one who asked."""


def operation(name: str) -> Callable[[F], F]:
    """Make a method answer the operation `name` of component.yaml.

    Arguments come as keywords in their declared types, `-` in their names as `_`. What it returns is the answer: a
    mapping of names to values, one value, or None.
    """

    def mark(function: F) -> F:
        function.__dict__["coven_operation"] = name
        return function

    return mark


class Component:
    """Base of every component. Override process_burst or process_packet, and what else is needed."""

    # Set before `init` is called.
    name: str  # in the function's descriptor
    instance: str
    replica: int
    options: Mapping[str, Any]  # as the descriptor gives them, with the defaults of component.yaml
    metrics: Metrics  # by name; declared in component.yaml

    def init(self) -> None:
        """Prepare; called once before the first packet. An exception means the component does not start."""

    def fini(self) -> None:
        """End in order; called once when the function stops, not after a crash."""

    def process_burst(self, burst: Burst) -> None:
        """Handle 1 to 32 packets. A packet without verdict is forwarded to output 0.

        Nothing of the burst may be used afterwards, but for what was held.
        """
        process = self.process_packet
        for packet in burst:
            process(packet)

    def process_packet(self, packet: Packet) -> None:
        """Handle one packet; called by process_burst unless that is overridden."""

    def allocate_new_fs(self, packet: Packet, state: memoryview) -> None:
        """Fill the zeroed state of a new flow; called when `packet.state` is first asked for."""

    def deallocate_fs(self, state: memoryview) -> None:
        """Say goodbye to the state of a flow that ended (idle, evicted)."""

    def get_migration_target(self, state: memoryview) -> int:
        """Say where the flow should move to; 0: wherever the platform likes. Not called by this version of COVEN."""
        return 0

    def tick(self, now_ns: int) -> None:
        """Do what time demands: called about every millisecond while packets are held, every second otherwise.

        now_ns: time.monotonic_ns(). Not called at all unless overridden.
        """
