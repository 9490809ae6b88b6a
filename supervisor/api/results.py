"""Results, records, events and host features to the wire. Pure.

Strings that come out of a run (names, paths, messages) may hold what UTF-8 cannot; it becomes U+FFFD here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from supervisor.model import (
    Enforcement,
    HostFeatures,
    Outcome,
    OutputFile,
    RunRecord,
    RunResult,
    StartError,
    TraceSummary,
    Usage,
    Violation,
)
from supervisor.v1 import host_pb2
from supervisor.v1 import run_pb2 as pb

CHUNK_BYTES = 1 << 20
"""Most data in one message of a stream."""
ARGV_BYTES = 4 << 10
"""Most of a run's arguments in one record, which is for people to recognise it by."""
OUTCOMES: dict[Outcome, Any] = {outcome: pb.Outcome.Value(f"OUTCOME_{outcome.name}") for outcome in Outcome}
STATES = {"queued": pb.RUN_STATE_QUEUED, "running": pb.RUN_STATE_RUNNING, "ended": pb.RUN_STATE_ENDED}
STATE_NAMES = {number: name for name, number in STATES.items()} | {pb.RUN_STATE_UNSPECIFIED: ""}

_SURROGATES = re.compile("[\ud800-\udfff]")
_REGISTER = (1 << 64) - 1


def text(value: str) -> str:
    """`value` as UTF-8 can hold it."""
    return value if value.isascii() else _SURROGATES.sub("\ufffd", value)


def result_message(result: RunResult, *, payload: bool = True, max_file_bytes: int = 1 << 31) -> pb.RunResult:
    """The whole result with at most `max_file_bytes` of files, or without output and files where these came as events."""
    message = pb.RunResult(
        run_id=result.run_id,
        request_id=result.request_id,
        agent=result.agent,
        policy=result.policy,
        backend=result.backend,
        outcome=OUTCOMES[result.outcome],
        exit_code=result.exit_code,
        signal=result.signal,
        signal_name=result.signal_name,
        detail=text(result.detail),
        stdout_truncated=result.stdout_truncated,
        stderr_truncated=result.stderr_truncated,
        usage=usage_message(result.usage),
        enforcement=enforcement_message(result.enforcement),
        started_at=result.started_at,
        ended_at=result.ended_at,
    )
    if payload:
        message.stdout = result.stdout
        message.stderr = result.stderr
        left = max_file_bytes
        for file in result.files:
            piece = file.data[:left] if file.spool is None else file.spool[:left]
            left -= len(piece)
            cut = file.truncated or len(piece) < len(file.data if file.spool is None else file.spool)
            message.files.add(path=file.path, data=piece, mode=file.mode, truncated=cut)
    if result.labels:
        message.labels.update(result.labels)
    if result.violations:
        message.violations.extend(map(violation_message, result.violations))
    if result.error is not None:
        message.error.CopyFrom(start_error_message(result.error))
    set_summary(message.trace, result.trace)
    return message


def set_summary(message: pb.TraceSummary, trace: TraceSummary) -> None:
    message.level = trace.level
    message.complete = trace.complete
    message.events = trace.events
    message.dropped = trace.dropped
    syscalls = message.syscalls
    for name, count in trace.syscalls.items():
        entry = syscalls[name]
        entry.calls = count.calls
        entry.errors = count.errors
    message.rules.update(trace.rules)
    for program in trace.programs:
        message.programs.add(path=text(program.path), sha256=program.sha256, count=program.count)
    for name, files in trace.files.items():
        message.files[name].read = files.read
        message.files[name].written = files.written
    message.process_count = trace.process_count
    for one in trace.addresses:
        message.addresses.add(
            operation=one.operation,
            protocol=one.protocol,
            address=one.address,
            port=one.port,
            count=one.count,
            denied=one.denied,
        )
    for process in trace.processes:
        message.processes.add(
            pid=process.pid,
            parent=process.parent,
            comm=text(process.comm),
            path=text(process.path),
            started_at=process.started_at,
            ended_at=process.ended_at,
            result=process.result,
        )


def record_message(record: RunRecord) -> pb.RunRecord:
    """A recorded run; its `result` has an outcome only when it has ended."""
    result = pb.RunResult(
        run_id=record.run_id,
        request_id=record.request_id,
        agent=record.agent,
        labels=record.labels,
        policy=record.policy,
        backend=record.backend,
        outcome=pb.OUTCOME_UNSPECIFIED if record.outcome is None else OUTCOMES[record.outcome],
        exit_code=record.exit_code,
        signal=record.signal,
        detail=text(record.detail),
        usage=usage_message(record.usage),
        violations=map(violation_message, record.violations),
        enforcement=enforcement_message(record.enforcement),
        error=None if record.error is None else start_error_message(record.error),
        started_at=record.started_at,
        ended_at=record.ended_at,
    )
    set_summary(result.trace, record.trace)
    return pb.RunRecord(
        state=STATES[record.state],
        spec_digest=record.spec_digest,
        policy_digest=record.policy_digest,
        program=text(record.program),
        created_at=record.created_at,
        result=result,
        argv=_arguments(record),
    )


