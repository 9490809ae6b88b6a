"""Every run of the daemon: what may become one, which are alive, how they are found and ended."""

from __future__ import annotations

import asyncio
import builtins
import os
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import aclosing
from typing import TypeVar

import structlog

from supervisor.admission import Admission
from supervisor.backends.base import Backend
from supervisor.errors import Draining, HostLacks, InvalidRequest, NotFound, PolicyRefused
from supervisor.evidence.pending import PendingRecords
from supervisor.evidence.records import RunRecords
from supervisor.evidence.trace_query import TraceQuery
from supervisor.evidence.traces import Found, SearchEnd, TraceStore
from supervisor.live import LiveRun
from supervisor.model import Outcome, Peer, RunRecord, RunResult, RunSpec, TraceEvent, TraceLevel
from supervisor.policy import EffectivePolicy, Policy, narrow
from supervisor.policy_file import PolicySet
from supervisor.probes.followers import Followed, Followers
from supervisor.run import House, Run
from supervisor.run_events import Event
from supervisor.watch import Watchers

log = structlog.get_logger(__name__)

_Step = TypeVar("_Step")

_SEARCHES = 2
"""So many threads search at a time; further searches take turns with them, step by step."""
_END_SECONDS = 60.0
_TELL_SECONDS = 10.0


