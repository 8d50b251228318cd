"""The supervisor from outside: deployments, deaths, parking, errors at start, takeover, leftovers."""

from __future__ import annotations

import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from coven.errors import CovenError, Where
from coven.network import captures
from tests.lib import plans
from tests.lib.platform import BIN, OperationFailed, PlatformUnderTest, is_running, wait_gone
from tests.platform import components as sources

ROOT = os.geteuid() == 0
pytestmark = pytest.mark.skipif(not (BIN / "coven-worker").exists(), reason="the programs are not built")
needs_root = pytest.mark.skipif(not ROOT, reason="needs root")

ENDLESS = 2**40  # packets


@pytest.fixture
def platform(tmp_path: Path) -> Iterator[PlatformUnderTest]:
    under_test = PlatformUnderTest(tmp_path, arguments=("--start-timeout", "8"))
    with under_test:
        yield under_test
    assert under_test.leftovers() == []


def c_chain(
    platform: PlatformUnderTest, packets: int = ENDLESS, rate: int = 2000, source: str = sources.FORWARD_C, **more: Any
) -> dict[str, Any]:
    """A plan with one isolated component in C between a source and a sink."""
    root = platform.package("demo", {"one/one.c": source})
    ports = [plans.gen_port("lan", packets, rate=rate), plans.gen_port("wan")]
    return plans.chain("fw-1", root, [plans.component("one", root, "c", **more)], ports)


def python_plan(platform: PlatformUnderTest, source: str, packets: int = ENDLESS, rate: int = 2000) -> dict[str, Any]:
    root = platform.package("demo", {"one/one.py": source})
    ports = [plans.gen_port("lan", packets, rate=rate), plans.gen_port("wan")]
    return plans.chain("fw-1", root, [plans.component("one", root, "python")], ports)


def accounting(platform: PlatformUnderTest) -> dict[str, Any]:
    return dict(platform.request("snapshot", instance="fw-1")["accounting"])


def wait_tx(platform: PlatformUnderTest, more_than: int) -> dict[str, Any]:
    def enough() -> dict[str, Any] | None:
        try:
            now = accounting(platform)
        except CovenError:
            return None
        return now if now["tx"] > more_than else None

    return dict(platform.wait_for(enough, f"tx does not exceed {more_than}"))


def drops(platform: PlatformUnderTest) -> dict[str, int]:
    rows = platform.request("snapshot", instance="fw-1")["drops"]
    return {row["reason"]: row["packets"] for row in rows}


# ---- deployment ---------------------------------------------------------------------------------------


def test_deploy_forwards_and_terminate_leaves_nothing(platform: PlatformUnderTest) -> None:
    operation = platform.deploy(c_chain(platform, packets=500, rate=0))
    assert [step["state"] for step in operation["steps"]] == ["done"] * len(operation["steps"])
    assert operation["progress"] == 1.0
    wait_tx(platform, 499)
    assert accounting(platform) | {"balanced": True} == {
        "rx": 500, "created": 0, "tx": 500, "consumed": 0, "drops": 0, "held": 0, "rx_missed": 0, "balanced": True,
    }  # fmt: skip
    instance = platform.instance("fw-1")
    assert (instance["state"], instance["health"]) == ("started", "ok")
    pids = [instance["workers"][0]["pid"], instance["components"][0]["replicas"][0]["pid"]]
    assert all(is_running(pid) for pid in pids)
    platform.execute("terminate", "fw-1", force=True)
    assert platform.request("state")["instances"] == {}
    assert not any(is_running(pid) for pid in pids)
    assert not list(Path("/dev/shm").glob(f"{platform.platform_id}-*"))


def test_a_fused_component_answers_and_counts(platform: PlatformUnderTest) -> None:
    plan = c_chain(
        platform, packets=300, rate=0, source=sources.COUNT_C, isolation="fused", isolation_asked="fused",
        metrics=sources.COUNT_METRICS, state=sources.COUNT_STATE,
    )  # fmt: skip
    platform.deploy(plan)
    wait_tx(platform, 299)
    assert platform.replica("fw-1", "one")["state"] == "fused"
    total = platform.request("metrics", instance="fw-1")["components"]["one"]["total"]
    assert total == {"flows": 1, "flow-pkts": 300.0}
    listed = platform.request("agent", instance="fw-1", component="one", verb="list")
    assert [metric["name"] for metric in listed["metrics"]] == ["flows", "flow-pkts"]


