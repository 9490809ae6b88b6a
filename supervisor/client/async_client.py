"""The asyncio client; the same calls as `Supervisor`, awaited."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import grpc
import grpc.aio

from supervisor import errors
from supervisor.client import result as wire
from supervisor.client.build import Request, RunOptions, Text, build_request, stdin_chunks, to_bytes
from supervisor.client.channel import MAX_MESSAGE_BYTES, Stubs, Target, TlsFiles, resolve_target
from supervisor.client.errors_wire import Cancelled, from_rpc_error
from supervisor.client.follow import AsyncTraceFollow, follow_request
from supervisor.client.search import AsyncTraceSearch, SearchOptions, search_request
from supervisor.client.sync_client import runs_request
from supervisor.model import RunRecord, RunResult, TraceSummary
from supervisor.run_events import Event, Exited, Started
from supervisor.v1 import host_pb2, policy_pb2, run_pb2, trace_pb2

_Answer = TypeVar("_Answer")
_PAGE = 1000


class AsyncSupervisor:
    """A connection to one daemon, for asyncio; see `Supervisor` for address, TLS and errors.

    Make it where an event loop runs. Cancelling a task that awaits `execute` ends its run.
    """

    def __init__(
        self, address: str | None = None, *, tls: TlsFiles | None = None, max_message_bytes: int = MAX_MESSAGE_BYTES
    ) -> None:
        target = resolve_target(address, tls, max_message_bytes=max_message_bytes)
        self.address = target.address
        self._target = target
        self._channel: Any = (
            grpc.aio.insecure_channel(target.address, target.options)
            if target.credentials is None
            else grpc.aio.secure_channel(target.address, target.credentials, target.options)
        )
        self._stubs = Stubs(self._channel)

    async def execute(self, argv: Sequence[Text], **options: Unpack[RunOptions]) -> RunResult:
        """Runs a program to its end and returns its result; see `Supervisor.execute`."""
        request = build_request(argv, options, local=self._target.local)
        if request.spec.HasField("terminal"):
            raise errors.InvalidRequest("a terminal needs run(), with live input and output", field="terminal")
        if not request.streamed:
            return wire.to_result(await self._ask(self._stubs.runs.Execute, request.unary(), request.deadline))
        assembler = wire.Assembler()
        async with AsyncRunStream(self._stubs.runs.Run, request, self._target, stdin_follows=False) as stream:
            async for event in stream:
                assembler.add(event)
        if assembler.result is None:
            raise errors.SupervisorError("the run's stream ended without a result", reason="NO_RESULT")
        return assembler.result

    def run(self, argv: Sequence[Text], **options: Unpack[RunOptions]) -> AsyncRunStream:
        """Starts a program and returns the stream of its events; see `Supervisor.run`. Not awaited itself."""
        request = build_request(argv, options, local=self._target.local)
        return AsyncRunStream(self._stubs.runs.Run, request, self._target, stdin_follows=options.get("stdin") is None)

    async def kill(self, run_id: str) -> bool:
        """Ends a run with its whole tree; False when it had ended already. Raises NotFound."""
        return bool((await self._ask(self._stubs.runs.KillRun, run_pb2.KillRunRequest(run_id=run_id))).killed)

    async def kill_agent(self, agent: str) -> int:
        """Ends all runs of `agent`, queued ones too; returns how many."""
        return int((await self._ask(self._stubs.runs.KillAgentRuns, run_pb2.KillAgentRunsRequest(agent=agent))).killed)

    async def runs(self, agent: str = "", state: str = "", limit: int = _PAGE) -> list[RunRecord]:
        """The newest `limit` runs, newest first; only those of `agent`, only in `state` (queued, running, ended)."""
        found: list[RunRecord] = []
        async with aclosing(self.each_run(agent, state, page_size=min(_PAGE, limit))) as pages:
            while len(found) < limit and (run := await anext(pages, None)) is not None:
                found.append(run)
        return found

    async def each_run(
        self, agent: str = "", state: str = "", *, page_size: int = _PAGE
    ) -> AsyncGenerator[RunRecord, None]:
        """All runs as `runs` has them, asked for page by page while they are read."""
        request = runs_request(agent, state)
        request.page_size = page_size
        while True:
            answer = await self._ask(self._stubs.runs.ListRuns, request)
            for run in answer.runs:
                yield wire.to_record(run)
            request.page_token = answer.next_page_token
            if not request.page_token:
                return

    async def get(self, run_id: str) -> RunRecord:
        """The record of one run. Raises NotFound."""
        return wire.to_record((await self._ask(self._stubs.runs.GetRun, run_pb2.GetRunRequest(run_id=run_id))).run)

    async def host(self) -> wire.Host:
        """What the daemon's host can enforce, and how busy it is."""
        return wire.to_host(await self._ask(self._stubs.host.GetHost, host_pb2.GetHostRequest()))

    async def policies(self) -> list[wire.Policy]:
        """All policies that the daemon knows."""
        answer = await self._ask(self._stubs.policies.ListPolicies, policy_pb2.ListPoliciesRequest())
        return [wire.to_policy(policy) for policy in answer.policies]

    async def policy(self, name: str) -> wire.Policy:
        """One policy. Raises NotFound."""
        answer = await self._ask(self._stubs.policies.GetPolicy, policy_pb2.GetPolicyRequest(name=name))
        return wire.to_policy(answer.policy)

    async def check_policy(self, text: str, name: str = "") -> wire.PolicyCheck:
        """Validates a policy's text without keeping it; its problems are in the answer, not raised.

        `name` is what it is called where the text does not say: its file's name without .toml.
        """
        return wire.to_check(
            await self._ask(self._stubs.policies.CheckPolicy, policy_pb2.CheckPolicyRequest(toml=text, name=name))
        )

    async def trace(self, run_id: str) -> AsyncIterator[wire.TraceEvent]:
        """What a run did, in order, while it is read. Raises NotFound when iterated."""
        try:
            async for message in self._stubs.traces.GetTrace(trace_pb2.GetTraceRequest(run_id=run_id)):
                for event in wire.to_trace_events(message):
                    yield event
        except grpc.RpcError as error:
            raise from_rpc_error(error, self._target) from None

    def follow_trace(self, run_id: str, *, calls: bool = True) -> AsyncTraceFollow:
        """What a run that is still going does from now on; see `Supervisor.follow_trace`. Not awaited itself."""
        return AsyncTraceFollow(self._stubs.traces.FollowTrace, follow_request(run_id, calls), self._target)

    async def trace_summary(self, run_id: str) -> TraceSummary:
        """A run's system calls, counted. Raises NotFound."""
        request = trace_pb2.GetTraceSummaryRequest(run_id=run_id)
        return wire.to_summary((await self._ask(self._stubs.traces.GetTraceSummary, request)).summary)

    def search_traces(self, **options: Unpack[SearchOptions]) -> AsyncTraceSearch:
        """What is in the stored traces of all runs; see `Supervisor.search_traces`. Not awaited itself."""
        return AsyncTraceSearch(self._stubs.traces.SearchTraces, search_request(options), self._target)

    async def close(self) -> None:
        """Ends the connection, and with it every run that still streams through it."""
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _ask(
        self, method: Callable[..., Awaitable[_Answer]], request: object, deadline: float | None = None
    ) -> _Answer:
        try:
            return await method(request, timeout=deadline)
        except grpc.RpcError as error:
            raise from_rpc_error(error, self._target) from None


