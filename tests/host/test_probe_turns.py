"""Rules are carried out in time beside runs that make as much work for them as they can."""

from __future__ import annotations

import time

import pytest

from supervisor.client import Supervisor
from tests.host.daemon_fixture import Daemon, LiveRun, scaled, spec
from tests.host.rule_cases import PYTHON

CONNECTS = """
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
print("up", flush=True)
while True: s.connect(("127.0.0.1", 9999))
"""
PATHS = """
import os
path = "a/" * 2040 + "mem"
print("up", flush=True)
while True:
    try: os.open(path, os.O_WRONLY)
    except OSError: pass
"""
VIOLATION = ["sh", "-c", f"echo > /work/release_agent; sleep {scaled(10)}; echo lived"]


@pytest.mark.parametrize("program", [CONNECTS, PATHS], ids=["addresses", "paths"])
def test_a_neighbours_rules_do_not_wait(daemon: Daemon, supervisor: Supervisor, program: str) -> None:
    flooder = LiveRun(daemon, spec(PYTHON, "-c", program, wall_seconds=60))
    flooder.read_until(b"up")
    time.sleep(1)  # what it floods with has piled up
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
        "    for _ in range(400): s.connect(('127.0.0.1', 9))\n"
        "    s.connect(('127.0.0.1', port))\n"
    )
    result = supervisor.execute([PYTHON, "-c", program], timeout=scaled(30))
    assert "port-scan" in [one.rule for one in result.violations]
