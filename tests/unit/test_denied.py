"""Which files rules deny, and how the kernel is told of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.policy import Policy, Rule
from supervisor.probes.guard import PathHash, _may_be_left_out
from supervisor.probes.layout import DENIAL, HEAD, RecordType
from supervisor.probes.processes import Processes
from supervisor.probes.table import to_table
from supervisor.rules.denied import (
    CHMOD,
    EXEC,
    HOLDS,
    KILL_SHIFT,
    MKDIR,
    PINNED,
    READ,
    UNLINK,
    UNRESOLVED,
    WRITE,
    Denied,
    Place,
    denied_of,
    place_of,
    uses_denied,
)
from supervisor.rules.detector import Detector, RuleSet
from supervisor.rules.kinds import check_rule
from supervisor.rules.patterns import path_test

NONE = (0,) * 8


@pytest.mark.parametrize(
    ("pattern", "place"),
    [
        ("/a", Place(("a",), False, False)),
        ("/a/b/c", Place(("a", "b", "c"), False, False)),
        ("/a/./b//c/", Place(("a", "b", "c"), False, False)),
        ("/a/b/**", Place(("a", "b"), False, True)),
        ("**/.ssh", Place((".ssh",), True, False)),
        ("**/.ssh/**", Place((".ssh",), True, True)),
        (".ssh", Place((".ssh",), True, False)),
        *(
            (other, None)
            for other in ("/", "/**", "**", "/a/*", "/a/**/b", "**/a/b", "a/b", "/a/b?", "/[ab]", "/**/a/**/b")
        ),
    ],
)
def test_forms(pattern: str, place: Place | None) -> None:
    assert place_of(pattern) == place


NAMES = st.sampled_from(["a", "b", "ab"])


@given(st.lists(NAMES, min_size=1, max_size=3), st.booleans(), st.booleans(), st.lists(NAMES, min_size=1, max_size=5))
def test_what_the_kernel_looks_up_is_what_the_pattern_says(
    names: list[str], anywhere: bool, below: bool, path: list[str]
) -> None:
    """The kernel's way, written down anew: each directory above the file, by its path and by its name."""
    names = names[:1] if anywhere else names
    pattern = ("**/" if anywhere else "/") + "/".join(names) + ("/**" if below else "")
    entries, _ = denied_of([Rule("r", ("chmod",), {"path": (pattern,)}, action="deny")])
    by_key = {(one.anywhere, one.names): one for one in entries}
    found = 0
    for depth in range(len(path), 0, -1):
        for key in ((False, tuple(path[:depth])), (True, (path[depth - 1],))):
            entry = by_key.get(key)
            if entry is not None:
                found |= entry.exact if depth == len(path) else entry.below
    assert bool(found & CHMOD) == path_test(pattern)("/" + "/".join(path))


def test_entries_of_rules() -> None:
    rules = [
        Rule("first", ("open",), {"path": ("/a/b",), "access": ("read",)}, action="deny"),
        Rule("second", ("write", "exec"), {"path": ("/a/b/**", "**/c", "/*/d")}, action="kill"),
        Rule("third", ("mkdir",), {"path": ("/x/y",)}, action="deny"),
        # None of these is the guard's.
        Rule("alert", ("open",), {"path": ("/e",)}, action="alert"),
        Rule("often", ("open",), {"path": ("/e",)}, action="kill", count=2),
        Rule("seen", ("open",), {"path": ("/e",), "result": ("ok",)}, action="kill"),
        Rule("reach", ("connect",), {"address": ("10.0.0.1",)}, action="deny"),
    ]
    kills = WRITE | EXEC | (WRITE | EXEC) << KILL_SHIFT
    entries, names = denied_of(rules)
    assert names == ("second", "first", "third")
    assert set(entries) == {
        Denied(("a",), False, HOLDS, 0, NONE),
        Denied(("a", "b"), False, kills | READ, kills, (2, 1, 1, 0, 0, 0, 0, 0)),
        Denied(("c",), True, kills, 0, (0, 1, 1, 0, 0, 0, 0, 0)),
        # Whoever makes directories can do so elsewhere: nothing holds /x.
        Denied(("x", "y"), False, MKDIR, 0, (0, 0, 0, 0, 0, 0, 0, 3)),
    }
    assert uses_denied(entries) == READ | WRITE | EXEC | MKDIR | PINNED
    assert uses_denied(denied_of(rules[1:2])[0]) == WRITE | EXEC
    assert RuleSet(Policy("p", rules=tuple(rules))).needs.deniers == names


