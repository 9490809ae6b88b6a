"""What patterns name, and where the taking of files ends: on trees of our own, the run's uid being ours."""

from __future__ import annotations

import asyncio
import contextlib
import fnmatch
import gc
import os
import socket
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from supervisor.backends import native_sandbox
from supervisor.backends.native_sandbox import NativeSandbox
from supervisor.errors import InvalidRequest
from supervisor.linux.collect import MAX_DEPTH, Bounds, Place, collect_files
from supervisor.linux.files import MAX_COMPONENTS, cost, put_files
from supervisor.model import Enforcement, InputFile

MIB = 1 << 20


def collect(directory, *patterns, at=b"/work", owners=None, bounds=None, **options):
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        place = Place(fd, frozenset({os.geteuid()} if owners is None else owners))
        return collect_files({at: place}, patterns, bounds or Bounds(1 << 40, 20_000), **options)
    finally:
        os.close(fd)


def paths(*arguments, **options):
    found = collect(*arguments, **options)
    assert found.complete
    return [file.path for file in found.files]


def write(path: Path, data: bytes = b"x", mode: int = 0o600) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    path.chmod(mode)
    return path


# --- patterns ---


def reference(tree, parts, prefix=""):
    """The same by plain recursion; `tree` maps a name to a tree, or to None for a file."""
    head, rest = parts[0], parts[1:]
    deep = head == "**"
    if deep and rest:
        yield from reference(tree, rest, prefix)
    for name, below in tree.items():
        if deep or fnmatch.fnmatchcase(name, head):
            if below is None:
                if not rest:
                    yield prefix + name
            else:
                yield from reference(below, parts if deep else rest or ["**"], f"{prefix}{name}/")


def make(tree, at: Path) -> None:
    for name, below in tree.items():
        if below is None:
            (at / name).touch()
        else:
            (at / name).mkdir()
            make(below, at / name)


NAMES = st.sampled_from(["a", "b", "ab", "a.b", "[a]"])
TREES = st.dictionaries(
    NAMES, st.recursive(st.none(), lambda below: st.dictionaries(NAMES, below, max_size=3), max_leaves=12), max_size=4
)
PARTS = st.lists(
    st.sampled_from(["**", "**", "*", "a", "b", "a*", "?", "[ab]", "[!a]*", "[[]a]", "**b", "zz", "[z-a]"]), max_size=6
)


@settings(deadline=None, max_examples=400)
@given(TREES, st.lists(PARTS, min_size=1, max_size=4))
def test_as_plain_recursion(tree, patterns):
    expected = {path for parts in patterns for path in reference(tree, parts or ["**"])}
    with tempfile.TemporaryDirectory() as top:
        make(tree, Path(top))
        found = paths(top, *("/".join(parts).encode() or b"." for parts in patterns))
    assert found == [path.encode() for path in sorted(expected, key=lambda path: path.split("/"))]


def test_names_are_relative_where_a_pattern_is(tmp_path):
    write(tmp_path / "d" / "f")
    assert paths(tmp_path, b"d") == [b"d/f"]
    assert paths(tmp_path, b"/work/d/*") == [b"/work/d/f"]
    assert paths(tmp_path, b"/work", b"d//./*") == paths(tmp_path, b"d/f", b"/work/**") == [b"d/f"]
    assert paths(tmp_path, b"/tmp/**", at=b"/tmp") == [b"/tmp/d/f"]
    assert paths(tmp_path, b"/tmp", b"/etc/**", b"d/../d/f", b"*/..") == []


def test_time_does_not_depend_on_how_a_pattern_could_match(tmp_path):
    write(tmp_path / ("a/" * 60) / "f")
    begin = time.monotonic()
    assert paths(tmp_path, b"**/a/" * 20 + b"**/zz", b"**/" * 1000 + b"zz", b"a*" * 100 + b"b", b"*/**" * 100) == []
    assert paths(tmp_path, *(b"**/a/" * 12 + b"**/zz%d" % n for n in range(100))) == []
    assert time.monotonic() - begin < 20


# --- bounds ---


