"""Ports of an instance: opened through the NIC tools, kept by the keeper, put back as they were."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from coven.errors import CovenError, Where
from coven.forwarder.shares import share_of
from coven.supervisor.context import Context

if TYPE_CHECKING:
    from coven.forwarder.instance_plan import PoolPlan, PortPlan
    from coven.network import LinkWatcher, OpenedPort
    from coven.network.xdp import Pool

POOL_DATA_OFFSET = 4096  # COVEN_POOL_DATA_OFFSET of abi.h; a test compares them


class PortSet:
    """The ports of one instance by name, in the plan's order."""

    def __init__(
        self, context: Context, instance: str, plans: tuple[PortPlan, ...], workers: int, pool: PoolPlan
    ) -> None:
        """Nothing is open yet. workers: that each port is opened for; pool: of each of them."""
        self._context, self._instance, self._plans, self._workers = context, instance, plans, workers
        self._geometry = pool
        self._opened: dict[str, dict[str, Any]] = {}  # OpenedPort.to_json() of open ones
        self.states = dict.fromkeys((plan.name for plan in plans), "closed")
        self._changing = {plan.name: asyncio.Lock() for plan in plans}  # a port is opened or closed, not both at once

    def fds_name(self, port: str, worker: int) -> str:
        """Name of a worker's descriptors of a port in the keeper."""
        return f"{self._instance}/" + (f"w{worker}.port.{port}" if worker else f"port.{port}")

    def _held_name(self, port: str) -> str:
        """Name of what stays open beside them."""
        return f"{self._instance}/held.{port}"

    async def open(self, plan: PortPlan) -> None:
        """Open one port. Raises CovenError `port.*`, `platform.no-privilege`; cancelled, it leaves nothing open."""
        async with self._changing[plan.name]:
            await self._open(plan)

    async def _open(self, plan: PortPlan) -> None:
        from coven.network import tool_of

        document = self._json(plan)
        taken = self._context.interfaces
        if plan.interface is not None and plan.interface in taken:
            raise CovenError(
                "port.in-use",
                f"{plan.interface} is already {taken[plan.interface]}",
                hint="bind another interface, or terminate what has it",
                where=Where(part=f"port {plan.name}"),
            )
        if plan.interface is not None:
            taken[plan.interface] = f"{self._instance} port {plan.name}"
        tool = tool_of(document)
        try:
            # What must be put back is on disk before anything is changed: nobody can die with it unsaid.
            intent = await asyncio.to_thread(tool.intend, document)
            if intent is not None:
                self._opened[plan.name] = intent.to_json()
                self._context.save()
            document["pool"] = self._pool()  # afxdp is for one worker, whose pool this is
            opened = await _to_the_end(partial(tool.open, document, taken=set(taken) - {plan.interface}))
        except BaseException:
            self._opened.pop(plan.name, None)
            self._release(plan)
            raise
        self._opened[plan.name] = opened.to_json()
        self._context.save()
        for worker, fds in enumerate(opened.of_workers(self._workers)):
            self._context.keeper.put(self.fds_name(plan.name, worker), [os.dup(fd) for fd in fds])
        for fd in opened.fds:
            os.close(fd)
        if opened.held:
            self._context.keeper.put(self._held_name(plan.name), opened.held)
        self.states[plan.name] = "up"
        self._context.emit("port-up", self._instance, f"port {plan.name}", note=opened.note)

    async def close(self, plan: PortPlan) -> None:
        """Close one port. No harm if it is not open; one that is being opened is waited for."""
        async with self._changing[plan.name]:
            document = self._opened.get(plan.name)
            held_name = self._held_name(plan.name)
            held = [os.dup(fd) for fd in self._context.keeper.get(held_name)] if document is not None else []
            for worker in range(self._workers):
                self._context.keeper.drop(self.fds_name(plan.name, worker))
            self._context.keeper.drop(held_name)
            if document is not None:
                from coven.network import adopt

                nothing = [os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC) for _ in range(2)]
                await asyncio.to_thread(adopt(document, nothing, held).close)
                del self._opened[plan.name]
            self._release(plan)
            self.states[plan.name] = "closed"
            self._context.save()

    async def undo(self, plan: PortPlan) -> None:
        """Close one port as if it had never been open: a file that was made for it and holds no packet goes."""
        if plan.name in self._opened:
            self._opened[plan.name]["begun"] = False
        await self.close(plan)

    async def begin(self) -> None:
        """Packets are about to move: empty the files that will be written. Raises CovenError port.bad-file."""
        from coven.network import adopt

        for plan in self._plans:
            document = self._opened.get(plan.name, {})
            if document.get("output") is None or document["begun"]:
                continue
            fds = [os.dup(fd) for fd in self._context.keeper.get(self.fds_name(plan.name, 0))]
            try:
                port = adopt(document, fds)
                await asyncio.to_thread(port.begin)
                self._opened[plan.name] = port.to_json()
            except OSError as error:
                where = Where(file=document["output"]["path"], part=f"port {plan.name}")
                message = f"the file cannot be written: {error.strerror}"
                raise CovenError("port.bad-file", message, where=where) from error
            finally:
                for fd in fds:
                    os.close(fd)
        self._context.save()  # a successor that runs this again must not empty what the worker has written since

    def descriptors(self, worker: int) -> list[tuple[int, tuple[int, ...]]]:
        """Give index and a worker's descriptors of each port."""
        get = self._context.keeper.get
        return [(i, get(self.fds_name(plan.name, worker))) for i, plan in enumerate(self._plans)]

    def plan_fields(self, worker: int) -> dict[int, dict[str, int]]:
        """Give what opening found out, for a worker's plan segment: port index -> fields of coven_plan_port."""
        return {
            i: share_of(self._opened[plan.name]["plan_fields"], worker, self._workers)
            for i, plan in enumerate(self._plans)
            if plan.name in self._opened
        }

    def link_changed(self, interface: str, state: str) -> bool:
        """Note a change of an interface; True when it is one of ours."""
        for plan in self._plans:
            if plan.interface == interface and self.states[plan.name] != "closed":
                new = "up" if state == "up" and self._is_the_same(plan) else "down"
                if self.states[plan.name] != new:
                    self.states[plan.name] = new
                    self._context.emit(f"port-{new}", self._instance, f"port {plan.name}", interface=interface)
                return True
        return False

    def problems(self) -> list[str]:
        """Say which ports are down."""
        return [
            f"port {plan.name}: the interface is down"
            if self._is_the_same(plan)
            else f"port {plan.name}: the interface was removed; `restart` opens one that has its name"
            for plan in self._plans
            if self.states[plan.name] == "down"
        ]

    def to_json(self) -> list[dict[str, Any]]:
        """Give the ports as the protocol shows them."""
        return [
            {
                "name": plan.name,
                "tool": self._opened.get(plan.name, {}).get("tool", plan.tool),
                "interface": plan.interface,
                "state": self.states[plan.name],
                "note": self._opened.get(plan.name, {}).get("note", ""),
            }
            for plan in self._plans
        ]

    def remember(self) -> dict[str, Any]:
        """Give what a successor needs."""
        return dict(self._opened)

    def recall(self, document: dict[str, Any]) -> None:
        """Take over what a predecessor left open."""
        for plan in self._plans:
            if plan.name in document:
                self._opened[plan.name] = document[plan.name]
                self.states[plan.name] = "up"
                if plan.interface is not None:
                    self._context.interfaces[plan.interface] = f"{self._instance} port {plan.name}"

    def _is_the_same(self, plan: PortPlan) -> bool:
        """Whether the interface is the one that was opened, not another that has its name now."""
        index = self._opened.get(plan.name, {}).get("index")
        if index is None or plan.interface is None:
            return True
        try:
            return socket.if_nametoindex(plan.interface) == int(index)
        except OSError:
            return False

    def _release(self, plan: PortPlan) -> None:
        owner = f"{self._instance} port {plan.name}"
        if plan.interface is not None and self._context.interfaces.get(plan.interface) == owner:
            del self._context.interfaces[plan.interface]

    def _pool(self) -> Pool | None:
        """Give the packet memory, for tools that let the kernel write there."""
        from coven.network.xdp import Pool

        fds = self._context.keeper.get(f"{self._instance}/pool")
        if not fds:
            return None
        return Pool(fds[0], POOL_DATA_OFFSET, self._geometry.buffers, self._geometry.buffer_bytes)

    def _json(self, plan: PortPlan) -> dict[str, Any]:
        settings = self._context.settings
        # As root, only files in the folders that the operator named: the agent that asks is not root.
        folders = [str(path) for path in settings.files] if settings.privileged else None
        return {
            "folders": folders,
            "name": plan.name,
            "tool": plan.tool,
            "interface": plan.interface,
            "options": dict(plan.options),
            "mtu": plan.mtu,
            "workers": self._workers,
        }


