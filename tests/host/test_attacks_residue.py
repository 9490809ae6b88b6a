"""What one run leaves, another must not find."""

from __future__ import annotations

import fcntl
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from supervisor.client import Supervisor
from tests.host.daemon_fixture import Daemon, LiveRun, scaled, spec, wait_until
from tests.host.witnesses import POLICIES, Witnesses, assert_no_effect, watched

KINDS = {"sysv_shm", "sysv_sem", "sysv_msg", "posix_queue", "abstract_socket", "loopback_port", "limits", "umask"}


@pytest.fixture(scope="module")
def witnesses(daemon: Daemon) -> Iterator[Witnesses]:
    with watched(daemon) as standing:
        yield standing


def look(supervisor: Supervisor, attacks: Path, policy: str, token: str) -> None:
    result = supervisor.execute(
        ["/attacks/residue", "look", token], policy=policy, timeout=scaled(10), mounts=[f"{attacks}:/attacks:ro"]
    )
    assert_no_effect(result)
    assert b"looked" in result.stdout, (result.outcome, result.detail, result.stderr)
    assert {line.split()[0].decode() for line in result.stdout.splitlines()} >= KINDS


@pytest.mark.parametrize("policy", POLICIES)
def test_left_by_an_earlier_run(supervisor: Supervisor, attacks: Path, witnesses: Witnesses, policy: str) -> None:
    token = uuid.uuid4().hex
    result = supervisor.execute(
        ["/attacks/residue", "leave", token], policy=policy, timeout=scaled(10), mounts=[f"{attacks}:/attacks:ro"]
    )
    assert b"left" in result.stdout, (result.outcome, result.detail, result.stderr)
    for _ in range(3):
        look(supervisor, attacks, policy, token)
    for directory in ("/tmp", "/dev/shm", "/var/tmp", "/run", "/dev/mqueue"):
        assert not os.path.exists(os.path.join(directory, token)), directory
    assert token not in Path("/proc/keys").read_text()
    witnesses.check()


@pytest.mark.parametrize("policy", POLICIES)
def test_held_by_a_living_run(
    supervisor: Supervisor, daemon: Daemon, attacks: Path, witnesses: Witnesses, policy: str
) -> None:
    token = uuid.uuid4().hex
    request = spec("/attacks/residue", "hold", token, policy=policy)
    request.mounts.add(source=bytes(attacks), target=b"/attacks")
    holder = LiveRun(daemon, request)
    try:
        holder.read_until(b"left")
        look(supervisor, attacks, policy, token)
    finally:
        holder.close()
    witnesses.check()


@pytest.mark.parametrize("policy", POLICIES)
def test_locks_end_with_the_run(
    supervisor: Supervisor,
    daemon: Daemon,
    attacks: Path,
    scratch: Callable[..., Path],
    witnesses: Witnesses,
    policy: str,
) -> None:
    directory = scratch("shared")
    (directory / "file").write_text("x")
    request = spec("/attacks/residue", "lock", "/work/file", policy=policy)
    request.mounts.add(source=bytes(attacks), target=b"/attacks")
    request.mounts.add(source=bytes(directory), target=b"/work", writable=True)
    holder = LiveRun(daemon, request)
    holder.wait_started()
    holder.read_until(b"locked")
    assert supervisor.kill(holder.run_id)
    holder.finish()
    wait_until(lambda: not witnesses.left_over(), 1, "the holder is gone")
    # Opening for writing would wait for a lease; the locks must be free at once.
    with open(directory / "file", "r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    witnesses.check()


@pytest.mark.parametrize("policy", POLICIES)
def test_randomness_is_not_shared(supervisor: Supervisor, witnesses: Witnesses, policy: str) -> None:
    script = (
        "python3 -c \"import random, os, uuid; print(random.random(), os.urandom(8).hex(), hash('x'), uuid.uuid4(), "
        "hex(id(object())), open('/proc/sys/kernel/random/uuid').read().strip())\" && bash -c 'echo $RANDOM $SRANDOM' && mktemp"
    )
    results = [
        supervisor.execute(["sh", "-c", script], policy=policy, timeout=scaled(20)).stdout.split() for _ in range(3)
    ]
    assert len(results[0]) == 9, results[0]
    for position, values in enumerate(zip(*results, strict=True)):
        assert len(set(values)) > 1, f"value {position} is the same in every run: {values[0]!r}"
    witnesses.check()


@pytest.mark.parametrize("policy", POLICIES)
def test_settings_are_fresh(supervisor: Supervisor, witnesses: Witnesses, policy: str) -> None:
    script = "env; pwd; umask; ulimit -a; hostname; date +%Z; cat /proc/self/oom_score_adj /proc/self/timerslack_ns 2>/dev/null; nice"
    change = f"umask 0; ulimit -n 20; ulimit -c 0; export A=b TZ=Asia/Tokyo; cd /tmp; hostname owned; {script}"
    before = supervisor.execute(["bash", "-c", script], policy=policy, timeout=scaled(10))
    changed = supervisor.execute(
        ["bash", "-c", change], policy=policy, timeout=scaled(10), env={"X": "y"}, cwd="/tmp", limits={"open_files": 30}
    )
    after = supervisor.execute(["bash", "-c", script], policy=policy, timeout=scaled(10))
    assert changed.stdout != before.stdout
    differing = set(after.stdout.splitlines()) ^ set(before.stdout.splitlines())
    assert not differing, differing
    witnesses.check()
