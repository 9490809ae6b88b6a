"""--net filtered: a run reaches what is allowed and nothing else, by whatever way; both are in its trace."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

import pytest

from supervisor import errors
from supervisor.client import Supervisor
from supervisor.model import RunResult
from tests.host.daemon_fixture import scaled

PYTHON = "/usr/bin/python3"

TRY = """
import socket, sys
def attempt(name, family, kind, act):
    s = socket.socket(family, kind)
    s.settimeout(3)
    try:
        act(s)
        print(name, "reached")
    except OSError as error:
        print(name, error.errno)
    s.close()
port = int(sys.argv[1])
attempt("tcp", socket.AF_INET, socket.SOCK_STREAM, lambda s: s.connect(("127.0.0.1", port)))
attempt("mapped", socket.AF_INET6, socket.SOCK_STREAM, lambda s: s.connect(("::ffff:127.0.0.1", port)))
attempt("fastopen", socket.AF_INET, socket.SOCK_STREAM, lambda s: (s.setblocking(True), s.sendto(b"x", 0x20000000, ("127.0.0.1", port))))
attempt("udp", socket.AF_INET, socket.SOCK_DGRAM, lambda s: s.sendto(b"x", ("127.0.0.1", port)))
attempt("udp_mapped", socket.AF_INET6, socket.SOCK_DGRAM, lambda s: s.sendto(b"x", ("::ffff:127.0.0.1", port)))
attempt("udp_connect", socket.AF_INET, socket.SOCK_DGRAM, lambda s: (s.connect(("127.0.0.1", port)), s.send(b"x")))
attempt("sendmsg", socket.AF_INET, socket.SOCK_DGRAM, lambda s: s.sendmsg([b"x"], [], 0, ("127.0.0.1", port)))
"""
WAYS = ["tcp", "mapped", "fastopen", "udp", "udp_mapped", "udp_connect", "sendmsg"]


class Peer:
    """Something of the host's that listens on one port, TCP and UDP; counts whoever comes."""

    def __init__(self) -> None:
        self.tcp = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.tcp.getsockname()[1]
        self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.udp.bind(("127.0.0.1", self.port))
        self.came = 0
        self._threads = [threading.Thread(target=self._accept), threading.Thread(target=self._receive)]
        for thread in self._threads:
            thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                self.tcp.accept()[0].close()
                self.came += 1

    def _receive(self) -> None:
        with contextlib.suppress(OSError):
            while self.udp.recv(10):
                self.came += 1

    def close(self) -> None:
        self.tcp.shutdown(socket.SHUT_RDWR)
        self.udp.sendto(b"", ("127.0.0.1", self.port))
        for thread in self._threads:
            thread.join()
        self.tcp.close()
        self.udp.close()


@pytest.fixture
def peer() -> Iterator[Peer]:
    made = Peer()
    yield made
    made.close()


def attempts(supervisor: Supervisor, port: int, *allow: str, **options: object) -> tuple[dict[str, str], RunResult]:
    result = supervisor.execute(
        [PYTHON, "-c", TRY, str(port)],
        policy=options.pop("policy", "moderate"),  # type: ignore[arg-type]
        net=options.pop("net", "filtered"),  # type: ignore[arg-type]
        allow=list(allow),
        timeout=scaled(30),
        **options,  # type: ignore[arg-type]
    )
    assert (result.outcome, result.exit_code) == ("exited", 0), (result.detail, result.stderr)
    return dict(line.split() for line in result.stdout.decode().splitlines()), result


def test_what_is_allowed_is_reached(supervisor: Supervisor, peer: Peer) -> None:
    seen, result = attempts(supervisor, peer.port, f"127.0.0.1:{peer.port}")
    assert seen == dict.fromkeys(WAYS, "reached")
    assert not result.violations and result.enforcement.cgroup_bpf == "addresses"
    assert result.enforcement.network == "host, allowed addresses only"
    told = {(one.operation, one.protocol, one.address, one.port, one.denied) for one in result.trace.addresses}
    assert told == {
        ("connect", "tcp", "127.0.0.1", peer.port, False),
        ("connect", "udp", "127.0.0.1", peer.port, False),
        ("send", "udp", "127.0.0.1", peer.port, False),
    }


@pytest.mark.parametrize("allow", [(), ("127.0.0.1:1",), ("10.0.0.0/8",), ("[::1]:*",)])
def test_what_is_not_allowed_is_not_reached_by_any_way(
    supervisor: Supervisor, peer: Peer, allow: tuple[str, ...]
) -> None:
    seen, result = attempts(supervisor, peer.port, *allow)
    assert seen == dict.fromkeys(WAYS, "1")  # EPERM
    assert peer.came == 0
    assert {(one.kind, one.action, one.address, one.port) for one in result.violations} == {
        ("connect", "deny", "127.0.0.1", peer.port),
        ("send", "deny", "127.0.0.1", peer.port),
    }
    assert all(one.exe.startswith("/usr/bin/python3") and one.pid == 2 for one in result.violations)
    assert {one.denied for one in result.trace.addresses} == {True}
    assert supervisor.runs(limit=1)[0].violations == result.violations


