"""A native run's root as far as the daemon makes it: the tmpfs, what is mounted into it, files put there, the work directory.

The launcher puts it together after the plan. Whatever is opened here is closed by the run's exit stack.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace

import structlog

from supervisor.backends.native_sandbox import NativeSettings, SentDescriptors
from supervisor.errors import InvalidRequest
from supervisor.evidence.programs import Below
from supervisor.linux import files, rootfs, sources
from supervisor.linux.collect import Place
from supervisor.linux.trees import remove_tree
from supervisor.model import Mount, RunSpec
from supervisor.plan import LaunchPlan
from supervisor.plan_root import WORK, RootView, below_work

log = structlog.get_logger(__name__)

_OPEN_SECONDS = 5.0


@dataclass(slots=True)
class Root:
    """What the daemon has made of a run's root; `places` are what files may be collected from."""

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


@dataclass(frozen=True, slots=True)
class RootMaker:
    """Makes the roots of one backend's runs; `openers` are the threads that open mount sources."""

    settings: NativeSettings
    openers: Executor

    async def make(
        self, spec: RunSpec, plan: LaunchPlan, view: RootView, uid: int, sent: SentDescriptors, stack: AsyncExitStack
    ) -> Root:
        """A root for one run. What it holds on the host is taken back with `stack`, which closes `sent`, too.

        Raises InvalidRequest, PolicyRefused or HostLacks.
        """
        if not plan.private_root:
            return await self._make_work_directory(spec, plan, uid, stack)
        tmpfs = rootfs.run_tmpfs(plan.limits)
        sent.add("tmpfs", tmpfs)
        root = Root(plan)
        root.keep_programs(b"/", tmpfs, stack)
        if view.source:
            own = sources.open_directory(view.source)
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
        self._open_trees(plan, view, inline, root, sent)
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

    def _open_trees(self, plan: LaunchPlan, view: RootView, inline: bool, root: Root, sent: SentDescriptors) -> None:
        """What is mounted beside the request's mounts: the trees of a root directory, the host's resolv.conf."""
        wanted = [op for op in plan.ops if op.mount is not None and op.mount not in root.mounts]
        if not wanted:
            return
        top = sources.open_directory(view.source) if view.source else -1
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

    async def _open_source(self, mount: Mount, label: str, refusal: Callable[[str], str]) -> sources.Source:
        """Off the loop: a file system whose server is gone answers late or never."""
        loop = asyncio.get_running_loop()
        opening = loop.run_in_executor(self.openers, sources.open_source, mount, label, refusal)
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

    async def _make_work_directory(self, spec: RunSpec, plan: LaunchPlan, uid: int, stack: AsyncExitStack) -> Root:
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
        await _in_thread_if_large(files.cost(spec.files), lambda: files.put_files(fd, spec.files, owner))
        cwd = spec.cwd or os.fsencode(path) + WORK
        made = Root(replace(plan, cwd=cwd), places={WORK: Place(work, frozenset({owner}))})
        made.keep_programs(os.fsencode(path) + WORK, work, stack)
        return made


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
        path = below_work(file.path)
        for mount in plan.mounts:
            if path == mount.target or path.startswith(mount.target + b"/"):
                raise InvalidRequest(
                    f"files[{index}].path: {mount.target.decode('utf-8', 'replace')} is a mount of this run; "
                    "put the file elsewhere below /work, /tmp or /dev/shm",
                    field=f"files[{index}].path",
                )
