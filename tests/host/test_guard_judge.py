"""The guard's verdict, which hangs on no hook: asked by a program of the test's own, on every host that has the probes."""

from __future__ import annotations

import ctypes
import os
import random
import runpy
import struct
import subprocess
import sysconfig
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from supervisor.policy import Rule
from supervisor.probes.guard import PathHash
from supervisor.probes.layout import DENIED_KEY, DENIED_VALUE
from supervisor.probes.libbpf import BpfObject, _lib, _TestRun
from supervisor.rules.denied import HOLDS, READ, RENAME, UNRESOLVED, WRITE, denied_of
from supervisor.rules.patterns import path_test

ROOT = Path(__file__).parents[2]
QUESTION = struct.Struct("=IIIIII")
"""struct question of guard_judge.bpf.c: fd, rules, uses, verdict, rule, pad."""
SEED = 0x0123456789ABCDEF


class Judge:
    def __init__(self, path: Path) -> None:
        self._object = BpfObject.open(path)
        for name in ("runs", "counts", "flights"):
            self._object.set_max_entries(name, 1)
        self._object.load()
        self._object.set_word(".data", "hash_seed", SEED, 8)
        self._denied = self._object.map("denied")
        self._hash = PathHash(SEED)

    def deny(self, number: int, rules: list[Rule]) -> None:
        for one in denied_of(rules)[0]:
            names = [os.fsencode(name) for name in one.names]
            hashed = self._hash.name(names[0]) if one.anywhere else self._hash.path(names)
            key = DENIED_KEY.pack(number, one.anywhere, hashed)
            self._denied.update(key, DENIED_VALUE.pack(one.exact, one.below, bytes(one.rules)))

    def ask(self, fd: int, number: int, uses: int) -> tuple[int, int]:
        """Verdict and rule."""
        question = ctypes.create_string_buffer(QUESTION.pack(fd, number, uses, 0, 0, 0), QUESTION.size)
        options = _TestRun(sz=ctypes.sizeof(_TestRun), ctx_in=ctypes.addressof(question), ctx_size_in=QUESTION.size)
        program = _lib().so.bpf_program__fd(self._object._program("judge"))
        assert _lib().so.bpf_prog_test_run_opts(program, ctypes.byref(options)) == 0
        verdict, rule = QUESTION.unpack(question.raw)[3:5]
        return verdict, rule

    def close(self) -> None:
        self._object.close()


@pytest.fixture(scope="module")
def judge(base_directory: Path) -> Iterator[Judge]:
    build = runpy.run_path(str(ROOT / "bpf/build.py"))
    include = Path("/usr/include") / (sysconfig.get_config_var("MULTIARCH") or "")
    path = base_directory / "judge.bpf.o"
    source = Path(__file__).with_name("guard_judge.bpf.c")
    flags = [*build["FLAGS"], "-D__TARGET_ARCH_x86", f"-I{include}", f"-I{ROOT / 'bpf'}"]
    subprocess.run([*build["compiler"](), *flags, "-c", str(source), "-o", str(path)], check=True)
    with closing(Judge(path)) as one:
        yield one
    path.unlink()


def rule(*paths: str, on: str = "open") -> Rule:
    return Rule("r", (on,), {"path": paths}, action="deny")


@pytest.fixture
def tree(base_directory: Path) -> Iterator[Path]:
    path = base_directory / "judged"
    path.mkdir()
    yield path
    subprocess.run(["rm", "-rf", str(path)], check=True)


def test_it_says_what_the_patterns_say(judge: Judge, tree: Path) -> None:
    chance = random.Random(1)
    names = ["a", "b", "ab", "n" * 8, "n" * 9, "m" * 200, "\u00fc"]
    files = set()
    for _ in range(60):
        directory = tree.joinpath(*chance.choices(names, k=chance.randint(0, 5)))
        directory.mkdir(parents=True, exist_ok=True)
        files |= {directory, directory / "f"}
        (directory / "f").touch()
    for number in range(1, 40):
        chosen = chance.choice(sorted(files))
        pattern = chance.choice(["{0}", "{0}/**", "**/{1}", "**/{1}/**"]).format(chosen, chosen.name)
        judge.deny(number, [rule(pattern)])
        fits = path_test(pattern)
        for file in files:
            fd = os.open(file, os.O_RDONLY)
            assert judge.ask(fd, number, READ) == ((READ, 1) if fits(str(file)) else (0, 0)), (pattern, file)
            assert judge.ask(fd, number, RENAME) == (0, 0)
            os.close(fd)


def test_by_whatever_name(judge: Judge, tree: Path) -> None:
    secret = tree / "secret"
    secret.touch()
    (tree / "link").symlink_to("secret")
    judge.deny(100, [rule(str(secret))])
    os.chdir(tree)
    try:
        ways = ["secret", "./x/../secret", "link", f"/proc/self/root{secret}", "/proc/self/cwd/secret"]
        (tree / "x").mkdir()
        for way in ways:
            fd = os.open(way, os.O_RDONLY)
            assert judge.ask(fd, 100, READ)[0] == READ, way
            os.close(fd)
    finally:
        os.chdir("/")


def test_what_lies_above_is_held(judge: Judge, tree: Path) -> None:
    (tree / "a/b").mkdir(parents=True)
    judge.deny(101, [rule(str(tree / "a/b/secret"), on="write")])
    for path, verdict in ((tree / "a", HOLDS), (tree / "a/b", HOLDS), (tree, HOLDS)):
        fd = os.open(path, os.O_RDONLY)
        assert judge.ask(fd, 101, RENAME | HOLDS) == (verdict, 0)
        assert judge.ask(fd, 101, WRITE) == (0, 0)
        os.close(fd)


def test_what_is_too_deep_is_not_resolved(judge: Judge, tree: Path) -> None:
    os.chdir(tree)
    judge.deny(102, [rule("**/q")])
    try:
        for depth in range(300):
            os.mkdir("d")
            os.chdir("d")
            if depth == 200:
                fd = os.open(".", os.O_RDONLY)
                assert judge.ask(fd, 102, READ) == (0, 0)
                os.close(fd)
        fd = os.open(".", os.O_RDONLY)
        assert judge.ask(fd, 102, READ) == (UNRESOLVED, 0)
        os.close(fd)
    finally:
        os.chdir("/")


def test_what_has_no_path_is_not_denied(judge: Judge) -> None:
    read, write = os.pipe()
    memory = os.memfd_create("q")
    for fd in (read, write, memory):
        assert judge.ask(fd, 102, READ) == (0, 0)
        os.close(fd)
