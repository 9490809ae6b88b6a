"""The launcher under ASAN and UBSAN: real launches, then its protocol fuzzed. Any report ends it with a status of its own."""

from __future__ import annotations

import os
import random
import socket
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from supervisor.launcher import protocol
from supervisor.launcher.protocol import PLAN_IN_FD, REPLY_SIZE, Descriptors, Reply, ReplyKind, Request, encode_plan
from supervisor.linux import rootfs
from supervisor.linux.cgroup import Hierarchies, RunGroup
from supervisor.linux.host import cgroup_layout, probe_host
from supervisor.linux.seccomp import compile_filter
from supervisor.model import Limits, RunSpec
from supervisor.plan import LaunchPlan, build
from supervisor.policy import narrow
from supervisor.policy_file import PolicySet
from supervisor.shipped import launcher_path, shipped_policy_dir

ROUNDS = int(os.environ.get("SUPERVISOR_FUZZ_ROUNDS", "4000"))
pytestmark = pytest.mark.host_only  # the sanitizers' runtime is 20 times too slow for the VM lane


@dataclass
class AsanLauncher:
    process: subprocess.Popen[bytes]
    socket: socket.socket

    def ask(self, packet: bytes, fds: list[int] | None = None) -> tuple[Reply, list[int]]:
        socket.send_fds(self.socket, [packet], fds or [])
        return self.reply()

    def reply(self) -> tuple[Reply, list[int]]:
        data, fds, _, _ = socket.recv_fds(self.socket, REPLY_SIZE, 4)
        assert data, f"the launcher ended: {self.process.wait(timeout=10)}"
        return protocol.decode_reply(data), list(fds)

    def ping(self) -> None:
        reply, _ = self.ask(protocol.request(Request.PING, 77))
        assert (reply.kind, reply.run) == (ReplyKind.OK, 77)


@pytest.fixture(scope="module")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AsanLauncher]:
    path = launcher_path("supervisor-launcher-asan")
    assert path.exists(), "build it with `make launcher-asan`"
    report = tmp_path_factory.mktemp("asan") / "stderr"
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(30)
    with report.open("wb") as stderr:
        process = subprocess.Popen(
            [str(path)],
            stdin=theirs.fileno(),
            stderr=stderr,
            # Leak detection traces itself, and the launcher has made itself untraceable.
            env={"ASAN_OPTIONS": "detect_leaks=0:exitcode=99", "UBSAN_OPTIONS": "print_stacktrace=1"},
        )
    theirs.close()
    started = AsanLauncher(process, ours)
    started.ping()  # it is in its own mount namespace by then, and no later look finds it moved
    yield started
    ours.close()
    status = process.wait(timeout=30)
    said = report.read_text(errors="replace")
    assert status == 0 and "ERROR" not in said and "runtime error" not in said, said


def a_plan(argv: tuple[bytes, ...] = (b"/bin/true",), policy: str = "strict") -> tuple[LaunchPlan, bytes]:
    policies = PolicySet(shipped_policy_dir())
    spec = RunSpec(argv=argv, policy=policy)
    effective = narrow(policies.get(policy), spec)
    plan = build(spec, effective, probe_host(), rootfs.host_view())
    return plan, compile_filter(effective.policy, notify=plan.notify).program


def a_body() -> bytes:
    plan, program = a_plan()
    return encode_plan(plan, Descriptors(0, 1, 2, 3, 4, (5, 6)), host_id=12345, filter_program=program)


class Launches:
    """Launches through the sanitized launcher as the backend would, one after another."""

    def __init__(self, launcher: AsanLauncher) -> None:
        self.launcher = launcher
        self.hierarchies = Hierarchies.create(cgroup_layout(), f"asan-{os.getpid()}")
        for name, fd in rootfs.host_templates(rootfs.host_view(), rootfs.read_etc()).items():
            reply, _ = launcher.ask(protocol.request(Request.TEMPLATE, 1, name, fds=1), [fd])
            assert reply.kind is ReplyKind.OK, reply
            os.close(fd)

    def run(self, argv: tuple[bytes, ...]) -> tuple[Reply, bytes]:
        plan, program = a_plan(argv)
        group = RunGroup.create(self.hierarchies, "one", Limits(memory=64 << 20, pids=16))
        tmpfs = rootfs.run_tmpfs(plan.limits)
        read_end, write_end = os.pipe()
        null = os.open("/dev/null", os.O_RDONLY)
        fds = [null, write_end, write_end, group.unified.directory, tmpfs, *group.v1_tasks.values()]
        where = Descriptors(0, 1, 2, 3, 4, tuple(range(5, len(fds))))
        body = encode_plan(plan, where, host_id=900_000_001, filter_program=program)
        try:
            reply, passed = self.launcher.ask(protocol.request(Request.LAUNCH, 9, body, fds=len(fds)), fds)
            for fd in (null, write_end, tmpfs, *passed):
                os.close(fd)
            while reply.kind is not ReplyKind.ENDED:
                reply, _ = self.launcher.reply()
            with os.fdopen(read_end, "rb") as output:
                return reply, output.read()
        finally:
            group.kill()
            while not group.remove():
                pass
            group.close()


