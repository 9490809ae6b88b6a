"""Who looks on while a run is traced: each has a bounded queue of its own, and what it is too slow for is counted.

A run is told nothing of its followers and never waits for one. What the rings held is queued as it came; it is made events
by one thread for all followers, when they take it. Where nobody follows, that is one look into a dictionary.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

from supervisor.errors import Exhausted
from supervisor.model import TraceEvent, Violation

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

QUEUE_BYTES = 8 << 20
"""Of records that wait for one follower: some 87,000 calls."""
FOLLOWERS_MAX = 64
_BYTES_TAKEN = 1 << 20
_EVENTS_AT_A_TIME = 1000
_VIOLATION_BYTES = 512
_REGISTER = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Followed:
    """Events in order of time, the violations behind them; `dropped` are missing before them. `level`: of the first alone."""

    events: list[TraceEvent]
    dropped: int = 0
    level: str = ""


@dataclass(frozen=True, slots=True)
class _Piece:
    """What came at one time, `dropped` events after the piece before it."""

    calls: Sequence[NDArray[np.uint8]]
    records: Sequence[bytes]
    violation: Violation | None
    size: int
    dropped: int


class Followers:
    """All followers of one daemon, by the runs that they follow. `join` and `close` are for the event loop."""

    def __init__(self) -> None:
        # Tuples that are replaced, never changed: threads that tell look at them as they are.
        self._of: dict[str, tuple[Follower, ...]] = {}
        self.thread = ThreadPoolExecutor(1, "trace-follow")

    def feed(self, run_id: str, offset: int) -> Feed:
        """What the trace of one run is told to; `offset` turns CLOCK_MONOTONIC into Unix time."""
        return Feed(self, run_id, offset)

    def join(self, run_id: str, *, calls: bool = True) -> Follower:
        """Follows the run from now on, until `leave`; without `calls`, only what is no plain call. Raises Exhausted."""
        if sum(map(len, self._of.values())) >= FOLLOWERS_MAX:
            raise Exhausted(
                f"{FOLLOWERS_MAX} clients follow runs already", reason="TOO_MANY_FOLLOWERS", retry_seconds=1.0
            )
        follower = Follower(self, run_id, calls)
        self._of[run_id] = (*self.of(run_id), follower)
        return follower

    def of(self, run_id: str) -> tuple[Follower, ...]:
        return self._of.get(run_id, ())

    def leave(self, run_id: str, follower: Follower) -> None:
        left = tuple(one for one in self.of(run_id) if one is not follower)
        if left:
            self._of[run_id] = left
        else:
            self._of.pop(run_id, None)

    def tell(self, run_id: str, violation: Violation) -> None:
        """For those who follow the run; on any thread."""
        for follower in self.of(run_id):
            follower.offer_violation(violation)

    def close(self) -> None:
        self.thread.shutdown(wait=False, cancel_futures=True)


class Feed:
    """One run's way to its followers; its trace's lock is held around it."""

    def __init__(self, followers: Followers, run_id: str, offset: int) -> None:
        self._followers = followers
        self._run_id = run_id
        self._offset = offset
        self._told = 0

    def tell(self, records: Sequence[bytes], calls: Sequence[NDArray[np.uint8]], *, taken: bool = False) -> None:
        """New records, and all calls that have been gathered and not been taken; `taken`: from here on they are."""
        end = len(calls)  # more may be appended by another thread meanwhile
        start, self._told = self._told, 0 if taken else end
        for follower in self._followers.of(self._run_id):
            follower.offer(records, calls[start:end], self._offset)


class Follower:
    """One client's queue. What finds no room in it is the newest, and is counted until there is room again."""

    def __init__(self, followers: Followers, run_id: str, calls: bool) -> None:
        self._followers = followers
        self._run_id = run_id
        self._calls = calls
        self._since = time.monotonic_ns()
        self._loop = asyncio.get_running_loop()
        self._woken = asyncio.Event()
        self._changed = threading.Lock()
        self._waking = False
        self._queue: deque[_Piece] = deque()
        self._queued = 0
        self._dropped = 0
        self._offset = 0
        self._ended = False

    @property
    def queued_bytes(self) -> int:
        return self._queued

    def offer(self, records: Sequence[bytes], calls: Sequence[NDArray[np.uint8]], offset: int) -> None:
        """Keeps what there is room for; on any thread."""
        if not self._calls:
            calls = ()
        if not records and not calls:
            return
        with self._changed:
            self._offset = offset
            room = QUEUE_BYTES - self._queued
            size = sum(map(len, records)) + sum(rows.nbytes for rows in calls)
            lost = 0
            if size > room:
                records, calls, size, lost = _fitting(records, calls, room)
            if size:
                self._put(_Piece(calls, records, None, size, self._dropped))
            self._dropped += lost
            self._wake()

    def offer_violation(self, violation: Violation) -> None:
        with self._changed:
            if self._queued + _VIOLATION_BYTES > QUEUE_BYTES:
                self._dropped += 1
            else:
                self._put(_Piece((), (), violation, _VIOLATION_BYTES, self._dropped))
            self._wake()

    def _put(self, piece: _Piece) -> None:
        self._queue.append(piece)
        self._queued += piece.size
        self._dropped = 0

    def _wake(self) -> None:
        """Once, however often there is something new until it is taken."""
        if not self._waking:
            self._waking = True
            self._loop.call_soon_threadsafe(self._woken.set)

    def end(self, _run: object = None) -> None:
        """Nothing more will come: `batches` ends with what is there. On the event loop."""
        self._ended = True
        self._woken.set()

    def leave(self) -> None:
        """It is told nothing more. On the event loop."""
        self._followers.leave(self._run_id, self)

    async def batches(self) -> AsyncGenerator[Followed, None]:
        """Whatever comes, until `end`."""
        while True:
            pieces, dropped = self._take()
            if pieces:
                batches = _events(pieces, self._offset, self._since)
                while (
                    events := await self._loop.run_in_executor(self._followers.thread, next, batches, None)
                ) is not None:
                    yield Followed(events, dropped)
                    dropped = 0
            elif dropped:
                yield Followed([], dropped)
            elif self._ended:
                return
            else:
                await self._woken.wait()

    def _take(self) -> tuple[list[_Piece], int]:
        """The oldest pieces between which nothing is missing, and how much is missing before them."""
        with self._changed:
            self._woken.clear()
            self._waking = False
            taken: list[_Piece] = []
            size = 0
            while self._queue and size < _BYTES_TAKEN and not (taken and self._queue[0].dropped):
                taken.append(self._queue.popleft())
                size += taken[-1].size
            self._queued -= size
            if taken:
                return taken, taken[0].dropped
            dropped, self._dropped = self._dropped, 0
            return taken, dropped