def test_stop_start_restart_keep_the_components(platform: PlatformUnderTest) -> None:
    platform.deploy(c_chain(platform))
    pid = platform.replica("fw-1", "one")["pid"]
    wait_tx(platform, 10)
    platform.execute("stop", "fw-1")
    instance = platform.instance("fw-1")
    assert (instance["state"], instance["workers"][0]["pid"]) == ("stopped", None)
    assert {port["state"] for port in instance["ports"]} == {"closed"}
    stopped = accounting(platform)
    assert stopped["balanced"]
    assert accounting(platform) == stopped
    platform.execute("start", "fw-1")
    assert wait_tx(platform, stopped["tx"] + 10)["balanced"]
    platform.execute("restart", "fw-1")
    wait_tx(platform, accounting(platform)["tx"] + 10)
    assert platform.replica("fw-1", "one")["pid"] == pid


def test_verbs_in_the_wrong_state_and_unknown_things(platform: PlatformUnderTest) -> None:
    plan = c_chain(platform)
    with pytest.raises(CovenError) as caught:
        platform.execute("start", "fw-1")
    assert caught.value.code == "instance.not-found"
    platform.execute("instantiate", "fw-1", plan=plan)
    for verb, code in (("stop", "instance.wrong-state"), ("frobnicate", "request.invalid")):
        with pytest.raises(CovenError) as caught:
            platform.execute(verb, "fw-1")
        assert caught.value.code == code
    with pytest.raises(CovenError) as caught:
        platform.execute("instantiate", "fw-1", plan=plan)
    assert caught.value.code == "instance.exists"
    platform.execute("start", "fw-1")
    with pytest.raises(CovenError) as caught:
        platform.execute("terminate", "fw-1")
    assert caught.value.code == "instance.wrong-state"
    with pytest.raises(CovenError) as caught:
        platform.request("shutdown")
    assert caught.value.code == "platform.running"
    with pytest.raises(CovenError) as caught:
        platform.request("agent", instance="fw-1", component="two", verb="list")
    assert caught.value.code == "component.not-found"


def test_the_same_operation_twice_is_one_and_two_at_once_are_refused(platform: PlatformUnderTest) -> None:
    plan = c_chain(platform)
    first = platform.request("execute", operation="op-a", verb="deploy", instance="fw-1", plan=plan)
    again = platform.request("execute", operation="op-a", verb="deploy", instance="fw-1", plan=plan)
    assert again["started"] == first["started"]
    with pytest.raises(CovenError) as caught:
        platform.request("execute", operation="op-b", verb="terminate", instance="fw-1", force=True)
    assert caught.value.code == "instance.busy"
    assert platform.wait_operation("op-a")["state"] == "succeeded"


def test_a_source_outside_the_packages_is_refused(platform: PlatformUnderTest, tmp_path: Path) -> None:
    plan = c_chain(platform)
    outside = tmp_path / "outside" / "one"
    outside.mkdir(parents=True)
    (outside / "one.c").write_text(sources.FORWARD_C)
    plan["package"]["root"] = str(outside.parent)
    plan["components"][0]["source"] = str(outside)
    with pytest.raises(OperationFailed) as caught:
        platform.deploy(plan)
    assert caught.value.code == "package.unsafe-path"
    plan["package"]["root"] = str(tmp_path)  # a root that is wider than the package
    plan["components"][0]["source"] = str(platform.state_dir / "packages" / "demo" / "one")
    with pytest.raises(OperationFailed) as caught:
        platform.deploy(plan)
    assert caught.value.code == "package.unsafe-path"
    link = platform.state_dir / "packages" / "link"
    link.symlink_to(outside.parent)
    plan["package"]["root"] = str(link)
    plan["components"][0]["source"] = str(link / "one")
    with pytest.raises(OperationFailed) as caught:
        platform.deploy(plan)
    assert caught.value.code == "package.unsafe-path"


