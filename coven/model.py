"""What a package describes, as frozen values. `coven.descriptor` makes them, `forwarder/plan.py` plans from them."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


class Isolation(enum.StrEnum):
    """How a component is kept apart; the numbers of `enum coven_isolation` are in order of this list."""

    FUSED = "fused"  # called inside the worker
    SHARED = "shared"  # own process, sees the packet pool
    COPY = "copy"  # own process, sees only packets given to it


class OnFailure(enum.StrEnum):
    """What happens to packets of a component that is down; numbers as in `enum coven_on_failure`."""

    DROP = "drop"
    BYPASS = "bypass"
    STOP = "stop"


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric that a component declares; its cell is its place in the list."""

    name: str
    type: str  # "counter" or "gauge"
    unit: str
    help: str


@dataclass(frozen=True, slots=True)
class Argument:
    """An argument of an operation. `default` is None when there is none."""

    name: str
    type: str  # "string", "integer", "number", "boolean"
    help: str
    required: bool = True
    default: str | int | float | bool | None = None
    enum: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Operation:
    """An operation that a component offers through its Extended Agent."""

    name: str
    help: str
    arguments: tuple[Argument, ...] = ()


@dataclass(frozen=True, slots=True)
class FlowState:
    """Per-flow state that a component keeps in the platform's flow table."""

    bytes: int
    version: int = 1
    scope: str = "flow"  # or "table" (later)
    state_class: str = "critical"  # or "soft": may be evicted


@dataclass(frozen=True, slots=True)
class Hold:
    """How many packets a component may hold back, and for how long."""

    packets: int = 256
    ms: int = 1000


@dataclass(frozen=True, slots=True)
class ComponentType:
    """component.yaml: what a component is, whoever uses it."""

    name: str
    summary: str
    framework: str
    entry: str  # file within the component's folder
    outputs: int = 1
    options: Mapping[str, Any] | None = None  # JSON Schema of type object
    metrics: tuple[Metric, ...] = ()
    operations: tuple[Operation, ...] = ()
    state: FlowState | None = None
    hold: Hold = Hold()
    build: Mapping[str, Any] | None = None  # framework's own: further sources, flags, libraries


@dataclass(frozen=True, slots=True)
class Limits:
    """Resources of one isolated replica."""

    memory_bytes: int = 256 * 1024 * 1024
    cpu: float = 1.0  # cores
    pids: int = 32


@dataclass(frozen=True, slots=True)
class Component:
    """A component of a function: a type with a name, options and a place to stand."""

    name: str
    type: ComponentType
    source: str  # folder within the package
    isolation: Isolation = Isolation.COPY  # asked for
    on_failure: OnFailure = OnFailure.DROP
    hang_ms: int = 1000  # without moving while packets wait: it hangs
    options: Mapping[str, Any] | None = None  # as given; the plan puts in parameters and defaults
    limits: Limits = Limits()
    replicas: int = 1


@dataclass(frozen=True, slots=True)
class Port:
    """A logical port; an interface is bound to it at instantiation."""

    name: str
    summary: str = ""


@dataclass(frozen=True, slots=True)
class Link:
    """An edge of a path: from a port or a component's output to a component or a port."""

    source: str
    output: int
    target: str


@dataclass(frozen=True, slots=True)
class ServicePath:
    """One direction of travel: from one ingress port through components to egress ports."""

    name: str
    ingress: str
    links: tuple[Link, ...]


@dataclass(frozen=True, slots=True)
class Parameter:
    """A value that the operator gives at instantiation."""

    name: str
    schema: Mapping[str, Any]  # JSON Schema
    required: bool
    default: Any = None


@dataclass(frozen=True, slots=True)
class Vnf:
    """A whole function as its package describes it."""

    name: str
    version: str
    provider: str
    summary: str
    ports: tuple[Port, ...]
    components: tuple[Component, ...]
    paths: tuple[ServicePath, ...]
    parameters: tuple[Parameter, ...] = ()
    flow_capacity: int = 65536
    flow_idle_timeout_s: float = 120.0
    flow_when_full: str = "idle"  # which flow gives its place to a new one
    pool_buffers: int = 16384
    pool_buffer_bytes: int | None = None  # None: the plan chooses by MTU
    priority: tuple[str, ...] = ()  # kinds of packets, as coven.priority reads them
    workers: int = 1
    profile: str = "balanced"  # how they wait, one of instance_plan.PROFILES
