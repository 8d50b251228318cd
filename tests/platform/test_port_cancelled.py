"""A port whose opening is cancelled: the thread that opens cannot be stopped, and nothing of it may stay."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from coven import network
from coven.errors import CovenError
from coven.forwarder.instance_plan import InstancePlan
from coven.network import OpenedPort
from coven.supervisor.cgroup import Hierarchies
from coven.supervisor.config import parse_arguments
from coven.supervisor.context import Context
from coven.supervisor.keeper import Keeper
from coven.supervisor.ports import PortSet
from tests.lib import plans

DEADLINE = 10


class SlowTool:
    """Opens by changing a file, as a tool changes a setting of an interface, and then waits to be let go on."""

    name = "gen"

    def __init__(self, setting: Path) -> None:
        self.setting = setting
        self.opening, self.go_on = threading.Event(), threading.Event()
        self.fails = False
        self.fds: tuple[int, int] = (-1, -1)

    def _port(self, fds: tuple[int, int]) -> OpenedPort:
        return OpenedPort("lan", self.name, None, fds, {}, "", {str(self.setting): "before"})

    def intend(self, port: Mapping[str, Any]) -> OpenedPort | None:
        return self._port((-1, -1))

    def open(self, port: Mapping[str, Any], *, taken: Collection[str] = ()) -> OpenedPort:
        self.setting.write_text("changed")
        self.opening.set()
        assert self.go_on.wait(DEADLINE)
        if self.fails:
            self.setting.write_text("before")
            raise CovenError("port.unsupported", "no")
        self.setting.write_text("changed")
        self.fds = (os.open("/dev/null", os.O_RDWR), os.open("/dev/null", os.O_RDWR))
        return self._port(self.fds)


class Bench:
    """The ports of one instance, with a tool that waits, and what was in the manifest at each writing."""

    def __init__(self, folder: Path) -> None:
        self.tool = SlowTool(folder / "setting")
        self.tool.setting.write_text("before")
        self.ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        settings = parse_arguments(["--state-dir", str(folder / "s"), "--run-dir", str(folder / "r"), "--no-agent"])
        self.context = Context(settings, Keeper(settings, self.ours), Hierarchies(0))
        document = plans.chain("fw-1", folder, [], [plans.gen_port("lan", 1), plans.gen_port("wan")])
        plan = InstancePlan.from_json(document)
        self.ports, self.plan = PortSet(self.context, "fw-1", plan.ports, 1, plan.pool), plan.ports[0]
        self.saved: list[dict[str, Any]] = []
        self.context.save = lambda: self.saved.append(self.ports.remember())

    async def begin(self) -> asyncio.Task[None]:
        """Begin to open; give the task once the tool is in the middle of it."""
        task = asyncio.create_task(self.ports.open(self.plan))
        assert await asyncio.to_thread(self.tool.opening.wait, DEADLINE)
        return task


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    made = Bench(tmp_path)
    monkeypatch.setattr(network, "TOOLS", {"gen": made.tool})
    yield made
    made.tool.go_on.set()
    made.ours.close()
    made.theirs.close()


async def cancelled(bench: Bench, times: int) -> None:
    task = await bench.begin()
    for _ in range(times):
        task.cancel()
        await asyncio.sleep(0)  # let it hear of it
    assert not task.done()
    assert bench.saved[-1]["lan"]["settings"] == {str(bench.tool.setting): "before"}, "a successor must know"
    assert bench.ports.remember() == bench.saved[-1]
    bench.tool.go_on.set()
    await asyncio.wait({task}, timeout=DEADLINE)
    assert task.cancelled()


@pytest.mark.parametrize("fails", [False, True], ids=["opens", "fails"])
@pytest.mark.parametrize("times", [1, 3])
def test_nothing_is_left_of_an_opening_that_is_cancelled(bench: Bench, times: int, fails: bool) -> None:
    bench.tool.fails = fails
    asyncio.run(cancelled(bench, times))
    assert bench.tool.setting.read_text() == "before"
    assert bench.ports.remember() == {}
    assert bench.ports.states["lan"] == "closed"
    for fd in bench.tool.fds:
        with pytest.raises(OSError, match="descriptor"):
            os.fstat(fd)


def test_the_end_of_the_loop_waits_for_an_opening(bench: Bench) -> None:
    """As at the end of the supervisor: `asyncio.run` cancels what is under way, whatever task it is."""

    async def main() -> None:
        await bench.begin()
        asyncio.get_running_loop().call_soon(bench.tool.go_on.set)

    asyncio.run(main())
    assert bench.tool.setting.read_text() == "before"
    assert bench.ports.remember() == {}


def test_closing_waits_for_an_opening(bench: Bench) -> None:
    async def main() -> None:
        opening = await bench.begin()
        closing = asyncio.create_task(bench.ports.close(bench.plan))
        for _ in range(10):  # time for the thread that would put back too early
            await asyncio.to_thread(lambda: None)
        assert not closing.done()
        bench.tool.go_on.set()
        await asyncio.wait_for(asyncio.gather(opening, closing), DEADLINE)

    asyncio.run(main())
    assert bench.tool.setting.read_text() == "before"
    assert bench.ports.remember() == {} and bench.saved[-1] == {}
    assert bench.ports.states["lan"] == "closed"
