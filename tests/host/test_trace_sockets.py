"""Who listens and is accepted, Unix sockets by their real names, and signals: in traces, in summaries, to rules."""

from __future__ import annotations

import json

import pytest

from supervisor.client import Supervisor
from supervisor.client.exports import export
from supervisor.client.result import TraceEvent
from tests.host.daemon_fixture import scaled
from tests.host.rule_cases import py

INTERNET = """
import socket
for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
    server = socket.create_server((host, 4711), family=family)
    client = socket.create_connection((host, 4711))
    print(server.accept()[1][1])
"""
UNIX = """
import os, socket
def made(kind=socket.SOCK_STREAM): return socket.socket(socket.AF_UNIX, kind)
os.mkdir("d"); os.chdir("d")
server = made(); server.bind("s"); server.listen()
os.symlink("s", "innocent")
client = made(); client.connect("innocent"); accepted = server.accept()
hidden = made(); hidden.bind("\\0hidden"); hidden.listen()
other = made(); other.connect("\\0hidden")
log = made(socket.SOCK_DGRAM); log.bind("log")
made(socket.SOCK_DGRAM).sendto(b"x", "../d/log")
made(socket.SOCK_DGRAM).sendmsg([b"x"], [], 0, "log")
client.send(b"x")
try: made().connect("/nobody")
except OSError: pass
"""
SIGNALS = """
import os, signal
signal.signal(signal.SIGUSR1, lambda *_: None)
os.kill(os.getpid(), signal.SIGUSR1)
child = os.fork()
if not child: signal.pause()
os.kill(child, signal.SIGTERM); os.wait()
child = os.fork()
if not child: import ctypes; ctypes.string_at(0)
os.wait()
print(os.getpid(), child)
"""

Told = tuple[str, str, int, str, int]


def told(supervisor: Supervisor, run_id: str) -> list[Told]:
    """Kind, address or path, port, call, and result, of what is about addresses."""
    kinds = ("connect", "send", "bind", "listen", "accept")
    return [
        (one.kind, one.address or one.path, one.port, one.syscall, one.result)
        for one in supervisor.trace(run_id)
        if one.kind in kinds
    ]


def test_who_listens_and_who_is_accepted(supervisor: Supervisor) -> None:
    result = supervisor.execute(py(INTERNET), trace="full", timeout=scaled(20))
    assert result.exit_code == 0, result.stderr
    ports = [int(line) for line in result.stdout.split()]
    found = told(supervisor, result.run_id)
    for host, port in zip(("127.0.0.1", "::1"), ports, strict=True):
        assert ("listen", host, 4711, "listen", 0) in found
        accepted = [one for one in found if one[:3] == ("accept", host, port)]
        assert len(accepted) == 1 and accepted[0][3] == "accept4" and accepted[0][4] > 2
    summary = {(one.operation, one.protocol, one.address, one.port) for one in result.trace.addresses}
    assert {("listen", "tcp", "127.0.0.1", 4711), ("listen", "tcp", "::1", 4711)} <= summary
    assert {("accept", "tcp", "127.0.0.1", ports[0]), ("accept", "tcp", "::1", ports[1])} <= summary


def test_unix_sockets_have_the_names_where_they_lie(supervisor: Supervisor) -> None:
    """A connection by the peer's own place, whatever symlink led there; what failed and what is sent as it was named."""
    result = supervisor.execute(py(UNIX), trace="full", timeout=scaled(20))
    assert result.exit_code == 0, result.stderr
    assert [(kind, path, call, answer < 0) for kind, path, _, call, answer in told(supervisor, result.run_id)] == [
        ("bind", "/work/d/s", "bind", False),
        ("listen", "/work/d/s", "listen", False),
        ("connect", "/work/d/s", "connect", False),
        ("accept", "/work/d/s", "accept4", False),
        ("bind", "@hidden", "bind", False),
        ("listen", "@hidden", "listen", False),
        ("connect", "@hidden", "connect", False),
        ("bind", "/work/d/log", "bind", False),
        ("send", "../d/log", "sendto", False),
        ("send", "log", "sendmsg", False),
        ("connect", "/nobody", "connect", True),
    ]
    summary = {(one.operation, one.protocol, one.address) for one in result.trace.addresses}
    assert {("connect", "unix", "/work/d/s"), ("connect", "unix", "@hidden"), ("connect", "unix", "/nobody")} <= summary
    lines = "".join(export(supervisor.trace(result.run_id), "strace"))
    assert 'sun_path="/work/d/s"' in lines


def signals_of(events: list[TraceEvent]) -> list[tuple[int, int, str]]:
    return [(one.pid, one.result, one.detail) for one in events if one.kind == "signal"]


def test_signals(supervisor: Supervisor) -> None:
    result = supervisor.execute(py(SIGNALS), trace="full", timeout=scaled(20))
    parent, child = map(int, result.stdout.split())
    found = signals_of(list(supervisor.trace(result.run_id)))
    assert (parent, 10, f"SIGUSR1 from {parent}") in found
    assert any(number == 15 and detail == f"SIGTERM from {parent}" for _, number, detail in found)
    assert (child, 11, "SIGSEGV from the kernel") in found
    # The end of a child, which its parent has no handler for.
    assert any(pid == parent and detail.startswith("SIGCHLD") for pid, _, detail in found)


def test_what_ends_a_run_from_outside_is_in_its_trace(supervisor: Supervisor) -> None:
    result = supervisor.execute(["sleep", "100"], trace="full", timeout=0.5)
    assert result.outcome == "timed_out"
    found = signals_of(list(supervisor.trace(result.run_id)))
    # Then once more, by the kernel, when its pid namespace goes.
    assert found[0][1:] == (9, "SIGKILL from outside")


@pytest.mark.parametrize(
    ("on", "match", "program"),
    [
        ("unix", '{ path = "**/d/s", operation = "connect" }', UNIX),
        ("listen", '{ port = "4711" }', INTERNET),
        ("accept", '{ address = "::1" }', INTERNET),
    ],
)
def test_rules_about_them(supervisor: Supervisor, on: str, match: str, program: str) -> None:
    policy = f'extends = "strict"\n[[rules]]\nname = "mine"\non = "{on}"\nmatch = {match}\naction = "alert"\n'
    result = supervisor.execute(py(program), policy=policy, timeout=scaled(20))
    found = [one for one in result.violations if one.rule == "mine"]
    assert found and {one.kind for one in found} == {on}
    assert all(one.path == "/work/d/s" or one.port for one in found)
    spared = supervisor.execute(py("import socket; socket.socketpair()"), policy=policy, timeout=scaled(20))
    assert not spared.violations


def test_search_and_exports_know_them(supervisor: Supervisor) -> None:
    result = supervisor.execute(py(UNIX), trace="full", timeout=scaled(20))
    found = supervisor.search_traces(path="/work/d/s", run_id=result.run_id)
    assert {one.event.kind for one in found} >= {"bind", "listen", "connect", "accept"}
    activities = [json.loads(line) for line in export(supervisor.trace(result.run_id), "ocsf")]
    connected = [one for one in activities if one.get("dst_endpoint") == {"name": "/work/d/s"}]
    assert connected and connected[0]["connection_info"]["protocol_name"] == "unix"
