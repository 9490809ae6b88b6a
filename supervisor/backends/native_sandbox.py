"""A native run while it lives: its streams, its signals, its end, and what is known of it afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import struct
import termios
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace

import structlog

from supervisor.backends.base import SandboxEnd, SandboxRequest
from supervisor.backends.violations import forbidden_calls
from supervisor.errors import LaunchFailed
from supervisor.launcher.process import Launched
from supervisor.launcher.protocol import Reply, ReplyKind
from supervisor.linux.cgroup import RunGroup
from supervisor.linux.collect import Bounds, Collected, Place, collect_files
from supervisor.model import Enforcement, OutputFile, TraceSummary, Usage, Violation
from supervisor.plan import LaunchPlan
from supervisor.plan_root import OpKind
from supervisor.probes.recorder import Tracing
from supervisor.run_events import Stream
from supervisor.streams import InputWriter, OutputReader

log = structlog.get_logger(__name__)

_PIPE_BYTES = 65536
_REMOVE_SECONDS = 10.0
_COLLECT_SECONDS = 30.0
_COLLECT_GRACE_SECONDS = 5.0
_STAND_INS = {int(signal.SIGKILL): int(signal.SIGRTMAX), int(signal.SIGSTOP): int(signal.SIGRTMAX) - 1}


@dataclass(frozen=True, slots=True)
class NativeSettings:
    """What the daemon's configuration decides for this backend."""

    mount_refusal: Callable[[str], str]
    uid_base: int
    uid_count: int
    max_collect_bytes: int
    max_collect_files: int
    instance: str


class SentDescriptors:
    """Descriptors on their way to the launcher; ours are closed once they are sent, those of others stay open."""

    def __init__(self) -> None:
        self.fds: list[int] = []
        self.named: dict[str, int] = {}
        self._own: list[int] = []

    def keep(self, fd: int) -> int:
        self.fds.append(fd)
        return len(self.fds) - 1

    def take(self, fd: int) -> int:
        self._own.append(fd)
        return self.keep(fd)

    def add(self, name: str, fd: int) -> None:
        self.named[name] = self.take(fd)

    def close(self) -> None:
        while self._own:
            os.close(self._own.pop())


