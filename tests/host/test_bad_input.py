"""Bad input gets an error that names the field, and loses nothing."""

from __future__ import annotations

import asyncio
import socket
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from supervisor import errors
from supervisor.client import Supervisor
from supervisor.v1 import policy_pb2, run_pb2, run_pb2_grpc
from tests.host.daemon_fixture import (
    MIB,
    Daemon,
    Neighbour,
    PolicyStub,
    Prober,
    RunStub,
    fewer,
    scaled,
    spec,
    wait_until,
)

INVALID, REFUSED = "INVALID_ARGUMENT", "PERMISSION_DENIED"


def details_of(error: grpc.RpcError) -> tuple[str, str, set[str], error_details_pb2.RetryInfo | None]:
    """(code, reason, fields, RetryInfo) of a failed call, after checking its form."""
    metadata = dict(error.trailing_metadata() or ())
    status = status_pb2.Status.FromString(metadata["grpc-status-details-bin"])
    reason, fields, retry = "", set(), None
    for detail in status.details:
        info, bad, wait = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
        if detail.Unpack(info):
            assert info.domain == "supervisor"
            reason = info.reason
            fields |= {info.metadata["field"]} if "field" in info.metadata else set()
        elif detail.Unpack(bad):
            fields |= {violation.field for violation in bad.field_violations}
        elif detail.Unpack(wait):
            retry = wait
    assert error.code().value[0] == status.code and error.details() and reason
    return error.code().name, reason, fields, retry


def refused(stub: run_pb2_grpc.RunServiceStub, request: run_pb2.RunSpec) -> tuple[str, set[str]]:
    with pytest.raises(grpc.RpcError) as caught:
        stub.Execute(request, timeout=scaled(30))
    code, _, fields, _ = details_of(caught.value)
    return code, fields


def limits(**values: Any) -> run_pb2.RunSpec:
    request = run_pb2.RunSpec(argv=[b"true"])
    for name, value in values.items():
        setattr(request.limits, name, value)
    return request


def mounts(source: bytes, target: bytes, writable: bool = False) -> run_pb2.RunSpec:
    return spec("true", mounts=[run_pb2.Mount(source=source, target=target, writable=writable)])


