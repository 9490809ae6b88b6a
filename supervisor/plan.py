"""What will be done for one run: RunSpec, policy and host features in, a LaunchPlan out. Pure: no I/O.

The same input gives the same plan (tests/unit/golden holds one for each shipped policy). What the host cannot do fails
here, with the feature and its remedy; nothing is silently left out.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from enum import IntEnum

from supervisor.errors import HostLacks, InvalidRequest, PolicyRefused
from supervisor.model import Enforcement, HostFeatures, Limits, Mount, NetworkMode, RunSpec, TraceLevel
from supervisor.policy import EffectivePolicy, Policy, Syscalls

INNER_ID = 1000
"""The uid and gid that a run has inside its user namespace, where policy gives it one."""

HOSTNAME = b"sandbox"
MAX_MOUNTS = 48
WORK = b"/work"
BASE_ENVIRONMENT: tuple[tuple[bytes, bytes], ...] = (
    (b"PATH", b"/usr/local/bin:/usr/bin:/bin"),
    (b"HOME", b"/tmp"),
    (b"TMPDIR", b"/tmp"),
    (b"LANG", b"C.UTF-8"),
)

_FEATURE_OF_NAMESPACE = {
    "pid": "pid_namespace",
    "mount": "mount_namespace",
    "network": "network_namespace",
    "ipc": "ipc_namespace",
    "uts": "uts_namespace",
    "cgroup": "cgroup_namespace",
    "user": "user_namespace",
}

# mount_setattr(2)
RDONLY, NOSUID, NODEV, NOEXEC = 0x1, 0x2, 0x4, 0x8

# landlock(7): rights, and the ABI that brought each.
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_MAKE_CHAR, _MAKE_BLOCK = 1 << 6, 1 << 11
_REFER, _TRUNCATE, _IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15
_SCOPE_ABI = 6
_SCOPES = 0b11  # abstract Unix sockets, signals


class OpKind(IntEnum):
    """enum op_kind of launcher/protocol.h."""

    MKDIR = 1
    FILE = 2
    SYMLINK = 3
    TEMPLATE = 4
    MOUNT = 5
    BIND = 6
    PROC = 7
    DEVPTS = 8
    SETATTR = 9
    HIDE = 10
    DEVICE = 11


@dataclass(frozen=True, slots=True)
class Op:
    """One step of building the root, carried out by the launcher in order; `number` is a device's (major, minor).

    `own`: what is made belongs to the run's user. `mount` is an index into LaunchPlan.mounts (OpKind.MOUNT) and
    `idmap` asks that the mounted tree's owner appears as the run's user (`idmap_optional`: else as it is).
    """

    kind: OpKind
    target: bytes
    source: bytes = b""
    mode: int = 0
    attributes: int = 0
    own: bool = False
    recursive: bool = False
    mount: int | None = None
    idmap: bool = False
    idmap_optional: bool = False
    number: tuple[int, int] = (0, 0)


@dataclass(frozen=True, slots=True)
class RootEntry:
    """A name at the top of the root: a symbolic link (`link` set), a template the launcher holds, or a tree to mount."""

    name: bytes
    link: bytes | None = None
    template: bool = False


@dataclass(frozen=True, slots=True)
class RootView:
    """What a root shows at its top. `source` is the directory it is taken from, empty for the host's own programs."""

    entries: tuple[RootEntry, ...]
    source: bytes = b""


@dataclass(frozen=True, slots=True)
class LandlockRule:
    path: bytes
    access: int


@dataclass(frozen=True, slots=True)
class LaunchPlan:
    """Everything the backend does for one run. Names and counts only: descriptors, uids and paths on the host come later."""

    policy: str
    argv: tuple[bytes, ...]
    env: tuple[tuple[bytes, bytes], ...]
    cwd: bytes
    namespaces: tuple[str, ...]
    ops: tuple[Op, ...]
    mounts: tuple[Mount, ...]
    inner_id: int | None
    as_root: bool
    landlock_fs: int
    landlock_scoped: int
    landlock_rules: tuple[LandlockRule, ...]
    rlimits: tuple[tuple[str, int], ...]
    syscalls: Syscalls | None
    notify: bool
    limits: Limits
    network: NetworkMode
    trace: TraceLevel
    terminal: bool
    oom_score_adj: int
    writable: tuple[bytes, ...]
    enforcement: Enforcement

    @property
    def private_root(self) -> bool:
        return "mount" in self.namespaces


