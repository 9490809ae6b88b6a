"""What a host at the other end of the wire gets of a run: what is allowed, and not one packet of what is denied.

The daemon lives in a network namespace of this module's own, and so does the peer; a veth pair joins them. Neither the
machine's interfaces nor its settings are touched, and both namespaces go with the processes that hold them.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import ipaddress
import select
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest

from supervisor.client import Supervisor
from supervisor.model import RunResult
from tests.host import daemon_fixture
from tests.host.daemon_fixture import Daemon, scaled
from tests.host.network_ways import BASE_PORT, GROUP4, GROUP6, PROGRAM, WAYS
from tests.leaks import Snapshot

pytestmark = pytest.mark.slow  # every way under every policy, with waits

PYTHON = "/usr/bin/python3"
HERE4, HERE6 = "198.51.100.1", "2001:db8:5e::1"
ALLOWED4, ALLOWED6 = "198.51.100.2", "2001:db8:5e::2"
DENIED4, DENIED6 = "198.51.100.3", "2001:db8:5e::3"
FENCE = 9

UNPRIVILEGED = {"raw", "raw_header", "packet", "transparent"}
"""Ways that no run has the capabilities for, whatever its network."""
ROUTED = {way for way in WAYS if "routed" in way}
"""Of these a recent kernel leaves those of IPv4 to who has CAP_NET_RAW; Linux 6.1 lets everybody."""
JOINED = {"join", "join6"}
ODD = {way for way in WAYS if way.startswith(("mptcp", "udplite", "ring", "ping"))}
"""Ways that not every kernel or policy has."""
OPTIONAL = UNPRIVILEGED | ROUTED | ODD
PORT_TAKEN = {"tcp_port", "udp_port"}
"""Ways that choose a port of their own, which a filtered run may not."""
AGAIN = "port 1"
"""What `tcp_again` sends to an address that is allowed, before it turns to the one that is not."""

# No guard on socket(2) and io_uring at hand: what is refused is refused by the hooks.
OPEN = (
    'name = "open"\nextends = "moderate"\n[syscalls]\ndefault = "allow"\n'
    'allow = ["%sockets", "%raw-sockets", "@io-uring"]\n'
)
DENY = f'[network]\ndeny = ["{DENIED4}:*", "[{DENIED6}]:*"]\n'
RULE = (
    f'[[rules]]\nname = "mine"\non = ["connect", "send"]\nmatch.address = ["{DENIED4}", "{DENIED6}"]\naction = "deny"\n'
)

T = TypeVar("T")


@dataclass(frozen=True)
class Packet:
    """One that arrived: `way` is that of the attempt that has its number for a port, else what it is."""

    way: str
    to: str


def neighbourly(packet: Packet) -> bool:
    """ARP and neighbour discovery: what a kernel says by itself before and beside any packet."""
    return packet.way in ("arp", "nd")


def upper_layer(frame: bytes) -> tuple[str, int, bytes]:
    """(address that it is sent to, protocol, what the protocol carries) of an IP packet behind 14 bytes of Ethernet."""
    packet = frame[14:]
    if packet[0] >> 4 == 4:
        return socket.inet_ntoa(packet[16:20]), packet[9], packet[(packet[0] & 15) * 4 :]
    following, rest = packet[6], packet[40:]
    while following in (0, 43, 60):  # hop-by-hop, routing, destination options
        following, rest = rest[0], rest[(rest[1] + 1) * 8 :]
    return str(ipaddress.IPv6Address(packet[24:40])), following, rest


def identify(frame: bytes) -> Packet:
    if frame[12:14] == b"\x08\x06":
        return Packet("arp", socket.inet_ntoa(frame[38:42]))
    to, protocol, body = upper_layer(frame)
    if protocol in (6, 17, 136):
        port = int.from_bytes(body[2:4], "big")
        number = port - BASE_PORT
        return Packet(WAYS[number] if 0 <= number < len(WAYS) else f"port {port}", to)
    if protocol == 58 and 133 <= body[0] <= 137:
        return Packet("nd", to)
    if protocol == 58 and body[0] in (131, 132, 143):
        # The kernel's own are about the groups of its addresses.
        return Packet("join6" if socket.inet_pton(socket.AF_INET6, GROUP6) in body else "nd", to)
    if protocol == 2:
        return Packet("join" if socket.inet_aton(GROUP4) in body else "igmp", to)
    if protocol in (1, 58):
        return Packet("ping" if protocol == 1 else "ping6", to)
    return Packet(f"protocol {protocol}", to)


class Namespace:
    """A network namespace that lives as long as the process that holds it, which ends with ours at the latest."""

    def __init__(self) -> None:
        self._holder = subprocess.Popen(
            ["unshare", "--net", "sh", "-c", "echo up; exec cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self._holder.stdout is not None and self._holder.stdout.readline() == b"up\n"
        self.pid = self._holder.pid
        self.path = f"/proc/{self.pid}/ns/net"

    def sh(self, script: str) -> None:
        subprocess.run(["nsenter", f"--net={self.path}", "sh", "-ec", script], check=True, stdin=subprocess.DEVNULL)

    def within(self, act: Callable[[], T]) -> T:
        """What `act` returns, called by a thread that is in the namespace: sockets stay where they were made."""
        found: list[T] = []

        def enter() -> None:
            with open(self.path, "rb") as file:
                libc = ctypes.CDLL(None, use_errno=True)
                if libc.setns(file.fileno(), 0x40000000):  # CLONE_NEWNET, of this thread alone
                    raise OSError(ctypes.get_errno(), "setns")
            found.append(act())

        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
        (value,) = found
        return value

    def close(self) -> None:
        self._holder.communicate()


@dataclass
class Wire:
    """The daemon at one end, at the other a counter of all that arrives."""

    daemon: Daemon
    ours: Namespace
    tap: socket.socket
    sender: socket.socket

    def arrived(self) -> list[Packet]:
        """What has come since the last call: a datagram of ours marks the end, which the wire keeps behind the rest."""
        # IGMP and MLD reports are sent by a timer of a few milliseconds.
        time.sleep(0.3)
        self.sender.sendto(b"", (ALLOWED4, FENCE))
        packets: list[Packet] = []
        while not packets or packets[-1] != Packet(f"port {FENCE}", ALLOWED4):
            assert select.select([self.tap], [], [], scaled(10))[0], "the wire is dead"
            frame, address = self.tap.recvfrom(65536)
            if address[2] != socket.PACKET_OUTGOING:
                packets.append(identify(frame))
        return packets[:-1]


@contextlib.contextmanager
def joined() -> Iterator[tuple[Namespace, socket.socket, socket.socket]]:
    """Two namespaces with a wire between: (ours, what arrives at the other, a sender in ours)."""
    with contextlib.ExitStack() as stack:
        ours, theirs = Namespace(), Namespace()
        stack.callback(theirs.close)
        stack.callback(ours.close)
        ours.sh(
            f"ip link add near type veth peer name far netns {theirs.pid}; ip link set lo up; ip link set near up; "
            f"ip addr add {HERE4}/24 dev near; ip addr add {HERE6}/64 dev near nodad; "
            # As on a host with systemd: everybody may ping.
            "echo 0 2147483647 > /proc/sys/net/ipv4/ping_group_range"
        )
        theirs.sh(
            "ip link set lo up; ip link set far up; "
            + "; ".join(f"ip addr add {address}/24 dev far" for address in (ALLOWED4, DENIED4))
            + "; "
            + "; ".join(f"ip addr add {address}/64 dev far nodad" for address in (ALLOWED6, DENIED6))
        )

        def listen() -> socket.socket:
            tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))  # ETH_P_ALL
            tap.setsockopt(socket.SOL_SOCKET, 33, 16 << 20)  # SO_RCVBUFFORCE
            tap.bind(("far", 3))
            return tap

        tap = stack.enter_context(theirs.within(listen))
        sender = stack.enter_context(ours.within(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)))
        yield ours, tap, sender


@pytest.fixture(scope="module")
def wire(base_directory: Path) -> Iterator[Wire]:
    base = Path(tempfile.mkdtemp(prefix="wire-", dir=base_directory))
    base.chmod(0o755)
    with joined() as (ours, tap, sender), pytest.MonkeyPatch.context() as patch:
        command = base / "in-namespace"
        command.write_text(f'#!/bin/sh\nexec nsenter --net={ours.path} {daemon_fixture.COMMAND} "$@"\n')
        command.chmod(0o755)
        patch.setattr(daemon_fixture, "COMMAND", command)
        daemon = Daemon(base)
        daemon.start()
        try:
            yield Wire(daemon, ours, tap, sender)
        finally:
            status = daemon.stop()
            left = [one for one in Snapshot.take(instances=[daemon.instance]).things if one.startswith("cgroup")]
            shutil.rmtree(base)
            assert (status, left) == (0, [])


def attempt(
    wire: Wire, policy: str, net: str, *allow: str, target: tuple[str, str] = (DENIED4, DENIED6)
) -> tuple[dict[str, str], list[Packet], RunResult]:
    """Every way tried at `target`: (what its caller was told, what arrived, the result)."""
    wire.ours.sh("ip neigh flush dev near")  # so that who is not looked for is not known either
    wire.arrived()
    with Supervisor(wire.daemon.address) as client:
        result = client.execute(
            [PYTHON, "-c", PROGRAM, *target, ALLOWED4, ALLOWED6, "near"],
            policy=policy,
            net=net,
            allow=list(allow),
            timeout=scaled(60),
        )
    assert (result.outcome, result.exit_code) == ("exited", 0), (result.detail, result.stderr, result.stdout)
    told = dict(line.split() for line in result.stdout.decode().splitlines())
    assert set(told) == set(WAYS)
    return told, wire.arrived(), result


def ways(packets: list[Packet], *addresses: str) -> set[str]:
    """What arrived but for neighbours' talk, at these addresses, or at all."""
    return {one.way for one in packets if not neighbourly(one) and (not addresses or one.to in addresses)}