@pytest.mark.parametrize("how", ["link", "folder-link", "mode", "fifo"])
def test_what_the_agent_could_not_read_is_not_read_for_it(
    platform: PlatformUnderTest, tmp_path: Path, how: str
) -> None:
    """The agent owns the unpacked packages: what it puts there must not show it files of root."""
    plan = python_plan(platform, sources.RAISES_PY)
    secret = tmp_path / "secret" / "shadow.py"
    secret.parent.mkdir()
    secret.write_text("the password is (\n")
    secret.chmod(0o600)
    bait = platform.state_dir / "packages" / "demo" / "one" / "bait.py"
    if how == "link":
        bait.symlink_to(secret)
    elif how == "folder-link":
        bait.with_name("bait").symlink_to(secret.parent)
    elif how == "mode":
        bait.hardlink_to(secret)
    else:
        os.mkfifo(bait)
    operation = failed_deploy(platform, plan)
    assert operation["error"]["code"] == "package.link-entry"
    assert "password" not in str(operation)
    assert list((platform.state_dir / "build").iterdir()) == []


@needs_root
def test_a_link_in_place_of_the_packages_is_refused(platform: PlatformUnderTest, tmp_path: Path) -> None:
    plan = c_chain(platform)
    packages = platform.state_dir / "packages"
    packages.rename(tmp_path / "elsewhere")
    packages.symlink_to(tmp_path / "elsewhere")
    assert failed_deploy(platform, plan)["error"]["code"] == "package.unsafe-path"


def test_a_plan_that_is_not_one_is_refused(platform: PlatformUnderTest) -> None:
    plan = c_chain(platform)
    for broken in (None, [], {}, plan | {"extra": 1}, plan | {"instance": "../x"}, plan | {"components": None}):
        with pytest.raises(CovenError) as caught:
            platform.request("execute", operation="op-x", verb="deploy", instance="fw-1", plan=broken)
        assert caught.value.code == "plan.invalid"
    assert platform.request("state") == {"instances": {}, "operations": {}}


# ---- errors at start ------------------------------------------------------------------------------------


def failed_deploy(platform: PlatformUnderTest, plan: dict[str, Any]) -> dict[str, Any]:
    with pytest.raises(OperationFailed) as caught:
        platform.deploy(plan)
    operation = caught.value.operation
    assert operation["state"] == "rolled-back"
    assert {step["state"] for step in operation["steps"]} <= {"undone", "failed", "pending"}
    assert platform.request("state")["instances"] == {}
    return operation


def test_what_does_not_compile_is_shown_with_its_place(platform: PlatformUnderTest) -> None:
    error = failed_deploy(platform, c_chain(platform, source=sources.BROKEN_C))["error"]
    assert error["code"] == "component.compile-failed"
    assert "undeclared" in error["message"]
    assert (error["where"]["file"], error["where"]["line"]) == ("one.c", 5)


def test_what_raises_at_import_is_shown(platform: PlatformUnderTest) -> None:
    error = failed_deploy(platform, python_plan(platform, sources.RAISES_PY))["error"]
    assert error["code"] == "component.bad-code"
    assert "no luck today" in error["message"]
    assert error["where"]["file"] == "one.py" and error["where"]["line"] > 0 and error["hint"]


def test_an_init_that_refuses_is_shown_with_its_meaning(platform: PlatformUnderTest) -> None:
    source = sources.FORWARD_C.replace(
        "COVEN_COMPONENT(", "static int init(struct coven_component *self) { (void)self; return -22; }\n"
        "COVEN_COMPONENT(.init = init, "
    )  # fmt: skip
    error = failed_deploy(platform, c_chain(platform, source=source))["error"]
    assert (error["code"], error["where"]["part"]) == ("component.bad-code", "component one")
    assert "init returned -22 (Invalid argument)" in error["message"] and error["hint"]


def test_what_exits_at_start_is_shown_with_its_output(platform: PlatformUnderTest) -> None:
    error = failed_deploy(platform, python_plan(platform, sources.EXITS_PY))["error"]
    assert error["code"] == "component.exited"
    assert "exit status 3" in error["message"]
    assert "leaving early" in error["message"]
    assert "with a reason" in error["message"]


def test_what_hangs_at_start_is_ended(tmp_path: Path) -> None:
    with PlatformUnderTest(tmp_path, arguments=("--start-timeout", "2")) as platform:
        error = failed_deploy(platform, python_plan(platform, sources.HANGS_PY))["error"]
        assert error["code"] == "component.start-timeout"
        assert "waiting for godot" in error["message"]
        assert "must not wait" in error["hint"]
        error = failed_deploy(platform, python_plan(platform, sources.FLOODS_PY))["error"]
        assert error["code"] == "component.start-timeout"
        assert "noise" in error["message"] and "write less" in error["hint"]
    assert platform.leftovers() == []


