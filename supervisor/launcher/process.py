"""A launcher process and the daemon's end of its socket, on the event loop.

The daemon starts launchers before gRPC has threads, by fork+exec; it never forks afterwards.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket
import subprocess
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from supervisor.errors import InvalidRequest, LaunchFailed
from supervisor.launcher.protocol import (
    MAX_FDS,
    MAX_PACKET,
    PLAN_IN_FD,
    REPLY_SIZE,
    Reply,
    ReplyKind,
    Request,
    decode_reply,
    request,
)

log = structlog.get_logger(__name__)

_BUFFER_BYTES = 4 << 20


@dataclass(slots=True)
class Launched:
    """A run as the launcher tells of it. `started` is done when the program is executed; it holds the pidfd of the run's
    init, from then on the caller's, or is cancelled where it never came to that."""

    started: asyncio.Future[int]
    ended: asyncio.Future[Reply]


@dataclass(slots=True)
class _Pending:
    run: int
    packet: bytes
    fds: tuple[int, ...]
    on_sent: Callable[[], None] | None = None


@dataclass(slots=True)
class Launcher:
    """One launcher. `start` and `close` bracket its life; `launch` may be called any number of times in between."""

    path: Path
    process: subprocess.Popen[bytes] | None = None
    alive: int = 0
    on_gone: Callable[[Launcher], None] | None = None
    _socket: socket.socket | None = None
    _next: int = 1
    _runs: dict[int, Launched] = field(default_factory=dict)
    _outgoing: deque[_Pending] = field(default_factory=deque)
    _loop: asyncio.AbstractEventLoop | None = None

    def spawn(self) -> None:
        """Starts the process. Raises LaunchFailed.

        Done before gRPC has threads; again only after a launcher's sudden end, when subprocess' vfork(2) and exec it is.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (ours, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
        try:
            # Its standard input is the socket: the one descriptor that every way of starting a process can place.
            self.process = subprocess.Popen(
                [str(self.path)], stdin=theirs.fileno(), env={"PATH": "/usr/bin:/bin"}, cwd="/", close_fds=True
            )
        except OSError as error:
            raise LaunchFailed(f"cannot start {self.path}: {error}", metadata={"stage": "spawn"}) from error
        finally:
            theirs.close()
        ours.setblocking(False)
        self._socket = ours

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Reads replies on `loop` from now on."""
        assert self._socket is not None
        self._loop = loop
        loop.add_reader(self._socket.fileno(), self._on_readable)

    async def add_template(self, name: bytes, fd: int) -> None:
        """Gives the launcher a detached mount to keep as template `name`. Raises LaunchFailed."""
        run = self._take_number()
        self._send(_Pending(run.number, request(Request.TEMPLATE, run.number, name, fds=1), (fd,)))
        reply = await run.handle.ended
        if reply.kind is not ReplyKind.OK:
            raise LaunchFailed(
                f"template {name.decode()}: {os.strerror(reply.errno)}",
                metadata={"stage": "template", "errno": str(reply.errno)},
            )

    def launch(self, body: bytes, fds: Sequence[int], on_sent: Callable[[], None] | None = None) -> Launched:
        """Sends a plan with its descriptors, which the caller may close when `on_sent` is called (it may be at once)."""
        if len(fds) >= MAX_FDS:
            raise InvalidRequest(
                f"mounts and the root's own directories need {len(fds)} descriptors; at most {MAX_FDS - 1} can be handed over",
                field="mounts",
            )
        run = self._take_number()
        self.alive += 1
        if len(body) + 64 > MAX_PACKET:
            plan_fd = _sealed_memfd(body)
            packet = request(Request.LAUNCH, run.number, flags=PLAN_IN_FD, fds=len(fds) + 1)

            def sent() -> None:
                os.close(plan_fd)
                if on_sent is not None:
                    on_sent()

            self._send(_Pending(run.number, packet, (plan_fd, *fds), sent))
        else:
            packet = request(Request.LAUNCH, run.number, body, fds=len(fds))
            self._send(_Pending(run.number, packet, tuple(fds), on_sent))
        return run.handle

    def close(self) -> None:
        """Ends the launcher and with it every run it still has."""
        if self._socket is not None:
            if self._loop is not None:
                self._loop.remove_reader(self._socket.fileno())
                self._loop.remove_writer(self._socket.fileno())
            self._socket.close()
            self._socket = None
        if self.process is not None:
            try:
                self.process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            self.process = None

    @property
    def is_open(self) -> bool:
        return self._socket is not None

    # --- the socket ---

    @dataclass(slots=True)
    class _Numbered:
        number: int
        handle: Launched

    def _take_number(self) -> _Numbered:
        if self._socket is None or self._loop is None:
            raise LaunchFailed("the launcher has ended", metadata={"stage": "launcher"})
        number = self._next
        self._next += 1
        create = self._loop.create_future
        handle = Launched(create(), create())
        self._runs[number] = handle
        return Launcher._Numbered(number, handle)

    def _send(self, pending: _Pending) -> None:
        assert self._socket is not None and self._loop is not None
        if self._outgoing or not self._try_send(pending):
            if not self._outgoing:
                self._loop.add_writer(self._socket.fileno(), self._on_writable)
            self._outgoing.append(pending)

    def _try_send(self, pending: _Pending) -> bool:
        assert self._socket is not None
        try:
            socket.send_fds(self._socket, [pending.packet], list(pending.fds))
        except (BlockingIOError, InterruptedError):
            return False
        except (ConnectionError, BrokenPipeError) as error:
            self._on_gone(error)
        except OSError as error:  # about this packet: ETOOMANYREFS, EMSGSIZE, EBADF
            self._fail(pending.run, LaunchFailed(f"cannot hand over the run: {error}", metadata={"stage": "send"}))
        if pending.on_sent is not None:
            pending.on_sent()
        return True

    def _on_writable(self) -> None:
        assert self._socket is not None and self._loop is not None
        while self._outgoing and self._try_send(self._outgoing[0]):
            self._outgoing.popleft()
        if not self._outgoing and self._socket is not None:
            self._loop.remove_writer(self._socket.fileno())

    def _on_readable(self) -> None:
        for _ in range(64):
            if self._socket is None:
                return
            try:
                packet, fds, _flags, _address = socket.recv_fds(self._socket, REPLY_SIZE, 1, socket.MSG_DONTWAIT)
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                self._on_gone(error)
                return
            if not packet:
                self._on_gone(None)
                return
            self._on_reply(decode_reply(packet), fds)

    def _on_reply(self, reply: Reply, fds: list[int]) -> None:
        run = self._runs.get(reply.run)
        if run is None:
            for fd in fds:
                os.close(fd)
            return
        if reply.kind is ReplyKind.STARTED:
            run.started.set_result(fds[0])
        else:
            del self._runs[reply.run]
            if reply.kind is not ReplyKind.OK:
                self.alive -= 1
            run.ended.set_result(reply)
            if not run.started.done():
                run.started.cancel()

    def _fail(self, number: int, failure: LaunchFailed) -> None:
        """Ends the waiting for one run that never reached the launcher."""
        run = self._runs.pop(number, None)
        if run is None:
            return
        self.alive -= 1
        run.ended.set_exception(failure)
        run.ended.exception()
        run.started.cancel()

    def _on_gone(self, error: OSError | None) -> None:
        """The launcher ended by itself: every run it had is dead with it, through its parent-death signal."""
        status = self.process.poll() if self.process is not None else None
        log.error("launcher_gone", status=status, error=str(error) if error else None, runs=len(self._runs))
        if self._socket is not None and self._loop is not None:
            self._loop.remove_reader(self._socket.fileno())
            self._loop.remove_writer(self._socket.fileno())
            self._socket.close()
            self._socket = None
        failure = LaunchFailed("the launcher ended unexpectedly", metadata={"stage": "launcher"})
        for run in self._runs.values():
            if not run.ended.done():
                run.ended.set_exception(failure)
                # Not everyone waits for it; the loop shall not complain.
                run.ended.exception()
            if not run.started.done():
                run.started.cancel()
        self._runs.clear()
        self.alive = 0
        if self.on_gone is not None:
            self.on_gone(self)


def _sealed_memfd(data: bytes) -> int:
    fd = os.memfd_create("plan", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    return fd
