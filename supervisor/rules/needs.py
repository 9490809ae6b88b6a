"""What the kernel's side has to know of a set of rules: what to tell at once, what is fatal by itself, which names to look for.

A rule that hangs on a number alone and kills is carried out by the probes: the call's caller dies before its next
instruction. All others are decided here, on the record.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntFlag

from supervisor.policy import Rule
from supervisor.rules.denied import Denied, denied_of
from supervisor.rules.kinds import NAMED_FILES
from supervisor.rules.patterns import literal_name

NAME_BYTES = 19
"""As much of a name as the kernel compares; NAME_KEY_SIZE of bpf/records.h less its NUL."""
READ, WRITE, EXEC = 1, 2, 4
"""enum name_use."""
CLASS_SHIFT = 8

FILE_CLASSES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("other", ()),
    ("system", ("usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32", "opt", "boot")),
    ("config", ("etc",)),
    ("proc", ("proc",)),
    ("sys", ("sys",)),
    ("device", ("dev",)),
    ("temporary", ("tmp",)),
    ("work", ("work",)),
    ("home", ("home", "root")),
    ("state", ("var", "run", "srv")),
)
"""Of opened files, by the first name of their path; the number of a class is its place."""


class Mark(IntFlag):
    """enum mark of bpf/records.h."""

    EXEC = 1 << 0
    EXEC_MEMFD = 1 << 1
    EXEC_DELETED = 1 << 2
    SOCKET = 1 << 3
    SETUID_BIT = 1 << 4
    CREDENTIALS = 1 << 5
    PROTECT = 1 << 6
    WX = 1 << 7
    MEMFD = 1 << 8
    IO_URING = 1 << 9
    REFUSED = 1 << 10
    CALL = 1 << 11
    UNLINK = 1 << 12
    NAME = 1 << 13
    SCRIPT = 1 << 14
    PIPED = 1 << 15
    EXEC_SOCKET = 1 << 16
    MAP_MEMFD = 1 << 17


MARK_OF_KIND = {
    "dup": Mark.SOCKET,
    "setuid": Mark.SETUID_BIT,
    "credentials": Mark.CREDENTIALS,
    "mprotect": Mark.PROTECT,
    "mmap": Mark.WX,
    "memfd": Mark.MEMFD,
    "io_uring": Mark.IO_URING,
    "refused": Mark.REFUSED,
    "syscall": Mark.CALL,
}
_MARK_OF_FILE = {"memory": Mark.EXEC_MEMFD, "deleted": Mark.EXEC_DELETED}


@dataclass(frozen=True, slots=True)
class Needs:
    """`names`, `calls` and `denied` are for the maps of the same names; two sets with one digest need the same.

    `deniers`: the names of the rules that `denied` numbers.
    """

    wake: Mark
    kill: Mark
    names: tuple[tuple[bytes, int], ...]
    calls: tuple[str, ...]
    denied: tuple[Denied, ...]
    deniers: tuple[str, ...]
    digest: bytes


def needs_of(rules: Sequence[Rule]) -> Needs:
    wake = kill = Mark(0)
    names: dict[bytes, int] = {}
    calls: set[str] = set()
    for number, (_, tops) in enumerate(FILE_CLASSES):
        for top in tops:
            names[top.encode()] = number << CLASS_SHIFT
    for rule in rules:
        for kind in rule.on:
            marks = _marks(kind, rule)
            wake |= marks
            if rule.action == "kill" and rule.count == 1 and not rule.near and marks and _by_mark_alone(kind, rule):
                kill |= marks
            if kind in (*NAMED_FILES, "exec"):
                for name, use in _names(kind, rule):
                    names[name] = names.get(name, 0) | use
            # What kills is seccomp's, which has its own evidence.
            if kind == "syscall" and rule.action != "kill":
                calls.update(rule.match["syscall"])
    held = tuple(sorted(names.items())), tuple(sorted(calls)), *denied_of(rules)
    digest = hashlib.sha256(repr((int(wake), int(kill), held)).encode()).digest()
    return Needs(wake, kill, *held, digest)


def _marks(kind: str, rule: Rule) -> Mark:
    if kind == "exec":
        by_file = [_MARK_OF_FILE[word] for word in rule.match.get("file", ()) if word in _MARK_OF_FILE]
        marks = _union(by_file)
        if "socket" in rule.match.get("stdio", ()):
            marks |= Mark.EXEC_SOCKET
        # Whatever else it asks for is seen on the record of the exec, which comes in any case; NAME is for forbidden ones.
        return marks if marks and _by_mark_alone(kind, rule) else Mark.EXEC | Mark.NAME
    if kind == "mmap" and "file" in rule.match:
        return Mark.MAP_MEMFD
    if kind in NAMED_FILES:
        return Mark.NAME if "path" in rule.match else Mark.UNLINK
    if kind == "syscall" and rule.action == "kill":
        return Mark(0)
    return MARK_OF_KIND.get(kind, Mark(0))


def _by_mark_alone(kind: str, rule: Rule) -> bool:
    if kind == "exec":
        fields = set(rule.match)
        # Two of them together are more than one mark says.
        if fields == {"stdio"}:
            return rule.match["stdio"] == ("socket",)
        return fields == {"file"} and "script" not in rule.match["file"]
    return kind in MARK_OF_KIND and kind not in ("syscall", "refused") and not rule.match


def _names(kind: str, rule: Rule) -> Iterable[tuple[bytes, int]]:
    use = EXEC if kind == "exec" else WRITE
    if kind == "open":
        access = rule.match.get("access", ("read", "write"))
        use = (READ if "read" in access else 0) | (WRITE if "write" in access else 0)
    for field in ("path", "to"):
        for pattern in rule.match.get(field, ()):
            name = literal_name(pattern)
            if name:
                yield name.encode()[:NAME_BYTES], use


def _union(marks: Iterable[Mark]) -> Mark:
    found = Mark(0)
    for mark in marks:
        found |= mark
    return found
