"""Every run of the daemon, and one run's life: checked, recorded, queued, alive, judged, recorded, told.

`Runs.execute` is the unary path, `Runs.open` the live one; both are `_Run.go` with another consumer of its output.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace
from types import TracebackType
from typing import Self

import structlog

from supervisor.backends.base import Backend, Sandbox, SandboxEnd, SandboxRequest
from supervisor.errors import Draining, Exhausted, HostLacks, InvalidRequest, PolicyRefused
from supervisor.evidence.records import RunRecords
from supervisor.model import (
    Event,
    Exited,
    InputFile,
    Outcome,
    Output,
    OutputFile,
    Peer,
    RunRecord,
    RunResult,
    RunSpec,
    Started,
    Stream,
    TraceSummary,
    ViolationSeen,
)
from supervisor.outcome import Verdict, judge, signal_name
from supervisor.policy import EffectivePolicy, narrow
from supervisor.policy_file import PolicySet
from supervisor.watch import Watchers

log = structlog.get_logger(__name__)

_LIVE_BUFFER_BYTES = 1 << 20
_CPU_POLL_SECONDS = 0.01


class Admission:
    """At most `concurrent` runs at once, `queued` more that wait in order; beyond that RESOURCE_EXHAUSTED."""

    def __init__(self, concurrent: int, queued: int) -> None:
        self.concurrent = concurrent
        self.max_queued = queued
        self.running = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def queued(self) -> int:
        return sum(1 for future in self._waiting if not future.done())

    def check(self) -> None:
        """Raises Exhausted when there is neither a place nor room to wait."""
        if self.running >= self.concurrent and len(self._waiting) >= self.max_queued:
            raise Exhausted(
                f"{self.running} runs and {len(self._waiting)} waiting: the queue is full",
                metadata={"running": str(self.running), "queued": str(len(self._waiting))},
                retry_seconds=0.5,
            )

    async def enter(self) -> None:
        self.check()
        if self.running < self.concurrent and not self._waiting:
            self.running += 1
            return
        place = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():
                self.leave()
            else:
                self._waiting.remove(place)
            raise

    def leave(self) -> None:
        while self._waiting:
            place = self._waiting.popleft()
            if not place.done():
                place.set_result(None)
                return
        self.running -= 1


class _Run:
    """One run. `go` is its task; everything else only tells it to end."""

    def __init__(self, runs: Runs, spec: RunSpec, effective: EffectivePolicy, backend: Backend, plan: object) -> None:
        self.run_id = new_run_id()
        self.spec = spec
        self.effective = effective
        self.stopped: Outcome | None = None
        self.reason = ""
        self.sandbox: Sandbox | None = None
        self.task: asyncio.Task[RunResult] | None = None
        self.on_output: Callable[[Stream, bytes], None] = self._keep_output
        self.on_started: Callable[[Started], None] | None = None
        self.stdin_follows = False
        self.record = RunRecord(
            run_id=self.run_id,
            state="queued",
            spec_digest=spec_digest(spec),
            policy=effective.policy.name,
            policy_digest=effective.policy.digest,
            backend=backend.name,
            program=spec.argv[0].decode("utf-8", "replace")[:256],
            agent=spec.agent,
            request_id=spec.request_id,
            labels=spec.labels,
            created_at=time.time(),
        )
        self._runs = runs
        self._backend = backend
        self._plan = plan
        self._output: dict[Stream, bytearray] = {Stream.STDOUT: bytearray(), Stream.STDERR: bytearray()}
        self._over: set[Stream] = set()
        self._timers: list[asyncio.TimerHandle] = []

    def _keep_output(self, stream: Stream, data: bytes) -> None:
        self._output[stream] += data

    def stop(self, cause: Outcome, reason: str = "") -> None:
        """Ends the run for `cause`; the first cause counts."""
        if self.stopped is None:
            self.stopped = cause
            self.reason = reason
        if self.sandbox is not None:
            self.sandbox.kill()
        elif self.task is not None and self.record.state == "queued":
            self.task.cancel()

    async def go(self) -> RunResult:
        try:
            await self._runs.admission.enter()
        except asyncio.CancelledError:
            return self._finish(Verdict(Outcome.CANCELLED, f"cancelled while queued: {self.reason or 'by its client'}"))
        except BaseException:
            self._abandon("refused: the queue is full")
            raise
        try:
            return await self._live()
        except BaseException as error:
            if self.record.state != "ended":
                self._abandon(f"set-up failed: {error}"[:500])
            raise
        finally:
            self._runs.admission.leave()

    async def _live(self) -> RunResult:
        if self.stopped is not None:
            return self._finish(Verdict(self.stopped, f"cancelled while queued: {self.reason or 'by its client'}"))
        request = SandboxRequest(
            run_id=self.run_id,
            spec=self.spec,
            effective=self.effective,
            stdin_follows=self.stdin_follows,
            on_output=lambda stream, data: self.on_output(stream, data),
            on_over=self._on_over,
        )
        files: tuple[OutputFile, ...] = ()
        self.record = replace(self.record, state="running")
        async with self._backend.start(request, self._plan) as sandbox:
            self.sandbox = sandbox
            if self.stopped is not None:
                sandbox.kill()
            begun = self._begin(sandbox)
            feed = self._feed(sandbox)
            try:
                end = await sandbox.ended()
            finally:
                for timer in self._timers:
                    timer.cancel()
                if feed is not None:
                    feed.cancel()
            wall = time.monotonic() - begun
            verdict = judge(end, self.effective.limits, self.stopped, self.spec.argv[0], self.reason)
            if self.spec.collect and verdict.outcome is not Outcome.NOT_STARTED:
                files = await sandbox.collect()
        self.sandbox = None
        return self._finish(verdict, end, wall, files, sandbox)

    def _begin(self, sandbox: Sandbox) -> float:
        loop = asyncio.get_running_loop()
        limits = self.effective.limits
        self.record = replace(self.record, started_at=time.time())
        sandbox.started.add_done_callback(self._on_program_started)
        if limits.wall_seconds is not None:
            self._timers.append(loop.call_later(limits.wall_seconds, self.stop, Outcome.TIMED_OUT))
        if limits.cpu_seconds is not None:
            self._watch_cpu(sandbox, limits.cpu_seconds)
        return time.monotonic()

    def _on_program_started(self, started: asyncio.Future[None]) -> None:
        if started.cancelled():
            return
        event = Started(self.run_id, time.time())
        if self.on_started is not None:
            self.on_started(event)
        self._runs.watchers.tell(self.run_id, self.spec.agent, event)

    def _feed(self, sandbox: Sandbox) -> asyncio.Task[None] | None:
        """Standard input too long for a pipe is written while the program reads it."""
        if not self.spec.stdin or (not self.stdin_follows and len(self.spec.stdin) <= 65536):
            return None

        async def write() -> None:
            await sandbox.write_stdin(self.spec.stdin)
            if not self.stdin_follows:
                sandbox.close_stdin()

        return asyncio.create_task(write())

    def _watch_cpu(self, sandbox: Sandbox, limit: float) -> None:
        """Looks again when the limit could be reached at the earliest: all the CPUs of the run at once."""
        loop = asyncio.get_running_loop()
        parallel = max(0.01, min(self.effective.limits.cpus or self._runs.cpus, self._runs.cpus))

        def look() -> None:
            try:
                left = limit - sandbox.cpu_seconds()
            except OSError:
                return
            if left <= 0:
                self.stop(Outcome.CPU_LIMIT)
            else:
                self._timers.append(loop.call_later(max(left / parallel, _CPU_POLL_SECONDS), look))
                del self._timers[2:-1]

        self._timers.append(loop.call_later(limit / parallel, look))

    def _on_over(self, stream: Stream) -> None:
        self._over.add(stream)
        self.stop(Outcome.OUTPUT_LIMIT)

    def _finish(
        self,
        verdict: Verdict,
        end: SandboxEnd | None = None,
        wall: float | None = None,
        files: tuple[OutputFile, ...] = (),
        sandbox: Sandbox | None = None,
    ) -> RunResult:
        usage = replace(end.usage, wall_seconds=wall) if end is not None else self.record.usage
        enforcement = self.record.enforcement
        if sandbox is not None and end is not None:
            enforcement = sandbox.enforcement
            if end.missing:
                enforcement = replace(enforcement, missing=(*enforcement.missing, *end.missing))
        violations = end.violations if end is not None else ()
        self.record = replace(
            self.record,
            state="ended",
            ended_at=time.time(),
            outcome=verdict.outcome,
            exit_code=verdict.exit_code,
            signal=verdict.signal,
            detail=verdict.detail,
            usage=usage,
            violations=violations,
            enforcement=enforcement,
            error=verdict.error,
        )
        self._runs.records.finish(self.record)
        result = result_of(self.record, self._output, self._over, files, self.effective.trace.value)
        for violation in violations:
            self._runs.watchers.tell(self.run_id, self.spec.agent, ViolationSeen(violation))
        self._runs.watchers.tell(
            self.run_id, self.spec.agent, Exited(replace(result, stdout=b"", stderr=b"", files=()))
        )
        return result

    def _abandon(self, detail: str) -> None:
        """The record of a run that came to nothing through us or its request; the client gets the error."""
        self.record = replace(
            self.record, state="ended", ended_at=time.time(), outcome=Outcome.NOT_STARTED, detail=detail
        )
        self._runs.records.finish(self.record)


class LiveRun:
    """A run whose output is consumed as it comes; see api.ports.LiveRun."""

    def __init__(self, runs: Runs, run: _Run) -> None:
        self._runs = runs
        self._run = run
        self._events: deque[Event] = deque()
        self._buffered = 0
        self._paused = False
        self._wake = asyncio.Event()
        self._pending_signals: list[int] = []
        self._started = asyncio.Event()
        run.on_output = self._on_output
        run.on_started = self._on_started

    async def __aenter__(self) -> Self:
        task = self._runs.begin(self._run)
        task.add_done_callback(lambda _: self._wake.set())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        task = self._run.task
        assert task is not None
        if not task.done():
            self._run.stop(Outcome.CANCELLED, "its client left")
            self._resume()
        # Its end is awaited by nobody else, and its error has been told or has nobody to be told.
        await asyncio.wait([task])
        if not task.cancelled():
            task.exception()

    async def events(self) -> AsyncIterator[Event]:
        task = self._run.task
        assert task is not None
        while True:
            while self._events:
                event = self._events.popleft()
                if isinstance(event, Output):
                    self._buffered -= len(event.data)
                    if self._paused and self._buffered < _LIVE_BUFFER_BYTES // 2:
                        self._resume()
                yield event
            if task.done():
                break
            self._wake.clear()
            if not self._events and not task.done():
                await self._wake.wait()
        while self._events:
            yield self._events.popleft()
        result = task.result()
        for violation in result.violations:
            yield ViolationSeen(violation)
        yield Exited(result)

    def _on_started(self, event: Started) -> None:
        self._events.append(event)
        self._started.set()
        self._wake.set()
        for number in self._pending_signals:
            self.signal(number)
        self._pending_signals.clear()

    def _on_output(self, stream: Stream, data: bytes) -> None:
        self._events.append(Output(stream, data))
        self._buffered += len(data)
        self._wake.set()
        if self._buffered >= _LIVE_BUFFER_BYTES and not self._paused and self._run.sandbox is not None:
            self._paused = True
            self._run.sandbox.pause_output()

    def _resume(self) -> None:
        self._paused = False
        if self._run.sandbox is not None:
            self._run.sandbox.resume_output()

    async def write_stdin(self, data: bytes) -> None:
        await self._until_started()
        if self._run.sandbox is not None:
            await self._run.sandbox.write_stdin(data)

    def close_stdin(self) -> None:
        if self._run.sandbox is not None:
            self._run.sandbox.close_stdin()
        else:
            self._run.stdin_follows = False

    async def _until_started(self) -> None:
        task = self._run.task
        assert task is not None
        waiter = asyncio.create_task(self._started.wait())
        await asyncio.wait([waiter, task], return_when=asyncio.FIRST_COMPLETED)
        waiter.cancel()

    def signal(self, number: int) -> None:
        if self._run.sandbox is not None and self._started.is_set():
            self._run.sandbox.signal(number)
        else:
            self._pending_signals.append(number)

    def resize(self, rows: int, columns: int) -> None:
        if self._run.sandbox is not None:
            self._run.sandbox.resize(rows, columns)


class Runs:
    """The daemon's runs; see api.ports.Runs for the face that the servicers use."""

    def __init__(
        self,
        *,
        backends: Mapping[str, Backend],
        policies: PolicySet,
        records: RunRecords,
        instance: str,
        max_concurrent: int,
        max_queued: int,
        allow_unisolated: bool,
        inline_policies: str,
        remote_mounts: bool,
    ) -> None:
        self.records = records
        self.admission = Admission(max_concurrent, max_queued)
        self.watchers = Watchers()
        self.cpus = os.cpu_count() or 1
        self._backends = backends
        self._policies = policies
        self._instance = instance
        self._allow_unisolated = allow_unisolated
        self._inline_policies = inline_policies
        self._remote_mounts = remote_mounts
        self._alive: dict[str, _Run] = {}
        self._draining = False

    @property
    def running(self) -> int:
        return self.admission.running

    @property
    def queued(self) -> int:
        return self.admission.queued

    @property
    def draining(self) -> bool:
        return self._draining

    async def execute(self, spec: RunSpec, peer: Peer) -> RunResult:
        run = self._prepare(spec, peer)
        task = self.begin(run)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if not task.done():
                run.stop(Outcome.CANCELLED, "its client left")
            raise

    def open(self, spec: RunSpec, peer: Peer, *, stdin_follows: bool) -> LiveRun:
        run = self._prepare(spec, peer)
        run.stdin_follows = stdin_follows
        return LiveRun(self, run)

    def begin(self, run: _Run) -> asyncio.Task[RunResult]:
        """Records the run and starts its task. Raises AlreadyExists."""
        self.records.begin(run.record, self._instance)
        self._alive[run.run_id] = run
        run.task = asyncio.create_task(run.go(), name=f"run-{run.run_id}")
        run.task.add_done_callback(lambda task: self._forget(run, task))
        return run.task

    def _forget(self, run: _Run, task: asyncio.Task[RunResult]) -> None:
        self._alive.pop(run.run_id, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.warning("run_failed", run_id=run.run_id, error=str(error), kind=type(error).__name__)

    def _prepare(self, spec: RunSpec, peer: Peer) -> _Run:
        """Everything that can be refused is refused here, before anything is recorded or made."""
        if self._draining:
            raise Draining("the daemon is stopping and takes no new runs", retry_seconds=5.0)
        self.admission.check()
        effective = narrow(self._policy(spec, peer), spec)
        if effective.policy.unisolated and not self._allow_unisolated:
            raise PolicyRefused(
                f"policy {effective.policy.name} gives no isolation at all, and the daemon's configuration "
                "does not have allow_unisolated = true",
                field="policy",
            )
        if spec.mounts and not peer.local and not self._remote_mounts:
            raise PolicyRefused(
                "mounts: peers over TCP may not mount paths of the daemon's host (remote_mounts); send files instead",
                field="mounts",
            )
        backend = self._backend(spec)
        return _Run(self, spec, effective, backend, backend.check(spec, effective))

    def _policy(self, spec: RunSpec, peer: Peer):  # type: ignore[no-untyped-def]
        if spec.policy_toml is None:
            return self._policies.get(spec.policy)
        allowed = self._inline_policies == "all" or (self._inline_policies == "local" and peer.local)
        if not allowed:
            raise PolicyRefused(
                f"policy_toml: the daemon takes inline policies from {self._inline_policies} peers only (inline_policies)",
                field="policy_toml",
            )
        return self._policies.resolve_text(spec.policy_toml)

    def _backend(self, spec: RunSpec) -> Backend:
        name = spec.backend if spec.backend != "auto" else next(iter(self._backends))
        found = self._backends.get(name)
        if found is None:
            if name not in ("native", "docker"):
                raise InvalidRequest(f"backend: {name} is none of auto, native, docker", field="backend")
            raise HostLacks(
                f"backend {name} is not available on this daemon",
                reason="BACKEND_NOT_AVAILABLE",
                field="backend",
                metadata={"feature": name, "remedy": f"use {', '.join(self._backends)}"},
            )
        return found

    async def kill(self, run_id: str) -> bool:
        run = self._alive.get(run_id)
        if run is None:
            self.records.get(run_id)
            return False
        run.stop(Outcome.CANCELLED, "by KillRun")
        return True

    async def kill_agent(self, agent: str) -> int:
        doomed = [run for run in self._alive.values() if run.spec.agent == agent]
        for run in doomed:
            run.stop(Outcome.CANCELLED, "by KillAgentRuns")
        return len(doomed)

    def get(self, run_id: str) -> RunRecord:
        run = self._alive.get(run_id)
        return run.record if run is not None else self.records.get(run_id)

    def list(self, *, agent: str = "", state: str = "", limit: int = 100, before: str = "") -> list[RunRecord]:
        found = self.records.list(agent=agent, state="", limit=limit, before=before)
        if not state:
            return [self._alive[r.run_id].record if r.run_id in self._alive else r for r in found]
        if state == "ended":
            return self.records.list(agent=agent, state=state, limit=limit, before=before)
        alive = [run.record for run in self._alive.values() if run.record.state == state]
        alive = [r for r in alive if (not agent or r.agent == agent) and (not before or r.run_id < before)]
        return sorted(alive, key=lambda record: record.run_id, reverse=True)[:limit]

    def watch(self, agent: str) -> AsyncIterator[tuple[float, str, str, Event, int]]:
        return self.watchers.watch(agent)

    async def drain(self, seconds: float) -> None:
        """Takes no new runs, lets the rest end for `seconds`, then ends them."""
        self._draining = True
        tasks = [run.task for run in self._alive.values() if run.task is not None]
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=seconds)
            for run in list(self._alive.values()):
                run.stop(Outcome.CANCELLED, "the daemon is stopping")
            if late:
                await asyncio.wait(late, timeout=30)
        self.watchers.close()


