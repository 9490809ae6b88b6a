"""Which files a run executed, and their SHA-256: what a name stood for when it was executed.

The kernel tells device, inode and the path that it resolved. A file is opened by that path below a descriptor of where the
run had it, never by a link, and counts only as the same inode, unchanged since. Host programs are hashed once for all runs.
"""

from __future__ import annotations

import hashlib
import os
import stat
import threading
from collections import Counter, OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from supervisor.linux.mounts import RESOLVE_BENEATH, RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, openat2
from supervisor.model import TracedProgram

SHOWN_MAX = 200
LARGEST_BYTES = 1 << 30
_CACHED = 4096
_HASHED_MAX = 1_000
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
    """A directory of the run, `path` in its root, and a descriptor of it. `slow`: its file system may not answer. `fixed`: the
    run cannot write there, so that a file with one ctime has one content; a shared mapping changes it without a trace.
    """

    path: str
    directory: int
    slow: bool = False
    fixed: bool = False


class Hasher:
    """Digests of files that do not change, kept by what stat(2) says of them; what is new is read on a thread. Thread-safe."""

    def __init__(self) -> None:
        self._known: OrderedDict[Version, str] = OrderedDict()
        self._lock = threading.Lock()
        self._thread = ThreadPoolExecutor(2, "hash")

    def known(self, key: Version) -> str:
        with self._lock:
            return self._known.get(key, "")

    def submit(self, fd: int, key: Version, *, keep: bool) -> Future[str]:
        """Takes `fd` over. `keep`: it is `known` from then on."""
        return self._thread.submit(self.read, fd, key, keep)

    def look(self, work: _Open) -> Future[str]:
        return self._thread.submit(work)

    def read(self, fd: int, key: Version, keep: bool) -> str:
        with open(fd, "rb", buffering=0) as file:
            digest = hashlib.sha256()
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
            if Version.of(os.fstat(fd)) != key:
                return ""
        if keep:
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
        fd = _open(self.below, self.name, self.version)
        return self.hasher.read(fd, self.version, keep=False) if fd is not None else ""


class Programs:
    """The programs of one run. `add` as early as can be; `shown` when the run has ended."""

    def __init__(self, hasher: Hasher, places: Sequence[Below]) -> None:
        self._hasher = hasher
        self._places = places
        self._executions: dict[tuple[str, Version], list[str | Future[str]]] = {}
        self._again: dict[tuple[str, Version], int] = {}
        self._hashed = 0

    def add(self, path: str, version: Version) -> None:
        """One execution of the file that lay there."""
        key = path, version
        found = self._executions.get(key)
        if found is None:
            if len(self._executions) < SHOWN_MAX:
                self._executions[key] = [self._digest(path, version)]
        elif self._is_fixed(path) or self._hashed >= _HASHED_MAX:
            self._again[key] = self._again.get(key, 0) + 1
        else:
            found.append(self._digest(path, version))

    def _around(self, path: str) -> list[Below]:
        """The longest path first: a mount inside another hides it."""
        around = [one for one in self._places if path.startswith(one.path.rstrip("/") + "/")]
        return sorted(around, key=lambda one: -len(one.path))

    def _is_fixed(self, path: str) -> bool:
        around = self._around(path)
        return bool(around) and around[0].fixed

    def _digest(self, path: str, version: Version) -> str | Future[str]:
        for place in self._around(path):
            known = self._hasher.known(version) if place.fixed else ""
            if known:
                return known
            self._hashed += 1
            name = path[len(place.path) :].lstrip("/")
            if place.slow:
                return self._hasher.look(_Open(self._hasher, place, name, version))
            fd = _open(place, name, version)
            if fd is not None:
                return self._hasher.submit(fd, version, keep=place.fixed)
        return ""

    def pending(self) -> list[Future[str]]:
        every = (one for found in self._executions.values() for one in found)
        return [one for one in every if isinstance(one, Future) and not one.done()]

    def shown(self) -> tuple[TracedProgram, ...]:
        """In the order of their first execution, each content by itself; files beyond SHOWN_MAX are left out."""
        shown = []
        for key, found in self._executions.items():
            counts = Counter(map(_result, found))
            # Of those that were not looked at again: the first content for what is fixed, else unknown.
            counts[_result(found[0]) if self._is_fixed(key[0]) else ""] += self._again.get(key, 0)
            shown += [TracedProgram(key[0], digest, count) for digest, count in counts.items() if count]
        return tuple(shown)


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
