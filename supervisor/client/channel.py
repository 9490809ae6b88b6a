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
TLS_VARIABLES = ("SUPERVISOR_CLIENT_CA", "SUPERVISOR_CLIENT_CERT", "SUPERVISOR_CLIENT_KEY")
"""Where the three are looked for when they are not passed."""

_IDEMPOTENT = {
    "supervisor.v1.RunService": ("GetRun", "ListRuns"),
    "supervisor.v1.PolicyService": ("ListPolicies", "GetPolicy", "CheckPolicy"),
    "supervisor.v1.HostService": ("GetHost",),
    "supervisor.v1.TraceService": ("GetTraceSummary",),
}


@dataclass(frozen=True, slots=True)
class Target:
    """A daemon's address as gRPC takes it; `local` for a Unix socket; `credentials`, from `tls_files`, for TCP."""

    address: str
    local: bool
    credentials: grpc.ChannelCredentials | None
    options: tuple[tuple[str, object], ...]
    tls_files: tuple[str, ...] = ()


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


def default_address() -> str:
    """The Unix socket of a daemon that was started in this environment: in SUPERVISOR_RUNTIME_DIR where that is set."""
    directory = os.environ.get("SUPERVISOR_RUNTIME_DIR", "")
    return f"unix://{os.path.normpath(directory)}/supervisor.sock" if directory.startswith("/") else DEFAULT_ADDRESS


def resolve_target(
    address: str | None = None, tls: TlsFiles | None = None, *, max_message_bytes: int = MAX_MESSAGE_BYTES
) -> Target:
    """The target for `address`, else SUPERVISOR_ADDRESS, else `default_address()`.

    Raises InvalidRequest for what is no address, and when a TCP address comes without TLS files (argument, else
    TLS_VARIABLES) or one of them cannot be read.
    """
    asked = address or os.environ.get("SUPERVISOR_ADDRESS") or default_address()
    options = _options(max_message_bytes)
    if asked.startswith("/"):
        return Target(f"unix://{asked}", True, None, options)
    if asked.startswith(("unix:", "unix-abstract:")):
        return Target(asked, True, None, options)
    host, _, port = asked.removeprefix("tcp://").rpartition(":")
    if not host or "/" in host or not (port.isascii() and port.isdigit()):
        raise errors.InvalidRequest(
            f"{asked!r} is no address; write unix:///PATH, /PATH, tcp://HOST:PORT or HOST:PORT", field="address"
        )
    files = _tls_files(tls)
    return Target(f"{host}:{port}", False, _credentials(files), options, files)


def _tls_files(tls: TlsFiles | None) -> tuple[str, ...]:
    paths = tls or tuple(os.environ.get(name, "") for name in TLS_VARIABLES)
    missing = [name for name, path in zip(TLS_VARIABLES, paths, strict=True) if not path]
    if missing:
        raise errors.InvalidRequest(
            f"a daemon over TCP wants mutual TLS: set {', '.join(missing)}, or pass tls=(ca, cert, key)", field="tls"
        )
    return tuple(os.fspath(path) for path in paths)


def _credentials(files: tuple[str, ...]) -> grpc.ChannelCredentials:
    try:
        authority, certificate, key = (Path(path).read_bytes() for path in files)
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
