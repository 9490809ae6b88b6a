"""What runs needed of their policy, as far as their traces tell: system calls, places, addresses. Pure.

A trace gives the path of an opened file as the kernel resolved it; of any other call, as the program named it: relative to a
directory that the trace does not tell, perhaps through a symbolic link. Where it could have been several places, all of them
count as used, so that what is learnt from it rather allows one too many than stops the program.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Protocol

from supervisor.model import TraceSummary
from supervisor.policy import Policy
from supervisor.policy_diff import is_below
from supervisor.syscall_actions import Actions, error_number, guards_of
from supervisor.syscall_sets import KNOWN_SYSCALLS

TMP = ("/tmp", "/dev/shm")
WORK = "/work"

_WRITES = {"unlink", "rename", "link", "mkdir", "mknod", "chmod", "write"}
"""Kinds of events by which a file system is changed; an open for writing is told by its flags."""
_UNPLACED_WRITES = {
    "bind", "fchmod", "fchown", "utime", "utimes", "utimensat", "futimesat", "file_setattr", "setxattrat", "lsetxattr",
    "fsetxattr", "removexattr", "removexattrat", "lremovexattr", "fremovexattr",
}  # fmt: skip
"""Calls that change a file, or make one, of which the trace does not tell where."""
_DUPLICATES = {"dup", "dup2", "dup3", "fcntl"}
_F_DUPFD, _F_DUPFD_CLOEXEC = 0, 1030
_PROT_EXEC, _MAP_ANONYMOUS = 0x4, 0x20
_LONGEST, _DEEPEST = 180, 24
"""Of paths that a trace resolves as a whole (bpf/files.h)."""
_NO_FILE = "/"
"""What the path of a pipe, or of memory that was opened by way of /proc, is resolved to: it lies in no place."""
_ANYWHERE = ("/proc", "/dev/fd")


class Event(Protocol):
    """What is read of a trace's event; see model.TraceEvent."""

    @property
    def kind(self) -> str: ...
    @property
    def pid(self) -> int: ...
    @property
    def syscall(self) -> str: ...
    @property
    def result(self) -> int: ...
    @property
    def args(self) -> Sequence[int]: ...
    @property
    def path(self) -> str: ...
    @property
    def argv(self) -> Sequence[str]: ...
    @property
    def address(self) -> str: ...
    @property
    def port(self) -> int: ...
    @property
    def detail(self) -> str: ...


class Observed:
    """Gathers what runs under `policy` needed; feed it each run with `add`, then ask."""

    def __init__(self, policy: Policy) -> None:
        self._actions = Actions(policy.syscalls)
        files = policy.filesystem
        self._places = (*TMP, WORK, *files.read_only, *files.read_write)
        self.calls: Counter[str] = Counter()
        self.addresses: set[tuple[str, int]] = set()
        """Contacted on the host's network, refused ones not among them."""
        self.serves = False
        """Whether a run on the host's network took a port of its choice, listened, or spoke neither TCP nor UDP."""
        self._guarded: Counter[tuple[str, str]] = Counter()
        self._paths: set[str] = set()
        self._written: set[str] = set()
        self._executed: set[str] = set()
        self._anything = False
        self._written_anywhere = False
        self._links = False

    def add(self, summary: TraceSummary, events: Iterable[Event], *, host_network: bool) -> None:
        """One run: its counts, which are never lost, and its events, none where there is no full trace.

        Of a run whose events are not all there, whatever its policy let it do with files counts as done.
        """
        self.calls.update({name: count.calls for name, count in summary.syscalls.items()})
        self._anything |= summary.level != "full" or not summary.complete
        if host_network:
            for one in summary.addresses:
                self._contact(one.operation, one.address, one.port, one.protocol, one.denied)
            listen = summary.syscalls.get("listen")
            self.serves |= listen is not None and listen.calls > listen.errors
        _Run(self, host_network).read(events)

    @property
    def nameless(self) -> tuple[str, ...]:
        """What was called and no policy can name: calls of other ABIs, or newer than our list."""
        return tuple(sorted(name for name in self.calls if name not in KNOWN_SYSCALLS))

    def refused_by_guard(self, call: str) -> str:
        """The error that a guard answered to every single one of these calls; empty where one was let through."""
        answers = {error: count for (name, error), count in self._guarded.items() if name == call}
        (error, count), *more = answers.items() or (("", 0),)
        return error if count >= self.calls[call] > 0 and not more else ""

    def used(self, place: str) -> bool:
        """Whether something in `place` was opened, executed or named."""
        return self._anything or any(is_below(path, place) for path in self._paths)

    def written(self, *places: str) -> bool:
        """Whether something in one of `places` may have been changed."""
        # What a link made of a name is not known.
        unsure = self._links or any(map(_leads_anywhere, self._written))
        return self._written_anywhere or self._happened(self._written, places, unsure)

    def executed(self, *places: str) -> bool:
        """Whether something in one of `places` may have been executed, or mapped to be."""
        return self._happened(self._executed, places, any(map(_leads_anywhere, self._executed)))

    @property
    def written_elsewhere(self) -> bool:
        """Whether something was changed that lies in no place of the policy: then it was mounted for the request."""
        mine = (*self._places, "/dev", "/proc")
        return any(path and not any(is_below(path, one) for one in mine) for path in self._written)

    def _happened(self, paths: set[str], places: Sequence[str], unsure: bool) -> bool:
        """Where it is not sure what was named, it may have been in /work, where runs begin, and in every place that was used."""
        if self._anything or any(is_below(path, place) for path in paths for place in places):
            return True
        return unsure and (WORK in places or any(map(self.used, places)))

    def _contact(self, operation: str, address: str, port: int, protocol: str, denied: bool) -> None:
        if denied or not _is_address(address):
            return
        if operation == "bind":
            self.serves |= port != 0
        elif operation in ("connect", "send"):
            self.addresses.add((address, port))
            self.serves |= protocol not in ("tcp", "udp")


