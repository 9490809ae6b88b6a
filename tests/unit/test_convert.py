"""Requests from the wire and results to it."""

from __future__ import annotations

import contextlib
import math

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from supervisor.api import convert, results
from supervisor.errors import InvalidRequest
from supervisor.model import (
    LIMIT_KEYS,
    Enforcement,
    Feature,
    HostFeatures,
    InputFile,
    Mount,
    NetworkMode,
    Outcome,
    OutputFile,
    RunRecord,
    RunResult,
    StartError,
    SyscallCount,
    TraceLevel,
    TraceSummary,
    Usage,
    Violation,
)
from supervisor.v1 import run_pb2 as pb


def spec(**fields: object) -> pb.RunSpec:
    return pb.RunSpec(**{"argv": [b"true"], **fields})


def test_everything_that_a_spec_can_say_arrives() -> None:
    message = spec(
        request_id="r1",
        agent="a1",
        labels={"task": "7"},
        argv=[b"sh", b"-c", b"\xff", b""],
        env=[pb.EnvironmentVariable(name=b"A", value=b"=\xff"), pb.EnvironmentVariable(name=b"B")],
        cwd=b"/work//sub/./x/",
        stdin=b"in\0put",
        policy="moderate",
        limits=pb.Limits(wall_seconds=0.5, memory_bytes=1 << 20, cpus=0.25, output_bytes=7),
        network=pb.NETWORK_MODE_FILTERED,
        allow=["example.org:443"],
        mounts=[pb.Mount(source=b"/srv//data", target=b"/work/./in", writable=True)],
        files=[pb.InputFile(path=b"./a b\n\xff", data=b"1", mode=0o755), pb.InputFile(path=b"/tmp/x")],
        collect=[b"out/*", b"/tmp/*"],
        trace=pb.TRACE_LEVEL_FULL,
        backend=pb.BACKEND_NATIVE,
        image="img",
        terminal=pb.Terminal(rows=1, columns=2),
    )
    made = convert.run_spec(message, terminal_allowed=True)
    assert made.argv == (b"sh", b"-c", b"\xff", b"")
    assert made.env == ((b"A", b"=\xff"), (b"B", b""))
    assert made.cwd == b"/work/sub/x"
    assert made.stdin == b"in\0put"
    assert (made.policy, made.policy_toml) == ("moderate", None)
    assert made.limits == {"wall_seconds": 0.5, "memory": 1 << 20, "cpus": 0.25, "output": 7}
    assert made.network is NetworkMode.FILTERED
    assert made.allow == ("example.org:443",)
    assert made.mounts == (Mount(b"/srv/data", b"/work/in", True),)
    assert made.files == (InputFile(b"a b\n\xff", b"1", 0o755), InputFile(b"/tmp/x", b"", 0o644))
    assert made.collect == (b"out/*", b"/tmp/*")
    assert made.trace is TraceLevel.FULL
    assert (made.backend, made.image, made.agent, made.request_id) == ("native", "img", "a1", "r1")
    assert made.labels == {"task": "7"}
    assert made.terminal


def test_what_is_not_said_is_the_policys_to_say() -> None:
    made = convert.run_spec(spec())
    assert (made.policy, made.policy_toml, made.limits, made.network, made.trace) == ("strict", None, {}, None, None)
    assert (made.cwd, made.image, made.backend, made.terminal) == (None, None, "auto", False)
    assert convert.run_spec(spec(policy="")).policy == "strict"
    assert convert.run_spec(spec(policy_toml='name = "x"')).policy_toml == 'name = "x"'


def test_every_limit_key_is_on_the_wire() -> None:
    assert tuple(key for _, key, _ in convert.LIMITS) == LIMIT_KEYS
    assert {wire for wire, _, _ in convert.LIMITS} == set(pb.Limits.DESCRIPTOR.fields_by_name)


