"""Plots of docs/benchmarks.md, as SVG files beside it. Needs matplotlib, which COVEN itself does not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")
import matplotlib.pyplot as plt

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "benchmarks"
SERIES = {"flows": "flows in the table", "rules": "rules looked through", "paths": "paths in use",
          "components": "fused components in a row", "isolated": "isolated components in a row (shared)"}  # fmt: skip

Results = list[Mapping[str, Any]]


def _of(document: Mapping[str, Any], scenario: str) -> Results:
    return [result for result in document["results"] if result["scenario"] == scenario]


def _save(name: str, draw: Callable[[Any], None]) -> str:
    figure, axes = plt.subplots(figsize=(7, 3.4), layout="constrained")
    draw(axes)
    axes.grid(visible=True, which="major", alpha=0.3)
    FOLDER.mkdir(exist_ok=True)
    # nothing of the moment in the file: the same figures give the same bytes
    figure.savefig(FOLDER / f"{name}.svg", metadata={"Date": None})
    plt.close(figure)
    return f"{FOLDER.name}/{name}.svg"


def _series(results: Results, series: str) -> Callable[[Any], None]:
    points = [(int(r["case"].rpartition(" ")[2]), r) for r in results if r["case"].startswith(f"{series}:")]

    def draw(axes: Any) -> None:
        sizes = [size for size, _ in points]
        axes.plot(sizes, [r["ns_per_packet"] for _, r in points], marker="o", label="COVEN")
        if series in ("rules", "components"):
            bare = [r["reference"]["ns_per_packet"] for _, r in points]
            axes.plot(sizes, bare, marker="s", linestyle="--", label="bare loop")
        axes.set_xscale("log")
        if series in ("flows", "paths"):  # within a small factor: from 0, so that it is seen as such
            axes.set_ylim(0, 1.1 * max(r["ns_per_packet"] for _, r in points))
        else:
            axes.set_yscale("log")
        axes.set_xlabel(SERIES[series])
        axes.set_ylabel("CPU ns a packet")
        axes.legend()

    return draw


def _chains(results: Results) -> Callable[[Any], None]:
    def draw(axes: Any) -> None:
        for isolation in ("fused", "shared", "copy"):
            start = f"{isolation} C: null x "
            rows = [r for r in results if r["case"].startswith(start) and r["case"].removeprefix(start).isdigit()]
            sizes = [int(r["case"].removeprefix(start)) for r in rows]
            (line,) = axes.plot(sizes, [r["ns_per_packet"] for r in rows], marker="o", label=isolation)
            bare = [r["reference"]["ns_per_packet"] for r in rows]
            axes.plot(sizes, bare, marker="s", linestyle="--", color=line.get_color(), label=f"{isolation}: bare")
        axes.set_yscale("log")
        axes.set_xlabel("components in a row")
        axes.set_ylabel("CPU ns a packet, all processes")
        axes.legend(ncols=3, fontsize="small")

    return draw


def _wire(results: Results) -> Callable[[Any], None]:
    rows = [r for r in results if "fused C x 3" in r["case"]]

    def draw(axes: Any) -> None:
        width = 0.4
        for at, r in enumerate(rows):
            axes.bar(at - width / 2, r["ns_per_packet"], width, color="C0", label="COVEN" if at == 0 else None)
            bare = r["reference"]["ns_per_packet"]
            axes.bar(at + width / 2, bare, width, color="C1", label="bare forwarder" if at == 0 else None)
        axes.set_xticks(range(len(rows)), [r["case"].replace(": fused C x 3, ", "\n") for r in rows], fontsize="small")
        axes.set_ylabel("CPU ns a packet")
        axes.legend()

    return draw


def _latency(results: Results) -> Callable[[Any], None]:
    def draw(axes: Any) -> None:
        lines: dict[str, list[tuple[int, float]]] = {}
        for r in results:
            load = r["details"].get("load_percent")
            if load is not None and r["latency_us"]:
                lines.setdefault(r["case"].rpartition(",")[0], []).append((load, r["latency_us"]["p50"]))
        for name, points in lines.items():
            if len(points) < 2:  # isolated hops are measured at one load: the table has them
                continue
            style = "--" if name.startswith("bare") else "-"
            axes.plot(*zip(*points, strict=True), marker="o", linestyle=style, label=name)
        axes.set_yscale("log")
        axes.set_xlabel("load, % of what goes through without loss")
        axes.set_ylabel("one way, p50, µs")
        axes.legend(fontsize="x-small", loc="center left", bbox_to_anchor=(1.0, 0.5))

    return draw


def draw(document: Mapping[str, Any]) -> dict[str, str]:
    """Draw all plots that the results are there for; gives their paths from docs/, by `scenario-name`."""
    mpl.rcParams["svg.hashsalt"] = "coven"
    mpl.rcParams["svg.fonttype"] = "none"  # text stays text
    drawn: dict[str, str] = {}
    memory, wire, latency, scale = (_of(document, name) for name in ("memory", "wire", "latency", "scale"))
    if memory:
        drawn["memory-chains"] = _save("memory-chains", _chains(memory))
    if wire:
        drawn["wire-sizes"] = _save("wire-sizes", _wire(wire))
    if latency:
        drawn["latency-loads"] = _save("latency-loads", _latency(latency))
    for series in SERIES:
        if any(result["case"].startswith(f"{series}:") for result in scale):
            drawn[f"scale-{series}"] = _save(f"scale-{series}", _series(scale, series))
    return drawn
