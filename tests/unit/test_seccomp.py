"""Compiled filters: walked in an interpreter over numbers, arguments and ABIs."""

from __future__ import annotations

import errno
import functools
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from supervisor.errors import InvalidRequest
from supervisor.policy import Policy, Syscalls
from supervisor.policy_file import PolicySet
from supervisor.shipped import shipped_policy_dir
from supervisor.syscall_sets import GUARDS, KNOWN_SYSCALLS, LATE_SYSCALLS

if sys.platform != "linux" or os.uname().machine != "x86_64":
    pytest.skip("numbers here are those of x86-64 Linux", allow_module_level=True)

import pyseccomp
from bpf_machine import Machine

from supervisor.linux import seccomp
from supervisor.linux.seccomp import compile_filter, decode_syscall, syscall_number
from supervisor.linux.seccomp_guards import guard_rules

X86_64, I386, AARCH64 = seccomp.AUDIT_ARCH_X86_64, seccomp.AUDIT_ARCH_I386, seccomp.AUDIT_ARCH_AARCH64
ALLOW, KILL, NOTIF = seccomp.SECCOMP_RET_ALLOW, seccomp.SECCOMP_RET_KILL_PROCESS, seccomp.SECCOMP_RET_USER_NOTIF
X32_ARCH = 0x4000003E
HIGH = 0xDEADBEEF_00000000
NEWNS, NEWUSER = 0x20000, 0x10000000
THREAD_FLAGS = 0x3D0F00  # what pthread_create passes
FORK_FLAGS = 0x1200011


def refuse(name: str) -> int:
    return seccomp.SECCOMP_RET_ERRNO | int(getattr(errno, name))


EPERM, ENOSYS, EAFNOSUPPORT = refuse("EPERM"), refuse("ENOSYS"), refuse("EAFNOSUPPORT")


@functools.cache
def policies() -> PolicySet:
    return PolicySet(shipped_policy_dir())


@functools.cache
def machine(policy: str, notify: bool = False) -> Machine:
    return Machine(compile_filter(policies().get(policy), notify=notify).program)


def number(name: str) -> int:
    found = syscall_number(name)
    assert found is not None, name
    return found


def answer(policy: str, call: str, *args: int) -> int:
    return machine(policy).run(number(call), args)


def compiled(**syscalls: object) -> Machine:
    return Machine(compile_filter(Policy("test", syscalls=Syscalls(**syscalls))).program)  # type: ignore[arg-type]


# --- numbers


@pytest.mark.parametrize("policy", ["moderate", "strict", "paranoid"])
def test_every_number_gets_the_action_that_the_policy_names(policy: str) -> None:
    syscalls = policies().get(policy).syscalls
    named = actions_of(syscalls)
    named.setdefault("clone3", ENOSYS)
    named.setdefault("openat2", ENOSYS)
    by_number = {number(name): action for name, action in named.items() if not name.startswith("%")}
    default = {"allow": ALLOW, "errno": ENOSYS, "kill": KILL}[syscalls.default]
    for nr in range(1200):
        if nr in (number("socket"), number("socketpair")):
            continue  # a family of 0 is refused
        assert machine(policy).run(nr) == by_number.get(nr, default), decode_syscall(nr, X86_64)


@pytest.mark.parametrize("policy", ["moderate", "strict", "paranoid"])
@pytest.mark.parametrize(("nr", "arch"), [
    (1, I386), (20, I386), (0x40000001, X86_64), (0x40000000 | 520, X86_64), (0x7FFFFFFF, X86_64), (0x80000001, X86_64),
    (64, AARCH64), (1, 0xC0000016), (1, 0),
])  # fmt: skip
def test_other_abis_kill(policy: str, nr: int, arch: int) -> None:
    assert machine(policy).run(nr, (), arch) == KILL


def test_minus_one_is_no_way_round() -> None:
    # seccomp(2): a tracer sets -1 to skip a call; it is no call of the x32 ABI.
    assert machine("strict").run(0xFFFFFFFF) == ENOSYS
    assert machine("paranoid").run(0xFFFFFFFF) == KILL


@pytest.mark.parametrize("policy", ["moderate", "strict", "paranoid"])
def test_agrees_with_libseccomp_s_own_program(policy: str, tmp_path: Path) -> None:
    unguarded = without_guards(policies().get(policy).syscalls)
    default = {"allow": ALLOW, "errno": ENOSYS, "kill": KILL}[unguarded.default]
    plain = pyseccomp.SyscallFilter(default)
    plain.set_attr(pyseccomp.Attr.ACT_BADARCH, KILL)
    for name, action in actions_of(unguarded).items():
        if action != default:
            plain.add_rule(action, number(name))
    with (tmp_path / "filter").open("w+b") as file:
        plain.export_bpf(file)
        file.seek(0)
        reference = Machine(file.read())
    ours = Machine(compile_filter(unguarded).program)
    for nr in (*range(1200), *(0x40000000 | nr for nr in range(600)), 2**31, 2**32 - 10060, 2**32 - 2, 2**32 - 1):
        for arch in (X86_64, I386, X32_ARCH, AARCH64):
            assert ours.run(nr, (), arch) == reference.run(nr, (), arch)


