"""`supervisor run` against the API's face: statuses, streams, files, words."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time

import pytest
from fake_daemon import COMMAND, RUN_ID
from typer.testing import CliRunner

from supervisor import errors
from supervisor.cli import render
from supervisor.cli.main import app
from supervisor.model import Outcome, RunResult, StartError, Usage, Violation
from supervisor.v1 import run_pb2


def invoke(*arguments):
    return CliRunner().invoke(app, list(arguments))


# Statuses and words


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["exited", "exit_code=0"], 0, ""),
        (["exited", "exit_code=7"], 7, ""),
        (["exited", "exit_code=255"], 255, ""),
        (["signaled", "signal=11"], 139, "killed: by SIGSEGV"),
        (
            ["timed_out", "detail=wall clock 2.0 s reached"],
            124,
            "killed: wall clock 2.0 s reached (more with --timeout)",
        ),
        (["cpu_limit"], 137, "killed: CPU limit reached (more with --limit cpu_seconds=N)"),
        (
            ["out_of_memory", "detail=out of memory at 64 MiB, limit 64 MiB"],
            137,
            "killed: out of memory at 64 MiB, limit 64 MiB (more with --memory)",
        ),
        (["output_limit"], 137, "killed: more output than the limit allows (more with --output-limit)"),
        (["violation", "detail=rule net: connect"], 159, "killed: rule net: connect"),
        (["cancelled"], 130, "cancelled"),
        (["lost"], 125, "lost: the daemon ended in the middle of it"),
        (["not_started", "errno=2"], 127, "not started: no such program"),
        (["not_started", "errno=13"], 126, "not started: no such program"),
    ],
)
def test_status_and_cause(daemon, monkeypatch, arguments, status, said):
    monkeypatch.setenv("SUPERVISOR_ADDRESS", daemon.address)
    done = invoke("run", "--", "end", *arguments)
    assert done.exit_code == status
    assert done.stderr.strip() == said
    assert not done.stdout


@pytest.mark.parametrize(
    ("program", "status", "said"),
    [
        ("wider", 126, ["refused: limits.memory 8G is wider than policy strict allows (4G)"]),
        ("full", 125, ["supervisor: the queue is full", "try again in 0.5 s"]),
        ("lacks", 125, ["supervisor: no landlock", "remedy: a newer kernel"]),
        ("broken", 125, ["supervisor: mount 3 of 9"]),
    ],
)
def test_refusals(daemon, monkeypatch, program, status, said):
    monkeypatch.setenv("SUPERVISOR_ADDRESS", daemon.address)
    done = invoke("run", "--", program)
    assert done.exit_code == status
    assert done.stderr.splitlines() == said


def test_causes_without_a_detail():
    def why(outcome, **fields):
        return render.explain(RunResult("r", outcome, "strict", "native", **fields))

    assert why(Outcome.OUT_OF_MEMORY, usage=Usage(memory_peak_bytes=64 << 20)) == "killed: out of memory at 64 MiB"
    assert why(Outcome.TIMED_OUT, usage=Usage(wall_seconds=2.04)) == "killed: wall clock limit of 2.0 s reached"
    assert why(Outcome.SIGNALED, detail="killed by signal 11 (SIGSEGV)") == "killed by signal 11 (SIGSEGV)"
    seen = Violation("net", "connect", "high", "kill", 0.0, comm="\x1b[31mx", pid=3, address="::1", port=80)
    assert why(Outcome.VIOLATION, violations=(seen,)) == "killed: rule net: connect ::1:80 by \\x1b[31mx (pid 3)"
    moved = StartError("cwd", 2, "cwd /x: ENOENT")
    assert render.exit_status(RunResult("r", Outcome.NOT_STARTED, "strict", "native", error=moved)) == 126


def test_output_is_raw_and_apart(command):
    done = command("run", "--", "both", check=0)
    assert (done.stdout, done.stderr) == (b"out\n", b"err\xff\n")
    assert command("run", "--", "echo", b"\xff\xfe", b"\n", check=0).stdout == b"\xff\xfe \n"


def test_options_reach_the_daemon(command, daemon):
    (command.here / "p.toml").write_text('extends = "strict"\n')
    command(
        *[
            "run",
            "--timeout",
            "2",
            "--memory",
            "64M",
            "--cpus",
            "0.5",
            "--pids",
            "9",
            "--disk",
            "1M",
            "--output-limit",
            "2K",
            "--limit",
            "open_files=7",
        ],
        *[
            "--net",
            "filtered",
            "--allow",
            "a:1",
            "--allow",
            "b:2",
            "--mount",
            "data:/work/d",
            "--mount",
            "/x:/y:rw",
            "--env",
            "A=b=c",
            "--cwd",
            "/tmp",
        ],
        *[
            "--label",
            "t=1",
            "--image",
            "im",
            "--trace",
            "full",
            "--backend",
            "native",
            "--agent",
            "me",
            "--request-id",
            "q",
            "--policy",
            "p.toml",
        ],
        *["--env", b"B=\xff", "--", "echo", "--json", "--", "-x"],
        check=0,
    )
    (spec,) = daemon.runs.specs
    assert list(spec.argv) == [b"echo", b"--json", b"--", b"-x"]
    limits = spec.limits
    assert (limits.wall_seconds, limits.memory_bytes, limits.cpus, limits.pids) == (2, 64 << 20, 0.5, 9)
    assert (limits.disk_bytes, limits.output_bytes, limits.open_files) == (1 << 20, 2048, 7)
    assert (spec.network, list(spec.allow)) == (run_pb2.NETWORK_MODE_FILTERED, ["a:1", "b:2"])
    assert [(mount.source, mount.target, mount.writable) for mount in spec.mounts] == [
        (bytes(command.here / "data"), b"/work/d", False),
        (b"/x", b"/y", True),
    ]
    assert [(item.name, item.value) for item in spec.env] == [(b"A", b"b=c"), (b"B", b"\xff")]
    assert (spec.cwd, spec.image, spec.agent, spec.request_id) == (b"/tmp", "im", "me", "q")
    assert dict(spec.labels) == {"t": "1"}
    assert (spec.trace, spec.backend) == (run_pb2.TRACE_LEVEL_FULL, run_pb2.BACKEND_NATIVE)
    assert spec.policy_toml == 'extends = "strict"\n'


def test_stdin(command):
    data = bytes(range(256)) * 10000
    assert command("run", "--", "cat", stdin=b"not asked for", check=0).stdout == b""
    assert command("run", "--stdin", "-", "--", "cat", stdin=data, check=0).stdout == data
    (command.here / "in").write_bytes(data)
    assert command("run", "--stdin", "in", "--", "cat", check=0).stdout == data
    assert b"--stdin: cannot read none" in command("run", "--stdin", "none", "--", "cat", check=125).stderr


def test_json_is_all_of_stdout(command):
    done = command("run", "--json", "--", "both", check=0)
    shown = json.loads(done.stdout)
    assert (shown["run_id"], shown["outcome"], shown["stdout"]) == (RUN_ID, "exited", "out\n")
    assert base64.b64decode(shown["stderr_base64"]) == b"err\xff\n"
    assert not done.stderr
    refused = command("run", "--json", "--", "wider", check=126)
    assert not refused.stdout
    assert b"refused:" in refused.stderr


def test_a_closed_stdout_ends_the_run_quietly(started, daemon):
    process = started("run", "--", "yes")
    assert process.stdout.read(2) == b"y\n"
    process.stdout.close()
    assert process.wait(20) == 141
    assert process.stderr.read() == b""
    assert daemon.runs.killed.is_set()


@pytest.mark.parametrize(
    ("sent", "status", "forwarded", "killed"),
    [
        ([signal.SIGTERM], 143, [], True),
        ([signal.SIGHUP], 129, [], True),
        ([signal.SIGINT, signal.SIGINT], 130, [signal.SIGINT], True),
    ],
)
def test_signals(started, daemon, sent, status, forwarded, killed):
    process = started("run", "--", "sleep")
    assert process.stdout.readline() == b"asleep\n"
    for number in sent:
        process.send_signal(number)
        time.sleep(0.4)
    assert process.wait(20) == status
    assert process.stderr.read().startswith(b"cancelled: by SIG")
    assert daemon.runs.signals == forwarded
    assert daemon.runs.killed.is_set() is killed


def test_on_a_terminal_the_cause_has_colour_and_a_line_of_its_own(environment):
    master, slave = pty.openpty()
    arguments = ["run", "--", "end", "timed_out", "detail=wall clock"]
    plain = {"TERM": "xterm"} | {key: value for key, value in environment.items() if key not in ("TERM", "NO_COLOR")}
    subprocess.run([*COMMAND, *arguments], stdin=slave, stdout=slave, stderr=slave, env=plain, timeout=60)
    assert os.read(master, 4096) == b"\x1b[31m\x1b[1mkilled:\x1b[0m wall clock (more with --timeout)\r\n"
    subprocess.run([*COMMAND, *arguments], stdout=slave, stderr=slave, env=plain | {"NO_COLOR": "1"}, timeout=60)
    assert os.read(master, 4096) == b"killed: wall clock (more with --timeout)\r\n"
    subprocess.run([*COMMAND, "run", "--", "echo", "unfinished"], stdout=slave, stderr=slave, env=plain, timeout=60)
    assert os.read(master, 4096) == b"unfinished\r\n"
    os.close(master)
    os.close(slave)


# A terminal


@pytest.fixture
def terminal(environment):
    """terminal(*arguments): the command at a terminal of 33 rows and 111 columns, which is put back into its old mode."""
    master, slave = pty.openpty()
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 111, 0, 0))
    before = termios.tcgetattr(slave)
    processes = []

    def start(*arguments):
        settings = {
            "stdin": slave,
            "stdout": slave,
            "stderr": slave,
            "env": environment | {"TERM": "vt100", "NO_COLOR": "1"},
        }
        processes.append(subprocess.Popen([*COMMAND, *arguments], **settings))
        return processes[-1], master

    yield start
    for process in processes:
        process.kill()
        process.wait()
    assert termios.tcgetattr(slave) == before
    os.close(master)
    os.close(slave)


def read_until(master, wanted):
    seen = b""
    while wanted not in seen:
        assert select.select([master], [], [], 20)[0], seen
        seen += os.read(master, 4096)
    return seen


def test_a_terminal_passes_every_key_and_its_size(terminal, daemon):
    process, master = terminal("run", "-t", "--env", "A=b", "--", "keys")
    assert read_until(master, b"ready\n") == b"ready\n", "as it came, without a carriage return of ours"
    (spec,) = daemon.runs.specs
    assert (spec.terminal.rows, spec.terminal.columns) == (33, 111)
    assert {item.name: item.value for item in spec.env} == {b"TERM": b"vt100", b"A": b"b"}
    os.write(master, b"\x03\x1c\x1a\r")
    assert read_until(master, b"\r") == b"\x03\x1c\x1a\r"
    for rows in (44, 45):
        fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, 122, 0, 0))
        process.send_signal(signal.SIGWINCH)
        assert read_until(master, b"122\n") == b"%d x 122\n" % rows
    os.write(master, b"\x04")
    assert process.wait(20) == 0


@pytest.mark.parametrize(
    ("program", "number", "status", "said"),
    [
        (["keys"], signal.SIGTERM, 143, b"cancelled: by SIGTERM\r\n"),
        (["keys"], signal.SIGHUP, 129, b"cancelled: by SIGHUP\r\n"),
        (["wider"], None, 126, b"refused: limits.memory 8G is wider than policy strict allows (4G)\r\n"),
        (["end", "timed_out"], None, 124, b"killed: wall clock limit reached (more with --timeout)\r\n"),
    ],
)
def test_a_terminal_is_put_back_before_anything_is_said(terminal, program, number, status, said):
    process, master = terminal("run", "-it", "--", *program)
    if number is not None:
        read_until(master, b"ready\n")
        process.send_signal(number)
    assert read_until(master, b"\r\n").endswith(said)
    assert process.wait(20) == status


def test_interactive_is_our_input_and_a_terminal_is_no_json(command, daemon):
    assert command("run", "-i", "--", "cat", stdin=b"typed", check=0).stdout == b"typed"
    assert b"leave -t or --json out" in command("run", "-t", "--json", "--", "cat", check=125).stderr
    assert command("run", "-t", "--", "keys", stdin=b"piped\x04", check=0).stdout == b"ready\npiped\x04"
    assert (daemon.runs.specs[-1].terminal.rows, daemon.runs.specs[-1].terminal.columns) == (24, 80)


# What the command says beside the cause


def test_a_program_of_this_directory_is_not_in_the_run(command):
    (command.here / "end").write_text("")
    missing = ("not_started", "errno=2")
    hint = b"hint: files of this directory are not in the run: use --put ./end:end, or --mount .:/work"
    assert hint in command("run", "--", "end", *missing, check=127).stderr
    assert b"hint" not in command("run", "--put", "end:end", "--", "end", *missing, check=127).stderr
    assert b"hint" not in command("run", "--", "end", "not_started", "errno=13", check=126).stderr
    (command.here / "end").unlink()
    assert b"hint" not in command("run", "--", "end", *missing, check=127).stderr


def test_refused_forks_and_an_unknown_directory_are_told():
    from supervisor.cli import attach

    told = []

    class Screen:
        def tell(self, text, colour=""):
            told.append(text)

    forks = RunResult("r", Outcome.EXITED, "strict", "native", exit_code=0, usage=Usage(pids_limit_hits=3))
    attach._tell_end(forks, [b"x"], {}, Screen())
    nowhere = StartError("cwd", 2, "cannot enter the working directory: No such file or directory")
    moved = RunResult("r", Outcome.NOT_STARTED, "strict", "native", error=nowhere)
    attach._tell_end(moved, [b"x"], {"cwd": b"/nope"}, Screen())
    named = StartError("cwd", 2, "cannot enter the working directory /nope: No such file or directory")
    moved = RunResult("r", Outcome.NOT_STARTED, "strict", "native", error=named)
    attach._tell_end(moved, [b"x"], {"cwd": b"/nope"}, Screen())
    assert told == [
        "note: 3 forks refused: pids limit reached (--pids)",
        "not started: cannot enter the working directory: No such file or directory: --cwd /nope",
        "not started: cannot enter the working directory /nope: No such file or directory",
    ]


def test_our_lines_begin_at_the_left():
    code = (
        "from supervisor.cli.attach import _Screen; from supervisor.run_events import Output, Stream\n"
        "screen = _Screen(); screen.write(Output(Stream.STDOUT, b'cut')); screen.tell('killed: so'); screen.tell('b')"
    )
    together = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert together.stdout == b"cut\nkilled: so\nb\n"
    apart = subprocess.run([sys.executable, "-c", code], capture_output=True)
    assert (apart.stdout, apart.stderr) == (b"cut", b"killed: so\nb\n")


def test_a_policy_files_errors_name_the_file():
    from pathlib import Path

    from supervisor.cli.run import _naming_file

    said = "inline:3: unknown key 'a'; inline:5: inline: b"
    error = errors.InvalidRequest(said, field="limits.a", metadata={"file": "inline", "line": "3"})
    named = _naming_file(error, Path("p.toml"))
    assert named.message == "p.toml:3: unknown key 'a'; p.toml:5: inline: b"
    assert _naming_file(errors.InvalidRequest(said), None).message == said
