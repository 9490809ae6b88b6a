"""An in-memory Runs and Policies behind the services, and what the tests of the services share."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from types import TracebackType
from typing import Any, Self

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from supervisor import errors
from supervisor.api.host_service import HostInfo
from supervisor.api.server import Backing
from supervisor.evidence.trace_query import TraceQuery
from supervisor.evidence.traces import Found, SearchEnd
from supervisor.model import (
    Feature,
    HostFeatures,
    Outcome,
    OutputFile,
    Peer,
    RunRecord,
    RunResult,
    RunSpec,
    TraceEvent,
    Violation,
)
from supervisor.policy import Policy, PolicyProblem
from supervisor.probes.followers import Followed
from supervisor.run_events import Event, Exited, Output, Started, Stream, ViolationSeen
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
        self._closing = asyncio.ensure_future(self.input.put(None))  # after what waits for room

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
        self.searched: list[TraceQuery] = []
        self.steps: list[Found | SearchEnd] = [SearchEnd(0)]
        self.search_goes_on = False
        self.searches_left = 0
        self.batches: list[Followed] = []
        self.follow_goes_on = False
        self.followed: list[tuple[str, bool]] = []
        self.follows_left = 0
        self.checked: list[tuple[int, str, bool]] = []
        """Of every policy text that was checked: characters, name, and whether that held up the event loop."""

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

    async def trace(self, run_id: str) -> AsyncIterator[list[TraceEvent]]:
        self.get(run_id)
        call = TraceEvent(1_500_000_000, "syscall", 2, 2, "mkdir", "x86-64", -13, (1, 1 << 63))
        yield [TraceEvent(1_000_000_000, "exec", 2, 2, path="/bin/x", argv=("x", "\udcff")), call]
        yield [TraceEvent(2_000_000_000, "exit", 2, 2)]

    async def search(self, query: TraceQuery) -> AsyncIterator[Found | SearchEnd]:
        self.searched.append(query)
        if self.error is not None:
            raise self.error
        try:
            for step in self.steps:
                yield step
            if self.search_goes_on:
                await asyncio.Event().wait()
        finally:
            self.searches_left += 1

    async def follow(self, run_id: str, *, calls: bool) -> AsyncIterator[Followed]:
        self.get(run_id)
        if self.error is not None:
            raise self.error
        self.followed.append((run_id, calls))
        try:
            yield Followed([], level="full")
            for batch in self.batches:
                yield batch
            if self.follow_goes_on:
                await asyncio.Event().wait()
        finally:
            self.follows_left += 1

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

    def __init__(self, checked: list[tuple[int, str, bool]]) -> None:
        self.checked = checked

    def get(self, name: str) -> Policy:
        if name != "strict":
            raise errors.NotFound(f"no policy {name}")
        return self.policy

    def names(self) -> tuple[str, ...]:
        return ("strict",)

    def check_text(self, text: str, *, name: str = "") -> list[PolicyProblem]:
        self.checked.append((len(text), name, threading.current_thread() is threading.main_thread()))
        return [PolicyProblem(3, "limts", "unknown key; limits?")] if "limts" in text else []

    def resolve_text(self, text: str, *, name: str = "") -> Policy:
        return self.policy

    def resolved_toml(self, policy: Policy) -> str:
        return "resolved"


def backing(runs: FakeRuns) -> Backing:
    info = HostInfo(
        "0.1", max_concurrent_runs=8, max_queued_runs=9, max_message_bytes=MESSAGE_BYTES, tier="tracepoints"
    )
    return Backing(runs, FakePolicies(runs.checked), HOST, info, max_files_bytes=FILES_BYTES)


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


def start(program: bytes = b"cat", *, files: bool = False, stdin: bool = False, **fields: Any) -> pb.RunRequest:
    return pb.RunRequest(start=pb.StartRun(spec=spec(program, **fields), files_follow=files, stdin_follows=stdin))


def chunk(**fields: Any) -> pb.RunRequest:
    return pb.RunRequest(file=pb.FileChunk(**fields))


END = pb.RunRequest(files_end=pb.FilesEnd())


async def converse(stub: Any, *requests: pb.RunRequest) -> list[pb.RunResponse]:
    return [response async for response in stub.Run(iter(requests))]
