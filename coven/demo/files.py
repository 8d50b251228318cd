"""The demo on capture files: the same function, the same questions, no root and no network."""

from __future__ import annotations

import contextlib
from pathlib import Path

from coven.demo import common
from coven.demo.capture import Packet, read
from coven.demo.common import INSTANCE
from coven.demo.hosts import end_processes, identity, is_running
from coven.demo.login import is_login
from coven.demo.platform import Platform, follow, wait_until
from coven.demo.report import Report
from coven.errors import CovenError

READ_SECONDS = 120.0


def run(report: Report, folder: Path, source: Path, target: Path) -> None:
    """Send the packets of one file through the function into another one, and compare."""
    with report.step(f"Read {source.name} with the demo's own eyes"):
        packets = list(read(source))
        wanted = [packet for packet in packets if not is_login(packet.data)]
        log_ins = len(packets) - len(wanted)
        short = sum(len(packet.data) < packet.length for packet in packets)
        report.note(f"{len(packets)} packets, {log_ins} of them are hellos of a Skype log-in")
        if short:
            report.note(f"{short} were cut short by the capture; they are sent as they are, their length is kept")
    platform = Platform(folder, [source.absolute().parent, target.absolute().parent])
    with report.step("Start the platform: coven agent"):
        process = identity(platform.start())
        common.introduce(report, platform)
    try:
        ports = {
            "lan": {"tool": "pcap", "in": str(source.absolute()), "out": None},
            "wan": {"tool": "pcap", "in": None, "out": str(target.absolute())},
        }
        common.deploy(report, platform.rest, ports)
        with report.step("Packets go in at the port lan and come out at the port wan"):
            forward(report, platform, len(packets))
        with report.step("What the components say, and what COVEN counted"):
            common.questions(report, platform.rest)
            snapshot = common.counters(report, platform.rest)
        with report.step("Stop and terminate the function, compare the files"):
            for verb in ("stop", "terminate"):
                follow(platform.rest, platform.rest.post(f"/v1/instances/{INSTANCE}/{verb}"), report.note)
            compare(report, target, wanted, log_ins, common.dropped_by_function(snapshot))
    finally:
        with report.step("Turn everything off"):
            with contextlib.suppress(CovenError):  # what does not end by itself is ended below
                platform.stop()
            end_processes(process)
            report.claim("the platform is gone", f"process {process[0]} ended", holds=not is_running(process))


def forward(report: Report, platform: Platform, packets: int) -> None:
    """Wait until the whole file was read and nothing is inside any more."""

    def done() -> bool:
        total = platform.rest.get(f"/v1/instances/{INSTANCE}/counters")["accounting"]
        return bool(total["rx"] >= packets and total["held"] == 0)

    wait_until("the end of the file", done, READ_SECONDS)
    total = platform.rest.get(f"/v1/instances/{INSTANCE}/counters")["accounting"]
    report.claim("every packet of the file went in", f"{total['rx']} of {packets}", holds=total["rx"] == packets > 0)


def compare(report: Report, target: Path, wanted: list[Packet], log_ins: int, dropped: int) -> None:
    """Compare what came out with what should have."""
    out = list(read(target))
    same = sum(a == b for a, b in zip(out, wanted, strict=False))
    report.claim(
        "all other packets came out, byte-identical, in order, with their original lengths",
        f"{same} of {len(wanted)}, {len(out)} came out",
        holds=out == wanted,
    )
    report.claim("exactly the hellos of log-ins were dropped", f"{dropped} of {log_ins}", holds=dropped == log_ins)
