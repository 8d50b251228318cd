"""CPU, memory and network use of the VNF core as a whole and of each of its processes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import psutil

KEEP_SAMPLES = 512


class Monitor:
    """Reads processes. CPU shares are since the last time the same process was looked at."""

    def __init__(self) -> None:
        """Begin without samples."""
        self._lock = threading.Lock()
        self._samples: dict[tuple[int, float], tuple[float, float]] = {}

    def process(self, pid: int) -> dict[str, Any] | None:
        """Give CPU and memory of a process, or None if it has gone.

        `cpu_percent` is of one core; at the first look it is the mean since the process began.
        """
        try:
            process = psutil.Process(pid)
            with process.oneshot():
                created = process.create_time()
                times = process.cpu_times()
                memory = process.memory_info()
                threads = process.num_threads()
        except psutil.Error:
            return None
        used, now = times.user + times.system, time.time()
        with self._lock:
            then, before = self._samples.get((pid, created), (created, 0.0))
            self._samples[pid, created] = (now, used)
            while len(self._samples) > KEEP_SAMPLES:
                del self._samples[next(iter(self._samples))]
        return {
            "pid": pid,
            "cpu_seconds": round(used, 3),
            "cpu_percent": round(100 * max(used - before, 0.0) / max(now - then, 0.01), 2),
            "memory_bytes": memory.rss - memory.shared,
            "shared_bytes": memory.shared,
            "threads": threads,
            "uptime_s": round(now - created, 3),
        }

    def instance(
        self,
        instance: dict[str, Any],
        snapshot: dict[str, Any],
        platform: dict[str, int | None],
        served: Callable[[], dict[str, int]],
    ) -> dict[str, Any]:
        """Give the monitor document of an instance.

        platform: pids of the parts that all instances share, by name. served: bytes over REST so far.
        """
        processes = [
            *self._workers(instance, snapshot),
            *self._components(instance, snapshot),
            *self._platform(platform, served),
        ]
        return {
            "instance": instance["id"],
            "state": instance["state"],
            "health": instance["health"],
            "problems": instance.get("problems", []),
            "time": time.time(),
            "core": _sum(processes, snapshot),
            "processes": processes,
            "components": [
                _component(found, snapshot.get("components", {}).get(found["name"], {}))
                for found in instance.get("components", [])
            ],
            "ports": [
                {**found, **snapshot.get("ports", {}).get(found["name"], {})} for found in instance.get("ports", [])
            ],
            "paths": [{"name": name, **counters} for name, counters in snapshot.get("paths", {}).items()],
        }

    def _workers(self, instance: dict[str, Any], snapshot: dict[str, Any]) -> list[dict[str, Any]]:
        found = []
        for index, worker in enumerate(instance.get("workers", [])):
            if (usage := self._usage(worker.get("pid"))) is not None:
                found.append({"part": f"worker {index}", **usage, "network": _port_traffic(_share(snapshot, index))})
        return found

    def _components(self, instance: dict[str, Any], snapshot: dict[str, Any]) -> list[dict[str, Any]]:
        found = []
        for component in instance.get("components", []):
            for number, replica in enumerate(component.get("replicas", [])):
                if replica.get("state") == "fused":
                    continue
                share = _share(snapshot, replica.get("worker", 0))
                counters = share.get("components", {}).get(component["name"], {})
                network = {"rx_pkts": counters.get("in_pkts", 0), "tx_pkts": counters.get("out_pkts", 0)}
                if (usage := self._usage(replica.get("pid"))) is not None:
                    part = f"component {component['name']}"
                    found.append({"part": part, "replica": number, **usage, "network": network})
        return found

    def _platform(self, pids: dict[str, int | None], served: Callable[[], dict[str, int]]) -> list[dict[str, Any]]:
        found = []
        for part, pid in pids.items():
            if (usage := self._usage(pid)) is not None:
                network = served() if part == "agent" else {}
                found.append({"part": part, **usage, "network": network})
        return found

    def _usage(self, pid: object) -> dict[str, Any] | None:
        return self.process(pid) if isinstance(pid, int) and pid > 0 else None


def _share(snapshot: dict[str, Any], worker: int) -> dict[str, Any]:
    """Give the part of a worker in the counters; all of them where there is no telling apart."""
    shares: list[dict[str, Any]] = snapshot.get("workers", [])
    return shares[worker] if worker < len(shares) else snapshot


def _port_traffic(snapshot: dict[str, Any]) -> dict[str, int]:
    ports = snapshot.get("ports", {}).values()
    return {key: sum(int(port.get(key, 0)) for port in ports) for key in ("rx_pkts", "rx_bytes", "tx_pkts", "tx_bytes")}


def _sum(processes: list[dict[str, Any]], snapshot: dict[str, Any]) -> dict[str, Any]:
    """Sum up; memory that processes share counts once, as the largest of them maps it."""
    return {
        "cpu_seconds": round(sum(found["cpu_seconds"] for found in processes), 3),
        "cpu_percent": round(sum(found["cpu_percent"] for found in processes), 2),
        "memory_bytes": sum(found["memory_bytes"] for found in processes)
        + max((found["shared_bytes"] for found in processes), default=0),
        "processes": len(processes),
        "network": _port_traffic(snapshot),
    }


def _component(found: dict[str, Any], counters: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": found["name"],
        "framework": found.get("framework"),
        "isolation": found.get("isolation"),
        "replicas": [
            {key: replica.get(key) for key in ("pid", "state", "restarts", "last_exit")}
            for replica in found.get("replicas", [])
        ],
        "counters": counters,
    }