def without_guards(syscalls: Syscalls) -> Syscalls:
    return replace(
        syscalls,
        allow=tuple(name for name in syscalls.allow if name not in GUARDS),
        errno=tuple(pair for pair in syscalls.errno if pair[0] not in GUARDS),
        kill=tuple(name for name in syscalls.kill if name not in GUARDS),
    )


def actions_of(syscalls: Syscalls) -> dict[str, int]:
    actions = dict.fromkeys(syscalls.allow, ALLOW)
    actions |= {name: refuse(error) for name, error in syscalls.errno}
    return actions | dict.fromkeys(syscalls.kill, KILL)


def test_no_filter_where_nothing_is_refused() -> None:
    for policy in ("none", "basic"):
        empty = compile_filter(policies().get(policy), notify=True)
        assert (empty.program, empty.instruction_count, empty.notify) == (b"", 0, False)


def test_notify_replaces_kill_and_nothing_else() -> None:
    for policy in ("moderate", "strict", "paranoid"):
        plain = compile_filter(policies().get(policy))
        asking = compile_filter(policies().get(policy), notify=True)
        assert (plain.notify, asking.notify) == (False, True)
        assert plain.instruction_count == asking.instruction_count == len(asking.program) // 8 <= 4096
        assert plain.digest != asking.digest
        for nr in (*range(600), 0x40000001):
            old, new = machine(policy).run(nr), machine(policy, notify=True).run(nr)
            assert new == (NOTIF if old == KILL else old)
        assert machine(policy, notify=True).run(20, (), I386) == NOTIF


def test_notify_without_kill_needs_no_listener_but_for_foreign_abis() -> None:
    asking = compile_filter(Policy("test", syscalls=Syscalls(errno=(("mount", "EPERM"),))), notify=True)
    assert asking.notify
    assert Machine(asking.program).run(1, (), I386) == NOTIF


def test_same_policy_same_bytes() -> None:
    strict = policies().get("strict")
    assert compile_filter(strict) == compile_filter(strict)
    assert strict.syscalls.digest == replace(strict, name="other").syscalls.digest


@pytest.mark.parametrize(("name", "hint"), [("opne", "open"), ("x" * 500, ""), ("", ""), ("%namespace", "%namespaces")])
def test_unknown_names_are_refused(name: str, hint: str) -> None:
    for syscalls in (
        Syscalls(allow=(name,), default="errno"),
        Syscalls(errno=((name, "EPERM"),)),
        Syscalls(kill=(name,)),
    ):
        with pytest.raises(InvalidRequest) as caught:
            compile_filter(Policy("test", syscalls=syscalls))
        assert caught.value.field.startswith("syscalls.")
        assert hint in caught.value.message


def test_unknown_errno_is_refused() -> None:
    with pytest.raises(InvalidRequest):
        compile_filter(Policy("test", syscalls=Syscalls(errno=(("mount", "EWHAT"),))))


def test_names_agree_with_libseccomp() -> None:
    table = set()
    for nr in range(700):
        for arch in (pyseccomp.Arch.X86_64, pyseccomp.Arch.AARCH64):
            try:
                table.add(pyseccomp.resolve_syscall(arch, nr).decode())
            except ValueError:
                continue
    assert table <= KNOWN_SYSCALLS
    assert KNOWN_SYSCALLS - table <= set(LATE_SYSCALLS)
    for name, nr in LATE_SYSCALLS.items():
        assert pyseccomp.resolve_syscall(pyseccomp.Arch.X86_64, name) in (-1, nr)


def test_aarch64_lacks_the_old_calls_and_has_the_rest() -> None:
    arch = pyseccomp.Arch.AARCH64
    assert syscall_number("open", arch) is None
    assert syscall_number("openat", arch) == 56
    assert syscall_number("mseal", arch) == 462


# --- arguments

