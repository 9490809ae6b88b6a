"""`supervisor run` end to end: exit statuses, JSON, pipes, Ctrl-C, and an embedded daemon where none listens."""

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
import termios
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.host.daemon_fixture import COMMAND, Daemon, host_processes, scaled, wait_until
from tests.host.witnesses import run_processes

pytestmark = (
    pytest.mark.slow
)  # in the VM lane Python's start alone takes seconds, and every test here starts it once or more

Run = Callable[..., "subprocess.CompletedProcess[bytes]"]


@pytest.fixture
def cli(daemon: Daemon) -> Run:
    """cli(*arguments, stdin=b""): the command, against the session's daemon."""

    def call(*arguments: str | bytes, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        environment = {**os.environ, "SUPERVISOR_ADDRESS": daemon.address}
        return subprocess.run(
            [COMMAND, *arguments], input=stdin, capture_output=True, env=environment, timeout=scaled(60)
        )

    return call


STATUSES = {
    "own": (["--", "sh", "-c", "exit 7"], 7),
    "zero": (["--", "true"], 0),
    "timed out": (["--timeout", str(scaled(0.3)), "--", "sleep", "100"], 124),
    "bad request": (["--memory", "-5", "--", "true"], 125),
    "unknown policy": (["--policy", "no-such-policy", "--", "true"], 125),
    "unknown option": (["--no-such-option", "--", "true"], 125),
    "refused by policy": (["--pids", "100000", "--", "true"], 126),
    "not executable": (["--", "/etc/passwd"], 126),
    "a directory": (["--", "/usr"], 126),
    "not found": (["--", "no-such-program"], 127),
    "signal": (["--", "sh", "-c", "kill -TERM $$"], 128 + signal.SIGTERM),
    "segmentation fault": (["--", "sh", "-c", "kill -SEGV $$"], 128 + signal.SIGSEGV),
    "out of memory": (["--memory", "32M", "--", "python3", "-c", "x = b'x' * (1 << 30)"], 137),
    "violation": (["--", "python3", "-c", "import ctypes; ctypes.CDLL(None).acct(None)"], 159),
}


@pytest.mark.parametrize("name", STATUSES)
def test_exit_status(cli: Run, name: str) -> None:
    arguments, expected = STATUSES[name]
    done = cli("run", *arguments)
    assert done.returncode == expected, (done.returncode, done.stderr)
    if done.returncode not in (0, 7):
        assert done.stderr.strip(), "failed without a word"
    assert b"Traceback" not in done.stderr


def test_output_and_input(cli: Run) -> None:
    done = cli("run", "--stdin", "-", "--", "sh", "-c", "cat; echo problem >&2", stdin=b"through\n\xff\0")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"through\n\xff\0", b"problem\n")


def test_cause_of_death_is_explained(cli: Run) -> None:
    done = cli("run", "--memory", "32M", "--", "python3", "-c", "x = b'x' * (1 << 30)")
    assert b"memory" in done.stderr and b"32" in done.stderr


def test_json_and_nothing_else(cli: Run) -> None:
    script = "printf 'a\\377'; printf b >&2; exit 5"
    done = cli("run", "--json", "--label", "task=7", "--agent", "me", "--", "sh", "-c", script)
    result = json.loads(done.stdout)
    assert done.returncode == 5
    assert (result["outcome"], result["exit_code"], result["signal"]) == ("exited", 5, None)
    assert result["stdout"] == "a\ufffd" and base64.b64decode(result["stdout_base64"]) == b"a\xff"
    assert result["stderr"] == "b" and "stderr_base64" not in result
    assert (result["labels"], result["agent"], result["policy"]) == ({"task": "7"}, "me", "strict")
    for key in ("run_id", "backend", "usage", "violations", "enforcement", "trace", "stdout_truncated", "files"):
        assert key in result
    assert {"wall_seconds", "cpu_user_seconds", "memory_peak_bytes", "pids_peak", "io_write_bytes"} <= set(
        result["usage"]
    )


def test_json_of_a_violation(cli: Run) -> None:
    done = cli("run", "--json", "--", "python3", "-c", "import ctypes; ctypes.CDLL(None).acct(None)")
    result = json.loads(done.stdout)
    assert (done.returncode, result["outcome"]) == (159, "violation")
    assert result["violations"][0]["syscall"] == "acct"
    assert {"rule", "kind", "severity", "action", "abi", "args", "pid", "comm", "time"} <= set(result["violations"][0])


