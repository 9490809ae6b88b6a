"""Answers of the daemon: from the wire into the model, and a result into JSON."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

from supervisor.model import (
    Enforcement,
    Feature,
    FileCount,
    Outcome,
    OutputFile,
    RunRecord,
    RunResult,
    StartError,
    SyscallCount,
    TracedAddress,
    TracedProcess,
    TracedProgram,
    TraceSummary,
    Usage,
    Violation,
)
from supervisor.run_events import Event, Exited, Output, Started, Stream, ViolationSeen
from supervisor.v1 import host_pb2, policy_pb2, run_pb2, trace_pb2


@dataclass(frozen=True, slots=True)
class Host:
    """What the daemon says of its host and of itself; `tier` is the deepest layer of probes that attached."""

    version: str
    kernel: str
    cgroup: str
    cpus: int
    memory_bytes: int
    max_concurrent_runs: int
    max_queued_runs: int
    running: int
    queued: int
    draining: bool
    max_message_bytes: int
    tier: str
    features: tuple[Feature, ...]


@dataclass(frozen=True, slots=True)
class Policy:
    """A policy that the daemon knows: `toml` as written, `resolved_toml` with all that `extends` brought."""

    name: str
    description: str
    extends: str
    toml: str
    resolved_toml: str
    digest: str


@dataclass(frozen=True, slots=True)
class PolicyProblem:
    """What is wrong in a policy's text; `line` counts from 1, and is 0 where none can be named."""

    line: int
    key: str
    message: str


@dataclass(frozen=True, slots=True)
class PolicyCheck:
    """The verdict on a policy's text: it is good when there are no problems, and `policy` is then set."""

    problems: tuple[PolicyProblem, ...]
    policy: Policy | None

    @property
    def good(self) -> bool:
        return not self.problems


@dataclass(frozen=True, slots=True)
class TraceEvent:
    """One thing that a run did, as the probes saw it; `result` is what the kernel answered."""

    time: float
    kind: str
    pid: int
    tid: int
    comm: str
    syscall: str
    abi: str
    args: tuple[int, ...]
    result: int
    path: str
    address: str
    port: int
    parent: int
    argv: tuple[str, ...]
    detail: str


def _present(message: Any, name: str) -> Any:
    return getattr(message, name) if message.HasField(name) else None


def _fields(kind: Any, message: Any, **other: Any) -> Any:
    """`kind` from the equally named plain fields of `message`, and `other`."""
    return kind(**{name: getattr(message, name) for name in kind.__slots__ if name not in other}, **other)


def _violation(message: run_pb2.Violation) -> Violation:
    found: Violation = _fields(Violation, message, args=tuple(message.args))
    return found


def _usage(message: run_pb2.Usage) -> Usage:
    return Usage(**{name: _present(message, name) for name in Usage.__slots__})


def _enforcement(message: run_pb2.Enforcement) -> Enforcement:
    found: Enforcement = _fields(
        Enforcement, message, namespaces=tuple(message.namespaces), missing=tuple(message.missing)
    )
    return found


def to_summary(message: run_pb2.TraceSummary) -> TraceSummary:
    """The trace's counts."""
    syscalls = {name: SyscallCount(count.calls, count.errors) for name, count in message.syscalls.items()}
    processes = tuple(
        _fields(TracedProcess, one, ended_at=_present(one, "ended_at"), result=_present(one, "result"))
        for one in message.processes
    )
    addresses = tuple(_fields(TracedAddress, one) for one in message.addresses)
    files = {name: FileCount(count.read, count.written) for name, count in message.files.items()}
    found: TraceSummary = _fields(
        TraceSummary,
        message,
        syscalls=syscalls,
        processes=processes,
        addresses=addresses,
        files=files,
        rules=dict(message.rules),
        programs=tuple(_fields(TracedProgram, one) for one in message.programs),
    )
    return found


def _outcome(number: int) -> Outcome | None:
    word = run_pb2.Outcome.Name(number).removeprefix("OUTCOME_").lower() if number else ""
    return Outcome(word) if word else None


def _error(message: run_pb2.RunResult) -> StartError | None:
    return _fields(StartError, message.error) if message.HasField("error") else None


def to_result(message: run_pb2.RunResult) -> RunResult:
    """The model's RunResult of the wire's."""
    found: RunResult = _fields(
        RunResult,
        message,
        labels=dict(message.labels),
        outcome=_outcome(message.outcome) or Outcome.LOST,
        exit_code=_present(message, "exit_code"),
        signal=_present(message, "signal"),
        signal_name=_present(message, "signal_name"),
        usage=_usage(message.usage),
        files=tuple(_fields(OutputFile, file) for file in message.files),
        violations=tuple(map(_violation, message.violations)),
        enforcement=_enforcement(message.enforcement),
        trace=to_summary(message.trace),
        error=_error(message),
    )
    return found


def to_record(message: run_pb2.RunRecord) -> RunRecord:
    """The model's RunRecord of the wire's."""
    result = message.result
    return RunRecord(
        run_id=result.run_id,
        state=run_pb2.RunState.Name(message.state).removeprefix("RUN_STATE_").lower(),
        spec_digest=message.spec_digest,
        policy=result.policy,
        policy_digest=message.policy_digest,
        backend=result.backend,
        program=message.program,
        agent=result.agent,
        request_id=result.request_id,
        labels=dict(result.labels),
        created_at=message.created_at,
        started_at=result.started_at or None,
        ended_at=result.ended_at or None,
        outcome=_outcome(result.outcome),
        exit_code=_present(result, "exit_code"),
        signal=_present(result, "signal"),
        detail=result.detail,
        usage=_usage(result.usage),
        violations=tuple(map(_violation, result.violations)),
        enforcement=_enforcement(result.enforcement),
        error=_error(result),
        argv=tuple(message.argv),
    )


