"""Which files a run executed, and their SHA-256: what a name stood for when it was executed.

The kernel tells device, inode and the path that it resolved. A file is opened by that path below a descriptor of where the
run had it, never by a link, and counts only as the same inode, unchanged since. Host programs are hashed once for all runs.
"""

from __future__ import annotations

import hashlib
import os
import stat
import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from supervisor.linux.mounts import RESOLVE_BENEATH, RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, openat2
from supervisor.model import TracedProgram

SHOWN_MAX = 200
LARGEST_BYTES = 1 << 30
_CACHED = 4096
_CHUNK = 1 << 20
_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
_RESOLVE = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS


@dataclass(frozen=True, slots=True)
class Version:
    """A file as it was: `device` as the kernel numbers it; i_ctime in ns, which any change of it moves, to the clock's tick."""

    device: int
    inode: int
    size: int
    changed_ns: int

    @classmethod
    def of(cls, found: os.stat_result) -> Version:
        device = os.major(found.st_dev) << 20 | os.minor(found.st_dev)
        return cls(device, found.st_ino, found.st_size, found.st_ctime_ns)


@dataclass(frozen=True, slots=True)
class Below:
    """A directory of the run, `path` in its root, and a descriptor of it. `slow`: its file system may not answer."""

    path: str
    directory: int
    slow: bool = False


class Hasher:
    """Digests of files that do not change, kept by what stat(2) says of them; what is new is read on a thread. Thread-safe."""

    def __init__(self) -> None:
        self._known: OrderedDict[Version, str] = OrderedDict()
        self._lock = threading.Lock()
        self._thread = ThreadPoolExecutor(2, "hash")

    def known(self, key: Version) -> str:
        with self._lock:
            return self._known.get(key, "")

    def submit(self, fd: int, key: Version) -> Future[str]:
        """Takes `fd` over."""
        return self._thread.submit(self._read, fd, key)

    def look(self, work: _Open) -> Future[str]:
        return self._thread.submit(work)

    def _read(self, fd: int, key: Version) -> str:
        with open(fd, "rb", buffering=0) as file:
            digest = hashlib.sha256()
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
            if Version.of(os.fstat(fd)) != key:
                return ""
        with self._lock:
            self._known[key] = digest.hexdigest()
            if len(self._known) > _CACHED:
                self._known.popitem(last=False)
        return digest.hexdigest()

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)


@dataclass(frozen=True, slots=True)
class _Open:
    """Opens and hashes a file on a file system that may not answer."""

    hasher: Hasher
    below: Below
    name: str
    version: Version

    def __call__(self) -> str:
        known = self.hasher.known(self.version)
        if known:
            return known
        fd = _open(self.below, self.name, self.version)
        return self.hasher._read(fd, self.version) if fd is not None else ""


class Programs:
    """The programs of one run. `add` as early as can be; `shown` when the run has ended."""

    def __init__(self, hasher: Hasher, places: Sequence[Below]) -> None:
        self._hasher = hasher
        self._places = places
        self._counts: dict[tuple[str, Version], int] = {}
        self._digests: dict[tuple[str, Version], str | Future[str]] = {}

    def add(self, path: str, version: Version) -> None:
        """One execution of the file that lay there."""
        key = path, version
        if key in self._counts:
            self._counts[key] += 1
        elif len(self._counts) < SHOWN_MAX:
            self._counts[key] = 1
            self._digests[key] = self._digest(path, version)

    def _digest(self, path: str, version: Version) -> str | Future[str]:
        known = self._hasher.known(version)
        if known:
            return known
        around = [one for one in self._places if path.startswith(one.path.rstrip("/") + "/")]
        # The longest path first: a mount inside another hides it.
        for place in sorted(around, key=lambda one: -len(one.path)):
            name = path[len(place.path) :].lstrip("/")
            if place.slow:
                return self._hasher.look(_Open(self._hasher, place, name, version))
            fd = _open(place, name, version)
            if fd is not None:
                return self._hasher.submit(fd, version)
        return ""

    def pending(self) -> list[Future[str]]:
        return [one for one in self._digests.values() if isinstance(one, Future) and not one.done()]

    def shown(self) -> tuple[TracedProgram, ...]:
        """In the order of their first execution; the first SHOWN_MAX."""
        return tuple(
            TracedProgram(path, _result(self._digests[path, version]), count)
            for (path, version), count in self._counts.items()
        )


def _open(place: Below, name: str, version: Version) -> int | None:
    """None for what is not, or no longer, what was executed."""
    try:
        fd = openat2(place.directory, os.fsencode(name), _FLAGS, resolve=_RESOLVE)
    except OSError:
        return None
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode) or Version.of(found) != version or found.st_size > LARGEST_BYTES:
        os.close(fd)
        return None
    return fd


def _result(digest: str | Future[str]) -> str:
    if isinstance(digest, str):
        return digest
    if not digest.done() or digest.cancelled() or digest.exception() is not None:
        return ""
    return digest.result()
