"""What a rule's match is made of: patterns of paths, of texts, networks, port ranges. No pattern takes more than linear
time in a name, whatever it is."""

from __future__ import annotations

import fnmatch
import functools
import ipaddress
import re
from collections.abc import Callable, Sequence

ANY_DEPTH = "**"
_WILD = frozenset("*?[")
PATTERN_MAX = 1024

Test = Callable[[str], bool]


@functools.lru_cache(4096)
def _part(pattern: str) -> re.Pattern[str]:
    """fnmatch's: it looks for the text behind each star once and never again (atomic groups)."""
    return re.compile(fnmatch.translate(pattern), re.DOTALL)


@functools.lru_cache(4096)
def is_literal(part: str) -> bool:
    return not _WILD & set(part)


def path_parts(pattern: str) -> tuple[str, ...]:
    """The names of a pattern of paths. One that does not begin with a slash may begin anywhere."""
    names = [part for part in pattern.split("/") if part not in ("", ".")]
    if not pattern.startswith("/") and names[:1] != [ANY_DEPTH]:
        names = [ANY_DEPTH, *names]
    return tuple(names)


def literal_name(pattern: str) -> str:
    """A whole name of a pattern of paths, by which the kernel finds what is worth a look; empty: it has none.

    The last one, unless another begins with a dot: those are rarer.
    """
    whole = [part for part in path_parts(pattern) if is_literal(part)]
    return next((part for part in whole if part.startswith(".")), whole[-1] if whole else "")


@functools.lru_cache(64)
def _names_of(path: str) -> tuple[tuple[str, ...], frozenset[str]]:
    """One path is held against every pattern of every rule in turn."""
    names = tuple(name for name in path.split("/") if name)
    return names, frozenset(names)


def path_test(pattern: str) -> Test:
    """`*` and `?` stay within a name, `**` is any number of names, none included. `/a/**` is /a itself too."""
    parts = path_parts(pattern)
    literal = literal_name(pattern)

    def test(path: str) -> bool:
        names, known = _names_of(path)
        return (not literal or literal in known) and _match(parts, names)

    return test


def _match(parts: Sequence[str], names: Sequence[str]) -> bool:
    """As of letters: only the last `**` ever has to be tried anew."""
    part = name = 0
    star, resume = -1, 0
    while name < len(names):
        if part < len(parts) and parts[part] == ANY_DEPTH:
            if part == len(parts) - 1:
                return True
            star, resume = part, name
            part += 1
        elif part < len(parts) and (parts[part] == names[name] or _fits(parts[part], names[name])):
            part += 1
            name += 1
        elif star >= 0:
            resume += 1
            part, name = star + 1, resume
        else:
            return False
    return all(part == ANY_DEPTH for part in parts[part:])


def _fits(part: str, name: str) -> bool:
    return not is_literal(part) and _part(part).match(name) is not None


def text_test(pattern: str) -> Test:
    compiled = re.compile(fnmatch.translate(pattern), re.DOTALL)
    return lambda text: compiled.match(text) is not None


def network_test(pattern: str) -> Test:
    """An address or NETWORK/BITS. Raises ValueError."""
    network = ipaddress.ip_network(pattern, strict=False)

    def test(text: str) -> bool:
        try:
            return ipaddress.ip_address(text) in network
        except ValueError:
            return False

    return test


def port_range(pattern: str) -> tuple[int, int]:
    """PORT or FIRST-LAST. Raises ValueError."""
    first, dash, last = pattern.partition("-")
    low, high = int(first), int(last) if dash else int(first)
    if not 0 <= low <= high <= 65535:
        raise ValueError(f"{pattern} is no range of ports")
    return low, high


def port_test(pattern: str) -> Test:
    low, high = port_range(pattern)
    return lambda text: text.isdigit() and low <= int(text) <= high


def any_of(tests: Sequence[Test]) -> Test:
    if len(tests) == 1:
        return tests[0]
    return lambda text: any(test(text) for test in tests)
