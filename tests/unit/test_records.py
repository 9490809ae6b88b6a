"""Run records on a real SQLite file: what is kept, in what order, and what survives damage and other processes."""

from __future__ import annotations

import multiprocessing
import sqlite3
import stat
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from supervisor.errors import AlreadyExists, InvalidRequest, NotFound, SupervisorError
from supervisor.evidence.records import SCHEMA_VERSION, RunRecords
from supervisor.model import Enforcement, Outcome, RunRecord, StartError, Usage, Violation


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "records" / "runs.db"


@pytest.fixture
def records(path: Path) -> Iterator[RunRecords]:
    opened = RunRecords(path)
    yield opened
    opened.close()


def queued(run_id: str, **changes: object) -> RunRecord:
    record = RunRecord(
        run_id=run_id,
        state="queued",
        spec_digest="aa",
        policy="strict",
        policy_digest="bb",
        backend="native",
        program="/bin/true",
        created_at=100.0,
    )
    return replace(record, **changes)  # type: ignore[arg-type]


def ended(record: RunRecord, **changes: object) -> RunRecord:
    whole = replace(record, state="ended", started_at=101.0, ended_at=102.0, outcome=Outcome.EXITED, exit_code=0)
    return replace(whole, **changes)  # type: ignore[arg-type]


FULL = ended(
    queued("full", agent="a", request_id="q", labels={"task": "7", "": "ü"}),
    outcome=Outcome.VIOLATION,
    exit_code=None,
    signal=31,
    detail="killed: ptrace",
    usage=Usage(1.5, 0.1, 0.2, 4096, 3, None, None, 0, 0, 0, 0.0),
    violations=(
        Violation("r", "syscall", "high", "kill", 101.5, syscall="ptrace", abi="x86_64", args=(1, 2**64 - 1, 0), pid=2),
        Violation("r2", "open", "low", "log", 101.6, path="/tmp/\udcff\n"),
    ),
    enforcement=Enforcement(namespaces=("pid", "mount"), cgroup="hybrid", seccomp="x", missing=("io_read_bytes",)),
    error=StartError("exec", 2, "ENOENT"),
)


def test_everything_comes_back(records: RunRecords) -> None:
    begun = queued("full", agent="a", request_id="q", labels={"task": "7", "": "ü"})
    records.begin(begun, "i")
    assert records.get("full") == begun
    records.mark_started("full", 101.0)
    assert records.get("full") == replace(begun, state="running", started_at=101.0)
    records.finish(FULL)
    assert records.get("full") == FULL


def test_what_was_never_begun_is_recorded_whole(records: RunRecords) -> None:
    records.finish(FULL)
    assert records.get("full") == FULL


def test_finish_keeps_the_start_that_was_marked(records: RunRecords) -> None:
    records.begin(queued("a"), "i")
    records.mark_started("a", 5.0)
    records.finish(ended(queued("a"), started_at=None))
    assert records.get("a").started_at == 5.0


def test_a_late_start_does_not_reopen(records: RunRecords) -> None:
    records.finish(ended(queued("a")))
    records.mark_started("a", 500.0)
    records.mark_started("unknown", 500.0)
    assert records.get("a") == ended(queued("a"))


def test_a_request_id_is_used_once(records: RunRecords) -> None:
    records.begin(queued("a", request_id="x"), "i")
    with pytest.raises(AlreadyExists) as caught:
        records.begin(queued("b", request_id="x"), "i")
    assert caught.value.metadata["run_id"] == "a"
    records.begin(queued("c"), "i")
    records.begin(queued("d"), "i")
    with pytest.raises(SupervisorError, match="already recorded"):
        records.begin(queued("d"), "i")


def test_text_that_is_no_unicode(records: RunRecords) -> None:
    records.begin(queued("a", program="/x\udcff", detail="a\0b"), "i")
    assert records.get("a").program == "/x\ufffd"
    assert records.get("a").detail == "a\0b"


def test_list(records: RunRecords) -> None:
    for number in range(10):
        record = queued(f"r{number}", agent="ab"[number % 2], created_at=float(number))
        records.begin(record, "i")
        if number < 6:
            records.finish(ended(record))
    records.mark_started("r6", 1.0)
    ids = lambda **query: [record.run_id for record in records.list(**query)]  # noqa: E731
    assert ids() == [f"r{number}" for number in reversed(range(10))]
    assert ids(limit=3) == ["r9", "r8", "r7"]
    assert ids(limit=3, before="r7") == ["r6", "r5", "r4"]
    assert ids(agent="a", limit=2, before="r6") == ["r4", "r2"]
    assert ids(state="running") == ["r6"]
    assert ids(state="queued", agent="b") == ["r9", "r7"]
    assert ids(state="ended", limit=2) == ["r5", "r4"]
    assert ids(before="r0") == []


def test_list_refuses_what_means_nothing(records: RunRecords) -> None:
    with pytest.raises(InvalidRequest):
        records.list(state="done")
    with pytest.raises(InvalidRequest):
        records.list(limit=0)
    with pytest.raises(NotFound):
        records.list(before="none")
    with pytest.raises(NotFound):
        records.get("none")


