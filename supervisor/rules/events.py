"""A record of the probes as rules see it: of one or more kinds, with its fields as texts."""

from __future__ import annotations

import errno
import functools
import posixpath
import signal as signals
from collections.abc import Mapping
from dataclasses import dataclass, field

from supervisor.probes.contacts import is_contact, read_contact
from supervisor.probes.layout import (
    ABI_NAMES,
    CHANGES_ATTRIBUTES,
    EVENT,
    EXEC,
    EXIT,
    FILE,
    FORK,
    HEAD,
    PLACED_FILE,
    RecordType,
    argv_of,
    paths_of,
    text,
    upward,
)
from supervisor.probes.processes import Processes
from supervisor.probes.summary import syscall_name
from supervisor.rules.denials import read_denial
from supervisor.rules.needs import MARK_OF_KIND, Mark

_WRITES = 0o3  # O_ACCMODE of open(2): anything but O_RDONLY
_MAKES = 0o1100  # O_CREAT, O_TRUNC
_KIND_OF_CALL = {
    **dict.fromkeys(("open", "openat", "openat2", "creat"), "open"),
    **dict.fromkeys(("unlink", "unlinkat", "rmdir"), "unlink"),
    **dict.fromkeys(("rename", "renameat", "renameat2"), "rename"),
    **dict.fromkeys(("link", "linkat", "symlink", "symlinkat"), "link"),
    **dict.fromkeys(("mkdir", "mkdirat", "mknod", "mknodat"), "mkdir"),
    **dict.fromkeys(CHANGES_ATTRIBUTES, "chmod"),
    **dict.fromkeys(("truncate", "ftruncate"), "write"),
    **dict.fromkeys(("execve", "execveat"), "exec"),
}
_STDIO_MARKS = {"socket": Mark.EXEC_SOCKET, "pipe": Mark.PIPED}
_FILE_MARKS = {"memory": Mark.EXEC_MEMFD, "deleted": Mark.EXEC_DELETED, "script": Mark.SCRIPT}


