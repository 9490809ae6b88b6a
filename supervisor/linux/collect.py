"""Files out of a run after its end, without ever following what the run has placed, and never what it could not read.

Every step is taken from a directory descriptor, one component at a time, never through a symbolic link; what is no
regular file is passed over (the descriptor is opened with O_PATH first, so that neither a FIFO nor a device is touched).
All patterns are matched in one walk that enters a directory once, with the set of states in which they stand there, so
that its length depends on the tree and not on how the patterns could be matched.
"""

from __future__ import annotations

import errno
import fnmatch
import os
import re
import stat
import time
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from supervisor.model import OutputFile
from supervisor.plan_root import below_work

MAX_DEPTH = 64
_SPOOLED_BYTES = 1 << 20
_PAGE_BYTES = 4096
_STEPS_PER_LOOK = 256
_ANY_DEPTH = b"**"

State = tuple[int, int]
"""A pattern's number and the position of the component that comes next; after the last, everything below matches."""


@dataclass(frozen=True, slots=True)
class Place:
    """A directory of the run: a descriptor of it, and the host uids whose files in it are the run's to read."""

    directory: int
    owners: frozenset[int]

    def may_read(self, found: os.stat_result) -> bool:
        return found.st_uid in self.owners or bool(found.st_mode & stat.S_IROTH)

    def may_enter(self, found: os.stat_result) -> bool:
        public = stat.S_IROTH | stat.S_IXOTH
        return found.st_uid in self.owners or found.st_mode & public == public


@dataclass(slots=True)
class Bounds:
    """What may still be taken out and spent on it: bytes of data and files; of these, bytes held in memory and files
    held open; directory entries looked at, and seconds from the start."""

    bytes_left: int
    files_left: int
    memory_left: int = 64 << 20
    spools_left: int = 1024
    entries_left: int = 1_000_000
    seconds: float = 30.0


@dataclass(frozen=True, slots=True)
class Collected:
    """`complete`: no bound on files, entries, depth or time and no cancellation has kept anything out."""

    files: tuple[OutputFile, ...]
    complete: bool


def collect_files(
    places: Mapping[bytes, Place],
    patterns: Iterable[bytes],
    bounds: Bounds,
    cancelled: Callable[[], bool] = lambda: False,
) -> Collected:
    """The regular files that `patterns` name, each once, in the order of their paths' components.

    `places` maps directories of the run (absolute); a relative pattern is below /work, and what it finds has a relative
    path. `*`, `?` and `[]` match within a component, `**` any number of components; a directory that matches brings all
    below it. A file or directory that its place's owners could not read, or on another file system, is left out.
    """
    walks: dict[bytes, list[_Pattern]] = {}
    for pattern in patterns:
        absolute = below_work(pattern)
        place = max((p for p in places if absolute.startswith(p + b"/") or absolute == p), key=len, default=None)
        if place is None:
            continue
        made = _compile(absolute[len(place) :], relative=place == b"/work" and not pattern.startswith(b"/"))
        if made is not None:
            walks.setdefault(place, []).append(made)
    effort = _Effort(bounds, cancelled)
    found: list[OutputFile] = []
    try:
        for path in sorted(walks):
            _Walk(path, places[path], tuple(dict.fromkeys(walks[path])), effort, found).go()
    except _CutShort:
        return Collected(tuple(found), False)
    return Collected(tuple(found), effort.complete)


@dataclass(frozen=True, slots=True)
class _Pattern:
    """Components of which no two `**` stand beside each other; `relative` is how the files that it finds are named."""

    parts: tuple[bytes, ...]
    relative: bool


def _compile(path: bytes, *, relative: bool) -> _Pattern | None:
    parts: list[bytes] = []
    for part in path.split(b"/"):
        if part in (b"", b".") or (part == _ANY_DEPTH and parts[-1:] == [part]):
            continue
        if part == b"..":
            return None
        parts.append(part)
    if len(parts) - parts.count(_ANY_DEPTH) > MAX_DEPTH:
        return None
    return _Pattern(tuple(parts), relative)


class _CutShort(Exception):
    """A bound, or the cancellation, has ended the walk."""


class _Effort:
    """Counts what is done, and ends it in time."""

    def __init__(self, bounds: Bounds, cancelled: Callable[[], bool]) -> None:
        self.bounds = bounds
        self.complete = True
        self._cancelled = cancelled
        self._deadline = time.monotonic() + bounds.seconds
        self._steps = 0

    def step(self) -> None:
        """Raises _CutShort."""
        if self._steps % _STEPS_PER_LOOK == 0 and (self._cancelled() or time.monotonic() >= self._deadline):
            raise _CutShort
        self._steps += 1

    def entry(self) -> None:
        """Raises _CutShort."""
        self.step()
        if self.bounds.entries_left <= 0:
            raise _CutShort
        self.bounds.entries_left -= 1


@dataclass(slots=True)
class _Directory:
    """One that is being walked: its O_PATH descriptor, its path below the place, and its names still to come, last first."""

    fd: int
    path: bytes
    states: tuple[State, ...]
    names: list[bytes] = field(default_factory=list)


def _mount_id(fd: int) -> bytes:
    """Of the mount that `fd` lies in, proc_pid_fdinfo(5)."""
    with open(f"/proc/self/fdinfo/{fd}", "rb") as file:
        return next((line.split()[1] for line in file if line.startswith(b"mnt_id:")), b"")


