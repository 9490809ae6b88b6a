"""Which processes of a trace ran a program, and from when to when: from its exec and fork events."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from supervisor.evidence.trace_query import Pattern
from supervisor.evidence.traces import schema

if TYPE_CHECKING:
    from numpy.typing import NDArray

_MOST_PIDS_IN_CONDITION = 10_000
_ROWS = 65_536


@dataclass(frozen=True)
class Programs:
    """When processes began and ceased to run a program that matches: of `pids[i]` at `times[i]` the answer became `states[i]`.

    A process runs what it executed last, and before that what its parent ran when it was forked.
    """

    times: NDArray[np.int64]
    pids: NDArray[np.int64]
    states: NDArray[np.bool_]
    _keys: NDArray[np.int64]
    _order: NDArray[np.int64]

    @property
    def matching(self) -> bool:
        return bool(self.states.any())

    def condition(self) -> pc.Expression:
        """What Arrow can tell beforehand: the processes that ran it at any time."""
        pids = np.unique(self.pids[self.states])
        return pc.field("pid").isin(pids.tolist()) if len(pids) <= _MOST_PIDS_IN_CONDITION else pc.scalar(True)

    def mask(self, batch: pa.RecordBatch) -> NDArray[np.bool_]:
        """Which rows are by a process that ran it then."""
        ranks = np.searchsorted(self.times, batch.column("time").to_numpy(), side="right")
        pids = batch.column("pid").to_numpy().astype(np.int64)
        found = np.searchsorted(self._keys, _key(pids, ranks, len(self.times)), side="right") - 1
        known = found >= 0
        at = self._order[np.where(known, found, 0)]
        answer: NDArray[np.bool_] = known & (self.pids[at] == pids) & self.states[at]
        return answer


def _key(pids: NDArray[np.int64], ranks: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """One number that sorts by pid, then by time."""
    return pids * (count + 1) + ranks


def find_programs(fragment: Any, pattern: Pattern) -> Programs:
    """Of the trace in `fragment`; memory goes with its execs and forks. See parse_program for the pattern."""
    changes: list[tuple[int, int, bool]] = []
    running: set[int] = set()
    for time, pid, state, child in _lives(fragment, pattern):
        if child:
            pid, state = child, pid in running
        if state != (pid in running):
            changes.append((time, pid, state))
            (running.add if state else running.discard)(pid)
    times = np.array([change[0] for change in changes], dtype=np.int64)
    pids = np.array([change[1] for change in changes], dtype=np.int64)
    states = np.array([change[2] for change in changes], dtype=bool)
    # Of two changes at one time the later one counts: both have the rank of the last.
    keys = _key(pids, np.searchsorted(times, times, side="right"), len(times))
    order = np.argsort(keys, kind="stable")
    return Programs(times, pids, states, keys[order], order)


def _lives(fragment: Any, pattern: Pattern) -> Iterator[tuple[int, int, bool, int]]:
    """(time, pid, whether it executed what matches, the child that it forked or 0), in order of time."""
    kind, detail = pc.field("kind"), pc.field("detail")
    forks = (kind == "fork") & (detail == "process")
    executes = pc.coalesce(pc.match_substring_regex(pc.field("path"), pattern.regex), pc.scalar(False))
    if not fragment.scanner(schema=schema(), filter=(kind == "exec") & executes, use_threads=False).count_rows():
        return  # most traces, and this is several times as quick as the rest
    columns = {
        "time": pc.field("time"),
        "pid": pc.field("pid"),
        "executes": executes,
        "child": pc.if_else(kind == "fork", pc.field("result"), pc.scalar(0)),
    }
    found: pa.Table = fragment.to_table(
        schema=schema(),
        columns=columns,
        filter=(kind == "exec") | forks,
        batch_readahead=1,
        fragment_readahead=1,
        use_threads=False,
    ).sort_by("time")
    for batch in found.to_batches(_ROWS):
        yield from zip(*(batch.column(name).to_pylist() for name in columns), strict=True)
