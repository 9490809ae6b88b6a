"""The gRPC server: where it listens, for whom, and how it stops.

A Unix socket has mode 0660 from its first moment in a directory of mode 0750; TCP is served with mutual TLS or not at all.
"""

from __future__ import annotations

import asyncio
import grp
import os
import socket
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from supervisor.api.auth import TlsFiles, server_credentials
from supervisor.api.host_service import HostInfo, HostService
from supervisor.api.methods import Service, service_handler
from supervisor.api.policy_service import PolicyService
from supervisor.api.policy_texts import PolicyTexts
from supervisor.api.ports import Policies, Runs
from supervisor.api.run_service import RunService
from supervisor.api.trace_service import TraceService
from supervisor.errors import InvalidRequest
from supervisor.model import HostFeatures
from supervisor.v1 import host_pb2, policy_pb2, run_pb2, trace_pb2

UNIX_PATH_BYTES = 107
"""unix(7): sun_path without its final NUL."""
MESSAGE_SLACK_BYTES = 64 << 10
"""What a message may have beside the payload that `max_message_bytes` is about."""
MAX_PENDING_REQUESTS = 32_768
MAX_UNREQUESTED_SECONDS = 86_400
DIRECTORY_MODE = 0o750
SOCKET_UMASK = 0o117

SERVICES = (
    run_pb2.DESCRIPTOR.services_by_name["RunService"],
    policy_pb2.DESCRIPTOR.services_by_name["PolicyService"],
    host_pb2.DESCRIPTOR.services_by_name["HostService"],
    trace_pb2.DESCRIPTOR.services_by_name["TraceService"],
)

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Backing:
    """What the services stand on. `max_files_bytes` bounds the files streamed into one run."""

    runs: Runs
    policies: Policies
    host: HostFeatures
    info: HostInfo
    max_files_bytes: int = 1 << 30


class Server:
    """A listening server. `addresses` are those asked for, with the port that was found where 0 was asked."""

    def __init__(
        self,
        server: grpc.aio.Server,
        health_servicer: health.aio.HealthServicer,
        stopping: asyncio.Event,
        addresses: Sequence[str],
        sockets: Sequence[tuple[Path, int]],
    ) -> None:
        self.addresses = tuple(addresses)
        self._server = server
        self._health = health_servicer
        self._stopping = stopping
        self._sockets = tuple(sockets)

    async def drain(self) -> None:
        """Tell health checks and watchers that we are leaving; running RPCs go on, and Runs refuses new runs."""
        await self._health.enter_graceful_shutdown()
        self._stopping.set()

    async def stop(self, grace: float) -> None:
        """Take no more RPCs, let those at work end for `grace` seconds, then cancel them. Idempotent."""
        await self.drain()
        await self._server.stop(grace)
        for path, inode in self._sockets:
            _unlink_own(path, inode)

    async def wait(self) -> None:
        """Returns when the server has stopped."""
        await self._server.wait_for_termination()


async def start_server(
    backing: Backing,
    listen: Sequence[str],
    *,
    tls: TlsFiles | None = None,
    max_message_bytes: int = 64 << 20,
    unix_group: str | None = None,
    runtime_dir: str | None = None,
) -> Server:
    """Serve `backing` at every address of `listen`: unix:///PATH, or tcp://HOST:PORT with `tls`.

    `runtime_dir` is the daemon's own: where a socket lies in it, it gets the mode of a new one.

    Raises InvalidRequest (field "listen", or the TLS file's key) for an address that cannot be served; nothing listens then.
    """
    if not listen:
        raise InvalidRequest("there is no address to listen at", field="listen")
    stopping = asyncio.Event()
    server = grpc.aio.server(options=_options(max_message_bytes))
    texts = PolicyTexts(backing.policies)
    runs = RunService(backing.runs, texts, max_message_bytes=max_message_bytes, max_files_bytes=backing.max_files_bytes)
    services: tuple[Service, ...] = (
        runs,
        PolicyService(backing.policies, texts),
        HostService(backing.runs, backing.host, backing.info, stopping),
        TraceService(backing.runs),
    )
    for descriptor, service in zip(SERVICES, services, strict=True):
        server.add_generic_rpc_handlers((service_handler(descriptor, service.methods()),))
    health_servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
    names = [descriptor.full_name for descriptor in SERVICES]
    for name in names:
        await health_servicer.set(name, health_pb2.HealthCheckResponse.SERVING)
    reflection.enable_server_reflection((*names, health.SERVICE_NAME, reflection.SERVICE_NAME), server)

    addresses: list[str] = []
    sockets: list[tuple[Path, int]] = []
    try:
        for address in listen:
            if address.startswith("unix"):
                path = _socket_path(address)
                sockets.append((path, _add_socket(server, path, unix_group, runtime_dir)))
                addresses.append(f"unix://{path}")
            else:
                addresses.append(_add_port(server, address, tls))
        await server.start()
    except BaseException:
        await server.stop(None)
        for path, inode in sockets:
            _unlink_own(path, inode)
        raise
    log.info("server_listening", addresses=addresses)
    return Server(server, health_servicer, stopping, addresses, sockets)


