"""Rules are carried out in time beside runs that make as much work for them as they can."""

from __future__ import annotations

import pytest

from supervisor.client import Supervisor
from tests.host.daemon_fixture import Daemon, LiveRun, fewer, scaled, spec
from tests.host.rule_cases import PYTHON

# Either says when as much has piled up as delayed every rule by seconds where it was looked at in one go.
CONNECTS = f"""
import itertools, socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for n in itertools.count():
    s.connect(("127.0.0.1", 9999))
    if n == {fewer(100_000)}: print("up", flush=True)
"""
PATHS = f"""
import itertools, os
path = "a/" * 2040 + "mem"
for n in itertools.count():
    try: os.open(path, os.O_WRONLY)
    except OSError: pass
    if n == {fewer(2_000)}: print("up", flush=True)
"""
VIOLATION = ["sh", "-c", f"echo > /work/release_agent; sleep {scaled(10)}; echo lived"]


@pytest.mark.parametrize("program", [CONNECTS, PATHS], ids=["addresses", "paths"])
def test_a_neighbours_rules_do_not_wait(daemon: Daemon, supervisor: Supervisor, program: str) -> None:
    flooder = LiveRun(daemon, spec(PYTHON, "-c", program, wall_seconds=60))
    flooder.read_until(b"up")
    result = supervisor.execute(VIOLATION, timeout=scaled(30))
    flooder.close()
    assert result.outcome == "violation", result.detail
    assert [one.rule for one in result.violations] == ["kernel-helper-written"]
    # Where every rule looked at every event in turn, it had ended by itself before anybody knew.
    assert (result.exit_code, result.stdout) == (None, b""), result.detail


def test_what_repeats_does_not_hide_what_is_distinct(supervisor: Supervisor) -> None:
    program = (
        "import socket\n"
        "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        "for port in range(1000, 1040):\n"
        "    for _ in range(800): s.connect(('127.0.0.1', 9))\n"
        "    s.connect(('127.0.0.1', port))\n"
    )
    result = supervisor.execute([PYTHON, "-c", program], timeout=scaled(30))
    assert "port-scan" in [one.rule for one in result.violations]
