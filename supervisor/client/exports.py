"""Traces for other programs: JSON lines, CSV, what strace prints, Perfetto's timeline, OCSF's events.

    with open("trace.json", "w") as out:
        out.writelines(export(supervisor.trace(run_id), "perfetto", ExportInfo(run_id)))

Every format is a generator over the events: a trace is never held as a whole. Pure, for the client on any system.
"""

from __future__ import annotations

import csv
import json
import os
import shlex
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from supervisor import errors
from supervisor.client.calls import Entry, call_text, endpoint_struct, paired, quoted, result_text
from supervisor.client.linux_words import restart_words, signal_name
from supervisor.client.ocsf import to_ocsf
from supervisor.client.perfetto import to_perfetto
from supervisor.client.result import TraceEvent

_NAMES: tuple[str, ...] = TraceEvent.__slots__


@dataclass(frozen=True, slots=True)
class ExportInfo:
    """What an export says of its trace beside the events; `host` is the machine that the run was on."""

    run_id: str = ""
    host: str = ""
    version: str = ""


def export(events: Iterable[TraceEvent], format: str, info: ExportInfo | None = None) -> Iterator[str]:
    """The trace as text in pieces, each one or more whole lines. Raises InvalidRequest for an unknown format."""
    if format not in FORMATS:
        raise errors.InvalidRequest(f"format: {format!r} is none of {', '.join(FORMATS)}", field="format")
    return FORMATS[format](events, info or ExportInfo())


def event_to_json(event: TraceEvent) -> dict[str, Any]:
    """The event as `trace show --json` and the format jsonl have it."""
    return {name: getattr(event, name) for name in _NAMES}


def host_name(address: str) -> str:
    """The machine of the daemon at `address`: this one, or the one that a TCP address names."""
    return socket.gethostname() if address.startswith("unix:") else address.rpartition(":")[0].strip("[]")


def _jsonl(events: Iterable[TraceEvent], _: ExportInfo) -> Iterator[str]:
    return (json.dumps(event_to_json(event)) + "\n" for event in events)


class _Returned:
    """A file whose write() gives back what it is given: csv's writers return that."""

    def write(self, text: str) -> str:
        return text


def _csv(events: Iterable[TraceEvent], _: ExportInfo) -> Iterator[str]:
    table: Any = csv.writer(_Returned(), lineterminator="\n")
    yield table.writerow(_NAMES)
    for event in events:
        row = event_to_json(event) | {"args": " ".join(map(hex, event.args)), "argv": shlex.join(event.argv)}
        yield table.writerow([_plain(value) if isinstance(value, str) else value for value in row.values()])


def _plain(text: str) -> str:
    """Without what a terminal would obey or a reader of lines stumble over; jsonl has the text as it is."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode("ascii") for one in text)


def _strace(events: Iterable[TraceEvent], _: ExportInfo) -> Iterator[str]:
    """As `strace -f -tt` writes to a file; local time, as there."""
    for entry in paired(events):
        line = _strace_line(entry)
        if line:
            yield f"{entry.event.tid:<5} {clock(entry.event.time)} {line}\n"


def clock(seconds: float) -> str:
    """Local time of day with microseconds."""
    whole, micros = divmod(round(seconds * 1e6), 1_000_000)
    return f"{time.strftime('%H:%M:%S', time.localtime(whole))}.{micros:06d}"


def _strace_line(entry: Entry) -> str:
    event = entry.event
    if event.kind == "exit":
        how = f"killed by {signal_name(-event.result)}" if event.result < 0 else f"exited with {event.result}"
        return f"+++ {how} +++"
    if event.kind == "exec":  # its execve is not in the trace
        return f"execve({quoted(event.path, ascii_only=True)}, [{_words(event)}]) = 0"
    if not event.syscall:
        return ""
    return f"{call_text(entry, endpoint_struct)} = {_strace_result(entry)}"


def _words(event: TraceEvent) -> str:
    return ", ".join(quoted(word, ascii_only=True) for word in event.argv)


def _strace_result(entry: Entry) -> str:
    error, result = entry.error, entry.event.result
    if not error:
        return result_text(entry.event)
    restart = restart_words(result)
    if restart:
        return f"? {error} ({restart})"
    # strerror() says on other systems what their numbers mean.
    return f"-1 {error}" + (f" ({os.strerror(-result)})" if sys.platform == "linux" else "")


def _perfetto(events: Iterable[TraceEvent], info: ExportInfo) -> Iterator[str]:
    """Chrome's trace event format, JSON Object Format: for ui.perfetto.dev and chrome://tracing."""
    yield f'{{"displayTimeUnit": "ns", "otherData": {json.dumps({"run_id": info.run_id, "host": info.host})},\n"traceEvents": [\n'
    comma = ""
    for event in to_perfetto(events):
        yield f"{comma}{json.dumps(event)}"
        comma = ",\n"
    yield "\n]}\n"


def _ocsf(events: Iterable[TraceEvent], info: ExportInfo) -> Iterator[str]:
    converted = to_ocsf(events, run_id=info.run_id, host=info.host, version=info.version)
    return (json.dumps(event) + "\n" for event in converted)


FORMATS: Mapping[str, Callable[[Iterable[TraceEvent], ExportInfo], Iterator[str]]] = {
    "jsonl": _jsonl,
    "csv": _csv,
    "strace": _strace,
    "perfetto": _perfetto,
    "ocsf": _ocsf,
}
"""By name: jsonl and csv have every event as it is; the others join what belongs to one call."""
