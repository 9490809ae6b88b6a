"""A launcher that ends by itself takes its own runs with it, and nothing else; one that is slow loses no kill."""

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
from tests.host.daemon_fixture import Daemon, RunStub, host_processes, scaled, spec, wait_until


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


@pytest.mark.parametrize("way", ["cancel", "kill", "timeout"])
def test_a_kill_before_the_launch_is_not_lost(make_daemon: Callable[..., Daemon], way: str) -> None:
    """What is killed between the daemon's word to the launcher and the launcher's clone must not live on.

    Linux 6.18 kills a process cloned into a group that was killed before; 6.1 does not.
    """
    daemon = make_daemon("slow-launcher", SUPERVISOR_LAUNCHERS="1")
    token = f"early-{uuid.uuid4().hex}"
    (pid,) = launchers(daemon)
    with daemon.channel() as channel, Supervisor(daemon.address) as client:
        client.execute(["true"])
        os.kill(pid, signal.SIGSTOP)
        try:
            seconds = 0.05 if way == "timeout" else 600
            request = spec("sh", "-c", f": {token}; sleep 1000", agent=token, wall_seconds=seconds)
            call = RunStub(channel).Execute.future(request)
            wait_until(lambda: any(run.state == "running" for run in client.runs(agent=token)), 5, "the run is begun")
            if way == "cancel":
                call.cancel()
            elif way == "kill":
                client.kill(client.runs(agent=token)[0].run_id)
            time.sleep(scaled(0.2))
        finally:
            os.kill(pid, signal.SIGCONT)
        wait_until(lambda: all(run.state == "ended" for run in client.runs(agent=token)), 3, "the run has ended")
        assert not host_processes(token)
        expected = "timed_out" if way == "timeout" else "cancelled"
        assert [run.outcome for run in client.runs(agent=token)] == [expected]
