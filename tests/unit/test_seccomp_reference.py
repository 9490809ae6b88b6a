"""Compiled filters against a reference that reads the policy and the guards' meaning anew, and shares no rule with them."""

from __future__ import annotations

import errno
import functools
import itertools
import os
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from supervisor.policy import Syscalls
from supervisor.policy_file import PolicySet
from supervisor.shipped import shipped_policy_dir
from supervisor.syscall_sets import GUARDS, KNOWN_SYSCALLS

if sys.platform != "linux" or os.uname().machine != "x86_64":
    pytest.skip("numbers here are those of x86-64 Linux", allow_module_level=True)

import pyseccomp
from bpf_machine import Machine

from supervisor.linux import seccomp
from supervisor.linux.seccomp import compile_filter, syscall_number
from supervisor.linux.seccomp_bpf import JEQ, JGE, JGT, JSET, Assembler, Block, Condition, Span, decide, search
from supervisor.linux.seccomp_guards import guard_rules

X86_64, I386, X32, AARCH64 = 0xC000003E, 0x40000003, 0x4000003E, 0xC00000B7
ALLOW, KILL, NOTIF = 0x7FFF0000, 0x80000000, 0x7FC00000
SHIPPED = ("none", "basic", "moderate", "strict", "paranoid")

# --- the reference


def low(value: int) -> int:
    return value & 0xFFFFFFFF


def weak_persona(persona: int) -> bool:
    if persona == 0xFFFFFFFF:
        return False  # only asks
    return persona >= 2**31 or bool(persona & (0x0400000 | 0x0200000 | 0x0100000 | 0x0040000))


def setid(mode: int) -> bool:
    return mode & 0o6000 != 0


def device(mode: int) -> bool:
    return mode & 0o170000 in (0o020000, 0o060000)


def odd_socket(family: int, kind: int, protocol: int) -> bool:
    inet = family in (2, 10)
    return family not in (1, 2, 10, 16) or kind & 15 in (4, 6, 10) or (inet and kind & 15 == 5) or protocol > 58


Refuses = Callable[[Sequence[int]], bool]

REFUSES: Mapping[tuple[str, str], Refuses] = {
    ("%namespaces", "clone"): lambda a: a[0] & 0x7E020080 != 0,
    ("%terminal", "ioctl"): lambda a: low(a[1]) in (0x5412, 0x541C),
    ("%setid", "chmod"): lambda a: setid(a[1]),
    ("%setid", "fchmod"): lambda a: setid(a[1]),
    ("%setid", "fchmodat"): lambda a: setid(a[2]),
    ("%setid", "fchmodat2"): lambda a: setid(a[2]),
    ("%setid", "creat"): lambda a: setid(a[1]),
    ("%setid", "mknod"): lambda a: setid(a[1]),
    ("%setid", "mknodat"): lambda a: setid(a[2]),
    ("%setid", "open"): lambda a: a[1] & 0o20000100 != 0 and setid(a[2]),
    ("%setid", "openat"): lambda a: a[2] & 0o20000100 != 0 and setid(a[3]),
    ("%devices", "mknod"): lambda a: device(a[1]),
    ("%devices", "mknodat"): lambda a: device(a[2]),
    ("%sockets", "socket"): lambda a: odd_socket(a[0], a[1], a[2]),
    ("%sockets", "socketpair"): lambda a: a[0] != 1,
    ("%netlink", "socket"): lambda a: low(a[0]) == 16,
    ("%raw-sockets", "socket"): lambda a: low(a[0]) == 17 or (low(a[0]) in (2, 10) and a[1] & 15 in (3, 10)),
    ("%socket-filters", "setsockopt"): lambda a: low(a[1]) == 1 and low(a[2]) in (26, 50, 51, 52),
    ("%multicast", "setsockopt"): lambda a: (low(a[1]), low(a[2])) in MULTICAST,
    ("%personality", "personality"): lambda a: weak_persona(low(a[0])),
    ("%realtime", "sched_setscheduler"): lambda a: low(a[1]) & ~0x40000000 in (1, 2, 6),
}
MULTICAST = {(0, name) for name in (35, 39, 41, 42, 46, 48)} | {
    (41, name) for name in (20, 27, 42, 46, 48, 54, 55, 57, 59)
}
UNREADABLE = {"clone3": "%namespaces", "openat2": "%setid"}
GUARDED = sorted({call for _, call in REFUSES})


