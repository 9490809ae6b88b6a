"""Random requests and policies over the real wire: never a crash, never an error of ours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from supervisor.v1 import policy_pb2, run_pb2, run_pb2_grpc
from tests.host.daemon_fixture import Daemon, PolicyStub, fewer, scaled

EXPECTED = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.ALREADY_EXISTS,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.FAILED_PRECONDITION,
}
pytestmark = pytest.mark.slow

bounded = settings(
    max_examples=fewer(150, 10),
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

# For every field: what is plausible, and what is hostile. A request has at most two hostile fields, so that most of the
# others are reached.
words = st.sampled_from(
    [b"", b".", b"..", b"/", b"*", b"a\0b", b"\xff\xfe", b"A" * 300, b"x/../y", b"/proc/self/exe", b"/proc", b"/dev/null", b"/etc", b"/work/../x", b"$(id)"]
)  # fmt: skip
data = st.one_of(words, st.binary(max_size=40))
seconds = st.one_of(st.sampled_from([-1.0, 0.0, 1e-9, 1e9, 1e300, math.inf, -math.inf, math.nan]), st.floats())
sizes = st.one_of(st.sampled_from([-1, 0, 1, 2**31, 2**53, 2**63 - 1]), st.integers(-(2**63), 2**63 - 1))
names = st.one_of(st.sampled_from(["none", "../x", "a\nb", "x" * 300]), st.text(max_size=20))
commands = [
    [b"true"],
    [b"echo", b"x", b"\xff"],
    [b"sh", b"-c", b"exit 3"],
    [b"cat"],
    [b"no-such"],
    [b"sh", b"-c", b"echo f > f; ln -s / l; mkfifo p"],
]
SIZES = {
    "memory_bytes": (2**12, 2**20, 2**26, 123_456_789),
    "pids": (1, 2, 3, 17, 512),
    "open_files": (1, 3, 4, 5, 8, 1000),
    "file_size_bytes": (1, 4096, 2**20),
    "disk_bytes": (1, 4095, 4096, 2**20, 2**28),
    "inodes": (1, 2, 3, 10, 5000),
    "output_bytes": (1, 2, 100, 2**20),
}
FIELDS = (
    "argv",
    "policy",
    "env",
    "stdin",
    "cwd",
    "limits",
    "cpus",
    "mounts",
    "files",
    "collect",
    "enums",
    "agent",
    "labels",
)


@st.composite
def requests(draw: st.DrawFn) -> run_pb2.RunSpec:
    hostile = draw(st.sets(st.sampled_from(FIELDS), max_size=2))
    present = draw(st.sets(st.sampled_from(FIELDS))) | hostile

    def pick(field: str, plausible: Sequence[Any], bad: st.SearchStrategy[Any]) -> Any:
        return draw(bad if field in hostile else st.sampled_from(plausible))

    request = run_pb2.RunSpec(argv=pick("argv", commands, st.lists(data, max_size=5)))
    request.limits.wall_seconds = scaled(3)
    if "policy" in present:
        request.policy = pick("policy", ["strict", "moderate", "basic", "paranoid"], names)
    if "env" in present:
        for n in range(draw(st.integers(0, 3))):
            request.env.add(
                name=pick("env", [b"PATH", b"HOME", b"N%d" % n], data), value=pick("env", [b"", b"\xff"], data)
            )
    if "stdin" in present:
        request.stdin = draw(st.binary(max_size=100))
    if "cwd" in present:
        request.cwd = pick("cwd", [b"/work", b"/tmp", b"/", b"/no/such", b"/usr/"], data)
    if "limits" in present:
        for key, plausible in SIZES.items():
            if draw(st.booleans()):
                setattr(request.limits, key, pick("limits", plausible, sizes))
    if "cpus" in present:
        request.limits.cpus = pick("cpus", [0.01, 0.5, 1, 2.75], seconds)
        request.limits.cpu_seconds = pick("cpus", [0.001, 0.5, 3], seconds)
    if "mounts" in present:
        for n in range(draw(st.integers(1, 3))):
            source = pick("mounts", [b"/usr/share", b"/usr/lib/os-release", b"/tmp"], data)
            target = pick("mounts", [b"/data/%d" % n, b"/work", b"/work/m", b"/tmp/m", b"/etc/x", b"/usr/share"], data)
            request.mounts.add(source=source, target=target)
    if "files" in present:
        for n in range(draw(st.integers(1, 3))):
            path = pick("files", [b"f", b"d/%d" % n, b"/tmp/x", b"/dev/shm/y", b"\xff"], data)
            request.files.add(
                path=path, data=draw(data), mode=pick("files", [0, 0o644, 0o777], st.integers(0, 2**32 - 1))
            )
    if "collect" in present:
        request.collect.extend(pick("collect", [[b"*"], [b"**"], [b"f", b"/tmp/*"]], st.lists(data, max_size=3)))
    if "enums" in present:
        # By number on the wire, so that values beyond the known ones can be sent: network, trace, backend.
        for tag in (b"\x58", b"\x80\x01", b"\x88\x01"):
            request.MergeFromString(tag + bytes([pick("enums", [0, 1], st.integers(0, 127))]))
        request.image = pick("enums", [""], names)
    if "agent" in present:
        request.agent = pick("agent", ["a", "\u202e"], names)
    if "labels" in present:
        request.labels[pick("labels", ["k"], names)] = pick("labels", ["", "v"], names)
    return request


@pytest.fixture(autouse=True)
def same_daemon(daemon: Daemon) -> None:
    """The process that was there before is there after: nothing restarted it."""
    assert daemon.process is not None and daemon.process.poll() is None


@bounded
@given(request=requests())
def test_any_request_is_answered(stub: run_pb2_grpc.RunServiceStub, daemon: Daemon, request: run_pb2.RunSpec) -> None:
    try:
        result = stub.Execute(request, timeout=scaled(30))
    except grpc.RpcError as error:
        assert error.code() in EXPECTED, (error.code(), error.details(), request)
        assert error.details(), "an error without a message"
    else:
        assert result.outcome != run_pb2.OUTCOME_UNSPECIFIED and result.run_id
        assert result.outcome not in (run_pb2.OUTCOME_LOST, run_pb2.OUTCOME_CANCELLED)
    assert daemon.process is not None and daemon.process.poll() is None


@bounded
@given(
    payload=st.binary(max_size=200),
    method=st.sampled_from(["Execute", "GetRun", "ListRuns", "KillRun", "KillAgentRuns"]),
)
def test_any_bytes_are_answered(channel: grpc.Channel, daemon: Daemon, payload: bytes, method: str) -> None:
    try:
        channel.unary_unary(f"/supervisor.v1.RunService/{method}")(payload, timeout=scaled(30))
    except grpc.RpcError as error:
        assert error.code() in EXPECTED, (error.code(), error.details(), payload)
    assert daemon.process is not None and daemon.process.poll() is None


lines = st.sampled_from(
    ['name = "x"', 'extends = "strict"', 'extends = "basic"', "[limits]", "[limits.max]", "[syscalls]", "[network]", "[filesystem]", "[process]", "[[rules]]", "[response]", "[trace]", 'memory = "64M"', "memory = -1", "pids = 3.5", 'memory = "lots"', 'default = "kill"', 'allow = ["read", "@start"]', 'allow = "read"', 'mode = "full"', 'mode = 3', 'user = "root"', "capabilities = []", 'root = "/"', 'hidden = ["/etc"]', 'read_only = ["../x"]', "violation_threshold = 0", 'level = "full"', 'on = "exec"', 'action = "deny"', "wall_seconds = inf", "cpus = nan", "cpus = 1e400", "x = 1979-05-27", "description = 'd'", "# comment", "[", '"', "\\"]
)  # fmt: skip


@bounded
@given(text=st.one_of(st.lists(lines, max_size=12).map("\n".join), st.text(max_size=100)))
def test_any_policy_is_answered(channel: grpc.Channel, stub: run_pb2_grpc.RunServiceStub, text: str) -> None:
    answer = PolicyStub(channel).CheckPolicy(policy_pb2.CheckPolicyRequest(toml=text), timeout=scaled(30))
    assert bool(answer.problems) != answer.HasField("policy")
    request = run_pb2.RunSpec(argv=[b"true"], policy_toml=text)
    try:
        result = stub.Execute(request, timeout=scaled(30))
    except grpc.RpcError as error:
        assert error.code() in EXPECTED, (error.code(), error.details(), text)
        if answer.problems:
            assert error.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND), error.details()
    else:
        assert not answer.problems and result.outcome != run_pb2.OUTCOME_UNSPECIFIED
