"""Run records in SQLite: who ran what under which policy, how it ended, what it used and what it tried.

Never stdin, environment, output or the arguments of a program. The daemon and embedded runs share one file (WAL,
https://sqlite.org/wal.html): a transaction survives the death of its process at once, the loss of power within a
checkpoint; no run waits for a disk.
"""

from __future__ import annotations

import builtins
import fcntl
import json
import os
import sqlite3
import threading
import time as clock
from collections.abc import Callable, Collection, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

import structlog

from supervisor.errors import AlreadyExists, InvalidRequest, NotFound, SupervisorError
from supervisor.evidence.rows import COLUMNS, from_row, to_row
from supervisor.model import RunRecord

SCHEMA_VERSION: Final = 2
STATES: Final = ("queued", "running", "ended")
LIST_MAX: Final = 10_000

_BUSY_SECONDS = 5.0
_PRUNE_BATCH = 1000
_CHECKPOINT_PAGES = 4000

# seq is SQLite's rowid: insertion order, hence the order of `list` and the cursor behind `before`.
_SCHEMA = """
CREATE TABLE runs (
    seq INTEGER PRIMARY KEY,
    run_id TEXT NOT NULL UNIQUE,
    instance TEXT NOT NULL,
    state TEXT NOT NULL,
    spec_digest TEXT NOT NULL,
    policy TEXT NOT NULL,
    policy_digest TEXT NOT NULL,
    backend TEXT NOT NULL,
    program TEXT NOT NULL,
    agent TEXT NOT NULL,
    request_id TEXT NOT NULL,
    labels TEXT,
    created_at REAL NOT NULL,
    started_at REAL,
    ended_at REAL,
    outcome TEXT,
    exit_code INTEGER,
    signal INTEGER,
    detail TEXT NOT NULL,
    usage TEXT,
    violations TEXT,
    enforcement TEXT,
    error TEXT,
    trace TEXT
);
CREATE UNIQUE INDEX runs_request ON runs (request_id) WHERE request_id != '';
CREATE INDEX runs_agent ON runs (agent) WHERE agent != '';
CREATE INDEX runs_open ON runs (seq) WHERE state != 'ended';
"""

_SELECT = f"SELECT {', '.join(COLUMNS)} FROM runs"
_INSERT = f"INSERT INTO runs (instance, {', '.join(COLUMNS)}) VALUES (?{', ?' * len(COLUMNS)})"  # names are ours
_FINISH = """UPDATE runs SET state = 'ended', policy_digest = ?, backend = ?, started_at = coalesce(?, started_at),
    ended_at = ?, outcome = ?, exit_code = ?, signal = ?, detail = ?, usage = ?, violations = ?, enforcement = ?, error = ?,
    trace = ?
    WHERE run_id = ?"""
_STARTED = "UPDATE runs SET state = 'running', started_at = ? WHERE run_id = ? AND state != 'ended'"
_LOST = """UPDATE runs SET state = 'ended', outcome = 'lost', ended_at = ?, detail = ?
    WHERE state != 'ended' AND instance NOT IN (SELECT value FROM json_each(?)) RETURNING run_id"""
_PRUNABLE = "SELECT seq, state = 'ended' AND ended_at < ?, created_at FROM runs WHERE seq > ? ORDER BY seq LIMIT ?"
_DELETE = "DELETE FROM runs WHERE seq IN (SELECT value FROM json_each(?)) RETURNING seq"
_LOST_DETAIL = "the supervisor that ran it ended before the run did"

_DAMAGED = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})

T = TypeVar("T")


