"""What can be asked beside running programs; draining and stopping."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import grpc
import pytest
from api_fakes import FakeRuns, converse, eventually, refusal, spec, start
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from supervisor.api.server import Server
from supervisor.model import SyscallCount, TraceSummary
from supervisor.policy_file import LARGE_TEXT
from supervisor.v1 import (
    host_pb2,
    host_pb2_grpc,
    policy_pb2,
    policy_pb2_grpc,
    trace_pb2,
    trace_pb2_grpc,
)
from supervisor.v1 import run_pb2 as pb


async def test_kill(stub: Any) -> None:
    assert (await stub.KillRun(pb.KillRunRequest(run_id="run-0002"))).killed
    assert not (await stub.KillRun(pb.KillRunRequest(run_id="run-0001"))).killed
    assert (await refusal(stub.KillRun(pb.KillRunRequest(run_id="x")))).code is grpc.StatusCode.NOT_FOUND
    assert (await refusal(stub.KillRun(pb.KillRunRequest()))).field == "run_id"
    assert (await stub.KillAgentRuns(pb.KillAgentRunsRequest(agent="a"))).killed == 3
    assert (await refusal(stub.KillAgentRuns(pb.KillAgentRunsRequest()))).field == "agent"


async def test_get_and_list(stub: Any) -> None:
    assert (await stub.GetRun(pb.GetRunRequest(run_id="run-0007"))).run.result.run_id == "run-0007"
    refused = await refusal(stub.GetRun(pb.GetRunRequest(run_id="x")))
    assert refused.info.metadata["run_id"] == "x"
    seen: list[str] = []
    token = ""
    sizes = []
    while True:
        page = await stub.ListRuns(pb.ListRunsRequest(page_token=token))
        sizes.append(len(page.runs))
        seen += [run.result.run_id for run in page.runs]
        token = page.next_page_token
        if not token:
            break
    assert sizes == [100, 100, 50]
    assert seen == [f"run-{index:04}" for index in range(250, 0, -1)]
    assert not (await stub.ListRuns(pb.ListRunsRequest(state=pb.RUN_STATE_RUNNING))).runs
    for request, field in (
        (pb.ListRunsRequest(page_size=1001), "page_size"),
        (pb.ListRunsRequest(page_size=-1), "page_size"),
        (pb.ListRunsRequest(state=9), "state"),
    ):
        assert (await refusal(stub.ListRuns(request))).field == field


async def test_policies(channel: grpc.aio.Channel) -> None:
    stub = policy_pb2_grpc.PolicyServiceStub(channel)
    (policy,) = (await stub.ListPolicies(policy_pb2.ListPoliciesRequest())).policies
    assert (policy.name, policy.extends, policy.resolved_toml, policy.digest) == (
        "strict",
        "moderate",
        "resolved",
        "abc",
    )
    assert (await stub.GetPolicy(policy_pb2.GetPolicyRequest(name="strict"))).policy == policy
    refused = await refusal(stub.GetPolicy(policy_pb2.GetPolicyRequest(name="x")))
    assert refused.code is grpc.StatusCode.NOT_FOUND
    checked = await stub.CheckPolicy(policy_pb2.CheckPolicyRequest(toml="[limts]"))
    assert (checked.problems[0].line, checked.problems[0].key) == (3, "limts")
    assert not checked.HasField("policy")
    assert (await stub.CheckPolicy(policy_pb2.CheckPolicyRequest(toml="ok"))).policy == policy


async def test_large_policy_texts_are_parsed_beside_the_event_loop(
    channel: grpc.aio.Channel, stub: Any, runs: FakeRuns
) -> None:
    policies = policy_pb2_grpc.PolicyServiceStub(channel)
    size = LARGE_TEXT + 1
    for text in ("#" * size, "#" * LARGE_TEXT):
        await policies.CheckPolicy(policy_pb2.CheckPolicyRequest(toml=text, name="own"))
        await stub.Execute(spec(policy_toml=text))
        await converse(stub, start(policy_toml=text))
    on_the_loop = [(LARGE_TEXT, "own", True)]
    assert runs.checked == [(size, "own", False), (size, "", False), (size, "", False), *on_the_loop]


async def test_host(channel: grpc.aio.Channel, runs: FakeRuns) -> None:
    runs.running, runs.queued = 3, 4
    host = await host_pb2_grpc.HostServiceStub(channel).GetHost(host_pb2.GetHostRequest())
    assert (host.kernel, host.cgroup, host.running, host.queued, host.draining) == ("6.1", "v2", 3, 4, False)
    assert (host.max_concurrent_runs, host.max_queued_runs, host.tier) == (8, 9, "tracepoints")
    assert host.features[0].available


async def test_watchers_see_starts_and_ends_and_leave_nothing(channel: grpc.aio.Channel, runs: FakeRuns) -> None:
    call = host_pb2_grpc.HostServiceStub(channel).WatchEvents(host_pb2.WatchEventsRequest(agent="a"))
    started, ended = await call.read(), await call.read()
    assert (started.started.run_id, started.agent) == ("run-1", "a")
    assert ended.HasField("ended") and not ended.ended.stdout
    assert ended.dropped == 5
    call.cancel()
    await eventually(lambda: runs.watched == ["closed"])


async def test_draining_ends_watchers_and_turns_health_off(
    server: Server, channel: grpc.aio.Channel, stub: Any, runs: FakeRuns
) -> None:
    health = health_pb2_grpc.HealthStub(channel)
    for name in ("", "supervisor.v1.RunService", "supervisor.v1.TraceService"):
        answer = await health.Check(health_pb2.HealthCheckRequest(service=name))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    watching = host_pb2_grpc.HostServiceStub(channel).WatchEvents(host_pb2.WatchEventsRequest())
    await watching.read()
    running = asyncio.ensure_future(stub.Execute(spec(b"wait")))
    await eventually(lambda: runs.running == 1)
    await server.drain()
    answer = await health.Check(health_pb2.HealthCheckRequest(service="supervisor.v1.RunService"))
    assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        while await watching.read() is not grpc.aio.EOF:
            pass
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert runs.watched == ["closed"]
    stopping = asyncio.ensure_future(server.stop(5))
    await asyncio.sleep(0.1)
    runs.release.set()
    assert (await running).outcome == pb.OUTCOME_EXITED
    async with asyncio.timeout(3):
        await stopping


async def test_what_outlasts_the_grace_is_cancelled(server: Server, stub: Any, runs: FakeRuns) -> None:
    running = asyncio.ensure_future(stub.Execute(spec(b"wait")))
    await eventually(lambda: runs.running == 1)
    await server.stop(0.1)
    with pytest.raises(grpc.aio.AioRpcError):
        await running
    assert runs.cancelled == 1


async def test_a_trace_comes_in_batches(channel: grpc.aio.Channel) -> None:
    stub = trace_pb2_grpc.TraceServiceStub(channel)
    answers = [answer async for answer in stub.GetTrace(trace_pb2.GetTraceRequest(run_id="run-0001"))]
    assert [[event.kind for event in answer.events] for answer in answers] == [["exec", "syscall"], ["exit"]]
    call = answers[0].events[1]
    assert (call.time, call.pid, call.syscall, list(call.args), call.result) == (1.5, 2, "mkdir", [1, 1 << 63], -13)
    assert list(answers[0].events[0].argv) == ["x", "\ufffd"]
    refused = await refusal(anext(aiter(stub.GetTrace(trace_pb2.GetTraceRequest(run_id="x")))))
    assert refused.code is grpc.StatusCode.NOT_FOUND


async def test_a_summary_is_the_records(channel: grpc.aio.Channel, runs: FakeRuns) -> None:
    stub = trace_pb2_grpc.TraceServiceStub(channel)
    refused = await refusal(stub.GetTraceSummary(trace_pb2.GetTraceSummaryRequest(run_id="run-0001")))
    assert (refused.code.name, refused.info.reason) == ("FAILED_PRECONDITION", "TRACE_NOT_AVAILABLE")
    refused = await refusal(stub.GetTraceSummary(trace_pb2.GetTraceSummaryRequest(run_id="x")))
    assert refused.code is grpc.StatusCode.NOT_FOUND
    trace = TraceSummary("summary", True, 3, 0, {"read": SyscallCount(5, 1)})
    runs.records = [replace(record, trace=trace) for record in runs.records]
    summary = (await stub.GetTraceSummary(trace_pb2.GetTraceSummaryRequest(run_id="run-0001"))).summary
    assert (summary.level, summary.complete, summary.syscalls["read"].errors) == ("summary", True, 1)


async def test_reflection_lists_the_services(channel: grpc.aio.Channel) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    (answer,) = [answer async for answer in stub.ServerReflectionInfo(iter([request]))]
    names = {service.name for service in answer.list_services_response.service}
    assert {f"supervisor.v1.{name}Service" for name in ("Run", "Policy", "Host", "Trace")} < names
    assert "grpc.health.v1.Health" in names
