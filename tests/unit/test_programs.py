"""Digests of what was executed: of the same inode, unchanged, found by its path and by no link."""

from __future__ import annotations

import hashlib
import os
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


@pytest.mark.parametrize("slow", [False, True])
def test_what_was_executed(hasher: Hasher, root: int, tmp_path: Path, slow: bool) -> None:
    one, two = make(tmp_path / "bin/one", b"1" * 3_000_000), make(tmp_path / "two", b"")
    programs = Programs(hasher, [Below("/", root, slow)])
    for path, version in (("/bin/one", one), ("/two", two), ("/bin/one", one)):
        programs.add(path, version)
    assert digests(programs) == [("/bin/one", sha(b"1" * 3_000_000), 2), ("/two", sha(b""), 1)]
    again = Programs(hasher, [])
    again.add("/bin/one", one)
    assert digests(again) == [("/bin/one", sha(b"1" * 3_000_000), 1)], "known from the run before"


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