def number(name: str, arch: int = X86_64) -> int | None:
    return syscall_number(name, arch)


@functools.cache
def names(arch: int) -> Mapping[int, str]:
    return {nr: name for name in KNOWN_SYSCALLS if (nr := number(name, arch)) is not None}


def reference(syscalls: Syscalls, nr: int, args: Sequence[int], arch: int = X86_64, native: int = X86_64) -> int:
    """What the policy says: the ABI first, the call's own action, and what guards make of it where that is to allow."""
    if arch != native or (native == X86_64 and 0x40000000 <= nr < 0xFFFFFFFF):
        return KILL
    actions = dict.fromkeys(syscalls.allow, ALLOW)
    actions |= {name: 0x50000 | getattr(errno, error) for name, error in syscalls.errno}
    actions |= dict.fromkeys(syscalls.kill, KILL)
    default = {"allow": ALLOW, "errno": 0x50000 | getattr(errno, syscalls.default_errno), "kill": KILL}
    name = names(native).get(nr, "")
    action = actions.get(name, default[syscalls.default])
    if action != ALLOW:
        return action
    if actions.get(UNREADABLE.get(name, ""), ALLOW) != ALLOW:
        return 0x50000 | errno.ENOSYS
    on = [(actions[guard], call, refuses) for (guard, call), refuses in REFUSES.items() if guard in actions]
    refusals = [answer for answer, call, refuses in on if call == name and answer != ALLOW and refuses(args)]
    return max(refusals, default=ALLOW)


# --- where to look

HIGH = 0xDEADBEEF_00000000
NO_ARGUMENTS = ((0,) * 6,)
NUMBERS = (*range(1024), *(0x40000000 | nr for nr in range(1024)), 0x3FFFFFFF, 0x7FFFFFFF)
NEGATIVE = (0xFFFFFFFF, 0xFFFFFFFE, 0xFFFFFFFF - 10059, 0x80000000, 0x80000001, 0x8000003B, 0xC0000000)
MODES = (
    0, 0o644, 0o1777, 0o2755, 0o4755, 0o6755, *(kind << 12 | 0o600 for kind in range(16)), 0o24755, 0o104755,
    HIGH | 0o755, HIGH | 0o4755, HIGH | 0o20666, 2**64 - 1,
)  # fmt: skip
FLAGS = (0, 1, os.O_CREAT, os.O_TMPFILE, os.O_DIRECTORY, os.O_CREAT | os.O_EXCL, HIGH | os.O_CREAT, HIGH, 2**64 - 1)
WORDS = (
    0, 1, 17, *(1 << bit for bit in range(64)), *(0xFFFFFFFF ^ 1 << bit for bit in range(33)), 0x1200011, 0x3D0F00,
    0x20008, 0x80400000, 0xFFFFFFFF, HIGH | 0xFFFFFFFF, HIGH | 0xFFFFFFFE, HIGH | 0x0400000, HIGH, 2**64 - 1,
)  # fmt: skip
FAMILIES = (*range(46), HIGH | 1, HIGH | 2, HIGH | 10, HIGH | 16, HIGH | 17, 0xFFFFFFFF, 2**64 - 1)
KINDS = (*range(16), 0x80801, 0x80803, 0x80805, HIGH | 1, HIGH | 3, HIGH | 5, 2**64 - 1)
PROTOCOLS = (0, 1, 6, 17, 33, 57, 58, 59, 132, 136, 255, 262, 0x0300, HIGH, HIGH | 6, 0x80000000, 2**64 - 1)
REQUESTS = (0x5401, 0x5411, 0x5412, 0x5413, 0x541B, 0x541C, HIGH | 0x5412, HIGH | 0x541C, 0x80005412, 0)
SCHEDULERS = (*range(8), *range(0x40000000, 0x40000008), HIGH | 1, HIGH | 0x40000002, 0x80000001, 2**64 - 1)