def test_a_worker_that_cannot_start_is_shown_with_its_output(tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    shutil.copytree(BIN, programs)
    tmp_path.chmod(0o755)
    (programs / "coven-worker").write_text("#!/bin/sh\necho no worker today\nexit 7\n")
    with PlatformUnderTest(tmp_path, bin_dir=programs) as platform:
        error = failed_deploy(platform, c_chain(platform))["error"]
        assert error["code"] == "platform.internal"
        assert "no worker today" in error["message"]
        assert error["where"]["part"] == "worker 0"
    assert platform.leftovers() == []


def test_a_deployment_that_fails_late_costs_no_capture(tmp_path: Path) -> None:
    """All ports are open when the worker fails: what was there is as it was, what was not is not."""
    programs = tmp_path / "bin"
    shutil.copytree(BIN, programs)
    tmp_path.chmod(0o755)
    (programs / "coven-worker").write_text("#!/bin/sh\nexit 7\n")
    old, new, files = b"\xd4\xc3\xb2\xa1" + bytes(range(100)), tmp_path / "new.pcap", {}
    with PlatformUnderTest(tmp_path, bin_dir=programs) as platform:
        for name, content in (("old.pcap", old), ("empty.pcap", b""), ("new.pcap", None)):
            target = tmp_path / name
            if content is not None:
                target.write_bytes(content)
            plan = c_chain(platform)
            plan["ports"][1] |= plans.pcap_port("wan", target=target)
            operation = failed_deploy(platform, plan)
            assert next(s["state"] for s in operation["steps"] if s["name"] == "port wan") == "undone"
            files[name] = target.read_bytes() if target.exists() else None
    assert files == {"old.pcap": old, "empty.pcap": b"", "new.pcap": None} and not new.exists()


def test_a_started_function_replaces_a_capture(platform: PlatformUnderTest, tmp_path: Path) -> None:
    target = tmp_path / "out.pcap"
    target.write_bytes(b"\xd4\xc3\xb2\xa1" + bytes(5000))
    plan = c_chain(platform, packets=3, rate=0)
    plan["ports"][1] |= plans.pcap_port("wan", target=target)
    platform.deploy(plan)
    wait_tx(platform, 2)
    assert target.stat().st_size == 24 + 3 * (16 + 64)
    platform.execute("terminate", "fw-1", force=True)
    assert target.stat().st_size == 24 + 3 * (16 + 64)


def test_a_port_that_cannot_be_opened_rolls_everything_back(platform: PlatformUnderTest) -> None:
    plan = c_chain(platform)
    plan["ports"][1] |= plans.afpacket_port("wan", "cv-nothing")
    error = failed_deploy(platform, plan)["error"]
    assert error["code"] in ("port.interface-missing", "platform.no-privilege")


@needs_root
def test_capture_files_outside_the_named_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "allowed").mkdir()
    with PlatformUnderTest(tmp_path, files=(tmp_path / "allowed",)) as platform:
        plan = c_chain(platform)
        plan["ports"][1] |= plans.pcap_port("wan", target=Path("/etc/coven-test.pcap"))
        error = failed_deploy(platform, plan)["error"]
        assert (error["code"], "--files" in error["hint"]) == ("port.bad-file", True)
        assert not Path("/etc/coven-test.pcap").exists()
        (tmp_path / "allowed" / "out").symlink_to("/etc")
        (tmp_path / "allowed" / "link.pcap").symlink_to("/etc/passwd")
        for name, message in (("out/coven-test.pcap", "not allowed"), ("link.pcap", "cannot be opened")):
            plan["ports"][1] |= plans.pcap_port("wan", target=tmp_path / "allowed" / name)
            assert message in failed_deploy(platform, plan)["error"]["message"]


