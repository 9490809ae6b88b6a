"""Finding the daemon: the one that was named, the one that listens here, else one of our own."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from supervisor import errors
from supervisor.client.channel import default_address
from supervisor.client.errors_wire import not_allowed, unreachable
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
        raise unreachable(default_address(), "nobody listens there")


def named() -> bool:
    """True where the environment says which daemon is meant."""
    return bool(os.environ.get("SUPERVISOR_ADDRESS"))


def listening(address: str | None = None) -> bool:
    """True where something accepts connections at the Unix socket `address`, else the default one.

    Raises Unreachable where we may not use it.
    """
    path = (address or default_address()).removeprefix("unix://")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EPERM):
                raise not_allowed(f"unix://{path}", os.strerror(error.errno)) from error
            return False
    return True


@contextmanager
def _embedded() -> Iterator[Supervisor]:
    try:
        from supervisor.daemon import EmbeddedDaemon
    except ImportError as error:
        raise errors.HostLacks(
            f"no daemon listens at {default_address()}, and none can be started here: {error}",
            metadata={"feature": "daemon", "remedy": "name a daemon in SUPERVISOR_ADDRESS"},
        ) from error
    with EmbeddedDaemon() as address, Supervisor(address) as client:
        yield client
