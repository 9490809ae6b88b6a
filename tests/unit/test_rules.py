"""Patterns, and what the kernel is told of rules; the rules themselves are tried in tests/host/test_rules.py."""

from __future__ import annotations

import itertools
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.policy import Policy, Rule
from supervisor.rules.detector import RuleSet
from supervisor.rules.kinds import check_rule
from supervisor.rules.needs import EXEC, FILE_CLASSES, READ, WRITE, Mark, needs_of
from supervisor.rules.patterns import literal_name, network_test, path_test, port_test


@pytest.mark.parametrize(
    ("pattern", "fits", "misses"),
    [
        ("/etc/shadow", ["/etc/shadow"], ["/etc/shadow-", "/etc", "/x/etc/shadow", "/etc/shadow/x"]),
        ("/etc/*", ["/etc/passwd"], ["/etc", "/etc/a/b"]),
        ("/etc/**", ["/etc", "/etc/a", "/etc/a/b"], ["/etcetera", "/"]),
        ("**/.ssh/**", ["/.ssh", "/root/.ssh/id", "/a/b/.ssh/c/d"], ["/root/ssh/id", "/root/.sshd/id"]),
        ("*.log", ["/x.log", "/var/log/x.log"], ["/x.log/y", "/xlog"]),
        ("/proc/*/mem", ["/proc/1/mem"], ["/proc/mem", "/proc/1/task/1/mem"]),
        ("/a/**/b/*/c", ["/a/b/x/c", "/a/1/2/b/x/c", "/a/b/b/b/c"], ["/a/b/c", "/a/1/b/x/y/c"]),
        ("/a/[bc]?", ["/a/b1", "/a/cc"], ["/a/d1", "/a/b"]),
    ],
)
def test_paths(pattern: str, fits: list[str], misses: list[str]) -> None:
    test = path_test(pattern)
    assert [path for path in fits if not test(path)] == []
    assert [path for path in misses if test(path)] == []


def _slowly(parts: tuple[str, ...], names: tuple[str, ...]) -> bool:
    """What the words say, by trying everything."""
    if not parts:
        return not names
    if parts[0] == "**":
        return any(_slowly(parts[1:], names[n:]) for n in range(len(names) + 1))
    return bool(names) and parts[0] in ("*", names[0]) and _slowly(parts[1:], names[1:])


@given(st.lists(st.sampled_from(["a", "b", "*", "**"]), max_size=6))
def test_paths_against_the_definition(parts: list[str]) -> None:
    test = path_test("/" + "/".join(parts))
    for length in range(5):
        for names in itertools.product("ab", repeat=length):
            assert test("/" + "/".join(names)) == _slowly(tuple(parts), names)


def test_no_pattern_takes_long() -> None:
    began = time.process_time()
    assert not path_test("/".join(["**", "a*a*a*b"] * 100))("/".join(["a" * 250] * 300))
    assert time.process_time() - began < 20


@pytest.mark.parametrize(
    ("pattern", "name"),
    [
        ("/etc/shadow", "shadow"),
        ("/etc/cron*/**", "etc"),
        ("**/.docker/config.json", ".docker"),
        ("/proc/*/environ", "environ"),
        ("/*/**", ""),
    ],
)
def test_the_name_to_look_for(pattern: str, name: str) -> None:
    assert literal_name(pattern) == name


def test_networks_and_ports() -> None:
    assert network_test("10.0.0.0/8")("10.1.2.3") and not network_test("10.0.0.0/8")("::1")
    assert port_test("1-1024")("25") and not port_test("1-1024")("1025") and not port_test("1")("")


def rule(on: str, action: str = "kill", **match: str) -> Rule:
    return Rule("r", (on,), {key: (value,) for key, value in match.items()}, action=action)


def test_what_the_kernel_decides_by_itself() -> None:
    assert needs_of([rule("dup")]).kill == Mark.SOCKET
    assert needs_of([rule("exec", file="memory")]).kill == Mark.EXEC_MEMFD
    # None of these hangs on a number alone, or is to kill.
    for other in (
        *(rule("dup", "alert"), rule("dup", comm="x"), rule("exec", stdio="pipe"), rule("exec", path="/x")),
        *(rule("exec", file="memory", path="/x"), rule("open", path="/x"), Rule("r", ("dup",), action="kill", count=2)),
    ):
        assert not needs_of([other]).kill, other


def test_what_is_told_at_once() -> None:
    needs = needs_of([rule("open", path="/etc/shadow", access="read"), rule("unlink", path="**/shadow")])
    assert needs.wake == Mark.NAME and dict(needs.names)[b"shadow"] == READ | WRITE
    assert dict(needs_of([rule("exec", path="/dev/shm/**")]).names)[b"shm"] == EXEC
    assert needs_of([Rule("r", ("unlink",), count=9)]).wake == Mark.UNLINK
    assert needs_of([rule("syscall", "alert", syscall="bpf")]).calls == ("bpf",)
    # seccomp carries it out, and has the evidence.
    assert not needs_of([rule("syscall", syscall="bpf")]).wake
    assert dict(needs_of([]).names)[b"usr"] >> 8 == [name for name, _ in FILE_CLASSES].index("system")


def test_names_are_cut_as_the_kernel_cuts_them() -> None:
    assert dict(needs_of([rule("open", path="/" + "x" * 30)]).names)[b"x" * 19] == READ | WRITE


def test_no_rules_need_nothing() -> None:
    assert RuleSet(Policy("p")).is_empty and not needs_of([]).wake


@pytest.mark.parametrize(
    ("kind", "match", "action"),
    [("open", {"path": ["/x"], "comm": ["y"]}, "deny"), ("dup", {}, "deny"), ("connect", {"comm": ["x"]}, "deny"), ("syscall", {"syscall": ["bpf"], "result": ["ok"]}, "kill")],
)  # fmt: skip
def test_what_nothing_could_carry_out(kind: str, match: dict[str, list[str]], action: str) -> None:
    with pytest.raises(ValueError, match="action"):
        check_rule([kind], match, action, 1, (), "")
