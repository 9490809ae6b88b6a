"""One run attached to this process: its output to ours, our input and signals to it."""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Any, Self, cast

import typer

from supervisor import errors
from supervisor.cli.render import exit_status, explain, printable, say, signal_name, violation_line
from supervisor.cli.transfer import write_collected
from supervisor.client.build import RunOptions
from supervisor.client.errors_wire import Cancelled
from supervisor.client.result import Assembler, result_to_json
from supervisor.client.sync_client import RunStream, Supervisor
from supervisor.model import Exited, Outcome, Output, RunResult, Stream, ViolationSeen

_READ_BYTES = 1 << 16
SUPERVISOR_FAILED_STATUS = 125


def attach(
    client: Supervisor, argv: Sequence[bytes], options: dict[str, Any], stdin: int | None, *, as_json: bool
) -> int:
    """Runs `argv` to its end and returns the exit status of `supervisor run`.

    `stdin` is a descriptor to read the program's input from; None: empty. With `as_json`, stdout gets the result and
    nothing else. Raises SupervisorError for what the supervisor refuses, BrokenPipeError when our reader has gone; the
    run has then been ended.
    """
    if stdin is None:
        options = options | {"stdin": b""}
    stream = client.run(argv, **cast(RunOptions, options))
    with stream, _Signals(client, stream) as signals:
        if stdin is not None:
            threading.Thread(target=_feed, args=(stream, stdin), daemon=True).start()
        try:
            result = _follow(stream, signals, as_json=as_json)
        except Cancelled:
            if signals.ended_by is None:
                raise
            say(_cancelled_by(signals.ended_by), "red")
            return 128 + signals.ended_by
    complete = write_collected(result.files) if options.get("collect") else True
    if as_json:
        sys.stdout.write(json.dumps(result_to_json(result)) + "\n")
        sys.stdout.flush()
    elif signals.ended_by is not None:
        say(_cancelled_by(signals.ended_by), "red")
    else:
        _tell_end(result)
    if signals.ended_by is not None:
        return 128 + signals.ended_by
    return exit_status(result) if complete else SUPERVISOR_FAILED_STATUS


def _follow(stream: RunStream, signals: _Signals, *, as_json: bool) -> RunResult:
    assembler, screen = Assembler(), _Screen()
    broken: BrokenPipeError | None = None
    for event in stream:
        if isinstance(event, Exited) or as_json:
            assembler.add(event)
        elif isinstance(event, Output) and broken is None:
            try:
                screen.write(event)
            except BrokenPipeError as error:
                broken = error
                signals.end_run()
        elif isinstance(event, ViolationSeen) and event.violation.action != "kill" and sys.stderr.isatty():
            screen.finish_line()
            say(f"{printable(event.violation.action)}: {violation_line(event.violation)}", "yellow")
    if broken is not None:
        raise broken
    if assembler.result is None:
        raise errors.SupervisorError("the run's stream ended without a result", reason="NO_RESULT")
    screen.finish_line()
    return assembler.result


class _Screen:
    """Our stdout and stderr, for raw bytes, at once."""

    def __init__(self) -> None:
        self._mid_line = False

    def write(self, output: Output) -> None:
        out = (sys.stdout if output.stream is Stream.STDOUT else sys.stderr).buffer
        out.write(output.data)
        out.flush()
        if output.data and out.isatty():
            self._mid_line = not output.data.endswith(b"\n")

    def finish_line(self) -> None:
        """Lines of ours begin at the left on a terminal, whatever the program left there."""
        if self._mid_line and sys.stderr.isatty():
            typer.echo(err=True)
        self._mid_line = False


def _cancelled_by(number: int) -> str:
    return f"cancelled: by {signal_name(number)}"


def _tell_end(result: RunResult) -> None:
    cause = explain(result)
    if cause:
        say(cause, "red")
    if result.outcome is Outcome.EXITED and result.usage.oom_kills:
        say(f"note: {result.usage.oom_kills} of its processes killed: out of memory", "yellow")


def _feed(stream: RunStream, stdin: int) -> None:
    """Our standard input to the program's. os.read: a buffered reader in a thread hinders the interpreter's exit."""
    with suppress(OSError, ValueError):
        while data := os.read(stdin, _READ_BYTES):
            stream.write(data)
    stream.close_stdin()


class _Signals:
    """SIGINT goes to the program, the second one ends the run, as SIGTERM and SIGHUP do; a further one does not wait.

    The handlers only note what came. A thread acts: gRPC's locks may be held where a handler interrupts.
    """

    def __init__(self, client: Supervisor, stream: RunStream) -> None:
        self.ended_by: int | None = None
        self._client = client
        self._stream = stream
        self._came: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._act, daemon=True)
        self._previous: dict[int, Any] = {}
        self._ending = False

    def end_run(self) -> None:
        """Ends the run; its last events still come."""
        self._ending = True
        run_id = self._stream.run_id
        try:
            if run_id is None:
                raise errors.NotFound("not started")
            self._client.kill(run_id)
        except errors.SupervisorError:
            self._stream.cancel()

    def _note(self, number: int, _: FrameType | None) -> None:
        self._came.put(number)

    def _act(self) -> None:
        interrupted = False
        while (number := self._came.get()) is not None:
            if number == signal.SIGINT and not interrupted and self._stream.run_id is not None:
                interrupted = True
                self._stream.signal(number)
            elif self._ending:
                self._stream.cancel()
            else:
                self.ended_by = number
                self.end_run()

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                self._previous[number] = signal.signal(number, self._note)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._came.put(None)
        self._thread.join()
