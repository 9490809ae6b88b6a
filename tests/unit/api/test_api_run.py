"""Run: live input and output, files in and out, and what breaks the order."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import grpc
import pytest
from api_fakes import END, FakeRuns, Refusal, chunk, converse, refusal, start

from supervisor import errors
from supervisor.api import uploads
from supervisor.v1 import run_pb2 as pb


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
