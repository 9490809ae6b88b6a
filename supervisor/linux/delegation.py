"""The part of the v2 tree that systemd has handed to the daemon's unit (Delegate=yes), systemd.resource-control(5).

There the daemon makes its groups, instead of at the top of the tree, where systemd decides which controllers are on. A group
that holds processes can have no limited children beside them (cgroups(7), "no internal processes"), so the daemon moves itself
into a leaf first.
"""

from __future__ import annotations

import os
from pathlib import Path

from supervisor.errors import LaunchFailed
from supervisor.linux.host import CgroupLayout

LEAF = "daemon"
_MARKS = ("user.delegate", "trusted.delegate")


def delegated_parent(layout: CgroupLayout) -> str:
    """The path below the v2 mount that is ours to divide, having moved there into a leaf; "" where nothing is delegated.

    Only on a pure v2 host: on a hybrid one the v1 hierarchies hold the limits, and systemd hands over none of those. Raises
    LaunchFailed.
    """
    if not {"memory", "pids", "cpu"} <= layout.controllers_v2:
        return ""
    own = _own_group().removesuffix(f"/{LEAF}")
    directory = Path(layout.v2_mount + own)
    if own in ("", "/") or not any(_mark(directory, name) for name in _MARKS):
        return ""
    try:
        leaf = directory / LEAF
        leaf.mkdir(exist_ok=True)
        (leaf / "cgroup.procs").write_text(str(os.getpid()))
    except OSError as error:
        raise LaunchFailed(
            f"cannot move into {leaf}, in the control group that was delegated: {error}", metadata={"stage": "cgroup"}
        ) from error
    return own.strip("/")


def _own_group() -> str:
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        if line.startswith("0::"):
            return line[3:]
    return ""


def _mark(directory: Path, name: str) -> bool:
    try:
        return os.getxattr(directory, name) == b"1"
    except OSError:
        return False