def test_options(daemon: Daemon, scratch: Callable[..., Path], tmp_path: Path) -> None:
    data = scratch("data")
    (data / "in").write_text("mounted\n")
    local = tmp_path / "local"
    local.write_text("put\n")
    script = "cat /data/in put.txt; echo $A; pwd; ulimit -n; echo got > /work/out.txt"
    done = subprocess.run(
        [COMMAND, "run", "--mount", f"{data}:/data:ro", "--put", f"{local}:put.txt", "--get", "out.txt", "--env", "A=b",
         "--cwd", "/work", "--limit", "open_files=77", "--", "sh", "-c", script],
        capture_output=True,
        env={**os.environ, "SUPERVISOR_ADDRESS": daemon.address},
        cwd=tmp_path,
        timeout=scaled(60),
    )  # fmt: skip
    assert done.stdout == b"mounted\nput\nb\n/work\n77\n", done.stderr
    assert (tmp_path / "out.txt").read_text() == "got\n"


def test_in_a_pipeline(daemon: Daemon) -> None:
    environment = {**os.environ, "SUPERVISOR_ADDRESS": daemon.address}
    line = f"seq 100000 | {COMMAND} run --stdin - -- sort -rn | head -2"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", line], capture_output=True, env=environment, timeout=scaled(60)
    )
    assert done.stdout == b"100000\n99999\n"
    assert b"Traceback" not in done.stderr
    line = f"{COMMAND} run --output-limit 64M -- yes | head -1"
    done = subprocess.run(["sh", "-c", line], capture_output=True, env=environment, timeout=scaled(60))
    assert done.stdout == b"y\n" and b"Traceback" not in done.stderr


@contextmanager
def live(daemon: Daemon, script: str) -> Iterator[subprocess.Popen[bytes]]:
    """`supervisor run` of a shell script whose first line of output, "up", has come; killed afterwards if need be."""
    environment = {**os.environ, "SUPERVISOR_ADDRESS": daemon.address}
    with subprocess.Popen(
        [COMMAND, "run", "--", "sh", "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    ) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == b"up\n"
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_output_streams_live_and_a_signal_ends_it(daemon: Daemon, number: signal.Signals) -> None:
    token = uuid.uuid4().hex
    with live(daemon, f": {token}; echo up; sleep 1000") as process:
        process.send_signal(number)
        assert process.wait(timeout=scaled(10)) == 128 + number
    wait_until(lambda: not host_processes(token), 5, "the run is over")


@pytest.mark.parametrize(
    ("script", "times"),
    [
        ("echo up; exec sleep 1000", 1),
        ("echo up; sleep 1000", 2),
        ("trap '' INT; echo up; while :; do sleep 1; done", 3),
    ],
)
def test_control_c(daemon: Daemon, script: str, times: int) -> None:
    """The first goes to the program; the second ends the run."""
    token = uuid.uuid4().hex
    with live(daemon, f": {token}; {script}") as process:
        for _ in range(times):
            time.sleep(scaled(0.3))  # a shell between two commands forgets one
            process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=scaled(20))
    assert process.returncode == 130, (process.returncode, told)
    assert b"Traceback" not in told
    wait_until(lambda: not host_processes(token), 5, "the run is over")


def test_a_terminal(daemon: Daemon) -> None:
    """Keys, sizes and Ctrl-C are the program's; ours is as it was afterwards, also when the run is refused."""
    program = """test -t 0 && test -t 2 && stty size; while test "$(stty size)" != "44 122"; do sleep 0.1; done; echo resized
        read -r line; echo "<$line>"; trap "echo caught; exit 7" INT; echo up; while :; do sleep 0.1; done"""
    commands = f"""stty -g; "$0" run -t --timeout {scaled(30)} -- sh -c '{program}'; echo "status $?"; stty -g
        "$0" run -it --pids 100000 -- true; echo "status $?"; stty -g; echo over"""
    master, slave = pty.openpty()
    seen = b""

    def wait_for(wanted: bytes) -> None:
        nonlocal seen
        while wanted not in seen:
            assert select.select([master], [], [], scaled(20))[0], seen
            seen += os.read(master, 4096)

    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 111, 0, 0))
    # Of a session of its own: only then does the kernel signal a new size.
    with subprocess.Popen(
        ["setsid", "--ctty", "sh", "-c", commands, COMMAND],
        stdin=slave, stdout=slave, stderr=slave,
        env={**os.environ, "SUPERVISOR_ADDRESS": daemon.address, "TERM": "vt100", "NO_COLOR": "1"},
    ) as process:  # fmt: skip
        try:
            wait_for(b"33 111\r\n")
            fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", 44, 122, 0, 0))
            wait_for(b"resized\r\n")
            os.write(master, b"two  words\r")
            wait_for(b"<two  words>\r\nup\r\n")
            os.write(master, b"\x03")
            wait_for(b"caught\r\nstatus 7\r\n")
            wait_for(b"over\r\n")
            assert b"status 126\r\n" in seen
        finally:
            process.kill()
            os.close(master)
            os.close(slave)
    lines = seen.splitlines()
    modes = {line for line in lines if line.count(b":") > 10}
    assert len(modes) == 1 and sum(line in modes for line in lines) == 3, lines


