"""The tool `auto`: afxdp where it is the better choice and nothing speaks against it, else afpacket; and why.

Rules, in this order (docs/operate.md has them with figures):
1. several workers: afpacket, whose fanout brings both directions of a flow to the same worker;
2. a virtual interface (veth, bridge port, tap ...): afpacket. XDP on a veth takes segmentation away from the host at
   its other end, and bulk TCP pays for that; who has many small packets asks for afxdp by name;
3. an interface of a NIC: afxdp if its driver runs XDP itself, and MTU, buffers, tags, kernel and privileges allow it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from coven.errors import CovenError
from coven.network import ethtool
from coven.network.afxdp import AfxdpTool
from coven.network.fanout import workers_of
from coven.network.interfaces import Interface, check_interface
from coven.network.opened import OpenedPort
from coven.network.tools import AfpacketTool

# What afxdp may refuse for a reason that afpacket does not have.
PASSING = ("port.unsupported", "port.in-use", "platform.no-resources")
AFXDP_OPTIONS = {"queues": 0, "zero_copy": "auto", "busy_poll": False}


def against_afxdp(interface: Interface, workers: int) -> str | None:
    """Say what speaks against afxdp before it is tried, or give None. Pure."""
    if workers > 1:
        return "the function has several workers, and the queues of a NIC do not keep a flow's directions together"
    if interface.kind is not None:
        return f"{interface.name} is virtual ({interface.kind}): XDP would take segmentation from the host behind it"
    return None


class AutoTool:
    """Opens a port by the tool that suits the interface; the note of the port says why."""

    name = "auto"

    def __init__(self) -> None:
        """Both tools are there."""
        self._afpacket, self._afxdp = AfpacketTool(), AfxdpTool()

    def intend(self, port: Mapping[str, Any]) -> OpenedPort | None:
        """Note what either tool may change."""
        made = self._afpacket.intend(port)
        if made is not None and made.interface is not None:
            made.ethtool = ethtool.hold(made.interface)
        return made

    def open(self, port: Mapping[str, Any], *, taken: Collection[str] = ()) -> OpenedPort:
        """Choose and open. Raises CovenError if the interface can be used by neither."""
        interface = check_interface(str(port["interface"]), str(port["name"]), taken=taken)
        reason = against_afxdp(interface, workers_of(port))
        if reason is None:
            try:
                with_options = {**port, "options": AFXDP_OPTIONS, "native_only": True}
                opened = self._afxdp.open(with_options, taken=taken)
                return replace(opened, note=f"{opened.note} (auto: the driver runs XDP)")
            except CovenError as error:
                if error.code not in PASSING:
                    raise
                reason = error.message
        opened = self._afpacket.open(port, taken=taken)
        return replace(opened, note=f"{opened.note} (auto: afpacket, because {reason})")

