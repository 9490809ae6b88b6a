"""A run whose output is consumed as it comes and whose input arrives meanwhile."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Self

from supervisor.backends.base import Sandbox
from supervisor.model import Outcome, RunResult, Violation
from supervisor.run import Run
from supervisor.run_events import Event, Exited, Output, Started, Stream, ViolationSeen

_BUFFER_BYTES = 1 << 20


class LiveRun:
    """A run whose output is consumed as it comes; see api.ports.LiveRun."""

    def __init__(self, run: Run, begin: Callable[[Run], asyncio.Task[RunResult]]) -> None:
        self._run = run
        self._begin = begin
        self._events: deque[Event] = deque()
        self._buffered = 0
        self._paused = False
        self._wake = asyncio.Event()
        self._pending: list[Callable[[Sandbox], None]] = []
        self._started = asyncio.Event()
        run.on_output = self._on_output
        run.on_started = self._on_started
        run.on_violation = self._on_violation

    async def __aenter__(self) -> Self:
        task = self._begin(self._run)
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
        if not task.cancelled() and task.exception() is None:
            for file in task.result().files:
                if file.spool is not None:
                    file.spool.close()

    async def events(self) -> AsyncIterator[Event]:
        task = self._run.task
        assert task is not None
        while True:
            while self._events:
                event = self._events.popleft()
                if isinstance(event, Output):
                    self._buffered -= len(event.data)
                    if self._paused and self._buffered < _BUFFER_BYTES // 2:
                        self._resume()
                yield event
            if task.done():
                break
            self._wake.clear()
            if not self._events and not task.done():
                await self._wake.wait()
        while self._events:
            yield self._events.popleft()
        yield Exited(task.result())

    def _on_started(self, event: Started) -> None:
        self._events.append(event)
        self._started.set()
        self._wake.set()
        sandbox = self._run.sandbox
        if sandbox is not None:
            for act in self._pending:
                act(sandbox)
        self._pending.clear()

    def _on_violation(self, violation: Violation) -> None:
        self._events.append(ViolationSeen(violation))
        self._wake.set()

    def _when_started(self, act: Callable[[Sandbox], None]) -> None:
        """Now, or as soon as the program runs: before that there is nobody to take it."""
        if self._run.sandbox is not None and self._started.is_set():
            act(self._run.sandbox)
        else:
            self._pending.append(act)

    def _on_output(self, stream: Stream, data: bytes) -> None:
        self._events.append(Output(stream, data))
        self._buffered += len(data)
        self._wake.set()
        if self._buffered >= _BUFFER_BYTES and not self._paused and self._run.sandbox is not None:
            self._paused = True
            self._run.sandbox.pause_output()

    def _resume(self) -> None:
        self._paused = False
        if self._run.sandbox is not None:
            self._run.sandbox.resume_output()

    async def write_stdin(self, data: bytes) -> None:
        await self._until_started()
        if self._run.feeding is not None:  # the spec's own bytes come first
            await asyncio.wait([self._run.feeding])
        if self._run.sandbox is not None:
            await self._run.sandbox.write_stdin(data)

    def close_stdin(self) -> None:
        self._when_started(self._close_stdin)

    def _close_stdin(self, sandbox: Sandbox) -> None:
        feeding = self._run.feeding
        if feeding is None or feeding.done():
            sandbox.close_stdin()
        else:  # the spec's own bytes come first
            feeding.add_done_callback(lambda _fed: sandbox.close_stdin())

    async def _until_started(self) -> None:
        task = self._run.task
        assert task is not None
        waiter = asyncio.create_task(self._started.wait())
        await asyncio.wait([waiter, task], return_when=asyncio.FIRST_COMPLETED)
        waiter.cancel()

    def signal(self, number: int) -> None:
        self._when_started(lambda sandbox: sandbox.signal(number))

    def resize(self, rows: int, columns: int) -> None:
        self._run.terminal_size = (rows, columns)
        if self._run.sandbox is not None:
            self._run.sandbox.resize(rows, columns)
