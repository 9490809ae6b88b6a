"""HostService: what the host can enforce, how full it is, and what happens on it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from supervisor.api import results
from supervisor.api.methods import Method, closed_after
from supervisor.api.ports import Runs
from supervisor.errors import Draining
from supervisor.model import HostFeatures, Peer
from supervisor.run_events import Event, Exited, Started, ViolationSeen
from supervisor.v1 import host_pb2 as pb
from supervisor.v1 import run_pb2


@dataclass(frozen=True, slots=True)
class HostInfo:
    """What GetHost says beside the features: the daemon's version and bounds, and the tier of its probes."""

    version: str
    max_concurrent_runs: int
    max_queued_runs: int
    max_message_bytes: int
    tier: str = ""


class HostService:
    """The methods of supervisor.v1.HostService; `stopping` ends its watchers, who would else outlast every grace."""

    def __init__(self, runs: Runs, host: HostFeatures, info: HostInfo, stopping: asyncio.Event) -> None:
        self._runs = runs
        self._host = host
        self._info = info
        self._stopping = stopping

    def methods(self) -> dict[str, Method]:
        return {"GetHost": self.get_host, "WatchEvents": self.watch_events}

    async def get_host(self, request: pb.GetHostRequest, peer: Peer) -> pb.GetHostResponse:
        return pb.GetHostResponse(
            version=self._info.version,
            kernel=self._host.kernel,
            cgroup=self._host.cgroup,
            cpus=self._host.cpus,
            memory_bytes=self._host.memory_bytes,
            max_concurrent_runs=self._info.max_concurrent_runs,
            max_queued_runs=self._info.max_queued_runs,
            running=self._runs.running,
            queued=self._runs.queued,
            draining=self._runs.draining,
            features=results.feature_messages(self._host),
            max_message_bytes=self._info.max_message_bytes,
            tier=self._info.tier,
        )

    async def watch_events(
        self, request: pb.WatchEventsRequest, peer: Peer
    ) -> AsyncGenerator[pb.WatchEventsResponse, None]:
        stopping = asyncio.ensure_future(self._stopping.wait())
        following: asyncio.Future[tuple[float, str, str, Event, int]] | None = None
        dropped_before = 0
        try:
            async with closed_after(self._runs.watch(request.agent)) as events:
                while True:
                    following = asyncio.ensure_future(anext(events))
                    await asyncio.wait({stopping, following}, return_when=asyncio.FIRST_COMPLETED)
                    if not following.done():
                        following.cancel()
                        await asyncio.wait({following})
                        raise Draining("the daemon is stopping")
                    try:
                        time, run_id, agent, event, dropped = following.result()
                    except StopAsyncIteration:
                        return
                    response = pb.WatchEventsResponse(
                        time=time, run_id=run_id, agent=agent, dropped=dropped + dropped_before
                    )
                    dropped_before = 0
                    if _set_event(response, event):
                        yield response
                    else:
                        dropped_before = response.dropped
        finally:
            stopping.cancel()
            if following is not None:
                following.cancel()


def _set_event(response: pb.WatchEventsResponse, event: Event) -> bool:
    """Whether watchers are told of `event` at all: they get no output."""
    if isinstance(event, Started):
        response.started.CopyFrom(run_pb2.RunStarted(run_id=event.run_id, time=event.time))
    elif isinstance(event, ViolationSeen):
        response.violation.CopyFrom(results.violation_message(event.violation))
    elif isinstance(event, Exited):
        response.ended.CopyFrom(results.result_message(event.result, payload=False))
    else:
        return False
    return True
