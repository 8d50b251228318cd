"""The least a component in Python can do with each packet."""

from coven.component import Component, Packet


class PassPacket(Component):
    """Called once for each packet."""

    def process_packet(self, packet: Packet) -> None:
        """Do nothing: the packet is forwarded to output 0."""
