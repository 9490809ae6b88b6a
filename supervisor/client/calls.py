"""Trace events as calls that people and programs read: each with its paths and addresses, arguments by their kind.

A trace has a call's registers in one event and the path or address it named in another of the same thread. `paired` brings them
together, streaming. Pure, for the client on any system.
"""

from __future__ import annotations

import ipaddress
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from supervisor.client.linux_words import SIGNATURES, error_name, makes_file, open_flags
from supervisor.client.result import TraceEvent

WINDOW_SECONDS = 0.005
"""How long after its call an event with the call's path may come; order is kept, so this is how far lines wait."""
_MOST_WAITING = 10_000
_MOST_BEFORE = 8
_ADDRESS_CALLS = {"sendmsg", "sendmmsg"}
_NOTICED = {
    *("dup", "dup2", "dup3", "fcntl", "mmap", "mprotect", "pkey_mprotect", "memfd_create", "io_uring_setup", "fchmod")
}
_EXECUTES = {"execve", "execveat"}
_LIVES = {"exec", "fork", "exit", "signal"}
_VIOLATION = "violation"
UNIX = "unix"
"""The detail of an event about a Unix socket, whose path is the socket's name."""
_ENDS = {"exit", "exit_group"}
_ADDRESSES = {"brk", "mmap", "mremap", "shmat"}
_AT_FDCWD = -100
_ESCAPES = {"\n": "\\n", "\t": "\\t", "\r": "\\r", "\v": "\\v", "\f": "\\f", '"': '\\"', "\\": "\\\\"}


@dataclass(slots=True)
class Entry:
    """An event, and what other events of its thread say of the same call."""

    event: TraceEvent
    details: list[TraceEvent] = field(default_factory=list)

    @property
    def executes(self) -> TraceEvent | None:
        """The event of the program that was executed, if that is what this is."""
        return next((event for event in (self.event, *self.details) if event.kind == "exec"), None)

    @property
    def paths(self) -> list[str]:
        """What the call named, as far as it is known, in order; the new name of a rename is its second."""
        found = []
        for event in (*self.details, self.event):
            if event.path and not _is_unix(event):
                found.append(event.path)
                if event.detail and SIGNATURES.get(event.syscall, "").count("s") > 1:
                    found.append(event.detail)
        return found

    @property
    def endpoint(self) -> tuple[str, int] | None:
        """The address and port that the call named; of a Unix socket its name and 0."""
        for event in (*self.details, self.event):
            if event.address or _is_unix(event):
                return event.address or event.path, event.port
        return None

    @property
    def noticed(self) -> list[str]:
        """What the call was besides, to a rule: "setuid", "mprotect"."""
        return [event.kind for event in self.details if event.args]

    @property
    def error(self) -> str:
        """The name of the error that the call was answered with; empty for none."""
        return error_name(self.event.result) if _answers(self.event) else ""


def _is_unix(event: TraceEvent) -> bool:
    return bool(event.path) and event.detail == UNIX


def failed(event: TraceEvent) -> bool:
    """Whether it tells of a call that was answered with an error."""
    return _answers(event) and bool(error_name(event.result))


def _answers(event: TraceEvent) -> bool:
    """Whether its result is what the kernel answered: not a child or how a process ended."""
    return event.kind not in _LIVES


def paired(events: Iterable[TraceEvent]) -> Iterator[Entry]:
    """The events in order, details joined to their calls; memory is bounded by a short window of time.

    What comes before its call (the program of an execve, the address of a connect) is held until the call comes.
    """
    pairing = Pairing()
    for event in events:
        yield from pairing.add(event)
    yield from pairing.rest()


class Pairing:
    """`paired`, for whoever does not know when the next event comes: `rest` gives out what is still held."""

    def __init__(self) -> None:
        self._waiting: deque[Entry] = deque()
        self._last: dict[int, Entry] = {}
        self._before: dict[int, list[TraceEvent]] = {}

    def add(self, event: TraceEvent) -> Iterator[Entry]:
        """Takes the next event; yields what is now known as a whole, and is to be iterated to its end."""
        waiting, last, before = self._waiting, self._last, self._before
        entry = last.get(event.tid)
        if event.kind == "syscall" or event.kind in ("fork", "exit"):
            joined, alone = _belonging(before.pop(event.tid, []), event) if event.tid in before else ([], [])
            waiting.extend(Entry(one) for one in alone)
            entry = Entry(event, joined)
            waiting.append(entry)
            if _may_follow(entry):
                last[event.tid] = entry
            else:
                last.pop(event.tid, None)
        elif event.kind == _VIOLATION:
            waiting.append(Entry(event))
        elif entry is not None and _same_call(event, entry.event):
            entry.details.append(event)
        elif event.args:
            waiting.append(Entry(event))
        else:
            held = before.setdefault(event.tid, [])
            held.append(event)
            if len(held) > _MOST_BEFORE:
                waiting.append(Entry(held.pop(0)))
        while waiting and (len(waiting) > _MOST_WAITING or not self._awaits(waiting[0], event.time)):
            yield self._released()

    def rest(self) -> Iterator[Entry]:
        """What waited for more, as it is; to be iterated to its end."""
        for held in self._before.values():
            self._waiting.extend(map(Entry, held))
        self._before.clear()
        while self._waiting:
            yield self._released()

    def _released(self) -> Entry:
        entry = self._waiting.popleft()
        if self._last.get(entry.event.tid) is entry:
            del self._last[entry.event.tid]
        return entry

    def _awaits(self, entry: Entry, now: float) -> bool:
        return self._last.get(entry.event.tid) is entry and now - entry.event.time < WINDOW_SECONDS


