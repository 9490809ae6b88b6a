"""What one policy allows more or less than another, as functions and as `supervisor policy diff`."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from supervisor.cli import connect
from supervisor.cli.main import app
from supervisor.linux.seccomp import _call_actions, compile_filter
from supervisor.linux.seccomp_guards import guard_rules
from supervisor.policy import Syscalls
from supervisor.policy_diff import DIFFERENT, NARROWER, WIDER, differences, is_below, reaches
from supervisor.policy_file import PolicySet
from supervisor.shipped import shipped_policy_dir
from supervisor.syscall_actions import ALLOW, KILL, Action, Actions, guarded_calls, guards_of
from supervisor.syscall_sets import GUARDS, KNOWN_SYSCALLS

SET = PolicySet(shipped_policy_dir())


def policy(text: str):
    return SET.resolve_text(text)


def changed(under: str, over: str) -> list[str]:
    return [str(one) for one in differences(policy(under), policy(over))]


def strict_with(text: str) -> list[str]:
    return changed('extends = "strict"', f'extends = "strict"\n{text}')


# Actions


def test_actions_are_those_of_the_filter():
    answers = {0x7FFF0000: "allow", 0x80000000: "kill"}
    for name in SET.names():
        syscalls = SET.get(name).syscalls
        if syscalls.filters:
            compiled = _call_actions(syscalls)
            actions = Actions(syscalls)
            for call, value in compiled.items():
                assert actions.call(call).kind == answers.get(value, "errno"), (name, call)


def test_what_no_filter_can_read_is_refused_where_its_guard_is_on():
    moderate = Actions(SET.get("moderate").syscalls)
    assert (moderate.call("openat2"), moderate.call("openat")) == (Action("errno", "ENOSYS"), ALLOW)
    assert Actions(SET.get("basic").syscalls).call("openat2") == ALLOW


def test_guards_refuse_by_argument():
    strict = Actions(SET.get("strict").syscalls)
    netlink, unix, packet = (16, 3, 0), (1, 1, 0), (17, 3, 0)
    found = [strict.refusal("socket", (*args, 0, 0, 0)) for args in (netlink, unix, packet)]
    # A packet socket is no business of %sockets only: the severest answer counts.
    assert found == [Action("errno", "EAFNOSUPPORT"), ALLOW, KILL]
    assert strict.refusal("chmod", (0, 0o4755, 0, 0, 0, 0)) == Action("errno", "EPERM")
    assert strict.refusal("chmod", (0, 0o755, 0, 0, 0, 0)) == ALLOW
    assert strict.refusal("socket", (1 << 32, 1, 0, 0, 0, 0)) != ALLOW
    assert strict.refusal("personality", (0xFFFFFFFF, 0, 0, 0, 0, 0)) == ALLOW
    assert strict.refusal("read", (0, 0, 0, 0, 0, 0)) == ALLOW


def test_every_guard_has_its_calls():
    assert set(guarded_calls()) == set(GUARDS)
    assert guarded_calls()["%realtime"] == ("sched_setscheduler",)
    for guard in GUARDS:
        assert {call for call, _ in guard_rules(guard)} == set(guarded_calls()[guard])
    assert {guard for guard, _ in guards_of("mknod")} == {"%setid", "%devices"}


# Differences


def test_nothing_differs_from_itself_however_it_is_written():
    for name in SET.names():
        found = SET.get(name)
        assert differences(found, SET.resolve_text(SET.resolved_toml(found))) == []
    assert strict_with('description = "other"') == []
    assert strict_with('[syscalls]\nerrno = ["chroot"]') == []
    # A name of a set, the default by name, and a guard of what is refused anyway.
    assert strict_with('[syscalls]\nallow = ["read"]\nerrno = ["vserver:ENOSYS"]') == []
    off = changed(
        'extends = "strict"\n[syscalls]\nerrno = ["sched_setscheduler"]',
        'extends = "strict"\n[syscalls]\nerrno = ["sched_setscheduler"]\nallow = ["%realtime"]',
    )
    assert off == []


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ('[limits]\nmemory = "1G"', ["+ limits.memory: 512M -> 1G"]),
        ("[limits]\nwall_seconds = 1.5", ["- limits.wall_seconds: 60 -> 1.5"]),
        ('[limits.max]\nmemory = "unlimited"', ["+ limits.max.memory: 4G -> unlimited"]),
        ("[isolation]\nlandlock = false", ["+ isolation.landlock: true -> false"]),
        ('[filesystem]\ntmp = "noexec"', ["- filesystem.tmp: rw -> noexec"]),
        ('[filesystem]\nroot = "/srv/root"', ["~ filesystem.root: host -> /srv/root"]),
        ('[filesystem]\nread_write = ["/srv/x"]', ["+ filesystem./srv/x: not shown -> read-write"]),
        ('[filesystem]\nhidden = ["/usr/share"]', ["- filesystem.hidden /usr/share: false -> true"]),
        ('[network]\nmax = "full"', ["+ network.max: none -> full"]),
        ('[network]\nallow = ["192.0.2.1:80"]', []),
        ('[syscalls]\nkill = ["chmod"]', ["- syscalls.chmod: allow -> kill"]),
        ('[syscalls]\nerrno = ["mount"]', ["+ syscalls.mount: kill -> errno EPERM"]),
        ('[syscalls]\nerrno = ["chroot:ENOSYS"]', ["~ syscalls.chroot: errno EPERM -> errno ENOSYS"]),
        ('[syscalls]\nallow = ["%netlink"]', ["+ syscalls.%netlink: errno EAFNOSUPPORT -> off"]),
        ('[syscalls]\ndefault_errno = "EPERM"', None),
        ('[process]\nenv = {A = "b"}', ["~ process.env A: unset -> 'b'"]),
        ("[process]\ncore_dumps = true", ["+ process.core_dumps: false -> true"]),
        ('[process]\ncapabilities = ["CHOWN"]', ["+ process.capabilities CAP_CHOWN: none -> granted"]),
        ('[trace]\nlevel = "full"', ["- trace.level: summary -> full"]),
        ('[trace]\nlevel = "off"', ["+ trace.level: summary -> off"]),
        ("[response]\nviolation_threshold = 2", ["- response.violation_threshold: none -> 2"]),
        (
            '[[rules]]\nname = "r"\non = "exec"\naction = "alert"\nmatch = {path = ["/a", "/b"]}',
            ["- rules.r: none -> alert medium on exec path=/a,/b"],
        ),
    ],
)
def test_each_table_has_its_lines(text, lines):
    found = strict_with(text)
    if lines is None:
        assert "~ syscalls.(calls not known by name): errno ENOSYS -> errno EPERM" in found
        assert len(found) > 5 and all(line.startswith("~ ") for line in found)
    else:
        assert found == lines


def test_paths_are_compared_by_what_is_shown():
    under = 'extends = "moderate"\n[filesystem]\nread_only = ["/opt"]\nhidden = ["/opt/secret"]'
    over = 'extends = "moderate"\n[filesystem]\nread_only = ["/opt/x"]\nhidden = ["/opt/secret/deep"]'
    assert changed(under, over) == [
        "- filesystem./opt: read-only -> not shown",
        "+ filesystem.hidden /opt/secret: true -> false",
    ]
    assert is_below("/opt/x", "/opt") and is_below("/opt", "/opt") and not is_below("/optx", "/opt")
    assert is_below("/anything", "/")


def test_addresses_count_where_they_can_be_reached():
    filtered = 'extends = "strict"\n[network]\nmode = "filtered"\nmax = "filtered"\n'
    found = changed(f'{filtered}allow = ["a:1", "b:2"]', f'{filtered}allow = ["b:2", "c:3"]\ndeny = ["d"]')
    assert found == [
        "- network.allow a:1: allowed -> refused",
        "+ network.allow c:3: refused -> allowed",
        "- network.deny d: not denied -> denied",
    ]


def test_an_address_in_an_allowed_network_is_nothing_new():
    filtered = 'extends = "strict"\n[network]\nmode = "filtered"\n'
    found = changed(f'{filtered}allow = ["192.0.2.0/24", "a:1"]', f'{filtered}allow = ["192.0.2.7:443", "a:1"]')
    assert found == ["- network.allow 192.0.2.0/24: allowed -> refused"]
    assert reaches(["192.0.2.0/24:*"], "192.0.2.9:80") and not reaches(["192.0.2.0/24:443"], "192.0.2.9")
    assert reaches(["[2001:db8::]/32"], "[2001:db8::1]:53") and not reaches(["[::]/0"], "192.0.2.1:1")
    assert not reaches(["a:1"], "a:2") and reaches(["*"], "a:2") and not reaches(["*:1"], "::/0")


def test_rules_are_compared_by_name():
    rule = '[[rules]]\nname = "r"\non = "exec"\naction = "{}"\nmatch = {{path = "{}"}}'
    under = f'extends = "strict"\n{rule.format("alert", "/a")}'
    assert changed(under, f'extends = "strict"\n{rule.format("log", "/a")}')[0].startswith("+ rules.r: alert")
    assert changed(under, f'extends = "strict"\n{rule.format("kill", "/b")}')[0].startswith("~ rules.r: alert")
    assert changed(under, 'extends = "strict"') == ["+ rules.r: alert medium on exec path=/a -> none"]


def test_the_shipped_levels_only_narrow():
    for wide, narrow in itertools.pairwise(("basic", "moderate", "strict", "paranoid")):
        found = differences(SET.get(wide), SET.get(narrow))
        marks = {
            one.mark for one in found if one.table in ("syscalls", "isolation", "filesystem", "network", "process")
        }
        assert marks <= {NARROWER, DIFFERENT} and NARROWER in marks, (wide, narrow)
        assert found == sorted(found)


_CALLS = ("read", "clone", "clone3", "openat2", "socket", "ioctl", "%namespaces", "%setid", "%sockets", "%terminal")


@st.composite
def some_syscalls(draw):
    actions = {name: draw(st.sampled_from(("", "allow", "EPERM", "ENOSYS", "kill"))) for name in _CALLS}
    return Syscalls(
        draw(st.sampled_from(("allow", "errno", "kill"))),
        draw(st.sampled_from(("ENOSYS", "EPERM"))),
        tuple(sorted(name for name, action in actions.items() if action == "allow")),
        tuple(sorted((name, action) for name, action in actions.items() if action.startswith("E"))),
        tuple(sorted(name for name, action in actions.items() if action == "kill")),
    )


@given(some_syscalls(), some_syscalls())
def test_what_is_the_same_in_force_is_the_same_filter(one, other):
    from dataclasses import replace

    a, b = (replace(SET.get("strict"), syscalls=syscalls) for syscalls in (one, other))
    found = differences(a, b)
    back = differences(b, a)
    turned = {WIDER: NARROWER, NARROWER: WIDER, DIFFERENT: DIFFERENT}
    assert [(d.key, d.a, d.b, turned[d.mark]) for d in found] == [(d.key, d.b, d.a, d.mark) for d in back]
    if not found:
        assert compile_filter(one).program == compile_filter(other).program
    assert {d.key for d in found} <= {*KNOWN_SYSCALLS, *GUARDS, "(calls not known by name)", "(calls of other ABIs)"}


# The command


def invoke(*arguments, **settings):
    return CliRunner().invoke(app, ["policy", "diff", *arguments], **settings)


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.delenv("SUPERVISOR_ADDRESS", raising=False)
    monkeypatch.setattr(connect, "listening", lambda: False)


def test_diff_ends_as_diff_does(offline, tmp_path):
    same = invoke("strict", "strict")
    assert (same.exit_code, same.output) == (0, "")
    file = tmp_path / "mine.toml"
    file.write_text('extends = "strict"\n[limits]\npids = 64\n[network]\nmax = "full"\n')
    done = invoke("strict", str(file))
    assert (done.exit_code, done.stdout) == (1, "- limits.pids: 128 -> 64\n+ network.max: none -> full\n")
    assert invoke(str(file), str(file)).exit_code == 0
    piped = invoke("strict", "-", input='extends = "strict"\n[limits]\npids = 64\n')
    assert (piped.exit_code, piped.stdout) == (1, "- limits.pids: 128 -> 64\n")


def test_diff_as_json(offline):
    done = invoke("strict", "paranoid", "--json")
    shown = json.loads(done.stdout)
    assert done.exit_code == 1 and (shown["a"], shown["b"], shown["equal"]) == ("strict", "paranoid", False)
    assert {"table": "filesystem", "key": "work", "mark": "-", "a": "rw", "b": "ro"} in shown["differences"]
    same = json.loads(invoke("basic", "basic", "--json").stdout)
    assert same == {"a": "basic", "b": "basic", "equal": True, "differences": []}


def test_what_cannot_be_compared(offline, tmp_path):
    missing = invoke("strict", "/none.toml")
    assert missing.exit_code == 125 and "B: cannot read /none.toml" in missing.stderr
    unknown = invoke("stric", "strict")
    assert unknown.exit_code == 125 and "did you mean 'strict'?" in unknown.stderr
    file = tmp_path / "bad.toml"
    file.write_text('extends = "strict"\n[limits]\nmemry = 1\n')
    bad = invoke(str(file), "strict")
    assert bad.exit_code == 125 and f"{file}:3: unknown key 'memry'" in bad.stderr
    assert invoke("strict").exit_code == 2
    assert invoke("--help").output.startswith("Usage: supervisor policy diff")
