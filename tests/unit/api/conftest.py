"""A gRPC server on a Unix socket, a channel to it, and a stub of RunService."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from api_fakes import MESSAGE_BYTES, FakeRuns, backing

from supervisor.api.server import Server, start_server
from supervisor.v1 import (
    run_pb2_grpc,
)


@pytest.fixture
async def runs() -> FakeRuns:
    return FakeRuns()


@pytest.fixture
async def server(runs: FakeRuns, tmp_path: Path) -> AsyncIterator[Server]:
    started = await start_server(backing(runs), [f"unix://{tmp_path}/run/s.sock"], max_message_bytes=MESSAGE_BYTES)
    yield started
    await started.stop(0.1)


@pytest.fixture
async def channel(server: Server) -> AsyncIterator[grpc.aio.Channel]:
    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    async with grpc.aio.insecure_channel(server.addresses[0], options=options) as opened:
        yield opened


@pytest.fixture
def stub(channel: grpc.aio.Channel) -> run_pb2_grpc.RunServiceStub:
    return run_pb2_grpc.RunServiceStub(channel)
