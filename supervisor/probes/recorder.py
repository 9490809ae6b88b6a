"""From the rings to the trace store, beside the event loop: drains while runs are watched, writes what is traced in full.

A disk that cannot keep up or is full costs events, which are counted; never a run, and never unbounded memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING

import structlog

from supervisor.evidence.programs import Below, Hasher, Programs, Version
from supervisor.evidence.traces import TraceStore, TraceWriter
from supervisor.model import TraceLevel, TraceSummary, Violation
from supervisor.probes.addresses import AddressRules
from supervisor.probes.contacts import Contacts
from supervisor.probes.engine import RECORDS_KEPT, Probes, Watch
from supervisor.probes.flight import FlightRecorder
from supervisor.probes.followers import Followers
from supervisor.probes.layout import EXEC, TYPE_AT, UNNOTED_WORD, Level, RecordType, upward
from supervisor.probes.processes import Processes
from supervisor.probes.summary import summarise
from supervisor.rules.detector import Detector, RuleSet

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

log = structlog.get_logger(__name__)

_LEVELS = {TraceLevel.OFF: Level.OFF, TraceLevel.SUMMARY: Level.SUMMARY, TraceLevel.FULL: Level.FULL}
_SUMMARY_PERIOD_SECONDS = 0.05
_FULL_PERIOD_SECONDS = 0.005
_FLUSH_ROWS = 100_000
_READER_NICE = -10
_RECORDS_AT_ONCE = 200
_TURN_SECONDS = 0.005
"""How long one run's records are looked at before the next one's."""
_HASH_SECONDS = 5.0
"""How long the end of a run waits for the digests of programs that no run has executed before."""


def _hurry() -> None:
    """Who empties the rings goes before whoever fills them: nice(2) is a thread's on Linux."""
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _READER_NICE)


class Recorder:
    """The probes with their reader, and the store with its writer: a thread each."""

    def __init__(self, probes: Probes, store: TraceStore, max_trace_bytes: int) -> None:
        self.probes = probes
        self.store = store
        self.max_trace_bytes = max_trace_bytes
        self.followers = Followers()
        self._tracings: set[Tracing] = set()
        self.hasher = Hasher()
        self.read_thread = ThreadPoolExecutor(1, "trace-read", _hurry)
        self.write_thread = ThreadPoolExecutor(1, "trace-write")
        self._reader: asyncio.Task[None] | None = None

    def watch(
        self,
        run_id: str,
        cgroup: int,
        level: TraceLevel,
        rules: RuleSet,
        addresses: AddressRules | None,
        uid: int,
        places: Sequence[Below],
    ) -> Tracing:
        """Enters a run before its first process exists. Raises Exhausted, BpfError.

        `places` is where its programs are, to be hashed; it may be filled later, and is read when the first is executed.
        """
        kernels = Level.SUMMARY if level is TraceLevel.OFF and not rules.is_empty else _LEVELS[level]
        needs = rules.needs if kernels is not Level.OFF else None
        watch = self.probes.watch(cgroup, kernels, addresses, needs, uid)
        tracing = Tracing(self, watch, run_id, level, rules, places)
        self._tracings.add(tracing)
        if self._reader is None or self._reader.done():
            self._reader = asyncio.get_running_loop().create_task(self._read(), name="trace-reader")
        return tracing

    def forget(self, tracing: Tracing) -> None:
        self._tracings.discard(tracing)

    async def _read(self) -> None:
        """Ends by itself when nothing is watched. Off the loop: a run can cause records as fast as it can call."""
        loop = asyncio.get_running_loop()
        woken = asyncio.Event()
        wakers = self.probes.wakers()

        def wake() -> None:
            # Readable until it is drained, so not to be looked at again before.
            for fd in wakers:
                loop.remove_reader(fd)
            woken.set()

        more = False
        try:
            while self.probes.watched:
                for fd in wakers:
                    loop.add_reader(fd, wake)
                full = any(tracing.is_full for tracing in tuple(self._tracings))
                if not more:
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(woken.wait(), _FULL_PERIOD_SECONDS if full else _SUMMARY_PERIOD_SECONDS)
                woken.clear()
                more = await loop.run_in_executor(self.read_thread, self._gather, loop)
                for tracing in tuple(self._tracings):
                    if tracing.waiting >= _FLUSH_ROWS and (tracing.writing is None or tracing.writing.done()):
                        tracing.writing = self.write_thread.submit(tracing.write)
        finally:
            for fd in wakers:
                loop.remove_reader(fd)

    def _gather(self, loop: asyncio.AbstractEventLoop) -> bool:
        """On the reader's thread: what has come goes to the run it is of, which looks at it.

        In turns, for no run's records hold up another's; returns whether one is to have another.
        """
        more = self.probes.drain()
        for tracing in tuple(self._tracings):
            more = tracing.gather(loop) or more
        return more

    async def close(self) -> None:
        """What is still being written is waited for."""
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.wait([self._reader])
        await asyncio.to_thread(self.read_thread.shutdown)
        await asyncio.to_thread(self.write_thread.shutdown)
        self.hasher.close()
        self.followers.close()
        self.probes.close()


