"""Captures through the deployed function over pcap ports; needs no root."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from coven.demo import login
from coven.demo.capture import Packet, read
from coven.demo.platform import Platform
from tests.e2e.appliance import assert_accounting, deploy, drops_by_reason, terminate, wait_for
from tests.e2e.captures import SKYPE, WEB, needs_data, on_another_port, without_one_bit

pytestmark = needs_data


def write(path: Path, packets: list[Packet]) -> None:
    """Write packets with their lengths on the wire."""
    with path.open("wb") as file:
        file.write(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1))
        for number, packet in enumerate(packets):
            file.write(struct.pack("<IIII", number, 0, len(packet.data), packet.length) + packet.data)


def through(platform: Platform, package: str, source: Path, target: Path) -> tuple[list[Packet], dict[str, int]]:
    """Send a capture through the function; gives what came out and the drops by reason."""
    packets = len(list(read(source)))
    rest = platform.rest
    ports = {
        "lan": {"tool": "pcap", "in": str(source), "out": None},
        "wan": {"tool": "pcap", "in": None, "out": str(target)},
    }
    deploy(rest, package, "files", ports)
    try:

        def done() -> dict[str, object] | None:
            counters: dict[str, object] = rest.get("/v1/instances/files/counters")
            accounting = counters["accounting"]
            assert isinstance(accounting, dict)
            return counters if accounting["rx"] >= packets and not accounting["held"] else None

        counters = wait_for("the whole capture read and nothing held", done)
    finally:
        terminate(rest, "files")
    assert_accounting(counters)
    assert counters["accounting"]["rx"] == packets
    return list(read(target)), drops_by_reason(counters)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that the platform's own users can reach."""
    for place in (tmp_path, *tmp_path.parents[:2]):
        place.chmod(0o755)
    return tmp_path


def test_skype_exactly_its_log_in_packets_are_dropped(platform: Platform, package: str, folder: Path) -> None:
    """26 client and 9 server hellos go, 3249 packets stay, byte-identical and in order."""
    packets = list(read(SKYPE))
    log_ins = [packet for packet in packets if login.is_login(packet.data)]
    sizes = [len(found[2]) for packet in log_ins if (found := login.tcp_payload(packet.data))]
    assert (sizes.count(72), sizes.count(79), len(packets)) == (26, 9, 3284)
    out, drops = through(platform, package, SKYPE, folder / "out.pcap")
    assert drops == {"component-verdict": 35}
    assert len(out) == 3249
    assert out == [packet for packet in packets if not login.is_login(packet.data)]


@pytest.mark.parametrize("position", [0, 20, 55, 56, 57, 63, 71])
def test_one_bit_changed_and_all_are_forwarded(platform: Platform, package: str, folder: Path, position: int) -> None:
    """A bit of the fixed part or of the last 16 bytes; the last byte of the challenge as well as its first."""
    packets = without_one_bit(list(read(SKYPE)), position)
    write(folder / "in.pcap", packets)
    out, drops = through(platform, package, folder / "in.pcap", folder / "out.pcap")
    assert drops == {}
    assert out == packets


def test_on_another_port_all_are_forwarded(platform: Platform, package: str, folder: Path) -> None:
    """The same payloads from and to port 8443."""
    packets = on_another_port(list(read(SKYPE)), 8443)
    write(folder / "in.pcap", packets)
    out, drops = through(platform, package, folder / "in.pcap", folder / "out.pcap")
    assert drops == {}
    assert out == packets


@pytest.mark.parametrize("capture", WEB, ids=lambda path: path.stem.split("__")[-1])
def test_web_traffic_passes_untouched(platform: Platform, package: str, folder: Path, capture: Path) -> None:
    """Nothing dropped, also of captures that cut frames short; what each was on the wire is kept."""
    packets = list(read(capture))
    out, drops = through(platform, package, capture, folder / "out.pcap")
    assert drops == {}
    assert out == packets
