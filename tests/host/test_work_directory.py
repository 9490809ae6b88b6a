"""Runs without a root of their own fill a directory of the host's /tmp: it goes with them, whatever they made of it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from supervisor.client import Supervisor
from supervisor.linux.trees import remove_tree
from tests.host.daemon_fixture import Daemon

DIG = "import os\nfor _ in range(3000): os.mkdir('a'); os.chdir('a')\n"


def left(daemon: Daemon) -> list[Path]:
    return list(Path("/tmp").glob(f"supervisor-{daemon.instance}-*"))


def test_deeper_than_a_path(daemon: Daemon, supervisor: Supervisor) -> None:
    result = supervisor.execute(["/usr/bin/python3", "-c", DIG], policy="basic")
    assert result.outcome == "exited" and result.exit_code == 0
    assert left(daemon) == []


def test_the_next_start_removes_it(make_daemon: Callable[..., Daemon]) -> None:
    daemon = make_daemon("deep")
    assert daemon.stop() == 0
    top = Path(f"/tmp/supervisor-{daemon.instance}-old")
    top.mkdir()
    fd = os.open(top, os.O_RDONLY)
    for _ in range(3000):
        os.mkdir("a", dir_fd=fd)
        below = os.open("a", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)
    try:
        daemon.start()
        assert left(daemon) == []
    finally:
        remove_tree(top)
