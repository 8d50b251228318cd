"""The demo between two hosts: traffic, log-ins, questions, and every packet accounted for."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import queue
import subprocess
import sys
import threading
import time
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from coven.cli.client import Client
from coven.demo import common, hosts, login
from coven.demo.common import INSTANCE
from coven.demo.hosts import ADDRESSES, Hosts, Record
from coven.demo.platform import Platform, running
from coven.demo.report import Report
from coven.errors import CovenError

PEER = [sys.executable, "-I", "-m", "coven.demo.peer"]
LARGE_BYTES, SMALL_BYTES, SMALL_TIMES, PARALLEL = 50_000_000, 20_000, 200, 20
DEADLINE = 10.0


class Wire:
    """Single frames on a host's interface: sent as they are, and all that arrive."""

    def __init__(self, child: subprocess.Popen[str]) -> None:
        """child: runs `peer wire` and is ready."""
        self._child = child
        self.arrived: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        threading.Thread(target=self._collect, daemon=True).start()

    def _collect(self) -> None:
        if self._child.stdout:
            for line in self._child.stdout:
                self.arrived.put(bytes.fromhex(line))

    def send(self, frame: bytes) -> None:
        """Send one frame."""
        if self._child.stdin:
            self._child.stdin.write(frame.hex() + "\n")
            self._child.stdin.flush()

    def until(self, wanted: bytes) -> list[bytes]:
        """Give the frames that arrived up to the one that is wanted, which is the last."""
        frames: list[bytes] = []
        end = time.monotonic() + DEADLINE
        while wanted not in frames:
            try:
                frames.append(self.arrived.get(timeout=max(0.01, end - time.monotonic())))
            except queue.Empty:
                raise CovenError("platform.internal", f"a frame did not arrive within {DEADLINE:.0f} s") from None
        return frames


def fetch(pair: Hosts, url: str, times: int, parallel: int) -> dict[str, Any]:
    """Let the client fetch a file from the server; gives what it measured."""
    command = pair.command("client", *PEER, "fetch", url, str(times), str(parallel))
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    if done.returncode != 0:
        raise CovenError("platform.internal", f"the client ended with {done.returncode}: {done.stderr[-500:]}")
    measured: dict[str, Any] = json.loads(done.stdout)
    return measured


def web_traffic(report: Report, pair: Hosts, folder: Path) -> None:
    """Move files through the function and compare their digests with those of the files served."""
    web = folder / "web"
    web.mkdir()
    digests = {}
    for name, length in (("large", LARGE_BYTES), ("small", SMALL_BYTES)):
        data = os.urandom(length)
        (web / name).write_bytes(data)
        digests[name] = hashlib.sha256(data).hexdigest()
    with running(pair.command("server", *PEER, "serve", str(web), str(login.HTTP))):
        for family, address in zip(("IPv4", "IPv6"), ADDRESSES["server"], strict=True):
            host = f"[{address}]" if ":" in address else address
            for name, times, parallel in (("large", 1, 1), ("small", SMALL_TIMES, PARALLEL)):
                result = fetch(pair, f"http://{host}:{login.HTTP}/{name}", times, parallel)
                rate = result["bytes"] * 8 / result["seconds"] / 1e6
                report.claim(
                    f"HTTP over {family}: {times} x {result['bytes'] / times / 1e6:.2f} MB, "
                    f"{parallel} at a time, equal SHA-256",
                    f"{rate:.0f} Mbit/s, {times / result['seconds']:.0f} transfers/s, {len(result['failures'])} failed"
                    + (f" ({result['failures'][0]})" if result["failures"] else ""),
                    holds=result["digests"] == [digests[name]] and not result["failures"],
                )
                transfer = {"family": family, "file": name, "times": times, **result}
                report.facts.setdefault("transfers", []).append(transfer)


