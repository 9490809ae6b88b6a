"""Random requests and policies over the real wire: never a crash, never an error of ours."""

from __future__ import annotations

import math

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
bounded = settings(
    max_examples=fewer(150, 10),
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

words = st.sampled_from(
    [b"true", b"echo", b"/bin/sh", b"-c", b"exit 3", b"", b".", b"..", b"/", b"/work", b"/tmp/x", b"/proc/self/exe", b"/etc", b"/usr/share", b"*", b"**/*", b"a\0b", b"\xff\xfe", b"A" * 300, b"x/../y", b"/work/x", b"/dev/shm/f", b"$(id)"]
)  # fmt: skip
data = st.one_of(words, st.binary(max_size=40))
sizes = st.one_of(
    st.sampled_from([-1, 0, 1, 7, 4096, 2**20, 64 * 2**20, 2**31, 2**53, 2**63 - 1]), st.integers(-(2**63), 2**63 - 1)
)
seconds = st.one_of(
    st.sampled_from([-1.0, 0.0, 1e-9, 0.01, 0.5, 1e9, 1e300, math.inf, -math.inf, math.nan]), st.floats()
)
names = st.one_of(
    st.sampled_from(["", "strict", "moderate", "basic", "paranoid", "none", "../x", "a\nb"]), st.text(max_size=20)
)


@st.composite
def requests(draw: st.DrawFn) -> run_pb2.RunSpec:
    """Mostly nearly valid: half of the fields are left alone."""
    request = run_pb2.RunSpec(argv=draw(st.one_of(st.just([b"true"]), st.lists(data, max_size=5))))
    if draw(st.booleans()):
        request.policy = draw(names)
    if draw(st.booleans()):
        for _ in range(draw(st.integers(0, 3))):
            request.env.add(name=draw(data), value=draw(data))
        request.stdin = draw(st.binary(max_size=100))
    if draw(st.booleans()):
        request.cwd = draw(data)
    if draw(st.booleans()):
        for key in ("memory_bytes", "pids", "open_files", "file_size_bytes", "disk_bytes", "inodes", "output_bytes"):
            if draw(st.integers(0, 3)) == 0:
                setattr(request.limits, key, draw(sizes))
        if draw(st.booleans()):
            request.limits.cpus = draw(seconds)
            request.limits.cpu_seconds = draw(seconds)
    if draw(st.integers(0, 2)) == 0:
        for _ in range(draw(st.integers(1, 3))):
            request.mounts.add(source=draw(data), target=draw(data), writable=draw(st.booleans()))
    if draw(st.integers(0, 2)) == 0:
        for _ in range(draw(st.integers(1, 3))):
            request.files.add(path=draw(data), data=draw(data), mode=draw(st.integers(0, 2**32 - 1)))
    if draw(st.booleans()):
        request.collect.extend(draw(st.lists(data, max_size=3)))
    if draw(st.integers(0, 3)) == 0:
        request.MergeFromString(bytes([0x58, draw(st.integers(0, 9))]))  # network
        request.MergeFromString(bytes([0x80, 0x01, draw(st.integers(0, 9))]))  # trace
        request.MergeFromString(bytes([0x88, 0x01, draw(st.sampled_from([0, 1, 99]))]))  # backend
        request.allow.extend(draw(st.lists(st.text(max_size=10), max_size=2)))
        request.image = draw(names)
    if draw(st.integers(0, 3)) == 0:
        request.agent = draw(names)
        for key, value in draw(st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3)).items():
            request.labels[key] = value
    if not request.limits.HasField("wall_seconds"):
        request.limits.wall_seconds = draw(st.one_of(st.just(scaled(3)), seconds.filter(lambda s: not 5 < s < 1e9)))
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