def test_real_launches(launcher: AsanLauncher) -> None:
    launches = Launches(launcher)
    try:
        reply, output = launches.run((b"sh", b"-c", b"echo hello; exit 3"))
        assert output == b"hello\n" and reply.program_status is not None and os.WEXITSTATUS(reply.program_status) == 3
        reply, _ = launches.run((b"/no/such/program",))
        assert (reply.stage, reply.errno) == ("exec", 2)
        reply, _ = launches.run((b"python3", b"-c", b"import ctypes; ctypes.CDLL(None).unshare(0x10000000)"))
        assert len(reply.violations) == 1 and reply.violations[0].comm == "python3"
    finally:
        launches.hierarchies.remove()


def test_a_good_plan_passes_the_check(launcher: AsanLauncher) -> None:
    """Otherwise the fuzzing below would only try the first lines of the parser."""
    fds = [os.open("/dev/null", os.O_RDWR) for _ in range(7)]
    try:
        reply, _ = launcher.ask(protocol.request(Request.CHECK, 5, a_body(), fds=7), fds)
        assert reply.kind is ReplyKind.OK
    finally:
        for fd in fds:
            os.close(fd)


def mutated(chance: random.Random, body: bytes) -> bytes:
    data = bytearray(body)
    for _ in range(chance.randint(1, 8)):
        choice = chance.randrange(5)
        at = chance.randrange(len(data))
        if choice == 0:
            data[at] = chance.randrange(256)
        elif choice == 1:
            at &= ~3
            data[at : at + 4] = struct.pack("=I", chance.choice((0, 1, 0xFFFFFFFF, 0x7FFFFFFF, 0x80000000, len(data))))
        elif choice == 2:
            del data[at : at + chance.randrange(1, 64)]
        elif choice == 3:
            data[at:at] = chance.randbytes(chance.randrange(1, 64))
        else:
            del data[at:]
        if not data:
            data = bytearray(b"\0")
    return bytes(data)


def test_fuzzed_plans(launcher: AsanLauncher) -> None:
    chance = random.Random(20260101)
    body = a_body()
    null = os.open("/dev/null", os.O_RDWR)
    accepted = 0
    try:
        for number in range(ROUNDS):
            fds = [null] * chance.randrange(8)
            reply, _ = launcher.ask(protocol.request(Request.CHECK, number, mutated(chance, body), fds=len(fds)), fds)
            assert reply.run == number
            accepted += reply.kind is ReplyKind.OK
    finally:
        os.close(null)
    launcher.ping()
    assert accepted < ROUNDS


def test_fuzzed_packets(launcher: AsanLauncher) -> None:
    chance = random.Random(7)
    null = os.open("/dev/null", os.O_RDWR)
    try:
        for _ in range(ROUNDS):
            packet = bytearray(protocol.request(Request.CHECK, 3, chance.randbytes(chance.randrange(200))))
            packet[chance.randrange(min(len(packet), 32))] = chance.randrange(256)
            # Never LAUNCH: what is fuzzed here must not be carried out.
            if struct.unpack_from("=H", packet, 4)[0] == Request.LAUNCH:
                continue
            reply, _ = launcher.ask(bytes(packet[: chance.randrange(1, len(packet) + 1)]), [null] * chance.randrange(3))
            assert reply.kind in (ReplyKind.FAILED, ReplyKind.OK)
    finally:
        os.close(null)
    launcher.ping()


def test_a_plan_in_a_descriptor_must_be_sealed(launcher: AsanLauncher, tmp_path: Path) -> None:
    open_memfd = os.memfd_create("plan", os.MFD_ALLOW_SEALING)
    os.write(open_memfd, a_body())
    file = tmp_path / "plan"
    file.write_bytes(a_body())
    regular = os.open(file, os.O_RDONLY)
    try:
        for fd in (open_memfd, regular):
            reply, _ = launcher.ask(protocol.request(Request.CHECK, 4, flags=PLAN_IN_FD, fds=1), [fd])
            assert (reply.kind, reply.stage) == (ReplyKind.FAILED, "plan")
    finally:
        os.close(open_memfd)
        os.close(regular)
