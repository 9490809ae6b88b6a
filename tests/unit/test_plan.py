"""LaunchPlan is a pure function of its input: golden plans of the shipped policies, and what fails in it."""

from __future__ import annotations

import os
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from supervisor.errors import HostLacks, InvalidRequest, PolicyRefused
from supervisor.model import Feature, HostFeatures, Mount, NetworkMode, RunSpec, TraceLevel
from supervisor.plan import AddressPlan, LaunchPlan, build
from supervisor.plan_root import OpKind, RootEntry, RootView
from supervisor.policy import narrow
from supervisor.policy_file import PolicySet
from supervisor.shipped import shipped_policy_dir

GOLDEN = Path(__file__).parent / "golden"
POLICIES = PolicySet(shipped_policy_dir())
VIEW = RootView(
    (
        RootEntry(b"usr", template=True),
        RootEntry(b"bin", link=b"usr/bin"),
        RootEntry(b"lib", link=b"usr/lib"),
        RootEntry(b"etc", template=True),
    )
)
FEATURES = [
    "pid_namespace",
    "mount_namespace",
    "network_namespace",
    "ipc_namespace",
    "uts_namespace",
    "cgroup_namespace",
    "user_namespace",
    "cgroup2",
    "cgroup_kill",
    "pidfd",
    "clone_into_cgroup",
    "memory_limit",
    "pids_limit",
    "cpu_limit",
    "new_mount_api",
    "openat2",
    "seccomp_filter",
    "seccomp_notify",
    "memory_peak",
    "pids_peak",
    "trace",
    "cgroup_bpf",
]
HOST = HostFeatures(
    kernel="6.1.0",
    cgroup="v2",
    cpus=2,
    memory_bytes=1 << 33,
    landlock_abi=6,
    features={name: Feature(name, True) for name in FEATURES},
)
SPEC = RunSpec(argv=(b"true",), mounts=())


def plan_of(policy: str, spec: RunSpec = SPEC, host: HostFeatures = HOST) -> LaunchPlan:
    return build(spec, narrow(POLICIES.get(policy), spec), host, VIEW)


def lines(value: Any, name: str, depth: int = 0) -> list[str]:
    """A plan as text in which a change of one thing is a change of one line."""
    pad = "  " * depth
    if (
        is_dataclass(value)
        and not isinstance(value, type)
        and type(value).__name__ in ("LaunchPlan", "Limits", "Enforcement")
    ):
        inner = [line for f in fields(value) for line in lines(getattr(value, f.name), f.name, depth + 1)]
        return [f"{pad}{name}: {type(value).__name__}", *inner]
    if isinstance(value, tuple) and value and name in ("ops", "mounts", "landlock_rules", "rlimits", "env"):
        return [f"{pad}{name}:", *(f"{pad}  {item!r}" for item in value)]
    return [f"{pad}{name}: {value!r}"]


@pytest.mark.parametrize("policy", ["none", "basic", "moderate", "strict", "paranoid"])
def test_golden(policy: str) -> None:
    """To accept a change that is meant: GOLDEN_UPDATE=1, and read the difference."""
    text = "\n".join(lines(plan_of(policy), "plan")) + "\n"
    path = GOLDEN / f"{policy}.plan"
    if os.environ.get("GOLDEN_UPDATE"):
        path.write_text(text)
    assert text == path.read_text()


def test_the_same_input_gives_the_same_plan() -> None:
    assert plan_of("strict") == plan_of("strict")


def test_a_missing_feature_names_itself_and_the_remedy() -> None:
    lacking = dict(HOST.features)
    lacking["user_namespace"] = Feature("user_namespace", False, "EPERM", "no uid map", "set user.max_user_namespaces")
    with pytest.raises(HostLacks) as caught:
        plan_of("strict", host=replace(HOST, features=lacking))
    assert caught.value.metadata == {"feature": "user_namespace", "remedy": "set user.max_user_namespaces"}
    assert "EPERM" in str(caught.value)
    assert plan_of("moderate", host=replace(HOST, features=lacking)).namespaces


def test_without_landlock_it_is_said_to_be_missing() -> None:
    plan = plan_of("strict", host=replace(HOST, landlock_abi=0))
    assert plan.landlock_fs == 0 and plan.landlock_rules == ()
    assert "landlock" in plan.enforcement.missing