class RunRecords:
    """The run records at `path`, made (file 0600, a missing directory 0700) when absent. Safe for threads and processes.

    A damaged database is moved aside to PATH.damaged-TIME and a new one begun. Every method raises SupervisorError with
    reason RECORDS_UNAVAILABLE when the file cannot be read or written (disk full, no permission, locked for 5 s), and so
    does the constructor; also for a file written by a newer version of this schema.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path).absolute()
        self._lock = threading.Lock()
        self._log = structlog.get_logger(__name__)
        with self._lock, self._translated():
            self._connection = self._open()

    def begin(self, record: RunRecord, instance: str) -> None:
        """Record a run that is about to start; `instance` names the supervisor process that runs it.

        Raises AlreadyExists, with the earlier run's id in the metadata, when its non-empty request_id has been used.
        """
        row = (instance, *to_row(record))
        try:
            self._do(lambda connection: connection.execute(_INSERT, row))
        except sqlite3.IntegrityError as error:
            if "request_id" not in str(error):
                raise SupervisorError(f"run {record.run_id} is already recorded", reason="RUN_ID_USED") from error
            raise self._request_used(record.request_id) from None

    def mark_started(self, run_id: str, time: float) -> None:
        """Record that the run's program executes since `time`; nothing happens to a run that has ended or is unknown."""
        self._do(lambda connection: connection.execute(_STARTED, (time, run_id)))

    def finish(self, record: RunRecord) -> None:
        """Record how a run ended. A run that was never begun, or whose record is gone, is recorded whole."""
        row = to_row(record)
        # policy_digest, backend; then started_at to the end but for created_at.
        values = (row[4], row[5], *row[11:], row[0])

        def write(connection: sqlite3.Connection) -> None:
            if connection.execute(_FINISH, values).rowcount == 0:
                connection.execute(_INSERT, ("", row[0], "ended", *row[2:]))

        try:
            self._do(write)
        except sqlite3.IntegrityError as error:
            raise self._request_used(record.request_id) from error

    def get(self, run_id: str) -> RunRecord:
        """The record of one run. Raises NotFound."""
        rows = self._rows(f"{_SELECT} WHERE run_id = ?", (run_id,))
        if not rows:
            raise NotFound(f"no run {run_id} is recorded", field="run_id", metadata={"run_id": run_id})
        return from_row(rows[0])

    def list(self, agent: str = "", state: str = "", limit: int = 100, before: str = "") -> builtins.list[RunRecord]:
        """At most `limit` records, newest first, of `agent` and in `state` where given, older than the run `before`.

        Raises InvalidRequest for a state that is none or a limit below 1; NotFound when `before` is not recorded.
        """
        if state and state not in STATES:
            raise InvalidRequest(f"state {state!r} is none of {', '.join(STATES)}", field="state")
        if limit < 1:
            raise InvalidRequest(f"limit {limit} is below 1", field="limit")
        clauses: builtins.list[str] = ["1"]
        values: builtins.list[object] = []
        if agent:
            clauses.append("agent = ?")
            values.append(agent)
        if state:
            clauses.append(
                "state = ?" if state == "ended" else "state = ? AND state != 'ended'"
            )  # the index's own words
            values.append(state)

        def read(connection: sqlite3.Connection) -> builtins.list[Any] | None:
            selected, bound = [*clauses], [*values]
            if before:
                found = connection.execute("SELECT seq FROM runs WHERE run_id = ?", (before,)).fetchone()
                if found is None:
                    return None
                selected.append("seq < ?")
                bound.append(found[0])
            query = f"{_SELECT} WHERE {' AND '.join(selected)} ORDER BY seq DESC LIMIT ?"
            return connection.execute(query, (*bound, min(limit, LIST_MAX))).fetchall()

        rows = self._do(read)
        if rows is None:
            raise NotFound(f"no run {before} is recorded", field="before", metadata={"run_id": before})
        return [from_row(row) for row in rows]

    def mark_lost(self, live_instances: Collection[str], time: float) -> builtins.list[str]:
        """End, as lost at `time`, every unfinished run of an instance that is not in `live_instances`; their run ids."""
        values = (time, _LOST_DETAIL, json.dumps(sorted(live_instances)))
        return [row[0] for row in self._rows(_LOST, values)]

    def prune(self, older_than: float) -> int:
        """Delete the records of runs that ended before `older_than`; how many. In short transactions, oldest first."""
        deleted, after = 0, 0
        while True:
            batch = self._rows(_PRUNABLE, (older_than, after, _PRUNE_BATCH))
            old = [seq for seq, is_old, _ in batch if is_old]
            deleted += len(self._rows(_DELETE, (json.dumps(old),)))
            # Runs are recorded in the order of their creation, so nothing behind a young batch is old.
            if len(batch) < _PRUNE_BATCH or batch[-1][2] >= older_than:
                return deleted
            after = batch[-1][0]

    def checkpoint(self) -> None:
        """Move the write-ahead log into the database, which waits for the disk: for a thread that may wait.

        Without it SQLite does so itself, inside every few hundredth `begin` or `finish`. Uses a connection of its own, so
        that runs go on meanwhile.
        """
        with self._translated(), closing(sqlite3.connect(self._path, timeout=_BUSY_SECONDS)) as connection:
            connection.execute("PRAGMA wal_checkpoint(PASSIVE)")

    def close(self) -> None:
        """Close the file; idempotent. Any other method then raises SupervisorError."""
        with self._lock:
            self._connection.close()

    def _rows(self, statement: str, values: tuple[object, ...]) -> builtins.list[Any]:
        return self._do(lambda connection: connection.execute(statement, values).fetchall())

    def _do(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """`work` with the connection, alone; once more on a new database when this one proves damaged."""
        with self._lock, self._translated():
            try:
                return work(self._connection)
            except sqlite3.DatabaseError as error:
                if not _is_damage(error):
                    raise
                self._connection.close()
                self._connection = self._replace(error)
                return work(self._connection)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.IntegrityError:
            raise
        except (sqlite3.Error, OSError) as error:
            raise SupervisorError(
                f"run records at {self._path}: {error}: free the disk or name another state_dir",
                reason="RECORDS_UNAVAILABLE",
                metadata={"path": str(self._path)},
            ) from error

    def _request_used(self, request_id: str) -> AlreadyExists:
        found = self._rows("SELECT run_id FROM runs WHERE request_id = ? AND request_id != ''", (request_id,))
        return AlreadyExists(
            f"request_id {request_id!r} has been used",
            field="request_id",
            metadata={"request_id": request_id, **({"run_id": found[0][0]} if found else {})},
        )

    def _open(self) -> sqlite3.Connection:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            return self._connect()
        except sqlite3.DatabaseError as error:
            if not _is_damage(error):
                raise
            return self._replace(error)

    def _connect(self) -> sqlite3.Connection:
        # SQLite gives its -wal and -shm files the mode of the database.
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        self._inode = os.fstat(descriptor).st_ino
        os.close(descriptor)
        connection = sqlite3.connect(
            self._path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False, cached_statements=64
        )
        try:
            connection.execute("PRAGMA journal_mode = WAL").fetchone()
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES}").fetchone()
            connection.execute("BEGIN IMMEDIATE")
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if version == 0:
                for statement in filter(str.strip, _SCHEMA.split(";")):
                    connection.execute(statement)
            elif version == 1:
                connection.execute("ALTER TABLE runs ADD COLUMN trace TEXT")
            if version < SCHEMA_VERSION:
                connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            connection.execute("COMMIT")
            if version > SCHEMA_VERSION:
                raise SupervisorError(
                    f"run records at {self._path} have schema {version}, newer than this version's {SCHEMA_VERSION}: "
                    "upgrade, or name another state_dir",
                    reason="RECORDS_UNAVAILABLE",
                )
            connection.execute(f"{_SELECT} ORDER BY seq DESC LIMIT 1").fetchone()
        except BaseException:
            connection.close()
            raise
        return connection

    def _replace(self, error: sqlite3.Error) -> sqlite3.Connection:
        """A new database in place of the damaged one, unless another process has just begun one."""
        directory = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(directory, fcntl.LOCK_EX)
            if self._path.exists() and self._path.stat().st_ino != self._inode:
                return self._connect()
            aside = self._path.with_name(f"{self._path.name}.damaged-{clock.time_ns()}")
            for suffix in ("-wal", "-shm", ""):
                source = Path(f"{self._path}{suffix}")
                if source.exists():
                    source.rename(f"{aside}{suffix}")
            self._log.warning("records.damaged", path=str(self._path), moved_to=str(aside), error=str(error))
            return self._connect()
        finally:
            os.close(directory)


def _is_damage(error: sqlite3.Error) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in _DAMAGED
