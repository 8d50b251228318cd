"""One instance: its memory, components, ports and worker, and what may be done with them in which state."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from coven.agents.client import outcome
from coven.agents.protocol import MAX_BYTES, Request, decode_answer, encode_request, start_lines
from coven.errors import CovenError, Where
from coven.forwarder.instance_plan import ComponentPlan, InstancePlan
from coven.model import Isolation, OnFailure
from coven.supervisor import control, memory
from coven.supervisor.component import Home, Replica
from coven.supervisor.context import Context
from coven.supervisor.fused import guilty
from coven.supervisor.ports import PortSet
from coven.supervisor.program import Program
from coven.supervisor.worker import OUTPUT_LINES, Feed, Worker

if TYPE_CHECKING:
    from coven.dataplane.layout import Layout

# Kinds of segments, enum coven_segment_kind of abi.h.
PLAN, POOL, REPLICA, STATE, LEDGER, STATS = range(1, 7)


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
        self.stats_name = f"/{context.settings.platform_id}-{plan.instance}"
        self._layout: Layout | None = None
        self._health = "ok"
        self._halting: list[str] = []  # told last
        self.ports = PortSet(context, plan.instance, plan.ports)
        home = Home(
            instance=plan.instance,
            declarations=lambda index: dict(self.document["components"][index]),
            segment=lambda number: self.layout.replicas[number],
            attach=self._attach,
            detach=self._detach,
            changed=self.changed,
        )
        self.replicas: list[Replica] = []
        for index, component in enumerate(plan.components):
            if component.isolation is not Isolation.FUSED:
                for replica in range(component.replicas):
                    number = len(self.replicas)
                    self.replicas.append(Replica(context, home, component, index, number, replica))
        feed = Feed(
            segments=self._segments,
            ports=self.ports.descriptors,
            code=self._code,
            replicas=lambda: self.replicas,
            guilty=self._guilty,
            name=lambda index: plan.components[index].name,
            changed=self.changed,
        )
        self.worker = Worker(context, plan.instance, plan.worker.cores[0], feed)

    @property
    def id(self) -> str:
        """Name of the instance."""
        return self.plan.instance

    @property
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
        """Give the isolated replicas of a component; none if it is fused."""
        return [replica for replica in self.replicas if replica.index == index]

    def _name(self, part: str) -> str:
        return f"{self.id}/{part}"

    # ---- memory ---------------------------------------------------------------------------------

    async def make_memory(self) -> None:
        """Make the segments that live as long as the instance."""
        settings, keeper, layout = self._context.settings, self._context.keeper, self.layout
        if settings.privileged:
            for replica in self.replicas:
                if replica.uid_number is None:
                    replica.uid_number = self._context.take_uid()
                replica.gid_number = self.replicas_of(replica.index)[0].uid_number
        self._context.save()
        worker = settings.worker_uid
        for part, image in (("plan", layout.plan), ("pool", layout.pool), ("ledger", layout.ledger)):
            keeper.put(self._name(part), [memory.make(image, worker)])
        gid = settings.agent_uid if settings.privileged else os.getgid()
        keeper.put(self._name("stats"), [memory.make_stats(layout.stats, self.stats_name, gid)])
        for index, image in enumerate(layout.states):
            replicas = self.replicas_of(index)
            group = replicas[0].gid_number if replicas else None
            shared = None if group is None else self._context.uid(group)
            keeper.put(self._name(f"state.{index}"), [memory.make(image, worker, shared)])

    async def free_memory(self) -> None:
        """Let go of all segments."""
        for name in self._context.keeper.names(self._name("")):
            part = name.removeprefix(self._name(""))
            if part in ("plan", "pool", "ledger", "stats") or part.startswith("state."):
                self._context.keeper.drop(name)
        memory.remove_stats(self.stats_name)
        self.worker.log.clear()

    async def write_ports(self) -> None:
        """Write what opening the ports found out into the plan segment."""
        from coven.dataplane.core import ffi, sizeof

        plan = ffi.new("struct coven_plan *")
        ffi.memmove(plan, self.layout.plan.head, sizeof("coven_plan"))
        for index, fields in self.ports.plan_fields().items():
            for key, value in fields.items():
                setattr(plan.ports[index], key, value)
        (fd,) = self._context.keeper.get(self._name("plan"))
        os.pwrite(fd, bytes(ffi.buffer(plan)), 0)

    # ---- what the worker is fed ------------------------------------------------------------------

    def _segments(self) -> list[tuple[int, int, int]]:
        get = self._context.keeper.get
        kinds = (("plan", PLAN), ("pool", POOL), ("ledger", LEDGER), ("stats", STATS))
        fixed = [(kind, 0, get(self._name(part))[0]) for part, kind in kinds]
        states = [(STATE, i, get(self._name(f"state.{i}"))[0]) for i in range(len(self.plan.components))]
        return fixed + states

    def _code(self) -> list[tuple[int, int, bytes]]:
        found = []
        for index, component in enumerate(self.plan.components):
            if component.isolation is Isolation.FUSED:
                (fd,) = self._context.keeper.get(self._name(f"code.{index}"))
                found.append((index, fd, self._start_message(index, component)))
        return found

    def _start_message(self, index: int, component: ComponentPlan) -> bytes:
        lines = start_lines(
            self.document["components"][index],
            instance=self.id,
            replica=0,
            entry=component.entry,
            options=component.options,
        )
        return encode_request(Request(1, "start", "", lines))

    def _guilty(self) -> int | None:
        ledger = self._context.keeper.get(self._name("ledger"))
        found = guilty(ledger[0]) if ledger else None
        return found if found is not None and found < len(self.plan.components) else None

    async def _attach(self, replica: Replica) -> None:
        await self.worker.attach(replica)

    async def _detach(self, replica: Replica) -> None:
        await self.worker.detach(replica)

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
            self._context.keeper.put(self._name(f"code.{index}"), [code])

    async def unbuild(self, index: int) -> None:
        """Let go of a component's code; compiled objects stay for the next time."""
        self._context.keeper.drop(self._name(f"code.{index}"))
        self.programs.pop(index, None)

    # ---- questions ------------------------------------------------------------------------------

    async def ask(
        self, name: str, replica: int, verb: str, what: str, lines: tuple[tuple[str, ...], ...], timeout: float
    ) -> tuple[tuple[str, ...], ...]:
        """Ask the Extended Agent of a component, wherever it runs. Raises CovenError."""
        index, component = self.component(name)
        if component.isolation is not Isolation.FUSED:
            replicas = self.replicas_of(index)
            if not 0 <= replica < len(replicas):
                raise CovenError("component.not-found", f"component {name} has no replica {replica}")
            return await replicas[replica].ask(verb, what, lines, timeout)
        if self.worker.state not in ("ready", "running") or index in self.worker.fused.parked:
            parked = index in self.worker.fused.parked
            why = "parked" if parked else f"fused and the worker is {self.worker.state}"
            raise CovenError(
                "component.not-running",
                f"component {name} is {why}",
                hint="`heal` starts a parked component again" if parked else "start the instance",
                where=Where(part=f"component {name}"),
            )
        request = encode_request(Request(1, verb, what, lines))
        if len(request) > MAX_BYTES - 64:
            raise CovenError("request.too-large", "the question does not fit one message")
        answer = await self.worker.request(control.AGENT, index=index, payload=request, timeout=timeout)
        return outcome(decode_answer(answer.payload), Where(part=f"component {name}"))

    async def snapshot(self) -> dict[str, Any]:
        """Give section 8's document."""
        from coven.supervisor import metrics

        if self.worker.state in ("ready", "running"):
            raw = metrics.from_worker((await self.worker.request(control.SNAPSHOT)).payload)
        else:
            get = self._context.keeper.get
            if not get(self._name("stats")):
                raise CovenError("instance.wrong-state", f"{self.id} has no counters yet: it is {self.state}")
            raw = metrics.from_memory(get(self._name("stats"))[0], get(self._name("ledger"))[0])
        restarts: dict[str, int] = {}
        for replica in self.replicas:
            restarts[replica.plan.name] = restarts.get(replica.plan.name, 0) + replica.restarts
        return metrics.snapshot(self.plan, raw, restarts)

    def metrics(self) -> dict[str, Any]:
        """Give the metrics that the components declare."""
        from coven.supervisor import metrics

        get = self._context.keeper.get
        states = [get(self._name(f"state.{i}")) for i in range(len(self.plan.components))]
        if not all(states):
            raise CovenError("instance.wrong-state", f"{self.id} has no metrics yet: it is {self.state}")
        return metrics.declared(self.plan, [fds[0] for fds in states])

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
            if component.on_failure is OnFailure.STOP and (absent or index in self.worker.fused.parked):
                names.append(component.name)
        return names

    def problems(self) -> list[str]:
        """Say what is not as it should be."""
        found = [f"forwarding is stopped until component {name} is back (on_failure: stop)" for name in self.halting()]
        for index, how in self.worker.fused.parked.items():
            name = self.plan.components[index].name
            found.append(f"component {name} killed the worker too often and is parked: {how}")
        for replica in self.replicas:
            if replica.state == "parked":
                found.append(f"{replica.part} died too often and is parked: {replica.last_exit}")
            elif replica.state == "restarting":
                found.append(f"{replica.part} is being restarted: {replica.last_exit}")
        if self.worker.state == "parked":
            found.append(f"the worker died too often and is parked: {self.worker.last_exit}")
        elif self.worker.state == "restarting":
            found.append(f"the worker is being restarted: {self.worker.last_exit}")
        return found + self.ports.problems()

    @property
    def health(self) -> str:
        """ok, degraded or failed."""
        parked = [replica for replica in self.replicas if replica.state == "parked"]
        if self.worker.state == "parked" or parked or self.worker.fused.parked or self.halting():
            return "failed"
        return "degraded" if self.problems() else "ok"

    def changed(self) -> None:
        """Something died, came back or was parked."""
        halting = self.halting()
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
        for index, component in enumerate(self.plan.components):
            replicas = [replica.to_json() for replica in self.replicas_of(index)]
            components.append(
                {
                    "name": component.name,
                    "framework": component.framework,
                    "isolation_asked": str(component.isolation_asked),
                    "isolation": str(component.isolation),
                    "replicas": replicas or [self._fused(index)],
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
            "stats_name": self.stats_name,
            "plan": self.document,
            "components": components,
            "ports": self.ports.to_json(),
            "workers": [self.worker.to_json()],
        }

    def _fused(self, index: int) -> dict[str, Any]:
        worker, parked = self.worker.to_json(), index in self.worker.fused.parked
        return {
            "pid": worker["pid"],
            "state": "parked" if parked else "fused" if worker["pid"] else "stopped",
            "restarts": worker["restarts"],
            "uid": None,
            "cgroup": None,
            "last_exit": self.worker.fused.parked[index] if parked else worker["last_exit"],
            "last_output": self.worker.log.texts(OUTPUT_LINES) if parked else [],
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
            "worker": self.worker.remember(),
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
        instance.worker.recall(document["worker"])
        return instance

    def pids(self) -> set[int]:
        """Give the processes that are known to run for it."""
        processes = [replica.process for replica in self.replicas] + [self.worker.process]
        return {process.pid for process in processes if process is not None and process.alive}
