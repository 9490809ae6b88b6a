"""The SDK against the API's face on a real socket."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import sys
import time

import grpc
import pytest
from fake_daemon import ARGV, RUN_ID

from supervisor import errors
from supervisor.client import (
    AsyncSupervisor,
    Cancelled,
    DeadlineExceeded,
    LocalFile,
    Supervisor,
    Unreachable,
    async_client,
    result_to_json,
    sync_client,
)
from supervisor.client.build import CHUNK_BYTES, UNARY_BYTES
from supervisor.client.channel import Target
from supervisor.client.errors_wire import from_rpc_error
from supervisor.model import Outcome, OutputFile, RunResult
from supervisor.run_events import Exited, Output, Started, Stream, ViolationSeen
from supervisor.v1 import run_pb2


@pytest.fixture
def client(daemon):
    with Supervisor(daemon.address) as connected:
        yield connected


# Execute


def test_execute_is_unary_for_small_requests(client, daemon):
    result = client.execute(["cat"], stdin=b"\0\xff", files={"a": b"1"})
    assert (result.outcome, result.exit_code, result.stdout) == (Outcome.EXITED, 0, b"\0\xff")
    assert daemon.runs.executed == 1
    assert result.usage.memory_peak_bytes is None


def test_execute_streams_large_files_in_chunks(client, daemon, tmp_path):
    big = tmp_path / "big"
    big.write_bytes(b"ab" * (UNARY_BYTES // 2) + b"tail")
    result = client.execute(["echo", "done"], files={"big": big, "empty": (b"", 0o600), "small": b"x"})
    assert result.stdout == b"done"
    assert daemon.runs.executed == 0
    got = {file.path: file for file in daemon.runs.specs[0].files}
    assert got[b"big"].data == big.read_bytes()
    assert (got[b"empty"].data, got[b"empty"].mode, got[b"small"].data) == (b"", 0o600, b"x")
    assert daemon.runs.largest < CHUNK_BYTES + 1024


def test_execute_streams_large_input(client, daemon):
    data = bytes(range(256)) * (UNARY_BYTES // 256) + b"end"
    assert client.execute(["cat"], stdin=data).stdout == data
    assert daemon.runs.largest == CHUNK_BYTES


def test_execute_assembles_collected_files(client):
    result = client.execute(["both"], collect=["a", b"\xff"])
    assert [(file.path, file.data, file.mode) for file in result.files] == [
        (b"a", b"part0;part1;part2;", 0o755),
        (b"\xff", b"part0;part1;part2;", 0o755),
    ]
    assert (result.stdout, result.stderr) == (b"out\n", b"err\xff\n")


def test_a_large_output_limit_streams(client, daemon):
    client.execute(["echo"], output_limit="100M")
    assert daemon.runs.executed == 0


def test_a_file_that_vanishes_ends_the_call(client):
    def gone():
        raise FileNotFoundError(2, "No such file or directory", "gone")

    with pytest.raises(errors.InvalidRequest, match="cannot read gone"):
        client.execute(["cat"], files={"x": LocalFile(gone, UNARY_BYTES + 1)})


# Errors


@pytest.mark.parametrize(
    ("program", "kind", "reason"),
    [
        ("wider", errors.PolicyRefused, "REFUSED_BY_POLICY"),
        ("full", errors.Exhausted, "QUEUE_FULL"),
        ("lacks", errors.HostLacks, "HOST_LACKS_FEATURE"),
        ("broken", errors.LaunchFailed, "LAUNCH_FAILED"),
    ],
)
def test_errors_come_back_as_what_they_were(client, program, kind, reason):
    for call in (client.execute, lambda argv: list(client.run(argv))):
        with pytest.raises(errors.SupervisorError) as caught:
            call([program])
        assert type(caught.value) is kind
        assert caught.value.reason == reason


def test_error_particulars(client):
    with pytest.raises(errors.PolicyRefused) as refused:
        client.execute(["wider"])
    assert refused.value.field == "limits.memory"
    with pytest.raises(errors.Exhausted) as full:
        client.execute(["full"])
    assert full.value.retry_seconds == 0.5
    with pytest.raises(errors.HostLacks) as lacks:
        client.execute(["lacks"])
    assert lacks.value.metadata == {"feature": "landlock", "remedy": "a newer kernel"}


def test_no_daemon(tmp_path):
    with Supervisor(f"unix://{tmp_path}/none") as client:
        for call in (lambda: client.execute(["true"]), client.host, lambda: list(client.run(["true"]))):
            began = time.monotonic()
            with pytest.raises(errors.Unreachable, match="supervisor serve") as caught:
                call()
            assert str(tmp_path) in caught.value.metadata["address"]
            assert time.monotonic() - began < 2


def test_deadline(client):
    with pytest.raises(DeadlineExceeded):
        client.execute(["slow"], deadline=0.1)
    with pytest.raises(DeadlineExceeded):
        list(client.run(["sleep"], deadline=0.3))


# Run


def test_events_in_order(client):
    stream = client.run(["both"], stdin=b"", collect=["f"])
    started, out, err, violation, exited = stream
    assert started == Started(RUN_ID, 1.5)
    assert (out, err) == (Output(Stream.STDOUT, b"out\n"), Output(Stream.STDERR, b"err\xff\n"))
    assert isinstance(violation, ViolationSeen)
    assert violation.violation.address == "1.2.3.4"
    assert isinstance(exited, Exited)
    assert exited.result.files == (OutputFile(b"f", b"part0;part1;part2;", 0o755),)
    assert list(stream) == []


def test_live_input_and_control(client, daemon):
    with client.run(["cat"], terminal=(24, 80)) as stream:
        assert isinstance(next(stream), Started)
        assert next(stream).data == b""
        stream.write("one")
        assert next(stream).data == b"one"
        stream.signal(10)
        stream.resize(30, 100)
        stream.write(b"x" * (3 * CHUNK_BYTES))
        stream.close_stdin()
        rest = list(stream)
    assert b"".join(event.data for event in rest[:-1]) == b"x" * (3 * CHUNK_BYTES)
    assert isinstance(rest[-1], Exited)
    assert (daemon.runs.signals, daemon.runs.sizes) == ([10], [(30, 100)])
    with pytest.raises(ValueError, match="closed"):
        stream.write(b"more")


async def test_signals_and_sizes_overtake_input_in_their_order():
    def resize(rows):
        return run_pb2.RunRequest(resize=run_pb2.Terminal(rows=rows, columns=1))

    typed = run_pb2.RunRequest(stdin=b"x")
    wanted = [resize(1), resize(2), typed]
    blocking, awaited = sync_client._Outbox(iter(())), async_client._AsyncOutbox(iter(()))
    blocking.put(typed)
    await awaited.put(typed)
    for rows in (1, 2):
        blocking.put_first(resize(rows))
        awaited.put_first(resize(rows))
    assert [next(blocking) for _ in wanted] == wanted
    messages = awaited.messages()
    assert [await anext(messages) for _ in wanted] == wanted
    await messages.aclose()


def test_input_given_whole_is_all_of_it(client):
    stream = client.run(["cat"], stdin="whole")
    with pytest.raises(ValueError, match="closed"):
        stream.write(b"more")
    assert [event.data for event in stream if isinstance(event, Output)] == [b"whole"]


def test_cancel_and_leaving_end_the_run(client, daemon):
    stream = client.run(["sleep"])
    assert isinstance(next(stream), Started)
    stream.cancel()
    with pytest.raises(Cancelled):
        list(stream)
    assert daemon.runs.cancelled.wait(5)
    daemon.runs.cancelled.clear()
    with client.run(["sleep"]) as stream:
        next(stream)
    assert daemon.runs.cancelled.wait(5)


def test_writes_do_not_hang_after_the_end(client):
    stream = client.run(["echo", "x"])
    assert isinstance(list(stream)[-1], Exited)
    for _ in range(50):
        stream.write(b"x" * 1024)


# The rest of the API


def test_runs_kill_host_policies_traces(client):
    assert [run.run_id for run in client.runs()] == ["run-3", "run-2", "run-1"]
    assert [run.run_id for run in client.runs(limit=2)] == ["run-3", "run-2"]
    assert [run.run_id for run in client.runs(agent="a", state="running")] == ["run-1"]
    assert [run.run_id for run in client.each_run(state="ended")] == ["run-3", "run-2"]
    assert (client.runs(limit=0), client.get("run-1").argv) == ([], ARGV)
    with pytest.raises(errors.InvalidRequest, match="queued, running, ended"):
        client.runs(state="alive")
    record = client.get("run-2")
    assert (record.state, record.outcome) == ("ended", Outcome.OUT_OF_MEMORY)
    assert client.get("run-1").outcome is None
    with pytest.raises(errors.NotFound):
        client.get("run-9")
    assert (client.kill(RUN_ID), client.kill("other"), client.kill_agent("a")) == (True, False, 2)
    assert client.host().features[0].name == "landlock"
    assert [policy.name for policy in client.policies()] == ["strict"]
    assert client.policy("strict").resolved_toml == "b = 2\n"
    with pytest.raises(errors.NotFound) as caught:
        client.policy("nope")
    assert caught.value.reason == "UNKNOWN_POLICY"
    assert client.check_policy("x").good
    assert client.check_policy("memry").problems[0].line == 2
    assert [event.args for event in client.trace(RUN_ID)] == [(1, 2), (1, 2)]
    assert client.trace_summary(RUN_ID).syscalls["openat"].calls == 2
    with pytest.raises(errors.NotFound):
        list(client.trace("run-9"))


async def test_the_async_client_is_the_same(daemon):
    async with AsyncSupervisor(daemon.address) as client:
        assert (await client.execute(["cat"], stdin="x")).stdout == b"x"
        assert (await client.execute(["both"], collect=["f"])).files[0].data == b"part0;part1;part2;"
        async with client.run(["cat"]) as stream:
            await stream.write(b"y" * (2 * CHUNK_BYTES))
            await stream.signal(12)
            await stream.close_stdin()
            events = [event async for event in stream]
        assert b"".join(event.data for event in events if isinstance(event, Output)) == b"y" * (2 * CHUNK_BYTES)
        assert isinstance(events[-1], Exited)
        assert daemon.runs.signals == [12]
        stream = client.run(["sleep"])
        assert isinstance(await anext(stream), Started)
        stream.cancel()
        with pytest.raises(Cancelled):
            [event async for event in stream]
        with pytest.raises(errors.PolicyRefused):
            await client.execute(["wider"])
        with pytest.raises(DeadlineExceeded):
            await client.execute(["slow"], deadline=0.1)
        assert [run.run_id for run in await client.runs()] == ["run-3", "run-2", "run-1"]
        assert [run.run_id for run in await client.runs(limit=2)] == ["run-3", "run-2"]
        assert [run.run_id async for run in client.each_run(agent="a")] == ["run-1"]
        assert [event.path async for event in client.trace(RUN_ID)] == ["/x", "/x"]
        assert await client.kill(RUN_ID)
        assert (await client.host()).kernel == "6.18"
        assert (await client.check_policy("memry")).problems


async def test_async_file_that_vanishes(daemon):
    def gone():
        raise FileNotFoundError(2, "No such file or directory", "gone")

    async with AsyncSupervisor(daemon.address) as client:
        with pytest.raises(errors.InvalidRequest, match="cannot read gone"):
            await client.execute(["cat"], files={"x": LocalFile(gone, UNARY_BYTES + 1)})


# JSON and dependencies


def test_result_to_json():
    result = RunResult(
        "r",
        Outcome.EXITED,
        "strict",
        "native",
        exit_code=0,
        stdout=b"plain",
        stderr=b"a\xffb",
        files=(OutputFile(b"n\xfe", b"\xff", 0o644), OutputFile(b"t", b"text", 0o600)),
    )
    shown = json.loads(json.dumps(result_to_json(result)))
    assert (shown["stdout"], "stdout_base64" in shown) == ("plain", False)
    assert shown["stderr"] == "a\ufffdb"
    assert base64.b64decode(shown["stderr_base64"]) == b"a\xffb"
    odd, plain = shown["files"]
    assert base64.b64decode(odd["path_base64"]) == b"n\xfe"
    assert base64.b64decode(odd["data_base64"]) == b"\xff"
    assert plain == {"path": "t", "data": "text", "mode": 0o600, "truncated": False}
    assert (shown["outcome"], shown["signal"], shown["usage"]["io_read_bytes"]) == ("exited", None, None)
    assert set(shown) >= {"run_id", "request_id", "agent", "labels", "violations", "enforcement", "trace", "error"}


def test_the_client_needs_only_the_wire():
    code = (
        "import sys, supervisor.client;"
        "print(sorted(name for name in sys.modules if name.startswith('supervisor.')"
        " and name.split('.')[1] not in ('client', 'v1', 'model', 'run_events', 'errors')),"
        " [name for name in ('pyroute2', 'pydantic', 'structlog', 'seccomp', 'prctl') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] []"


# Words for what gRPC says


class Failed(grpc.RpcError):
    def __init__(self, text):
        self.text = text

    def code(self):
        return grpc.StatusCode.UNAVAILABLE

    def details(self):
        return self.text

    def trailing_metadata(self):
        return ()


CONNECT = "failed to connect to all addresses; last error: "


@pytest.mark.parametrize(
    ("text", "tcp", "under_way", "said"),
    [
        (CONNECT + "UNKNOWN: connect failed: addr: unix:/s error: Permission denied", False, False, "socket_group"),
        (CONNECT + "UNKNOWN: unix:/s: No such file or directory", False, False, "is the daemon running"),
        (CONNECT + "UNKNOWN: ipv4:1.2.3.4:5: Connection refused", True, False, "is the daemon running"),
        (CONNECT + "UNKNOWN: Tls handshake failed: CERTIFICATE_VERIFY_FAILED: x", True, False, "no TLS with .* by /ca"),
        (CONNECT + "UNAVAILABLE: ipv4:1.2.3.4:5: Socket closed", True, False, "accept /cert [(]key /key[)]"),
        ("UNAUTHENTICATED: Hostname Verification Check failed.", True, False, "no TLS with"),
        ("Socket closed", False, True, "was lost while the run was under way"),
        ("Socket closed", True, True, "was lost while the run was under way"),
        ("Socket closed", False, False, "was lost before it answered"),
        ("Socket closed", True, False, "was lost before it answered"),
        ("", False, False, "is the daemon running"),
    ],
)
def test_why_no_daemon_answers(text, tcp, under_way, said):
    target = Target("host:5" if tcp else "unix:///s", not tcp, None, (), ("/ca", "/cert", "/key") if tcp else ())
    error = from_rpc_error(Failed(text), target, run_under_way=under_way)
    assert isinstance(error, Unreachable)
    assert re.search(said, error.message), error.message


def test_the_error_classes_are_the_clients_too():
    import supervisor.client

    for row in errors.ERROR_TABLE:
        assert getattr(supervisor.client, row.error.__name__) is row.error
