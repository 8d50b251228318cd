"""Numbers of an instance, read from shared memory or taken by the worker (docs/internals.md, section 8)."""

from __future__ import annotations

import mmap
import os
import struct
import time
from typing import TYPE_CHECKING, Any

from coven.dataplane.core import ffi, lib, sizeof
from coven.dataplane.layout import cell_count, drop_reasons

if TYPE_CHECKING:
    from coven.forwarder.instance_plan import InstancePlan

PORT_BASE = 8
PORT_KEYS = ("rx_pkts", "rx_bytes", "tx_pkts", "tx_bytes", "created", "rx_missed")
COMPONENT_KEYS = ("in_pkts", "out_pkts", "created", "consumed", "violations", "cycles")
VIOLATION_KINDS = tuple(
    name.removeprefix("COVEN_VIOLATION_").lower().replace("_", "-")
    for _, name in sorted(ffi.typeof("enum coven_violation").elements.items())
    if name != "COVEN_VIOLATION_KINDS"
)
PATH_KEYS = ("rx_pkts", "rx_bytes", "tx_pkts", "tx_bytes")
WORKER_KEYS = ("loops", "busy_loops", "sleeps", "recoveries", "flows", "flows_created", "flows_removed")
COMPONENT_BASE = PORT_BASE + 8 * lib.COVEN_MAX_PORTS
PATH_BASE = COMPONENT_BASE + 8 * lib.COVEN_MAX_COMPONENTS
DROP_BASE = PATH_BASE + 4 * lib.COVEN_MAX_PATHS
BUCKETS = lib.COVEN_LATENCY_BUCKETS
SCOPE_PORT = lib.COVEN_MAX_COMPONENTS
SCOPE_WORKER = SCOPE_PORT + lib.COVEN_MAX_PORTS


def from_worker(payload: bytes, stats_fd: int) -> dict[str, Any]:
    """Give totals and cells of a SNAPSHOT answer: consistent, taken between two bursts. Latency is in memory alone."""
    taken = ffi.new("struct coven_snapshot *")
    ffi.memmove(taken, payload, min(len(payload), sizeof("coven_snapshot")))
    return {
        "time": taken.time_ns / 1e9,
        "held": taken.held,
        "free_buffers": taken.free_buffers,
        "held_by_kind": list(taken.held_by_kind),
        "held_by_component": list(taken.held_by_component),
        "cells": list(taken.cell),
        "latency": _latency(stats_fd),
        "violations": violation_cells(stats_fd),
    }


def from_memory(stats_fd: int, ledger_fd: int) -> dict[str, Any]:
    """Give the same without a worker: counters as they stand, held counted from the owners."""
    held_kinds, held_components, free = _owners(ledger_fd)
    return {
        "time": time.time(),
        "held": held_kinds[1] + held_kinds[2] + held_kinds[3],
        "free_buffers": free,
        "held_by_kind": held_kinds,
        "held_by_component": held_components,
        "cells": _words(stats_fd, sizeof("coven_stats"), cell_count()),
        "latency": _latency(stats_fd),
        "violations": violation_cells(stats_fd),
    }


def _words(fd: int, offset: int, number: int) -> list[int]:
    with mmap.mmap(fd, os.fstat(fd).st_size, prot=mmap.PROT_READ) as memory:
        return list(struct.unpack_from(f"={number}Q", memory, offset))


def _latency(stats_fd: int) -> list[int]:
    """Give the counts of all buckets, path after path."""
    offset = sizeof("coven_stats") + 8 * cell_count()
    return _words(stats_fd, offset, lib.COVEN_MAX_PATHS * lib.COVEN_LATENCY_BUCKETS)


def violation_cells(stats_fd: int) -> list[int]:
    """Give the violations by kind, component after component."""
    offset = sizeof("coven_stats") + 8 * (cell_count() + lib.COVEN_MAX_PATHS * lib.COVEN_LATENCY_BUCKETS)
    return _words(stats_fd, offset, lib.COVEN_MAX_COMPONENTS * lib.COVEN_VIOLATION_CELLS)


