"""Policy files: TOML in, `Policy` out, and every mistake with its line.

A file is checked on its own (syntax, keys, types), then laid over what it `extends`. Tables merge key by key. Lists
replace the parent's, except that [syscalls] and [[rules]] merge by name: what a child says of a call or rule holds, the
rest stays. Below them lie the `rule_sets`, files of the directory's rules/; action "off" takes a rule out. The schema is policy_schema.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from supervisor.errors import NotFound
from supervisor.model import LIMIT_KEYS, Limits, NetworkMode, TraceLevel
from supervisor.policy import (
    FRACTION_KEYS,
    NAMESPACES,
    Filesystem,
    Isolation,
    Network,
    Policy,
    PolicyProblem,
    Process,
    Response,
    Rule,
    Syscalls,
    Trace,
    nearest,
    policy_digest,
)
from supervisor.policy_schema import UNLIMITED, PolicyFile, lay_syscalls
from supervisor.policy_source import MAX_TEXT_BYTES, BadPolicy, Source
from supervisor.policy_text import write_toml

LARGE_TEXT = 8 << 10
"""Above the shipped policies. A longer text can take a second; it belongs in a thread, and is remembered for a while."""
_MAX_DEPTH = 16
_RULES = "rules"
_MAX_REMEMBERED = 4

_Table = dict[str, Any]


class PolicySet:
    """The policies of a directory or several, by name; of two with one name the later directory's counts.

    Raises InvalidRequest for a file that is wrong, FileNotFoundError for a directory that is not there.
    """

    def __init__(self, *directories: Path | str) -> None:
        self._sources: dict[str, Source] = {}
        self._rule_sets: dict[str, Source] = {}
        for directory in map(Path, directories):
            for path in sorted(directory.glob(f"{_RULES}/*.toml")):
                self._rule_sets[path.stem] = self._read(path)
            for path in sorted(directory.iterdir()):
                if path.suffix == ".toml":
                    self._sources[path.stem] = self._read(path)
        self._policies: dict[str, Policy] = {}
        for name, source in self._sources.items():
            try:
                self._policies[name] = self._resolve(source, name)
            except BadPolicy as error:
                raise error.as_request_error() from None
        self._remembered = lru_cache(_MAX_REMEMBERED)(self._try_inline)

    def names(self) -> tuple[str, ...]:
        """All names, sorted."""
        return tuple(sorted(self._policies))

    def get(self, name: str) -> Policy:
        """The policy called `name`. Raises NotFound, with the nearest name there is."""
        policy = self._policies.get(name)
        if policy is None:
            raise NotFound(
                f"no policy {name[:64]!r}{nearest(name, self._policies)} (there are: {', '.join(self.names())})",
                reason="UNKNOWN_POLICY",
                field="policy",
                metadata={"policy": name[:64]},
            )
        return policy

    def resolve_text(self, toml: str | bytes, origin: str = "inline", *, name: str = "") -> Policy:
        """The policy that a text describes; it may extend those of the set. `name` is its name where the text has none.

        One that takes a name of the set for something else is called "inline:NAME". Raises InvalidRequest.
        """
        found = self._inline(toml, origin, name)
        if isinstance(found, BadPolicy):
            raise found.as_request_error()
        return found

    def check_text(self, toml: str | bytes, *, name: str = "") -> list[PolicyProblem]:
        """What is wrong with a text, 100 things at most, by line; empty when `resolve_text` would take it."""
        found = self._inline(toml, "inline", name)
        return found.problems if isinstance(found, BadPolicy) else []

    def resolved_toml(self, policy: Policy) -> str:
        """Everything in force, as a policy text that extends nothing and has the same digest."""
        return write_toml(_as_tables(policy))

    def _read(self, path: Path) -> Source:
        with path.open("rb") as file:
            text = file.read(MAX_TEXT_BYTES + 1)
        try:
            source = Source(text, path.name)
            name = source.file.name or path.stem
            if path.parent.name == _RULES and source.file.model_fields_set - {"name", "description", "rules"}:
                raise source.fail((), "a set of rules has a name, a description and [[rules]], and nothing else")
            if name != path.stem:
                raise source.fail(("name",), f"name '{name}' is not the file's own, '{path.stem}'")
        except BadPolicy as error:
            raise error.as_request_error() from None
        return source

    def _inline(self, toml: str | bytes, origin: str, name: str) -> Policy | BadPolicy:
        large = LARGE_TEXT < len(toml) <= MAX_TEXT_BYTES
        return self._remembered(toml, origin, name) if large else self._try_inline(toml, origin, name)

    def _try_inline(self, toml: str | bytes, origin: str, name: str) -> Policy | BadPolicy:
        try:
            source = Source(toml, origin)
            policy = self._resolve(source, source.file.name or name or "inline")
        except BadPolicy as error:
            # A new one: what was raised holds on to all that was being looked at.
            return BadPolicy(error.origin, error.problems)
        known = self._policies.get(policy.name)
        if known is not None and known.digest != policy.digest:
            policy = replace(policy, name=f"inline:{policy.name}")
        return policy

    def _resolve(self, source: Source, name: str) -> Policy:
        chain = [source]
        while chain[-1].file.extends:
            child, parent_name = chain[-1], chain[-1].file.extends
            parent = self._sources.get(parent_name)
            if parent_name == name and child is source and parent in (None, source):
                raise source.fail(("extends",), f"extends: '{name}' is this policy, and none can extend itself")
            if parent is None:
                raise child.fail(
                    ("extends",), f"extends: no policy '{parent_name}'{nearest(parent_name, self._sources)}"
                )
            if parent in chain:
                names = " -> ".join([name, *(link.file.extends for link in chain)])
                raise source.fail(("extends",), f"extends: a cycle, {names}")
            if len(chain) == _MAX_DEPTH:
                raise source.fail(("extends",), f"extends: more than {_MAX_DEPTH} policies deep")
            chain.append(parent)
        tables: _Table = {}
        for link in reversed(chain):
            tables = _lay(tables, link.file.model_dump(exclude_unset=True))
        shared: _Table = {}
        for word in tables.get("rule_sets", ()):
            if word not in self._rule_sets:
                raise source.fail(("rule_sets",), f"rule_sets: no set '{word[:64]}'{nearest(word, self._rule_sets)}")
            shared = _lay(shared, {"rules": self._rule_sets[word].file.model_dump(exclude_unset=True).get("rules", [])})
        tables = {**tables, **_lay(shared, {"rules": tables.get("rules", [])})}
        policy = _build(name, source, tables)
        problems = [source.problem(key, message) for key, message in _contradictions(policy, source.file)]
        if problems:
            raise BadPolicy(source.origin, problems)
        return replace(policy, digest=policy_digest(policy))


def _lay(under: _Table, over: Mapping[str, Any]) -> _Table:
    """`over` laid upon `under`, as the module's docstring says."""
    merged = dict(under)
    for key, value in over.items():
        if key == "syscalls":
            merged[key] = lay_syscalls(under.get(key, {}), value)
        elif key == "rules":
            by_name = {rule["name"]: rule for rule in [*under.get(key, ()), *value]}
            merged[key] = list(by_name.values())
        elif isinstance(value, dict):
            merged[key] = _lay(under.get(key, {}), value)
        else:
            merged[key] = value
    return merged


