"""Standard input and output, signals, exit codes, cancellation, many at once, and the Run stream."""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from supervisor import errors
from supervisor.client import DeadlineExceeded, Supervisor
from supervisor.client.build import FileData
from supervisor.model import RunResult
from supervisor.run_events import Exited, Output, Started, Stream
from supervisor.v1 import run_pb2, run_pb2_grpc
from tests.host.daemon_fixture import (
    MIB,
    SLOW_MACHINE,
    Daemon,
    LiveRun,
    RunStub,
    fewer,
    host_processes,
    process_status,
    scaled,
    spec,
    wait_until,
)

CODES = range(256) if not SLOW_MACHINE else (0, 1, 2, 63, 124, 125, 126, 127, 128, 137, 255)
FATAL = [signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGILL, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE]
FATAL += [signal.SIGKILL, signal.SIGSEGV, signal.SIGPIPE, signal.SIGALRM, signal.SIGTERM, signal.SIGUSR1]


def execute(supervisor: Supervisor, *argv: str, **options: object) -> RunResult:
    return supervisor.execute(list(argv), policy="strict", timeout=scaled(30), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("data", [b"", b"x", b"a\nb\n", bytes(range(256)) * 1000, b"\0" * 70_000])
def test_stdin_comes_back(supervisor: Supervisor, data: bytes) -> None:
    assert execute(supervisor, "cat", stdin=data).stdout == data


def test_large_stdin(supervisor: Supervisor) -> None:
    data = os.urandom(5 * MIB)
    result = execute(supervisor, "cat", stdin=data, output_limit="8M")
    assert result.stdout == data


def test_live_stdin_follows_that_of_the_request(daemon: Daemon) -> None:
    data = b"x" * MIB
    request = spec("sh", "-c", "sleep 0.2; cat", stdin=data)
    request.limits.output_bytes = 2 * MIB
    run = LiveRun(daemon, request)
    run.send(b"end")
    run.close_stdin()
    run.finish()
    assert (len(run.stdout), run.stdout[-4:]) == (MIB + 3, b"xend")


def test_stdin_of_the_request_is_whole_though_the_client_ends_it_at_once(daemon: Daemon) -> None:
    run = LiveRun(daemon, spec("sh", "-c", "sleep 0.2; wc -c", stdin=b"x" * MIB))
    run.close_stdin()
    run.finish()
    assert int(run.stdout) == MIB


def test_stdin_that_nobody_reads(supervisor: Supervisor) -> None:
    result = execute(supervisor, "sh", "-c", "exec 0<&-; echo done", stdin=b"x" * 5 * MIB)
    assert (result.outcome, result.exit_code, result.stdout) == ("exited", 0, b"done\n")


def test_binary_output_on_both_streams(supervisor: Supervisor) -> None:
    script = "import os\nos.write(1, bytes(range(256)) * 100)\nos.write(2, bytes(reversed(range(256))) * 100)"
    result = execute(supervisor, "python3", "-c", script)
    assert result.stdout == bytes(range(256)) * 100
    assert result.stderr == bytes(reversed(range(256))) * 100


def test_output_of_background_children_before_the_end(supervisor: Supervisor) -> None:
    result = execute(supervisor, "sh", "-c", "(echo child) & wait; echo parent")
    assert result.stdout == b"child\nparent\n"


def test_output_left_in_the_pipes_at_the_end(daemon: Daemon, supervisor: Supervisor) -> None:
    """The client reads late: the run ends when the daemon holds all that it takes and the pipe is full."""
    script = (
        "import os, time\n"
        "os.set_blocking(1, False)\n"
        "written = waited = 0\n"
        "while waited < 30:\n"
        "    try: written += os.write(1, bytes(4096)); waited = 0\n"
        "    except BlockingIOError: time.sleep(0.01); waited += 1\n"
        "os.write(2, b'%d' % written)\n"
    )
    request = spec("python3", "-c", script)
    request.limits.output_bytes = 64 * MIB
    run = LiveRun(daemon, request, stdin_follows=False)
    run_id = run.wait_started()
    wait_until(lambda: supervisor.get(run_id).state == "ended", 20, "the run ends, unread")
    assert run.finish().outcome == run_pb2.OUTCOME_EXITED
    assert len(run.stdout) == int(run.stderr)


def test_interleaved_streams_come_in_order(supervisor: Supervisor) -> None:
    script = "import os, time\nfor n in range(20):\n    os.write(1 + n % 2, b'%d,' % n); time.sleep(0.01)"
    seen = b""
    streams = set()
    with supervisor.run(["python3", "-c", script], policy="strict", timeout=scaled(20), stdin=b"") as events:
        for event in events:
            if isinstance(event, Output):
                seen += event.data
                streams.add(event.stream)
    assert seen == b"".join(b"%d," % n for n in range(20))
    assert streams == {Stream.STDOUT, Stream.STDERR}


def test_exit_codes(supervisor: Supervisor, attacks: Path) -> None:
    mounts = [f"{attacks}:/attacks:ro"]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda c: execute(supervisor, "/attacks/load", "exit", str(c), mounts=mounts), CODES))
    assert [r.exit_code for r in results] == list(CODES)
    assert {r.outcome for r in results} == {"exited"} and {r.signal for r in results} == {None}


