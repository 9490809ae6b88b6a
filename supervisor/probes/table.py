"""Records as the kernel wrote them, made rows of the trace store."""

from __future__ import annotations

import errno
import functools
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from supervisor.evidence.traces import schema
from supervisor.probes.contacts import read_contact
from supervisor.probes.layout import (
    ABI_NAMES,
    EXEC,
    EXIT,
    FILE,
    FORK,
    SYSCALL_SLOTS,
    TWO_FILE,
    RecordType,
    head_of,
    text,
)
from supervisor.probes.summary import syscall_name

if TYPE_CHECKING:
    from numpy.typing import NDArray

KINDS = ("syscall", "exec", "fork", "exit")

CALL = np.dtype(
    [
        ("time_ns", "i8"),
        ("cgroup", "u8"),
        ("pid", "i4"),
        ("tid", "i4"),
        ("type", "u2"),
        ("size", "u2"),
        ("host_tid", "u4"),
        ("result", "i8"),
        ("args", "u8", 6),
        ("nr", "u4"),
        ("abi", "u4"),
    ]
)
"""struct syscall_record."""


@functools.cache
def _names() -> pa.Array:
    return pa.array([syscall_name(number) for number in range(SYSCALL_SLOTS)] + ["unknown"])


def to_table(calls: Sequence[NDArray[np.uint8]], records: Sequence[bytes], offset: int) -> pa.Table:
    """Rows in order of time. `offset` turns CLOCK_MONOTONIC into Unix time."""
    tables = [_calls_table(np.concatenate(calls), offset)] if calls else []
    if records:
        tables.append(_records_table(records, offset))
    table = pa.concat_tables(tables) if tables else schema().empty_table()
    return table.unify_dictionaries().sort_by("time")


def _calls_table(rows: NDArray[np.uint8], offset: int) -> pa.Table:
    calls = rows.view(CALL)[:, 0]
    count = len(calls)
    numbers = np.where((calls["nr"] < SYSCALL_SLOTS) & (calls["abi"] == 0), calls["nr"], SYSCALL_SLOTS).astype("i2")
    columns: list[Any] = [
        pa.array(calls["time_ns"] + offset),
        pa.DictionaryArray.from_arrays(pa.array(np.zeros(count, "i2")), pa.array(KINDS)),
        pa.array(calls["pid"]),
        pa.array(calls["tid"]),
        pa.DictionaryArray.from_arrays(pa.array(numbers), _names()),
        pa.DictionaryArray.from_arrays(pa.array(calls["abi"].astype("i2")), pa.array(ABI_NAMES)),
        pa.array(calls["result"]),
        *(pa.array(np.ascontiguousarray(calls["args"][:, number])) for number in range(6)),
    ]
    names = schema().names
    rest = [pa.nulls(count, schema().field(name).type) for name in names[len(columns) :]]
    return pa.Table.from_arrays([*columns, *rest], schema=schema())


def _records_table(records: Sequence[bytes], offset: int) -> pa.Table:
    return pa.Table.from_pylist([_row(record, offset) for record in records], schema=schema())


def _row(record: bytes, offset: int) -> dict[str, Any]:
    head = head_of(record)
    row: dict[str, Any] = {"time": head.time_ns + offset, "pid": head.pid, "tid": head.tid}
    if head.type == RecordType.EXEC:
        parent, size, comm, path, argv = EXEC.unpack_from(record)
        words = [word.decode("utf-8", "replace") for word in argv[:size].rstrip(b"\0").split(b"\0")]
        return row | {
            "kind": "exec",
            "comm": text(comm),
            "path": text(path),
            "parent": parent,
            "argv": words,
        }
    if head.type == RecordType.FORK:
        child_pid, child_tid, comm = FORK.unpack_from(record)
        detail = "process" if child_pid == child_tid else "thread"
        return row | {"kind": "fork", "comm": text(comm), "detail": detail, "result": child_tid}
    if head.type == RecordType.FILE:
        return row | _file(record, head.size)
    if head.type == RecordType.NETWORK:
        return row | _contact(record)
    status, leader, number, _abi, comm = EXIT.unpack_from(record)
    code = os.waitstatus_to_exitcode(status & 0xFFFF)
    how = f"killed by signal {-code}" if code < 0 else f"exited with {code}"
    within = f", within {syscall_name(number)}" if 0 <= number < SYSCALL_SLOTS else ""
    return row | {
        "kind": "exit",
        "comm": text(comm),
        "result": code,
        "detail": f"{'process' if leader else 'thread'} {how}{within}",
    }


_FILE_KINDS = {
    "open": ("open", "openat", "openat2", "creat"),
    "unlink": ("unlink", "unlinkat", "rmdir"),
    "rename": ("rename", "renameat", "renameat2"),
    "link": ("link", "linkat", "symlink", "symlinkat"),
    "mkdir": ("mkdir", "mkdirat"),
    "mknod": ("mknod", "mknodat"),
    "chmod": ("chmod", "fchmodat", "fchmodat2", "chown", "lchown", "fchownat", "setxattr"),
    "write": ("truncate",),
    "chdir": ("chdir", "chroot"),
}
_KIND_OF = {name: kind for kind, names in _FILE_KINDS.items() for name in names}


def _file(record: bytes, size: int) -> dict[str, Any]:
    result, number, flags, resolved, length, path = FILE.unpack_from(record)
    name = syscall_name(number)
    second = text(TWO_FILE.unpack_from(record)[-1]) if size == TWO_FILE.size else ""
    kind = _KIND_OF.get(name, "file")
    return {
        "kind": kind,
        "syscall": name,
        "abi": ABI_NAMES[0],
        "result": result,
        "path": _upward(path[:length]) if resolved else text(path),
        "detail": second or (_open_flags(flags) if kind == "open" else ""),
    }


def _upward(names: bytes) -> str:
    """A path from its names, the last one first. What has no name, such as a pipe's end opened anew, is "/"."""
    return "/" + "/".join(text(name) for name in reversed(names.split(b"\0")[:-1]))


def _open_flags(flags: int) -> str:
    words = [("O_RDONLY", "O_WRONLY", "O_RDWR", "O_ACCMODE")[flags & os.O_ACCMODE]]
    words += [
        name for name in ("O_CREAT", "O_EXCL", "O_TRUNC", "O_APPEND", "O_DIRECTORY", "O_PATH") if _has(flags, name)
    ]
    return "|".join(words)


def _has(flags: int, name: str) -> bool:
    bit: int = getattr(os, name)
    return flags & bit == bit


def _contact(record: bytes) -> dict[str, Any]:
    one = read_contact(record)
    return {
        "kind": one.operation,
        "address": one.address,
        "port": one.port,
        "result": -errno.EPERM if one.denied else 0,
        "detail": f"{one.protocol}, denied" if one.denied else one.protocol,
    }
