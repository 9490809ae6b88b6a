"""gRPC errors back into the exceptions of `supervisor.errors`.

The daemon sends google.rpc.Status with ErrorInfo, and BadRequest or RetryInfo where they apply; see
https://google.aip.dev/193. What comes without these details is gRPC's own: no daemon, a deadline, a cancellation.
"""

from __future__ import annotations

from typing import Any, cast

import grpc
from google.rpc import error_details_pb2, status_pb2

from supervisor import errors
from supervisor.client.channel import Target

DOMAIN = "supervisor"
DETAILS_KEY = "grpc-status-details-bin"


class DeadlineExceeded(errors.SupervisorError):
    """The deadline of the call passed; the daemon has ended its run."""

    reason = "DEADLINE_EXCEEDED"


class Cancelled(errors.SupervisorError):
    """The call was cancelled; the daemon has ended its run."""

    reason = "CANCELLED"


_TLS_WORDS = ("SSL", "TLS", "Tls", "handshake", "certificate", "Hostname Verification")
_REFUSED_WORDS = ("Socket closed", "Connection reset")
"""While connecting: with TLS 1.3 a server refuses a client's certificate once the client's handshake is done."""
_LOST_WORDS = ("Socket closed", "Connection reset", "Broken pipe", "GOAWAY", "recvmsg")
_CODES: dict[int, str] = {code.value[0]: code.name for code in grpc.StatusCode}

_CLASSES: dict[str, type[errors.SupervisorError]] = {
    "DEADLINE_EXCEEDED": DeadlineExceeded,
    "CANCELLED": Cancelled,
    # Rows of one code stand in the order of the table; the first of them is the general one.
    **{row.grpc_code: row.error for row in reversed(errors.ERROR_TABLE)},
}

_REASONS: dict[str, type[errors.SupervisorError]] = {row.error.reason: row.error for row in errors.ERROR_TABLE}


def from_rpc_error(error: grpc.RpcError, target: Target, *, run_under_way: bool = False) -> errors.SupervisorError:
    """The exception that `error` stands for; `target` is named where no daemon answered, or none any more."""
    call = cast(Any, error)
    code: grpc.StatusCode = call.code()
    text: str = call.details() or ""
    for key, value in call.trailing_metadata() or ():
        if key == DETAILS_KEY:
            status = status_pb2.Status.FromString(value)
            if status.details:
                return from_status(status)
    return _bare(code.name, text, target, run_under_way)


def from_status(status: status_pb2.Status) -> errors.SupervisorError:
    """The exception that a google.rpc.Status of the daemon stands for."""
    reason, field, retry_seconds = "", "", None
    metadata: dict[str, str] = {}
    for detail in status.details:
        info, bad, retry = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
        if detail.Unpack(info):
            reason, metadata = info.reason, dict(info.metadata)
        elif detail.Unpack(bad):
            field = next((violation.field for violation in bad.field_violations), field)
        elif detail.Unpack(retry):
            retry_seconds = retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9
    code = _CODES.get(status.code, "UNKNOWN")
    kind = _class_for(code, reason)
    return kind(
        status.message or f"the daemon answered {code} without a message",
        reason=reason or code,
        field=field or metadata.get("field", ""),
        metadata=metadata,
        retry_seconds=retry_seconds,
    )


def _class_for(code: str, reason: str) -> type[errors.SupervisorError]:
    named = _REASONS.get(reason)
    if named is not None and errors.row_for(named("")).grpc_code == code:
        return named
    # An INTERNAL without a known reason is not known to be a failed launch.
    return errors.SupervisorError if code == "INTERNAL" else _CLASSES.get(code, errors.SupervisorError)


def _bare(code: str, text: str, target: Target, run_under_way: bool) -> errors.SupervisorError:
    if code == "UNAVAILABLE":
        return _unavailable(text, target, run_under_way)
    if code == "DEADLINE_EXCEEDED":
        return DeadlineExceeded("the deadline of the call passed before the answer came")
    if code == "CANCELLED":
        return Cancelled("the call was cancelled")
    kind = errors.SupervisorError if code == "INTERNAL" else _CLASSES.get(code, errors.SupervisorError)
    return kind(text or f"the call failed with {code}", reason=code)


def _unavailable(text: str, target: Target, run_under_way: bool) -> errors.Unreachable:
    # gRPC wraps what the system said in the story of its own attempts.
    said = text.rpartition("error: ")[2]
    address, metadata = target.address, {"address": target.address}
    lost = "failed to connect" not in text and any(word in text for word in _LOST_WORDS)
    if run_under_way:
        message = f"the daemon at {address} was lost while the run was under way ({said})"
        return errors.Unreachable(message, reason="DAEMON_LOST", metadata=metadata)
    if "Permission denied" in text:
        return not_allowed(address, said)
    words = _TLS_WORDS if lost else (*_TLS_WORDS, *_REFUSED_WORDS)
    if target.tls_files and any(word in text for word in words):
        authority, certificate, key = target.tls_files
        remedy = f"is its certificate signed by {authority}, and does it accept {certificate} (key {key})?"
        return errors.Unreachable(
            f"no TLS with {address} ({text.rpartition('last error: ')[2]}); {remedy}",
            reason="TLS_FAILED",
            metadata=metadata | {"remedy": remedy},
        )
    if lost:
        message = f"the daemon at {address} was lost before it answered ({said})"
        return errors.Unreachable(message, reason="DAEMON_LOST", metadata=metadata)
    return unreachable(address, said)


def not_allowed(address: str, said: str) -> errors.Unreachable:
    """A daemon's socket is there, but not for us."""
    remedy = "run as root, or join the group that the daemon's socket_group names"
    return errors.Unreachable(
        f"you may not use the socket {address} ({said}): {remedy}",
        reason="NOT_ALLOWED",
        metadata={"address": address, "remedy": remedy},
    )


def unreachable(address: str, said: str) -> errors.Unreachable:
    """No daemon at `address`; `said` is what the system answered."""
    remedy = "is the daemon running? start it with `supervisor serve`"
    return errors.Unreachable(
        f"no daemon answers at {address}" + (f" ({said})" if said else "") + f"; {remedy}",
        metadata={"address": address, "remedy": remedy},
    )