@pytest.mark.parametrize("number", FATAL, ids=lambda n: n.name)
def test_death_by_signal(supervisor: Supervisor, attacks: Path, number: signal.Signals) -> None:
    mounts = [f"{attacks}:/attacks:ro"]
    result = execute(supervisor, "/attacks/load", "signal", str(int(number)), mounts=mounts)
    assert (result.outcome, result.exit_code, result.signal) == ("signaled", None, number)
    assert result.signal_name == number.name


def test_program_not_executable_or_missing(supervisor: Supervisor) -> None:
    files: dict[str, FileData] = {
        "text": b"no program",
        "data": (b"\x7fELF but not really", 0o755),
        "true": b"no program",
    }
    path = {"PATH": "/nowhere:/work:/usr/bin"}
    for argv, words in (
        (["no-such-program"], "ENOENT"),
        (["/no/such/program"], "ENOENT"),
        (["/usr"], "EACCES"),
        (["./text"], "EACCES"),
        (["./data"], "ENOEXEC"),
        (["text"], "EACCES"),
    ):
        result = supervisor.execute(argv, policy="strict", timeout=scaled(10), files=files, env=path)
        assert result.outcome == "not_started", argv
        assert result.error is not None
        assert errno.errorcode[result.error.errno] == words, (argv, result.error)
        assert (result.exit_code, result.signal) == (None, None)
    result = supervisor.execute(["true"], policy="strict", timeout=scaled(10), files=files, env=path)
    assert (result.outcome, result.exit_code) == ("exited", 0), "what is not executable does not hide what is"


def test_live_conversation(daemon: Daemon) -> None:
    run = LiveRun(daemon, spec("cat"))
    for n in range(50):
        line = b"message %d\n" % n
        run.send(line)
        run.read_until(line)
    run.close_stdin()
    result = run.finish()
    assert (result.outcome, result.exit_code) == (run_pb2.OUTCOME_EXITED, 0)
    assert (result.stdout, result.stderr, len(result.files)) == (b"", b"", 0), "they came as events"
    assert run.events[0].HasField("started") and run.events[-1].HasField("exited")


def test_started_comes_first(daemon: Daemon) -> None:
    for _ in range(fewer(100, 10)):
        run = LiveRun(daemon, spec("echo", "at once"))
        run.finish()
        assert [event.WhichOneof("event") for event in run.events] == ["started", "stdout", "exited"]


def test_signals_are_delivered(daemon: Daemon) -> None:
    script = (
        # Not print: a handler may interrupt the very print that said ready.
        "import os, signal, sys\n"
        "def say(n, f): os.write(1, b'%d\\n' % n)\n"
        "for n in (signal.SIGUSR1, signal.SIGINT, signal.SIGTERM): signal.signal(n, say)\n"
        "print('ready', flush=True)\nsys.stdin.read()\n"
    )
    run = LiveRun(daemon, spec("python3", "-c", script))
    run.read_until(b"ready\n")
    for number in (signal.SIGUSR1, signal.SIGINT, signal.SIGTERM):
        run.send_signal(number)
        run.read_until(b"%d\n" % number)
    run.send_signal(signal.SIGKILL)
    result = run.finish()
    assert (result.outcome, result.signal) == (run_pb2.OUTCOME_SIGNALED, signal.SIGKILL)


def test_signals_reach_the_process_group(daemon: Daemon) -> None:
    """As from a terminal: a shell that waits for its child goes on when the child has died of the signal."""
    seconds = f"1000.{uuid.uuid4().int % 10**9}"
    run = LiveRun(daemon, spec("sh", "-c", f"trap : USR1; sleep {seconds}; echo $?", wall_seconds=10))
    run.wait_started()
    wait_until(lambda: host_processes(f"sleep\0{seconds}"), 5, "the child sleeps")
    run.send_signal(signal.SIGUSR1)
    result = run.finish()
    assert (result.outcome, run.stdout) == (run_pb2.OUTCOME_EXITED, b"%d\n" % (128 + signal.SIGUSR1)), result.detail


