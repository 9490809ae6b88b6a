"""The error table on the wire: SupervisorError -> google.rpc.Status, and whatever else -> INTERNAL without particulars.

A status travels in HTTP/2 headers, which peers bound at 8 KiB; texts are cut so that it always fits.
"""

from __future__ import annotations

import traceback
from typing import NoReturn

import grpc
import structlog
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from supervisor.errors import SupervisorError, row_for

DOMAIN = "supervisor"

# Percent-encoded text grows threefold in `grpc-message`, and the details repeat it in base64.
MAX_MESSAGE_BYTES = 800
MAX_METADATA_BYTES = 1500
MAX_VALUE_BYTES = 300
MAX_FIELD_BYTES = 200

log = structlog.get_logger(__name__)


def clip(text: str, max_bytes: int) -> str:
    """`text` as valid UTF-8 of at most `max_bytes`, marked with an ellipsis where it was cut."""
    encoded = text.encode("utf-8", "replace")
    if len(encoded) <= max_bytes:
        return encoded.decode("utf-8")
    return encoded[: max_bytes - 3].decode("utf-8", "ignore") + "…"


def status_of(error: SupervisorError) -> status_pb2.Status:
    """The google.rpc.Status of `error`: its table row's code, ErrorInfo, and BadRequest or RetryInfo where they apply."""
    code: grpc.StatusCode = getattr(grpc.StatusCode, row_for(error).grpc_code)
    message = clip(error.message, MAX_MESSAGE_BYTES)
    field = clip(error.field, MAX_FIELD_BYTES)
    metadata = dict(error.metadata)
    if field and code is not grpc.StatusCode.INVALID_ARGUMENT:
        metadata["field"] = field
    status = status_pb2.Status(code=code.value[0], message=message)
    status.details.add().Pack(
        error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=_bounded(metadata))
    )
    if field and code is grpc.StatusCode.INVALID_ARGUMENT:
        violation = error_details_pb2.BadRequest.FieldViolation(field=field, description=message)
        status.details.add().Pack(error_details_pb2.BadRequest(field_violations=[violation]))
    if error.retry_seconds is not None:
        delay = Duration()
        delay.FromNanoseconds(max(0, round(error.retry_seconds * 1e9)))
        status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=delay))
    return status


def status_of_any(error: BaseException, method: str) -> status_pb2.Status:
    """Like `status_of` for every exception; what is not ours is logged and answered with nothing but its stage.

    The log gets the error's type and place, never its text: that may quote the request.
    """
    if isinstance(error, SupervisorError):
        return status_of(error)
    log.error(
        "rpc_failed",
        method=method,
        error=type(error).__qualname__,
        traceback="".join(traceback.format_tb(error.__traceback__)),
    )
    return status_of(
        SupervisorError(
            f"internal error in {method}; the daemon's log says where",
            metadata={"stage": method, "error": type(error).__qualname__},
        )
    )


async def abort(context: grpc.aio.ServicerContext, status: status_pb2.Status) -> NoReturn:
    """End the RPC with `status`; always raises."""
    await context.abort_with_status(rpc_status.to_status(status))
    raise AssertionError("abort_with_status returned")


def _bounded(metadata: dict[str, str]) -> dict[str, str]:
    room = MAX_METADATA_BYTES
    kept: dict[str, str] = {}
    for key, value in metadata.items():
        key = clip(key, 64)
        value = clip(str(value), MAX_VALUE_BYTES)
        room -= len(key.encode()) + len(value.encode())
        if room < 0:
            break
        kept[key] = value
    return kept
