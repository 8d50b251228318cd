"""The functions that are measured: made from a list of components, planned as `coven deploy` would plan them.

Pools, rings and everything else are what the planner gives any function; only cores and the profile are chosen here.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from coven.descriptor.vnf import load_vnf
from coven.forwarder.instance_plan import InstancePlan
from coven.forwarder.plan import plan

COMPONENTS = Path(__file__).resolve().parent / "components"
ENDLESS = 2**63
INSTANCE = "bench"
# The least component of each framework: a further language is a further line.
PASS = {"C": "pass-c", "Python": "pass-python"}


@dataclass(frozen=True, slots=True)
class Part:
    """A component of a measured function."""

    kind: str  # folder of coven/bench/components
    isolation: str = "fused"
    options: Mapping[str, Any] = field(default_factory=dict)


def chain(kind: str, isolation: str, length: int) -> tuple[Part, ...]:
    """Give the same component several times in a row."""
    return tuple(Part(kind, isolation) for _ in range(length))


@dataclass(frozen=True, slots=True)
class Function:
    """A function: components in a row on each path. Paths have components of their own or share them."""

    parts: tuple[Part, ...] = ()
    ports: Mapping[str, Any] = field(default_factory=dict)  # name -> binding; packets go from "in" to "out"
    profile: str = "balanced"
    flow_capacity: int | None = None
    shared_paths: int = 1  # paths over the same components; each begins at a port of its own: in, in-1, ...
    workers: int = 1
    beside_worker: bool = False  # isolated components on the core of worker 0; else on the other one

    @property
    def isolated(self) -> bool:
        """Whether packets leave the worker's process."""
        return any(part.isolation != "fused" for part in self.parts)


def gen(packets: int = 0, size: int = 64, flows: int = 1, rate: int = 0) -> dict[str, Any]:
    """Give the binding of a port that makes packets, or only swallows them."""
    return {"tool": "gen", "packets": packets, "bytes": size, "flows": flows, "rate": rate}


def from_memory(parts: Sequence[Part], *, size: int = 64, flows: int = 1, **more: Any) -> Function:
    """Give a function whose packets come from memory and end there."""
    return Function(tuple(parts), {"in": gen(ENDLESS, size, flows), "out": gen()}, **more)


def _document(function: Function, name: str) -> str:
    """Write vnf.yaml. JSON is YAML, so names and options need no care."""
    import json

    names = [f"c{number}" for number in range(len(function.parts))]
    ins = ["in", *(f"in-{n}" for n in range(1, function.shared_paths))]
    document: dict[str, Any] = {
        "coven": 1,
        "name": name,
        "version": "1.0.0",
        "ports": {name: None for name in (*ins, "out")},
        "components": {
            name: {
                "source": f"vnfc/{part.kind}", "isolation": part.isolation, "options": dict(part.options),
                "limits": {"cpu": 4},  # a limit of one core would throttle a component that waits by looking
            }
            for name, part in zip(names, function.parts, strict=True)
        },
        "paths": {f"path-{n}": {"hops": [port, *names, "out"]} for n, port in enumerate(ins)},
    }  # fmt: skip
    if function.flow_capacity is not None:
        document["flows"] = {"capacity": function.flow_capacity}
    return json.dumps(document)


def write_package(function: Function, root: Path, name: str = "measured") -> None:
    """Write the function's package to the folder `root`, readable for the components' own users."""
    for kind in {part.kind for part in function.parts}:
        target = root / "vnfc" / kind
        if not target.exists():
            shutil.copytree(COMPONENTS / kind, target, ignore=shutil.ignore_patterns("__pycache__"))
    (root / "vnf.yaml").write_text(_document(function, name), encoding="utf-8")
    for path in (root, *root.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)


def make_plan(function: Function, root: Path, cores: Sequence[int]) -> InstancePlan:
    """Write the function's package to the folder `root` and plan an instance of it. cores: of its workers, in turn."""
    write_package(function, root)
    made = plan(
        load_vnf(root), function.ports, {}, {"*": "fused"}, instance=INSTANCE, package_root=str(root), interfaces={}
    )
    taken = tuple(cores[number % len(cores)] for number in range(function.workers))
    return dataclasses.replace(made, worker=dataclasses.replace(made.worker, cores=taken, profile=function.profile))
