"""RunService: from a request to the one result of its run, and what else can be done to runs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from supervisor.api import convert, results
from supervisor.api.errors import status_of, status_of_any
from supervisor.api.methods import Duplex, Method, closed_after
from supervisor.api.policy_texts import PolicyTexts
from supervisor.api.ports import LiveRun, Runs
from supervisor.api.uploads import UploadRoom, receive_files
from supervisor.errors import InvalidRequest
from supervisor.model import Peer, RunSpec
from supervisor.run_events import Exited, Output, Started, Stream, ViolationSeen
from supervisor.v1 import run_pb2 as pb

STREAM_WINDOW = 128
"""Requests of one ExecuteStream that are worked on at once; more are not read."""
MAX_PAGE = 1_000
DEFAULT_PAGE = 100
MAX_SIGNAL = 64

RunStream = Duplex[pb.RunRequest, pb.RunResponse]
ExecuteDuplex = Duplex[pb.RunSpec, pb.ExecuteStreamResponse]


class RunService:
    """The methods of supervisor.v1.RunService over `runs`.

    `max_message_bytes` bounds a result, `max_files_bytes` the files streamed into one run; `UploadRoom` those of all.
    """

    def __init__(self, runs: Runs, texts: PolicyTexts, *, max_message_bytes: int, max_files_bytes: int) -> None:
        self._runs = runs
        self._texts = texts
        self._max_message_bytes = max_message_bytes
        self._max_files_bytes = max_files_bytes
        self._room = UploadRoom(max_files_bytes * 4)

    def methods(self) -> dict[str, Method]:
        return {
            "Execute": self.execute,
            "ExecuteStream": self.execute_stream,
            "Run": self.run,
            "GetRun": self.get_run,
            "ListRuns": self.list_runs,
            "KillRun": self.kill_run,
            "KillAgentRuns": self.kill_agent_runs,
        }

    async def execute(self, request: pb.RunSpec, peer: Peer) -> pb.RunResult:
        spec = convert.run_spec(request)
        await self._prepare_policy(spec)
        ended = await self._runs.execute(spec, peer)
        result = results.result_message(ended, max_file_bytes=self._max_message_bytes)
        results.release(ended)
        results.fit(result, self._max_message_bytes)
        return result

    async def _prepare_policy(self, spec: RunSpec) -> None:
        """Nothing is refused here: whether this client's policy is taken at all is for `runs` to say first."""
        if spec.policy_toml is not None:
            await self._texts.prepare(spec.policy_toml)

    async def execute_stream(self, stream: ExecuteDuplex) -> None:
        window = asyncio.Semaphore(STREAM_WINDOW)
        writing = asyncio.Lock()

        async def send(response: pb.ExecuteStreamResponse) -> None:
            async with writing:
                await stream.write(response)

        async def answer(request: pb.RunSpec) -> None:
            try:
                await send(await self._answer(request, stream.peer))
            finally:
                window.release()

        try:
            async with asyncio.TaskGroup() as tasks:
                while True:
                    await window.acquire()
                    try:
                        request = await stream.read()
                    except InvalidRequest as error:
                        # The other runs of this stream go on.
                        window.release()
                        await send(pb.ExecuteStreamResponse(error=status_of(error)))
                        continue
                    if request is None:
                        break
                    tasks.create_task(answer(request))
        except ExceptionGroup as group:
            raise group.exceptions[0] from None

    async def _answer(self, request: pb.RunSpec, peer: Peer) -> pb.ExecuteStreamResponse:
        response = pb.ExecuteStreamResponse(request_id=request.request_id)
        try:
            convert.name(request.request_id, "request_id")
            response.result.CopyFrom(await self.execute(request, peer))
        except Exception as error:
            response.error.CopyFrom(status_of_any(error, "RunService.ExecuteStream"))
        return response

    async def run(self, stream: RunStream) -> None:
        first = await stream.read()
        if first is None or not first.HasField("start"):
            raise InvalidRequest("the first message of Run must be `start`", field="start")
        start = first.start
        with self._room.upload() as upload:
            files = await receive_files(stream, upload, self._max_files_bytes) if start.files_follow else ()
            spec = convert.run_spec(start.spec, files=files, terminal_allowed=True)
            terminal_size = convert.terminal_size(start.spec.terminal, "terminal")
            await self._prepare_policy(spec)
            stdin_follows = start.stdin_follows
            live = self._runs.open(spec, stream.peer, stdin_follows=stdin_follows)
            # From here on the run keeps what it needs of these; a long one must not hold its input twice.
            del first, start, files, spec
            async with live:
                if all(terminal_size):
                    live.resize(*terminal_size)
                await self._converse(stream, live, stdin_follows, upload.release)

    async def _converse(self, stream: RunStream, live: LiveRun, stdin_follows: bool, began: Callable[[], None]) -> None:
        try:
            async with asyncio.TaskGroup() as tasks:
                requests = tasks.create_task(_take_requests(stream, live, stdin_follows))
                await _send_events(stream, live, self._max_message_bytes, began)
                requests.cancel()
        except ExceptionGroup as group:
            raise group.exceptions[0] from None

    async def get_run(self, request: pb.GetRunRequest, peer: Peer) -> pb.GetRunResponse:
        return pb.GetRunResponse(run=results.record_message(self._runs.get(convert.name(request.run_id, "run_id"))))

    async def list_runs(self, request: pb.ListRunsRequest, peer: Peer) -> pb.ListRunsResponse:
        if request.state not in results.STATE_NAMES:
            raise InvalidRequest(f"state has no value number {request.state}", field="state")
        if not 0 <= request.page_size <= MAX_PAGE:
            raise InvalidRequest(f"page_size is {request.page_size}: 0 to {MAX_PAGE} was expected", field="page_size")
        size = request.page_size or DEFAULT_PAGE
        found = self._runs.list(
            agent=request.agent, state=results.STATE_NAMES[request.state], limit=size + 1, before=request.page_token
        )
        response = pb.ListRunsResponse()
        room = self._max_message_bytes
        for record in found[:size]:
            message = results.record_message(record)
            room -= message.ByteSize() + 16
            if room < 0 and response.runs:
                break
            response.runs.append(message)
        if len(response.runs) < len(found):
            response.next_page_token = response.runs[-1].result.run_id
        return response

    async def kill_run(self, request: pb.KillRunRequest, peer: Peer) -> pb.KillRunResponse:
        return pb.KillRunResponse(killed=await self._runs.kill(convert.name(request.run_id, "run_id")))

    async def kill_agent_runs(self, request: pb.KillAgentRunsRequest, peer: Peer) -> pb.KillAgentRunsResponse:
        return pb.KillAgentRunsResponse(killed=await self._runs.kill_agent(convert.name(request.agent, "agent")))