MALFORMED = [
    ({"argv": []}, "argv"),
    ({"argv": [b""]}, "argv"),
    ({"argv": [b"a", b"b", b"c\0"]}, "argv[2]"),
    ({"argv": [b"x"] * 100_001}, "argv"),
    ({"env": [pb.EnvironmentVariable(name=b"")]}, "env[0].name"),
    ({"env": [pb.EnvironmentVariable(name=b"A=B")]}, "env[0].name"),
    ({"env": [pb.EnvironmentVariable(name=b"A\0")]}, "env[0].name"),
    ({"env": [pb.EnvironmentVariable(name=b"A", value=b"\0")]}, "env[0].value"),
    ({"env": [pb.EnvironmentVariable(name=b"A")] * 2}, "env[1].name"),
    ({"cwd": b"work"}, "cwd"),
    ({"cwd": b"/a\0"}, "cwd"),
    ({"policy": "x" * 257}, "policy"),
    ({"policy": "x\n"}, "policy"),
    ({"policy_toml": " "}, "policy_toml"),
    ({"network": 99}, "network"),
    ({"trace": 99}, "trace"),
    ({"backend": -1}, "backend"),
    ({"allow": [""]}, "allow[0]"),
    ({"mounts": [pb.Mount(target=b"/work")]}, "mounts[0].source"),
    ({"mounts": [pb.Mount(source=b"data", target=b"/work")]}, "mounts[0].source"),
    ({"mounts": [pb.Mount(source=b"/a\0", target=b"/work")]}, "mounts[0].source"),
    ({"mounts": [pb.Mount(source=b"/a/../etc", target=b"/work")]}, "mounts[0].source"),
    ({"mounts": [pb.Mount(source=b"/a")]}, "mounts[0].target"),
    ({"mounts": [pb.Mount(source=b"/a", target=b"work")]}, "mounts[0].target"),
    (
        {"mounts": [pb.Mount(source=b"/a", target=b"/work"), pb.Mount(source=b"/b", target=b"//work/")]},
        "mounts[1].target",
    ),
    *[
        ({"mounts": [pb.Mount(source=b"/a", target=target)]}, "mounts[0].target")
        for target in (
            b"/",
            b"//",
            b"/.",
            b"/proc",
            b"//proc/",
            b"/proc/self",
            b"/dev/null",
            b"/sys/fs",
            b"/work/../proc",
        )
    ],
    *[
        ({"files": [pb.InputFile(path=path)]}, "files[0].path")
        for path in (
            b"",
            b".",
            b"/",
            b"a/",
            b"a/.",
            b"../a",
            b"a/../b",
            b"a\0",
            b"/proc/x",
            b"/sys/x",
            b"/dev/x",
            b"a" * 256,
        )
    ],
    ({"files": [pb.InputFile(path=b"a" * 200 + b"/a" * 2000)]}, "files[0].path"),
    ({"files": [pb.InputFile(path=b"a"), pb.InputFile(path=b"/work/a")]}, "files[1].path"),
    ({"files": [pb.InputFile(path=b"a", mode=0o4755)]}, "files[0].mode"),
    ({"files": [pb.InputFile(path=b"f%d" % index) for index in range(20_001)]}, "files"),
    ({"collect": [b""]}, "collect[0]"),
    ({"collect": [b"a", b"../*"]}, "collect[1]"),
    ({"collect": [b"a\0"]}, "collect[0]"),
    ({"agent": "a" * 257}, "agent"),
    ({"agent": "\x1b[2J"}, "agent"),
    ({"request_id": "a" * 257}, "request_id"),
    ({"labels": {str(index): "" for index in range(65)}}, "labels"),
    ({"labels": {"": "x"}}, "labels"),
    ({"labels": {"k": "x" * 257}}, "labels[k]"),
    ({"terminal": pb.Terminal()}, "terminal"),
    *[
        ({"limits": pb.Limits(wall_seconds=value)}, "limits.wall_seconds")
        for value in (math.nan, math.inf, -math.inf, -1.0, 0.0, 1e300)
    ],
    *[({"limits": pb.Limits(cpus=value)}, "limits.cpus") for value in (math.nan, math.inf, 0.0)],
    ({"limits": pb.Limits(memory_bytes=0)}, "limits.memory"),
    ({"limits": pb.Limits(memory_bytes=-(1 << 63))}, "limits.memory"),
    ({"limits": pb.Limits(file_size_bytes=-1)}, "limits.file_size"),
    ({"limits": pb.Limits(disk_bytes=0)}, "limits.disk"),
    ({"limits": pb.Limits(output_bytes=0)}, "limits.output"),
    ({"limits": pb.Limits(pids=0)}, "limits.pids"),
]


