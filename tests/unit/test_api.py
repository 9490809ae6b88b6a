"""The services over a real gRPC server on a Unix socket, with an in-memory Runs behind them."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc
import pytest
import structlog
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status

from supervisor import errors
from supervisor.api import errors as api_errors
from supervisor.api import uploads
from supervisor.api.auth import TlsFiles
from supervisor.api.host_service import HostInfo
from supervisor.api.run_service import STREAM_WINDOW
from supervisor.api.server import Backing, Server, start_server
from supervisor.model import (
    Event,
    Exited,
    Feature,
    HostFeatures,
    Outcome,
    Output,
    OutputFile,
    Peer,
    RunRecord,
    RunResult,
    RunSpec,
    Started,
    Stream,
    Violation,
    ViolationSeen,
)
from supervisor.policy import Policy, PolicyProblem
from supervisor.v1 import (
    host_pb2,
    host_pb2_grpc,
    policy_pb2,
    policy_pb2_grpc,
    run_pb2_grpc,
    trace_pb2,
    trace_pb2_grpc,
)
from supervisor.v1 import run_pb2 as pb

MESSAGE_BYTES = 4 << 20
FILES_BYTES = 3 << 20
HOST = HostFeatures("6.1", "v2", 2, 1 << 30, features={"lsm": Feature("lsm", True)})


class FakeLive:
    """Echoes its input, then ends; what was done to it stands in `done`."""

    def __init__(self, runs: FakeRuns, spec: RunSpec, stdin_follows: bool) -> None:
        self.runs = runs
        self.spec = spec
        self.done: list[Any] = []
        self.input: asyncio.Queue[bytes | None] = asyncio.Queue(4)
        self.left = asyncio.Event()
        self.ended = False
        if not stdin_follows and spec.argv[0] != b"wait":
            self.input.put_nowait(None)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.ended:
            self.done.append("cancelled")
        self.left.set()

    async def events(self) -> AsyncIterator[Event]:
        if self.spec.argv[0] == b"burst":
            raise ValueError("secret words")
        yield Started("run-1", 1.0)
        yield ViolationSeen(Violation("rule", "exec", "high", "log", 2.0))
        if self.spec.argv[0] == b"big":
            yield Output(Stream.STDERR, b"e" * ((2 << 20) + 5))
        if self.spec.argv[0] == b"flood":
            while True:
                yield Output(Stream.STDOUT, b"f" * (1 << 20))
                self.done.append("flood")
        while (data := await self.input.get()) is not None:
            yield Output(Stream.STDOUT, data)
        files = tuple(OutputFile(file.path, file.data, file.mode) for file in self.spec.files)
        self.ended = True
        yield Exited(self.runs.result(self.spec, files=files))

    async def write_stdin(self, data: bytes) -> None:
        await self.input.put(data)

    def close_stdin(self) -> None:
        self.done.append("eof")
        self.input.put_nowait(None)

    def signal(self, number: int) -> None:
        self.done.append(("signal", number))
        if number == 15:
            self.input.put_nowait(None)

    def resize(self, rows: int, columns: int) -> None:
        self.done.append(("resize", rows, columns))


class FakeRuns:
    """Runs without a sandbox; argv[0] says what shall happen."""

    def __init__(self) -> None:
        self.running = 0
        self.queued = 0
        self.draining = False
        self.cancelled = 0
        self.most = 0
        self.peers: list[Peer] = []
        self.lives: list[FakeLive] = []
        self.error: Exception | None = None
        self.release = asyncio.Event()
        self.records = [
            RunRecord(f"run-{index:04}", "ended", "s", "strict", "p", "native", "true", outcome=Outcome.EXITED)
            for index in range(250, 0, -1)
        ]
        self.watched: list[str] = []

    def result(self, spec: RunSpec, **more: Any) -> RunResult:
        return RunResult(
            "run-1", Outcome.EXITED, spec.policy, "native", request_id=spec.request_id, exit_code=0, **more
        )

    async def execute(self, spec: RunSpec, peer: Peer) -> RunResult:
        self.peers.append(peer)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            if self.error is not None:
                raise self.error
            if spec.argv[0] == b"wait":
                await self.release.wait()
            if spec.argv[0] == b"refuse":
                raise errors.PolicyRefused("no", field="limits.memory")
            if spec.argv[0] == b"huge":
                return self.result(spec, stdout=b"o" * 1000, files=(OutputFile(b"f", b"f" * (5 << 20), 0o644),))
            return self.result(spec, stdout=spec.stdin)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1

    def open(self, spec: RunSpec, peer: Peer, *, stdin_follows: bool) -> FakeLive:
        self.peers.append(peer)
        if self.error is not None:
            raise self.error
        live = FakeLive(self, spec, stdin_follows)
        self.lives.append(live)
        return live

    async def kill(self, run_id: str) -> bool:
        self.get(run_id)
        return run_id != "run-0001"

    async def kill_agent(self, agent: str) -> int:
        return 3

    def get(self, run_id: str) -> RunRecord:
        for record in self.records:
            if record.run_id == run_id:
                return record
        raise errors.NotFound(f"no run {run_id}", metadata={"run_id": run_id})

    def list(self, *, agent: str, state: str, limit: int, before: str) -> list[RunRecord]:
        if state == "running":
            return []
        return [record for record in self.records if not before or record.run_id < before][:limit]

    async def watch(self, agent: str) -> AsyncIterator[tuple[float, str, str, Event, int]]:
        try:
            yield 1.0, "run-1", agent, Started("run-1", 1.0), 0
            yield 1.5, "run-1", agent, Output(Stream.STDOUT, b"no"), 2
            yield 2.0, "run-1", agent, Exited(self.result(RunSpec((b"x",)), stdout=b"no")), 3
            await asyncio.Event().wait()
        finally:
            self.watched.append("closed")


class FakePolicies:
    policy = Policy("strict", description="d", extends="moderate", toml="name = 'strict'", digest="abc")

    def get(self, name: str) -> Policy:
        if name != "strict":
            raise errors.NotFound(f"no policy {name}")
        return self.policy

    def names(self) -> tuple[str, ...]:
        return ("strict",)

    def check_text(self, text: str) -> list[PolicyProblem]:
        return [PolicyProblem(3, "limts", "unknown key; limits?")] if "limts" in text else []

    def resolve_text(self, text: str) -> Policy:
        return self.policy

    def resolved_toml(self, policy: Policy) -> str:
        return "resolved"


@pytest.fixture
async def runs() -> FakeRuns:
    return FakeRuns()


def backing(runs: FakeRuns) -> Backing:
    info = HostInfo(
        "0.1", max_concurrent_runs=8, max_queued_runs=9, max_message_bytes=MESSAGE_BYTES, tier="tracepoints"
    )
    return Backing(runs, FakePolicies(), HOST, info, max_files_bytes=FILES_BYTES)


@pytest.fixture
async def server(runs: FakeRuns, tmp_path: Path) -> AsyncIterator[Server]:
    started = await start_server(backing(runs), [f"unix://{tmp_path}/run/s.sock"], max_message_bytes=MESSAGE_BYTES)
    yield started
    await started.stop(0.1)


@pytest.fixture
async def channel(server: Server) -> AsyncIterator[grpc.aio.Channel]:
    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    async with grpc.aio.insecure_channel(server.addresses[0], options=options) as opened:
        yield opened


@pytest.fixture
def stub(channel: grpc.aio.Channel) -> run_pb2_grpc.RunServiceStub:
    return run_pb2_grpc.RunServiceStub(channel)


def spec(program: bytes = b"true", **fields: Any) -> pb.RunSpec:
    return pb.RunSpec(argv=[program], **fields)


class Refusal:
    """An RPC's error with its details taken apart."""

    def __init__(self, error: grpc.aio.AioRpcError) -> None:
        self.code = error.code()
        self.text = error.details() or ""
        status = rpc_status.from_call(error)
        assert status is not None
        self.details: dict[str, Any] = {}
        for packed in status.details:
            for kind in (error_details_pb2.ErrorInfo, error_details_pb2.BadRequest, error_details_pb2.RetryInfo):
                if packed.Is(kind.DESCRIPTOR):
                    message = kind()
                    packed.Unpack(message)
                    self.details[kind.__name__] = message
        self.info = self.details["ErrorInfo"]
        assert self.info.domain == "supervisor"

    @property
    def field(self) -> str:
        return str(self.details["BadRequest"].field_violations[0].field)


