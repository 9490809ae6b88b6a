"""Servicer methods as gRPC handlers: typed requests in, errors out as the table has them, streams closed in order.

The generated registration is not used: a request that is no protobuf would be answered UNKNOWN with a traceback in the
log, and asynchronous generators would outlive a client that has left. Here every handler is a coroutine.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import grpc
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError

from supervisor.api.auth import peer_of
from supervisor.api.errors import abort, status_of_any
from supervisor.errors import InvalidRequest
from supervisor.model import Peer

Request = TypeVar("Request")
Response = TypeVar("Response")

Unary = Callable[[Any, Peer], Awaitable[Any]]
ServerStream = Callable[[Any, Peer], AsyncGenerator[Any, None]]
Handler = Callable[[Any, grpc.aio.ServicerContext], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class Malformed:
    """Stands for a request that is not a message of its type."""

    message_type: str

    def error(self) -> InvalidRequest:
        return InvalidRequest(
            f"the request is not a valid {self.message_type} message",
            reason="MALFORMED_MESSAGE",
            field=self.message_type,
        )


SETTLE_SECONDS = 10.0
"""How long a client that reads nothing holds up the status of a stream that has failed."""


class Duplex(Generic[Request, Response]):
    """Both directions of one streaming RPC; one task may read while one other writes."""

    def __init__(self, context: grpc.aio.ServicerContext) -> None:
        self._context = context
        self._writing: asyncio.Future[None] | None = None
        self.peer = peer_of(context)

    async def read(self) -> Request | None:
        """The next request, None at the end; raises InvalidRequest for what is no message."""
        message = await self._context.read()
        if message is grpc.aio.EOF:
            return None
        if type(message) is Malformed:
            raise message.error()
        return message  # type: ignore[no-any-return]

    async def write(self, message: Response) -> None:
        """Returns when the transport has room for more. One that is cancelled goes on; see `settle`."""
        self._writing = asyncio.ensure_future(self._context.write(message))
        self._writing.add_done_callback(_retrieve)
        await asyncio.shield(self._writing)

    async def settle(self) -> None:
        """Waits for a message that is on its way: until it is, gRPC takes no status after it."""
        if self._writing is not None and not self._writing.done():
            await asyncio.wait([self._writing], timeout=SETTLE_SECONDS)


def _retrieve(writing: asyncio.Future[None]) -> None:
    """Whoever wrote has its error, or has been cancelled and does not want it."""
    if not writing.cancelled():
        writing.exception()


DuplexMethod = Callable[[Duplex[Any, Any]], Awaitable[None]]
Method = Unary | ServerStream | DuplexMethod


class Service(Protocol):
    """A servicer: its methods by their names in the proto."""

    def methods(self) -> Mapping[str, Method]: ...


def service_handler(service: ServiceDescriptor, methods: Mapping[str, Method]) -> grpc.GenericRpcHandler:
    """Handlers for all methods of `service`; which form each has is read from the descriptor."""
    missing = {method.name for method in service.methods} ^ set(methods)
    if missing:
        raise ValueError(f"{service.full_name}: methods without handler or declaration: {sorted(missing)}")
    return grpc.method_handlers_generic_handler(
        service.full_name, {method.name: _handler(method, methods[method.name]) for method in service.methods}
    )


def _handler(descriptor: MethodDescriptor, method: Any) -> grpc.RpcMethodHandler:
    name = f"{descriptor.containing_service.name}.{descriptor.name}"
    parse = _deserializer(descriptor.input_type)
    serialize = message_factory.GetMessageClass(descriptor.output_type).SerializeToString
    if descriptor.client_streaming and descriptor.server_streaming:
        return grpc.stream_stream_rpc_method_handler(_duplex(name, method), parse, serialize)
    if descriptor.server_streaming:
        return grpc.unary_stream_rpc_method_handler(_server_stream(name, method), parse, serialize)
    if descriptor.client_streaming:
        raise ValueError(f"{name}: client streaming without server streaming is not used here")
    return grpc.unary_unary_rpc_method_handler(_unary(name, method), parse, serialize)


def _deserializer(message_type: Any) -> Callable[[bytes], Any]:
    parse = message_factory.GetMessageClass(message_type).FromString
    malformed = Malformed(message_type.full_name)

    def deserialize(data: bytes) -> Any:
        try:
            return parse(data)
        except (DecodeError, UnicodeDecodeError):
            return malformed

    return deserialize


def _unary(name: str, method: Unary) -> Handler:
    async def handle(request: Any, context: grpc.aio.ServicerContext) -> Any:
        try:
            if type(request) is Malformed:
                raise request.error()
            return await method(request, peer_of(context))
        except Exception as error:
            return await _fail(context, error, name)

    return handle


def _server_stream(name: str, method: ServerStream) -> Handler:
    async def handle(request: Any, context: grpc.aio.ServicerContext) -> None:
        try:
            if type(request) is Malformed:
                raise request.error()
            async with aclosing(method(request, peer_of(context))) as responses:
                async for response in responses:
                    await context.write(response)
        except Exception as error:
            await _fail(context, error, name)

    return handle


def _duplex(name: str, method: DuplexMethod) -> Handler:
    async def handle(_requests: Any, context: grpc.aio.ServicerContext) -> None:
        duplex: Duplex[Any, Any] = Duplex(context)
        try:
            await method(duplex)
        except Exception as error:
            await duplex.settle()
            await _fail(context, error, name)

    return handle


@asynccontextmanager
async def closed_after(iterator: AsyncIterator[Response]) -> AsyncIterator[AsyncIterator[Response]]:
    """`iterator`, whose `finally` blocks have run when the context is left, if it is a generator."""
    try:
        yield iterator
    finally:
        if isinstance(iterator, AsyncGenerator):
            await iterator.aclose()


async def _fail(context: grpc.aio.ServicerContext, error: Exception, name: str) -> None:
    # A client that has left makes reads and writes fail before this task is cancelled; that is no error of ours.
    if context.cancelled() or context.done():
        raise asyncio.CancelledError from None
    await abort(context, status_of_any(error, name))
