"""Every limit has its own cause, and holds within 5 % or 50 ms."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from supervisor.client import Supervisor
from supervisor.model import RunResult
from supervisor.v1 import run_pb2
from tests.host.daemon_fixture import MIB, SLOW_MACHINE, Daemon, LiveRun, Prober, scaled, spec

Load = Callable[..., RunResult]
RSS_ROOM = 64 * MIB


@pytest.fixture
def load(supervisor: Supervisor, attacks: Path) -> Load:
    """load(NAME, NUMBER, **options): runs one load of attacks/load.c under strict."""

    def run(name: str, number: float = 0, **options: Any) -> RunResult:
        options.setdefault("timeout", scaled(30))
        argv = ["/attacks/load", name, str(int(number))]
        return supervisor.execute(argv, policy="strict", mounts=[f"{attacks}:/attacks:ro"], **options)

    return run


def close_to(measured: float | None, limit: float, seconds: float = 0.05) -> bool:
    """Within 5 % or 50 ms (scaled) of a limit in seconds."""
    return measured is not None and abs(measured - limit) <= max(0.05 * limit, scaled(seconds))


def test_memory(load: Load) -> None:
    result = load("touch", 0, memory="64M")
    assert result.outcome == "out_of_memory", (result.outcome, result.detail)
    assert (result.exit_code, result.signal) == (None, 9)
    peak = result.usage.memory_peak_bytes
    assert peak is not None and 0.95 * 64 * MIB <= peak <= 1.05 * 64 * MIB
    assert result.usage.oom_kills and result.usage.memory_limit_hits
    assert "64" in result.detail


def test_memory_of_a_child_is_not_the_programs_end(load: Load) -> None:
    result = load("touch_child", memory="64M")
    assert result.outcome in ("exited", "out_of_memory")
    if result.outcome == "exited":
        assert result.stdout == b"child 9\n"
        assert result.usage.oom_kills and result.usage.oom_kills > 0


def test_just_below_the_memory_limit(load: Load) -> None:
    result = load("touch", 55, memory="64M")
    assert (result.outcome, result.exit_code) == ("exited", 0), result.detail


@pytest.mark.parametrize("argv", [["sleep", "600"], ["sh", "-c", "trap '' TERM INT HUP; while :; do sleep 600; done"]])
def test_wall_clock(supervisor: Supervisor, argv: list[str]) -> None:
    limit = scaled(1)
    before = time.monotonic()
    result = supervisor.execute(argv, policy="strict", timeout=limit)
    took = time.monotonic() - before
    assert result.outcome == "timed_out", result.detail
    assert close_to(result.usage.wall_seconds, limit), result.usage.wall_seconds
    assert close_to(took, limit, 0.15), took


def test_wall_clock_of_a_deaf_sleeper(load: Load) -> None:
    limit = scaled(0.5)
    result = load("sleeper", timeout=limit)
    assert result.outcome == "timed_out"
    assert close_to(result.usage.wall_seconds, limit), result.usage.wall_seconds


@pytest.mark.parametrize(("name", "number"), [("burn", 0), ("burn_many", 8), ("burn_short", 0)])
def test_cpu(load: Load, name: str, number: int) -> None:
    limit = scaled(1)
    result = load(name, number, limits={"cpu_seconds": limit}, cpus=2, timeout=scaled(60))
    assert result.outcome == "cpu_limit", (result.outcome, result.detail)
    assert result.usage.cpu_user_seconds is not None and result.usage.cpu_system_seconds is not None
    spent = result.usage.cpu_user_seconds + result.usage.cpu_system_seconds
    assert close_to(spent, limit, 0.1), spent


def test_cpu_limit_behind_the_daemon(supervisor: Supervisor) -> None:
    """The kernel ends a process that has used more, for the case that the daemon cannot look."""
    result = supervisor.execute(["sh", "-c", "ulimit -St"], policy="strict", limits={"cpu_seconds": 5})
    assert result.stdout == b"7\n"


def test_cpu_limit_while_the_daemon_cannot_look(load: Load, daemon: Daemon) -> None:
    resume = threading.Timer(scaled(5), os.kill, (daemon.pid, signal.SIGCONT))
    pause = threading.Timer(scaled(0.5), os.kill, (daemon.pid, signal.SIGSTOP))
    resume.start()
    pause.start()
    result = load("burn", limits={"cpu_seconds": 1})
    resume.join()
    assert result.outcome == "cpu_limit", (result.outcome, result.detail)


def test_own_sigxcpu_is_no_limit(supervisor: Supervisor) -> None:
    result = supervisor.execute(["sh", "-c", "kill -XCPU $$"], policy="strict", timeout=scaled(10))
    assert (result.outcome, result.signal) == ("signaled", signal.SIGXCPU), result.detail


def test_cpu_share(load: Load) -> None:
    result = load("burn", scaled(500), cpus=0.5)
    usage = result.usage
    assert result.outcome == "exited" and usage.wall_seconds is not None
    assert usage.wall_seconds >= 0.85 * scaled(1), usage
    if usage.cpu_throttled_seconds is not None:
        assert 0.25 * scaled(1) <= usage.cpu_throttled_seconds <= 1.1 * usage.wall_seconds, usage


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_output_exactly_at_the_limit(load: Load, stream: str) -> None:
    result = load(stream, 100_000, output_limit=100_000)
    assert (result.outcome, result.exit_code) == ("exited", 0), result.detail
    assert len(getattr(result, stream)) == 100_000
    assert getattr(result, f"{stream}_truncated") is False


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
@pytest.mark.parametrize("limit", [1, 4096, 100_000])
def test_output_one_byte_over(load: Load, stream: str, limit: int) -> None:
    result = load(stream, limit + 1, output_limit=limit)
    assert result.outcome == "output_limit", result.detail
    assert len(getattr(result, stream)) == limit
    assert getattr(result, f"{stream}_truncated") is True


def test_output_limit_is_per_stream(load: Load) -> None:
    result = load("both", 50_000, output_limit=50_000)
    assert (result.outcome, len(result.stdout), len(result.stderr)) == ("exited", 50_000, 50_000)


def test_flood_ends_at_the_limit(load: Load, daemon: Daemon) -> None:
    before = daemon.rss_bytes()
    with Prober(daemon):
        result = load("both", 100 * MIB, output_limit="1M", timeout=scaled(60))
    assert result.outcome == "output_limit"
    assert len(result.stdout) <= MIB and len(result.stderr) <= MIB
    assert max(len(result.stdout), len(result.stderr)) == MIB
    assert daemon.rss_bytes() - before < RSS_ROOM


def test_flood_that_nobody_reads(daemon: Daemon, attacks: Path) -> None:
    """100 MB to both streams, the client not reading for a while: the program waits, the daemon does not grow."""
    size = 100 * MIB if not SLOW_MACHINE else 20 * MIB
    request = spec("/attacks/load", "both", str(size), wall_seconds=120)
    request.mounts.add(source=str(attacks).encode(), target=b"/attacks")
    request.limits.output_bytes = size
    before = daemon.rss_bytes()
    run = LiveRun(daemon, request)
    run.wait_started()
    highest = 0
    with Prober(daemon):
        for _ in range(20):
            time.sleep(scaled(0.1))
            highest = max(highest, daemon.rss_bytes())
    assert highest - before < RSS_ROOM, "nobody read, and the daemon grew"
    received = {"stdout": len(run.stdout), "stderr": len(run.stderr)}
    for event in run.call:
        received["stdout"] += len(event.stdout)
        received["stderr"] += len(event.stderr)
        if event.HasField("exited"):
            run.exited = event.exited
    highest = max(highest, daemon.rss_bytes())
    run.close()
    assert run.exited is not None and run.exited.outcome == run_pb2.OUTCOME_EXITED, run.exited
    assert received == {"stdout": size, "stderr": size}
    assert highest - before < RSS_ROOM


def test_pids(load: Load) -> None:
    result = load("fork_limit", pids=20)
    count, name = result.stdout.split()
    assert name == b"EAGAIN"
    assert int(count) == 20, "the run's init is ours and does not count"
    assert result.outcome == "exited"
    assert result.usage.pids_limit_hits and result.usage.pids_limit_hits >= 1


def test_disk_is_one_for_all_places(load: Load) -> None:
    result = load("disk_limit", disk="16M", memory="256M", limits={"file_size": "64M"})
    count, name = result.stdout.split()
    assert name == b"ENOSPC"
    assert 0.95 * 16 * MIB <= int(count) <= 16 * MIB
    assert result.outcome == "exited"


def test_inodes(load: Load) -> None:
    result = load("inode_limit", limits={"inodes": 1000})
    count, name = result.stdout.split()
    assert name == b"ENOSPC"
    assert 1000 <= int(count) <= 1050, "what the root itself is made of is ours to pay"
    assert result.outcome == "exited"


def test_file_size(load: Load) -> None:
    result = load("file_limit", limits={"file_size": "1M"})
    assert result.stdout.split() == [str(MIB).encode(), b"EFBIG"]


def test_open_files(load: Load) -> None:
    result = load("open_limit", limits={"open_files": 64})
    assert result.stdout.split() == [b"64", b"EMFILE"]


def test_each_limit_of_the_policy_is_there_unasked(supervisor: Supervisor) -> None:
    text = supervisor.policy("strict").resolved_toml
    for key in ("wall_seconds", "memory", "pids", "open_files", "file_size", "disk", "inodes", "output"):
        assert f"{key} =" in text, key
