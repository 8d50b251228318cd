"""The paths of a function: from what the descriptor writes (hops, branches, joins) to links."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field

from coven import limits
from coven.descriptor.yaml_source import Document, Location
from coven.errors import CovenError, Where
from coven.model import Component, Link, OnFailure, ServicePath
from coven.suggest import near_miss

BACK = "-back"  # ending of the name of a bidirectional path's way back


@dataclass(frozen=True, slots=True)
class Step:
    """A place in a chain: a port or a component with the output it goes on from."""

    name: str
    output: int
    is_numbered: bool
    where: Where


@dataclass(slots=True)
class _Path:
    """A path while it is read."""

    name: str
    location: Location
    document: Document
    ports: Mapping[str, object]
    components: Mapping[str, Component]
    faults: list[CovenError]
    links: dict[tuple[str, int], tuple[str, Where]] = field(default_factory=dict)
    is_unreadable: bool = False

    def fault(self, message: str, where: Where, hint: str | None = None, code: str = "descriptor.bad-path") -> None:
        """Note a fault of this path."""
        self.faults.append(CovenError(code, f"path {self.name}: {message}", hint=hint, where=where))

    def where(self, *inner: str | int) -> Where:
        """Give the place of something in this path."""
        return self.document.where((*self.location, *inner))


def read_paths(
    document: Document,
    ports: Mapping[str, object],
    components: Mapping[str, Component],
    faults: list[CovenError],
) -> tuple[ServicePath, ...]:
    """Make service paths of the `paths` of a descriptor that fits its schema; faults are added to `faults`.

    components: those that could be read; what `document` names beyond them has a fault already.
    """
    paths: list[ServicePath] = []
    for name, description in document.data["paths"].items():
        path = _Path(name, ("paths", name), document, ports, components, faults)
        before = len(faults)
        hops = _read_hops(path, description["hops"])
        _read_branches(path, description.get("branches", []), hops)
        if len(faults) == before and not path.is_unreadable:
            _check_graph(path, hops, description.get("joins", []))
        if len(faults) > before or path.is_unreadable:
            continue
        links = tuple(Link(source, output, target) for (source, output), (target, _) in path.links.items())
        paths.append(ServicePath(name, hops[0].name, links))
        if description.get("bidirectional"):
            back = _way_back(path, description, hops)
            if back is not None:
                paths.append(back)
    _check_together(document, paths, faults)
    return tuple(paths)


def _step(path: _Path, text: str, where: Where) -> Step | None:
    """Read `name` or `name.output`; None after a fault."""
    name, dot, number = text.partition(".")
    if name not in path.ports and name not in path.components:
        known = path.document.data.get("components") or {}
        if name in known:  # its component.yaml has a fault of its own: nothing can be said of this path
            path.is_unreadable = True
            return None
        names = [*path.ports, *known]
        path.fault(f"there is no port or component {name!r}", where,
                   near_miss(name, names) or f"there is: {', '.join(names)}", "descriptor.unknown-name")  # fmt: skip
        return None
    output = int(number) if number.isdigit() and len(number) == 1 else -1
    if dot and (name in path.ports or output < 0):
        path.fault(f"{text!r} is no output of a component", where, "an output is written component.1")
        return None
    if dot and output >= path.components[name].type.outputs:
        outputs = path.components[name].type.outputs
        path.fault(f"component {name} has no output {output}", where,
                   f"it has {outputs}, numbered from 0 (`outputs` in its component.yaml)")  # fmt: skip
        return None
    return Step(name, max(output, 0) if dot else 0, bool(dot), where)


def _read_hops(path: _Path, texts: list[str]) -> list[Step]:
    """Read the chain of `hops`: a port, components, a port."""
    steps = [_step(path, text, path.where("hops", index)) for index, text in enumerate(texts)]
    chain = [step for step in steps if step is not None]
    if len(chain) != len(steps):
        return chain
    for index, step in enumerate(chain):
        at_end = index in (0, len(chain) - 1)
        if at_end and step.name not in path.ports:
            side = "begins" if index == 0 else "ends"
            path.fault(f"{side} at component {step.name}", step.where, f"a path {side} at a port")
        if not at_end and step.name in path.ports:
            path.fault(f"goes through port {step.name}", step.where, "ports stand at the ends of a path only")
    _connect(path, chain)
    return chain


def _read_branches(path: _Path, texts: list[str], hops: list[Step]) -> None:
    """Read each branch: `component.output -> component -> port`."""
    for index, text in enumerate(texts):
        chain = []
        offset = 0
        for piece in text.split("->"):
            begin = offset + len(piece) - len(piece.lstrip())
            where = path.document.where((*path.location, "branches", index), offset=begin)
            offset += len(piece) + 2
            if not piece.strip():
                path.fault("a branch has an empty step", where, "a branch is written analyzer.1 -> logger -> wan")
                break
            step = _step(path, piece.strip(), where)
            if step is None:
                break
            chain.append(step)
        else:
            _check_branch(path, chain, path.where("branches", index))


def _check_branch(path: _Path, chain: list[Step], where: Where) -> None:
    if len(chain) < 2:
        path.fault("a branch leads nowhere", where, "a branch is written analyzer.1 -> logger -> wan")
        return
    if not chain[0].is_numbered:
        path.fault(f"a branch begins at {chain[0].name} without an output", chain[0].where,
                   f"write {chain[0].name}.1, or another output of a component")  # fmt: skip
        return
    if chain[-1].is_numbered:
        path.fault(f"a branch ends at an output of {chain[-1].name}", chain[-1].where,
                   "a branch ends at a port or at a component that it joins")  # fmt: skip
        return
    for step in chain[:-1]:
        if step.name in path.ports:
            path.fault(f"a branch goes through port {step.name}", step.where,
                       "ports stand at the ends of a path only")  # fmt: skip
            return
    _connect(path, chain)


def _connect(path: _Path, chain: list[Step]) -> None:
    """Add the links of a chain; a name twice in it is a loop."""
    seen: dict[str, int] = {}
    for index, step in enumerate(chain):
        if step.name in seen and step.name not in path.ports:
            cycle = " -> ".join(each.name for each in chain[seen[step.name] : index + 1])
            path.fault(f"loops: {cycle}", step.where, "a packet passes a component once on a path",
                       "descriptor.loop")  # fmt: skip
            return
        seen[step.name] = index
    for step, following in itertools.pairwise(chain):
        end = (step.name, step.output)
        if end in path.links:
            source = step.name if step.name in path.ports else f"{step.name}.{step.output}"
            path.fault(f"{source} leads to {path.links[end][0]} already", step.where,
                       "one output leads to one place")  # fmt: skip
            return
        path.links[end] = (following.name, following.where)


def _check_graph(path: _Path, hops: list[Step], joins: list[str]) -> None:
    """Check what only the whole path shows: loops, joins, components that nothing leads to."""
    after: dict[str, list[str]] = {}
    incoming: dict[str, list[Where]] = {}
    for (source, _), (target, where) in path.links.items():
        after.setdefault(source, []).append(target)
        incoming.setdefault(target, []).append(where)
    inner = {name: [t for t in targets if t in path.components] for name, targets in after.items()}
    cycle = _cycle({name: targets for name, targets in inner.items() if name in path.components})
    if cycle:
        where = next(w for (s, _), (t, w) in path.links.items() if s == cycle[-2] and t == cycle[-1])
        path.fault(f"loops: {' -> '.join(cycle)}", where, "a packet passes a component once on a path",
                   "descriptor.loop")  # fmt: skip
        return
    reached = _reached(hops[0].name, after)
    for (source, _), (_, where) in path.links.items():
        if source not in reached:
            path.fault(f"nothing leads to component {source}", where)
            return
    for name, places in incoming.items():
        if name in path.components and len(places) > 1 and name not in joins:
            path.fault(f"{len(places)} ways meet at component {name}", places[-1],
                       f"if that is meant, declare it: joins: [{name}]")  # fmt: skip
    for index, name in enumerate(joins):
        if name not in path.components:
            names = [n for n in incoming if n in path.components]
            path.fault(f"there is no component {name!r}", path.where("joins", index), near_miss(name, names),
                       "descriptor.unknown-name")  # fmt: skip
        elif len(incoming.get(name, ())) < 2:
            path.fault(f"nothing joins at component {name}", path.where("joins", index), "leave it out of `joins`")
    for name in dict.fromkeys(source for source, _ in path.links if source in path.components):
        if path.components[name].on_failure is OnFailure.BYPASS and (name, 0) not in path.links:
            path.fault(f"component {name} has `on_failure: bypass` but its output 0 leads nowhere",
                       path.where("hops"), "packets that pass it by leave at output 0")  # fmt: skip


def _cycle(after: Mapping[str, list[str]]) -> list[str]:
    """Give the names along a cycle, the first one again at the end; empty when there is none."""
    done: set[str] = set()
    for start in after:
        trail = [start]
        pending = [list(after.get(start, ()))]
        while trail:
            if trail[-1] in done or not pending[-1]:
                done.add(trail.pop())
                pending.pop()
                continue
            name = pending[-1].pop(0)
            if name in trail:
                return [*trail[trail.index(name) :], name]
            if name not in done:
                trail.append(name)
                pending.append(list(after.get(name, ())))
    return []


def _reached(start: str, after: Mapping[str, list[str]]) -> set[str]:
    reached = {start}
    waiting = [start]
    while waiting:
        for name in after.get(waiting.pop(), ()):
            if name not in reached:
                reached.add(name)
                waiting.append(name)
    return reached


def _way_back(path: _Path, description: Mapping[str, object], hops: list[Step]) -> ServicePath | None:
    """Make the other direction of a bidirectional path."""
    where = path.where("bidirectional")
    if description.get("branches") or description.get("joins"):
        path.fault("has branches and is bidirectional", where, "write a path for each direction")
        return None
    if hops[0].name == hops[-1].name:
        path.fault(f"begins and ends at port {hops[0].name} and is bidirectional", where,
                   "it needs no way back")  # fmt: skip
        return None
    name = path.name + BACK
    if len(name) > 31:
        path.fault("has too long a name for a bidirectional path", path.document.where(path.location, key=True),
                   f"at most {31 - len(BACK)} characters: its way back is called {name}")  # fmt: skip
        return None
    middle = hops[1:-1]
    if description["bidirectional"] == "reverse-order":
        middle = middle[::-1]
    chain = [hops[-1], *middle, hops[0]]
    links = tuple(Link(step.name, step.output, following.name) for step, following in itertools.pairwise(chain))
    return ServicePath(name, hops[-1].name, links)


def _check_together(document: Document, paths: list[ServicePath], faults: list[CovenError]) -> None:
    """Check what concerns several paths: one beginning for each port, names, abi.h's limits."""
    begun: dict[str, str] = {}
    names: set[str] = set()
    hops = 0
    for path in paths:
        written = path.name if path.name in document.data["paths"] else path.name.removesuffix(BACK)
        where = document.where(("paths", written), key=True)
        if path.name in names:
            faults.append(CovenError("descriptor.duplicate-name", f"two paths are called {path.name}", where=where,
                                     hint=f"{BACK} is the ending of a bidirectional path's way back"))  # fmt: skip
        names.add(path.name)
        other = begun.setdefault(path.ingress, path.name)
        if other != path.name:
            message = f"path {path.name} begins at port {path.ingress}, where path {other} begins already"
            faults.append(CovenError("descriptor.bad-path", message, where=where,
                                     hint="at most one path begins at a port"))  # fmt: skip
        hops += len({link.source for link in path.links}) - 1
    if hops > limits.MAX_HOPS:
        message = f"the paths have {hops} hops together, at most {limits.MAX_HOPS}"
        faults.append(CovenError("descriptor.invalid", message, where=document.where(("paths",), key=True)))
