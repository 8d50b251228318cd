"""kill -9 at the worst moments: a part in the middle of another's end, two at once, the same one again before it is back.

What must go on goes on as the same process, all else comes back, and every packet is accounted for at the end.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from coven.errors import CovenError
from tests.lib import plans
from tests.lib.platform import BIN, PlatformUnderTest, wait_gone
from tests.platform import components as sources

pytestmark = pytest.mark.skipif(not (BIN / "coven-worker").exists(), reason="the programs are not built")

ENDLESS = 2**40  # packets
INSTANCE = "fw-1"


@pytest.fixture
def platform(tmp_path: Path) -> Iterator[PlatformUnderTest]:
    with PlatformUnderTest(tmp_path) as under_test:
        root = under_test.package("demo", {"one/one.c": sources.COUNT_C, "two/two.py": sources.FORWARD_PY})
        one = plans.component("one", root, "c", state=sources.COUNT_STATE, metrics=sources.COUNT_METRICS)
        two = plans.component("two", root)
        ports = [plans.gen_port("lan", ENDLESS, rate=5000, flows=16), plans.gen_port("wan")]
        under_test.deploy(plans.chain(INSTANCE, root, [one, two], ports))
        moves_on(under_test)
        yield under_test
        under_test.execute("terminate", INSTANCE, force=True)
        assert [line for line in under_test.leftovers() if line.startswith(("shm", "cgroup", "mount"))] == []
    assert under_test.leftovers() == []


def snapshot(platform: PlatformUnderTest) -> dict[str, Any] | None:
    try:
        taken = platform.request("snapshot", instance=INSTANCE)
    except CovenError:
        return None
    assert taken["accounting"]["balanced"], taken
    return dict(taken)


def moves_on(platform: PlatformUnderTest, packets: int = 200) -> dict[str, Any]:
    """Give a snapshot once so many more packets have left."""
    first = platform.wait_for(lambda: snapshot(platform), "the worker does not answer")["accounting"]["tx"]

    def further() -> dict[str, Any] | None:
        now = snapshot(platform)
        return now if now is not None and now["accounting"]["tx"] >= first + packets else None

    return dict(platform.wait_for(further, "no packets leave"))


def pids(platform: PlatformUnderTest) -> dict[str, int]:
    state = platform.instance(INSTANCE)
    found = {row["name"]: int(row["replicas"][0]["pid"] or 0) for row in state["components"]}
    return {**found, "worker": int(state["workers"][0]["pid"] or 0)}


def lost(platform: PlatformUnderTest) -> dict[str, int]:
    return {row["reason"]: row["packets"] for row in moves_on(platform)["drops"]}


def whole_again(platform: PlatformUnderTest) -> dict[str, int]:
    """Wait until all parts run; give the processes."""

    def there() -> dict[str, int] | None:
        state = platform.instance(INSTANCE)
        ready = all(row["replicas"][0]["state"] == "ready" for row in state["components"])
        running = state["workers"][0]["state"] == "running" and state["health"] == "ok"
        return pids(platform) if ready and running else None

    return dict(platform.wait_for(there, "not all parts came back"))


def kill_at_once(*victims: int) -> None:
    """SIGKILL to all before waiting for any."""
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
    for pid in victims:
        wait_gone(pid)


def next_supervisor(keeper: int, other_than: int, deadline: float = 20) -> int:
    """Give the keeper's next child, as soon as there is one, long before it answers."""
    end = time.monotonic() + deadline
    while time.monotonic() < end:
        for pid in map(int, Path(f"/proc/{keeper}/task/{keeper}/children").read_text().split()):
            with contextlib.suppress(OSError):
                if pid != other_than and b"coven.supervisor" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    return pid
        select.select([], [], [], 0.001)
    raise TimeoutError("the keeper starts no supervisor")


@pytest.mark.parametrize("after_s", [0.0, 0.05, 0.15, 0.25])
def test_the_supervisor_twice_in_a_row(platform: PlatformUnderTest, after_s: float) -> None:
    """The second one dies at its very start, or somewhere in the middle of taking over."""
    before, supervisor = pids(platform), platform.supervisor_pid
    assert platform.keeper is not None
    os.kill(supervisor, signal.SIGKILL)
    second = next_supervisor(platform.keeper.pid, supervisor)
    select.select([], [], [], after_s)
    kill_at_once(second)
    platform.wait_supervisor(other_than=second)
    assert whole_again(platform) == before
    # A source with a rate waits for nobody: a component that gets no processor for 50 ms fills its ring of 256.
    assert lost(platform).keys() <= {"ring-full"}


@pytest.mark.parametrize("part", ["one", "two", "worker"])
def test_a_part_while_the_supervisor_is_replaced(platform: PlatformUnderTest, part: str) -> None:
    before, supervisor = pids(platform), platform.supervisor_pid
    assert platform.keeper is not None
    os.kill(supervisor, signal.SIGKILL)
    next_supervisor(platform.keeper.pid, supervisor)
    kill_at_once(before[part])
    platform.wait_supervisor(other_than=supervisor)
    after = whole_again(platform)
    assert {name for name in before if before[name] != after[name]} == {part}
    assert lost(platform).keys() <= {"component-crash", "component-down", "worker-crash", "tx-uncertain", "ring-full"}


@pytest.mark.parametrize("parts", [("one", "two"), ("worker", "one"), ("worker", "two"), ("worker", "one", "two")], ids=str)
def test_several_parts_at_once(platform: PlatformUnderTest, parts: tuple[str, ...]) -> None:
    before = pids(platform)
    kill_at_once(*(before[part] for part in parts))
    after = platform.wait_for(
        lambda: (found := whole_again(platform)) and all(found[part] != before[part] for part in parts) and found,
        "not all came back",
    )
    assert {name for name in before if before[name] != after[name]} == set(parts)
    assert lost(platform).keys() <= {"component-crash", "component-down", "worker-crash", "tx-uncertain", "ring-full"}


@pytest.mark.parametrize("victim", ["worker", "two"])
@pytest.mark.parametrize("verb", ["stop", "terminate"])
def test_a_part_dies_while_it_is_ended(platform: PlatformUnderTest, verb: str, victim: str) -> None:
    """Under load, while packets inside are given their time."""
    pid = pids(platform)[victim]
    name = platform.begin(verb, INSTANCE, force=True)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    operation = platform.wait_operation(name)
    assert operation["state"] == "succeeded", operation
    if verb == "stop":
        assert platform.instance(INSTANCE)["state"] == "stopped"
        assert platform.request("snapshot", instance=INSTANCE)["accounting"]["balanced"]
        platform.execute("start", INSTANCE)
        whole_again(platform)
        moves_on(platform)
    else:
        root = platform.state_dir / "packages" / "demo"
        ports = [plans.gen_port("lan", ENDLESS, rate=5000), plans.gen_port("wan")]
        platform.deploy(plans.chain(INSTANCE, root, [plans.component("two", root)], ports))
