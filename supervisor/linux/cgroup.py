"""One control group per run, on v2 and on hybrid hosts: cgroups(7), Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/.

Identity, kill and CPU time are always the v2 tree's. Limits go to v2 where the controller is there, to its v1 hierarchy
where not. The files themselves are in `cgroup_files`.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from supervisor.errors import LaunchFailed
from supervisor.linux.cgroup_files import CpuGroup, Group, MemoryGroup, PidsGroup, UnifiedGroup, quota_us
from supervisor.linux.host import CgroupLayout
from supervisor.model import Limits, Usage

TOP = "supervisor"
"""The name below which every instance has its groups, in each hierarchy."""

_LIMITED = ("memory", "pids", "cpu")
_V1_KINDS: Mapping[str, type[Group]] = {"memory": MemoryGroup, "pids": PidsGroup, "cpu": CpuGroup}


@dataclass(slots=True)
class Hierarchies:
    """The instance's own directory in every hierarchy it needs: where run groups are made."""

    layout: CgroupLayout
    instance: str
    unified: int
    v1: Mapping[str, int]
    paths: tuple[str, ...]
    group: str

    @classmethod
    def create(cls, layout: CgroupLayout, instance: str, parent: str = "") -> Hierarchies:
        """Makes PARENT/INSTANCE (by default supervisor/INSTANCE) everywhere. Raises LaunchFailed with the file it was at."""
        top = parent.strip("/") or TOP
        v1_names = [name for name in _LIMITED if name not in layout.controllers_v2]
        path = layout.v2_mount
        try:
            wanted = [name for name in (*_LIMITED, "io") if name in layout.controllers_v2]
            _enable(path, wanted)
            for part in (*top.split("/"), instance):
                path = os.path.join(path, part)
                os.makedirs(path, exist_ok=True)
                _enable(path, wanted)
            paths = [path]
            unified = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            v1 = {}
            for name in v1_names:
                path = os.path.join(layout.v1_mounts[name], top, instance)
                os.makedirs(path, exist_ok=True)
                v1[name] = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
                paths.append(path)
        except (OSError, KeyError) as error:
            raise LaunchFailed(
                f"cannot make the control group {path}: {error}", metadata={"stage": "cgroup", "path": path}
            ) from error
        return cls(layout, instance, unified, v1, tuple(paths), f"{top}/{instance}")

    def remove(self) -> None:
        """Removes the instance's directories, which must be empty of runs, and TOP where it is the last."""
        os.close(self.unified)
        for fd in self.v1.values():
            os.close(fd)
        for path in self.paths:
            with contextlib.suppress(OSError):
                os.rmdir(path)
                os.rmdir(os.path.dirname(path))


def _enable(path: str, controllers: Iterable[str]) -> None:
    for name in controllers:
        with open(os.path.join(path, "cgroup.subtree_control"), "w") as file:
            file.write(f"+{name}")


@dataclass(slots=True)
class RunGroup:
    """The groups of one run. `close` is idempotent; `removed` says whether every directory is gone."""

    name: str
    hierarchies: Hierarchies
    unified: UnifiedGroup
    v1: dict[str, Group]
    v1_tasks: dict[str, int]
    kill_fd: int
    removed: bool = False
    _closed: bool = field(default=False)

    @classmethod
    def create(cls, hierarchies: Hierarchies, name: str, limits: Limits) -> RunGroup:
        """Makes the groups and writes the limits. Raises LaunchFailed; nothing stays behind then."""
        opened: list[int] = []
        made: list[int] = []
        step = "v2"
        try:
            unified = UnifiedGroup(_make(hierarchies.unified, name, made, opened))
            v1 = {}
            tasks = {}
            for step, parent in hierarchies.v1.items():
                if step == "cpu" and limits.cpus is None:
                    continue
                v1[step] = _V1_KINDS[step](_make(parent, name, made, opened))
                tasks[step] = os.open("tasks", os.O_WRONLY | os.O_CLOEXEC, dir_fd=v1[step].directory)
                opened.append(tasks[step])
            step = "limits"
            _write_limits(unified, v1, limits)
            step = "cgroup.kill"
            kill_fd = os.open("cgroup.kill", os.O_WRONLY | os.O_CLOEXEC, dir_fd=unified.directory)
        except OSError as error:
            for fd in opened:
                os.close(fd)
            for parent in made:
                with contextlib.suppress(OSError):
                    os.rmdir(name, dir_fd=parent)
            raise LaunchFailed(
                f"cannot make the run's control group ({step}): {error}",
                metadata={"stage": "cgroup", "step": step, "errno": str(error.errno or 0)},
            ) from error
        return cls(name, hierarchies, unified, v1, tasks, kill_fd)

    @property
    def identity(self) -> int:
        """The id of the group in the v2 tree, as bpf_get_current_cgroup_id(7) tells it: its directory's inode number."""
        return os.fstat(self.unified.directory).st_ino

    def kill(self) -> None:
        """Ends every process of the run at once, forks in flight included. Safe to repeat."""
        if not self._closed:
            with contextlib.suppress(OSError):
                os.write(self.kill_fd, b"1")

    @property
    def populated(self) -> bool:
        return bool(self.unified.events.get("populated"))

    def cpu_seconds(self) -> float:
        """User and system time of everything that ever ran in the group, in seconds."""
        return float(self.unified.cpu_stat["usage_usec"]) / 1e6

    def usage(self) -> Usage:
        """What the groups have counted; fields they cannot count are None."""
        cpu = self.unified.cpu_stat
        usage = Usage(cpu_user_seconds=cpu["user_usec"] / 1e6, cpu_system_seconds=cpu["system_usec"] / 1e6)
        usage = self._v1_usage(usage) if self.v1 else self._v2_usage(usage, cpu)
        if usage.pids_peak is not None:  # init is ours
            usage = replace(usage, pids_peak=max(usage.pids_peak - 1, 0))
        return usage

    def _v2_usage(self, usage: Usage, cpu: Mapping[str, int]) -> Usage:
        group = self.unified
        memory = group.memory_events
        io = _io(group)
        return replace(
            usage,
            memory_peak_bytes=_optional(group, "memory_peak"),
            pids_peak=_optional(group, "pids_peak"),
            pids_limit_hits=group.pids_events.get("max"),
            memory_limit_hits=memory.get("max"),
            oom_kills=memory.get("oom_kill"),
            cpu_throttled_seconds=cpu.get("throttled_usec", 0) / 1e6,
            io_read_bytes=io["rbytes"] if io else None,
            io_write_bytes=io["wbytes"] if io else None,
        )

    def _v1_usage(self, usage: Usage) -> Usage:
        memory, pids, cpu = self.v1.get("memory"), self.v1.get("pids"), self.v1.get("cpu")
        if isinstance(memory, MemoryGroup):
            killed = memory.oom_control.get("oom_kill", 0)
            usage = replace(
                usage,
                memory_peak_bytes=memory.peak,
                # With both limits equal it is the one with swap that is hit; 6.18 counts neither when it ends in a kill.
                memory_limit_hits=max(memory.limit_hits + (_optional(memory, "limit_with_swap_hits") or 0), killed),
                oom_kills=killed,
            )
        if isinstance(pids, PidsGroup):
            usage = replace(usage, pids_peak=_optional(pids, "peak"), pids_limit_hits=pids.events.get("max"))
        throttled = cpu.stat.get("throttled_time", 0) / 1e9 if isinstance(cpu, CpuGroup) else 0.0
        return replace(usage, cpu_throttled_seconds=throttled)

    def remove(self) -> bool:
        """Removes the directories; false while a process still holds one (try again)."""
        for parent in (*self.hierarchies.v1.values(), self.hierarchies.unified):
            try:
                os.rmdir(self.name, dir_fd=parent)
            except FileNotFoundError:
                continue
            except OSError as error:
                if error.errno == errno.EBUSY:
                    return False
                raise
        self.removed = True
        return True

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            for fd in (self.unified.directory, self.kill_fd, *self.v1_tasks.values()):
                os.close(fd)
            for group in self.v1.values():
                os.close(group.directory)


