"""Who sent a request. Over a Unix socket the modes of socket and directory decide; over TCP the client's certificate."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import grpc

from supervisor.errors import InvalidRequest
from supervisor.model import Peer

LOCAL = Peer(local=True)


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files of mutual TLS: our certificate chain, its key, and the authorities that clients must descend from."""

    certificate: str
    key: str
    client_ca: str


def peer_of(context: grpc.aio.ServicerContext) -> Peer:
    """The peer of an RPC; a remote one bears the common name of the certificate it proved to have."""
    if context.peer().startswith("unix:"):
        return LOCAL
    names = list(context.auth_context().get("x509_common_name") or ())
    return Peer(local=False, name=names[0].decode("utf-8", "replace") if names else "")


def server_credentials(tls: TlsFiles) -> grpc.ServerCredentials:
    """Credentials that ask every client for a certificate. Raises InvalidRequest naming the file that is no use."""
    pem: dict[str, bytes] = {}
    for field, path in (("tls_cert", tls.certificate), ("tls_key", tls.key), ("tls_client_ca", tls.client_ca)):
        try:
            pem[field] = Path(path).read_bytes()
        except OSError as error:
            raise InvalidRequest(f"{field}: cannot read {path}: {error.strerror}", field=field) from error
        if b"-----BEGIN " not in pem[field]:
            raise InvalidRequest(f"{field}: {path} is not a PEM file", field=field)
    return grpc.ssl_server_credentials(
        [(pem["tls_key"], pem["tls_cert"])], root_certificates=pem["tls_client_ca"], require_client_auth=True
    )
