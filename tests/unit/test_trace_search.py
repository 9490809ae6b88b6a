"""Searching a store of traces that is made here: what is found, in which order, and what is never read."""

from __future__ import annotations

import itertools
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from supervisor import errors
from supervisor.evidence import trace_search
from supervisor.evidence.trace_query import (
    Pattern,
    TraceQuery,
    parse_address,
    parse_pattern,
    parse_program,
)
from supervisor.evidence.traces import Found, SearchEnd, TraceStore, schema

BASE = 1_795_000_000
OLD, MIDDLE, NEW = (f"{(BASE + hours * 3600) * 1000:012x}{hours:08x}" for hours in (0, 1, 2))


def row(at, kind="syscall", pid=2, **fields):
    """`at`: seconds after BASE."""
    made = {"time": (BASE * 1000 + round(at * 1000)) * 1_000_000, "kind": kind, "pid": pid, "tid": pid, "result": 0}
    if kind == "syscall":
        made |= {"abi": "x86-64"} | {f"arg{number}": number for number in range(6)}
    return made | fields


def program(at, pid, path, parent=1):
    return row(at, "exec", pid, path=path, comm=path.rpartition("/")[2][:15], argv=[path], parent=parent)


def forked(at, pid, child, detail="process"):
    return row(at, "fork", pid, result=child, detail=detail)


TRACES = {
    OLD: [
        program(1, 2, "/usr/bin/sh"),
        row(2, syscall="openat", result=-2),
        row(2.001, "open", syscall="openat", path="/etc/shadow", result=-2),
        row(3, "connect", address="10.1.2.3", port=443, detail="tcp"),
        row(3.5, syscall="connect", result=-111),
    ],
    MIDDLE: [
        program(3601, 2, "/usr/bin/sh"),
        forked(3602, 2, 3),
        row(3602.5, syscall="read", pid=3),
        program(3603, 3, "/usr/bin/curl", parent=2),
        row(3604, syscall="read", pid=3),
        row(3604.5, syscall="read", pid=2),
        forked(3605, 3, 4),
        row(3606, syscall="write", pid=4),
        row(3606, "connect", pid=4, address="2001:db8::1", port=80),
        row(3607, "exit", 3, result=-9),
        forked(3608, 2, 3),
        row(3609, syscall="close", pid=3, result=-9),
    ],
    NEW: [
        program(7201, 2, "/opt/curl"),
        row(7202, "unlink", syscall="unlink", path="/work/ü*"),
        row(7203, "bind", address="::ffff:10.9.9.9", port=80),
        row(7204, "exit", result=-9, detail="process killed by signal 9"),
    ],
}


@pytest.fixture
def store(tmp_path):
    made = TraceStore(tmp_path / "traces")
    for run_id, rows in TRACES.items():
        writer = made.writer(run_id)
        # More than one row group, as long runs have.
        for start in range(0, len(rows), 4):
            writer.write(pa.Table.from_pylist(rows[start : start + 4], schema=schema()))
        writer.close()
    return made


def search(store, **query):
    """(run, kind or call, pid) of what is found, and the end."""
    steps = list(store.search(TraceQuery(**query)))
    assert isinstance(steps[-1], SearchEnd) and all(isinstance(step, Found) for step in steps[:-1])
    names = {OLD: "old", MIDDLE: "middle", NEW: "new"}
    found = [
        (names.get(step.run_id, step.run_id), event.syscall or event.kind, event.pid)
        for step in steps[:-1]
        for event in step.events
    ]
    return found, steps[-1]


def glob(text):
    return parse_pattern(text, "path")