REFUSED_UNDER_STRICT = [
    ("clone", (NEWUSER | 17,), KILL),
    ("clone", (NEWNS,), KILL),
    *(("clone", (FORK_FLAGS | 1 << bit,), KILL) for bit in (17, 25, 26, 27, 28, 29, 30)),
    ("clone", (HIGH | NEWUSER,), KILL),
    ("clone3", (), ENOSYS),
    ("openat2", (), ENOSYS),
    ("unshare", (NEWUSER,), KILL),
    ("ioctl", (0, 0x5412), KILL),
    ("ioctl", (0, 0x541C), KILL),
    ("ioctl", (0, HIGH | 0x5412), KILL),
    *(("setsockopt", (3, 1, name), EPERM) for name in (26, 50, 51, 52)),
    ("chmod", (1, 0o4755), EPERM),
    ("chmod", (1, 0o2755), EPERM),
    ("chmod", (1, HIGH | 0o6755), EPERM),
    ("fchmod", (3, 0o4755), EPERM),
    ("fchmodat", (3, 1, 0o2755), EPERM),
    ("fchmodat2", (3, 1, 0o4755), EPERM),
    ("creat", (1, 0o4755), EPERM),
    ("open", (1, os.O_CREAT | os.O_WRONLY, 0o4755), EPERM),
    ("open", (1, os.O_TMPFILE | os.O_WRONLY, 0o4755), EPERM),
    ("openat", (3, 1, os.O_CREAT, 0o2644), EPERM),
    ("openat", (3, 1, HIGH | os.O_CREAT, HIGH | 0o2644), EPERM),
    ("mknod", (1, 0o020666, 0x103), EPERM),
    ("mknod", (1, 0o060666, 0x103), EPERM),
    ("mknod", (1, 0o104755), EPERM),
    ("mknodat", (3, 1, 0o020666), EPERM),
    ("mknodat", (3, 1, HIGH | 0o060666), EPERM),
    *(("socket", (family, 1), EAFNOSUPPORT) for family in range(64) if family not in (1, 2, 10, 17)),
    ("socket", (HIGH | 2, 1), EAFNOSUPPORT),
    ("socket", (2**64 - 1, 1), EAFNOSUPPORT),
    ("socket", (16, 3, 0), EAFNOSUPPORT),
    ("socket", (16, 3 | 0x80000, 9), EAFNOSUPPORT),
    ("socket", (17, 3), KILL),
    ("socket", (17, 2, 0x0300), KILL),
    ("socket", (HIGH | 17, 3), KILL),
    ("socket", (2, 3, 1), KILL),
    ("socket", (2, 3 | 0x80800, 255), KILL),
    ("socket", (10, HIGH | 3, 58), KILL),
    ("socket", (2, 10, 0x0300), KILL),
    ("socket", (2, 1, 262), EAFNOSUPPORT),
    ("socket", (2, 1, HIGH | 132), EAFNOSUPPORT),
    ("socket", (10, 2, 136), EAFNOSUPPORT),
    ("socket", (2, 5, 0), EAFNOSUPPORT),
    ("socket", (2, 6, 33), EAFNOSUPPORT),
    ("socketpair", (30, 1), EAFNOSUPPORT),
    ("socketpair", (HIGH | 1, 1), EAFNOSUPPORT),
    ("personality", (0x0400000,), EPERM),
    ("personality", (0x0040000,), EPERM),
    ("personality", (0xFFFFFFFE,), EPERM),
    ("personality", (0x80400000,), EPERM),
    ("sched_setscheduler", (0, 1), EPERM),
    ("sched_setscheduler", (0, 2 | 0x40000000), EPERM),
    ("sched_setscheduler", (0, 6), EPERM),
    ("chroot", (1,), EPERM),
    ("io_uring_setup", (), ENOSYS),
]

ALLOWED_UNDER_STRICT = [
    ("setsockopt", (3, 1, 2)),
    ("setsockopt", (3, 6, 26)),
    ("clone", (THREAD_FLAGS,)),
    ("clone", (FORK_FLAGS,)),
    ("clone", (0x4111,)),  # vfork, as posix_spawn has it
    ("ioctl", (0, 0x5401)),
    ("ioctl", (0, 0x5413)),
    ("chmod", (1, 0o1777)),
    ("fchmodat2", (3, 1, 0o755)),
    ("open", (1, os.O_RDONLY, 0xFFFF)),  # the mode's register holds rubbish without O_CREAT
    ("openat", (3, 1, os.O_RDONLY | os.O_DIRECTORY, HIGH | 0o6777)),
    ("openat", (3, 1, os.O_CREAT, 0o1777)),
    ("mkdir", (1, 0o2775)),
    ("mknod", (1, 0o010644)),
    ("mknod", (1, 0o100644)),
    ("mknodat", (3, 1, 0o140777)),
    ("mknodat", (3, 1, 0o644)),
    ("socket", (1, 1)),
    ("socket", (1, 5 | 0x80000)),
    ("socket", (1, 3)),  # which the kernel makes a datagram socket
    ("socket", (2, 1 | 0x80800, 6)),
    ("socket", (2, 2, 17)),
    ("socket", (10, 1, 0)),
    ("socket", (10, 2, 58)),
    ("socketpair", (1, 1, 0)),
    ("personality", (0xFFFFFFFF,)),
    ("personality", (0,)),
    ("personality", (0x20008,)),
    ("sched_setscheduler", (0, 0)),
    ("sched_setscheduler", (0, 3)),
    ("sched_setscheduler", (0, 5)),
    ("memfd_create", (1, 1)),
    ("execveat", (3, 1, 1, 1, 0x1000)),
]


