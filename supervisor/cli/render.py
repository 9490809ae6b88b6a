"""What people read: why a run ended, tables, sizes and ages. Plain text unless it goes to a terminal."""

from __future__ import annotations

import errno
import os
import shlex
import signal
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, Any

import typer

from supervisor import errors
from supervisor.model import Outcome, RunRecord, RunResult, StartError, Violation

Ended = RunResult | RunRecord

VIOLATION_STATUS = 159
CANCELLED_STATUS = 130
_GAP = 2
_LEAST_CELLS = 16
_STATUS = {
    Outcome.TIMED_OUT: 124,
    Outcome.VIOLATION: VIOLATION_STATUS,
    Outcome.OUT_OF_MEMORY: 128 + 9,
    Outcome.CPU_LIMIT: 128 + 9,
    Outcome.OUTPUT_LIMIT: 128 + 9,
    Outcome.CANCELLED: CANCELLED_STATUS,
    Outcome.LOST: 125,
}
_VERBS = {
    Outcome.NOT_STARTED: "not started",
    Outcome.CANCELLED: "cancelled",
    Outcome.LOST: "lost",
}


def exit_status(result: RunResult) -> int:
    """The exit status of `supervisor run` for `result`."""
    if result.outcome is Outcome.EXITED:
        return result.exit_code or 0
    if result.outcome is Outcome.SIGNALED:
        return 128 + (result.signal or 0)
    if result.outcome is Outcome.NOT_STARTED:
        return _not_started_status(result.error)
    return _STATUS[result.outcome]


def _not_started_status(error: StartError | None) -> int:
    missing = error is not None and error.errno == errno.ENOENT and error.stage not in ("cwd", "chdir")
    return 127 if missing else 126


def explain(run: Ended) -> str:
    """Why `run` ended, in a line: "killed: out of memory at 64 MiB, limit 64 MiB". Empty when it exited by itself."""
    outcome = run.outcome
    if outcome is None or outcome is Outcome.EXITED:
        return ""
    verb = _VERBS.get(outcome, "killed")
    why = run.error.message if run.error is not None else run.detail or _usual_cause(run, outcome)
    if not why or why.startswith((verb, "killed", "refused")):
        return printable(why or verb)
    return printable(f"{verb}: {why}")


def _usual_cause(run: Ended, outcome: Outcome) -> str:
    """The cause where the daemon gave no detail."""
    usage = run.usage
    if outcome is Outcome.SIGNALED:
        return f"by {signal_name(run.signal or 0)}"
    if outcome is Outcome.TIMED_OUT:
        return "wall clock limit" + (f" of {usage.wall_seconds:.1f} s reached" if usage.wall_seconds else " reached")
    if outcome is Outcome.CPU_LIMIT:
        spent = (usage.cpu_user_seconds or 0) + (usage.cpu_system_seconds or 0)
        return "CPU limit reached" + (f" after {spent:.1f} s of CPU" if spent else "")
    if outcome is Outcome.OUT_OF_MEMORY:
        return "out of memory" + (f" at {size(usage.memory_peak_bytes)}" if usage.memory_peak_bytes else "")
    if outcome is Outcome.OUTPUT_LIMIT:
        return "more output than the limit allows"
    if outcome is Outcome.VIOLATION:
        return violation_line(run.violations[-1]) if run.violations else "a violation of its policy"
    if outcome is Outcome.LOST:
        return "the daemon ended in the middle of it"
    return ""


def signal_name(number: int) -> str:
    """SIGKILL for 9; "signal 40" where the number has no name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def violation_line(found: Violation) -> str:
    """One violation: rule, what was tried, on what, by whom."""
    target = found.path or (f"{found.address}:{found.port}" if found.address else "")
    what = " ".join(part for part in (found.syscall or found.kind, target) if part)
    who = f" by {found.comm or found.exe} (pid {found.pid})" if found.pid else ""
    return printable(f"rule {found.rule}: {what}{who}")


def printable(text: str) -> str:
    """`text` for a terminal or a log: what a run named itself can hold neither escape sequences nor line breaks."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape", "surrogatepass").decode("ascii")
        for character in text
    )