def test_what_is_asked_before_the_start(daemon: Daemon) -> None:
    signalled = LiveRun(daemon, spec("sleep", "1000", wall_seconds=10))
    signalled.send_signal(signal.SIGTERM)
    closed = LiveRun(daemon, spec("cat", wall_seconds=10))
    closed.close_stdin()
    result = signalled.finish()
    assert (result.outcome, result.signal) == (run_pb2.OUTCOME_SIGNALED, signal.SIGTERM), result.detail
    assert closed.finish().outcome == run_pb2.OUTCOME_EXITED


def test_stop_and_continue(daemon: Daemon) -> None:
    token = uuid.uuid4().hex
    run = LiveRun(daemon, spec("sed", "-u", f"s/{token}//"))
    run.wait_started()
    (pid,) = host_processes(token)
    run.send_signal(signal.SIGSTOP)
    wait_until(lambda: process_status(pid)["State"].startswith("T"), 2, "the program is stopped")
    run.send(b"meanwhile\n")
    run.send_signal(signal.SIGCONT)
    run.read_until(b"meanwhile\n")
    run.close_stdin()
    assert run.finish().exit_code == 0


def test_sdk_stream(supervisor: Supervisor) -> None:
    kinds = []
    with supervisor.run(["cat"], policy="strict", timeout=scaled(20)) as events:
        events.write(b"hello")
        events.close_stdin()
        for event in events:
            kinds.append(type(event))
            if isinstance(event, Exited):
                assert event.result.outcome == "exited"
    assert kinds[0] is Started and kinds[-1] is Exited and Output in kinds


def test_fifty_at_once(supervisor: Supervisor) -> None:
    token = uuid.uuid4().hex

    def one(n: int) -> RunResult:
        return execute(supervisor, "sh", "-c", f"cat; echo {token} {n} >&2; exit {n}", stdin=b"%d" % n)

    with ThreadPoolExecutor(50) as pool:
        results = list(pool.map(one, range(50)))
    for n, result in enumerate(results):
        assert (result.outcome, result.exit_code, result.stdout) == ("exited", n, b"%d" % n)
        assert result.stderr == f"{token} {n}\n".encode()
    assert len({r.run_id for r in results}) == 50


def test_execute_stream_answers_by_request_id(stub: run_pb2_grpc.RunServiceStub) -> None:
    prefix = uuid.uuid4().hex
    requests = [spec("sh", "-c", f"sleep 0.{9 - n}; exit {n}", request_id=f"{prefix}-{n}") for n in range(10)]
    requests.append(spec("true", request_id=f"{prefix}-bad", policy="no-such-policy"))
    answers = {a.request_id: a for a in stub.ExecuteStream(iter(requests), timeout=scaled(60))}
    assert len(answers) == 11
    for n in range(10):
        assert answers[f"{prefix}-{n}"].result.exit_code == n
    assert answers[f"{prefix}-bad"].error.code == grpc.StatusCode.NOT_FOUND.value[0]


def ended(supervisor: Supervisor, token: str) -> None:
    """No process with `token` is left, and every run of that agent is recorded as ended."""
    wait_until(lambda: not host_processes(token), 2, "all processes gone")
    wait_until(lambda: all(r.state == "ended" for r in supervisor.runs(agent=token)), 2, "all runs ended")


@pytest.mark.parametrize("delay", [0, 0.0005, 0.001, 0.002, 0.005, 0.02, 0.2])
def test_cancel_at_every_stage(supervisor: Supervisor, stub: run_pb2_grpc.RunServiceStub, delay: float) -> None:
    for _ in range(5):
        token = f"cancel-{uuid.uuid4().hex}"
        request = spec("sh", "-c", f": {token}; sleep 1000", agent=token, env=[])
        call = stub.Execute.future(request)
        time.sleep(scaled(delay))
        call.cancel()
        ended(supervisor, token)
        for record in supervisor.runs(agent=token):
            assert record.outcome == "cancelled", record


def test_cancel_while_uploading_streaming_and_collecting(supervisor: Supervisor, daemon: Daemon) -> None:
    for stage in ("stdin", "output", "collect"):
        token = f"cancel-{uuid.uuid4().hex}"
        script = {"stdin": "sleep 1000", "output": "yes", "collect": "mkdir o; seq 2000 | xargs -I{} touch o/{}"}[stage]
        request = spec("sh", "-c", f": {token}; {script}", agent=token)
        request.limits.output_bytes = 64 * MIB
        request.collect.append(b"o/*")
        run = LiveRun(daemon, request)
        run.wait_started()
        if stage == "stdin":
            for _ in range(100):
                run.send(b"x" * 65536)
        time.sleep(scaled(0.1))
        run.close()
        ended(supervisor, token)


