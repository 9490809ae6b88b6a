"""What will be done for one run: RunSpec, policy and host features in, a LaunchPlan out. Pure: no I/O.

The same input gives the same plan (tests/unit/golden holds one for each shipped policy). What the host cannot do fails
here, with the feature and its remedy; nothing is silently left out.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace

from supervisor.errors import HostLacks, InvalidRequest, PolicyRefused
from supervisor.model import Enforcement, HostFeatures, Limits, Mount, NetworkMode, RunSpec, TraceLevel
from supervisor.plan_root import (
    LANDLOCK_SCOPE_ABI,
    LANDLOCK_SCOPES,
    WORK,
    LandlockRule,
    Op,
    RootView,
    landlock_handled,
    landlock_rules,
    root_ops,
    writable_places,
)
from supervisor.policy import EffectivePolicy, Policy, Syscalls
from supervisor.rules.denied import denies_files

INNER_ID = 1000
"""The uid and gid that a run has inside its user namespace, where policy gives it one."""

HOSTNAME = b"sandbox"
MAX_MOUNTS = 48
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


@dataclass(frozen=True, slots=True)
class AddressPlan:
    """Whom a run may reach, as HOST, HOST:PORT or NETWORK/BITS[:PORT]; `deny_rest`: nobody else.

    `kill`: who is denied and the end of the run.
    """

    allow: tuple[str, ...]
    deny: tuple[str, ...]
    deny_rest: bool
    kill: tuple[str, ...] = ()


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
    memfd_noexec: bool
    limits: Limits
    network: NetworkMode
    addresses: AddressPlan | None
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
    _check_network(effective, host)
    _check_probes(spec, policy, host)
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
    ops = (
        root_ops(policy.filesystem, effective.network, view, mounts, len(mounts) - len(spec.mounts)) if private else ()
    )
    writable = writable_places(policy, mounts) if private else ()
    landlock = host.landlock_abi if policy.isolation.landlock and private else 0
    notify = policy.syscalls.filters and host.has("seccomp_notify")
    memfd_noexec = private and "pid" in namespaces and host.has("memfd_noexec")
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
        landlock_fs=landlock_handled(landlock),
        landlock_scoped=LANDLOCK_SCOPES if landlock >= LANDLOCK_SCOPE_ABI else 0,
        landlock_rules=tuple(landlock_rules(landlock, writable)),
        rlimits=tuple(_rlimits(effective.limits, policy)),
        syscalls=_syscalls(policy, memfd_noexec, effective.network is NetworkMode.FILTERED),
        notify=notify,
        memfd_noexec=memfd_noexec,
        limits=effective.limits,
        network=effective.network,
        addresses=_address_rules(effective, host),
        trace=effective.trace,
        terminal=spec.terminal,
        # Of the host, too, a run is to go before the daemon, whose low score its children inherit.
        oom_score_adj=0 if policy.process.user == "root" else 300,
        writable=writable,
        enforcement=_enforcement(policy, effective, host, namespaces, landlock, notify),
    )


def _namespaces(policy: Policy, network: NetworkMode) -> tuple[str, ...]:
    """The policy's, as the network wants it: none needs a namespace of its own, filtered and full the host's."""
    names = tuple(name for name in policy.isolation.namespaces if name != "network")
    if network in (NetworkMode.FILTERED, NetworkMode.FULL):
        return names
    return policy.isolation.namespaces if "network" in policy.isolation.namespaces else (*names, "network")


def _check_network(effective: EffectivePolicy, host: HostFeatures) -> None:
    if effective.network is NetworkMode.INTERNAL:
        raise HostLacks(
            "network internal is not available in this build",
            reason="NETWORK_MODE_NOT_AVAILABLE",
            field="network",
            metadata={"feature": "network_internal", "remedy": "use network none, filtered or full"},
        )
    if effective.network is NetworkMode.FILTERED and not effective.policy.syscalls.filters:
        raise PolicyRefused(
            f"network: policy {effective.policy.name} has no [syscalls], without which a run could listen for those whom it "
            "may not reach",
            field="network",
        )
    deny = (*effective.policy.network.deny, *_addresses_of(effective.policy, "deny"))
    held = effective.network is NetworkMode.FILTERED or (effective.network is NetworkMode.FULL and deny)
    if held and not host.has("cgroup_bpf"):
        found = host.features.get("cgroup_bpf")
        raise HostLacks(
            f"network {effective.network.value} under policy {effective.policy.name} needs the address filter of the eBPF "
            f"probes: {found.detail if found else 'not looked for'}",
            reason="NETWORK_MODE_NOT_AVAILABLE",
            field="network",
            metadata={"feature": "cgroup_bpf", "remedy": found.remedy if found else "use network none"},
        )


def _address_rules(effective: EffectivePolicy, host: HostFeatures) -> AddressPlan | None:
    """Whom the run may reach; None where nobody has to be held off, without a network or with all of it, or can be."""
    if not host.has("cgroup_bpf"):
        return None
    policy = effective.policy
    deny = (*policy.network.deny, *_addresses_of(policy, "deny"))
    kill = _addresses_of(policy, "kill")
    if effective.network is NetworkMode.FILTERED:
        return AddressPlan(effective.allow, deny, deny_rest=True, kill=kill)
    if effective.network is NetworkMode.FULL and (deny or kill):
        return AddressPlan((), deny, deny_rest=False, kill=kill)
    return None


def _addresses_of(policy: Policy, action: str) -> tuple[str, ...]:
    """Entries of the rules that are about addresses and ports alone; what else they may be about is judged on the record."""
    found: list[str] = []
    for rule in policy.rules:
        alone = rule.count == 1 and rule.match and not set(rule.match) - {"address", "port"}
        if rule.action == action and alone and not set(rule.on) - {"connect", "send"}:
            hosts = [
                f"[{host}]" if ":" in host and "/" not in host else host for host in rule.match.get("address", ("*",))
            ]
            found += [f"{_bracketed(host)}:{port}" for host in hosts for port in rule.match.get("port", ("*",))]
    return tuple(dict.fromkeys(found))


def _bracketed(host: str) -> str:
    """NETWORK/BITS of IPv6 as [NETWORK]/BITS."""
    network, slash, bits = host.partition("/")
    return f"[{network}]/{bits}" if slash and ":" in network else host


def _check_probes(spec: RunSpec, policy: Policy, host: HostFeatures) -> None:
    """What only probes can see is refused where somebody relies on it, rather than taken and not done."""
    asked = spec.trace not in (None, TraceLevel.OFF)
    if (asked or policy.trace.required) and not host.has("trace"):
        found = host.features.get("trace")
        who = f"trace {spec.trace.value}" if asked and spec.trace else f"policy {policy.name}, which requires a trace,"
        raise HostLacks(
            f"{who} needs the eBPF probes: {found.detail if found else 'not looked for'}",
            reason="TRACE_NOT_AVAILABLE",
            field="trace",
            metadata={"feature": "trace", "remedy": found.remedy if found else ""},
        )


def _check_host(policy: Policy, host: HostFeatures) -> None:
    needed = [_FEATURE_OF_NAMESPACE[name] for name in policy.isolation.namespaces]
    needed += ["cgroup2", "cgroup_kill", "pidfd", "clone_into_cgroup", "memory_limit", "pids_limit", "cpu_limit"]
    if "mount" in policy.isolation.namespaces:
        needed += ["new_mount_api", "openat2"]
    if policy.syscalls.filters:
        needed.append("seccomp_filter")
    if denies_files(policy.rules, "deny"):
        needed.append("bpf_lsm")
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


def _syscalls(policy: Policy, memfd_noexec: bool, held: bool) -> Syscalls | None:
    """The policy's; without memfd_create(2) where what it makes could be executed, and without listen(2) and multicast where
    the run is held to addresses: whom it may not reach could come by himself, and would hear of it.
    """
    syscalls = policy.syscalls
    if not syscalls.filters:
        return None
    for name, refused in (("memfd_create", not memfd_noexec), ("listen", held), ("%multicast", held)):
        if refused and name not in syscalls.kill and name not in dict(syscalls.errno):
            syscalls = replace(
                syscalls,
                allow=tuple(allowed for allowed in syscalls.allow if allowed != name),
                errno=(*syscalls.errno, (name, "EPERM")),
            )
    return syscalls


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
    if effective.trace is not TraceLevel.OFF and not host.has("trace"):
        missing.append("trace")
    if policy.rules and not host.has("trace"):
        missing.append("rules")
    network = "host"
    if "network" in namespaces:
        network = "namespace, loopback only"
    rules = _address_rules(effective, host)
    if rules is not None:
        network = "host, allowed addresses only" if rules.deny_rest else "host, but for denied addresses"
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
        cgroup_bpf="addresses" if rules is not None else "",
        lsm="denied files" if host.has("bpf_lsm") and denies_files(policy.rules, "deny", "kill") else "",
        network=network,
        user=user,
        missing=tuple(missing),
    )
