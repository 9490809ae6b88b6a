"""Hostile programs that try to live on after their run."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from supervisor.client import Supervisor
from supervisor.v1 import run_pb2
from tests.host.daemon_fixture import SLOW_MACHINE, Daemon, LiveRun, host_processes, scaled, spec, wait_until
from tests.host.witnesses import POLICIES, Witnesses, watched

LEAVE = ("double_fork", "hold_output", "disguised")
SECONDS = 0.5 if not SLOW_MACHINE else 3.0
STAY = ("ignore_signals", "parent_death", "fork_storm", "uninterruptible", "stopped", "leader_gone")


@pytest.fixture(scope="module")
def witnesses(daemon: Daemon) -> Iterator[Witnesses]:
    with watched(daemon) as standing:
        yield standing


def all_gone(witnesses: Witnesses, token: str) -> None:
    wait_until(lambda: not witnesses.left_over() and not host_processes(token), 1, f"nothing of {token} is left")
    witnesses.check()


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("way", LEAVE)
def test_run_ends_with_its_program(
    supervisor: Supervisor, attacks: Path, witnesses: Witnesses, way: str, policy: str
) -> None:
    token = uuid.uuid4().hex
    before = time.monotonic()
    result = supervisor.execute(
        ["/attacks/outlive", way, token], policy=policy, timeout=scaled(30), mounts=[f"{attacks}:/attacks:ro"]
    )
    assert (result.outcome, result.exit_code, result.stdout) == ("exited", 0, b"ready\n"), result.detail
    assert time.monotonic() - before < scaled(2), "waited for what the program left behind"
    all_gone(witnesses, token)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("way", STAY)
def test_wall_clock_ends_it(supervisor: Supervisor, attacks: Path, witnesses: Witnesses, way: str, policy: str) -> None:
    token = uuid.uuid4().hex
    limit = SECONDS
    result = supervisor.execute(
        ["/attacks/outlive", way, token], policy=policy, timeout=limit, pids=40, mounts=[f"{attacks}:/attacks:ro"]
    )
    assert result.usage.wall_seconds is not None
    if way == "fork_storm":
        # The program itself exits at its first fork; the storm goes on without it.
        assert result.outcome in ("exited", "timed_out")
    else:
        assert result.outcome == "timed_out", result.detail
    assert result.usage.wall_seconds < limit + scaled(0.3)
    all_gone(witnesses, token)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("end", ["kill", "cancel"])
@pytest.mark.parametrize("way", [w for w in STAY if w != "fork_storm"])
def test_kill_and_cancel_end_it(
    supervisor: Supervisor, daemon: Daemon, attacks: Path, witnesses: Witnesses, way: str, end: str, policy: str
) -> None:
    token = uuid.uuid4().hex
    request = spec("/attacks/outlive", way, token, policy=policy, wall_seconds=60)
    request.mounts.add(source=bytes(attacks), target=b"/attacks")
    run = LiveRun(daemon, request)
    run.wait_started()
    run.read_until(b"ready")
    time.sleep(scaled(0.05))
    if end == "kill":
        assert supervisor.kill(run.run_id)
        assert run.finish().outcome == run_pb2.OUTCOME_CANCELLED
    else:
        run.close()
    all_gone(witnesses, token)


@pytest.mark.parametrize("policy", POLICIES)
def test_fork_storm_behind_a_living_program(
    supervisor: Supervisor, attacks: Path, witnesses: Witnesses, policy: str
) -> None:
    token = uuid.uuid4().hex
    script = f"trap '' TERM; /attacks/outlive fork_storm {token} & kill -STOP $$"
    limit = 2 * SECONDS
    result = supervisor.execute(
        ["sh", "-c", script], policy=policy, timeout=limit, pids=60, mounts=[f"{attacks}:/attacks:ro"]
    )
    assert result.outcome == "timed_out", result.detail
    assert result.usage.wall_seconds is not None and result.usage.wall_seconds < limit + scaled(0.3)
    all_gone(witnesses, token)


@pytest.mark.parametrize("policy", POLICIES)
def test_violation_ends_the_whole_tree(
    supervisor: Supervisor, attacks: Path, witnesses: Witnesses, policy: str
) -> None:
    token = uuid.uuid4().hex
    script = f"/attacks/outlive double_fork {token}; /attacks/outlive ignore_signals {token} & /attacks/escape_kernel acct; sleep 1000"
    result = supervisor.execute(
        ["sh", "-c", script], policy=policy, timeout=scaled(30), mounts=[f"{attacks}:/attacks:ro"]
    )
    assert result.outcome == "violation" and result.violations[0].syscall == "acct"
    all_gone(witnesses, token)
