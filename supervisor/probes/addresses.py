"""Whom a run may reach: entries of a policy or a request, made rules for the kernel's longest-prefix map.

An entry is HOST, HOST:PORT or NETWORK/BITS[:PORT], IPv6 in brackets; `*` is every address, or every port. Names are looked up
once, when the run begins. Every rule holds the whole answer for its prefix, what wider prefixes say of other ports included,
since the kernel looks at the longest prefix alone.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from supervisor.errors import InvalidRequest
from supervisor.probes.layout import (
    ADDRESS_ALLOW,
    ADDRESS_DENY,
    ADDRESS_KEY,
    ADDRESS_KILL,
    ADDRESS_RULE_HEAD,
    PORT_RULE,
    PORT_RULES_MAX,
)

RULES_MAX = 1024
_ENTRY = re.compile(r"(?:\[([0-9A-Fa-f:.%]+)\]|([^\[\]:/]+))(?:/(\d+))?(?::(\d+(?:-\d+)?|\*))?")
_EVERY_PORT = (0, 65535)
_SLOT_BITS = 32

Addresses = tuple[ipaddress.IPv6Network, ...]
Lookup = Callable[[str], Sequence[str]]


@dataclass(frozen=True, slots=True)
class _Said:
    """What one entry says: of a network and some ports."""

    network: ipaddress.IPv6Network
    ports: tuple[int, int]
    verdict: int


@dataclass(frozen=True, slots=True)
class AddressRules:
    """Rules ready for the map: prefix, and the ports in the order in which they are tried. `deny_rest`: what no rule names."""

    rules: tuple[tuple[ipaddress.IPv6Network, tuple[tuple[int, int, int], ...]], ...]
    deny_rest: bool

    def entries(self, slot: int) -> list[tuple[bytes, bytes]]:
        """Keys and values for struct address_key and struct address_rule."""
        found = []
        for network, ports in self.rules:
            key = ADDRESS_KEY.pack(_SLOT_BITS + network.prefixlen, slot, network.network_address.packed)
            value = ADDRESS_RULE_HEAD.pack(len(ports), 0) + b"".join(PORT_RULE.pack(*one) for one in ports)
            found.append((key, value.ljust(ADDRESS_RULE_HEAD.size + PORT_RULES_MAX * PORT_RULE.size, b"\0")))
        return found


def make_rules(
    allow: Sequence[str],
    deny: Sequence[str],
    deny_rest: bool,
    lookup: Lookup | None = None,
    kill: Sequence[str] = (),
) -> AddressRules:
    """May wait for name servers. Raises InvalidRequest for a name that is not known, and for more than the maps hold."""
    find = lookup or look_up
    said = [*_read(kill, ADDRESS_KILL, find), *_read(deny, ADDRESS_DENY, find), *_read(allow, ADDRESS_ALLOW, find)]
    if allow and any(_is_name(entry) for entry in allow):
        # Names are of no use to a program that cannot ask for them.
        said += _read(
            [f"[{server}]:53" if ":" in server else f"{server}:53" for server in name_servers()], ADDRESS_ALLOW, list
        )
    networks = sorted({one.network for one in said}, key=lambda network: (network.prefixlen, network))
    if len(networks) > RULES_MAX:
        raise InvalidRequest(f"allow: more than {RULES_MAX} addresses and networks", field="allow")
    rules = []
    for network in networks:
        about = [one for one in said if network.subnet_of(one.network)]
        # The nearest word counts; of two that are equally near, the severer.
        about.sort(key=lambda one: (-one.network.prefixlen, -one.verdict))
        ports = tuple((*one.ports, one.verdict) for one in about)
        if len(ports) > PORT_RULES_MAX:
            raise InvalidRequest(f"allow: more than {PORT_RULES_MAX} rules about {network}", field="allow")
        rules.append((network, ports))
    return AddressRules(tuple(rules), deny_rest)


def _read(entries: Iterable[str], verdict: int, lookup: Lookup) -> list[_Said]:
    found = []
    for entry in entries:
        match = _ENTRY.fullmatch(entry)
        if match is None:
            raise InvalidRequest(f"allow: {entry} is not HOST:PORT (IPv6 in brackets)", field="allow")
        bracketed, plain, bits, port = match.groups()
        first, _, last = (port or "*").partition("-")
        ports = _EVERY_PORT if first == "*" else (int(first), int(last or first))
        found += [_Said(network, ports, verdict) for network in _networks(bracketed or plain, bits, lookup)]
    return found


def _networks(host: str, bits: str | None, lookup: Lookup) -> list[ipaddress.IPv6Network]:
    if host == "*":
        return [ipaddress.IPv6Network("::/0")]
    try:
        addresses = [host] if _is_address(host) else lookup(host)
        return [_mapped(ipaddress.ip_network(f"{one}/{bits}" if bits else one, strict=False)) for one in addresses]
    except ValueError as error:
        raise InvalidRequest(f"allow: {host}: {error}", field="allow") from None


def _mapped(network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> ipaddress.IPv6Network:
    """IPv4 as ::ffff:a.b.c.d, so that one rule holds for both ways of naming an address."""
    if isinstance(network, ipaddress.IPv6Network):
        return network
    return ipaddress.IPv6Network((b"\0" * 10 + b"\xff\xff" + network.network_address.packed, 96 + network.prefixlen))


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _is_name(entry: str) -> bool:
    match = _ENTRY.fullmatch(entry)
    return match is not None and match[2] not in (None, "*") and not _is_address(match[2])


def look_up(name: str) -> list[str]:
    """The addresses of a name, as the host resolves it. Raises InvalidRequest."""
    if "*" in name:
        raise InvalidRequest(
            f"allow: {name}: a pattern of names cannot be held to addresses; name the hosts", field="allow"
        )
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise InvalidRequest(f"allow: {name} cannot be looked up: {error}", field="allow") from None
    return sorted({str(entry[4][0]).partition("%")[0] for entry in found})


def name_servers(path: Path = Path("/etc/resolv.conf")) -> list[str]:
    """Those of resolv.conf(5)."""
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return []
    found = [line.split()[1] for line in lines if line.startswith("nameserver") and len(line.split()) > 1]
    return [server for server in found if _is_address(server)]
