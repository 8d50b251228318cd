"""Instances: made from packages, retrieved, watched, and their components asked."""

from __future__ import annotations

import dataclasses
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from coven.errors import CovenError, Where
from coven.management.operations import ABSENT, Operations
from coven.management.packages import Packages
from coven.management.state import PENDING, Instance, Store
from coven.management.supervisor_client import SupervisorClient

INSTANCE_ID = re.compile(r"[a-z][a-z0-9-]{0,62}")
ASK_MS = 4000  # how long a component may take to answer
ASKERS = 8  # components asked at once


class Instances:
    """What REST offers on instances."""

    def __init__(
        self,
        store: Store,
        supervisor: SupervisorClient,
        operations: Operations,
        packages: Packages,
    ) -> None:
        """All are shared with the rest of the agent."""
        self._store = store
        self._supervisor = supervisor
        self._operations = operations
        self._packages = packages
        self._naming = threading.Lock()
        self._askers = ThreadPoolExecutor(ASKERS, thread_name_prefix="ask")

    # ---- make --------------------------------------------------------------------------------------

    def create(self, request: dict[str, Any]) -> dict[str, Any]:
        """Plan an instance as asked for and begin its deployment; gives the operation."""
        with self._naming:  # two without an id must not choose the same one
            document = self._packages.get(request["package"])
            instance_id = request.get("id") or self._free_id(document["vnf"])
            instance = Instance(
                id=instance_id,
                package=request["package"],
                created=time.time(),
                desired=PENDING,
                request={key: request.get(key) or {} for key in ("ports", "parameters", "grants", "workers")},
                plan={},
            )
            planned = dataclasses.replace(instance, plan=self.plan(instance))
            return self._operations.create(planned, start=request.get("start", True))

    def _free_id(self, vnf: str) -> str:
        taken = {instance.id for instance in self._store.instances()}
        number = 1
        while f"{vnf}-{number}" in taken:
            number += 1
        return f"{vnf}-{number}"

    def plan(self, instance: Instance) -> dict[str, Any]:
        """Make the plan of an instance from its package and what was asked for."""
        from coven.forwarder.plan import plan  # not needed by an agent that only watches

        if not INSTANCE_ID.fullmatch(instance.id):
            raise CovenError(
                "request.invalid",
                f"'{instance.id}' cannot be the id of an instance",
                hint="use a small letter, then small letters, digits and '-', 63 at most",
                where=Where(part="id"),
            )
        package = self._packages.load(instance.package)
        return plan(
            package.vnf,
            instance.request["ports"],
            instance.request["parameters"],
            instance.request["grants"],
            instance=instance.id,
            package_root=str(package.root),
            interfaces=_interfaces(),
            package_id=instance.package,
            workers=instance.request.get("workers"),  # instances of an earlier version have none
        ).to_json()

    # ---- look --------------------------------------------------------------------------------------

    def list(self) -> list[dict[str, Any]]:
        """Give all instances, oldest first."""
        actual = self._supervisor.request("state")["instances"]
        return [self._view(known, actual.get(known.id)) for known in self._store.instances()]

    def get(self, instance_id: str) -> dict[str, Any]:
        """Retrieve: VNF id, interfaces, components, parameters, state."""
        known = self._store.instance(instance_id)
        return self._view(known, self._supervisor.request("state")["instances"].get(instance_id))

    def _view(self, known: Instance, actual: dict[str, Any] | None) -> dict[str, Any]:
        running = self._operations.running_of(known.id)
        plan = known.plan
        found = actual or {
            "state": "pending" if running and known.desired == PENDING else ABSENT,
            "health": "ok" if running else "failed",
            "components": [],
            "ports": [],
            "workers": [],
        }
        problems = [str(text) for text in found.get("problems", [])]
        if known.problem:
            problems.append(str(CovenError.from_json(known.problem)))
        return {
            "id": known.id,
            "package": known.package,
            "vnf": plan.get("vnf", ""),
            "vnf_version": plan.get("vnf_version", ""),
            "created": known.created,
            "state": found["state"],
            "desired": known.desired,
            "health": found.get("health", "ok"),
            "problems": problems,
            "operation": running,
            "bindings": known.request.get("ports") or _bindings(plan),
            "parameters": known.request.get("parameters", {}),
            "grants": known.request.get("grants", {}),
            "ports": found.get("ports", []),
            "paths": [{"name": path["name"], "ingress": path["ingress"]} for path in plan.get("paths", [])],
            "components": found.get("components", []),
            "workers": found.get("workers", []),
            "profile": plan.get("worker", {}).get("profile", "balanced"),
        }

    def live(self, instance_id: str) -> dict[str, Any]:
        """Give the supervisor's view of an instance that it has; raises instance.wrong-state."""
        self._store.instance(instance_id)
        found: dict[str, Any] | None = self._supervisor.request("state")["instances"].get(instance_id)
        if found is None:
            raise CovenError(
                "instance.wrong-state",
                f"'{instance_id}' is not deployed",
                hint=f"'coven status {instance_id}' says why",
            )
        return found

    def snapshot(self, instance_id: str) -> dict[str, Any]:
        """Give the counters, read between two bursts."""
        self.live(instance_id)
        return self._supervisor.request("snapshot", instance=instance_id)

    def flows(self, instance_id: str, wanted: dict[str, str], after: str, limit: int) -> dict[str, Any]:
        """List flows."""
        self.live(instance_id)
        return self._supervisor.request("flows", instance=instance_id, filter=wanted, after=after, limit=limit)

    def export_flow(self, instance_id: str, body: dict[str, Any]) -> dict[str, Any]:
        """Give the state of a flow."""
        self.live(instance_id)
        return self._supervisor.request("flow-export", instance=instance_id, **body)

    def import_flow(self, instance_id: str, body: dict[str, Any]) -> dict[str, Any]:
        """Put an exported flow in."""
        self.live(instance_id)
        return self._supervisor.request("flow-import", instance=instance_id, **body)

    def logs(self, instance_id: str, component: str | None, lines: int, replica: int = 0) -> dict[str, Any]:
        """Give the last lines of a component's output, of a worker's if none is named."""
        found = self.live(instance_id)
        if component is not None:
            _component(found, component)
        ask = self._supervisor.request
        return ask("logs", instance=instance_id, component=component, replica=replica, lines=lines)

    def poison(self, instance_id: str, component: str, *, clear: bool) -> dict[str, Any]:
        """Give the packets that killed a component twice, with their captures; `clear`: forget them first."""
        _component(self.live(instance_id), component)
        return self._supervisor.request("poison", instance=instance_id, component=component, clear=clear)

    # ---- ask ---------------------------------------------------------------------------------------

    def list_offers(self, instance_id: str) -> dict[str, Any]:
        """The paper's `list`: what each component itself says it can be asked, with present values."""
        found = self.live(instance_id)
        metrics = self._supervisor.request("metrics", instance=instance_id)["components"]
        names = [component["name"] for component in found["components"]]

        def ask(name: str) -> dict[str, Any]:
            answer, error, _ = self._ask(instance_id, name, "list")
            values = metrics.get(name, {}).get("total", {})
            return {
                "name": name,
                "answered": error is None,
                "metrics": [{**metric, "value": values.get(metric["name"])} for metric in answer.get("metrics", [])],
                "operations": answer.get("operations", []),
                **({"error": error.to_json()} if error else {}),
            }

        return {"instance": instance_id, "components": list(self._askers.map(ask, names))}

    def check(self, instance_id: str) -> dict[str, Any]:
        """The paper's `check`: every replica is asked and answers by the loop that handles packets."""
        found = self.live(instance_id)
        asked = [
            (component["name"], number)
            for component in found["components"]
            for number in range(max(len(component.get("replicas", [])), 1))
        ]

        def ask(whom: tuple[str, int]) -> dict[str, Any]:
            answer, error, latency = self._ask(instance_id, whom[0], "check", replica=whom[1])
            values = answer.get("values", {})
            return {
                "component": whom[0],
                "replica": whom[1],
                "answered": error is None,
                "latency_ms": latency,
                **(
                    {"error": error.to_json()}
                    if error
                    else {
                        "uptime_s": round(float(values.get("uptime_ns", 0)) / 1e9, 6),
                        "bursts": int(values.get("bursts", 0)),
                    }
                ),
            }

        answers = list(self._askers.map(ask, asked))
        return {
            "instance": instance_id,
            "state": found["state"],
            "healthy": all(answer["answered"] for answer in answers) and found.get("health", "ok") == "ok",
            "answers": answers,
        }

    def _ask(
        self, instance_id: str, component: str, verb: str, **more: Any
    ) -> tuple[dict[str, Any], CovenError | None, float]:
        begun = time.monotonic_ns()
        error: CovenError | None = None
        answer: dict[str, Any] = {}
        try:
            answer = self._supervisor.request(
                "agent",
                instance=instance_id,
                component=component,
                verb=verb,
                timeout_ms=ASK_MS,
                **more,
            )
        except CovenError as failure:
            error = failure
        return answer, error, round((time.monotonic_ns() - begun) / 1e6, 3)

    def request(self, instance_id: str, request: dict[str, Any]) -> dict[str, Any]:
        """The paper's `request`: call an operation of a component, or read one of its metrics."""
        found = self.live(instance_id)
        name = request["component"]
        _component(found, name)
        if "metric" in request:
            return self._metric(instance_id, name, request["metric"])
        return self._call(instance_id, found, request)

    def _metric(self, instance_id: str, name: str, metric: str) -> dict[str, Any]:
        begun = time.monotonic_ns()
        components = self._supervisor.request("metrics", instance=instance_id)["components"]
        values = components.get(name, {})
        if metric not in values.get("total", {}):
            raise CovenError(
                "component.operation-unknown",
                f"component '{name}' has no metric '{metric}'",
                hint=f"it has: {', '.join(sorted(values.get('total', {}))) or 'none'}",
                where=Where(part=f"component {name}"),
            )
        return {
            "instance": instance_id,
            "component": name,
            "metric": metric,
            "value": values["total"][metric],
            "replicas": [replica.get(metric) for replica in values.get("replicas", [])],
            "latency_ms": round((time.monotonic_ns() - begun) / 1e6, 3),
        }

    def _call(self, instance_id: str, found: dict[str, Any], request: dict[str, Any]) -> dict[str, Any]:
        from coven.agents.schema import argument_lines

        name, wanted = request["component"], request["operation"]
        operation = next((offer for offer in _declared_operations(found, name) if offer.name == wanted), None)
        if operation is None:
            offers = ", ".join(offer.name for offer in _declared_operations(found, name))
            raise CovenError(
                "component.operation-unknown",
                f"component '{name}' has no operation '{wanted}'",
                hint=f"it has: {offers or 'none'}",
                where=Where(part=f"component {name}"),
            )
        lines = argument_lines(operation, request.get("arguments") or {})
        begun = time.monotonic_ns()
        answer = self._supervisor.request(
            "agent",
            instance=instance_id,
            component=name,
            verb="call",
            name=wanted,
            arguments={line[1]: line[2] for line in lines},
            timeout_ms=ASK_MS,
            **({"replica": request["replica"]} if "replica" in request else {}),  # else all copies
        )
        return {
            "instance": instance_id,
            "component": name,
            "operation": wanted,
            "result": answer.get("result", {}),
            **({"results": answer["results"]} if "results" in answer else {}),
            "latency_ms": round((time.monotonic_ns() - begun) / 1e6, 3),
        }


def _component(found: dict[str, Any], name: str) -> dict[str, Any]:
    names = [component["name"] for component in found["components"]]
    for component in found["components"]:
        if component["name"] == name:
            return dict(component)
    raise CovenError(
        "component.not-found",
        f"'{found['id']}' has no component '{name}'",
        hint=f"it has: {', '.join(names) or 'none'}",
    )


def _declared_operations(found: dict[str, Any], name: str) -> list[Any]:
    from coven.forwarder.instance_plan import InstancePlan

    plan = InstancePlan.from_json(found["plan"])
    return [operation for component in plan.components if component.name == name for operation in component.operations]


def _bindings(plan: dict[str, Any]) -> dict[str, Any]:
    """Give what the ports of a plan are bound to, for an instance whose request was lost."""
    return {
        port["name"]: {
            "tool": port["tool"],
            **({"interface": port["interface"]} if port["interface"] else {}),
            **port["options"],
        }
        for port in plan.get("ports", [])
    }


def _interfaces() -> dict[str, dict[str, Any]]:
    import psutil

    return {name: {"mtu": stats.mtu, "up": stats.isup} for name, stats in psutil.net_if_stats().items()}
