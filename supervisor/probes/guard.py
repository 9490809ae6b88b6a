"""The guard of files: BPF programs at LSM hooks, where the kernel takes them. bpf/guard.h is the kernel's side."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

from supervisor.probes.layout import DENIED_KEY, DENIED_VALUE
from supervisor.probes.libbpf import BpfError, BpfMap, BpfObject
from supervisor.rules.denied import Denied

_WORD = (1 << 64) - 1
_FACTOR = 0x9FB21C651E98DF25
_BASE = 0x9E3779B97F4A7C15
_PATH, _NAME = 0, 1
"""enum denied_kind."""


class PathHash:
    """bpf/guard.h has the same, and why a sum."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def name(self, name: bytes) -> int:
        found = self.seed ^ len(name)
        for at in range(0, len(name), 8):
            found = (found ^ int.from_bytes(name[at : at + 8], "little")) * _FACTOR & _WORD
            found ^= found >> 32
        return found

    def path(self, names: Iterable[bytes]) -> int:
        found, power = 0, 1
        for name in names:
            found = (found + self.name(name) * power) & _WORD
            power = power * _BASE & _WORD
        return found


class Guard:
    """Loaded and attached once for all runs; its maps are the probes' own, but for what is denied."""

    def __init__(self, program: BpfObject, seed: int) -> None:
        self._program = program
        self._hash = PathHash(seed)
        self.denied: BpfMap = program.map("denied")

    @classmethod
    def open(cls, path: Path, probes: BpfObject, group_level: int) -> Guard:
        """Raises BpfError."""
        if _may_be_left_out(os.uname().release, os.uname().version, Path("/proc/cmdline").read_text()):
            raise BpfError(
                95, "before Linux 6.2, with preemption, a program is left out where one task interrupts another's"
            )
        program = BpfObject.open(path)
        try:
            program.share_maps(probes)
            program.load()
            seed = int.from_bytes(os.urandom(8), "little")
            program.set_word(".data", "group_level", group_level)
            program.set_word(".data", "hash_seed", seed, 8)
            for name in program.programs():
                program.attach(name)
            if not _is_asked(program):
                raise BpfError(95, "the kernel asks no BPF program: bpf is not in its list of LSMs")
            return cls(program, seed)
        except BaseException:
            program.close()
            raise

    def entries(self, number: int, denied: Iterable[Denied]) -> Iterator[tuple[bytes, bytes]]:
        """Keys and values of what the set of rules with that number denies."""
        for one in denied:
            names = [os.fsencode(name) for name in one.names]
            kind, hashed = (_NAME, self._hash.name(names[0])) if one.anywhere else (_PATH, self._hash.path(names))
            yield DENIED_KEY.pack(number, kind, hashed), DENIED_VALUE.pack(one.exact, one.below, bytes(one.rules))

    def close(self) -> None:
        self._program.close()


def _is_asked(program: BpfObject) -> bool:
    """By a chmod of our own. Programs are attached to the hooks also where the kernel was not booted to ask them."""
    program.set_word(".bss", "trial", threading.get_native_id())
    file = os.memfd_create("supervisor-trial")
    try:
        os.fchmod(file, 0o600)
    finally:
        os.close(file)
    return program.word(".bss", "trial") == 0


def _may_be_left_out(release: str, version: str, command_line: str) -> bool:
    """A kernel that takes the CPU away within a program, and then does not run it for who comes next: until commit
    271de525e1d7 (6.2) programs at LSM hooks were counted in and out per CPU as those that trace are."""
    number = tuple(map(int, re.findall(r"\d+", release)[:2]))
    forced = "preempt=full" in command_line.split()
    return number < (6, 2) and (forced or bool({"PREEMPT", "PREEMPT_RT"} & set(version.split())))
