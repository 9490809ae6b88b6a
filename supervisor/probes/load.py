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


def open_probes(group: str, slots: int) -> tuple[Probes | None, Feature]:
    """The probes for runs whose groups are made below `group`, a path below the v2 mount; None where they cannot be had."""
    if not OBJECT.exists():
        return None, describe("trace", False, f"{OBJECT} is not there: this installation was built without clang")
    try:
        probes = Probes.open(OBJECT, levels_below=_depth(group) + 1 - _depth(_own_group()), slots=slots)
    except BpfError as error:
        last = error.log.strip().splitlines()[-1:] or [""]
        return None, describe("trace", False, f"{error.strerror}{': ' if last[0] else ''}{last[0]}"[:300])
    return probes, describe("trace", True, "tracepoints with type information (tp_btf), libbpf")


def _depth(path: str) -> int:
    return sum(1 for part in path.split("/") if part)


def _own_group() -> str:
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        if line.startswith("0::"):
            return line[3:]
    return os.sep
