"""Strict reading of a plan from JSON: types first, then what the numbers in it point at."""

from __future__ import annotations

import dataclasses
import enum
import math
import re
import types
import typing
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any, NoReturn

from coven import limits, priority
from coven.errors import CovenError, Where
from coven.forwarder.bindings import INTERFACE_PATTERN, INTERFACE_TOOLS, normalise
from coven.forwarder.instance_plan import (
    AUTO,
    KEYS,
    MAX_CORE,
    PLAN_VERSION,
    PORT_TOOLS,
    PROFILES,
    WHEN_FULL,
    ComponentPlan,
    InstancePlan,
    Next,
    PortPlan,
)
from coven.forwarder.workers import check_workers
from coven.model import Isolation

INSTANCE_PATTERN = r"^[a-z0-9][a-z0-9-]{0,62}$"

MAX_TEXT = 4096
MAX_DEPTH = 32  # options may be nested 16 deep


def refuse(part: str, message: str) -> NoReturn:
    """Raise `plan.invalid` for a part of the plan."""
    raise CovenError("plan.invalid", message, where=Where(part=part))


def decode_plan(document: object) -> InstancePlan:
    """Make an InstancePlan of a JSON document. Raises CovenError `plan.invalid` at the first fault."""
    if isinstance(document, Mapping) and document.get("version") != PLAN_VERSION:
        refuse("plan.version", f"this COVEN reads plans of version {PLAN_VERSION}")
    plan = _decode(InstancePlan, document, "plan", 0)
    assert isinstance(plan, InstancePlan)  # noqa: S101 - what _decode was asked for
    check_plan(plan)
    return plan


def _decode(kind: Any, value: object, part: str, depth: int) -> Any:
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        return _decode_union(typing.get_args(kind), value, part, depth)
    if origin is tuple:
        if not isinstance(value, list):
            refuse(part, "must be a list")
        element = typing.get_args(kind)[0]
        return tuple(_decode(element, item, f"{part}[{n}]", depth + 1) for n, item in enumerate(value))
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, dict):
            refuse(part, "must be an object")
        return {_text(key, part): _json(item, f"{part}.{key}", depth + 1) for key, item in value.items()}
    if kind is Next:
        return _decode_next(value, part)
    if dataclasses.is_dataclass(kind):
        return _decode_object(kind, value, part, depth)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        if not isinstance(value, str) or value not in {member.value for member in kind}:
            refuse(part, f"must be one of {', '.join(str(member.value) for member in kind)}")
        return kind(value)
    return _decode_scalar(kind, value, part)


def _decode_union(kinds: tuple[Any, ...], value: object, part: str, depth: int) -> Any:
    if value is None:
        if types.NoneType not in kinds:
            refuse(part, "must not be null")
        return None
    others = [kind for kind in kinds if kind is not types.NoneType]
    if len(others) == 1:
        return _decode(others[0], value, part, depth)
    if not any(type(value) is kind for kind in others):
        refuse(part, "has the wrong type")
    return _json(value, part, depth)


def _decode_object(kind: Any, value: object, part: str, depth: int) -> Any:
    if not isinstance(value, dict):
        refuse(part, "must be an object")
    hints = typing.get_type_hints(kind)
    fields = {KEYS.get(field.name, field.name): field.name for field in dataclasses.fields(kind)}
    for key in value:
        if key not in fields:
            refuse(part, f"has an unknown key {key!r}")
    for key in fields:
        if key not in value:
            refuse(part, f"has no {key!r}")
    return kind(**{name: _decode(hints[name], value[key], f"{part}.{key}", depth + 1) for key, name in fields.items()})


def _decode_next(value: object, part: str) -> Next:
    if not isinstance(value, dict) or len(value) != 1 or not set(value) <= {"hop", "port"}:
        refuse(part, 'must be {"hop": number}, {"port": number} or null')
    ((key, number),) = value.items()
    if type(number) is not int:
        refuse(part, "must be a number")
    return Next(hop=number) if key == "hop" else Next(port=number)