class _Run:
    """Reads one run's events; of each process, what its descriptors were opened on."""

    def __init__(self, into: Observed, host_network: bool) -> None:
        self._into = into
        self._host_network = host_network
        self._files: dict[int, dict[int, str]] = {}
        self._mapped: set[str] = set()
        self._makes_executable = False

    def read(self, events: Iterable[Event]) -> None:
        for event in events:
            if event.kind == "syscall":
                self._call(event)
            elif event.kind == "exec":
                self._files.pop(event.pid, None)
                # Of a script the first word is its interpreter.
                words = (event.path, *(word for word in event.argv[:1] if word.startswith("/")))
                self._into._paths.update(map(_normal, words))
                self._into._executed.update(map(_normal, words))
            elif event.kind == "fork":
                if event.detail == "process":
                    self._files[event.result] = dict(self._files.get(event.pid, {}))
            elif event.kind == "exit":
                pass
            elif event.address:
                if self._host_network:
                    protocol, _, denied = event.detail.partition(", ")
                    self._into._contact(event.kind, event.address, event.port, protocol, bool(denied))
            elif event.path and event.syscall:
                self._file(event)
        if self._makes_executable:
            self._into._executed.update(self._mapped)

    def _call(self, event: Event) -> None:
        name, result = event.syscall, event.result
        if result < 0:
            if guards_of(name) and event.args:
                answer = self._into._actions.refusal(name, event.args)
                if answer.error and result == -error_number(answer.error):
                    self._into._guarded[name, answer.error] += 1
        elif name == "mmap":
            self._map(event)
        elif name in ("mprotect", "pkey_mprotect"):
            self._makes_executable |= bool(event.args[2] & _PROT_EXEC)
        elif name == "close":
            self._opened(event.pid).pop(_int(event.args[0]), None)
        elif name == "close_range":
            opened = self._opened(event.pid)
            for fd in [fd for fd in opened if event.args[0] <= fd <= event.args[1]]:
                del opened[fd]
        elif name in _DUPLICATES:
            if name != "fcntl" or event.args[1] in (_F_DUPFD, _F_DUPFD_CLOEXEC):
                opened = self._opened(event.pid)
                opened[result] = opened.get(_int(event.args[0]), "")
        elif name == "memfd_create":
            self._opened(event.pid)[result] = _NO_FILE
        elif name in _UNPLACED_WRITES:
            self._into._written_anywhere = True

    def _map(self, event: Event) -> None:
        if event.args[3] & _MAP_ANONYMOUS:
            return
        path = self._opened(event.pid).get(_int(event.args[4]), "")
        self._mapped.add(path)
        if event.args[2] & _PROT_EXEC:
            self._into._executed.add(path)

    def _file(self, event: Event) -> None:
        into = self._into
        resolved = event.kind == "open" and event.result >= 0
        path = event.path
        if resolved and (len(path) > _LONGEST or path.count("/") > _DEEPEST):
            path = ""  # its beginning may be missing
        into._paths.add(path if resolved else _normal(path))
        if event.result < 0:
            return
        if resolved:
            self._opened(event.pid)[event.result] = path
            if _may_write(event) and path != _NO_FILE:
                into._written.add(path)
        elif event.kind in _WRITES:
            into._written.add(_normal(path))
            into._links |= event.syscall.startswith("symlink")
            if event.kind in ("rename", "link"):
                into._paths.add(_normal(event.detail))
                into._written.add(_normal(event.detail))

    def _opened(self, pid: int) -> dict[int, str]:
        return self._files.setdefault(pid, {})


def _may_write(event: Event) -> bool:
    """Of openat2 and creat the trace has no flags."""
    read_only = event.syscall in ("open", "openat") and event.detail.startswith("O_RDONLY")
    return not read_only or "O_CREAT" in event.detail or "O_TRUNC" in event.detail


def _int(register: int) -> int:
    """A descriptor, which is an int, of its register."""
    low = register & 0xFFFFFFFF
    return low - (1 << 32) if low >> 31 else low


def _normal(path: str) -> str:
    """`path` without '.' and '..', if it is absolute; empty, hence anywhere, if it is not or leads through /proc."""
    if not path.startswith("/"):
        return ""
    parts: list[str] = []
    for part in path.split("/"):
        if part == "..":
            del parts[-1:]
        elif part not in ("", "."):
            parts.append(part)
    found = "/" + "/".join(parts)
    return "" if _leads_anywhere(found) else found


def _leads_anywhere(path: str) -> bool:
    return not path or any(is_below(path, place) for place in _ANYWHERE)


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
