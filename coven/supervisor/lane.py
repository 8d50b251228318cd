"""A lane: one worker of an instance with everything that is its own. Lanes share nothing but code and settings.

Each has a packet pool, a ledger, counters, a flow table, state segments, replicas of the isolated components and a copy
of the code of fused ones. So a lane's data path is that of an instance with one worker, and the death of one worker
touches the flows of its lane only.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any

from coven.agents.client import outcome
from coven.agents.protocol import MAX_BYTES, Request, decode_answer, encode_request, start_lines
from coven.errors import CovenError, Where
from coven.model import Isolation
from coven.supervisor import control, memory
from coven.supervisor.component import Home, Replica
from coven.supervisor.context import Context
from coven.supervisor.cores import component_cores
from coven.supervisor.fused import guilty
from coven.supervisor.poison import Captures, Poison, forget, marked
from coven.supervisor.worker import Feed, Worker

if TYPE_CHECKING:
    from collections.abc import Callable

    from coven.dataplane.layout import Layout
    from coven.forwarder.instance_plan import ComponentPlan, InstancePlan
    from coven.supervisor.ports import PortSet

log = logging.getLogger(__name__)

# Kinds of segments, enum coven_segment_kind of abi.h.
PLAN, POOL, REPLICA, STATE, LEDGER, STATS = range(1, 7)


class Lane:
    """Worker number `index` of an instance, its memory and its components."""

    def __init__(
        self,
        context: Context,
        plan: InstancePlan,
        index: int,
        *,
        layout: Callable[[], Layout],
        ports: PortSet,
        changed: Callable[[], None],
    ) -> None:
        """layout: of the instance, the same for all lanes; changed: called when something died or came back."""
        self._context, self._plan, self.index = context, plan, index
        self._layout, self._ports = layout, ports
        self._document = plan.to_json()
        self.stats_name = memory.stats_name(context.settings.platform_id, plan.instance, index)
        home = Home(
            instance=plan.instance,
            worker=index if len(plan.worker.cores) > 1 else None,
            name=self.name,
            declarations=lambda component: dict(self._document["components"][component]),
            cores=lambda: component_cores(plan.worker),
            segment=lambda number: layout().replicas[number],
            attach=self._attach,
            detach=self._detach,
            changed=changed,
        )
        self.replicas: list[Replica] = []
        for number, component in enumerate(plan.components):
            if component.isolation is not Isolation.FUSED:
                for replica in range(component.replicas):
                    through = index * component.replicas + replica  # all lanes
                    self.replicas.append(
                        Replica(context, home, component, number, len(self.replicas), through)
                    )
        feed = Feed(
            segments=self._segments,
            ports=lambda: ports.descriptors(index),
            code=self._code,
            replicas=lambda: self.replicas,
            guilty=self._guilty,
            components=len(plan.components),
            marked=self._save_poison,
            component=lambda component: plan.components[component].name,
            name=self.name,
            changed=changed,
        )
        self.worker = Worker(context, plan.instance, index, plan.worker.cores[index], feed)

    def name(self, part: str) -> str:
        """Name of descriptors of this lane in the keeper; the first lane's are those of an instance with one."""
        return f"{self._plan.instance}/" + (f"w{self.index}.{part}" if self.index else part)

    def replicas_of(self, component: int) -> list[Replica]:
        """Give this lane's isolated replicas of a component; none if it is fused."""
        return [replica for replica in self.replicas if replica.index == component]

    # ---- memory ---------------------------------------------------------------------------------

    def take_users(self) -> None:
        """Give each replica a user of its own; those of one component share the group that has its state."""
        for replica in self.replicas:
            if replica.uid_number is None:
                replica.uid_number = self._context.take_uid()
            replica.gid_number = self.replicas_of(replica.index)[0].uid_number

    def make_memory(self) -> None:
        """Make the segments that live as long as the instance."""
        settings, keeper, layout = self._context.settings, self._context.keeper, self._layout()
        worker = settings.worker_uid
        for part, image in (("plan", layout.plan), ("pool", layout.pool), ("ledger", layout.ledger)):
            keeper.put(self.name(part), [memory.make(image, worker)])
        gid = settings.agent_uid if settings.privileged else os.getgid()
        keeper.put(self.name("stats"), [memory.make_stats(layout.stats, self.stats_name, gid)])
        for component, image in enumerate(layout.states):
            replicas = self.replicas_of(component)
            group = replicas[0].gid_number if replicas else None
            shared = None if group is None else self._context.uid(group)
            keeper.put(self.name(f"state.{component}"), [memory.make(image, worker, shared)])

    def free_memory(self) -> None:
        """Let go of all segments."""
        states = [f"state.{component}" for component in range(len(self._plan.components))]
        for part in ("plan", "pool", "ledger", "stats", *states):
            self._context.keeper.drop(self.name(part))
        memory.remove_stats(self.stats_name)
        self.worker.log.clear()

    def write_ports(self) -> None:
        """Write what opening the ports found out into the plan segment."""
        from coven.dataplane.core import ffi, sizeof

        plan = ffi.new("struct coven_plan *")
        ffi.memmove(plan, self._layout().plan.head, sizeof("coven_plan"))
        for index, fields in self._ports.plan_fields(self.index).items():
            for key, value in fields.items():
                setattr(plan.ports[index], key, value)
        (fd,) = self._context.keeper.get(self.name("plan"))
        os.pwrite(fd, bytes(ffi.buffer(plan)), 0)

    def state_fds(self) -> list[int]:
        """Give the state segment of each component; empty when there is no memory yet."""
        fds = [self._context.keeper.get(self.name(f"state.{i}")) for i in range(len(self._plan.components))]
        return [one[0] for one in fds] if all(fds) else []

    # ---- what the worker is fed ------------------------------------------------------------------

    def _segments(self) -> list[tuple[int, int, int]]:
        get = self._context.keeper.get
        kinds = (("plan", PLAN), ("pool", POOL), ("ledger", LEDGER), ("stats", STATS))
        fixed = [(kind, 0, get(self.name(part))[0]) for part, kind in kinds]
        return fixed + [(STATE, i, fd) for i, fd in enumerate(self.state_fds())]

    def _code(self) -> list[tuple[int, int, bytes]]:
        found = []
        for index, component in enumerate(self._plan.components):
            if component.isolation is Isolation.FUSED:
                (fd,) = self._context.keeper.get(code_name(self._plan.instance, index))
                found.append((index, fd, self._start_message(index, component)))
        return found

    def _start_message(self, index: int, component: ComponentPlan) -> bytes:
        lines = start_lines(
            self._document["components"][index],
            instance=self._plan.instance,
            replica=self.index,
            entry=component.entry,
            options=component.options,
        )
        return encode_request(Request(1, "start", "", lines))

    def _guilty(self) -> int | None:
        ledger = self._context.keeper.get(self.name("ledger"))
        found = guilty(ledger[0]) if ledger else None
        return found if found is not None and found < len(self._plan.components) else None

    def poison(self) -> list[Poison]:
        """Give the poison packets of this lane's components."""
        ledger = self._context.keeper.get(self.name("ledger"))
        return [one for one in marked(ledger[0]) if one.component < len(self._plan.components)] if ledger else []

    def _save_poison(self) -> None:
        """Keep a capture of each poison packet that is new, and tell it."""
        captures = Captures(self._context.settings, self._plan.instance)
        for packet in self.poison():
            name = self._plan.components[packet.component].name
            try:
                path = captures.save(name, packet)
            except OSError as error:
                log.warning("instance=%s poison packet of %s is not saved: %s", self._plan.instance, name, error)
                continue
            if path is not None:
                self._context.emit(
                    "poison-packet", self._plan.instance, f"component {name}",
                    fingerprint=packet.fingerprint, bytes=packet.length, capture=str(path),
                )  # fmt: skip

    async def clear_poison(self, component: int) -> None:
        """Let such packets come to a component again, also when there is no worker. Raises CovenError."""
        if self.worker.process is not None and self.worker.process.alive:
            await self.worker.request(control.POISON_CLEAR, index=component)
        elif ledger := self._context.keeper.get(self.name("ledger")):
            forget(ledger[0], component)

    async def _attach(self, replica: Replica) -> None:
        await self.worker.attach(replica)

    async def _detach(self, replica: Replica) -> None:
        await self.worker.detach(replica)

    # ---- questions ------------------------------------------------------------------------------

    def why_silent(self, index: int) -> CovenError | None:
        """Say why the fused component could not answer now; None when it could."""
        parked = index in self.worker.fused.parked
        if self.worker.is_up and not parked:
            return None
        name = self._plan.components[index].name
        why = "parked" if parked else f"fused and {self.worker.part} is {self.worker.state}"
        return CovenError(
            "component.not-running",
            f"component {name} is {why}",
            hint="`heal` starts a parked component again" if parked else "start the instance",
            where=Where(part=f"component {name}"),
        )

    async def ask_fused(
        self, index: int, verb: str, what: str, lines: tuple[tuple[str, ...], ...], timeout: float
    ) -> tuple[tuple[str, ...], ...]:
        """Ask the Extended Agent of a fused component. Raises CovenError."""
        if (error := self.why_silent(index)) is not None:
            raise error
        request = encode_request(Request(1, verb, what, lines))
        if len(request) > MAX_BYTES - 64:
            raise CovenError("request.too-large", "the question does not fit one message")
        answer = await self.worker.request(control.AGENT, index=index, payload=request, timeout=timeout)
        return outcome(decode_answer(answer.payload), Where(part=f"component {self._plan.components[index].name}"))

    async def numbers(self) -> dict[str, Any] | None:
        """Give totals and cells for a snapshot, from the worker if it runs; None when there is no memory yet."""
        from coven.supervisor import metrics

        stats, ledger = (self._context.keeper.get(self.name(part)) for part in ("stats", "ledger"))
        if not stats:
            return None
        if self.worker.is_up:
            return metrics.from_worker((await self.worker.request(control.SNAPSHOT)).payload, stats[0])
        return metrics.from_memory(stats[0], ledger[0])


def code_name(instance: str, component: int) -> str:
    """Name of a fused component's code in the keeper; all lanes load the same."""
    return f"{instance}/code.{component}"
