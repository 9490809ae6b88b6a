"""What is sought in the traces: patterns, addresses and times of a request, checked. Pure; raises nothing but InvalidRequest."""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from supervisor.errors import InvalidRequest
from supervisor.policy import nearest
from supervisor.syscall_sets import KNOWN_SYSCALLS

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

DEFAULT_LIMIT = 1000
MAX_LIMIT = 100_000_000
MAX_WORDS = 64
MAX_PATTERN_CHARS = 1024
_MAX_SECONDS = 9e9
_HOST_AND_PORT = re.compile(r"\[([^\[\]]*)\](?::(.*))?|([^:\[\]]*)(?::([^:]*))?|([^\[\]]*)", re.DOTALL)
_UNNAMED_SYSCALL = re.compile(r"syscall_\d+|other|unknown")


@dataclass(frozen=True, slots=True)
class Pattern:
    """A glob(7) in which * matches / too, as in find -path.

    `regex` is RE2's and matches a whole text. What matches begins with `prefix`; where `literal`, it is just that.
    """

    glob: str
    regex: str
    prefix: str
    literal: bool


@dataclass(frozen=True, slots=True)
class AddressRange:
    """Addresses of `network`, or of any where it is None; `port` likewise."""

    network: Network | None
    port: int | None

    def holds(self, address: str) -> bool:
        """Whether the text `address` is in the network; an IPv4 address may be written as ::ffff:a.b.c.d."""
        if self.network is None:
            return True
        try:
            found = ipaddress.ip_address(address)
        except ValueError:
            return False
        mapped = found.ipv4_mapped if found.version == 6 else None
        return found in self.network or (mapped is not None and mapped in self.network)


@dataclass(frozen=True, slots=True)
class TraceQuery:
    """What an event must be to be found; what is empty or None selects everything. `since` and `until` are in Unix ns."""

    run_id: str = ""
    path: Pattern | None = None
    address: AddressRange | None = None
    syscalls: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    program: Pattern | None = None
    failed: bool = False
    since: int | None = None
    until: int | None = None
    limit: int = DEFAULT_LIMIT


def parse_pattern(text: str, field: str) -> Pattern:
    """*, ? and [...] as in glob(7); a backslash takes the meaning of the character after it."""
    regex, prefix, literal = _translate(text, field, ".")
    return Pattern(text, rf"(?s)\A{regex}\z", prefix, literal)


def parse_program(text: str, field: str) -> Pattern:
    """A pattern for a program's path: for the whole of it where the pattern has a /, else for its last component."""
    if "/" in text:
        return parse_pattern(text, field)
    regex, _, _ = _translate(text, field, "[^/]")
    return Pattern(text, rf"(?s)\A(?:.*/)?{regex}\z", "", False)


def _translate(text: str, field: str, one: str) -> tuple[str, str, bool]:
    """The expression, what stands before the first special character, and whether there is none; `one` is what ? stands for."""
    if len(text) > MAX_PATTERN_CHARS:
        raise InvalidRequest(f"{field} has more than {MAX_PATTERN_CHARS} characters", field=field)
    regex, prefix, literal, at = [], [], True, 0
    while at < len(text):
        character = text[at]
        at += 1
        if character in "*?[":
            literal = False
        if character == "*":
            regex.append(f"{one}*")
        elif character == "?":
            regex.append(one)
        elif character == "[":
            found, at = _class(text, at, field, "" if one == "." else "/")
            regex.append(found)
        else:
            if character == "\\":
                if at == len(text):
                    raise InvalidRequest(f"{field} ends with a backslash, which stands before a character", field=field)
                character = text[at]
                at += 1
            regex.append(re.escape(character))
            if literal:
                prefix.append(character)
    return "".join(regex), "".join(prefix), literal


