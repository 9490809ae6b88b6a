"""Searching the traces of all runs: what to ask for, and what comes back while it is found."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple, Self, TypedDict

import grpc

from supervisor import errors
from supervisor.client import result as wire
from supervisor.client.channel import Target
from supervisor.client.errors_wire import from_rpc_error
from supervisor.client.units import parse_moment
from supervisor.v1 import trace_pb2

Moment = float | str | datetime
"""Unix seconds; a datetime; "2h" ago; a date or ISO 8601, in local time where it names no other."""


class SearchOptions(TypedDict, total=False):
    """What an event must be to be found; all that is given must be met.

    run_id: of this run only. path, program: patterns with *, ? and [...], * matches / too; program is for the whole path
    where it has a /, else for the name. address: an address, ADDRESS:PORT, [IPv6]:PORT, a network such as 10.0.0.0/8, or
    :PORT. syscall, kind: any of these. failed: only what was answered with an error. limit: 1000 where it is not given.
    """

    run_id: str
    path: str
    address: str
    syscall: str | Sequence[str]
    kind: str | Sequence[str]
    program: str
    failed: bool
    since: Moment | None
    until: Moment | None
    limit: int


class FoundEvent(NamedTuple):
    """An event, and whose it is."""

    run_id: str
    event: wire.TraceEvent


@dataclass(frozen=True, slots=True)
class SearchEnd:
    """How a search went: traces `searched`; those `skipped` since they cannot be read, with the first of their runs.

    `limit_reached`: it stopped at its limit, and there may be more.
    """

    searched: int
    skipped: int
    skipped_run_ids: tuple[str, ...]
    limit_reached: bool


def search_request(options: SearchOptions) -> trace_pb2.SearchTracesRequest:
    """Raises InvalidRequest naming the field; patterns and addresses are the daemon's to judge."""
    unknown = set(options) - set(SearchOptions.__annotations__)
    if unknown:
        raise TypeError(f"search_traces() has no option {', '.join(sorted(unknown))}")
    try:
        request = trace_pb2.SearchTracesRequest(
            run_id=options.get("run_id", ""),
            path=options.get("path", ""),
            address=options.get("address", ""),
            syscalls=_words(options.get("syscall", ())),
            kinds=_words(options.get("kind", ())),
            program=options.get("program", ""),
            failed=options.get("failed", False),
            limit=options.get("limit", 0),
        )
    except (TypeError, ValueError) as error:
        raise errors.InvalidRequest(f"search_traces: {error}") from None
    for name in ("since", "until"):
        moment = options.get(name)
        if moment is not None:
            setattr(request, name, _seconds(moment, name))
    return request


def _words(value: str | Sequence[str]) -> Sequence[str]:
    return (value,) if isinstance(value, str) else value


def _seconds(moment: Any, field: str) -> float:
    try:
        if isinstance(moment, datetime):
            return moment.timestamp()
        return parse_moment(moment, time.time()) if isinstance(moment, str) else float(moment)
    except (TypeError, ValueError, OverflowError) as error:
        raise errors.InvalidRequest(f"{field}: {error}", field=field) from None


def _end(message: trace_pb2.SearchTracesEnd) -> SearchEnd:
    return SearchEnd(message.searched, message.skipped, tuple(message.skipped_run_ids), message.limit_reached)


def _found(message: trace_pb2.SearchTracesResponse) -> Iterator[FoundEvent]:
    return (FoundEvent(message.run_id, event) for event in wire.to_trace_events(message))


class TraceSearch:
    """What a search finds, while it is found: iterate it for (run_id, event), newest run first.

    `end` tells how it went once it is over. `close` ends it before.
    """

    def __init__(self, method: Any, request: trace_pb2.SearchTracesRequest, target: Target) -> None:
        self.end: SearchEnd | None = None
        self._events = self._read(method, request, target)

    def _read(self, method: Any, request: Any, target: Target) -> Generator[FoundEvent, None, None]:
        call = method(request)
        try:
            for message in call:
                yield from _found(message)
                if message.HasField("end"):
                    self.end = _end(message.end)
        except grpc.RpcError as error:
            raise from_rpc_error(error, target) from None
        finally:
            call.cancel()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> FoundEvent:
        return next(self._events)

    def close(self) -> None:
        self._events.close()


class AsyncTraceSearch:
    """The same for asyncio: iterate it with `async for`."""

    def __init__(self, method: Any, request: trace_pb2.SearchTracesRequest, target: Target) -> None:
        self.end: SearchEnd | None = None
        self._events = self._read(method, request, target)

    async def _read(self, method: Any, request: Any, target: Target) -> AsyncGenerator[FoundEvent, None]:
        call = method(request)
        try:
            async for message in call:
                for found in _found(message):
                    yield found
                if message.HasField("end"):
                    self.end = _end(message.end)
        except grpc.RpcError as error:
            raise from_rpc_error(error, target) from None
        finally:
            call.cancel()

    def __aiter__(self) -> AsyncIterator[FoundEvent]:
        return self._events

    async def close(self) -> None:
        await self._events.aclose()