def test_every_way_leads_to_the_peer(wire: Wire) -> None:
    """Held to nothing: so what does not arrive below was stopped, and not badly tried."""
    free = OPEN.replace('extends = "moderate"\n', 'extends = "moderate"\nrule_sets = []\n')
    told, packets, _ = attempt(wire, free, "full")
    reached = ways(packets)
    assert set(WAYS) - reached <= OPTIONAL, {way: told[way] for way in set(WAYS) - reached}
    # Of a kind that this kernel lacks, or lets only root use, its caller was told so.
    assert {told[way] for way in set(WAYS) - reached} <= {"1", "22", "38", "92", "93", "94", "97"}, told
    assert Packet("arp", DENIED4) in packets
    # The kernel repeats for a second or two that the groups were left; nobody is to take that for the next one's.
    time.sleep(4)


ALLOWED = (f"{ALLOWED4}:*", f"[{ALLOWED6}]:*")
HELD: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "moderate, filtered": ("moderate", "filtered", ALLOWED),
    "open, filtered": (OPEN, "filtered", ALLOWED),
    "open, filtered to one port": (OPEN, "filtered", (f"{ALLOWED4}:1",)),
    "open, filtered to nobody": (OPEN, "filtered", ()),
    "moderate, denied": (f'extends = "moderate"\n{DENY}', "full", ()),
    "open, denied": (OPEN + DENY, "full", ()),
    "moderate, denied by a rule": (f'extends = "moderate"\n{RULE}', "full", ()),
    "open, denied by a rule": (OPEN + RULE, "full", ()),
}


