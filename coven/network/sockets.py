"""What several tools need of packet sockets and of the interface they open."""

from __future__ import annotations

# linux/if_packet.h
SOL_PACKET = 263
PACKET_ADD_MEMBERSHIP = 1
PACKET_MR_PROMISC = 1

SYSCTL = "/proc/sys/net"


def interface_settings(interface: str) -> dict[str, str]:
    """Give the settings that an interface has while it is a port."""
    return {f"{SYSCTL}/ipv6/conf/{interface}/disable_ipv6": "1"}
