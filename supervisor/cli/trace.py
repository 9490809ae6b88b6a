"""`supervisor trace`: what runs did, as the probes saw it."""

from __future__ import annotations

import json as jsonlib
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, count, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from supervisor import errors
from supervisor.cli.find import RunArgument, find_run
from supervisor.cli.render import command_line, moment, print_table, printable, say
from supervisor.cli.trace_follow import follow
from supervisor.cli.trace_search import FailedOption, SyscallOption, search

if TYPE_CHECKING:
    from supervisor.client.result import TraceEvent
    from supervisor.client.sync_client import Supervisor
    from supervisor.model import RunRecord, TraceSummary

app = typer.Typer(
    help="""See what runs executed, opened and connected to, and what was refused.

\b
  supervisor trace show RUN --failed             the tree of processes, and every call that failed
  supervisor trace follow RUN                    what a run does, while it does it
  supervisor trace summary RUN                   its system calls, counted
  supervisor trace search --path '/etc/*'        in the traces of all runs
  supervisor trace export RUN --format perfetto --output run.json

Every run's calls are counted; a run keeps every single one with `supervisor run --trace full`.
""",
    no_args_is_help=True,
)

FORMATS = ("jsonl", "csv", "strace", "perfetto", "ocsf")


@dataclass(frozen=True, slots=True)
class _Wanted:
    """Which events `show` shows; `limit` 0: all."""

    pid: int
    syscalls: frozenset[str]
    failed: bool
    limit: int

    def takes(self, event: TraceEvent) -> bool:
        from supervisor.client.calls import failed

        return (
            (not self.pid or self.pid in (event.pid, event.tid))
            and (not self.syscalls or event.syscall in self.syscalls)
            and (not self.failed or failed(event))
        )


