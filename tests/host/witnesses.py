"""What stands beside every attack: a prober of the daemon, a neighbour run, and the host's own settings."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from supervisor.client import Supervisor
from supervisor.model import RunResult
from tests.host.daemon_fixture import RUN_UIDS, Daemon, Neighbour, Prober, scaled

POLICY_NAMES = ("strict", "moderate")
POLICIES = ("strict", pytest.param("moderate", marks=pytest.mark.slow))
"""The VM lane tries the stricter one."""

SETTINGS = (
    "/proc/sys/kernel/core_pattern",
    "/proc/sys/kernel/modprobe",
    "/proc/sys/kernel/hostname",
    "/proc/sys/kernel/domainname",
    "/proc/sys/kernel/sysrq",
    "/proc/sys/kernel/ctrl-alt-del",
    "/proc/sys/kernel/randomize_va_space",
    "/proc/sys/kernel/unprivileged_bpf_disabled",
    "/proc/sys/vm/overcommit_memory",
    "/proc/sys/net/ipv4/ip_forward",
    "/proc/sys/user/max_user_namespaces",
    "/proc/swaps",
    "/proc/modules",
    "/sys/kernel/uevent_helper",
    "/etc/passwd",
    "/etc/hostname",
)


def host_state(daemon: Daemon) -> dict[str, str]:
    """What an escape would change, as the host sees it now."""
    found = {}
    for path in SETTINGS:
        try:
            found[path] = Path(path).read_text()
        except OSError as error:
            found[path] = f"errno {error.errno}"
    found["lo"] = Path("/sys/class/net/lo/flags").read_text()
    found["mounts"] = Path("/proc/self/mounts").read_text()
    for pid in launchers(daemon):
        found[f"launcher {pid}"] = hashlib.sha256(Path(f"/proc/{pid}/exe").read_bytes()).hexdigest()
    return found


def launchers(daemon: Daemon) -> list[int]:
    """Host pids of the daemon's helpers."""
    return [int(pid) for pid in Path(f"/proc/{daemon.pid}/task/{daemon.pid}/children").read_text().split()]


def clock_offset() -> float:
    """Seconds between the wall clock and the monotonic one; jumps when somebody sets the time."""
    return time.time() - time.monotonic()


def run_processes() -> set[int]:
    """Host pids that belong to a run, by uid: nothing that a program does to its name hides it."""
    found = set()
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                # Not the owner of /proc/PID, which is root for what is not dumpable.
                status = Path(f"/proc/{name}/status").read_text()
            except OSError:
                continue
            uids = next(line.split()[1:] for line in status.splitlines() if line.startswith("Uid:"))
            if any(int(uid) in RUN_UIDS for uid in uids):
                found.add(int(name))
    return found


class Witnesses:
    """Lives as long as a module's attacks; `check` after each of them."""

    def __init__(self, daemon: Daemon, prober: Prober, neighbour: Neighbour) -> None:
        self._daemon = daemon
        self._prober = prober
        self._neighbour = neighbour
        self._state = host_state(daemon)
        self._clock = clock_offset()
        self.bystanders = run_processes()

    def check(self) -> None:
        """The neighbour answers, the daemon has answered in time so far, the host is as it was."""
        assert self._neighbour.echo() < scaled(1), "the neighbour is slow"
        self._prober.check()
        now = host_state(self._daemon)
        assert now == self._state, {key: (self._state[key], now[key]) for key in now if now[key] != self._state[key]}
        assert abs(clock_offset() - self._clock) < 1, "the clock was set"
        assert self._daemon.process is not None and self._daemon.process.poll() is None

    def left_over(self) -> set[int]:
        """Processes of runs other than the neighbour's."""
        return run_processes() - self.bystanders


@contextmanager
def watched(daemon: Daemon) -> Iterator[Witnesses]:
    with Prober(daemon) as prober, Neighbour(daemon) as neighbour:
        yield Witnesses(daemon, prober, neighbour)


def lines(result: RunResult) -> list[tuple[str, str, str]]:
    """(name, "blocked" or "EFFECT", detail) of what a hostile program printed."""
    found = []
    for line in result.stdout.decode(errors="replace").splitlines():
        name, _, rest = line.partition(" ")
        verdict, _, detail = rest.partition(" ")
        if verdict in ("blocked", "EFFECT"):
            found.append((name, verdict, detail))
    return found


def assert_no_effect(result: RunResult) -> None:
    assert b" EFFECT" not in result.stdout, [line for line in lines(result) if line[1] == "EFFECT"]


def assert_recorded(client: Supervisor, result: RunResult) -> None:
    """A violation ends the run, names its call, and stands in the record."""
    assert result.outcome == "violation", (result.outcome, result.detail, result.stdout)
    assert result.violations, "a violation without evidence"
    # A rule's word may come when the program is already gone; a forbidden call never returns.
    late = result.violations[0].kind != "syscall" and f"it had already exited with {result.exit_code}" in result.detail
    assert (result.exit_code is None or late) and not result.stdout_truncated, (result.exit_code, result.detail)
    record = client.get(result.run_id)
    assert record.outcome == "violation" and record.violations == result.violations
    assert record.violations[0].time > 0 and record.violations[0].pid > 1