def test_everything_newest_run_first_and_in_order_of_time(store):
    found, end = search(store)
    assert len(found) == sum(map(len, TRACES.values()))
    assert [run for run, _ in itertools.groupby(found, key=lambda one: one[0])] == ["new", "middle", "old"]
    assert end == SearchEnd(3, 0, (), False)
    (events,) = (
        step.events for step in store.search(TraceQuery(run_id=NEW)) if isinstance(step, Found) and step.events
    )
    assert (events[0].argv, events[0].time, events[1].path) == (("/opt/curl",), TRACES[NEW][0]["time"], "/work/ü*")


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({"path": glob("/etc/shadow")}, [("old", "openat", 2)]),
        ({"path": glob("/etc/*")}, [("old", "openat", 2)]),
        ({"path": glob("*shad?w")}, [("old", "openat", 2)]),
        ({"path": glob(r"/work/ü\*")}, [("new", "unlink", 2)]),
        ({"path": glob("/work/[a-zü]*")}, [("new", "unlink", 2)]),
        ({"path": glob("/etc/shado")}, []),
        ({"path": glob("*/curl"), "kinds": ("exec",)}, [("new", "exec", 2), ("middle", "exec", 3)]),
        ({"address": parse_address("10.0.0.0/8", "a")}, [("new", "bind", 2), ("old", "connect", 2)]),
        ({"address": parse_address("10.1.2.3:443", "a")}, [("old", "connect", 2)]),
        ({"address": parse_address("10.1.2.3:80", "a")}, []),
        ({"address": parse_address(":80", "a")}, [("new", "bind", 2), ("middle", "connect", 4)]),
        ({"address": parse_address("2001:db8::/32", "a")}, [("middle", "connect", 4)]),
        ({"syscalls": ("close", "unlink")}, [("new", "unlink", 2), ("middle", "close", 3)]),
        ({"syscalls": ("mkdir",)}, []),
        ({"kinds": ("exit", "bind")}, [("new", "bind", 2), ("new", "exit", 2), ("middle", "exit", 3)]),
        ({"kinds": ("violation",)}, []),
        (
            {"failed": True},
            [("middle", "close", 3), ("old", "openat", 2), ("old", "openat", 2), ("old", "connect", 2)],
        ),
        ({"failed": True, "kinds": ("open",)}, [("old", "openat", 2)]),
        ({"since": (BASE + 7203) * 10**9}, [("new", "bind", 2), ("new", "exit", 2)]),
        ({"until": (BASE + 2) * 10**9}, [("old", "exec", 2), ("old", "openat", 2)]),
        (
            {"since": (BASE + 3607) * 10**9, "until": (BASE + 3608) * 10**9},
            [("middle", "exit", 3), ("middle", "fork", 2)],
        ),
        ({"since": (BASE + 10**6) * 10**9}, []),
        ({"run_id": OLD, "kinds": ("exec",)}, [("old", "exec", 2)]),
    ],
)
def test_what_is_found(store, query, expected):
    assert search(store, **query)[0] == expected


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        # From its exec on, and what it forked; neither before, nor whoever has the pid after it.
        ("curl", [("new", 4), ("middle", 6)]),
        ("/usr/bin/curl", [("middle", 6)]),
        ("/opt/*", [("new", 4)]),
        ("bin/curl", []),
        ("s?", [("middle", 6), ("old", 5)]),
        ("zsh", []),
    ],
)
def test_programs(store, pattern, expected):
    found, _ = search(store, program=parse_program(pattern, "program"))
    counts = [(run, len(list(ones))) for run, ones in itertools.groupby(found, key=lambda one: one[0])]
    assert counts == expected
    if pattern == "curl":
        assert [(name, pid) for run, name, pid in found if run == "middle"] == [
            ("exec", 3), ("read", 3), ("fork", 3), ("write", 4), ("connect", 4), ("exit", 3)
        ]  # fmt: skip


def test_programs_of_many_processes(store, monkeypatch):
    """Without the help of a condition on their pids."""
    before, _ = search(store, program=parse_program("curl", "program"))
    monkeypatch.setattr("supervisor.evidence.trace_programs._MOST_PIDS_IN_CONDITION", 0)
    assert search(store, program=parse_program("curl", "program"))[0] == before


@pytest.mark.parametrize("limit", [1, 2, 4, 5, 20])
def test_the_limit_stops_the_search(store, limit):
    found, end = search(store, limit=limit)
    everything, _ = search(store)
    assert found == everything[:limit]
    assert end.limit_reached and end.searched == (1 if limit <= 4 else 2 if limit <= 16 else 3)
    assert not search(store, limit=len(everything) + 1)[1].limit_reached


