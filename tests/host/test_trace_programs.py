"""The SHA-256 of all that a run has executed, whatever it did with the files afterwards."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from supervisor.client import Supervisor
from tests.host.daemon_fixture import scaled

# On overlayfs, as in the VM, stat(2) tells another device than the kernel's own: programs there have no digest yet.
pytestmark = pytest.mark.host_only


def digest(path: str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def test_every_place_that_a_program_can_lie_in(supervisor: Supervisor, scratch: Callable[..., Path]) -> None:
    mounted = scratch("data")
    (mounted / "date").write_bytes(Path("/bin/date").read_bytes())
    (mounted / "date").chmod(0o755)
    text = "cp /bin/true x; ./x; ./x; cp /bin/id /tmp/y; /tmp/y; ln -s /tmp/y z; ./z; /data/date; cp /bin/ls q; ./q; sleep 0.5; rm q x"
    result = supervisor.execute(["sh", "-c", text], mounts=[f"{mounted}:/data:ro"], policy="strict", timeout=scaled(60))
    assert result.exit_code == 0, result.stderr
    found = {one.path: (one.sha256, one.count) for one in result.trace.programs}
    assert found["/work/x"] == (digest("/bin/true"), 2)
    assert found["/tmp/y"] == (digest("/bin/id"), 2)
    assert found["/data/date"] == (digest("/bin/date"), 1)
    assert found["/work/q"] == (digest("/bin/ls"), 1)
    assert found["/usr/bin/dash"] == (digest("/usr/bin/dash"), 1)
    assert supervisor.trace_summary(result.run_id).programs == result.trace.programs


def test_a_host_without_isolation_too(supervisor: Supervisor) -> None:
    result = supervisor.execute(["sh", "-c", "cp /bin/true x; ./x; sleep 0.5"], policy="basic", timeout=scaled(30))
    found = {one.path.split("/")[-1]: one.sha256 for one in result.trace.programs}
    assert (found["x"], found["dash"]) == (digest("/bin/true"), digest("/bin/dash"))
