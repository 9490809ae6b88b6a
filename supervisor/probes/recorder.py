"""From the rings to the trace store, beside the event loop: drains while runs are watched, writes what is traced in full.

A disk that cannot keep up or is full costs events, which are counted; never a run, and never unbounded memory.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
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


class Recorder:
    """The probes with their reader, and the store with its writer: a thread each, and only while runs are traced in full."""

    def __init__(self, probes: Probes, store: TraceStore, max_trace_bytes: int) -> None:
        self.probes = probes
        self.store = store
        self.max_trace_bytes = max_trace_bytes
        self._full: set[Tracing] = set()
        self._read_thread = ThreadPoolExecutor(1, "trace-read")
        self.write_thread = ThreadPoolExecutor(1, "trace-write")
        self._reader: asyncio.Task[None] | None = None

    def watch(self, run_id: str, cgroup: int, level: TraceLevel, rules: AddressRules | None = None) -> Tracing:
        """Enters a run before its first process exists. Raises Exhausted, BpfError."""
        tracing = Tracing(self, self.probes.watch(cgroup, _LEVELS[level], rules), run_id, level)
        if level is TraceLevel.FULL:
            self._full.add(tracing)
        if self._reader is None or self._reader.done():
            self._reader = asyncio.get_running_loop().create_task(self._read(), name="trace-reader")
        return tracing

    def forget(self, tracing: Tracing) -> None:
        self._full.discard(tracing)

    async def _read(self) -> None:
        """Ends by itself when nothing is watched."""
        loop = asyncio.get_running_loop()
        while self.probes.watched:
            await asyncio.sleep(_FULL_PERIOD_SECONDS if self._full else _SUMMARY_PERIOD_SECONDS)
            if not self._full:
                self.probes.drain()
                continue
            await loop.run_in_executor(self._read_thread, self.probes.drain)
            for tracing in tuple(self._full):
                if tracing.waiting >= _FLUSH_ROWS:
                    loop.run_in_executor(self.write_thread, tracing.write)

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
        self._lost = 0
        self._offset = time.time_ns() - time.monotonic_ns()
        self.processes = Processes(self._offset)
        self.contacts = Contacts()
        self.failure = ""
        """Why the full trace is not stored as a whole; empty when it is."""

    @property
    def waiting(self) -> int:
        """Rows that have come and are not yet written."""
        return sum(map(len, self._watch.calls)) if self._watch is not None else 0

    async def finish(self) -> TraceSummary:
        if self._level is not TraceLevel.FULL:
            return self._conclude()
        loop = asyncio.get_running_loop()
        return await asyncio.shield(loop.run_in_executor(self._recorder.write_thread, self._conclude))

    def close(self) -> None:
        """Lets go of a run that never came to its end."""
        if self._watch is None:
            return
        if self._level is TraceLevel.FULL:
            self._recorder.write_thread.submit(self._conclude)
        else:
            self._conclude()

    def write(self) -> None:
        """Stores what has come; on the writer's thread."""
        if self._watch is not None:
            calls, records = self._recorder.probes.take(self._watch)
            self._sum_up(records)
            self._store(calls, records)

    def _sum_up(self, records: Sequence[bytes]) -> None:
        self.processes.add(records)
        self.contacts.add(records)

    def wall_time(self, time_ns: int) -> float:
        """Unix time of a record's, in seconds."""
        return (time_ns + self._offset) / 1e9

    def _conclude(self) -> TraceSummary:
        watch, self._watch = self._watch, None
        if watch is None:
            return TraceSummary(self._level.value)
        seen = self._recorder.probes.finish(watch)
        self._sum_up(seen.records)
        if self._level is TraceLevel.FULL:
            self._recorder.forget(self)
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