def violations_of(cells: list[int], component: int) -> dict[str, int]:
    """Give what there is of one component's by name."""
    first = lib.COVEN_VIOLATION_CELLS * component
    named = zip(VIOLATION_KINDS, cells[first : first + lib.COVEN_VIOLATION_CELLS], strict=False)
    return {kind: number for kind, number in named if number}


def bucket_begin_ns(bucket: int) -> int:
    """Give the least time that a bucket counts (abi.h, COVEN_LATENCY)."""
    return (4 + (bucket - 1) % 4) << (4 + (bucket - 1) // 4) if bucket else 0


def latency(counts: list[int]) -> dict[str, Any]:
    """Give packets that were looked at and percentiles of the time from rx to tx, in microseconds.

    A percentile is the middle of its bucket, which is at most an eighth off; of none without packets.
    """
    packets = sum(counts)
    found: dict[str, Any] = {"packets": packets}
    for name, share in (("p50", 0.5), ("p99", 0.99), ("p999", 0.999)):
        left, bucket = share * packets, 0
        while bucket < len(counts) - 1 and left > counts[bucket]:
            left -= counts[bucket]
            bucket += 1
        middle = (bucket_begin_ns(bucket) + bucket_begin_ns(bucket + 1)) / 2
        found[name] = round(middle / 1000, 3) if packets else None
    return found


def _owners(ledger_fd: int) -> tuple[list[int], list[int], int]:
    """Count owner words by kind (coven_owner_kind of control.h)."""
    kinds = [0] * 8
    with mmap.mmap(ledger_fd, os.fstat(ledger_fd).st_size, prot=mmap.PROT_READ) as memory:
        n_buffers, _, offset = struct.unpack_from("=IIQ", memory, sizeof("coven_segment_header"))
        if offset + 8 * n_buffers > len(memory):
            return kinds, [0] * lib.COVEN_MAX_COMPONENTS, 0
        for word in struct.unpack_from(f"={n_buffers}Q", memory, offset):
            kinds[word >> 56 & 7] += 1
    return kinds, [0] * lib.COVEN_MAX_COMPONENTS, kinds[0]


def snapshot(plan: InstancePlan, workers: list[dict[str, Any]], restarts: dict[str, int]) -> dict[str, Any]:
    """Give section 8's document: sums over all workers, and what tells the share of each.

    workers: of each what `from_worker` or `from_memory` gave. restarts: of each component, which only the supervisor
    knows.
    """
    total = _sum(workers)
    document = _one(plan, total)
    for name, row in document["components"].items():
        row["restarts"] = restarts.get(name, 0)
    shares = [_one(plan, raw) for raw in workers]
    shown = ("accounting", "drops", "held", "ports", "components", "worker")
    return {
        **document,
        "workers": [{key: share[key] for key in shown} for share in shares],
        "time": total["time"],
    }


def _sum(workers: list[dict[str, Any]]) -> dict[str, Any]:
    """Add up numbers and lists of numbers; the time is that of the last."""
    total: dict[str, Any] = {"time": max(raw["time"] for raw in workers)}
    for key in ("held", "free_buffers"):
        total[key] = sum(raw[key] for raw in workers)
    for key in ("held_by_kind", "held_by_component", "cells", "latency", "violations"):
        total[key] = [sum(row) for row in zip(*(raw[key] for raw in workers), strict=True)]
    return total


def _one(plan: InstancePlan, raw: dict[str, Any]) -> dict[str, Any]:
    cells: list[int] = raw["cells"]
    ports = {p.name: _row(cells, PORT_BASE + 8 * i, PORT_KEYS) for i, p in enumerate(plan.ports)}
    components = {c.name: _row(cells, COMPONENT_BASE + 8 * i, COMPONENT_KEYS) for i, c in enumerate(plan.components)}
    for i, component in enumerate(plan.components):
        kinds: dict[str, Any] = {"violation_kinds": violations_of(raw["violations"], i)}
        components[component.name] |= kinds
    drops = _drops(plan, cells)
    return {
        "accounting": _accounting(ports, components, sum(row["packets"] for row in drops), raw["held"]),
        "drops": drops,
        "held": {
            "worker": raw["held_by_kind"][1],
            "components": {c.name: raw["held_by_component"][i] for i, c in enumerate(plan.components)},
        },
        "ports": ports,
        "components": components,
        "paths": {
            p.name: {
                **_row(cells, PATH_BASE + 4 * i, PATH_KEYS),
                "latency_us": latency(raw["latency"][i * BUCKETS : (i + 1) * BUCKETS]),
            }
            for i, p in enumerate(plan.paths)
        },
        "worker": {**_row(cells, 0, WORKER_KEYS), "free_buffers": raw["free_buffers"]},
    }


def _row(cells: list[int], base: int, keys: tuple[str, ...]) -> dict[str, int]:
    return {key: cells[base + i] for i, key in enumerate(keys)}


def _accounting(
    ports: dict[str, dict[str, int]], components: dict[str, dict[str, int]], drops: int, held: int
) -> dict[str, Any]:
    total = {
        "rx": sum(row["rx_pkts"] for row in ports.values()),
        "created": sum(row["created"] for row in (*ports.values(), *components.values())),
        "tx": sum(row["tx_pkts"] for row in ports.values()),
        "consumed": sum(row["consumed"] for row in components.values()),
        "drops": drops,
        "held": held,
        "rx_missed": sum(row["rx_missed"] for row in ports.values()),
    }
    given = total["tx"] + total["consumed"] + total["drops"] + total["held"]
    return {**total, "balanced": total["rx"] + total["created"] == given}


def _drops(plan: InstancePlan, cells: list[int]) -> list[dict[str, Any]]:
    scopes = {i: f"component {c.name}" for i, c in enumerate(plan.components)}
    scopes |= {SCOPE_PORT + i: f"port {p.name}" for i, p in enumerate(plan.ports)}
    scopes[SCOPE_WORKER] = "worker"
    found = []
    for scope, name in scopes.items():
        for number, reason in enumerate(drop_reasons()):
            packets = cells[DROP_BASE + scope * lib.COVEN_MAX_REASONS + number]
            if packets:
                found.append({"scope": name, "reason": reason.label, "packets": packets})
    return found


def declared(plan: InstancePlan, state_fds: list[list[int]]) -> dict[str, Any]:
    """Give the metrics that components declare, read from their state segments without asking anybody.

    state_fds: of each worker, one for each component.
    """
    out: dict[str, Any] = {}
    for index, component in enumerate(plan.components):
        replicas = [row for fds in state_fds for row in _cells_of(fds[index], component.replicas)]
        rows = []
        for cells in replicas:
            row: dict[str, float] = {}
            for metric, word in zip(component.metrics, cells, strict=False):
                row[metric.name] = struct.unpack("=d", struct.pack("=Q", word))[0] if metric.type == "gauge" else word
            rows.append(row)
        total = {metric.name: sum(row[metric.name] for row in rows) for metric in component.metrics}
        out[component.name] = {"replicas": rows, "total": total}
    return {"components": out}


def _cells_of(fd: int, replicas: int) -> list[tuple[int, ...]]:
    """Read metric cells; where they lie is computed, because a component can write to the segment's header."""
    offset = (sizeof("coven_state") + 63) // 64 * 64
    with mmap.mmap(fd, os.fstat(fd).st_size, prot=mmap.PROT_READ) as memory:
        return [
            struct.unpack_from(f"={lib.COVEN_MAX_METRICS}Q", memory, offset + 8 * lib.COVEN_MAX_METRICS * replica)
            for replica in range(replicas)
        ]
