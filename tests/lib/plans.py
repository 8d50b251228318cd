"""Small plans for tests: a chain of components between two ports, in the JSON form of docs/internals.md section 6."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def component(name: str, root: Path, framework: str = "python", **more: Any) -> dict[str, Any]:
    """One component whose source lies in `root/name`; keyword arguments replace what is usual."""
    entry = {"python": f"{name}.py", "c": f"{name}.c"}[framework]
    return {
        "name": name,
        "framework": framework,
        "source": str(root / name),
        "entry": entry,
        "build": {},
        "isolation_asked": "copy",
        "isolation": "copy",
        "on_failure": "drop",
        "hang_ms": 1000,
        "outputs": 1,
        "options": {},
        "replicas": 1,
        "ring_size": 256,
        "copy_buffers": 256,
        "limits": {"memory_bytes": 256 << 20, "cpu": 1.0, "pids": 32},
        "hold": {"packets": 64, "ms": 1000},
        "metrics": [],
        "operations": [],
        "state": None,
        **more,
    }


def gen_port(name: str, packets: int = 0, **options: Any) -> dict[str, Any]:
    """A port that makes `packets` and swallows what is sent to it."""
    more = {"packets": packets, "bytes": 64, "rate": 0, "flows": 1, **options}
    return {"name": name, "tool": "gen", "interface": None, "options": more, "mtu": 0}


def pcap_port(name: str, source: Path | None = None, target: Path | None = None, **options: Any) -> dict[str, Any]:
    """A port that reads one capture file and writes another."""
    flags = {"paced": False, "nanosecond": False, "loop": False, "skip_cut": False}
    files = {"in": str(source) if source else None, "out": str(target) if target else None}
    return {"name": name, "tool": "pcap", "interface": None, "options": {**files, **flags, **options}, "mtu": 0}


def afpacket_port(name: str, interface: str) -> dict[str, Any]:
    """A port on an interface."""
    return {"name": name, "tool": "afpacket", "interface": interface, "options": {}, "mtu": 1500}


def afxdp_port(name: str, interface: str) -> dict[str, Any]:
    """A port on an interface, by AF_XDP."""
    options = {"queues": 0, "zero_copy": "auto", "busy_poll": False}
    return {"name": name, "tool": "afxdp", "interface": interface, "options": options, "mtu": 1500}


def auto_port(name: str, interface: str) -> dict[str, Any]:
    """A port on an interface, by the tool that suits it."""
    return {"name": name, "tool": "auto", "interface": interface, "options": {}, "mtu": 1500}


def chain(
    instance: str,
    root: Path,
    components: Sequence[Mapping[str, Any]],
    ports: Sequence[Mapping[str, Any]],
    *,
    back: bool = False,
    flows: int = 1024,
    buffers: int = 2048,
    priority: Sequence[str] = (),
) -> dict[str, Any]:
    """A plan in which packets go from the first port through all components to the second; `back`: and back."""
    hops: list[dict[str, Any]] = []
    paths: list[dict[str, Any]] = []
    ends: list[dict[str, Any]] = []
    for way, (ingress, egress) in enumerate([(0, 1), (1, 0)] if back else [(0, 1)]):
        first = len(hops)
        for index in range(len(components)):
            last = index == len(components) - 1
            hops.append(
                {"component": index, "path": way, "next": [{"port": egress} if last else {"hop": len(hops) + 1}]}
            )
        paths.append({"name": "there" if way == 0 else "there-back", "ingress": ports[ingress]["name"], "spi": 0})
        ends.append({"path": way, "first": {"hop": first} if components else {"port": egress}})
    while len(ends) < len(ports):
        ends.append({"path": None, "first": None})
    return {
        "version": 1,
        "instance": instance,
        "vnf": "test",
        "vnf_version": "1.0.0",
        "package": {"id": root.name, "root": str(root)},
        "pool": {"buffers": buffers, "buffer_bytes": 2048, "headroom": 256},
        "flows": {"capacity": flows, "idle_timeout_ms": 120000, "when_full": "idle"},
        "worker": {"cores": [None], "profile": "balanced", "component_cores": []},
        "ports": [{**port, **end} for port, end in zip(ports, ends, strict=True)],
        "components": [dict(entry) for entry in components],
        "hops": hops,
        "paths": paths,
        "priority": list(priority),
    }
