"""The native backend: a sandbox out of the kernel's own parts, built by the launcher after a LaunchPlan.

One run, top to bottom: `check` makes the plan; `start` takes a uid, makes control groups, root, streams, and hands them
over; `NativeSandbox` is the run while it lives; leaving the context takes everything back in reverse order.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import pty
import shutil
import signal
import struct
import tempfile
import termios
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace

import structlog

from supervisor.backends.base import SandboxEnd, SandboxRequest
from supervisor.errors import Exhausted, HostLacks, InvalidRequest, LaunchFailed
from supervisor.launcher.process import Launched, Launcher
from supervisor.launcher.protocol import Descriptors, Reply, ReplyKind, encode_plan
from supervisor.linux import files, rootfs, sources
from supervisor.linux.cgroup import Hierarchies, RunGroup
from supervisor.linux.seccomp import SeccompFilter, compile_filter, decode_syscall
from supervisor.model import Enforcement, HostFeatures, OutputFile, RunSpec, Stream, Violation
from supervisor.plan import WORK, LaunchPlan, OpKind, RootView, build
from supervisor.policy import EffectivePolicy, Policy
from supervisor.streams import InputWriter, OutputReader

log = structlog.get_logger(__name__)

_PIPE_BYTES = 65536
_REMOVE_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class NativeSettings:
    """What the daemon's configuration decides for this backend."""

    mount_refusal: Callable[[str], str]
    uid_base: int
    uid_count: int
    max_collect_bytes: int
    max_collect_files: int
    instance: str


@dataclass(frozen=True, slots=True)
class NativePlan:
    plan: LaunchPlan
    policy: Policy
    view: RootView


class UidPool:
    """The host ids of runs, least recently used first, so that one comes back as late as possible."""

    def __init__(self, base: int, count: int) -> None:
        self._free = deque(range(base, base + count))

    def take(self) -> int:
        if not self._free:
            raise Exhausted("every uid of run_uid_count is in use", reason="UIDS_EXHAUSTED", retry_seconds=1.0)
        return self._free.popleft()

    def give_back(self, uid: int) -> None:
        self._free.append(uid)


