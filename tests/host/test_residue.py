"""Nothing is left: after thousands of mixed runs, and after the daemon was killed in the middle of fifty."""

from __future__ import annotations

import os
import random
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from supervisor import errors
from supervisor.client import Supervisor
from supervisor.model import RunResult
from tests.host.daemon_fixture import MIB, Daemon, LiveRun, fewer, host_processes, scaled, spec, wait_until
from tests.host.witnesses import POLICY_NAMES, run_processes
from tests.leaks import Snapshot

Make = Callable[[Supervisor, str], RunResult | None]


def options(**more: Any) -> dict[str, Any]:
    return {"timeout": scaled(10), **more}


def mixed(attacks: Path, shared: Path) -> list[tuple[str, dict[str, Any], set[str]]]:
    """(command, options, outcomes that are right)."""
    at = [f"{attacks}:/attacks:ro"]
    return [
        ("true", options(), {"exited"}),
        ("exit 3", options(), {"exited"}),
        ("cat | wc -c", options(stdin=b"x" * 10_000), {"exited"}),
        ("kill -SEGV $$", options(), {"signaled"}),
        ("sleep 100", options(timeout=scaled(0.1)), {"timed_out"}),
        ("yes", options(output_limit="10K"), {"output_limit"}),
        ("exec /attacks/load touch", options(memory="16M", mounts=at), {"out_of_memory"}),
        ("/attacks/escape_kernel acct", options(mounts=at), {"violation"}),
        ("/attacks/outlive double_fork x", options(mounts=at), {"exited"}),
        ("/attacks/residue leave x", options(mounts=at), {"exited", "violation"}),
        ("exec /no/such/program", options(), {"exited"}),
        ("cp in out; ln -s /etc/shadow s", options(files={"in": b"data"}, collect=["*"]), {"exited"}),
        ("echo $$ > /work/f", options(mounts=[f"{shared}:/work:rw"]), {"exited"}),
        ("(sleep 100 &) ; echo left", options(), {"exited"}),
    ]


