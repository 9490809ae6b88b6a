"""Traces for people: the tree of processes, and events one a line."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

import typer

from supervisor.cli.render import coloured, print_table, printable

if TYPE_CHECKING:
    from rich.text import Text

    from supervisor.client.calls import Entry
    from supervisor.client.process_tree import Process, ProcessTree
    from supervisor.client.result import TraceEvent

_COMMAND_CHARS = 120
_ARGUMENT_CHARS = 200
_DEEPEST = 24
"""What lies deeper is shown at this depth."""
_LEAST_CELLS = 16
_GUIDE_CELLS = 4
_LABEL_CELLS = 40


def print_tree(tree: ProcessTree, *, counted: bool = True) -> None:
    """On a terminal a tree, in a pipe a table whose last column is indented. `counted`: calls are known."""
    if sys.stdout.isatty():
        _print_rich_tree(tree, counted)
        return
    headings = ("PID", "START", "SECONDS", "ENDED", *(("CALLS", "FAILED") if counted else ()), "PROGRAM")
    rows = []
    for depth, process in tree.walk():
        facts = (str(process.pid), f"{_since(tree, process):.6f}", f"{process.seconds:.6f}", process.ended)
        counts = (str(process.calls), str(process.failed)) if counted else ()
        label = _shortened(_label(process), _COMMAND_CHARS)
        rows.append((*facts, *counts, "  " * min(depth, _DEEPEST) + label))
    print_table(headings, rows)


def _print_rich_tree(tree: ProcessTree, counted: bool) -> None:
    from rich.console import Console
    from rich.tree import Tree

    console = Console()
    deepest = min(_DEEPEST, max(0, console.width - _LABEL_CELLS) // _GUIDE_CELLS)
    path: list[Tree] = []
    tops: list[Tree] = []
    for depth, process in tree.walk():
        depth = min(depth, deepest)
        label = _rich_label(tree, process, counted, console.width - _GUIDE_CELLS * depth)
        branch = path[depth - 1].add(label) if depth else Tree(label, guide_style="dim")
        if not depth:
            tops.append(branch)
        path[depth:] = [branch]
    for top in tops:
        console.print(top)


def _rich_label(tree: ProcessTree, process: Process, counted: bool, width: int) -> Text:
    from rich.text import Text

    facts = f"  pid {process.pid}, +{_since(tree, process):.3f} s, {process.seconds:.3f} s"
    ended = f", {process.ended}" if process.ended != "-" else ""
    counts = f", {process.calls} calls, {process.failed} failed" if counted else ""
    label = Text(printable(_label(process)), style="bold", no_wrap=True)
    label.truncate(max(width - len(facts + ended + counts), _LEAST_CELLS), overflow="ellipsis")
    shown = Text(no_wrap=True, overflow="ellipsis").append_text(label).append(facts, style="dim")
    return shown.append(ended, style="red" if process.result else "dim").append(counts, style="dim")


def _since(tree: ProcessTree, process: Process) -> float:
    return max(0.0, process.start - (process.start if tree.start is None else tree.start))


def _label(process: Process) -> str:
    names = ", ".join(program.rpartition("/")[2] for program in process.before)
    threads = f" [{process.threads} threads]" if process.threads > 1 else ""
    return process.label + threads + (f" [before: {names}]" if names else "")


def _shortened(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 3]}..."


def event_line(entry: Entry, start: float) -> str:
    """Seconds since `start`, process and thread, and what was done. Harmless to a terminal."""
    event = entry.event
    return f"{max(0.0, event.time - start):12.6f} {_who(event):>9}  {printable(describe(entry))}"


def found_line(run_id: str, entry: Entry) -> str:
    """The same of an event that a search found: its run, and local date and time."""
    event = entry.event
    whole, micros = divmod(round(event.time * 1e6), 1_000_000)
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(whole))
    return f"{run_id}  {when}.{micros:06d} {_who(event):>9}  {printable(describe(entry))}"


def print_event(line: str, entry: Entry) -> None:
    """On a terminal with colour, red for what failed."""
    bad = coloured(sys.stdout) and (entry.error or _died(entry) or entry.event.kind == "violation")
    typer.echo(typer.style(line, fg="red") if bad else line)


def _died(entry: Entry) -> bool:
    return entry.event.kind == "exit" and entry.event.result != 0


def describe(entry: Entry) -> str:
    """`openat(AT_FDCWD, "/x", O_RDONLY) = -2 ENOENT`; for what is no call, its kind and its particulars."""
    from supervisor.client.calls import call_text, endpoint_text, result_text

    event = entry.event
    if event.kind == "exec":  # without its execve
        return f"{call_text(entry, endpoint_text, _ARGUMENT_CHARS)} = 0"
    if event.kind == "fork":
        return f"fork: {event.detail or 'process'} {event.result}"
    if event.kind == "exit":
        return f"exit: {event.detail or event.result}"
    if event.kind == "violation":
        target = event.path or (endpoint_text(event.address, event.port) if event.address else "")
        what = " ".join(filter(None, (event.syscall, target)))
        return f"violation: {event.detail}" + (f": {what}" if what else "")
    if not (event.syscall or event.path or event.address):
        return f"{event.kind}: {event.detail or event.result}"
    told = ", ".join([*(one.detail for one in (event, *entry.details) if one.address and one.detail), *entry.noticed])
    call = call_text(entry, endpoint_text, _ARGUMENT_CHARS)
    if event.syscall or event.result:  # what came of an address that was allowed is its call's to say
        call += f" = {result_text(event)}"
    return f"{call} ({told})" if told else call


def _who(event: TraceEvent) -> str:
    return f"{event.pid}" if event.tid in (0, event.pid) else f"{event.pid}/{event.tid}"