@pytest.mark.parametrize(
    ("fields", "field"), MALFORMED, ids=[f"{index}-{row[1]}" for index, row in enumerate(MALFORMED)]
)
def test_what_is_malformed_is_named(fields: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        convert.run_spec(spec(**fields))
    assert caught.value.field == field
    assert caught.value.message


def test_shared_memory_takes_files_and_emoji_are_no_control_characters() -> None:
    made = convert.run_spec(spec(files=[pb.InputFile(path=b"/dev/shm/x")], labels={"who": "👩‍💻"}))
    assert made.files[0].path == b"/dev/shm/x"


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=400))
def test_no_bytes_crash_the_conversion(data: bytes) -> None:
    with contextlib.suppress(DecodeError, InvalidRequest):
        convert.run_spec(pb.RunSpec.FromString(data), terminal_allowed=True)


texts = st.text(max_size=8)
blobs = st.binary(max_size=8)


@settings(max_examples=300, deadline=None)
@given(
    st.builds(
        pb.RunSpec,
        argv=st.lists(blobs, max_size=3),
        env=st.lists(st.builds(pb.EnvironmentVariable, name=blobs, value=blobs), max_size=3),
        cwd=blobs,
        policy=texts,
        agent=texts,
        labels=st.dictionaries(texts, texts, max_size=2),
        limits=st.builds(pb.Limits, cpus=st.floats(), pids=st.integers(-(1 << 63), (1 << 63) - 1)),
        network=st.integers(-9, 9),
        mounts=st.lists(st.builds(pb.Mount, source=blobs, target=blobs), max_size=2),
        files=st.lists(st.builds(pb.InputFile, path=blobs, mode=st.integers(0, (1 << 32) - 1)), max_size=2),
        collect=st.lists(blobs, max_size=2),
    )
)
def test_any_spec_is_converted_or_refused_by_field(message: pb.RunSpec) -> None:
    try:
        made = convert.run_spec(message)
    except InvalidRequest as error:
        assert error.field
        return
    assert made.argv[0]
    assert all(0 < value < math.inf for value in made.limits.values())
    for mount in made.mounts:
        assert mount.target.startswith(b"/") and b".." not in mount.target.split(b"/")


RESULT = RunResult(
    run_id="run",
    outcome=Outcome.VIOLATION,
    policy="strict",
    backend="native",
    request_id="r",
    agent="a",
    labels={"k": "v"},
    exit_code=None,
    signal=9,
    signal_name="SIGKILL",
    detail="killed \udcff",
    stdout=b"out\xff",
    stderr=b"err",
    stdout_truncated=True,
    usage=Usage(wall_seconds=1.5, memory_peak_bytes=0, oom_kills=2),
    files=(OutputFile(b"out/\xff", b"data", 0o640, True),),
    violations=(
        Violation("r", "syscall", "high", "kill", 1.0, syscall="ptrace", args=(-1, 1 << 63), comm="a\udc80", port=80),
    ),
    enforcement=Enforcement(namespaces=("pid", "net"), cgroup="hybrid", missing=("io_read_bytes",)),
    trace=TraceSummary("summary", True, 3, 1, {"read": SyscallCount(5, 1)}),
    error=StartError("execve", 2, "no \udcffsuch"),
    started_at=10.0,
    ended_at=11.5,
)


def test_a_result_arrives_whole_and_as_valid_text() -> None:
    message = pb.RunResult.FromString(results.result_message(RESULT).SerializeToString())
    assert message.outcome == pb.OUTCOME_VIOLATION
    assert not message.HasField("exit_code")
    assert (message.signal, message.signal_name) == (9, "SIGKILL")
    assert message.detail == "killed \ufffd"
    assert (message.stdout, message.stderr, message.stdout_truncated) == (b"out\xff", b"err", True)
    assert message.usage.memory_peak_bytes == 0 and message.usage.HasField("memory_peak_bytes")
    assert not message.usage.HasField("io_read_bytes")
    assert message.usage.oom_kills == 2
    assert message.files[0] == pb.OutputFile(path=b"out/\xff", data=b"data", mode=0o640, truncated=True)
    assert list(message.violations[0].args) == [(1 << 64) - 1, 1 << 63]
    assert message.violations[0].comm == "a\ufffd"
    assert list(message.enforcement.namespaces) == ["pid", "net"]
    assert message.trace.syscalls["read"] == pb.SyscallCount(calls=5, errors=1)
    assert message.error == pb.StartError(stage="execve", errno=2, message="no \ufffdsuch")
    assert message.labels == {"k": "v"}
    assert message.ended_at == 11.5