@dataclass(slots=True)
class NativeBackend:
    """Runs on this host's kernel. Made by `daemon`, which has spawned the launchers; `open` before the first run."""

    settings: NativeSettings
    host: HostFeatures
    hierarchies: Hierarchies
    launchers: list[Launcher]
    name: str = "native"
    _view: RootView = field(default_factory=rootfs.host_view)
    _filters: dict[tuple[str, bool], SeccompFilter] = field(default_factory=dict)
    _uids: UidPool = field(init=False)

    def __post_init__(self) -> None:
        self._uids = UidPool(self.settings.uid_base, self.settings.uid_count)

    async def open(self) -> None:
        """Gives every launcher its templates. Raises LaunchFailed."""
        loop = asyncio.get_running_loop()
        for launcher in self.launchers:
            launcher.attach(loop)
            for name, fd in rootfs.host_templates(self._view).items():
                try:
                    await launcher.add_template(name, fd)
                finally:
                    os.close(fd)

    async def close(self) -> None:
        for launcher in self.launchers:
            launcher.close()

    def check(self, spec: RunSpec, effective: EffectivePolicy) -> NativePlan:
        policy = effective.policy
        if spec.image is not None or policy.filesystem.root.startswith("image:"):
            raise HostLacks(
                "images are not available to the native backend in this build",
                reason="IMAGES_NOT_AVAILABLE",
                field="image",
                metadata={"feature": "images", "remedy": "unpack the image and name its directory as the policy's root"},
            )
        view = self._view
        if policy.filesystem.root != "host":
            try:
                view = rootfs.directory_view(os.fsencode(policy.filesystem.root))
            except OSError as error:
                raise HostLacks(
                    f"policy {policy.name}: filesystem.root {policy.filesystem.root}: {error.strerror}",
                    field="filesystem.root",
                    metadata={"feature": "root", "remedy": "make the directory, or name another"},
                ) from None
        present = sources.existing((*policy.filesystem.read_only, *policy.filesystem.read_write))
        plan = build(spec, effective, self.host, view, present)
        self._filter(policy, plan.notify)
        return NativePlan(plan, policy, view)

    @asynccontextmanager
    async def start(self, request: SandboxRequest, plan: object) -> AsyncIterator[NativeSandbox]:
        assert isinstance(plan, NativePlan)
        async with AsyncExitStack() as stack:
            yield await self._start(request, plan, stack)

    async def _start(self, request: SandboxRequest, native: NativePlan, stack: AsyncExitStack) -> NativeSandbox:
        plan, loop = native.plan, asyncio.get_running_loop()
        uid = self._uids.take()
        stack.callback(self._uids.give_back, uid)
        group = RunGroup.create(self.hierarchies, request.run_id, plan.limits)
        stack.push_async_callback(_remove_group, group)
        sent = _SentDescriptors()
        stack.callback(sent.close)
        root = await self._make_root(request, native, uid, sent, stack)
        sandbox = NativeSandbox(loop, group, plan, request, self.settings, root.places, plan.enforcement)
        stack.callback(sandbox.close_streams)
        sandbox.open_streams(sent)
        descriptors = Descriptors(
            stdin=sent.named["stdin"],
            stdout=sent.named["stdout"],
            stderr=sent.named["stderr"],
            cgroup=sent.keep(group.unified.directory),
            tmpfs=sent.named.get("tmpfs", -1),
            v1=tuple(sent.keep(fd) for fd in group.procs.values()),
            mounts=root.mounts,
        )
        body = encode_plan(
            root.plan,
            descriptors,
            host_id=0 if plan.as_root else uid,
            filter_program=self._filter(native.policy, plan.notify).program if plan.syscalls else b"",
            file_mounts=root.file_mounts,
            owners=root.owners,
        )
        launcher = min(self.launchers, key=lambda one: one.alive)
        sandbox.launched = launcher.launch(body, sent.fds, sent.close)
        # Registered last, hence first to happen: whatever is alive is ended before anything is taken from under it.
        stack.push_async_callback(sandbox.end)
        return sandbox

    def _filter(self, policy: Policy, notify: bool) -> SeccompFilter:
        key = (policy.syscalls.digest, notify)
        found = self._filters.get(key)
        if found is None:
            found = self._filters[key] = compile_filter(policy, notify=notify)
        return found

    async def _make_root(
        self, request: SandboxRequest, native: NativePlan, uid: int, sent: _SentDescriptors, stack: AsyncExitStack
    ) -> _Root:
        plan, spec = native.plan, request.spec
        if not plan.private_root:
            return await self._make_work_directory(request, plan, uid, stack)
        tmpfs = rootfs.run_tmpfs(plan.limits)
        sent.add("tmpfs", tmpfs)
        root = _Root(plan)
        if spec.files or spec.collect:
            files.make_places(tmpfs, uid)
        for index, mount in enumerate(plan.mounts):
            own = len(plan.mounts) - len(spec.mounts)
            label = f"mounts[{spec.mounts.index(mount)}].source" if index >= own else "filesystem"
            refusal = self.settings.mount_refusal if index >= own else _never
            source = sources.open_source(mount, label, refusal)
            root.mounts[index] = sent.take(source.tree)
            stack.callback(os.close, source.directory)
            root.owners[index] = source.owner
            if source.is_file:
                root.file_mounts |= {index}
            elif mount.writable and spec.collect:
                root.places[mount.target] = source.directory
        self._open_trees(native, root, sent)
        if spec.files:
            if any(mount.target == WORK for mount in plan.mounts):
                _refuse_files_into_mount(spec)
            await _in_thread_if_large(
                sum(len(file.data) for file in spec.files) + 4096 * len(spec.files),
                lambda: files.put_files(tmpfs, spec.files, uid),
            )
        if spec.collect:
            for path in (b"/work", b"/tmp", b"/dev/shm"):
                if path in plan.writable and path not in root.places:
                    root.places[path] = os.open(path[1:], os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=tmpfs)
                    stack.callback(os.close, root.places[path])
        return root

    def _open_trees(self, native: NativePlan, root: _Root, sent: _SentDescriptors) -> None:
        """What is mounted beside the request's mounts: the trees of a root directory, the host's resolv.conf."""
        for op in native.plan.ops:
            if op.mount is None or op.mount in root.mounts:
                continue
            path = "/etc/resolv.conf" if op.mount == -1 else os.fsdecode(native.view.source + op.target)
            root.mounts[op.mount] = sent.take(sources.open_tree(path))

    async def _make_work_directory(
        self, request: SandboxRequest, plan: LaunchPlan, uid: int, stack: AsyncExitStack
    ) -> _Root:
        """Without a root of its own a run works in a directory of the host's /tmp, which goes with it."""
        path = tempfile.mkdtemp(prefix=f"supervisor-{self.settings.instance}-", dir="/tmp")
        stack.callback(shutil.rmtree, path, ignore_errors=True)
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        stack.callback(os.close, fd)
        owner = 0 if plan.as_root else uid
        os.mkdir("work", dir_fd=fd)
        os.chmod(path, 0o755)
        os.chown("work", owner, owner, dir_fd=fd)
        work = os.open("work", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=fd)
        stack.callback(os.close, work)
        files.put_files(fd, request.spec.files, owner)
        cwd = request.spec.cwd or os.fsencode(path) + WORK
        return _Root(replace(plan, cwd=cwd), places={WORK: work})