async def _take_requests(stream: RunStream, live: LiveRun, stdin_follows: bool) -> None:
    """Pass on what the client sends, until it half-closes; that, or an empty chunk, is the end of standard input."""
    stdin_open = stdin_follows
    while (message := await stream.read()) is not None:
        kind = message.WhichOneof("message")
        if kind == "stdin":
            if not stdin_open:
                raise InvalidRequest("standard input has ended, or was not announced by stdin_follows", field="stdin")
            if message.stdin:
                await live.write_stdin(message.stdin)
            else:
                stdin_open = False
                live.close_stdin()
        elif kind == "signal":
            if not 1 <= message.signal <= MAX_SIGNAL:
                raise InvalidRequest(f"signal is {message.signal}: 1 to {MAX_SIGNAL} was expected", field="signal")
            live.signal(message.signal)
        elif kind == "resize":
            live.resize(*convert.terminal_size(message.resize, "resize"))
        else:
            raise InvalidRequest(f"unexpected message in a started run: {kind or 'empty'}", field=kind or "message")
    if stdin_open:
        live.close_stdin()


async def _send_events(stream: RunStream, live: LiveRun, max_message_bytes: int, began: Callable[[], None]) -> None:
    """Send the run's events in order, large ones in pieces, up to `exited`; `began` is called at the first."""
    async with closed_after(live.events()) as events:
        async for event in events:
            began()
            if isinstance(event, Output):
                for piece in _pieces(event.data):
                    if event.stream is Stream.STDOUT:
                        await stream.write(pb.RunResponse(stdout=piece))
                    else:
                        await stream.write(pb.RunResponse(stderr=piece))
            elif isinstance(event, Started):
                await stream.write(pb.RunResponse(started=pb.RunStarted(run_id=event.run_id, time=event.time)))
            elif isinstance(event, ViolationSeen):
                await stream.write(pb.RunResponse(violation=results.violation_message(event.violation)))
            else:
                await _send_exit(stream, event, max_message_bytes)
                return
    raise RuntimeError("a run's events ended without Exited")


async def _send_exit(stream: RunStream, event: Exited, max_message_bytes: int) -> None:
    for file in event.result.files:
        for chunk in results.file_chunks(file):
            await stream.write(pb.RunResponse(file=chunk))
    exited = results.result_message(event.result, payload=False)
    results.fit(exited, max_message_bytes)
    await stream.write(pb.RunResponse(exited=exited))


def _pieces(data: bytes) -> Iterable[bytes]:
    size = results.CHUNK_BYTES
    return (data,) if len(data) <= size else (data[at : at + size] for at in range(0, len(data), size))
