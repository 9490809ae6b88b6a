"""Hostile programs that take all they can: the limit holds, the host and the neighbour do not feel it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import pytest

from supervisor.client import Supervisor
from supervisor.v1 import run_pb2
from tests.host.daemon_fixture import MIB, SLOW_MACHINE, Daemon, LiveRun, scaled, spec, wait_until
from tests.host.witnesses import POLICIES, Witnesses, watched

MEMORY = 64 * MIB
PIDS = 64
SECONDS = 4.0 if not SLOW_MACHINE else 8.0

# way -> (outcomes that are right, errnos that are right where the kernel said no first)
WAYS: dict[str, tuple[set[str], set[str]]] = {
    "fork_bomb": ({"timed_out", "out_of_memory"}, set()),  # Failed forks are freed late, and counted until then.
    "thread_bomb": ({"exited"}, {"EAGAIN"}),
    "anonymous": ({"out_of_memory"}, set()),
    "tmpfs": ({"exited", "out_of_memory"}, {"ENOSPC"}),
    "shm": ({"exited", "out_of_memory"}, {"ENOSPC"}),
    "memfd": ({"out_of_memory", "exited"}, {"EFBIG", "ENOMEM", "EPERM", "ENOSYS", "EMFILE"}),
    "pipes": ({"exited", "out_of_memory"}, {"EMFILE", "ENFILE"}),
    "sockets": ({"exited", "out_of_memory"}, {"EMFILE", "ENOBUFS", "ETOOMANYREFS"}),
    "page_tables": ({"out_of_memory", "exited"}, {"ENOMEM"}),
    "keys": ({"violation", "exited"}, {"EPERM", "ENOSYS", "EDQUOT"}),
    "inodes": ({"exited"}, {"ENOSPC"}),
    "deep_directories": ({"exited"}, {"ENOSPC", "ENAMETOOLONG"}),
    "descriptors": ({"exited"}, {"EMFILE"}),
    "output": ({"output_limit"}, set()),
    "cpu": ({"timed_out"}, set()),
    "inotify": ({"exited", "out_of_memory"}, {"ENOSPC", "EMFILE", "ENOMEM"}),
    "posix_queues": ({"exited", "out_of_memory"}, {"EACCES", "EMFILE", "ENOSPC", "ENOMEM", "ENOSYS", "EPERM"}),
    "sysv_shm": ({"exited", "out_of_memory"}, {"ENOSPC", "ENOMEM", "EPERM", "ENOSYS", "EINVAL"}),
    "sysv_sem": ({"exited", "out_of_memory"}, {"ENOSPC", "ENOMEM", "EPERM", "ENOSYS"}),
    "sysv_msg": ({"exited", "out_of_memory", "timed_out"}, {"ENOSPC", "ENOMEM", "EPERM", "ENOSYS", "EAGAIN"}),
    "zombies": ({"exited", "out_of_memory"}, {"EAGAIN"}),
    "orphans": ({"exited", "out_of_memory"}, {"EAGAIN", "0", "(null)"}),
    "events": ({"exited", "timed_out", "violation"}, {"0"}),
    "locked_memory": ({"exited", "out_of_memory"}, {"EAGAIN", "EPERM", "ENOMEM"}),
    "timers": ({"exited", "out_of_memory"}, {"EAGAIN", "ENOMEM", "(null)", "0"}),
}


@pytest.fixture(scope="module")
def witnesses(daemon: Daemon) -> Iterator[Witnesses]:
    with watched(daemon) as standing:
        yield standing


class MemoryWatch:
    """The least memory that the host had available while it was entered."""

    def __init__(self) -> None:
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.before = self.least = self._available()

    @staticmethod
    def _available() -> int:
        text = Path("/proc/meminfo").read_text()
        return int(next(line for line in text.splitlines() if line.startswith("MemAvailable")).split()[1]) * 1024

    def _watch(self) -> None:
        while not self._over.wait(0.02):
            self.least = min(self.least, self._available())

    def __enter__(self) -> MemoryWatch:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("way", WAYS)
def test_exhaustion(supervisor: Supervisor, attacks: Path, witnesses: Witnesses, way: str, policy: str) -> None:
    lost = [exhaust(supervisor, attacks, way, policy)]
    # What a run may hold is its limit, with a margin for everything else that happens on the machine; since that can be
    # more than any margin, only what comes again counts.
    while lost[-1] > MEMORY + 256 * MIB and len(lost) < 3:
        lost.append(exhaust(supervisor, attacks, way, policy))
    assert min(lost) <= MEMORY + 256 * MIB, "the run took memory that nobody counted"
    wait_until(lambda: not witnesses.left_over(), 1, "nothing is left")
    witnesses.check()


def exhaust(supervisor: Supervisor, attacks: Path, way: str, policy: str) -> int:
    """One run, judged; returns by how much the host's available memory went down in its time."""
    right, refusals = WAYS[way]
    if SLOW_MACHINE:
        right = right | {"timed_out"}
    with MemoryWatch() as memory:
        before = time.monotonic()
        result = supervisor.execute(
            ["/attacks/exhaust", way],
            policy=policy,
            timeout=SECONDS,
            memory=MEMORY,
            pids=PIDS,
            disk="32M",
            cpus=1,
            output_limit="1M",
            limits={"inodes": 2000, "open_files": 512},
            mounts=[f"{attacks}:/attacks:ro"],
        )
        took = time.monotonic() - before
    assert took < SECONDS + scaled(1)
    assert result.outcome in right, (result.outcome, result.detail, result.stdout[:200], result.stderr[:200])
    if result.outcome == "exited":
        assert result.exit_code == 0, result.stderr
        name, verdict, error, _count = result.stdout.decode().split()
        assert (name, verdict) == (way, "refused") and error in refusals, result.stdout
    usage = result.usage
    assert usage.memory_peak_bytes is None or usage.memory_peak_bytes <= 1.05 * MEMORY
    assert usage.pids_peak is None or usage.pids_peak <= PIDS + 1
    if way in ("fork_bomb", "thread_bomb", "zombies") and result.outcome != "out_of_memory":
        assert usage.pids_limit_hits
    return memory.before - memory.least


