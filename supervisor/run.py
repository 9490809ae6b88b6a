"""One run's life, top to bottom: queued, alive, judged, recorded. `runs` decides whether there is one, `live` listens to it."""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import structlog

from supervisor.admission import Admission
from supervisor.backends.base import Backend, Sandbox, SandboxEnd, SandboxRequest
from supervisor.errors import Exhausted
from supervisor.evidence.pending import PendingRecords
from supervisor.evidence.records import RunRecords
from supervisor.linux.signals import signal_name
from supervisor.model import InputFile, Outcome, OutputFile, RunRecord, RunResult, RunSpec, Violation
from supervisor.outcome import Verdict, judge
from supervisor.policy import EffectivePolicy
from supervisor.probes.followers import Followers
from supervisor.run_events import Exited, Started, Stream, ViolationSeen
from supervisor.watch import Watchers

log = structlog.get_logger(__name__)

_CPU_POLL_SECONDS = 0.01


@dataclass(frozen=True, slots=True)
class House:
    """What all runs of a daemon share."""

    admission: Admission
    records: RunRecords
    pending: PendingRecords
    watchers: Watchers
    cpus: int
    followers: Followers | None = None


class Run:
    """One run. `go` is its task; everything else only tells it to end."""

    def __init__(self, house: House, spec: RunSpec, effective: EffectivePolicy, backend: Backend, plan: object) -> None:
        self.run_id = new_run_id()
        self.spec = spec
        self.effective = effective
        self.stopped: Outcome | None = None
        self.reason = ""
        self.sandbox: Sandbox | None = None
        self.task: asyncio.Task[RunResult] | None = None
        self.on_output: Callable[[Stream, bytes], None] = self._keep_output
        self.on_started: Callable[[Started], None] | None = None
        self.on_violation: Callable[[Violation], None] | None = None
        self._told: set[Violation] = set()
        self.stdin_follows = False
        self.terminal_size: tuple[int, int] | None = None
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
            argv=spec.argv,
        )
        self._house = house
        self._backend = backend
        self._plan = plan
        self._output: dict[Stream, bytearray] = {Stream.STDOUT: bytearray(), Stream.STDERR: bytearray()}
        self._over: set[Stream] = set()
        self._told_started = False
        self._wall_timer: asyncio.TimerHandle | None = None
        self._cpu_timer: asyncio.TimerHandle | None = None
        self.feeding: asyncio.Task[None] | None = None

    def _keep_output(self, stream: Stream, data: bytes) -> None:
        self._output[stream] += data

    def stop(self, cause: Outcome, reason: str = "") -> None:
        """Ends the run for `cause`; the first cause counts."""
        if self.stopped is None:
            self.stopped = cause
            self.reason = reason
        if self.sandbox is not None:
            self.sandbox.kill()
        elif self.task is not None:
            # Not at once: a task that is cancelled before its first step never records its end.
            self.task.get_loop().call_soon(self._leave_queue)

    def _leave_queue(self) -> None:
        if self.task is not None and self.record.state == "queued":
            self.task.cancel()

    async def go(self) -> RunResult:
        try:
            await self._house.admission.enter()
        except asyncio.CancelledError:
            return self._finish(Verdict(Outcome.CANCELLED, f"cancelled while queued: {self.reason or 'by its client'}"))
        except Exhausted:
            self._abandon("refused: the queue is full")
            raise
        try:
            return await self._live()
        except BaseException as error:
            if self.record.state != "ended":
                self._abandon(f"set-up failed: {error}"[:500])
            raise
        finally:
            self._house.admission.leave()

    async def _live(self) -> RunResult:
        if self.stopped is not None:
            return self._finish(Verdict(self.stopped, f"cancelled while queued: {self.reason or 'by its client'}"))
        request = SandboxRequest(
            run_id=self.run_id,
            spec=self.spec,
            effective=self.effective,
            stdin_follows=self.stdin_follows,
            terminal_size=self.terminal_size,
            on_output=self._on_output,
            on_over=self._on_over,
            on_violation=self._on_violation,
        )
        files: tuple[OutputFile, ...] = ()
        self.record = replace(self.record, state="running")
        async with self._backend.start(request, self._plan) as sandbox:
            self.sandbox = sandbox
            begun = self._begin(sandbox)
            try:
                end = await sandbox.ended()
            finally:
                for pending in (self._wall_timer, self._cpu_timer, self.feeding):
                    if pending is not None:
                        pending.cancel()
            wall = end.gone_at - begun
            verdict = judge(end, self.effective.limits, self.stopped, self.spec.argv[0], self.reason)
            if self.spec.collect and verdict.outcome is not Outcome.NOT_STARTED:
                files = await sandbox.collect()
        self.sandbox = None
        return self._finish(verdict, end, wall, files, sandbox)

    def _begin(self, sandbox: Sandbox) -> float:
        loop = asyncio.get_running_loop()
        limits = self.effective.limits
        if self.stopped is not None:  # while it was being made
            sandbox.kill()
        self.record = replace(self.record, started_at=time.time())
        sandbox.started.add_done_callback(self._on_program_started)
        if limits.wall_seconds is not None:
            self._wall_timer = loop.call_later(limits.wall_seconds, self.stop, Outcome.TIMED_OUT)
        if limits.cpu_seconds is not None:
            self._watch_cpu(sandbox, limits.cpu_seconds)
        self._feed(sandbox)
        return time.monotonic()

    def _on_output(self, stream: Stream, data: bytes) -> None:
        # Its output may be read before the launcher's word that it runs; for everyone else it is the other way round.
        self._tell_started()
        self.on_output(stream, data)

    def _on_violation(self, violation: Violation) -> None:
        self._tell_started()
        self._tell_violation(violation)

    def _tell_violation(self, violation: Violation) -> None:
        """Each once: what was told while the run lived is not told again at its end."""
        if violation in self._told:
            return
        self._told.add(violation)
        if self.on_violation is not None:
            self.on_violation(violation)
        self._house.watchers.tell(self.run_id, self.spec.agent, ViolationSeen(violation))
        if self._house.followers is not None:
            self._house.followers.tell(self.run_id, violation)

    def _on_program_started(self, started: asyncio.Future[Any]) -> None:
        if not started.cancelled():
            self._tell_started()

    def _tell_started(self) -> None:
        if self._told_started:
            return
        self._told_started = True
        event = Started(self.run_id, time.time())
        if self.on_started is not None:
            self.on_started(event)
        self._house.watchers.tell(self.run_id, self.spec.agent, event)

    def _feed(self, sandbox: Sandbox) -> None:
        """Standard input that the sandbox has not taken as a whole is written while the program reads it."""
        if not sandbox.takes_stdin or (self.stdin_follows and not self.spec.stdin):
            return

        async def write() -> None:
            await sandbox.write_stdin(self.spec.stdin)
            if not self.stdin_follows:
                sandbox.close_stdin()

        self.feeding = asyncio.create_task(write())

    def _watch_cpu(self, sandbox: Sandbox, limit: float) -> None:
        """Looks again when the limit could be reached at the earliest: all the CPUs of the run at once."""
        loop = asyncio.get_running_loop()
        parallel = max(0.01, min(self.effective.limits.cpus or self._house.cpus, self._house.cpus))

        def look() -> None:
            try:
                left = limit - sandbox.cpu_seconds()
            except OSError:
                return
            if left <= 0:
                self.stop(Outcome.CPU_LIMIT)
            else:
                self._cpu_timer = loop.call_later(max(left / parallel, _CPU_POLL_SECONDS), look)

        self._cpu_timer = loop.call_later(limit / parallel, look)

    def current(self) -> RunRecord:
        """The record as of now: of a run that is alive, with what it has used so far."""
        if self.sandbox is None or self.record.state != "running" or self.record.started_at is None:
            return self.record
        usage = replace(self.sandbox.usage(), wall_seconds=time.time() - self.record.started_at)
        return replace(self.record, usage=usage)

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
            ended_at=time.time() - (time.monotonic() - end.gone_at if end is not None else 0.0),
            outcome=verdict.outcome,
            exit_code=verdict.exit_code,
            signal=verdict.signal,
            detail=verdict.detail,
            usage=usage,
            violations=violations,
            enforcement=enforcement,
            error=verdict.error,
            trace=end.trace if end is not None else self.record.trace,
        )
        answered = self.record
        if not self._house.pending.finish(self.record):
            enforcement = replace(enforcement, missing=(*enforcement.missing, "record"))
            answered = replace(self.record, enforcement=enforcement)
        result = result_of(answered, self._output, self._over, files)
        for violation in violations:
            self._tell_violation(violation)
        self._house.watchers.tell(
            self.run_id, self.spec.agent, Exited(replace(result, stdout=b"", stderr=b"", files=()))
        )
        return result

    def _abandon(self, detail: str) -> None:
        """The record of a run that came to nothing through us or its request; the client gets the error."""
        outcome = Outcome.LOST if self._told_started else Outcome.NOT_STARTED
        self.record = replace(self.record, state="ended", ended_at=time.time(), outcome=outcome, detail=detail)
        self._house.pending.finish(self.record)


def new_run_id() -> str:
    """Sortable by time of creation: 48 bits of milliseconds and 32 of chance, hexadecimal."""
    return f"{time.time_ns() // 1_000_000:012x}{os.urandom(4).hex()}"


def spec_digest(spec: RunSpec) -> str:
    """SHA-256 of what the request asks to be run: two requests with the same digest ask for the same."""
    asked: tuple[object, ...] = (
        *(spec.argv, spec.env, spec.cwd, spec.policy, spec.policy_toml, sorted(spec.limits.items())),
        *(spec.network, spec.allow, spec.mounts, spec.collect, spec.trace, spec.image, spec.terminal),
    )
    digest = hashlib.sha256(repr(asked).encode("utf-8", "surrogatepass"))
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
        trace=record.trace,
        error=record.error,
        started_at=record.started_at or 0.0,
        ended_at=record.ended_at or 0.0,
    )
