"""An agent of its own for each test; its supervisor is a stand-in where the test needs to hold it still."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from coven import package
from tests.lib.agent import Agent, running
from tests.lib.standin import StandIn

ROOT = Path(__file__).parents[2]
PORTS = {"lan": {"tool": "gen", "packets": 0}, "wan": {"tool": "gen", "packets": 0}}


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A valid package."""
    return package.build(ROOT / "packages" / "passthrough", tmp_path_factory.mktemp("package"))


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    """An agent over TCP and its Unix socket, with a supervisor that does at once what it is told."""
    made = Agent(tmp_path, "--max-upload-mb", "2", listen=("127.0.0.1:0",))
    supervisor = StandIn(made.run / "supervisor.sock")
    supervisor.start()
    with running(made):
        yield made
    supervisor.stop()


@pytest.fixture
def held(tmp_path: Path) -> Iterator[tuple[Agent, StandIn]]:
    """An agent whose supervisor keeps operations open until the test ends them."""
    made = Agent(tmp_path)
    supervisor = StandIn(made.run / "supervisor.sock", auto=False)
    supervisor.start()
    with running(made):
        yield made, supervisor
    supervisor.stop()