@pytest.mark.parametrize(
    ("kind", "match", "says"),
    [
        (
            "open",
            {"path": ["/x/*.pem"]},
            r"has the form /DIRECTORY/NAME, /DIRECTORY/\*\*, \*\*/NAME and \*\*/NAME/\*\*",
        ),
        ("open", {"path": ["/x"], "comm": ["y"]}, "hangs on access and path alone"),
        ("rename", {"path": ["/x"], "to": ["/y"]}, "hangs on path alone"),
        ("unlink", {}, "names the files"),
        ("exec", {"argv": ["x"]}, "hangs on path alone"),
        ("fork", {}, "fork cannot be denied by a rule"),
    ],
)
def test_what_cannot_be_denied(kind: str, match: dict[str, list[str]], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        check_rule([kind], match, "deny", 1, (), "")


def test_what_can_be_denied() -> None:
    check_rule(
        ["open", "write", "unlink", "rename", "chmod", "link", "mkdir", "exec"],
        {"path": ["/a/**", "**/b"]},
        "deny",
        1,
        (),
        "",
    )
    check_rule(["open"], {"path": ["/a"], "access": ["read"]}, "deny", 1, (), "")


def test_a_paths_hash_is_its_names_in_their_order() -> None:
    one = PathHash(7)
    assert one.path([b"a", b"b"]) != one.path([b"b", b"a"]) != one.path([b"ab"])
    assert one.path([b"a"]) == one.name(b"a") != PathHash(8).name(b"a")
    assert one.name(b"a") != one.name(b"a\0")


@pytest.mark.parametrize(
    ("release", "version", "command_line", "may"),
    [
        ("6.1.0-56-amd64", "#1 SMP PREEMPT_DYNAMIC Debian", "quiet", False),
        ("6.1.0-56-amd64", "#1 SMP PREEMPT_DYNAMIC Debian", "preempt=full quiet", True),
        ("5.19.0-rt", "#1 SMP PREEMPT_RT x", "", True),
        ("6.1.2", "#1 SMP PREEMPT x", "", True),
        ("6.12.1", "#1 SMP PREEMPT x", "preempt=full", False),
    ],
)
def test_kernels_that_leave_programs_out(release: str, version: str, command_line: str, may: bool) -> None:
    assert _may_be_left_out(release, version, command_line) == may


def denial(number: int, verdict: int, numbered: int, path: bytes) -> bytes:
    record = bytearray(DENIAL.size)
    names = b"".join(name + b"\0" for name in reversed(path.split(b"/")[1:]))
    DENIAL.pack_into(record, 0, number, verdict, numbered, len(names), names)
    HEAD.pack_into(record, 0, 10**9, 1, 2, 2, RecordType.DENIAL, DENIAL.size, 0)
    return bytes(record)


OPENAT, RENAME_CALL, IO_URING_ENTER = 257, 82, 426


def test_what_was_denied_is_a_violation_of_its_rule() -> None:
    rules = (
        Rule("kept", ("open", "rename"), {"path": ("/a/b/**",)}, severity="high", action="deny"),
        Rule("fatal", ("unlink",), {"path": ("**/c",)}, action="kill"),
        Rule("heard", ("write",), {"path": ("/a/b/*",)}, action="alert"),
    )
    detector = Detector(RuleSet(Policy("p", rules=rules)), Processes(0), 0)
    assert detector._rules.needs.deniers == ("fatal", "kept")
    found = detector.feed(
        [
            denial(OPENAT, WRITE, 2, b"/a/b/x"),
            denial(RENAME_CALL, HOLDS, 0, b"/a"),
            denial(OPENAT, UNRESOLVED, 0, b"/x/y"),
            denial(IO_URING_ENTER, UNLINK, 1, b"/c"),
        ]
    )
    assert [(one.rule, one.kind, one.action, one.path) for one in found] == [
        ("kept", "open", "deny", "/a/b/x"),
        ("heard", "write", "alert", "/a/b/x"),
        ("kept", "rename", "deny", "/a"),
        ("path.unresolved", "open", "deny", "/x/y"),
        ("fatal", "unlink", "kill", "/c"),
    ]
    assert detector.kills and detector.matched == {"kept": 2, "heard": 1, "path.unresolved": 1, "fatal": 1}


def test_a_denial_is_a_row_of_the_trace() -> None:
    row = to_table([], [denial(OPENAT, READ, 1, b"/a/b")], 5).to_pylist()[0]
    assert (row["kind"], row["syscall"], row["path"], row["result"]) == ("open", "openat", "/a/b", -1)
    assert (row["detail"], row["time"], row["tid"]) == ("denied", 10**9 + 5, 2)