class Tracing:
    """One run's trace: made before the run is launched; `finish` when none of its processes is left; `close` in any case."""

    def __init__(
        self,
        recorder: Recorder,
        watch: Watch,
        run_id: str,
        level: TraceLevel,
        rules: RuleSet,
        places: Sequence[Below],
    ) -> None:
        self._recorder = recorder
        self._watch: Watch | None = watch
        self._run_id = run_id
        self._level = level
        self._writer: TraceWriter | None = None
        self._looking = threading.Lock()
        self._unwritten: list[bytes] = []
        self._lost = 0
        self._flight = FlightRecorder()
        self._offset = time.time_ns() - time.monotonic_ns()
        self.processes = Processes(self._offset)
        self.contacts = Contacts()
        self.programs = Programs(recorder.hasher, places)
        self.detector = Detector(rules, self.processes, self._offset)
        self._feed = recorder.followers.feed(run_id, self._offset)
        self.on_violations: Callable[..., None] | None = None
        """Called on the loop with what is new, and `kills`: whether the run is to end for it."""
        self.writing: Future[None] | None = None
        self.failure = ""
        """Why the full trace is not stored as a whole; empty when it is."""

    @property
    def waiting(self) -> int:
        """Rows that have come and are not yet written."""
        watch = self._watch
        return sum(map(len, watch.calls)) + len(self._unwritten) if watch is not None and self.is_full else 0

    @property
    def is_full(self) -> bool:
        return self._level is TraceLevel.FULL

    async def finish(self) -> TraceSummary:
        loop = asyncio.get_running_loop()
        recorder = self._recorder
        # What this run or another floods the rings with is not for the loop to wait for, nor for the others' turns.
        quiet = recorder.probes.is_quiet and not self._looking.locked() and not self.has_many
        while not quiet and await asyncio.shield(loop.run_in_executor(recorder.read_thread, self._catch_up, loop)):
            pass
        if self.is_full:
            summary = await asyncio.shield(loop.run_in_executor(recorder.write_thread, self._conclude))
        else:
            summary = (
                self._conclude()
                if quiet
                else await asyncio.shield(loop.run_in_executor(recorder.read_thread, self._conclude))
            )
            if self._flight.is_frozen:
                await asyncio.shield(loop.run_in_executor(recorder.write_thread, self._store_flight))
        hashing = [asyncio.wrap_future(one) for one in self.programs.pending()]
        if hashing:
            await asyncio.wait(hashing, timeout=_HASH_SECONDS)
            summary = replace(summary, programs=self.programs.shown())
        return summary

    def close(self) -> None:
        """Lets go of a run that never came to its end."""
        if self._watch is None:
            return
        if self.is_full:
            self._recorder.write_thread.submit(self._conclude)
        else:
            self._conclude()

    @property
    def has_many(self) -> bool:
        return self._watch is not None and len(self._watch.records) > _RECORDS_AT_ONCE

    def gather(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Looks at what has come, for a turn's time; on the reader's thread. Of a run that is not stored nothing piles up.

        Returns whether there is more.
        """
        with self._looking:
            if self._watch is None:
                return False
            end = time.monotonic() + _TURN_SECONDS
            new: list[Violation] = []
            told: list[bytes] = []
            while records := self._recorder.probes.take_records(self._watch, _RECORDS_AT_ONCE):
                found = self._look(records)
                if found and not self.is_full:
                    self._flight.freeze(self._recorder.probes.flight(self._watch))
                new += found
                told += records
                if time.monotonic() > end:
                    break
            self._feed.tell(told, self._watch.calls)
            more = bool(self._watch.records)
        if new:
            loop.call_soon_threadsafe(self._report, new, self.detector.kills)
        return more

    def _catch_up(self, loop: asyncio.AbstractEventLoop) -> bool:
        self._recorder.probes.drain()
        return self.gather(loop)

    def _report(self, new: Sequence[Violation], kills: bool) -> None:
        """Once the run has ended, its result tells what it violated."""
        if self.on_violations is not None and self._watch is not None:
            self.on_violations(new, kills=kills)

    def _look(self, records: Sequence[bytes]) -> list[Violation]:
        self.contacts.add(records)
        if self.is_full:
            room = RECORDS_KEPT - len(self._unwritten)
            self._unwritten += records[:room]
            self._lost += max(0, len(records) - room)
        else:
            self._flight.keep(records)
        for record in records:
            if record[TYPE_AT] == RecordType.EXEC:
                *_, length, _, device, inode, size, changed_ns, file, _ = EXEC.unpack_from(record)
                self.programs.add(upward(file[:length]), Version(device, inode, size, changed_ns))
        return self.detector.feed(records)

    def write(self) -> None:
        """Stores what has come; on the writer's thread."""
        with self._looking:
            if self._watch is None:
                return
            calls = self._recorder.probes.take_calls(self._watch)
            self._feed.tell((), calls, taken=True)
            records, self._unwritten = self._unwritten, []
        self._store(calls, records)

    def _conclude(self) -> TraceSummary:
        self._recorder.forget(self)
        with self._looking:
            watch, self._watch = self._watch, None
            if watch is None:
                return TraceSummary(self._level.value)
            seen = self._recorder.probes.finish(watch)
            new = self._look(seen.records)
            self.detector.lose(seen.counts[UNNOTED_WORD], time.monotonic_ns())
            if (new or self._flight.is_frozen) and not self.is_full:
                self._flight.freeze(seen.flight)
            self._feed.tell(seen.records, seen.calls, taken=True)
            records, self._unwritten = self._unwritten, []
        if self.is_full:
            self._store(seen.calls, records)
            self._close_file()
        if self._level is TraceLevel.OFF:
            return TraceSummary(self._level.value)
        lost = self._lost + self.detector.beyond
        return summarise(
            seen, self.processes, self.contacts, self._level.value, self.detector.matched, self.programs.shown(), lost
        )

    def _store_flight(self) -> None:
        """What led to a violation of a run that is not traced in full; on the writer's thread."""
        self._store(self._flight.calls(), self._flight.records())
        self._close_file()

    def _store(self, calls: Sequence[NDArray[np.uint8]], records: Sequence[bytes]) -> None:
        from pyarrow import ArrowException

        from supervisor.probes.table import to_table

        rows = sum(map(len, calls)) + len(records)
        if self.failure or not rows:
            self._lost += rows
            return
        try:
            if self._writer is None:
                self._writer = self._recorder.store.writer(self._run_id)
            elif self._writer.size > self._recorder.max_trace_bytes:
                self._lost += rows
                self.failure = f"beyond max_trace_bytes, {self._recorder.max_trace_bytes >> 20} MiB"
                return
            self._writer.write(to_table(calls, records, self._offset))
        except (OSError, ArrowException) as error:
            self._lost += rows
            self._fail(error)

    def _close_file(self) -> None:
        from pyarrow import ArrowException

        if self._writer is not None:
            try:
                self._writer.close()
            except (OSError, ArrowException) as error:
                self._fail(error)

    def _fail(self, error: Exception) -> None:
        self.failure = str(error)[:200]
        log.error("trace_not_stored", run_id=self._run_id, error=self.failure)
        if self._writer is not None:
            self._writer.abandon()
            self._writer = None
