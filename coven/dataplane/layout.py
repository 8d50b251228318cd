"""From an instance plan to its shared memory: the plan segment, sizes and first bytes of all others.

Pure: makes no segment and opens nothing but the package's own list of drop reasons. Offsets and numbers come
from abi.h through cffi; called by the supervisor and by the tests.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from coven import priority
from coven.dataplane.core import ffi, lib, sizeof
from coven.errors import CovenError

PAGE = 4096
ISOLATION = {"fused": lib.COVEN_FUSED, "shared": lib.COVEN_SHARED, "copy": lib.COVEN_COPY}
ON_FAILURE = {
    "drop": lib.COVEN_ON_FAILURE_DROP,
    "bypass": lib.COVEN_ON_FAILURE_BYPASS,
    "stop": lib.COVEN_ON_FAILURE_STOP,
}
PROFILES = {
    "balanced": lib.COVEN_PROFILE_BALANCED,
    "low-latency": lib.COVEN_PROFILE_LOW_LATENCY,
    "power-save": lib.COVEN_PROFILE_POWER_SAVE,
}
WHEN_FULL = {
    "idle": lib.COVEN_WHEN_FULL_IDLE,
    "refuse": lib.COVEN_WHEN_FULL_REFUSE,
    "one-way": lib.COVEN_WHEN_FULL_ONE_WAY,
    "oldest": lib.COVEN_WHEN_FULL_OLDEST,
}
TOOLS = {
    "auto": lib.COVEN_PORT_AFPACKET,  # until it is opened: then the plan segment says which it is
    "afpacket": lib.COVEN_PORT_AFPACKET,
    "afxdp": lib.COVEN_PORT_AFXDP,
    "pcap": lib.COVEN_PORT_PCAP,
    "tap": lib.COVEN_PORT_TAP,
    "gen": lib.COVEN_PORT_GEN,
}
ENDLESS = 2**64 - 1  # gen: packets that never end


CStruct: TypeAlias = Any  # a cffi structure or a pointer to one


class Plan(Protocol):
    """What `forwarder.plan.InstancePlan` offers here."""

    def to_json(self) -> dict[str, Any]:
        """Give the JSON form of docs/internals.md section 6."""


@dataclass(frozen=True, slots=True)
class DropReason:
    """One line of drop_reasons.def; its number is its place in the list."""

    name: str
    label: str
    what: str
    hint: str


@functools.cache
def drop_reasons() -> tuple[DropReason, ...]:
    """Give all drop reasons in the order of their numbers."""
    text = Path(__file__).with_name("drop_reasons.def").read_text(encoding="utf-8")
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)
    rows = re.findall(r'DROP\(\s*(\w+)\s*,\s*"([^"]*)"\s*,\s*"([^"]*)"\s*,\s*"([^"]*)"\s*\)', text)
    return tuple(DropReason(*row) for row in rows)


@dataclass(frozen=True, slots=True)
class SegmentImage:
    """A segment to be made: `head` at its beginning, the rest zero."""

    name: str  # "plan", "pool", "ledger", "stats", "state-<component>", "replica-<number>"
    kind: int  # enum coven_segment_kind
    index: int  # component (state), replica (replica), else 0
    size: int
    head: bytes


@dataclass(frozen=True, slots=True)
class ReplicaPlace:
    """An isolated replica: its number through all components, and within its own."""

    number: int
    component: int
    replica: int


@dataclass(frozen=True, slots=True)
class Layout:
    """All segments of one instance, and who its isolated replicas are."""

    plan: SegmentImage
    pool: SegmentImage
    ledger: SegmentImage
    stats: SegmentImage
    states: tuple[SegmentImage, ...]  # one for each component, in order
    replicas: tuple[SegmentImage, ...]  # one for each isolated replica, in order
    places: tuple[ReplicaPlace, ...]  # beside `replicas`


def _round(value: int, to: int) -> int:
    return (value + to - 1) // to * to


def _header(target: CStruct, kind: int, size: int, index: int, created_ns: int) -> None:
    header = target.header
    header.magic = lib.COVEN_MAGIC
    header.abi_version = lib.COVEN_ABI_VERSION
    header.kind, header.bytes, header.index, header.created_ns = kind, size, index, created_ns


def _name(text: str, size: int) -> bytes:
    raw = text.encode()
    if len(raw) >= size:
        raise CovenError("descriptor.invalid", f"the name {text!r} is longer than {size - 1} bytes")
    return raw


def _limit(count: int, limit: int, what: str) -> int:
    if count > limit:
        raise CovenError("platform.no-resources", f"{count} {what}, at most {limit} fit one worker")
    return count


def _port(row: CStruct, port: Mapping[str, Any]) -> None:
    options = port.get("options") or {}
    first = port.get("first") or {}
    path = port.get("path")
    row.name = _name(port["name"], lib.COVEN_NAME_BYTES)
    row.tool = TOOLS[port["tool"]]
    row.mtu = port.get("mtu") or 0
    row.first_hop = first.get("hop", lib.COVEN_NO_HOP)
    row.first_port = first.get("port", lib.COVEN_NO_PORT)
    row.path = lib.COVEN_MAX_PATHS if path is None else path
    row.ring_frames = options.get("ring_frames", 0)
    row.ring_frame_bytes = options.get("ring_frame_bytes", 0)
    row.flags = (
        (lib.COVEN_PORT_PACED if options.get("paced") else 0)
        | (lib.COVEN_PORT_NANOSECOND if options.get("nanosecond") else 0)
        | (lib.COVEN_PORT_LOOP if options.get("loop") else 0)
    )
    packets = options.get("packets", 0)
    size = options.get("bytes", 64)
    row.gen_packets = ENDLESS if packets is None else packets
    row.gen_rate = options.get("rate", 0)
    row.gen_bytes = 0 if size == "imix" else size
    row.gen_flows = options.get("flows", 1)


def _component(row: CStruct, component: Mapping[str, Any], first_replica: int) -> None:
    state = component.get("state") or {}
    hold = component.get("hold") or {}
    row.name = _name(component["name"], lib.COVEN_NAME_BYTES)
    row.isolation = ISOLATION[component["isolation"]]
    row.on_failure = ON_FAILURE[component.get("on_failure", "drop")]
    row.outputs = _limit(component.get("outputs", 1), lib.COVEN_MAX_OUTPUTS, "outputs")
    row.first_replica = first_replica
    row.n_replicas = component.get("replicas", 1)
    row.state_bytes = state.get("bytes", 0)
    row.state_version = state.get("version", 0)
    row.ring_size = component.get("ring_size", 1024)
    row.hold_limit = hold.get("packets", 256)
    row.hold_ms = hold.get("ms", 1000)
    row.n_buffers = component.get("copy_buffers", 1024)
    row.hang_ms = component.get("hang_ms", 0)


def _hop(row: CStruct, hop: Mapping[str, Any]) -> None:
    row.component = hop["component"]
    row.path = hop["path"]
    for output in range(lib.COVEN_MAX_OUTPUTS):
        step = hop["next"][output] if output < len(hop["next"]) else None
        row.next[output].hop = (step or {}).get("hop", lib.COVEN_NO_HOP)
        row.next[output].port = (step or {}).get("port", lib.COVEN_NO_PORT)


def _plan(document: Mapping[str, Any], seed: tuple[int, int], created_ns: int) -> CStruct:
    plan = ffi.new("struct coven_plan *")
    components = document["components"]
    flows = document.get("flows") or {}
    _header(plan, lib.COVEN_SEGMENT_PLAN, sizeof("coven_plan"), 0, created_ns)
    plan.instance = _name(document["instance"], 64)
    plan.n_ports = _limit(len(document["ports"]), lib.COVEN_MAX_PORTS, "ports")
    plan.n_components = _limit(len(components), lib.COVEN_MAX_COMPONENTS, "components")
    plan.n_hops = _limit(len(document["hops"]), lib.COVEN_MAX_HOPS, "hops")
    plan.n_paths = _limit(len(document["paths"]), lib.COVEN_MAX_PATHS, "paths")
    pool = document["pool"]
    plan.n_buffers, plan.buffer_bytes, plan.headroom = pool["buffers"], pool["buffer_bytes"], pool["headroom"]
    if any(component.get("state") for component in components):
        plan.n_flows = flows.get("capacity", 65536)
    plan.flow_idle_ms = flows.get("idle_timeout_ms", 120000)
    plan.flow_when_full = WHEN_FULL[flows.get("when_full", "idle")]
    for i, rule in enumerate(priority.rules(document.get("priority") or ())):
        plan.priorities[i] = {"kind": rule.kind, "value": rule.value}
        plan.n_priorities = i + 1
    plan.profile = PROFILES[(document.get("worker") or {}).get("profile", "balanced")]
    plan.flow_seed = seed
    for i, port in enumerate(document["ports"]):
        _port(plan.ports[i], port)
    n_replicas = 0
    for i, component in enumerate(components):
        _component(plan.components[i], component, n_replicas)
        if component["isolation"] != "fused":
            n_replicas += component.get("replicas", 1)
    plan.n_replicas = _limit(n_replicas, lib.COVEN_MAX_REPLICAS, "isolated replicas")
    for i, hop in enumerate(document["hops"]):
        _hop(plan.hops[i], hop)
    for i, path in enumerate(document["paths"]):
        plan.paths[i].name = _name(path["name"], lib.COVEN_NAME_BYTES)
        plan.paths[i].spi = path.get("spi", 0)
    plan.ledger_bytes = lib.coven_ledger_bytes(plan)
    return plan


def _pool(plan: CStruct, created_ns: int) -> SegmentImage:
    head = ffi.new("struct coven_pool *")
    size = PAGE + plan.n_buffers * plan.buffer_bytes
    _header(head, lib.COVEN_SEGMENT_POOL, size, 0, created_ns)
    head.n_buffers, head.buffer_bytes, head.headroom = plan.n_buffers, plan.buffer_bytes, plan.headroom
    head.data_offset = PAGE
    return SegmentImage("pool", lib.COVEN_SEGMENT_POOL, 0, size, bytes(ffi.buffer(head)))


def _plain(name: str, kind: int, size: int, created_ns: int) -> SegmentImage:
    head = ffi.new("struct coven_segment_header *")
    holder = ffi.new("struct coven_stats *")
    _header(holder, kind, size, 0, created_ns)
    ffi.memmove(head, holder, sizeof("coven_segment_header"))
    return SegmentImage(name, kind, 0, size, bytes(ffi.buffer(head)))


def _stats(plan: CStruct, created_ns: int) -> SegmentImage:
    head = ffi.new("struct coven_stats *")
    words = cell_count() + lib.COVEN_MAX_PATHS * lib.COVEN_LATENCY_BUCKETS
    words += lib.COVEN_MAX_COMPONENTS * lib.COVEN_VIOLATION_CELLS
    size = _round(sizeof("coven_stats") + 8 * words, PAGE)
    _header(head, lib.COVEN_SEGMENT_STATS, size, 0, created_ns)
    head.instance = ffi.string(plan.instance)
    first = bytes(ffi.buffer(head))[: sizeof("coven_stats")]
    return SegmentImage("stats", lib.COVEN_SEGMENT_STATS, 0, size, first)


def _state(plan: CStruct, index: int, n_metrics: int, created_ns: int) -> SegmentImage:
    component = plan.components[index]
    head = ffi.new("struct coven_state *")
    half = _round(component.state_bytes, 8)
    head.half_bytes = half
    head.slot_bytes = _round(sizeof("coven_slot") + 2 * half, 64) if half else 0
    head.n_slots = plan.n_flows if half else 0
    head.version = component.state_version
    head.metrics_offset = _round(sizeof("coven_state"), 64)
    head.n_replicas = component.n_replicas
    head.n_metrics = _limit(n_metrics, lib.COVEN_MAX_METRICS, "metrics")
    head.slots_offset = _round(head.metrics_offset + 8 * lib.COVEN_MAX_METRICS * component.n_replicas, 64)
    size = _round(head.slots_offset + head.n_slots * head.slot_bytes, PAGE)
    _header(head, lib.COVEN_SEGMENT_STATE, size, index, created_ns)
    name = f"state-{ffi.string(component.name).decode()}"
    return SegmentImage(name, lib.COVEN_SEGMENT_STATE, index, size, bytes(ffi.buffer(head)))


def _replica(plan: CStruct, place: ReplicaPlace, created_ns: int) -> SegmentImage:
    component = plan.components[place.component]
    copies = component.isolation == lib.COVEN_COPY
    head = ffi.new("struct coven_replica *")
    head.isolation, head.ring_size = component.isolation, component.ring_size
    head.n_buffers = component.n_buffers if copies else plan.n_buffers
    head.buffer_bytes = plan.buffer_bytes
    head.component, head.replica, head.outputs = place.component, place.replica, component.outputs
    head.name = ffi.string(component.name)
    at = sizeof("coven_replica")
    # replica_life.c: geometry_of() computes the same from the plan
    entries = component.ring_size * sizeof("coven_entry")
    lines = component.ring_size * sizeof("coven_meta")
    head.in_entry, head.in_meta, head.in_ext = at, at + entries, at + entries + lines
    at += entries + 2 * lines
    head.out_entry, head.out_meta, head.out_ext = at, at + entries, at + entries + lines
    size = _round(at + entries + 2 * lines, PAGE)
    head.data_offset = size if copies else PAGE
    if copies:
        size += component.n_buffers * plan.buffer_bytes
    _header(head, lib.COVEN_SEGMENT_REPLICA, size, place.number, created_ns)
    name = f"replica-{place.number}"
    return SegmentImage(name, lib.COVEN_SEGMENT_REPLICA, place.number, size, bytes(ffi.buffer(head)))


def cell_count() -> int:
    """Give COVEN_CELLS: how many counters the stats segment has."""
    return int(ffi.sizeof(ffi.typeof("struct coven_snapshot").fields[-1][1].type) // 8)


def layout(plan: Plan | Mapping[str, Any], *, seed: tuple[int, int], created_ns: int = 0) -> Layout:
    """Lay out the shared memory of an instance.

    plan: the InstancePlan, or its JSON form (docs/internals.md section 6), already validated. seed: secret
    key of the flow hash, two 64-bit numbers. Raises CovenError platform.no-resources beyond a limit of abi.h.
    """
    document = plan if isinstance(plan, Mapping) else plan.to_json()
    raw = _plan(document, seed, created_ns)
    places: list[ReplicaPlace] = []
    for i in range(raw.n_components):
        if raw.components[i].isolation != lib.COVEN_FUSED:
            places += [ReplicaPlace(len(places), i, 0)]
            places += [
                ReplicaPlace(places[-1].number + r, i, r) for r in range(1, raw.components[i].n_replicas)
            ]
    return Layout(
        plan=SegmentImage("plan", lib.COVEN_SEGMENT_PLAN, 0, sizeof("coven_plan"), bytes(ffi.buffer(raw))),
        pool=_pool(raw, created_ns),
        ledger=_plain("ledger", lib.COVEN_SEGMENT_LEDGER, _round(raw.ledger_bytes, PAGE), created_ns),
        stats=_stats(raw, created_ns),
        states=tuple(
            _state(raw, i, len(document["components"][i].get("metrics") or []), created_ns)
            for i in range(raw.n_components)
        ),
        replicas=tuple(_replica(raw, place, created_ns) for place in places),
        places=tuple(places),
    )
