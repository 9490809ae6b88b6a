"""What a run's counters come to: the summary that every result and record has."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from itertools import compress

from supervisor.linux.seccomp import AUDIT_ARCH_X86_64, decode_syscall
from supervisor.model import FileCount, SyscallCount, TracedProgram, TraceSummary
from supervisor.probes.contacts import Contacts
from supervisor.probes.engine import Seen
from supervisor.probes.layout import (
    BULK,
    CALL_BYTES,
    FILES_WORD,
    GIVEN_WORD,
    SEEN_WORD,
    SYSCALL_OTHER,
    SYSCALL_SLOTS,
)
from supervisor.probes.processes import Processes
from supervisor.rules.needs import FILE_CLASSES


@functools.cache
def syscall_name(number: int) -> str:
    """The name of a counted number; everything of another ABI is "other"."""
    return "other" if number == SYSCALL_OTHER else decode_syscall(number, AUDIT_ARCH_X86_64)[0]


def summarise(
    seen: Seen,
    processes: Processes,
    contacts: Contacts,
    level: str,
    rules: Mapping[str, int],
    programs: tuple[TracedProgram, ...] = (),
    lost: int = 0,
) -> TraceSummary:
    """`rules`: how often each has matched; `lost`: events that were seen but could not be stored."""
    counts = seen.counts
    calls = {}
    # Few of them are not zero.
    for number in {index >> 1 for index in compress(range(2 * SYSCALL_SLOTS), counts)}:
        succeeded, failed = counts[2 * number], counts[2 * number + 1]
        calls[syscall_name(number)] = SyscallCount(succeeded + failed, failed)
    dropped = seen.dropped + lost
    # What is done through io_uring passes no system call.
    none = SyscallCount(0, 0)
    ring = calls.get("io_uring_setup", none)
    # Of another ABI: counted, and no more.
    other = calls.get(syscall_name(SYSCALL_OTHER), none)
    return TraceSummary(
        level,
        dropped == 0 and ring.calls == ring.errors and other.calls == other.errors,
        counts[SEEN_WORD] + counts[GIVEN_WORD + BULK] // CALL_BYTES,
        dropped,
        calls,
        processes.shown(),
        processes.count,
        contacts.shown(),
        _files(counts),
        dict(rules),
        programs,
    )


def _files(counts: Sequence[int]) -> Mapping[str, FileCount]:
    """By class, those of which something was opened."""
    found = {}
    for number, (name, _) in enumerate(FILE_CLASSES):
        read, written = counts[FILES_WORD + 2 * number], counts[FILES_WORD + 2 * number + 1]
        if read or written:
            found[name] = FileCount(read, written)
    return found