def _make(parent: int, name: str, made: list[int], opened: list[int]) -> int:
    os.mkdir(name, 0o755, dir_fd=parent)
    made.append(parent)
    fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=parent)
    opened.append(fd)
    return fd


def _write_limits(unified: UnifiedGroup, v1: Mapping[str, Group], limits: Limits) -> None:
    memory, pids, cpu = v1.get("memory"), v1.get("pids"), v1.get("cpu")
    if limits.memory is not None:
        if isinstance(memory, MemoryGroup):
            memory.limit = limits.memory
            with contextlib.suppress(FileNotFoundError):  # no swap accounting
                memory.limit_with_swap = limits.memory
            with contextlib.suppress(FileNotFoundError):
                # What TCP and UDP hold in buffers is an account of its own in v1, and unlimited.
                memory.sockets_limit = limits.memory
        else:
            unified.memory_max = limits.memory
            with contextlib.suppress(FileNotFoundError):
                unified.memory_swap_max = 0
    if limits.pids is not None:
        # One more for the run's init, which is ours.
        target = min(limits.pids + 1, 4 << 20)
        if isinstance(pids, PidsGroup):
            pids.limit = target
        else:
            unified.pids_max = target
    if limits.cpus is not None:
        if isinstance(cpu, CpuGroup):
            cpu.quota_us = quota_us(limits.cpus)
        else:
            unified.cpu_max = limits.cpus


def _optional(group: Group, name: str) -> int | None:
    try:
        value: int | None = getattr(group, name)
    except OSError:
        return None
    return value


def _io(group: UnifiedGroup) -> dict[str, int] | None:
    try:
        totals: dict[str, int] = group.io_stat
    except OSError:  # the controller is not there
        return None
    return totals


def leftover_instances(layout: CgroupLayout, parent: str = "") -> Iterator[str]:
    """Names of instances that have groups anywhere, ours included."""
    top = parent.strip("/") or TOP
    names: set[str] = set()
    for mount in (layout.v2_mount, *layout.v1_mounts.values()):
        with contextlib.suppress(OSError), os.scandir(os.path.join(mount, top)) as found:
            names.update(entry.name for entry in found if entry.is_dir(follow_symlinks=False))
    yield from sorted(names)


def kill_instance(layout: CgroupLayout, instance: str, parent: str = "") -> None:
    """Ends every process of an instance that is no more."""
    path = os.path.join(layout.v2_mount, parent.strip("/") or TOP, instance, "cgroup.kill")
    with contextlib.suppress(OSError), open(path, "w") as file:
        file.write("1")


def remove_instance(layout: CgroupLayout, instance: str, parent: str = "") -> bool:
    """Removes what an instance left in every hierarchy; false while a process still holds one of its groups."""
    top = parent.strip("/") or TOP
    gone = True
    for mount in {layout.v2_mount, *layout.v1_mounts.values()}:
        path = os.path.join(mount, top, instance)
        for directory, _, _ in os.walk(path, topdown=False):
            try:
                os.rmdir(directory)
            except FileNotFoundError:
                continue
            except OSError:
                gone = False
        with contextlib.suppress(OSError):
            os.rmdir(os.path.join(mount, top))
    return gone