def _arguments(record: RunRecord) -> Iterator[bytes]:
    """Of a run that has not ended: what the daemon still has in memory of one that has is nobody's to see."""
    room = ARGV_BYTES
    for argument in record.argv if record.state != "ended" else ():
        if room <= 0:
            return
        yield argument[:room]
        room -= len(argument) + 1


def usage_message(usage: Usage) -> pb.Usage:
    """What the host could not measure stays absent."""
    return pb.Usage(
        wall_seconds=usage.wall_seconds,
        cpu_user_seconds=usage.cpu_user_seconds,
        cpu_system_seconds=usage.cpu_system_seconds,
        memory_peak_bytes=usage.memory_peak_bytes,
        pids_peak=usage.pids_peak,
        io_read_bytes=usage.io_read_bytes,
        io_write_bytes=usage.io_write_bytes,
        pids_limit_hits=usage.pids_limit_hits,
        memory_limit_hits=usage.memory_limit_hits,
        oom_kills=usage.oom_kills,
        cpu_throttled_seconds=usage.cpu_throttled_seconds,
    )


def violation_message(violation: Violation) -> pb.Violation:
    return pb.Violation(
        rule=violation.rule,
        kind=violation.kind,
        severity=violation.severity,
        action=violation.action,
        syscall=violation.syscall,
        abi=violation.abi,
        args=[argument & _REGISTER for argument in violation.args],
        pid=violation.pid,
        tid=violation.tid,
        comm=text(violation.comm),
        exe=text(violation.exe),
        path=text(violation.path),
        address=text(violation.address),
        port=violation.port,
        time=violation.time,
    )


def enforcement_message(enforcement: Enforcement) -> pb.Enforcement:
    return pb.Enforcement(
        namespaces=enforcement.namespaces,
        cgroup=enforcement.cgroup,
        seccomp=enforcement.seccomp,
        landlock=enforcement.landlock,
        cgroup_bpf=enforcement.cgroup_bpf,
        lsm=enforcement.lsm,
        network=enforcement.network,
        user=enforcement.user,
        missing=enforcement.missing,
    )


def start_error_message(error: StartError) -> pb.StartError:
    return pb.StartError(stage=error.stage, errno=error.errno, message=text(error.message))


def feature_messages(host: HostFeatures) -> list[host_pb2.HostFeature]:
    return [
        host_pb2.HostFeature(
            name=feature.name,
            available=feature.available,
            detail=text(feature.detail),
            loss=feature.loss,
            remedy=feature.remedy,
        )
        for feature in host.features.values()
    ]


def file_chunks(file: OutputFile) -> Iterator[pb.FileChunk]:
    """`file` in pieces of at most CHUNK_BYTES: path and mode on the first, `last` and `truncated` on the last."""
    length = len(file.data if file.spool is None else file.spool)
    for start in range(0, length or 1, CHUNK_BYTES):
        piece = slice(start, start + CHUNK_BYTES)
        chunk = pb.FileChunk(data=file.data[piece] if file.spool is None else file.spool[piece])
        if start == 0:
            chunk.path = file.path
            chunk.mode = file.mode
        if start + CHUNK_BYTES >= length:
            chunk.last = True
            chunk.truncated = file.truncated
        yield chunk


def release(result: RunResult) -> None:
    """Gives back what large files of a result that has been sent still hold."""
    for file in result.files:
        if file.spool is not None:
            file.spool.close()


def fit(message: pb.RunResult, max_bytes: int) -> None:
    """Cut `message` to `max_bytes` as it is sent: the largest files first, then output, then the lists; all marked."""
    excess = message.ByteSize() - max_bytes
    if excess <= 0:
        return
    for file in sorted(message.files, key=lambda file: len(file.data), reverse=True):
        if excess <= 0:
            return
        kept = max(0, len(file.data) - excess - 16)
        excess -= len(file.data) - kept
        file.data = file.data[:kept]
        file.truncated = True
    for name in ("stdout", "stderr"):
        excess = message.ByteSize() - max_bytes
        if excess <= 0:
            return
        data = getattr(message, name)
        setattr(message, name, data[: max(0, len(data) - excess - 16)])
        setattr(message, f"{name}_truncated", True)
    for name in ("files", "violations"):
        if message.ByteSize() <= max_bytes:
            return
        message.ClearField(name)
        message.enforcement.missing.append(f"{name} (result too large)")