class _Walk:
    def __init__(
        self, path: bytes, place: Place, patterns: tuple[_Pattern, ...], effort: _Effort, found: list[OutputFile]
    ) -> None:
        self._path = path
        self._place = place
        self._patterns = patterns
        self._effort = effort
        self._found = found
        self._device = os.fstat(place.directory).st_dev
        self._mount = _mount_id(place.directory)
        self._matchers: dict[bytes, Callable[[bytes], object]] = {}

    def go(self) -> None:
        """Raises _CutShort."""
        begin = [(number, 0) for number in range(len(self._patterns))]
        stack: list[_Directory] = []
        try:
            self._enter(stack, os.dup(self._place.directory), b"", begin)
            while stack:
                directory = stack[-1]
                if directory.names:
                    self._visit(stack, directory, directory.names.pop())
                else:
                    os.close(stack.pop().fd)
        finally:
            for directory in stack:
                os.close(directory.fd)

    def _enter(self, stack: list[_Directory], fd: int, path: bytes, states: Iterable[State]) -> None:
        directory = _Directory(fd, path, self._closure(states))
        stack.append(directory)
        try:
            reader = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=fd)
        except OSError as error:
            self._lost(error)
            return
        try:
            with os.scandir(reader) as entries:
                for entry in entries:
                    self._effort.entry()
                    directory.names.append(os.fsencode(entry.name))
        except OSError as error:
            self._lost(error)
        finally:
            os.close(reader)
        directory.names.sort(reverse=True)

    def _closure(self, states: Iterable[State]) -> tuple[State, ...]:
        """With the states that `**` as no component at all leads to."""
        closed: dict[State, None] = {}
        for number, position in states:
            parts = self._patterns[number].parts
            closed[number, position] = None
            if position + 1 < len(parts) and parts[position] == _ANY_DEPTH:
                closed[number, position + 1] = None
        return tuple(closed)

    def _visit(self, stack: list[_Directory], directory: _Directory, name: bytes) -> None:
        below, named, relative = self._advance(directory.states, name)
        if not below:
            return
        try:
            fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory.fd)
        except OSError as error:
            self._lost(error)
            return
        entered = False
        try:
            found = os.fstat(fd)
            path = directory.path + name
            # overlayfs tells another device of files than of directories, and has one mount id all the same.
            if found.st_dev != self._device and _mount_id(fd) != self._mount:
                return
            if stat.S_ISDIR(found.st_mode) and self._place.may_enter(found):
                if len(stack) >= MAX_DEPTH:
                    self._effort.complete = False
                    return
                entered = True
                self._enter(stack, fd, path + b"/", below)
            elif stat.S_ISREG(found.st_mode) and named and self._place.may_read(found):
                self._take(path if relative else self._path + b"/" + path, fd)
        finally:
            if not entered:
                os.close(fd)

    def _advance(self, states: tuple[State, ...], name: bytes) -> tuple[dict[State, None], bool, bool]:
        """The states below a directory of this name; whether it names a file, and whether by a relative pattern."""
        below: dict[State, None] = {}
        matching: dict[bytes, bool] = {}
        named = relative = False
        for number, position in states:
            self._effort.step()
            pattern = self._patterns[number]
            part = pattern.parts[position] if position < len(pattern.parts) else _ANY_DEPTH
            if part == _ANY_DEPTH:
                below[number, position] = None
                last = position + 1 >= len(pattern.parts)
            else:
                if part not in matching:
                    matching[part] = self._matches(part, name)
                if not matching[part]:
                    continue
                below[number, position + 1] = None
                last = position + 1 == len(pattern.parts)
            named |= last
            relative |= last and pattern.relative
        return below, named, relative

    def _matches(self, part: bytes, name: bytes) -> bool:
        """fnmatch.fnmatchcase, with no cache that outlives the walk."""
        matcher = self._matchers.get(part)
        if matcher is None:
            expression = fnmatch.translate(part.decode("latin-1")).encode("latin-1")
            matcher = self._matchers[part] = re.compile(expression).match
        return matcher(name) is not None

    def _take(self, path: bytes, fd: int) -> None:
        """Reads a file through its O_PATH descriptor, which nothing can exchange any more."""
        bounds = self._effort.bounds
        if bounds.files_left <= 0:
            raise _CutShort
        try:
            reader = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            self._lost(error)
            return
        try:
            found = os.fstat(reader)
            size = min(found.st_size, bounds.bytes_left)
            mode, truncated = found.st_mode & 0o777, found.st_size > size
            # Holes cost the run nothing and would cost us their size; a page is not worth a descriptor.
            sparse = found.st_blocks * 512 < found.st_size and size > _PAGE_BYTES
            if size <= min(_SPOOLED_BYTES, bounds.memory_left) and not sparse:
                data = os.pread(reader, size, 0)
                bounds.memory_left -= len(data)
                taken = OutputFile(path, data, mode, truncated)
            elif bounds.spools_left > 0:
                taken = OutputFile(path, b"", mode, truncated, Spool(os.dup(reader), size))
                bounds.spools_left -= 1
            else:
                size, taken = 0, OutputFile(path, b"", mode, truncated=True)
        except OSError as error:
            self._lost(error)
            return
        finally:
            os.close(reader)
        bounds.files_left -= 1
        bounds.bytes_left -= size
        self._found.append(taken)

    def _lost(self, error: OSError) -> None:
        """What has gone or may not be opened is no loss; what we had no descriptor or memory for is."""
        if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
            self._effort.complete = False


class Spool:
    """The first `size` bytes of an open file, read when they are asked for. What has meanwhile been cut off is missing."""

    def __init__(self, fd: int, size: int) -> None:
        self._fd = fd
        self._size = size
        self._close = weakref.finalize(self, os.close, fd)

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, piece: slice, /) -> bytes:
        start, stop, _ = piece.indices(self._size)
        return os.pread(self._fd, stop - start, start) if stop > start else b""

    def close(self) -> None:
        """Idempotent; happens by itself with the last reference."""
        self._close()
