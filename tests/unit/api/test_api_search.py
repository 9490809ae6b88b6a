"""SearchTraces: what a request asks, what comes back, and what a client that leaves does not leave behind."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pyarrow as pa
import pytest
from api_fakes import FakeRuns, eventually, refusal

from supervisor import errors
from supervisor.evidence.trace_query import TraceQuery, parse_address, parse_pattern, parse_program
from supervisor.evidence.traces import Found, SearchEnd, TraceStore, schema
from supervisor.model import TraceEvent
from supervisor.runs import Runs
from supervisor.v1 import trace_pb2 as pb
from supervisor.v1 import trace_pb2_grpc


@pytest.fixture
def traces(channel: grpc.aio.Channel) -> Any:
    return trace_pb2_grpc.TraceServiceStub(channel)


async def test_a_search(traces: Any, runs: FakeRuns) -> None:
    event = TraceEvent(1_500_000_000, "open", 2, 2, "openat", path="/\udcff", result=-2)
    runs.steps = [Found("b", []), Found("b", [event, event]), Found("a", [event]), SearchEnd(7, 2, ("x", "y"), True)]
    request = pb.SearchTracesRequest(
        run_id="a", path="/etc/*", address="10.0.0.0/8", syscalls=["openat"], kinds=["open"], program="sh", failed=True,
        since=0, until=2.5, limit=3,
    )  # fmt: skip
    answers = [answer async for answer in traces.SearchTraces(request)]
    assert [(answer.run_id, len(answer.events)) for answer in answers] == [("b", 2), ("a", 1), ("", 0)]
    assert (answers[0].events[0].path, answers[0].events[0].time) == ("/\ufffd", 1.5)
    end = answers[-1].end
    assert (end.searched, end.skipped, list(end.skipped_run_ids), end.limit_reached) == (7, 2, ["x", "y"], True)
    assert runs.searched == [
        TraceQuery(
            "a", parse_pattern("/etc/*", ""), parse_address("10.0.0.0/8", ""), ("openat",), ("open",),
            parse_program("sh", ""), True, 0, 2_500_000_000, 3,
        )
    ]  # fmt: skip


async def test_a_search_for_anything(traces: Any, runs: FakeRuns) -> None:
    answers = [answer async for answer in traces.SearchTraces(pb.SearchTracesRequest())]
    assert len(answers) == 1 and answers[0].HasField("end")
    assert runs.searched == [TraceQuery()] and runs.searched[0].limit == 1000


@pytest.mark.parametrize(
    ("request_fields", "field"),
    [
        ({"path": "[a"}, "path"),
        ({"program": "a\\"}, "program"),
        ({"address": "10.0.0.0/99"}, "address"),
        ({"address": "example.com:80"}, "address"),
        ({"syscalls": ["opnat"]}, "syscalls"),
        ({"kinds": ["a b"]}, "kinds"),
        ({"since": -1.0}, "since"),
        ({"until": float("inf")}, "until"),
        ({"since": 2.0, "until": 1.0}, "until"),
        ({"limit": -5}, "limit"),
        ({"run_id": "a\n"}, "run_id"),
    ],
)
async def test_what_makes_no_sense(traces: Any, request_fields: dict[str, Any], field: str) -> None:
    refused = await refusal(anext(aiter(traces.SearchTraces(pb.SearchTracesRequest(**request_fields)))))
    assert (refused.code, refused.field) == (grpc.StatusCode.INVALID_ARGUMENT, field)


async def test_what_the_runs_refuse(traces: Any, runs: FakeRuns) -> None:
    runs.error = errors.NotFound("no full trace", field="run_id")
    refused = await refusal(anext(aiter(traces.SearchTraces(pb.SearchTracesRequest(run_id="a")))))
    assert refused.code is grpc.StatusCode.NOT_FOUND


async def test_a_client_that_leaves_ends_its_search(traces: Any, runs: FakeRuns) -> None:
    runs.steps = [Found("a", [TraceEvent(1, "exit", 2, 2)])] * 10
    runs.search_goes_on = True
    call = traces.SearchTraces(pb.SearchTracesRequest())
    await anext(aiter(call))
    call.cancel()
    await eventually(lambda: runs.searches_left == 1)


def store_of(directory: Path, count: int) -> TraceStore:
    store = TraceStore(directory)
    for number in range(count):
        writer = store.writer(f"{number:020x}")
        rows = [{"time": number, "kind": "exit", "pid": 2, "tid": 2, "result": number}]
        writer.write(pa.Table.from_pylist(rows, schema=schema()))
        writer.close()
    return store


async def test_searches_take_turns_in_few_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many clients search, and leave: two threads, the rest of the daemon keeps its own."""
    runs = Runs.__new__(Runs)
    runs._traces = store_of(tmp_path, 20)
    runs._searching = asyncio.Semaphore(2)
    busy, most = 0, 0
    to_thread = asyncio.to_thread

    async def counted(*arguments: Any) -> Any:
        nonlocal busy, most
        busy += 1
        most = max(most, busy)
        try:
            return await to_thread(*arguments)
        finally:
            busy -= 1

    monkeypatch.setattr(asyncio, "to_thread", counted)

    async def one() -> int:
        count = 0
        async for step in runs.search(TraceQuery()):
            count += len(step.events) if isinstance(step, Found) else 0
        return count

    searches = [asyncio.create_task(one()) for _ in range(8)]
    await asyncio.sleep(0.05)
    for search in searches[:4]:
        search.cancel()
    assert await asyncio.gather(*searches[4:]) == [20] * 4
    assert most == 2
    await asyncio.wait(searches)
    assert busy == 0 and not runs._searching.locked()
