"""Whom a run addressed: its network records, summed up."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable
from dataclasses import dataclass

from supervisor.model import TracedAddress
from supervisor.probes.layout import HEAD, NETWORK, RecordType

OPERATIONS = ("", "connect", "send", "bind", "packet")
SHOWN_MAX = 200


@dataclass(frozen=True, slots=True)
class Contact:
    """One network record. `time_ns` is CLOCK_MONOTONIC's."""

    time_ns: int
    pid: int
    tid: int
    operation: str
    denied: bool
    protocol: str
    address: str
    port: int


def read_contact(record: bytes) -> Contact:
    time_ns, _, pid, tid, _, _, _ = HEAD.unpack_from(record)
    operation, denied, _family, kind, protocol, port, packed = NETWORK.unpack_from(record)
    return Contact(
        time_ns, pid, tid, OPERATIONS[operation], bool(denied), _protocol(kind, protocol), address_text(packed), port
    )


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
            if HEAD.unpack_from(record)[4] != RecordType.NETWORK:
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
