"""Files in (`--put`) and out (`--get`) of a run. Symbolic links are never followed, on neither way.

What goes in may be a tree that a program wrote, what comes out is named by one: both are walked from an open
directory, one component at a time, with O_NOFOLLOW (openat(2)).
"""

from __future__ import annotations

import fnmatch
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import BinaryIO

from supervisor import errors
from supervisor.cli.render import printable, say
from supervisor.client.build import LocalFile
from supervisor.model import OutputFile

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_WORK = b"/work/"


def files_to_put(specs: Sequence[str], stack: ExitStack) -> dict[bytes, LocalFile]:
    """The files that `--put SRC:DST` names, directories with all that is below them, by their path in the run.

    They are read when they are sent; `stack` closes what stays open until then. Links and special files inside a
    directory are left out, and said to be. Raises InvalidRequest for what cannot be read.
    """
    files: dict[bytes, LocalFile] = {}
    for spec in specs:
        source, colon, target = os.fsencode(spec).rpartition(b":")
        if not colon or not source or not target:
            raise errors.InvalidRequest(f"--put {spec!r}: write SRC:DST", field="--put")
        try:
            _put(source, target, files, stack)
        except OSError as error:
            raise errors.InvalidRequest(
                f"--put: cannot read {_text(source)}: {error.strerror}", field="--put"
            ) from error
    return files


def _put(source: bytes, target: bytes, files: dict[bytes, LocalFile], stack: ExitStack) -> None:
    source = source.rstrip(b"/") or b"/"
    found = os.lstat(source)
    if stat.S_ISREG(found.st_mode):
        name = target + os.path.basename(source) if target.endswith(b"/") else target
        parent = os.open(os.path.dirname(source) or b".", _DIRECTORY & ~os.O_NOFOLLOW)
        stack.callback(os.close, parent)
        files[name] = LocalFile(partial(_open_below, parent, [os.path.basename(source)]), found.st_size, _mode(found))
    elif stat.S_ISDIR(found.st_mode):
        top = os.open(source, _DIRECTORY)
        stack.callback(os.close, top)
        for parts, entry in _walk(top):
            name = b"/".join((target.rstrip(b"/") or target, *parts)) if target != b"." else b"/".join(parts)
            files[name] = LocalFile(partial(_open_below, top, parts), entry.st_size, _mode(entry))
    else:
        kind = "a symbolic link, and links are not followed" if stat.S_ISLNK(found.st_mode) else "no file or directory"
        raise errors.InvalidRequest(f"--put: {_text(source)} is {kind}", field="--put")


def _walk(top: int) -> Iterator[tuple[list[bytes], os.stat_result]]:
    for directory, below, names, opened in os.fwalk(b".", follow_symlinks=False, dir_fd=top):
        below.sort()
        for name in sorted([*names, *below]):
            entry = os.stat(name, dir_fd=opened, follow_symlinks=False)
            parts = [*directory.split(b"/")[1:], name]
            if stat.S_ISREG(entry.st_mode):
                yield parts, entry
            elif not stat.S_ISDIR(entry.st_mode):
                kind = "a symbolic link" if stat.S_ISLNK(entry.st_mode) else "a special file"
                say(f"not copied: {_text(b'/'.join(parts))} is {kind}", "yellow")


def _mode(found: os.stat_result) -> int:
    return stat.S_IMODE(found.st_mode) & 0o777


def _open_below(top: int, parts: Sequence[bytes]) -> BinaryIO:
    with _directory(top, parts[:-1], create=False) as parent:
        # O_NONBLOCK: a FIFO that took the file's place must not hold us.
        opened = os.open(parts[-1], os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=parent)
    if not stat.S_ISREG(os.fstat(opened).st_mode):
        os.close(opened)
        raise OSError(0, "it is no regular file any more", _text(b"/".join(parts)))
    return os.fdopen(opened, "rb")


@contextmanager
def _directory(top: int, parts: Sequence[bytes], *, create: bool) -> Iterator[int]:
    """The directory `parts` below `top`, reached without following a link; made on the way with `create`."""
    current = os.dup(top)
    try:
        for part in parts:
            if create:
                with suppress(FileExistsError):
                    os.mkdir(part, 0o777, dir_fd=current)
            following = os.open(part, _DIRECTORY, dir_fd=current)
            os.close(current)
            current = following
        yield current
    finally:
        os.close(current)


def unmatched(patterns: Sequence[bytes], files: Sequence[OutputFile]) -> list[bytes]:
    """Those of `patterns` (as `--get` takes them) that name none of `files`."""
    paths = [_parts(file.path) for file in files]
    return [pattern for pattern in patterns if not any(_names(_parts(pattern), path) for path in paths)]


def _parts(path: bytes) -> list[bytes]:
    absolute = path if path.startswith(b"/") else _WORK + path
    return [part for part in absolute.split(b"/") if part not in (b"", b".")]


def _names(pattern: list[bytes], path: list[bytes]) -> bool:
    """Whether `pattern` names the file `path`, or a directory above it; ** stands for any number of components."""

    def reached(positions: set[int]) -> set[int]:
        following = {at + 1 for at in positions if at < len(pattern) and pattern[at] == b"**"} - positions
        return reached(positions | following) if following else positions

    positions = reached({0})
    for part in path:
        # The end of the pattern stays reached: what is below a directory that it names comes with it.
        stay = {at for at in positions if at == len(pattern) or pattern[at] == b"**"}
        go = {at + 1 for at in positions - stay if fnmatch.fnmatchcase(part, pattern[at])}
        positions = reached(stay | go)
    return len(pattern) in positions


def write_collected(files: Sequence[OutputFile], directory: str = ".", tell: Callable[[str, str], None] = say) -> bool:
    """Writes what `--get` brought below `directory`, and tells (on stderr) what could not be; True when all were.

    Paths are those inside the run: /work is `directory` itself, /tmp/x becomes tmp/x below it. A path with '..' is
    refused, a link in the way is not followed but replaced (the file) or refused (a directory).
    """
    complete = True
    top = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for file in files:
            try:
                _write(top, file)
            except (OSError, ValueError) as error:
                complete = False
                why = error.strerror if isinstance(error, OSError) else str(error)
                tell(f"not copied out: {_text(file.path)}: {why}", "red")
            else:
                if file.truncated:
                    tell(
                        f"cut: {_text(file.path)} did not fit the bound; it has its first {len(file.data)} bytes",
                        "yellow",
                    )
    finally:
        os.close(top)
    return complete


def _write(top: int, file: OutputFile) -> None:
    path = file.path.removeprefix(_WORK)
    parts = [part for part in path.split(b"/") if part not in (b"", b".")]
    if not parts or b".." in parts or b"\0" in path:
        raise ValueError("the path leads out of this directory")
    temporary = b".%s.%d.part" % (parts[-1][:200], os.getpid())
    with _directory(top, parts[:-1], create=True) as parent:
        # Set-id and sticky bits are a run's wish, not ours; the umask has its say as for any new file.
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        opened = os.open(temporary, flags, file.mode & 0o777 | 0o200, dir_fd=parent)
        try:
            with os.fdopen(opened, "wb") as out:
                out.write(file.data)
            os.replace(temporary, parts[-1], src_dir_fd=parent, dst_dir_fd=parent)
        except OSError:
            os.unlink(temporary, dir_fd=parent)
            raise


def _text(path: bytes) -> str:
    return printable(path.decode("utf-8", "replace"))
