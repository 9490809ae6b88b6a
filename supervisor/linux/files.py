"""Files into a run before it starts, without ever following what is there; `collect` takes them out after its end.

Every step is taken from a directory descriptor, one component at a time, never through a symbolic link.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterable

from supervisor.errors import InvalidRequest
from supervisor.model import InputFile
from supervisor.plan_root import below_work

MAX_COMPONENTS = 64
"""Most components of a path below the run's root; each is a directory to be made, and its cost ours."""


def put_files(root: int, files: Iterable[InputFile], owner: int) -> None:
    """Writes `files` below the run's still unshared root, each owned by `owner`; a relative path is below work/.

    Raises InvalidRequest for a path outside work/, tmp/ and dev/shm/ or of more than MAX_COMPONENTS components, and where the
    run's disk or inode limit is reached.
    """
    for index, file in enumerate(files):
        path = below_work(file.path)
        parts = [part for part in path.split(b"/") if part]
        if not path.startswith((b"/work/", b"/tmp/", b"/dev/shm/")):
            raise InvalidRequest(
                f"files[{index}].path: files go below /work, /tmp or /dev/shm", field=f"files[{index}].path"
            )
        if len(parts) > MAX_COMPONENTS:
            raise InvalidRequest(
                f"files[{index}].path: more than {MAX_COMPONENTS} components", field=f"files[{index}].path"
            )
        try:
            _put_file(root, parts, file, owner)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise InvalidRequest(
                    f"files[{index}]: does not fit the run's limits.disk and limits.inodes", field=f"files[{index}]"
                ) from None
            raise InvalidRequest(f"files[{index}].path: {error.strerror}", field=f"files[{index}].path") from None


def cost(files: Iterable[InputFile]) -> int:
    """About what `put_files` has to do, in bytes written; a directory or file that is made counts as a page."""
    return sum(len(file.data) + 4096 * below_work(file.path).count(b"/") for file in files)


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
