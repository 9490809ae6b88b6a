"""The probes, loaded once for all runs: which run is watched, what was counted, what the rings hold.

`Probes.open` loads and attaches; `watch` enters a run before its first process exists; `finish`, when its last one is gone,
takes out what was seen of it. A run costs a map update, not an attach.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from supervisor.errors import Exhausted
from supervisor.probes.addresses import AddressRules
from supervisor.probes.guard import Guard
from supervisor.probes.layout import (
    BULK,
    CALL_BYTES,
    CGROUP_AT,
    COUNT_WORDS,
    DETAILS,
    DROPPED_WORD,
    FLIGHT_CALL,
    FLIGHT_CALLS,
    PRIORITY,
    RECORD_OVERHEAD,
    RUN_ENTRY,
    SYSCALL,
    TAKEN_WORD,
    Level,
)
from supervisor.probes.libbpf import BpfError, BpfObject
from supervisor.probes.names import Names
from supervisor.probes.ring import Ring
from supervisor.rules.denied import uses_denied
from supervisor.rules.needs import Mark, Needs

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

RECORDS_KEPT = 100_000
"""Of one run and the priority ring, until they are taken; more are counted as dropped."""
CALLS_KEPT = 2_000_000
"""The same of the bulk ring: 192 MB."""

QUIET_BYTES = 256 << 10
"""Of the rings: 200 records of programs to some 3,000 of the smallest."""
_ROUND_BYTES = 512 << 10
"""Of one ring: how long the lock is held, which the loop waits for where it enters a run."""

_ZERO = bytes(COUNT_WORDS * 8)
_FLIGHT_BYTES = FLIGHT_CALLS * FLIGHT_CALL.size
_NO_FLIGHT = bytes(_FLIGHT_BYTES)
_OWN_LEVEL = "own_level"
_WAIT_SECONDS = 0.05
_PAUSE_SECONDS = 0.0001
_ON_ADDRESS = ("on_connect", "on_sendmsg", "on_bind", "on_sock_create", "on_egress")


@dataclass(slots=True)
class Watch:
    """One run under the probes. `records` are of the priority ring, as they came; `calls` of the bulk ring, one a row."""

    cgroup: int
    slot: int
    level: Level
    records: list[bytes] = field(default_factory=list)
    calls: list[NDArray[np.uint8]] = field(default_factory=list)
    overflow: int = 0
    addresses: list[bytes] = field(default_factory=list)
    names: int = 0


@dataclass(frozen=True, slots=True)
class Seen:
    """All that the probes saw of a run. `counts` are the words of struct run_counts."""

    counts: list[int]
    records: list[bytes]
    calls: list[NDArray[np.uint8]]
    dropped: int
    flight: bytes


class Probes:
    """The loaded probes of one daemon. Thread-safe; `close` detaches them."""

    def __init__(self, program: BpfObject, slots: int, group_level: int) -> None:
        self._program = program
        self._group_level = group_level
        self._guard: Guard | None = None
        self._lock = threading.Lock()
        self._free = deque(range(slots))
        self._watched: dict[int, Watch] = {}
        self._runs = program.map("runs")
        self._memory = program.map("counts").memory()
        self._counts = memoryview(self._memory).cast("Q")
        self._flight_memory = program.map("flights").memory()
        self._addresses = program.map("addresses")
        self._names = Names(program.map("names"), program.map("calls"))
        priority, details, bulk = (program.map(name) for name in ("priority", "details", "bulk"))
        self._priority = Ring(priority.fd, priority.max_entries)
        self._details = Ring(details.fd, details.max_entries)
        self._bulk = Ring(bulk.fd, bulk.max_entries)

    @classmethod
    def open(cls, path: Path, *, levels_below: int, slots: int, group: int = -1) -> Probes:
        """Loads and attaches the object at `path`. Raises BpfError.

        The groups of runs lie `levels_below` deeper in the v2 tree than the caller's own (it may be negative). `group` is a
        descriptor of the directory that they are made in, where the address hooks go; without it those are only loaded.
        """
        program = BpfObject.open(path)
        try:
            program.set_max_entries("runs", slots)
            program.set_max_entries("counts", slots)
            program.set_max_entries("flights", slots)
            program.load()
            group_level = program.run(_OWN_LEVEL) + levels_below
            program.set_word(".data", "group_level", group_level)
            for name in program.programs():
                if name.startswith(_ON_ADDRESS):
                    if group >= 0:
                        program.attach_cgroup(name, group)
                elif name != _OWN_LEVEL:
                    program.attach(name)
            return cls(program, slots, group_level)
        except BaseException:
            program.close()
            raise

    def add_guard(self, path: Path) -> None:
        """Before the first run is watched: loads and attaches the guard of files at `path`. Raises BpfError."""
        self._guard = self._names.guard = Guard.open(path, self._program, self._group_level)

    def watch(
        self,
        cgroup: int,
        level: Level,
        rules: AddressRules | None = None,
        needs: Needs | None = None,
        uid: int = 0,
    ) -> Watch:
        """Enters the run whose cgroup has this id (its directory's inode number). Raises Exhausted, BpfError.

        `needs` are of its policy's rules; without them no file is looked at. `uid`, the host's number of its user, is for
        rules about credentials.
        """
        with self._lock:
            if not self._free:
                raise Exhausted("every slot of the probes is taken", retry_seconds=1.0)
            # The one that has been free for longest.
            slot = self._free.popleft()
            self._counts[slot * COUNT_WORDS : (slot + 1) * COUNT_WORDS] = memoryview(_ZERO).cast("Q")
            self._flight_memory[slot * _FLIGHT_BYTES : (slot + 1) * _FLIGHT_BYTES] = _NO_FLIGHT
            watch = self._watched[cgroup] = Watch(cgroup, slot, level)
            try:
                for key, value in rules.entries(slot) if rules is not None else ():
                    self._addresses.update(key, value)
                    watch.addresses.append(key)
                deny = rules is not None and rules.deny_rest
                entry = [slot, level, 0, deny, 0, 0, 0, 0, 0, 0, rules is not None, 0]
                if needs is not None:
                    watch.names = self._names.take(needs)
                    checked = uid if (needs.wake | needs.kill) & Mark.CREDENTIALS else 0
                    entry[4:8] = watch.names, needs.wake, needs.kill, checked
                    entry[11] = uses_denied(needs.denied) if self._guard is not None else 0
                self._runs.update(cgroup.to_bytes(8, "little"), RUN_ENTRY.pack(*entry))
            except BpfError:
                self._forget(watch)
                raise
            return watch

    def finish(self, watch: Watch) -> Seen:
        """What was seen of a run none of whose processes is left. It is no longer watched afterwards."""
        self._drain_whole()
        with self._lock:
            self._runs.delete(watch.cgroup.to_bytes(8, "little"))
            counts = self._counts[watch.slot * COUNT_WORDS : (watch.slot + 1) * COUNT_WORDS].tolist()
            flight = self.flight(watch)
            self._forget(watch)
        return Seen(counts, watch.records, watch.calls, counts[DROPPED_WORD] + watch.overflow, flight)

    def take_calls(self, watch: Watch) -> list[NDArray[np.uint8]]:
        """What has come of a run that goes on, for whoever stores it."""
        with self._lock:
            calls, watch.calls = watch.calls, []
        return calls

    def take_records(self, watch: Watch, most: int) -> list[bytes]:
        """The same of its first records, for whoever looks at them."""
        with self._lock:
            records = watch.records[:most]
            del watch.records[:most]
        return records

    def flight(self, watch: Watch) -> bytes:
        """The run's struct flight as it stands: its last calls, where it is not traced in full."""
        return self._flight_memory[watch.slot * _FLIGHT_BYTES : (watch.slot + 1) * _FLIGHT_BYTES]

    def drain(self) -> bool:
        """Hands what the rings hold to the runs that it is of; for runs that live long or are traced in full.

        As much as takes some milliseconds; returns whether there is much more.
        """
        with self._lock:
            self._drain()
            return self._priority.backlog + self._details.backlog > QUIET_BYTES

    @property
    def watched(self) -> int:
        return len(self._watched)

    @property
    def is_quiet(self) -> bool:
        """Whether `finish` would neither wait for another thread nor have much to read."""
        waiting = self._priority.backlog + self._details.backlog + self._bulk.backlog
        return not self._lock.locked() and waiting <= QUIET_BYTES

    def wakers(self) -> tuple[int, int]:
        """Descriptors that poll(2) finds readable once something has been told at once."""
        return self._priority.fd, self._details.fd

    def _forget(self, watch: Watch) -> None:
        if self._watched.pop(watch.cgroup, None) is not None:
            for key in watch.addresses:
                self._addresses.delete(key)
            self._names.give_back(watch.names)
            self._free.append(watch.slot)

    def _drain(self) -> None:
        """What is there by now, of records one by one as much as takes some milliseconds."""
        for ring, number in ((self._priority, PRIORITY), (self._details, DETAILS)):
            for record in ring.read(_ROUND_BYTES):
                self._keep(record, number)
        if self._bulk.backlog:
            self._divide(self._bulk.read_uniform(SYSCALL.size, self._bulk.size))

    def _drain_whole(self) -> None:
        """All that has been written by now. A record that another run is just writing is waited for: ours may lie behind it."""
        rings = (self._priority, self._details, self._bulk)
        ends = [ring.produced for ring in rings]
        before: list[int] = []
        deadline = 0.0
        while True:
            with self._lock:
                self._drain()
                read = [ring.consumed for ring in rings]
            if all(at >= end for at, end in zip(read, ends, strict=True)):
                return
            if read != before:
                before, deadline = read, time.monotonic() + _WAIT_SECONDS
            elif time.monotonic() > deadline:
                return
            else:
                time.sleep(_PAUSE_SECONDS)

    def _keep(self, record: bytes, ring: int) -> None:
        watch = self._watched.get(int.from_bytes(record[CGROUP_AT], "little"))
        if watch is None:
            return
        self._take(watch, ring, RECORD_OVERHEAD + len(record))
        if len(watch.records) < RECORDS_KEPT:
            watch.records.append(record)
        else:
            watch.overflow += 1

    def _divide(self, calls: NDArray[np.uint8]) -> None:
        """Rows of the bulk ring to the runs they are of."""
        import numpy as np

        groups = calls[:, CGROUP_AT].copy().view("u8")[:, 0]
        # Mostly one alone is traced in full; sorting out whose they are costs more than all else.
        one = bool(len(groups)) and bool((groups == groups[0]).all())
        for group in groups[:1].tolist() if one else np.unique(groups).tolist():
            watch = self._watched.get(group)
            if watch is None:
                continue
            rows = calls if one else calls[groups == group]
            self._take(watch, BULK, CALL_BYTES * len(rows))
            if sum(map(len, watch.calls)) + len(rows) <= CALLS_KEPT:
                watch.calls.append(rows)
            else:
                watch.overflow += len(rows)

    def _take(self, watch: Watch, ring: int, size: int) -> None:
        """The run may put as much into that ring again (bpf/rings.h)."""
        self._counts[watch.slot * COUNT_WORDS + TAKEN_WORD + ring] += size

    def close(self) -> None:
        with self._lock:
            self._priority.close()
            self._details.close()
            self._bulk.close()
            self._flight_memory.close()
            self._counts.release()
            self._memory.close()
            if self._guard is not None:
                self._guard.close()
            self._program.close()
