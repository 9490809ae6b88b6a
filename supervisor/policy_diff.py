"""What one policy allows more or less than another: both as they are in force, whatever they were written as. Pure."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace

from supervisor.model import LIMIT_KEYS, Limits, NetworkMode, TraceLevel
from supervisor.policy import SIZE_KEYS, Filesystem, Network, Policy, Process, Rule
from supervisor.syscall_actions import ALLOW, KILL, Action, Actions, guarded_calls
from supervisor.syscall_sets import GUARDS, KNOWN_SYSCALLS

WIDER, NARROWER, DIFFERENT = "+", "-", "~"

_NETWORK = tuple(NetworkMode)
_TRACE = (TraceLevel.FULL, TraceLevel.SUMMARY, TraceLevel.OFF)
_WRITABLE = ("ro", "noexec", "rw")
_ACCESS = ("not shown", "read-only", "read-write")
_RULE_ACTIONS = ("kill", "deny", "alert", "log")


@dataclass(frozen=True, slots=True, order=True)
class Difference:
    """Of `key` in `table`, the second policy has `b` where the first has `a`; `mark`: WIDER, NARROWER or DIFFERENT."""

    table: str
    key: str
    mark: str
    a: str
    b: str

    def __str__(self) -> str:
        return f"{self.mark} {self.table}.{self.key}: {self.a} -> {self.b}"


def differences(a: Policy, b: Policy) -> list[Difference]:
    """What `b` allows more or less than `a`, sorted by table and key; empty where both come to the same.

    Neither names nor how a policy was written counts, nor a guard of calls that are refused anyway. Being watched less is
    wider; so is a refusal that the program survives where it was killed.
    """
    found = [*_limits("limits", a.limits, b.limits), *_limits("limits.max", a.limits_max, b.limits_max)]
    found += _isolation(a, b)
    if "mount" in a.isolation.namespaces and "mount" in b.isolation.namespaces:
        # Without, a run has the host's files, whatever stands in the table.
        found += _filesystem(a.filesystem, b.filesystem)
    found += _network(a.network, b.network)
    found += _syscalls(a, b)
    found += _process(a.process, b.process)
    found += _ranked("trace", "level", a.trace.level, b.trace.level, _TRACE)
    found += _flag("trace", "required", a.trace.required, b.trace.required, wider=False)
    found += _rules({rule.name: rule for rule in a.rules}, {rule.name: rule for rule in b.rules})
    found += _threshold(a.response.violation_threshold, b.response.violation_threshold)
    return sorted(found)


def _mark(a: float, b: float) -> str:
    return WIDER if b > a else NARROWER


def _ranked(table: str, key: str, a: str, b: str, order: Sequence[str]) -> Iterator[Difference]:
    """`order` from the narrowest to the widest."""
    if a != b:
        words = (getattr(a, "value", a), getattr(b, "value", b))
        yield Difference(table, key, _mark(order.index(a), order.index(b)), *words)


def _flag(table: str, key: str, a: bool, b: bool, *, wider: bool) -> Iterator[Difference]:
    """`wider`: which of the two allows more."""
    if a != b:
        yield Difference(table, key, WIDER if b == wider else NARROWER, _word(a), _word(b))


def _word(flag: bool) -> str:
    return "true" if flag else "false"


def _members(
    table: str, a: Iterable[str], b: Iterable[str], gained: str, words: tuple[str, str], prefix: str
) -> Iterator[Difference]:
    """A line for each that only one of both has; `gained` marks one that is new, `words` stand for without and with."""
    before, after = set(a), set(b)
    lost = NARROWER if gained == WIDER else WIDER
    for name in after - before:
        yield Difference(table, f"{prefix} {name}", gained, words[0], words[1])
    for name in before - after:
        yield Difference(table, f"{prefix} {name}", lost, words[1], words[0])


def _limits(table: str, a: Limits, b: Limits) -> Iterator[Difference]:
    for key in LIMIT_KEYS:
        before, after = getattr(a, key), getattr(b, key)
        if before != after:
            amounts = [float("inf") if value is None else value for value in (before, after)]
            yield Difference(table, key, _mark(*amounts), measure(key, before), measure(key, after))


def measure(key: str, value: float | None) -> str:
    """A limit as people write it: sizes with a unit where that is exact, and no unit for the rest."""
    if value is None:
        return "unlimited"
    if key in SIZE_KEYS:
        for unit, size in (("G", 1 << 30), ("M", 1 << 20), ("K", 1 << 10)):
            if value >= size and value % size == 0:
                return f"{int(value) // size}{unit}"
    return str(int(value)) if value == int(value) else repr(value)


def _isolation(a: Policy, b: Policy) -> Iterator[Difference]:
    before, after = a.isolation.namespaces, b.isolation.namespaces
    yield from _members("isolation", before, after, NARROWER, ("the host's", "its own"), "namespaces")
    yield from _flag("isolation", "landlock", a.isolation.landlock, b.isolation.landlock, wider=False)


def _filesystem(a: Filesystem, b: Filesystem) -> Iterator[Difference]:
    if a.root != b.root:
        yield Difference("filesystem", "root", DIFFERENT, a.root, b.root)
    for path in {*a.read_only, *a.read_write, *b.read_only, *b.read_write}:
        yield from _ranked("filesystem", path, _access(a, path), _access(b, path), _ACCESS)
    for path in {*a.hidden, *b.hidden}:
        yield from _flag("filesystem", f"hidden {path}", _hides(a, path), _hides(b, path), wider=False)
    for key in ("tmp", "work"):
        yield from _ranked("filesystem", key, getattr(a, key), getattr(b, key), _WRITABLE)


def _access(files: Filesystem, path: str) -> str:
    """By the nearest of the policy's own paths around it."""
    shown = dict.fromkeys(files.read_only, _ACCESS[1]) | dict.fromkeys(files.read_write, _ACCESS[2])
    around = [place for place in shown if is_below(path, place)]
    return shown[max(around, key=len)] if around else _ACCESS[0]


