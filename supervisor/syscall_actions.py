"""What becomes of a system call under a policy, after all merging: the same answer that its seccomp filter gives. Pure."""

from __future__ import annotations

import errno
from collections.abc import Mapping, Sequence
from functools import cache
from typing import NamedTuple

from supervisor.linux.seccomp_bpf import ARGUMENTS_OFFSET, JEQ, JGE, JGT, WORD, Condition
from supervisor.linux.seccomp_guards import UNREADABLE, Rule, guard_rules
from supervisor.policy import Syscalls
from supervisor.syscall_sets import GUARDS

_SEVERITY = {"allow": 0, "errno": 1, "kill": 2}


class Action(NamedTuple):
    """`kind`: allow, errno or kill; `error` names what errno answers."""

    kind: str
    error: str = ""

    @property
    def severity(self) -> int:
        """0 for allow, 1 for errno, 2 for kill."""
        return _SEVERITY[self.kind]

    def __str__(self) -> str:
        return f"{self.kind} {self.error}" if self.error else self.kind


ALLOW, KILL = Action("allow"), Action("kill")


class Actions:
    """What `syscalls` says of calls and guards; what the policy does not name has the `default`."""

    def __init__(self, syscalls: Syscalls) -> None:
        self.default = (
            Action("errno", syscalls.default_errno) if syscalls.default == "errno" else Action(syscalls.default)
        )
        self._named = named_actions(syscalls)
        for guard, call in UNREADABLE.items():
            if self.guard(guard) != ALLOW and self.call(call) == ALLOW:
                self._named[call] = Action("errno", "ENOSYS")

    def call(self, name: str) -> Action:
        """Of a call whose arguments no guard objects to."""
        return self._named.get(name, self.default)

    def guard(self, name: str) -> Action:
        """What a guard answers to what it objects to: allow where it is off."""
        return self._named.get(name, ALLOW)

    def refusal(self, name: str, arguments: Sequence[int]) -> Action:
        """What the guards make of one call with these registers that is otherwise allowed: the severest counts."""
        found = ALLOW
        for guard, rule in guards_of(name):
            answer = self.guard(guard)
            if answer.severity > found.severity and all(_holds(one, arguments) for one in rule[1]):
                found = answer
        return found


def named_actions(syscalls: Syscalls) -> dict[str, Action]:
    """What the policy's lists say, by name; guards are among them."""
    named = dict.fromkeys(syscalls.allow, ALLOW)
    named |= {name: Action("errno", error) for name, error in syscalls.errno}
    return named | dict.fromkeys(syscalls.kill, KILL)


@cache
def guarded_calls() -> Mapping[str, tuple[str, ...]]:
    """Guard -> the calls that it looks at."""
    return {guard: tuple(sorted({call for call, _ in guard_rules(guard)})) for guard in GUARDS}


@cache
def guards_of(call: str) -> tuple[tuple[str, Rule], ...]:
    """The guards that look at a call, each with one of its rules."""
    return tuple((guard, rule) for guard in GUARDS for rule in guard_rules(guard) if rule[0] == call)


def error_number(name: str) -> int:
    """38 of ENOSYS; 0 for what this system does not know."""
    found = getattr(errno, name, 0)
    return found if isinstance(found, int) else 0


def _holds(condition: Condition, arguments: Sequence[int]) -> bool:
    place = condition.offset - ARGUMENTS_OFFSET
    word = arguments[place // 8] >> (32 if place % 8 else 0) & WORD & condition.mask
    return any(_compares(condition.test, word, value) for value in condition.values) is not condition.negated


def _compares(test: int, word: int, value: int) -> bool:
    if test == JEQ:
        return word == value
    if test == JGT:
        return word > value
    return word >= value if test == JGE else bool(word & value)
