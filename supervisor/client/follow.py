"""Following the trace of a run that is still going: its events while they happen."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Generator
from types import TracebackType
from typing import Any, Self

import grpc

from supervisor.client import result as wire
from supervisor.client.channel import Target
from supervisor.client.errors_wire import from_rpc_error
from supervisor.v1 import trace_pb2


def follow_request(run_id: str, calls: bool) -> trace_pb2.FollowTraceRequest:
    return trace_pb2.FollowTraceRequest(run_id=run_id, without_calls=not calls)


class TraceFollow:
    """What a run does, while it does it: iterate it, until the run has ended. Made when the daemon has begun to tell.

    `level` is that of the run's trace, full or summary. `dropped` counts the events that are missing by now, since they were
    not read in time. `close`, from any thread, ends it before, and so does leaving its context; the run goes on.
    """

    def __init__(self, method: Any, request: trace_pb2.FollowTraceRequest, target: Target) -> None:
        self.dropped = 0
        self._closed = False
        self._target = target
        self._call: Any = method(request)
        self._events = self._read()
        try:
            first = next(self._call, None)
        except grpc.RpcError as error:
            raise from_rpc_error(error, target) from None
        except BaseException:
            self._call.cancel()
            raise
        self.level: str = "" if first is None else first.level

    def _read(self) -> Generator[wire.TraceEvent, None, None]:
        try:
            for message in self._call:
                self.dropped += message.dropped
                yield from wire.to_trace_events(message)
        except grpc.RpcError as error:
            if not self._closed:
                raise from_rpc_error(error, self._target, run_under_way=True) from None
        finally:
            self._call.cancel()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> wire.TraceEvent:
        return next(self._events)

    def close(self) -> None:
        self._closed = True
        self._call.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncTraceFollow:
    """The same for asyncio: iterate it with `async for`. It follows from the first step on, or once `async with` is entered."""

    def __init__(self, method: Any, request: trace_pb2.FollowTraceRequest, target: Target) -> None:
        self.dropped = 0
        self.level = ""
        self._method = method
        self._request = request
        self._target = target
        self._call: Any = None
        self._events = self._read()

    async def _begin(self) -> None:
        if self._call is None:
            self._call = self._method(self._request)
            try:
                first = await self._call.read()
            except grpc.RpcError as error:
                raise from_rpc_error(error, self._target) from None
            self.level = "" if first is grpc.aio.EOF else first.level

    async def _read(self) -> AsyncGenerator[wire.TraceEvent, None]:
        await self._begin()
        try:
            while (message := await self._call.read()) is not grpc.aio.EOF:
                self.dropped += message.dropped
                for event in wire.to_trace_events(message):
                    yield event
        except grpc.RpcError as error:
            raise from_rpc_error(error, self._target, run_under_way=True) from None
        finally:
            self._call.cancel()

    def __aiter__(self) -> AsyncIterator[wire.TraceEvent]:
        return self._events

    async def close(self) -> None:
        await self._events.aclose()
        if self._call is not None:
            self._call.cancel()

    async def __aenter__(self) -> Self:
        await self._begin()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
