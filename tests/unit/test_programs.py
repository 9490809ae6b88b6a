"""Digests of what was executed: of the same inode, unchanged, found by its path and by no link."""

from __future__ import annotations

import hashlib
import mmap
import os
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import wait
from pathlib import Path

import pytest

from supervisor.evidence.programs import SHOWN_MAX, Below, Hasher, Programs, Version


@pytest.fixture
def hasher() -> Iterator[Hasher]:
    made = Hasher()
    yield made
    made.close()


@pytest.fixture
def root(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, os.O_PATH | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def make(path: Path, data: bytes) -> Version:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return Version.of(path.stat())


def digests(programs: Programs) -> list[tuple[str, str, int]]:
    wait(programs.pending())
    return [(one.path, one.sha256, one.count) for one in programs.shown()]


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize(("slow", "fixed"), [(False, True), (False, False), (True, False)])
def test_what_was_executed(hasher: Hasher, root: int, tmp_path: Path, slow: bool, fixed: bool) -> None:
    one, two = make(tmp_path / "bin/one", b"1" * 3_000_000), make(tmp_path / "two", b"")
    programs = Programs(hasher, [Below("/", root, slow, fixed)])
    for path, version in (("/bin/one", one), ("/two", two), ("/bin/one", one)):
        programs.add(path, version)
    assert digests(programs) == [("/bin/one", sha(b"1" * 3_000_000), 2), ("/two", sha(b""), 1)]
    (tmp_path / "bin/one").unlink()
    again = Programs(hasher, [Below("/", root, slow, fixed)])
    again.add("/bin/one", one)
    digest = sha(b"1" * 3_000_000) if fixed else ""
    assert digests(again) == [("/bin/one", digest, 1)], "known from the run before, where nobody can write"


def test_what_a_shared_mapping_changes_is_seen_at_the_next_execution(hasher: Hasher, tmp_path: Path) -> None:
    """On tmpfs it moves neither ctime nor size."""
    directory = Path(tempfile.mkdtemp(dir="/dev/shm"))
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY)
    try:
        version = make(directory / "x", b"benign" * 1000)
        programs = Programs(hasher, [Below("/", fd)])
        programs.add("/x", version)
        wait(programs.pending())
        with (directory / "x").open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
            memory[:6] = b"malign"
        programs.add("/x", Version.of((directory / "x").stat()))
        assert [digest for _, digest, _ in digests(programs)] == [
            *(sha(b"benign" * 1000), sha(b"malign" + b"benign" * 999)),
        ]
    finally:
        os.close(fd)
        shutil.rmtree(directory)


def test_the_innermost_place_counts(hasher: Hasher, root: int, tmp_path: Path) -> None:
    make(tmp_path / "data/x", b"outer")
    inner = make(tmp_path / "mount/x", b"inner")
    fd = os.open(tmp_path / "mount", os.O_PATH | os.O_DIRECTORY)
    programs = Programs(hasher, [Below("/", root), Below("/data", fd)])
    programs.add("/data/x", inner)
    assert digests(programs) == [("/data/x", sha(b"inner"), 1)]
    os.close(fd)


def test_what_is_no_longer_what_was_executed(hasher: Hasher, root: int, tmp_path: Path) -> None:
    programs = Programs(hasher, [Below("/", root)])
    for name in ("changed", "replaced", "link", "fifo", "gone", "directory"):
        path = tmp_path / name
        version = make(path, b"before")
        if name == "changed":
            path.write_bytes(b"after, and longer")
        else:
            path.unlink()
        if name == "replaced":
            make(path, b"before")
        if name == "link":
            path.symlink_to("/bin/true")
        if name == "fifo":
            os.mkfifo(path)
        if name == "directory":
            path.mkdir()
        programs.add(f"/{name}", version)
    programs.add("/../../etc/passwd", Version.of(Path("/etc/passwd").stat()))
    assert {digest for _, digest, _ in digests(programs)} == {""}


def test_a_directory_replaced_by_a_link_is_not_followed(hasher: Hasher, root: int, tmp_path: Path) -> None:
    version = make(tmp_path / "real/x", b"x")
    (tmp_path / "link").symlink_to("real")
    programs = Programs(hasher, [Below("/", root)])
    programs.add("/link/x", version)
    assert digests(programs) == [("/link/x", "", 1)]


def test_there_is_an_end_to_it(hasher: Hasher, root: int, tmp_path: Path) -> None:
    version = make(tmp_path / "x", b"x")
    programs = Programs(hasher, [Below("/", root)])
    for number in range(SHOWN_MAX + 50):
        programs.add(f"/{'./' * number}x", version)
    assert len(programs.shown()) == SHOWN_MAX
