"""One run attached to this process: its output to ours, our input and signals to it."""

from __future__ import annotations

import errno
import json
import os
import queue
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from types import FrameType, TracebackType
from typing import Any, Self, cast

import typer

from supervisor import errors
from supervisor.cli.render import exit_status, explain, printable, say, signal_name, violation_line
from supervisor.cli.terminal import raw, terminal_size
from supervisor.cli.transfer import unmatched, write_collected
from supervisor.client.build import RunOptions
from supervisor.client.errors_wire import Cancelled
from supervisor.client.result import Assembler, result_to_json
from supervisor.client.sync_client import RunStream, Supervisor
from supervisor.model import Outcome, RunResult
from supervisor.run_events import Exited, Output, Stream, ViolationSeen

_READ_BYTES = 1 << 16
SUPERVISOR_FAILED_STATUS = 125
_WIDENED_BY = {
    Outcome.OUTPUT_LIMIT: "--output-limit",
    Outcome.OUT_OF_MEMORY: "--memory",
    Outcome.TIMED_OUT: "--timeout",
    Outcome.CPU_LIMIT: "--limit cpu_seconds=N",
}
"""The option that asks for more of what a run was ended for."""


def attach(
    client: Supervisor, argv: Sequence[bytes], options: dict[str, Any], stdin: int | None, *, as_json: bool
) -> int:
    """Runs `argv` to its end and returns the exit status of `supervisor run`.

    `stdin` is a descriptor to read the program's input from; None: empty. With `as_json`, stdout gets the result and
    nothing else. With a terminal among `options`, `stdin` is made raw for as long, where it is one. Raises
    SupervisorError for what the supervisor refuses, BrokenPipeError when our reader has gone; the run has then been ended.
    """
    if stdin is None:
        options = options | {"stdin": b""}
    screen = _Screen()
    terminal = "terminal" in options
    stream = client.run(argv, **cast(RunOptions, options))
    with stream, _Signals(client, stream, terminal=terminal) as signals:
        try:
            with raw(stdin) if terminal and stdin is not None and os.isatty(stdin) else nullcontext():
                if stdin is not None:
                    threading.Thread(target=_feed, args=(stream, stdin), daemon=True).start()
                result = _follow(stream, signals, screen, as_json=as_json, lines=not terminal)
        except Cancelled:
            screen.finish_line(ours_follows=True)
            if signals.ended_by is None:
                raise
            say(_cancelled_by(signals.ended_by), "red")
            return 128 + signals.ended_by
        except errors.SupervisorError:
            screen.finish_line(ours_follows=True)
            raise
    screen.finish_line(ours_follows=False)
    complete = _take_files(result, options.get("collect", ()), screen)
    if as_json:
        sys.stdout.write(json.dumps(result_to_json(result)) + "\n")
        sys.stdout.flush()
    elif signals.ended_by is not None:
        screen.tell(_cancelled_by(signals.ended_by), "red")
    else:
        _tell_end(result, argv, options, screen)
    if signals.ended_by is not None:
        return 128 + signals.ended_by
    return exit_status(result) if complete else SUPERVISOR_FAILED_STATUS


def _take_files(result: RunResult, patterns: Sequence[bytes], screen: _Screen) -> bool:
    """Writes what `--get` asked for; False when something could not be written."""
    if not patterns:
        return True
    complete = write_collected(result.files, tell=screen.tell)
    if result.outcome is not Outcome.NOT_STARTED:
        for pattern in unmatched(patterns, result.files):
            screen.tell(f"--get '{printable(os.fsdecode(pattern))}': no file matched", "yellow")
    return complete


def _follow(stream: RunStream, signals: _Signals, screen: _Screen, *, as_json: bool, lines: bool) -> RunResult:
    """Shows what comes until the end; between the program's output lines of ours only with `lines`."""
    assembler = Assembler()
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
        elif isinstance(event, ViolationSeen) and event.violation.action != "kill" and lines and sys.stderr.isatty():
            screen.tell(f"{printable(event.violation.action)}: {violation_line(event.violation)}", "yellow")
    if broken is not None:
        raise broken
    if assembler.result is None:
        raise errors.SupervisorError("the run's stream ended without a result", reason="NO_RESULT")
    return assembler.result