def test_without_probes_a_trace_is_missing_and_one_that_is_asked_for_is_refused() -> None:
    lacking = dict(HOST.features, trace=Feature("trace", False, "no BTF", "not traced", "use another kernel"))
    assert "trace" not in plan_of("strict").enforcement.missing
    assert "trace" in plan_of("strict", host=replace(HOST, features=lacking)).enforcement.missing
    with pytest.raises(HostLacks) as caught:
        plan_of("strict", RunSpec(argv=(b"true",), trace=TraceLevel.FULL), replace(HOST, features=lacking))
    assert (caught.value.reason, caught.value.metadata["remedy"]) == ("TRACE_NOT_AVAILABLE", "use another kernel")
    with pytest.raises(HostLacks, match="policy paranoid, which requires a trace, needs the eBPF probes: no BTF"):
        plan_of("paranoid", host=replace(HOST, features=lacking))


def test_network_internal_is_refused() -> None:
    with pytest.raises(HostLacks) as caught:
        plan_of("moderate", RunSpec(argv=(b"true",), network=NetworkMode.INTERNAL))
    assert caught.value.reason == "NETWORK_MODE_NOT_AVAILABLE"


def test_network_filtered_has_the_hosts_network_and_rules_or_is_refused() -> None:
    spec = RunSpec(argv=(b"true",), network=NetworkMode.FILTERED, allow=("10.0.0.1:80",))
    plan = plan_of("moderate", spec)
    assert plan.addresses is not None and plan.addresses.kill
    assert plan.addresses == AddressPlan(("10.0.0.1:80",), (), True, plan.addresses.kill)
    assert "network" not in plan.namespaces and plan.enforcement.cgroup_bpf == "addresses"
    lacking = dict(HOST.features, cgroup_bpf=Feature("cgroup_bpf", False, "EPERM", "no filter", "be root"))
    with pytest.raises(HostLacks) as caught:
        plan_of("moderate", spec, replace(HOST, features=lacking))
    assert (caught.value.field, caught.value.metadata["remedy"]) == ("network", "be root")


def test_network_full_has_no_network_namespace() -> None:
    plan = plan_of("moderate", RunSpec(argv=(b"true",), network=NetworkMode.FULL))
    assert "network" not in plan.namespaces
    assert any(op.target == b"/etc/resolv.conf" and op.mount == -1 for op in plan.ops)


def test_network_none_under_basic_gets_a_namespace_all_the_same() -> None:
    assert plan_of("basic", RunSpec(argv=(b"true",), network=NetworkMode.NONE)).namespaces == ("network",)


def test_mounts_come_parents_first_and_read_only_unless_asked() -> None:
    spec = RunSpec(argv=(b"true",), mounts=(Mount(b"/a", b"/work/x/y", True), Mount(b"/b", b"/work", False)))
    plan = plan_of("strict", spec)
    assert [m.target for m in plan.mounts] == [b"/work", b"/work/x/y"]
    given = [op for op in plan.ops if op.kind is OpKind.MOUNT]
    assert [op.attributes & 1 for op in given] == [1, 0]
    assert not any(op.kind is OpKind.BIND and op.target == b"/work" for op in plan.ops)
    assert plan.ops[-1].kind is OpKind.SETATTR


def test_paranoid_takes_no_writable_mount() -> None:
    with pytest.raises(PolicyRefused) as caught:
        plan_of("paranoid", RunSpec(argv=(b"true",), mounts=(Mount(b"/a", b"/a", True),)))
    assert caught.value.field == "mounts[0]"


@pytest.mark.parametrize("limits", [{"disk": 1 << 20}, {"inodes": 10}])
def test_basic_cannot_bound_a_disk_it_does_not_make(limits: dict[str, int]) -> None:
    with pytest.raises(InvalidRequest, match="needs a mount namespace"):
        plan_of("basic", RunSpec(argv=(b"true",), limits=limits))


def test_environment_is_built_and_the_request_comes_last() -> None:
    plan = plan_of("strict", RunSpec(argv=(b"true",), env=((b"HOME", b"/x"), (b"A", b"1"))))
    assert dict(plan.env) == {
        b"PATH": b"/usr/local/bin:/usr/bin:/bin",
        b"HOME": b"/x",
        b"TMPDIR": b"/tmp",
        b"LANG": b"C.UTF-8",
        b"A": b"1",
    }


def test_denied_files_need_the_hooks() -> None:
    def plan(action: str, host: HostFeatures) -> LaunchPlan:
        rule = f'[[rules]]\nname = "r"\non = "open"\nmatch.path = "/etc/shadow"\naction = "{action}"\n'
        policy = POLICIES.resolve_text(f'name = "p"\nextends = "strict"\n{rule}')
        return build(SPEC, narrow(policy, SPEC), host, VIEW)

    with pytest.raises(HostLacks, match="needs bpf_lsm"):
        plan("deny", HOST)
    there = replace(HOST, features={**HOST.features, "bpf_lsm": Feature("bpf_lsm", True)})
    assert plan("deny", there).enforcement.lsm == plan("kill", there).enforcement.lsm == "denied files"
    assert not plan("kill", HOST).enforcement.lsm