def _class(text: str, start: int, field: str, never: str) -> tuple[str, int]:
    """The expression of a bracket whose content begins at `start`, and where the pattern goes on behind it.

    A negated one does not match `never` either.
    """
    negated = text[start : start + 1] in ("!", "^")
    first = start + negated
    end = text.find("]", first + 1)
    if end < 0:
        raise InvalidRequest(f"{field} has a '[' without its ']': {text!r}; write \\[ for the character", field=field)
    content = text[first:end]
    if "[:" in content:
        raise InvalidRequest(f"{field}: classes such as [:alpha:] are not known here: {text!r}", field=field)
    for low, high in re.findall("(.)-(.)", content, re.DOTALL):
        if low > high:
            raise InvalidRequest(f"{field}: the range {low}-{high} is the wrong way round: {text!r}", field=field)
    escaped = re.sub(r"([\\\[\]^&~|])", r"\\\1", content)
    return (f"[^{never}{escaped}]" if negated else f"[{escaped}]"), end + 1


def parse_address(text: str, field: str) -> AddressRange:
    """ADDRESS, ADDRESS:PORT, [IPv6]:PORT, a network such as 10.0.0.0/8 (with a port, too), or :PORT."""
    found = _HOST_AND_PORT.fullmatch(text)
    if found is None:
        raise InvalidRequest(f"{field} is not an address: {text[:200]!r}", field=field)
    bracketed, bracketed_port, plain, plain_port, bare = found.groups()
    host = next((part for part in (bracketed, plain, bare) if part is not None), "")
    port = bracketed_port if bracketed is not None else plain_port
    if not host and (port is None or bracketed is not None):
        raise InvalidRequest(f"{field} has neither an address nor a port: {text[:200]!r}", field=field)
    return AddressRange(_network(host, field) if host else None, None if port is None else _port(port, field))


def _network(host: str, field: str) -> Network:
    try:
        return ipaddress.ip_network(host, strict=False)
    except ValueError:
        raise InvalidRequest(
            f"{field}: {host[:200]!r} is neither an IP address nor a network such as 10.0.0.0/8; "
            "traces hold addresses, not names",
            field=field,
        ) from None


def _port(text: str, field: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 5 or int(text) > 0xFFFF:
        raise InvalidRequest(f"{field}: {text[:200]!r} is no port (0 to 65535)", field=field)
    return int(text)


def parse_moment(seconds: float, field: str) -> int:
    """Unix nanoseconds of Unix seconds."""
    if not math.isfinite(seconds) or not 0 <= seconds <= _MAX_SECONDS:
        raise InvalidRequest(f"{field} is {seconds}: Unix seconds were expected", field=field)
    return round(seconds * 1e9)


def parse_syscalls(names: Sequence[str], field: str) -> tuple[str, ...]:
    """Names that system calls have in a trace."""
    for name in names:
        if name not in KNOWN_SYSCALLS and not _UNNAMED_SYSCALL.fullmatch(name):
            hint = nearest(name, KNOWN_SYSCALLS)
            raise InvalidRequest(f"{field}: no system call is called {name[:64]!r}{hint}", field=field)
    return _few(names, field)


def parse_kinds(names: Sequence[str], field: str) -> tuple[str, ...]:
    """Kinds of event: more of them may be stored than are known today."""
    for name in names:
        if not re.fullmatch("[a-z_]{1,32}", name):
            raise InvalidRequest(f"{field}: {name[:64]!r} is no kind of event, such as exec or exit", field=field)
    return _few(names, field)


def _few(names: Sequence[str], field: str) -> tuple[str, ...]:
    if len(names) > MAX_WORDS:
        raise InvalidRequest(f"{field} has more than {MAX_WORDS} entries", field=field)
    return tuple(dict.fromkeys(names))


def parse_limit(limit: int, field: str) -> int:
    if not 0 <= limit <= MAX_LIMIT:
        raise InvalidRequest(f"{field} is {limit}: 1 to {MAX_LIMIT} was expected", field=field)
    return limit or DEFAULT_LIMIT
