"""Nothing that a client can send makes policy code do anything but answer or refuse."""

from __future__ import annotations

import contextlib
import functools
import time
import tomllib

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from supervisor.errors import InvalidRequest, PolicyRefused
from supervisor.model import LIMIT_KEYS, NetworkMode, RunSpec, TraceLevel
from supervisor.policy import Policy, narrow, parse_size
from supervisor.policy_file import MAX_TEXT_BYTES, PolicySet
from supervisor.policy_schema import PolicyFile, known_keys
from supervisor.policy_text import write_toml
from supervisor.shipped import shipped_policy_dir
from supervisor.syscall_sets import GUARDS, KNOWN_SYSCALLS, SYSCALL_SETS

fuzz = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


@functools.cache
def shipped() -> PolicySet:
    return PolicySet(shipped_policy_dir())


def check(text: str | bytes) -> Policy | None:
    """The policy of a text, or None when it is refused; problems and refusal must tell the same."""
    problems = shipped().check_text(text)
    lines = text.count("\n" if isinstance(text, str) else b"\n") + 1  # type: ignore[arg-type]
    assert all(0 <= problem.line <= lines and problem.message for problem in problems)
    try:
        policy = shipped().resolve_text(text)
    except InvalidRequest as error:
        assert problems
        assert error.message
        assert error.field == problems[0].key
        return None
    assert not problems
    again = shipped().resolve_text(shipped().resolved_toml(policy))
    assert again.digest == policy.digest
    return policy


@fuzz
@given(st.binary(max_size=400))
def test_any_bytes(raw: bytes) -> None:
    check(raw)


@fuzz
@given(st.text(alphabet=st.sampled_from("[]{}=.,\"'#\n\r\t \\abelmntxs019-_@%:e+"), max_size=120))
def test_any_text_of_toml_characters(text: str) -> None:
    check(text)


@fuzz
@given(st.text(max_size=200))
def test_any_text(text: str) -> None:
    check(text)


KEYS = sorted({key for table in ((), *((name,) for name in PolicyFile.model_fields)) for key in known_keys(table)})
words = st.sampled_from([
    *KEYS, *LIMIT_KEYS, "none", "full", "allow", "errno", "kill", "rw", "ro", "host", "image:x", "/tmp", "/", "run", "root",
    "strict", "basic", "unlimited", "1G", "64K", "pid", "mount", "user", "network", "CAP_KILL", "a:1", "exec", "high",
    *SYSCALL_SETS, *GUARDS, "open:EPERM", "mount",
])  # fmt: skip
scalars = st.one_of(
    words, st.text(max_size=12), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.lists(words, max_size=4)
)
tables = st.dictionaries(
    st.one_of(st.sampled_from([*KEYS, *PolicyFile.model_fields]), st.text(max_size=8)),
    st.recursive(scalars, lambda inner: st.dictionaries(words, inner, max_size=4), max_leaves=12),
    max_size=6,
)


@fuzz
@given(tables)
def test_any_tables(table: dict[str, object]) -> None:
    text = write_toml(table)
    with contextlib.suppress(tomllib.TOMLDecodeError):
        check(text)


@fuzz
@given(st.integers(0, 2**30), st.binary(min_size=1, max_size=3), st.sampled_from(["strict", "paranoid", "moderate"]))
def test_a_shipped_policy_with_a_few_bytes_changed(place: int, change: bytes, name: str) -> None:
    raw = bytearray(shipped().get(name).toml.encode())
    at = place % len(raw)
    raw[at : at + len(change)] = change
    check(bytes(raw))


limit_lists = st.fixed_dictionaries({
    "default": st.sampled_from(["allow", "errno", "kill"]),
    **{
        key: st.lists(st.sampled_from([*sorted(KNOWN_SYSCALLS), *SYSCALL_SETS, *GUARDS]), max_size=12)
        for key in ("allow", "errno", "kill")
    },
})  # fmt: skip


@fuzz
@given(limit_lists)
def test_a_call_has_one_action(table: dict[str, object]) -> None:
    policy = check(write_toml({"syscalls": table, "network": {"mode": "full"}}))
    assert policy is not None
    calls = policy.syscalls
    named = [*calls.allow, *(name for name, _ in calls.errno), *calls.kill]
    assert len(named) == len(set(named))


numbers = st.one_of(st.integers(), st.floats(), st.integers(-(2**70), 2**70), st.booleans(), st.just(10**5000))


@fuzz
@given(
    st.sampled_from(["none", "basic", "moderate", "strict", "paranoid"]),
    st.dictionaries(st.one_of(st.sampled_from(LIMIT_KEYS), st.text(max_size=8)), numbers, max_size=4),
    st.one_of(st.none(), st.sampled_from(NetworkMode)),
    st.one_of(st.none(), st.sampled_from(TraceLevel)),
    st.lists(st.text(max_size=20), max_size=2),
)
def test_narrowing_never_widens(
    name: str, limits: dict[str, float], network: NetworkMode | None, trace: TraceLevel | None, allow: list[str]
) -> None:  # fmt: skip
    policy = shipped().get(name)
    spec = RunSpec(argv=(b"x",), limits=limits, network=network, trace=trace, allow=tuple(allow))
    try:
        effective = narrow(policy, spec)
    except (InvalidRequest, PolicyRefused) as error:
        assert error.field.split(".")[0] in ("limits", "network", "trace", "allow")
        return
    for key in LIMIT_KEYS:
        value, maximum = getattr(effective.limits, key), getattr(policy.limits_max, key)
        assert maximum is None or 0 < value <= maximum
    assert list(NetworkMode).index(effective.network) <= list(NetworkMode).index(policy.network.max)
    assert list(TraceLevel).index(effective.trace) >= list(TraceLevel).index(policy.trace.level)


@fuzz
@given(st.one_of(st.text(max_size=30), st.integers(), st.from_regex(r"[0-9.]{1,6} ?[KMGTkmgt]?i?B?", fullmatch=True)))
def test_sizes_are_whole_numbers_in_range(value: str | int) -> None:
    try:
        size = parse_size(value)
    except ValueError:
        return
    assert 0 <= size < 2**63


def test_hostile_texts_are_cheap() -> None:
    size = MAX_TEXT_BYTES - 64
    deep = "a." * 60 + "a = 1\n"
    texts = [
        "[" * size, "{" * size, "a = " + "[" * size, "a = {" * (size // 5), '"' * size, "'" * size, "\n" * size, "." * size,
        "a = '''" + "\n" * size, deep * (size // len(deep)), "[" + "a." * (size // 2) + "a]", "a = " + "1" * size,
        "".join(f"k{i} = 1\n" for i in range(size // 12)), "[[rules]]\n" * (size // 10), "x = 1\n" + "\\" * size,
        'name = "' + "x" * size + '"', "#" * size, "=" * size, "a = [" + "1," * (size // 2) + "]",
        "[syscalls]\nkill = [" + '"opne",' * (size // 7 - 10) + "]",
        "".join(f"limts{i} = 1\n" for i in range(size // 16)),
    ]  # fmt: skip
    for text in texts:
        start = time.monotonic()
        check(text)
        assert time.monotonic() - start < 10, text[:40]
