"""Execute and ExecuteStream over a real gRPC server, and the error table on the wire."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
import structlog
from api_fakes import MESSAGE_BYTES, FakeRuns, eventually, refusal, spec
from google.rpc import error_details_pb2

from supervisor import errors
from supervisor.api import errors as api_errors
from supervisor.api.run_service import STREAM_WINDOW
from supervisor.api.server import Server
from supervisor.model import (
    Peer,
)
from supervisor.v1 import run_pb2 as pb
from supervisor.v1 import (
    run_pb2_grpc,
)


async def test_execute(stub: Any, runs: FakeRuns) -> None:
    result = await stub.Execute(spec(stdin=b"in", request_id="r1"))
    assert (result.outcome, result.stdout, result.request_id) == (pb.OUTCOME_EXITED, b"in", "r1")
    assert runs.peers == [Peer(local=True)]


@pytest.mark.parametrize(
    ("error", "code", "reason"),
    [
        (errors.InvalidRequest("m", field="cwd"), "INVALID_ARGUMENT", "INVALID_REQUEST"),
        (errors.PolicyRefused("m", field="limits.memory"), "PERMISSION_DENIED", "REFUSED_BY_POLICY"),
        (errors.NotFound("m"), "NOT_FOUND", "NOT_FOUND"),
        (errors.AlreadyExists("m"), "ALREADY_EXISTS", "REQUEST_ID_USED"),
        (errors.Exhausted("m", retry_seconds=1.5), "RESOURCE_EXHAUSTED", "QUEUE_FULL"),
        (errors.HostLacks("m", metadata={"feature": "lsm"}), "FAILED_PRECONDITION", "HOST_LACKS_FEATURE"),
        (errors.Draining("m"), "UNAVAILABLE", "DRAINING"),
        (errors.LaunchFailed("m", metadata={"stage": "mount"}), "INTERNAL", "LAUNCH_FAILED"),
    ],
)
async def test_every_row_of_the_error_table(
    stub: Any, runs: FakeRuns, error: errors.SupervisorError, code: str, reason: str
) -> None:
    runs.error = error
    refused = await refusal(stub.Execute(spec()))
    assert (refused.code.name, refused.text, refused.info.reason) == (code, "m", reason)
    for key, value in error.metadata.items():
        assert refused.info.metadata[key] == value
    if code == "INVALID_ARGUMENT":
        assert refused.field == "cwd"
    if code == "PERMISSION_DENIED":
        assert refused.info.metadata["field"] == "limits.memory"
        assert "BadRequest" not in refused.details
    if code == "RESOURCE_EXHAUSTED":
        assert refused.details["RetryInfo"].retry_delay.ToMilliseconds() == 1500
    else:
        assert "RetryInfo" not in refused.details


async def test_what_is_no_error_of_ours_says_nothing_of_the_request(stub: Any, runs: FakeRuns) -> None:
    runs.error = ValueError("secret words")
    with structlog.testing.capture_logs() as logs:
        refused = await refusal(stub.Execute(spec(b"secret program")))
    assert refused.code is grpc.StatusCode.INTERNAL
    assert refused.info.metadata["stage"] == "RunService.Execute"
    assert "secret" not in refused.text + str(refused.details)
    (entry,) = [entry for entry in logs if entry["event"] == "rpc_failed"]
    assert "execute" in entry["traceback"]
    assert "secret" not in str(entry)


async def test_a_long_error_fits_into_headers(stub: Any, runs: FakeRuns) -> None:
    runs.error = errors.InvalidRequest(
        "é" * 50_000, field="f" * 5_000, metadata={f"k{index}": "ü" * 9_000 for index in range(50)}
    )
    refused = await refusal(stub.Execute(spec()))
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    assert refused.text.startswith("éé") and refused.text.endswith("…")
    assert len(refused.text.encode()) <= api_errors.MAX_MESSAGE_BYTES


async def test_malformed_requests_name_their_field(stub: Any) -> None:
    refused = await refusal(stub.Execute(pb.RunSpec()))
    assert (refused.code, refused.field) == (grpc.StatusCode.INVALID_ARGUMENT, "argv")
    refused = await refusal(stub.Execute(spec(terminal=pb.Terminal(rows=1))))
    assert refused.field == "terminal"


@pytest.mark.parametrize("data", [b"\xff\xff\xff", b"\x0a\x05ab", b"\x0a\x01\xff", b"\xff" * 64])
async def test_what_is_no_protobuf_is_an_invalid_argument(channel: grpc.aio.Channel, data: bytes) -> None:
    refused = await refusal(channel.unary_unary("/supervisor.v1.RunService/Execute")(data))
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    assert refused.info.reason in ("MALFORMED_MESSAGE", "INVALID_REQUEST")
    refused = await refusal(anext(aiter(channel.unary_stream("/supervisor.v1.TraceService/GetTrace")(data))))
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    call = channel.stream_stream("/supervisor.v1.RunService/Run")(iter([data]))
    refused = await refusal(anext(aiter(call)))
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_request_above_the_bound_is_refused_by_grpc(stub: Any) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Execute(spec(stdin=bytes(MESSAGE_BYTES + (1 << 20))))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_a_result_above_the_bound_is_cut_and_marked(stub: Any) -> None:
    result = await stub.Execute(spec(b"huge"))
    assert result.ByteSize() <= MESSAGE_BYTES
    assert result.files[0].truncated and len(result.files[0].data) > MESSAGE_BYTES // 2
    assert len(result.stdout) == 1000


async def test_the_clients_deadline_and_cancellation_end_the_run(stub: Any, runs: FakeRuns) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Execute(spec(b"wait"), timeout=0.2)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await eventually(lambda: runs.cancelled == 1)
    call = stub.Execute(spec(b"wait"))
    await eventually(lambda: runs.running == 1)
    call.cancel()
    await eventually(lambda: runs.cancelled == 2)


async def test_a_client_that_vanishes_ends_its_runs(server: Server, runs: FakeRuns) -> None:
    channel = grpc.aio.insecure_channel(server.addresses[0])
    call = run_pb2_grpc.RunServiceStub(channel).Execute(spec(b"wait"))
    live = run_pb2_grpc.RunServiceStub(channel).Run()
    await live.write(pb.RunRequest(start=pb.StartRun(spec=spec(b"wait"))))
    await live.read()
    await eventually(lambda: runs.running == 1)
    with structlog.testing.capture_logs() as logs:
        await channel.close()
        await eventually(lambda: runs.cancelled == 1)
        async with asyncio.timeout(5):
            await runs.lives[0].left.wait()
    assert "cancelled" in runs.lives[0].done
    assert not [entry for entry in logs if entry["log_level"] == "error"]
    assert call.done()


async def test_many_requests_at_once(stub: Any) -> None:
    answers = await asyncio.gather(*(stub.Execute(spec(request_id=str(index))) for index in range(10_000)))
    assert [answer.request_id for answer in answers] == [str(index) for index in range(10_000)]


async def test_execute_stream_answers_each_request(stub: Any) -> None:
    requests = [spec(request_id=str(index)) for index in range(300)]
    requests += [spec(b"refuse", request_id="refused"), pb.RunSpec(request_id="empty"), spec()]
    answers = [answer async for answer in stub.ExecuteStream(iter(requests))]
    assert len(answers) == 303
    results = {answer.request_id: answer.result for answer in answers if answer.HasField("result")}
    assert set(results) == {str(index) for index in range(300)}
    failed = {answer.request_id: answer.error for answer in answers if answer.HasField("error")}
    assert {key: error.code for key, error in failed.items()} == {"refused": 7, "empty": 3, "": 3}
    violation = error_details_pb2.BadRequest()
    failed[""].details[1].Unpack(violation)
    assert violation.field_violations[0].field == "request_id"


async def test_execute_stream_reads_no_further_than_its_window(stub: Any, runs: FakeRuns) -> None:
    call = stub.ExecuteStream(iter([spec(b"wait", request_id=str(index)) for index in range(STREAM_WINDOW + 50)]))
    await eventually(lambda: runs.running == STREAM_WINDOW)
    await asyncio.sleep(0.1)
    assert runs.most == STREAM_WINDOW
    runs.release.set()
    assert len([answer async for answer in call]) == STREAM_WINDOW + 50
    assert runs.most == STREAM_WINDOW


async def test_leaving_execute_stream_cancels_what_is_in_flight(stub: Any, runs: FakeRuns) -> None:
    call = stub.ExecuteStream()
    for index in range(5):
        await call.write(spec(b"wait", request_id=str(index)))
    await eventually(lambda: runs.running == 5)
    call.cancel()
    await eventually(lambda: runs.cancelled == 5)


async def test_execute_stream_goes_on_after_a_malformed_message(channel: grpc.aio.Channel) -> None:
    call = channel.stream_stream("/supervisor.v1.RunService/ExecuteStream")(
        iter([b"\xff\xff", spec(request_id="good").SerializeToString()])
    )
    answers = [pb.ExecuteStreamResponse.FromString(data) async for data in call]
    assert {(answer.request_id, answer.WhichOneof("answer")) for answer in answers} == {
        ("", "error"),
        ("good", "result"),
    }
