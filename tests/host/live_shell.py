"""A shell as a run that lives: it takes one step at a time, and waits meanwhile."""

from __future__ import annotations

from collections.abc import Callable

from supervisor.v1 import run_pb2
from tests.host.daemon_fixture import LiveRun

PROMPT_SECONDS = 2.0
SHELL = 'while read -r line; do eval "$line"; echo "done"; done'


def do(run: LiveRun, line: str) -> None:
    """One step of the SHELL: it is over, and the next one has not begun, when this returns."""
    run.stdout = b""
    run.send(line.encode() + b"\n")
    run.read_until(b"done\n")


def end(run: LiveRun) -> run_pb2.RunResult:
    run.close_stdin()
    return run.finish()


def shell(live: Callable[..., LiveRun], trace: str = "full", **fields: object) -> LiveRun:
    run = live("sh", "-c", SHELL, trace=f"TRACE_LEVEL_{trace.upper()}", **fields)
    do(run, ":")
    return run
