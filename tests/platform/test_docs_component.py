"""What docs/write_a_component.md and docs/extended_agent.md show is built and run as it stands there."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from coven import package
from coven.descriptor.vnf import load_component_type
from coven.errors import CovenError
from coven.processing.framework import Source, load
from tests.lib.examples import ROOT, call, described, example
from tests.lib.replica import Replica, Sent
from tests.packet.test_cases import outcome, packet

PAGE = (ROOT / "docs" / "write_a_component.md").read_text(encoding="utf-8")
EXCHANGE_PAGE = (ROOT / "docs" / "extended_agent.md").read_text(encoding="utf-8")


def blocks(page: str, language: str) -> list[str]:
    """Give the fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page, re.MULTILINE | re.DOTALL)


Build = Callable[..., Replica]


@pytest.fixture
def build(tmp_path: Path) -> Build:
    """Give a function that makes a component of the page's component.yaml with another source."""

    def function(framework: str, source: str, without: tuple[str, ...] = ()) -> Replica:
        folder, output = tmp_path / "component", tmp_path / "output"
        folder.mkdir()
        output.mkdir()
        entry = {"python": "police.py", "c": "police.c"}[framework]
        text = (
            blocks(PAGE, "yaml")[0].replace("framework: python", f"framework: {framework}").replace("police.py", entry)
        )
        (folder / "component.yaml").write_text(text)
        (folder / entry).write_text(source)
        load_component_type(folder)
        commands = load(framework).build(Source("police", folder, entry), output)
        for command in commands.commands if commands else ():
            subprocess.run(command, cwd=folder, check=True)
        component, options = described(folder)
        component = {key: value for key, value in component.items() if key not in without}
        artifact = commands.artifact if commands else None
        return Replica(
            framework, folder, entry, component=component, options=options, artifact=artifact, log=tmp_path / "log"
        )

    return function


@pytest.mark.parametrize("framework", ["python", "c"])
def test_the_component_of_the_page(build: Build, framework: str) -> None:
    with build(framework, blocks(PAGE, framework)[0]) as replica:
        replica.start()
        flow = Sent(bytes(60), {"flow": 2, "flow_epoch": 1})
        assert [r.verdict for r in replica.through([flow] * 4 + [Sent(bytes(60))])] == [0, 0, 1, 0, 0]
        assert call(replica.agent, "set-every", every=2) == {"every": "2"}
        assert [r.verdict for r in replica.through([flow] * 2)] == [0, 1]
        with pytest.raises(CovenError, match="every is 2 or more"):
            call(replica.agent, "set-every", every=1)
        assert (replica.metric("seen"), replica.metric("dropped")) == (7, 2)


@pytest.mark.parametrize("framework", ["python", "c"])
def test_the_case_of_the_page(build: Build, framework: str) -> None:
    case = yaml.safe_load(blocks(PAGE, "yaml")[1])
    with build(framework, blocks(PAGE, framework)[0]) as replica:
        replica.options = case["options"]
        replica.start()
        assert outcome(replica.through([packet(row) for row in case["send"]])) == case["expect"]
        assert {name: replica.metric(name) for name in case["metrics"]} == case["metrics"]


def test_the_burst_form_of_the_page(build: Build) -> None:
    with build("c", blocks(PAGE, "c")[1], without=("operations", "state")) as replica:
        replica.start()
        assert [r.verdict for r in replica.through([bytes(59), bytes(60)])] == [1, 0]
        assert replica.metric("seen") == 2


def exchanges() -> list[tuple[str, str]]:
    """Give request and answer of each exchange, with real tabs."""
    (block,) = blocks(EXCHANGE_PAGE, "exchange")
    found = []
    for part in block.strip().split("\n\n"):
        lines = part.replace("→", "\t").split("\n")
        assert all(line[:2] in ("> ", "< ") for line in lines)
        found.append(tuple("".join(line[2:] + "\n" for line in lines if line[0] == side) for side in "><"))
    return found  # type: ignore[return-value]


def test_the_exchange_of_the_page(tmp_path: Path) -> None:
    with example("python-counter", tmp_path / "log") as replica:
        replica.spawn()
        replica.socket.setblocking(True)
        replica.socket.settimeout(20)
        for request, expected in exchanges():
            replica.socket.send(request.replace("…/vnfc_examples", f"{ROOT}/vnfc_examples").encode())
            answer = replica.socket.recv(65537).decode()
            assert re.fullmatch(re.escape(expected).replace("…", "[0-9]+"), answer), answer
        assert replica.wait_exit() == 0


def test_the_page_names_every_verb_and_code() -> None:
    from coven.agents.protocol import ERROR_CODES, VERBS

    assert set(re.findall(r"^\| `([a-z-]+)` \|", EXCHANGE_PAGE, re.MULTILINE)) == {*VERBS, *ERROR_CODES}


def test_the_function_of_the_page_is_valid(tmp_path: Path) -> None:
    folder = tmp_path / "tos-police"
    folder.mkdir()
    (folder / "component.yaml").write_text(blocks(PAGE, "yaml")[0])
    (folder / "police.py").write_text(blocks(PAGE, "python")[0])
    (tmp_path / "vnf.yaml").write_text(blocks(PAGE, "yaml")[-1])
    found = package.validate(tmp_path)
    assert found.id == "police-1.0.0" and found.vnf.components[0].options == {"every": 4}
