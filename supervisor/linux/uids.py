"""Host uids for runs: a block of the configured range that no other instance on this host has.

A block is held by an abstract Unix socket of its name, unix(7): the kernel frees it with the process, whatever ends it, and
nothing is left in a file system. Two instances with one uid in common could signal each other's runs where no user and pid
namespaces stand between them (policy `basic`).
"""

from __future__ import annotations

import errno
import socket
from collections import deque
from dataclasses import dataclass

from supervisor.errors import Exhausted, SupervisorError

BLOCK_UIDS = 1024


@dataclass(slots=True)
class UidLease:
    """`count` uids from `base` on, ours until `close`."""

    base: int
    count: int
    holder: socket.socket

    def close(self) -> None:
        self.holder.close()


def lease_uids(base: int, count: int, needed: int) -> UidLease:
    """Takes the first free block of the range that has room for `needed` runs. Raises SupervisorError when there is none."""
    size = min(count, max(BLOCK_UIDS, needed))
    for start in range(base, base + count - size + 1, size):
        holder = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        try:
            holder.bind(f"\0supervisor-uids-{start}")
        except OSError as error:
            holder.close()
            if error.errno == errno.EADDRINUSE:
                continue
            raise SupervisorError(f"cannot reserve host uids: {error.strerror}", reason="NO_UIDS") from error
        return UidLease(start, size, holder)
    raise SupervisorError(
        f"other supervisors hold all uids from {base} to {base + count - 1}; set run_uid_base or a larger run_uid_count",
        reason="NO_UIDS",
    )


class UidPool:
    """The host ids of runs, least recently used first, so that one comes back as late as possible."""

    def __init__(self, base: int, count: int) -> None:
        self._free = deque(range(base, base + count))

    def take(self) -> int:
        if not self._free:
            raise Exhausted("every uid of run_uid_count is in use", reason="UIDS_EXHAUSTED", retry_seconds=1.0)
        return self._free.popleft()

    def give_back(self, uid: int) -> None:
        self._free.append(uid)