ARGUMENTS: Mapping[str, tuple[Sequence[int], ...]] = {
    "clone": (WORDS,),
    "ioctl": ((0, 0x5412), REQUESTS),
    "chmod": ((0, 0o4755), MODES),
    "fchmod": ((0, 0o4755), MODES),
    "fchmodat": ((0, 0o4755), (0, 0o4755), MODES),
    "fchmodat2": ((0, 0o4755), (0, 0o4755), MODES),
    "creat": ((0, 0o4755), MODES),
    "mknod": ((0, 0o20000), MODES, (0, 0o4000)),
    "mknodat": ((0, 0o20000), (0, 0o20000), MODES),
    "open": ((0, 0o100), FLAGS, MODES),
    "openat": ((0, 0o100), (0, 0o100), FLAGS, MODES),
    "socket": (FAMILIES, KINDS, PROTOCOLS),
    "socketpair": (FAMILIES, (1, 3, 4)),
    "setsockopt": ((0, 1), (0, 1, 6, 41, 0x100000001), (1, 2, 25, 26, 27, 49, 50, 51, 52, 53, 0x10000001A)),
    "personality": (WORDS,),
    "sched_setscheduler": ((0, 1), SCHEDULERS),
}


def vectors(call: str) -> Iterator[tuple[int, ...]]:
    for args in itertools.product(*ARGUMENTS[call]):
        yield (*args, *[0o6777] * (6 - len(args)))  # what a guard must not look at


def check(syscalls: Syscalls, calls: Mapping[int, Sequence[Sequence[int]]], arch: int = X86_64) -> None:
    machine = Machine(compile_filter(syscalls).program)
    for nr, argument_lists in calls.items():
        for args in argument_lists:
            expected = reference(syscalls, nr, args, arch)
            assert machine.run(nr, args, arch) == expected, (names(X86_64).get(nr, nr), [hex(a) for a in args])


@functools.cache
def shipped(policy: str) -> Syscalls:
    return PolicySet(shipped_policy_dir()).get(policy).syscalls


def test_the_reference_knows_all_guards() -> None:
    assert {(guard, call) for guard in GUARDS for call, _ in guard_rules(guard)} == set(REFUSES)
    assert {guard for guard, _ in REFUSES} == set(GUARDS)
    assert set(ARGUMENTS) == set(GUARDED)


@pytest.mark.parametrize("policy", SHIPPED)
@pytest.mark.parametrize("arch", [X86_64, I386, X32, AARCH64])
def test_shipped_policies_say_the_same_of_every_number(policy: str, arch: int) -> None:
    if not shipped(policy).filters:
        assert compile_filter(shipped(policy)).program == b""
        return
    check(shipped(policy), dict.fromkeys((*NUMBERS, *NEGATIVE), NO_ARGUMENTS), arch)


@pytest.mark.parametrize("policy", ["moderate", "strict", "paranoid"])
@pytest.mark.parametrize("call", GUARDED)
def test_shipped_policies_say_the_same_of_arguments(policy: str, call: str) -> None:
    nr = number(call)
    assert nr is not None
    check(shipped(policy), {nr: list(vectors(call))})


# --- policies at random

ERRORS = st.sampled_from(["EPERM", "ENOSYS", "EACCES", "EAFNOSUPPORT"])
COMMON = st.sampled_from([*GUARDED, *UNREADABLE])


@st.composite
def inline_policies(draw: st.DrawFn) -> Syscalls:
    named = draw(st.lists(st.sampled_from(sorted(KNOWN_SYSCALLS)), max_size=120)) + draw(st.lists(COMMON))
    guards = draw(st.lists(st.sampled_from(sorted(GUARDS)), unique=True))
    allow, errors, kill = [], [], []
    for name in dict.fromkeys([*named, *guards]):
        match draw(st.sampled_from("aek")):
            case "a":
                allow.append(name)
            case "e":
                errors.append((name, draw(ERRORS)))
            case _:
                kill.append(name)
    default, error = draw(st.sampled_from(["allow", "errno", "kill"])), draw(ERRORS)
    return Syscalls(default, error, tuple(allow), tuple(errors), tuple(kill))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(inline_policies(), st.randoms(use_true_random=False))
def test_any_policy_says_what_the_reference_says(syscalls: Syscalls, chosen: random.Random) -> None:
    if not syscalls.filters:
        return
    calls: dict[int, Sequence[tuple[int, ...]]]
    calls = dict.fromkeys((*range(520), 1023, 0x40000001, *NEGATIVE), NO_ARGUMENTS)
    for call in GUARDED:
        nr = number(call)
        assert nr is not None
        calls[nr] = [
            tuple(chosen.choice(values) for values in (*ARGUMENTS[call], *[WORDS] * (6 - len(ARGUMENTS[call]))))
            for _ in range(25)
        ]
    check(syscalls, calls)
    for arch in (I386, X32, AARCH64):
        check(syscalls, dict.fromkeys((*range(0, 520, 40), *NEGATIVE), NO_ARGUMENTS), arch)


