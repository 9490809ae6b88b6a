"""`--put` and `--get`: links, special files and hostile names on either way."""

from __future__ import annotations

import os
from contextlib import ExitStack

import pytest

from supervisor.cli import transfer
from supervisor.model import OutputFile


def test_put(command, daemon):
    tree = command.here / "tree"
    (tree / "deep" / "er").mkdir(parents=True)
    (tree / "a").write_bytes(b"A")
    (tree / "a").chmod(0o755)
    (tree / "deep" / "er" / "b\n c").write_bytes(b"B")
    os.mkfifo(tree / "fifo")
    (tree / "link").symlink_to("/etc/passwd")
    (tree / "linked").symlink_to("/etc")
    (command.here / "one").write_bytes(b"1")
    done = command("run", "--put", "tree:in", "--put", "one:/tmp/two", "--put", "one:d/", "--", "echo", check=0)
    got = {file.path: (file.data, file.mode) for file in daemon.runs.specs[0].files}
    one = os.stat(command.here / "one").st_mode & 0o777
    assert got == {
        b"in/a": (b"A", 0o755),
        b"in/deep/er/b\n c": (b"B", os.stat(tree / "deep" / "er" / "b\n c").st_mode & 0o777),
        b"/tmp/two": (b"1", one),
        b"d/one": (b"1", one),
    }
    assert sorted(done.stderr.decode().splitlines()) == [
        "not copied: fifo is a special file",
        "not copied: link is a symbolic link",
        "not copied: linked is a symbolic link",
    ]


@pytest.mark.parametrize(
    ("spec", "said"),
    [("none:x", "No such file"), ("link:x", "symbolic link"), ("x", "SRC:DST"), ("/dev/null:x", "no file")],
)
def test_put_refuses(command, spec, said):
    (command.here / "link").symlink_to("/etc/passwd")
    assert said in command("run", "--put", spec, "--", "echo", check=125).stderr.decode()


def test_put_does_not_follow_what_becomes_a_link(tmp_path):
    (tmp_path / "t" / "d").mkdir(parents=True)
    (tmp_path / "t" / "d" / "passwd").write_bytes(b"mine")
    with ExitStack() as stack:
        files = transfer.files_to_put([f"{tmp_path}/t:in"], stack)
        (tmp_path / "t" / "d" / "passwd").unlink()
        (tmp_path / "t" / "d").rmdir()
        (tmp_path / "t" / "d").symlink_to("/etc")
        with pytest.raises(OSError):
            files[b"in/d/passwd"].open()


def test_get(command):
    command("run", "--get", "out/a b", "--get", b"\xff", "--get", "/tmp/x", "--", "echo", check=0)
    for name in (b"out/a b", b"\xff", b"tmp/x"):
        assert (bytes(command.here) + b"/" + name).decode("utf-8", "surrogateescape")
        with open(bytes(command.here) + b"/" + name, "rb") as file:
            assert file.read() == b"part0;part1;part2;"


def test_get_drops_set_id_bits_and_never_leaves_the_directory(command, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (command.here / "way").symlink_to(outside)
    (command.here / "file").symlink_to(outside / "victim")
    (outside / "victim").write_bytes(b"kept")
    for path in ("way/x", "../outside/y", "a/../../outside/z", "/"):
        done = command("run", "--get", "g", "--", "link", path, check=125)
        assert b"not copied out" in done.stderr
    command("run", "--get", "g", "--", "link", "file", check=0)
    assert sorted(os.listdir(outside)) == ["victim"]
    assert (outside / "victim").read_bytes() == b"kept"
    assert (command.here / "file").read_bytes() == b"evil"
    assert not (command.here / "file").is_symlink()
    assert os.stat(command.here / "file").st_mode & 0o7000 == 0
    assert not [name for name in os.listdir(command.here) if name.endswith(".part")]


def test_truncated_files_are_said_to_be(tmp_path, capsys):
    assert transfer.write_collected([OutputFile(b"/work/a", b"abc", 0o644, truncated=True)], str(tmp_path))
    assert (tmp_path / "a").read_bytes() == b"abc"
    assert "cut: /work/a" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("pattern", "path", "named"),
    [
        (b"x*", b"xy", True),
        (b"x*", b"a/xy", False),
        (b"out", b"out/a/b", True),
        (b"out/", b"out/a", True),
        (b"out/*.o", b"out/a.c", False),
        (b"**/*.o", b"a/b/c.o", True),
        (b"**/*.o", b"c.o", True),
        (b"/work/x", b"x", True),
        (b"/tmp/*", b"/tmp/x", True),
        (b"/tmp/*", b"x", False),
        (b"**", b"x", True),
    ],
)
def test_patterns_that_matched_nothing(pattern, path, named):
    files = [OutputFile(path, b"", 0o644)]
    assert transfer.unmatched([pattern], files) == ([] if named else [pattern])


def test_a_pattern_without_a_file_is_told(capsys):
    from supervisor.cli import attach
    from supervisor.model import Outcome, RunResult

    result = RunResult("r", Outcome.EXITED, "strict", "native", exit_code=0)
    assert attach._take_files(result, [b"x*"], attach._Screen())
    assert capsys.readouterr().err == "--get 'x*': no file matched\n"