class AsyncRunStream:
    """One run's events, in order; iterate it with `async for`. Leaving it before the end ends the run."""

    def __init__(self, method: Any, request: Request, target: Target, *, stdin_follows: bool) -> None:
        self.run_id: str | None = None
        self._target = target
        self._outbox = _AsyncOutbox(request.opening(stdin_follows=stdin_follows))
        self._stdin_open = stdin_follows
        self._reader = wire.EventReader()
        self._over = False
        self._cancelled = False
        self._call: Any = method(self._outbox.messages(), timeout=request.deadline)
        self._call.add_done_callback(lambda _: self._outbox.close())

    async def write(self, data: Text) -> None:
        """Sends to the program's standard input; waits while the daemon takes no more. Dropped after the run's end.

        Raises ValueError when standard input is closed or was given whole.
        """
        if not self._stdin_open:
            raise ValueError("standard input is closed")
        for message in stdin_chunks(to_bytes(data, "stdin")):
            await self._outbox.put(message)

    async def close_stdin(self) -> None:
        """The program reads end of file once it has read what was written."""
        if self._stdin_open:
            self._stdin_open = False
            await self._outbox.put(run_pb2.RunRequest(stdin=b""))

    async def signal(self, number: int) -> None:
        """Sends a signal to the program, ahead of input that still waits."""
        self._outbox.put_first(run_pb2.RunRequest(signal=number))

    async def resize(self, rows: int, cols: int) -> None:
        """Tells the program's terminal its new size."""
        self._outbox.put_first(run_pb2.RunRequest(resize=run_pb2.Terminal(rows=rows, columns=cols)))

    def cancel(self) -> None:
        """Ends the run at once; iterating then raises Cancelled."""
        self._cancelled = True
        self._outbox.close()
        self._call.cancel()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        try:
            while not self._over:
                message = await self._call.read()
                if message is grpc.aio.EOF:
                    self._over = True
                    break
                event = self._reader.read(message)
                if isinstance(event, Started):
                    self.run_id = event.run_id
                elif isinstance(event, Exited):
                    await self._finish()
                if event is not None:
                    return event
        except grpc.RpcError as error:
            self._over = True
            if self._outbox.failure is not None:
                raise self._outbox.failure from None
            raise from_rpc_error(error, self._target, run_under_way=self.run_id is not None) from None
        except asyncio.CancelledError:
            self._over = True
            # grpc.aio raises this for its own cancel(), too; only a cancelled task may see it.
            if self._outbox.failure is not None:
                raise self._outbox.failure from None
            if self._cancelled:
                raise Cancelled("the call was cancelled") from None
            self.cancel()
            raise
        raise StopAsyncIteration

    async def _finish(self) -> None:
        """After Exited: closes our side and reads the status, so that the daemon does not see a cancellation."""
        self._over = True
        self._outbox.close()
        while await self._call.read() is not grpc.aio.EOF:
            pass

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._over:
            self.cancel()


