"""Where the daemon is and how to talk to it: address, TLS, message sizes, retries."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from supervisor import errors
from supervisor.v1 import host_pb2_grpc, policy_pb2_grpc, run_pb2_grpc, trace_pb2_grpc

DEFAULT_ADDRESS = "unix:///run/supervisor/supervisor.sock"
MAX_MESSAGE_BYTES = 64 << 20
"""The daemon's default bound for one message."""
_SLACK_BYTES = 1 << 20

TlsFiles = tuple[str | os.PathLike[str], str | os.PathLike[str], str | os.PathLike[str]]
"""Paths of three PEM files: the authority that signed the daemon's certificate, the client's certificate, its key."""

_IDEMPOTENT = {
    "supervisor.v1.RunService": ("GetRun", "ListRuns"),
    "supervisor.v1.PolicyService": ("ListPolicies", "GetPolicy", "CheckPolicy"),
    "supervisor.v1.HostService": ("GetHost",),
    "supervisor.v1.TraceService": ("GetTraceSummary",),
}


@dataclass(frozen=True, slots=True)
class Target:
    """A daemon's address as gRPC takes it; `local` for a Unix socket; `credentials` for TCP."""

    address: str
    local: bool
    credentials: grpc.ChannelCredentials | None
    options: tuple[tuple[str, object], ...]


class Stubs:
    """The daemon's services over one channel, blocking or asyncio's; generated code carries no types."""

    def __init__(self, channel: object) -> None:
        makers: tuple[Any, ...] = (
            run_pb2_grpc.RunServiceStub,
            policy_pb2_grpc.PolicyServiceStub,
            host_pb2_grpc.HostServiceStub,
            trace_pb2_grpc.TraceServiceStub,
        )
        self.runs, self.policies, self.host, self.traces = (make(channel) for make in makers)


def resolve_target(
    address: str | None = None, tls: TlsFiles | None = None, *, max_message_bytes: int = MAX_MESSAGE_BYTES
) -> Target:
    """The target for `address`, else SUPERVISOR_ADDRESS, else the default socket.

    Raises InvalidRequest when a TCP address comes without TLS files (argument, else SUPERVISOR_TLS_CA, _CERT, _KEY)
    or one of them cannot be read.
    """
    asked = address or os.environ.get("SUPERVISOR_ADDRESS") or DEFAULT_ADDRESS
    options = _options(max_message_bytes)
    if asked.startswith("/"):
        return Target(f"unix://{asked}", True, None, options)
    if asked.startswith(("unix:", "unix-abstract:")):
        return Target(asked, True, None, options)
    host = asked.removeprefix("tcp://")
    if host.startswith(("http:", "https:")) or not host.rpartition(":")[2].isdigit():
        raise errors.InvalidRequest(
            f"{asked!r} is no address; write unix:///path/to/socket or tcp://HOST:PORT", field="address"
        )
    return Target(host, False, _credentials(tls), options)


def _credentials(tls: TlsFiles | None) -> grpc.ChannelCredentials:
    names = ("SUPERVISOR_TLS_CA", "SUPERVISOR_TLS_CERT", "SUPERVISOR_TLS_KEY")
    paths = tls or tuple(os.environ.get(name, "") for name in names)
    missing = [name for name, path in zip(names, paths, strict=True) if not path]
    if missing:
        raise errors.InvalidRequest(
            f"a daemon over TCP wants mutual TLS: set {', '.join(missing)}, or pass tls=(ca, cert, key)", field="tls"
        )
    try:
        authority, certificate, key = (Path(path).read_bytes() for path in paths)
    except OSError as error:
        raise errors.InvalidRequest(f"cannot read {error.filename}: {error.strerror}", field="tls") from error
    return grpc.ssl_channel_credentials(authority, key, certificate)


def _options(max_message_bytes: int) -> tuple[tuple[str, object], ...]:
    retry = {
        "maxAttempts": 3,
        "initialBackoff": "0.05s",
        "maxBackoff": "0.5s",
        "backoffMultiplier": 2,
        "retryableStatusCodes": ["UNAVAILABLE"],
    }
    names = [{"service": service, "method": method} for service, methods in _IDEMPOTENT.items() for method in methods]
    return (
        ("grpc.max_send_message_length", max_message_bytes + _SLACK_BYTES),
        ("grpc.max_receive_message_length", max_message_bytes + _SLACK_BYTES),
        ("grpc.service_config", json.dumps({"methodConfig": [{"name": names, "retryPolicy": retry}]})),
        # A client outlives restarts of its daemon: its own connection, and no wait of minutes before the next try.
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 2000),
    )
