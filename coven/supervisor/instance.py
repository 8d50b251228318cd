"""One instance: its lanes (workers with memory and components) and ports, and what may be done in which state."""

from __future__ import annotations

import asyncio
import base64
import os
from typing import TYPE_CHECKING, Any

from coven.errors import CovenError, Where
from coven.forwarder.instance_plan import ComponentPlan, InstancePlan
from coven.model import Isolation, OnFailure
from coven.supervisor import memory
from coven.supervisor.component import Replica
from coven.supervisor.context import Context
from coven.supervisor.lane import Lane, code_name
from coven.supervisor.poison import Captures
from coven.supervisor.ports import PortSet
from coven.supervisor.program import Program
from coven.supervisor.worker import Worker

if TYPE_CHECKING:
    from coven.dataplane.layout import Layout

Lines = tuple[tuple[str, ...], ...]


class Instance:
    """A VNF instance. Verbs are made of the methods here by `verbs`."""

    def __init__(self, context: Context, plan: InstancePlan, seed: tuple[int, int] | None = None) -> None:
        """seed: of the flow hash; kept over takeovers, new otherwise."""
        self._context = context
        self.plan = plan
        self.document = plan.to_json()
        self.seed = seed or (int.from_bytes(os.urandom(8), "big"), int.from_bytes(os.urandom(8), "big"))
        self.state = "new"
        self.operation: str | None = None  # id of the one under way
        self.programs: dict[int, Program] = {}
        self._layout: Layout | None = None
        self._health = "ok"
        self._halting: list[str] = []  # told last
        self._held = False  # whether the workers were told last not to read their ports
        workers = len(plan.worker.cores)
        self.ports = PortSet(context, plan.instance, plan.ports, workers, plan.pool)
        self.lanes = [
            Lane(context, plan, index, layout=self.layout, ports=self.ports, changed=self.changed)
            for index in range(workers)
        ]

    @property
    def id(self) -> str:
        """Name of the instance."""
        return self.plan.instance

    @property
    def workers(self) -> list[Worker]:
        """The workers, in order."""
        return [lane.worker for lane in self.lanes]

    @property
    def replicas(self) -> list[Replica]:
        """The isolated replicas of all workers."""
        return [replica for lane in self.lanes for replica in lane.replicas]

    @property
    def processes(self) -> list[Replica | Worker]:
        """All that runs in a process of its own."""
        return [*self.replicas, *self.workers]

    def layout(self) -> Layout:
        """Give sizes and first bytes of all segments."""
        if self._layout is None:
            from coven.dataplane.layout import layout

            self._layout = layout(self.document, seed=self.seed)
        return self._layout

    def component(self, name: str) -> tuple[int, ComponentPlan]:
        """Give index and plan of a component. Raises CovenError component.not-found."""
        for index, component in enumerate(self.plan.components):
            if component.name == name:
                return index, component
        known = ", ".join(component.name for component in self.plan.components) or "none"
        raise CovenError("component.not-found", f"{self.id} has no component {name!r}", hint=f"components are: {known}")

    def replicas_of(self, index: int) -> list[Replica]:
        """Give the isolated replicas of a component, those of worker 0 first; none if it is fused."""
        return [replica for replica in self.replicas if replica.index == index]

    # ---- memory ---------------------------------------------------------------------------------

    async def make_memory(self) -> None:
        """Make the segments that live as long as the instance."""
        memory.check_room(self.layout(), len(self.lanes))
        if self._context.settings.privileged:
            for lane in self.lanes:
                lane.take_users()
        self._context.save()
        for lane in self.lanes:
            lane.make_memory()

    async def free_memory(self) -> None:
        """Let go of all segments."""
        for lane in self.lanes:
            lane.free_memory()
        Captures(self._context.settings, self.id).remove()

    # ---- build ----------------------------------------------------------------------------------

    async def build(self, index: int) -> None:
        """Build one component; its program or code is kept for all its starts."""
        from coven.supervisor.build import build

        component = self.plan.components[index]
        fused = component.isolation is Isolation.FUSED
        program, code = await build(self._context, component, fused)
        if program is not None:
            self.programs[index] = program
            for replica in self.replicas_of(index):
                replica.program = program
            self._context.save()
        if code is not None:
            self._context.keeper.put(code_name(self.id, index), [code])

    async def unbuild(self, index: int) -> None:
        """Let go of a component's code; compiled objects stay for the next time."""
        self._context.keeper.drop(code_name(self.id, index))
        self.programs.pop(index, None)

    # ---- questions ------------------------------------------------------------------------------

    async def ask(self, name: str, copy: int, verb: str, what: str, lines: Lines, timeout: float) -> Lines:
        """Ask the Extended Agent of one copy of a component: a replica, or the one fused into worker `copy`."""
        index, component = self.component(name)
        replicas = self.replicas_of(index)
        fused = component.isolation is Isolation.FUSED
        number = len(self.lanes) if fused else len(replicas)
        if not 0 <= copy < number:
            hint = f"replicas are 0 to {number - 1}"
            raise CovenError("component.not-found", f"component {name} has no replica {copy}", hint=hint)
        if fused:
            return await self.lanes[copy].ask_fused(index, verb, what, lines, timeout)
        return await replicas[copy].ask(verb, what, lines, timeout)

    async def ask_all(self, name: str, verb: str, what: str, lines: Lines, timeout: float) -> list[Lines]:
        """Ask all copies of a component; nobody is asked while one of them could not answer.

        Raises the error of the only copy, else one that says which copies did it and which did not.
        """
        copies = self._copies(name)
        if len(copies) > 1:
            await asyncio.gather(*(self.ask(name, copy, "check", "", (), timeout) for copy in range(len(copies))))
        asked = [self.ask(name, copy, verb, what, lines, timeout) for copy in range(len(copies))]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        failed = [(part, answer) for part, answer in zip(copies, answers, strict=True) if isinstance(answer, Exception)]
        if not failed:
            return [answer for answer in answers if not isinstance(answer, BaseException)]
        first = failed[0][1]
        if len(copies) == 1 or not isinstance(first, CovenError):
            raise first
        done = [part for part in copies if part not in {one for one, _ in failed}]
        raise CovenError(
            first.code,
            "; ".join(f"{part}: {error}" for part, error in failed)
            + (f"; done by {', '.join(done)}" if done else "; done by none"),
            hint="ask again when all answer; copies that did it already are asked again too" if done else first.hint,
            where=Where(part=f"component {name}"),
        )

    def _copies(self, name: str) -> list[str]:
        """Give the names of a component's copies, in the order of their numbers."""
        index, component = self.component(name)
        if component.isolation is Isolation.FUSED:
            return [f"component {name} in {worker.part}" for worker in self.workers]
        return [replica.part for replica in self.replicas_of(index)]

    async def snapshot(self) -> dict[str, Any]:
        """Give section 8's document."""
        from coven.supervisor import metrics

        taken = await asyncio.gather(*(lane.numbers() for lane in self.lanes))
        numbers = [one for one in taken if one is not None]
        if len(numbers) < len(self.lanes):
            raise CovenError("instance.wrong-state", f"{self.id} has no counters yet: it is {self.state}")
        restarts: dict[str, int] = {}
        for replica in self.replicas:
            restarts[replica.plan.name] = restarts.get(replica.plan.name, 0) + replica.restarts
        return metrics.snapshot(self.plan, numbers, restarts)

    def poison(self, name: str) -> list[dict[str, Any]]:
        """Give the poison packets of a component. Raises CovenError component.not-found."""
        index = self.component(name)[0]
        found: dict[str, dict[str, Any]] = {}
        captures = Captures(self._context.settings, self.id)
        for packet in (packet for lane in self.lanes for packet in lane.poison() if packet.component == index):
            path = captures.path(name, packet.fingerprint)
            row = found.setdefault(
                packet.fingerprint,
                {"fingerprint": packet.fingerprint, "bytes": packet.length, "received": packet.received_ns / 1e9,
                 "deaths": 0, "dropped": 0, "capture": str(path) if path.exists() else None,
                 "pcap": base64.b64encode(path.read_bytes()).decode("ascii") if path.exists() else None},
            )  # fmt: skip
            row["deaths"] += packet.deaths
            row["dropped"] += packet.dropped
        return list(found.values())

    async def clear_poison(self, name: str) -> None:
        """Forget the poison packets of a component and remove their captures. Raises CovenError."""
        index = self.component(name)[0]
        for lane in self.lanes:
            await lane.clear_poison(index)
        Captures(self._context.settings, self.id).remove(name)

    def metrics(self) -> dict[str, Any]:
        """Give the metrics that the components declare."""
        from coven.supervisor import metrics

        states = [lane.state_fds() for lane in self.lanes]
        if self.plan.components and not all(states):
            raise CovenError("instance.wrong-state", f"{self.id} has no metrics yet: it is {self.state}")
        return metrics.declared(self.plan, states)

    # ---- state ----------------------------------------------------------------------------------

    def set_state(self, state: str) -> None:
        """Change the state and tell it."""
        if state != self.state:
            self.state = state
            self._context.save()
            self._context.emit("instance-state", self.id, None, state=state, health=self.health)

    def halting(self) -> list[str]:
        """Give the components whose absence stops the whole function (`on_failure: stop`)."""
        if self.state != "started":
            return []
        names = []
        for index, component in enumerate(self.plan.components):
            absent = any(replica.state != "ready" for replica in self.replicas_of(index))
            parked = any(index in worker.fused.parked for worker in self.workers)
            if component.on_failure is OnFailure.STOP and (absent or parked):
                names.append(component.name)
        return names

    def hold_back(self) -> None:
        """Have no worker read its ports while such a component is down in one of them; each sees only its own."""
        self._held = bool(self.halting())
        if len(self.lanes) > 1:
            for worker in self.workers:
                worker.hold_back(self._held)

    def problems(self) -> list[str]:
        """Say what is not as it should be."""
        found = [f"forwarding is stopped until component {name} is back (on_failure: stop)" for name in self.halting()]
        for worker in self.workers:
            for index, how in worker.fused.parked.items():
                name = self.plan.components[index].name
                found.append(f"component {name} killed {self._called(worker)} too often and is parked: {how}")
        for replica in self.replicas:
            if replica.state == "parked":
                found.append(f"{replica.part} died too often and is parked: {replica.last_exit}")
            elif replica.state == "restarting":
                found.append(f"{replica.part} is being restarted: {replica.last_exit}")
        for worker in self.workers:
            if worker.state == "parked":
                found.append(f"{self._called(worker)} died too often and is parked: {worker.last_exit}")
            elif worker.state == "restarting":
                found.append(f"{self._called(worker)} is being restarted: {worker.last_exit}")
        return found + self.ports.problems()

    def _called(self, worker: Worker) -> str:
        return "the worker" if len(self.lanes) == 1 else worker.part

    @property
    def health(self) -> str:
        """ok, degraded or failed."""
        parked = [part for part in self.processes if part.state == "parked"]
        if parked or any(worker.fused.parked for worker in self.workers) or self.halting():
            return "failed"
        return "degraded" if self.problems() else "ok"

    def changed(self) -> None:
        """Something died, came back or was parked."""
        halting = self.halting()
        if bool(halting) != self._held:
            self.hold_back()
        if halting and not self._halting:
            self._context.emit("forwarding-stopped", self.id, f"component {halting[0]}")
        elif self._halting and not halting and self.state == "started":
            self._context.emit("forwarding-resumed", self.id, f"component {self._halting[0]}")
        self._halting = halting
        health = self.health
        if health != self._health:
            self._health = health
            self._context.emit("instance-state", self.id, None, state=self.state, health=health)

    def to_json(self) -> dict[str, Any]:
        """Give the instance as the protocol shows it."""
        components = []
        poison = [packet for lane in self.lanes for packet in lane.poison()]
        for index, component in enumerate(self.plan.components):
            replicas = [replica.to_json() for replica in self.replicas_of(index)]
            components.append(
                {
                    "name": component.name,
                    "framework": component.framework,
                    "isolation_asked": str(component.isolation_asked),
                    "isolation": str(component.isolation),
                    "replicas": replicas or [self._fused(index, worker) for worker in self.workers],
                    "violation_kinds": self._violations_of(index),
                    "poison": {
                        "packets": len({packet.fingerprint for packet in poison if packet.component == index}),
                        "dropped": sum(packet.dropped for packet in poison if packet.component == index),
                    },
                }
            )
        return {
            "id": self.id,
            "vnf": self.plan.vnf,
            "vnf_version": self.plan.vnf_version,
            "package": self.plan.package.id,
            "state": self.state,
            "health": self.health,
            "problems": self.problems(),
            "operation": self.operation,
            "stats_name": self.lanes[0].stats_name,
            "plan": self.document,
            "components": components,
            "ports": self.ports.to_json(),
            "workers": [{**lane.worker.to_json(), "stats_name": lane.stats_name} for lane in self.lanes],
        }

    def _violations_of(self, index: int) -> dict[str, int]:
        """Give how often a component broke which rule of its rings, in all lanes."""
        total: dict[str, int] = {}
        for worker in self.workers:
            for kind, times in worker.violations_of(index).items():
                total[kind] = total.get(kind, 0) + times
        return total

    def _fused(self, index: int, worker: Worker) -> dict[str, Any]:
        shown, parked = worker.to_json(), index in worker.fused.parked
        return {
            "pid": shown["pid"],
            "state": "parked" if parked else "fused" if shown["pid"] else "stopped",
            "worker": worker.index,
            "restarts": shown["restarts"],
            "uid": None,
            "cgroup": None,
            "last_exit": worker.fused.parked[index] if parked else shown["last_exit"],
            "last_output": worker.output() if parked else [],
            "refused_calls": {},
            "hangs": worker.fused.hangs.get(index, 0),
        }

    # ---- manifest -------------------------------------------------------------------------------

    def remember(self) -> dict[str, Any]:
        """Give what a successor needs to take the instance over."""
        return {
            "plan": self.document,
            "seed": list(self.seed),
            "state": self.state,
            "operation": self.operation,
            "programs": {str(index): program.to_json() for index, program in self.programs.items()},
            "replicas": [replica.remember() for replica in self.replicas],
            "ports": self.ports.remember(),
            "workers": [worker.remember() for worker in self.workers],
        }

    @classmethod
    def recalled(cls, context: Context, document: dict[str, Any]) -> Instance:
        """Make the instance that a predecessor remembered, taking over the processes that still run."""
        instance = cls(context, InstancePlan.from_json(document["plan"]), tuple(document["seed"]))
        instance.state = str(document["state"])
        instance.operation = document["operation"]
        for index, program in document["programs"].items():
            instance.programs[int(index)] = Program.from_json(program)
        for replica, remembered in zip(instance.replicas, document["replicas"], strict=True):
            replica.program = instance.programs.get(replica.index)
            replica.recall(remembered)
        instance.ports.recall(document["ports"])
        for worker, remembered in zip(instance.workers, document["workers"], strict=True):
            worker.recall(remembered)
        return instance

    def pids(self) -> set[int]:
        """Give the processes that are known to run for it."""
        processes = [part.process for part in self.processes]
        return {process.pid for process in processes if process is not None and process.alive}