def new_run_id() -> str:
    """Sortable by time of creation: 48 bits of milliseconds and 32 of chance, hexadecimal."""
    return f"{time.time_ns() // 1_000_000:012x}{os.urandom(4).hex()}"


def spec_digest(spec: RunSpec) -> str:
    """SHA-256 of what the request asks to be run: two requests with the same digest ask for the same."""
    digest = hashlib.sha256()
    for part in (spec.argv, spec.env, spec.cwd, spec.policy, spec.policy_toml, sorted(spec.limits.items())):
        digest.update(repr(part).encode("utf-8", "surrogatepass"))
    for part in (spec.network, spec.allow, spec.mounts, spec.collect, spec.trace, spec.image, spec.terminal):
        digest.update(repr(part).encode("utf-8", "surrogatepass"))
    digest.update(len(spec.stdin).to_bytes(8, "big") + spec.stdin)
    for file in spec.files:
        _digest_file(digest, file)
    return digest.hexdigest()


def _digest_file(digest: hashlib._Hash, file: InputFile) -> None:
    digest.update(repr((file.path, file.mode, len(file.data))).encode())
    digest.update(file.data)


def result_of(
    record: RunRecord,
    output: Mapping[Stream, bytearray],
    over: set[Stream],
    files: tuple[OutputFile, ...],
    trace_level: str,
) -> RunResult:
    """The answer to the client: the record, and what the record does not keep."""
    assert record.outcome is not None
    return RunResult(
        run_id=record.run_id,
        outcome=record.outcome,
        policy=record.policy,
        backend=record.backend,
        request_id=record.request_id,
        agent=record.agent,
        labels=record.labels,
        exit_code=record.exit_code,
        signal=record.signal,
        signal_name=signal_name(record.signal) if record.signal is not None else None,
        detail=record.detail,
        stdout=bytes(output[Stream.STDOUT]),
        stderr=bytes(output[Stream.STDERR]),
        stdout_truncated=Stream.STDOUT in over,
        stderr_truncated=Stream.STDERR in over,
        usage=record.usage,
        files=files,
        violations=record.violations,
        enforcement=record.enforcement,
        trace=TraceSummary(level=trace_level),
        error=record.error,
        started_at=record.started_at or 0.0,
        ended_at=record.ended_at or 0.0,
    )