BAD = {
    "empty argv": (run_pb2.RunSpec(), INVALID, "argv"),
    "empty program": (spec(""), INVALID, "argv"),
    "NUL in argv": (spec("echo", b"a\0b"), INVALID, "argv[1]"),
    "NUL in environment": (
        spec("true", env=[run_pb2.EnvironmentVariable(name=b"A", value=b"\0")]),
        INVALID,
        "env[0].value",
    ),
    "= in a name": (spec("true", env=[run_pb2.EnvironmentVariable(name=b"A=B")]), INVALID, "env[0].name"),
    "empty name": (spec("true", env=[run_pb2.EnvironmentVariable(value=b"x")]), INVALID, "env[0].name"),
    "relative cwd": (spec("true", cwd=b"work"), INVALID, "cwd"),
    "NUL in cwd": (spec("true", cwd=b"/a\0"), INVALID, "cwd"),
    "relative source": (mounts(b"data", b"/data"), INVALID, "mounts[0].source"),
    "no source": (mounts(b"", b"/data"), INVALID, "mounts[0].source"),
    "missing source": (mounts(b"/no/such/directory", b"/data"), INVALID, "mounts[0].source"),
    "relative target": (mounts(b"/usr", b"data"), INVALID, "mounts[0].target"),
    "over /proc": (mounts(b"/usr/share", b"/proc"), INVALID, "mounts[0].target"),
    "below /proc": (mounts(b"/usr/share", b"/proc/self"), INVALID, "mounts[0].target"),
    "over /": (mounts(b"/usr/share", b"/"), INVALID, "mounts[0].target"),
    "over /dev": (mounts(b"/usr/share", b"/dev"), INVALID, "mounts[0].target"),
    "up and out": (mounts(b"/usr/share", b"/work/../../etc"), INVALID, "mounts[0].target"),
    "directory over a file": (mounts(b"/usr/share", b"/etc/hosts"), INVALID, "mounts[0].target"),
    "over a link": (mounts(b"/usr/share", b"/lib"), INVALID, "mounts[0].target"),
    "in the read-only view": (mounts(b"/usr/share", b"/usr/new"), INVALID, "mounts[0].target"),
    "/ as source": (mounts(b"/", b"/data"), REFUSED, "mounts[0].source"),
    "/etc as source": (mounts(b"/etc", b"/data"), REFUSED, "mounts[0].source"),
    "/proc as source": (mounts(b"/proc/1", b"/data"), REFUSED, "mounts[0].source"),
    "file outside": (spec("true", files=[run_pb2.InputFile(path=b"../x")]), INVALID, "files[0].path"),
    "file with set-user-ID": (
        spec("true", files=[run_pb2.InputFile(path=b"x", mode=0o4755)]),
        INVALID,
        "files[0].mode",
    ),
    "collect outside": (spec("true", collect=[b"../*"]), INVALID, "collect[0]"),
    "negative memory": (limits(memory_bytes=-1), INVALID, "limits.memory"),
    "zero memory": (limits(memory_bytes=0), INVALID, "limits.memory"),
    "one byte of memory": (limits(memory_bytes=1), "", "limits.memory"),
    "huge memory": (limits(memory_bytes=2**62), REFUSED, "limits.memory"),
    "negative wall clock": (limits(wall_seconds=-0.5), INVALID, "limits.wall_seconds"),
    "zero wall clock": (limits(wall_seconds=0), INVALID, "limits.wall_seconds"),
    "endless wall clock": (limits(wall_seconds=float("inf")), INVALID, "limits.wall_seconds"),
    "no number": (limits(wall_seconds=float("nan")), INVALID, "limits.wall_seconds"),
    "huge wall clock": (limits(wall_seconds=1e8), REFUSED, "limits.wall_seconds"),
    "no number of cpus": (limits(cpus=float("nan")), INVALID, "limits.cpus"),
    "zero cpus": (limits(cpus=0), INVALID, "limits.cpus"),
    "negative pids": (limits(pids=-3), INVALID, "limits.pids"),
    "many pids": (limits(pids=10_000), REFUSED, "limits.pids"),
    "huge output": (limits(output_bytes=2**40), REFUSED, "limits.output"),
    "zero files": (limits(open_files=0), INVALID, "limits.open_files"),
    "unknown policy": (spec("true", policy="no-such-policy"), "NOT_FOUND", "policy"),
    "path as policy": (spec("true", policy="../../etc/passwd"), "", "policy"),
    "policy none": (spec("true", policy="none"), REFUSED, "policy"),
    "wider network": (spec("true", network=run_pb2.NETWORK_MODE_FULL), REFUSED, "network"),
    "internal network": (spec("true", network=run_pb2.NETWORK_MODE_INTERNAL, policy="moderate"), "", "network"),
    "unknown network": (spec("true", network=99), INVALID, "network"),
    "unknown backend": (spec("true", backend=99), INVALID, "backend"),
    "unknown image": (spec("true", image="no-such-image"), "", "image"),
    "terminal in Execute": (spec("true", terminal=run_pb2.Terminal(rows=1)), INVALID, "terminal"),
    "control character in agent": (spec("true", agent="a\nb"), INVALID, "agent"),
    "long request_id": (spec("true", request_id="x" * 10_000), INVALID, "request_id"),
}
ANY_REFUSAL = {INVALID, REFUSED, "NOT_FOUND", "FAILED_PRECONDITION"}


@pytest.mark.parametrize("name", BAD)
def test_the_error_names_the_field(stub: run_pb2_grpc.RunServiceStub, name: str) -> None:
    request, code, field = BAD[name]
    found, fields = refused(stub, request)
    assert found == code if code else found in ANY_REFUSAL, found
    assert not fields or field in fields, fields
    if found in (INVALID, REFUSED):
        assert fields, "no field is named"


def test_fractional_and_odd_limits_are_taken(stub: run_pb2_grpc.RunServiceStub) -> None:
    request = limits(cpus=0.013, wall_seconds=scaled(20.5), memory_bytes=33_333_333, pids=3, output_bytes=1, inodes=101)
    result = stub.Execute(request, timeout=scaled(60))
    assert (result.outcome, result.exit_code) == (run_pb2.OUTCOME_EXITED, 0), result


def test_non_utf8_arguments_and_environment(stub: run_pb2_grpc.RunServiceStub) -> None:
    value = bytes(range(1, 256))
    request = spec("sh", "-c", 'printf %s "$1"; printf %s "$V" >&2', "sh", value)
    request.env.add(name=b"V", value=value)
    result = stub.Execute(request, timeout=scaled(20))
    assert (result.stdout, result.stderr) == (value, value)


@pytest.mark.parametrize("name", ["no-such-program", "/usr", "/etc/passwd", "/usr/bin/no/such", "\u202e", "a" * 5000])
def test_programs_that_are_none(stub: run_pb2_grpc.RunServiceStub, name: str) -> None:
    result = stub.Execute(spec(name), timeout=scaled(20))
    assert result.outcome == run_pb2.OUTCOME_NOT_STARTED
    assert result.error.errno and result.error.stage and result.error.message
    assert not result.HasField("exit_code")


