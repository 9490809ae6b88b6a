"""Records of calls that name files, made rows of the trace store: a trace has tens of thousands, so column by column."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from supervisor.evidence.traces import schema
from supervisor.probes.layout import (
    ABI_NAMES,
    CHANGES_ATTRIBUTES,
    LONG_FILE,
    PATH_SIZE,
    SYSCALL_SLOTS,
    TWO_FILE,
    paths_of,
    text,
    upward,
)
from supervisor.probes.summary import syscall_name

if TYPE_CHECKING:
    from numpy.typing import NDArray

_KINDS = {
    "open": ("open", "openat", "openat2", "creat"),
    "unlink": ("unlink", "unlinkat", "rmdir"),
    "rename": ("rename", "renameat", "renameat2"),
    "link": ("link", "linkat", "symlink", "symlinkat"),
    "mkdir": ("mkdir", "mkdirat"),
    "mknod": ("mknod", "mknodat"),
    "chmod": CHANGES_ATTRIBUTES,
    "write": ("truncate", "ftruncate"),
    "exec": ("execve", "execveat"),
    "chdir": ("chdir", "chroot"),
}

HEAD_FIELDS = [
    ("time_ns", "i8"),
    ("cgroup", "u8"),
    ("pid", "i4"),
    ("tid", "i4"),
    ("type", "u2"),
    ("size", "u2"),
    ("host_tid", "u4"),
]
"""struct record_header."""

_RECORD = np.dtype(
    [
        *HEAD_FIELDS,
        ("result", "i8"),
        ("nr", "u4"),
        ("flags", "u4"),
        ("resolved", "u4"),
        ("path_size", "u4"),
        ("marks", "u4"),
        ("cwd_size", "u4"),
        ("path", f"V{PATH_SIZE}"),
        ("second", f"V{PATH_SIZE}"),
    ]
)
"""struct two_file_record; the other one is filled up with zeros."""


@functools.cache
def _dictionaries() -> tuple[pa.Array, NDArray[np.int16], pa.Array]:
    """The names of the kinds, the kind of each number, the names of the numbers."""
    kinds = [*_KINDS, "file"]
    kind_of = {name: kinds.index(kind) for kind, names in _KINDS.items() for name in names}
    names = [syscall_name(number) for number in range(SYSCALL_SLOTS)]
    return pa.array(kinds), np.array([kind_of.get(name, len(kinds) - 1) for name in names], "i2"), pa.array(names)


def files_table(records: Sequence[bytes], offset: int) -> pa.Table:
    """Rows in the order of the records. `offset` turns CLOCK_MONOTONIC into Unix time."""
    rows = np.frombuffer(b"".join(record[: TWO_FILE.size].ljust(TWO_FILE.size, b"\0") for record in records), _RECORD)
    kinds, kind_of, names = _dictionaries()
    numbers = (rows["nr"] % SYSCALL_SLOTS).astype("i2")
    is_open = kind_of[numbers] == 0
    paths = [
        upward(path.tobytes()[:size]) if resolved else text(path.tobytes())
        for path, size, resolved in zip(
            rows["path"], rows["path_size"].tolist(), rows["resolved"].tolist(), strict=True
        )
    ]
    details = [
        _open_flags(flags) if opened else text(second.tobytes())
        for flags, opened, second in zip(rows["flags"].tolist(), is_open.tolist(), rows["second"], strict=True)
    ]
    for place, record in enumerate(records):
        if len(record) >= LONG_FILE.size:
            path, second = paths_of(record)
            size, resolved = rows["path_size"][place], rows["resolved"][place]
            paths[place] = upward(path[:size]) if resolved else text(path)
            details[place] = details[place] if is_open[place] else text(second)
    zeros = pa.array(np.zeros(len(rows), "i2"))
    columns: dict[str, Any] = {
        "time": pa.array(rows["time_ns"] + offset),
        "kind": pa.DictionaryArray.from_arrays(pa.array(kind_of[numbers]), kinds),
        "pid": pa.array(rows["pid"]),
        "tid": pa.array(rows["tid"]),
        "syscall": pa.DictionaryArray.from_arrays(pa.array(numbers), names),
        "abi": pa.DictionaryArray.from_arrays(zeros, pa.array(ABI_NAMES)),
        "result": pa.array(rows["result"]),
        "path": pa.array(paths, pa.string()),
        "detail": pa.array(details, pa.string()),
    }
    wanted = schema()
    arrays = [
        columns[name] if name in columns else pa.nulls(len(rows), wanted.field(name).type) for name in wanted.names
    ]
    return pa.Table.from_arrays(arrays, schema=wanted)


@functools.lru_cache(1024)
def _open_flags(flags: int) -> str:
    words = [("O_RDONLY", "O_WRONLY", "O_RDWR", "O_ACCMODE")[flags & os.O_ACCMODE]]
    words += [
        name for name in ("O_CREAT", "O_EXCL", "O_TRUNC", "O_APPEND", "O_DIRECTORY", "O_PATH") if _has(flags, name)
    ]
    return "|".join(words)


def _has(flags: int, name: str) -> bool:
    bit: int = getattr(os, name)
    return flags & bit == bit