@needs_root
def test_a_folder_that_is_exchanged_for_a_link_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the look at where it leads, before it is opened: as who may write to the folder could do."""
    allowed, secret = tmp_path / "allowed", tmp_path / "secret"
    for folder in (allowed / "in", secret):
        folder.mkdir(parents=True)
    look = captures._allowed

    def exchanged(*given: Any) -> Any:
        found = look(*given)
        (allowed / "in").rmdir()
        (allowed / "in").symlink_to(secret)
        return found

    monkeypatch.setattr(captures, "_allowed", exchanged)
    with pytest.raises(CovenError, match="cannot be opened"):
        captures.open_output(allowed / "in" / "x.pcap", 0, Where(), folders=[str(allowed)])
    assert list(secret.iterdir()) == []


# ---- deaths ---------------------------------------------------------------------------------------------


def test_a_killed_component_comes_back(platform: PlatformUnderTest) -> None:
    platform.deploy(c_chain(platform))
    before = wait_tx(platform, 10)
    pid = platform.replica("fw-1", "one")["pid"]
    platform.kill(pid)
    replica = platform.wait_ready("fw-1", "one", other_than=pid)
    assert (replica["restarts"], replica["last_exit"]) == (1, "killed by SIGKILL")
    after = wait_tx(platform, before["tx"] + 10)
    assert after["balanced"]
    assert set(drops(platform)) <= {"component-crash", "component-down"}
    assert platform.instance("fw-1")["health"] == "ok"


def test_a_killed_worker_comes_back_with_flow_state(platform: PlatformUnderTest) -> None:
    plan = c_chain(platform, source=sources.COUNT_C, metrics=sources.COUNT_METRICS, state=sources.COUNT_STATE)
    platform.deploy(plan)
    wait_tx(platform, 50)
    pid = platform.instance("fw-1")["workers"][0]["pid"]
    platform.kill(pid)
    worker = platform.wait_worker("fw-1", other_than=pid)
    assert worker["restarts"] == 1
    now = wait_tx(platform, accounting(platform)["tx"] + 10)
    assert now["balanced"]
    total = platform.request("metrics", instance="fw-1")["components"]["one"]["total"]
    assert total["flows"] == 1  # the flow is still known
    assert total["flow-pkts"] > 50
    assert set(drops(platform)) <= {"worker-crash", "tx-uncertain"}


def hang(platform: PlatformUnderTest) -> None:
    with pytest.raises(CovenError) as caught:
        platform.request("agent", instance="fw-1", component="one", verb="call", name="hang", timeout_ms=300)
    assert caught.value.code == "component.not-answering"


def test_a_worker_in_which_a_component_hangs_is_replaced(platform: PlatformUnderTest) -> None:
    more = {"operations": sources.HANGS_ON_CALL_OPERATIONS, "isolation": "fused", "isolation_asked": "fused"}
    platform.deploy(c_chain(platform, source=sources.HANGS_ON_CALL_C, **more))
    pid = platform.instance("fw-1")["workers"][0]["pid"]
    hang(platform)
    assert platform.wait_worker("fw-1", other_than=pid)["last_exit"] == "hung: a fused component did not return"
    assert wait_tx(platform, accounting(platform)["tx"] + 10)["balanced"]


def test_a_component_that_hangs_is_healed(platform: PlatformUnderTest) -> None:
    plan = c_chain(platform, source=sources.HANGS_ON_CALL_C, operations=sources.HANGS_ON_CALL_OPERATIONS)
    platform.deploy(plan)
    pid = platform.replica("fw-1", "one")["pid"]
    hang(platform)
    platform.execute("heal", "fw-1", component="one")
    assert platform.replica("fw-1", "one")["pid"] not in (None, pid)
    assert wait_tx(platform, accounting(platform)["tx"] + 10)["balanced"]


def test_what_keeps_dying_is_parked_and_healed(platform: PlatformUnderTest) -> None:
    client = platform.connect()
    client.request("subscribe")
    platform.deploy(python_plan(platform, sources.DIES_PY, rate=200))
    event = client.wait_event(lambda e: e["type"] == "component-parked")
    client.close()
    assert event["output"][-1] == "last words of the dying"
    replica = platform.replica("fw-1", "one")
    assert (replica["state"], replica["pid"], replica["last_exit"]) == ("parked", None, "exit status 9")
    assert "last words of the dying" in replica["last_output"]
    instance = platform.instance("fw-1")
    assert instance["health"] == "failed"
    assert "parked" in instance["problems"][0]
    with pytest.raises(CovenError) as caught:
        platform.request("agent", instance="fw-1", component="one", verb="check")
    assert caught.value.code == "component.not-running"
    # Its code is mended in place, as an operator would after a look at the output.
    (platform.state_dir / "packages" / "demo" / "one" / "one.py").write_text(sources.FORWARD_PY)
    platform.execute("heal", "fw-1", component="one")
    assert platform.replica("fw-1", "one")["state"] == "ready"
    assert platform.instance("fw-1")["health"] == "ok"
    before = accounting(platform)["tx"]
    assert wait_tx(platform, before + 5)["balanced"]


def test_lines_and_names_outlive_the_supervisor(platform: PlatformUnderTest) -> None:
    """The lines that it had read are there, those written meanwhile follow, and a component may be called worker."""
    root = platform.package("demo", {"worker/worker.py": sources.TALKS_PY})
    ports = [plans.gen_port("lan"), plans.gen_port("wan")]
    operation = {"name": "say", "help": "", "arguments": [
        {"name": "text", "type": "string", "required": True, "default": None, "help": "", "enum": []}]}  # fmt: skip
    platform.deploy(plans.chain("fw-1", root, [plans.component("worker", root, "python", operations=[operation])], ports))
    pids = [platform.replica("fw-1", "worker")["pid"], platform.instance("fw-1")["workers"][0]["pid"]]

    def say(text: str) -> None:
        platform.request("agent", instance="fw-1", component="worker", verb="call", name="say", arguments={"text": text})

    def texts(n: int) -> list[str]:
        rows = platform.request("logs", instance="fw-1", component="worker", lines=n)["lines"]
        assert all(row["time"] > 1e9 for row in rows)
        return [row["text"] for row in rows]

    for n in range(1200):
        say(f"line {n} " + "x" * 400)
    before = texts(500)
    assert before[-1].startswith("line 1199 ")
    kept = sum(path.stat().st_size for path in (platform.run_dir / "logs").iterdir())
    assert 0 < kept < 600_000
    old = platform.supervisor_pid
    platform.kill(old)
    platform.wait_supervisor(other_than=old)
    assert texts(500) == before
    say("afterwards")
    platform.wait_for(lambda: texts(501) == [*before, "afterwards"], "the lines do not go on")
    assert pids == [platform.replica("fw-1", "worker")["pid"], platform.instance("fw-1")["workers"][0]["pid"]]
    platform.kill(pids[0])
    platform.wait_ready("fw-1", "worker", other_than=pids[0])
    assert platform.instance("fw-1")["workers"][0]["pid"] == pids[1]
    platform.execute("terminate", "fw-1", force=True)
    assert list((platform.run_dir / "logs").iterdir()) == []


def test_processes_that_a_component_left_are_gone_before_it_starts_again(platform: PlatformUnderTest) -> None:
    if not ROOT:
        pytest.skip("needs cgroups")
    platform.deploy(python_plan(platform, sources.FORKS_PY))
    pid = platform.replica("fw-1", "one")["pid"]
    lines = platform.request("logs", instance="fw-1", component="one", lines=10)["lines"]
    child = int(next(line["text"] for line in lines if line["text"].startswith("child")).split()[1])
    assert is_running(child)
    platform.kill(pid)
    platform.wait_ready("fw-1", "one", other_than=pid)
    assert not is_running(child)


@needs_root
def test_components_are_confined(platform: PlatformUnderTest) -> None:
    limits = {"memory_bytes": 64 << 20, "cpu": 0.5, "pids": 5}
    platform.deploy(c_chain(platform, limits=limits))
    replica = platform.replica("fw-1", "one")
    pid, worker = replica["pid"], platform.instance("fw-1")["workers"][0]["pid"]
    own = Path("/proc/self/ns/net").readlink()
    for process in (pid, worker):
        status = Path(f"/proc/{process}/status").read_text()
        assert re.search(r"^CapEff:\s*0+$", status, re.MULTILINE)
        assert re.search(r"^NoNewPrivs:\s*1$", status, re.MULTILINE)
        assert int(re.findall(r"^Uid:\s*(\d+)", status, re.MULTILINE)[0]) >= 1900000000
        assert Path(f"/proc/{process}/ns/net").readlink() != own
    groups = Path(f"/proc/{pid}/cgroup").read_text()
    if not platform.request("hello")["degraded"]:
        assert groups.count(f"{platform.platform_id}/fw-1.one.0") == 3
        found = {p.name: p.read_text().strip() for p in Path("/sys/fs/cgroup").glob(f"*/{platform.platform_id}/fw-1.one.0/*") if p.name in ("pids.max", "memory.limit_in_bytes", "cpu.cfs_quota_us")}  # fmt: skip
        if found:  # version 1
            assert found == {"pids.max": "5", "memory.limit_in_bytes": str(64 << 20), "cpu.cfs_quota_us": "50000"}


@needs_root
def test_segments_belong_to_who_maps_them_and_are_sealed(platform: PlatformUnderTest) -> None:
    import fcntl

    platform.deploy(c_chain(platform))
    pid = platform.replica("fw-1", "one")["pid"]
    segment = os.open(f"/proc/{pid}/fd/4", os.O_RDWR)
    try:
        assert fcntl.fcntl(segment, fcntl.F_GET_SEALS) & 7 == 7
        status = os.fstat(segment)
        assert (stat.S_IMODE(status.st_mode), status.st_uid) == (0o600, platform.replica("fw-1", "one")["uid"])
    finally:
        os.close(segment)
    name = platform.instance("fw-1")["stats_name"]
    status = (Path("/dev/shm") / name.lstrip("/")).stat()
    assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) == (0o640, 0, 1900000000)


# ---- takeover -------------------------------------------------------------------------------------------


def pids(platform: PlatformUnderTest) -> tuple[int, int]:
    instance = platform.instance("fw-1")
    return instance["workers"][0]["pid"], instance["components"][0]["replicas"][0]["pid"]


def test_a_killed_supervisor_stops_nothing(platform: PlatformUnderTest) -> None:
    platform.deploy(c_chain(platform))
    wait_tx(platform, 10)
    for _ in range(3):
        before, old = pids(platform), platform.supervisor_pid
        platform.kill(old)
        platform.wait_supervisor(other_than=old)
        assert pids(platform) == before
    now = wait_tx(platform, accounting(platform)["tx"] + 10)
    assert (now["balanced"], now["drops"]) == (True, 0)
    assert "uptime_ns" in platform.request("agent", instance="fw-1", component="one", verb="check")["values"]
    # and what dies later is brought back by the successor
    worker, component = pids(platform)
    platform.kill(component)
    assert platform.wait_ready("fw-1", "one", other_than=component)["last_exit"] == "killed by SIGKILL"
    platform.kill(worker)
    platform.wait_worker("fw-1", other_than=worker)
    assert wait_tx(platform, accounting(platform)["tx"] + 10)["balanced"]


def test_what_died_while_no_supervisor_was_there_comes_back(platform: PlatformUnderTest) -> None:
    platform.deploy(c_chain(platform))
    worker, component = pids(platform)
    old = platform.supervisor_pid
    os.kill(old, signal.SIGSTOP)
    for pid in (component, worker, old):
        os.kill(pid, signal.SIGKILL)
    wait_gone(old)
    platform.wait_supervisor(other_than=old)
    assert platform.wait_ready("fw-1", "one", other_than=component)["restarts"] == 1
    assert platform.wait_worker("fw-1", other_than=worker)["restarts"] == 1
    assert wait_tx(platform, accounting(platform)["tx"] + 10)["balanced"]


def test_reexec_keeps_everything(platform: PlatformUnderTest) -> None:
    platform.deploy(c_chain(platform))
    client = platform.connect()
    before, old = pids(platform), platform.supervisor_pid
    platform.request("reexec")
    with pytest.raises(ConnectionError):
        client.receive()
    client.close()
    assert platform.wait_supervisor()["pid"] == old
    assert pids(platform) == before
    assert wait_tx(platform, accounting(platform)["tx"] + 10)["drops"] == 0


def test_a_killed_keeper_is_replaced_and_loses_nothing(platform: PlatformUnderTest) -> None:
    platform.deploy(c_chain(platform))
    before = pids(platform)
    keeper, supervisor = platform.keeper, platform.supervisor_pid
    assert keeper is not None
    platform.keeper = None
    keeper.kill()
    keeper.wait()
    replacement = platform.wait_for(
        lambda: (pid := platform.request("hello")["keeper"]) != keeper.pid and pid, "no other keeper"
    )
    platform.kill(supervisor)
    assert platform.wait_supervisor(other_than=supervisor)["keeper"] == replacement
    assert pids(platform) == before
    assert wait_tx(platform, accounting(platform)["tx"] + 10)["drops"] == 0
    platform.request("shutdown", force=True)
    wait_gone(replacement)


def test_operations_are_remembered_by_the_successor(platform: PlatformUnderTest) -> None:
    name = platform.begin("instantiate", "fw-1", plan=c_chain(platform))
    before = platform.wait_operation(name)
    old = platform.supervisor_pid
    platform.kill(old)
    platform.wait_supervisor(other_than=old)
    after = platform.request("operation", operation=name)
    assert {k: after[k] for k in ("verb", "state", "error")} == {k: before[k] for k in ("verb", "state", "error")}
    assert [step["name"] for step in after["steps"]] == [step["name"] for step in before["steps"]]


# ---- without privileges ----------------------------------------------------------------------------------


@needs_root
def test_folders_that_are_missing_are_made_for_nobody_else(tmp_path: Path) -> None:
    """It ends without a keeper, after it has made its folders; an open umask must not matter."""
    options = ["--state-dir", str(tmp_path / "a" / "b" / "state"), "--run-dir", str(tmp_path / "c" / "d" / "run")]
    command = [sys.executable, "-m", "coven.supervisor", *options]
    ended = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False, umask=0)
    assert ended.returncode == 2, ended.stderr
    for folder in ("a", "a/b", "c", "c/d"):
        assert stat.S_IMODE((tmp_path / folder).stat().st_mode) == 0o755


@needs_root
def test_a_run_folder_below_tmp_that_somebody_else_made_is_refused(tmp_path: Path) -> None:
    user = 60000 + os.getpid() % 5000
    if not all(parent.stat().st_mode & 0o001 for parent in BIN.parents):
        pytest.skip("coven lies where other users cannot go")
    taken = Path(f"/tmp/coven-{user}")  # noqa: S108
    taken.mkdir(mode=0o777)
    try:
        environment = {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}
        command = [sys.executable, "-m", "coven.supervisor"]
        ended = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, user=user)
        assert ended.returncode == 1 and f"{taken} belongs to user 0" in ended.stderr
        assert list(taken.iterdir()) == []
    finally:
        taken.rmdir()


def test_without_root_everything_runs_under_one_user_and_says_what_is_missing() -> None:
    user = 65534
    if not all(parent.stat().st_mode & 0o001 for parent in BIN.parents):
        pytest.skip("coven lies where other users cannot go")
    with tempfile.TemporaryDirectory() as name:
        os.chown(name, user, user)
        with PlatformUnderTest(Path(name), user=user) as platform:
            hello = platform.request("hello")
            assert not hello["privileged"]
            assert [text for text in hello["degraded"] if "cgroup" in text]
            platform.deploy(c_chain(platform))
            wait_tx(platform, 10)
            assert platform.replica("fw-1", "one")["uid"] is None
            for pid in (*pids(platform), platform.supervisor_pid):
                assert Path(f"/proc/{pid}").stat().st_uid == user
            component = platform.replica("fw-1", "one")["pid"]
            platform.kill(component)
            platform.wait_ready("fw-1", "one", other_than=component)
            old = platform.supervisor_pid
            platform.kill(old)
            platform.wait_supervisor(other_than=old)
            assert wait_tx(platform, accounting(platform)["tx"] + 10)["balanced"]
        assert platform.leftovers() == []


# ---- leftovers ------------------------------------------------------------------------------------------


def test_a_platform_killed_as_a_whole_is_swept_at_the_next_start(tmp_path: Path) -> None:
    platform = PlatformUnderTest(tmp_path)
    platform.start()
    try:
        platform.deploy(c_chain(platform))
        worker, _ = pids(platform)
        platform.kill_keeper_and_supervisor()
        assert is_running(worker)  # forwards on, watched by nobody
        platform.start()
        assert platform.request("state")["instances"] == {}
        assert not is_running(worker)
        assert not list(Path("/dev/shm").glob(f"{platform.platform_id}-*"))
        platform.deploy(c_chain(platform))
        wait_tx(platform, 10)
    finally:
        platform.stop()
    assert platform.leftovers() == []


def test_an_idle_platform_does_nothing(platform: PlatformUnderTest) -> None:
    """No timer turns: between two looks at an idle supervisor and worker no processor time was used."""
    platform.deploy(c_chain(platform, packets=10, rate=0))
    wait_tx(platform, 9)
    keeper = platform.keeper
    assert keeper is not None
    watched = [keeper.pid, platform.supervisor_pid, pids(platform)[1]]
    platform._hang_up()

    def switches() -> list[int]:
        found = []
        for pid in watched:
            text = Path(f"/proc/{pid}/status").read_text()
            found += [int(n) for n in re.findall(r"^voluntary_ctxt_switches:\s*(\d+)", text, re.MULTILINE)]
        return found

    import select

    select.select([], [], [], 1.0)  # settling after the deployment
    before = switches()
    select.select([], [], [], 2.0)  # the time in which nothing must happen is the test itself
    grown = [b - a for a, b in zip(before, switches(), strict=True)]
    assert all(n <= 8 for n in grown), grown