@pytest.mark.parametrize("policy", ["moderate", "strict", "paranoid"])
def test_aarch64_s_filter_says_what_the_reference_says(policy: str) -> None:
    machine = Machine(seccomp._program(shipped(policy), pyseccomp.Arch.AARCH64, NOTIF))
    for nr in (*NUMBERS, *NEGATIVE):
        for arch in (AARCH64, X86_64):
            expected = reference(shipped(policy), nr, (0,) * 6, arch, AARCH64)
            assert machine.run(nr, (), arch) == (NOTIF if expected == KILL else expected)


def test_guards_that_overlap_answer_the_severest() -> None:
    overlapping = Syscalls(errno=(("%setid", "EPERM"), ("%devices", "EACCES")), kill=())
    machine = Machine(compile_filter(overlapping).program)
    mknod = number("mknod")
    assert mknod is not None
    assert machine.run(mknod, (0, 0o24755)) == 0x50000 | errno.EACCES
    killing = Machine(compile_filter(Syscalls(errno=(("%devices", "EACCES"),), kill=("%setid",))).program)
    assert killing.run(mknod, (0, 0o24755)) == KILL


# --- what it costs


@pytest.mark.parametrize("policy", ["moderate", "strict", "paranoid"])
def test_filters_are_short_and_shallow(policy: str) -> None:
    """Both are time at the start of every run, see seccomp_bpf.py."""
    compiled = compile_filter(shipped(policy))
    machine = Machine(compiled.program)
    walked = 0
    for nr in range(470):
        machine.run(nr)
        walked += machine.walked
    assert compiled.instruction_count <= 180
    assert walked / 470 <= 12
    machine.run(20, (), I386)
    assert machine.walked == 3


# --- the assembler


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(1, 700), st.integers(1, 400), st.integers(1, 3), st.randoms(use_true_random=False))
def test_search_finds_the_span_however_far_the_jumps(
    count: int, answers: int, width: int, chosen: random.Random
) -> None:
    assembler = Assembler()
    firsts, values = [0], [chosen.randrange(answers)]
    for _ in range(count - 1):
        firsts.append(firsts[-1] + chosen.randint(1, width))
        values.append(chosen.randrange(answers))
    spans = [Span(first, assembler.answer(value)) for first, value in zip(firsts, values, strict=True)]
    machine = Machine(assembler.program(assembler.load(0, search(assembler, spans, count))))
    ends = [*firsts[1:], firsts[-1] + 2]
    for first, end, value in zip(firsts, ends, values, strict=True):
        assert machine.run(first) == machine.run(end - 1) == value
    assert machine.run(0xFFFFFFFF) == values[-1]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(1, 300), st.randoms(use_true_random=False))
def test_decisions_hold_however_far_the_jumps(count: int, chosen: random.Random) -> None:
    rules = []
    for answer in range(count):
        conditions = [
            Condition(
                offset=16 + 4 * chosen.randrange(4),
                test=chosen.choice([JEQ, JGT, JGE, JSET]),
                values=tuple(chosen.randrange(8) for _ in range(chosen.randint(1, 3))),
                mask=chosen.choice([0xFFFFFFFF, 3, 6]),
                negated=chosen.random() < 0.5,
            )
            for _ in range(chosen.randint(1, 3))
        ]
        rules.append((conditions, answer))
    assembler = Assembler()
    block = Block(assembler.answer(ALLOW))
    for conditions, answer in reversed(rules):
        block = decide(assembler, conditions, Block(assembler.answer(answer)), block)
    machine = Machine(assembler.program(assembler.load(0, block.cold)))
    for _ in range(60):
        words = [chosen.randrange(9) for _ in range(4)]
        args = (words[0] | words[1] << 32, words[2] | words[3] << 32)
        expected = next((answer for conditions, answer in rules if all(holds(c, words) for c in conditions)), ALLOW)
        assert machine.run(0, args) == expected


def holds(condition: Condition, words: Sequence[int]) -> bool:
    word = words[(condition.offset - 16) // 4] & condition.mask
    compare: Callable[[int, int], bool] = {
        JEQ: lambda a, b: a == b,
        JGT: lambda a, b: a > b,
        JGE: lambda a, b: a >= b,
        JSET: lambda a, b: a & b != 0,
    }[condition.test]
    return any(compare(word, value) for value in condition.values) != condition.negated
