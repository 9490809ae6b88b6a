"""`supervisor trace`: what a run did, as the probes saw it."""

from __future__ import annotations

import csv
import json as jsonlib
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from supervisor.cli.find import RunArgument, find_run
from supervisor.cli.render import print_table, printable, say

if TYPE_CHECKING:
    from supervisor.client.result import TraceEvent

app = typer.Typer(help="See what a run executed, opened, connected to; what was refused.", no_args_is_help=True)

FORMATS = ("jsonl", "csv")


@app.command()
def show(
    run: RunArgument, json: Annotated[bool, typer.Option("--json", help="One JSON object per line.")] = False
) -> None:
    """Print a run's events in order."""
    from supervisor.cli.connect import daemon

    with daemon() as client:
        for event in client.trace(find_run(client, run).run_id):
            typer.echo(jsonlib.dumps(asdict(event)) if json else _line(event))


def _line(event: TraceEvent) -> str:
    clock = time.strftime("%H:%M:%S", time.localtime(event.time)) + f"{event.time % 1:.6f}"[1:]
    target = event.path or (f"{event.address}:{event.port}" if event.address else "")
    answer = f"= {event.result}" if event.syscall else ""
    who = f"{event.pid}" if event.tid in (0, event.pid) else f"{event.pid}/{event.tid}"
    parts = (
        clock,
        f"{who:>9}",
        f"{event.kind:<7}",
        event.comm,
        event.syscall,
        target,
        answer,
        " ".join(event.argv),
        event.detail,
    )
    return printable(" ".join(part for part in parts if part))


@app.command()
def summary(
    run: RunArgument, json: Annotated[bool, typer.Option("--json", help="The summary as one JSON object.")] = False
) -> None:
    """Count a run's system calls and their errors, and say whether the trace is complete."""
    from supervisor.cli.connect import daemon
    from supervisor.client.result import summary_to_json

    with daemon() as client:
        found = client.trace_summary(find_run(client, run).run_id)
    if json:
        typer.echo(jsonlib.dumps(summary_to_json(found), indent=2))
        return
    complete = "complete" if found.complete else "not complete"
    typer.echo(f"level {found.level}, {complete}: {found.events} events, {found.dropped} dropped")
    counts = sorted(found.syscalls.items(), key=lambda item: -item[1].calls)
    print_table(("SYSCALL", "CALLS", "ERRORS"), [(name, str(count.calls), str(count.errors)) for name, count in counts])


def _format(value: str) -> str:
    if value not in FORMATS:
        raise typer.BadParameter(f"{value!r} is none of {', '.join(FORMATS)}")
    return value


@app.command()
def export(
    run: RunArgument,
    format: Annotated[
        str, typer.Option("--format", metavar="FORMAT", callback=_format, help="jsonl or csv.")
    ] = "jsonl",
    output: Annotated[Path | None, typer.Option("--output", metavar="FILE", help="Instead of standard output.")] = None,
) -> None:
    """Write a run's events for other programs."""
    from supervisor.cli.connect import daemon

    with daemon() as client:
        events = client.trace(find_run(client, run).run_id)
        if output is None:
            _write(events, format, sys.stdout)
            return
        with output.open("w", encoding="utf-8", newline="") as out:
            count = _write(events, format, out)
        say(f"{count} events in {output}")


def _write(events: Any, format: str, out: TextIO) -> int:
    from supervisor.client.result import TraceEvent

    count = 0
    table = csv.DictWriter(out, list(TraceEvent.__slots__), lineterminator="\n")
    if format == "csv":
        table.writeheader()
    for event in events:
        count += 1
        row = asdict(event)
        if format == "csv":
            table.writerow(row | {"args": " ".join(f"{argument:#x}" for argument in event.args)})
        else:
            out.write(jsonlib.dumps(row) + "\n")
    return count