def _hides(files: Filesystem, path: str) -> bool:
    return any(is_below(path, place) for place in files.hidden)


def is_below(path: str, place: str) -> bool:
    """Whether `path` is `place`, or lies in it."""
    return path == place or path.startswith(place.rstrip("/") + "/")


def _network(a: Network, b: Network) -> Iterator[Difference]:
    yield from _ranked("network", "mode", a.mode, b.mode, _NETWORK)
    yield from _ranked("network", "max", a.max, b.max, _NETWORK)
    before, after = _reaches(a), _reaches(b)
    words = (("refused", "allowed"), ("not denied", "denied"))
    lost = [entry for entry in before[0] if not reaches(after[0], entry)]
    gained = [entry for entry in after[0] if not reaches(before[0], entry)]
    yield from _members("network", lost, gained, WIDER, words[0], "allow")
    yield from _members("network", before[1], after[1], NARROWER, words[1], "deny")


def _reaches(network: Network) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """`allow` and `deny`, which mean something only where a run can have another network than its own."""
    if _NETWORK.index(network.max) < _NETWORK.index(NetworkMode.FILTERED):
        return (), ()
    return network.allow, network.deny


_ENTRY = re.compile(r"(?:\[([^\]]+)\]|([^\[\]:/]+))(?:/(\d+))?(?::(\d+|\*))?")


def reaches(entries: Iterable[str], entry: str) -> bool:
    """Whether the address and port of `entry` are among those of `entries`; a name only where it stands there itself."""
    return any(_holds(wide, entry) for wide in entries)


def is_literal(entry: str) -> bool:
    """Whether it is an address or a network, not a name."""
    host, _ = _host_and_port(entry)
    return host == "*" or _network_of(host) is not None


def _holds(wide: str, narrow: str) -> bool:
    (outer, outer_port), (inner, inner_port) = _host_and_port(wide), _host_and_port(narrow)
    if outer_port not in ("*", inner_port):
        return False
    if outer in ("*", inner):
        return True
    around, within = _network_of(outer), _network_of(inner)
    if around is None or within is None or around.version != within.version:
        return False
    return within.subnet_of(around)  # type: ignore[arg-type]  # they are of one version