class _AsyncOutbox:
    """The messages to send: first those of `opening`, then what is put."""

    _ROOM = 8

    def __init__(self, opening: Iterator[run_pb2.RunRequest]) -> None:
        self._opening = opening
        self._urgent: deque[run_pb2.RunRequest] = deque()
        self._waiting: deque[run_pb2.RunRequest] = deque()
        self._closed = False
        self._filled = asyncio.Event()
        self._drained = asyncio.Event()
        self.failure: errors.InvalidRequest | None = None

    async def put(self, message: run_pb2.RunRequest) -> None:
        while len(self._waiting) >= self._ROOM and not self._closed:
            self._drained.clear()
            await self._drained.wait()
        self._waiting.append(message)
        self._filled.set()

    def put_first(self, message: run_pb2.RunRequest) -> None:
        self._urgent.append(message)
        self._filled.set()

    def close(self) -> None:
        self._closed = True
        self._filled.set()
        self._drained.set()

    async def messages(self) -> AsyncIterator[run_pb2.RunRequest]:
        try:
            for message in self._opening:
                if self._closed:
                    return
                yield message
        except OSError as error:
            self.failure = errors.InvalidRequest(f"cannot read {error.filename}: {error.strerror}", field="files")
            raise
        while not self._closed:
            if self._urgent or self._waiting:
                message = (self._urgent or self._waiting).popleft()
                self._drained.set()
                yield message
            else:
                self._filled.clear()
                await self._filled.wait()
