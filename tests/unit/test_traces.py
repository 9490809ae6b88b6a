"""The store of full traces: whole files only, what the dead left goes, and so does what is too old or too much."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

pytest.importorskip("pyarrow")

from supervisor.errors import NotFound, SupervisorError
from supervisor.evidence.traces import TraceStore, schema


def write(store: TraceStore, run_id: str, ended_at: float | None = None, size: int = 0) -> Path:
    import pyarrow as pa

    writer = store.writer(run_id)
    row = {"time": 1, "kind": "exec", "pid": 2, "tid": 2, "argv": ["x"], "path": os.urandom(size).hex() or "/bin/x"}
    writer.write(pa.Table.from_pylist([row], schema=schema()))
    writer.close()
    path = store.directory / f"{run_id}.parquet"
    if ended_at is not None:
        os.utime(path, (ended_at, ended_at))
    return path


def runs(store: TraceStore) -> set[str]:
    return {path.stem for path in store.directory.glob("*.parquet")}


def test_a_trace_appears_whole_and_is_the_daemons_alone(tmp_path: Path) -> None:
    store = TraceStore(tmp_path / "traces")
    writer = store.writer("a")
    assert runs(store) == set()
    writer.write(schema().empty_table())
    writer.close()
    assert runs(store) == {"a"} and list(store.events("a")) == []
    path = write(store, "b")
    assert path.stat().st_mode & 0o777 == 0o600 and store.directory.stat().st_mode & 0o777 == 0o700
    ((event,),) = store.events("b")
    assert (event.kind, event.path, event.argv, event.args, event.syscall) == ("exec", "/bin/x", ("x",), (), "")
    with pytest.raises(NotFound):
        list(store.events("c"))
    path.write_bytes(b"PAR1 no trace")
    with pytest.raises(SupervisorError, match="cannot be read") as caught:
        list(store.events("b"))
    assert caught.value.reason == "TRACE_DAMAGED"


def test_what_the_dead_left_unfinished_goes_and_what_the_living_write_stays(tmp_path: Path) -> None:
    store = TraceStore(tmp_path)
    living, dead = store.writer("living"), store.writer("dead")
    fcntl.flock(dead._file, fcntl.LOCK_UN)  # as the end of its process does
    TraceStore(tmp_path).remove_partial()
    assert [path.name for path in tmp_path.iterdir()] == [".partial-living"]
    living.close()
    dead.abandon()
    assert runs(store) == {"living"}
    TraceStore(tmp_path / "absent").remove_partial()


def test_the_oldest_go_first(tmp_path: Path) -> None:
    store = TraceStore(tmp_path)
    paths = [write(store, f"r{n}", ended_at=1000 + n, size=20_000) for n in range(5)]
    assert store.prune(older_than=1001, max_bytes=0) == 1 and runs(store) == {"r1", "r2", "r3", "r4"}
    room = sum(path.stat().st_size for path in paths[3:])
    assert store.prune(older_than=0, max_bytes=room) == 2 and runs(store) == {"r3", "r4"}
    assert store.prune(older_than=0, max_bytes=room) == 0
    assert TraceStore(tmp_path / "absent").prune(older_than=0, max_bytes=1) == 0


def test_an_abandoned_trace_leaves_nothing(tmp_path: Path) -> None:
    store = TraceStore(tmp_path)
    store.writer("a").abandon()
    assert list(tmp_path.iterdir()) == []
