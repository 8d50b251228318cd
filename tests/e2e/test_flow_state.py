"""Flow state outlives the component and the worker: a count that goes on where it was, seen by what it decides.

`python-counter` marks the packets of a flow once it has counted enough of them; a `filter` behind it counts marked ones. A
count that began anew would let packets pass unmarked again.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from coven import package
from coven.demo.platform import Platform
from tests.e2e.appliance import CLIENT, SERVER, Appliance, kill, wait_for
from tests.e2e.captures import ROOT
from tests.e2e.parts import pin_neighbours
from tests.e2e.probe import Probe
from tests.lib.net import Network

pytestmark = pytest.mark.root

ENOUGH = 100
CHATTER = ENOUGH // 4  # packets of no flow (neighbour discovery), and two metrics are read one after the other
VNF = f"""\
coven: 1
name: counted
version: "1.0.0"
provider: tests
summary: marks the packets of a flow that has had more than {ENOUGH}
ports: {{lan: {{}}, wan: {{}}}}
components:
  counter: {{source: vnfc/python-counter, options: {{mark-after: {ENOUGH}}}}}
  filter: {{source: vnfc/filter, options: {{mode: count}}}}
paths:
  both: {{hops: [lan, counter, filter, wan], bidirectional: same-order}}
"""


@pytest.fixture(scope="module")
def counted(_namespaces: None, platform: Platform, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Appliance]:
    """Deploy the counter and the filter between two hosts."""
    folder = tmp_path_factory.mktemp("counted")
    (folder / "vnf.yaml").write_text(VNF, encoding="utf-8")
    for name in ("python-counter", "filter"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / "vnfc_examples" / name, folder / "vnfc" / name, ignore=ignored)
    archive = package.build(folder, Path(tmp_path_factory.mktemp("built")))
    uploaded = platform.rest.upload("/v1/packages", archive)["id"]
    with Network() as net:
        appliance = Appliance(net, platform, uploaded)
        pin_neighbours(appliance)
        yield appliance


def unmarked(appliance: Appliance) -> int:
    """Give how many packets the filter has seen without a mark."""
    return appliance.metric("filter", "seen") - appliance.metric("filter", "marked")


def pid_of(appliance: Appliance, part: str) -> int | None:
    """Give the process of a component, or of the worker."""
    state = appliance.state()
    if part == "worker":
        return state["workers"][0]["pid"] if state["workers"][0]["state"] == "running" else None
    replicas = next(one["replicas"] for one in state["components"] if one["name"] == part)
    return replicas[0]["pid"] if replicas[0]["state"] == "ready" else None


@pytest.mark.parametrize("part", ["counter", "worker", "filter"])
def test_the_count_of_a_flow_goes_on(counted: Appliance, part: str) -> None:
    """After the death of each part in turn, a flow that has had enough packets is marked from the first one on."""
    with Probe(counted.client, counted.server, CLIENT[0], SERVER[0]) as probe:
        probe.wait_for_arrivals(ENOUGH + 50)
        old = pid_of(counted, part)
        assert old
        before = unmarked(counted)
        kill(old)
        wait_for(f"another {part}", lambda: pid_of(counted, part) not in (None, old))
        probe.wait_for_arrivals(ENOUGH // 2)
        assert unmarked(counted) - before < CHATTER
    counted.check(missed=True)


def test_a_new_flow_begins_at_zero(counted: Appliance) -> None:
    """The test above could not fail if everything were marked."""
    before = unmarked(counted)
    with Probe(counted.client, counted.server, CLIENT[0], SERVER[0]) as probe:
        probe.wait_for_arrivals(ENOUGH + 50)
        assert 0 <= unmarked(counted) - before - ENOUGH + CHATTER < 2 * CHATTER
