"""`supervisor trace follow` end to end: its lines come while the run goes on, whatever ends the one or the other."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from supervisor.client import Supervisor
from tests.host.daemon_fixture import COMMAND, Daemon, LiveRun, scaled
from tests.host.live_shell import PROMPT_SECONDS, do, end, shell

pytestmark = pytest.mark.slow  # in the VM lane Python's start alone takes seconds, and every test here starts it


class Command:
    """`supervisor trace follow` in a pipe; its lines as they come."""

    def __init__(self, daemon: Daemon, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [COMMAND, "trace", "follow", *arguments],
            env={**os.environ, "SUPERVISOR_ADDRESS": daemon.address},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.seen: list[str] = []
        assert self.process.stderr is not None
        self.heading = self.process.stderr.readline()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.put(line)

    def line_with(self, wanted: str) -> str:
        deadline = time.monotonic() + scaled(PROMPT_SECONDS)
        while True:
            try:
                line = self.lines.get(timeout=max(0.01, deadline - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"no line with {wanted!r} in {self.seen}") from None
            self.seen.append(line)
            if wanted in line:
                return line

    def end(self) -> tuple[int, str]:
        status = self.process.wait(scaled(20))
        assert self.process.stderr is not None and self.process.stdout is not None
        told = self.process.stderr.read()
        self.process.stderr.close()
        assert "Traceback" not in told, told
        return status, told


@pytest.fixture
def command(daemon: Daemon) -> Iterator[Callable[..., Command]]:
    made: list[Command] = []

    def start(*arguments: str) -> Command:
        made.append(Command(daemon, *arguments))
        return made[-1]

    yield start
    for one in made:
        one.process.kill()
        one.process.communicate()


def test_the_command(command: Callable[..., Command], live: Callable[..., LiveRun]) -> None:
    run = shell(live)
    lines = command(run.run_id[:16])
    newest, objects = command("--no-calls"), command(run.run_id, "--json")
    assert lines.heading.startswith(f"following run {run.run_id}  sh -c ") and lines.heading.endswith("level full\n")
    assert newest.heading == lines.heading
    do(run, "mkdir /tmp/a; cat /none")
    assert '  execve("/usr/bin/mkdir", ["mkdir", "/tmp/a"]) = 0' in lines.line_with("execve(")
    assert lines.line_with("mkdir(").endswith(' mkdir("/tmp/a", 0777) = 0\n')
    assert lines.line_with('openat(AT_FDCWD, "/none"').split()[-2:] == ["-2", "ENOENT"]
    assert "exit: process exited with 1" in lines.line_with("exit: ")
    newest.line_with('mkdir("/tmp/a") = 0')
    told = [json.loads(objects.line_with('"exec"'))]
    assert told[0]["argv"] == ["mkdir", "/tmp/a"]
    run.send(b"exit 4\n")
    run.finish()
    for one in (lines, newest, objects):
        assert one.end() == (0, f"run {run.run_id} has ended: exited 4\n")
    assert not any(" rt_sigprocmask(" in line or " wait4(" in line for line in newest.seen)


def test_a_quiet_program_s_last_call_is_not_held_back(
    command: Callable[..., Command], live: Callable[..., LiveRun]
) -> None:
    quiet = "import os, sys; print('ready', flush=True); sys.stdin.readline(); os.access('/', 0); sys.stdin.readline()"
    run = live("python3", "-c", quiet, trace="TRACE_LEVEL_FULL")
    run.read_until(b"ready\n")
    lines = command(run.run_id)
    run.send(b"\n")
    lines.line_with("access(")
    run.send(b"\n")
    end(run)


@pytest.mark.parametrize("options", [(), ("--json",), ("--no-calls",)])
def test_ctrl_c_ends_it_and_the_run_goes_on(
    command: Callable[..., Command], live: Callable[..., LiveRun], options: tuple[str, ...]
) -> None:
    run = shell(live)
    lines = command(run.run_id, *options)
    do(run, "mkdir /tmp/a")
    lines.line_with("/tmp/a")
    lines.process.send_signal(signal.SIGINT)
    assert lines.end() == (130, "")
    do(run, "true")
    assert end(run).exit_code == 0


def test_the_command_refuses(daemon: Daemon, supervisor: Supervisor) -> None:
    def refused(*arguments: str) -> str:
        done = subprocess.run(
            [COMMAND, "trace", "follow", *arguments],
            env={**os.environ, "SUPERVISOR_ADDRESS": daemon.address},
            capture_output=True,
            text=True,
            timeout=scaled(30),
        )
        assert done.returncode == 125 and done.stdout == "", done
        return done.stderr

    assert "no run is running" in refused()
    assert "nosuchrun" in refused("nosuchrun")
    run_id = supervisor.execute(["true"]).run_id
    told = refused(run_id)
    assert f"run {run_id} has ended" in told and f"remedy: supervisor trace show {run_id}" in told