def test_lost(records: RunRecords) -> None:
    for number, instance in enumerate(("dead", "alive", "dead")):
        records.begin(queued(f"r{number}"), instance)
    records.finish(ended(queued("r2")))
    records.mark_started("r0", 101.0)
    assert records.mark_lost({"alive"}, 200.0) == ["r0"]
    lost = records.get("r0")
    assert (lost.state, lost.outcome, lost.started_at, lost.ended_at) == ("ended", Outcome.LOST, 101.0, 200.0)
    assert records.get("r1").state == "queued"
    assert records.get("r2").outcome is Outcome.EXITED
    assert records.mark_lost((), 300.0) == ["r1"]
    assert records.mark_lost((), 300.0) == []


def test_prune(records: RunRecords) -> None:
    for number in range(2500):
        record = queued(f"r{number}", created_at=float(number))
        records.finish(ended(record, ended_at=float(number)))
    records.begin(queued("open", created_at=0.0), "i")
    assert records.prune(2200.0) == 2200
    assert records.prune(2200.0) == 0
    assert len(records.list(limit=1000)) == 301
    records.get("open")
    records.get("r2200")


def test_modes(records: RunRecords, path: Path) -> None:
    records.begin(queued("a"), "i")
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    files = list(path.parent.iterdir())
    assert len(files) == 3
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}


def test_an_existing_directory_keeps_its_mode(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    RunRecords(tmp_path / "runs.db").close()
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755


def test_a_symlink_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "runs.db").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SupervisorError, match="symbolic links"):
        RunRecords(tmp_path / "runs.db")
    assert not (tmp_path / "elsewhere").exists()


def test_reopened(path: Path) -> None:
    first = RunRecords(path)
    first.begin(queued("a"), "i")
    second = RunRecords(path)
    assert second.get("a").run_id == "a"
    first.close()
    first.close()
    with pytest.raises(SupervisorError):
        first.get("a")
    second.checkpoint()
    second.close()


@pytest.mark.parametrize("damage", [b"this is no database" * 500, b"SQLite format 3\0" + b"\xff" * 8000])
def test_a_damaged_file_is_moved_aside(path: Path, damage: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(damage)
    records = RunRecords(path)
    records.begin(queued("a"), "i")
    assert records.get("a").run_id == "a"
    records.close()
    aside = [file for file in path.parent.iterdir() if ".damaged-" in file.name]
    assert [file.read_bytes() for file in aside] == [damage]


def test_damage_met_while_running(path: Path) -> None:
    first, second = RunRecords(path), RunRecords(path)
    for number in range(200):
        first.finish(ended(queued(f"r{number}")))
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (path.stat().st_size - 4096))
    first.close()
    second.begin(queued("new"), "i")
    third = RunRecords(path)
    assert [record.run_id for record in third.list()] == ["new"]
    assert (
        len(
            [
                file
                for file in path.parent.iterdir()
                if file.suffix.startswith(".damaged-") and "-wal" not in file.name and "-shm" not in file.name
            ]
        )
        == 1
    )
    second.close()
    third.close()


def test_a_newer_schema_is_refused_and_kept(path: Path) -> None:
    RunRecords(path).close()
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    connection.close()
    with pytest.raises(SupervisorError, match="newer"):
        RunRecords(path)
    assert path.exists()


def test_a_directory_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SupervisorError) as caught:
        RunRecords(tmp_path / "file" / "runs.db")
    assert caught.value.reason == "RECORDS_UNAVAILABLE"


def work(path: Path, name: str) -> None:
    records = RunRecords(path)
    for number in range(200):
        record = queued(f"{name}-{number}", request_id=f"shared-{number}" if number % 10 == 0 else "")
        try:
            records.begin(record, name)
        except AlreadyExists:
            continue
        records.finish(ended(record))
    records.close()


def test_processes_share_one_file(path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=work, args=(path, f"p{number}")) for number in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    records = RunRecords(path)
    found = records.list(limit=1000)
    assert len(found) == 3 * 180 + 20
    assert {record.state for record in found} == {"ended"}
    records.close()


def test_threads_share_one_connection(records: RunRecords) -> None:
    threads = [
        threading.Thread(target=lambda name=name: [records.finish(ended(queued(f"{name}-{n}"))) for n in range(50)])
        for name in "abcd"
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(records.list(limit=1000)) == 200


def test_begin_and_finish_are_cheap(records: RunRecords) -> None:
    """They stand on the way of every run: some 60 us together where it was measured; the bound is for a busy machine."""
    costs = []
    for number in range(300):
        record = queued(f"r{number}", request_id=f"q{number}", agent="a")
        start = time.perf_counter()
        records.begin(record, "i")
        records.finish(ended(record))
        costs.append(time.perf_counter() - start)
    assert sorted(costs)[len(costs) // 2] < 0.003