def test_batches_are_small(store, monkeypatch):
    monkeypatch.setattr(trace_search, "EVENTS_PER_STEP", 2)
    steps = [step for step in store.search(TraceQuery(limit=7)) if isinstance(step, Found) and step.events]
    assert [len(step.events) for step in steps] == [2, 2, 2, 1]


def test_damaged_files_are_skipped_and_told(store):
    path = store.directory / f"{MIDDLE}.parquet"
    path.write_bytes(path.read_bytes()[:-50])
    (store.directory / f"{NEW}9.parquet").write_bytes(b"")
    pq.write_table(pa.table({"other": [1]}), store.directory / f"{OLD}9.parquet")
    pq.write_table(pa.table({name: ["x"] for name in schema().names}), store.directory / f"{OLD}8.parquet")
    (store.directory / ".partial-x").write_bytes(b"")
    (store.directory / "notes.txt").write_bytes(b"")
    found, end = search(store, kinds=("exec",))
    assert [run for run, _, _ in found] == ["new", "old"]
    assert end == SearchEnd(2, 4, (f"{NEW}9", MIDDLE, f"{OLD}9", f"{OLD}8"), False)


def test_damage_in_the_middle_is_told_too(store):
    path = store.directory / f"{NEW}.parquet"
    writer = store.writer(NEW)
    for start in range(2):
        rows = [row(7200 + start, path=f"/{os.urandom(8).hex()}") for _ in range(5000)]
        writer.write(pa.Table.from_pylist(rows, schema=schema()))
    writer.close()
    with pq.ParquetFile(path) as file:
        column = file.metadata.row_group(1).column(schema().get_field_index("path"))
    with path.open("r+b") as file:
        file.seek(column.dictionary_page_offset or column.data_page_offset)
        file.write(b"\xff" * 200)
    found, end = search(store, path=glob("/*"), limit=10**6)
    assert len([one for one in found if one[0] == "new"]) == 5000
    assert (end.searched, end.skipped, end.skipped_run_ids) == (2, 1, (NEW,))


def test_a_file_that_vanishes_is_no_damage(store):
    steps = store.search(TraceQuery(kinds=("exec",)))
    next(steps)
    for run_id in (MIDDLE, OLD):
        (store.directory / f"{run_id}.parquet").unlink()
    *_, end = steps
    assert end == SearchEnd(1)


def test_times_rule_files_out_unread(store, monkeypatch):
    """By the time in the run's id, and by when the file was last written."""
    opened = []
    real = trace_search._search_file

    def noted(run_id, *rest):
        opened.append(run_id)
        return real(run_id, *rest)

    monkeypatch.setattr(trace_search, "_search_file", noted)
    _, end = search(store, until=(BASE + 1800) * 10**9)
    assert opened == [OLD] and end.searched == 1
    opened.clear()
    os.utime(store.directory / f"{OLD}.parquet", (BASE + 10, BASE + 10))
    _, end = search(store, since=(BASE + 1800) * 10**9)
    assert opened == [NEW, MIDDLE] and end.searched == 3


def test_files_of_before_a_column_was_added(store):
    table = pa.Table.from_pylist(TRACES[OLD], schema=schema()).drop_columns(["parent", "argv", "address"])
    pq.write_table(table, store.directory / f"{OLD}.parquet")
    assert search(store, path=glob("/etc/*"))[0] == [("old", "openat", 2)]
    assert search(store, address=parse_address("10.1.2.3", "a")) == ([], SearchEnd(3))
    assert len(search(store, program=parse_program("sh", "program"), run_id=OLD)[0]) == 5


def test_no_traces_no_run_no_pattern(store, tmp_path):
    assert search(TraceStore(tmp_path / "none"))[1] == SearchEnd(0)
    with pytest.raises(errors.NotFound, match="no full trace"):
        search(store, run_id="0" * 20)
    with pytest.raises(errors.InvalidRequest, match="cannot be looked for") as caught:
        search(store, path=Pattern("(", "(", "", False))
    assert caught.value.field == "path"
