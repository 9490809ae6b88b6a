"""TraceService: what a run did, from its record and from the trace store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from supervisor.api import results
from supervisor.api.convert import name
from supervisor.api.methods import Method, closed_after
from supervisor.api.ports import Runs
from supervisor.errors import HostLacks, InvalidRequest
from supervisor.evidence.trace_query import (
    TraceQuery,
    parse_address,
    parse_kinds,
    parse_limit,
    parse_moment,
    parse_pattern,
    parse_program,
    parse_syscalls,
)
from supervisor.evidence.traces import Found
from supervisor.model import Peer, TraceEvent
from supervisor.probes.followers import Followed
from supervisor.v1 import trace_pb2 as pb

_FEW_EVENTS = 50
"""So many are put into a message on the event loop itself."""


class TraceService:
    """The methods of supervisor.v1.TraceService over `runs`."""

    def __init__(self, runs: Runs) -> None:
        self._runs = runs

    def methods(self) -> dict[str, Method]:
        return {
            "GetTrace": self.get_trace,
            "GetTraceSummary": self.get_trace_summary,
            "SearchTraces": self.search_traces,
            "FollowTrace": self.follow_trace,
        }

    async def get_trace(self, request: pb.GetTraceRequest, peer: Peer) -> AsyncGenerator[pb.GetTraceResponse, None]:
        async with closed_after(self._runs.trace(name(request.run_id, "run_id"))) as batches:
            async for batch in batches:
                yield pb.GetTraceResponse(events=[_event(event) for event in batch])

    async def get_trace_summary(self, request: pb.GetTraceSummaryRequest, peer: Peer) -> pb.GetTraceSummaryResponse:
        record = self._runs.get(name(request.run_id, "run_id"))
        if record.trace.level == "off" and record.state == "ended":
            raise HostLacks(
                f"run {record.run_id} was not traced",
                reason="TRACE_NOT_AVAILABLE",
                metadata={"feature": "trace", "run_id": record.run_id, "remedy": "the record's enforcement says why"},
            )
        response = pb.GetTraceSummaryResponse()
        results.set_summary(response.summary, record.trace)
        return response

    async def search_traces(
        self, request: pb.SearchTracesRequest, peer: Peer
    ) -> AsyncGenerator[pb.SearchTracesResponse, None]:
        async with closed_after(self._runs.search(_query(request))) as steps:
            async for step in steps:
                if not isinstance(step, Found):
                    yield pb.SearchTracesResponse(
                        end=pb.SearchTracesEnd(
                            searched=step.searched,
                            skipped=step.skipped,
                            skipped_run_ids=step.skipped_run_ids,
                            limit_reached=step.limit_reached,
                        )
                    )
                elif step.events:
                    yield pb.SearchTracesResponse(run_id=step.run_id, events=map(_event, step.events))

    async def follow_trace(
        self, request: pb.FollowTraceRequest, peer: Peer
    ) -> AsyncGenerator[pb.FollowTraceResponse, None]:
        run_id = name(request.run_id, "run_id")
        async with closed_after(self._runs.follow(run_id, calls=not request.without_calls)) as batches:
            async for batch in batches:
                if len(batch.events) > _FEW_EVENTS:
                    yield await asyncio.to_thread(_followed, batch)
                else:
                    yield _followed(batch)


def _followed(batch: Followed) -> pb.FollowTraceResponse:
    return pb.FollowTraceResponse(events=map(_event, batch.events), dropped=batch.dropped, level=batch.level)


def _query(request: pb.SearchTracesRequest) -> TraceQuery:
    """Raises InvalidRequest naming the field."""
    query = TraceQuery(
        run_id=name(request.run_id, "run_id") if request.run_id else "",
        path=parse_pattern(request.path, "path") if request.path else None,
        address=parse_address(request.address, "address") if request.address else None,
        syscalls=parse_syscalls(request.syscalls, "syscalls"),
        kinds=parse_kinds(request.kinds, "kinds"),
        program=parse_program(request.program, "program") if request.program else None,
        failed=request.failed,
        since=parse_moment(request.since, "since") if request.HasField("since") else None,
        until=parse_moment(request.until, "until") if request.HasField("until") else None,
        limit=parse_limit(request.limit, "limit"),
    )
    if query.since is not None and query.until is not None and query.since > query.until:
        raise InvalidRequest("until is before since: nothing can be found between them", field="until")
    return query


def _event(event: TraceEvent) -> pb.TraceEvent:
    return pb.TraceEvent(
        time=event.time / 1e9,
        kind=event.kind,
        pid=event.pid,
        tid=event.tid,
        comm=results.text(event.comm),
        syscall=event.syscall,
        abi=event.abi,
        args=event.args,
        result=event.result,
        path=results.text(event.path),
        address=event.address,
        port=event.port,
        parent=event.parent,
        argv=map(results.text, event.argv),
        detail=results.text(event.detail),
    )
