"""What was measured on, and the table that people see."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import coven
from coven.cli.show import line, table

ROOT = Path(coven.__file__).resolve().parents[1]


def _fields(path: str, separator: str) -> dict[str, str]:
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    return {key.strip(): value.strip().strip('"') for key, _, value in (row.partition(separator) for row in lines)}


def machine() -> dict[str, Any]:
    """Say what was measured on."""
    cpu = _fields("/proc/cpuinfo", ":")
    return {
        "cpu": cpu.get("model name", platform.machine()),
        "cores": os.cpu_count(),
        "virtual": "hypervisor" in cpu.get("flags", ""),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "kernel": platform.release(),
        "system": _fields("/etc/os-release", "=").get("PRETTY_NAME", ""),
        "python": platform.python_version(),
        "load": [round(value, 1) for value in os.getloadavg()],
    }


def commit() -> str:
    """Say which commit was measured, and whether files differ from it; the version where there is no repository."""

    def git(*arguments: str) -> str:
        try:
            done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            return ""
        return done.stdout.strip() if done.returncode == 0 else ""

    found = git("rev-parse", "--short=12", "HEAD")
    changed = git("status", "--porcelain", "--", "coven")
    return f"{found}{' with changes' if changed else ''}" if found else f"version {coven.__version__}"


def _number(value: float | None, scale: float = 1.0) -> str:
    if value is None:
        return ""
    scaled = value * scale
    return f"{scaled:.0f}" if scaled >= 1000 else f"{scaled:.1f}" if scaled >= 100 else f"{scaled:.2f}"


def row_of(result: Mapping[str, Any]) -> list[str]:
    """Give the cells of a result: case, Mpps, CPU ns, of it worker and components, bare, ratio, latency, remarks."""
    bare = result["reference"] or {}
    parts = result["details"].get("cpu_ns_by_part", {})
    latency = result["latency_us"]
    invalid = "INVALID: " + "; ".join(result["why"]) if result["why"] else ""
    # the verdict on a long run says what was lost, also when it is invalid
    remarks = [result["hop"] or "", _verdict(result["details"]), invalid]
    return [
        result["case"], _number(result["packets_per_second"], 1e-6), _number(result["ns_per_packet"]),
        *(_number(parts[key]["median"]) if key in parts else "" for key in ("worker", "components")),
        _number(bare.get("packets_per_second"), 1e-6), _number(bare.get("ns_per_packet")), _number(result["ratio"]),
        "/".join(_number(latency[key]) for key in ("p50", "p99", "p999")) if latency else "",
        " ".join(word for word in remarks if word),
    ]  # fmt: skip


def _verdict(details: Mapping[str, Any]) -> str:
    """Say what a run with a target showed; an INVALID one is told elsewhere."""
    if "seconds" in details and isinstance(details["seconds"], Mapping):
        limit = f" (target {details['target_s']:g} s)" if details["target_s"] else ""
        seconds = details["seconds"]
        return f"{seconds['median']:.3f} s ({seconds['min']:.3f} to {seconds['max']:.3f}){limit}"
    if "percent_of_a_core" in details:
        limit = f"limit {details['limit_percent']} %"
        return f"{details['verdict']}: {details['percent_of_a_core']:.3f} % of a core ({limit})"
    if "rx_missed" in details and "verdict" in details:
        lost = f"dropped by COVEN {details['dropped_by_coven']}, rx_missed {details['rx_missed']}"
        said = "" if details["verdict"] == "INVALID" else f"{details['verdict']}: "
        return f"{said}{details['received']} of {details['sent']} came back, {lost}"
    if details.get("p50_above_reference_us") is not None:
        allowed = details["allowed_us"]
        limit = "" if allowed is None else f" (aim: {allowed:+.0f})"
        return f"p50 {details['p50_above_reference_us']:+.1f} us beside bare{limit}"
    return ""


def reference_row(row: Mapping[str, Any]) -> list[str]:
    """Give the cells of a bare program beside what is known of it."""
    scale = 1e-6 if row["unit"] == "packets a second" else 1.0
    known = " to ".join(_number(value, scale) for value in row["known"])
    unit = "Mpps" if scale != 1.0 else row["unit"]
    within = "yes" if row["within"] else "no"
    return [row["name"], _number(row["measured"], scale), known, unit, row["hop"] or "", within]


COLUMNS = ("case", "Mpps", "CPU ns", "worker", "components", "bare Mpps", "bare ns", "ratio", "p50/p99/p99.9 us", "")


def show(document: Mapping[str, Any]) -> None:
    """Print one table for each scenario."""
    near = document["hop"]
    if near:
        line(f"hop between the cores: {near['one_way_ns']['median']:.0f} ns one way, {near['regime']}")
    for scenario in dict.fromkeys(result["scenario"] for result in document["results"]):
        line(f"\n{scenario}")
        rows = [row_of(result) for result in document["results"] if result["scenario"] == scenario]
        shown = [i for i in range(len(COLUMNS)) if i == 0 or any(row[i] for row in rows)]
        table([COLUMNS[i] for i in shown], [[row[i] for i in shown] for row in rows])
    if document["references"]:
        line("\nbare programs, against what is known of them on a quiet machine of 2 virtual cores")
        table(
            ("program", "measured", "known", "unit", "hop", "within 15 %"),
            [reference_row(row) for row in document["references"]],
        )
    for name, why in document["skipped"].items():
        line(f"\n{name}: not measured: {why}")
    for name, why in document["failed"].items():
        line(f"\n{name}: failed: {why}")
    line(f"\n{document['seconds']} s, commit {document['commit']}")
