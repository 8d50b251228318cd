"""What an idle appliance costs, told by the kernel's count of voluntary switches: no process wakes without a reason."""

from __future__ import annotations

import mmap
import os
import select
import struct
import time
from pathlib import Path

import pytest

from coven.dataplane.core import lib, sizeof
from tests.lib import plans
from tests.lib.platform import BIN, PlatformUnderTest
from tests.platform import components as sources

pytestmark = pytest.mark.skipif(not (BIN / "coven-worker").exists(), reason="the programs are not built")
DEADLINE = 60.0
SLEEPS = 4  # of the worker: its own timers, a second each when there is nothing else


def switches(pid: int) -> int:
    """How often all threads of a process gave their cores away by themselves."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        for line in (task / "status").read_text().splitlines():
            if line.startswith("voluntary_ctxt_switches"):
                total += int(line.split()[1])
    return total


class Stats:
    """The worker's counters from shared memory: looking at them wakes nobody."""

    def __init__(self, name: str) -> None:
        fd = os.open(f"/dev/shm{name}", os.O_RDONLY)
        self.memory = mmap.mmap(fd, 0, prot=mmap.PROT_READ)
        os.close(fd)

    def worker(self, counter: int) -> int:
        return int(struct.unpack_from("<Q", self.memory, sizeof("coven_stats") + 8 * counter)[0])

    def wait_sleeps(self, more: int) -> int:
        begin, end, pace = self.worker(lib.COVEN_WORKER_SLEEPS), time.monotonic() + DEADLINE, select.poll()
        while self.worker(lib.COVEN_WORKER_SLEEPS) < begin + more:
            assert time.monotonic() < end, "the worker does not go round"
            pace.poll(50)
        return self.worker(lib.COVEN_WORKER_SLEEPS) - begin


def test_an_idle_appliance_sleeps(tmp_path: Path) -> None:
    with PlatformUnderTest(tmp_path, agent=True, agent_arguments=("--listen", "none")) as platform:
        root = platform.package("demo", {"one/one.py": sources.FORWARD_PY, "two/two.c": sources.FORWARD_C})
        parts = [plans.component("one", root, "python"), plans.component("two", root, "c")]
        platform.deploy(plans.chain("fw-1", root, parts, [plans.gen_port("lan"), plans.gen_port("wan")]))
        platform.wait_for((platform.run_dir / "agent.sock").exists, "the agent does not listen")
        instance = platform.instance("fw-1")
        stats = Stats(instance["stats_name"])
        pids = {name: platform.replica("fw-1", name)["pid"] for name in ("one", "two")}
        pids |= {"worker": instance["workers"][0]["pid"], "supervisor": platform.supervisor_pid}
        assert platform.keeper is not None
        pids |= {"keeper": platform.keeper.pid, "agent": int((platform.run_dir / "agent.pid").read_text())}
        stats.wait_sleeps(2)  # what the deployment still had to do is done
        before = {name: switches(pid) for name, pid in pids.items()}
        loops = stats.worker(lib.COVEN_WORKER_LOOPS)
        slept = stats.wait_sleeps(SLEEPS)
        woke = {name: switches(pid) - before[name] for name, pid in pids.items()}
        assert woke["keeper"] == 0
        assert max(woke["supervisor"], woke["agent"]) <= 2 * slept
        assert stats.worker(lib.COVEN_WORKER_LOOPS) - loops <= 70 * slept  # 64 looks and a sleep
        for name in ("one", "two"):
            assert woke[name] <= 3 * slept + 64, name
