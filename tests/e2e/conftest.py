"""Fixtures of the end-to-end tests: one appliance for all tests of a module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from coven.demo.common import upload
from coven.demo.platform import Platform
from tests.e2e.appliance import Appliance, started_platform
from tests.e2e.captures import DATA
from tests.lib.net import Network, unavailable


@pytest.fixture(scope="session")
def _namespaces() -> None:
    reason = unavailable()
    if reason:
        pytest.skip(reason)


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """A running platform, with or without root."""
    with started_platform([DATA / "captures", tmp_path_factory.getbasetemp()]) as running:
        yield running


@pytest.fixture(scope="module")
def package(platform: Platform) -> str:
    """The id of the uploaded l7-firewall."""
    return str(upload(platform.rest)["id"])


@pytest.fixture(scope="module")
def appliance(_namespaces: None, platform: Platform, package: str) -> Iterator[Appliance]:
    """l7-firewall between two hosts."""
    with Network() as net:
        yield Appliance(net, platform, package)
