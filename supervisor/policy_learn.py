"""The least policy under which programs run as they were seen to: from what runs did, and the policy that they did it under.

What is learnt is never wider than that policy. All that it refuses it refuses in the same words: its guards, its lists errno
and kill and its default stay; only what it allowed, and no run used, goes. Pure, and the same from the same runs.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from supervisor.model import LIMIT_KEYS, Limits, NetworkMode, Usage
from supervisor.policy import SIZE_KEYS, Filesystem, Network, Policy, Rule, Syscalls
from supervisor.policy_diff import WIDER, Difference, differences, is_literal, measure, reaches
from supervisor.policy_file import PolicySet
from supervisor.policy_seen import TMP, WORK, Observed
from supervisor.policy_text import write_toml
from supervisor.syscall_actions import ALLOW, Actions, named_actions
from supervisor.syscall_sets import KNOWN_SYSCALLS, SYSCALL_SETS

HEAD_ROOM = 2
"""Limits are so many times what was used at most."""

_MIB = 1 << 20
_STEPS: Mapping[str, tuple[float, float]] = {
    "wall_seconds": (1, 5),
    "cpu_seconds": (1, 2),
    "memory": (4 * _MIB, 16 * _MIB),
    "pids": (1, 4),
}
"""Limit -> what it is rounded up to a multiple of, and the least that it is."""

_ALWAYS = ("execve", "exit", "exit_group", "restart_syscall", "rt_sigreturn")
"""What starts and ends the program at all (the filter is there before it: launcher/init.c), and what the kernel makes a
process call by itself when it was stopped or handles a signal; seen or not, by chance.
"""


@dataclass(frozen=True, slots=True)
class Learnt:
    """The policy, and what the reader of it should know, a sentence each."""

    policy: Policy
    notes: tuple[str, ...]


def learn(base: Policy, observed: Observed, usages: Sequence[Usage], name: str) -> Learnt:
    """What runs under `base`, which used `usages`, were `observed` to need."""
    notes: list[str] = []
    limits, largest = _limits(base, usages, notes)
    policy = replace(
        base,
        name=name,
        description=f"Learnt from what runs under {base.name} did: nothing else is allowed.",
        extends="",
        limits=limits,
        limits_max=largest,
        filesystem=_filesystem(base.filesystem, observed) if "mount" in base.isolation.namespaces else base.filesystem,
        network=_network(base, observed, notes),
        syscalls=_syscalls(base.syscalls, observed, notes),
        toml="",
        digest="",
    )
    return Learnt(policy, tuple(notes))


def widened(base: Policy, policy: Policy) -> list[Difference]:
    """In what `policy` is wider than `base`: what a run gets unasked may be more, within what it might have asked for."""
    wider = [one for one in differences(base, policy) if one.mark == WIDER and one.table != "limits"]
    asked = ("mode", "allow ") if base.network.max is NetworkMode.FULL else ("mode",)
    return [one for one in wider if one.table != "network" or not one.key.startswith(asked)]


def write(policy: Policy, header: Sequence[str], extends: Policy | None = None) -> str:
    """The policy as a text with `header` as comments: standing alone, or saying what is other than in `extends`."""
    tables = _tables(policy)
    if extends is not None:
        under = _tables(extends)
        tables = {
            "name": policy.name,
            "extends": extends.name,
            "description": policy.description,
            **_beyond(under, {key: table for key, table in tables.items() if key not in ("name", "description")}),
        }
        tables.pop("syscalls", None)
        if calls := _syscalls_beyond(extends.syscalls, policy.syscalls):
            tables["syscalls"] = calls
    comments = "".join(f"# {line}\n" if line else "#\n" for line in header)
    return f"{comments}\n{write_toml(_without_nothing(tables, keep=extends is not None))}"


def _syscalls(base: Syscalls, observed: Observed, notes: list[str]) -> Syscalls:
    actions = Actions(base)
    called = [name for name, count in observed.calls.items() if count and name in KNOWN_SYSCALLS]
    allowed = {name for name in (*called, *_ALWAYS) if actions.call(name) == ALLOW}
    guarded = {name: error for name in allowed if (error := observed.refused_by_guard(name))}
    refused = {name: str(action) for name in called if (action := actions.call(name)) != ALLOW}
    refused |= {name: f"errno {error}, by a guard" for name, error in guarded.items()}
    if refused:
        listed = ", ".join(f"{name} ({refused[name]})" for name in sorted(refused))
        notes.append(f"Seen, and refused as it was: {listed}.")
    if observed.nameless:
        notes.append(
            f"Seen, but no list can name it, and a policy with a list refuses it: {', '.join(observed.nameless)}."
        )
    return Syscalls(
        default=base.default if base.default != "allow" else "errno",
        # As from an older kernel: programs then take another way, where EPERM would stop them.
        default_errno=base.default_errno if base.default == "errno" else "ENOSYS",
        allow=tuple(sorted(allowed - set(guarded))),
        errno=tuple(sorted({**dict(base.errno), **guarded}.items())),
        kill=base.kill,
    )


def _filesystem(base: Filesystem, observed: Observed) -> Filesystem:
    kept = [path for path in base.read_write if observed.used(path)]
    only_read = {path for path in kept if not observed.written(path)}
    work = _writable(base.work, observed, WORK)
    if work == "ro" and base.work != "ro" and observed.written_elsewhere:
        work = "noexec"  # with "ro" nothing of the request's may be mounted writable, either
    return replace(
        base,
        read_only=tuple(sorted({*filter(observed.used, base.read_only), *only_read})),
        read_write=tuple(sorted(set(kept) - only_read)),
        tmp=_writable(base.tmp, observed, *TMP),
        work=work,
    )


def _writable(base: str, observed: Observed, *places: str) -> str:
    if base == "rw" and observed.executed(*places):
        return "rw"
    return "noexec" if base != "ro" and observed.written(*places) else "ro"


def _network(base: Policy, observed: Observed, notes: list[str]) -> Network:
    network = base.network
    own = "network" in base.isolation.namespaces
    if not (observed.addresses or observed.serves) and own:
        return Network(NetworkMode.NONE, NetworkMode.NONE, deny=network.deny)
    if observed.serves or not own:
        why = "it listened, took a port of its choice, or spoke neither TCP nor UDP"
        notes.append(
            f"Network {network.max.value}, unbounded: {why if own else f'{base.name} gives no network of its own'}."
        )
        return replace(network, mode=network.max)
    # To port 0 programs only ask which way a packet would go.
    allow = {f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in observed.addresses if port}
    if network.max is NetworkMode.FULL:
        notes.append("Addresses are as they were reached: where a name stands behind one, it may be another tomorrow.")
    elif behind_names := {entry for entry in allow if not reaches(network.allow, entry)}:
        # Which name each was found by, no trace tells.
        allow = (allow - behind_names) | {entry for entry in network.allow if not is_literal(entry)}
    return Network(NetworkMode.FILTERED, NetworkMode.FILTERED, tuple(sorted(allow)), network.deny)


def _limits(base: Policy, usages: Sequence[Usage], notes: list[str]) -> tuple[Limits, Limits]:
    peaks: dict[str, list[Any]] = {
        "wall_seconds": [usage.wall_seconds for usage in usages],
        "cpu_seconds": [_sum(usage.cpu_user_seconds, usage.cpu_system_seconds) for usage in usages],
        "memory": [usage.memory_peak_bytes for usage in usages],
        "pids": [usage.pids_peak for usage in usages],
    }
    found: dict[str, Any] = {}
    for key, values in peaks.items():
        known = [value for value in values if value is not None]
        if len(known) == len(values) > 0:
            step, least = _STEPS[key]
            wanted = max(math.ceil(max(known) * HEAD_ROOM / step) * step, least)
            largest = getattr(base.limits_max, key)
            found[key] = wanted if largest is None else min(wanted, largest)
    rest = ", ".join(key for key in LIMIT_KEYS if key not in found)
    if found:
        least_words = ", ".join(f"{key} {measure(key, _STEPS[key][1])}" for key in found)
        notes.append(f"Limits: {HEAD_ROOM} times the peak, rounded up, but at least {least_words}.")
    notes.append(f"Not measured, and as {base.name} has it: {rest}.")
    return replace(base.limits, **found), replace(base.limits_max, **found)


def _sum(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a + b


def _tables(policy: Policy) -> dict[str, Any]:
    """As resolved_toml has it, with sizes as people write them and rules without what is so anyway."""
    tables = tomllib.loads(PolicySet().resolved_toml(policy))
    for table in (tables["limits"], tables["limits"]["max"]):
        table.update(
            {key: measure(key, value) for key, value in table.items() if key in SIZE_KEYS and value != "unlimited"}
        )
        table.update(
            {key: int(value) for key, value in table.items() if isinstance(value, float) and value == int(value)}
        )
    defaults = {one.name: one.default for one in fields(Rule) if one.name not in ("severity", "action")}
    if "rules" in tables:
        tables["rules"] = [
            {key: value for key, value in rule.items() if value and value != defaults.get(key)}
            for rule in tables["rules"]
        ]
    return tables


def _beyond(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """What `over` has other than `under`, table by table."""
    found: dict[str, Any] = {}
    for key, value in over.items():
        if isinstance(value, dict):
            if inner := _beyond(under.get(key, {}), value):
                found[key] = inner
        elif key == "rules":
            if rules := [rule for rule in value if rule not in under.get(key, ())]:
                found[key] = rules
        elif value != under.get(key):
            found[key] = value
    return found


def _syscalls_beyond(under: Syscalls, over: Syscalls) -> dict[str, Any]:
    """A [syscalls] that makes `over` of `under`: what a parent names can be named otherwise, never be left unnamed."""
    before, after = named_actions(under), named_actions(over)
    rest = Actions(over).default
    after |= {name: rest for name in before if name not in after and not name.startswith("%")}
    after |= {name: ALLOW for name in before if name not in after}
    told = {name: action for name, action in after.items() if before.get(name) != action}
    for name, calls in sorted(SYSCALL_SETS.items()):
        shorter = {call for call in calls if told.get(call) == rest}
        longer = {call: after[call] for call in calls if call not in told and after.get(call, rest) != rest}
        if len(shorter) > len(longer) + 1:
            # A call's own name counts for more than a set that holds it.
            told = {call: action for call, action in told.items() if call not in shorter} | longer | {name: rest}
    found: dict[str, Any] = {}
    if (under.default, under.default_errno) != (over.default, over.default_errno):
        found |= {"default": over.default, "default_errno": over.default_errno}
    for kind in ("allow", "errno", "kill"):
        entries = [f"{name}:{one.error}" if one.error else name for name, one in told.items() if one.kind == kind]
        if entries:
            found[kind] = sorted(entries)
    return found


def _without_nothing(tables: Mapping[str, Any], *, keep: bool) -> dict[str, Any]:
    """Without empty tables, and but for `keep` without empty lists, which then say nothing."""
    found: dict[str, Any] = {}
    for key, value in tables.items():
        if isinstance(value, dict):
            if inner := _without_nothing(value, keep=keep):
                found[key] = inner
        elif isinstance(value, list) and not (value and isinstance(value[0], dict)):
            if value or keep:
                found[key] = tuple(value)
        elif value != []:
            found[key] = value
    return found
