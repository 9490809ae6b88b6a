"""What rules can be about: each kind of event, the fields that its rules may match, and the words that a field knows."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from supervisor.rules.denied import DENIABLE_FILES, check_denial
from supervisor.rules.patterns import (
    PATTERN_MAX,
    Test,
    any_of,
    literal_name,
    network_test,
    path_test,
    port_test,
    text_test,
)
from supervisor.syscall_sets import KNOWN_SYSCALLS

_PROCESS = ("exe", "comm")
_FILE = ("path", "result")
_ADDRESS = ("address", "port", "protocol", "denied")
_SOCKET = ("address", "port", "protocol")

FIELDS: Final[Mapping[str, tuple[str, ...]]] = {
    "exec": ("path", "argv", "file", "stdio", "result"),
    "fork": (),
    "exit": ("signal",),
    "open": ("access", *_FILE),
    "write": _FILE,
    "unlink": _FILE,
    "rename": ("to", *_FILE),
    "chmod": _FILE,
    "link": ("to", *_FILE),
    "mkdir": _FILE,
    "connect": _ADDRESS,
    "send": _ADDRESS,
    "bind": _ADDRESS,
    "listen": _SOCKET,
    "accept": _SOCKET,
    "unix": ("path", "operation", "result"),
    "dns": ("address", "denied"),
    "dup": ("syscall",),
    "setuid": ("result",),
    "credentials": ("syscall",),
    "mprotect": ("prot",),
    "mmap": ("file",),
    "memfd": ("result",),
    "io_uring": ("result",),
    "refused": ("syscall", "result"),
    "syscall": ("syscall", "result"),
}
"""Beside these every kind has `exe`, the program that the process is, before an exec for `exec`, and `comm`, its name."""

NAMED_FILES: Final = ("open", "write", "unlink", "rename", "chmod", "link", "mkdir")
"""Kinds whose path the kernel looks for by a name in it."""
ADDRESSED: Final = ("connect", "send")
DENIABLE: Final = (*ADDRESSED, "syscall", *DENIABLE_FILES)
"""Kinds that hooks can refuse; files only where the host takes BPF programs for LSM hooks."""

_WORDS: Final[Mapping[str, frozenset[str]]] = {
    "access": frozenset({"read", "write"}),
    "file": frozenset({"memory", "deleted", "script"}),
    "stdio": frozenset({"socket", "pipe"}),
    "protocol": frozenset({"tcp", "udp", "icmp"}),
    "denied": frozenset({"true", "false"}),
    "prot": frozenset({"rx", "rwx"}),
    "operation": frozenset({"connect", "send", "bind", "listen", "accept"}),
    "result": frozenset({"ok", "failed", *errno.errorcode.values()}),
}
_MAKERS: Final[Mapping[str, Callable[[str], Test]]] = {
    **dict.fromkeys(("path", "to", "exe"), path_test),
    **dict.fromkeys(("argv", "comm", "syscall", "signal"), text_test),
    "address": network_test,
    "port": port_test,
}


def field_test(field: str, patterns: Sequence[str]) -> Test:
    """Whether a value of the field fits one of the patterns. Raises ValueError."""
    words = _WORDS.get(field)
    if words is None:
        return any_of([_MAKERS[field](pattern) for pattern in patterns])
    chosen = frozenset(patterns)
    return lambda value: value in chosen or (field == "result" and value not in ("", "ok") and "failed" in chosen)


def check_rule(
    kinds: Sequence[str],
    match: Mapping[str, Sequence[str]],
    action: str,
    count: int,
    distinct: Sequence[str],
    near: str,
) -> None:
    """Raises ValueError for a rule that could never match, or whose action nothing could carry out."""
    for kind in kinds:
        _check_match(kind, match)
        for field in distinct:
            if field not in (*FIELDS[kind], *_PROCESS):
                raise ValueError(f"distinct: an event of kind {kind} has no field '{field[:64]}'")
        if action == "deny" and kind not in DENIABLE:
            raise ValueError(
                f'action: {kind} cannot be denied by a rule, only {", ".join(DENIABLE)}; or say action = "kill"'
            )
        if action == "deny" and kind in DENIABLE_FILES:
            check_denial(kind, match)
        if kind == "syscall" and action in ("deny", "kill") and set(match) != {"syscall"}:
            raise ValueError(f"action: {action} of a system call hangs on its name alone; leave the other fields out")
        if kind in ADDRESSED and action == "deny" and set(match) - {"address", "port"}:
            raise ValueError("action: a denial hangs on address and port alone; leave the other fields out")
    if distinct and count < 2:
        raise ValueError("distinct: has a meaning only with a count above 1")
    if near and count > 1:
        raise ValueError("near: a rule either counts or looks for another near it")
    if action == "deny" and (count > 1 or near):
        raise ValueError("action: what is counted has happened and cannot be denied")


def _check_match(kind: str, match: Mapping[str, Sequence[str]]) -> None:
    known = (*FIELDS[kind], *_PROCESS)
    for field, patterns in match.items():
        if field not in known:
            raise ValueError(
                f"match.{field[:64]}: an event of kind {kind} has no such field (it has {', '.join(known)})"
            )
        if not patterns:
            raise ValueError(f"match.{field}: an empty list matches nothing")
        _check_patterns(field, patterns)
    if kind in NAMED_FILES:
        for pattern in match.get("path", ()):
            if not literal_name(pattern):
                raise ValueError(
                    f"match.path: '{pattern[:64]}' needs one name without wildcards to be looked for by, as in **/.ssh/**"
                )
        if kind != "unlink" and "path" not in match:
            raise ValueError(f"match.path: a rule about {kind} names the files it is about")
    if kind == "syscall":
        if "syscall" not in match:
            raise ValueError("match.syscall: a rule about system calls names them")
        for name in match["syscall"]:
            if name not in KNOWN_SYSCALLS:
                raise ValueError(f"match.syscall: unknown system call '{name[:64]}'")


def _check_patterns(field: str, patterns: Sequence[str]) -> None:
    words = _WORDS.get(field)
    for pattern in patterns:
        if not pattern or "\0" in pattern or len(pattern) > PATTERN_MAX:
            raise ValueError(f"match.{field}: a pattern has 1 to {PATTERN_MAX} characters, none of them NUL")
        if words is not None and pattern not in words:
            raise ValueError(f"match.{field}: '{pattern[:64]}' is none of {', '.join(sorted(words)[:12])}")
    try:
        field_test(field, patterns)
    except (ValueError, re.error) as error:
        raise ValueError(f"match.{field}: {error}"[:200]) from None
