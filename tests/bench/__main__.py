"""`python -m tests.bench`: measure everything, show it, write docs/benchmarks.md and build/bench.json."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from pathlib import Path
from typing import Any

from tests.bench import appliance, hop, memory, report, wire
from tests.bench.measure import ROOT
from tests.lib.net import unavailable

PARTS = ("hop", "memory", "wire", "appliance")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--repeats", type=int, default=5, help="rounds of each measurement (default 5)")
    parser.add_argument("--part", action="append", choices=PARTS, help="measure only this part; may be repeated")
    parser.add_argument("--only", default="", metavar="TEXT", help="only chains whose name contains this text")
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "bench.json", help="where all figures go")
    parser.add_argument("--keep-page", action="store_true", help="do not write docs/benchmarks.md")
    return parser.parse_args()


def _note(text: str) -> None:
    print(f"  {text}", flush=True)


def _measure(parts: list[str], repeats: int, only: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if "hop" in parts:
        print("hop between two cores", flush=True)
        found["hop"] = hop.run()
        _note(str(found["hop"]))
    if "memory" in parts:
        print("memory to memory", flush=True)
        found["memory"] = memory.run(repeats, _note, only)
    reason = unavailable() if {"wire", "appliance"} & set(parts) else None
    if reason:
        print(f"not measured: veth to veth, appliance: {reason}", flush=True)
        return found
    if "wire" in parts:
        print("veth to veth", flush=True)
        found["wire"] = wire.run(repeats, _note, only)
    if "appliance" in parts:
        print("appliance", flush=True)
        found["appliance"] = appliance.run(repeats, _note)
    return found


def main() -> int:
    """Measure and write."""
    options = _arguments()
    parts = options.part or list(PARTS)
    results: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "command": shlex.join(["python", "-m", "tests.bench", *sys.argv[1:]]),
        "commit": report.commit(),
        "machine": report.machine(),
        "repeats": options.repeats,
    }
    begin = time.monotonic()
    results |= _measure(parts, options.repeats, options.only)
    results["seconds"] = time.monotonic() - begin
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(f"\n{report.tables(results)}\nin {results['seconds']:.0f} s; all figures: {options.output}")
    if set(parts) <= set(results) and set(parts) == set(PARTS) and not options.only and not options.keep_page:
        report.write_page(results)
        print("written into docs/benchmarks.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
