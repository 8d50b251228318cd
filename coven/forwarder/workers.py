"""How many workers an instance has, on which cores, and how they wait: from what is asked for to a WorkerPlan."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from coven import limits
from coven.errors import CovenError, Where
from coven.forwarder.instance_plan import MAX_CORE, PROFILES, WorkerPlan
from coven.suggest import near_miss

if TYPE_CHECKING:
    from coven.forwarder.instance_plan import InstancePlan
    from coven.model import Vnf

# Tools that can give each worker its part of a port; `auto` chooses one of them.
DIVISIBLE = ("auto", "afpacket", "tap", "gen", "pcap")
KEYS = ("count", "cores", "component_cores", "profile")


def plan_workers(vnf: Vnf, asked: Mapping[str, Any]) -> WorkerPlan:
    """Plan the workers of a function.

    asked: `count`, `cores` (one for each worker), `component_cores`, `profile`, each if wanted otherwise than the
    function's descriptor says. Whether the cores exist, whoever applies the plan checks. Raises CovenError
    `worker.invalid`.
    """
    for key in asked:
        if key not in KEYS:
            raise _fault(f"there is no {key!r} of workers", near_miss(str(key), KEYS) or f"known: {', '.join(KEYS)}")
    count, cores = asked.get("count"), _cores(asked.get("cores"), "cores")
    if count is None:
        count = len(cores) or vnf.workers
    if type(count) is not int or not 1 <= count <= limits.MAX_WORKERS:
        raise _fault(f"{count!r} is no number of workers", f"1 to {limits.MAX_WORKERS}")
    if cores and len(cores) != count:
        raise _fault(f"{len(cores)} cores for {count} workers", "name one core for each worker, or none")
    profile = asked.get("profile") or vnf.profile
    if profile not in PROFILES:
        raise _fault(f"there is no profile {profile!r}",
                     near_miss(str(profile), PROFILES) or f"profiles are: {', '.join(PROFILES)}")  # fmt: skip
    return WorkerPlan(cores or (None,) * count, profile, _cores(asked.get("component_cores"), "component_cores"))


def _cores(given: object, what: str) -> tuple[int, ...]:
    """Check a list of cores; None and an empty list say nothing."""
    if given is None:
        return ()
    if not isinstance(given, list) or not all(type(core) is int and 0 <= core <= MAX_CORE for core in given):
        raise _fault(f"{what} must be a list of core numbers", "for example [2, 3]")
    if len(set(given)) != len(given):
        raise _fault(f"{what} names a core twice", "two workers on one core would only take turns")
    if len(given) > limits.MAX_WORKERS and what == "cores":
        raise _fault(f"{len(given)} workers are too many", f"at most {limits.MAX_WORKERS}")
    return tuple(given)


def _fault(message: str, hint: str) -> CovenError:
    return CovenError("worker.invalid", message, hint=hint, where=Where(part="workers"))


def check_workers(plan: InstancePlan) -> None:
    """Refuse what cannot be had for several workers: too much memory, a capture file that all would have to write.

    Worker 0 alone reads and writes files. Packets that come from a capture are its own; those of other ports are not.
    Raises CovenError `worker.invalid`.
    """
    workers = len(plan.worker.cores)
    if workers == 1:
        return
    needed = plan.pool.buffers * plan.pool.buffer_bytes * workers
    if needed > limits.MAX_POOL_BYTES:
        raise _fault(f"the packet pools of {workers} workers come to {needed} bytes, more than {limits.MAX_POOL_BYTES}",
                     "each worker has a pool of its own: use fewer, or a smaller `pool`")  # fmt: skip
    for port in plan.ports:
        if port.tool not in DIVISIBLE:
            raise CovenError(
                "worker.invalid",
                f"port {port.name}: the tool {port.tool} cannot divide packets among {workers} workers",
                hint=f"use one worker, or one of these tools: {', '.join(DIVISIBLE)}",
                where=Where(part=f"port {port.name}"),
            )
    ports = {port.name: port for port in plan.ports}
    for number, path in enumerate(plan.paths):
        if ports[path.ingress].tool == "pcap":
            continue
        steps = [port.first for port in plan.ports if port.path == number]
        steps += [step for hop in plan.hops if hop.path == number for step in hop.next]
        for step in steps:
            target = None if step is None or step.port is None else plan.ports[step.port]
            if target is not None and target.tool == "pcap" and target.options.get("out"):
                raise CovenError(
                    "worker.invalid",
                    f"port {target.name} writes a capture file, which only one worker can, and path {path.name} "
                    f"leads there from port {path.ingress}, which all {workers} read",
                    hint="use one worker, or another port tool; a capture on a wire can be taken with tcpdump",
                    where=Where(part=f"port {target.name}"),
                )
