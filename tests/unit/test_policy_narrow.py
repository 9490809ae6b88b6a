"""What requests may make of a policy: limits, network, trace."""

from __future__ import annotations

import math

import pytest

from supervisor.errors import InvalidRequest, PolicyRefused
from supervisor.model import LIMIT_KEYS, NetworkMode, RunSpec, TraceLevel
from supervisor.policy import Network, Policy, Trace, check_limit, narrow, parse_size
from supervisor.policy_file import PolicySet
from supervisor.shipped import shipped_policy_dir


@pytest.fixture(scope="module")
def shipped() -> PolicySet:
    return PolicySet(shipped_policy_dir())


def spec(**changes: object) -> RunSpec:
    return RunSpec(argv=(b"true",), **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(("text", "size"), [
    (0, 0), (4096, 4096), ("4096", 4096), ("64K", 64 << 10), ("256M", 256 << 20), ("1G", 1 << 30), ("2T", 2 << 40),
    ("1.5G", 3 << 29), ("64k", 64 << 10), ("64KiB", 64 << 10), ("64 MB", 64 << 20), (" 1M ", 1 << 20), ("7B", 7),
    (2**63 - 1, 2**63 - 1),
])  # fmt: skip
def test_sizes(text: str | int, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", [
    "", "M", "-1", "-1M", -1, "1X", "1.5", "0.3K", "1e3", "0x10", "1 000", "\u0661", "inf", "nan", True, 1.5, None, 2**63,
    "8388608T", "9" * 40, "9" * 5000, "1M\n2",
])  # fmt: skip
def test_what_is_no_size(text: object) -> None:
    with pytest.raises(ValueError, match=r"size|is not|bytes"):
        parse_size(text)  # type: ignore[arg-type]


@pytest.mark.parametrize(("key", "value", "checked"), [
    ("wall_seconds", 0.25, 0.25), ("wall_seconds", 3, 3.0), ("cpus", 0.5, 0.5), ("pids", 7, 7), ("pids", 7.0, 7),
    ("memory", 1 << 20, 1 << 20), ("output", 1, 1),
])  # fmt: skip
def test_limits_that_make_sense(key: str, value: float, checked: float) -> None:
    result = check_limit(key, value)
    assert result == checked
    assert type(result) is type(checked)


@pytest.mark.parametrize("key", LIMIT_KEYS)
@pytest.mark.parametrize("value", [
    0, -1, 0.0, -0.0, -5e-324, 5e-324, math.nan, math.inf, -math.inf, True, None, "1", 2**63, 2**64, 1e300, 10**400,
])  # fmt: skip
def test_limits_that_make_none(shipped: PolicySet, key: str, value: object) -> None:
    for policy in ("strict", "basic"):
        with pytest.raises(InvalidRequest) as caught:
            narrow(shipped.get(policy), spec(limits={key: value}))
        assert caught.value.field == f"limits.{key}"
        assert key in caught.value.message


@pytest.mark.parametrize("key", [k for k in LIMIT_KEYS if k not in ("wall_seconds", "cpu_seconds", "cpus")])
def test_counts_are_whole(shipped: PolicySet, key: str) -> None:
    with pytest.raises(InvalidRequest, match="whole number"):
        narrow(shipped.get("strict"), spec(limits={key: 2_000_000.5}))


# --- narrowing


def test_a_request_that_asks_nothing_gets_the_policy(shipped: PolicySet) -> None:
    strict = shipped.get("strict")
    effective = narrow(strict, spec())
    assert (effective.policy, effective.limits) == (strict, strict.limits)
    assert (effective.network, effective.trace, effective.allow) == (NetworkMode.NONE, TraceLevel.SUMMARY, ())


def test_limits_go_up_to_the_maximum_and_not_beyond(shipped: PolicySet) -> None:
    strict = shipped.get("strict")
    asked = {"memory": 4 << 30, "pids": 512, "wall_seconds": 3600, "cpus": 0.5}
    limits = narrow(strict, spec(limits=asked)).limits
    assert (limits.memory, limits.pids, limits.wall_seconds, limits.cpus) == (4 << 30, 512, 3600.0, 0.5)
    assert limits.output == strict.limits.output
    for key in LIMIT_KEYS:
        maximum = getattr(strict.limits_max, key)
        with pytest.raises(PolicyRefused) as caught:
            narrow(strict, spec(limits={key: maximum + 1}))
        error = caught.value
        assert error.field == f"limits.{key}"
        assert error.metadata["maximum"] == str(maximum)
        assert error.metadata["requested"] == str(maximum + 1)
        assert "strict" in error.message


def test_unbounded_limits_take_anything_sensible(shipped: PolicySet) -> None:
    assert narrow(shipped.get("basic"), spec(limits={"memory": 1 << 50})).limits.memory == 1 << 50


def test_unknown_limits(shipped: PolicySet) -> None:
    with pytest.raises(InvalidRequest, match="did you mean 'memory'") as caught:
        narrow(shipped.get("strict"), spec(limits={"memmory": 1}))
    assert caught.value.field == "limits.memmory"


ORDER = list(NetworkMode)


@pytest.mark.parametrize("widest", ORDER)
@pytest.mark.parametrize("asked", ORDER)
def test_network_is_never_wider_than_the_policy(widest: NetworkMode, asked: NetworkMode) -> None:
    policy = Policy("p", network=Network(NetworkMode.NONE, widest))
    if ORDER.index(asked) <= ORDER.index(widest):
        assert narrow(policy, spec(network=asked)).network is asked
    else:
        with pytest.raises(PolicyRefused) as caught:
            narrow(policy, spec(network=asked))
        assert caught.value.field == "network"
        assert caught.value.metadata["maximum"] == widest.value


def test_moderate_has_network_on_request_only(shipped: PolicySet) -> None:
    moderate = shipped.get("moderate")
    assert narrow(moderate, spec()).network is NetworkMode.NONE
    assert narrow(moderate, spec(network=NetworkMode.FULL)).network is NetworkMode.FULL


def test_addresses_are_a_part_of_what_the_policy_allows() -> None:
    filtered = Policy("p", network=Network(NetworkMode.FILTERED, NetworkMode.FILTERED, ("a:443", "b:443")))
    assert narrow(filtered, spec()).allow == ("a:443", "b:443")
    assert narrow(filtered, spec(allow=("b:443",))).allow == ("b:443",)
    with pytest.raises(PolicyRefused) as refused:
        narrow(filtered, spec(allow=("c:443",)))
    assert refused.value.field == "allow"
    with pytest.raises(InvalidRequest):
        narrow(filtered, spec(allow=("not an address",)))
    with pytest.raises(InvalidRequest):
        narrow(filtered, spec(allow=("a:443",), network=NetworkMode.NONE))
    full = Policy("p", network=Network(NetworkMode.NONE, NetworkMode.FULL))
    assert narrow(full, spec(allow=("c:443",), network=NetworkMode.FILTERED)).allow == ("c:443",)


@pytest.mark.parametrize("level", list(TraceLevel))
@pytest.mark.parametrize("asked", list(TraceLevel))
def test_trace_is_never_less_than_the_policy(level: TraceLevel, asked: TraceLevel) -> None:
    policy = Policy("p", trace=Trace(level))
    order = list(TraceLevel)
    if order.index(asked) >= order.index(level):
        assert narrow(policy, spec(trace=asked)).trace is asked
    else:
        with pytest.raises(PolicyRefused) as caught:
            narrow(policy, spec(trace=asked))
        assert caught.value.field == "trace"
