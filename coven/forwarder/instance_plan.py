"""The plan of one instance as frozen values, and its strict way to JSON and back (docs/internals.md, section 6).

A plan crosses a socket into a privileged process, so `from_json` accepts exactly what `to_json` writes:
no missing or further keys, no other types, nothing that points outside the plan or the package.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from coven.model import FlowState, Hold, Isolation, Limits, Metric, OnFailure, Operation

PLAN_VERSION = 1
HEADROOM = 256  # bytes before a received packet, as the kernel leaves for AF_XDP
PORT_TOOLS = ("afpacket", "afxdp", "pcap", "tap", "gen")
AUTO = "auto"  # the best tool there is for an interface, chosen when the port is opened
WHEN_FULL = ("idle", "refuse", "one-way", "oldest")
PROFILES = ("balanced", "low-latency", "power-save")  # numbers of enum coven_profile
MAX_CORE = 4095


@dataclass(frozen=True, slots=True)
class PackagePlan:
    """The unpacked package that the instance is made from."""

    id: str
    root: str  # absolute folder


@dataclass(frozen=True, slots=True)
class PoolPlan:
    """Packet memory."""

    buffers: int
    buffer_bytes: int  # power of two
    headroom: int = HEADROOM


@dataclass(frozen=True, slots=True)
class FlowsPlan:
    """The flow table; capacity 0 when no component keeps flow state."""

    capacity: int
    idle_timeout_ms: int
    when_full: str = "idle"


@dataclass(frozen=True, slots=True)
class WorkerPlan:
    """Where the workers run: one element for each, a core's number or None for any."""

    cores: tuple[int | None, ...] = (None,)
    profile: str = "balanced"  # how workers wait, one of PROFILES
    component_cores: tuple[int, ...] = ()  # of isolated components; none: those that no worker is pinned to


@dataclass(frozen=True, slots=True)
class Next:
    """Where a packet goes: to a hop or to a port, both by number; exactly one of them is set."""

    hop: int | None = None
    port: int | None = None


@dataclass(frozen=True, slots=True)
class PortPlan:
    """A logical port and what it is bound to."""

    name: str
    tool: str  # one of PORT_TOOLS, or AUTO
    interface: str | None  # None: the tool has none (pcap, gen)
    options: Mapping[str, Any]  # of the tool
    mtu: int  # payload bytes behind the Ethernet header; 0: no limit
    path: int | None  # path of a packet that enters here; None: no path begins here
    first: Next | None  # where such a packet goes


@dataclass(frozen=True, slots=True)
class ComponentPlan:
    """A component, what it may and what it was granted."""

    name: str
    framework: str
    source: str  # absolute folder
    entry: str  # file within source
    build: Mapping[str, Any]
    isolation_asked: Isolation
    isolation: Isolation  # granted
    on_failure: OnFailure
    hang_ms: int  # without moving while packets wait
    outputs: int
    options: Mapping[str, Any]
    replicas: int
    ring_size: int
    copy_buffers: int  # of one replica in `copy`
    limits: Limits
    hold: Hold
    metrics: tuple[Metric, ...]
    operations: tuple[Operation, ...]
    state: FlowState | None


@dataclass(frozen=True, slots=True)
class HopPlan:
    """A component's place on a path; `next` has one element for each of its outputs (None: nowhere)."""

    component: int
    path: int
    next: tuple[Next | None, ...]


@dataclass(frozen=True, slots=True)
class PathPlan:
    """One direction of travel."""

    name: str
    ingress: str  # a port's name
    spi: int = 0  # 0: without NSH


@dataclass(frozen=True, slots=True)
class InstancePlan:
    """Everything that the supervisor needs to make an instance."""

    instance: str
    vnf: str
    vnf_version: str
    package: PackagePlan
    pool: PoolPlan
    flows: FlowsPlan
    worker: WorkerPlan
    ports: tuple[PortPlan, ...]
    components: tuple[ComponentPlan, ...]
    hops: tuple[HopPlan, ...]  # topological: a next hop's number is greater than the own
    paths: tuple[PathPlan, ...]
    priority: tuple[str, ...] = ()  # kinds of packets (coven.priority)
    version: int = PLAN_VERSION

    def to_json(self) -> dict[str, Any]:
        """Give the plan as a JSON object (docs/internals.md, section 6)."""
        document = encode(self)
        assert isinstance(document, dict)  # noqa: S101 - a dataclass becomes a dict
        return document

    @classmethod
    def from_json(cls, document: object) -> InstancePlan:
        """Check a JSON document and make the plan of it. Raises CovenError `plan.invalid`."""
        from coven.forwarder.plan_check import decode_plan

        return decode_plan(document)


# JSON key of a field whose own name Python does not allow.
KEYS = {"state_class": "class"}


def encode(value: object) -> Any:
    """Give a part of a plan in its JSON form."""
    if isinstance(value, Next):
        return {"hop": value.hop} if value.hop is not None else {"port": value.port}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            KEYS.get(field.name, field.name): encode(getattr(value, field.name)) for field in dataclasses.fields(value)
        }
    if isinstance(value, (Isolation, OnFailure)):
        return value.value
    if isinstance(value, (tuple, list)):
        return [encode(element) for element in value]
    if isinstance(value, Mapping):
        return {key: encode(element) for key, element in value.items()}
    return value
