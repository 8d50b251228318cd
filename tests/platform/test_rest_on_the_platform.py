"""The agent over the real supervisor: a package's whole life over REST, what bad packages get, and kills of the agent."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from coven import package
from tests.lib.net import Network
from tests.lib.platform import PlatformUnderTest
from tests.lib.rest import Answer, Rest

ROOT = Path(__file__).parents[2]
LAN = {"tool": "gen", "packets": 500, "bytes": 128}
WAN = {"tool": "gen", "packets": 0}
VNF = """
coven: 1
name: broken
version: "1.0.0"
provider: tests
summary: does not work
ports: {lan: {}, wan: {}}
components: {part: {source: part}}
paths: {through: {hops: [lan, part, wan]}}
"""
COMPONENT = "name: part\nsummary: a part\nframework: %s\nentry: %s\n"


class Platform:
    """A platform and a client of its agent."""

    def __init__(self, under_test: PlatformUnderTest) -> None:
        self.under_test = under_test
        self.rest = Rest(under_test.run_dir / "agent.sock")
        self.agent_pid = 0
        self.wait_agent()

    def wait_agent(self) -> None:
        """Wait for an agent that is another process than the last one."""

        def answers() -> bool:
            pid = self.under_test.request("hello")["agent"]
            if pid in (None, self.agent_pid):
                return False
            try:
                told = self.rest.get("/v1")["agent"]["pid"]
            except OSError:
                return False
            if told != pid:
                return False
            self.agent_pid = pid
            return True

        self.under_test.wait_for(answers, "no agent answers")

    def kill_agent(self) -> None:
        self.under_test.kill(self.agent_pid)

    def upload(self, folder: Path, work: Path) -> str:
        archive = package.build(folder, work)
        answer = self.rest.call("POST", "/v1/packages", raw=archive.read_bytes(), kind="application/zip")
        assert answer.status == 201, answer.body
        return str(answer.json["id"])

    def create(self, identity: str, **more: object) -> Answer:
        body = {"package": identity, "ports": {"lan": LAN, "wan": WAN}, **more}
        return self.rest.call("POST", "/v1/instances", body)

    def wait_counters(self, instance: str, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        def fits() -> dict[str, Any] | None:
            found: dict[str, Any] = self.rest.get(f"/v1/instances/{instance}/counters")
            return found if condition(found) else None

        return dict(self.under_test.wait_for(fits, "the counters do not come to that"))


@pytest.fixture
def platform(tmp_path: Path) -> Iterator[Platform]:
    with PlatformUnderTest(tmp_path, agent=True, agent_arguments=("--listen", "none")) as under_test:
        yield Platform(under_test)
    assert under_test.leftovers() == []


def pids(instance: dict[str, Any]) -> list[int]:
    """Give worker and components."""
    replicas = [replica["pid"] for part in instance["components"] for replica in part["replicas"]]
    return [worker["pid"] for worker in instance["workers"]] + replicas


def test_the_whole_life_of_a_function(platform: Platform, tmp_path: Path) -> None:
    rest = platform.rest
    identity = platform.upload(ROOT / "packages" / "l7-firewall", tmp_path)
    operation = rest.finish(platform.create(identity, id="fw", grants={"*": "shared"}))
    assert operation["state"] == "succeeded", operation["error"]
    assert {step["state"] for step in operation["steps"]} == {"done"}

    found = rest.get("/v1/instances/fw")
    assert (found["state"], found["desired"], found["health"]) == ("started", "started", "ok")
    assert {part["name"]: part["isolation"] for part in found["components"]} == {
        "analyzer": "shared",
        "filter": "shared",
    }
    counters = platform.wait_counters("fw", lambda c: c["accounting"]["tx"] == 500)
    assert counters["accounting"]["balanced"]

    offers = {part["name"]: part for part in rest.get("/v1/instances/fw/list")["components"]}
    assert next(m for m in offers["filter"]["metrics"] if m["name"] == "seen")["value"] == 500
    assert "add-pattern" in [offer["name"] for offer in offers["analyzer"]["operations"]]
    check = rest.get("/v1/instances/fw/check")
    assert check["healthy"] and [answer["bursts"] > 0 for answer in check["answers"]] == [True, True]

    monitor = rest.get("/v1/instances/fw/monitor")
    parts = {process["part"] for process in monitor["processes"]}
    assert {"worker 0", "component analyzer", "component filter", "supervisor", "keeper", "agent"} == parts
    assert monitor["core"]["memory_bytes"] > 1 << 20 and monitor["core"]["cpu_seconds"] > 0
    assert monitor["core"]["network"]["rx_bytes"] == 500 * 128
    assert rest.get("/v1/instances/fw/components/analyzer/logs")["lines"] is not None
    assert rest.get("/v1/instances/fw/logs?lines=5")["lines"] is not None

    for verb in ("stop", "start", "restart", "heal", "stop", "terminate"):
        ended = rest.finish(rest.call("POST", f"/v1/instances/fw/{verb}"))
        assert ended["state"] == "succeeded", ended
    assert rest.call("GET", "/v1/instances/fw").code == "instance.not-found"
    assert rest.call("DELETE", f"/v1/packages/{identity}").status == 204
    assert psutil.Process(platform.agent_pid).memory_info().rss < 90e6


def test_several_workers(platform: Platform, tmp_path: Path) -> None:
    rest = platform.rest
    identity = platform.upload(ROOT / "packages" / "l7-firewall", tmp_path)
    ports = {"lan": {**LAN, "flows": 10}, "wan": WAN}
    more = {"ports": ports, "grants": {"filter": "fused"}, "workers": {"count": 2, "profile": "power-save"}}
    assert rest.finish(platform.create(identity, id="fw", **more))["state"] == "succeeded"
    counters = platform.wait_counters("fw", lambda c: c["accounting"]["tx"] == 500)
    assert [share["accounting"]["tx"] for share in counters["workers"]] == [250, 250]
    assert all(share["accounting"]["balanced"] for share in counters["workers"])

    found = rest.get("/v1/instances/fw")
    assert found["profile"] == "power-save"
    assert [(worker["state"], worker["core"]) for worker in found["workers"]] == [("running", None)] * 2
    assert {part["name"]: len(part["replicas"]) for part in found["components"]} == {"analyzer": 2, "filter": 2}
    check = rest.get("/v1/instances/fw/check")
    assert check["healthy"] and len(check["answers"]) == 4
    offers = {part["name"]: part for part in rest.get("/v1/instances/fw/list")["components"]}
    assert next(m for m in offers["filter"]["metrics"] if m["name"] == "seen")["value"] == 500
    monitor = rest.get("/v1/instances/fw/monitor")
    received = {p["part"]: p["network"].get("rx_pkts") for p in monitor["processes"] if "worker" in p["part"]}
    assert received == {"worker 0": 250, "worker 1": 250}
    assert monitor["core"]["network"]["rx_pkts"] == 500

    body = {"component": "filter", "operation": "set-mode", "arguments": {"mode": "count"}}
    answer = rest.call("POST", "/v1/instances/fw/request", body)
    assert (answer.status, "results" in answer.json) == (200, False)
    seen = rest.call("POST", "/v1/instances/fw/request", {"component": "filter", "metric": "seen"})
    assert (seen.json["value"], seen.json["replicas"]) == (500, [250, 250])
    for path in ("logs?replica=1", "components/analyzer/logs?replica=1", "components/filter/logs?replica=1"):
        assert rest.get(f"/v1/instances/fw/{path}")["lines"] is not None
    for path in ("logs?replica=2", "components/analyzer/logs?replica=2", "components/filter/logs?replica=2"):
        assert rest.call("GET", f"/v1/instances/fw/{path}").code == "component.not-found"
    rest.finish(rest.call("POST", "/v1/instances/fw/terminate", {"force": True}))

    for workers, code in (
        ({"count": 0}, "request.invalid"),
        ({"cores": [1, 1]}, "request.invalid"),
        ({"cores": [0], "count": 2}, "worker.invalid"),
        ({"profile": "fast"}, "request.invalid"),
    ):
        assert platform.create(identity, **(more | {"workers": workers})).code == code, workers
    failed = rest.finish(platform.create(identity, **(more | {"workers": {"cores": [4095]}})))
    assert (failed["state"], failed["error"]["code"]) == ("rolled-back", "worker.bad-core")


def test_requests_to_components(platform: Platform, tmp_path: Path) -> None:
    rest = platform.rest
    rest.finish(platform.create(platform.upload(ROOT / "packages" / "l7-firewall", tmp_path), id="fw"))
    ask = "/v1/instances/fw/request"
    call = {"component": "filter", "operation": "set-mode"}
    answer = rest.call("POST", ask, {**call, "arguments": {"mode": "count"}})
    assert answer.status == 200 and answer.json["latency_ms"] > 0
    metric = rest.call("POST", ask, {"component": "filter", "metric": "seen"})
    assert metric.json["value"] >= 0
    for body, status, code in (
        ({**call, "arguments": {"mode": "x"}}, 422, "component.argument-invalid"),
        ({**call, "arguments": {"mode": 1}}, 422, "component.argument-invalid"),
        (call, 422, "component.argument-invalid"),
        ({**call, "arguments": {"mode": "drop", "x": 1}}, 422, "component.argument-invalid"),
        ({"component": "none", "operation": "x"}, 404, "component.not-found"),
        ({"component": "filter", "operation": "x"}, 404, "component.operation-unknown"),
        ({"component": "filter", "metric": "x"}, 404, "component.operation-unknown"),
        ({"component": "filter"}, 422, "request.invalid"),
        ({**call, "metric": "seen"}, 422, "request.invalid"),
        ({**call, "arguments": {"mode": ["drop"]}}, 422, "request.invalid"),
    ):
        refused = rest.call("POST", ask, body)
        assert (refused.status, refused.code) == (status, code), refused.body
    assert rest.call("GET", "/v1/instances/fw/components/none/logs").code == "component.not-found"


@pytest.mark.parametrize(
    ("framework", "entry", "source", "code"),
    [
        ("c", "part.c", "int broken(void) { return }\n", "component.compile-failed"),
        ("python", "part.py", "raise RuntimeError('not today')\n", "component.bad-code"),
        ("python", "part.py", "import os\nos._exit(3)\n", "component.exited"),
    ],
)
def test_what_bad_components_get(
    platform: Platform, tmp_path: Path, framework: str, entry: str, source: str, code: str
) -> None:
    folder = tmp_path / "source"
    (folder / "part").mkdir(parents=True)
    (folder / "vnf.yaml").write_text(VNF)
    (folder / "part" / "component.yaml").write_text(COMPONENT % (framework, entry))
    (folder / "part" / entry).write_text(source)
    identity = platform.upload(folder, tmp_path)
    operation = platform.rest.finish(platform.create(identity, id="fw"))
    assert (operation["state"], operation["error"]["code"]) == ("rolled-back", code), operation
    assert platform.rest.call("GET", "/v1/instances/fw").code == "instance.not-found"
    assert platform.under_test.request("state")["instances"] == {}
    assert platform.rest.call("DELETE", f"/v1/packages/{identity}").status == 204


def test_bindings_that_do_not_fit(platform: Platform, tmp_path: Path) -> None:
    identity = platform.upload(ROOT / "packages" / "passthrough", tmp_path)
    for ports, code in (
        ({"lan": LAN}, "binding.missing"),
        ({"lan": LAN, "wan": WAN, "dmz": WAN}, "binding.unknown"),
        ({"lan": {"tool": "pigeon"}, "wan": WAN}, "port.unknown-tool"),
    ):
        body = {"package": identity, "ports": ports}
        assert platform.rest.call("POST", "/v1/instances", body).code == code
    answer = platform.create(identity, parameters={"speed": 9})
    assert (answer.status, answer.code) == (422, "parameter.unknown")
    assert platform.rest.get("/v1/instances")["instances"] == []


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to open an interface")
def test_an_interface_that_is_not_there(platform: Platform, tmp_path: Path) -> None:
    identity = platform.upload(ROOT / "packages" / "passthrough", tmp_path)
    body = {"package": identity, "ports": {"lan": "cvnone0", "wan": WAN}, "id": "fw"}
    operation = platform.rest.finish(platform.rest.call("POST", "/v1/instances", body))
    assert operation["error"]["code"] == "port.interface-missing"
    assert platform.rest.call("GET", "/v1/instances/fw").status == 404


def test_a_killed_agent_takes_nothing_with_it(platform: Platform, tmp_path: Path) -> None:
    rest = platform.rest
    rest.finish(platform.create(platform.upload(ROOT / "packages" / "passthrough", tmp_path), id="fw"))
    before = rest.get("/v1/instances/fw")
    for _ in range(3):
        platform.kill_agent()
        platform.wait_agent()
        after = rest.get("/v1/instances/fw")
        assert pids(after) == pids(before) and after["state"] == "started"
        assert rest.get("/v1/instances/fw/check")["healthy"]
        assert rest.get("/v1/instances/fw/list")["components"][0]["answered"]
    body = {"component": "forward", "metric": "forwarded_pkts"}
    assert rest.call("POST", "/v1/instances/fw/request", body).status == 200
    platform.under_test.kill(platform.under_test.supervisor_pid)
    assert rest.get("/v1")["health"] == "ok"  # waited for
    assert pids(rest.get("/v1/instances/fw")) == pids(before)
    assert rest.finish(rest.call("POST", "/v1/instances/fw/stop"))["state"] == "succeeded"


@pytest.mark.slow
def test_the_agent_is_killed_at_each_step_of_a_deployment(platform: Platform, tmp_path: Path) -> None:
    """Afterwards the state is as before or completely deployed, and says so."""
    rest = platform.rest
    identity = platform.upload(ROOT / "packages" / "passthrough", tmp_path)
    watcher = platform.under_test.connect()
    watcher.request("subscribe")
    steps = [step["name"] for step in rest.finish(platform.create(identity, id="first"))["steps"]]
    assert len(steps) > 5
    rest.finish(rest.call("POST", "/v1/instances/first/terminate", {"force": True}))
    for number, name in enumerate(steps):
        instance = f"fw-{number}"
        accepted = platform.create(identity, id=instance)
        assert accepted.status == 202
        watcher.wait_event(
            lambda event, instance=instance, name=name: (  # type: ignore[misc]
                event["type"] == "operation-step"
                and event["instance"] == instance
                and event["step"]["name"] == name
            )
        )
        platform.kill_agent()
        platform.wait_agent()
        ended = rest.finish(accepted)
        found = rest.call("GET", f"/v1/instances/{instance}")
        if ended["state"] == "succeeded":
            assert found.json["state"] == found.json["desired"] == "started"
        else:
            assert found.status == 404
        actual = set(platform.under_test.request("state")["instances"])
        assert actual == {known["id"] for known in rest.get("/v1/instances")["instances"]}
        if found.status == 200:
            rest.finish(rest.call("POST", f"/v1/instances/{instance}/terminate", {"force": True}))
    watcher.close()


def test_after_a_reboot_everything_is_there_again(platform: Platform, tmp_path: Path) -> None:
    """All processes and the run folder are gone; the state folder is what a disk keeps."""
    rest = platform.rest
    identity = platform.upload(ROOT / "packages" / "passthrough", tmp_path)
    rest.finish(platform.create(identity, id="runs", grants={"*": "shared"}))
    rest.finish(platform.create(identity, id="rests"))
    rest.finish(rest.call("POST", "/v1/instances/rests/stop"))
    before = pids(rest.get("/v1/instances/runs"))
    platform.under_test.kill_all()
    shutil.rmtree(platform.under_test.run_dir)
    platform.under_test.start()
    platform.wait_agent()

    def is_back() -> bool:
        states = rest.get("/v1")["instances"]
        return bool(states == {"runs": "started", "rests": "instantiated"})

    platform.under_test.wait_for(is_back, "the instances do not come back")
    found = rest.get("/v1/instances/runs")
    assert not set(pids(found)) & set(before)
    assert found["components"][0]["isolation"] == "shared"
    assert rest.get("/v1/instances/runs/check")["healthy"]
    assert rest.finish(rest.call("POST", "/v1/instances/rests/start"))["state"] == "succeeded"


def _short_token(state: Path) -> None:
    (state / "token").write_text("short\n")


def _newer_database(state: Path) -> None:
    with contextlib.closing(sqlite3.connect(state / "agent.sqlite")) as database:
        database.execute("PRAGMA user_version = 99")


@pytest.mark.parametrize(
    ("spoil", "reason", "hint", "mend"),
    [
        (_short_token, "holds no token", "remove the file", "token"),
        (_newer_database, "later version of COVEN", "install that version", "agent.sqlite*"),
    ],
)
def test_why_the_agent_cannot_start_reaches_who_asks(
    platform: Platform, spoil: Callable[[Path], None], reason: str, hint: str, mend: str
) -> None:
    """Where the platform was started, and on the command line; and it comes back by itself when that is mended."""
    under_test = platform.under_test

    def coven(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "coven", *words]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    def status() -> subprocess.CompletedProcess[str]:
        return coven("--socket", str(under_test.run_dir / "agent.sock"), "status")

    assert status().returncode == 0
    spoil(under_test.state_dir)
    platform.kill_agent()
    under_test.wait_for(lambda: reason in under_test.log(), "the agent's words do not come out")
    said = under_test.wait_for(lambda: (text if reason in (text := status().stderr) else None), "no reason")
    assert "agent.unreachable" in said and hint in said and "where 'coven agent' writes to" in said
    before = under_test.supervisor_pid
    again = coven("agent", "--run-dir", str(under_test.run_dir), "--state-dir", str(under_test.state_dir))
    assert again.returncode == 1 and "agent.running" in again.stderr and reason in again.stderr
    assert under_test.supervisor_pid == before
    for path in under_test.state_dir.glob(mend):
        path.unlink()
    under_test.wait_for(lambda: status().returncode == 0, "the agent does not come back")
    assert not (under_test.run_dir / "agent.error").exists()


def test_off(platform: Platform, tmp_path: Path) -> None:
    rest = platform.rest
    rest.finish(platform.create(platform.upload(ROOT / "packages" / "passthrough", tmp_path)))
    refused = rest.call("POST", "/v1/agent/off")
    assert (refused.status, refused.code) == (409, "platform.running")
    assert rest.call("POST", "/v1/agent/off", {"force": True}).status == 202
    keeper = platform.under_test.keeper
    assert keeper is not None and keeper.wait(20) == 0


@pytest.mark.parametrize("damage", ["deleted", "corrupt"])
def test_a_lost_state_file_takes_nothing_with_it(platform: Platform, tmp_path: Path, damage: str) -> None:
    """What runs is taken on, its package stays, and a component of it can still be started again."""
    rest, under_test = platform.rest, platform.under_test
    identity = platform.upload(ROOT / "packages" / "passthrough", tmp_path)
    rest.finish(platform.create(identity, id="fw"))
    before = rest.get("/v1/instances/fw")
    for path in under_test.state_dir.glob("agent.sqlite*"):
        if damage == "deleted" or path.name.endswith("-shm"):
            path.unlink()
        else:
            path.write_bytes(b"no database" * 1000)
    platform.kill_agent()
    platform.wait_agent()
    after = rest.get("/v1/instances/fw")
    assert pids(after) == pids(before) and after["desired"] == "started"
    assert after["bindings"]["lan"]["packets"] == LAN["packets"]
    assert [found["id"] for found in rest.get("/v1/packages")["packages"]] == [identity]
    assert rest.call("DELETE", f"/v1/packages/{identity}").code == "package.in-use"
    under_test.kill(under_test.replica("fw", "forward")["pid"])
    assert under_test.wait_ready("fw", "forward", other_than=pids(before)[1])
    assert rest.finish(rest.call("POST", "/v1/instances/fw/terminate", {"force": True}))["state"] == "succeeded"
    assert rest.call("DELETE", f"/v1/packages/{identity}").status == 204
    assert (under_test.state_dir / "agent.sqlite.damaged").exists() == (damage == "corrupt")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk with little more room than what uploads must leave free."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=70m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("needs root to mount a small disk")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(file: Path) -> None:
    """Fill the disk to its last byte."""
    with file.open("wb", buffering=0) as out, contextlib.suppress(OSError):
        for size in (1 << 16, 512, 1):
            with contextlib.suppress(OSError):
                while True:
                    out.write(b"x" * size)


@pytest.mark.root
def test_a_full_disk_refuses_what_is_new_and_ends_what_was_begun(small_disk: Path, tmp_path: Path) -> None:
    work, ballast = small_disk / "platform", small_disk / "ballast"
    work.mkdir()
    with PlatformUnderTest(work, agent=True, agent_arguments=("--listen", "none")) as under_test:
        platform = Platform(under_test)
        rest = platform.rest
        folder = tmp_path / "source"
        (folder / "part").mkdir(parents=True)
        (folder / "vnf.yaml").write_text(VNF)
        (folder / "part" / "component.yaml").write_text(COMPONENT % ("python", "part.py"))
        (folder / "part" / "part.py").write_text(
            "import time\nfrom coven.component import Component\ntime.sleep(0.5)\n"
            "class Part(Component):\n    def process_packet(self, packet): pass\n"
        )
        identity = platform.upload(folder, tmp_path)
        fill(ballast)
        archive = package.build(ROOT / "packages" / "passthrough", tmp_path).read_bytes()
        refused = rest.call("POST", "/v1/packages", raw=archive, kind="application/zip")
        assert (refused.status, refused.code) == (507, "platform.no-resources")
        refused = platform.create(identity, id="fw")
        assert (refused.status, refused.code) == (507, "platform.no-resources")
        assert rest.get("/v1/instances")["instances"] == []
        assert list((under_test.state_dir / "incoming").iterdir()) == []

        ballast.unlink()
        watcher = under_test.connect()
        watcher.request("subscribe")
        accepted = platform.create(identity, id="fw")
        watcher.wait_event(
            lambda e: e["type"] == "operation-step" and e["step"]["name"] == "component part"  # type: ignore[no-any-return]
        )
        watcher.close()
        fill(ballast)
        there = under_test.wait_operation(accepted.json["id"])
        assert there["state"] in ("succeeded", "rolled-back"), there["error"]
        ballast.unlink()
        ended = rest.finish(accepted)
        assert ended["state"] == there["state"]
        actual = set(under_test.request("state")["instances"])
        assert actual == {found["id"] for found in rest.get("/v1/instances")["instances"]}
        if actual:
            ended = rest.finish(rest.call("POST", "/v1/instances/fw/terminate", {"force": True}))
            assert ended["state"] == "succeeded"
    assert under_test.leftovers() == []


def at_once(*calls: Callable[[], Answer]) -> list[Answer]:
    """Make calls at the same time; give the answers in order."""
    with ThreadPoolExecutor(len(calls)) as pool:
        return [future.result() for future in [pool.submit(call) for call in calls]]


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to open an interface")
def test_interfaces_that_cannot_be_had(platform: Platform, tmp_path: Path) -> None:
    rest = platform.rest
    identity = platform.upload(ROOT / "packages" / "passthrough", tmp_path)
    with Network() as network:
        good, down = network.name(), network.name()
        network.veth(None, good, None, network.name())
        network.veth(None, down, None, network.name(), up=False)
        setting = Path(f"/proc/sys/net/ipv6/conf/{good}/disable_ipv6")
        before = setting.read_text() if setting.exists() else None

        def deploy(interface: str, instance: str) -> Answer:
            body = {"package": identity, "ports": {"lan": interface, "wan": WAN}, "id": instance}
            return rest.call("POST", "/v1/instances", body)

        for interface, code, hint in (
            (down, "port.interface-down", f"ip link set {down} up"),
            ("lo", "port.unsupported", "veth"),
        ):
            error = rest.finish(deploy(interface, "no"))["error"]
            assert (error["code"], error["where"]["part"]) == (code, "port lan")
            assert hint in error["hint"]
        several = at_once(*(lambda n=n: deploy(good, f"fw-{n}") for n in range(3)))  # type: ignore[misc]
        ended = sorted((rest.finish(answer) for answer in several), key=lambda op: str(op["state"]))
        assert [op["state"] for op in ended] == ["rolled-back", "rolled-back", "succeeded"]
        assert {op["error"]["code"] for op in ended[:2]} == {"port.in-use"}
        assert [found["id"] for found in rest.get("/v1/instances")["instances"]] == [ended[2]["instance"]]
        assert rest.finish(deploy(good, "late"))["error"]["code"] == "port.in-use"
        rest.finish(rest.call("POST", f"/v1/instances/{ended[2]['instance']}/terminate", {"force": True}))
        assert (setting.read_text() if setting.exists() else None) == before


def test_what_is_asked_for_at_the_same_time(platform: Platform, tmp_path: Path) -> None:
    """One of them is done, the others are told why not, and agent and supervisor agree afterwards."""
    rest = platform.rest
    identity = platform.upload(ROOT / "packages" / "passthrough", tmp_path)

    def agreed() -> list[str]:
        known = sorted(found["id"] for found in rest.get("/v1/instances")["instances"])
        assert known == sorted(platform.under_test.request("state")["instances"])
        return known

    def post(path: str, body: object = None) -> Callable[[], Answer]:
        return lambda: rest.call("POST", path, body)

    same = at_once(*[lambda: platform.create(identity, id="fw")] * 4)
    assert sorted(answer.status for answer in same) == [202, 409, 409, 409]
    rest.finish(next(answer for answer in same if answer.status == 202))
    assert agreed() == ["fw"]
    for verb in ("stop", "start", "restart"):
        answers = at_once(*[post(f"/v1/instances/fw/{verb}")] * 4)
        codes = [answer.code for answer in answers if answer.status != 202]
        assert set(codes) <= {"instance.busy", "instance.wrong-state"} and len(codes) < 4
        assert {rest.finish(answer)["state"] for answer in answers if answer.status == 202} == {"succeeded"}
    for _ in range(3):
        deployed, ended = at_once(
            lambda: platform.create(identity, id="short"), post("/v1/instances/short/terminate", {"force": True})
        )
        assert rest.finish(deployed)["state"] == "succeeded"
        if ended.status == 202:
            rest.finish(ended)
        else:
            assert ended.code in ("instance.not-found", "instance.busy", "instance.wrong-state")
        if "short" in agreed():
            rest.finish(rest.call("POST", "/v1/instances/short/terminate", {"force": True}))
    rest.finish(rest.call("POST", "/v1/instances/fw/terminate", {"force": True}))
    created, deleted = at_once(
        lambda: platform.create(identity, id="last"), lambda: rest.call("DELETE", f"/v1/packages/{identity}")
    )
    assert (created.status, deleted.status) in ((202, 409), (404, 204))
    if created.status == 202:
        assert rest.finish(created)["state"] == "succeeded" and agreed() == ["last"]
    else:
        assert agreed() == []
