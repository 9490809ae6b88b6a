"""The native backend: a sandbox out of the kernel's own parts, built by the launcher after a LaunchPlan.

One run, top to bottom: `check` makes the plan; `start` takes a uid, makes control groups, root, streams, and hands them
over; `NativeSandbox` is the run while it lives; leaving the context takes everything back in reverse order.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace

import structlog

from supervisor.backends.base import SandboxRequest
from supervisor.backends.native_sandbox import NativeSandbox, NativeSettings, SentDescriptors, remove_group
from supervisor.errors import HostLacks, InvalidRequest, LaunchFailed
from supervisor.evidence.programs import Below
from supervisor.launcher.process import Launcher
from supervisor.launcher.protocol import Descriptors, encode_plan
from supervisor.linux import files, rootfs, sources
from supervisor.linux.cgroup import Hierarchies, RunGroup
from supervisor.linux.collect import Place
from supervisor.linux.seccomp import compile_filter
from supervisor.linux.trees import remove_tree
from supervisor.linux.uids import UidPool
from supervisor.model import HostFeatures, Mount, RunSpec, TraceLevel
from supervisor.plan import AddressPlan, LaunchPlan, build
from supervisor.plan_root import WORK, OpKind, RootView
from supervisor.policy import EffectivePolicy, Policy
from supervisor.probes.addresses import AddressRules, make_rules
from supervisor.probes.recorder import Recorder
from supervisor.rules.detector import RuleSet

log = structlog.get_logger(__name__)

_MAX_FILTERS = 64
_MAX_RULE_SETS = 64
_PROGRAM_TOPS = ("/usr", "/bin", "/sbin", "/lib", "/lib64", "/opt")
_OPEN_SECONDS = 5.0
_LOOK_UP_SECONDS = 10.0
_MAX_MOUNT_OPS = 64  # MAX_MOUNTS of launcher/protocol.h


@dataclass(frozen=True, slots=True)
class NativePlan:
    plan: LaunchPlan
    policy: Policy
    view: RootView


@dataclass(slots=True)
class NativeBackend:
    """Runs on this host's kernel. Made by `daemon`, which has spawned the launchers; `open` before the first run."""

    settings: NativeSettings
    host: HostFeatures
    hierarchies: Hierarchies
    launchers: list[Launcher]
    recorder: Recorder | None = None
    name: str = "native"
    _view: RootView = field(default_factory=rootfs.host_view)
    _etc: rootfs.Etc = field(default_factory=rootfs.read_etc)
    _filters: dict[tuple[str, bool], bytes] = field(default_factory=dict)
    _rule_sets: dict[str, RuleSet] = field(default_factory=dict)
    _tops: dict[str, int] = field(default_factory=dict)
    _uids: UidPool = field(init=False)
    _openers: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(8, "mount-source"))
    _collectors: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(4, "collect"))
    _reviving: set[asyncio.Task[None]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._uids = UidPool(self.settings.uid_base, self.settings.uid_count)
        for top in _PROGRAM_TOPS:
            if os.path.isdir(top) and not os.path.islink(top):
                self._tops[top] = os.open(top, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    async def open(self) -> None:
        """Gives every launcher its templates. Raises LaunchFailed."""
        for launcher in self.launchers:
            await self._prepare_launcher(launcher)
            launcher.on_gone = self._on_launcher_gone

    async def _prepare_launcher(self, launcher: Launcher) -> None:
        launcher.attach(asyncio.get_running_loop())
        for name, fd in rootfs.host_templates(self._view, self._etc).items():
            try:
                await launcher.add_template(name, fd)
            finally:
                os.close(fd)

    def _on_launcher_gone(self, launcher: Launcher) -> None:
        reviving = asyncio.get_running_loop().create_task(self._revive(launcher))
        self._reviving.add(reviving)
        reviving.add_done_callback(self._reviving.discard)

    async def _revive(self, launcher: Launcher) -> None:
        """Somebody killed it, or a defect of ours did: its runs are lost, the next ones need not be."""
        delay = 0.1
        while True:
            await asyncio.sleep(delay)
            delay = min(delay * 2, 10.0)
            try:
                await asyncio.to_thread(launcher.spawn)
                await self._prepare_launcher(launcher)
            except (LaunchFailed, OSError) as error:
                log.error("launcher_not_restarted", error=str(error))
                continue
            log.warning("launcher_restarted")
            return

    async def close(self) -> None:
        for task in tuple(self._reviving):
            task.cancel()
        self._openers.shutdown(wait=False, cancel_futures=True)
        self._collectors.shutdown(wait=False, cancel_futures=True)
        for launcher in self.launchers:
            launcher.close()
        if self.recorder is not None:
            await self.recorder.close()
        while self._tops:
            os.close(self._tops.popitem()[1])

    def check(self, spec: RunSpec, effective: EffectivePolicy) -> NativePlan:
        policy = effective.policy
        if spec.image is not None or policy.filesystem.root.startswith("image:"):
            raise HostLacks(
                "images are not available to the native backend in this build",
                reason="IMAGES_NOT_AVAILABLE",
                field="image",
                metadata={
                    "feature": "images",
                    "remedy": "unpack the image and name its directory as the policy's root",
                },
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
        if sum(op.kind is OpKind.MOUNT for op in plan.ops) > _MAX_MOUNT_OPS:
            raise InvalidRequest(
                f"filesystem.root: its directories and the mounts are more than {_MAX_MOUNT_OPS} together",
                field="filesystem.root",
            )
        self._filter(plan)
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
        stack.push_async_callback(remove_group, group)
        tracing = None
        places = self._host_programs(native.view)
        rules = self._rules(native.policy)
        watched = plan.trace is not TraceLevel.OFF or plan.addresses is not None or not rules.is_empty
        if self.recorder is not None and watched:
            addresses = await self._address_rules(plan.addresses)
            owner = 0 if plan.as_root else uid
            tracing = self.recorder.watch(request.run_id, group.identity, plan.trace, rules, addresses, owner, places)
            stack.callback(tracing.close)
        sent = SentDescriptors()
        stack.callback(sent.close)
        root = await self._make_root(request, native, uid, sent, stack)
        places += root.programs
        stack.callback(places.clear)  # before their descriptors are closed
        sandbox = NativeSandbox(
            loop, group, plan, request, self.settings, root.places, plan.enforcement, self._collectors, tracing
        )
        stack.callback(sandbox.close_streams)
        sandbox.open_streams(sent, 0 if plan.as_root else uid)
        descriptors = Descriptors(
            stdin=sent.named["stdin"],
            stdout=sent.named["stdout"],
            stderr=sent.named["stderr"],
            cgroup=sent.keep(group.unified.directory),
            tmpfs=sent.named.get("tmpfs", -1),
            v1=tuple(sent.keep(fd) for fd in group.v1_tasks.values()),
            mounts=root.mounts,
        )
        body = encode_plan(
            root.plan,
            descriptors,
            host_id=0 if plan.as_root else uid,
            filter_program=self._filter(plan),
            file_mounts=root.file_mounts,
            owners=root.owners,
        )
        ready = [launcher for launcher in self.launchers if launcher.is_open]
        if not ready:
            raise LaunchFailed("every launcher has ended; they are being restarted", metadata={"stage": "launcher"})
        launcher = min(ready, key=lambda one: one.alive)
        sandbox.launched = launcher.launch(body, sent.fds, sent.close)
        # Registered last, hence first to happen: whatever is alive is ended before anything is taken from under it.
        stack.push_async_callback(sandbox.end)
        return sandbox

    def _filter(self, plan: LaunchPlan) -> bytes:
        """The plan's filter, compiled once for all plans alike; the oldest is forgotten where policies come and go."""
        if plan.syscalls is None:
            return b""
        key = (plan.syscalls.digest, plan.notify)
        found = self._filters.get(key)
        if found is None:
            if len(self._filters) >= _MAX_FILTERS:
                del self._filters[next(iter(self._filters))]
            found = self._filters[key] = compile_filter(plan.syscalls, notify=plan.notify).program
        return found

    def _host_programs(self, view: RootView) -> list[Below]:
        """Where programs of the host are; none for a run with a root of its own."""
        return [] if view.source else [Below(path, fd, fixed=True) for path, fd in self._tops.items()]

    def _rules(self, policy: Policy) -> RuleSet:
        """The policy's rules made ready, once for all its runs."""
        found = self._rule_sets.get(policy.digest)
        if found is None:
            if len(self._rule_sets) >= _MAX_RULE_SETS:
                del self._rule_sets[next(iter(self._rule_sets))]
            found = self._rule_sets[policy.digest] = RuleSet(policy)
        return found

    async def _make_root(
        self, request: SandboxRequest, native: NativePlan, uid: int, sent: SentDescriptors, stack: AsyncExitStack
    ) -> _Root:
        plan, spec = native.plan, request.spec
        if not plan.private_root:
            return await self._make_work_directory(request, plan, uid, stack)
        tmpfs = rootfs.run_tmpfs(plan.limits)
        sent.add("tmpfs", tmpfs)
        root = _Root(plan)
        root.keep_programs(b"/", tmpfs, stack)
        if native.view.source:
            own = sources.open_directory(native.view.source)
            stack.callback(os.close, own)
            root.programs.append(Below("/", own, slow=True))
        if spec.files or spec.collect:
            files.make_places(tmpfs, uid)
        inline = spec.policy_toml is not None
        as_root = [0] if plan.as_root else []
        for index, mount in enumerate(plan.mounts):
            own = len(plan.mounts) - len(spec.mounts)
            label = f"mounts[{spec.mounts.index(mount)}].source" if index >= own else "filesystem"
            refusal = self.settings.mount_refusal if index >= own or inline else _never
            source = await self._open_source(mount, label, refusal)
            root.mounts[index] = sent.take(source.tree)
            stack.callback(os.close, source.directory)
            root.owners[index] = source.owner
            if not source.is_file:
                root.keep_programs(mount.target, source.directory, stack, slow=True)
            if source.is_file:
                root.file_mounts |= {index}
            elif mount.writable and spec.collect:
                root.places[mount.target] = Place(source.directory, frozenset({source.owner[0], *as_root}))
        self._open_trees(native, inline, root, sent)
        if spec.files:
            _refuse_files_into_mounts(spec, plan)
            await _in_thread_if_large(files.cost(spec.files), lambda: files.put_files(tmpfs, spec.files, uid))
        if spec.collect:
            for path in (b"/work", b"/tmp", b"/dev/shm"):
                if path in plan.writable and path not in root.places:
                    fd = os.open(path[1:], os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=tmpfs)
                    stack.callback(os.close, fd)
                    root.places[path] = Place(fd, frozenset({uid, *as_root}))
        return root

    def _open_trees(self, native: NativePlan, inline: bool, root: _Root, sent: SentDescriptors) -> None:
        """What is mounted beside the request's mounts: the trees of a root directory, the host's resolv.conf."""
        wanted = [op for op in native.plan.ops if op.mount is not None and op.mount not in root.mounts]
        if not wanted:
            return
        top = sources.open_directory(native.view.source) if native.view.source else -1
        try:
            if inline and top >= 0:
                sources.refuse(top, "filesystem.root", self.settings.mount_refusal)
            for op in wanted:
                assert op.mount is not None
                fd = sources.open_file("/etc/resolv.conf") if top < 0 else sources.open_tree_below(top, op.target[1:])
                root.mounts[op.mount] = sent.take(fd)
        finally:
            if top >= 0:
                os.close(top)

    async def _address_rules(self, plan: AddressPlan | None) -> AddressRules | None:
        """Off the loop: names are looked up, and a name server may be slow or gone."""
        if plan is None:
            return None
        looking = asyncio.get_running_loop().run_in_executor(
            self._openers, make_rules, plan.allow, plan.deny, plan.deny_rest, None, plan.kill
        )
        try:
            return await asyncio.wait_for(asyncio.shield(looking), _LOOK_UP_SECONDS)
        except TimeoutError:
            raise InvalidRequest(
                f"allow: its names were not looked up within {_LOOK_UP_SECONDS:g} s", field="allow"
            ) from None

    async def _open_source(self, mount: Mount, label: str, refusal: Callable[[str], str]) -> sources.Source:
        """Off the loop: a file system whose server is gone answers late or never."""
        loop = asyncio.get_running_loop()
        opening = loop.run_in_executor(self._openers, sources.open_source, mount, label, refusal)
        try:
            return await asyncio.wait_for(asyncio.shield(opening), _OPEN_SECONDS)
        except TimeoutError:
            opening.add_done_callback(_close_late)
            raise InvalidRequest(
                f"{label}: its file system has not answered within {_OPEN_SECONDS:g} s", field=label
            ) from None
        except asyncio.CancelledError:
            opening.add_done_callback(_close_late)
            raise

    async def _make_work_directory(
        self, request: SandboxRequest, plan: LaunchPlan, uid: int, stack: AsyncExitStack
    ) -> _Root:
        """Without a root of its own a run works in a directory of the host's /tmp, which goes with it."""
        path = tempfile.mkdtemp(prefix=f"supervisor-{self.settings.instance}-", dir="/tmp")
        stack.push_async_callback(_remove_work_directory, path)
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        stack.callback(os.close, fd)
        owner = 0 if plan.as_root else uid
        os.mkdir("work", dir_fd=fd)
        os.chmod(path, 0o755)
        os.chown("work", owner, owner, dir_fd=fd)
        work = os.open("work", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=fd)
        stack.callback(os.close, work)
        inputs = request.spec.files
        await _in_thread_if_large(files.cost(inputs), lambda: files.put_files(fd, inputs, owner))
        cwd = request.spec.cwd or os.fsencode(path) + WORK
        made = _Root(replace(plan, cwd=cwd), places={WORK: Place(work, frozenset({owner}))})
        made.keep_programs(os.fsencode(path) + WORK, work, stack)
        return made


@dataclass(slots=True)
class _Root:
    """A run's root as far as the daemon makes it; `places` are what files may be collected from."""

    plan: LaunchPlan
    mounts: dict[int, int] = field(default_factory=dict)
    owners: dict[int, tuple[int, int]] = field(default_factory=dict)
    file_mounts: frozenset[int] = frozenset()
    places: dict[bytes, Place] = field(default_factory=dict)
    programs: list[Below] = field(default_factory=list)

    def keep_programs(self, path: bytes, fd: int, stack: AsyncExitStack, *, slow: bool = False) -> None:
        """What is executed below `path` is to be found below a copy of `fd`, for as long as the run lasts."""
        kept = os.dup(fd)
        stack.callback(os.close, kept)
        self.programs.append(Below(os.fsdecode(path), kept, slow))


async def _in_thread_if_large(size: int, work: Callable[[], None]) -> None:
    """A few small files are written faster than a thread is woken."""
    if size > 1 << 18:
        await asyncio.to_thread(work)
    else:
        work()


async def _remove_work_directory(path: str) -> None:
    """What is left after an error goes with the next start of the daemon."""
    try:
        await asyncio.to_thread(remove_tree, path)
    except OSError as error:
        log.warning("work_directory_left", path=path, error=str(error))


def _close_late(opening: asyncio.Future[sources.Source]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()


def _never(_path: str) -> str:
    """The paths of a policy that the daemon knows are the operator's word; those of an inline one are its client's."""
    return ""


def _refuse_files_into_mounts(spec: RunSpec, plan: LaunchPlan) -> None:
    """The host's side of a mount is its owner's to write; a file put there would be lost below it anyway."""
    for index, file in enumerate(spec.files):
        path = file.path if file.path.startswith(b"/") else WORK + b"/" + file.path
        for mount in plan.mounts:
            if path == mount.target or path.startswith(mount.target + b"/"):
                raise InvalidRequest(
                    f"files[{index}].path: {mount.target.decode('utf-8', 'replace')} is a mount of this run; "
                    "put the file elsewhere below /work, /tmp or /dev/shm",
                    field=f"files[{index}].path",
                )