@pytest.mark.parametrize("policy", POLICIES)
def test_output_that_nobody_reads(daemon: Daemon, attacks: Path, witnesses: Witnesses, policy: str) -> None:
    """The wall clock ends it although the client never takes an event."""
    request = spec("/attacks/exhaust", "output", policy=policy, wall_seconds=1)
    request.mounts.add(source=bytes(attacks), target=b"/attacks")
    request.limits.output_bytes = 128 * MIB
    before = daemon.rss_bytes()
    run = LiveRun(daemon, request)
    run.wait_started()
    wait_until(lambda: not witnesses.left_over(), 4, "ended while nobody reads")
    assert daemon.rss_bytes() - before < 64 * MIB
    assert run.finish().outcome in (run_pb2.OUTCOME_TIMED_OUT, run_pb2.OUTCOME_OUTPUT_LIMIT)
    witnesses.check()


@pytest.mark.parametrize("policy", POLICIES)
def test_huge_arguments_inside(supervisor: Supervisor, witnesses: Witnesses, policy: str) -> None:
    script = (
        "import os, errno\n"
        "for argv, env in ((['true', *['x' * 100000] * 100], {}), (['true'], {str(n): 'y' * 100000 for n in range(100)})):\n"
        "    try: os.execve('/bin/true', argv, env)\n"
        "    except OSError as e: print(errno.errorcode[e.errno])\n"
    )
    result = supervisor.execute(["python3", "-c", script], policy=policy, timeout=scaled(20), memory="128M")
    assert result.stdout.split() == [b"E2BIG", b"E2BIG"], result.stderr
    witnesses.check()


@pytest.mark.parametrize("policy", POLICIES)
def test_sleep_and_burn_beside_each_other(
    supervisor: Supervisor, attacks: Path, witnesses: Witnesses, policy: str
) -> None:
    """Ten CPU burners with a tenth of a CPU each leave the daemon and the neighbour their share."""
    from concurrent.futures import ThreadPoolExecutor

    def burn(_: int) -> str:
        return str(
            supervisor.execute(
                ["/attacks/exhaust", "cpu"],
                policy=policy,
                timeout=scaled(2),
                cpus=0.1,
                mounts=[f"{attacks}:/attacks:ro"],
            ).outcome.value
        )

    with ThreadPoolExecutor(10) as pool:
        assert set(pool.map(burn, range(10))) == {"timed_out"}
    witnesses.check()
