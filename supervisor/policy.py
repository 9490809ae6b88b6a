"""What a run is allowed: the resolved policy, and the narrowing of it that one request asks for.

A `Policy` is complete: `extends` has been followed, @sets and sizes are spelled out (policy_file.py does that from
TOML). `narrow` lays a RunSpec over it. Everything here is pure and works on any operating system.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace

from supervisor.errors import InvalidRequest, PolicyRefused
from supervisor.model import LIMIT_KEYS, Limits, NetworkMode, RunSpec, TraceLevel

NAMESPACES = ("user", "mount", "pid", "network", "ipc", "uts", "cgroup")
"""The kinds that a policy may name, in the order in which they are listed everywhere."""

SIZE_KEYS = frozenset({"memory", "file_size", "disk", "output"})
FRACTION_KEYS = frozenset({"wall_seconds", "cpu_seconds", "cpus"})

INT_MAX = 2**63 - 1
_LARGEST: Mapping[str, float] = {"wall_seconds": 10**9, "cpu_seconds": 10**9, "cpus": 10**5}
_SMALLEST: Mapping[str, float] = {
    "wall_seconds": 0.001,
    "cpu_seconds": 0.001,
    "cpus": 0.01,
    "memory": 1 << 20,
    "open_files": 8,
}

_NETWORK_ORDER = (NetworkMode.NONE, NetworkMode.INTERNAL, NetworkMode.FILTERED, NetworkMode.FULL)
_TRACE_ORDER = (TraceLevel.OFF, TraceLevel.SUMMARY, TraceLevel.FULL)

_SIZE = re.compile(r"([0-9]{1,32})(?:\.([0-9]{1,16}))?[ ]?(?:([KMGT])i?B?|B)?", re.ASCII | re.IGNORECASE)
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def _digest(value: object) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


@dataclass(frozen=True, slots=True)
class Isolation:
    """Which namespaces of its own a run gets (of NAMESPACES), and whether Landlock backs the mount namespace."""

    namespaces: tuple[str, ...] = ()
    landlock: bool = False


@dataclass(frozen=True, slots=True)
class Filesystem:
    """What a run sees. `root` is "host" (a private root built from the host's programs), "image:NAME" or a directory.

    `read_only`, `read_write` are host paths shown at their own place beside that, `hidden` paths covered up; those the
    host lacks are left out. `tmp` (for /tmp and /dev/shm) and `work` are "rw", "noexec" (writable) or "ro".
    """

    root: str = "host"
    read_only: tuple[str, ...] = ()
    read_write: tuple[str, ...] = ()
    hidden: tuple[str, ...] = ()
    tmp: str = "rw"
    work: str = "rw"


@dataclass(frozen=True, slots=True)
class Network:
    """`mode` is what a run gets unless it asks, `max` the widest that it may ask for."""

    mode: NetworkMode = NetworkMode.NONE
    max: NetworkMode = NetworkMode.NONE
    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Syscalls:
    """One action per system call, by name; `default` ("allow", "errno" or "kill") for the rest.

    Names starting with % are guards (syscall_sets.GUARDS): checks of the arguments of calls that are otherwise allowed.
    `errno` pairs a name with the error it answers, `default_errno` is the one of `default = "errno"`. A name stands in
    one of the three at most. With default "allow" and nothing denied there is no filter at all.
    """

    default: str = "allow"
    default_errno: str = "ENOSYS"
    allow: tuple[str, ...] = ()
    errno: tuple[tuple[str, str], ...] = ()
    kill: tuple[str, ...] = ()
    digest: str = field(init=False, default="", repr=False)
    """SHA-256, hexadecimal: the same filter is compiled from the same digest."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "digest", _digest(asdict(self)))

    @property
    def filters(self) -> bool:
        """Whether anything is refused at all."""
        return self.default != "allow" or bool(self.errno or self.kill)


@dataclass(frozen=True, slots=True)
class Process:
    """`user` is "run" (the run's own uid) or "root"; `env` is laid over the built environment."""

    user: str = "run"
    capabilities: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    new_session: bool = True
    core_dumps: bool = False


@dataclass(frozen=True, slots=True)
class Trace:
    """`required`: a host that cannot trace is no place for these runs."""

    level: TraceLevel = TraceLevel.SUMMARY
    required: bool = False


@dataclass(frozen=True, slots=True)
class Rule:
    """What the probes look for: events of a kind in `on` whose fields match; `match` maps a field to its patterns.

    With `count` above 1 it takes so many of them within `seconds`, different in the fields `distinct` where there are any;
    with `near`, the name of another rule, one that this matches within `seconds` before or after.
    """

    name: str
    on: tuple[str, ...]
    match: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    severity: str = "medium"
    action: str = "log"
    count: int = 1
    seconds: float = 10.0
    distinct: tuple[str, ...] = ()
    near: str = ""


@dataclass(frozen=True, slots=True)
class Response:
    """`violation_threshold`: how many violations a run survives, plus one; None: only rules that kill end it."""

    violation_threshold: int | None = None


@dataclass(frozen=True, slots=True)
class Policy:
    """A policy with everything in force. `toml` is the text it was written as; `digest` covers all but names and text.

    `limits` is what a run gets unless it asks, `limits_max` what it may ask for (None: unbounded).
    """

    name: str
    description: str = ""
    extends: str = ""
    limits: Limits = field(default_factory=Limits)
    limits_max: Limits = field(default_factory=Limits)
    isolation: Isolation = Isolation()
    filesystem: Filesystem = Filesystem()
    network: Network = Network()
    syscalls: Syscalls = Syscalls()
    process: Process = Process()
    trace: Trace = Trace()
    rules: tuple[Rule, ...] = ()
    response: Response = Response()
    toml: str = ""
    digest: str = ""

    @property
    def unisolated(self) -> bool:
        """Whether a run could act as the host's root: only with allow_unisolated in the daemon's configuration."""
        privileged = bool(self.process.capabilities) and "user" not in self.isolation.namespaces
        return self.process.user == "root" or privileged


@dataclass(frozen=True, slots=True)
class EffectivePolicy:
    """A policy as narrowed by one request."""

    policy: Policy
    limits: Limits
    network: NetworkMode
    allow: tuple[str, ...]
    trace: TraceLevel


@dataclass(frozen=True, slots=True)
class PolicyProblem:
    """Something wrong with a policy's text: `line` is 1-based, 0 where none can be named; `key` is dotted."""

    line: int
    key: str
    message: str


def parse_size(value: str | int) -> int:
    """Bytes of a size: an integer, or a text such as "256M", "64 KiB", "1.5G" (units are binary).

    Raises ValueError for what is no whole number of bytes between 0 and 2**63 - 1.
    """
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError('a size is a number of bytes or a text such as "256M"')
    if isinstance(value, int):
        size = value
    else:
        text = value.strip()
        if text.startswith("-"):
            raise ValueError(f"size {_shown(value)} is negative")
        match = _SIZE.fullmatch(text)
        if match is None:
            raise ValueError(f'{_shown(value)} is not a size: write bytes, or a number with K, M, G or T, as in "256M"')
        unit = _UNITS[(match[3] or "").upper()]
        decimals = match[2] or ""
        size, rest = divmod(int(match[1] + decimals) * unit, 10 ** len(decimals))
        if rest:
            raise ValueError(f"size {_shown(value)} is not a whole number of bytes")
    if size < 0:
        raise ValueError(f"size {_shown(value)} is negative")
    if size > INT_MAX:
        raise ValueError(f"size {_shown(value)} is over 2**63 - 1 bytes")
    return size


def check_limit(key: str, value: object) -> int | float:
    """`value` as the limit `key` takes it: an int, or a float for FRACTION_KEYS. Raises ValueError saying what is wrong."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{key} must be a number")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{key} must be finite, not {value}")
    if value < 0:
        raise ValueError(f"{key} must not be negative")
    if value == 0:
        raise ValueError(f"{key} must be above zero")
    largest = _LARGEST.get(key, INT_MAX)
    if value > largest:
        raise ValueError(f"{key} is at most {'2**63 - 1' if largest == INT_MAX else largest}")
    if value < _SMALLEST.get(key, 0):
        raise ValueError(f"{key} is at least {_SMALLEST[key]}")
    if key in FRACTION_KEYS:
        return float(value)
    if value != int(value):
        raise ValueError(f"{key} must be a whole number, not {value}")
    return int(value)


def nearest(word: str, known: Iterable[str]) -> str:
    """The known word that `word` may have meant, as "; did you mean 'X'?", or nothing."""
    found = difflib.get_close_matches(word[:64], list(known), n=1, cutoff=0.6)
    return f"; did you mean '{found[0]}'?" if found else ""


def narrow(policy: Policy, spec: RunSpec) -> EffectivePolicy:
    """What `spec` gets under `policy`.

    Raises InvalidRequest for a value that makes no sense and PolicyRefused for one that is wider than the policy, each
    with the request's field; PolicyRefused carries `requested` and `maximum` in its metadata.
    """
    network = _narrow_network(policy, spec.network)
    return EffectivePolicy(
        policy=policy,
        limits=_narrow_limits(policy, spec.limits),
        network=network,
        allow=_narrow_allow(policy, network, spec.allow),
        trace=_narrow_trace(policy, spec.trace),
    )


def policy_digest(policy: Policy) -> str:
    """SHA-256, hexadecimal, of all that is in force: neither of the policy's names nor of how it was written."""
    unnamed = replace(policy, name="", description="", extends="", toml="", digest="")
    return _digest(asdict(unnamed))


def _narrow_limits(policy: Policy, requested: Mapping[str, float | int]) -> Limits:
    if not requested:
        return policy.limits
    values: dict[str, float | int | None] = {f.name: getattr(policy.limits, f.name) for f in fields(Limits)}
    for key, value in requested.items():
        if key not in LIMIT_KEYS:
            raise InvalidRequest(
                f"unknown limit {_shown(key)}{nearest(str(key), LIMIT_KEYS)}", field=f"limits.{str(key)[:64]}"
            )
        try:
            checked = check_limit(key, value)
        except ValueError as error:
            raise InvalidRequest(f"limits.{error}", field=f"limits.{key}") from None
        maximum = getattr(policy.limits_max, key)
        if maximum is not None and checked > maximum:
            raise PolicyRefused(
                f"limits.{key}: {_measure(key, checked)} is wider than policy {policy.name} allows "
                f"({_measure(key, maximum)})",
                field=f"limits.{key}",
                metadata={"policy": policy.name, "requested": str(checked), "maximum": str(maximum)},
            )
        values[key] = checked
    return Limits(**values)  # type: ignore[arg-type]  # check_limit has given each key its own type


def _measure(key: str, value: float) -> str:
    """A limit as people write it: sizes with a unit where that is exact."""
    if key in SIZE_KEYS:
        for unit, size in (("G", 1 << 30), ("M", 1 << 20), ("K", 1 << 10)):
            if value >= size and value % size == 0:
                return f"{int(value) // size}{unit}"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _narrow_network(policy: Policy, requested: NetworkMode | None) -> NetworkMode:
    if requested is None:
        return policy.network.mode
    if _NETWORK_ORDER.index(requested) > _NETWORK_ORDER.index(policy.network.max):
        raise PolicyRefused(
            f"network: {requested.value} is wider than the {policy.network.max.value} "
            f"that policy '{policy.name}' allows",
            field="network",
            metadata={"policy": policy.name, "requested": requested.value, "maximum": policy.network.max.value},
        )
    return requested


def _narrow_allow(policy: Policy, network: NetworkMode, requested: tuple[str, ...]) -> tuple[str, ...]:
    if not requested:
        return policy.network.allow
    if network is not NetworkMode.FILTERED:
        raise InvalidRequest(f"allow: has a meaning only with network filtered, not {network.value}", field="allow")
    for entry in requested:
        try:
            check_address(entry)
        except ValueError as error:
            raise InvalidRequest(f"allow: {error}", field="allow") from None
        if policy.network.max is not NetworkMode.FULL and entry not in policy.network.allow:
            raise PolicyRefused(
                f"allow: {entry} is not among what policy '{policy.name}' allows",
                field="allow",
                metadata={"policy": policy.name, "requested": entry, "maximum": " ".join(policy.network.allow)[:1024]},
            )
    return requested


def _narrow_trace(policy: Policy, requested: TraceLevel | None) -> TraceLevel:
    if requested is None:
        return policy.trace.level
    if _TRACE_ORDER.index(requested) < _TRACE_ORDER.index(policy.trace.level):
        raise PolicyRefused(
            f"trace: {requested.value} is less than the {policy.trace.level.value} that policy '{policy.name}' demands",
            field="trace",
            metadata={"policy": policy.name, "requested": requested.value, "minimum": policy.trace.level.value},
        )
    return requested


_ADDRESS = re.compile(r"(?:\[[0-9A-Fa-f:.%]{2,64}\]|[A-Za-z0-9*_.\-]{1,253})(?:/[0-9]{1,3})?(?::([0-9]{1,5}|\*))?")


def check_address(entry: str) -> str:
    """`entry`, if it is HOST, HOST:PORT or NETWORK/BITS[:PORT], with IPv6 in brackets. Raises ValueError otherwise."""
    match = _ADDRESS.fullmatch(entry)
    if match is None:
        raise ValueError(f"{_shown(entry)} is not HOST:PORT (IPv6 in brackets)")
    if match[1] not in (None, "*") and not 1 <= int(match[1]) <= 65535:
        raise ValueError(f"{_shown(entry)}: a port lies between 1 and 65535")
    return entry


def _shown(value: object) -> str:
    try:
        text = repr(value)
    except ValueError:  # an int of over 4,300 digits
        return "that number"
    return text if len(text) <= 80 else text[:77] + "..."
