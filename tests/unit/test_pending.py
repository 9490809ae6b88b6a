"""Ended runs while their records cannot be written: on a real SQLite file that may not grow."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from supervisor import runs as runs_module
from supervisor.evidence.pending import PendingRecords
from supervisor.evidence.records import RunRecords
from supervisor.evidence.traces import TraceStore
from supervisor.model import Outcome, RunRecord, RunSpec
from supervisor.policy import narrow
from supervisor.policy_file import PolicySet
from supervisor.run import Run
from supervisor.runs import Runs
from supervisor.shipped import shipped_policy_dir
from tests.unit.test_records import ended, queued


@pytest.fixture
def records(tmp_path: Path) -> Iterator[RunRecords]:
    opened = RunRecords(tmp_path / "runs.db")
    yield opened
    opened.close()


def fill_disk(records: RunRecords) -> None:
    """The file may not grow any more: SQLITE_FULL, as from a full disk."""
    pages = records._connection.execute("PRAGMA page_count").fetchone()[0]
    records._connection.execute(f"PRAGMA max_page_count = {pages}").fetchone()


def free_disk(records: RunRecords) -> None:
    records._connection.execute("PRAGMA max_page_count = 1000000").fetchone()


def large(run_id: str, **changes: object) -> RunRecord:
    return replace(ended(queued(run_id, **changes)), detail="x" * 100_000)


def test_kept_until_it_can_be_written(records: RunRecords) -> None:
    pending = PendingRecords(records)
    records.begin(queued("a"), "i")
    records.begin(queued("b"), "i")
    fill_disk(records)
    with capture_logs() as logged:
        assert not pending.finish(large("a"))
        assert not pending.finish(large("b"))
        assert pending.retry() == 2
    assert [entry["event"] for entry in logged] == ["records_not_written"]
    assert pending.get("a") == large("a") and records.get("a").state == "queued"
    free_disk(records)
    with capture_logs() as logged:
        assert pending.retry() == 0
    assert [(entry["event"], entry["count"]) for entry in logged] == [("records_written_late", 2)]
    assert records.get("a") == large("a") and records.get("b") == large("b")
    assert pending.get("a") is None and pending.finish(large("c"))


def test_the_list_is_bounded(records: RunRecords) -> None:
    pending = PendingRecords(records, kept_max=2)
    fill_disk(records)
    for name in "abc":
        pending.finish(large(name))
    assert len(pending) == 2 and pending.get("a") is None and pending.get("c") is not None


def test_what_can_never_be_written_is_not_kept(records: RunRecords) -> None:
    pending = PendingRecords(records)
    records.finish(ended(queued("a", request_id="q")))
    assert not pending.finish(ended(queued("b", request_id="q")))
    assert len(pending) == 0


class NoBackend:
    """These runs end before they need one."""

    name = "native"


def make_runs(records: RunRecords) -> tuple[Runs, Run]:
    backend: Any = NoBackend()
    policies = PolicySet(shipped_policy_dir())
    runs = Runs(
        backends={"native": backend},
        policies=policies,
        records=records,
        traces=TraceStore(Path("/nonexistent")),
        instance="i",
        max_concurrent=1,
        max_queued=1,
        allow_unisolated=False,
        inline_policies="none",
        remote_mounts=False,
    )
    spec = RunSpec(argv=(b"true",), policy="strict")
    return runs, Run(runs._house, spec, narrow(policies.get("strict"), spec), backend, None)


async def test_a_full_disk_costs_no_result(records: RunRecords) -> None:
    runs, run = make_runs(records)
    task = runs.begin(run)
    run.stopped, run.reason = Outcome.CANCELLED, "x" * 100_000
    fill_disk(records)
    result = await task
    assert result.outcome is Outcome.CANCELLED and "record" in result.enforcement.missing
    assert runs.get(run.run_id).state == "ended" and runs.list()[0].state == "ended"
    assert runs.write_pending() == 1
    free_disk(records)
    assert runs.write_pending() == 0
    assert records.get(run.run_id).outcome is Outcome.CANCELLED
    assert "record" not in records.get(run.run_id).enforcement.missing


async def test_draining_waits_on_and_names_what_hangs(records: RunRecords, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs_module, "_END_SECONDS", 0.2)
    monkeypatch.setattr(runs_module, "_TELL_SECONDS", 0.05)
    runs, run = make_runs(records)

    released = asyncio.Event()

    async def hang() -> Any:
        run.record = replace(run.record, state="running")
        await released.wait()

    monkeypatch.setattr(run, "go", hang)
    runs.begin(run)
    with capture_logs() as logged:
        assert await runs.drain(0) == (run.run_id,)
    events = [entry["event"] for entry in logged]
    assert events.count("runs_still_ending") >= 2
    assert [entry["run_id"] for entry in logged if entry["event"] == "run_hangs"] == [run.run_id]
    asyncio.get_running_loop().call_later(0.1, released.set)
    assert await runs.drain(0) == ()