@pytest.fixture(scope="module")
def held(wire: Wire) -> Callable[[str], tuple[dict[str, str], list[Packet], RunResult]]:
    """held(name): what came of all ways under that policy, tried once for all tests."""
    return functools.cache(lambda name: attempt(wire, HELD[name][0], HELD[name][1], *HELD[name][2]))


Held = Callable[[str], tuple[dict[str, str], list[Packet], RunResult]]


@pytest.mark.parametrize("name", HELD)
def test_nothing_that_is_denied_arrives(held: Held, name: str) -> None:
    told, packets, result = held(name)
    # These have tests of their own below.
    known = ROUTED | JOINED | {"ping", "ping6", "udplite_connect"}
    assert ways(packets) - known <= {AGAIN}, packets
    refused = {way: told[way] for way in WAYS if way not in known}
    assert set(refused.values()) <= {"1", "38", "93", "94", "97"}, refused
    seen = {(one.address, one.action) for one in result.violations if one.kind in ("connect", "send")}
    assert {(DENIED4, "deny"), (DENIED6, "deny")} <= seen


@pytest.mark.parametrize("name", [name for name in HELD if "filtered" in name])
def test_nobody_is_looked_for_who_is_denied(held: Held, name: str) -> None:
    """The hooks come before the route: not even an ARP request tells that somebody was asked for."""
    assert Packet("arp", DENIED4) not in held(name)[1]