def _decode_scalar(kind: type, value: object, part: str) -> Any:
    if kind is float and type(value) is int:
        value = float(value) if abs(value) < 2**63 else math.inf
    if kind is Any or type(value) is not kind:
        refuse(part, f"must be of type {getattr(kind, '__name__', kind)}")
    return _json(value, part, 0)


def _json(value: object, part: str, depth: int) -> Any:
    """Give back any JSON value, refusing what is not JSON, too deep or too long."""
    if depth > MAX_DEPTH:
        refuse(part, "is nested too deeply")
    if isinstance(value, str):
        return _text(value, part)
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int):
        if not -(2**63) <= value < 2**64:
            refuse(part, "does not fit 64 bits")
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            refuse(part, "must be a finite number")
        return value
    if isinstance(value, list):
        return [_json(item, f"{part}[{n}]", depth + 1) for n, item in enumerate(value)]
    if isinstance(value, dict):
        return {_text(key, part): _json(item, f"{part}.{key}", depth + 1) for key, item in value.items()}
    refuse(part, "is no JSON value")


def _text(value: object, part: str) -> str:
    if not isinstance(value, str) or len(value) > MAX_TEXT or "\x00" in value:
        refuse(part, f"must be text of at most {MAX_TEXT} characters without NUL")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        refuse(part, "must be text that UTF-8 can write")
    return value


def _match(pattern: str, value: str, part: str) -> None:
    if not re.fullmatch(pattern, value):
        refuse(part, f"{value!r} does not match {pattern}")


def _range(value: float, low: float, high: float, part: str) -> None:
    if not low <= value <= high:
        refuse(part, f"{value} is not within {low} to {high}")


def check_plan(plan: InstancePlan) -> None:
    """Check what types cannot say. Raises CovenError `plan.invalid`."""
    _match(INSTANCE_PATTERN, plan.instance, "plan.instance")
    _match(limits.NAME_PATTERN, plan.vnf, "plan.vnf")
    _check_sizes(plan)
    _check_folder(plan.package.root, "plan.package.root")
    for n, port in enumerate(plan.ports):
        _check_port(plan, port, f"plan.ports[{n}]")
    for n, component in enumerate(plan.components):
        _check_component(plan, component, f"plan.components[{n}]")
    for kind in ("ports", "components", "paths"):
        names = [element.name for element in getattr(plan, kind)]
        if len(set(names)) != len(names):
            refuse(f"plan.{kind}", "has one name twice")
    isolated = sum(c.replicas for c in plan.components if c.isolation is not Isolation.FUSED)
    _range(isolated, 0, limits.MAX_REPLICAS, "plan.components: isolated replicas")
    _check_hops(plan)
    try:
        priority.rules(plan.priority)
    except CovenError as error:
        refuse("plan.priority", error.message)
    try:
        check_workers(plan)
    except CovenError as error:
        refuse("plan.worker", error.message)