def replay(client: Wire, server: Wire, segments: list[login.Segment]) -> tuple[int, list[str]]:
    """Send a conversation from both ends; gives how many frames did not arrive and what differs from what should."""
    surprises = []
    missing = 0
    for sender, receiver, to_server in ((client, server, True), (server, client, False)):
        mine = [segment for segment in segments if segment.to_server == to_server]
        for segment in mine:
            sender.send(segment.frame)
        frames = [frame for frame in receiver.until(mine[-1].frame) if frame[6:12] == mine[-1].frame[6:12]]
        made = {segment.frame for segment in mine}
        seen = [frame for frame in frames if frame in made]
        missing += len(mine) - len(seen)
        wanted = [segment.frame for segment in mine if not segment.is_login]
        if seen != wanted:
            gone = [segment.what for segment in mine if segment.frame not in seen and not segment.is_login]
            passed = [segment.what for segment in mine if segment.frame in seen and segment.is_login]
            surprises.append(f"lost: {gone or 'none'}, passed: {passed or 'none'}")
    return missing, surprises


def log_ins(report: Report, rest: Client, pair: Hosts) -> int:
    """Replay made log-ins and look-alikes, then a log-in with the filter only counting; gives how many frames went."""
    ends = [
        login.End(bytes.fromhex(pair.mac(host).replace(":", "")), IPv4Address(ADDRESSES[host][0]) + 100, 40000)
        for host in ("client", "server")
    ]
    first = int.from_bytes(os.urandom(1))
    wires = [pair.command(host, *PEER, "wire", "eth0") for host in ("client", "server")]
    total = 0
    with running(wires[0], stdin=subprocess.PIPE) as a, running(wires[1], stdin=subprocess.PIPE) as b:
        client, server = Wire(a), Wire(b)
        for what, segments in login.conversations(ends[0], ends[1], first):
            expected = sum(segment.is_login for segment in segments)
            missing, surprises = replay(client, server, segments)
            total += missing
            report.claim(
                f"Skype {what}: both hellos go no further" if expected else f"look-alike, {what}: all passes",
                f"{missing} of {len(segments)} frames dropped" + (f"; {surprises}" if surprises else ""),
                holds=missing == expected and not surprises,
            )
        answer = common.request(rest, "filter", "set-mode", mode="count")
        report.note(f"request filter set-mode mode=count: {answer}")
        _, segments = next(login.conversations(replace(ends[0], port=41000), ends[1], first))
        missing, surprises = replay(client, server, [replace(segment, is_login=False) for segment in segments])
        report.claim(
            "asked only to count, the filter lets the same log-in pass",
            f"{missing} of {len(segments)} frames dropped" + (f"; {surprises}" if surprises else ""),
            holds=missing == 0 and not surprises,
        )
        answer = common.request(rest, "filter", "set-mode", mode="drop")
        report.note(f"request filter set-mode mode=drop: {answer}")
    return total


def compare_with_peers(report: Report, rest: Client, pair: Hosts, before: tuple[Any, Any]) -> None:
    """Compare COVEN's port counters with those of the interfaces at the other ends of the links."""
    end = time.monotonic() + DEADLINE
    while True:
        peers, counters = observe(rest, pair)
        told, seen = {}, {}
        for port, host in (("lan", "client"), ("wan", "server")):
            now, then = counters["ports"][port], before[1]["ports"][port]
            told[host] = (now["rx_pkts"] - then["rx_pkts"], now["tx_pkts"] - then["tx_pkts"])
            seen[host] = (peers[host]["tx"] - before[0][host]["tx"], peers[host]["rx"] - before[0][host]["rx"])
        if told == seen or time.monotonic() > end:
            break
        threading.Event().wait(0.05)
    for host in told:
        report.claim(
            f"the {host}'s interface counted the same packets as COVEN (sent, received)",
            f"{seen[host][0]}, {seen[host][1]} and {told[host][0]}, {told[host][1]}",
            holds=told[host] == seen[host] and min(seen[host]) > 0,
        )