def coloured(stream: IO[Any]) -> bool:
    """True where `stream` is a terminal that may show colour (https://no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def say(text: str, colour: str = "") -> None:
    """A line of ours on stderr; of `colour` on a terminal."""
    style: dict[str, Any] = {"fg": colour, "bold": True} if colour and coloured(sys.stderr) else {}
    head, colon, rest = text.partition(":")
    typer.echo(typer.style(head + colon, **style) + rest if style else text, err=True)


def failure(error: errors.SupervisorError) -> None:
    """Tells on stderr why the supervisor itself said no, and what can be done about it."""
    refused = isinstance(error, errors.PolicyRefused)
    text = error.message
    file = error.metadata.get("file", "")
    if file and text.startswith(f"{file}:"):
        # FILE:LINE stays in front, where editors look for it.
        text += "" if error.field.rpartition(".")[2] in text else f" ({error.field})"
    elif error.field and error.field not in text:
        text = f"{error.field}: {text}"
    say(f"{'refused' if refused else 'supervisor'}: {printable(text)}", "red")
    remedy = error.metadata.get("remedy", "")
    if remedy and remedy not in error.message:
        say(f"remedy: {printable(remedy)}", "yellow")
    if error.retry_seconds is not None:
        say(f"try again in {error.retry_seconds:g} s")


def size(number: int | None) -> str:
    """Bytes for people: "64 MiB"."""
    if number is None:
        return "-"
    amount, unit = float(number), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if amount < 1024 or unit == "TiB":
            break
        amount /= 1024
    return f"{amount:.0f} {unit}" if amount == int(amount) or amount >= 100 else f"{amount:.1f} {unit}"


def age(seconds: float) -> str:
    """A duration in its largest unit: "3s", "5m", "2h", "4d"."""
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length:
            return f"{int(seconds // length)}{unit}"
    return f"{max(0, int(seconds))}s"


def moment(when: float | None) -> str:
    """A local time with its zone; "-" for none."""
    return time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(when)) if when else "-"


def outcome_text(run: Ended) -> str:
    """The outcome in a word or two: "exited 0", "signaled SIGSEGV", "timed_out"; "-" while it runs."""
    if run.outcome is None:
        return "-"
    if run.outcome is Outcome.EXITED:
        return f"exited {run.exit_code}"
    if run.outcome is Outcome.SIGNALED:
        return f"signaled {signal_name(run.signal or 0)}"
    return str(run.outcome.value)


def table(headings: Sequence[str], rows: Iterable[Sequence[str]], width: int | None = None) -> Any:
    """A rich table without a frame, for a terminal. Its first column, which people copy from, is never cut.

    With `width`, that of the terminal, what is too long in the last column is cut; otherwise it is wrapped.
    """
    from rich.table import Table
    from rich.text import Text

    lines = list(rows) if width is None else _shortened(headings, rows, width)
    made = Table(box=None, header_style="bold", pad_edge=False)
    for at, heading in enumerate(headings):
        width = None if at else _first_width(headings, lines)
        made.add_column(heading, no_wrap=not at, min_width=width)
    for row in lines:
        made.add_row(*(Text(printable(cell)) for cell in row))
    return made


def _shortened(headings: Sequence[str], rows: Iterable[Sequence[str]], width: int) -> list[tuple[str, ...]]:
    from rich.cells import cell_len
    from rich.text import Text

    lines = [tuple(map(printable, row)) for row in rows]
    others = zip(*(line[:-1] for line in (headings, *lines)), strict=True)
    room = width - sum(max(map(cell_len, cells)) + _GAP for cells in others)

    def cut(text: str) -> str:
        shown = Text(text)
        shown.truncate(max(room, _LEAST_CELLS), overflow="ellipsis")
        return shown.plain

    return [(*line[:-1], cut(line[-1])) for line in lines]


def _first_width(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> int:
    return max(len(headings[0]), *(len(printable(row[0])) for row in rows), 0)


def print_table(headings: Sequence[str], rows: Iterable[Sequence[str]], *, one_line: bool = False) -> None:
    """A table on stdout: fitted to a terminal, with `one_line` by cutting the last column instead of wrapping it; in a
    pipe, plain columns that are never cut.
    """
    if sys.stdout.isatty():
        from rich.console import Console

        lines = [tuple(row) for row in rows]
        console = Console()
        console.width = max(console.width, _first_width(headings, lines))
        console.print(table(headings, lines, console.width if one_line else None))
        return
    shown = [list(headings), *([printable(cell) for cell in row] for row in rows)]
    widths = [max(len(line[at]) for line in shown) for at in range(len(headings))]
    for line in shown:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def command_line(run: RunRecord) -> str:
    """Program and arguments, quoted as for a shell; of a run that has ended, the program's name: no record keeps more."""
    if run.argv:
        return shlex.join(argument.decode("utf-8", "replace") for argument in run.argv)
    return Path(run.program).name or run.program
