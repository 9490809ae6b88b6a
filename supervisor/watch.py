"""Those who watch the daemon's runs: each has a bounded queue of its own, and what it is too slow for is counted."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from supervisor.run_events import Event

_QUEUE_EVENTS = 1024

Watched = tuple[float, str, str, Event, int]
"""Unix time, run_id, agent, event, and how many events were dropped before it."""


@dataclass(slots=True, eq=False)
class _Watcher:
    agent: str
    queue: deque[Watched] = field(default_factory=deque)
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    dropped: int = 0


class Watchers:
    """All watchers of one daemon. `tell` is cheap when there are none."""

    def __init__(self) -> None:
        self._watchers: set[_Watcher] = set()
        self._closed = False

    def tell(self, run_id: str, agent: str, event: Event) -> None:
        for watcher in self._watchers:
            if watcher.agent and watcher.agent != agent:
                continue
            if len(watcher.queue) >= _QUEUE_EVENTS:
                watcher.dropped += 1
                continue
            watcher.queue.append((time.time(), run_id, agent, event, watcher.dropped))
            watcher.dropped = 0
            watcher.wake.set()

    async def watch(self, agent: str) -> AsyncIterator[Watched]:
        watcher = _Watcher(agent)
        self._watchers.add(watcher)
        try:
            while not self._closed:
                while watcher.queue:
                    yield watcher.queue.popleft()
                watcher.wake.clear()
                if not self._closed:
                    await watcher.wake.wait()
        finally:
            self._watchers.discard(watcher)

    def close(self) -> None:
        self._closed = True
        for watcher in self._watchers:
            watcher.wake.set()
