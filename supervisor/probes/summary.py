"""What a run's counters come to: the summary that every result and record has."""

from __future__ import annotations

import functools
from itertools import compress

from supervisor.linux.seccomp import AUDIT_ARCH_X86_64, decode_syscall
from supervisor.model import SyscallCount, TraceSummary
from supervisor.probes.contacts import Contacts
from supervisor.probes.engine import Seen
from supervisor.probes.layout import SEEN_WORD, SYSCALL_OTHER, SYSCALL_SLOTS
from supervisor.probes.processes import Processes


@functools.cache
def syscall_name(number: int) -> str:
    """The name of a counted number; everything of another ABI is "other"."""
    return "other" if number == SYSCALL_OTHER else decode_syscall(number, AUDIT_ARCH_X86_64)[0]


def summarise(seen: Seen, processes: Processes, contacts: Contacts, level: str, lost: int = 0) -> TraceSummary:
    """`lost`: events that were seen but could not be stored."""
    counts = seen.counts
    calls = {}
    # Few of them are not zero.
    for number in {index >> 1 for index in compress(range(2 * SYSCALL_SLOTS), counts)}:
        succeeded, failed = counts[2 * number], counts[2 * number + 1]
        calls[syscall_name(number)] = SyscallCount(succeeded + failed, failed)
    dropped = seen.dropped + lost
    return TraceSummary(
        level,
        dropped == 0,
        counts[SEEN_WORD],
        dropped,
        calls,
        processes.shown(),
        processes.count,
        contacts.shown(),
    )
