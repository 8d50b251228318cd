"""A packet on a wire that kills: seen, fetched and forgotten over REST and on the command line."""

from __future__ import annotations

import base64
import contextlib
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from coven import package
from tests.lib.net import Host, Network, unavailable
from tests.lib.platform import BIN, Client, PlatformUnderTest
from tests.lib.rest import Rest
from tests.platform.test_accounting import join

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(bool(unavailable()), reason=str(unavailable())),
    pytest.mark.skipif(not (BIN / "coven-worker").exists(), reason="the programs are not built"),
]
VNF = """
coven: 1
name: frail
version: "1.0.0"
provider: tests
summary: dies of a word
ports: {lan: {}, wan: {}}
components: {part: {source: part, isolation: copy, on_failure: drop}}
paths: {through: {hops: [lan, part, wan]}}
"""
COMPONENT = "name: part\nsummary: a part\nframework: c\nentry: part.c\n"
SOURCE = """
#include <stdlib.h>
#include <string.h>
#include <coven/component.h>
static void process_pkt(struct coven_component *self, struct coven_packet *pkt, void *fs)
{
    (void)self; (void)fs;
    if (pkt->meta->length > 20 && memcmp(pkt->data + 14, "MAGIC", 5) == 0)
        abort();
}
COVEN_COMPONENT(.process_pkt = process_pkt);
"""
HEAD = bytes((2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x88, 0xB5))
MAGIC, OTHER = ((HEAD + word).ljust(64, b"\0") for word in (b"MAGIC", b"other"))
POISON = "/v1/instances/fw/components/part/poison"


class Stage:
    """The function between two hosts, its agent, and a connection that hears events."""

    def __init__(self, platform: PlatformUnderTest, client: Host, events: Client) -> None:
        self.platform, self.events = platform, events
        self.rest = Rest(platform.run_dir / "agent.sock")
        with client.entered():
            self.wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self.wire.bind(("eth0", 0))

    def counters(self) -> dict[str, Any]:
        found: dict[str, Any] = self.rest.get("/v1/instances/fw/counters")
        assert found["accounting"]["balanced"]
        return found

    def dropped(self, reason: str) -> int:
        return sum(row["packets"] for row in self.counters()["drops"] if row["reason"] == reason)

    def send_and_see_it_die(self) -> None:
        """Send the packet; give when its component died and is back."""
        pid = self.platform.replica("fw", "part")["pid"]
        self.wire.send(MAGIC)
        died = self.events.wait_event(lambda e: e["type"] == "component-died" and e["pid"] == pid)
        assert "SIGABRT" in died["exit"]
        self.platform.wait_ready("fw", "part", other_than=pid)

    def coven(self, *words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "coven", "--socket", str(self.platform.run_dir / "agent.sock"), *words]
        return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    with Network() as network:
        box, client, server = network.host("box"), network.host("client"), network.host("server")
        join(network, client, box, "lan")
        join(network, server, box, "wan")
        with PlatformUnderTest(tmp_path, agent=True, agent_arguments=("--listen", "none"), host=box) as platform:
            platform.wait_for(lambda: (platform.run_dir / "agent.sock").exists(), "no agent")
            with contextlib.closing(platform.connect()) as events:
                events.request("subscribe")
                made = Stage(platform, client, events)
                deploy(made.rest, tmp_path)
                yield made
                made.wire.close()
        assert platform.leftovers() == []


def deploy(rest: Rest, folder: Path) -> None:
    source = folder / "source"
    (source / "part").mkdir(parents=True)
    (source / "vnf.yaml").write_text(VNF)
    (source / "part" / "component.yaml").write_text(COMPONENT)
    (source / "part" / "part.c").write_text(SOURCE)
    archive = package.build(source, folder)
    answer = rest.call("POST", "/v1/packages", raw=archive.read_bytes(), kind="application/zip")
    body = {"package": answer.json["id"], "id": "fw", "ports": {"lan": "lan", "wan": "wan"}}
    operation = rest.finish(rest.call("POST", "/v1/instances", body))
    assert operation["state"] == "succeeded", operation["error"]


def test_from_its_death_to_its_pardon(stage: Stage, tmp_path: Path) -> None:
    rest, platform = stage.rest, stage.platform
    assert rest.get(POISON) == {"packets": []}
    assert "no packet is known to kill part" in stage.coven("poison", "fw", "part").stdout
    assert rest.call("GET", POISON.replace("part", "none")).code == "component.not-found"
    assert rest.call("DELETE", POISON.replace("fw", "none")).code == "instance.not-found"

    stage.send_and_see_it_die()
    assert rest.get(POISON) == {"packets": []}  # once may be chance
    stage.send_and_see_it_die()
    told = stage.events.wait_event(lambda e: e["type"] == "poison-packet")
    (row,) = rest.get(POISON)["packets"]
    assert (row["fingerprint"], row["bytes"], row["deaths"], row["dropped"]) == (told["fingerprint"], 64, 2, 0)
    assert base64.b64decode(row["pcap"])[40:] == MAGIC == Path(row["capture"]).read_bytes()[40:]
    pid = platform.replica("fw", "part")["pid"]
    sent = stage.counters()["accounting"]["tx"]
    for frame in (MAGIC, OTHER, MAGIC):
        stage.wire.send(frame)
    platform.wait_for(lambda: stage.dropped("poison-packet") == 2, "it is not dropped")
    platform.wait_for(lambda: stage.counters()["accounting"]["tx"] == sent + 1, "the other does not pass")
    assert platform.replica("fw", "part")["pid"] == pid
    assert (rest.get(POISON)["packets"][0]["dropped"], stage.dropped("component-crash")) == (2, 2)

    listed = stage.coven("poison", "fw", "part")
    assert listed.stdout == f"{row['fingerprint']}  64 bytes  2 deaths  2 dropped\n", listed.stderr
    refused = stage.coven("poison", "fw", "part", "--save", str(tmp_path / "none"), "--clear")
    assert refused.returncode == 1 and "cannot write" in refused.stderr
    (tmp_path / "mine").mkdir()
    done = stage.coven("poison", "fw", "part", "--save", str(tmp_path / "mine"), "--json")
    assert json.loads(done.stdout) == rest.get(POISON), done.stderr
    assert [path.read_bytes()[40:] for path in (tmp_path / "mine").glob(f"part-{row['fingerprint']}.pcap")] == [MAGIC]

    cleared = stage.coven("poison", "fw", "part", "--clear")
    assert cleared.stdout.endswith("2 dropped  forgotten\n"), cleared.stderr
    assert rest.get(POISON) == {"packets": []} and not Path(row["capture"]).exists()
    stage.send_and_see_it_die()  # it comes to the component again
    assert rest.get(POISON) == {"packets": []}
    assert rest.call("DELETE", POISON).json == {"packets": []}


def test_a_stopped_function_forgets_too(stage: Stage) -> None:
    """The list lies in memory that outlasts worker and components."""
    stage.send_and_see_it_die()
    stage.send_and_see_it_die()
    stage.events.wait_event(lambda e: e["type"] == "poison-packet")
    assert stage.rest.finish(stage.rest.call("POST", "/v1/instances/fw/stop"))["state"] == "succeeded"
    assert len(stage.rest.get(POISON)["packets"]) == 1
    assert stage.rest.call("DELETE", POISON).json == {"packets": []}
    assert stage.rest.finish(stage.rest.call("POST", "/v1/instances/fw/start"))["state"] == "succeeded"
    stage.send_and_see_it_die()