def build(
    spec: RunSpec, effective: EffectivePolicy, host: HostFeatures, view: RootView, host_paths: Collection[str] = ()
) -> LaunchPlan:
    """The plan of one run. `view` is what its root shows; `host_paths` those of the policy's paths that the host has.

    Raises HostLacks, PolicyRefused or InvalidRequest.
    """
    policy = effective.policy
    _check_network(effective)
    _check_host(policy, host)
    if policy.process.capabilities:
        raise HostLacks(
            f"policy {policy.name}: process.capabilities are not granted by the native backend",
            field="process.capabilities",
            metadata={"feature": "capabilities", "remedy": "leave the list empty"},
        )
    namespaces = _namespaces(policy, effective.network)
    private = "mount" in namespaces
    if not private:
        _check_without_root(spec, policy, effective.limits)
    mounts = _mounts(spec, policy, host_paths) if private else ()
    ops = tuple(_root_ops(policy, effective.network, view, mounts, len(mounts) - len(spec.mounts))) if private else ()
    writable = _writable(policy, mounts) if private else ()
    landlock = host.landlock_abi if policy.isolation.landlock and private else 0
    notify = policy.syscalls.filters and host.has("seccomp_notify")
    return LaunchPlan(
        policy=policy.name,
        argv=spec.argv,
        env=_environment(spec, policy),
        cwd=spec.cwd or WORK,
        namespaces=namespaces,
        ops=ops,
        mounts=mounts,
        inner_id=INNER_ID if "user" in namespaces else None,
        as_root=policy.process.user == "root",
        landlock_fs=_landlock_handled(landlock),
        landlock_scoped=_SCOPES if landlock >= _SCOPE_ABI else 0,
        landlock_rules=tuple(_landlock_rules(landlock, writable)),
        rlimits=tuple(_rlimits(effective.limits, policy)),
        syscalls=policy.syscalls if policy.syscalls.filters else None,
        notify=notify,
        limits=effective.limits,
        network=effective.network,
        trace=effective.trace,
        terminal=spec.terminal,
        oom_score_adj=300 if private else 0,
        writable=writable,
        enforcement=_enforcement(policy, effective, host, namespaces, landlock, notify),
    )


def _namespaces(policy: Policy, network: NetworkMode) -> tuple[str, ...]:
    """The policy's, as the network wants it: none needs a namespace of its own, full the host's."""
    names = tuple(name for name in policy.isolation.namespaces if name != "network")
    if network is NetworkMode.FULL:
        return names
    return policy.isolation.namespaces if "network" in policy.isolation.namespaces else (*names, "network")


def _check_network(effective: EffectivePolicy) -> None:
    if effective.network in (NetworkMode.INTERNAL, NetworkMode.FILTERED):
        raise HostLacks(
            f"network {effective.network.value} needs the address filter of the eBPF probes, which this build does not have",
            reason="NETWORK_MODE_NOT_AVAILABLE",
            field="network",
            metadata={"feature": "cgroup_bpf", "remedy": "use network none or full"},
        )


def _check_host(policy: Policy, host: HostFeatures) -> None:
    needed = [_FEATURE_OF_NAMESPACE[name] for name in policy.isolation.namespaces]
    needed += ["cgroup2", "cgroup_kill", "pidfd", "clone_into_cgroup", "memory_limit", "pids_limit", "cpu_limit"]
    if "mount" in policy.isolation.namespaces:
        needed += ["new_mount_api", "openat2"]
    if policy.syscalls.filters:
        needed.append("seccomp_filter")
    for name in needed:
        if not host.has(name):
            feature = host.features.get(name)
            detail = feature.detail if feature else "not probed"
            remedy = feature.remedy if feature else "see `supervisor doctor`"
            raise HostLacks(
                f"policy {policy.name} needs {name}, which this host lacks: {detail}. {remedy}",
                metadata={"feature": name, "remedy": remedy},
            )


def _check_without_root(spec: RunSpec, policy: Policy, limits: Limits) -> None:
    """Without a mount namespace there is no root of its own to put mounts or a bounded tmpfs into."""
    asked = {
        "mounts": bool(spec.mounts),
        "limits.disk": limits.disk is not None,
        "limits.inodes": limits.inodes is not None,
        "image": spec.image is not None,
    }
    for name, wanted in asked.items():
        if wanted:
            raise InvalidRequest(
                f"{name} needs a mount namespace, which policy {policy.name} does not give; use moderate or stricter",
                field=name,
            )


def _environment(spec: RunSpec, policy: Policy) -> tuple[tuple[bytes, bytes], ...]:
    merged = dict(BASE_ENVIRONMENT)
    merged.update((name.encode(), value.encode()) for name, value in policy.process.env.items())
    merged.update(spec.env)
    return tuple(merged.items())


