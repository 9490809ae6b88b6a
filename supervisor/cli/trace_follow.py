"""`supervisor trace follow`: what a run does, while it does it."""

from __future__ import annotations

import json as jsonlib
import queue
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from supervisor import errors
from supervisor.cli.find import find_run
from supervisor.cli.render import command_line, outcome_text, printable, say

if TYPE_CHECKING:
    from supervisor.client.calls import Entry
    from supervisor.client.follow import TraceFollow
    from supervisor.client.result import TraceEvent
    from supervisor.client.sync_client import Supervisor
    from supervisor.model import RunRecord

_QUIET_SECONDS = 0.05
"""How long a line may wait for the path or address of its call where nothing else comes."""
_READ_AHEAD = 10_000


def follow(
    run: Annotated[
        str | None,
        typer.Argument(
            metavar="RUN", help="A run's id, or its beginning; none: the newest that runs.", show_default=False
        ),
    ] = None,
    calls: Annotated[
        bool, typer.Option("--calls/--no-calls", help="Plain system calls, of a run that is traced in full.")
    ] = True,
    json: Annotated[bool, typer.Option("--json", help="One JSON object per line, and nothing else on stdout.")] = False,
) -> None:
    """Print what a run does while it does it, one event a line, until it ends or Ctrl-C.

    \b
      supervisor trace follow                        the newest run that is running
      supervisor trace follow 01J9ZQ --no-calls      its programs, processes, files, addresses
      supervisor trace follow 01J9ZQ --json | jq -r 'select(.kind == "exec").path'

    Begins with what happens next; what happened before stands in `trace show` once the run has ended. Times are seconds
    since the first line. Only a run with --trace full tells its calls and files; of others come programs, processes,
    addresses, and what a rule of the policy asks for. What breaks a rule is a line of its own, as a violation.
    What is not read in time is left out, and how much that was is told on stderr: the run never waits.
    """
    from supervisor.cli.connect import daemon

    with daemon() as client:
        record = find_run(client, run) if run else _newest(client)
        with client.follow_trace(record.run_id, calls=calls) as events:
            say(printable(f"following run {record.run_id}  {command_line(record)}  level {events.level}"))
            if json:
                _print_json(events)
            else:
                _print_lines(events, pair=calls and events.level == "full")
        say(f"run {record.run_id} has ended: {printable(outcome_text(client.get(record.run_id)))}")


def _newest(client: Supervisor) -> RunRecord:
    running = client.runs(state="running", limit=1)
    if not running:
        raise errors.NotFound("no run is running", metadata={"remedy": "name one: `supervisor ps` lists them"})
    return running[0]


def _print_json(events: TraceFollow) -> None:
    from supervisor.client.exports import event_to_json

    for event in _told(events):
        typer.echo(jsonlib.dumps(event_to_json(event)))


def _print_lines(events: TraceFollow, *, pair: bool) -> None:
    from supervisor.cli.trace_view import event_line, print_event
    from supervisor.client.calls import Entry

    start: float | None = None
    for entry in _entries(events) if pair else map(Entry, _told(events)):
        start = entry.event.time if start is None else start
        print_event(event_line(entry, start), entry)


def _told(events: TraceFollow) -> Iterator[TraceEvent]:
    """The events; what is missing between them is told on stderr."""
    told = 0
    for event in events:
        told = _tell_dropped(events.dropped, told)
        yield event
    _tell_dropped(events.dropped, told)


def _tell_dropped(dropped: int, told: int) -> int:
    if dropped > told:
        say(f"{dropped - told} events were not read in time and are missing here", "yellow")
    return dropped


def _entries(events: TraceFollow) -> Iterator[Entry]:
    """The events by the calls they belong to. Nothing is held for long where nothing follows it."""
    from supervisor.client.calls import Pairing

    came: queue.Queue[TraceEvent | errors.SupervisorError | None] = queue.Queue(_READ_AHEAD)
    # Reading cannot be given a time; a daemon's thread may be left behind in it.
    threading.Thread(target=_read, args=(events, came), daemon=True).start()
    pairing, holding = Pairing(), False
    while True:
        try:
            event = came.get(timeout=_QUIET_SECONDS if holding else None)
        except queue.Empty:
            yield from pairing.rest()
            holding = False
            continue
        if event is None or isinstance(event, errors.SupervisorError):
            yield from pairing.rest()
            if event is not None:
                raise event
            return
        yield from pairing.add(event)
        holding = True


def _read(events: TraceFollow, came: queue.Queue[TraceEvent | errors.SupervisorError | None]) -> None:
    try:
        for event in _told(events):
            came.put(event)
        came.put(None)
    except errors.SupervisorError as error:
        came.put(error)
