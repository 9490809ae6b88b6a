"""One run's detection: its events against its policy's rules, in the order in which they came."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from supervisor.model import Violation
from supervisor.policy import Policy, Rule
from supervisor.probes.layout import FILE_MARKS, TYPE_AT, RecordType
from supervisor.probes.processes import Processes
from supervisor.rules.events import Event, read_event
from supervisor.rules.kinds import field_test
from supervisor.rules.needs import Needs, needs_of
from supervisor.rules.patterns import Test

VIOLATIONS_MAX = 2_000
"""Kept of one run, with their evidence; what is beyond them is counted."""
_DENIED_MAX = 10_000
"""Addresses of one run whose denial is told, each once."""
_ADDRESSED = "network"
_UNRESOLVED = "path.unresolved"
_THRESHOLD = "response.violation_threshold"
_LOST = "trace.lost"
_NO_MARKS = bytes(4)
_RECORD_OF_KIND = {"exec": RecordType.EXEC, "fork": RecordType.FORK, "exit": RecordType.EXIT}
_OF_PROCESSES = frozenset(_RECORD_OF_KIND.values())
_OF_SOCKETS = frozenset({"listen", "accept", "unix", "send", "dns"})


@dataclass(frozen=True, slots=True)
class _Compiled:
    rule: Rule
    tests: tuple[tuple[str, Test], ...]

    def fits(self, event: Event) -> bool:
        return all(any(map(test, event.values(name))) for name, test in self.tests)


class RuleSet:
    """A policy's rules made ready once for all its runs: `needs` is for the probes."""

    def __init__(self, policy: Policy) -> None:
        self.needs: Needs = needs_of(policy.rules)
        named = {rule.name: rule for rule in policy.rules}
        self._deniers = [named[name] for name in self.needs.deniers]
        self.threshold = policy.response.violation_threshold
        self.by_kind: dict[str, list[_Compiled]] = {}
        self.near: dict[str, list[Rule]] = {}
        for rule in policy.rules:
            if rule.near:
                self.near.setdefault(rule.near, []).append(rule)
            tests = tuple((name, field_test(name, patterns)) for name, patterns in rule.match.items())
            compiled = _Compiled(rule, tests)
            for kind in rule.on:
                self.by_kind.setdefault(kind, []).append(compiled)

    def denier(self, event: Event) -> Rule | None:
        """The rule that the guard has denied the event by; of a directory that was to be moved, one about what lies below."""
        if event.denier:
            return self._deniers[event.denier - 1]
        if event.denier is None:
            return None
        below = event.fields["path"] + "/"
        return next((rule for rule in self._deniers for path in rule.match["path"] if path.startswith(below)), None)

    @property
    def is_empty(self) -> bool:
        return not self.by_kind and self.threshold is None


@dataclass(slots=True)
class _Window:
    """The last events of a rule that counts, no more than it counts to; of those that are to be distinct each value's last."""

    last: dict[object, int] = field(default_factory=dict)
    seen: int = 0

    def add(self, rule: Rule, time_ns: int, value: str) -> bool:
        """Whether it is the one too many; the count begins anew then."""
        self.seen += 1
        key = value if rule.distinct else self.seen
        self.last.pop(key, None)
        self.last[key] = time_ns
        since = time_ns - int(rule.seconds * 1e9)
        while len(self.last) > rule.count or next(iter(self.last.values())) < since:
            del self.last[next(iter(self.last))]
        if len(self.last) < rule.count:
            return False
        self.last.clear()
        return True


