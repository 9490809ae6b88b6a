"""Supervisor processes that share a state directory: who is alive, and what the dead have left.

Each instance (a daemon, or an embedded run) holds a lock on a file of its name while it lives; the kernel lets go of it
whatever ends the process. What bears the name of an instance without a holder is nobody's, and is ended and removed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Collection
from pathlib import Path

import structlog

from supervisor.errors import SupervisorError
from supervisor.evidence.records import RunRecords
from supervisor.linux import cgroup
from supervisor.linux.host import CgroupLayout
from supervisor.linux.trees import remove_tree

log = structlog.get_logger(__name__)

_WAIT_SECONDS = 10.0


class Instance:
    """This process among the instances of `state_dir`. Raises SupervisorError when the name is alive elsewhere."""

    def __init__(self, state_dir: Path, name: str) -> None:
        self.name = name
        self._directory = state_dir / "instances"
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._path = self._directory / f"{name}.lock"
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._fd)
            raise SupervisorError(
                f"another supervisor uses the state directory {state_dir}; stop it, or set SUPERVISOR_STATE_DIR",
                reason="STATE_DIR_IN_USE",
            ) from None

    def clean_up_after_the_dead(self, records: RunRecords, layout: CgroupLayout, parent: str) -> None:
        """Ends and removes whatever instances without a holder have left, this name's earlier life included."""
        dead = [name for name in self._names() if name == self.name or not self._alive(name)]
        alive = [name for name in self._names() if name not in dead]
        for name in dead:
            cgroup.kill_instance(layout, name, parent)
        deadline = time.monotonic() + _WAIT_SECONDS
        for name in dead:
            while not cgroup.remove_instance(layout, name, parent) and time.monotonic() < deadline:
                cgroup.kill_instance(layout, name, parent)
                time.sleep(0.01)
            _remove_work_directories(name)
            if name != self.name:
                with contextlib.suppress(OSError):
                    (self._directory / f"{name}.lock").unlink()
        self._mark_lost(records, alive)

    def _mark_lost(self, records: RunRecords, alive: Collection[str]) -> None:
        lost = records.mark_lost(alive, time.time())
        if lost:
            log.warning("runs_lost", count=len(lost), first=lost[0])

    def _names(self) -> list[str]:
        return sorted(path.stem for path in self._directory.glob("*.lock"))

    def _alive(self, name: str) -> bool:
        try:
            fd = os.open(self._directory / f"{name}.lock", os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(fd)
        return False

    def close(self) -> None:
        """Leaves nothing of the name behind."""
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()
        os.close(self._fd)


def _remove_work_directories(name: str) -> None:
    for path in Path("/tmp").glob(f"supervisor-{name}-*"):
        try:
            if not path.is_symlink() and path.stat().st_uid == 0:
                remove_tree(path)
        except OSError as error:
            log.warning("work_directory_left", path=str(path), error=str(error))