@app.command()
def show(
    run: RunArgument,
    tree: Annotated[bool, typer.Option("--tree/--no-tree", help="The tree of processes, first.")] = True,
    events: Annotated[bool, typer.Option("--events/--no-events", help="The events, one a line.")] = True,
    pid: Annotated[
        int | None,
        typer.Option("--pid", metavar="N", min=1, help="Only events of this process or thread.", show_default=False),
    ] = None,
    syscall: SyscallOption = None,
    failed: FailedOption = False,
    limit: Annotated[
        int | None, typer.Option("--limit", metavar="N", min=1, help="At most so many events.", show_default=False)
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Only the events, as stored, one JSON object per line.")] = False,
) -> None:
    """Print a run's processes as a tree, then its events in order.

    \b
      supervisor trace show 01J9ZQ --no-events       only who started whom, and how each ended
      supervisor trace show 01J9ZQ --no-tree --pid 3 --failed
      supervisor trace show 01J9ZQ --syscall openat --syscall unlink --limit 20

    Times are seconds since the first event. A call is shown with its path or address, errors by name, and pointers in
    hexadecimal. Of a run that was not traced with --trace full only the processes are kept, and where it has violated its
    policy, the last 512 calls before.
    """
    from supervisor.cli.connect import daemon
    from supervisor.client.exports import event_to_json

    wanted = _Wanted(pid or 0, frozenset(syscall or ()), failed, limit or 0)
    with daemon() as client:
        record = find_run(client, run)
        if json:
            found = _limited(filter(wanted.takes, client.trace(record.run_id)), wanted.limit)
            for event in found:
                typer.echo(jsonlib.dumps(event_to_json(event)))
            return
        summary = client.trace_summary(record.run_id)
        if summary.level == "full":
            _show_full(client, record, summary, wanted, tree, events)
            return
        _show_summary(record, summary)
        if record.violations and events:
            typer.echo()
            say("what led to its violations, the last calls before each:")
            _show_full(client, record, summary, wanted, False, True)


def _show_full(
    client: Supervisor, record: RunRecord, summary: TraceSummary, wanted: _Wanted, tree: bool, events: bool
) -> None:
    from supervisor.cli.trace_view import event_line, print_event, print_tree
    from supervisor.client.calls import paired
    from supervisor.client.process_tree import ProcessTree

    start: float | None = None
    if tree:
        processes = ProcessTree.of(client.trace(record.run_id))
        start = processes.start
        typer.echo(_heading(record, summary))
        typer.echo()
        print_tree(processes)
    if not events:
        return
    if tree:
        typer.echo()
    stream = client.trace(record.run_id)
    first = next(stream, None)
    if first is None:
        return
    start = first.time if start is None else start
    entries = (entry for entry in paired(chain((first,), stream)) if wanted.takes(entry.event))
    for entry in _limited(entries, wanted.limit):
        print_event(event_line(entry, start), entry)


def _show_summary(record: RunRecord, summary: TraceSummary) -> None:
    from supervisor.cli.trace_view import print_tree
    from supervisor.client.process_tree import ProcessTree

    typer.echo(_heading(record, summary))
    typer.echo()
    print_tree(ProcessTree.of_summary(summary.processes), counted=False)
    if summary.process_count > len(summary.processes):
        say(f"the first {len(summary.processes)} of {summary.process_count} processes")
    if not record.violations:
        say(f"traced at level {summary.level}: only a run with --trace full keeps every event")


def _heading(record: RunRecord, summary: TraceSummary) -> str:
    started = moment(record.started_at or record.created_at)
    return printable(f"run {record.run_id}  {command_line(record)}  started {started}  {_complete(summary)}")


def _complete(summary: TraceSummary) -> str:
    if summary.complete:
        return "complete: yes"
    if summary.dropped:
        return f"complete: no, {summary.dropped} of {summary.events + summary.dropped} events were dropped"
    return "complete: no, not everything could be observed"


def _limited(found: Iterable[Any], limit: int) -> Iterator[Any]:
    """The first `limit`, all for 0; tells where there are more."""
    for number, one in enumerate(found):
        if limit and number == limit:
            say(f"stopped at --limit {limit}: there are more")
            return
        yield one


@app.command()
def summary(
    run: RunArgument, json: Annotated[bool, typer.Option("--json", help="The summary as one JSON object.")] = False
) -> None:
    """Count a run's system calls and their errors, and say whether the trace is complete.

    \b
      supervisor trace summary 01J9ZQ
    """
    from supervisor.cli.connect import daemon
    from supervisor.client.calls import endpoint_text
    from supervisor.client.result import summary_to_json

    with daemon() as client:
        found = client.trace_summary(find_run(client, run).run_id)
    if json:
        typer.echo(jsonlib.dumps(summary_to_json(found), indent=2))
        return
    typer.echo(f"level {found.level}, {_complete(found)}")
    typer.echo(f"{found.events} events, {found.dropped} dropped, {found.process_count} processes")
    print_table(("SYSCALL", "CALLS", "SHARE", "ERRORS", "OF ITS CALLS"), _summary_rows(found))
    if found.programs:
        typer.echo()
        executed = [(printable(one.path), str(one.count), one.sha256 or "-") for one in found.programs]
        print_table(("EXECUTED", "TIMES", "SHA-256"), executed)
    if found.rules:
        typer.echo()
        print_table(("RULE", "MATCHED"), [(name, str(count)) for name, count in sorted(found.rules.items())])
    if found.files:
        typer.echo()
        counts = [(name, str(one.read), str(one.written)) for name, one in sorted(found.files.items())]
        print_table(("FILES OPENED", "TO READ", "TO WRITE"), counts)
    if found.addresses:
        typer.echo()
        rows = [
            (one.operation, endpoint_text(one.address, one.port), one.protocol, str(one.count), _verdict(one.denied))
            for one in found.addresses
        ]
        print_table(("OPERATION", "ADDRESS", "PROTOCOL", "COUNT", "VERDICT"), rows)


def _verdict(denied: bool) -> str:
    return "denied" if denied else "allowed"


def _summary_rows(found: TraceSummary) -> Iterator[tuple[str, ...]]:
    calls = sum(one.calls for one in found.syscalls.values())
    failures = sum(one.errors for one in found.syscalls.values())
    for name, one in sorted(found.syscalls.items(), key=lambda item: (-item[1].calls, item[0])):
        yield (name, str(one.calls), _share(one.calls, calls), str(one.errors), _share(one.errors, one.calls))
    yield ("total", str(calls), _share(calls, calls), str(failures), _share(failures, calls))


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if part else "-"


app.command()(search)
app.command()(follow)


def _format(value: str) -> str:
    if value not in FORMATS:
        raise typer.BadParameter(f"{value!r} is none of {', '.join(FORMATS)}")
    return value


@app.command()
def export(
    run: RunArgument,
    format: Annotated[
        str, typer.Option("--format", metavar="FORMAT", callback=_format, help=f"{', '.join(FORMATS)}.")
    ] = "jsonl",
    output: Annotated[
        Path | None, typer.Option("--output", metavar="FILE", help="Instead of standard output; - is that.")
    ] = None,
) -> None:
    """Write a run's full trace for other programs.

    \b
      jsonl, csv   every event as it is stored
      strace       as `strace -f -tt` writes it
      perfetto     a timeline for https://ui.perfetto.dev and chrome://tracing
      ocsf         events of the Open Cybersecurity Schema Framework 1.7, one JSON object per line
    \b
      supervisor trace export 01J9ZQ --format perfetto --output run.json
      supervisor trace export 01J9ZQ --format strace | grep ENOENT
    """
    from importlib.metadata import version

    from supervisor.cli.connect import daemon
    from supervisor.client.exports import ExportInfo, host_name
    from supervisor.client.exports import export as exported

    with daemon() as client:
        record = find_run(client, run)
        stream = client.trace(record.run_id)
        # A run without a full trace is refused here, before any file is touched.
        first = tuple(islice(stream, 1))
        numbers = count()
        events = (event for event, _ in zip(chain(first, stream), numbers, strict=False))
        pieces = exported(
            events, format, ExportInfo(record.run_id, host_name(client.address), version("host-supervisor"))
        )
        if output is None or str(output) == "-":
            sys.stdout.writelines(pieces)
            return
        _write(output, pieces)
    say(f"{next(numbers)} events in {output}")


def _write(output: Path, pieces: Iterable[str]) -> None:
    try:
        with output.open("w", encoding="utf-8", newline="") as out:
            out.writelines(pieces)
    except OSError as error:
        raise errors.InvalidRequest(f"--output: cannot write {output}: {error.strerror}", field="--output") from error