def _build(name: str, source: Source, tables: _Table) -> Policy:
    limits = dict(tables.get("limits", {}))
    largest = _limits(limits.pop("max", None) or {})
    isolation = tables.get("isolation", {})
    filesystem = {key: _frozen(value) for key, value in tables.get("filesystem", {}).items()}
    network = tables.get("network", {})
    syscalls = tables.get("syscalls", {})
    rules = [rule for rule in tables.get("rules", ()) if rule.get("action") != "off"]
    actions: Mapping[str, tuple[str, str]] = {**syscalls.get("actions", {}), **_forbidden_by(rules)}
    process = {key: _frozen(value) for key, value in tables.get("process", {}).items()}
    mode = NetworkMode(network.get("mode", "none"))
    return Policy(
        name=name,
        description=source.file.description,
        extends=source.file.extends,
        limits=_limits({key: limits.get(key, getattr(largest, key)) for key in LIMIT_KEYS}),
        limits_max=largest,
        isolation=Isolation(
            tuple(kind for kind in NAMESPACES if kind in isolation.get("namespaces", ())),
            isolation.get("landlock", False),
        ),
        filesystem=Filesystem(**filesystem),
        network=Network(
            mode, NetworkMode(network.get("max", mode)), _frozen(network.get("allow", [])),
            _frozen(network.get("deny", [])),
        ),
        syscalls=Syscalls(
            syscalls.get("default", "allow"),
            syscalls.get("default_errno", "ENOSYS"),
            tuple(sorted(call for call, (action, _) in actions.items() if action == "allow")),
            tuple(sorted((call, error) for call, (action, error) in actions.items() if action == "errno")),
            tuple(sorted(call for call, (action, _) in actions.items() if action == "kill")),
        ),
        process=Process(**process),
        trace=Trace(
            TraceLevel(tables.get("trace", {}).get("level", "summary")), tables.get("trace", {}).get("required", False)
        ),
        rules=tuple(
            Rule(**{**rule, "on": tuple(rule["on"]), "distinct": tuple(rule.get("distinct", ())),
                    "match": {key: tuple(value) for key, value in rule.get("match", {}).items()}})
            for rule in rules
        ),
        response=Response(**tables.get("response", {})),
        toml=source.text,
    )  # fmt: skip


