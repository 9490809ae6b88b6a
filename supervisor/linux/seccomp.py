"""Seccomp filters from policies, compiled by libseccomp to the bytes that a launcher installs; never loaded here.

A filter is a chain of libseccomp programs, linked into one: first those that look at arguments (the %guards), one for
each action that they answer with, then the one that looks at numbers only. Inside one program libseccomp leaves it open
which of two overlapping rules wins, and it cannot say "allow unless" where denying is the default; across programs the
order is ours. See seccomp(2), seccomp_rule_add(3) and Documentation/userspace-api/seccomp_filter.rst.
"""

from __future__ import annotations

import errno
import hashlib
import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import pyseccomp
from pyseccomp import EQ, GT, MASKED_EQ, NE, Arg

from supervisor.errors import HostLacks, InvalidRequest
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

BPF_MAXINSNS = 4096
_BPF_RET_K = 0x06
_BPF_JA = 0x05
_INSTRUCTION = struct.Struct("=HBBI")
_BINARY_TREE = 2

_LOW = 0xFFFFFFFF
"""The kernel reads an int argument from the low half of its register: compare no more than that."""

_Rule = tuple[str, tuple[Arg, ...]]


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
    no system call, HostLacks when libseccomp fails.
    """
    syscalls = policy.syscalls if isinstance(policy, Policy) else policy
    if not syscalls.filters:
        return SeccompFilter(b"", 0, hashlib.sha256(b"").hexdigest(), False)
    check_names(syscalls)
    try:
        program = _link([*_guard_programs(syscalls), _number_program(syscalls)])
    except OSError as error:
        raise HostLacks(
            f"libseccomp cannot compile the policy's system calls: {error}",
            metadata={"feature": "seccomp", "remedy": "install libseccomp 2.5 or newer"},
        ) from error
    if notify:
        program = _replace_returns(program, SECCOMP_RET_KILL_PROCESS, SECCOMP_RET_USER_NOTIF)
    count = len(program) // _INSTRUCTION.size
    if count > BPF_MAXINSNS:
        raise InvalidRequest(
            f"syscalls: the filter has {count} instructions, the kernel takes {BPF_MAXINSNS}",
            field="syscalls",
        )
    returns = {k for code, _, _, k in _INSTRUCTION.iter_unpack(program) if code == _BPF_RET_K}
    return SeccompFilter(program, count, hashlib.sha256(program).hexdigest(), SECCOMP_RET_USER_NOTIF in returns)


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
    }.get(arch & _LOW, (f"arch_{arch & _LOW:08x}", None))
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


def _number_program(syscalls: Syscalls) -> bytes:
    default = _default(syscalls)
    actions = dict(_actions(syscalls))
    # Their flags and modes lie in memory, where no filter can look: the C library falls back to the older call.
    for guard, call in (("%namespaces", "clone3"), ("%setid", "openat2")):
        on = actions.get(guard, SECCOMP_RET_ALLOW) != SECCOMP_RET_ALLOW
        if on and actions.get(call, default) == SECCOMP_RET_ALLOW:
            actions[call] = SECCOMP_RET_ERRNO | errno.ENOSYS
    rules = _new_program(default)
    for name, action in sorted(actions.items()):
        number = None if name.startswith("%") else syscall_number(name)
        if number is not None and action != default:
            rules.add_rule(action, number)
    return _export(rules)


def _guard_programs(syscalls: Syscalls) -> Iterator[bytes]:
    """One program for each action that guards answer with, the severest first; each allows what it does not refuse."""
    default, actions = _default(syscalls), _actions(syscalls)
    by_action: dict[int, list[_Rule]] = {}
    for guard in GUARDS:
        action = actions.get(guard, SECCOMP_RET_ALLOW)
        if action == SECCOMP_RET_ALLOW:
            continue
        for call, conditions in _guard_rules(guard):
            if actions.get(call, default) == SECCOMP_RET_ALLOW:
                by_action.setdefault(action, []).append((call, conditions))
    for action in sorted(by_action, reverse=True):  # KILL_PROCESS is the largest number
        program = _new_program(SECCOMP_RET_ALLOW)
        for call, conditions in by_action[action]:
            number = syscall_number(call)
            if number is not None:
                program.add_rule(action, number, *conditions)
        yield _export(program)


def _guard_rules(guard: str) -> Iterator[_Rule]:
    """What a guard refuses: a call when all conditions of one of its rules hold. libseccomp takes one per argument."""
    if guard == "%namespaces":
        for flag in _CLONE_NEW:
            yield "clone", (_bits(0, flag, flag),)
    elif guard == "%terminal":
        for request in (_TIOCSTI, _TIOCLINUX):
            yield "ioctl", (_bits(1, _LOW, request),)
    elif guard == "%setid":
        yield from _setid_rules()
    elif guard == "%devices":
        for call, mode in (("mknod", 1), ("mknodat", 2)):
            for kind in (0o020000, 0o060000):  # S_IFCHR, S_IFBLK
                yield call, (_bits(mode, 0o170000, kind),)
    elif guard == "%sockets":
        yield from _socket_rules()
    elif guard == "%netlink":
        yield "socket", (_bits(0, _LOW, _AF_NETLINK),)
    elif guard == "%raw-sockets":
        yield "socket", (_bits(0, _LOW, _AF_PACKET),)
        for family in (_AF_INET, _AF_INET6):
            # The kernel takes (AF_INET, SOCK_PACKET) for a packet socket (net/socket.c).
            for kind in (_SOCK_RAW, _SOCK_PACKET):
                yield "socket", (_bits(0, _LOW, family), _bits(1, _SOCK_TYPE_MASK, kind))
    elif guard == "%personality":
        for flag in _WEAK_PERSONA:
            yield "personality", (_bits(0, _QUERY_BIT | flag, flag),)
        # 0xffffffff only asks; any other value with its highest bit sets what the rest says.
        for bit in range(31):
            yield "personality", (_bits(0, _QUERY_BIT | 1 << bit, _QUERY_BIT),)
    elif guard == "%realtime":
        for policy in (1, 2, 6):  # SCHED_FIFO, SCHED_RR, SCHED_DEADLINE, with or without SCHED_RESET_ON_FORK
            yield "sched_setscheduler", (_bits(1, _LOW & ~0x40000000, policy),)


_CLONE_NEW = (0x80, 0x20000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000)
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C
_AF_UNIX, _AF_INET, _AF_INET6, _AF_NETLINK, _AF_PACKET = 1, 2, 10, 16, 17
_SOCK_TYPE_MASK, _SOCK_RAW, _SOCK_RDM, _SOCK_SEQPACKET, _SOCK_DCCP, _SOCK_PACKET = 0xF, 3, 4, 5, 6, 10
_IPPROTO_ICMPV6 = 58
_S_ISUID, _S_ISGID = 0o4000, 0o2000
_O_CREAT, _O_TMPFILE = 0o100, 0o20000000
_WEAK_PERSONA = (0x0040000, 0x0100000, 0x0200000, 0x0400000)  # NO_RANDOMIZE, MMAP_PAGE_ZERO, COMPAT_LAYOUT, RIE
_QUERY_BIT = 0x80000000


def _setid_rules() -> Iterator[_Rule]:
    # mkdir is not here: the kernel ignores these bits in its mode (vfs_mkdir keeps S_IRWXUGO and S_ISVTX).
    for bit in (_S_ISUID, _S_ISGID):
        for call, mode in (
            ("chmod", 1), ("fchmod", 1), ("fchmodat", 2), ("fchmodat2", 2), ("creat", 1), ("mknod", 1), ("mknodat", 2),
        ):  # fmt: skip
            yield call, (_bits(mode, bit, bit),)
        for call, flags in (("open", 1), ("openat", 2)):
            for create in (_O_CREAT, _O_TMPFILE):  # without either the mode's register holds anything
                yield call, (_bits(flags, create, create), _bits(flags + 1, bit, bit))


def _socket_rules() -> Iterator[_Rule]:
    for family in range(_AF_NETLINK):
        if family not in (_AF_UNIX, _AF_INET, _AF_INET6):
            yield "socket", (Arg(0, EQ, family),)
    yield "socket", (Arg(0, GT, _AF_NETLINK),)  # so is anything in the high half
    for kind in (_SOCK_RDM, _SOCK_DCCP, _SOCK_PACKET):
        yield "socket", (_bits(1, _SOCK_TYPE_MASK, kind),)
    # SCTP, L2TP, UDP-Lite, MPTCP: code that the kernel would load for us, and that few have tested.
    for family in (_AF_INET, _AF_INET6):
        yield "socket", (_bits(0, _LOW, family), _bits(1, _SOCK_TYPE_MASK, _SOCK_SEQPACKET))
    yield "socket", (Arg(2, GT, _IPPROTO_ICMPV6),)
    yield "socketpair", (Arg(0, NE, _AF_UNIX),)


def _bits(argument: int, mask: int, value: int) -> Arg:
    return Arg(argument, MASKED_EQ, mask, value)


def _new_program(default: int) -> pyseccomp.SyscallFilter:
    program = pyseccomp.SyscallFilter(default)
    program.set_attr(pyseccomp.Attr.ACT_BADARCH, SECCOMP_RET_KILL_PROCESS)
    program.set_attr(pyseccomp.Attr.CTL_OPTIMIZE, _BINARY_TREE)
    return program


def _export(program: pyseccomp.SyscallFilter) -> bytes:
    with os.fdopen(os.memfd_create("seccomp", os.MFD_CLOEXEC), "r+b") as file:
        program.export_bpf(file)
        file.seek(0)
        return file.read()


def _link(programs: list[bytes]) -> bytes:
    """One program that allows what all of them allow: each one's `return ALLOW` but the last's jumps to the next."""
    linked = bytearray()
    for program in programs[:-1]:
        count = len(program) // _INSTRUCTION.size
        for place, (code, jt, jf, k) in enumerate(_INSTRUCTION.iter_unpack(program)):
            if (code, k) == (_BPF_RET_K, SECCOMP_RET_ALLOW):
                code, jt, jf, k = _BPF_JA, 0, 0, count - place - 1
            linked += _INSTRUCTION.pack(code, jt, jf, k)
    return bytes(linked) + programs[-1]


def _replace_returns(program: bytes, old: int, new: int) -> bytes:
    return b"".join(
        _INSTRUCTION.pack(code, jt, jf, new if (code, k) == (_BPF_RET_K, old) else k)
        for code, jt, jf, k in _INSTRUCTION.iter_unpack(program)
    )
