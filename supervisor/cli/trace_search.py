"""`supervisor trace search`: what is in the traces of all runs."""

from __future__ import annotations

import difflib
import json as jsonlib
import re
from collections.abc import Iterable, Iterator
from itertools import groupby
from operator import attrgetter
from typing import TYPE_CHECKING, Annotated

import typer

from supervisor.cli.find import find_run
from supervisor.cli.render import printable, say

if TYPE_CHECKING:
    from supervisor.client.calls import Entry
    from supervisor.client.search import FoundEvent, SearchEnd

_UNNAMED_SYSCALL = re.compile(r"syscall_\d+|other|unknown")


def _syscalls(values: list[str] | None) -> list[str] | None:
    from supervisor.client.linux_words import SIGNATURES

    for value in values or ():
        if value not in SIGNATURES and not _UNNAMED_SYSCALL.fullmatch(value):
            near = difflib.get_close_matches(value[:64], SIGNATURES, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise typer.BadParameter(f"no system call is called {value!r}{hint}")
    return values


SyscallOption = Annotated[
    list[str] | None,
    typer.Option("--syscall", metavar="NAME", callback=_syscalls, help="Only this system call; may be repeated."),
]
FailedOption = Annotated[bool, typer.Option("--failed", help="Only what was answered with an error.")]


def search(
    path: Annotated[str, typer.Option("--path", metavar="GLOB", help="*, ? and [...]; * matches / too.")] = "",
    address: Annotated[
        str, typer.Option("--address", metavar="ADDR[:PORT]", help="Or a network: 10.0.0.0/8; or :PORT.")
    ] = "",
    syscall: SyscallOption = None,
    kind: Annotated[
        list[str] | None, typer.Option("--kind", metavar="KIND", help="Such as exec, open, connect; may be repeated.")
    ] = None,
    program: Annotated[
        str, typer.Option("--program", metavar="GLOB", help="What the process then ran: its name, or path with a /.")
    ] = "",
    failed: FailedOption = False,
    since: Annotated[str, typer.Option("--since", metavar="WHEN", help="2h ago, 2026-11-24, or a timestamp.")] = "",
    until: Annotated[str, typer.Option("--until", metavar="WHEN", help="Likewise.")] = "",
    run: Annotated[str, typer.Option("--run", metavar="RUN", help="Only this run: its id or its beginning.")] = "",
    limit: Annotated[int, typer.Option("--limit", metavar="N", min=1, help="At most so many events.")] = 1000,
    json: Annotated[bool, typer.Option("--json", help="One JSON object per line.")] = False,
) -> None:
    """Search the full traces of all runs that have ended, newest run first.

    \b
      supervisor trace search --path '/etc/*' --since 2h
      supervisor trace search --address 10.0.0.0/8 --program curl
      supervisor trace search --syscall unlink --failed --limit 20 --json

    What is found must meet all that is asked. A time of day is local, unless it says which other.
    """
    from supervisor.cli.connect import daemon

    with daemon() as client:
        found = client.search_traces(
            run_id=find_run(client, run).run_id if run else "",
            path=path,
            address=address,
            syscall=syscall or (),
            kind=kind or (),
            program=program,
            failed=failed,
            since=since or None,
            until=until or None,
            limit=limit,
        )
        events = _print_found(found, json)
        if found.end is not None:
            _tell_end(found.end, events, limit)


def _print_found(found: Iterable[FoundEvent], json: bool) -> int:
    """How many events were found; those that tell of one call share a line."""
    from supervisor.cli.trace_view import found_line, print_event
    from supervisor.client.exports import event_to_json

    events = 0
    if json:
        for run_id, event in found:
            events += 1
            typer.echo(jsonlib.dumps({"run_id": run_id, **event_to_json(event)}))
        return events
    for run_id, entry in _by_call(found):
        events += 1 + len(entry.details)
        print_event(found_line(run_id, entry), entry)
    return events


def _by_call(found: Iterable[FoundEvent]) -> Iterator[tuple[str, Entry]]:
    from supervisor.client.calls import paired

    for run_id, events in groupby(found, key=attrgetter("run_id")):
        for entry in paired(one.event for one in events):
            yield run_id, entry


def _tell_end(end: SearchEnd, events: int, limit: int) -> None:
    traces = "1 trace" if end.searched == 1 else f"{end.searched} traces"
    say(f"{'1 event' if events == 1 else f'{events} events'} found in {traces}")
    if end.limit_reached:
        say(f"stopped at --limit {limit}: there may be more")
    if end.skipped:
        more = ", ..." if end.skipped > len(end.skipped_run_ids) else ""
        say(f"not read, or not to the end: {printable(', '.join(end.skipped_run_ids))}{more} ({end.skipped})", "yellow")
