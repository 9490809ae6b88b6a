"""Policy files: the shipped ones, extends, and mistakes."""

from __future__ import annotations

import contextlib
import dataclasses
import tomllib
from pathlib import Path

import pytest

from supervisor import policy_source
from supervisor.errors import InvalidRequest, NotFound
from supervisor.model import LIMIT_KEYS, Limits, NetworkMode, RunSpec, TraceLevel
from supervisor.policy import NAMESPACES, Network
from supervisor.policy_file import LARGE_TEXT, MAX_TEXT_BYTES, PolicySet
from supervisor.shipped import shipped_policy_dir


@pytest.fixture(scope="module")
def shipped() -> PolicySet:
    return PolicySet(shipped_policy_dir())


def spec(**changes: object) -> RunSpec:
    return RunSpec(argv=(b"true",), **changes)  # type: ignore[arg-type]


def write(directory: Path, **policies: str) -> Path:
    for name, text in policies.items():
        (directory / f"{name}.toml").write_text(text)
    return directory


# --- the shipped ones


def test_the_five_levels(shipped: PolicySet) -> None:
    assert shipped.names() == ("basic", "moderate", "none", "paranoid", "strict")
    for name in shipped.names():
        policy = shipped.get(name)
        assert policy.name == name
        assert policy.description
        assert policy.unisolated == (name == "none")
    assert len({shipped.get(name).digest for name in shipped.names()}) == 5


def test_strict_is_what_the_interface_promises(shipped: PolicySet) -> None:
    strict = shipped.get("strict")
    assert strict.isolation.namespaces == NAMESPACES
    assert strict.network == Network(NetworkMode.NONE, NetworkMode.NONE)
    assert strict.process.user == "run"
    assert strict.process.capabilities == ()
    assert (strict.limits_max.memory, strict.limits_max.pids, strict.limits_max.wall_seconds) == (4 << 30, 512, 3600.0)
    assert strict.syscalls.default == "errno"
    for call in ("mount", "bpf", "unshare", "setns", "ptrace", "keyctl", "init_module", "kexec_load", "%raw-sockets"):
        assert call in strict.syscalls.kill


def test_every_bounded_limit_has_a_value(shipped: PolicySet) -> None:
    for name in ("moderate", "strict", "paranoid"):
        policy = shipped.get(name)
        for key in LIMIT_KEYS:
            assert 0 < getattr(policy.limits, key) <= getattr(policy.limits_max, key), (name, key)
    assert shipped.get("none").limits == Limits()


def test_paranoid(shipped: PolicySet) -> None:
    paranoid = shipped.get("paranoid")
    assert (paranoid.filesystem.tmp, paranoid.filesystem.work) == ("noexec", "ro")
    assert paranoid.trace.level is TraceLevel.FULL
    assert paranoid.response.violation_threshold == 1


def test_resolved_text_is_the_same_policy(shipped: PolicySet) -> None:
    for name in shipped.names():
        policy = shipped.get(name)
        again = shipped.resolve_text(shipped.resolved_toml(policy))
        assert again.digest == policy.digest
        assert dataclasses.replace(again, toml=policy.toml) == policy


def test_odd_strings_survive_being_written(shipped: PolicySet) -> None:
    text = (
        'name = "odd"\nextends = "strict"\ndescription = "a\\"b\\\\c\\u007f\\n\\té"\n[process.env]\n'
        '"a b" = "x\\u0001"\nE = ""\n[[rules]]\nname = "r"\non = "open"\nmatch.path = ["/etc/*", "\'"]\nmatch.exe = "7"\n'
    )
    policy = shipped.resolve_text(text)
    assert policy.rules[-1].match == {"path": ("/etc/*", "'"), "exe": ("7",)}
    again = shipped.resolve_text(shipped.resolved_toml(policy))
    assert (again.digest, again.description, again.process.env) == (
        policy.digest, policy.description, policy.process.env,
    )  # fmt: skip


# --- looking up


def test_unknown_policy_names_the_nearest(shipped: PolicySet) -> None:
    with pytest.raises(NotFound) as caught:
        shipped.get("strikt")
    assert "did you mean 'strict'?" in caught.value.message
    assert caught.value.field == "policy"
    for odd in ("", "../strict", "a" * 10_000, "\0"):
        with pytest.raises(NotFound):
            shipped.get(odd)


