"""`coven demo` itself: that it succeeds, that it can fail, and that it leaves nothing, however it ends."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from coven.demo import capture, hosts, login
from coven.demo.report import Report
from tests.e2e.appliance import wait_for
from tests.e2e.captures import SKYPE, WEB, needs_data
from tests.lib.net import unavailable

DEMO = (sys.executable, "-m", "coven", "demo")
needs_namespaces = [
    pytest.mark.root,
    pytest.mark.skipif(unavailable() is not None, reason=f"network namespaces: {unavailable()}"),
]


def demo(*arguments: str) -> tuple[int, dict[str, Any]]:
    """Run the demo; gives its status and its document."""
    command = [*DEMO, *arguments, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=180)
    assert done.stdout.startswith("{"), f"{done.stdout}\n{done.stderr}"
    document: dict[str, Any] = json.loads(done.stdout)
    return done.returncode, document


def untrue(document: dict[str, Any]) -> list[str]:
    """Give the claims that do not hold, with their figures, and the error if there is one."""
    wrong = [f"{claim['text']}: {claim['figure']}" for claim in document["claims"] if not claim["holds"]]
    return wrong + ([document["error"]] if document["error"] else [])


@pytest.fixture
def reachable(tmp_path: Path) -> Path:
    """A folder that the platform's own users can reach."""
    for place in (tmp_path, *tmp_path.parents[:2]):
        place.chmod(0o755)
    return tmp_path


def test_on_a_made_capture(reachable: Path) -> None:
    """Needs neither root nor outside data."""
    count = capture.write(reachable / "in.pcap", capture.made())
    status, document = demo("--pcap", str(reachable / "in.pcap"), str(reachable / "out.pcap"))
    assert untrue(document) == []
    assert status == 0
    assert document["counters"]["accounting"]["rx"] == count
    assert len(list(capture.read(reachable / "out.pcap"))) == count - 20 * 6


@pytest.mark.parametrize("source", [pytest.param(SKYPE, marks=needs_data), *(pytest.param(path, marks=needs_data) for path in WEB)],
                         ids=lambda path: path.stem.split("__")[-1])  # fmt: skip
def test_on_outside_captures(source: Path, reachable: Path) -> None:
    """The real log-in, and traffic without any; original lengths are kept."""
    status, document = demo("--pcap", str(source), str(reachable / "out.pcap"))
    assert untrue(document) == []
    assert status == 0
    wanted = [packet for packet in capture.read(source) if not login.is_login(packet.data)]
    assert list(capture.read(reachable / "out.pcap")) == wanted


def test_a_file_that_is_no_capture_is_an_error_not_a_success(reachable: Path) -> None:
    (reachable / "in.pcap").write_bytes(b"no capture at all, but longer than a header")
    status, document = demo("--pcap", str(reachable / "in.pcap"), str(reachable / "out.pcap"))
    assert status == 1
    assert "port.bad-file" in document["error"]


def test_one_untrue_claim_is_enough_to_fail() -> None:
    report = Report(as_json=True)
    assert not report.holds, "nothing claimed is nothing shown"
    report.claim("one", "1", holds=True)
    assert bool(report.holds)
    report.claim("two", "3", holds=False)
    assert not bool(report.holds)


def namespaces() -> list[str]:
    """Give the names of demos' namespaces."""
    return sorted(path.name for path in Path("/run/netns").glob("cvd*"))


@pytest.fixture
def clean() -> Iterator[None]:
    """Compare what there is before and after."""
    before = namespaces(), hosts.records()
    yield
    assert (namespaces(), hosts.records()) == before


class TestBetweenHosts:
    """The whole demo, as root."""

    pytestmark = needs_namespaces

    def test_everything_claimed_is_true(self, clean: None) -> None:
        status, document = demo()
        assert untrue(document) == []
        assert status == 0
        assert len(document["claims"]) >= 15
        assert document["counters"]["accounting"]["balanced"]

    def test_interrupted_it_cleans_up(self, clean: None) -> None:
        child = subprocess.Popen([*DEMO, "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        wait_for("the platform is started", lambda: _record_of(child.pid, with_platform=True))
        record = _record_of(child.pid, with_platform=True)
        assert record
        child.send_signal(signal.SIGINT)
        out, _ = child.communicate(timeout=60)
        assert child.returncode == 1
        assert "interrupted" in json.loads(out)["error"]
        assert not hosts.is_running(record.platform)
        assert hosts.Hosts(record.tag).left() == []

    def test_killed_it_is_cleaned_up_by_the_next(self, clean: None) -> None:
        child = subprocess.Popen([*DEMO, "--json"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        record = wait_for("the platform is started", lambda: _record_of(child.pid, with_platform=True))
        child.kill()
        child.wait()
        assert record.tag in hosts.remove_leftovers()
        assert not hosts.is_running(record.platform)
        assert hosts.Hosts(record.tag).left() == []
        assert not Path(record.folder).exists()

    def test_kept_it_runs_on_until_it_is_stopped(self, clean: None) -> None:
        status, document = demo("--keep")
        try:
            assert untrue(document) == []
            assert status == 0
            kept = [record for record in hosts.records() if record.kept]
            assert any(hosts.is_running(record.platform) for record in kept)
        finally:
            status, document = demo("--stop")
        assert untrue(document) == []
        assert status == 0


def _record_of(pid: int, *, with_platform: bool) -> hosts.Record | None:
    """Give the record of the demo in a process, once it has got so far."""
    for record in hosts.records():
        if record.owner[0] == pid and (record.platform or not with_platform):
            return record
    return None