def _mounts(spec: RunSpec, policy: Policy, host_paths: Collection[str]) -> tuple[Mount, ...]:
    own = [
        Mount(path.encode(), path.encode(), writable)
        for paths, writable in ((policy.filesystem.read_only, False), (policy.filesystem.read_write, True))
        for path in paths
        if path in host_paths
    ]
    if spec.mounts and policy.filesystem.work == "ro":
        for index, mount in enumerate(spec.mounts):
            if mount.writable:
                raise PolicyRefused(
                    f"mounts[{index}]: policy {policy.name} lets nothing be mounted writable",
                    field=f"mounts[{index}]",
                    metadata={"policy": policy.name, "requested": "rw", "maximum": "ro"},
                )
    if len(own) + len(spec.mounts) > MAX_MOUNTS:
        raise InvalidRequest(f"mounts: at most {MAX_MOUNTS} for one run", field="mounts")
    # Parents before what lies below them, whatever the order of the request.
    return (*own, *sorted(spec.mounts, key=lambda mount: mount.target.count(b"/")))


_ATTRIBUTES = {"rw": NOSUID | NODEV, "noexec": NOSUID | NODEV | NOEXEC, "ro": NOSUID | NODEV | NOEXEC | RDONLY}

_DEVICES = (
    (b"null", (1, 3)),
    (b"zero", (1, 5)),
    (b"full", (1, 7)),
    (b"random", (1, 8)),
    (b"urandom", (1, 9)),
    (b"tty", (5, 0)),
)
_DEVICE_LINKS = (
    (b"fd", b"/proc/self/fd"),
    (b"stdin", b"/proc/self/fd/0"),
    (b"stdout", b"/proc/self/fd/1"),
    (b"stderr", b"/proc/self/fd/2"),
    (b"ptmx", b"pts/ptmx"),
)
_HIDDEN_IN_PROC = (
    b"/proc/acpi",
    b"/proc/bus",
    b"/proc/config.gz",
    b"/proc/fs",
    b"/proc/irq",
    b"/proc/kallsyms",
    b"/proc/kcore",
    b"/proc/keys",
    b"/proc/key-users",
    b"/proc/kmsg",
    b"/proc/latency_stats",
    b"/proc/sched_debug",
    b"/proc/scsi",
    b"/proc/sysrq-trigger",
    b"/proc/timer_list",
)


def _root_ops(
    policy: Policy, network: NetworkMode, view: RootView, mounts: tuple[Mount, ...], own: int
) -> Iterator[Op]:
    files = policy.filesystem
    for index, entry in enumerate(view.entries):
        target = b"/" + entry.name
        if entry.link is not None:
            yield Op(OpKind.SYMLINK, target, source=entry.link)
            continue
        yield Op(OpKind.MKDIR, target, mode=0o755)
        if entry.template:
            yield Op(OpKind.TEMPLATE, target, source=entry.name)
        else:
            # A tree of a root directory; the backend opens these after the mounts, in the view's order.
            yield Op(
                OpKind.MOUNT,
                target,
                attributes=RDONLY | NOSUID | NODEV,
                recursive=True,
                mount=len(mounts) + _tree_index(view, index),
            )
    if network is NetworkMode.FULL and not view.source:
        yield Op(OpKind.MOUNT, b"/etc/resolv.conf", attributes=RDONLY | NOSUID | NODEV | NOEXEC, mount=-1)
    yield Op(OpKind.MKDIR, b"/proc", mode=0o555)
    yield Op(OpKind.PROC, b"/proc", attributes=RDONLY | NOSUID | NODEV | NOEXEC)
    for path in _HIDDEN_IN_PROC:
        yield Op(OpKind.HIDE, path)
    yield Op(OpKind.MKDIR, b"/dev", mode=0o755)
    for name, number in _DEVICES:
        yield Op(OpKind.DEVICE, b"/dev/" + name, mode=0o666, number=number)
    for name, link in _DEVICE_LINKS:
        yield Op(OpKind.SYMLINK, b"/dev/" + name, source=link)
    yield Op(OpKind.MKDIR, b"/dev/pts", mode=0o755)
    yield Op(OpKind.DEVPTS, b"/dev/pts", attributes=NOSUID | NOEXEC)
    shared_memory = _ATTRIBUTES["ro" if files.tmp == "ro" else "noexec"]
    work_mounted = any(mount.target == WORK for mount in mounts)
    for path, mode, attributes in (
        (b"/dev/shm", 0o1777, shared_memory),  # the run's own, not the host's
        (b"/tmp", 0o1777, _ATTRIBUTES[files.tmp]),
        (WORK, 0o755, _ATTRIBUTES[files.work]),
    ):
        yield Op(OpKind.MKDIR, path, mode=mode, own=path == WORK)
        if path != WORK or not work_mounted:
            yield Op(OpKind.BIND, path, source=path, attributes=attributes)
    for index, mount in enumerate(mounts):
        inside = mount.target.startswith((b"/tmp/", b"/work/", b"/dev/shm/"))
        # The backend turns this into FILE where the source is one.
        yield Op(OpKind.MKDIR, mount.target, mode=0o755, own=inside)
        yield Op(
            OpKind.MOUNT,
            mount.target,
            attributes=NOSUID | NODEV | (0 if mount.writable else RDONLY),
            recursive=True,
            mount=index,
            # The policy's own paths stay as they are: root's files shall not become the run's by being shown.
            idmap=index >= own,
            idmap_optional=not mount.writable,
        )
    for path in policy.filesystem.hidden:
        yield Op(OpKind.HIDE, path.encode())
    yield Op(OpKind.SETATTR, b"/", attributes=RDONLY | NOSUID)