def test_a_policys_denials_hold_with_the_full_network(supervisor: Supervisor, peer: Peer) -> None:
    policy = f'name = "x"\nextends = "moderate"\n[network]\ndeny = ["127.0.0.0/8:{peer.port}"]\n'
    seen, result = attempts(supervisor, peer.port, policy=policy, net="full")
    assert seen == dict.fromkeys(WAYS, "1") and peer.came == 0
    assert result.enforcement.network == "host, but for denied addresses"
    other = Peer()
    try:
        assert attempts(supervisor, other.port, policy=policy, net="full")[0] == dict.fromkeys(WAYS, "reached")
    finally:
        other.close()


def test_runs_beside_each_other_keep_their_own_rules(supervisor: Supervisor, peer: Peer) -> None:
    """Slots are used again: what one run may must not be what the next may."""
    for _ in range(3):
        assert attempts(supervisor, peer.port, f"127.0.0.1:{peer.port}")[0]["tcp"] == "reached"
        assert attempts(supervisor, peer.port)[0]["tcp"] == "1"


def test_the_address_cannot_be_changed_after_the_check(supervisor: Supervisor, peer: Peer) -> None:
    """A second thread rewrites the address all the while; the hooks see the kernel's copy."""
    other = Peer()
    script = f"""
import ctypes, socket, struct, threading
libc = ctypes.CDLL(None, use_errno=True)
def packed(port): return struct.pack("=H", socket.AF_INET) + struct.pack("!H", port) + bytes((127, 0, 0, 1)) + bytes(8)
good, bad = packed({other.port}), packed({peer.port})
memory = ctypes.create_string_buffer(good, 16)
over = False
def flip():
    while not over:
        ctypes.memmove(memory, bad, 16); ctypes.memmove(memory, good, 16)
thread = threading.Thread(target=flip); thread.start()
for _ in range(400):
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    libc.sendto(s.fileno(), b"x", 1, 0, memory, 16)
    libc.connect(s.fileno(), memory, 16) or s.send(b"y")
    s.close()
over = True; thread.join(); print("tried")
"""
    try:
        result = supervisor.execute(
            [PYTHON, "-c", script],
            policy="moderate",
            net="filtered",
            allow=[f"127.0.0.1:{other.port}"],
            timeout=scaled(30),
        )
        assert result.stdout == b"tried\n", (result.detail, result.stderr)
        assert peer.came == 0 and other.came > 0
    finally:
        other.close()


def test_what_cannot_be_asked_for(supervisor: Supervisor) -> None:
    with pytest.raises(errors.PolicyRefused, match="network"):
        supervisor.execute(["true"], policy="strict", net="filtered", allow=["127.0.0.1:1"])
    for entry in ("no-such-name.invalid:1", "*.example.com:443", "10.0.0.0/99", "nonsense:port", "::1"):
        with pytest.raises(errors.InvalidRequest) as caught:
            supervisor.execute(["true"], policy="moderate", net="filtered", allow=[entry])
        assert caught.value.field == "allow", entry


def test_addresses_are_events_of_a_full_trace(supervisor: Supervisor, peer: Peer) -> None:
    _, result = attempts(supervisor, peer.port, trace="full")
    found = [event for event in supervisor.trace(result.run_id) if event.kind in ("connect", "send")]
    assert len(found) == len(WAYS)
    assert {(event.address, event.port, event.result) for event in found} == {("127.0.0.1", peer.port, -1)}


LISTEN = """
import socket
def attempt(name, act):
    try:
        act()
        print(name, "done")
    except OSError as error:
        print(name, error.errno)
def bound(kind, port):
    s = socket.socket(socket.AF_INET, kind)
    s.bind(("127.0.0.1", port))
    return s
attempt("listen", lambda: socket.socket().listen(1))
attempt("bind_tcp", lambda: bound(socket.SOCK_STREAM, 18999))
attempt("bind_udp", lambda: bound(socket.SOCK_DGRAM, 18999))
attempt("bind_any", lambda: bound(socket.SOCK_DGRAM, 0))
attempt("udplite", lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM, 136))
attempt("ping", lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP))
attempt("mptcp", lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262))
"""
# No guard on socket(2): what is refused is refused by the hooks.
OPEN = 'name = "open"\nextends = "moderate"\n[syscalls]\ndefault = "allow"\nallow = ["%sockets", "%raw-sockets"]\n'


def test_nobody_comes_to_a_filtered_run_by_himself(supervisor: Supervisor) -> None:
    """Neither listeners, nor ports of its choice, nor sockets that send past the hooks."""

    def seen(net: str) -> dict[str, str]:
        result = supervisor.execute([PYTHON, "-c", LISTEN], policy=OPEN, net=net, timeout=scaled(20))
        assert result.exit_code == 0, (result.detail, result.stderr)
        return dict(line.split() for line in result.stdout.decode().splitlines())

    filtered, full = seen("filtered"), seen("full")
    assert {name: filtered[name] for name in ("listen", "bind_tcp", "bind_udp")} == dict.fromkeys(
        ("listen", "bind_tcp", "bind_udp"), "1"
    )
    assert filtered["bind_any"] == "done"
    assert {full[name] for name in ("listen", "bind_tcp", "bind_udp", "bind_any")} == {"done"}
    odd = ("udplite", "ping", "mptcp")
    # A kernel that has none of a kind, or lets nobody ping, says so first.
    assert {name for name in odd if filtered[name] != "1"} == {name for name in odd if full[name] != "done"}
    assert {name for name in odd if filtered[name] == "1"}, (filtered, full)
    with pytest.raises(errors.PolicyRefused, match="could listen"):
        supervisor.execute(["true"], policy="basic", net="filtered")