async def _to_the_end(opening: Callable[[], OpenedPort]) -> OpenedPort:
    """Open in a thread. A thread cannot be stopped: who is cancelled waits for it, and closes what it opened.

    Until then the intent stays in the manifest, for a successor should we be killed meanwhile.
    """
    thread = asyncio.get_running_loop().run_in_executor(None, opening)  # no task: the loop's end cancels those
    cancelled: asyncio.CancelledError | None = None
    while not thread.done():
        try:
            await asyncio.wait({thread})
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is None:
        return thread.result()
    if thread.exception() is None:  # one that failed has put everything back by itself
        thread.result().close()  # at once, not in a thread: here nobody can cancel it
    raise cancelled


class LinkWatch:
    """Watches the interfaces of all instances; made when the first one is opened."""

    def __init__(self, context: Context) -> None:
        """Watch nothing yet."""
        self._context = context
        self._watcher: LinkWatcher | None = None

    def watch(self, interface: str, tell: Any) -> None:
        """Watch an interface; `tell(interface, state)` is called for each change of any."""
        if self._watcher is None:
            from coven.network import LinkWatcher

            self._watcher = watcher = LinkWatcher()
            loop = asyncio.get_running_loop()
            loop.add_reader(watcher.fileno(), lambda: [tell(e.interface, e.state) for e in watcher.read()])
        self._watcher.watch(interface)

    def unwatch(self, interface: str) -> None:
        """Forget an interface."""
        if self._watcher is not None:
            self._watcher.unwatch(interface)