@pytest.mark.parametrize("name", [name for name in HELD if "filtered" in name])
def test_no_ping_from_a_filtered_run(held: Held, name: str) -> None:
    told, packets, _ = held(name)
    assert not ways(packets) & {"ping", "ping6", "udplite_connect"}
    assert (told["ping"], told["ping6"]) == ("1", "1")


NO_HOP = ("open, filtered to one port", "open, filtered to nobody")
"""Where nothing is allowed that these packets could name as their last address."""


@pytest.mark.parametrize("name", NO_HOP)
def test_no_routing_header_without_an_address_that_is_allowed(held: Held, name: str) -> None:
    assert not ways(held(name)[1]) & ROUTED


@pytest.mark.parametrize("name", [name for name in HELD if name not in NO_HOP])
def test_no_packet_by_way_of_a_routing_header(held: Held, name: str) -> None:
    assert not ways(held(name)[1]) & ROUTED


@pytest.mark.parametrize("name", [name for name in HELD if "filtered" in name])
def test_no_report_of_a_group_that_a_run_has_joined(held: Held, name: str) -> None:
    """The kernel sends it, past every hook of ours; so who is held to addresses joins none."""
    assert not ways(held(name)[1]) & JOINED


@pytest.mark.parametrize("name", [name for name in HELD if "denied" in name])
def test_no_ping_to_whom_a_policy_denies(held: Held, name: str) -> None:
    assert not ways(held(name)[1]) & {"ping", "ping6", "udplite_connect"}


@pytest.mark.parametrize("policy", ["moderate", OPEN], ids=["moderate", "open"])
def test_what_is_allowed_arrives(wire: Wire, policy: str) -> None:
    told, packets, result = attempt(wire, policy, "filtered", *ALLOWED, target=(ALLOWED4, ALLOWED6))
    missing = set(WAYS) - ways(packets, ALLOWED4, ALLOWED6) - OPTIONAL - PORT_TAKEN - JOINED
    assert not missing, {way: told[way] for way in missing}
    assert {told[way] for way in PORT_TAKEN} == {"1"}
    assert {one.address for one in result.violations} <= {"0.0.0.0"}  # the ports taken


def test_a_port_is_allowed_and_no_other(wire: Wire) -> None:
    chosen = {"tcp", "udp", "sendmmsg"}
    allow = [f"{ALLOWED4}:{BASE_PORT + WAYS.index(way)}" for way in sorted(chosen)]
    _, packets, _ = attempt(wire, "moderate", "filtered", *allow, target=(ALLOWED4, ALLOWED6))
    assert ways(packets) - JOINED == chosen


LOCAL = """
import socket, sys
for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::1"), (socket.AF_INET6, "::"),
                     (socket.AF_INET6, "::ffff:127.0.0.1"), (socket.AF_INET6, "::ffff:0.0.0.0")):
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        for act in ("connect", "sendto"):
            s = socket.socket(family, kind)
            try:
                s.connect((host, int(sys.argv[1]))) if act == "connect" else s.sendto(b"x", 0x20000000 * (kind == 1), (host, int(sys.argv[1])))
                act == "connect" and kind == socket.SOCK_DGRAM and s.send(b"x")
                print(host, kind.name, act)
            except OSError:
                pass
"""


def test_a_denied_loopback_is_denied_by_its_other_names(wire: Wire) -> None:
    """connect(2) to 0.0.0.0 or :: goes to this host."""

    def listen() -> socket.socket:
        return socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)

    with wire.ours.within(listen) as server, Supervisor(wire.daemon.address) as client:
        result = client.execute(
            [PYTHON, "-c", LOCAL, str(server.getsockname()[1])],
            policy='extends = "moderate"\n[network]\ndeny = ["127.0.0.0/8:*", "[::1]:*"]\n',
            net="full",
            timeout=scaled(30),
        )
        assert result.exit_code == 0, result.stderr
        assert not select.select([server], [], [], 0)[0]
    assert result.stdout == b""