def test_later_directories_win(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    write(tmp_path / "own", strict='name = "strict"\nextends = "basic"\n')
    both = PolicySet(shipped_policy_dir(), tmp_path / "own")
    assert both.get("strict").extends == "basic"
    assert both.get("strict").limits == both.get("basic").limits


def test_a_broken_file_stops_loading_and_is_named(tmp_path: Path) -> None:
    write(tmp_path, bad="name = 'bad'\n[limits]\nmemory = '1Q'\n")
    with pytest.raises(InvalidRequest, match=r"bad\.toml:3: limits\.memory"):
        PolicySet(tmp_path)
    write(tmp_path, bad="name = 'other'\n")
    with pytest.raises(InvalidRequest, match=r"bad\.toml:1: name 'other' is not the file's own, 'bad'"):
        PolicySet(tmp_path)
    (tmp_path / "bad.toml").write_bytes(b"\n\n\xff")
    with pytest.raises(InvalidRequest, match=r"bad\.toml:3: not UTF-8"):
        PolicySet(tmp_path)
    with pytest.raises(FileNotFoundError):
        PolicySet(tmp_path / "missing")


# --- extends


def test_extends_merges_by_key(shipped: PolicySet) -> None:
    child = shipped.resolve_text(
        'name = "mine"\nextends = "strict"\n[limits]\nmemory = "1G"\n[limits.max]\npids = 1024\n'
        '[syscalls]\nallow = ["ptrace"]\nkill = ["symlink"]\nerrno = ["openat:EACCES", "@keyring"]\n'
    )
    strict = shipped.get("strict")
    assert child.limits == dataclasses.replace(strict.limits, memory=1 << 30)
    assert child.limits_max == dataclasses.replace(strict.limits_max, pids=1024)
    assert child.filesystem == strict.filesystem
    assert "ptrace" in child.syscalls.allow
    assert "ptrace" not in child.syscalls.kill
    assert "symlink" in child.syscalls.kill
    assert dict(child.syscalls.errno)["openat"] == "EACCES"
    assert dict(child.syscalls.errno)["keyctl"] == "EPERM"
    assert "bpf" in child.syscalls.kill
    assert child.digest != strict.digest


def test_own_names_count_for_more_than_sets_and_kill_for_more_than_errno(shipped: PolicySet) -> None:
    calls = shipped.resolve_text(
        '[syscalls]\ndefault = "errno"\nallow = ["@io", "@keyring", "keyctl"]\nerrno = ["@keyring", "dup"]\n'
        'kill = ["dup", "@keyring"]\n[network]\nmode = "full"\n'
    ).syscalls
    assert "keyctl" in calls.allow
    assert {"add_key", "request_key", "dup"} <= set(calls.kill)
    assert calls.errno == ()


def test_rules_merge_by_name(tmp_path: Path) -> None:
    rule = '[[rules]]\nname = "{}"\non = "fork"\naction = "{}"\n'
    policies = PolicySet(
        write(
            tmp_path,
            a='[network]\nmode = "full"\n' + rule.format("x", "log") + rule.format("y", "log"),
            b='extends = "a"\n' + rule.format("x", "kill") + rule.format("z", "alert"),
        )
    )
    assert [(r.name, r.action) for r in policies.get("b").rules] == [("x", "kill"), ("y", "log"), ("z", "alert")]


@pytest.mark.parametrize("policies", [
    {"a": 'extends = "b"', "b": 'extends = "a"'},
    {"a": 'extends = "b"', "b": 'extends = "c"', "c": '\n\nextends = "b"'},
])  # fmt: skip
def test_cycles(tmp_path: Path, policies: dict[str, str]) -> None:
    with pytest.raises(InvalidRequest, match=r"toml:[0-9]: extends: a cycle, a -> ") as caught:
        PolicySet(write(tmp_path, **policies))
    assert caught.value.field == "extends"


def test_a_policy_that_extends_itself_is_told_so(shipped: PolicySet, tmp_path: Path) -> None:
    said = "extends: 'mine' is this policy, and none can extend itself"
    for text, name in (('name = "mine"\nextends = "mine"', ""), ('\nextends = "mine"', "mine")):
        (problem,) = shipped.check_text(text, name=name)
        assert (problem.line, problem.key, problem.message) == (2, "extends", said)
    with pytest.raises(InvalidRequest, match=f"mine.toml:1: {said}"):
        PolicySet(write(tmp_path, mine='extends = "mine"'))


def test_a_large_text_that_was_checked_is_not_parsed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    policies = PolicySet(shipped_policy_dir())
    parsed: list[str] = []
    loads = tomllib.loads
    monkeypatch.setattr(policy_source.tomllib, "loads", lambda text: parsed.append(text) or loads(text))
    padding = "#" * LARGE_TEXT + "\n"
    for text in (padding + 'extends = "strict"', padding + "limts = 1"):
        first = policies.check_text(text)
        assert policies.check_text(text) == first
        with contextlib.suppress(InvalidRequest):
            policies.resolve_text(text)
    assert [text.splitlines()[1] for text in parsed] == ['extends = "strict"', "limts = 1"]
    for number in range(100):
        policies.check_text(f"{padding}# {number}")
    assert policies._remembered.cache_info().currsize <= 4


def test_unknown_parent(shipped: PolicySet) -> None:
    with pytest.raises(InvalidRequest, match=r"FILE:2: extends: no policy 'strct'; did you mean 'strict'\?"):
        shipped.resolve_text('name = "x"\nextends = "strct"', origin="FILE")


def test_chains_are_bounded(tmp_path: Path) -> None:
    links = {f"p{i}": f'extends = "p{i + 1}"\n' for i in range(20)}
    with pytest.raises(InvalidRequest, match="deep"):
        PolicySet(write(tmp_path, **links, p20='[network]\nmode = "full"\n'))


def test_an_inline_policy_does_not_pass_for_a_shipped_one(shipped: PolicySet) -> None:
    assert shipped.resolve_text(shipped.get("strict").toml).name == "strict"
    looser = shipped.resolve_text('name = "strict"\nextends = "strict"\n[limits]\npids = 500\n')
    assert looser.name == "inline:strict"
    assert shipped.resolve_text('extends = "strict"').name == "inline"


def test_unisolated_shows_through_extends(shipped: PolicySet) -> None:
    assert shipped.resolve_text('name = "innocent"\nextends = "none"\n').unisolated
    assert shipped.resolve_text('extends = "basic"\n[process]\ncapabilities = ["sys_admin"]\n').unisolated
    assert not shipped.resolve_text('extends = "strict"\n[process]\ncapabilities = ["CAP_NET_ADMIN"]\n').unisolated


# --- mistakes


@pytest.mark.parametrize(("text", "line", "key", "message"), [
    ("limts = 1", 1, "limts", "unknown key 'limts'; did you mean 'limits'?"),
    ("\n[limits]\n# c\nmemry = '1G'", 4, "limits.memry", "unknown key 'memry' in [limits]; did you mean 'memory'?"),
    ("[limits.max]\nmemry = '1G'", 2, "limits.max.memry", "unknown key 'memry' in [limits.max]; did you mean 'memory'?"),
    ("limits.memry = 1", 1, "limits.memry", "did you mean 'memory'?"),
    ("limits = {memry = 1}", 1, "limits.memry", "did you mean 'memory'?"),
    ("[[rules]]\nname='a'\non='exec'\n[[rules]]\nname='b'\non='exec'\nsevrity='low'", 7, "rules[1].sevrity",
     "did you mean 'severity'?"),
    ("[limts]\n", 1, "limts", "did you mean 'limits'?"),
    ("description = '''\n[limits]\nmemory = 1\n'''\n[limits]\nmemory = -1", 6, "limits.memory", "negative"),
    ("[limits]\nmemory = true", 2, "limits.memory", "must be a number"),
    ("[limits]\nmemory = '1.5'", 2, "limits.memory", "whole number of bytes"),
    ("[limits]\nmemory = '12Q'", 2, "limits.memory", "is not a size"),
    ("[limits]\nmemory = '9999999T'", 2, "limits.memory", "2**63"),
    ("[limits]\npids = 0", 2, "limits.pids", "above zero"),
    ("[limits]\npids = 1.5", 2, "limits.pids", "whole number"),
    ("[limits]\npids = '12'", 2, "limits.pids", "must be a number"),
    ("[limits]\npids = 9223372036854775808", 2, "limits.pids", "2**63 - 1"),
    ("[limits]\ncpus = nan", 2, "limits.cpus", "finite"),
    ("[limits]\nwall_seconds = inf", 2, "limits.wall_seconds", "finite"),
    ("[limits]\nwall_seconds = -0.5", 2, "limits.wall_seconds", "negative"),
    ("[limits]\nwall_seconds = []", 2, "limits.wall_seconds", "number"),
    ("limits = 3", 1, "limits", "limits"),
    ("[network]\nmode = 'wide'", 2, "network.mode", "'filtered'"),
    ("[network]\nallow = ['a b']", 2, "network.allow", "HOST:PORT"),
    ("[network]\nallow = ['host:70000']", 2, "network.allow", "65535"),
    ("[network]\nmode = 'full'\nmax = 'none'", 2, "network.mode", "wider than network.max"),
    ("[network]\nmode = 'none'", 2, "network.mode", "isolation.namespaces"),
    ("[isolation]\nnamespaces = ['net']", 2, "isolation.namespaces", "unknown namespace"),
    ("[filesystem]\nroot = 'relative'", 2, "filesystem.root", "absolute path"),
    ("[filesystem]\nroot = 'image:'", 2, "filesystem.root", "image"),
    ("[filesystem]\nhidden = ['/a/../b']", 2, "filesystem.hidden", "'..'"),
    ("[filesystem]\nread_only = ['/a\\u0000']", 0, "filesystem.read_only", ""),
    ('[filesystem]\nread_only = ["/a\\u0000"]', 2, "filesystem.read_only", "absolute path"),
    ("[filesystem]\ntmp = 'wr'", 2, "filesystem.tmp", "'noexec'"),
    ("[syscalls]\nkill = ['opne']", 2, "syscalls.kill", "unknown system call 'opne'; did you mean 'open'?"),
    ("[syscalls]\nkill = [\n'open',\n'@mont']", 2, "syscalls.kill", "unknown set '@mont'; did you mean '@mount'?"),
    ("[syscalls]\nkill = ['%setids']", 2, "syscalls.kill", "did you mean '%setid'?"),
    ("[syscalls]\nerrno = ['open:ENOPE']", 2, "syscalls.errno", "unknown error"),
    ("[syscalls]\nkill = ['open:EPERM']", 2, "syscalls.kill", "only the list errno"),
    ("[syscalls]\ndefault = 'deny'", 2, "syscalls.default", "'kill'"),
    ("[process]\nuser = 'nobody'", 2, "process.user", "'root'"),
    ("[process]\ncapabilities = ['CAP_SYS_ADMN']", 2, "process.capabilities", "CAP_SYS_ADMIN"),
    ("[process]\nenv = {'A=B' = '1'}", 2, "process.env", "environment variable"),
    ("[process.env]\nA = 1", 2, "process.env.A", "string"),
    ("extends = 'strict'\n[process]\nuser = 'root'", 3, "process.user", "namespaces = []"),
    ("extends = 'strict'\n[limits]\nmemory = '8G'", 3, "limits.memory", "more than limits.max.memory"),
    ("extends = 'strict'\n[limits]\nmemory = 'unlimited'", 3, "limits.memory", "more than limits.max.memory"),
    ("extends = 'strict'\n[limits.max]\nmemory = '1M'", 3, "limits.max.memory", "more than limits.max.memory"),
    ("[response]\nviolation_threshold = 0", 2, "response.violation_threshold", "greater than or equal to 1"),
    ("name = 'a b'", 1, "name", "letters"),
    ("[limits\nmemory = 1", 1, "", "not TOML"),
    ("", 0, "", "empty: a policy has at least a line such as extends = \"strict\""),
    ("# nothing\n", 0, "", "empty"),
    ("name = 'a'\nname = 'b'", 2, "", "not TOML"),
    ("x = " + "[" * 5000, 0, "", ""),
    ("x = " + "9" * 5000, 1, "", "not TOML"),
    ("a" + ".a" * 5000 + " = 1", 1, "", "dots"),
    ("#" * (MAX_TEXT_BYTES + 1), 0, "", "larger than"),
])  # fmt: skip
def test_mistakes_are_named_with_their_line(
    shipped: PolicySet, text: str, line: int, key: str, message: str
) -> None:  # fmt: skip
    problems = shipped.check_text(text)
    if line == 0 and not message:  # any refusal, or none: it must only not crash
        return
    first = problems[0]
    assert (first.line, first.key) == (line, key), problems
    assert message in first.message
    with pytest.raises(InvalidRequest) as caught:
        shipped.resolve_text(text, origin="FILE")
    assert caught.value.field == key
    assert caught.value.message.startswith(f"FILE:{line}: " if line else "FILE: ")


def test_all_mistakes_come_at_once_in_order(shipped: PolicySet) -> None:
    problems = shipped.check_text("limts = 1\n[limits]\nmemory = true\npids = -1\n[trace]\nlevel = 'all'\n")
    assert [problem.line for problem in problems] == [1, 3, 4, 6]


def test_a_good_text_has_no_problems(shipped: PolicySet) -> None:
    assert shipped.check_text('extends = "strict"\n') == []
    assert shipped.check_text(b'extends = "strict"\r\n') == []


def test_bytes_that_are_no_text(shipped: PolicySet) -> None:
    assert shipped.check_text(b"\xff")[0].message == "not UTF-8"
    assert shipped.check_text("\ud800")[0].message == "not UTF-8"
    assert shipped.check_text("\0")[0].line == 1
