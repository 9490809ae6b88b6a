"""The session's daemon, clients for it, the hostile programs, and a leak check after every test."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from supervisor.client import Supervisor
from supervisor.v1 import run_pb2_grpc
from tests.host.daemon_fixture import Daemon, LiveRun, Prober, RunStub, spec
from tests.host.hostile import compile_attacks
from tests.leaks import Snapshot


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Without root or Linux these tests cannot mean anything; where SUPERVISOR_REQUIRE is set, a skip is a failure."""
    if os.name == "posix" and os.uname().sysname == "Linux" and os.geteuid() == 0:
        return
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.skip(reason="host tests need root on Linux"))


@pytest.fixture(scope="session")
def base_directory() -> Iterator[Path]:
    """Short (a Unix socket's path holds 107 bytes), on a real file system, gone afterwards."""
    parent = os.environ.get("SUPERVISOR_TEST_DIR")
    path = Path(tempfile.mkdtemp(prefix="supervisor-test-", dir=parent))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="session")
def daemon(base_directory: Path) -> Iterator[Daemon]:
    base = base_directory / "main"
    base.mkdir(mode=0o755)
    running = Daemon(base)
    running.start()
    yield running
    Prober.end_all()
    status = running.stop()
    assert status == 0, f"the daemon ended with {status}; its log ends:\n{running.log_tail()}"


@pytest.fixture
def make_daemon(base_directory: Path) -> Iterator[Callable[..., Daemon]]:
    """make_daemon(name, **environment): one more daemon, for a test that stops or kills it; ended after the test."""
    made: list[Daemon] = []

    def make(name: str, **environment: str) -> Daemon:
        base = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=base_directory))
        base.chmod(0o755)
        one = Daemon(base, environment)
        made.append(one)
        one.start()
        return one

    yield make
    for one in made:
        if one.process is not None and one.process.poll() is None:
            status = one.stop()
            assert status == 0, f"the daemon ended with {status}; its log ends:\n{one.log_tail()}"
        shutil.rmtree(one.base)
    groups = Snapshot.take(instances=[one.instance for one in made]).things
    assert not [thing for thing in groups if thing.startswith("cgroup")]


@pytest.fixture(scope="session")
def attacks(base_directory: Path) -> Path:
    """The directory of the built hostile programs; mount it read-only at /attacks."""
    return compile_attacks(base_directory / "attacks")


@pytest.fixture
def supervisor(daemon: Daemon) -> Iterator[Supervisor]:
    with Supervisor(daemon.address) as client:
        yield client


@pytest.fixture
def channel(daemon: Daemon) -> Iterator[grpc.Channel]:
    with daemon.channel() as opened:
        yield opened


@pytest.fixture
def stub(channel: grpc.Channel) -> run_pb2_grpc.RunServiceStub:
    made: run_pb2_grpc.RunServiceStub = RunStub(channel)
    return made


@pytest.fixture
def live(daemon: Daemon) -> Iterator[Callable[..., LiveRun]]:
    """live(*argv, **fields): a started run that reads its standard input."""

    def start(*argv: str, **fields: object) -> LiveRun:
        run = LiveRun(daemon, spec(*argv, wall_seconds=120, **fields))
        run.wait_started()
        return run

    yield start


@pytest.fixture
def scratch(base_directory: Path) -> Iterator[Callable[..., Path]]:
    """scratch(name, uid=0, mode=0o755) makes a fresh host directory that is removed after the test."""
    parent = Path(tempfile.mkdtemp(prefix="scratch-", dir=base_directory))
    parent.chmod(0o755)

    def make(name: str, uid: int = 0, mode: int = 0o755) -> Path:
        path = parent / name
        path.mkdir()
        os.chown(path, uid, uid)
        path.chmod(mode)
        return path

    yield make
    shutil.rmtree(parent)


@pytest.fixture(autouse=True)
def leaks(daemon: Daemon) -> Iterator[None]:
    """What a test leaves on the host or in the daemon fails it; runs that a failed test left open are closed first."""
    open_before = set(LiveRun.open_ones)
    before = Snapshot.take(pids=[daemon.pid], instances=[daemon.instance])
    yield
    for run in LiveRun.open_ones - open_before:
        run.close()
    # SQLite keeps one descriptor of a second connection for later: closing it would drop the first one's locks.
    left = before.diff(stays="/state/runs.db")
    assert not left, left
