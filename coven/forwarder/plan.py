"""Planning: from a function and what the operator gives to everything that the supervisor needs.

Pure: no input, no output, no clock. Called by the Management Agent and by tests.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from coven import limits
from coven.descriptor.option_schema import check_value, fill_defaults
from coven.descriptor.parameters import raise_all, resolve, substitute
from coven.errors import CovenError, Where
from coven.forwarder.bindings import Binding, normalise
from coven.forwarder.instance_plan import (
    HEADROOM,
    ComponentPlan,
    FlowsPlan,
    HopPlan,
    InstancePlan,
    Next,
    PackagePlan,
    PathPlan,
    PoolPlan,
    PortPlan,
)
from coven.forwarder.plan_check import INSTANCE_PATTERN
from coven.forwarder.workers import check_workers, plan_workers
from coven.model import Component, Isolation, ServicePath, Vnf
from coven.processing import framework
from coven.suggest import near_miss

__all__ = ["InstancePlan", "plan"]

DEFAULT_MTU = 1500
PCAP_FRAME = 9000  # captures have no MTU; their frames may be as large as this, larger ones are `oversize`
# Ethernet header, two VLAN tags, and room behind for what NSH (RFC 8300 section 2.2: up to 256 bytes with
# its service path header) and its outer Ethernet header add.
FRAME_EXTRA = 14 + 8 + 264
LEAST_BUFFER = 4096
RING_SIZE = 1024  # 512 packets in flight and more keep an isolated component busy


def plan(
    vnf: Vnf,
    bindings: Mapping[str, Any],
    parameters: Mapping[str, Any],
    grants: Mapping[str, str],
    *,
    instance: str,
    package_root: str,
    interfaces: Mapping[str, Mapping[str, Any]],
    package_id: str = "",
    workers: Mapping[str, Any] | None = None,
) -> InstancePlan:
    """Plan an instance of `vnf`.

    bindings: port -> interface name or mapping (docs/internals.md, section 6). grants: component or "*" ->
    isolation. package_root: absolute folder of the unpacked package. interfaces: name -> {"mtu", "up"};
    what it lacks is taken as MTU 1500, since whoever applies the plan checks. workers: number, cores and profile, see
    `plan_workers`.
    Raises CovenError `binding.*`, `parameter.*`, `grant.invalid`, `port.unknown-tool`, `request.invalid`,
    `worker.invalid`.
    """
    if not isinstance(instance, str) or not re.fullmatch(INSTANCE_PATTERN, instance):
        raise CovenError("request.invalid", f"{instance!r} is no instance id",
                         hint="lower-case letters, digits and dashes, at most 63",
                         where=Where(part="instance"))  # fmt: skip
    bound = _bind(vnf, bindings)
    values = resolve(vnf.parameters, parameters)
    isolations = _grant(vnf, grants)
    mtus = {name: _mtu(binding, interfaces) for name, binding in bound.items()}
    components = _components(vnf, values, isolations, package_root)
    hops, firsts = _hops(vnf)
    planned = InstancePlan(
        instance=instance,
        vnf=vnf.name,
        vnf_version=vnf.version,
        package=PackagePlan(package_id or PurePosixPath(package_root).name, package_root),
        pool=PoolPlan(vnf.pool_buffers, vnf.pool_buffer_bytes or _buffer_bytes(bound, mtus)),
        flows=FlowsPlan(
            vnf.flow_capacity if any(component.state for component in components) else 0,
            max(1, round(vnf.flow_idle_timeout_s * 1000)),
            vnf.flow_when_full,
        ),
        worker=plan_workers(vnf, workers or {}),
        ports=tuple(
            PortPlan(
                name=port.name,
                tool=bound[port.name].tool,
                interface=bound[port.name].interface,
                options=bound[port.name].options,
                mtu=mtus[port.name],
                path=firsts[port.name][0] if port.name in firsts else None,
                first=firsts[port.name][1] if port.name in firsts else None,
            )
            for port in vnf.ports
        ),
        components=components,
        hops=hops,
        paths=tuple(PathPlan(path.name, path.ingress) for path in vnf.paths),
        priority=vnf.priority,
    )
    check_workers(planned)
    return planned


def _bind(vnf: Vnf, bindings: Mapping[str, Any]) -> dict[str, Binding]:
    """Bind each port; every fault is reported at once."""
    names = [port.name for port in vnf.ports]
    faults: list[CovenError] = []
    for name in bindings:
        if name not in names:
            hint = near_miss(str(name), names) or f"ports are: {', '.join(names)}"
            faults.append(
                CovenError("binding.unknown", f"the function has no port {name!r}", hint=hint,
                           where=Where(part=f"port {name}"))
            )  # fmt: skip
    bound: dict[str, Binding] = {}
    taken: dict[str, str] = {}
    for name in names:
        if name not in bindings:
            faults.append(
                CovenError("binding.missing", f"port {name} is not bound",
                           hint=f"name an interface for it: --port {name}=eth1",
                           where=Where(part=f"port {name}"))
            )  # fmt: skip
            continue
        try:
            binding = normalise(name, bindings[name])
        except CovenError as error:
            faults.append(error)
            continue
        bound[name] = binding
        if binding.interface is not None:
            other = taken.setdefault(binding.interface, name)
            if other != name:
                message = f"port {name}: interface {binding.interface} is bound to port {other} already"
                faults.append(CovenError("binding.invalid", message, where=Where(part=f"port {name}")))
    raise_all(faults, "the bindings")
    return bound


def _grant(vnf: Vnf, grants: Mapping[str, str]) -> dict[str, Isolation]:
    """Give each component the isolation it asked for, as far as granted; `copy` needs no grant."""
    names = [component.name for component in vnf.components]
    faults: list[CovenError] = []
    for name, granted in grants.items():
        where = Where(part=f"grant {name}")
        if name != "*" and name not in names:
            faults.append(
                CovenError("grant.invalid", f"the function has no component {name!r}",
                           hint=near_miss(str(name), names), where=where)
            )  # fmt: skip
        if granted not in {isolation.value for isolation in Isolation}:
            faults.append(
                CovenError("grant.invalid", f"{granted!r} is no isolation", where=where,
                           hint=near_miss(str(granted), Isolation) or "isolations are: fused, shared, copy")
            )  # fmt: skip
    raise_all(faults, "the grants")
    order = list(Isolation)  # nearest to the worker first
    isolations = {}
    for component in vnf.components:
        grant = Isolation(grants.get(component.name, grants.get("*", Isolation.COPY)))
        isolation = max(grant, component.isolation, key=order.index)
        if isolation is Isolation.FUSED and not framework.information(component.type.framework).can_fuse:
            isolation = Isolation.SHARED
        isolations[component.name] = isolation
    return isolations


def _mtu(binding: Binding, interfaces: Mapping[str, Mapping[str, Any]]) -> int:
    """Give the MTU of what a port is bound to; 0 for tools that take any length."""
    if binding.interface is None:
        return 0
    mtu = interfaces.get(binding.interface, {}).get("mtu", DEFAULT_MTU)
    return mtu if type(mtu) is int and 0 < mtu <= 65535 else DEFAULT_MTU


def _buffer_bytes(bound: Mapping[str, Binding], mtus: Mapping[str, int]) -> int:
    """Give the smallest power of two that holds the largest packet any port can bring."""
    largest = 0
    for name, binding in bound.items():
        if binding.tool == "pcap":
            largest = max(largest, PCAP_FRAME)
        elif binding.tool == "gen":
            largest = max(largest, int(binding.options["bytes"]), DEFAULT_MTU)
        else:
            largest = max(largest, mtus[name])
    needed = HEADROOM + FRAME_EXTRA + largest
    return max(LEAST_BUFFER, 1 << (needed - 1).bit_length())


def _components(
    vnf: Vnf, values: Mapping[str, Any], isolations: Mapping[str, Isolation], package_root: str
) -> tuple[ComponentPlan, ...]:
    faults: list[CovenError] = []
    planned = []
    for component in vnf.components:
        isolation = isolations[component.name]
        kind = component.type
        planned.append(
            ComponentPlan(
                name=component.name,
                framework=kind.framework,
                source=str(PurePosixPath(package_root) / component.source),
                entry=kind.entry,
                build=dict(kind.build or {}),
                isolation_asked=component.isolation,
                isolation=isolation,
                on_failure=component.on_failure,
                hang_ms=component.hang_ms,
                outputs=kind.outputs,
                options=_options(component, values, faults),
                replicas=1 if isolation is Isolation.FUSED else component.replicas,
                ring_size=RING_SIZE,
                copy_buffers=RING_SIZE + kind.hold.packets,
                limits=component.limits,
                hold=kind.hold,
                metrics=kind.metrics,
                operations=kind.operations,
                state=kind.state,
            )
        )
    isolated = sum(c.replicas for c in planned if c.isolation is not Isolation.FUSED)
    if isolated > limits.MAX_REPLICAS:
        message = f"{isolated} isolated replicas are more than the {limits.MAX_REPLICAS} one worker serves"
        faults.append(CovenError("request.invalid", message, hint="fewer replicas, or grant `fused`"))
    raise_all(faults, "the options")
    return tuple(planned)


def _options(component: Component, values: Mapping[str, Any], faults: list[CovenError]) -> dict[str, Any]:
    """Give a component's options with parameters put in, checked against its schema."""
    schema = component.type.options or {"type": "object", "additionalProperties": False}
    options = fill_defaults(schema, substitute(dict(component.options or {}), values))
    where = Where(part=f"component {component.name}")
    for place, message in check_value(schema, options):
        faults.append(
            CovenError("parameter.invalid", f"component {component.name}: options{place}: {message}", where=where)
        )
    if len(json.dumps(options)) > limits.MAX_OPTIONS_BYTES:
        message = f"component {component.name}: the options are longer than {limits.MAX_OPTIONS_BYTES} bytes"
        faults.append(CovenError("parameter.invalid", message, where=where))
    return options