async def refusal(call: Awaitable[Any]) -> Refusal:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return Refusal(caught.value)


async def eventually(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - what is waited for happens in many places
            await asyncio.sleep(0.01)


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


def start(program: bytes = b"cat", *, files: bool = False, stdin: bool = False, **fields: Any) -> pb.RunRequest:
    return pb.RunRequest(start=pb.StartRun(spec=spec(program, **fields), files_follow=files, stdin_follows=stdin))


def chunk(**fields: Any) -> pb.RunRequest:
    return pb.RunRequest(file=pb.FileChunk(**fields))


END = pb.RunRequest(files_end=pb.FilesEnd())


async def converse(stub: Any, *requests: pb.RunRequest) -> list[pb.RunResponse]:
    return [response async for response in stub.Run(iter(requests))]


async def test_run_streams_in_order(stub: Any, runs: FakeRuns) -> None:
    call = stub.Run()
    await call.write(start(stdin=True, terminal=pb.Terminal(rows=24, columns=80)))
    assert (await call.read()).started.run_id == "run-1"
    assert (await call.read()).violation.rule == "rule"
    await call.write(pb.RunRequest(stdin=b"one"))
    assert (await call.read()).stdout == b"one"
    await call.write(pb.RunRequest(signal=2))
    await call.write(pb.RunRequest(resize=pb.Terminal(rows=5, columns=6)))
    await call.write(pb.RunRequest(stdin=b""))
    last = await call.read()
    assert last.exited.outcome == pb.OUTCOME_EXITED
    assert await call.read() is grpc.aio.EOF
    assert (await call.code()) is grpc.StatusCode.OK
    assert runs.lives[0].done == [("resize", 24, 80), ("signal", 2), ("resize", 5, 6), "eof"]


async def test_half_close_is_the_end_of_input(stub: Any, runs: FakeRuns) -> None:
    answers = await converse(stub, start(stdin=True), *[pb.RunRequest(stdin=b"x" * 1000)] * 50)
    assert b"".join(answer.stdout for answer in answers) == b"x" * 50_000
    assert runs.lives[0].done == ["eof"]
    answers = await converse(stub, start())
    assert answers[-1].HasField("exited")
    assert runs.lives[1].done == []


async def test_a_client_that_keeps_its_side_open_gets_its_end(stub: Any) -> None:
    call = stub.Run()
    await call.write(start())
    async with asyncio.timeout(5):
        kinds = [answer.WhichOneof("event") async for answer in call]
    assert kinds == ["started", "violation", "exited"]


async def test_large_output_comes_in_pieces(stub: Any) -> None:
    answers = await converse(stub, start(b"big"))
    assert [len(answer.stderr) for answer in answers if answer.stderr] == [1 << 20, 1 << 20, 5]


async def test_files_go_in_and_come_out(stub: Any, runs: FakeRuns) -> None:
    big = os.urandom((2 << 20) + 17)
    answers = await converse(
        stub,
        pb.RunRequest(
            start=pb.StartRun(
                spec=pb.RunSpec(argv=[b"cat"], files=[pb.InputFile(path=b"inline", data=b"i")]), files_follow=True
            )
        ),
        chunk(path=b"a \xff", data=big[:1000], mode=0o755),
        chunk(path=b"a \xff", data=big[1000:5000]),
        chunk(data=big[5000:], last=True),
        chunk(path=b"empty", last=True),
        END,
    )
    assert [(file.path, len(file.data), file.mode) for file in runs.lives[0].spec.files] == [
        (b"inline", 1, 0o644),
        (b"a \xff", len(big), 0o755),
        (b"empty", 0, 0o644),
    ]
    chunks = [answer.file for answer in answers if answer.HasField("file")]
    assert b"".join(each.data for each in chunks) == b"i" + big
    assert [each.path for each in chunks if each.path] == [b"inline", b"a \xff", b"empty"]
    assert [len(each.data) for each in chunks] == [1, 1 << 20, 1 << 20, 17, 0]
    assert answers[-1].HasField("exited") and not answers[-1].exited.files


@pytest.mark.parametrize(
    ("requests", "field"),
    [
        ([], "start"),
        ([pb.RunRequest(stdin=b"x")], "start"),
        ([pb.RunRequest()], "start"),
        ([start(), start()], "start"),
        ([start(), END], "files_end"),
        ([start(), pb.RunRequest(stdin=b"x")], "stdin"),
        ([start(stdin=True), pb.RunRequest(stdin=b""), pb.RunRequest(stdin=b"x")], "stdin"),
        ([start(stdin=True), pb.RunRequest(signal=0)], "signal"),
        ([start(stdin=True), pb.RunRequest(signal=65)], "signal"),
        ([start(stdin=True), pb.RunRequest(resize=pb.Terminal(rows=70_000))], "resize"),
        ([start(stdin=True), pb.RunRequest()], "message"),
        ([start(terminal=pb.Terminal(columns=70_000))], "terminal"),
        ([start(files=True)], "files_end"),
        ([start(files=True), pb.RunRequest(stdin=b"x")], "files_end"),
        ([start(files=True), chunk(path=b"a"), END], "files_end"),
        ([start(files=True), chunk(path=b"a"), chunk(path=b"b")], "file.path"),
        ([start(files=True), chunk(path=b"../a", last=True)], "file.path"),
        ([start(files=True), chunk(data=b"x", last=True)], "file.path"),
        ([start(files=True), chunk(path=b"a", mode=0o7777, last=True)], "file.mode"),
        ([start(files=True), chunk(path=b"a", last=True), chunk(path=b"a", last=True), END], "file.path"),
    ],
)
async def test_what_breaks_the_order_of_run_is_refused(
    stub: Any, runs: FakeRuns, requests: list[pb.RunRequest], field: str
) -> None:
    call = stub.Run()
    for request in requests:
        # The run "wait" ends by nothing but what is sent here.
        if request.HasField("start"):
            request = pb.RunRequest.FromString(request.SerializeToString())
            request.start.spec.argv[0] = b"wait"
        await call.write(request)
    if not requests or requests[0].start.files_follow:
        await call.done_writing()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async with asyncio.timeout(5):
            while await call.read() is not grpc.aio.EOF:
                pass
            raise grpc.aio.AioRpcError(grpc.StatusCode.OK, None, None)  # type: ignore[arg-type]
    refused = Refusal(caught.value)
    assert (refused.code, refused.field) == (grpc.StatusCode.INVALID_ARGUMENT, field)
    for live in runs.lives:
        assert "cancelled" in live.done or live.ended


async def test_too_many_bytes_of_files(stub: Any) -> None:
    refused = await refusal(
        converse(stub, start(files=True), *[chunk(path=b"a", data=bytes(1 << 20))] * 4, chunk(last=True), END)
    )
    assert (refused.code.name, refused.info.reason) == ("RESOURCE_EXHAUSTED", "FILES_TOO_LARGE")


async def test_uploads_share_one_room_and_give_it_back(stub: Any, runs: FakeRuns) -> None:
    async def try_upload() -> Refusal | None:
        """One small upload: None when there was room."""
        try:
            await converse(stub, start(files=True), chunk(path=b"a", data=b"x", last=True), END)
        except grpc.aio.AioRpcError as error:
            return Refusal(error)
        return None

    calls = [stub.Run() for _ in range(4)]
    for call in calls:
        await call.write(start(files=True))
        for _ in range(3):
            await call.write(chunk(path=b"a", data=bytes(1 << 20)))
    async with asyncio.timeout(10):
        while (refused := await try_upload()) is None:
            pass
    assert (refused.code.name, refused.info.reason) == ("RESOURCE_EXHAUSTED", "UPLOADS_FULL")
    assert "RetryInfo" in refused.details
    for call in calls:
        call.cancel()
    async with asyncio.timeout(10):
        while await try_upload() is not None:
            pass
    # A run that has begun holds none of it: five of these would not fit.
    for _ in range(5):
        live = stub.Run()
        calls.append(live)
        await live.write(start(b"wait", files=True))
        for number in range(3):
            await live.write(chunk(path=b"a", data=bytes(1 << 20), last=number == 2))
        await live.write(END)
        assert (await live.read()).HasField("started")


async def test_a_stalled_upload_is_given_up(stub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "MAX_SILENCE_SECONDS", 0.1)
    call = stub.Run()
    await call.write(start(files=True))
    refused = await refusal(anext(aiter(call)))
    assert refused.info.reason == "UPLOAD_STALLED"


async def test_a_run_that_is_refused_at_once(stub: Any, runs: FakeRuns) -> None:
    runs.error = errors.Exhausted("full", retry_seconds=2)
    refused = await refusal(converse(stub, start()))
    assert refused.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert refused.details["RetryInfo"].retry_delay.seconds == 2


async def test_a_failure_in_the_midst_of_a_run(stub: Any, runs: FakeRuns) -> None:
    refused = await refusal(converse(stub, start(b"burst")))
    assert refused.code is grpc.StatusCode.INTERNAL
    assert refused.info.metadata["stage"] == "RunService.Run"
    assert runs.lives[0].done == ["cancelled"]


async def test_output_that_nobody_reads_waits_at_its_source(stub: Any, runs: FakeRuns) -> None:
    call = stub.Run()
    await call.write(start(b"flood"))
    await call.read()
    await asyncio.sleep(0.5)
    count = runs.lives[0].done.count("flood")
    await asyncio.sleep(0.3)
    assert runs.lives[0].done.count("flood") == count < 50
    call.cancel()
    async with asyncio.timeout(5):
        await runs.lives[0].left.wait()


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


async def test_there_is_no_trace_yet(channel: grpc.aio.Channel) -> None:
    stub = trace_pb2_grpc.TraceServiceStub(channel)
    refused = await refusal(anext(aiter(stub.GetTrace(trace_pb2.GetTraceRequest(run_id="run-0001")))))
    assert (refused.code.name, refused.info.reason) == ("FAILED_PRECONDITION", "TRACE_NOT_AVAILABLE")
    refused = await refusal(stub.GetTraceSummary(trace_pb2.GetTraceSummaryRequest(run_id="x")))
    assert refused.code is grpc.StatusCode.NOT_FOUND


async def test_reflection_lists_the_services(channel: grpc.aio.Channel) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    (answer,) = [answer async for answer in stub.ServerReflectionInfo(iter([request]))]
    names = {service.name for service in answer.list_services_response.service}
    assert {f"supervisor.v1.{name}Service" for name in ("Run", "Policy", "Host", "Trace")} < names
    assert "grpc.health.v1.Health" in names


async def test_the_socket_is_for_root_and_its_group(server: Server, tmp_path: Path) -> None:
    assert stat.S_IMODE((tmp_path / "run").stat().st_mode) == 0o750
    assert stat.S_IMODE((tmp_path / "run/s.sock").stat().st_mode) == 0o660
    await server.stop(0)
    assert not (tmp_path / "run/s.sock").exists()


async def test_a_living_daemons_socket_is_left_alone(server: Server, runs: FakeRuns, stub: Any) -> None:
    with pytest.raises(errors.InvalidRequest) as caught:
        await start_server(backing(runs), server.addresses)
    assert caught.value.reason == "ADDRESS_IN_USE"
    assert (await stub.Execute(spec())).outcome == pb.OUTCOME_EXITED


async def test_a_dead_daemons_socket_is_replaced(runs: FakeRuns, tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(path))
    started = await start_server(backing(runs), [f"unix:{path}"])
    async with grpc.aio.insecure_channel(started.addresses[0]) as channel:
        assert (await run_pb2_grpc.RunServiceStub(channel).Execute(spec())).exit_code == 0
    await started.stop(0)


@pytest.mark.parametrize(
    "address",
    [
        *("unix-abstract:x", "unix:@x", "unix:///a\0b", "unix:relative", "unix:///dir/", "unix:///" + "a" * 120),
        *("unix:///dev/null", "localhost", "localhost:x", "localhost:99999", ":50051"),
    ],
)
async def test_addresses_that_cannot_be(runs: FakeRuns, address: str) -> None:
    with pytest.raises(errors.InvalidRequest) as caught:
        await start_server(backing(runs), [address])
    assert caught.value.field == "listen"


async def test_nothing_is_left_when_one_address_fails(runs: FakeRuns, tmp_path: Path) -> None:
    with pytest.raises(errors.InvalidRequest):
        await start_server(backing(runs), [f"unix://{tmp_path}/s.sock", "127.0.0.1:0"])
    assert not (tmp_path / "s.sock").exists()
    with pytest.raises(errors.InvalidRequest):
        await start_server(backing(runs), [])
    with pytest.raises(errors.InvalidRequest) as caught:
        await start_server(backing(runs), [f"unix://{tmp_path}/s.sock"], unix_group="no such group")
    assert caught.value.field == "socket_group"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority, a server's and a client's certificate of it, and a stranger's."""
    directory = tmp_path_factory.mktemp("tls")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=directory, check=True, capture_output=True)

    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    for authority in ("ca", "stranger-ca"):
        openssl(
            "req", "-x509", *key, "-keyout", f"{authority}.key", "-out", f"{authority}.pem", "-subj", f"/CN={authority}"
        )
    (directory / "san").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
    for name, authority in (("server", "ca"), ("agent-7", "ca"), ("stranger", "stranger-ca")):
        openssl("req", *key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        signing = ["-CA", f"{authority}.pem", "-CAkey", f"{authority}.key", "-CAcreateserial", "-extfile", "san"]
        openssl("x509", "-req", "-in", f"{name}.csr", *signing, "-out", f"{name}.pem")
    return directory


def tls_files(directory: Path) -> TlsFiles:
    return TlsFiles(str(directory / "server.pem"), str(directory / "server.key"), str(directory / "ca.pem"))


def client_credentials(directory: Path, name: str | None) -> grpc.ChannelCredentials:
    authority = (directory / "ca.pem").read_bytes()
    if name is None:
        return grpc.ssl_channel_credentials(authority)
    return grpc.ssl_channel_credentials(
        authority, (directory / f"{name}.key").read_bytes(), (directory / f"{name}.pem").read_bytes()
    )


async def test_tcp_asks_for_certificates_both_ways(runs: FakeRuns, certificates: Path) -> None:
    started = await start_server(backing(runs), ["127.0.0.1:0"], tls=tls_files(certificates))
    address = started.addresses[0]
    try:
        async with grpc.aio.secure_channel(address, client_credentials(certificates, "agent-7")) as channel:
            await run_pb2_grpc.RunServiceStub(channel).Execute(spec())
        assert runs.peers == [Peer(local=False, name="agent-7")]
        for name in (None, "stranger"):
            async with grpc.aio.secure_channel(address, client_credentials(certificates, name)) as channel:
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await run_pb2_grpc.RunServiceStub(channel).Execute(spec(), timeout=5)
                assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        async with grpc.aio.insecure_channel(address) as channel:
            with pytest.raises(grpc.aio.AioRpcError):
                await run_pb2_grpc.RunServiceStub(channel).Execute(spec(), timeout=5)
        assert len(runs.peers) == 1
    finally:
        await started.stop(0)


@pytest.mark.parametrize("lacking", ["certificate", "key", "client_ca", "all"])
async def test_tcp_without_mutual_tls_is_refused(runs: FakeRuns, certificates: Path, lacking: str) -> None:
    files = tls_files(certificates)
    parts = {name: getattr(files, name) for name in ("certificate", "key", "client_ca")}
    tls = None if lacking == "all" else TlsFiles(**{**parts, lacking: ""})
    with pytest.raises(errors.InvalidRequest) as caught:
        await start_server(backing(runs), ["127.0.0.1:0"], tls=tls)
    assert (caught.value.reason, caught.value.field) == ("TLS_REQUIRED", "listen")
    assert "tls_client_ca" in caught.value.message


async def test_tls_files_that_are_no_use_are_named(runs: FakeRuns, certificates: Path, tmp_path: Path) -> None:
    good = tls_files(certificates)
    (tmp_path / "junk").write_bytes(b"junk")
    for tls, field in (
        (TlsFiles("/nonexistent", good.key, good.client_ca), "tls_cert"),
        (TlsFiles(good.certificate, str(tmp_path / "junk"), good.client_ca), "tls_key"),
        (TlsFiles(good.certificate, str(certificates / "stranger.key"), good.client_ca), "listen"),
    ):
        with pytest.raises(errors.InvalidRequest) as caught:
            await start_server(backing(runs), ["127.0.0.1:0"], tls=tls)
        assert caught.value.field == field
