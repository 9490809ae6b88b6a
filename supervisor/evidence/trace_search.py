"""Searching the stored traces: what Parquet's statistics and single columns can rule out is never read as a whole.

A search is a generator of small steps for a thread: each takes one row group, and of that no more than one batch at a time
into memory. Whoever drives it may stop between two steps.
"""

from __future__ import annotations

import operator
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from pyarrow.fs import LocalFileSystem

from supervisor.errors import InvalidRequest, NotFound
from supervisor.evidence.trace_programs import find_programs
from supervisor.evidence.trace_query import AddressRange, Pattern, TraceQuery
from supervisor.evidence.traces import SUFFIX, Found, SearchEnd, events_of, schema

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

BATCH_ROWS = 8192
EVENTS_PER_STEP = 1000
SKIPPED_SHOWN = 10
_CLOCK_SLACK_SECONDS = 60.0
_RUN_ID = re.compile("[0-9a-f]{12}[0-9a-f]*")
_NEEDED = ("time", "kind", "pid", "tid", "result")
_LARGEST_CODE_POINT = 0x10FFFF


@dataclass
class _Tally:
    searched: int = 0
    found: int = 0
    skipped: int = 0


class _Damaged(Exception):
    """A Parquet file that is no trace."""


def search(directory: Path, query: TraceQuery) -> Iterator[Found | SearchEnd]:
    """What `query` finds in the traces of `directory`, newest run first; last, how it went.

    Steps without events only show that it goes on. Raises NotFound where the one run that is asked for has no trace,
    InvalidRequest for a pattern that is too large to be looked for.
    """
    _check(query.path, "path")
    _check(query.program, "program")
    tally = _Tally()
    try:
        yield from _search_all(directory, query, tally)
    finally:
        pa.default_memory_pool().release_unused()


def _search_all(directory: Path, query: TraceQuery, tally: _Tally) -> Iterator[Found | SearchEnd]:
    skipped: list[str] = []
    for run_id in _runs(directory, query):
        if tally.found >= query.limit:
            break
        path = directory / f"{run_id}{SUFFIX}"
        try:
            if not _too_old(path, query):
                yield from _search_file(run_id, path, query, tally)
        except FileNotFoundError:
            continue  # removed while we searched
        except (OSError, pa.ArrowException, _Damaged):
            tally.skipped += 1
            if len(skipped) < SKIPPED_SHOWN:
                skipped.append(run_id)
            continue
        tally.searched += 1
    yield SearchEnd(tally.searched, tally.skipped, tuple(skipped), tally.found >= query.limit)


def _check(pattern: Pattern | None, field: str) -> None:
    if pattern is not None:
        try:
            pc.match_substring_regex(pa.array([""]), pattern.regex)
        except pa.ArrowInvalid as error:
            raise InvalidRequest(f"{field} cannot be looked for: {error}"[:500], field=field) from None


def _runs(directory: Path, query: TraceQuery) -> Sequence[str]:
    """Ids of the runs whose traces may hold something, newest first: ids begin with the time, and sort by it."""
    if query.run_id:
        if not (directory / f"{query.run_id}{SUFFIX}").is_file():
            raise NotFound(
                f"run {query.run_id} has no full trace",
                field="run_id",
                metadata={"run_id": query.run_id, "remedy": "--trace full"},
            )
        return (query.run_id,)
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return ()
    runs = [name.removesuffix(SUFFIX) for name in names if name.endswith(SUFFIX) and not name.startswith(".")]
    if query.until is not None:
        latest = query.until / 1e6 + _CLOCK_SLACK_SECONDS * 1e3
        runs = [run_id for run_id in runs if not _RUN_ID.fullmatch(run_id) or int(run_id[:12], 16) <= latest]
    return sorted(runs, reverse=True)


def _too_old(path: Path, query: TraceQuery) -> bool:
    """A file is written to its end after the last of its events."""
    return query.since is not None and path.stat().st_mtime + _CLOCK_SLACK_SECONDS < query.since / 1e9