def to_host(message: host_pb2.GetHostResponse) -> Host:
    """What GetHost answered."""
    found: Host = _fields(Host, message, features=tuple(_fields(Feature, feature) for feature in message.features))
    return found


def to_policy(message: policy_pb2.Policy) -> Policy:
    """A policy that the daemon knows."""
    found: Policy = _fields(Policy, message)
    return found


def to_check(message: policy_pb2.CheckPolicyResponse) -> PolicyCheck:
    """The daemon's verdict on a policy's text."""
    problems = tuple(_fields(PolicyProblem, problem) for problem in message.problems)
    return PolicyCheck(problems, to_policy(message.policy) if message.HasField("policy") else None)


def to_trace_events(
    message: trace_pb2.GetTraceResponse | trace_pb2.SearchTracesResponse | trace_pb2.FollowTraceResponse,
) -> Iterable[TraceEvent]:
    """The events of one message of a trace."""
    return (_fields(TraceEvent, event, args=tuple(event.args), argv=tuple(event.argv)) for event in message.events)


class EventReader:
    """Turns the messages of one Run stream into events; keeps the chunks of collected files until the end."""

    def __init__(self) -> None:
        self._files: list[OutputFile] = []
        self._path = b""
        self._mode = 0
        self._chunks: list[bytes] = []

    def read(self, message: run_pb2.RunResponse) -> Event | None:
        """The event in `message`; None for a piece of a file. Exited carries the files, but no output."""
        kind = message.WhichOneof("event")
        if kind == "stdout":
            return Output(Stream.STDOUT, message.stdout)
        if kind == "stderr":
            return Output(Stream.STDERR, message.stderr)
        if kind == "started":
            return Started(message.started.run_id, message.started.time)
        if kind == "violation":
            return ViolationSeen(_violation(message.violation))
        if kind == "file":
            self._take(message.file)
            return None
        if kind == "exited":
            result = to_result(message.exited)
            return Exited(replace(result, files=result.files + tuple(self._files)))
        return None

    def _take(self, chunk: run_pb2.FileChunk) -> None:
        if not self._chunks:
            self._path, self._mode = chunk.path, chunk.mode
        self._chunks.append(chunk.data)
        if chunk.last:
            self._files.append(OutputFile(self._path, b"".join(self._chunks), self._mode, chunk.truncated))
            self._chunks = []


class Assembler:
    """Gathers a run's events into the one result that Execute would have given."""

    def __init__(self) -> None:
        self._output: dict[Stream, list[bytes]] = {Stream.STDOUT: [], Stream.STDERR: []}
        self.result: RunResult | None = None

    def add(self, event: Event) -> None:
        """Takes the next event; after Exited, `result` is set."""
        if isinstance(event, Output):
            self._output[event.stream].append(event.data)
        elif isinstance(event, Exited):
            result = event.result
            self.result = replace(
                result,
                stdout=b"".join(self._output[Stream.STDOUT]) or result.stdout,
                stderr=b"".join(self._output[Stream.STDERR]) or result.stderr,
            )


def result_to_json(result: RunResult) -> dict[str, Any]:
    """`result` as `run --json` prints it: plain values, None for what is unknown.

    Bytes are text with U+FFFD for what is not UTF-8; NAME_base64 then stands beside NAME and holds the exact bytes.
    """
    shown: dict[str, Any] = {
        "run_id": result.run_id,
        "request_id": result.request_id,
        "agent": result.agent,
        "labels": dict(result.labels),
        "policy": result.policy,
        "backend": result.backend,
        "outcome": result.outcome.value,
        "exit_code": result.exit_code,
        "signal": result.signal,
        "signal_name": result.signal_name,
        "detail": result.detail,
        **_bytes_to_json("stdout", result.stdout),
        **_bytes_to_json("stderr", result.stderr),
        "stdout_truncated": result.stdout_truncated,
        "stderr_truncated": result.stderr_truncated,
        "usage": asdict(result.usage),
        "files": [_file_to_json(file) for file in result.files],
    }
    return shown | _evidence_to_json(result) | {"trace": summary_to_json(result.trace)} | _times_to_json(result)


def record_to_json(record: RunRecord) -> dict[str, Any]:
    """`record` as `inspect --json` prints it; the names are those of a result."""
    shown = asdict(record)
    shown["outcome"] = record.outcome.value if record.outcome else None
    shown["argv"] = [argument.decode("utf-8", "replace") for argument in record.argv]
    return shown | _evidence_to_json(record)


def summary_to_json(summary: TraceSummary) -> dict[str, Any]:
    """`summary` as the key `trace` of a result, and `trace summary --json`, show it."""
    return asdict(summary)


def _evidence_to_json(run: RunResult | RunRecord) -> dict[str, Any]:
    enforcement = asdict(run.enforcement)
    return {
        "violations": [asdict(found) | {"args": list(found.args)} for found in run.violations],
        "enforcement": enforcement | {name: list(enforcement[name]) for name in ("namespaces", "missing")},
        "error": asdict(run.error) if run.error else None,
    }


def _times_to_json(result: RunResult) -> dict[str, Any]:
    return {"started_at": result.started_at or None, "ended_at": result.ended_at or None}


def _file_to_json(file: OutputFile) -> dict[str, Any]:
    return {
        **_bytes_to_json("path", file.path),
        **_bytes_to_json("data", file.data),
        "mode": file.mode,
        "truncated": file.truncated,
    }


def _bytes_to_json(name: str, data: bytes) -> dict[str, str]:
    try:
        return {name: data.decode("utf-8")}
    except UnicodeDecodeError:
        return {name: data.decode("utf-8", "replace"), f"{name}_base64": base64.b64encode(data).decode("ascii")}
