"""Every way in which the supervisor itself says no.

A program that fails is a result, never one of these. `api.errors` maps each class to a gRPC status and `cli` to an exit
status; both read the one table at the foot of this file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


class SupervisorError(Exception):
    """Base of all refusals: `reason` is a stable UPPER_SNAKE word, `metadata` its machine-readable particulars.

    `field` names the offending field of the request or key of the policy (dotted, as the caller wrote it), or is empty.
    `retry_seconds` is set where trying again later can succeed.
    """

    reason = "INTERNAL"

    def __init__(
        self,
        message: str,
        *,
        reason: str | None = None,
        field: str = "",
        metadata: Mapping[str, str] | None = None,
        retry_seconds: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason or type(self).reason
        self.field = field
        self.metadata: dict[str, str] = dict(metadata or {})
        self.retry_seconds = retry_seconds


class InvalidRequest(SupervisorError):
    """The request or policy is malformed; `field` says where."""

    reason = "INVALID_REQUEST"


class PolicyRefused(SupervisorError):
    """Well-formed, but wider than its policy or the daemon's configuration allows; `field` says what."""

    reason = "REFUSED_BY_POLICY"


class NotFound(SupervisorError):
    """No such run or policy."""

    reason = "NOT_FOUND"


class AlreadyExists(SupervisorError):
    """The request_id has been used."""

    reason = "REQUEST_ID_USED"


class Exhausted(SupervisorError):
    """Queue, quota or size bound reached; `retry_seconds` says when to try again."""

    reason = "QUEUE_FULL"


class HostLacks(SupervisorError):
    """The host cannot do what was asked; metadata carries `feature` and `remedy`."""

    reason = "HOST_LACKS_FEATURE"


class Draining(SupervisorError):
    """The daemon is stopping and takes no new runs."""

    reason = "DRAINING"


class Unreachable(SupervisorError):
    """No daemon answers at the address (raised by the client)."""

    reason = "UNREACHABLE"


class LaunchFailed(SupervisorError):
    """Our own set-up of a sandbox failed; metadata carries `stage`, `index` and `errno`."""

    reason = "LAUNCH_FAILED"


@dataclass(frozen=True, slots=True)
class ErrorRow:
    """One row of the error table: exception class, gRPC status code name, exit status of `supervisor run`."""

    error: type[SupervisorError]
    grpc_code: str
    exit_status: int


ERROR_TABLE: tuple[ErrorRow, ...] = (
    ErrorRow(InvalidRequest, "INVALID_ARGUMENT", 125),
    ErrorRow(PolicyRefused, "PERMISSION_DENIED", 126),
    ErrorRow(NotFound, "NOT_FOUND", 125),
    ErrorRow(AlreadyExists, "ALREADY_EXISTS", 125),
    ErrorRow(Exhausted, "RESOURCE_EXHAUSTED", 125),
    ErrorRow(HostLacks, "FAILED_PRECONDITION", 125),
    ErrorRow(Draining, "UNAVAILABLE", 125),
    ErrorRow(Unreachable, "UNAVAILABLE", 125),
    ErrorRow(LaunchFailed, "INTERNAL", 125),
    ErrorRow(SupervisorError, "INTERNAL", 125),
)


def row_for(error: SupervisorError) -> ErrorRow:
    """The table's row for `error`: its own class, else the nearest base."""
    return next(row for row in ERROR_TABLE if isinstance(error, row.error))