def test_payload_can_be_left_out() -> None:
    message = results.result_message(RESULT, payload=False)
    assert not message.stdout and not message.stderr and not message.files
    assert message.stdout_truncated


def test_every_outcome_and_state_is_on_the_wire() -> None:
    assert set(results.OUTCOMES) == set(Outcome)
    assert set(results.OUTCOMES.values()) == set(pb.Outcome.values()) - {0}


def test_records_of_waiting_and_of_ended_runs() -> None:
    queued = results.record_message(RunRecord("run", "queued", "s", "strict", "p", "native", "a\udcff"))
    assert queued.state == pb.RUN_STATE_QUEUED
    assert queued.result.outcome == pb.OUTCOME_UNSPECIFIED
    assert queued.program == "a\ufffd"
    assert not queued.result.HasField("error")
    ended = results.record_message(
        RunRecord(
            "run", "ended", "s", "strict", "p", "native", "true", outcome=Outcome.EXITED, exit_code=0, ended_at=2.0
        )
    )
    assert ended.result.HasField("exit_code") and ended.result.ended_at == 2.0


def test_arguments_are_told_of_runs_that_have_not_ended_and_cut() -> None:
    argv = (b"sh", b"-c", b"\xff" * 5000, b"more")
    live = results.record_message(RunRecord("run", "running", "s", "strict", "p", "native", "sh", argv=argv))
    assert list(live.argv) == [b"sh", b"-c", b"\xff" * (results.ARGV_BYTES - 6)]
    ended = results.record_message(RunRecord("run", "ended", "s", "strict", "p", "native", "sh", argv=argv))
    assert not ended.argv


def test_host_features() -> None:
    host = HostFeatures(
        "6.1", "v2", 2, 1 << 30, features={"lsm": Feature("lsm", False, "EPERM", "less", "boot with lsm=")}
    )
    (feature,) = results.feature_messages(host)
    assert (feature.name, feature.available, feature.remedy) == ("lsm", False, "boot with lsm=")


def sized(files: list[int], stdout: int = 0) -> pb.RunResult:
    return pb.RunResult(
        stdout=b"o" * stdout,
        files=[pb.OutputFile(path=b"f%d" % index, data=b"x" * size, mode=0o644) for index, size in enumerate(files)],
    )


def test_fit_cuts_the_largest_files_first() -> None:
    message = sized([10, 90_000, 50_000], 100)
    results.fit(message, 60_000)
    assert message.ByteSize() <= 60_000
    assert [file.truncated for file in message.files] == [False, True, False]
    assert len(message.files[0].data) == 10 and len(message.files[2].data) == 50_000
    assert len(message.stdout) == 100


@pytest.mark.parametrize("most", [200, 1_000, 60_000, 119_000])
def test_fit_always_fits(most: int) -> None:
    message = sized([10, 20_000, 40_000, 5], 60_000)
    message.stderr = b"e" * 100
    message.violations.extend([pb.Violation(rule="r" * 50)] * 20)
    results.fit(message, most)
    assert message.ByteSize() <= most


def test_what_fits_is_left_alone() -> None:
    message = sized([10, 20], 30)
    before = message.SerializeToString()
    results.fit(message, 10_000)
    assert message.SerializeToString() == before


@pytest.mark.parametrize("size", [0, 1, (1 << 20), (1 << 20) + 1, 3 << 20])
def test_file_chunks(size: int) -> None:
    chunks = list(results.file_chunks(OutputFile(b"p", bytes(size), 0o600, True)))
    assert b"".join(chunk.data for chunk in chunks) == bytes(size)
    assert all(len(chunk.data) <= 1 << 20 for chunk in chunks)
    assert [bool(chunk.path) for chunk in chunks] == [True] + [False] * (len(chunks) - 1)
    assert [chunk.last for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert chunks[0].mode == 0o600 and chunks[-1].truncated
