"""Components and capture files that tests of the data plane send packets through."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

from tests.lib.dataplane import ROOT, c_component

NULL = ROOT / "vnfc_examples" / "null" / "null.c"
COUNTER = ROOT / "vnfc_examples" / "counter" / "counter.c"
OBEDIENT = ROOT / "tests" / "packet" / "components" / "obedient.c"


def counter(isolation: str, name: str = "counter") -> dict[str, Any]:
    """The example that counts packets of each flow."""
    names = ("packets", "bytes", "flows_begun", "flows_ended", "without_flow", "period")
    metrics = [{"name": n, "type": "gauge" if n == "period" else "counter", "unit": "", "help": ""} for n in names]
    return c_component(name, COUNTER, isolation, state={"bytes": 24, "version": 1}, metrics=metrics,
                       operations=[{"name": "reset", "help": "", "arguments": []}])  # fmt: skip


def obedient(what: str, isolation: str = "fused", name: str = "obedient", **more: Any) -> dict[str, Any]:
    return c_component(name, OBEDIENT, isolation, options={"do": what, **more.pop("options", {})}, **more)


def capture(path: Path, frames: list[bytes]) -> Path:
    head = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 262144, 1)
    rows = (struct.pack("<IIII", i, 7 * i, len(f), len(f)) + f for i, f in enumerate(frames))
    path.write_bytes(head + b"".join(rows))
    return path


def frames_of(path: Path) -> list[tuple[int, int, bytes]]:
    """Seconds, microseconds and bytes of each record of a capture file."""
    raw, at, found = path.read_bytes(), 24, []
    while at < len(raw):
        seconds, micros, kept, _ = struct.unpack_from("<IIII", raw, at)
        found.append((seconds, micros, raw[at + 16 : at + 16 + kept]))
        at += 16 + kept
    return found


def frame(i: int, size: int = 60) -> bytes:
    return bytes((2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x88, 0xB5)) + struct.pack(">I", i) + bytes(size - 18)
