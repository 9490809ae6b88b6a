"""A run's record as a row of the database and back: what is empty is NULL, structures are JSON without their defaults."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Final

from supervisor.model import (
    Enforcement,
    FileCount,
    Outcome,
    RunRecord,
    StartError,
    SyscallCount,
    TracedAddress,
    TracedProcess,
    TracedProgram,
    TraceSummary,
    Usage,
    Violation,
)

COLUMNS: Final = (
    "run_id", "state", "spec_digest", "policy", "policy_digest", "backend", "program", "agent", "request_id", "labels",
    "created_at", "started_at", "ended_at", "outcome", "exit_code", "signal", "detail", "usage", "violations",
    "enforcement", "error", "trace",
)  # fmt: skip

_USAGE: Final = tuple(field.name for field in fields(Usage))
_ADDRESS: Final = tuple(field.name for field in fields(TracedAddress))
_PROCESS: Final = tuple(field.name for field in fields(TracedProcess))
_ENFORCEMENT: Final = tuple((field.name, field.default) for field in fields(Enforcement))
_VIOLATION: Final = tuple((field.name, field.default) for field in fields(Violation))
_ENCODE = json.JSONEncoder(separators=(",", ":"), check_circular=False).encode


def to_row(record: RunRecord) -> tuple[Any, ...]:
    """The columns of `COLUMNS`; what is empty is NULL, and a default is left out of the JSON."""
    error = record.error
    return (
        record.run_id,
        record.state,
        record.spec_digest,
        _text(record.policy),
        record.policy_digest,
        record.backend,
        _text(record.program),
        _text(record.agent),
        _text(record.request_id),
        _ENCODE(dict(record.labels)) if record.labels else None,
        record.created_at,
        record.started_at,
        record.ended_at,
        record.outcome.value if record.outcome else None,
        record.exit_code,
        record.signal,
        _text(record.detail),
        _encode_usage(record.usage),
        _ENCODE([_without_defaults(item, _VIOLATION) for item in record.violations]) if record.violations else None,
        _encode_enforcement(record.enforcement),
        _ENCODE([error.stage, error.errno, error.message]) if error else None,
        _encode_trace(record.trace),
    )


def from_row(row: tuple[Any, ...]) -> RunRecord:
    values = dict(zip(COLUMNS, row, strict=True))
    return RunRecord(
        **values
        | {
            "labels": json.loads(values["labels"] or "{}"),
            "outcome": Outcome(values["outcome"]) if values["outcome"] else None,
            "usage": Usage(**json.loads(values["usage"] or "{}")),
            "violations": tuple(Violation(**_tuples(item)) for item in json.loads(values["violations"] or "[]")),
            "enforcement": Enforcement(**_tuples(json.loads(values["enforcement"] or "{}"))),
            "error": StartError(*json.loads(values["error"])) if values["error"] else None,
            "trace": _decode_trace(values["trace"]),
        }
    )


def _encode_trace(trace: TraceSummary) -> str | None:
    if trace.level == "off":
        return None
    calls = {name: [count.calls, count.errors] for name, count in trace.syscalls.items()}
    processes = [[getattr(process, name) for name in _PROCESS] for process in trace.processes]
    addresses = [[getattr(one, name) for name in _ADDRESS] for one in trace.addresses]
    counts = (trace.events, trace.dropped)
    files = {name: [count.read, count.written] for name, count in trace.files.items()}
    programs = [[one.path, one.sha256, one.count] for one in trace.programs]
    rest = (trace.process_count, addresses, files, dict(trace.rules), programs)
    return _ENCODE([trace.level, trace.complete, *counts, calls, processes, *rest])


def _decode_trace(text: str | None) -> TraceSummary:
    if text is None:
        return TraceSummary()
    # Records of earlier versions end before files and rules.
    level, complete, events, dropped, calls, processes, count, addresses, *rest = json.loads(text)
    files, rules, programs = rest or ({}, {}, [])
    return TraceSummary(
        level,
        complete,
        events,
        dropped,
        {name: SyscallCount(*counted) for name, counted in calls.items()},
        tuple(TracedProcess(*values) for values in processes),
        count,
        tuple(TracedAddress(*values) for values in addresses),
        {name: FileCount(*counted) for name, counted in files.items()},
        rules,
        tuple(TracedProgram(*values) for values in programs),
    )


def _encode_usage(usage: Usage) -> str | None:
    found = {name: value for name in _USAGE if (value := getattr(usage, name)) is not None}
    return _ENCODE(found) if found else None


@functools.lru_cache(maxsize=256)
def _encode_enforcement(enforcement: Enforcement) -> str | None:
    """Cached: runs of one policy share one enforcement."""
    found = _without_defaults(enforcement, _ENFORCEMENT)
    return _ENCODE(found) if found else None


def _without_defaults(item: object, names: tuple[tuple[str, Any], ...]) -> dict[str, Any]:
    return {name: value for name, default in names if (value := getattr(item, name)) != default}


def _tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def _text(value: str) -> str:
    """`value` as SQLite can keep it: what stood for bytes that are no UTF-8 becomes U+FFFD."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return value.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return value
