"""Files into a run before it starts and out of it after its end, without ever following what the run has placed.

Every step is taken from a directory descriptor, one component at a time, never through a symbolic link; what is no
regular file is passed over (the descriptor is opened with O_PATH first, so that neither a FIFO nor a device is touched).
"""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import os
import stat
import weakref
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from supervisor.errors import InvalidRequest
from supervisor.linux import mounts
from supervisor.model import InputFile, OutputFile

_MAX_DEPTH = 64
_SPOOLED_BYTES = 1 << 20
_STEP = mounts.RESOLVE_BENEATH | mounts.RESOLVE_NO_SYMLINKS | mounts.RESOLVE_NO_MAGICLINKS


def put_files(root: int, files: Iterable[InputFile], owner: int) -> None:
    """Writes `files` below the run's still unshared root, each owned by `owner`; a relative path is below work/.

    Raises InvalidRequest for a path outside work/, tmp/ and dev/shm/, and where the run's disk or inode limit is reached.
    """
    for index, file in enumerate(files):
        path = file.path if file.path.startswith(b"/") else b"/work/" + file.path
        parts = [part for part in path.split(b"/") if part]
        if not path.startswith((b"/work/", b"/tmp/", b"/dev/shm/")):
            raise InvalidRequest(
                f"files[{index}].path: files go below /work, /tmp or /dev/shm", field=f"files[{index}].path"
            )
        try:
            _put_file(root, parts, file, owner)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise InvalidRequest(
                    f"files[{index}]: does not fit the run's limits.disk and limits.inodes", field=f"files[{index}]"
                ) from None
            raise InvalidRequest(f"files[{index}].path: {error.strerror}", field=f"files[{index}].path") from None


def _put_file(root: int, parts: list[bytes], file: InputFile, owner: int) -> None:
    with contextlib.ExitStack() as stack:
        at = root
        for depth, part in enumerate(parts[:-1]):
            made = _make_directory(at, part, parts[: depth + 1], owner)
            at = made
            stack.callback(os.close, made)
        fd = os.open(parts[-1], os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=at)
        stack.callback(os.close, fd)
        view = memoryview(file.data)
        while view:
            view = view[os.write(fd, view) :]
        os.fchown(fd, owner, owner)
        os.fchmod(fd, file.mode & 0o777)


def make_places(root: int, owner: int) -> None:
    """The directories that the launcher would make, for a run whose files come first."""
    for parts, mode, uid in (
        ([b"dev"], 0o755, 0),
        ([b"dev", b"shm"], 0o1777, 0),
        ([b"tmp"], 0o1777, 0),
        ([b"work"], 0o755, owner),
    ):
        name = b"/".join(parts)
        os.mkdir(name, dir_fd=root)
        os.chown(name, uid, uid, dir_fd=root, follow_symlinks=False)
        os.chmod(name, mode, dir_fd=root)


def _make_directory(at: int, name: bytes, path: list[bytes], owner: int) -> int:
    try:
        os.mkdir(name, 0o755, dir_fd=at)
    except FileExistsError:
        made = False
    else:
        made = True
    fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)
    if made:
        os.fchown(fd, owner, owner)
        os.fchmod(fd, 0o755)
    return fd


@dataclass(slots=True)
class Bounds:
    """What may still be taken out: bytes of data, and files."""

    bytes_left: int
    files_left: int


def collect_files(places: Mapping[bytes, int], patterns: Iterable[bytes], bounds: Bounds) -> tuple[OutputFile, ...]:
    """The regular files that `patterns` name, each once, in the patterns' order.

    `places` maps a directory of the run (absolute) to a descriptor of it; a relative pattern is below /work. `*`, `?`
    and `[]` match within a component, `**` any number of components; a directory that matches brings all below it.
    """
    found: dict[bytes, OutputFile] = {}
    for pattern in patterns:
        absolute = pattern if pattern.startswith(b"/") else b"/work/" + pattern
        place = max((p for p in places if absolute.startswith(p + b"/") or absolute == p), key=len, default=None)
        if place is None:
            continue
        parts = [part for part in absolute[len(place) :].split(b"/") if part not in (b"", b".")]
        if b".." in parts:
            continue
        prefix = b"" if place == b"/work" and not pattern.startswith(b"/") else place + b"/"
        for path, fd in _walk(places[place], prefix, parts or [b"**"], 0):
            try:
                if path not in found:
                    if bounds.files_left <= 0:
                        return tuple(found.values())
                    taken = _take(path, fd, bounds)
                    if taken is not None:
                        found[path] = taken
            finally:
                os.close(fd)
    return tuple(found.values())


def _walk(directory: int, prefix: bytes, parts: list[bytes], depth: int) -> Iterator[tuple[bytes, int]]:
    """Paths and O_PATH descriptors of regular files below `directory` that match; descriptors are the taker's to close."""
    if depth > _MAX_DEPTH:
        return
    head, rest = parts[0], parts[1:]
    deep = head == b"**"
    if deep and rest:  # ** as no component at all
        yield from _walk(directory, prefix, rest, depth + 1)
    for name in _names(directory):
        if not deep and not fnmatch.fnmatchcase(name, head):
            continue
        try:
            fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
        except OSError:
            continue
        kind = os.fstat(fd).st_mode
        if stat.S_ISDIR(kind):
            try:
                yield from _walk(fd, prefix + name + b"/", parts if deep else rest or [b"**"], depth + 1)
            finally:
                os.close(fd)
        elif stat.S_ISREG(kind) and not rest:
            yield prefix + name, fd
        else:
            os.close(fd)


def _names(directory: int) -> list[bytes]:
    try:
        fd = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)
    except OSError:
        return []
    try:
        return sorted(os.fsencode(name) for name in os.listdir(fd))
    except OSError:
        return []
    finally:
        os.close(fd)


def _take(path: bytes, fd: int, bounds: Bounds) -> OutputFile | None:
    """Reads a file through its O_PATH descriptor, which nothing can exchange any more."""
    try:
        reader = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    found = os.fstat(reader)
    size = min(found.st_size, bounds.bytes_left)
    truncated = found.st_size > size
    bounds.files_left -= 1
    bounds.bytes_left -= size
    spool = Spool(reader, size)
    if size > _SPOOLED_BYTES:
        return OutputFile(path, b"", found.st_mode & 0o777, truncated, spool)
    try:
        return OutputFile(path, spool[:], found.st_mode & 0o777, truncated)
    finally:
        spool.close()


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