def _search_file(run_id: str, path: Path, query: TraceQuery, tally: _Tally) -> Iterator[Found]:
    fragment = ds.ParquetFileFormat().make_fragment(str(path), LocalFileSystem())
    for name in _NEEDED:
        if fragment.physical_schema.get_field_index(name) < 0:
            raise _Damaged(f"no column {name}")
        if fragment.physical_schema.field(name).type != schema().field(name).type:
            raise _Damaged(f"column {name} is {fragment.physical_schema.field(name).type}")
    programs = find_programs(fragment, query.program) if query.program is not None else None
    condition = _condition(query)
    if programs is not None:
        yield Found(run_id, [])
        if not programs.matching:
            return
        condition &= programs.condition()
    for group in fragment.split_by_row_group(condition, schema()):
        yield Found(run_id, [])
        if not group.scanner(schema=schema(), filter=condition, use_threads=False).count_rows():
            continue
        for batch in _batches(group, condition):
            if query.address is not None:
                batch = batch.filter(_in_range(batch, query.address))
            if programs is not None:
                batch = batch.filter(pa.array(programs.mask(batch)))
            for start in range(0, min(batch.num_rows, query.limit - tally.found), EVENTS_PER_STEP):
                rows = batch.slice(start, min(EVENTS_PER_STEP, query.limit - tally.found))
                tally.found += rows.num_rows
                yield Found(run_id, events_of(rows.to_pydict()))
            if tally.found >= query.limit:
                return


def _batches(group: Any, condition: pc.Expression) -> Iterator[pa.RecordBatch]:
    batches: Iterator[pa.RecordBatch] = group.to_batches(
        schema=schema(),
        filter=condition,
        batch_size=BATCH_ROWS,
        batch_readahead=1,
        fragment_readahead=1,
        use_threads=False,
    )
    return (batch for batch in batches if batch.num_rows)


def _condition(query: TraceQuery) -> pc.Expression:
    """What Arrow itself can decide, the cheapest first."""
    terms = [pc.scalar(True)]
    time, result = pc.field("time"), pc.field("result")
    if query.since is not None:
        terms.append(time >= query.since)
    if query.until is not None:
        terms.append(time <= query.until)
    if query.kinds:
        terms.append(pc.field("kind").isin(query.kinds))
    if query.syscalls:
        terms.append(pc.field("syscall").isin(query.syscalls))
    if query.failed:
        terms += [result < 0, result >= -4095, ~pc.field("kind").isin(["exec", "fork", "exit"])]
    if query.path is not None:
        terms += _path_terms(query.path)
    if query.address is not None:
        terms.append(pc.field("address").is_valid())
        if query.address.port is not None:
            terms.append(pc.field("port") == query.address.port)
    return reduce(operator.and_, terms)


def _path_terms(pattern: Pattern) -> list[pc.Expression]:
    path = pc.field("path")
    if pattern.literal:
        return [path == pattern.prefix]
    terms = [path.is_valid()]
    if pattern.prefix:
        terms.append(path >= pattern.prefix)
        last = ord(pattern.prefix[-1])
        if last < _LARGEST_CODE_POINT and not 0xD7FF <= last <= 0xDFFF:
            terms.append(path < pattern.prefix[:-1] + chr(last + 1))
    return [*terms, pc.match_substring_regex(path, pattern.regex)]


def _in_range(batch: pa.RecordBatch, wanted: AddressRange) -> pa.Array:
    """Which rows have an address in the range; every distinct one is looked at once."""
    encoded = batch.column("address").dictionary_encode()
    holds: NDArray[np.bool_] = np.array([wanted.holds(text) for text in encoded.dictionary.to_pylist()], dtype=bool)
    return pa.array(holds[encoded.indices.to_numpy(zero_copy_only=False)])
