"""What answers each op of the supervisor's socket; turns requests into calls on the platform."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any

from coven import __version__
from coven.errors import CovenError
from coven.flows import FlowFilter, FlowName
from coven.supervisor import flows
from coven.supervisor.server import Handler, number, text

if TYPE_CHECKING:
    from coven.supervisor.instance import Instance
    from coven.supervisor.platform import Platform

ABI_VERSION = 2  # COVEN_ABI_VERSION; a test compares them
VERBS_OF_AGENT = ("list", "get", "call", "check")
MAX_WAIT_MS = 600_000
MAX_TIMEOUT_MS = 60_000


def handlers(platform: Platform) -> dict[str, Handler]:
    """Give the table of ops."""
    requests = Requests(platform)
    return {
        "hello": requests.hello,
        "state": requests.state,
        "execute": requests.execute,
        "operation": requests.operation,
        "snapshot": requests.snapshot,
        "metrics": requests.metrics,
        "agent": requests.agent,
        "flows": requests.flows,
        "flow-export": requests.flow_export,
        "flow-import": requests.flow_import,
        "logs": requests.logs,
        "poison": requests.poison,
        "reexec": requests.reexec,
        "shutdown": requests.shutdown,
    }


class Requests:
    """One method for each op; `request` is the client's JSON object."""

    def __init__(self, platform: Platform) -> None:
        """platform: what is asked about."""
        self._platform = platform

    async def hello(self, request: dict[str, Any]) -> dict[str, Any]:
        """Say who we are."""
        platform = self._platform
        agent = platform.agent.process
        return {
            "version": __version__,
            "abi": ABI_VERSION,
            "pid": os.getpid(),
            "privileged": platform.context.settings.privileged,
            "degraded": platform.degraded(),
            "keeper": platform.context.keeper.pid,
            "agent": agent.pid if agent is not None and agent.alive else None,
        }

    async def state(self, request: dict[str, Any]) -> dict[str, Any]:
        """Give all instances and operations."""
        platform = self._platform
        return {
            "instances": {name: instance.to_json() for name, instance in platform.instances.items()},
            "operations": {name: operation.to_json() for name, operation in platform.operations.items()},
        }

    async def execute(self, request: dict[str, Any]) -> dict[str, Any]:
        """Begin an operation."""
        force = request.get("force", False)
        if not isinstance(force, bool):
            raise CovenError("request.invalid", "`force` must be true or false")
        component = request.get("component")
        operation = self._platform.execute(
            text(request, "operation"),
            text(request, "verb"),
            text(request, "instance"),
            plan=request.get("plan"),
            force=force,
            component=None if component is None else text(request, "component"),
        )
        return operation.to_json()

    async def operation(self, request: dict[str, Any]) -> dict[str, Any]:
        """Give an operation, after its end or `wait_ms`."""
        name = text(request, "operation")
        operation = self._platform.operations.get(name)
        if operation is None:
            raise CovenError("operation.not-found", f"there is no operation {name!r}")
        wait = number(request, "wait_ms", 0, MAX_WAIT_MS)
        if wait and not operation.finished.is_set():
            waiting = asyncio.ensure_future(operation.finished.wait())
            await asyncio.wait({waiting}, timeout=wait / 1000)
            waiting.cancel()
        return operation.to_json()

    async def snapshot(self, request: dict[str, Any]) -> dict[str, Any]:
        """Give the counters of an instance."""
        return await self._platform.instance(text(request, "instance")).snapshot()

    async def metrics(self, request: dict[str, Any]) -> dict[str, Any]:
        """Give the metrics that components declare."""
        return self._platform.instance(text(request, "instance")).metrics()

    async def flows(self, request: dict[str, Any]) -> dict[str, Any]:
        """List flows of an instance."""
        instance = self._platform.instance(text(request, "instance"))
        given = request.get("filter") or {}
        if not isinstance(given, dict) or not all(isinstance(word, str) for word in given.values()):
            raise CovenError("request.invalid", "`filter` must be an object of texts")
        wanted = FlowFilter.parse(given)
        limit = number(request, "limit", 100, flows.MAX_LIST)
        return await flows.listed(instance, wanted, text(request, "after", ""), limit)

    async def flow_export(self, request: dict[str, Any]) -> dict[str, Any]:
        """Take the state of a flow along."""
        instance = self._platform.instance(text(request, "instance"))
        move = request.get("move", False)
        if not isinstance(move, bool):
            raise CovenError("request.invalid", "`move` must be true or false")
        return await flows.exported(instance, FlowName.parse(text(request, "flow")), move=move)

    async def flow_import(self, request: dict[str, Any]) -> dict[str, Any]:
        """Put an exported flow in."""
        instance = self._platform.instance(text(request, "instance"))
        blob = request.get("blob")
        if not isinstance(blob, str):
            raise CovenError("request.invalid", "`blob` must be text")
        return await flows.imported(instance, blob, number(request, "worker", 0, 127))

    async def agent(self, request: dict[str, Any]) -> dict[str, Any]:
        """Ask the Extended Agent of a component."""
        from coven.agents import schema

        instance = self._platform.instance(text(request, "instance"))
        component, verb, name = text(request, "component"), text(request, "verb"), text(request, "name", "")
        if verb not in VERBS_OF_AGENT:
            raise CovenError("request.invalid", f"there is no verb {verb!r}", hint="list, get, call or check")
        given = request.get("arguments") or {}
        if not isinstance(given, dict):
            raise CovenError("request.invalid", "`arguments` must be an object")
        lines: tuple[tuple[str, ...], ...] = ()
        if verb == "call":
            plan = instance.component(component)[1]
            operation = next((offer for offer in plan.operations if offer.name == name), None)
            if operation is None:
                offers = ", ".join(offer.name for offer in plan.operations) or "none"
                raise CovenError(
                    "component.operation-unknown",
                    f"component {component} has no operation {name!r}",
                    hint=f"it has: {offers}",
                )
            lines = schema.argument_lines(operation, given)
        timeout = number(request, "timeout_ms", 4000, MAX_TIMEOUT_MS) / 1000
        if verb == "call" and "replica" not in request:
            answers = await instance.ask_all(component, verb, name, lines, timeout)
            return merge([schema.read_result(answer) for answer in answers])
        replica = number(request, "replica", 0, 127)
        answer = await instance.ask(component, replica, verb, name, lines, timeout)
        if verb == "list":
            from coven.forwarder.instance_plan import encode

            declared = schema.read_declarations(answer)
            return {"metrics": encode(declared.metrics), "operations": encode(declared.operations)}
        if verb == "call":
            return {"result": schema.read_result(answer)}
        return {"values": schema.read_values(answer)}

    async def logs(self, request: dict[str, Any]) -> dict[str, Any]:
        """Give the last lines of a component's or the worker's output."""
        instance = self._platform.instance(text(request, "instance"))
        lines = number(request, "lines", 100, 1000)
        if request.get("component") is None:
            return {"lines": instance.workers[_worker(instance, request)].log.lines(lines)}
        index, _ = instance.component(text(request, "component"))
        replicas = instance.replicas_of(index)
        replica = number(request, "replica", 0, 127)
        if not replicas:  # fused: it writes to the worker's output
            return {"lines": instance.workers[_worker(instance, request)].log.lines(lines)}
        if replica >= len(replicas):
            raise CovenError("component.not-found", f"there is no replica {replica}")
        return {"lines": replicas[replica].log.lines(lines)}

    async def poison(self, request: dict[str, Any]) -> dict[str, Any]:
        """List the poison packets of a component with their captures, or forget them all."""
        instance = self._platform.instance(text(request, "instance"))
        component = text(request, "component")
        if request.get("clear") is True:
            await instance.clear_poison(component)
        return {"packets": instance.poison(component)}

    async def reexec(self, request: dict[str, Any]) -> dict[str, Any]:
        """Replace this program by the installed one, once the answer is on its way."""
        self._platform.begin_reexec()
        return {}

    async def shutdown(self, request: dict[str, Any]) -> dict[str, Any]:
        """End the platform, once the answer is on its way."""
        running = [name for name, instance in self._platform.instances.items() if instance.state == "started"]
        if running and request.get("force") is not True:
            raise CovenError(
                "platform.running",
                f"functions are running: {', '.join(sorted(running))}",
                hint="stop them first, or use force",
            )
        self._platform.begin_shutdown()
        return {}


def merge(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Give what all copies of a component answered alike, and each one's answer where they differ."""
    alike = {key: value for key, value in results[0].items() if all(key in r and r[key] == value for r in results)}
    if all(result == alike for result in results):
        return {"result": alike}
    return {"result": alike, "results": results}


def _worker(instance: Instance, request: dict[str, Any]) -> int:
    worker = number(request, "replica", 0, 127)
    if worker >= len(instance.workers):
        raise CovenError("component.not-found", f"there is no worker {worker}")
    return worker
