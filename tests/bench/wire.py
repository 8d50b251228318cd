"""From veth to veth: a sender in one namespace, the forwarder in this one, another namespace where frames end.

COVEN's port afpacket against tests/bench/bare_forwarder.c, in turn. The sender is a C program on the other core; over
veth its system call also carries each frame into the forwarder's receive ring. It sends more than any forwarder takes
(unless it says otherwise in the figures): what does not fit the ring is lost before it and not counted.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from tests.bench.measure import COMPONENT_CORE, WORKER_CORE, Sample, compiled, cpu_ns, in_turn, pin, rest, table_rows
from tests.bench.memory import chain, python
from tests.lib.dataplane import Rig, chain_plan
from tests.lib.net import Host, Network

WARM_UP_S, MEASURE_S, SEND_S = 0.2, 0.6, 8
SIZES = (64, 1514)  # bytes of a frame without FCS
SCENARIOS: dict[str, Sequence[dict[str, Any]]] = {
    "no component": [],
    "fused C: null": chain("null", "fused", 1),
    "isolated C: null, shared": chain("null", "shared", 1),
    "Python: burst, shared": [python("burst.py", "shared")],
}


@dataclass(frozen=True, slots=True)
class Wire:
    """Two interfaces of this namespace with a host behind each."""

    client: Host
    lan: str
    wan: str
    sender: Path
    bare: Path


@contextlib.contextmanager
def wire() -> Iterator[Wire]:
    """Make the hosts; nothing else speaks on their links."""
    with Network() as net:
        client, server = net.host("client"), net.host("server")
        lan, wan = net.name("lan"), net.name("wan")
        net.veth(client, "eth0", None, lan)
        net.veth(server, "eth0", None, wan)
        yield Wire(client, lan, wan, compiled("sender"), compiled("bare_forwarder"))


def _counter(interface: str, name: str) -> int:
    return int(Path(f"/sys/class/net/{interface}/statistics/{name}").read_text())


def _measure(net: Wire, size: int, parts: dict[str, Sequence[int]]) -> Sample:
    """Send, and count frames out and CPU time; parts: processes by what they are."""
    sender = net.client.popen(str(net.sender), "eth0", str(size), str(SEND_S), stdout=subprocess.DEVNULL)
    try:
        pin(sender.pid, COMPONENT_CORE)
        os.setpriority(os.PRIO_PROCESS, sender.pid, 5)  # an isolated component on the same core goes first

        def now() -> tuple[int, ...]:
            out, offered = _counter(net.wan, "tx_packets"), _counter(net.lan, "rx_packets")
            return out, offered, time.monotonic_ns(), *(cpu_ns(pids) for pids in parts.values())

        rest(WARM_UP_S)
        before = now()
        rest(MEASURE_S)
        after = now()
        packets, offered, wall, *used = (b - a for a, b in zip(before, after, strict=True))
        assert sender.poll() is None, "the sender ended early"
        assert packets > 0, "nothing was forwarded"
        more = {"offered_pps": offered * 1e9 / wall}
        return Sample(packets, wall, dict(zip(parts, used, strict=True)), more)
    finally:
        sender.kill()
        sender.wait()


def bare(net: Wire, size: int) -> Sample:
    """Measure the bare forwarder."""
    with subprocess.Popen([str(net.bare), net.lan, net.wan]) as process:
        try:
            pin(process.pid, WORKER_CORE)
            sample = _measure(net, size, {"worker": [process.pid], "components": []})
            return replace(sample, more={**sample.more, "dropped_inside": 0.0})
        finally:
            process.kill()


def coven(net: Wire, size: int, components: Sequence[dict[str, Any]]) -> Sample:
    """Measure COVEN with a chain of components."""
    ports = [
        {"name": name, "tool": "afpacket", "interface": interface, "options": {}, "mtu": 1500}
        for name, interface in (("lan", net.lan), ("wan", net.wan))
    ]
    plan = chain_plan(ports, components, buffers=8192)
    with tempfile.TemporaryDirectory(prefix="coven-bench-") as folder, Rig(plan, Path(folder)) as rig:
        rig.start(run=False)
        assert rig.worker is not None
        isolated = [c.pid for c in rig.components.values()]
        pin(rig.worker.pid, WORKER_CORE)
        for pid in isolated:
            pin(pid, COMPONENT_CORE)
        rig.run()
        sample = _measure(net, size, {"worker": [rig.worker.pid], "components": isolated})
        taken = rig.snapshot().check()
        return replace(sample, more={**sample.more, "dropped_inside": taken.dropped / taken.rx})


def run(repeats: int, note: Callable[[str], None], only: str = "") -> list[dict[str, object]]:
    """Measure all, the bare forwarder among them, in turn."""
    with wire() as net:
        runs: dict[str, Callable[[], Sample]] = {}
        for size in SIZES:
            runs[f"bare forwarder, {size} B"] = partial(bare, net, size)
            for title, components in SCENARIOS.items():
                runs[f"{title}, {size} B"] = partial(coven, net, size, components)
        rows = table_rows(in_turn({k: v for k, v in runs.items() if only in k}, repeats, note))
    _compare(rows)
    return rows


def _compare(rows: list[dict[str, Any]]) -> None:
    """Put into each row how it compares with the bare forwarder at the same size."""
    for row in rows:
        size = row["name"].rpartition(", ")[2]
        base = next((r for r in rows if r["name"] == f"bare forwarder, {size}"), None)
        if base:
            row["cpu_ratio"] = row["cpu_ns_per_packet"]["median"] / base["cpu_ns_per_packet"]["median"]
            row["rate_ratio"] = row["pps"]["median"] / base["pps"]["median"]
