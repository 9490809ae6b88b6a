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
from supervisor.linux.signals import signal_name
from supervisor.probes.contacts import is_contact, read_contact
from supervisor.probes.file_table import HEAD_FIELDS, files_table
from supervisor.probes.layout import (
    ABI_NAMES,
    EVENT,
    EXEC,
    EXIT,
    FORK,
    SIGNAL,
    SYSCALL_OTHER,
    SYSCALL_SLOTS,
    TYPE_AT,
    RecordType,
    argv_of,
    head_of,
    text,
    upward,
)
from supervisor.probes.summary import syscall_name
from supervisor.rules.denials import read_denial
from supervisor.rules.needs import MARK_OF_KIND

if TYPE_CHECKING:
    from numpy.typing import NDArray

KINDS = ("syscall", "exec", "fork", "exit")
_GENERATIONS = ("", ", ignored", ", already pending", ", lost", ", lost in part")
"""TRACE_SIGNAL_* of include/trace/events/signal.h."""

CALL = np.dtype(
    [
        *HEAD_FIELDS,
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
    files = [record for record in records if record[TYPE_AT] == RecordType.FILE]
    if files:
        tables.append(files_table(files, offset))
    others = [record for record in records if record[TYPE_AT] != RecordType.FILE]
    if others:
        tables.append(pa.Table.from_pylist([_row(record, offset) for record in others], schema=schema()))
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


def _row(record: bytes, offset: int) -> dict[str, Any]:
    head = head_of(record)
    row: dict[str, Any] = {"time": head.time_ns + offset, "pid": head.pid, "tid": head.tid}
    if head.type == RecordType.EXEC:
        parent, _, comm, path, _, _, file_size, _, _, _, _, _, file, _ = EXEC.unpack_from(record)
        words = [word.decode("utf-8", "replace") for word in argv_of(record)]
        real = upward(file[:file_size])
        return row | {
            "detail": "" if real == text(path) else f"of {real}",
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
    if is_contact(record):
        return row | _contact(record)
    if head.type == RecordType.SIGNAL:
        return row | _signal(record)
    if head.type == RecordType.DENIAL:
        one = read_denial(record)
        row |= {"kind": one.kind, "syscall": one.syscall or syscall_name(SYSCALL_OTHER), "abi": ABI_NAMES[0]}
        return row | {"path": one.path, "result": -errno.EPERM, "detail": "denied"}
    if head.type == RecordType.EVENT:
        return row | _notice(record)
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


def _notice(record: bytes) -> dict[str, Any]:
    """What a rule asked for and is neither a file, an address nor a process. Of its marks the first names it."""
    result, *args, number, abi, marks, _, comm = EVENT.unpack_from(record)
    kinds = [kind for kind, mark in MARK_OF_KIND.items() if marks & mark]
    name = syscall_name(number) if abi == 0 and number < SYSCALL_SLOTS else syscall_name(SYSCALL_OTHER)
    return {
        "kind": kinds[0] if kinds else "syscall",
        "syscall": name,
        "abi": ABI_NAMES[abi],
        "result": result,
        "comm": text(comm),
        "detail": ", ".join(kinds[1:]),
        **{f"arg{place}": value for place, value in enumerate(args)},
    }


def _signal(record: bytes) -> dict[str, Any]:
    """Of the process that it is for; `result` is its number."""
    number, code, sender, generation = SIGNAL.unpack_from(record)
    came = f"from {sender}" if sender else "from the kernel" if code > 0 else "from outside"
    how = _GENERATIONS[generation] if generation < len(_GENERATIONS) else ""
    return {"kind": "signal", "result": number, "detail": f"{signal_name(number)} {came}{how}"}


def _contact(record: bytes) -> dict[str, Any]:
    one = read_contact(record)
    by = {"syscall": syscall_name(one.number), "abi": ABI_NAMES[0]} if one.number else {}
    if one.protocol == "unix":
        return by | {"kind": one.operation, "path": one.address, "result": one.result, "detail": "unix"}
    return by | {
        "kind": one.operation,
        "address": one.address,
        "port": one.port,
        "result": -errno.EPERM if one.denied else one.result,
        "detail": f"{one.protocol}, denied" if one.denied else one.protocol,
    }
