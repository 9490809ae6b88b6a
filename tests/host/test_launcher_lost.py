"""A launcher that ends by itself takes its own runs with it, and nothing else: the daemon starts another."""

from __future__ import annotations

import os
import signal
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from supervisor import errors
from supervisor.client import Supervisor
from tests.host.daemon_fixture import Daemon, host_processes, scaled, wait_until


def launchers(daemon: Daemon) -> list[int]:
    assert daemon.process is not None
    children = Path(f"/proc/{daemon.process.pid}/task").glob("*/children")
    pids = {int(pid) for file in children for pid in file.read_text().split()}
    return sorted(pid for pid in pids if "supervisor-laun" in Path(f"/proc/{pid}/comm").read_text())


def test_a_killed_launcher_is_replaced(make_daemon: Callable[..., Daemon]) -> None:
    daemon = make_daemon("launcher", SUPERVISOR_LAUNCHERS="1")
    token = uuid.uuid4().hex
    with Supervisor(daemon.address) as client, ThreadPoolExecutor(1) as pool:
        lost = pool.submit(client.execute, ["sh", "-c", f": {token}; sleep 1000"], timeout=scaled(60))
        wait_until(lambda: host_processes(token), 10, "the run is alive")
        (before,) = launchers(daemon)
        os.kill(before, signal.SIGKILL)
        with pytest.raises(errors.SupervisorError):
            lost.result(timeout=scaled(20))
        wait_until(lambda: not host_processes(token), 5, "its runs ended with it")
        deadline = time.monotonic() + scaled(20)
        while True:
            try:
                result = client.execute(["true"])
                break
            except errors.LaunchFailed:
                assert time.monotonic() < deadline, "no launcher came back"
                time.sleep(0.05)
        assert result.exit_code == 0
        assert launchers(daemon) != [before]
        outcomes = {record.outcome for record in client.runs() if record.program == "sh"}
        assert outcomes == {"lost"}
