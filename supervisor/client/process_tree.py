"""The processes of a trace: who made whom, what each ran, when, and how it ended. Pure, for the client on any system."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Self

from supervisor.client.calls import failed
from supervisor.client.linux_words import signal_name
from supervisor.client.result import TraceEvent
from supervisor.model import TracedProcess


@dataclass(slots=True, eq=False)
class Process:
    """One process, from its first event to its end; times are Unix seconds, pids the run's own.

    `program` and `argv` are those executed last; `before` has the programs it was earlier. One that was forked and never
    executed any (`forked_only`) has its parent's. `result` is its exit status, or the negated signal that ended it, and
    None where its end is not in the trace.
    """

    pid: int
    start: float
    program: str = ""
    argv: tuple[str, ...] = ()
    comm: str = ""
    parent: Process | None = None
    parent_pid: int = 0
    before: list[str] = field(default_factory=list)
    forked_only: bool = False
    end: float | None = None
    result: int | None = None
    calls: int = 0
    failed: int = 0
    threads: int = 1
    children: list[Process] = field(default_factory=list)
    last: float = 0.0
    forked: bool = False

    @property
    def seconds(self) -> float:
        """How long it lived, as far as was seen."""
        return max(0.0, (self.last if self.end is None else self.end) - self.start)

    @property
    def ended(self) -> str:
        """`exited 0`, `killed by SIGKILL`, or `-` where it is not known."""
        if self.result is None:
            return "-"
        return f"killed by {signal_name(-self.result)}" if self.result < 0 else f"exited {self.result}"

    @property
    def command_line(self) -> str:
        """Program and arguments, quoted as for a shell."""
        return shlex.join(self.argv) if self.argv else self.program or self.comm or "?"

    @property
    def label(self) -> str:
        """The command line; in parentheses where it is only what the parent ran."""
        return f"({self.command_line})" if self.forked_only else self.command_line

    @property
    def name(self) -> str:
        """The program's name without its directory."""
        return self.program.rpartition("/")[2] or self.comm


class ProcessTree:
    """Grows with the events of one trace, in memory that goes with its processes.

    With `keep=False` it only knows which process a pid is at the moment; `roots` and `children` stay empty.
    """

    def __init__(self, *, keep: bool = True) -> None:
        self.roots: list[Process] = []
        self.start: float | None = None
        """Of the first event."""
        self._keep = keep
        self._current: dict[int, Process] = {}

    @classmethod
    def of(cls, events: Iterable[TraceEvent]) -> Self:
        tree = cls()
        for event in events:
            tree.add(event)
        return tree

    @classmethod
    def of_summary(cls, processes: Iterable[TracedProcess]) -> Self:
        """What a trace of the level summary keeps: processes by their last program, without arguments and calls."""
        tree = cls()
        for one in processes:
            tree.start = one.started_at if tree.start is None else tree.start
            process = Process(one.pid, one.started_at, one.path, comm=one.comm, parent_pid=one.parent)
            parent = tree._current.get(one.parent)
            tree._begin(process, parent)
            process.end, process.result = one.ended_at, one.result
        return tree

    def add(self, event: TraceEvent) -> Process:
        """Takes the next event; the process that it is of."""
        if self.start is None:
            self.start = event.time
        process = self._current.get(event.pid) or self._begin(Process(event.pid, event.time, comm=event.comm))
        process.last = max(process.last, event.time)
        if event.kind == "syscall":
            process.calls += 1
            process.failed += failed(event)
        elif event.kind == "exec":
            self._execute(process, event)
        elif event.kind == "fork":
            self._fork(process, event)
        elif event.kind == "exit":
            _exit(process, event)
        return process

    def get(self, pid: int) -> Process | None:
        """Who has the pid, or had it last."""
        return self._current.get(pid)

    def walk(self) -> Iterator[tuple[int, Process]]:
        """(depth, process), parents before their children, these in order of their start."""
        waiting = [(0, process) for process in reversed(self.roots)]
        while waiting:
            depth, process = waiting.pop()
            yield depth, process
            waiting.extend((depth + 1, child) for child in reversed(process.children))

    def _begin(self, process: Process, parent: Process | None = None) -> Process:
        self._current[process.pid] = process
        process.last = process.start
        if parent is not None:
            process.parent_pid = parent.pid
        if self._keep:
            process.parent = parent
            (self.roots if parent is None else parent.children).append(process)
        return process

    def _adopt(self, process: Process, parent: Process) -> None:
        """The events of one flush are in order; a child's first may still come in the flush before its parent's fork."""
        process.parent_pid = parent.pid
        if self._keep and process.parent is None and not _is_ancestor(process, parent):
            self.roots.remove(process)
            process.parent = parent
            parent.children.append(process)

    def _execute(self, process: Process, event: TraceEvent) -> None:
        if process.program and not process.forked_only:
            process.before.append(process.program)
        process.program, process.argv, process.comm = event.path, event.argv, event.comm
        process.forked_only = False
        process.parent_pid = process.parent_pid or event.parent
        if process.end is not None and event.time > process.end:
            # It was executed by another thread than the first, which ends then and there.
            process.end = process.result = None

    def _fork(self, parent: Process, event: TraceEvent) -> None:
        if event.detail == "thread":
            parent.threads += 1
            return
        known = self._current.get(event.result)
        if known is not None and known.end is None and not known.forked and known is not parent:
            known.forked = True
            known.start = min(known.start, event.time)
            self._adopt(known, parent)
            return
        child = Process(event.result, event.time, parent.program, parent.argv, parent.comm, forked=True)
        child.forked_only = True
        self._begin(child, parent)


def _exit(process: Process, event: TraceEvent) -> None:
    if event.tid in (0, event.pid):
        process.result = event.result
        process.end = event.time
    elif process.end is not None:
        process.end = max(process.end, event.time)


def _is_ancestor(process: Process, of: Process | None) -> bool:
    while of is not None:
        if of is process:
            return True
        of = of.parent
    return False