def order(path: ServicePath, components: Mapping[str, Any]) -> list[str]:
    """Give the components of a path so that each stands before those it leads to."""
    waiting: dict[str, int] = {}
    after: dict[str, list[str]] = {}
    for link in path.links:
        if link.target in components:
            waiting.setdefault(link.target, 0)
            if link.source in components:
                waiting[link.target] += 1
                after.setdefault(link.source, []).append(link.target)
    ready = [name for name, count in waiting.items() if count == 0]
    ordered = []
    while ready:
        name = ready.pop(0)
        ordered.append(name)
        for target in after.get(name, ()):
            waiting[target] -= 1
            if waiting[target] == 0:
                ready.append(target)
    if len(ordered) != len(waiting):
        raise CovenError("descriptor.loop", f"path {path.name} loops", where=Where(part=f"paths.{path.name}"))
    return ordered


def _hops(vnf: Vnf) -> tuple[tuple[HopPlan, ...], dict[str, tuple[int, Next]]]:
    """Number the hops of all paths, and say for each ingress port which path and step begin there."""
    ports = {port.name: number for number, port in enumerate(vnf.ports)}
    components = {component.name: number for number, component in enumerate(vnf.components)}
    hops: list[HopPlan] = []
    firsts: dict[str, tuple[int, Next]] = {}
    for number, path in enumerate(vnf.paths):
        ordered = order(path, components)
        places = {name: len(hops) + place for place, name in enumerate(ordered)}
        steps = {
            (link.source, link.output): Next(hop=places[link.target])
            if link.target in places
            else Next(port=ports[link.target])
            for link in path.links
        }
        firsts[path.ingress] = (number, steps[(path.ingress, 0)])
        for name in ordered:
            outputs = vnf.components[components[name]].type.outputs
            hops.append(HopPlan(components[name], number, tuple(steps.get((name, n)) for n in range(outputs))))
    if len(hops) > limits.MAX_HOPS:
        raise CovenError("request.invalid", f"the paths have {len(hops)} hops, at most {limits.MAX_HOPS}")
    return tuple(hops), firsts
