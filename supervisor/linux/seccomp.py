"""Seccomp filters from policies: the bytes that a launcher installs, never loaded here.

A filter looks at the ABI first, whose foreign calls end the run, then at the number, once. Behind the number stands an
answer, or for a call that a %guard looks at (linux/seccomp_guards.py) tests of its arguments, severest answer first.
Numbers come from libseccomp; the instructions are ours (linux/seccomp_bpf.py), since its programs are several times
as long, leave open which of two overlapping rules wins and know no "allow unless" where denying is the default. See
seccomp(2) and Documentation/userspace-api/seccomp_filter.rst.
"""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import pyseccomp

from supervisor.errors import HostLacks, InvalidRequest
from supervisor.linux.seccomp_bpf import (
    ARCH_OFFSET,
    INSTRUCTION_SIZE,
    JEQ,
    NUMBER_OFFSET,
    WORD,
    Assembler,
    Block,
    Condition,
    Label,
    Span,
    decide,
    search,
)
from supervisor.linux.seccomp_guards import UNREADABLE, guard_rules
from supervisor.policy import Policy, Syscalls, nearest
from supervisor.syscall_sets import GUARDS, KNOWN_SYSCALLS, LATE_SYSCALLS

AUDIT_ARCH_X86_64 = 0xC000003E
AUDIT_ARCH_I386 = 0x40000003
AUDIT_ARCH_AARCH64 = 0xC00000B7
X32_BIT = 0x40000000

SECCOMP_RET_KILL_PROCESS = 0x80000000
SECCOMP_RET_ERRNO = 0x00050000
SECCOMP_RET_USER_NOTIF = 0x7FC00000
SECCOMP_RET_ALLOW = 0x7FFF0000


@dataclass(frozen=True, slots=True)
class SeccompFilter:
    """A filter ready to install: `program` is an array of struct sock_filter, empty where nothing is refused.

    `notify`: it asks a listener about what must kill (SECCOMP_FILTER_FLAG_NEW_LISTENER), who must never answer with
    SECCOMP_USER_NOTIF_FLAG_CONTINUE. Without a listener such calls answer ENOSYS: still refused.
    """

    program: bytes
    instruction_count: int
    digest: str
    notify: bool


