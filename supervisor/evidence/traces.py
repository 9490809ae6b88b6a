"""Full traces: one Parquet file per run below the state directory, zstd, one row per event in order of time.

Columns are the schema's, so that any tool that reads Parquet can be put to them. Files are written off the event loop, in
row groups as the events come, under a hidden name until the run has ended; what a dead daemon left unfinished is removed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from supervisor.errors import NotFound, SupervisorError
from supervisor.model import TraceEvent

if TYPE_CHECKING:
    import pyarrow as pa

    from supervisor.evidence.trace_query import TraceQuery

ROWS_PER_GROUP = 200_000
SUFFIX = ".parquet"
_PARTIAL = ".partial-"


@dataclass(frozen=True, slots=True)
class Found:
    """Events of one run that a search found, in order of time; none where it has only come further."""

    run_id: str
    events: list[TraceEvent]


@dataclass(frozen=True, slots=True)
class SearchEnd:
    """How a search went: traces `searched`, those `skipped` since they cannot be read, and the first of their runs."""

    searched: int
    skipped: int = 0
    skipped_run_ids: tuple[str, ...] = ()
    limit_reached: bool = False


def schema() -> pa.Schema:
    """time: Unix, ns. pid and tid are the run's own. abi, syscall, args (raw registers), result: of system calls."""
    import pyarrow as pa

    words = pa.dictionary(pa.int16(), pa.string())
    return pa.schema(
        [
            ("time", pa.int64()),
            ("kind", words),
            ("pid", pa.int32()),
            ("tid", pa.int32()),
            ("syscall", words),
            ("abi", words),
            ("result", pa.int64()),
            *((f"arg{number}", pa.uint64()) for number in range(6)),
            ("comm", pa.string()),
            ("path", pa.string()),
            ("address", pa.string()),
            ("port", pa.int32()),
            ("parent", pa.int32()),
            ("argv", pa.list_(pa.string())),
            ("detail", pa.string()),
        ]
    )


class TraceWriter:
    """Writes one run's file. Not thread-safe; every method may wait for the disk. Raises OSError."""

    def __init__(self, directory: Path, run_id: str) -> None:
        import pyarrow.parquet as pq

        self._target = directory / f"{run_id}{SUFFIX}"
        self._partial = directory / f"{_PARTIAL}{run_id}"
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(self._partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._file = os.fdopen(descriptor, "wb")
        self._writer = pq.ParquetWriter(self._file, schema(), compression="zstd", compression_level=1)

    @property
    def size(self) -> int:
        """Bytes in the file so far."""
        return self._file.tell()

    def write(self, table: pa.Table) -> None:
        self._writer.write_table(table, row_group_size=ROWS_PER_GROUP)

    def close(self) -> None:
        """The file has its name once it is whole."""
        self._writer.close()
        self._file.close()
        self._partial.rename(self._target)

    def abandon(self) -> None:
        """Nothing is left of it, whatever state it is in."""
        from pyarrow import ArrowException

        self._partial.unlink(missing_ok=True)
        with contextlib.suppress(OSError, ArrowException):
            self._writer.close()
        with contextlib.suppress(OSError):
            self._file.close()


class TraceStore:
    """The directory of the files. Safe for threads and processes: a file appears whole and is never changed."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def writer(self, run_id: str) -> TraceWriter:
        return TraceWriter(self.directory, run_id)

    def events(self, run_id: str, rows: int = 1000) -> Iterator[list[TraceEvent]]:
        """The run's events in batches of `rows`. Raises NotFound, SupervisorError for a file that is damaged."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = self.directory / f"{run_id}{SUFFIX}"
        try:
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(rows):
                    yield events_of(batch.to_pydict())
        except FileNotFoundError:
            raise NotFound(
                f"run {run_id} has no full trace", field="run_id", metadata={"run_id": run_id, "remedy": "--trace full"}
            ) from None
        except (OSError, pa.ArrowException) as error:
            raise SupervisorError(
                f"the trace of run {run_id} cannot be read: {error}"[:500],
                reason="TRACE_DAMAGED",
                metadata={"path": str(path)},
            ) from error

    def search(self, query: TraceQuery) -> Iterator[Found | SearchEnd]:
        """What `query` finds, newest run first, in small steps; damaged files are skipped. Raises NotFound for its run."""
        from supervisor.evidence.trace_search import search

        return search(self.directory, query)

    def remove_partial(self) -> None:
        """What processes that are no more left unfinished; a living one holds a lock on its own."""
        for path in self.directory.glob(f"{_PARTIAL}*") if self.directory.is_dir() else ():
            try:
                descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            except OSError:
                continue
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink(missing_ok=True)
            except BlockingIOError:
                continue
            finally:
                os.close(descriptor)

    def prune(self, older_than: float, max_bytes: int) -> int:
        """Removes traces that ended before `older_than` (Unix time), then the oldest until `max_bytes` (0: no bound) hold the
        rest; how many. A trace that goes while it is being read is read to its end. Raises OSError.
        """
        kept, removed = [], 0
        for path in self.directory.glob(f"*{SUFFIX}") if self.directory.is_dir() else ():
            try:
                status = path.stat()
            except FileNotFoundError:
                continue
            if status.st_mtime < older_than:
                path.unlink(missing_ok=True)
                removed += 1
            else:
                kept.append((status.st_mtime, status.st_size, path))
        kept.sort(key=lambda one: one[0])
        total = sum(size for _, size, _ in kept)
        for _, size, path in kept:
            if not max_bytes or total <= max_bytes:
                break
            path.unlink(missing_ok=True)
            total -= size
            removed += 1
        return removed


def events_of(columns: dict[str, list[Any]]) -> list[TraceEvent]:
    """The rows of a batch of the schema's columns."""
    args = zip(*(columns.pop(f"arg{number}") for number in range(6)), strict=True)
    found = []
    for row, registers in zip(zip(*columns.values(), strict=True), args, strict=True):
        values = {name: value for name, value in zip(columns, row, strict=True) if value is not None}
        if "argv" in values:
            values["argv"] = tuple(values["argv"])
        found.append(TraceEvent(**values, args=() if registers[0] is None else registers))
    return found
