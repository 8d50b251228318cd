"""The course of a demo: which form, what is cleaned up whatever happens, which status."""

from __future__ import annotations

import argparse
import os
import signal
import tempfile
from pathlib import Path
from types import FrameType

from coven.demo import files, hosts, live
from coven.demo.report import Report
from coven.errors import CovenError

TITLE = "COVEN demo: l7-firewall, a Python analyzer and a C filter, {where}"


def _interrupt(number: int, _: FrameType | None) -> None:
    raise KeyboardInterrupt(signal.Signals(number).name)


def run(args: argparse.Namespace) -> int:
    """Run the form that was asked for; gives the exit status."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    report = Report(as_json=bool(getattr(args, "json", False)))
    error: str | None = None
    try:
        if args.pcap:
            _on_files(report, *args.pcap)
        elif os.geteuid() != 0:
            raise CovenError(
                "platform.no-privilege",
                "network namespaces need root",
                hint="sudo coven demo; or, on files and without root: coven demo --pcap IN OUT",
            )
        elif args.stop:
            kept = [record for record in hosts.records() if record.kept]
            for record in kept:
                live.end(report, record.tag)
            still = [record.tag for record in hosts.records() if record.kept]
            report.claim("no demo is left running", ", ".join(still) or "none", holds=not still)
        else:
            _between_hosts(report, keep=args.keep)
    except CovenError as failure:
        error = str(failure)
    except KeyboardInterrupt as interrupt:
        error = f"interrupted {interrupt}".strip()
    report.finish(error)
    return 0 if report.holds and error is None else 1


def _on_files(report: Report, source: Path, target: Path) -> None:
    """Run the form without root, in a folder that goes away."""
    report.title(TITLE.format(where="on capture files"))
    with tempfile.TemporaryDirectory(prefix="coven-demo-") as folder:
        Path(folder).chmod(0o755)  # packages are unpacked below it and read by the components' own users
        files.run(report, Path(folder), source, target)


def _between_hosts(report: Report, *, keep: bool) -> None:
    """Run the form between two hosts. Only a demo that came to its end is kept."""
    report.title(TITLE.format(where="between two hosts in network namespaces"))
    for tag in hosts.remove_leftovers():
        report.line(f"removed what the killed demo {tag} had left behind")
    record = hosts.new_record()
    done = False
    try:
        live.run(report, record, keep=keep)
        done = True
    finally:
        if not (keep and done):
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C must not stop the cleaning up
            live.end(report, record.tag)