def test_three_megabytes_of_arguments(stub: run_pb2_grpc.RunServiceStub) -> None:
    result = stub.Execute(spec("true", *["x" * 100_000] * 30), timeout=scaled(30))
    assert result.outcome == run_pb2.OUTCOME_NOT_STARTED and result.error.errno == 7, result.error
    result = stub.Execute(spec("true", "x" * 200_000), timeout=scaled(30))
    assert result.error.errno == 7, "one argument beyond the kernel's bound"
    result = stub.Execute(spec("sh", "-c", "echo $#", *["y" * 1000] * 1000), timeout=scaled(30))
    assert result.stdout == b"999\n"


def test_ten_thousand_environment_variables(stub: run_pb2_grpc.RunServiceStub) -> None:
    request = spec("sh", "-c", "env | grep -c ^N; echo $N9999")
    for n in range(10_000):
        request.env.add(name=b"N%d" % n, value=b"value %d" % n)
    assert stub.Execute(request, timeout=scaled(30)).stdout == b"10000\nvalue 9999\n"


def test_request_wider_than_its_policy_names_the_key(supervisor: Supervisor) -> None:
    with pytest.raises(errors.PolicyRefused) as caught:
        supervisor.execute(["true"], policy="strict", memory="8G")
    assert "memory" in caught.value.field and "4" in caught.value.message


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ('name = "x"\nextends = "strict"\n[limits]\nmemmory = "1M"\n', "memory"),
        ('name = "x"\nextends = "x"\n', "extends"),
        ('name = "x"\nextends = "no-such"\n', "extends"),
        ('name = "x"\n[limits\n', ""),
        ('name = "x"\n[limits]\nmemory = -1\n', "memory"),
        ('name = "x"\n[syscalls]\ndefault = "errno"\nallow = ["no_such_call"]\n', "no_such_call"),
        ('name = "x"\n[network]\nmode = "sideways"\n', "mode"),
        ("\0", ""),
    ],
)
def test_bad_policies(supervisor: Supervisor, channel: grpc.Channel, text: str, word: str) -> None:
    answer = PolicyStub(channel).CheckPolicy(policy_pb2.CheckPolicyRequest(toml=text))
    assert answer.problems and not answer.HasField("policy")
    assert any(word in f"{p.key} {p.message}" for p in answer.problems), answer.problems
    with pytest.raises((errors.InvalidRequest, errors.NotFound)):
        supervisor.execute(["true"], policy=text if "\n" in text else "=" + text)


def test_cycle_of_policies(base_directory: Path, make_daemon: Callable[..., Daemon]) -> None:
    """Two files that extend each other: the daemon does not start, and says where."""
    directory = base_directory / "cycle-policies"
    directory.mkdir()
    (directory / "one.toml").write_text('name = "one"\nextends = "two"\n')
    (directory / "two.toml").write_text('name = "two"\nextends = "one"\n')
    with pytest.raises(AssertionError) as caught:
        make_daemon("cycle", SUPERVISOR_POLICY_DIRS=str(directory))
    assert "extends" in str(caught.value) and "one -> two -> one" in str(caught.value)
    (directory / "two.toml").write_text('name = "two"\nextends = "strict"\n')
    with Supervisor(make_daemon("mended", SUPERVISOR_POLICY_DIRS=str(directory)).address) as client:
        assert client.execute(["true"], policy="one").exit_code == 0


def test_request_id_twice(supervisor: Supervisor) -> None:
    name = uuid.uuid4().hex
    assert supervisor.execute(["true"], request_id=name).request_id == name
    with pytest.raises(errors.AlreadyExists):
        supervisor.execute(["true"], request_id=name)


def test_request_id_twice_at_once(stub: run_pb2_grpc.RunServiceStub) -> None:
    name = uuid.uuid4().hex
    calls = [stub.Execute.future(spec("sleep", "0.2", request_id=name), timeout=scaled(30)) for _ in range(10)]
    codes = [call.code().name for call in calls]
    assert sorted(codes) == sorted(["OK", *["ALREADY_EXISTS"] * 9])


