"""Under systemd's Delegate=yes the daemon stays within the control group that it was given."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from pathlib import Path

import pytest

from supervisor.client import Supervisor
from supervisor.run_events import Started
from tests.host.daemon_fixture import COMMAND, scaled, wait_until


@pytest.mark.vm_only
def test_runs_live_below_the_delegated_group(base_directory: Path) -> None:
    group = Path("/sys/fs/cgroup/supervisor-test.service")
    base = Path(tempfile.mkdtemp(prefix="delegated-", dir=base_directory))
    socket = base / "run" / "s.sock"
    environment = {**os.environ, "SUPERVISOR_STATE_DIR": f"{base}/state", "SUPERVISOR_RUNTIME_DIR": f"{base}/run"}
    environment["SUPERVISOR_RUN_UID_BASE"] = "910000000"
    group.mkdir()
    process = None
    try:
        os.setxattr(group, "user.delegate", b"1")
        enter = f"echo $$ > {group}/cgroup.procs; exec {COMMAND} serve --listen unix://{socket}"
        process = subprocess.Popen(["sh", "-c", enter], env=environment, stdin=subprocess.DEVNULL)
        wait_until(socket.exists, 60, "the socket is there")
        assert f"0::/{group.name}/daemon\n" in Path(f"/proc/{process.pid}/cgroup").read_text()
        with Supervisor(f"unix://{socket}") as client:
            with client.run(["sleep", "1000"], timeout=scaled(60), memory="64M") as run:
                run_id = next(event.run_id for event in run if isinstance(event, Started))
                (directory,) = group.glob(f"*/{run_id}")
                assert (directory / "memory.max").read_text() == f"{64 << 20}\n"
                assert (directory / "cgroup.procs").read_text().split()
            assert client.execute(["true"]).exit_code == 0
    finally:
        if process is not None:
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=scaled(40)) == 0
        for directory, _, _ in os.walk(group, topdown=False):
            os.rmdir(directory)
