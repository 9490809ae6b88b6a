"""bpf/records.h on this side. tests/unit/test_probe_layout.py compares the two through the object's type information."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

SYSCALL_SLOTS: Final = 512
SYSCALL_OTHER: Final = 511
"""What is above that, and every call of another ABI, is counted under this number."""

COUNT_WORDS: Final = SYSCALL_SLOTS * 2 + 8
"""struct run_counts as 64-bit words: succeeded and failed of each call, then `seen`, `dropped`."""
SEEN_WORD: Final = SYSCALL_SLOTS * 2
DROPPED_WORD: Final = SYSCALL_SLOTS * 2 + 1

RUN_ENTRY: Final = struct.Struct("=IIII")
"""struct run_entry: slot, level, init_tgid, deny_network."""

HEAD: Final = struct.Struct("=QQIIHHI")
"""struct record_header: time_ns, cgroup, pid, tid, type, size, host_tid."""
CGROUP_AT: Final = slice(8, 16)
TYPE_AT: Final = 24
"""Of struct record_header's type, whose low byte says all."""

PATH_SIZE: Final = 256

EXEC: Final = struct.Struct("=32xII16s256s256s")
FORK: Final = struct.Struct("=32xII16s")
EXIT: Final = struct.Struct("=32xIIiI16s")
SYSCALL: Final = struct.Struct("=32xq6QII")

FILE: Final = struct.Struct("=32xqIIII256s")
"""struct file_record after its head: result, nr, flags, resolved, path_size, path."""
TWO_FILE: Final = struct.Struct("=32xqIIII256s256s")
NETWORK: Final = struct.Struct("=32xIIIIII16s")
"""struct network_record after its head: operation, denied, family, type, protocol, port, address."""

ADDRESS_KEY: Final = struct.Struct("=II16s")
ADDRESS_RULE_HEAD: Final = struct.Struct("=II")
PORT_RULE: Final = struct.Struct("=HHI")
PORT_RULES_MAX: Final = 16

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


def text(field: bytes) -> str:
    """A string of the kernel's: up to its NUL, and U+FFFD for what is not UTF-8."""
    return field.split(b"\0", 1)[0].decode("utf-8", "replace")
