"""What hangs is found, ended and started again; what stands still for want of a core, or holds packets, is left alone."""

from __future__ import annotations

import base64
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lib import plans
from tests.lib.parts import capture, frame
from tests.lib.platform import BIN, Client, PlatformUnderTest
from tests.platform import components as sources

pytestmark = pytest.mark.skipif(not (BIN / "coven-worker").exists(), reason="the programs are not built")
HANG_MS = 300
N = 300

# Frames whose payload begins with 666 kill, or hang, or are what is counted; others pass.
C = """
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>
#include <coven/component.h>
static void process_pkt(struct coven_component *self, struct coven_packet *pkt, void *fs)
{
    (void)self; (void)fs;
    if (pkt->meta->length > 18 && pkt->data[16] == 2 && pkt->data[17] == 154) {
        %s
    }
}
COVEN_COMPONENT(.process_pkt = process_pkt);
"""
PY = """
import ctypes, os, time
from coven.component import Component

class Magic(Component):
    def process_packet(self, packet):
        if bytes(packet.data[16:18]) == b"\\x02\\x9a":
            %s
"""
HANGS = {"c": C % "for (volatile int forever = 1; forever;);", "python": PY % "time.sleep(10**6)"}


@pytest.fixture
def platform(tmp_path: Path) -> Iterator[PlatformUnderTest]:
    under_test = PlatformUnderTest(tmp_path)
    with under_test:
        yield under_test
    assert under_test.leftovers() == []


def deploy(platform: PlatformUnderTest, part: dict[str, Any], frames: list[bytes] | None = None) -> Client:
    """A function of one component, fed by a file, or else by a generator that never ends; gives a client that hears events."""
    root = Path(part["source"]).parent
    lan = plans.gen_port("lan", 2**40, rate=2000)
    if frames is not None:
        lan = plans.pcap_port("lan", capture(platform.folder / "in.pcap", frames))
        (platform.folder / "in.pcap").chmod(0o644)
    client = platform.connect()
    client.request("subscribe")
    platform.deploy(plans.chain("fw-1", root, [{**part, "hang_ms": HANG_MS}], [lan, plans.gen_port("wan")]))
    return client


def counters(platform: PlatformUnderTest) -> dict[str, Any]:
    found = dict(platform.request("snapshot", instance="fw-1"))
    assert found["accounting"]["balanced"]
    return found


def drops(platform: PlatformUnderTest) -> dict[str, int]:
    return {row["reason"]: row["packets"] for row in counters(platform)["drops"]}


def wait_tx(platform: PlatformUnderTest, more_than: int) -> None:
    platform.wait_for(lambda: counters(platform)["accounting"]["tx"] > more_than, f"not more than {more_than} are sent")


@pytest.mark.parametrize("on_failure", ["drop", "bypass", "stop"])
def test_a_stopped_component_is_replaced(on_failure: str, platform: PlatformUnderTest) -> None:
    root = platform.package("demo", {"gate/gate.c": sources.FORWARD_C})
    client = deploy(platform, plans.component("gate", root, "c", on_failure=on_failure))
    wait_tx(platform, 10)
    pid = platform.replica("fw-1", "gate")["pid"]
    os.kill(pid, signal.SIGSTOP)
    told = client.wait_event(lambda e: e["type"] == "component-hung")
    assert (told["part"], told["pid"], told["on_failure"]) == ("component gate", pid, on_failure)
    died = client.wait_event(lambda e: e["type"] == "component-died")
    assert died["exit"] == f"hung: moved nothing for {HANG_MS} ms with packets waiting"
    platform.wait_ready("fw-1", "gate", other_than=pid)
    wait_tx(platform, counters(platform)["accounting"]["tx"] + 100)
    assert platform.instance("fw-1")["health"] == "ok"
    client.close()
    supervisor = platform.supervisor_pid
    assert platform.replica("fw-1", "gate")["hangs"] == 1
    platform.kill(supervisor)
    platform.wait_supervisor(other_than=supervisor)
    assert platform.replica("fw-1", "gate")["hangs"] == 1