def _options(max_message_bytes: int) -> list[tuple[str, int]]:
    wire_bytes = min(max_message_bytes + MESSAGE_SLACK_BYTES, (1 << 31) - 1)
    return [
        ("grpc.max_receive_message_length", wire_bytes),
        ("grpc.max_send_message_length", wire_bytes),
        ("grpc.so_reuseport", 0),
        # gRPC itself cancels requests at random where 1,000 wait to be looked at, and all above 3,000 (grpc#34782);
        # refusing is for Runs to do, with a reason and RetryInfo.
        ("grpc.server.max_pending_requests", MAX_PENDING_REQUESTS),
        ("grpc.server.max_pending_requests_hard_limit", 2 * MAX_PENDING_REQUESTS),
        # It would also cancel, without a word, what it could not hand over for 30 s; how long to wait is for clients to say.
        ("grpc.server_max_unrequested_time_in_server", MAX_UNREQUESTED_SECONDS),
        # A client that vanished without a word is found within a minute and a half; its runs end then.
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ]


def _socket_path(address: str) -> Path:
    path = address.removeprefix("unix://") if address.startswith("unix://") else address.removeprefix("unix:")
    if address.startswith("unix-abstract:") or path.startswith("@") or "\0" in address:
        raise InvalidRequest(
            f"{address!r}: an abstract socket has no mode, so everyone could use it; give a path", field="listen"
        )
    if not path.startswith("/") or path.endswith("/"):
        raise InvalidRequest(f"{address!r}: unix:///PATH was expected", field="listen")
    if len(os.fsencode(path)) > UNIX_PATH_BYTES:
        raise InvalidRequest(
            f"{address!r}: a Unix socket's path has at most {UNIX_PATH_BYTES} bytes (unix(7))", field="listen"
        )
    return Path(path)


def _add_socket(server: grpc.aio.Server, path: Path, group: str | None, runtime_dir: str | None) -> int:
    """Bind `path`; returns its inode. The socket gets its name when it listens: whoever sees it can connect to it."""
    try:
        gid = grp.getgrnam(group).gr_gid if group else -1
    except KeyError:
        raise InvalidRequest(f"there is no group {group!r}", field="socket_group") from None
    try:
        _create_directory(path.parent, gid, own=runtime_dir is not None and path.parent == Path(runtime_dir))
        _remove_stale(path)
        directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        # By way of the descriptor, so that the longer name fits into sun_path where the socket's own does.
        unnamed = Path(f"/proc/self/fd/{directory}/.{path.name[:64]}.{os.getpid()}")
        try:
            umask = os.umask(SOCKET_UMASK)
            try:
                server.add_insecure_port(f"unix://{unnamed}")
            finally:
                os.umask(umask)
            if gid != -1:
                os.chown(unnamed, -1, gid, follow_symlinks=False)
            os.link(unnamed, path, follow_symlinks=False)
            return path.lstat().st_ino
        finally:
            unnamed.unlink(missing_ok=True)
            os.close(directory)
    except (OSError, RuntimeError) as error:
        raise InvalidRequest(f"cannot listen at unix://{path}: {error}", field="listen") from error


def _create_directory(directory: Path, gid: int, *, own: bool = False) -> None:
    """Make `directory` for us and the group; one that stands already keeps its mode unless it is our own alone."""
    try:
        directory.mkdir(mode=0o700, parents=True)
    except FileExistsError:
        # Whatever the configuration says: /tmp and /run are not ours.
        if not own or directory.is_mount() or directory.stat().st_mode & stat.S_ISVTX:
            return
    if gid != -1:
        os.chown(directory, -1, gid)
    directory.chmod(DIRECTORY_MODE)


def _remove_stale(path: Path) -> None:
    """Remove the socket of a daemon that is no more. gRPC would remove any socket, a living daemon's too."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise InvalidRequest(f"cannot listen at {path}: something that is not a socket is there", field="listen")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        except BlockingIOError:
            # EAGAIN: its backlog is full, so somebody listens.
            pass
    raise InvalidRequest(f"another daemon listens at {path}", reason="ADDRESS_IN_USE", field="listen")


def _unlink_own(path: Path, inode: int) -> None:
    try:
        if path.lstat().st_ino == inode:
            path.unlink()
    except FileNotFoundError:
        pass


def _add_port(server: grpc.aio.Server, address: str, tls: TlsFiles | None) -> str:
    host, colon, port = address.removeprefix("tcp://").rpartition(":")
    if not colon or not host or not (port.isascii() and port.isdigit() and int(port) <= 0xFFFF):
        raise InvalidRequest(f"{address!r} is neither unix:///PATH nor tcp://HOST:PORT", field="listen")
    if tls is None or not (tls.certificate and tls.key and tls.client_ca):
        raise InvalidRequest(
            f"cannot listen at {address}: TCP is served with mutual TLS only; set tls_cert, tls_key and tls_client_ca",
            reason="TLS_REQUIRED",
            field="listen",
        )
    credentials = server_credentials(tls)
    try:
        bound = server.add_secure_port(f"{host}:{port}", credentials)
    except RuntimeError as error:
        raise InvalidRequest(f"cannot listen at {address}: {error}", field="listen") from error
    if not bound:
        raise InvalidRequest(f"cannot listen at {address}: the certificate and key are no pair", field="listen")
    return f"{host}:{bound}"