def _fitting(
    records: Sequence[bytes], calls: Sequence[NDArray[np.uint8]], room: int
) -> tuple[list[bytes], list[NDArray[np.uint8]], int, int]:
    """The first records, then the first calls, of `room` bytes; their size; how many events are left out."""
    kept_records: list[bytes] = []
    left = room
    for record in records:
        if len(record) > left:
            break
        kept_records.append(record)
        left -= len(record)
    kept_calls: list[NDArray[np.uint8]] = []
    lost = len(records) - len(kept_records)
    for rows in calls:
        count = min(len(rows), left // rows.shape[1])
        if count:
            # A view would hold the whole of it.
            kept_calls.append(rows if count == len(rows) else rows[:count].copy())
            left -= kept_calls[-1].nbytes
        lost += len(rows) - count
    return kept_records, kept_calls, room - left, lost


def _events(pieces: Sequence[_Piece], offset: int, since: int) -> Iterator[list[TraceEvent]]:
    """In batches, each made when it is asked for. What happened before `since` may have come only after it."""
    import pyarrow.compute as pc

    from supervisor.evidence.traces import events_of
    from supervisor.probes.table import to_table

    records = list(chain.from_iterable(piece.records for piece in pieces))
    calls = list(chain.from_iterable(piece.calls for piece in pieces))
    if records or calls:
        table = to_table(calls, records, offset)
        if table["time"][0].as_py() < since + offset:
            table = table.filter(pc.field("time") >= since + offset)
        for batch in table.to_batches(max_chunksize=_EVENTS_AT_A_TIME):
            yield events_of(batch.to_pydict())
    violations = [_violation_event(piece.violation) for piece in pieces if piece.violation is not None]
    if violations:
        yield violations


def _violation_event(violation: Violation) -> TraceEvent:
    return TraceEvent(
        time=round(violation.time * 1e9),
        kind="violation",
        pid=violation.pid,
        tid=violation.tid,
        syscall=violation.syscall,
        abi=violation.abi,
        args=tuple(argument & _REGISTER for argument in violation.args),
        comm=violation.comm,
        path=violation.path,
        address=violation.address,
        port=violation.port,
        detail=f"{violation.rule}: {violation.action}, {violation.severity}, {violation.kind}",
    )
