"""Host paths that a request wants to see inside its run: opened once, judged by what was opened, never looked up again."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from supervisor.errors import HostLacks, InvalidRequest, PolicyRefused
from supervisor.linux import mounts
from supervisor.model import Mount


@dataclass(slots=True)
class Source:
    """An opened mount source: `tree` is a detached copy of the mount, `directory` an O_PATH descriptor of the same place."""

    tree: int
    directory: int
    owner: tuple[int, int]
    is_file: bool

    def close(self) -> None:
        os.close(self.tree)
        os.close(self.directory)


def open_source(mount: Mount, field: str, refusal: Callable[[str], str]) -> Source:
    """Opens `mount.source` on the host; `refusal` says why a resolved path may not be mounted, or nothing.

    Raises InvalidRequest (missing, neither file nor directory), PolicyRefused or HostLacks.
    """
    shown = mount.source.decode("utf-8", "replace")
    try:
        fd = os.open(mount.source, os.O_PATH | os.O_CLOEXEC)
    except OSError as error:
        raise InvalidRequest(
            f"{field}: cannot open {shown} on the daemon's host: {error.strerror}",
            field=field,
            metadata={"errno": errno.errorcode.get(error.errno or 0, "")},
        ) from None
    try:
        found = _stat(fd, field, shown)
        if not (stat.S_ISDIR(found.st_mode) or stat.S_ISREG(found.st_mode)):
            raise InvalidRequest(f"{field}: {shown} is neither a directory nor a regular file", field=field)
        refuse(fd, field, refusal)
        try:
            tree = mounts.clone_tree(fd)
        except OSError as error:
            raise HostLacks(
                f"{field}: cannot mount {shown}: {error.strerror}",
                field=field,
                metadata={"feature": "new_mount_api", "remedy": "copy the data in with `files`"},
            ) from None
    except BaseException:
        os.close(fd)
        raise
    return Source(tree, fd, (found.st_uid, found.st_gid), not stat.S_ISDIR(found.st_mode))


def refuse(fd: int, field: str, refusal: Callable[[str], str]) -> None:
    """Raises PolicyRefused where `refusal` has a reason against what is open as `fd`.

    By the path that the descriptor has now: links on the way to it have been followed already.
    """
    path = os.readlink(f"/proc/self/fd/{fd}")
    refused = refusal(path)
    if refused:
        raise PolicyRefused(f"{field}: {refused}", field=field, metadata={"path": path})


def _stat(fd: int, field: str, shown: str) -> os.stat_result:
    try:
        return os.fstat(fd)
    except OSError as error:  # ENOTCONN, EIO, ESTALE: a file system without its server
        raise InvalidRequest(f"{field}: cannot look at {shown}: {error.strerror}", field=field) from None


def existing(paths: Sequence[str]) -> frozenset[str]:
    """Those of a policy's paths that the host has."""
    return frozenset(path for path in paths if os.path.exists(path))


def open_file(path: str) -> int:
    """A detached copy of the mount of one file of the host. Raises HostLacks."""
    try:
        return _clone(os.open(path, os.O_PATH | os.O_CLOEXEC))
    except OSError as error:
        raise HostLacks(
            f"cannot mount {path}: {error.strerror}", metadata={"feature": "new_mount_api", "remedy": "see the errno"}
        ) from None


def open_directory(root: bytes) -> int:
    """The directory that a root is taken from, to be given to `open_tree_below`. Raises HostLacks."""
    try:
        return os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise HostLacks(
            f"filesystem.root {root.decode('utf-8', 'replace')}: {error.strerror}",
            field="filesystem.root",
            metadata={"feature": "root", "remedy": "make the directory, or name another"},
        ) from None


def open_tree_below(root: int, name: bytes) -> int:
    """A detached copy of the tree `name` right below `root`, which was a directory when the root was looked at.

    Whoever may write there may have put a link in its place since: that is refused, not followed. Raises HostLacks.
    """
    try:
        return _clone(os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=root))
    except OSError as error:
        raise HostLacks(
            f"filesystem.root: cannot mount its {name.decode('utf-8', 'replace')}: {error.strerror}",
            field="filesystem.root",
            metadata={"feature": "root", "remedy": "leave the directory alone while runs start from it"},
        ) from None


def _clone(fd: int) -> int:
    try:
        return mounts.clone_tree(fd)
    finally:
        os.close(fd)