def _may_follow(entry: Entry) -> bool:
    """Whether an event with the call's path, or of what it was to a rule, may still come: not where one came before."""
    call = entry.event.syscall
    return not entry.details and ("s" in SIGNATURES.get(call, "") or call in _NOTICED)


def _same_call(detail: TraceEvent, call: TraceEvent) -> bool:
    same = detail.syscall == call.syscall and detail.result in (0, call.result)
    # What a rule asked for has the arguments once more.
    return same and detail.kind != "exec" and (not detail.args or detail.args == call.args)


def _belonging(before: Sequence[TraceEvent], call: TraceEvent) -> tuple[list[TraceEvent], list[TraceEvent]]:
    """Those that tell of the call, and those that stand alone."""
    joined: list[TraceEvent] = []
    alone: list[TraceEvent] = []
    for event in before:
        (joined if call.kind == "syscall" and _tells_of(event, call) else alone).append(event)
    return joined, alone


def _tells_of(detail: TraceEvent, call: TraceEvent) -> bool:
    if detail.kind == "exec":
        return call.syscall in _EXECUTES and call.result == 0
    if detail.syscall:
        return detail.syscall == call.syscall
    if detail.address:
        return "A" in SIGNATURES.get(call.syscall, "") or call.syscall in _ADDRESS_CALLS
    return bool(detail.path) and "s" in SIGNATURES.get(call.syscall, "")


def call_text(entry: Entry, endpoint: Callable[[str, int], str], limit: int = 0) -> str:
    """`openat(AT_FDCWD, "/x", 0x80000, 0)`: a call with its arguments; program and words of an execve cut at `limit`.

    Registers that the call does not take are left out, where it is known. `endpoint` writes an address. What the call
    named by way of memory that no argument points to directly stands behind them, in a comment.
    """
    arguments, beside = _arguments(entry, endpoint, limit)
    told = f" /* {', '.join(beside)} */" if beside else ""
    name = entry.event.syscall or ("execve" if entry.event.kind == "exec" else entry.event.kind)
    return f"{name}({', '.join(arguments)}{told})"


def result_text(event: TraceEvent) -> str:
    """`3`, `-2 ENOENT`, `0x7f0000000000`, and `?` for a call that never returns."""
    if event.syscall in _ENDS:
        return "?"
    name = error_name(event.result)
    if name:
        return f"{event.result} {name}"
    return hex(event.result) if event.syscall in _ADDRESSES else str(event.result)


def quoted(text: str, *, ascii_only: bool = False) -> str:
    """`text` as a C string: with octal escapes for control characters, or for each byte that is not printable ASCII."""
    return '"' + "".join(_escaped(character, ascii_only) for character in text) + '"'


def _escaped(character: str, ascii_only: bool) -> str:
    if character in _ESCAPES:
        return _ESCAPES[character]
    if character.isprintable() and (character.isascii() or not ascii_only):
        return character
    return "".join(f"\\{byte:03o}" for byte in character.encode("utf-8", "surrogatepass"))


def endpoint_text(address: str, port: int) -> str:
    """`192.0.2.1:80`, `[::1]:80`; a Unix socket has its name alone."""
    if address[:1] in ("/", "@"):
        return address
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def endpoint_struct(address: str, port: int) -> str:
    """A socket's address as strace writes it."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return f"{{sa_family=AF_UNIX, sun_path={quoted(address, ascii_only=True)}}}"
    if found.version == 4:
        return f'{{sa_family=AF_INET, sin_port=htons({port}), sin_addr=inet_addr("{found}")}}'
    return (
        f"{{sa_family=AF_INET6, sin6_port=htons({port}), sin6_flowinfo=htonl(0), "
        f'inet_pton(AF_INET6, "{found}", &sin6_addr), sin6_scope_id=0}}'
    )


def _arguments(entry: Entry, endpoint: Callable[[str, int], str], limit: int) -> tuple[list[str], list[str]]:
    """The arguments, and what else the call named."""
    executed = entry.executes
    if executed is not None:
        words = ", ".join(quoted(word, ascii_only=not limit) for word in executed.argv)
        shown = f"[{words[:limit]}...]" if limit and len(words) > limit else f"[{words}]"
        return [quoted(executed.path, ascii_only=not limit), shown], []
    paths = [quoted(path, ascii_only=not limit) for path in entry.paths]
    addresses = [endpoint(*entry.endpoint)] if entry.endpoint is not None else []
    event = entry.event
    if not event.args:
        return [*paths, *addresses], []
    signature = SIGNATURES.get(event.syscall) if event.abi == "x86-64" else None
    if signature is None:
        return list(map(hex, event.args)), [*paths, *addresses]
    arguments: list[str] = []
    flags = 0
    for letter, value in zip(signature, event.args, strict=False):
        if letter == "m" and not makes_file(flags):
            break  # nothing reads the mode
        flags = value if letter == "f" else flags
        known = paths if letter == "s" else addresses if letter == "A" else []
        arguments.append(known.pop(0) if known else _argument(letter, value))
    return arguments, [*paths, *addresses]


def _argument(letter: str, value: int) -> str:
    low = value & 0xFFFFFFFF
    if letter in "da":
        signed = low - (1 << 32) if low >> 31 else low
        return "AT_FDCWD" if letter == "a" and signed == _AT_FDCWD else str(signed)
    if letter in "psA":
        return hex(value) if value else "NULL"
    if letter == "f":
        return open_flags(low)
    if letter in "om":
        return f"0{low:03o}" if low else "0"
    if letter == "x":
        return hex(low) if low else "0"
    if letter == "w":
        return hex(value) if value else "0"
    if letter == "l":
        return str(value - (1 << 64) if value >> 63 else value)
    return str(low if letter == "u" else value)