def _host_and_port(entry: str) -> tuple[str, str]:
    match = _ENTRY.fullmatch(entry)
    if match is None:
        return entry, ""
    return (match[1] or match[2]) + (f"/{match[3]}" if match[3] else ""), match[4] or "*"


def _network_of(host: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    try:
        return ipaddress.ip_network(host, strict=False)
    except ValueError:
        return None


def _syscalls(a: Policy, b: Policy) -> Iterator[Difference]:
    before, after = Actions(a.syscalls), Actions(b.syscalls)
    for call in KNOWN_SYSCALLS:
        yield from _action(call, before.call(call), after.call(call))
    for guard in GUARDS:
        # Of calls that only one of both allows, their own line tells.
        both = (call for call in guarded_calls()[guard] if before.call(call) == after.call(call) == ALLOW)
        if any(both):
            yield from _action(guard, before.guard(guard), after.guard(guard), allowed="off")
    yield from _action("(calls not known by name)", before.default, after.default)
    yield from _action("(calls of other ABIs)", _foreign(a), _foreign(b))


def _foreign(policy: Policy) -> Action:
    return KILL if policy.syscalls.filters else ALLOW


def _action(key: str, before: Action, after: Action, allowed: str = "allow") -> Iterator[Difference]:
    if before != after:
        same = before.severity == after.severity
        mark = DIFFERENT if same else _mark(-before.severity, -after.severity)
        words = [allowed if action == ALLOW else str(action) for action in (before, after)]
        yield Difference("syscalls", key, mark, *words)


def _process(a: Process, b: Process) -> Iterator[Difference]:
    yield from _ranked("process", "user", a.user, b.user, ("run", "root"))
    yield from _members("process", a.capabilities, b.capabilities, WIDER, ("none", "granted"), "capabilities")
    yield from _flag("process", "new_session", a.new_session, b.new_session, wider=False)
    yield from _flag("process", "core_dumps", a.core_dumps, b.core_dumps, wider=True)
    for name in {*a.env, *b.env}:
        if a.env.get(name) != b.env.get(name):
            values = [repr(env[name]) if name in env else "unset" for env in (a.env, b.env)]
            yield Difference("process", f"env {name}", DIFFERENT, *values)


def _rules(a: Mapping[str, Rule], b: Mapping[str, Rule]) -> Iterator[Difference]:
    for name in {*a, *b}:
        before, after = a.get(name), b.get(name)
        if before == after:
            continue
        actions = [rule.action if rule else "none" for rule in (before, after)]
        order = (*_RULE_ACTIONS, "none")
        same_events = not (before and after) or _events(before) == _events(after)
        mark = DIFFERENT
        if same_events and actions[0] != actions[1]:
            mark = _mark(order.index(actions[0]), order.index(actions[1]))
        yield Difference("rules", name, mark, *(_rule_words(rule) for rule in (before, after)))


def _rule_words(rule: Rule | None) -> str:
    if rule is None:
        return "none"
    match = "".join(f" {key}={_words(values)}" for key, values in sorted(rule.match.items()))
    rest = "".join(
        f", {one.name} {_words(getattr(rule, one.name))}"
        for one in fields(rule)
        if one.name not in ("name", "on", "match", "severity", "action") and getattr(rule, one.name) != one.default
    )
    return f"{rule.action} {rule.severity} on {_words(rule.on)}{match}{rest}"


def _events(rule: Rule) -> Rule:
    return replace(rule, severity="", action="")


def _words(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


def _threshold(a: int | None, b: int | None) -> Iterator[Difference]:
    if a != b:
        amounts = [float("inf") if value is None else value for value in (a, b)]
        words = ["none" if value is None else str(value) for value in (a, b)]
        yield Difference("response", "violation_threshold", _mark(*amounts), *words)
