"""The native backend: a sandbox out of the kernel's own parts, built by the launcher after a LaunchPlan.

One run, top to bottom: `check` makes the plan; `start` takes a uid, makes control groups, root, streams, and hands them
over; `NativeSandbox` is the run while it lives; leaving the context takes everything back in reverse order.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import structlog

from supervisor.backends.base import SandboxRequest
from supervisor.backends.native_root import RootMaker
from supervisor.backends.native_sandbox import NativeSandbox, NativeSettings, SentDescriptors, remove_group
from supervisor.errors import HostLacks, InvalidRequest, LaunchFailed
from supervisor.evidence.programs import Below
from supervisor.launcher.process import Launcher
from supervisor.launcher.protocol import Descriptors, encode_plan
from supervisor.linux import rootfs, sources
from supervisor.linux.cgroup import Hierarchies, RunGroup
from supervisor.linux.seccomp import compile_filter
from supervisor.linux.uids import UidPool
from supervisor.model import HostFeatures, RunSpec, TraceLevel
from supervisor.plan import AddressPlan, LaunchPlan, build
from supervisor.plan_root import OpKind, RootView
from supervisor.policy import EffectivePolicy, Policy
from supervisor.probes.addresses import AddressRules, make_rules
from supervisor.probes.recorder import Recorder
from supervisor.rules.detector import RuleSet

log = structlog.get_logger(__name__)

_MAX_FILTERS = 64
_MAX_RULE_SETS = 64
_PROGRAM_TOPS = ("/usr", "/bin", "/sbin", "/lib", "/lib64", "/opt")
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
    _roots: RootMaker = field(init=False)

    def __post_init__(self) -> None:
        self._uids = UidPool(self.settings.uid_base, self.settings.uid_count)
        self._roots = RootMaker(self.settings, self._openers)
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
        root = await self._roots.make(request.spec, plan, native.view, uid, sent, stack)
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
