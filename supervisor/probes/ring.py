"""BPF_MAP_TYPE_RINGBUF from user space: two positions, and the data mapped twice in a row so that no record is cut.

kernel/bpf/ringbuf.c and Documentation/bpf/ringbuf.rst. A record is an 8-byte header, whose first word is its length with
two bits for "not yet committed" and "discarded", then the data, padded to 8 bytes. One reader at a time.
"""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_HEADER = 8
_BUSY = 1 << 31
_DISCARDED = 1 << 30
_LENGTH = _DISCARDED - 1


class Ring:
    """The consumer's side of the ring behind descriptor `fd`, of `size` bytes."""

    def __init__(self, fd: int, size: int) -> None:
        page = mmap.PAGESIZE
        self.fd = fd
        self.size = size
        self._own = mmap.mmap(fd, page, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        self._theirs = mmap.mmap(fd, page + 2 * size, mmap.MAP_SHARED, mmap.PROT_READ, offset=page)
        # Positions are aligned 64-bit words: read and written whole.
        self._consumed = memoryview(self._own)[:8].cast("Q")
        self._produced = memoryview(self._theirs)[:8].cast("Q")
        self._data = memoryview(self._theirs)[page:]
        self._words = self._data.cast("I")

    @property
    def backlog(self) -> int:
        """Bytes that wait to be read."""
        return self._produced[0] - self._consumed[0]

    @property
    def produced(self) -> int:
        """How much the kernel has written since the beginning, in bytes; `consumed` is how much of that has been read."""
        return self._produced[0]

    @property
    def consumed(self) -> int:
        return self._consumed[0]

    def read(self, most: int = 1 << 22) -> list[bytes]:
        """Every committed record, up to about `most` bytes; for rings whose records differ in size."""
        at, end = self._consumed[0], self._produced[0]
        found: list[bytes] = []
        stop = min(end, at + most)
        while at < stop:
            place = at & (self.size - 1)
            word = self._words[place >> 2]
            if word & _BUSY:
                break
            length = word & _LENGTH
            if not word & _DISCARDED:
                found.append(bytes(self._data[place + _HEADER : place + _HEADER + length]))
            at += (length + _HEADER + 7) & ~7
        self._consumed[0] = at
        return found

    def read_uniform(self, size: int, most: int) -> NDArray[np.uint8]:
        """Up to `most` bytes of committed records of `size` bytes, one a row, copied; for rings with no other records."""
        import numpy as np

        stride = _HEADER + size
        at, end = self._consumed[0], self._produced[0]
        count = min(end - at, most) // stride
        place = at & (self.size - 1)
        rows = np.frombuffer(self._data, "u1", count * stride, place).reshape(count, stride)
        busy = np.flatnonzero(rows[:, 3] & (_BUSY >> 24))
        if busy.size:
            count = int(busy[0])
        records = rows[:count, _HEADER:].copy()
        self._consumed[0] = at + count * stride
        return records

    def close(self) -> None:
        for view in (self._consumed, self._produced, self._words, self._data):
            view.release()
        self._own.close()
        self._theirs.close()
