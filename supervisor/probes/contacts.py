"""Whom a run addressed: its network records, summed up."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable
from dataclasses import dataclass

from supervisor.model import TracedAddress
from supervisor.probes.layout import HEAD, NETWORK, SOCKET, TYPE_AT, RecordType, upward

OPERATIONS = ("", "connect", "send", "bind", "packet", "listen", "accept")
SHOWN_MAX = 200


@dataclass(frozen=True, slots=True)
class Contact:
    """One network or socket record. `time_ns` is CLOCK_MONOTONIC's; the call's number and result: a socket's.

    Of a Unix socket `address` is its path, or "@" and its name in the abstract namespace, and `protocol` is "unix".
    """

    time_ns: int
    pid: int
    tid: int
    operation: str
    denied: bool
    protocol: str
    address: str
    port: int
    result: int = 0
    number: int = 0


def is_contact(record: bytes) -> bool:
    return record[TYPE_AT] in (RecordType.NETWORK, RecordType.SOCKET)


def read_contact(record: bytes) -> Contact:
    if record[TYPE_AT] == RecordType.SOCKET:
        return _read_socket(record)
    time_ns, _, pid, tid, _, _, _ = HEAD.unpack_from(record)
    operation, denied, _family, kind, protocol, port, packed = NETWORK.unpack_from(record)
    return Contact(
        time_ns, pid, tid, OPERATIONS[operation], bool(denied), _protocol(kind, protocol), address_text(packed), port
    )


def _read_socket(record: bytes) -> Contact:
    time_ns, _, pid, tid, _, _, _ = HEAD.unpack_from(record)
    result, number, operation, family, kind, ip, port, packed, resolved, size, path = SOCKET.unpack_from(record)
    if family == socket.AF_UNIX:
        protocol, address = "unix", upward(path[:size]) if resolved else _unix_name(path[:size])
    else:
        protocol, address = _protocol(kind, ip), address_text(packed)
    return Contact(time_ns, pid, tid, OPERATIONS[operation], False, protocol, address, port, result, number)


def _unix_name(name: bytes) -> str:
    """unix(7): a path ends at its NUL, a name in the abstract namespace begins with one and may have more."""
    abstract = name[:1] == b"\0"
    words = name[1:] if abstract else name.split(b"\0", 1)[0]
    return "@" * abstract + words.decode("utf-8", "replace")


def address_text(packed: bytes) -> str:
    address = ipaddress.IPv6Address(packed)
    return str(address.ipv4_mapped or address)


def _protocol(kind: int, protocol: int) -> str:
    names: dict[int, str] = {
        socket.IPPROTO_TCP: "tcp",
        socket.IPPROTO_UDP: "udp",
        socket.IPPROTO_ICMP: "icmp",
        58: "icmp",
    }
    kinds: dict[int, str] = {socket.SOCK_STREAM: "tcp", socket.SOCK_DGRAM: "udp"}
    return names.get(protocol) or kinds.get(kind, str(protocol))


class Contacts:
    """Fed with a run's records; keeps one entry for each (operation, protocol, address, port, denied), the first of them."""

    def __init__(self) -> None:
        self._first: dict[tuple[str, str, str, int, bool], Contact] = {}
        self._counts: dict[tuple[str, str, str, int, bool], int] = {}

    def add(self, records: Iterable[bytes]) -> None:
        for record in records:
            if not is_contact(record):
                continue
            one = read_contact(record)
            key = (one.operation, one.protocol, one.address, one.port, one.denied)
            if key in self._first:
                self._counts[key] += 1
            elif len(self._first) < SHOWN_MAX:
                self._first[key] = one
                self._counts[key] = 1

    def shown(self) -> tuple[TracedAddress, ...]:
        return tuple(
            TracedAddress(one.operation, one.protocol, one.address, one.port, self._counts[key], one.denied)
            for key, one in self._first.items()
        )

    def denied(self) -> list[Contact]:
        """The first try of each that was denied."""
        return [one for one in self._first.values() if one.denied]