@pytest.mark.parametrize(("call", "args", "expected"), REFUSED_UNDER_STRICT)
def test_strict_refuses_by_argument(call: str, args: tuple[int, ...], expected: int) -> None:
    assert answer("strict", call, *args) == expected


@pytest.mark.parametrize(("call", "args"), ALLOWED_UNDER_STRICT)
def test_strict_allows_by_argument(call: str, args: tuple[int, ...]) -> None:
    assert answer("strict", call, *args) == ALLOW
    if call != "socket":
        assert answer("moderate", call, *args) == ALLOW


@pytest.mark.parametrize(("call", "args", "expected"), [case for case in REFUSED_UNDER_STRICT if case[1]])
def test_moderate_refuses_the_same_arguments_with_an_error(call: str, args: tuple[int, ...], expected: int) -> None:
    assert answer("moderate", call, *args) not in (ALLOW, KILL)


def test_moderate_denies_every_default_rule_of_strict() -> None:
    for call in policies().get("strict").syscalls.kill:
        if not call.startswith("%"):
            assert answer("moderate", call) != ALLOW, call


def test_paranoid_judges_arguments_too() -> None:
    assert answer("paranoid", "clone", NEWUSER) == KILL
    assert answer("paranoid", "clone", FORK_FLAGS) == ALLOW
    assert answer("paranoid", "chmod", 1, 0o4755) == EPERM
    assert answer("paranoid", "mknodat", 3, 1, 0o4755) == KILL, "a guard never softens what is refused anyway"
    assert answer("paranoid", "ioctl", 0, 0x5412) == KILL
    assert answer("paranoid", "memfd_create") == EPERM


def test_guards_only_refine_what_is_allowed() -> None:
    both = compiled(kill=("socket", "clone3"), errno=(("%sockets", "EPERM"), ("%namespaces", "EPERM")))
    assert both.run(number("socket"), (40, 1)) == KILL
    assert both.run(number("clone3")) == KILL


def test_a_guard_that_is_allowed_is_off() -> None:
    off = compiled(default="errno", allow=("%namespaces", "clone", "clone3"))
    assert off.run(number("clone"), (NEWUSER,)) == ALLOW
    assert off.run(number("clone3")) == ALLOW


REFUSED_WHERE_HELD = [("setsockopt", (3, 0, 35, 0, 8), "EPERM"), ("setsockopt", (3, 41, 57, 0, 8), "EPERM")]


@pytest.mark.parametrize("guard", sorted(GUARDS))
@pytest.mark.parametrize("default", ["allow", "errno", "kill"])
def test_each_guard_alone_answers_as_told_under_each_default(guard: str, default: str) -> None:
    calls = sorted({call for call, _ in guard_rules(guard)})
    one = compiled(default=default, allow=tuple(calls) if default != "allow" else (), errno=((guard, "EXDEV"),))
    samples = [case for case in (*REFUSED_UNDER_STRICT, *REFUSED_WHERE_HELD) if case[0] in calls and case[1]]
    assert any(one.run(number(call), args) == refuse("EXDEV") for call, args, _ in samples)
    for call, args in ALLOWED_UNDER_STRICT:
        if call in calls:
            assert one.run(number(call), args) == ALLOW


# --- names for evidence


@pytest.mark.parametrize(("nr", "arch", "expected"), [
    (59, X86_64, ("execve", "x86_64")),
    (11, I386, ("execve", "i386")),
    (11, X86_64, ("munmap", "x86_64")),
    (0x40000000 | 520, X86_64, ("execve", "x32")),
    (0x40000000 | 1, X86_64, ("write", "x32")),
    (221, AARCH64, ("execve", "aarch64")),
    (462, AARCH64, ("mseal", "aarch64")),
    (468, X86_64, ("file_getattr", "x86_64")),
    (999, X86_64, ("syscall_999", "x86_64")),
    (0x40000000 | 9999, X86_64, ("syscall_9999", "x32")),
    (-1, X86_64, ("syscall_-1", "x86_64")),
    (-10060, X86_64, ("syscall_-10060", "x86_64")),
    (2**31 + 5, X86_64, ("syscall_2147483653", "x86_64")),
    (1, 0x28, ("syscall_1", "arch_00000028")),
    (59, X86_64 - 2**32, ("execve", "x86_64")),
])  # fmt: skip
def test_decode(nr: int, arch: int, expected: tuple[str, str]) -> None:
    assert decode_syscall(nr, arch) == expected
