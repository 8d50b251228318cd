"""Ports of the tool afxdp in a whole platform: supervisors and workers die, everything is put back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from coven.network import xdp
from tests.lib import plans
from tests.lib.net import Host, Network, unavailable
from tests.lib.platform import BIN, PlatformUnderTest
from tests.platform import components as sources

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(not (BIN / "coven-worker").exists(), reason="the programs are not built"),
    pytest.mark.skipif(bool(unavailable() or xdp.unavailable()), reason=str(unavailable() or xdp.unavailable())),
]


def program_of(host: Host, interface: str) -> int | None:
    link = json.loads(host.ip("-j", "link", "show", interface).stdout)[0]
    return link["xdp"]["prog"]["id"] if link.get("xdp") else None


def ipv6_is_off(host: Host, interface: str) -> bool:
    return host.run("cat", f"/proc/sys/net/ipv6/conf/{interface}/disable_ipv6").stdout.strip() == "1"


@pytest.fixture
def hosts() -> Iterator[tuple[Host, Host, Host]]:
    with Network() as network:
        box, client, server = network.host("box"), network.host("client"), network.host("server")
        for host, name, address in ((client, "lan", "10.7.0.1/24"), (server, "wan", "10.7.0.2/24")):
            network.veth(host, "eth0", box, name)
            host.address("eth0", address)
        yield box, client, server


def ping(client: Host) -> None:
    client.run("ping", "-c", "1", "-w", "20", "-i", "0.1", "10.7.0.2")


def deploy(platform: PlatformUnderTest) -> None:
    root = platform.package("demo", {"one/one.c": sources.FORWARD_C})
    ports = [plans.afxdp_port("lan", "lan"), plans.afxdp_port("wan", "wan")]
    parts = [plans.component("one", root, "c")]
    platform.deploy(plans.chain("fw-1", root, parts, ports, back=True))


def test_supervisor_and_worker_die_under_traffic(tmp_path: Path, hosts: tuple[Host, Host, Host]) -> None:
    box, client, _ = hosts
    with PlatformUnderTest(tmp_path, host=box) as platform:
        deploy(platform)
        ping(client)
        instance = platform.instance("fw-1")
        assert [port["tool"] for port in instance["ports"]] == ["afxdp", "afxdp"]
        assert "AF_XDP with 1 queue, copy mode" in instance["ports"][0]["note"]
        first, worker = program_of(box, "lan"), platform.wait_worker("fw-1")["pid"]
        supervisor = platform.supervisor_pid
        platform.kill(supervisor)
        ping(client)
        platform.wait_supervisor(other_than=supervisor)
        assert platform.wait_worker("fw-1")["pid"] == worker
        platform.kill(worker)
        platform.wait_worker("fw-1", other_than=worker)
        ping(client)
        assert program_of(box, "lan") == first is not None, "the port was opened anew"
        platform.execute("restart", "fw-1")
        ping(client)
        assert platform.instance("fw-1")["health"] == "ok"
        assert platform.request("snapshot", instance="fw-1")["accounting"]["balanced"]
        platform.execute("terminate", "fw-1", force=True)
        assert (program_of(box, "lan"), ipv6_is_off(box, "lan")) == (None, False)
    assert platform.leftovers() == []


def test_all_is_put_back_when_everything_died(tmp_path: Path, hosts: tuple[Host, Host, Host]) -> None:
    box, client, _ = hosts
    with PlatformUnderTest(tmp_path, host=box) as platform:
        deploy(platform)
        ping(client)
        platform.kill_all()
        assert program_of(box, "lan") is None
        platform.start()
        assert not ipv6_is_off(box, "lan")
    assert platform.leftovers() == []


def test_auto_says_why(tmp_path: Path, hosts: tuple[Host, Host, Host]) -> None:
    box, client, _ = hosts
    with PlatformUnderTest(tmp_path, host=box) as platform:
        root = platform.package("demo", {"README": "no component"})
        ports = [plans.auto_port("lan", "lan"), plans.auto_port("wan", "wan")]
        platform.deploy(plans.chain("fw-1", root, [], ports, back=True))
        ping(client)
        port = platform.instance("fw-1")["ports"][0]
        assert port["tool"] == "afpacket"
        assert "auto: afpacket, because lan is virtual (veth)" in port["note"]
        box.ip("link", "set", "lan", "down")
        platform.wait_for(lambda: platform.instance("fw-1")["health"] != "ok", "the port is up")
        platform.execute("terminate", "fw-1", force=True)
    assert platform.leftovers() == []
