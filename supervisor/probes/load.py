"""Which probes this host takes: found by loading them."""

from __future__ import annotations

import os
from pathlib import Path

from supervisor.linux.features import describe
from supervisor.model import Feature
from supervisor.probes.engine import Probes
from supervisor.probes.libbpf import BpfError
from supervisor.shipped import PACKAGE_DIR

OBJECT = PACKAGE_DIR / "probes" / "bin" / "probes.bpf.o"
GUARD_OBJECT = OBJECT.with_name("guard.bpf.o")


def open_probes(group: str, slots: int, directory: int = -1) -> tuple[Probes | None, list[Feature]]:
    """The probes for runs whose groups are made below `group`, a path below the v2 mount; None where they cannot be had.

    `directory` is a descriptor of it, where the address hooks go.
    """
    if not OBJECT.exists():
        return None, _missing(f"{OBJECT} is not there: this installation was built without clang")
    try:
        levels = _depth(group) + 1 - _depth(_own_group())
        probes = Probes.open(OBJECT, levels_below=levels, slots=slots, group=directory)
    except BpfError as error:
        last = error.log.strip().splitlines()[-1:] or [""]
        return None, _missing(f"{error.strerror}{': ' if last[0] else ''}{last[0]}"[:300])
    return probes, [
        describe("trace", True, "tracepoints with type information (tp_btf), libbpf"),
        describe("cgroup_bpf", True, "connect, sendmsg, bind, sock_create, egress"),
        _add_guard(probes),
    ]


def _add_guard(probes: Probes) -> Feature:
    try:
        probes.add_guard(GUARD_OBJECT)
    except BpfError as error:
        return describe("bpf_lsm", False, error.strerror or "")
    return describe(
        "bpf_lsm",
        True,
        "file_open, path_*, bprm_check_security, mmap_file, userns_create, sb_mount, move_mount, sb_pivotroot",
    )


def _missing(detail: str) -> list[Feature]:
    return [describe(name, False, detail) for name in ("trace", "cgroup_bpf", "bpf_lsm")]


def _depth(path: str) -> int:
    return sum(1 for part in path.split("/") if part)


def _own_group() -> str:
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        if line.startswith("0::"):
            return line[3:]
    return os.sep
