"""The blocking client. One instance may be used from many threads."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import grpc

from supervisor import errors
from supervisor.client import result as wire
from supervisor.client.build import Request, RunOptions, Text, build_request, stdin_chunks, to_bytes
from supervisor.client.channel import MAX_MESSAGE_BYTES, Stubs, Target, TlsFiles, resolve_target
from supervisor.client.errors_wire import from_rpc_error
from supervisor.client.follow import TraceFollow, follow_request
from supervisor.client.search import SearchOptions, TraceSearch, search_request
from supervisor.model import RunRecord, RunResult, TraceSummary
from supervisor.run_events import Event, Exited, Started
from supervisor.v1 import host_pb2, policy_pb2, run_pb2, trace_pb2

_Answer = TypeVar("_Answer")
_PAGE = 1000


class Supervisor:
    """A connection to one daemon: `address`, else SUPERVISOR_ADDRESS, else the default Unix socket
    (supervisor.sock in SUPERVISOR_RUNTIME_DIR, else in /run/supervisor).

    TCP addresses (tcp://HOST:PORT) want mutual TLS: tls=(ca, cert, key), else SUPERVISOR_CLIENT_CA, _CERT and
    _KEY. Every call raises `errors.SupervisorError` or a kind of it; `errors.Unreachable` when no daemon answers. Nothing is
    connected before the first call. Close it, or use it as a context manager.
    """

    def __init__(
        self, address: str | None = None, *, tls: TlsFiles | None = None, max_message_bytes: int = MAX_MESSAGE_BYTES
    ) -> None:
        target = resolve_target(address, tls, max_message_bytes=max_message_bytes)
        self.address = target.address
        self._target = target
        self._channel: Any = (
            grpc.insecure_channel(target.address, target.options)
            if target.credentials is None
            else grpc.secure_channel(target.address, target.credentials, target.options)
        )
        self._stubs = Stubs(self._channel)

    def execute(self, argv: Sequence[Text], **options: Unpack[RunOptions]) -> RunResult:
        """Runs a program to its end and returns its result; see `RunOptions` for what it takes.

        A program that fails, is killed or cannot be executed is a result, not an exception. Large input and collected
        files travel in a stream, unseen here.
        """
        request = build_request(argv, options, local=self._target.local)
        if request.spec.HasField("terminal"):
            raise errors.InvalidRequest("a terminal needs run(), with live input and output", field="terminal")
        if not request.streamed:
            return wire.to_result(self._ask(self._stubs.runs.Execute, request.unary(), request.deadline))
        assembler = wire.Assembler()
        with RunStream(self._stubs.runs.Run, request, self._target, stdin_follows=False) as stream:
            for event in stream:
                assembler.add(event)
        if assembler.result is None:
            raise errors.SupervisorError("the run's stream ended without a result", reason="NO_RESULT")
        return assembler.result

    def run(self, argv: Sequence[Text], **options: Unpack[RunOptions]) -> RunStream:
        """Starts a program and returns the stream of its events: Started, Output, ViolationSeen, then Exited.

        Without `stdin` the program's standard input stays open for `write` until `close_stdin`; with it, those bytes
        are all of it. Takes the same options as `execute`, and `terminal`.
        """
        request = build_request(argv, options, local=self._target.local)
        return RunStream(self._stubs.runs.Run, request, self._target, stdin_follows=options.get("stdin") is None)

    def kill(self, run_id: str) -> bool:
        """Ends a run with its whole tree; False when it had ended already. Raises NotFound."""
        return bool(self._ask(self._stubs.runs.KillRun, run_pb2.KillRunRequest(run_id=run_id)).killed)

    def kill_agent(self, agent: str) -> int:
        """Ends all runs of `agent`, queued ones too; returns how many."""
        return int(self._ask(self._stubs.runs.KillAgentRuns, run_pb2.KillAgentRunsRequest(agent=agent)).killed)

    def runs(self, agent: str = "", state: str = "", limit: int = _PAGE) -> list[RunRecord]:
        """The newest `limit` runs, newest first; only those of `agent`, only in `state` (queued, running, ended)."""
        return list(islice(self.each_run(agent, state, page_size=min(_PAGE, limit)), max(0, limit)))

    def each_run(self, agent: str = "", state: str = "", *, page_size: int = _PAGE) -> Iterator[RunRecord]:
        """All runs as `runs` has them, asked for page by page while they are read."""
        request = runs_request(agent, state)
        request.page_size = page_size
        while True:
            answer = self._ask(self._stubs.runs.ListRuns, request)
            yield from map(wire.to_record, answer.runs)
            request.page_token = answer.next_page_token
            if not request.page_token:
                return

    def get(self, run_id: str) -> RunRecord:
        """The record of one run. Raises NotFound."""
        return wire.to_record(self._ask(self._stubs.runs.GetRun, run_pb2.GetRunRequest(run_id=run_id)).run)

    def host(self) -> wire.Host:
        """What the daemon's host can enforce, and how busy it is."""
        return wire.to_host(self._ask(self._stubs.host.GetHost, host_pb2.GetHostRequest()))

    def policies(self) -> list[wire.Policy]:
        """All policies that the daemon knows."""
        answer = self._ask(self._stubs.policies.ListPolicies, policy_pb2.ListPoliciesRequest())
        return [wire.to_policy(policy) for policy in answer.policies]

    def policy(self, name: str) -> wire.Policy:
        """One policy. Raises NotFound."""
        return wire.to_policy(self._ask(self._stubs.policies.GetPolicy, policy_pb2.GetPolicyRequest(name=name)).policy)

    def check_policy(self, text: str, name: str = "") -> wire.PolicyCheck:
        """Validates a policy's text without keeping it; its problems are in the answer, not raised.

        `name` is what it is called where the text does not say: its file's name without .toml.
        """
        return wire.to_check(
            self._ask(self._stubs.policies.CheckPolicy, policy_pb2.CheckPolicyRequest(toml=text, name=name))
        )

    def trace(self, run_id: str) -> Iterator[wire.TraceEvent]:
        """What a run did, in order, while it is read. Raises NotFound when iterated."""
        try:
            for message in self._stubs.traces.GetTrace(trace_pb2.GetTraceRequest(run_id=run_id)):
                yield from wire.to_trace_events(message)
        except grpc.RpcError as error:
            raise from_rpc_error(error, self._target) from None

    def follow_trace(self, run_id: str, *, calls: bool = True) -> TraceFollow:
        """What a run that is still going does from now on: iterate it for its events while they come, until the run has ended.

        What its policy's rules find is told as events of the kind "violation". Without `calls`, the plain system calls of a
        run that is traced in full are left out. Raises NotFound, HostLacks where there is nothing to follow.
        """
        return TraceFollow(self._stubs.traces.FollowTrace, follow_request(run_id, calls), self._target)

    def trace_summary(self, run_id: str) -> TraceSummary:
        """A run's system calls, counted. Raises NotFound."""
        request = trace_pb2.GetTraceSummaryRequest(run_id=run_id)
        return wire.to_summary(self._ask(self._stubs.traces.GetTraceSummary, request).summary)

    def search_traces(self, **options: Unpack[SearchOptions]) -> TraceSearch:
        """What is in the stored traces of all runs that have ended: iterate it for (run_id, event), newest run first.

        See `SearchOptions`. Raises InvalidRequest, NotFound for `run_id`, also when iterated.
        """
        return TraceSearch(self._stubs.traces.SearchTraces, search_request(options), self._target)

    def close(self) -> None:
        """Ends the connection, and with it every run that still streams through it."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, method: Callable[..., _Answer], request: object, deadline: float | None = None) -> _Answer:
        try:
            return method(request, timeout=deadline)
        except grpc.RpcError as error:
            raise from_rpc_error(error, self._target) from None


def runs_request(agent: str, state: str) -> run_pb2.ListRunsRequest:
    """The first page's request. Raises InvalidRequest for an unknown state."""
    if state not in ("", "queued", "running", "ended"):
        raise errors.InvalidRequest(f"state {state!r} is none of queued, running, ended", field="state")
    return run_pb2.ListRunsRequest(agent=agent, state=f"RUN_STATE_{(state or 'unspecified').upper()}")


class RunStream:
    """One run's events, in order; iterate it. Leaving it before the end, with `cancel` or `with`, ends the run.

    The other methods may be called from any thread while one thread iterates.
    """

    def __init__(self, method: Any, request: Request, target: Target, *, stdin_follows: bool) -> None:
        self.run_id: str | None = None
        self._target = target
        self._outbox = _Outbox(request.opening(stdin_follows=stdin_follows))
        self._stdin_open = stdin_follows
        self._reader = wire.EventReader()
        self._over = False
        self._call: Any = method(self._outbox, timeout=request.deadline)
        if not self._call.add_callback(self._outbox.close):
            self._outbox.close()
        self._outbox.on_failure(self._call.cancel)

    def write(self, data: Text) -> None:
        """Sends to the program's standard input; blocks while the daemon takes no more. Dropped after the run's end.

        Raises ValueError when standard input is closed or was given whole.
        """
        if not self._stdin_open:
            raise ValueError("standard input is closed")
        for message in stdin_chunks(to_bytes(data, "stdin")):
            self._outbox.put(message)

    def close_stdin(self) -> None:
        """The program reads end of file once it has read what was written."""
        if self._stdin_open:
            self._stdin_open = False
            self._outbox.put(run_pb2.RunRequest(stdin=b""))

    def signal(self, number: int) -> None:
        """Sends a signal to the program, ahead of input that still waits."""
        self._outbox.put_first(run_pb2.RunRequest(signal=number))

    def resize(self, rows: int, cols: int) -> None:
        """Tells the program's terminal its new size."""
        self._outbox.put_first(run_pb2.RunRequest(resize=run_pb2.Terminal(rows=rows, columns=cols)))

    def cancel(self) -> None:
        """Ends the run at once; iterating then raises Cancelled."""
        self._outbox.close()
        self._call.cancel()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Event:
        try:
            while not self._over:
                event = self._reader.read(next(self._call))
                if isinstance(event, Started):
                    self.run_id = event.run_id
                elif isinstance(event, Exited):
                    self._finish()
                if event is not None:
                    return event
        except grpc.RpcError as error:
            self._over = True
            if self._outbox.failure is not None:
                raise self._outbox.failure from None
            raise from_rpc_error(error, self._target, run_under_way=self.run_id is not None) from None
        raise StopIteration

    def _finish(self) -> None:
        """After Exited: closes our side and reads the status, so that the daemon does not see a cancellation."""
        self._over = True
        self._outbox.close()
        for _ in self._call:
            pass

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._over:
            self.cancel()


class _Outbox:
    """The messages to send: first those of `opening`, then what is put. gRPC reads it in a thread of its own."""

    _ROOM = 8

    def __init__(self, opening: Iterator[run_pb2.RunRequest]) -> None:
        self._opening = opening
        self._changed = threading.Condition()
        self._urgent: deque[run_pb2.RunRequest] = deque()
        self._waiting: deque[run_pb2.RunRequest] = deque()
        self._closed = False
        self._end_call: Callable[[], object] | None = None
        self.failure: errors.InvalidRequest | None = None

    def on_failure(self, end_call: Callable[[], object]) -> None:
        """`end_call` is called when a message cannot be made: now, if that has happened already."""
        with self._changed:
            self._end_call = end_call
            failed = self.failure is not None
        if failed:
            end_call()

    def put(self, message: run_pb2.RunRequest) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._closed or len(self._waiting) < self._ROOM)
            self._waiting.append(message)
            self._changed.notify_all()

    def put_first(self, message: run_pb2.RunRequest) -> None:
        with self._changed:
            self._urgent.append(message)
            self._changed.notify_all()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _fail(self, failure: errors.InvalidRequest) -> None:
        with self._changed:
            self.failure = failure
            self._closed = True
            end_call = self._end_call
        if end_call is not None:
            end_call()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> run_pb2.RunRequest:
        try:
            if not self._closed:
                return next(self._opening)
        except StopIteration:
            pass
        except OSError as error:
            # A local file that vanished while it was sent: the call ends, and the reader of events tells why.
            self._fail(errors.InvalidRequest(f"cannot read {error.filename}: {error.strerror}", field="files"))
        with self._changed:
            self._changed.wait_for(lambda: self._closed or bool(self._urgent or self._waiting))
            if self._closed:
                raise StopIteration
            message = (self._urgent or self._waiting).popleft()
            self._changed.notify_all()
            return message