class Runs:
    """The daemon's runs; see api.ports.Runs for the face that the servicers use."""

    def __init__(
        self,
        *,
        backends: Mapping[str, Backend],
        policies: PolicySet,
        records: RunRecords,
        traces: TraceStore,
        instance: str,
        max_concurrent: int,
        max_queued: int,
        allow_unisolated: bool,
        inline_policies: str,
        remote_mounts: bool,
        followers: Followers | None = None,
    ) -> None:
        admission = Admission(max_concurrent, max_queued)
        pending, cpus = PendingRecords(records), os.cpu_count() or 1
        self._house = House(admission, records, pending, Watchers(), cpus, followers)
        self._traces = traces
        self._searching = asyncio.Semaphore(_SEARCHES)
        self._backends = backends
        self._policies = policies
        self._instance = instance
        self._allow_unisolated = allow_unisolated
        self._inline_policies = inline_policies
        self._remote_mounts = remote_mounts
        self._alive: dict[str, Run] = {}
        self._draining = False

    @property
    def running(self) -> int:
        return self._house.admission.running

    @property
    def queued(self) -> int:
        return self._house.admission.queued

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
        return LiveRun(run, self.begin)

    def begin(self, run: Run) -> asyncio.Task[RunResult]:
        """Records the run and starts its task. Raises AlreadyExists."""
        self._house.records.begin(run.record, self._instance)
        self._alive[run.run_id] = run
        run.task = asyncio.create_task(run.go(), name=f"run-{run.run_id}")
        run.task.add_done_callback(lambda task: self._forget(run, task))
        return run.task

    def _forget(self, run: Run, task: asyncio.Task[RunResult]) -> None:
        self._alive.pop(run.run_id, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.warning("run_failed", run_id=run.run_id, error=str(error), kind=type(error).__name__)

    def _prepare(self, spec: RunSpec, peer: Peer) -> Run:
        """Everything that can be refused is refused here, before anything is recorded or made."""
        if self._draining:
            raise Draining("the daemon is stopping and takes no new runs", retry_seconds=5.0)
        self._house.admission.check()
        effective = narrow(self._policy(spec, peer), spec)
        if effective.policy.unisolated and not self._allow_unisolated:
            raise PolicyRefused(
                f"policy {effective.policy.name} gives no isolation at all, and the daemon's configuration "
                "does not have allow_unisolated = true",
                field="policy",
            )
        if spec.policy_toml is not None and not peer.local and not self._remote_mounts and self._own_paths(effective):
            raise PolicyRefused(
                "policy_toml: its [filesystem] names paths of the daemon's host, which peers over TCP may not (remote_mounts)",
                field="filesystem",
            )
        if spec.mounts and not peer.local and not self._remote_mounts:
            raise PolicyRefused(
                "mounts: peers over TCP may not mount paths of the daemon's host (remote_mounts); send files instead",
                field="mounts",
            )
        backend = self._backend(spec)
        return Run(self._house, spec, effective, backend, backend.check(spec, effective))

    def _own_paths(self, effective: EffectivePolicy) -> bool:
        """Whether an inline policy shows host paths that no policy of the daemon's does."""

        def paths(policy: Policy) -> set[str]:
            files = policy.filesystem
            return {files.root, *files.read_only, *files.read_write}

        known = {"host"}.union(*(paths(self._policies.get(name)) for name in self._policies.names()))
        return bool(paths(effective.policy) - known)

    def _policy(self, spec: RunSpec, peer: Peer) -> Policy:
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
            self._house.records.get(run_id)
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
        if run is not None:
            return run.current()
        return self._house.pending.get(run_id) or self._house.records.get(run_id)

    def list(self, *, agent: str = "", state: str = "", limit: int = 100, before: str = "") -> builtins.list[RunRecord]:
        found = self._house.records.list(agent=agent, state="", limit=limit, before=before)
        if not state:
            return [
                self._alive[r.run_id].current() if r.run_id in self._alive else self._house.pending.get(r.run_id) or r
                for r in found
            ]
        if state == "ended":
            return self._house.records.list(agent=agent, state=state, limit=limit, before=before)
        alive = [run.current() for run in self._alive.values() if run.record.state == state]
        alive = [r for r in alive if (not agent or r.agent == agent) and (not before or r.run_id < before)]
        return sorted(alive, key=lambda record: record.run_id, reverse=True)[:limit]

    async def trace(self, run_id: str) -> AsyncIterator[builtins.list[TraceEvent]]:
        """The events of a run that was traced in full, once it has ended. Raises NotFound, InvalidRequest."""
        self._check_traced(run_id)
        batches = self._traces.events(run_id)
        while (batch := await asyncio.to_thread(next, batches, None)) is not None:
            yield batch

    async def follow(self, run_id: str, *, calls: bool = True) -> AsyncIterator[Followed]:
        """What a run does from now on, until it has ended and is on record. Raises NotFound, HostLacks, Exhausted."""
        run = self._alive.get(run_id)
        if run is None or run.task is None:
            self.get(run_id)
            raise HostLacks(
                f"run {run_id} has ended: there is nothing more to follow",
                reason="RUN_ENDED",
                metadata={"feature": "trace", "run_id": run_id, "remedy": f"supervisor trace show {run_id}"},
            )
        followers = self._house.followers
        if followers is None or run.effective.trace is TraceLevel.OFF:
            why = "is not traced" if followers is not None else "cannot be traced: this host has no probes"
            remedy = "run it with --trace summary or full" if followers is not None else "`supervisor doctor` says why"
            raise HostLacks(
                f"run {run_id} {why}",
                reason="TRACE_NOT_AVAILABLE",
                metadata={"feature": "trace", "run_id": run_id, "remedy": remedy},
            )
        follower = followers.join(run_id, calls=calls)
        run.task.add_done_callback(follower.end)
        try:
            yield Followed([], level=run.effective.trace.value)
            async with aclosing(follower.batches()) as batches:
                async for batch in batches:
                    yield batch
        finally:
            run.task.remove_done_callback(follower.end)
            follower.leave()

    async def search(self, query: TraceQuery) -> AsyncIterator[Found | SearchEnd]:
        """What is in the traces of runs that have ended. Raises NotFound, InvalidRequest for a query's own run."""
        if query.run_id:
            self._check_traced(query.run_id)
        steps = self._traces.search(query)
        while (step := await self._search_step(steps)) is not None:
            yield step

    async def _search_step(self, steps: Iterator[_Step]) -> _Step | None:
        """Holds its place among the searching threads until the thread is done, even where nobody waits for it any more."""
        async with self._searching:
            step = asyncio.ensure_future(asyncio.to_thread(next, steps, None))
            try:
                return await asyncio.shield(step)
            finally:
                if not step.done():
                    await asyncio.wait([step])

    def _check_traced(self, run_id: str) -> None:
        if run_id in self._alive:
            raise InvalidRequest(
                f"run {run_id} is still going: its trace can be read once it has ended",
                field="run_id",
                metadata={"remedy": f"supervisor trace follow {run_id}"},
            )
        record = self.get(run_id)
        # What led to a violation is kept at every level.
        if record.trace.level != TraceLevel.FULL.value and not record.violations:
            raise NotFound(
                f"run {run_id} was traced at level {record.trace.level}: only the level full keeps every event, "
                "and this run has violated nothing",
                field="run_id",
                metadata={"run_id": record.run_id, "remedy": "run it with --trace full"},
            )

    def watch(self, agent: str) -> AsyncIterator[tuple[float, str, str, Event, int]]:
        return self._house.watchers.watch(agent)

    def stop_all(self, reason: str) -> None:
        """Ends every run there is."""
        for run in tuple(self._alive.values()):
            run.stop(Outcome.CANCELLED, reason)

    def write_pending(self) -> int:
        """Writes the records that could not be written when their runs ended; how many are left. For a thread."""
        return self._house.pending.retry()

    async def drain(self, seconds: float) -> tuple[str, ...]:
        """Takes no new runs, lets the rest end for `seconds`, then ends them; the ids of those that hang for a minute."""
        self._draining = True
        await self._wait(seconds)
        deadline = time.monotonic() + _END_SECONDS
        while self._alive and (left := deadline - time.monotonic()) > 0:
            self.stop_all("the daemon is stopping")
            await self._wait(min(left, _TELL_SECONDS))
            if self._alive:
                log.warning("runs_still_ending", count=len(self._alive), first=next(iter(self._alive)))
        for run_id in self._alive:
            log.error("run_hangs", run_id=run_id)
        self._house.watchers.close()
        return tuple(self._alive)

    async def _wait(self, seconds: float) -> None:
        tasks = [run.task for run in self._alive.values() if run.task is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=seconds)
