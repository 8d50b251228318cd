"""VNS, the Virtual Network Subsystem (section 3 of the paper): opens ports through NIC tools.

The C side of each tool (`coven/dataplane/port_*.c`) moves packets in the worker; here its descriptors are made, in
the privileged supervisor, which hands them to the unprivileged worker and keeps copies, so that a worker's death
closes nothing.

    tool = tool_of(port)                  # port: an entry of "ports" in an instance plan
    opened = tool.open(port, taken=names) # CovenError `port.*` when it cannot be
    opened.of_workers(n)                  # (rx, tx) of each worker: always two, for PORT; the caller keeps them open
    opened.plan_fields                    # what goes into coven_plan_port: tool, mtu, ring_frames, ...
    opened.note                           # a sentence for the operator: what was chosen and why
    opened.begin()                        # before packets move: an output file that exists is emptied now, not before
    opened.close()                        # closes all and puts back what was before: interface, file not begun

A successor of the supervisor that got the descriptors back from the keeper calls
`adopt(opened.to_json(), fds)` and has the same object. `LinkWatcher` tells when an interface goes up, down
or away. Whoever sends both descriptors of a port must not reorder them. Opening a port anew begins anew:
positions that a worker stored for an earlier opening are recognised and ignored by the C side.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from coven.errors import CovenError, Where
from coven.network.afxdp import AfxdpTool
from coven.network.auto import AutoTool
from coven.network.opened import OpenedPort, adopt
from coven.network.tools import AfpacketTool, GenTool, NicTool, PcapTool, TapTool
from coven.network.watcher import LinkEvent, LinkWatcher
from coven.suggest import near_miss

__all__ = [
    "TOOLS",
    "LinkEvent",
    "LinkWatcher",
    "NicTool",
    "OpenedPort",
    "adopt",
    "tool_of",
]

TOOLS: Mapping[str, NicTool] = {
    tool.name: tool for tool in (AutoTool(), AfpacketTool(), AfxdpTool(), PcapTool(), TapTool(), GenTool())
}


def tool_of(port: Mapping[str, Any]) -> NicTool:
    """Give the tool of a planned port; raises port.unknown-tool that names the port."""
    name = str(port["tool"])
    if name not in TOOLS:
        raise CovenError(
            "port.unknown-tool",
            f"there is no NIC tool {name!r}",
            hint=near_miss(name, TOOLS) or f"tools are: {', '.join(TOOLS)}",
            where=Where(part=f"port {port.get('name', '')}".rstrip()),
        )
    return TOOLS[name]
