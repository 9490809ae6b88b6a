"""What this host can enforce, for people: each feature, what is lost without it and the remedy."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from typing import Final

from supervisor.linux.features import REQUIRED, describe
from supervisor.linux.host import DEFAULT_STATE_DIR, probe_host
from supervisor.model import Feature
from supervisor.probes.load import open_probes

required: Final[frozenset[str]] = REQUIRED
"""What the default policy, `strict`, cannot do without."""

_DOCKER_SECONDS = 1.0


def report(
    state_dir: str | os.PathLike[str] = DEFAULT_STATE_DIR, environ: Mapping[str, str] = os.environ
) -> list[Feature]:
    """Every feature that some part of the design uses, also where this host's policies do without; probed anew.

    In the catalogue's order. DOCKER_HOST in `environ` says where a Docker daemon is looked for.
    """
    return [*probe_host(state_dir).features.values(), *probe_trace(), probe_docker(environ.get("DOCKER_HOST", ""))]


def probe_trace() -> list[Feature]:
    """Whether the probes can be loaded and attached; they are taken back at once."""
    probes, features = open_probes("", slots=1)
    if probes is not None:
        probes.close()
    return features


def probe_docker(address: str = "") -> Feature:
    """Whether a Docker daemon answers a ping at `address` (unix:///PATH or tcp://HOST:PORT; empty: Docker's own)."""
    address = address or "unix:///var/run/docker.sock"
    try:
        with _connect(address) as connection:
            connection.settimeout(_DOCKER_SECONDS)
            connection.sendall(b"GET /_ping HTTP/1.0\r\nHost: docker\r\n\r\n")
            answer = connection.recv(4096)
    except (OSError, ValueError) as error:
        return describe("docker", False, f"{address}: {error}")
    alive = b" 200 " in answer.split(b"\r\n", 1)[0]
    return describe("docker", alive, address if alive else f"{address}: answers, but not as Docker does")


def _connect(address: str) -> socket.socket:
    scheme, _, rest = address.partition("://")
    if scheme == "unix":
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(_DOCKER_SECONDS)
            connection.connect(rest)
        except OSError:
            connection.close()
            raise
        return connection
    host, _, port = rest.rpartition(":")
    if scheme != "tcp" or not port.isdigit():
        raise ValueError("neither unix:///PATH nor tcp://HOST:PORT")
    return socket.create_connection((host, int(port)), _DOCKER_SECONDS)