@dataclass(slots=True)
class _Root:
    """A run's root as far as the daemon makes it; `places` are what files may be collected from."""

    plan: LaunchPlan
    mounts: dict[int, int] = field(default_factory=dict)
    owners: dict[int, tuple[int, int]] = field(default_factory=dict)
    file_mounts: frozenset[int] = frozenset()
    places: dict[bytes, int] = field(default_factory=dict)


class _SentDescriptors:
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
        places: dict[bytes, int],
        enforcement: Enforcement,
    ) -> None:
        self.enforcement = enforcement
        self.launched: Launched | None = None
        self._loop = loop
        self._group = group
        self._plan = plan
        self._request = request
        self._settings = settings
        self._places = places
        self._pidfd = -1
        self._readers: dict[Stream, OutputReader] = {}
        self._stdin: InputWriter | None = None
        self._terminal = -1
        self._reply: Reply | None = None

    # --- streams ---

    def open_streams(self, sent: _SentDescriptors) -> None:
        spec = self._request.spec
        if spec.terminal:
            master, slave = pty.openpty()
            sent.add("stdin", slave)
            sent.named["stdout"] = sent.named["stderr"] = sent.named["stdin"]
            self._terminal = master
            self._stdin = InputWriter(self._loop, os.dup(master), is_terminal=True)
            self._add_reader(Stream.STDOUT, os.dup(master))
            return
        for stream in (Stream.STDOUT, Stream.STDERR):
            read_end, write_end = os.pipe2(os.O_CLOEXEC)
            sent.add(stream.value, write_end)
            self._add_reader(stream, read_end)
        if self._request.stdin_follows or len(spec.stdin) > _PIPE_BYTES:
            read_end, write_end = os.pipe2(os.O_CLOEXEC)
            sent.add("stdin", read_end)
            self._stdin = InputWriter(self._loop, write_end)
        elif spec.stdin:
            read_end, write_end = os.pipe2(os.O_CLOEXEC)
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
    def started(self) -> asyncio.Future[None]:
        assert self.launched is not None
        return self.launched.started

    @property
    def is_live_stdin(self) -> bool:
        return self._stdin is not None

    def signal(self, number: int) -> None:
        """To the program alone, through its init. SIGKILL and SIGSTOP stand as real-time signals, see init.c."""
        if self._pidfd < 0:
            self._take_pidfd()
        passed = {signal.SIGKILL: signal.SIGRTMAX, signal.SIGSTOP: signal.SIGRTMAX - 1}.get(number, number)
        if self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, passed)

    def _take_pidfd(self) -> None:
        launched = self.launched
        if launched is not None and launched.launched.done() and not launched.launched.cancelled():
            self._pidfd = launched.launched.result()[1]

    def kill(self) -> None:
        self._group.kill()

    def cpu_seconds(self) -> float:
        return self._group.cpu_seconds()

    async def ended(self) -> SandboxEnd:
        reply = await self._wait()
        await _wait_empty(self._group)
        for reader in self._readers.values():
            reader.drain()
        return self._describe(reply)

    async def _wait(self) -> Reply:
        assert self.launched is not None
        self._reply = await asyncio.shield(self.launched.ended)
        return self._reply

    async def end(self) -> None:
        """Kill, wait, forget: the first step of the tear-down, whatever came before it."""
        self._group.kill()
        try:
            if self._reply is None:
                # A launch that was under way when the kill came is met by the next one.
                while True:
                    with contextlib.suppress(asyncio.TimeoutError):
                        await asyncio.wait_for(self._wait(), 0.05)
                        break
                    self._group.kill()
        except LaunchFailed:
            pass
        finally:
            self._take_pidfd()
            if self._pidfd >= 0:
                os.close(self._pidfd)
                self._pidfd = -1

    async def collect(self) -> tuple[OutputFile, ...]:
        bounds = files.Bounds(self._settings.max_collect_bytes, self._settings.max_collect_files)
        patterns = self._request.spec.collect
        return await asyncio.to_thread(files.collect_files, self._places, patterns, bounds)

    def _describe(self, reply: Reply) -> SandboxEnd:
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
        return SandboxEnd(
            status=reply.program_status,
            usage=usage,
            violations=tuple(self._violations(reply)),
            missing=(*skipped, *unmeasured),
            stage=stage,
            errno=reply.errno,
            about=self._about(reply),
        )

    def _violations(self, reply: Reply) -> list[Violation]:
        found = []
        for seen in reply.violations:
            name, abi = decode_syscall(seen.number, seen.arch)
            found.append(
                Violation(
                    rule=f"syscalls.{name}",
                    kind="syscall",
                    severity="high",
                    action="kill",
                    time=seen.time,
                    syscall=name,
                    abi=abi,
                    args=seen.args,
                    pid=seen.pid,
                    tid=seen.pid,
                    comm=seen.comm,
                )
            )
        return found

    def _about(self, reply: Reply) -> str:
        if reply.stage in ("mount", "idmap") and 0 <= reply.index < len(self._plan.ops):
            op = self._plan.ops[reply.index]
            target = op.target.decode("utf-8", "replace")
            return f"step {reply.index + 1} of {len(self._plan.ops)}, {op.kind.name.lower()} {target}"
        return ""


async def _wait_empty(group: RunGroup) -> None:
    """Without a pid namespace processes may outlive the program; and what sleeps in the kernel dies late."""
    deadline = asyncio.get_running_loop().time() + _REMOVE_SECONDS
    delay = 0.0005
    while group.populated and asyncio.get_running_loop().time() < deadline:
        group.kill()
        await asyncio.sleep(delay)
        delay = min(delay * 2, 0.05)


async def _remove_group(group: RunGroup) -> None:
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


async def _in_thread_if_large(size: int, work: Callable[[], None]) -> None:
    """A few small files are written faster than a thread is woken."""
    if size > 1 << 18:
        await asyncio.to_thread(work)
    else:
        work()


def _never(_path: str) -> str:
    """The policy's own paths are the operator's word."""
    return ""


def _refuse_files_into_mount(spec: RunSpec) -> None:
    for index, file in enumerate(spec.files):
        if not file.path.startswith(b"/") or file.path.startswith(b"/work/"):
            raise InvalidRequest(
                f"files[{index}].path: /work is a mount of this run; put the file below /tmp",
                field=f"files[{index}].path",
            )