def _forbidden_by(rules: Iterable[Mapping[str, Any]]) -> dict[str, tuple[str, str]]:
    """System calls that rules deny or kill for: to be refused before they have an effect is seccomp's to do."""
    found: dict[str, tuple[str, str]] = {}
    for rule in rules:
        if "syscall" in rule["on"] and rule.get("action") in ("deny", "kill"):
            kills = rule["action"] == "kill"
            found |= dict.fromkeys(rule["match"]["syscall"], ("kill", "") if kills else ("errno", "EPERM"))
    return found


def _contradictions(policy: Policy, file: PolicyFile) -> Iterator[tuple[tuple[str, ...], str]]:
    """What is wrong only once everything in force is known; each key is one that this file sets, where it sets one."""
    for key in LIMIT_KEYS:
        value, maximum = getattr(policy.limits, key), getattr(policy.limits_max, key)
        if maximum is not None and (value is None or value > maximum):
            shown = UNLIMITED if value is None else value
            own = key in file.limits.model_fields_set
            where = ("limits", key) if own else ("limits", "max", key)
            yield where, f"limits.{key}: {shown} is more than limits.max.{key}, {maximum}"
    names = {rule.name for rule in policy.rules}
    for rule in policy.rules:
        if rule.near and rule.near not in names:
            yield ("rules",), f"rules: {rule.name} is to be near {rule.near}, which is no rule here"
    network = policy.network
    order = list(NetworkMode)
    if order.index(network.mode) > order.index(network.max):
        where = ("network", "mode") if "mode" in file.network.model_fields_set else ("network", "max")
        yield where, f"network.mode: {network.mode.value} is wider than network.max, {network.max.value}"
    namespaces = policy.isolation.namespaces
    if network.mode is not NetworkMode.FULL and "network" not in namespaces:
        yield (
            ("network", "mode"),
            f"network.mode: {network.mode.value} needs 'network' in isolation.namespaces, or write mode = \"full\"",
        )
    if policy.process.user == "root" and namespaces:
        yield ("process", "user"), 'process.user: "root" goes only with isolation.namespaces = []'
    if namespaces and "mount" not in namespaces:
        yield ("isolation", "namespaces"), "isolation.namespaces: any of them needs 'mount' too"
    if policy.isolation.landlock and "mount" not in namespaces:
        yield ("isolation", "landlock"), "isolation.landlock: needs 'mount' in isolation.namespaces"


def _limits(values: Mapping[str, Any]) -> Limits:
    def typed(key: str) -> float | int | None:
        value = values.get(key)
        if value is None or value == UNLIMITED:
            return None
        convert: Callable[[Any], float | int] = float if key in FRACTION_KEYS else int
        return convert(value)

    return Limits(**{f.name: typed(f.name) for f in fields(Limits)})  # type: ignore[arg-type]  # `typed` sees to it


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _as_tables(policy: Policy) -> _Table:
    """The policy as the tables of a file that extends nothing."""

    def limit(value: float | int | None) -> float | int | str:
        return UNLIMITED if value is None else value

    calls = policy.syscalls
    process = policy.process
    return {
        "name": policy.name.removeprefix("inline:"),
        "description": policy.description,
        "limits": {
            **{key: limit(getattr(policy.limits, key)) for key in LIMIT_KEYS},
            "max": {key: limit(getattr(policy.limits_max, key)) for key in LIMIT_KEYS},
        },
        "isolation": {"namespaces": policy.isolation.namespaces, "landlock": policy.isolation.landlock},
        "filesystem": {f.name: getattr(policy.filesystem, f.name) for f in fields(Filesystem)},
        "network": {
            "mode": policy.network.mode.value,
            "max": policy.network.max.value,
            "allow": policy.network.allow,
            "deny": policy.network.deny,
        },
        "syscalls": {
            "default": calls.default,
            "default_errno": calls.default_errno,
            "allow": calls.allow,
            "errno": tuple(f"{name}:{error}" for name, error in calls.errno),
            "kill": calls.kill,
        },
        "process": {
            "user": process.user,
            "capabilities": process.capabilities,
            "new_session": process.new_session,
            "core_dumps": process.core_dumps,
            "env": process.env,
        },
        "trace": {"level": policy.trace.level.value, "required": policy.trace.required},
        "response": {} if policy.response.violation_threshold is None else {
            "violation_threshold": policy.response.violation_threshold},
        "rules": [
            {"name": r.name, "on": r.on, "severity": r.severity, "action": r.action, "count": r.count,
             "seconds": r.seconds, "distinct": r.distinct, "near": r.near, "match": r.match}
            for r in policy.rules
        ],
    }  # fmt: skip
