"""Parts of the supervisor that need no process: journal, operations, back-off, cgroup files, arguments."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from coven import priority
from coven.errors import CovenError
from coven.model import Limits
from coven.supervisor import cgroup, journal
from coven.supervisor.backoff import BackOff
from coven.supervisor.config import parse_arguments
from coven.supervisor.journal import Journal
from coven.supervisor.operation import Operation, Runner, Step, from_record

# ---- journal and operations ------------------------------------------------------------------------------


class World:
    """Steps that note what they did."""

    def __init__(self, fails: str = "", undo_fails: str = "") -> None:
        self.done: list[str] = []
        self.fails, self.undo_fails = fails, undo_fails

    def step(self, name: str, group: int = 0) -> Step:
        async def do() -> None:
            self.done.append(name)
            if name == self.fails:
                raise CovenError("platform.internal", f"{name} fails")

        async def undo() -> None:
            self.done.append(f"undo {name}")
            if name == self.undo_fails:
                raise RuntimeError("cannot")

        return Step(name, name, do, undo, group)

    def operation(self, *names: str) -> Operation:
        return Operation("op", "deploy", "fw-1", {"force": False}, [self.step(name) for name in names])


def run(operation: Operation, folder: Path, record: journal.Record | None = None) -> None:
    pen = Journal(folder / "op.jsonl")
    if record is None:
        pen.write(operation.head())
    runner = Runner(operation, pen, lambda *_: None)
    if record is not None:
        runner.restore(record)
    asyncio.run(runner.run())


def test_an_operation_runs_its_steps_in_order(tmp_path: Path) -> None:
    world = World()
    operation = world.operation("a", "b", "c")
    run(operation, tmp_path)
    assert world.done == ["a", "b", "c"]
    assert (operation.state, operation.to_json()["progress"]) == ("succeeded", 1.0)
    record = journal.read(tmp_path / "op.jsonl")
    assert record is not None
    assert record.end is not None
    assert from_record(record).to_json()["steps"] == operation.to_json()["steps"]


def test_a_failure_rolls_back_in_reverse_and_the_failed_step_too(tmp_path: Path) -> None:
    world = World(fails="b")
    operation = world.operation("a", "b", "c")
    run(operation, tmp_path)
    assert world.done == ["a", "b", "undo b", "undo a"]
    assert [step.state for step in operation.steps] == ["undone", "failed", "pending"]
    assert (operation.state, operation.error.message if operation.error else "") == ("rolled-back", "b fails")


def test_an_undo_that_fails_does_not_keep_the_others(tmp_path: Path) -> None:
    world = World(fails="c", undo_fails="b")
    operation = world.operation("a", "b", "c")
    run(operation, tmp_path)
    assert world.done == ["a", "b", "c", "undo c", "undo b", "undo a"]
    assert [step.state for step in operation.steps] == ["undone", "undo-failed", "failed"]
    assert operation.state == "failed"


def test_steps_of_a_group_run_together_and_all_faults_are_told(tmp_path: Path) -> None:
    begun: list[str] = []
    both = asyncio.Event()

    def meeting(name: str) -> Step:
        async def do() -> None:
            begun.append(name)
            if len(begun) == 2:
                both.set()
            await asyncio.wait_for(both.wait(), 5)
            raise CovenError("platform.internal", name)

        return Step(name, name, do, group=1)

    operation = Operation("op", "deploy", "fw-1", {}, [meeting("a"), meeting("b")])
    run(operation, tmp_path)
    assert operation.error is not None
    assert [finding.message for finding in operation.error.findings] == ["a", "b"]


def cut(folder: Path, lines: int) -> journal.Record:
    """What a successor reads when the supervisor died after so many lines of a whole journal."""
    path = folder / "op.jsonl"
    kept = path.read_text().splitlines()[:lines]
    path.write_text("\n".join(kept) + "\n")
    record = journal.read(path)
    assert record is not None
    return record


@pytest.mark.parametrize("lines", range(1, 8))
def test_a_successor_goes_on_where_the_journal_ends(tmp_path: Path, lines: int) -> None:
    run(World().operation("a", "b", "c"), tmp_path)
    record = cut(tmp_path, lines)
    world = World()
    operation = world.operation("a", "b", "c")
    run(operation, tmp_path, record)
    finished = "abc"[: (lines - 1) // 2]
    cut_off = "abc"[len(finished)] if lines % 2 == 0 else ""
    expected = [f"undo {cut_off}"] * bool(cut_off) + list("abc"[len(finished) :])
    assert world.done == expected
    assert (operation.state, operation.resumed) == ("succeeded", True)


def test_a_successor_finishes_a_roll_back(tmp_path: Path) -> None:
    run(World(fails="c").operation("a", "b", "c"), tmp_path)
    lines = (tmp_path / "op.jsonl").read_text().splitlines()
    begun = next(n for n, line in enumerate(lines) if "rolling_back" in line)
    record = cut(tmp_path, begun + 2)  # the undo of c is the last that was noted
    world = World()
    operation = world.operation("a", "b", "c")
    run(operation, tmp_path, record)
    assert [name for name in world.done if name != "undo c"] == ["undo b", "undo a"]
    assert operation.state == "rolled-back"
    assert operation.error is not None
    assert operation.error.message == "c fails"


def test_a_line_that_was_cut_off_counts_as_not_written(tmp_path: Path) -> None:
    run(World().operation("a", "b"), tmp_path)
    path = tmp_path / "op.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.rindex(b"\n", 0, -1) + 10])
    record = journal.read(path)
    assert record is not None
    assert record.end is None
    path.write_bytes(whole[:5])
    assert journal.read(path) is None


def test_old_journals_are_removed_but_not_open_ones(tmp_path: Path) -> None:
    for n in range(journal.KEPT + 5):
        (tmp_path / f"op-{n:03}.jsonl").write_text(json.dumps({"operation": {"id": f"op-{n:03}"}}) + "\n")
    journal.prune(tmp_path, keep={"op-000"})
    left = {path.stem for path in tmp_path.glob("*.jsonl")}
    assert "op-000" in left
    assert len(left) <= journal.KEPT + 1


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "x" * 65, "a b", "a\n"])
def test_names_of_operations_are_names_of_files(name: str) -> None:
    assert not journal.OPERATION_PATTERN.fullmatch(name)


# ---- back-off ---------------------------------------------------------------------------------------------


def test_restarts_at_once_then_later_then_not_at_all() -> None:
    back_off = BackOff()
    assert [back_off.died(now) for now in (0.0, 1.0, 2.0, 3.0, 4.0)] == [0.0, 0.1, 0.2, 0.4, None]
    back_off.reset()
    assert back_off.died(5.0) == 0.0


def test_deaths_far_apart_do_not_add_up() -> None:
    back_off = BackOff()
    assert {back_off.died(now * 31.0) for now in range(10)} == {0.0}
    steady = BackOff()
    waits = [steady.died(now * 9.0) for now in range(12)]
    assert None not in waits
    assert max(wait for wait in waits if wait is not None) == 5.0


def test_starts_that_fail_add_up_however_long_each_takes() -> None:
    hanging = BackOff()
    assert hanging.died(0.0) == 0.0
    assert [hanging.start_failed(now * 60.0) for now in range(1, 6)] == [0.0, 0.0, 0.0, 0.0, None]
    hanging = BackOff()
    assert [hanging.start_failed(now * 60.0) for now in range(1, 5)] == [0.0] * 4
    assert hanging.died(600.0) == 0.0, "it was ready in between"
    assert hanging.start_failed(660.0) == 0.0


# ---- cgroups ----------------------------------------------------------------------------------------------


def fake_files(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_text("")


def test_version_2_is_used_when_it_has_the_controllers(tmp_path: Path) -> None:
    """A tree of plain files for the limits; the kernel's rules have tests of their own (test_cgroup_v2.py)."""
    base = tmp_path / "system.slice" / "coven.service"
    fake_files(base, "cgroup.procs", "cgroup.subtree_control")
    (base / "cgroup.controllers").write_text("cpu memory pids\n")
    fake_files(base / "coven-x", "cgroup.subtree_control")
    found = cgroup.find("coven-x", mounts=f"cgroup2 {tmp_path} cgroup2 rw 0 0\n", own="0::/system.slice/coven.service\n")
    assert (found.version, found.folders, found.missing) == (2, [base / "coven-x"], [])
    assert (base / "cgroup.subtree_control").read_text() == "+memory +cpu +pids"
    fake_files(base / "coven-x" / "one", "memory.swap.max")
    (folder,) = cgroup.create(found, "one", Limits(memory_bytes=1 << 20, cpu=0.25, pids=7))
    values = {path.name: path.read_text() for path in folder.iterdir()}
    assert values == {
        "memory.max": "1048576", "memory.swap.max": "0", "memory.oom.group": "1", "cpu.max": "25000 100000", "pids.max": "7",
    }  # fmt: skip
    (folder / "memory.swap.max").unlink()
    cgroup.create(found, "one", Limits())
    assert not (folder / "memory.swap.max").exists()


