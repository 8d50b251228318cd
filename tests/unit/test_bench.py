"""What `coven bench` makes of its samples: medians within one regime, ratios, verdicts; and the page they go to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from coven.bench import known, report, result, run, throughput
from coven.bench.forwarders import Passage, Traffic
from coven.bench.measure import Sample, taken_reasons
from coven.bench.result import Reference, Result
from coven.errors import CovenError
from tests.bench import page


def sample(ns: int, regime: str | None = None, **more: Any) -> Sample:
    return Sample(1000, 1000 * ns, {"worker": 600 * ns, "components": 400 * ns}, regime=regime, **more)


def traffic(sent: int, wanted: int, received: int) -> Traffic:
    return Traffic(sent, wanted, received, 0, 10**9, 0, 10_000, 20_000, 30_000, 40_000)


def passage(sent: int, wanted: int, received: int, dropped: int = 0, **taken: float) -> Passage:
    return Passage(traffic(sent, wanted, received), dropped, 0, taken, {"worker": 10**6})


def test_the_median_of_rounds_is_held_against_that_of_the_reference() -> None:
    row = result.of_samples("memory", "x", [sample(10), sample(30), sample(20)], [sample(5), sample(4), sample(6)], "bare")
    document = row.to_json()
    assert document["ns_per_packet"] == 20
    assert document["reference"] == {"name": "bare", "packets_per_second": 2e8, "ns_per_packet": 5}
    assert document["ratio"] == 4
    assert document["details"]["cpu_ns_by_part"]["worker"] == {"median": 12, "min": 6, "max": 18}
    assert document["validity"] == "VALID"


def test_only_rounds_of_one_regime_are_compared() -> None:
    own = [sample(50, "far"), sample(10, "near"), sample(12, "near")]
    other = [sample(40, "far"), sample(6, "near"), sample(41, "far")]
    row = result.of_samples("memory", "x", own, other, "bare")
    assert row.regime == "near"
    assert row.ns_per_packet == 11
    assert row.reference is not None
    assert row.reference.ns_per_packet == 6
    assert row.details["rounds_compared"] == 2


def test_a_case_is_invalid_when_most_of_its_rounds_are() -> None:
    bad = sample(10, invalid=("others",))
    assert result.of_samples("memory", "x", [bad, sample(9), sample(9)]).to_json()["validity"] == "VALID"
    row = result.of_samples("memory", "x", [bad, bad, sample(9)]).to_json()
    assert (row["validity"], row["why"]) == ("INVALID", ["others"])


def test_a_run_without_packets_is_no_number() -> None:
    nothing = Sample(0, 1000, {"worker": 10})
    row = result.finite(result.of_samples("memory", "x", [nothing], [nothing], "bare").to_json())
    assert (row["ns_per_packet"], row["reference"]["ns_per_packet"], row["ratio"]) == (None, None, None)
    json.dumps(row, allow_nan=False)


def test_time_that_others_had_is_a_reason() -> None:
    assert taken_reasons({"waited": 0.01, "stolen": 0.0}) == []
    assert len(taken_reasons({"waited": 0.5, "stolen": 0.1})) == 2


def test_a_generator_that_fell_behind_makes_a_run_invalid() -> None:
    assert throughput.reasons(passage(1000, 1000, 1000)) == []
    (why,) = throughput.reasons(passage(900, 1000, 900))
    assert "sent 900 of 1000" in why


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (passage(1000, 1000, 1000), "PASSED"),
        (passage(1000, 1000, 990, dropped=10), "FAILED"),
        (passage(1000, 1000, 990), "PASSED"),  # lost before COVEN saw them: told, not COVEN's
        (passage(100, 1000, 100), "INVALID"),
        (passage(1000, 1000, 1000, stolen=0.2), "INVALID"),
    ],
)
def test_verdicts(found: Passage, said: str) -> None:
    details = {"dropped_by_coven": found.dropped}
    assert throughput.verdict(Result("throughput", "x", invalid=tuple(throughput.reasons(found)), details=details)) == said


def test_bare_programs_are_held_against_what_is_known_of_them() -> None:
    def rows(ns: float) -> list[dict[str, Any]]:
        return known.compare([Result("wire", "x", reference=Reference("bare_afpacket v3 block, 64 B", 1e6, ns))])

    assert [row["within"] for row in rows(1300) + rows(900) + rows(2000)] == [True, True, False]
    assert known.compare([Result("wire", "x", reference=Reference("other", 1e6, 1.0))]) == []


def test_unknown_scenarios_are_refused() -> None:
    with pytest.raises(CovenError) as caught:
        run._names(["memroy"])
    assert "memory" in str(caught.value)
    assert "soak" not in run._names([])


def document(results: list[Result]) -> dict[str, Any]:
    return {
        "machine": report.machine(), "commit": "c0ffee", "date": "today", "seconds": 60.0, "hop": None,
        "results": [row.to_json() for row in results], "references": [], "skipped": {}, "failed": {},
    }  # fmt: skip


def test_only_the_part_between_the_markers_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "benchmarks.md"
    file.write_text(f"before\n{page.BEGIN}\nold\n{page.END}\nafter\n", encoding="utf-8")
    monkeypatch.setattr(page, "PAGE", file)
    row = result.of_samples("memory", "fused | null", [sample(10)], [sample(5)], "bare")
    page.write(document([row]), {"memory-chains": "benchmarks/memory-chains.svg"})
    text = file.read_text(encoding="utf-8")
    assert text.startswith(f"before\n{page.BEGIN}\nMachine: ")
    assert text.endswith(f"{page.END}\nafter\n")
    assert "old" not in text
    assert "| fused \\| null | 100.0 | 10.00 | 6.00 | 4.00 |" in text
    assert "(benchmarks/memory-chains.svg)" in text
