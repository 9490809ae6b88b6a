"""Removing what a stranger has made of a directory: depth, breadth, modes, links."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from supervisor.linux import trees
from supervisor.linux.trees import remove_tree


def dig(top: Path, depth: int) -> None:
    """`top`/a/a/a...: deeper than a path can say."""
    fd = os.open(top, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("a", dir_fd=fd)
        below = os.open("a", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(os.open("last", os.O_WRONLY | os.O_CREAT, dir_fd=fd))
    os.close(fd)


@pytest.fixture
def top(tmp_path: Path) -> Path:
    path = tmp_path / "top"
    path.mkdir()
    return path


def test_depth(top: Path) -> None:
    dig(top, 3000)
    remove_tree(top)
    assert not top.exists()


def test_breadth(top: Path) -> None:
    for name in range(300):
        (top / f"d{name}" / "below" / "again").mkdir(parents=True)
        (top / f"d{name}" / "below" / "file").write_text("")
        (top / f"f{name}").write_text("")
    remove_tree(top)
    assert not top.exists()


def test_links_are_not_followed(top: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").write_text("")
    (top / "below").mkdir()
    (top / "link").symlink_to(kept)
    (top / "below" / "link").symlink_to(kept)
    (top / "below" / "dangling").symlink_to("nowhere")
    remove_tree(top)
    assert not top.exists() and (kept / "file").exists()


def test_a_link_in_place_of_the_directory(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "kept")
    with pytest.raises(OSError):
        remove_tree(tmp_path / "link")
    assert (tmp_path / "kept" / "file").exists()


def test_what_vanishes(top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    remove_tree(top / "never was")
    for name in "abc":
        (top / name).write_text("")
    unlink = os.unlink

    def others_first(name: str, *, dir_fd: int) -> None:
        unlink(name, dir_fd=dir_fd)
        unlink(name, dir_fd=dir_fd)

    monkeypatch.setattr(trees.os, "unlink", others_first)
    remove_tree(top)
    assert not top.exists()


@pytest.mark.skipif("os.geteuid() != 0", reason="modes bind everyone but root")
def test_modes(top: Path) -> None:
    (top / "a" / "b" / "c").mkdir(parents=True)
    (top / "a" / "b" / "c" / "file").write_text("")
    for path in (top / "a" / "b" / "c", top / "a" / "b", top / "a", top):
        path.chmod(0)
    remove_tree(top)
    assert not top.exists()
