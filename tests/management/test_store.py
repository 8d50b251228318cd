"""The agent's database and event log by themselves."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from coven.errors import CovenError
from coven.management import events, state
from coven.management.events import EventLog
from coven.management.operations import new_operation
from coven.management.state import PENDING, Instance, Store


def instance(name: str) -> Instance:
    """Give an instance of package `p`."""
    return Instance(name, "p", 1.0, PENDING, {}, {})


def test_one_operation_at_a_time_and_settled_once(tmp_path: Path) -> None:
    store = Store(tmp_path / "db")
    store.add_package("p", {"id": "p"})
    first = new_operation("deploy", "fw")
    store.add_instance(instance("fw"), first)
    with pytest.raises(CovenError, match=r"instance\.busy"):
        store.claim(new_operation("stop", "fw"))
    store.claim(new_operation("stop", "other"))
    ended = {**first, "state": "succeeded"}
    assert store.settle(ended, desired="started")
    assert not store.settle({**ended, "state": "failed"}, forget=True)  # it was settled before
    assert store.instance("fw").desired == "started"
    store.claim(new_operation("stop", "fw"))


def test_what_cannot_be_added_leaves_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path / "db")
    operation = new_operation("deploy", "fw")
    with pytest.raises(CovenError, match=r"package\.not-found"):
        store.add_instance(instance("fw"), operation)
    store.add_package("p", {"id": "p"})
    store.add_instance(instance("fw"), None)
    with pytest.raises(CovenError, match=r"instance\.exists"):
        store.add_instance(instance("fw"), operation)
    assert store.operations() == []
    with pytest.raises(CovenError, match=r"package\.in-use"):
        store.remove_package("p")


def test_old_operations_go_and_running_ones_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state, "KEEP_OPERATIONS", 5)
    store = Store(tmp_path / "db")
    running = {**new_operation("stop", "fw"), "started": 0.0}
    store.claim(running)
    for number in range(20):
        operation = {**new_operation("stop", f"fw-{number}"), "started": float(number + 1)}
        store.claim(operation)
        store.settle({**operation, "state": "succeeded"})
    kept = store.operations()
    assert len(kept) <= 7 and running["id"] in {found["id"] for found in kept}


def test_a_schema_is_brought_up_and_a_later_one_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path / "db")
    store.add_package("p", {"id": "p"})
    store.close()
    more = (*state.MIGRATIONS, "ALTER TABLE package ADD COLUMN signer TEXT")
    monkeypatch.setattr(state, "MIGRATIONS", more)
    Store(tmp_path / "db").close()
    with sqlite3.connect(tmp_path / "db") as db:
        assert db.execute("SELECT id, signer FROM package").fetchall() == [("p", None)]
        assert db.execute("PRAGMA user_version").fetchone() == (len(more),)
    monkeypatch.undo()
    with pytest.raises(CovenError, match="later version"):
        Store(tmp_path / "db")


def test_a_step_of_the_schema_happens_as_a_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Store(tmp_path / "db").close()
    broken = (*state.MIGRATIONS, "CREATE TABLE extra (a INTEGER) STRICT; CREATE TABLE package (a)")
    monkeypatch.setattr(state, "MIGRATIONS", broken)
    with pytest.raises(sqlite3.OperationalError):
        Store(tmp_path / "db")
    monkeypatch.undo()
    Store(tmp_path / "db").close()
    with sqlite3.connect(tmp_path / "db") as db:
        names = {row[0] for row in db.execute("SELECT name FROM sqlite_master")}
    assert "extra" not in names


def test_what_was_said_to_be_written_survives_kill(tmp_path: Path) -> None:
    """A writer is killed over and over; nothing that it reported is missing, nothing is half there."""
    code = (
        "import sys; from pathlib import Path; from coven.management.state import Store\n"
        "store = Store(Path(sys.argv[1])); n = int(sys.argv[2])\n"
        "while True:\n"
        "    store.add_package(f'p{n}', {'id': f'p{n}'}); print(n, flush=True); n += 1\n"
    )
    told = -1
    for round_ in range(6):
        command = [sys.executable, "-c", code, str(tmp_path / "db"), str(told + 2)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            for _ in range(3 + 5 * round_):
                told = int(child.stdout.readline())
            os.kill(child.pid, signal.SIGKILL)
            told = max([told, *(int(line) for line in child.stdout if line.endswith("\n"))])
        store = Store(tmp_path / "db")
        assert store.package(f"p{told}") == {"id": f"p{told}"}
        store.close()
    with sqlite3.connect(tmp_path / "db") as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_events_are_numbered_across_restarts_and_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "MAX_BYTES", 2000)
    log = EventLog(tmp_path / "events.jsonl")
    for number in range(100):
        log.append({"type": "test", "number": number})
    again = EventLog(tmp_path / "events.jsonl")
    assert again.append({"type": "last"})["sequence"] == 101
    found = again.after(0, limit=1000)
    numbers = [event["sequence"] for event in found]
    assert numbers == list(range(numbers[0], 102)) and len(numbers) > 10
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 2 * 2200
    assert again.latest(1)[0]["type"] == "last"


def test_a_line_that_a_kill_cut_short_goes(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    EventLog(path).append({"type": "whole"})
    with path.open("a") as file:
        file.write('{"type": "ha')
    log = EventLog(path)
    log.append({"type": "next"})
    assert [json.loads(line)["type"] for line in path.read_text().splitlines()] == ["whole", "next"]
    assert [event["sequence"] for event in log.after(0)] == [1, 2]


def test_a_damaged_file_is_kept_and_a_new_one_begun(tmp_path: Path) -> None:
    path = tmp_path / "db"
    store = Store(path)
    store.add_package("p", {"id": "p"})
    assert not store.is_empty()
    store.close()
    path.write_bytes(b"SQLite format 3\0" + b"\0" * 500)
    again = Store(path)
    assert again.is_empty()
    again.add_package("p", {"id": "p"})
    assert (tmp_path / "db.damaged").read_bytes().startswith(b"SQLite format 3\0\0")
    again.close()
    db = sqlite3.connect(path)
    db.execute("DROP TABLE operation")
    db.close()
    assert Store(path).is_empty()


def test_events_are_told_though_they_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    log = EventLog(tmp_path / "events")
    log.append({"type": "first"})
    monkeypatch.setattr(log, "_file", os.open("/dev/full", os.O_WRONLY))
    log.append({"type": "second"})
    assert [event["type"] for event in log.latest(9)] == ["first", "second"]
    assert "cannot be written" in caplog.text
