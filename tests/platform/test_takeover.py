"""What kill -9 of the supervisor does, at each of its effects on the world, during each verb.

Afterwards the instance is either as it was before or as the verb wants it, the operation says which, packets are accounted
for, and nothing else is there.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from coven.network.shield import foresee_shield
from tests.lib import plans
from tests.lib.net import Host, Network, unavailable
from tests.lib.platform import BIN, PlatformUnderTest
from tests.platform import components as sources

pytestmark = pytest.mark.skipif(not (BIN / "coven-worker").exists(), reason="the programs are not built")
REPOSITORY = Path(__file__).resolve().parents[2]

# verb -> verb that makes the state it needs, state before, state when it succeeded
VERBS = {
    "deploy": (None, None, "started"),
    "instantiate": (None, None, "instantiated"),
    "start": ("instantiate", "instantiated", "started"),
    "stop": ("deploy", "started", "stopped"),
    "restart": ("deploy", "started", "started"),
    "terminate": ("deploy", "started", None),
}
STRIDE = 17  # of the short run; odd, so that before and after effects take turns


@pytest.fixture
def platform(tmp_path: Path) -> Iterator[PlatformUnderTest]:
    environment = {
        "COVEN_TEST_KILL_AT": str(tmp_path / "kill-at"),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")])),
    }
    under_test = PlatformUnderTest(tmp_path, program=("-m", "tests.lib.dying_supervisor"), environment=environment)
    with under_test:
        yield under_test
    assert under_test.leftovers() == []


def state_of(platform: PlatformUnderTest) -> str | None:
    instance = platform.request("state")["instances"].get("fw-1")
    return instance["state"] if instance else None


def left_of_instance(platform: PlatformUnderTest) -> list[str]:
    """Leftovers of the instance while the platform itself runs."""
    return [line for line in platform.leftovers() if line.startswith(("shm", "cgroup", "mount"))]


def killed_in(platform: PlatformUnderTest, verb: str, plan: dict[str, Any], n: int) -> bool:
    """Carry out a verb with a death at point n; check what is there afterwards. False: there is no such point."""
    preparation, before, wanted = VERBS[verb]
    if preparation:
        platform.execute(preparation, "fw-1", plan=plan)
    trigger = platform.folder / "kill-at"
    trigger.write_text(str(n))
    name = f"{verb}-{n}"
    platform.request("execute", operation=name, verb=verb, instance="fw-1", plan=plan, force=True)
    operation = platform.wait_operation(name)
    killed = not trigger.exists()
    trigger.unlink(missing_ok=True)
    assert operation["state"] in ("succeeded", "rolled-back"), operation
    state = platform.wait_for(lambda: (state_of(platform) == (wanted if operation["state"] == "succeeded" else before)) and "ok", f"{operation['state']}, but {state_of(platform)}")  # fmt: skip
    assert state == "ok"
    if state_of(platform) is not None:
        instance = platform.instance("fw-1")
        assert (instance["health"], instance["problems"]) == ("ok", [])
        assert platform.request("snapshot", instance="fw-1")["accounting"]["balanced"]
        platform.execute("terminate", "fw-1", force=True)
    assert left_of_instance(platform) == []
    return killed


def plan_for(platform: PlatformUnderTest, workers: int) -> dict[str, Any]:
    root = platform.package("demo", {"one/one.c": sources.FORWARD_C})
    ports = [plans.gen_port("lan", 1000), plans.gen_port("wan")]
    plan = plans.chain("fw-1", root, [plans.component("one", root, "c")], ports)
    plan["worker"]["cores"] = [None] * workers
    return plan


@pytest.mark.parametrize(("verb", "workers"), [*((verb, 1) for verb in VERBS), ("deploy", 2), ("restart", 2)])
def test_a_supervisor_killed_within_a_verb(platform: PlatformUnderTest, verb: str, workers: int) -> None:
    plan = plan_for(platform, workers)
    n = list(VERBS).index(verb)  # other points for other verbs
    while killed_in(platform, verb, plan, n):
        n += STRIDE


@pytest.mark.chaos
@pytest.mark.deadline(3600)
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("verb", VERBS)
def test_a_supervisor_killed_at_every_point_of_a_verb(platform: PlatformUnderTest, verb: str, workers: int) -> None:
    plan = plan_for(platform, workers)
    n = 0
    while killed_in(platform, verb, plan, n):
        n += 1
    assert n > 20


# ---- what ports change on the host -------------------------------------------------------------------


def as_it_was(host: Host, interface: str) -> bool:
    """Whether IPv6 is on and nothing filters there."""
    with host.entered():
        made = foresee_shield(socket.if_nametoindex(interface))
    off = host.run("cat", f"/proc/sys/net/ipv6/conf/{interface}/disable_ipv6").stdout.strip()
    return (off, made) == ("0", "qdisc")


@pytest.mark.root
@pytest.mark.skipif(bool(unavailable()), reason=str(unavailable()))
@pytest.mark.parametrize("effect", ["change", "raise_shield"])
@pytest.mark.parametrize("dead", ["supervisor", "keeper"])
def test_an_interface_is_put_back_after_a_death_while_it_was_opened(tmp_path: Path, effect: str, dead: str) -> None:
    """A supervisor that takes over opens it anew, one that finds no keeper sweeps; it is the host's again in the end."""
    trigger = tmp_path / "kill-at"
    environment = {
        "COVEN_TEST_KILL_AT": str(trigger),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")])),
    }
    with Network() as network:
        host, peer = network.host("appliance"), network.host("peer")
        for name in ("lan0", "wan0"):
            network.veth(host, name, peer, name)
        assert as_it_was(host, "lan0")
        program = ("-m", "tests.lib.dying_supervisor")
        with PlatformUnderTest(tmp_path, host=host, program=program, environment=environment) as platform:
            ports = [plans.afpacket_port("lan", "lan0"), plans.afpacket_port("wan", "wan0")]
            plan = plans.chain("fw-1", platform.package("demo", {"README": "no component"}), [], ports)
            trigger.write_text(f"{effect} {dead}")
            platform.request("execute", operation="deploy-1", verb="deploy", instance="fw-1", plan=plan)
            if dead == "keeper":
                assert platform.keeper is not None
                platform.keeper.wait(20)
                platform.kill_all()
                platform.start()
            else:
                assert platform.wait_operation("deploy-1")["state"] == "succeeded"
                assert not as_it_was(host, "lan0")
                platform.execute("terminate", "fw-1", force=True)
            assert not trigger.exists()
            assert as_it_was(host, "lan0")
            assert as_it_was(host, "wan0")
        assert platform.leftovers() == []