class NativeSandbox:
    """One run between its launch and its end; see backends.base.Sandbox."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        group: RunGroup,
        plan: LaunchPlan,
        request: SandboxRequest,
        settings: NativeSettings,
        places: dict[bytes, Place],
        enforcement: Enforcement,
        collectors: Executor,
        tracing: Tracing | None,
    ) -> None:
        self.enforcement = enforcement
        self.launched: Launched | None = None
        self._loop = loop
        self._group = group
        self._plan = plan
        self._request = request
        self._settings = settings
        self._places = places
        self._collectors = collectors
        self._tracing = tracing
        if tracing is not None:
            tracing.on_violations = self._on_violations
        self._collecting: threading.Event | None = None
        self._pidfd = -1
        self._readers: dict[Stream, OutputReader] = {}
        self._stdin: InputWriter | None = None
        self._terminal = -1
        self._reply: Reply | None = None

    # --- streams ---

    def open_streams(self, sent: SentDescriptors, owner: int) -> None:
        """Pipes belong to `owner`, the run's host uid: a program may open its own anew, as /dev/stdout."""
        spec = self._request.spec
        if spec.terminal:
            master, slave = os.openpty()
            sent.add("stdin", slave)
            sent.named["stdout"] = sent.named["stderr"] = sent.named["stdin"]
            self._terminal = master
            if self._request.terminal_size is not None:
                self.resize(*self._request.terminal_size)
            self._stdin = InputWriter(self._loop, os.dup(master), is_terminal=True)
            self._add_reader(Stream.STDOUT, os.dup(master))
            return
        for stream in (Stream.STDOUT, Stream.STDERR):
            read_end, write_end = _pipe(owner)
            sent.add(stream.value, write_end)
            self._add_reader(stream, read_end)
        if self._request.stdin_follows or len(spec.stdin) > _PIPE_BYTES:
            read_end, write_end = _pipe(owner)
            sent.add("stdin", read_end)
            self._stdin = InputWriter(self._loop, write_end)
        elif spec.stdin:
            read_end, write_end = _pipe(owner)
            sent.add("stdin", read_end)
            os.write(write_end, spec.stdin)
            os.close(write_end)
        else:
            sent.add("stdin", os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC))

    def _add_reader(self, stream: Stream, fd: int) -> None:
        request = self._request
        self._readers[stream] = OutputReader(
            self._loop,
            fd,
            request.limits.output,
            lambda data: request.on_output(stream, data),
            lambda: request.on_over(stream),
        )

    def close_streams(self) -> None:
        for reader in self._readers.values():
            reader.close()
        if self._stdin is not None:
            self._stdin.close()
        if self._terminal >= 0:
            os.close(self._terminal)
            self._terminal = -1

    def pause_output(self) -> None:
        for reader in self._readers.values():
            reader.pause()

    def resume_output(self) -> None:
        for reader in self._readers.values():
            reader.resume()

    async def write_stdin(self, data: bytes) -> None:
        if self._stdin is not None:
            await self._stdin.write(data)

    def close_stdin(self) -> None:
        if self._stdin is not None:
            self._stdin.end()

    def resize(self, rows: int, columns: int) -> None:
        if self._terminal >= 0:
            size = struct.pack("HHHH", rows & 0xFFFF, columns & 0xFFFF, 0, 0)
            fcntl.ioctl(self._terminal, termios.TIOCSWINSZ, size)

    # --- life ---

    @property
    def started(self) -> asyncio.Future[int]:
        assert self.launched is not None
        return self.launched.started

    @property
    def takes_stdin(self) -> bool:
        return self._stdin is not None

    def signal(self, number: int) -> None:
        """To the program's process group, through its init. SIGKILL and SIGSTOP stand as real-time signals, see init.c."""
        if self._pidfd < 0:
            self._take_pidfd()
        passed = _STAND_INS.get(number, number)
        if self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, passed)

    def _take_pidfd(self) -> None:
        launched = self.launched
        if launched is not None and launched.started.done() and not launched.started.cancelled():
            self._pidfd = launched.started.result()

    def kill(self) -> None:
        """Also cuts short what is being collected; a kill that came before leaves that to be collected."""
        self._kill_tree()
        if self._collecting is not None:
            self._collecting.set()

    def _on_violations(self, violations: Sequence[Violation], *, kills: bool) -> None:
        """What the rules have found while the run lives."""
        if kills:
            self._kill_tree()
        for violation in violations:
            self._request.on_violation(violation)

    def usage(self) -> Usage:
        try:
            return self._group.usage()
        except OSError:
            return Usage()

    def cpu_seconds(self) -> float:
        return self._group.cpu_seconds()

    async def ended(self) -> SandboxEnd:
        reply = await self._wait()
        await _wait_empty(self._group)
        for reader in self._readers.values():
            reader.drain()
        gone_at = time.monotonic()
        trace = await self._tracing.finish() if self._tracing is not None else TraceSummary()
        return self._describe(reply, trace, gone_at)

    async def _wait(self) -> Reply:
        assert self.launched is not None
        self._reply = await asyncio.shield(self.launched.ended)
        return self._reply

    def _kill_tree(self) -> None:
        """Everything in the group; what the launcher has yet to put there dies at its word that it runs."""
        self._group.kill()
        launched = self.launched
        if launched is not None and not launched.started.done():
            launched.started.add_done_callback(lambda _started: self._group.kill())

    async def end(self) -> None:
        """Kill, wait, forget: the first step of the tear-down, whatever came before it."""
        self._kill_tree()
        try:
            if self._reply is None:
                await self._wait()
        except LaunchFailed:
            pass
        finally:
            self._take_pidfd()
            if self._pidfd >= 0:
                os.close(self._pidfd)
                self._pidfd = -1

    async def collect(self) -> tuple[OutputFile, ...]:
        """What was found until a bound or `kill` cut it short, which `enforcement.missing` then tells."""
        settings, patterns = self._settings, self._request.spec.collect
        bounds = Bounds(settings.max_collect_bytes, settings.max_collect_files, seconds=_COLLECT_SECONDS)
        cancelled = self._collecting = threading.Event()
        # The thread's own: it may still be at work when the run's are closed.
        places = {path: replace(place, directory=os.dup(place.directory)) for path, place in self._places.items()}

        def close(_ended: object) -> None:
            for place in places.values():
                os.close(place.directory)

        try:
            work = self._collectors.submit(collect_files, places, patterns, bounds, cancelled.is_set)
        except BaseException:
            close(None)
            raise
        work.add_done_callback(close)
        try:
            future = asyncio.wrap_future(work)
            # A file system whose server is gone may hold the thread for longer than any bound.
            await asyncio.wait({future}, timeout=_COLLECT_SECONDS + _COLLECT_GRACE_SECONDS)
            found = future.result() if future.done() else Collected((), False)
        finally:
            cancelled.set()
            work.cancel()
        if not found.complete:
            missing = (*self.enforcement.missing, "files (collect was cut short)")
            self.enforcement = replace(self.enforcement, missing=missing)
        return found.files

    def _describe(self, reply: Reply, trace: TraceSummary, gone_at: float) -> SandboxEnd:
        usage = self._group.usage()
        if usage.io_write_bytes is None:
            usage = replace(usage, io_read_bytes=reply.read_bytes, io_write_bytes=reply.write_bytes)
        failed = reply.kind is ReplyKind.FAILED
        stage = reply.stage if reply.stage != "none" else ("launch" if failed else "")
        skipped = [
            f"idmapped_mounts:{op.target.decode('utf-8', 'replace')}"
            for number, op in enumerate(op for op in self._plan.ops if op.kind is OpKind.MOUNT)
            if reply.idmap_skipped >> number & 1
        ]
        unmeasured = [
            name
            for name in ("memory_peak_bytes", "pids_peak", "io_read_bytes", "io_write_bytes")
            if getattr(usage, name) is None and name not in self.enforcement.missing
        ]
        lost = [f"trace (not stored: {self._tracing.failure})"] if self._tracing and self._tracing.failure else []
        return SandboxEnd(
            status=reply.program_status,
            usage=usage,
            violations=(
                *forbidden_calls(reply, self._tracing, self._request.effective.policy.rules),
                *(self._tracing.detector.found if self._tracing is not None else ()),
            ),
            missing=(*skipped, *unmeasured, *lost),
            stage=stage,
            errno=reply.errno,
            about=self._about(reply),
            mount=self._mount_at_fault(reply),
            filter_kills=self._plan.syscalls is not None and not self._plan.notify,
            trace=trace,
            gone_at=gone_at,
        )

    def _mount_at_fault(self, reply: Reply) -> int | None:
        """Which of the request's mounts the failed step made room for or mounted."""
        if reply.stage not in ("mount", "idmap") or not 0 <= reply.index < len(self._plan.ops):
            return None
        target = self._plan.ops[reply.index].target
        asked = [mount.target for mount in self._request.spec.mounts]
        return asked.index(target) if target in asked else None

    def _about(self, reply: Reply) -> str:
        if reply.stage == "cwd":
            return self._plan.cwd.decode("utf-8", "replace")
        if reply.stage in ("mount", "idmap") and 0 <= reply.index < len(self._plan.ops):
            op = self._plan.ops[reply.index]
            target = op.target.decode("utf-8", "replace")
            return f"step {reply.index + 1} of {len(self._plan.ops)}, {op.kind.name.lower()} {target}"
        return ""


def _pipe(owner: int) -> tuple[int, int]:
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    os.fchown(read_end, owner, owner)  # one inode for both ends
    return read_end, write_end


async def _wait_empty(group: RunGroup) -> None:
    """Without a pid namespace processes may outlive the program; and what sleeps in the kernel dies late."""
    deadline = asyncio.get_running_loop().time() + _REMOVE_SECONDS
    delay = 0.0005
    while group.populated and asyncio.get_running_loop().time() < deadline:
        group.kill()
        await asyncio.sleep(delay)
        delay = min(delay * 2, 0.05)


async def remove_group(group: RunGroup) -> None:
    try:
        await _wait_empty(group)
        deadline = asyncio.get_running_loop().time() + _REMOVE_SECONDS
        delay = 0.0005
        while not group.remove():
            if asyncio.get_running_loop().time() > deadline:
                log.error("cgroup_not_removed", run_id=group.name)
                return
            await asyncio.sleep(delay)
            delay = min(delay * 2, 0.05)
    finally:
        group.close()
