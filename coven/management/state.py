"""What the Management Agent must remember, in SQLite: packages, desired instances, operations.

WAL with full synchronisation: a transaction that returned is on disk, one that did not never happened, at
whichever instruction the agent is killed. The supervisor's state is not copied here; only what shall be.
"""

from __future__ import annotations

import json
import logging
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coven.errors import CovenError

log = logging.getLogger(__name__)

# One entry for each version of the schema, in order; a file of an older version is brought up step by step.
MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE package (
        id TEXT PRIMARY KEY, created REAL NOT NULL, document TEXT NOT NULL
    ) STRICT;
    CREATE TABLE instance (
        id TEXT PRIMARY KEY, package TEXT NOT NULL, created REAL NOT NULL,
        desired TEXT NOT NULL, request TEXT NOT NULL, plan TEXT NOT NULL, problem TEXT
    ) STRICT;
    CREATE TABLE operation (
        id TEXT PRIMARY KEY, instance TEXT NOT NULL, verb TEXT NOT NULL, created REAL NOT NULL,
        state TEXT NOT NULL, document TEXT NOT NULL
    ) STRICT;
    CREATE UNIQUE INDEX operation_one_at_a_time ON operation (instance) WHERE state = 'running';
    CREATE INDEX operation_by_time ON operation (created);
    """,
)
KEEP_OPERATIONS = 1000
TABLES = frozenset({"package", "instance", "operation"})

# Desired states of an instance.
PENDING = "pending"  # its first deployment is under way; goes away if that fails


@dataclass(frozen=True, slots=True)
class Instance:
    """What an instance shall be. `request` is what the operator asked for, `problem` why it is not there."""

    id: str
    package: str
    created: float
    desired: str  # PENDING, "instantiated", "started" or "stopped"
    request: dict[str, Any]
    plan: dict[str, Any]
    problem: dict[str, Any] | None = None


def move_aside(path: Path) -> Path:
    """Give a damaged file another name, with what SQLite keeps beside it; one such file is kept."""
    for suffix in ("-wal", "-shm", ""):
        beside = path.with_name(path.name + suffix)
        if beside.exists():
            beside.replace(path.with_name(f"{path.name}.damaged{suffix}"))
    return path.with_name(f"{path.name}.damaged")


def _unwritable(error: sqlite3.OperationalError) -> CovenError:
    """Give the error of a disk that takes nothing more; nothing of the transaction was kept."""
    return CovenError(
        "platform.no-resources",
        f"the agent cannot write down what it was asked to do: {error}",
        hint="make room on the disk of the state folder, or see why it cannot be written to",
    )


class Store:
    """The agent's database. Every method is one transaction; all threads may use it."""

    def __init__(self, path: Path) -> None:
        """Open or create the file and bring it to the present schema; a damaged one is moved aside."""
        self._lock = threading.RLock()
        try:
            self._open(path)
        except sqlite3.DatabaseError as error:
            if error.sqlite_errorcode not in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
                raise
            aside = move_aside(path)
            log.error("state=%s is damaged (%s); it is kept as %s, and a new one begun", path, error, aside)
            self._open(path)

    def _open(self, path: Path) -> None:
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=10)
        try:
            path.chmod(0o600)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            (found,) = self._db.execute("PRAGMA quick_check(1)").fetchone()
            self._migrate(path)
            tables = {row[0] for row in self._db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if found != "ok" or not tables >= TABLES:
                damage = sqlite3.DatabaseError(found if found != "ok" else "tables are missing")
                damage.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
                raise damage
        except BaseException:
            self._db.close()
            raise

    def _migrate(self, path: Path) -> None:
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version > len(MIGRATIONS):
            raise CovenError(
                "platform.internal",
                f"{path} was written by a later version of COVEN (schema {version})",
                hint="install that version, or move the file away to begin anew",
            )
        for number in range(version, len(MIGRATIONS)):
            # executescript would commit by itself: the whole step is one transaction of its own.
            self._db.executescript(
                f"BEGIN IMMEDIATE; {MIGRATIONS[number]}; PRAGMA user_version = {number + 1}; COMMIT;"
            )

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                self._db.execute("BEGIN IMMEDIATE")
                yield self._db
                self._db.execute("COMMIT")
            except BaseException as error:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                if isinstance(error, sqlite3.OperationalError):
                    raise _unwritable(error) from error
                raise

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    # ---- packages ----------------------------------------------------------------------------------

    def add_package(self, package_id: str, document: dict[str, Any]) -> None:
        """Remember a package that lies unpacked in its folder; raises package.exists."""
        try:
            self.add_packages({package_id: document})
        except sqlite3.IntegrityError:
            raise CovenError("package.exists", f"package {package_id} is already there") from None

    def add_packages(self, documents: Mapping[str, dict[str, Any]]) -> None:
        """Remember packages, all or none."""
        with self._transaction() as db:
            for package_id, document in documents.items():
                db.execute("INSERT INTO package VALUES (?, ?, ?)", (package_id, time.time(), json.dumps(document)))

    def is_empty(self) -> bool:
        """Tell whether nothing is remembered: at the first start, or when the file was lost."""
        with self._lock:
            counts = [self._db.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in TABLES]  # noqa: S608
        return not any(counts)

    def package(self, package_id: str) -> dict[str, Any]:
        """Give the document of a package; raises package.not-found."""
        with self._lock:
            row = self._db.execute("SELECT document FROM package WHERE id = ?", (package_id,)).fetchone()
        if row is None:
            raise CovenError(
                "package.not-found",
                f"there is no package '{package_id}'",
                hint="'coven packages' shows those that are there",
            )
        document: dict[str, Any] = json.loads(row[0])
        return document

    def packages(self) -> list[dict[str, Any]]:
        """Give the documents of all packages, oldest first."""
        with self._lock:
            rows = self._db.execute("SELECT document FROM package ORDER BY created, id").fetchall()
        return [json.loads(row[0]) for row in rows]

    def remove_package(self, package_id: str) -> None:
        """Forget a package that no instance uses; raises package.not-found, package.in-use."""
        with self._transaction() as db:
            users = db.execute("SELECT id FROM instance WHERE package = ? ORDER BY id", (package_id,)).fetchall()
            if users:
                names = ", ".join(row[0] for row in users)
                raise CovenError(
                    "package.in-use",
                    f"package {package_id} is used by {names}",
                    hint="terminate these instances first",
                )
            self.package(package_id)
            db.execute("DELETE FROM package WHERE id = ?", (package_id,))

    # ---- instances ---------------------------------------------------------------------------------

    def add_instance(self, instance: Instance, operation: dict[str, Any] | None) -> None:
        """Remember an instance together with the operation that makes it.

        Raises instance.exists, and package.not-found if the package went away meanwhile.
        """
        try:
            with self._transaction() as db:
                if operation is not None:
                    self.package(instance.package)
                    self._insert_operation(db, operation)
                db.execute(
                    "INSERT INTO instance VALUES (?, ?, ?, ?, ?, ?, NULL)",
                    (
                        instance.id,
                        instance.package,
                        instance.created,
                        instance.desired,
                        json.dumps(instance.request),
                        json.dumps(instance.plan),
                    ),
                )
        except sqlite3.IntegrityError:
            raise CovenError(
                "instance.exists",
                f"an instance '{instance.id}' is already there",
                hint="choose another id, or terminate that instance",
            ) from None

    def instance(self, instance_id: str) -> Instance:
        """Give an instance; raises instance.not-found."""
        with self._lock:
            row = self._db.execute("SELECT * FROM instance WHERE id = ?", (instance_id,)).fetchone()
        if row is None:
            raise CovenError(
                "instance.not-found",
                f"there is no instance '{instance_id}'",
                hint="'coven status' shows those that are there",
            )
        return _instance(row)

    def instances(self) -> list[Instance]:
        """Give all instances, oldest first."""
        with self._lock:
            rows = self._db.execute("SELECT * FROM instance ORDER BY created, id").fetchall()
        return [_instance(row) for row in rows]

    def set_plan(self, instance_id: str, plan: dict[str, Any]) -> None:
        """Replace the plan of an instance that is not deployed."""
        with self._transaction() as db:
            db.execute("UPDATE instance SET plan = ? WHERE id = ?", (json.dumps(plan), instance_id))

    # ---- operations --------------------------------------------------------------------------------

    def claim(self, operation: dict[str, Any]) -> None:
        """Remember an operation as running; raises instance.busy while another one of the instance is."""
        try:
            with self._transaction() as db:
                self._insert_operation(db, operation)
        except sqlite3.IntegrityError:
            raise CovenError(
                "instance.busy",
                f"another operation on '{operation['instance']}' is under way",
                hint="wait until it ends; 'GET /v1/operations' shows it",
            ) from None

    @staticmethod
    def _insert_operation(db: sqlite3.Connection, operation: dict[str, Any]) -> None:
        db.execute(
            "INSERT INTO operation VALUES (?, ?, ?, ?, ?, ?)",
            (
                operation["id"],
                operation["instance"],
                operation["verb"],
                operation["started"],
                operation["state"],
                json.dumps(operation),
            ),
        )
        db.execute(
            "DELETE FROM operation WHERE state != 'running' AND id NOT IN "
            "(SELECT id FROM operation ORDER BY created DESC LIMIT ?)",
            (KEEP_OPERATIONS,),
        )

    def withdraw(self, operation_id: str, *, instance: str | None = None) -> None:
        """Forget an operation that was never begun, and the pending instance it would have made."""
        with self._transaction() as db:
            db.execute("DELETE FROM operation WHERE id = ?", (operation_id,))
            if instance is not None:
                db.execute("DELETE FROM instance WHERE id = ? AND desired = ?", (instance, PENDING))

    def settle(
        self,
        operation: dict[str, Any],
        *,
        desired: str | None = None,
        problem: dict[str, Any] | None = None,
        forget: bool = False,
    ) -> bool:
        """Write down how an operation ended and what that means for its instance, as one step.

        Gives False, and changes nothing, if it was settled before: events and reconciliation may both
        report the same end.
        """
        with self._transaction() as db:
            changed = db.execute(
                "UPDATE operation SET state = ?, document = ? WHERE id = ? AND state = 'running'",
                (operation["state"], json.dumps(operation), operation["id"]),
            ).rowcount
            if not changed:
                return False
            if forget:
                db.execute("DELETE FROM instance WHERE id = ?", (operation["instance"],))
            else:
                db.execute(
                    "UPDATE instance SET desired = coalesce(?, desired), problem = ? WHERE id = ?",
                    (desired, json.dumps(problem) if problem else None, operation["instance"]),
                )
        return True

    def operation(self, operation_id: str) -> dict[str, Any]:
        """Give an operation as last written down; raises operation.not-found."""
        with self._lock:
            row = self._db.execute("SELECT document FROM operation WHERE id = ?", (operation_id,)).fetchone()
        if row is None:
            raise CovenError("operation.not-found", f"there is no operation '{operation_id}'")
        document: dict[str, Any] = json.loads(row[0])
        return document

    def operations(self, *, instance: str | None = None, limit: int = 100) -> list[dict[str, Any]]:
        """Give the latest operations, newest first."""
        with self._lock:
            rows = self._db.execute(
                "SELECT document FROM operation WHERE ? IS NULL OR instance = ? ORDER BY created DESC, id LIMIT ?",
                (instance, instance, limit),
            ).fetchall()
        return [json.loads(row[0]) for row in rows]

    def running(self) -> list[dict[str, Any]]:
        """Give the operations whose end is not written down."""
        with self._lock:
            rows = self._db.execute("SELECT document FROM operation WHERE state = 'running'").fetchall()
        return [json.loads(row[0]) for row in rows]


def _instance(row: tuple[Any, ...]) -> Instance:
    id_, package, created, desired, request, plan, problem = row
    return Instance(
        id_,
        package,
        created,
        desired,
        json.loads(request),
        json.loads(plan),
        json.loads(problem) if problem else None,
    )
