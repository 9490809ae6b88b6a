"""bpf/records.h on this side. tests/unit/test_probe_layout.py compares the two through the object's type information."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

SYSCALL_SLOTS: Final = 512
SYSCALL_OTHER: Final = 511
"""What is above that, and every call of another ABI, is counted under this number."""

FILE_CLASSES: Final = 16
SEEN_WORD: Final = SYSCALL_SLOTS * 2
DROPPED_WORD: Final = SYSCALL_SLOTS * 2 + 1
FLOWN_WORD: Final = SYSCALL_SLOTS * 2 + 2
UNNOTED_WORD: Final = SYSCALL_SLOTS * 2 + 3
GIVEN_WORD: Final = SYSCALL_SLOTS * 2 + 4
TAKEN_WORD: Final = SYSCALL_SLOTS * 2 + 7
FILES_WORD: Final = SYSCALL_SLOTS * 2 + 16
COUNT_WORDS: Final = FILES_WORD + 2 * FILE_CLASSES
"""struct run_counts as 64-bit words: succeeded and failed of each call, then `seen`, `dropped`, `flown`, `unnoted`, `given` and `taken` of
each ring, and from FILES_WORD on what was opened for reading and for writing of each class."""
PRIORITY, DETAILS, BULK = range(3)
"""enum ring."""
RECORD_OVERHEAD: Final = 8
"""What a record takes of a ring beyond its size, in bytes."""

RUN_ENTRY: Final = struct.Struct("=IIIIIIIIIIII")
"""struct run_entry: slot, level, init_tgid, deny_network, rules, wake, kill, uid, doomed, noted, held, guarded."""
NAME_KEY: Final = struct.Struct("=I20s")
CALL_KEY: Final = struct.Struct("=II")
DENIED_KEY: Final = struct.Struct("=IIQ")
DENIED_VALUE: Final = struct.Struct("=II8s")

HEAD: Final = struct.Struct("=QQIIHHI")
"""struct record_header: time_ns, cgroup, pid, tid, type, size, host_tid."""
CGROUP_AT: Final = slice(8, 16)
TYPE_AT: Final = 24
"""Of struct record_header's type, whose low byte says all."""

PATH_SIZE: Final = 256

EXEC: Final = struct.Struct("=32xII16s256s256sIIIIQQQ256s256s")
"""struct exec_record after its head: parent, argv_size, comm, path, argv, marks, file_size, cwd_size, device, inode,
size, changed_ns, file, cwd."""
LONG_EXEC_SIZE: Final = EXEC.size + 4096
"""Of struct long_exec_record: an exec_record, and the arguments after it."""
_ARGV_SIZE_AT = slice(36, 40)
_ARGV_AT = 56 + PATH_SIZE
FORK: Final = struct.Struct("=32xII16s")
EXIT: Final = struct.Struct("=32xIIiI16s")
SYSCALL: Final = struct.Struct("=32xq6QII")
CALL_BYTES: Final = SYSCALL.size + RECORD_OVERHEAD
"""Of struct syscall_record in its ring."""

FLIGHT_CALLS: Final = 512
FLIGHT_CALL: Final = struct.Struct("=Qq6QIIIIQ")
"""struct flight_call: time_ns, result, args, pid, tid, nr, abi, place."""

FILE: Final = struct.Struct("=32xqIIIIII256s")
"""struct file_record after its head: result, nr, flags, resolved, path_size, marks, cwd_size, path."""
TWO_FILE: Final = struct.Struct("=32xqIIIIII256s256s")
PLACED_FILE: Final = struct.Struct("=320x256s256s256sI4x")
"""struct placed_file_record after its file_record: second, cwd, second_cwd, second_cwd_size."""
LONG_FILE: Final = struct.Struct("=1096x4096s4096s")
"""struct long_file_record after its placed_file_record: path, second."""
FILE_MARKS: Final = slice(56, 60)
EVENT: Final = struct.Struct("=32xq6QIIII16s")
"""struct event_record after its head: result, args, nr, abi, marks, pad, comm."""
NETWORK: Final = struct.Struct("=32xIIIIII16s")
"""struct network_record after its head: operation, denied, family, type, protocol, port, address."""
SOCKET: Final = struct.Struct("=32xqIIIIII16sII256s")
"""struct socket_record after its head: result, nr, operation, family, type, protocol, port, address, resolved, path_size, path."""
SIGNAL: Final = struct.Struct("=32xIiII")
"""struct signal_record after its head: number, code, sender, generation."""

DENIAL: Final = struct.Struct("=32xIIII256s")
"""struct denial_record after its head: nr, verdict, rule, path_size, path."""

ADDRESS_KEY: Final = struct.Struct("=II16s")
ADDRESS_RULE_HEAD: Final = struct.Struct("=II")
PORT_RULE: Final = struct.Struct("=HHI")
PORT_RULES_MAX: Final = 32

ADDRESS_ALLOW, ADDRESS_DENY, ADDRESS_KILL = range(3)
"""enum address_verdict."""

CHANGES_ATTRIBUTES: Final = (
    *("chmod", "fchmod", "fchmodat", "fchmodat2", "chown", "fchown", "lchown", "fchownat"),
    *("setxattr", "lsetxattr", "fsetxattr", "removexattr", "lremovexattr", "fremovexattr"),
)
"""Calls about a file's mode, owner or attributes: "chmod" to rules and in traces."""

ABI_NAMES: Final = ("x86-64", "i386", "x32")


class Level(IntEnum):
    OFF = 0
    SUMMARY = 1
    FULL = 2


class RecordType(IntEnum):
    EXEC = 1
    FORK = 2
    EXIT = 3
    SYSCALL = 4
    FILE = 5
    NETWORK = 6
    EVENT = 7
    SOCKET = 8
    SIGNAL = 9
    DENIAL = 10


@dataclass(frozen=True, slots=True)
class Head:
    """What every record begins with. `time_ns` is CLOCK_MONOTONIC's; `pid` and `tid` are the run's own."""

    time_ns: int
    cgroup: int
    pid: int
    tid: int
    type: int
    size: int
    host_tid: int


def head_of(record: bytes) -> Head:
    return Head(*HEAD.unpack_from(record))


def argv_of(record: bytes) -> list[bytes]:
    """The arguments in an exec_record or a long one; the last may be cut."""
    size = int.from_bytes(record[_ARGV_SIZE_AT], "little")
    at = EXEC.size if len(record) >= LONG_EXEC_SIZE else _ARGV_AT
    return record[at : at + size].rstrip(b"\0").split(b"\0")


def paths_of(record: bytes) -> tuple[bytes, bytes]:
    """Both paths as given in a placed_file_record or a long one; the second is empty where the call has but one."""
    if len(record) >= LONG_FILE.size:
        path, second = LONG_FILE.unpack_from(record)
    else:
        path, (second, *_) = FILE.unpack_from(record)[-1], PLACED_FILE.unpack_from(record)
    return path, second


def text(field: bytes) -> str:
    """A string of the kernel's: up to its NUL, and U+FFFD for what is not UTF-8."""
    return field.split(b"\0", 1)[0].decode("utf-8", "replace")


def upward(names: bytes) -> str:
    """A path from its names, the last one first, each ended by a NUL."""
    return "/" + b"/".join(names[:-1].split(b"\0")[::-1]).decode("utf-8", "replace")
