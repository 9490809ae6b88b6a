"""Full traces: one Parquet file per run below the state directory, zstd, one row per event in order of time.

Columns are the schema's, so that any tool that reads Parquet can be put to them. Files are written off the event loop, in
row groups as the events come, under a hidden name until the run has ended; what a dead daemon left unfinished is removed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from supervisor.errors import NotFound, SupervisorError
from supervisor.model import TraceEvent

if TYPE_CHECKING:
    import pyarrow as pa

ROWS_PER_GROUP = 200_000
_SUFFIX = ".parquet"
_PARTIAL = ".partial-"


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

        self._target = directory / f"{run_id}{_SUFFIX}"
        self._partial = directory / f"{_PARTIAL}{run_id}"
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(self._partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        self._file = os.fdopen(descriptor, "wb")
        self._writer = pq.ParquetWriter(self._file, schema(), compression="zstd", compression_level=1)

    def write(self, table: pa.Table) -> None:
        self._writer.write_table(table, row_group_size=ROWS_PER_GROUP)

    def close(self) -> None:
        """The file has its name once it is whole."""
        self._writer.close()
        self._file.close()
        self._partial.rename(self._target)

    def abandon(self) -> None:
        self._file.close()
        self._partial.unlink(missing_ok=True)


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

        path = self.directory / f"{run_id}{_SUFFIX}"
        try:
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(rows):
                    yield _events_of(batch.to_pydict())
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

    def remove_partial(self, alive: frozenset[str] = frozenset()) -> None:
        """What daemons that are no more left unfinished; not that of the runs `alive`."""
        if self.directory.is_dir():
            for path in self.directory.glob(f"{_PARTIAL}*"):
                if path.name.removeprefix(_PARTIAL) not in alive:
                    path.unlink(missing_ok=True)


def _events_of(columns: dict[str, list[Any]]) -> list[TraceEvent]:
    args = zip(*(columns.pop(f"arg{number}") for number in range(6)), strict=True)
    found = []
    for row, registers in zip(zip(*columns.values(), strict=True), args, strict=True):
        values = {name: value for name, value in zip(columns, row, strict=True) if value is not None}
        if "argv" in values:
            values["argv"] = tuple(values["argv"])
        found.append(TraceEvent(**values, args=() if registers[0] is None else registers))
    return found
