"""Finding the daemon: the one that was named, the one that listens here, else one of our own."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from supervisor import errors
from supervisor.client.channel import DEFAULT_ADDRESS
from supervisor.client.errors_wire import unreachable
from supervisor.client.sync_client import Supervisor


@contextmanager
def daemon(*, embed: bool = False) -> Iterator[Supervisor]:
    """A client of the daemon. With `embed`, and none listening at the default address, of one that lives as long.

    An address that SUPERVISOR_ADDRESS names is never replaced. Raises Unreachable where nobody listens, HostLacks where
    no daemon can be embedded (not root, not Linux).
    """
    if named() or listening():
        with Supervisor() as client:
            yield client
    elif embed:
        with _embedded() as client:
            yield client
    else:
        raise unreachable(DEFAULT_ADDRESS, "nobody listens there")


def named() -> bool:
    """True where the environment says which daemon is meant."""
    return bool(os.environ.get("SUPERVISOR_ADDRESS"))


def listening(address: str = DEFAULT_ADDRESS) -> bool:
    """True where something accepts connections at the Unix socket `address`. Raises Unreachable where we may not."""
    path = address.removeprefix("unix://")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EPERM):
                raise errors.Unreachable(
                    f"may not connect to {path}: {error.strerror}; the socket is for root and its group",
                    metadata={"address": address, "remedy": f"join the group of {path}, or use sudo"},
                ) from error
            return False
    return True


@contextmanager
def _embedded() -> Iterator[Supervisor]:
    try:
        from supervisor.daemon import EmbeddedDaemon
    except ImportError as error:
        raise errors.HostLacks(
            f"no daemon listens at {DEFAULT_ADDRESS}, and none can be started here: {error}",
            metadata={"feature": "daemon", "remedy": "name a daemon in SUPERVISOR_ADDRESS"},
        ) from error
    with EmbeddedDaemon() as address, Supervisor(address) as client:
        yield client