def test_ps_shows_the_command_line(daemon: Daemon, cli: Run) -> None:
    token = uuid.uuid4().hex
    with live(daemon, f": {token}; echo up; sleep 1000"):
        assert f"sh -c ': {token}; echo up; sleep 1000'".encode() in cli("ps").stdout
    wait_until(lambda: token.encode() not in cli("ps").stdout, 10, "a run that has ended shows its program only")


def test_a_directory_that_cannot_be_entered_is_named(cli: Run) -> None:
    result = json.loads(cli("run", "--json", "--cwd", "/nope", "--", "true").stdout)
    assert result["error"]["message"] == "cannot enter the working directory /nope: No such file or directory"


def test_killed_client_ends_its_run(daemon: Daemon) -> None:
    token = uuid.uuid4().hex
    with live(daemon, f": {token}; echo up; sleep 1000"):
        pass
    wait_until(lambda: not host_processes(token), 5, "the run is over")


def embedded_environment(directory: Path) -> dict[str, str]:
    """Nothing listens there, and nothing global is touched."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("SUPERVISOR_")}
    for name in ("state", "runtime"):
        environment[f"SUPERVISOR_{name.upper()}_DIR"] = str(directory / name)
    return environment


def test_embedded_daemon(base_directory: Path, scratch: Callable[..., Path]) -> None:
    before = run_processes()
    environment = embedded_environment(scratch("embedded"))
    for arguments, status, output in (
        (["--", "sh", "-c", "echo embedded; exit 9"], 9, b"embedded\n"),
        (["--stdin", "-", "--", "cat"], 0, b"typed"),
        (["--policy", "moderate", "--timeout", str(scaled(0.3)), "--", "sleep", "100"], 124, b""),
    ):
        done = subprocess.run(
            [COMMAND, "run", *arguments], input=b"typed", capture_output=True, env=environment, timeout=scaled(60)
        )
        assert (done.returncode, done.stdout) == (status, output), done.stderr
    assert run_processes() <= before


def test_unreachable_daemon_named_on_purpose(tmp_path: Path) -> None:
    environment = {**os.environ, "SUPERVISOR_ADDRESS": f"unix://{tmp_path}/nobody.sock"}
    done = subprocess.run([COMMAND, "run", "--", "true"], capture_output=True, env=environment, timeout=scaled(60))
    assert done.returncode in (0, 125), done.stderr
    if done.returncode:
        assert b"nobody.sock" in done.stderr


def test_other_commands(cli: Run) -> None:
    listed = cli("policy", "list")
    assert listed.returncode == 0
    for name in (b"none", b"basic", b"moderate", b"strict", b"paranoid"):
        assert name in listed.stdout
    assert cli("policy", "show", "strict").returncode == 0
    done = cli("run", "--json", "--", "true")
    run_id = json.loads(done.stdout)["run_id"]
    inspected = cli("inspect", run_id)
    assert inspected.returncode == 0 and run_id.encode() in inspected.stdout
    assert cli("ps").returncode == 0
    assert cli("inspect", "no-such-run").returncode == 125
    assert cli("kill", "no-such-run").returncode == 125
    doctor = cli("doctor", "--json")
    assert json.loads(doctor.stdout)


def test_policy_file(cli: Run, tmp_path: Path) -> None:
    good, bad = tmp_path / "good.toml", tmp_path / "bad.toml"
    good.write_text('name = "good"\nextends = "strict"\n[limits]\nopen_files = 55\n')
    bad.write_text('name = "bad"\nextends = "strict"\n[limits]\nopen_filez = 55\n')
    assert cli("policy", "check", str(good)).returncode == 0
    refused = cli("policy", "check", str(bad))
    assert refused.returncode != 0
    assert b"open_files" in refused.stdout + refused.stderr and b"4" in refused.stdout + refused.stderr
    assert cli("run", "--policy", str(good), "--", "sh", "-c", "ulimit -n").stdout == b"55\n"
    assert cli("run", "--policy", str(bad), "--", "true").returncode == 125
