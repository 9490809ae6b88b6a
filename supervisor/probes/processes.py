"""Who was who in a run: its processes from the records of fork, exec and exit, in the order in which they came."""

from __future__ import annotations

import os
from collections.abc import Iterable

from supervisor.model import TracedProcess
from supervisor.probes.layout import EXEC, EXIT, FORK, HEAD, RecordType, text, upward

SHOWN_MAX = 200
"""Processes in a summary; of a run with more, the first."""
_ENDED_MAX = 10_000
_SCRIPT = 1 << 14  # MARK_SCRIPT of bpf/records.h


class Processes:
    """Fed with the records of a run's priority ring; times are turned into Unix time by adding `offset_ns`."""

    def __init__(self, offset_ns: int) -> None:
        self._offset = offset_ns
        # Of the living, whose number the run's pids limit bounds; then the last of the dead.
        self._process_of: dict[int, int] = {}
        self._path_of: dict[int, str] = {}
        self._ended: dict[int, tuple[int, str]] = {}
        self._shown: dict[int, TracedProcess] = {}
        self._past: list[TracedProcess] = []
        self.count = 0
        """Of all processes, those not shown included."""

    def add(self, records: Iterable[bytes]) -> None:
        for record in records:
            time_ns, _, pid, tid, kind, _, _ = HEAD.unpack_from(record)
            time = (time_ns + self._offset) / 1e9
            if kind == RecordType.EXEC:
                parent, _, comm, path, _, marks, size, _, _, _, _, _, file, _ = EXEC.unpack_from(record)
                # Where it lies; of a script, whose interpreter that would be, what it was called.
                real = text(path) if marks & _SCRIPT or not size else upward(file[:size])
                self._on_exec(time, pid, parent, real, text(comm))
            elif kind == RecordType.FORK:
                child_pid, child_tid, comm = FORK.unpack_from(record)
                self._on_fork(time, pid, child_pid, child_tid, text(comm))
            elif kind == RecordType.EXIT:
                status, leader, _, _, _ = EXIT.unpack_from(record)
                self._on_thread_end(tid)
                if leader:
                    self._on_end(time, pid, status)

    def owner(self, tid: int) -> tuple[int, str]:
        """The process of a thread and the program it last executed; 0 and "" where that was not seen."""
        pid = self._process_of.get(tid)
        return self._ended.get(tid, (0, "")) if pid is None else (pid, self._path_of.get(pid, ""))

    def shown(self) -> tuple[TracedProcess, ...]:
        """The first SHOWN_MAX, in order of their beginnings."""
        return tuple(sorted((*self._past, *self._shown.values()), key=lambda one: one.started_at))[:SHOWN_MAX]

    def _on_exec(self, time: float, pid: int, parent: int, path: str, comm: str) -> None:
        is_new = pid not in self._process_of
        self._know(pid, pid, path)
        known = self._shown.get(pid)
        if known is not None:
            self._shown[pid] = TracedProcess(pid, known.parent, comm, path, known.started_at)
        elif is_new:
            self._begin(TracedProcess(pid, parent, comm, path, time))

    def _on_fork(self, time: float, parent: int, pid: int, tid: int, comm: str) -> None:
        self._know(tid, pid, self._path_of.get(parent, ""))
        if pid == tid:
            self._begin(TracedProcess(pid, parent, comm, self._path_of.get(parent, ""), time))

    def _on_thread_end(self, tid: int) -> None:
        pid = self._process_of.pop(tid, None)
        if pid is not None:
            self._ended.pop(tid, None)
            self._ended[tid] = (pid, self._path_of.get(pid, ""))
            if len(self._ended) > _ENDED_MAX:
                del self._ended[next(iter(self._ended))]

    def _on_end(self, time: float, pid: int, status: int) -> None:
        self._path_of.pop(pid, None)
        known = self._shown.pop(pid, None)
        if known is not None:
            result = os.waitstatus_to_exitcode(status & 0xFFFF)
            self._past.append(TracedProcess(pid, known.parent, known.comm, known.path, known.started_at, time, result))

    def _begin(self, process: TracedProcess) -> None:
        self.count += 1
        if len(self._past) + len(self._shown) < SHOWN_MAX:
            self._shown[process.pid] = process

    def _know(self, tid: int, pid: int, path: str) -> None:
        self._process_of[tid] = pid
        self._path_of[pid] = path
