"""Runs the cases that lie beside the example components: packets in, verdicts, marks and metrics out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from coven.dataplane.core import lib
from coven.descriptor.vnf import load_component_type
from tests.lib.examples import EXAMPLES, call, example, tcp
from tests.lib.replica import Returned, Sent

CASES = sorted(EXAMPLES.glob("*/cases/*.yaml"))
VERDICTS = {lib.COVEN_FORWARD: "forward", lib.COVEN_DROP: "drop", lib.COVEN_HOLD: "hold", lib.COVEN_CONSUME: "consume"}


def packet(row: dict[str, Any]) -> Sent:
    """Give the packet that a line of `send` describes: a `frame` in hexadecimal, or a `tcp` segment."""
    meta = {key: row[key] for key in ("flow", "mark", "port") if key in row}
    if "flow" in meta:
        meta["flow_epoch"] = 1
    if "frame" in row:
        return Sent(bytes.fromhex(row["frame"]), meta)
    fields = dict(row["tcp"])
    fields["payload"] = bytes.fromhex(str(fields.get("payload", "")))
    return Sent(tcp(**fields), meta)


def outcome(returned: list[Returned]) -> list[dict[str, Any]]:
    """Give what came back in the words of `expect`."""
    return [{"verdict": VERDICTS[r.verdict], "output": r.output, "mark": r.mark} for r in returned]


@pytest.mark.parametrize("path", CASES, ids=lambda path: f"{path.parents[1].name}-{path.stem}")
def test_case(path: Path, tmp_path: Path) -> None:
    case = yaml.safe_load(path.read_text(encoding="utf-8"))
    with example(path.parents[1].name, tmp_path / "log", options=case.get("options")) as replica:
        replica.start()
        for one in case.get("call", []):
            call(replica.agent, one["operation"], **one.get("arguments", {}))
        sent = [packet(row) for row in case["send"]]
        returned = replica.through(sent)
        assert outcome(returned) == case["expect"]
        assert [r.data for r in returned] == [s.data for s in sent]
        assert {name: replica.metric(name) for name in case["metrics"]} == case["metrics"]


@pytest.mark.parametrize("folder", sorted(EXAMPLES.iterdir()), ids=lambda folder: folder.name)
def test_examples_are_valid(folder: Path) -> None:
    assert load_component_type(folder).name == folder.name
    assert (folder / "README.md").exists()