def observe(rest: Client, pair: Hosts) -> tuple[dict[str, dict[str, int]], dict[str, Any]]:
    """Read both hosts' and COVEN's counters with nothing moving in between."""
    end = time.monotonic() + DEADLINE
    while True:
        before = {host: pair.counters(host) for host in ADDRESSES}
        counters: dict[str, Any] = rest.get(f"/v1/instances/{INSTANCE}/counters")
        if before == {host: pair.counters(host) for host in ADDRESSES} or time.monotonic() > end:
            return before, counters


def further(report: Report, platform: Platform, pair: Hosts) -> None:
    """Say what to type while a kept demo runs."""
    listener = next(iter(platform.rest.get("/v1")["agent"]["listeners"]))
    coven = f"coven --socket {platform.socket}"
    report.heading("Everything is still running. To look further:")
    for command in (
        f"{coven} status {INSTANCE}",
        f"{coven} list {INSTANCE}",
        f"{coven} check {INSTANCE}",
        f"{coven} request {INSTANCE} filter set-mode mode=count",
        f"curl --unix-socket {platform.socket} http://localhost/v1/instances/{INSTANCE}/counters",
        f"curl -H \"Authorization: Bearer $(cat {platform.folder}/state/token)\" {listener}/v1/instances",
        f"nsenter --net=/run/netns/{pair.namespace('client')} ping {ADDRESSES['server'][0]}",
        f"tail {platform.folder}/agent.log",
    ):
        report.line(f"  {command}")
    report.heading("To stop it:")
    report.line("  coven demo --stop")


def run(report: Report, record: Record, *, keep: bool) -> None:
    """Show everything on two hosts. What was started stands in the record's file, whatever happens."""
    pair = Hosts(record.tag)
    folder = Path(record.folder)
    with report.step("Make a client and a server, each in a network namespace, joined only by COVEN"):
        pair.create()
        for host, end in (("client", pair.lan), ("server", pair.wan)):
            report.note(f"{host}: {' and '.join(ADDRESSES[host])}; its link ends at the appliance in {end}")
    platform = Platform(folder)
    with report.step("Start the platform: coven agent"):
        platform.spawn()
        record = replace(record, platform=hosts.identity(platform.pid), socket=str(platform.socket), kept=keep)
        record.save()
        platform.wait()
        common.introduce(report, platform)
    common.deploy(report, platform.rest, {"lan": pair.lan, "wan": pair.wan})
    before = observe(platform.rest, pair)
    with report.step("Real HTTP traffic through it"):
        web_traffic(report, pair, folder)
    with report.step("Skype log-ins made here, and connections that only look like one"):
        missing = log_ins(report, platform.rest, pair)
    with report.step("What the components say"):
        common.questions(report, platform.rest)
    with report.step("What COVEN counted, beside what the hosts counted"):
        compare_with_peers(report, platform.rest, pair, before)
        dropped = common.dropped_by_function(common.counters(report, platform.rest))
        report.claim(
            "what did not arrive is what the function says it dropped",
            f"{missing} frames and {dropped}",
            holds=missing == dropped > 0,
        )
    if keep:
        further(report, platform, pair)


def end(report: Report, tag: str) -> None:
    """Remove everything of a demo and claim that nothing is left."""
    with report.step("Turn everything off and clean up"):
        record = next(record for record in hosts.records() if record.tag == tag)
        if record.socket and hosts.is_running(record.platform):
            with contextlib.suppress(CovenError):  # what does not end by itself is ended below
                Platform(Path(record.folder)).stop()
        hosts.remove(record)
        left = Hosts(tag).left() + ([record.folder] if Path(record.folder).exists() else [])
        report.claim(
            "nothing is left: processes, namespaces, interfaces, files",
            ", ".join(left) or "none",
            holds=not left and not hosts.is_running(record.platform),
        )
