"""From the rings to the trace store, beside the event loop: drains while runs are watched, writes what is traced in full.

A disk that cannot keep up or is full costs events, which are counted; never a run, and never unbounded memory.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import structlog

from supervisor.evidence.traces import TraceStore, TraceWriter
from supervisor.model import TraceLevel, TraceSummary
from supervisor.probes.addresses import AddressRules
from supervisor.probes.contacts import Contacts
from supervisor.probes.engine import Probes, Watch
from supervisor.probes.layout import Level
from supervisor.probes.processes import Processes
from supervisor.probes.summary import summarise

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

log = structlog.get_logger(__name__)

_LEVELS = {TraceLevel.OFF: Level.OFF, TraceLevel.SUMMARY: Level.SUMMARY, TraceLevel.FULL: Level.FULL}
_SUMMARY_PERIOD_SECONDS = 0.05
_FULL_PERIOD_SECONDS = 0.005
_FLUSH_ROWS = 100_000
_FOLD_RECORDS = 1_000


class Recorder:
    """The probes with their reader, and the store with its writer: a thread each."""

    def __init__(self, probes: Probes, store: TraceStore, max_trace_bytes: int) -> None:
        self.probes = probes
        self.store = store
        self.max_trace_bytes = max_trace_bytes
        self._tracings: set[Tracing] = set()
        self._read_thread = ThreadPoolExecutor(1, "trace-read")
        self.write_thread = ThreadPoolExecutor(1, "trace-write")
        self._reader: asyncio.Task[None] | None = None

    def watch(self, run_id: str, cgroup: int, level: TraceLevel, rules: AddressRules | None = None) -> Tracing:
        """Enters a run before its first process exists. Raises Exhausted, BpfError."""
        tracing = Tracing(self, self.probes.watch(cgroup, _LEVELS[level], rules), run_id, level)
        self._tracings.add(tracing)
        if self._reader is None or self._reader.done():
            self._reader = asyncio.get_running_loop().create_task(self._read(), name="trace-reader")
        return tracing

    def forget(self, tracing: Tracing) -> None:
        self._tracings.discard(tracing)

    async def _read(self) -> None:
        """Ends by itself when nothing is watched. Off the loop: a run can cause records as fast as it can call."""
        loop = asyncio.get_running_loop()
        while self.probes.watched:
            full = any(tracing.is_full for tracing in tuple(self._tracings))
            await asyncio.sleep(_FULL_PERIOD_SECONDS if full else _SUMMARY_PERIOD_SECONDS)
            await loop.run_in_executor(self._read_thread, self.probes.drain)
            for tracing in tuple(self._tracings):
                if tracing.waiting >= (_FLUSH_ROWS if tracing.is_full else _FOLD_RECORDS):
                    if tracing.is_full and (tracing.writing is None or tracing.writing.done()):
                        tracing.writing = self.write_thread.submit(tracing.write)
                    elif not tracing.is_full:
                        await loop.run_in_executor(self._read_thread, tracing.fold)

    async def close(self) -> None:
        """What is still being written is waited for."""
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.wait([self._reader])
        await asyncio.to_thread(self._read_thread.shutdown)
        await asyncio.to_thread(self.write_thread.shutdown)
        self.probes.close()


class Tracing:
    """One run's trace: made before the run is launched; `finish` when none of its processes is left; `close` in any case."""

    def __init__(self, recorder: Recorder, watch: Watch, run_id: str, level: TraceLevel) -> None:
        self._recorder = recorder
        self._watch: Watch | None = watch
        self._run_id = run_id
        self._level = level
        self._writer: TraceWriter | None = None
        self._summing = threading.Lock()
        self._lost = 0
        self._offset = time.time_ns() - time.monotonic_ns()
        self.processes = Processes(self._offset)
        self.contacts = Contacts()
        self.writing: Future[None] | None = None
        self.failure = ""
        """Why the full trace is not stored as a whole; empty when it is."""

    @property
    def waiting(self) -> int:
        """Rows that have come and are not yet written."""
        watch = self._watch
        return sum(map(len, watch.calls)) + len(watch.records) if watch is not None else 0

    @property
    def is_full(self) -> bool:
        return self._level is TraceLevel.FULL

    async def finish(self) -> TraceSummary:
        if not self.is_full:
            return self._conclude()
        loop = asyncio.get_running_loop()
        return await asyncio.shield(loop.run_in_executor(self._recorder.write_thread, self._conclude))

    def close(self) -> None:
        """Lets go of a run that never came to its end."""
        if self._watch is None:
            return
        if self.is_full:
            self._recorder.write_thread.submit(self._conclude)
        else:
            self._conclude()

    def write(self) -> None:
        """Stores what has come; on the writer's thread."""
        if self._watch is not None:
            calls, records = self._recorder.probes.take(self._watch)
            self._sum_up(records)
            self._store(calls, records)

    def fold(self) -> None:
        """Sums up what has come of a run that is not stored, so that a long one does not fill memory; on the reader's thread."""
        with self._summing:
            if self._watch is not None:
                self._sum_up(self._recorder.probes.take(self._watch)[1])

    def _sum_up(self, records: Sequence[bytes]) -> None:
        self.processes.add(records)
        self.contacts.add(records)

    def wall_time(self, time_ns: int) -> float:
        """Unix time of a record's, in seconds."""
        return (time_ns + self._offset) / 1e9

    def _conclude(self) -> TraceSummary:
        self._recorder.forget(self)
        with self._summing:
            watch, self._watch = self._watch, None
            if watch is None:
                return TraceSummary(self._level.value)
            seen = self._recorder.probes.finish(watch)
            self._sum_up(seen.records)
        if self.is_full:
            self._store(seen.calls, seen.records)
            self._close_file()
        return summarise(seen, self.processes, self.contacts, self._level.value, self._lost)

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