def compile_filter(policy: Policy | Syscalls, *, notify: bool = False) -> SeccompFilter:
    """The filter of a policy (or of its `syscalls` alone) for this machine's architecture; calls of any other (ia32, x32) kill.

    With `notify` what would kill is put to the listener instead, so that it can keep the evidence and end the run.
    Takes milliseconds: keep the answer by (syscalls.digest, notify). Raises InvalidRequest for a name that is
    no system call, HostLacks on a machine that is neither x86-64 nor aarch64.
    """
    syscalls = policy.syscalls if isinstance(policy, Policy) else policy
    if not syscalls.filters:
        return SeccompFilter(b"", 0, hashlib.sha256(b"").hexdigest(), False)
    check_names(syscalls)
    program = _program(
        syscalls, pyseccomp.system_arch(), SECCOMP_RET_USER_NOTIF if notify else SECCOMP_RET_KILL_PROCESS
    )
    return SeccompFilter(program, len(program) // INSTRUCTION_SIZE, hashlib.sha256(program).hexdigest(), notify)


def check_names(syscalls: Syscalls) -> None:
    """Raises InvalidRequest for the first name that is neither a system call of any architecture nor a guard.

    libseccomp resolves such a name to -1 without a word, and a rule for -1 refuses nothing.
    """
    for action, names in (
        ("allow", syscalls.allow),
        ("errno", tuple(name for name, _ in syscalls.errno)),
        ("kill", syscalls.kill),
    ):
        for name in names:
            known: Iterable[str] = GUARDS if name.startswith("%") else KNOWN_SYSCALLS
            if name not in known:
                raise InvalidRequest(
                    f"syscalls.{action}: unknown system call '{name[:64]}'{nearest(name, known)}",
                    field=f"syscalls.{action}",
                )


def syscall_number(name: str, machine: int = pyseccomp.Arch.NATIVE) -> int | None:
    """The number of the call on this machine (or a libseccomp architecture), None where it has no such call."""
    number = pyseccomp.resolve_syscall(machine, name)
    if number == -1:
        return LATE_SYSCALLS.get(name)
    return number if number >= 0 else None


def decode_syscall(nr: int, arch: int) -> tuple[str, str]:
    """Name and ABI ("x86_64", "x32", "i386", "aarch64") of a number, as seccomp_data or an audit record has it.

    The same number is another call in another ABI. What has no name is "syscall_NR"; an ABI unknown here is "arch_HEX".
    """
    abi, machine = {
        AUDIT_ARCH_X86_64: ("x86_64", pyseccomp.Arch.X86_64),
        AUDIT_ARCH_I386: ("i386", pyseccomp.Arch.X86),
        AUDIT_ARCH_AARCH64: ("aarch64", pyseccomp.Arch.AARCH64),
    }.get(arch & WORD, (f"arch_{arch & WORD:08x}", None))
    if abi == "x86_64" and 0 <= nr < 2**31 and nr & X32_BIT:
        abi, machine = "x32", pyseccomp.Arch.X32
    plain = nr & ~X32_BIT if abi == "x32" else nr
    if machine is None or not 0 <= nr < 2**31:
        return f"syscall_{plain}", abi
    try:
        return pyseccomp.resolve_syscall(machine, nr).decode(), abi
    except ValueError:
        late = {number: name for name, number in LATE_SYSCALLS.items()}
        return late.get(plain, f"syscall_{plain}"), abi


def _actions(syscalls: Syscalls) -> Mapping[str, int]:
    """Name or guard -> seccomp return value, for all that the policy names."""
    actions = dict.fromkeys(syscalls.allow, SECCOMP_RET_ALLOW)
    actions |= {name: SECCOMP_RET_ERRNO | _errno(error) for name, error in syscalls.errno}
    actions |= dict.fromkeys(syscalls.kill, SECCOMP_RET_KILL_PROCESS)
    return actions


def _default(syscalls: Syscalls) -> int:
    return {
        "allow": SECCOMP_RET_ALLOW,
        "errno": SECCOMP_RET_ERRNO | _errno(syscalls.default_errno),
        "kill": SECCOMP_RET_KILL_PROCESS,
    }[syscalls.default]


def _errno(name: str) -> int:
    number = getattr(errno, name, None)
    if not isinstance(number, int):
        raise InvalidRequest(f"syscalls.errno: unknown error '{name[:16]}'", field="syscalls.errno")
    return number


def _program(syscalls: Syscalls, machine: int, kill: int) -> bytes:
    """The program for a libseccomp architecture; `kill` is what it answers where a call is to end the run."""
    if machine not in _FOREIGN_NUMBERS:
        raise HostLacks(
            f"there is no system call filter for this machine (AUDIT_ARCH {machine:#x})",
            metadata={"feature": "seccomp", "remedy": "use an x86-64 or aarch64 host, or a policy without [syscalls]"},
        )
    assembler = Assembler()

    def answer(action: int) -> Label:
        return assembler.answer(kill if action == SECCOMP_RET_KILL_PROCESS else action)

    default = answer(_default(syscalls))
    foreign = answer(SECCOMP_RET_KILL_PROCESS)
    labels = {call: answer(action) for call, action in sorted(_call_actions(syscalls).items())}
    for call, refusals in _guarded(syscalls).items():
        block = Block(answer(SECCOMP_RET_ALLOW))
        for action, conditions in reversed(refusals):
            block = decide(assembler, conditions, Block(answer(action)), block)
        labels[call] = block.cold
    numbers = {call: number for call in labels if (number := syscall_number(call, machine)) is not None}
    by_number = {number: labels[call] for call, number in numbers.items()}
    last = max(*LATE_SYSCALLS.values(), *by_number)
    spans = [Span(number, by_number.get(number, default)) for number in range(last + 2)]
    spans += [Span(first, foreign if is_foreign else default) for first, is_foreign in _FOREIGN_NUMBERS[machine]]
    native = assembler.load(NUMBER_OFFSET, search(assembler, spans, walked=last + 1))
    return assembler.program(assembler.load(ARCH_OFFSET, assembler.branch(JEQ, machine, native, foreign)))


_FOREIGN_NUMBERS: Mapping[int, tuple[tuple[int, bool], ...]] = {
    # The bit marks a call of the x32 ABI. -1 is no call: a tracer sets it for one that is to be skipped (seccomp(2)).
    pyseccomp.Arch.X86_64: ((X32_BIT, True), (WORD, False)),
    pyseccomp.Arch.AARCH64: (),
}
"""libseccomp architecture -> (number, whether it and all up to the next one belong to another ABI)."""


def _call_actions(syscalls: Syscalls) -> Mapping[str, int]:
    """Call -> seccomp return value before its arguments are looked at; the default is for calls that are not here."""
    default, actions = _default(syscalls), _actions(syscalls)
    calls = {name: action for name, action in actions.items() if not name.startswith("%")}
    for guard, call in UNREADABLE.items():
        on = actions.get(guard, SECCOMP_RET_ALLOW) != SECCOMP_RET_ALLOW
        if on and calls.get(call, default) == SECCOMP_RET_ALLOW:
            calls[call] = SECCOMP_RET_ERRNO | errno.ENOSYS
    return calls


def _guarded(syscalls: Syscalls) -> Mapping[str, list[tuple[int, tuple[Condition, ...]]]]:
    """Call -> (seccomp return value, when) of the guards that look at it, the severest first; guards only refine what is allowed."""
    default, actions = _default(syscalls), _actions(syscalls)
    guarded: dict[str, list[tuple[int, tuple[Condition, ...]]]] = {}
    for guard in GUARDS:
        action = actions.get(guard, SECCOMP_RET_ALLOW)
        for call, conditions in guard_rules(guard):
            if action != SECCOMP_RET_ALLOW and actions.get(call, default) == SECCOMP_RET_ALLOW:
                guarded.setdefault(call, []).append((action, conditions))
    for refusals in guarded.values():
        refusals.sort(key=lambda refusal: refusal[0], reverse=True)  # KILL_PROCESS is the largest number
    return guarded
