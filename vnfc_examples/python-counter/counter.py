"""Counts the packets and bytes of each flow in flow state, which outlives this process."""

from __future__ import annotations

import struct

from coven.component import Component, Packet, Refused, operation

FLOW = struct.Struct("QQ")  # packets, bytes: the 16 bytes that component.yaml declares


class Counter(Component):
    """One metric, one operation, flow state."""

    def init(self) -> None:
        """Take the option."""
        self.mark_after = self.options.get("mark-after", 0)

    def process_packet(self, packet: Packet) -> None:
        """Count the packet to its flow, and mark it when the flow has had enough."""
        self.metrics["packets"].add(1)
        state = packet.state
        if state is None:  # belongs to no flow, ARP for example
            return
        packets, octets = FLOW.unpack_from(state)
        FLOW.pack_into(state, 0, packets + 1, octets + packet.length)
        if self.mark_after and packets >= self.mark_after:
            packet.mark = 1

    def allocate_new_fs(self, packet: Packet, state: memoryview) -> None:
        """A new flow; its state is zero, which is right to begin with."""
        self.metrics["flows"].add(1)

    def deallocate_fs(self, state: memoryview) -> None:
        """The flow ended."""
        self.metrics["flows"].add(-1)

    @operation("set-mark-after")
    def set_mark_after(self, *, packets: int) -> dict[str, int]:
        """Change the option while running."""
        if packets < 0:
            raise Refused("the number of packets is not negative")
        self.mark_after = packets
        return {"packets": packets}