def one_of_many(client: Supervisor, attacks: Path, shared: Path, n: int) -> None:
    kinds = mixed(attacks, shared)
    command, chosen, right = kinds[n % len(kinds)]
    result = client.execute(["sh", "-c", command], policy=POLICY_NAMES[(n // len(kinds)) % 2], **chosen)
    assert result.outcome in right, (command, result.outcome, result.detail, result.stderr[:200])


def many(client: Supervisor, attacks: Path, shared: Path, numbers: range) -> None:
    with ThreadPoolExecutor(8) as pool:
        for _ in pool.map(lambda n: one_of_many(client, attacks, shared, n), numbers):
            pass


def test_thousands_of_mixed_runs(
    supervisor: Supervisor, daemon: Daemon, attacks: Path, scratch: Callable[..., Path]
) -> None:
    shared = scratch("shared", 1234)
    count = fewer(2000)
    many(supervisor, attacks, shared, range(fewer(400)))
    level, open_before = daemon.rss_bytes(), daemon.descriptors()
    many(supervisor, attacks, shared, range(count))
    wait_until(lambda: not run_processes(), 5, "no process of a run is left")
    wait_until(lambda: daemon.descriptors() <= open_before + 2, 5, "no descriptor is left open in the daemon")
    assert daemon.rss_bytes() - level < 16 * MIB, f"grew by {(daemon.rss_bytes() - level) / count:.0f} bytes a run"
    host = supervisor.host()
    assert (host.running, host.queued) == (0, 0)


def test_cancelled_runs_leave_nothing(supervisor: Supervisor, daemon: Daemon) -> None:
    chance = random.Random(7)
    for _ in range(fewer(100, 10)):
        run = LiveRun(daemon, spec("sh", "-c", "sleep 100 & sleep 100", agent="cancelled-runs"))
        time.sleep(chance.random() * 0.01)
        run.close()
    wait_until(lambda: supervisor.host().running == supervisor.host().queued == 0, 5, "all are over")
    wait_until(lambda: not run_processes(), 5, "no process of a run is left")


@pytest.mark.parametrize("rounds", [1, 3])
def test_daemon_killed_in_the_middle(
    base_directory: Path, attacks: Path, make_daemon: Callable[..., Daemon], scratch: Callable[..., Path], rounds: int
) -> None:
    """SIGKILL with fifty runs alive; the next start ends them, records them as lost and clears the host."""
    before = run_processes()
    shared = scratch("shared", 1234)
    count = fewer(50, 8)
    daemon = make_daemon(f"killed{rounds}")
    tokens = []
    ids: list[str] = []
    for _ in range(rounds):
        token = uuid.uuid4().hex
        tokens.append(token)
        runs = []
        for n in range(count):
            way = ("ignore_signals", "parent_death", "uninterruptible", "stopped", "leader_gone")[n % 5]
            request = spec("/attacks/outlive", way, token, policy=POLICY_NAMES[n % 2], wall_seconds=600)
            request.mounts.add(source=bytes(attacks), target=b"/attacks")
            request.mounts.add(source=bytes(shared), target=b"/work", writable=True)
            request.files.add(path=b"/tmp/input", data=b"x" * 10_000)
            request.limits.memory_bytes = 32 * MIB
            runs.append(LiveRun(daemon, request))
        ids += [run.wait_started() for run in runs]
        assert len(run_processes() - before) >= count
        daemon.kill()
        for run in runs:
            run.close()
        daemon.start()
        with Supervisor(daemon.address) as client:
            for run_id in ids:
                record = client.get(run_id)
                assert (record.state, record.outcome) == ("ended", "lost"), record
            wait_until(lambda: run_processes() <= before, 5, "the lost runs' processes are gone")
            assert client.execute(["echo", "alive"], policy="strict").stdout == b"alive\n"
    for token in tokens:
        assert not host_processes(token)
    assert sorted(os.listdir(shared)) == []


def test_killed_and_not_restarted_runs_end_too(
    base_directory: Path, attacks: Path, make_daemon: Callable[..., Daemon]
) -> None:
    """Without a daemon nobody holds the limits: the launchers see it go and their runs end with them."""
    before = run_processes()
    daemon = make_daemon("orphaned")
    runs = [LiveRun(daemon, spec("sleep", "1000")) for _ in range(4)]
    for run in runs:
        run.wait_started()
    daemon.kill()
    for run in runs:
        run.close()
    wait_until(lambda: run_processes() <= before, 5, "runs without a daemon end")
    daemon.start()


def test_stopping_drains(make_daemon: Callable[..., Daemon]) -> None:
    """SIGTERM: what runs may finish, nothing new is taken, the exit status is 0."""
    daemon = make_daemon("drained", SUPERVISOR_DRAIN_SECONDS=str(scaled(20)))
    run = LiveRun(daemon, spec("sh", "-c", "echo started; read line; echo got $line"))
    run.read_until(b"started")
    assert daemon.process is not None
    daemon.process.terminate()
    with Supervisor(daemon.address) as client:

        def refused() -> bool:
            try:
                client.execute(["true"])
            except (errors.Draining, errors.Unreachable):
                return True
            return False

        wait_until(refused, 5, "no new run is taken")
    run.send(b"the end\n")
    result = run.finish()
    assert run.stdout == b"started\ngot the end\n" and result.exit_code == 0
    assert daemon.process.wait(timeout=scaled(10)) == 0


def test_stopping_kills_after_the_drain(make_daemon: Callable[..., Daemon]) -> None:
    before = run_processes()
    daemon = make_daemon("impatient", SUPERVISOR_DRAIN_SECONDS=str(scaled(0.5)))
    run = LiveRun(daemon, spec("sleep", "1000"))
    run.wait_started()
    began = time.monotonic()
    assert daemon.stop() == 0
    assert time.monotonic() - began < scaled(5)
    run.close()
    assert run_processes() <= before


def test_a_stopped_daemon_leaves_nothing(make_daemon: Callable[..., Daemon]) -> None:
    before = Snapshot.take(instances=[])
    daemon = make_daemon("clean")
    with Supervisor(daemon.address) as client:
        for policy in POLICY_NAMES:
            assert client.execute(["true"], policy=policy).exit_code == 0
    assert daemon.stop() == 0
    assert not os.path.exists(daemon.address.removeprefix("unix://")), "the socket is still there"
    assert not os.listdir(daemon.runtime)
    left = before.diff(Snapshot.take(instances=[daemon.instance]))
    assert not left, left
