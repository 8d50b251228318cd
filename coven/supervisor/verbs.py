"""The verbs of `execute` as lists of steps: which states they need, what each step does and how it is undone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

from coven.errors import CovenError
from coven.model import Isolation
from coven.supervisor.context import Context
from coven.supervisor.cores import check_cores
from coven.supervisor.instance import Instance
from coven.supervisor.lane import Lane
from coven.supervisor.operation import Step, nothing
from coven.supervisor.worker import Worker

PAUSE_MS = 1000  # what is inside may finish so long when an instance stops

# state before -> verbs that are possible
NEEDS = {
    "instantiate": {"new"},
    "deploy": {"new"},
    "start": {"instantiated", "stopped"},
    "stop": {"started"},
    "restart": {"started"},
    "heal": {"instantiated", "started", "stopped", "failed"},
    "terminate": {"instantiated", "stopped", "failed"},
}
# Groups of steps that run at the same time (operation.Step.group). `restart` closes all ports before it opens one.
BUILDS, COMPONENTS, PORTS, CLOSED_PORTS, WORKERS, ENDED_WORKERS = range(1, 7)


def check_state(instance: Instance, verb: str, force: bool) -> None:
    """Raise CovenError instance.wrong-state when the verb does not fit."""
    allowed = NEEDS[verb] | ({"started"} if verb == "terminate" and force else set())
    if instance.state not in allowed:
        hint = f"it must be {' or '.join(sorted(allowed - {'failed'}))}"
        if verb == "terminate" and instance.state == "started":
            hint = "stop it first, or terminate it with force"
        raise CovenError("instance.wrong-state", f"cannot {verb} {instance.id}: it is {instance.state}", hint=hint)


def steps_of(
    context: Context, instance: Instance, verb: str, component: str | None, forget: Callable[[Instance], None]
) -> list[Step]:
    """Give the steps of a verb, in order. The same arguments give the same steps, also to a successor."""
    if verb == "instantiate":
        return _instantiate(context, instance, forget, "instantiated")
    if verb == "deploy":
        return [*_instantiate(context, instance, forget, "instantiated"), *_start(instance, "instantiated")]
    if verb == "start":
        return _start(instance, instance.state)
    if verb == "stop":
        return _stop(instance)
    if verb == "restart":
        return [*_stop(instance), *_start(instance, "stopped")]
    if verb == "heal":
        return _heal(instance, component)
    if verb == "terminate":
        return [*_stop(instance), *_terminate(instance, forget)]
    raise CovenError("request.invalid", f"there is no verb {verb!r}", hint=f"verbs are: {', '.join(NEEDS)}")


def _instantiate(context: Context, instance: Instance, forget: Callable[[Instance], None], state: str) -> list[Step]:
    async def check() -> None:
        from coven.supervisor.build import check_folder

        check_cores(instance.plan.worker)
        check_folder(context, instance.plan.package.root, "package")
        for component in instance.plan.components:
            check_folder(context, component.source, f"component {component.name}")

    async def uncheck() -> None:
        forget(instance)

    async def settle() -> None:
        for replica in instance.replicas:
            if replica.state != "ready":
                raise CovenError(
                    "component.exited", f"{replica.part} did not stay up: {replica.last_exit or replica.state}"
                )
        instance.set_state(state)

    async def unsettle() -> None:
        instance.set_state("new")

    plans = list(enumerate(instance.plan.components))
    steps = [Step("check", "plan", check, uncheck)]
    for index, component in plans:
        part = f"component {component.name}"
        build, unbuild = partial(instance.build, index), partial(instance.unbuild, index)
        steps.append(Step(f"build {component.name}", part, build, unbuild, BUILDS))
    steps.append(Step("memory", "memory", instance.make_memory, instance.free_memory))
    for index, component in plans:
        if component.isolation is not Isolation.FUSED:
            part = f"component {component.name}"
            start, end = partial(_start_component, instance, index), partial(_remove_component, instance, index)
            steps.append(Step(f"component {component.name}", part, start, end, COMPONENTS))
    return [*steps, Step("settle", "instance", settle, unsettle)]


async def _start_component(instance: Instance, index: int) -> None:
    await _all([replica.start() for replica in instance.replicas_of(index)])


async def _remove_component(instance: Instance, index: int) -> None:
    await _all([replica.remove() for replica in instance.replicas_of(index)])


async def _all(todo: list) -> None:  # type: ignore[type-arg]
    """Wait for all to end, then raise the first error."""
    for result in await asyncio.gather(*todo, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result


def _start(instance: Instance, before: str) -> list[Step]:
    steps = []
    for plan in instance.plan.ports:
        opening, closing = partial(instance.ports.open, plan), partial(instance.ports.undo, plan)
        steps.append(Step(f"port {plan.name}", f"port {plan.name}", opening, closing, PORTS))

    async def start_worker(lane: Lane) -> None:
        for replica in lane.replicas:
            if replica.state != "ready":
                await replica.heal()
        lane.write_ports()
        await lane.worker.start()

    async def run() -> None:
        await instance.ports.begin()
        await _all([worker.run() for worker in instance.workers])
        instance.set_state("started")
        instance.changed()  # a component may have died before: from now on that may stop the function

    async def halt() -> None:
        instance.set_state(before)

    for lane in instance.lanes:
        part = lane.worker.part
        steps.append(Step(part, part, partial(start_worker, lane), lane.worker.remove, WORKERS))
    steps.append(Step("run", "instance", run, halt))
    return steps


def _stop(instance: Instance) -> list[Step]:
    """Only goes forward: what does not end in order is ended by force, so no step can fail for long."""

    async def pause_one(worker: Worker) -> None:
        if worker.state == "running":
            try:
                await worker.pause(PAUSE_MS)
            except CovenError:
                await worker.stop()

    async def pause() -> None:
        await _all([pause_one(worker) for worker in instance.workers])
        if instance.state == "started":
            instance.set_state("stopped")

    steps = [Step("pause", "instance", pause)]
    for worker in instance.workers:
        steps.append(Step(f"end {worker.part}", worker.part, worker.remove, nothing, ENDED_WORKERS))
    for plan in instance.plan.ports:
        closing = partial(instance.ports.close, plan)
        steps.append(Step(f"close {plan.name}", f"port {plan.name}", closing, nothing, CLOSED_PORTS))
    return steps


def _heal(instance: Instance, component: str | None) -> list[Step]:
    wanted = None if component is None else instance.component(component)[0]
    steps = []
    for replica in instance.replicas:
        if wanted is None or replica.index == wanted:
            steps.append(Step(f"heal {replica.part}", replica.part, replica.heal, nothing, COMPONENTS))
    for index, plan in enumerate(instance.plan.components):
        if plan.isolation is Isolation.FUSED and wanted in (None, index):
            name = f"component {plan.name}"
            for worker in instance.workers:
                steps.append(Step(f"heal {name}", name, partial(worker.heal_fused, index)))
    if wanted is None or not instance.replicas_of(wanted):
        for worker in instance.workers:
            steps.append(Step(f"heal {worker.part}", worker.part, worker.heal))
    return steps


def _terminate(instance: Instance, forget: Callable[[Instance], None]) -> list[Step]:
    async def forgotten() -> None:
        instance.set_state("terminated")
        forget(instance)

    steps = []
    for index, component in enumerate(instance.plan.components):
        if component.isolation is not Isolation.FUSED:
            end = partial(_remove_component, instance, index)
            steps.append(Step(f"end {component.name}", f"component {component.name}", end, nothing, COMPONENTS))
    for index, component in enumerate(instance.plan.components):
        unbuild = partial(instance.unbuild, index)
        steps.append(Step(f"unload {component.name}", f"component {component.name}", unbuild, nothing, BUILDS))
    return [*steps, Step("memory", "memory", instance.free_memory), Step("forget", "instance", forgotten)]
