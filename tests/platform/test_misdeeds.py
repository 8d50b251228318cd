"""What a component did that it should not have done, as the operator reads it: `coven status` and REST, by name."""

from __future__ import annotations

import contextlib
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from coven import package
from tests.lib.hostile import HEAD_C
from tests.lib.parts import capture, frame
from tests.lib.platform import BIN, PlatformUnderTest
from tests.lib.rest import Rest

pytestmark = pytest.mark.skipif(not (BIN / "coven-worker").exists(), reason="the programs are not built")

VNF = """
coven: 1
name: misdeeds
version: "1.0.0"
provider: tests
summary: does what it should not
ports: {lan: {}, wan: {}}
components: {bad: {source: bad, hang_ms: 300, on_failure: stop}, good: {source: good}}
paths: {through: {hops: [lan, bad, good, wan]}}
"""
COMPONENT = "name: %s\nsummary: a part\nframework: c\nentry: main.c\n"
# At its start it asks for what it may not; the first byte of a payload says what it does with the packet.
BAD = """
static void misbehave(struct coven_component *self, struct coven_packet *pkt, void *fs)
{
    (void)self; (void)fs;
    switch (pkt->data[17]) {
    case 1: /* claims to be longer than any buffer, behind the framework's back */
        pkt->meta->length = 65000;
        break;
    case 2:
        abort();
    case 3:
        for (volatile int forever = 1; forever;)
            ;
    default:
        break;
    }
}
static int init(struct coven_component *self)
{
    (void)self;
    for (int i = 0; i < 2; i++)
        socket(AF_INET, SOCK_DGRAM, 0);
    return unshare(CLONE_NEWUSER) == 0;
}
COVEN_COMPONENT(.process_pkt = misbehave, .allocate_new_fs = allocate, .init = init);
"""
GOOD = "COVEN_COMPONENT(.process_pkt = process, .allocate_new_fs = allocate);\n"
FRAMES = [1, 0, *[2, 0] * 8, *[3, 0] * 30, 1]
APART_US = 20_000  # of the frames, so that what dies with the component is few


def built(work: Path) -> Path:
    """Make the package."""
    folder = work / "source"
    for name, source in (("bad", BAD), ("good", GOOD)):
        (folder / name).mkdir(parents=True)
        (folder / name / "component.yaml").write_text(COMPONENT % name)
        head = HEAD_C.replace("#include <fcntl.h>", "#include <fcntl.h>\n#include <sched.h>")
        (folder / name / "main.c").write_text(head + source)
    (folder / "vnf.yaml").write_text(VNF)
    return package.build(folder, work)


def recorded(path: Path) -> Path:
    """Write the frames with their times."""
    capture(path, [])
    with path.open("ab") as file:
        for number, kind in enumerate(FRAMES):
            data = frame(kind)
            file.write(struct.pack("<IIII", 1, number * APART_US, len(data), len(data)) + data)
    return path


def answers(rest: Rest) -> bool:
    with contextlib.suppress(OSError):
        return bool(rest.get("/v1")["health"] == "ok")
    return False


def test_the_operator_is_told_by_name_what_a_component_did(tmp_path: Path) -> None:
    with PlatformUnderTest(tmp_path, agent=True, agent_arguments=("--listen", "none")) as platform:
        rest = Rest(platform.run_dir / "agent.sock")
        platform.wait_for(lambda: answers(rest), "no agent answers")
        answer = rest.call("POST", "/v1/packages", raw=built(tmp_path).read_bytes(), kind="application/zip")
        lan = {"tool": "pcap", "in": str(recorded(tmp_path / "in.pcap")), "paced": True}
        body = {"package": answer.json["id"], "id": "fw", "ports": {"lan": lan, "wan": {"tool": "gen", "packets": 0}}}
        assert rest.finish(rest.call("POST", "/v1/instances", body))["state"] == "succeeded"

        def told() -> dict[str, Any] | None:
            found = rest.get("/v1/instances/fw")
            bad = found["components"][0]
            starts = bad["replicas"][0]["restarts"] + 1
            done = (bad["poison"]["packets"], bad["violation_kinds"]) == (2, {"bounds": 2})  # the last packet is through
            done &= bad["replicas"][0]["refused_calls"] == {"socket": 2 * starts, "unshare": starts}
            return dict(found) if done and found["health"] == "ok" else None

        bad, good = platform.wait_for(told, "not all is told")["components"]
        (replica,) = bad["replicas"]
        assert replica["hangs"] >= 1
        assert (good["violation_kinds"], good["poison"]) == ({}, {"packets": 0, "dropped": 0})
        assert (good["replicas"][0]["refused_calls"], good["replicas"][0]["hangs"]) == ({}, 0)
        command = [sys.executable, "-m", "coven", "--socket", str(platform.run_dir / "agent.sock"), "status", "fw"]
        shown = subprocess.run(command, capture_output=True, text=True, check=True, env=dict(os.environ)).stdout
        lines = [line for line in shown.split("\nWORKER")[0].splitlines() if line.startswith("component ")]
        calls, dropped = replica["refused_calls"], bad["poison"]["dropped"]
        assert lines == [
            f"component bad asked the kernel for what it may not: socket {calls['socket']}, unshare {calls['unshare']}",
            "component bad broke the rules of its ring: bounds 2",
            f"component bad hung and was ended: {replica['hangs']} times".replace("1 times", "once"),
            f"component bad was killed twice by each of 2 packets, {dropped} like them dropped since: "
            "'coven poison fw bad' shows them",
        ]
    assert platform.leftovers() == []