def test_an_idle_component_that_is_stopped_is_nobodys_business(platform: PlatformUnderTest) -> None:
    root = platform.package("demo", {"gate/gate.c": sources.FORWARD_C})
    client = deploy(platform, plans.component("gate", root, "c"), [frame(1)])
    wait_tx(platform, 0)
    pid = platform.replica("fw-1", "gate")["pid"]
    os.kill(pid, signal.SIGSTOP)
    sleeps = counters(platform)["worker"]["sleeps"]
    platform.wait_for(lambda: counters(platform)["worker"]["sleeps"] > sleeps + 30, "the worker does not go round")
    assert platform.replica("fw-1", "gate")["pid"] == pid
    assert not [e for e in client.events if e["type"] == "component-hung"]
    os.kill(pid, signal.SIGCONT)
    client.close()


def test_a_fused_component_that_does_not_return(platform: PlatformUnderTest) -> None:
    root = platform.package("demo", {"magic/magic.c": HANGS["c"]})
    part = plans.component("magic", root, "c", isolation="fused", isolation_asked="fused")
    client = deploy(platform, part, [frame(i) for i in (1, 666, 2, 3)])
    died = client.wait_event(lambda e: e["type"] == "worker-died")
    assert died["component"] == "magic"
    assert died["exit"] == "hung: a fused component did not return"
    platform.wait_worker("fw-1", other_than=died["pid"])
    assert platform.replica("fw-1", "magic")["hangs"] >= 1
    platform.wait_for(lambda: counters(platform)["accounting"]["rx"] == 4, "not all are read")
    assert drops(platform)["component-crash"] >= 1
    client.close()


def test_a_stopped_worker_is_replaced(platform: PlatformUnderTest) -> None:
    root = platform.package("demo", {"gate/gate.c": sources.FORWARD_C})
    deploy(platform, plans.component("gate", root, "c")).close()
    wait_tx(platform, 10)
    pid = platform.wait_worker("fw-1")["pid"]
    os.kill(pid, signal.SIGSTOP)
    platform.wait_worker("fw-1", other_than=pid)
    wait_tx(platform, counters(platform)["accounting"]["tx"] + 100)


# ---- poison packets --------------------------------------------------------------------------------

CRASHES = {"c": C % "abort();", "python": PY % "os.abort()"}
POISON = frame(666)


def hundred() -> list[bytes]:
    """A hundred times the packet that kills, among others of which no two are alike."""
    return [one for i in range(100) for one in (frame(1000 + 2 * i), POISON, frame(1001 + 2 * i))]


@pytest.mark.parametrize("language", ["c", "python"])
@pytest.mark.parametrize("isolation", ["copy", "shared", "fused"])
@pytest.mark.parametrize("how", ["crash", "hang"])
def test_a_poison_packet_kills_twice(how: str, isolation: str, language: str, platform: PlatformUnderTest) -> None:
    if isolation == "fused" and language == "python":
        pytest.skip("Python cannot be fused")
    source = (CRASHES if how == "crash" else HANGS)[language]
    entry = {"c": "magic/magic.c", "python": "magic/magic.py"}[language]
    root = platform.package("demo", {entry: source})
    more = {"isolation": isolation, "isolation_asked": isolation, "on_failure": "stop", "ring_size": 64, "copy_buffers": 64}
    client = deploy(platform, plans.component("magic", root, language, **more), hundred())
    told = client.wait_event(lambda e: e["type"] == "poison-packet")
    assert (told["part"], told["bytes"]) == ("component magic", len(POISON))
    saved = Path(told["capture"])
    assert saved.read_bytes()[40:] == POISON
    assert saved.stat().st_mode & 0o777 == 0o640
    platform.wait_for(
        lambda: (counters(platform)["accounting"]["rx"], counters(platform)["accounting"]["held"]) == (N, 0),
        "not all went through",
    )
    found = drops(platform)
    (row,) = platform.request("poison", instance="fw-1", component="magic")["packets"]
    assert row["deaths"] == 2
    assert row["dropped"] == found["poison-packet"] > 0
    assert counters(platform)["accounting"]["tx"] == N - sum(found.values())
    assert platform.instance("fw-1")["health"] == "ok"
    assert not [e for e in client.events if e["type"] in ("component-parked", "worker-parked")]
    assert base64.b64decode(row["pcap"]) == saved.read_bytes()
    assert platform.request("poison", instance="fw-1", component="magic", clear=True)["packets"] == []
    assert not saved.exists()
    client.close()
