"""A trace as events of Chrome's Trace Event Format, which ui.perfetto.dev and chrome://tracing show as a timeline.

A slice (X) for each program that a process ran, from its exec to the next or to the end; an instant (i) for each call on its
thread; names (M). https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from supervisor.client.calls import Entry, call_text, endpoint_text, paired, result_text
from supervisor.client.process_tree import Process, ProcessTree
from supervisor.client.result import TraceEvent

_ARGUMENT_CHARS = 1000
_NAME_CHARS = 80


@dataclass(slots=True)
class _Slice:
    """What a process runs now, since `start`."""

    process: Process
    start: float
    path: str
    command_line: str


class _Timeline:
    def __init__(self) -> None:
        self._tree = ProcessTree(keep=False)
        self._open: dict[int, _Slice] = {}
        self._threads: set[tuple[int, int]] = set()
        self._zero: float | None = None
        self._last = 0.0

    def micros(self, seconds: float) -> float:
        """Since the first event: a double has no room for Unix time in nanoseconds."""
        if self._zero is None:
            self._zero = seconds
        return max(0.0, round((seconds - self._zero) * 1e6, 3))

    def take(self, entry: Entry) -> Iterator[dict[str, Any]]:
        """The events that an entry adds."""
        event = entry.event
        executed = entry.executes
        since = executed.time if executed is not None else event.time
        self.micros(since)
        self._last = max(self._last, event.time)
        process = self._tree.add(executed or event)
        if executed is not None and executed is not event:
            self._tree.add(event)
        if event.kind == "exit":
            self._threads.discard((event.pid, event.tid))
            if event.tid in (0, event.pid):
                yield from self._end(event.pid, event.time, {"ended": process.ended})
            return
        current = self._open.get(event.pid)
        if executed is not None or current is None or current.process is not process:
            yield from self._end(event.pid, since)
            yield from self._begin(process, since)
        if (event.pid, event.tid) not in self._threads:
            self._threads.add((event.pid, event.tid))
            yield _named("thread_name", event.pid, event.tid, process.name)
        if event.kind == "fork" and event.detail != "thread":
            yield from self._fork(event)
        yield self._instant(entry)

    def finish(self) -> Iterator[dict[str, Any]]:
        """The ends of processes whose end is not in the trace."""
        for pid in tuple(self._open):
            yield from self._end(pid, self._last)

    def _fork(self, event: TraceEvent) -> Iterator[dict[str, Any]]:
        """The child runs what its parent does until it executes another."""
        child = self._tree.get(event.result)
        if child is not None and event.result not in self._open:
            yield from self._begin(child, event.time)

    def _begin(self, process: Process, start: float) -> Iterator[dict[str, Any]]:
        line = process.label[:_ARGUMENT_CHARS]
        self._open[process.pid] = _Slice(process, start, process.program, line)
        yield _named("process_name", process.pid, process.pid, process.name)
        yield {"name": "process_labels", "ph": "M", "pid": process.pid, "tid": process.pid, "args": {"labels": line}}

    def _end(self, pid: int, end: float, how: dict[str, str] | None = None) -> Iterator[dict[str, Any]]:
        found = self._open.pop(pid, None)
        if found is not None:
            start = self.micros(found.start)
            yield {
                "name": found.command_line[:_NAME_CHARS] or "?",
                "cat": "process",
                "ph": "X",
                "ts": start,
                "dur": max(0.0, round(self.micros(end) - start, 3)),
                "pid": pid,
                "tid": pid,
                "args": {"program": found.path, "command_line": found.command_line, **(how or {})},
            }

    def _instant(self, entry: Entry) -> dict[str, Any]:
        event = entry.event
        args: dict[str, Any] = {}
        if event.syscall or entry.executes is not None:
            call = call_text(entry, endpoint_text, _ARGUMENT_CHARS)
            args = {"call": call, "result": result_text(event)} | ({"error": entry.error} if entry.error else {})
        if event.detail:
            args["detail"] = event.detail
        if event.kind == "fork":
            args["child"] = event.result
        return {
            "name": event.syscall or event.kind,
            "cat": "failed" if entry.error else event.kind,
            "ph": "i",
            "s": "t",
            "ts": self.micros(event.time),
            "pid": event.pid,
            "tid": event.tid or event.pid,
            "args": args,
        }


def _named(kind: str, pid: int, tid: int, name: str) -> dict[str, Any]:
    return {"name": kind, "ph": "M", "pid": pid, "tid": tid or pid, "args": {"name": name or "?"}}


def to_perfetto(events: Iterable[TraceEvent]) -> Iterator[dict[str, Any]]:
    """The elements of traceEvents, in memory that goes with the processes; times are microseconds since the first event."""
    timeline = _Timeline()
    for entry in paired(events):
        yield from timeline.take(entry)
    yield from timeline.finish()