class _Screen:
    """Our stdout and stderr, for raw bytes, at once."""

    def __init__(self) -> None:
        self._mid_line = False
        self._shared = _one_file()

    def write(self, output: Output) -> None:
        out = (sys.stdout if output.stream is Stream.STDOUT else sys.stderr).buffer
        out.write(output.data)
        out.flush()
        if output.data and (output.stream is Stream.STDERR or self._shared):
            self._mid_line = not output.data.endswith(b"\n")

    def finish_line(self, *, ours_follows: bool) -> None:
        """Ends the line that the program left open where our stderr goes: on a terminal, or before a line of ours."""
        if self._mid_line and (ours_follows or sys.stderr.isatty()):
            typer.echo(err=True)
            self._mid_line = False

    def tell(self, text: str, colour: str = "") -> None:
        """A line of ours, at the left whatever the program left there."""
        self.finish_line(ours_follows=True)
        say(text, colour)


def _one_file() -> bool:
    """True where our stdout and stderr are the same terminal, pipe or file."""
    if sys.stdout.isatty() and sys.stderr.isatty():
        return True
    try:
        return os.path.sameopenfile(sys.stdout.fileno(), sys.stderr.fileno())
    except (OSError, ValueError):
        return False


def _cancelled_by(number: int) -> str:
    return f"cancelled: by {signal_name(number)}"


def _tell_end(result: RunResult, argv: Sequence[bytes], options: Mapping[str, Any], screen: _Screen) -> None:
    cause = explain(result)
    if cause:
        wider = _WIDENED_BY.get(result.outcome)
        screen.tell(f"{cause}{_at_directory(result, options)}" + (f" (more with {wider})" if wider else ""), "red")
    if _misses_local_file(result, argv, options):
        screen.tell(_local_file_hint(os.fsdecode(argv[0])), "yellow")
    if result.outcome is Outcome.EXITED:
        usage = result.usage
        if usage.oom_kills:
            screen.tell(f"note: {usage.oom_kills} of its processes killed: out of memory (--memory)", "yellow")
        if usage.pids_limit_hits:
            forks = "1 fork" if usage.pids_limit_hits == 1 else f"{usage.pids_limit_hits} forks"
            screen.tell(f"note: {forks} refused: pids limit reached (--pids)", "yellow")


def _at_directory(result: RunResult, options: Mapping[str, Any]) -> str:
    """The working directory that could not be entered, where the daemon's words do not name it."""
    cwd = printable(os.fsdecode(options.get("cwd") or b""))
    if result.error is None or result.error.stage != "cwd" or cwd in result.error.message:
        return ""
    return f": --cwd {cwd}"


def _misses_local_file(result: RunResult, argv: Sequence[bytes], options: Mapping[str, Any]) -> bool:
    """Whether the program that was not found is a file of this side, which was not sent along."""
    error = result.error
    if result.outcome is not Outcome.NOT_STARTED or error is None or error.errno != errno.ENOENT:
        return False
    sent = {os.path.basename(path) for path in options.get("files", ())}
    return error.stage != "cwd" and os.path.basename(argv[0]) not in sent and os.path.isfile(argv[0])


def _local_file_hint(program: str) -> str:
    name = printable(os.path.basename(program))
    here = os.path.dirname(program) in ("", ".")
    where, source = ("this directory", f"./{name}") if here else ("this machine", printable(program))
    directory = "." if here else printable(os.path.dirname(program))
    return (
        f"hint: files of {where} are not in the run: use --put {source}:{name}, or --mount {directory}:/work"
        f"{'' if program.startswith('./') else f', and run ./{name}'}"
    )


def _feed(stream: RunStream, stdin: int) -> None:
    """Our standard input to the program's. os.read: a buffered reader in a thread hinders the interpreter's exit."""
    with suppress(OSError, ValueError):
        while data := os.read(stdin, _READ_BYTES):
            stream.write(data)
    stream.close_stdin()


class _Signals:
    """SIGINT goes to the program, the second one ends the run, as SIGTERM and SIGHUP do; a further one does not wait.

    With `terminal`, a new size of ours becomes that of the program's.

    The handlers only note what came. A thread acts: gRPC's locks may be held where a handler interrupts.
    """

    def __init__(self, client: Supervisor, stream: RunStream, *, terminal: bool) -> None:
        self.ended_by: int | None = None
        self._caught = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, *((signal.SIGWINCH,) if terminal else ()))
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
            if number == signal.SIGWINCH:
                self._stream.resize(*terminal_size())
            elif number == signal.SIGINT and not interrupted and self._stream.run_id is not None:
                interrupted = True
                self._stream.signal(number)
            elif self._ending:
                self._stream.cancel()
            else:
                self.ended_by = number
                self.end_run()

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in self._caught:
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