def _tree_index(view: RootView, index: int) -> int:
    return sum(1 for entry in view.entries[:index] if entry.link is None and not entry.template)


def _writable(policy: Policy, mounts: tuple[Mount, ...]) -> tuple[bytes, ...]:
    own = [] if policy.filesystem.tmp == "ro" else [b"/tmp", b"/dev/shm"]
    if policy.filesystem.work != "ro" and all(mount.target != WORK for mount in mounts):
        own.append(WORK)
    return (*own, *(mount.target for mount in mounts if mount.writable))


def _landlock_handled(abi: int) -> int:
    if abi == 0:
        return 0
    handled = (1 << 13) - 1
    for needed, right in ((2, _REFER), (3, _TRUNCATE), (5, _IOCTL_DEV)):
        if abi >= needed:
            handled |= right
    return handled


def _landlock_rules(abi: int, writable: tuple[bytes, ...]) -> Iterator[LandlockRule]:
    if abi == 0:
        return
    handled = _landlock_handled(abi)
    yield LandlockRule(b"/", _EXECUTE | _READ_FILE | _READ_DIR)
    yield LandlockRule(b"/dev", (_WRITE_FILE | _TRUNCATE | _IOCTL_DEV) & handled)
    for path in writable:
        yield LandlockRule(path, handled & ~(_MAKE_CHAR | _MAKE_BLOCK))


def _rlimits(limits: Limits, policy: Policy) -> Iterator[tuple[str, int]]:
    """setrlimit(2), soft and hard alike; the daemon lowers what exceeds its own hard limits."""
    if policy.process.user == "root":
        return
    if not policy.process.core_dumps:
        yield "RLIMIT_CORE", 0
    if limits.open_files is not None:
        yield "RLIMIT_NOFILE", limits.open_files
    if limits.file_size is not None:
        yield "RLIMIT_FSIZE", limits.file_size
    if limits.cpu_seconds is not None:
        # Behind the limit on the whole tree, for the case that the daemon cannot look.
        yield "RLIMIT_CPU", math.ceil(limits.cpu_seconds) + 2
    yield "RLIMIT_MEMLOCK", 8 << 20
    yield "RLIMIT_MSGQUEUE", 1 << 20
    yield "RLIMIT_NICE", 0
    yield "RLIMIT_RTPRIO", 0


_LIMIT_FEATURES = (
    ("memory_peak", ("memory_peak_bytes",)),
    ("pids_peak", ("pids_peak",)),
)


def _enforcement(
    policy: Policy,
    effective: EffectivePolicy,
    host: HostFeatures,
    namespaces: tuple[str, ...],
    landlock: int,
    notify: bool,
) -> Enforcement:
    missing = [name for feature, names in _LIMIT_FEATURES if not host.has(feature) for name in names]
    if policy.isolation.landlock and not landlock:
        missing.append("landlock")
    if policy.syscalls.filters and not notify:
        missing.append("seccomp_notify")
    if effective.trace is not TraceLevel.OFF:
        missing.append("trace")
    network = "host"
    if "network" in namespaces:
        network = "namespace, loopback only"
    user = "root" if policy.process.user == "root" else "own uid"
    if "user" in namespaces:
        user = "own uid in a user namespace"
    seccomp = ""
    if policy.syscalls.filters:
        seccomp = f"{'allow' if policy.syscalls.default != 'allow' else 'deny'} list"
    return Enforcement(
        namespaces=namespaces,
        cgroup=host.cgroup,
        seccomp=seccomp,
        landlock=f"ABI {landlock}" if landlock else "",
        network=network,
        user=user,
        missing=tuple(missing),
    )


def with_missing(plan: LaunchPlan, *names: str) -> LaunchPlan:
    """`plan`, with `names` added to what its enforcement says is missing."""
    enforcement = replace(plan.enforcement, missing=(*plan.enforcement.missing, *names))
    return replace(plan, enforcement=enforcement)