def test_cancel_while_queued(daemon: Daemon, supervisor: Supervisor) -> None:
    """More runs than places: those that wait are cancelled at once, without ever starting and while the others run on."""
    token = f"queue-{uuid.uuid4().hex}"
    places = supervisor.host().max_concurrent_runs
    with daemon.channel() as channel:
        stub = RunStub(channel)
        calls = [stub.Execute.future(spec("sleep", "1000", agent=token)) for _ in range(places + 20)]
        wait_until(lambda: supervisor.host().queued >= 20, 30, "the queue holds the rest")
        waiting = supervisor.runs(agent=token, state="queued")
        assert len(waiting) == 20 and all(supervisor.kill(record.run_id) for record in waiting)
        wait_until(lambda: supervisor.host().queued == 0, 5, "the queue is empty")
        assert supervisor.host().running == places
        for record in waiting:
            ended_record = supervisor.get(record.run_id)
            assert (ended_record.outcome, ended_record.started_at) == ("cancelled", None), ended_record
        for call in reversed(calls):
            call.cancel()
        ended(supervisor, token)
    wait_until(lambda: supervisor.host().running == supervisor.host().queued == 0, 5, "all places free")


def test_clients_deadline_ends_the_run(supervisor: Supervisor) -> None:
    token = f"deadline-{uuid.uuid4().hex}"
    with pytest.raises(DeadlineExceeded):
        supervisor.execute(["sh", "-c", f": {token}; sleep 1000"], policy="strict", agent=token, deadline=scaled(0.5))
    ended(supervisor, token)


def test_kill_and_kill_agent(supervisor: Supervisor, daemon: Daemon) -> None:
    token = f"kill-{uuid.uuid4().hex}"
    runs = [LiveRun(daemon, spec("sleep", "1000", agent=token)) for _ in range(5)]
    bystander = LiveRun(daemon, spec("cat", agent=f"{token}-other"))
    bystander.wait_started()
    ids = [run.wait_started() for run in runs]
    assert supervisor.kill(ids[0]) is True
    assert runs[0].finish().outcome == run_pb2.OUTCOME_CANCELLED
    assert supervisor.kill(ids[0]) is False
    assert supervisor.kill_agent(token) == 4
    for run in runs[1:]:
        assert run.finish().outcome == run_pb2.OUTCOME_CANCELLED
    with pytest.raises(errors.NotFound):
        supervisor.kill("no-such-run")
    bystander.close_stdin()
    assert bystander.finish().outcome == run_pb2.OUTCOME_EXITED, "another agent's run goes on"
    ended(supervisor, token)


def test_vanished_stream_ends_its_run(daemon: Daemon, supervisor: Supervisor) -> None:
    token = f"vanish-{uuid.uuid4().hex}"
    run = LiveRun(daemon, spec("sh", "-c", f": {token}; sleep 1000", agent=token))
    run.wait_started()
    threading.Timer(0, run.close).start()
    ended(supervisor, token)


def test_terminal(daemon: Daemon) -> None:
    script = "test -t 0 && test -t 1 && test -t 2 && stty size && echo ok > /dev/tty && read line && stty size"
    request = spec("sh", "-c", script, wall_seconds=20)
    request.terminal.rows, request.terminal.columns = 33, 111
    run = LiveRun(daemon, request)
    run.read_until(b"ok")
    assert b"33 111" in run.stdout
    run.resize(44, 122)
    run.send(b"go\n")
    result = run.finish()
    assert result.exit_code == 0 and b"44 122" in run.stdout, run.stdout


def test_control_c_in_a_terminal(daemon: Daemon) -> None:
    # No child: dash drops a signal that comes between its vfork(2) and the child's exec.
    request = spec("sh", "-c", "echo up; read line", wall_seconds=20)
    request.terminal.rows, request.terminal.columns = 24, 80
    run = LiveRun(daemon, request)
    run.read_until(b"up")
    run.send(b"\x03")
    result = run.finish()
    assert (result.outcome, result.signal) == (run_pb2.OUTCOME_SIGNALED, signal.SIGINT), result


def test_end_of_input_in_a_terminal(daemon: Daemon) -> None:
    request = spec("sh", "-c", "echo up; cat; echo over", wall_seconds=10)
    request.terminal.rows, request.terminal.columns = 24, 80
    run = LiveRun(daemon, request)
    run.read_until(b"up")
    run.close_stdin()
    result = run.finish()
    assert (result.outcome, result.exit_code) == (run_pb2.OUTCOME_EXITED, 0) and b"over" in run.stdout, result.detail
