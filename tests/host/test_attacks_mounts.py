"""Hostile runs that swap what another run is about to mount; links as mount sources."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from supervisor import errors
from supervisor.client import Supervisor
from supervisor.model import RunResult
from tests.host.daemon_fixture import Daemon, LiveRun, fewer, scaled, spec
from tests.host.witnesses import POLICIES, Witnesses, watched


@pytest.fixture(scope="module")
def witnesses(daemon: Daemon) -> Iterator[Witnesses]:
    with watched(daemon) as standing:
        yield standing


def attack(client: Supervisor, attacks: Path, policy: str, *argv: str, **options: object) -> RunResult:
    mounts = [f"{attacks}:/attacks:ro", *options.pop("mounts", ())]  # type: ignore[misc]
    return client.execute(list(argv), policy=policy, timeout=scaled(30), mounts=mounts, **options)  # type: ignore[arg-type]


def swapper(daemon: Daemon, attacks: Path, directory: Path, destination: str, policy: str) -> LiveRun:
    request = spec("/attacks/residue", "swap", "/work", destination, policy=policy, wall_seconds=300)
    request.mounts.add(source=bytes(attacks), target=b"/attacks")
    request.mounts.add(source=bytes(directory), target=b"/work", writable=True)
    run = LiveRun(daemon, request)
    run.read_until(b"swapping")
    return run


@pytest.mark.parametrize("policy", POLICIES)
def test_mount_target_swapped_for_a_link(
    supervisor: Supervisor,
    attacks: Path,
    daemon: Daemon,
    witnesses: Witnesses,
    scratch: Callable[..., Path],
    policy: str,
) -> None:
    """CVE-2021-30465 and its kin: one run swaps a directory for a link while another is set up to mount there."""
    shared, data, outside = scratch("shared"), scratch("data"), scratch("outside")
    (outside / "secret").write_text("of the host")
    (data / "mine").write_text("mounted")
    (shared / "target").mkdir()
    run = swapper(daemon, attacks, shared, str(outside), policy)
    try:
        for _ in range(fewer(60, 5)):
            with suppress(errors.SupervisorError):
                result = attack(
                    supervisor,
                    attacks,
                    policy,
                    "sh",
                    "-c",
                    "cat target/* && touch target/touched",
                    mounts=[f"{shared}:/work:rw", f"{data}:/work/target:rw"],
                    files={"target/written": b"in"},
                    collect=["target/*"],
                )
                assert b"of the host" not in result.stdout
                assert all(b"of the host" not in file.data for file in result.files)
    finally:
        run.close()
    assert os.listdir(outside) == ["secret"] and (outside / "secret").read_text() == "of the host"
    witnesses.check()


@pytest.mark.parametrize("policy", POLICIES)
def test_mount_source_swapped_for_a_link(
    supervisor: Supervisor,
    attacks: Path,
    daemon: Daemon,
    witnesses: Witnesses,
    scratch: Callable[..., Path],
    policy: str,
) -> None:
    """The source is checked, then mounted: what is mounted must be what was checked."""
    shared = scratch("shared")
    (shared / "target").mkdir()
    (shared / "target" / "harmless").write_text("x")
    run = swapper(daemon, attacks, shared, "/etc", policy)
    try:
        for _ in range(fewer(60, 5)):
            with suppress(errors.SupervisorError):
                result = attack(supervisor, attacks, policy, "ls", "/data", mounts=[f"{shared}/target:/data:rw"])
                assert result.outcome != "exited" or result.stdout in (b"harmless\n", b""), result.stdout
    finally:
        run.close()
    witnesses.check()


@pytest.mark.parametrize("policy", POLICIES)
def test_link_as_mount_source_is_checked_where_it_leads(
    supervisor: Supervisor, attacks: Path, witnesses: Witnesses, scratch: Callable[..., Path], policy: str
) -> None:
    shared = scratch("shared")
    for name, to in (("etc", "/etc"), ("all", "/"), ("proc", "/proc"), ("dev", "/dev"), ("sys", "/sys/fs/cgroup")):
        (shared / name).symlink_to(to)
        with pytest.raises((errors.PolicyRefused, errors.InvalidRequest)):
            attack(supervisor, attacks, policy, "ls", "/data", mounts=[f"{shared}/{name}:/data:rw"])
    witnesses.check()
