"""What the accounting says of loads whose size is known, within 10 %."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from supervisor.client import Supervisor
from supervisor.model import RunResult
from tests.host.daemon_fixture import MIB, Daemon, LiveRun, scaled, spec, wait_until

Load = Callable[..., RunResult]
COUNTS_IO = Path("/proc/self/io").exists()
NULLABLE = ("memory_peak_bytes", "pids_peak", "io_read_bytes", "io_write_bytes", "cpu_throttled_seconds")


@pytest.fixture
def load(supervisor: Supervisor, attacks: Path) -> Load:
    def run(name: str, number: float, mounts: tuple[str, ...] = (), **options: Any) -> RunResult:
        argv = ["/attacks/load", name, str(int(number))]
        result = supervisor.execute(
            argv, policy="strict", timeout=scaled(60), mounts=[f"{attacks}:/attacks:ro", *mounts], **options
        )
        assert (result.outcome, result.exit_code) == ("exited", 0), (result.outcome, result.detail, result.stderr)
        return result

    return run


def within_a_tenth(measured: float | None, expected: float) -> bool:
    return measured is not None and abs(measured - expected) <= 0.1 * expected


def test_user_cpu(load: Load) -> None:
    seconds = scaled(0.5)
    usage = load("burn", seconds * 1000).usage
    assert usage.cpu_user_seconds is not None and usage.cpu_system_seconds is not None
    assert within_a_tenth(usage.cpu_user_seconds + usage.cpu_system_seconds, seconds), usage
    assert usage.cpu_user_seconds > 0.8 * seconds
    assert usage.wall_seconds is not None and usage.wall_seconds >= 0.95 * seconds


def test_system_cpu(load: Load) -> None:
    seconds = scaled(0.5)
    usage = load("burn_system", seconds * 1000).usage
    assert usage.cpu_user_seconds is not None and usage.cpu_system_seconds is not None
    assert within_a_tenth(usage.cpu_user_seconds + usage.cpu_system_seconds, seconds), usage
    assert usage.cpu_system_seconds > 0.6 * seconds


def test_memory(load: Load) -> None:
    usage = load("touch", 100, memory="256M").usage
    assert within_a_tenth(usage.memory_peak_bytes, 100 * MIB), usage


def test_memory_is_not_carried_over(load: Load) -> None:
    load("touch", 100, memory="256M")
    usage = load("touch", 1, memory="256M").usage
    assert usage.memory_peak_bytes is not None and usage.memory_peak_bytes < 16 * MIB


def test_processes(load: Load) -> None:
    result = load("processes", 20, pids=64)
    if result.usage.pids_peak is None:
        assert "pids_peak" in result.enforcement.missing
    else:
        assert result.usage.pids_peak == 20, "the run's init is ours and does not count"


def test_written_bytes(load: Load, scratch: Callable[..., Path]) -> None:
    directory = scratch("disk")
    kind = subprocess.run(["stat", "-f", "-c", "%T", directory], capture_output=True, text=True, check=True).stdout
    if kind.strip() != "ext2/ext3":
        pytest.fail(f"set SUPERVISOR_TEST_DIR to a directory on ext4; {directory} is on {kind.strip()}")
    result = load("write_disk", 10, mounts=(f"{directory}:/work:rw",))
    assert (directory / "written").stat().st_size == 10 * MIB
    if result.usage.io_write_bytes is None:
        assert "io_write_bytes" in result.enforcement.missing and not COUNTS_IO
    else:
        assert within_a_tenth(result.usage.io_write_bytes, 10 * MIB), result.usage


def test_read_bytes(supervisor: Supervisor, scratch: Callable[..., Path]) -> None:
    path = scratch("disk") / "data"
    with path.open("wb") as file:
        file.write(b"x" * 10 * MIB)
        os.fsync(file.fileno())
    argv = ["dd", "if=/work/data", "of=/dev/null", "bs=1M", "iflag=direct"]
    result = supervisor.execute(argv, policy="strict", timeout=scaled(60), mounts=[f"{path.parent}:/work:ro"])
    assert (result.outcome, result.exit_code) == ("exited", 0), (result.detail, result.stderr)
    if result.usage.io_read_bytes is None:
        assert "io_read_bytes" in result.enforcement.missing and not COUNTS_IO
    else:
        assert within_a_tenth(result.usage.io_read_bytes, 10 * MIB), result.usage
        assert result.usage.io_write_bytes is not None and result.usage.io_write_bytes < MIB


def test_only_the_disk_is_counted(load: Load) -> None:
    usage = load("stdout", 4 * MIB, output_limit="8M").usage
    assert usage.io_write_bytes is None or usage.io_write_bytes < MIB, usage


def test_nothing_is_null_without_being_named(load: Load) -> None:
    result = load("exit", 0)
    for name in NULLABLE:
        if getattr(result.usage, name) is None:
            assert name in result.enforcement.missing, name
    assert result.usage.pids_limit_hits == 0 and result.usage.oom_kills == 0


def test_of_a_run_that_is_alive(daemon: Daemon, supervisor: Supervisor, attacks: Path) -> None:
    request = spec("/attacks/load", "burn", "0")
    request.mounts.add(source=str(attacks).encode(), target=b"/attacks")
    run = LiveRun(daemon, request)
    run_id = run.wait_started()
    wait_until(lambda: (supervisor.get(run_id).usage.cpu_user_seconds or 0) > 0.1, 10, "CPU time while it runs")
    usage = supervisor.get(run_id).usage
    assert usage.wall_seconds is not None and usage.wall_seconds >= 0.1, usage
    run.close()


def test_the_record_says_the_same(load: Load, supervisor: Supervisor) -> None:
    result = load("burn", scaled(50))
    assert supervisor.get(result.run_id).usage == result.usage
