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
        found = os.fstat(fd)
        if not (stat.S_ISDIR(found.st_mode) or stat.S_ISREG(found.st_mode)):
            raise InvalidRequest(f"{field}: {shown} is neither a directory nor a regular file", field=field)
        # By the path that the descriptor has now: links on the way have been followed already.
        path = os.readlink(f"/proc/self/fd/{fd}")
        refused = refusal(path)
        if refused:
            raise PolicyRefused(f"{field}: {refused}", field=field, metadata={"path": path})
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


def existing(paths: Sequence[str]) -> frozenset[str]:
    """Those of a policy's paths that the host has."""
    return frozenset(path for path in paths if os.path.exists(path))


def open_tree(path: str) -> int:
    """A detached copy of what is at a path of the operator's choosing. Raises HostLacks."""
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            return mounts.clone_tree(fd)
        finally:
            os.close(fd)
    except OSError as error:
        raise HostLacks(
            f"cannot mount {path}: {error.strerror}", metadata={"feature": "new_mount_api", "remedy": "see the errno"}
        ) from None