@pytest.mark.parametrize("method", ["Execute", "GetRun", "KillRun", "ListRuns"])
@pytest.mark.parametrize("data", [b"\xff" * 50, b"\x0a\xff\xff\xff\xff\x0f", b"\x22\x80", b"\x0a\x02\xc3\x28"])
def test_malformed_protobuf(channel: grpc.Channel, method: str, data: bytes) -> None:
    call = channel.unary_unary(f"/supervisor.v1.RunService/{method}")
    with pytest.raises(grpc.RpcError) as caught:
        call(data, timeout=scaled(10))
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("method", ["Run", "ExecuteStream"])
def test_malformed_protobuf_in_a_stream(channel: grpc.Channel, method: str, daemon: Daemon) -> None:
    call = channel.stream_stream(f"/supervisor.v1.RunService/{method}")
    try:
        list(call(iter([b"\xff" * 50]), timeout=scaled(10)))
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert daemon.is_serving()


def test_messages_of_a_run_in_the_wrong_order(stub: run_pb2_grpc.RunServiceStub) -> None:
    start = run_pb2.RunRequest(start=run_pb2.StartRun(spec=spec("cat"), stdin_follows=True))
    follow = run_pb2.RunRequest(start=run_pb2.StartRun(spec=spec("cat"), files_follow=True))
    bad = [
        [],
        [run_pb2.RunRequest()],
        [run_pb2.RunRequest(stdin=b"x")],
        [start, start],
        [start, run_pb2.RunRequest(files_end=run_pb2.FilesEnd())],
        [start, run_pb2.RunRequest(signal=-1)],
        [start, run_pb2.RunRequest(signal=999)],
        [follow, run_pb2.RunRequest(stdin=b"x")],
        [follow, run_pb2.RunRequest(file=run_pb2.FileChunk(path=b"../x", last=True))],
        [
            follow,
            run_pb2.RunRequest(file=run_pb2.FileChunk(path=b"x")),
            run_pb2.RunRequest(files_end=run_pb2.FilesEnd()),
        ],
    ]
    for messages in bad:
        with pytest.raises(grpc.RpcError) as caught:
            list(stub.Run(iter(messages), timeout=scaled(10)))
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT, messages


def test_not_grpc_at_all(daemon: Daemon) -> None:
    for data in (b"GET / HTTP/1.0\r\n\r\n", b"\0" * 10_000, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 1000):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(daemon.address.removeprefix("unix://"))
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)
            client.settimeout(scaled(5))
            try:
                while client.recv(65536):
                    pass
            except (TimeoutError, ConnectionError):
                pass
    assert daemon.is_serving()


@pytest.mark.slow
def test_message_above_the_bound(stub: run_pb2_grpc.RunServiceStub, daemon: Daemon) -> None:
    with Prober(daemon), pytest.raises(grpc.RpcError) as caught:
        stub.Execute(spec("true", stdin=b"x" * (80 * MIB)), timeout=scaled(60))
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.slow
def test_clients_that_vanish(daemon: Daemon, supervisor: Supervisor) -> None:
    agent = f"vanish-{uuid.uuid4().hex}"
    for _ in range(20):
        channel = daemon.channel()
        stub = RunStub(channel)
        for _ in range(3):
            stub.Execute.future(spec("sleep", "1000", agent=agent))
        channel.close()
    wait_until(lambda: all(run.state == "ended" for run in supervisor.runs(agent=agent)), 5, "their runs ended")
    assert {run.outcome for run in supervisor.runs(agent=agent)} <= {"cancelled"}


async def flood(address: str, count: int) -> dict[str, int]:
    """`count` Execute calls at once; how many had each status. Each OK one is checked."""
    channels = [grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) for _ in range(8)]
    stubs = [RunStub(channel) for channel in channels]
    codes: dict[str, int] = {}

    async def one(n: int) -> None:
        try:
            result = await stubs[n % len(stubs)].Execute(spec("echo", str(n)), timeout=scaled(300))
            assert result.stdout == b"%d\n" % n, result
            code = "OK"
        except grpc.aio.AioRpcError as error:
            code, _, _, retry = details_of(error)
            assert code != "RESOURCE_EXHAUSTED" or (retry is not None and retry.retry_delay.ToMilliseconds() > 0)
        codes[code] = codes.get(code, 0) + 1

    await asyncio.gather(*(one(n) for n in range(count)))
    await asyncio.gather(*(channel.close() for channel in channels))
    return codes


@pytest.mark.slow
def test_ten_thousand_requests_at_once(daemon: Daemon, supervisor: Supervisor) -> None:
    count = fewer(10_000)
    with Neighbour(daemon):
        codes = asyncio.run(flood(daemon.address, count))
    assert sum(codes.values()) == count
    assert set(codes) <= {"OK", "RESOURCE_EXHAUSTED"}, codes
    assert codes.get("OK", 0) > 0
    wait_until(lambda: supervisor.host().running == supervisor.host().queued == 0, 5, "nothing is left running")