def _check_sizes(plan: InstancePlan) -> None:
    _range(len(plan.ports), 1, limits.MAX_PORTS, "plan.ports: number")
    _range(len(plan.components), 0, limits.MAX_COMPONENTS, "plan.components: number")
    _range(len(plan.hops), 0, limits.MAX_HOPS, "plan.hops: number")
    _range(len(plan.paths), 0, limits.MAX_PATHS, "plan.paths: number")
    pool = plan.pool
    _range(pool.buffers, limits.MIN_BUFFERS, limits.MAX_BUFFERS, "plan.pool.buffers")
    _range(pool.buffer_bytes, limits.MIN_BUFFER_BYTES, limits.MAX_BUFFER_BYTES, "plan.pool.buffer_bytes")
    _range(pool.buffers * pool.buffer_bytes, 1, limits.MAX_POOL_BYTES, "plan.pool: bytes")
    if pool.buffer_bytes & (pool.buffer_bytes - 1):
        refuse("plan.pool.buffer_bytes", "must be a power of two")
    _range(pool.headroom, 0, pool.buffer_bytes // 2, "plan.pool.headroom")
    _range(plan.flows.capacity, 0, limits.MAX_FLOWS, "plan.flows.capacity")
    _range(plan.flows.idle_timeout_ms, 1, 2**32 - 1, "plan.flows.idle_timeout_ms")
    if plan.flows.when_full not in WHEN_FULL:
        refuse("plan.flows.when_full", f"must be one of {', '.join(WHEN_FULL)}")
    _range(len(plan.worker.cores), 1, limits.MAX_WORKERS, "plan.worker.cores: number")
    pinned = [core for core in plan.worker.cores if core is not None]
    for cores, part in ((pinned, "plan.worker.cores"), (plan.worker.component_cores, "plan.worker.component_cores")):
        for core in cores:
            _range(core, 0, MAX_CORE, part)
        if len(set(cores)) != len(cores):
            refuse(part, "names a core twice")
    if plan.worker.profile not in PROFILES:
        refuse("plan.worker.profile", f"must be one of {', '.join(PROFILES)}")


def _check_folder(folder: str, part: str) -> None:
    path = PurePosixPath(folder)
    if not path.is_absolute() or ".." in path.parts or str(path) != folder:
        refuse(part, "must be an absolute path without ..")


def _check_port(plan: InstancePlan, port: PortPlan, part: str) -> None:
    _match(limits.NAME_PATTERN, port.name, f"{part}.name")
    if port.tool not in (AUTO, *PORT_TOOLS):
        refuse(f"{part}.tool", f"must be one of {', '.join((AUTO, *PORT_TOOLS))}")
    if (port.interface is not None) != (port.tool in INTERFACE_TOOLS):
        refuse(f"{part}.interface", f"does not go with tool {port.tool}")
    if port.interface is not None:
        _match(INTERFACE_PATTERN, port.interface, f"{part}.interface")
        if port.interface in (".", ".."):
            refuse(f"{part}.interface", "is no interface name")
    _check_options(port, part)
    _range(port.mtu, 0, 65535, f"{part}.mtu")
    if (port.path is None) != (port.first is None):
        refuse(part, "path and first go together")
    if port.path is not None:
        _range(port.path, 0, len(plan.paths) - 1, f"{part}.path")
        if plan.paths[port.path].ingress != port.name:
            refuse(f"{part}.path", "is a path that begins at another port")
        if port.first is not None and port.first.hop is not None:
            _range(port.first.hop, 0, len(plan.hops) - 1, f"{part}.first")
            if plan.hops[port.first.hop].path != port.path:
                refuse(f"{part}.first", "is a hop of another path")
        _check_next(plan, port.first, f"{part}.first")


def _check_options(port: PortPlan, part: str) -> None:
    """Check that the tool's options are complete and allowed: privileged code opens what they name."""
    given = {"tool": port.tool, **({} if port.interface is None else {"interface": port.interface})}
    try:
        binding = normalise(port.name, {**given, **port.options})
    except CovenError as error:
        refuse(f"{part}.options", error.message)
    if binding.options != port.options or "tool" in port.options or "interface" in port.options:
        refuse(f"{part}.options", f"are not those of tool {port.tool}")


def _check_component(plan: InstancePlan, component: ComponentPlan, part: str) -> None:
    _match(limits.NAME_PATTERN, component.name, f"{part}.name")
    _match(limits.NAME_PATTERN, component.framework, f"{part}.framework")
    _check_folder(component.source, f"{part}.source")
    if not PurePosixPath(component.source).is_relative_to(plan.package.root):
        refuse(f"{part}.source", "lies outside the package")
    entry = PurePosixPath(component.entry)
    if entry.is_absolute() or ".." in entry.parts or str(entry) != component.entry or component.entry == ".":
        refuse(f"{part}.entry", "must be a file within the component's folder")
    if component.isolation not in (Isolation.COPY, component.isolation_asked, Isolation.SHARED):
        refuse(f"{part}.isolation", "is nearer to the worker than asked for")
    if component.isolation_asked is Isolation.COPY and component.isolation is not Isolation.COPY:
        refuse(f"{part}.isolation", "is nearer to the worker than asked for")
    _range(component.outputs, 1, limits.MAX_OUTPUTS, f"{part}.outputs")
    most = 1 if component.isolation is Isolation.FUSED else limits.MAX_REPLICAS
    _range(component.replicas, 1, most, f"{part}.replicas")
    for name in ("ring_size", "copy_buffers"):
        _range(getattr(component, name), 64, 65536, f"{part}.{name}")
    if component.ring_size & (component.ring_size - 1):
        refuse(f"{part}.ring_size", "must be a power of two")
    _range(component.limits.memory_bytes, 1 << 20, 1 << 42, f"{part}.limits.memory_bytes")
    _range(component.limits.cpu, 0.01, 1024, f"{part}.limits.cpu")
    _range(component.limits.pids, 1, 32768, f"{part}.limits.pids")
    _range(component.hang_ms, 100, 600_000, f"{part}.hang_ms")
    _range(component.hold.packets, 0, 65536, f"{part}.hold.packets")
    _range(component.hold.ms, 1, 3_600_000, f"{part}.hold.ms")
    _range(len(component.metrics), 0, limits.MAX_METRICS, f"{part}.metrics: number")
    for n, metric in enumerate(component.metrics):
        _match(limits.KEY_PATTERN, metric.name, f"{part}.metrics[{n}].name")
        if metric.type not in ("counter", "gauge"):
            refuse(f"{part}.metrics[{n}].type", "must be counter or gauge")
    for n, operation in enumerate(component.operations):
        _match(limits.KEY_PATTERN, operation.name, f"{part}.operations[{n}].name")
        for argument in operation.arguments:
            _match(limits.KEY_PATTERN, argument.name, f"{part}.operations[{n}].arguments")
            if argument.type not in ("string", "integer", "number", "boolean"):
                refuse(f"{part}.operations[{n}].arguments", "has an unknown type")
    if component.state is not None:
        _range(component.state.bytes, 1, limits.MAX_STATE_BYTES, f"{part}.state.bytes")
        _range(component.state.version, 1, 65535, f"{part}.state.version")
        _range(plan.flows.capacity, 1, limits.MAX_FLOWS, "plan.flows.capacity")


def _check_hops(plan: InstancePlan) -> None:
    for n, path in enumerate(plan.paths):
        _match(limits.NAME_PATTERN, path.name, f"plan.paths[{n}].name")
        _range(path.spi, 0, 2**24 - 1, f"plan.paths[{n}].spi")
        if path.ingress not in {port.name for port in plan.ports}:
            refuse(f"plan.paths[{n}].ingress", "names no port")
    for n, hop in enumerate(plan.hops):
        part = f"plan.hops[{n}]"
        _range(hop.component, 0, len(plan.components) - 1, f"{part}.component")
        _range(hop.path, 0, len(plan.paths) - 1, f"{part}.path")
        if len(hop.next) != plan.components[hop.component].outputs:
            refuse(f"{part}.next", "has not one element for each output")
        for step in hop.next:
            _check_next(plan, step, f"{part}.next")
            if step is not None and step.hop is not None:
                _range(step.hop, n + 1, len(plan.hops) - 1, f"{part}.next")
                if plan.hops[step.hop].path != hop.path:
                    refuse(f"{part}.next", "is a hop of another path")


def _check_next(plan: InstancePlan, step: Next | None, part: str) -> None:
    if step is not None and step.port is not None:
        _range(step.port, 0, len(plan.ports) - 1, part)
    if step is not None and step.hop is not None:
        _range(step.hop, 0, len(plan.hops) - 1, part)
