"""How many runs are alive at once, how many wait, and what is said to the rest."""

from __future__ import annotations

import asyncio
from collections import deque

from supervisor.errors import Exhausted


class Admission:
    """At most `concurrent` runs at once, `queued` more that wait in order; beyond that RESOURCE_EXHAUSTED."""

    def __init__(self, concurrent: int, queued: int) -> None:
        self.concurrent = concurrent
        self.max_queued = queued
        self.running = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def queued(self) -> int:
        return sum(1 for future in self._waiting if not future.done())

    def check(self) -> None:
        """Raises Exhausted when there is neither a place nor room to wait."""
        if self.running >= self.concurrent and len(self._waiting) >= self.max_queued:
            raise Exhausted(
                f"{self.running} runs and {len(self._waiting)} waiting: the queue is full",
                metadata={"running": str(self.running), "queued": str(len(self._waiting))},
                retry_seconds=0.5,
            )

    async def enter(self) -> None:
        self.check()
        if self.running < self.concurrent and not self._waiting:
            self.running += 1
            return
        place = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():
                self.leave()
            else:
                self._waiting.remove(place)
            raise

    def leave(self) -> None:
        while self._waiting:
            place = self._waiting.popleft()
            if not place.done():
                place.set_result(None)
                return
        self.running -= 1