def test_depth_is_bounded(tmp_path):
    write(tmp_path / ("d/" * (MAX_DEPTH - 1)) / "in")
    assert paths(tmp_path, b"**") == [b"d/" * (MAX_DEPTH - 1) + b"in"]
    write(tmp_path / ("d/" * MAX_DEPTH) / "out")
    found = collect(tmp_path, b"**/out")
    assert (found.files, found.complete) == ((), False)


def test_entries_are_bounded(tmp_path):
    for n in range(30):
        write(tmp_path / f"{n // 10}" / f"{n}")
    found = collect(tmp_path, b"**", bounds=Bounds(1 << 40, 100, entries_left=25))
    assert len(found.files) == 20 and not found.complete
    assert collect(tmp_path, b"**", bounds=Bounds(1 << 40, 100, entries_left=33)).complete


def test_files_and_bytes_are_bounded(tmp_path):
    for n in range(5):
        write(tmp_path / f"{n}", b"12345")
    found = collect(tmp_path, b"*", bounds=Bounds(7, 3))
    assert [(file.data, file.truncated) for file in found.files] == [(b"12345", False), (b"12", True), (b"", True)]
    assert not found.complete
    assert collect(tmp_path, b"*", bounds=Bounds(1 << 40, 5)).complete


def test_time_is_bounded(tmp_path):
    write(tmp_path / "f")
    found = collect(tmp_path, b"**", bounds=Bounds(1 << 40, 100, seconds=0))
    assert (found.files, found.complete) == ((), False)


def test_cancelled_in_the_middle(tmp_path):
    for n in range(2000):
        (tmp_path / f"{n:04}").touch()
    looks = iter(range(100))
    found = collect(tmp_path, b"*", cancelled=lambda: next(looks) > 10)
    assert 0 < len(found.files) < 2000 and not found.complete
    flag = threading.Event()
    flag.set()
    assert collect(tmp_path, b"*", cancelled=flag.is_set).files == ()


def test_cancelled_among_the_states_of_one_name(tmp_path):
    write(tmp_path / "f")
    looks = iter(range(100))
    found = collect(tmp_path, *(b"z%d" % n for n in range(1000)), cancelled=lambda: next(looks) >= 2)
    assert not found.complete and next(looks) == 3


def test_memory_and_descriptors_are_bounded(tmp_path):
    for n in range(6):
        write(tmp_path / f"{n}", bytes([n]) * 10_000)
    before = len(os.listdir("/proc/self/fd"))
    found = collect(tmp_path, b"*", bounds=Bounds(1 << 40, 100, memory_left=20_000, spools_left=3))
    assert [(len(file.data), file.truncated) for file in found.files] == [(10_000, False)] * 2 + [(0, False)] * 3 + [
        (0, True)
    ]
    assert [file.spool[:] for file in found.files if file.spool] == [bytes([n]) * 10_000 for n in (2, 3, 4)]
    assert found.complete and len(os.listdir("/proc/self/fd")) == before + 3
    del found
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


def test_holes_are_not_held_in_memory(tmp_path):
    for n in range(3):
        write(tmp_path / f"{n}")
        os.truncate(tmp_path / f"{n}", MIB - n)
    write(tmp_path / "large", b"x" * (MIB + 1))
    bounds = Bounds(1 << 40, 100)
    found = collect(tmp_path, b"*", bounds=bounds)
    assert [len(file.spool) for file in found.files] == [MIB, MIB - 1, MIB - 2, MIB + 1]
    assert bounds.memory_left == 64 * MIB and found.files[0].spool[:10] == b"x" + bytes(9)