class Detector:
    """Fed with records in their order; says what they violate, and whether the run is to end for it."""

    def __init__(self, rules: RuleSet, processes: Processes, offset_ns: int) -> None:
        self._rules = rules
        self._processes = processes
        self._offset = offset_ns
        self._windows: dict[str, _Window] = {}
        self._looked_at = {RecordType.FILE, RecordType.NETWORK, RecordType.EVENT, RecordType.DENIAL} | {
            kind for name, kind in _RECORD_OF_KIND.items() if name in rules.by_kind
        }
        if not _OF_SOCKETS.isdisjoint(rules.by_kind):
            self._looked_at.add(RecordType.SOCKET)
        self._denied: set[tuple[str, str, str]] = set()
        self._last: dict[str, tuple[str, Event]] = {}
        self._counted = 0
        self.matched: dict[str, int] = {}
        """How often each rule has matched, those that only log included."""
        self.kills = False
        """Set once a violation ends the run."""
        self.found: list[Violation] = []
        self.beyond = 0
        """Violations past VIOLATIONS_MAX."""

    def feed(self, records: Iterable[bytes]) -> list[Violation]:
        """Also hands each record to the processes, after it has been looked at. Returns what is new."""
        before = len(self.found)
        for record in records:
            kind = record[TYPE_AT]
            if kind in self._looked_at:
                # One that no rule has asked for is of a run that is traced in full.
                event = (
                    None
                    if kind == RecordType.FILE and record[FILE_MARKS] == _NO_MARKS
                    else read_event(record, self._processes)
                )
                if event is not None:
                    self._look(event)
            if kind in _OF_PROCESSES:
                self._processes.add((record,))
        return self.found[before:]

    def lose(self, count: int, time_ns: int) -> None:
        """So many records that rules had asked for found no room: what they would have said is not known."""
        if count:
            self._violate(_LOST, "trace", "high", "alert", Event(("trace",), time_ns, 0, 0, {}))

    def _look(self, event: Event) -> None:
        before = len(self.found)
        self._look_by_rules(event)
        if event.denier is not None:
            return
        # Denied by [network], hence by no rule: each address once.
        if event.fields.get("denied") == "true" and len(self.found) == before:
            key = event.kinds[0], event.fields["address"], event.fields["port"]
            if key not in self._denied and len(self._denied) < _DENIED_MAX:
                self._denied.add(key)
                self._violate(_ADDRESSED, key[0], "medium", "deny", event)

    def _look_by_rules(self, event: Event) -> None:
        denier = self._rules.denier(event)
        if event.denier:
            assert denier is not None
            self._fire(denier, event.kinds[0], event)
        elif event.denier is not None:
            # Not what the rule is about, but what would have put an end to it.
            name, severity = (denier.name, denier.severity) if denier is not None else (_UNRESOLVED, "high")
            self.matched[name] = self.matched.get(name, 0) + 1
            self._violate(name, event.kinds[0], severity, "deny", event)
        for kind in event.kinds:
            for compiled in self._rules.by_kind.get(kind, ()):
                if compiled.rule is not denier and compiled.fits(event):
                    self._on_match(compiled.rule, kind, event)

    def _on_match(self, rule: Rule, kind: str, event: Event) -> None:
        for other in self._rules.near.get(rule.name, ()):
            earlier = self._last.get(other.name)
            if earlier is not None and _within(other, earlier[1], event):
                del self._last[other.name]
                self._fire(other, *earlier)
        if rule.near:
            match = self._last.get(rule.near)
            if match is None or not _within(rule, match[1], event):
                self._last[rule.name] = kind, event
                return
        else:
            if rule.name in self._rules.near:
                self._last[rule.name] = kind, event
            if rule.count > 1:
                window = self._windows.setdefault(rule.name, _Window())
                value = " ".join(v for name in rule.distinct for v in event.values(name))
                if not window.add(rule, event.time_ns, value):
                    return
        self._fire(rule, kind, event)

    def _fire(self, rule: Rule, kind: str, event: Event) -> None:
        self.matched[rule.name] = self.matched.get(rule.name, 0) + 1
        if rule.action != "log":
            self._violate(rule.name, kind, rule.severity, _action(rule, kind, event), event)

    def _violate(self, name: str, kind: str, severity: str, action: str, event: Event) -> None:
        if action == "kill":
            self.kills = True
        self._counted += 1
        if len(self.found) >= VIOLATIONS_MAX:
            self.beyond += 1
        else:
            fields = event.fields
            self.found.append(
                Violation(
                    rule=name,
                    kind=kind,
                    severity=severity,
                    action=action,
                    time=(event.time_ns + self._offset) / 1e9,
                    syscall=event.syscall,
                    abi=event.abi,
                    args=event.args,
                    pid=event.pid,
                    tid=event.tid,
                    comm=fields.get("comm", ""),
                    exe=event.program,
                    path=fields.get("path", ""),
                    address=fields.get("address", ""),
                    port=int(fields.get("port", 0)),
                )
            )
        if self._counted == self._rules.threshold and name != _THRESHOLD and not self.kills:
            self._violate(_THRESHOLD, kind, severity, "kill", event)


def _within(rule: Rule, one: Event, other: Event) -> bool:
    return abs(one.time_ns - other.time_ns) <= rule.seconds * 1e9


def _action(rule: Rule, kind: str, event: Event) -> str:
    """What was done: a denial that no hook made is none."""
    if rule.action != "deny":
        return rule.action
    denied = event.fields.get("denied") == "true" or (kind == "syscall" and event.fields.get("result") != "ok")
    return "deny" if denied else "alert"