def test_version_1_is_used_where_version_2_has_too_little(tmp_path: Path) -> None:
    unified = tmp_path / "unified"
    fake_files(unified)
    (unified / "cgroup.controllers").write_text("hugetlb\n")
    for name in ("memory", "pids"):
        fake_files(tmp_path / name)
    mounts = f"cgroup2 {unified} cgroup2 rw 0 0\ncgroup {tmp_path}/memory cgroup rw,memory 0 0\ncgroup {tmp_path}/pids cgroup rw,pids 0 0\n"
    found = cgroup.find("coven-x", mounts=mounts, own="0::/\n")
    assert (found.version, set(found.roots)) == (1, {"memory", "pids"})
    assert len(found.missing) == 1
    assert "cpu" in found.missing[0]
    folders = cgroup.create(found, "one", Limits(memory_bytes=1 << 20, cpu=0.25, pids=7))
    assert (folders[0] / "memory.limit_in_bytes").read_text() == "1048576"


def test_a_host_without_cgroups_is_told() -> None:
    found = cgroup.find("coven-x", mounts="proc /proc proc rw 0 0\n", own="")
    assert (found.version, found.folders, len(found.missing)) == (0, [], 3)


# ---- arguments --------------------------------------------------------------------------------------------


def test_arguments_behind_the_dashes_are_the_agents() -> None:
    settings = parse_arguments(["--run-dir", "/r", "--state-dir", "s", "--", "--listen", "127.0.0.1:1"])
    assert settings.agent_arguments == ("--listen", "127.0.0.1:1")
    assert settings.state_dir.is_absolute()
    assert settings.argv[-3:] == ("--", "--listen", "127.0.0.1:1")