@pytest.mark.parametrize("before", [None, b"", b"\xd4\xc3\xb2\xa1" + bytes(100)], ids=["missing", "empty", "capture"])
@pytest.mark.parametrize("dead", ["supervisor", "keeper"])
def test_a_file_is_put_back_after_a_death_while_it_was_opened(tmp_path: Path, before: bytes | None, dead: str) -> None:
    """A supervisor that takes over begins it, one that finds no keeper sweeps."""
    trigger, out = tmp_path / "kill-at", tmp_path / "out.pcap"
    environment = {
        "COVEN_TEST_KILL_AT": str(trigger),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")])),
    }
    if before is not None:
        out.write_bytes(before)
    with PlatformUnderTest(
        tmp_path, program=("-m", "tests.lib.dying_supervisor"), environment=environment
    ) as platform:
        ports = [plans.gen_port("lan", 0), plans.pcap_port("wan", target=out)]
        plan = plans.chain("fw-1", platform.package("demo", {"README": "no component"}), [], ports)
        trigger.write_text(f"open_output {dead}")
        platform.request("execute", operation="deploy-1", verb="deploy", instance="fw-1", plan=plan)
        if dead == "keeper":
            assert platform.keeper is not None
            platform.keeper.wait(20)
            platform.kill_all()
            platform.start()
            assert (out.read_bytes() if out.exists() else None) == before
        else:
            assert platform.wait_operation("deploy-1")["state"] == "succeeded"
            assert out.stat().st_size == 24
        assert not trigger.exists()
    assert platform.leftovers() == []