@dataclass(frozen=True, slots=True)
class Event:
    """`time_ns` is CLOCK_MONOTONIC's. `exe` is what the process executes, before an exec for one."""

    kinds: tuple[str, ...]
    time_ns: int
    pid: int
    tid: int
    fields: Mapping[str, str]
    more: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Fields with several values, one of which has to fit."""
    syscall: str = ""
    abi: str = ""
    args: tuple[int, ...] = ()
    denier: int | None = None
    """Of what the guard has denied: the number of the rule, from 1; 0: of none by itself (denials.py)."""

    @property
    def program(self) -> str:
        """What the process executes once the event has happened."""
        executed = self.kinds[0] == "exec" and self.fields["result"] == "ok"
        return self.fields["path"] if executed else self.fields.get("exe", "")

    def values(self, name: str) -> tuple[str, ...]:
        several = self.more.get(name)
        if several is not None:
            return several
        one = self.fields.get(name)
        return () if one is None else (one,)


def read_event(record: bytes, processes: Processes) -> Event | None:
    """None for what no rule can be about. `processes` as before the record."""
    kind = HEAD.unpack_from(record)[4]
    if kind == RecordType.FILE:
        return _file(record, processes)
    if kind == RecordType.DENIAL:
        return _denial(record, processes)
    if is_contact(record):
        return _contact(record, processes)
    if kind == RecordType.EXEC:
        return _exec(record, processes)
    if kind == RecordType.EVENT:
        return _call(record, processes)
    if kind == RecordType.FORK:
        child_pid, child_tid, _ = FORK.unpack_from(record)
        if child_pid != child_tid:
            return None  # a thread
        time_ns, _, pid, tid, *_ = HEAD.unpack_from(record)
        return Event(("fork",), time_ns, pid, tid, _process(processes, tid))
    if kind == RecordType.EXIT:
        time_ns, _, pid, tid, *_ = HEAD.unpack_from(record)
        number = EXIT.unpack_from(record)[0] & 0x7F
        fields = {**_process(processes, tid), "signal": _signal_name(number)}
        return Event(("exit",), time_ns, pid, tid, fields)
    return None


def _process(processes: Processes, tid: int) -> dict[str, str]:
    _, exe = processes.owner(tid)
    return {"exe": exe, "comm": posixpath.basename(exe)[:15]}


def _exec(record: bytes, processes: Processes) -> Event:
    time_ns, _, pid, tid, *_ = HEAD.unpack_from(record)
    _, _, comm, named, _, marks, file_size, cwd_size, _, _, _, _, file, cwd = EXEC.unpack_from(record)
    given = text(named)
    if cwd_size:
        given = posixpath.join(upward(cwd[:cwd_size]), given)
    real = upward(file[:file_size]) if file_size else given
    fields = {**_process(processes, tid), "comm": text(comm), "path": real, "result": "ok"}
    fields["argv"] = b" ".join(argv_of(record)).decode("utf-8", "replace")
    more = {
        "stdio": tuple(word for word, mark in _STDIO_MARKS.items() if marks & mark),
        "file": tuple(word for word, mark in _FILE_MARKS.items() if marks & mark),
        # By whatever name it goes: where it lies, and how it was called.
        "path": tuple(dict.fromkeys((real, posixpath.normpath(given)))),
    }
    return Event(("exec",), time_ns, pid, tid, fields, more)


def _file(record: bytes, processes: Processes) -> Event | None:
    time_ns, _, pid, tid, *_ = HEAD.unpack_from(record)
    result, number, flags, resolved, path_size, marks, cwd_size, _ = FILE.unpack_from(record)
    if not marks:
        return None
    name = syscall_name(number)
    kind = _KIND_OF_CALL.get(name)
    if kind is None:
        return None
    _, cwd, second_cwd, second_cwd_size = PLACED_FILE.unpack_from(record)
    given, second = paths_of(record)
    fields = _process(processes, tid)
    fields["path"] = upward(given[:path_size]) if resolved else _absolute(upward(cwd[:cwd_size]), text(given))
    fields["result"] = _result(result)
    more: dict[str, tuple[str, ...]] = {}
    kinds: tuple[str, ...] = (kind,)
    if kind == "open":
        writes = flags & _WRITES or flags & _MAKES
        fields["access"] = "write" if writes else "read"
        kinds = ("open", "write") if writes else ("open",)
    elif kind == "exec":  # what was forbidden; others are records of their own
        if not text(given):  # execveat(2) of a descriptor
            fields["path"] = ""
        more["file"] = tuple(word for word, mark in _FILE_MARKS.items() if marks & mark)
    elif kind in ("rename", "link"):
        fields["to"] = _absolute(upward(second_cwd[:second_cwd_size]), text(second))
        if name.startswith("symlink"):
            # The first is a text, which need not be anybody's path.
            fields["path"] = fields["to"]
        else:
            # Whichever of the two: what is put over a file changes it as writing does.
            more["path"] = (fields["path"], fields["to"])
    return Event(kinds, time_ns, pid, tid, fields, more, name, ABI_NAMES[0])


def _denial(record: bytes, processes: Processes) -> Event:
    time_ns, _, pid, tid, *_ = HEAD.unpack_from(record)
    one = read_denial(record)
    kind = _KIND_OF_CALL.get(one.syscall, one.kind)
    fields = {**_process(processes, tid), "path": one.path, "result": "EPERM", "denied": "true"}
    more: dict[str, tuple[str, ...]] = {}
    kinds: tuple[str, ...] = (kind,)
    if kind == "open":
        more["access"] = one.access
        kinds = ("open", "write") if "write" in one.access else kinds
    return Event(kinds, time_ns, pid, tid, fields, more, one.syscall, ABI_NAMES[0], denier=one.rule)


def _result(result: int) -> str:
    return "ok" if result >= 0 else errno.errorcode.get(-result, str(-result))


def _absolute(base: str, path: str) -> str:
    return posixpath.normpath(posixpath.join(base, path))


def _contact(record: bytes, processes: Processes) -> Event:
    one = read_contact(record)
    fields = _process(processes, one.tid)
    if one.protocol == "unix":
        fields |= {"path": one.address, "operation": one.operation, "result": _result(one.result)}
        return Event(("unix",), one.time_ns, one.pid, one.tid, fields)
    fields |= {"address": one.address, "port": str(one.port), "protocol": one.protocol}
    fields["denied"] = "true" if one.denied else "false"
    kinds: tuple[str, ...] = (one.operation,)
    if one.port == 53 and one.operation in ("connect", "send", "packet"):
        kinds = (one.operation, "dns")
    return Event(kinds, one.time_ns, one.pid, one.tid, fields)


def _call(record: bytes, processes: Processes) -> Event:
    time_ns, _, pid, tid, *_ = HEAD.unpack_from(record)
    result, *args, number, abi, marks, _, comm = EVENT.unpack_from(record)
    name = syscall_name(number) if abi == 0 else f"syscall_{number}"
    fields = {**_process(processes, tid), "comm": text(comm), "syscall": name}
    fields["result"] = errno.errorcode.get(-result, str(-result)) if -4095 <= result < 0 else "ok"
    if marks & Mark.PROTECT:
        fields["prot"] = "rwx" if marks & Mark.WX else "rx"
    kinds = tuple(kind for kind, mark in MARK_OF_KIND.items() if marks & mark)
    if marks & Mark.MAP_MEMFD:
        fields["file"] = "memory"
        kinds = tuple(dict.fromkeys((*kinds, "mmap")))
    return Event(kinds, time_ns, pid, tid, fields, syscall=name, abi=ABI_NAMES[abi], args=tuple(args))


@functools.cache
def _signal_name(number: int) -> str:
    try:
        return signals.Signals(number).name if number else ""
    except ValueError:
        return str(number)