def test_a_program_that_was_replaced_does_not_pass_its_keeper_on() -> None:
    settings = parse_arguments(["--keeper-pid", "77", "--run-dir", "/r"])
    assert settings.keeper_pid == 77
    assert "--keeper-pid" not in settings.argv


def test_two_run_directories_are_two_platforms() -> None:
    def name(folder: str) -> Any:
        return parse_arguments(["--run-dir", folder]).platform_id

    assert name("/run/a") != name("/run/b")
    assert name("/run/a") == name("/run/a")


# ---- constants --------------------------------------------------------------------------------------------


def test_numbers_written_here_are_those_of_the_headers() -> None:
    from coven.dataplane.core import ffi, lib
    from coven.supervisor import component, component_process, control, lane, requests

    assert requests.ABI_VERSION == lib.COVEN_ABI_VERSION
    for name in ("DOORBELL", "AGENT", "REPLICA", "STATE", "WORKER", "POOL"):
        assert getattr(component_process, f"FD_{name}") == getattr(lib, f"COVEN_FD_{name}")
    for name in ("PLAN", "POOL", "REPLICA", "STATE", "LEDGER", "STATS"):
        assert getattr(lane, name) == getattr(lib, f"COVEN_SEGMENT_{name}")
    for name in ("SEGMENT", "PORT", "CODE", "READY", "RUN", "PAUSE", "ATTACH", "DETACH", "SNAPSHOT", "AGENT", "EXIT", "ATTENTION"):  # fmt: skip
        assert getattr(control, name) == getattr(lib, f"COVEN_CONTROL_{name}")
    for name in ("POISON_CLEAR", "NOTIFY"):
        assert getattr(control, name) == getattr(lib, f"COVEN_CONTROL_{name}")
    for name in ("STILL", "HUNG", "MOVING", "FUSED"):
        assert getattr(control, name) == getattr(lib, f"COVEN_NOTICE_{name}")
    for name in ("ETHER", "IP", "UDP", "TCP", "ND"):
        assert getattr(priority, name) == getattr(lib, f"COVEN_PRIORITY_{name}")
    assert priority.MOST == lib.COVEN_MAX_PRIORITIES
    assert control.REPLY == lib.COVEN_CONTROL_REPLY
    assert ffi.sizeof(ffi.new("struct coven_replica *").last_words) == component.LAST_WORDS_BYTES
