"""FollowTrace: what is told of a run that goes on, what is refused, and what a client that leaves does not leave behind."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from api_fakes import FakeRuns, eventually, refusal

from supervisor import errors
from supervisor.api import trace_service
from supervisor.model import RunRecord, TraceEvent, TraceLevel, Violation
from supervisor.probes.followers import Followed, Followers
from supervisor.runs import Runs
from supervisor.v1 import trace_pb2 as pb
from supervisor.v1 import trace_pb2_grpc

RUN = "run-0007"


@pytest.fixture
def traces(channel: grpc.aio.Channel) -> Any:
    return trace_pb2_grpc.TraceServiceStub(channel)


async def test_what_is_followed(traces: Any, runs: FakeRuns) -> None:
    event = TraceEvent(1_500_000_000, "open", 2, 2, "openat", path="/\udcff", result=-2)
    runs.batches = [Followed([event, event]), Followed([event], 7), Followed([], 3)]
    answers = [answer async for answer in traces.FollowTrace(pb.FollowTraceRequest(run_id=RUN, without_calls=True))]
    assert [(answer.level, len(answer.events), answer.dropped) for answer in answers] == [
        ("full", 0, 0), ("", 2, 0), ("", 1, 7), ("", 0, 3),
    ]  # fmt: skip
    told = answers[1].events[0]
    assert (told.kind, told.path, told.time, told.result) == ("open", "/\ufffd", 1.5, -2)
    assert runs.followed == [(RUN, False)] and runs.follows_left == 1


async def test_large_messages_are_made_off_the_loop(
    traces: Any, runs: FakeRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[int, bool]] = []
    make = trace_service._followed

    def followed(batch: Followed) -> pb.FollowTraceResponse:
        made.append((len(batch.events), threading.current_thread() is threading.main_thread()))
        return make(batch)

    monkeypatch.setattr(trace_service, "_followed", followed)
    event = TraceEvent(1, "exit", 2, 2)
    runs.batches = [Followed([event]), Followed([event] * 1000)]
    async for _ in traces.FollowTrace(pb.FollowTraceRequest(run_id=RUN)):
        pass
    assert made == [(0, True), (1, True), (1000, False)]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.HostLacks("ended", reason="RUN_ENDED"), grpc.StatusCode.FAILED_PRECONDITION),
        (errors.Exhausted("too many"), grpc.StatusCode.RESOURCE_EXHAUSTED),
    ],
)
async def test_what_the_runs_refuse(
    traces: Any, runs: FakeRuns, error: errors.SupervisorError, code: grpc.StatusCode
) -> None:
    runs.error = error
    refused = await refusal(anext(aiter(traces.FollowTrace(pb.FollowTraceRequest(run_id=RUN)))))
    assert (refused.code, refused.info.reason) == (code, error.reason)


async def test_what_makes_no_sense(traces: Any) -> None:
    refused = await refusal(anext(aiter(traces.FollowTrace(pb.FollowTraceRequest(run_id="a\n")))))
    assert (refused.code, refused.field) == (grpc.StatusCode.INVALID_ARGUMENT, "run_id")
    refused = await refusal(anext(aiter(traces.FollowTrace(pb.FollowTraceRequest(run_id="nosuch")))))
    assert refused.code is grpc.StatusCode.NOT_FOUND


async def test_a_client_that_leaves_is_no_longer_told(traces: Any, runs: FakeRuns) -> None:
    runs.follow_goes_on = True
    call = traces.FollowTrace(pb.FollowTraceRequest(run_id=RUN))
    await anext(aiter(call))
    call.cancel()
    await eventually(lambda: runs.follows_left == 1)


# --- behind the service ---


class Records:
    def get(self, run_id: str) -> RunRecord:
        if run_id != "ended":
            raise errors.NotFound(f"no run {run_id}")
        return RunRecord(run_id, "ended", "s", "strict", "p", "native", "true")


def runs_with(followers: Followers | None, level: TraceLevel, going: asyncio.Future[None]) -> Runs:
    runs = Runs.__new__(Runs)
    runs._alive = {"going": SimpleNamespace(task=going, effective=SimpleNamespace(trace=level))}  # type: ignore[dict-item]
    runs._house = SimpleNamespace(  # type: ignore[assignment]
        followers=followers, records=Records(), pending=SimpleNamespace(get=lambda _run_id: None)
    )
    return runs


@pytest.mark.parametrize(
    ("run_id", "level", "probes", "kind", "reason", "remedy"),
    [
        ("nosuch", TraceLevel.FULL, True, errors.NotFound, "NOT_FOUND", ""),
        ("ended", TraceLevel.FULL, True, errors.HostLacks, "RUN_ENDED", "supervisor trace show ended"),
        ("going", TraceLevel.OFF, True, errors.HostLacks, "TRACE_NOT_AVAILABLE", "--trace"),
        ("going", TraceLevel.FULL, False, errors.HostLacks, "TRACE_NOT_AVAILABLE", "supervisor doctor"),
    ],
)
async def test_what_cannot_be_followed(
    run_id: str, level: TraceLevel, probes: bool, kind: type[errors.SupervisorError], reason: str, remedy: str
) -> None:
    runs = runs_with(Followers() if probes else None, level, asyncio.get_running_loop().create_future())
    with pytest.raises(kind) as caught:
        await anext(aiter(runs.follow(run_id)))
    assert caught.value.reason == reason and remedy in caught.value.metadata.get("remedy", "")


async def test_it_ends_with_the_run_and_is_forgotten() -> None:
    followers, going = Followers(), asyncio.get_running_loop().create_future()
    runs = runs_with(followers, TraceLevel.SUMMARY, going)
    follow = runs.follow("going")
    assert (await anext(follow)).level == "summary"
    followers.tell("going", Violation("rule", "exec", "high", "alert", 2.0))
    assert [event.kind for event in (await anext(follow)).events] == ["violation"]
    followers.tell("going", Violation("rule", "exec", "high", "kill", 3.0))
    going.set_result(None)
    assert [len(batch.events) async for batch in follow] == [1]
    assert not followers.of("going")


async def test_one_that_is_left_is_forgotten() -> None:
    followers, going = Followers(), asyncio.get_running_loop().create_future()
    follow = runs_with(followers, TraceLevel.FULL, going).follow("going")
    await anext(follow)
    waiting = asyncio.ensure_future(anext(follow))
    await asyncio.sleep(0.01)
    assert len(followers.of("going")) == 1
    waiting.cancel()
    await asyncio.wait({waiting})
    assert not followers.of("going")
    going.set_result(None)
