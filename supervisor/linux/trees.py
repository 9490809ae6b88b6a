"""Removing a directory that a stranger has filled: however deep, wide or locked it is, whatever its links point at."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator

_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_PASSES = 100


def remove_tree(path: str | os.PathLike[str]) -> None:
    """Removes the directory at `path` with all that is in it, by descriptors and at a constant depth; never follows a link.

    What vanishes meanwhile, `path` included, is none of its business. Raises OSError for anything else, a mount point in
    the tree (EBUSY) included; what is left then can be removed by a later call. For root, and for a thread that may wait.
    """
    with contextlib.suppress(FileNotFoundError):
        with _opened(path) as top:
            _Removal(top).run()
        os.rmdir(path)


class _Removal:
    """Directories below `top` are moved up into it, under numbered names, and emptied one by one.

    So at most two are open, no path gets longer than one name, and the queue is two numbers whatever the tree.
    """

    def __init__(self, top: int) -> None:
        self._top = top
        self._prefix = f".{os.urandom(8).hex()}-"
        self._taken = 0
        self._done = 0

    def run(self) -> None:
        self._empty(self._top)
        while self._done < self._taken:
            name = f"{self._prefix}{self._done}"
            self._done += 1
            with contextlib.suppress(FileNotFoundError):
                with _opened(name, self._top) as directory:
                    self._empty(directory)
                os.rmdir(name, dir_fd=self._top)

    def _empty(self, directory: int) -> None:
        """Again until nothing is found: an entry may be passed over when its neighbours go while they are read."""
        for _ in range(_PASSES):
            found = False
            with os.scandir(directory) as entries:
                for entry in entries:
                    if directory == self._top and entry.name.startswith(self._prefix):
                        continue
                    found = True
                    with contextlib.suppress(FileNotFoundError):
                        self._remove(entry, directory)
            if not found:
                return
        raise OSError(errno.ENOTEMPTY, "somebody goes on filling the directory")

    def _remove(self, entry: os.DirEntry[str], directory: int) -> None:
        if not entry.is_dir(follow_symlinks=False):
            os.unlink(entry.name, dir_fd=directory)
            return
        try:
            os.rmdir(entry.name, dir_fd=directory)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            os.rename(entry.name, f"{self._prefix}{self._taken}", src_dir_fd=directory, dst_dir_fd=self._top)
            self._taken += 1


@contextlib.contextmanager
def _opened(path: str | os.PathLike[str], parent: int | None = None) -> Iterator[int]:
    fd = os.open(path, _FLAGS, dir_fd=parent)
    try:
        yield fd
    finally:
        os.close(fd)