async def test_kill_cuts_it_short_and_the_enforcement_tells(tmp_path, monkeypatch):
    (tmp_path / "f").touch()
    begun = threading.Event()

    def endless(places, patterns, bounds, cancelled):
        begun.set()
        while not cancelled():
            time.sleep(0.001)
        return collect_files(places, patterns, bounds, cancelled)

    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    before = len(os.listdir("/proc/self/fd"))
    with ThreadPoolExecutor(1) as pool:
        request = SimpleNamespace(spec=SimpleNamespace(collect=(b"*",)))
        bounds = SimpleNamespace(max_collect_bytes=100, max_collect_files=100)
        places = {b"/work": Place(fd, frozenset({os.geteuid()}))}
        group = SimpleNamespace(kill=lambda: None)
        sandbox = NativeSandbox(None, group, None, request, bounds, places, Enforcement(), pool, None)
        sandbox.kill()
        assert [file.path for file in await sandbox.collect()] == [b"f"] and sandbox.enforcement.missing == ()
        monkeypatch.setattr(native_sandbox, "collect_files", endless)
        collecting = asyncio.create_task(sandbox.collect())
        await asyncio.to_thread(begun.wait)
        sandbox.kill()
        assert await collecting == () and sandbox.enforcement.missing == ("files (collect was cut short)",)
        begun.clear()
        collecting = asyncio.create_task(sandbox.collect())
        await asyncio.to_thread(begun.wait)
        collecting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await collecting
    assert len(os.listdir("/proc/self/fd")) == before
    os.close(fd)


# --- whose ---


def test_only_what_the_owner_could_read(tmp_path):
    write(tmp_path / "private", mode=0o600)
    write(tmp_path / "group", mode=0o640)
    write(tmp_path / "public", mode=0o604)
    for name, mode in (("closed", 0o750), ("listed", 0o704), ("passed", 0o701), ("open", 0o705)):
        write(tmp_path / name / "f", mode=0o644)
        (tmp_path / name).chmod(mode)
    strangers = {os.geteuid() + 1}
    assert paths(tmp_path, b"**", b"closed/f", b"passed/f", owners=strangers) == [b"open/f", b"public"]
    assert len(paths(tmp_path, b"**", owners=strangers | {os.geteuid()})) == 7


@pytest.mark.skipif(not os.path.ismount("/proc"), reason="/proc is not mounted")
def test_other_file_systems_are_left_out():
    assert paths("/", b"/proc/version", b"/proc/sys/kernel/ostype", at=b"", owners={0}) == []


def test_links_and_special_files_are_passed_over(tmp_path):
    write(tmp_path / "plain")
    (tmp_path / "file").symlink_to("plain")
    (tmp_path / "dir").symlink_to("/etc")
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as end:
        end.bind(str(tmp_path / "sock"))
        if os.geteuid() == 0:
            with contextlib.suppress(PermissionError):
                os.mknod(tmp_path / "null", 0o020666, os.makedev(1, 3))
        assert paths(tmp_path, b"**", b"file", b"dir/passwd", b"fifo", b"sock", b"null", b"*/*") == [b"plain"]


def test_a_tree_that_changes(tmp_path):
    """Directories are moved, and exchanged for links to what is not below the place."""
    outside = write(tmp_path / "outside" / "f", b"secret", mode=0o666).parent
    top = tmp_path / "top"
    write(top / "a" / "f", b"own")
    over = threading.Event()

    def change():
        while not over.is_set():
            os.rename(top / "a", top / "b")
            os.symlink(outside, top / "a")
            os.unlink(top / "a")
            os.rename(top / "b", top / "a")

    changer = threading.Thread(target=change)
    before = len(os.listdir("/proc/self/fd"))
    changer.start()
    try:
        for _ in range(500):
            found = collect(top, b"**", b"a/f")
            assert found.complete and {file.data for file in found.files} <= {b"own"}
    finally:
        over.set()
        changer.join()
    assert len(os.listdir("/proc/self/fd")) == before


# --- into a run ---


def test_paths_of_input_are_bounded(tmp_path):
    (tmp_path / "work").mkdir()
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    deepest = b"d/" * (MAX_COMPONENTS - 2) + b"f"
    try:
        put_files(fd, [InputFile(deepest, b"x")], os.geteuid())
        with pytest.raises(InvalidRequest) as caught:
            put_files(fd, [InputFile(b"a", b""), InputFile(b"d/" + deepest, b"x")], os.geteuid())
    finally:
        os.close(fd)
    assert caught.value.field == "files[1].path"
    assert (tmp_path / "work" / os.fsdecode(deepest)).read_bytes() == b"x"
    assert cost([InputFile(deepest, b"")]) == MAX_COMPONENTS * 4096
