"""Runs that try to drown, blind or unload the probes, and daemons that have none: what is promised holds, or it is told."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import uuid
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import grpc
import pyarrow.parquet as pq
import pytest

from supervisor import errors
from supervisor.client import Supervisor
from supervisor.shipped import PACKAGE_DIR
from supervisor.v1 import run_pb2
from tests.host import daemon_fixture
from tests.host.blinding import BLIND, OPEN_BY_RING
from tests.host.daemon_fixture import Daemon, LiveRun, RunStub, fewer, host_processes, scaled, spec, wait_until
from tests.host.witnesses import launchers
from tests.leaks import bpf_objects

pytestmark = pytest.mark.slow  # floods of millions

PYTHON = "/usr/bin/python3"
FLOODERS = 4
FULL, SUMMARY = run_pb2.TRACE_LEVEL_FULL, run_pb2.TRACE_LEVEL_SUMMARY

UNBOUND = 'name = "unbound"\nextends = "basic"\nrule_sets = ["default"]\n'
"""Every file, process and system call of the host in sight, and the rules."""
CALLS = '[syscalls]\ndefault = "allow"\nallow = ["@mount", "@namespace", "@debug", "@bpf", "@io-uring", "%namespaces", "clone3"]\n'
OWN_ROOT = {
    "basic": UNBOUND,
    "moderate": f'extends = "moderate"\n{CALLS}',
    "strict": f'extends = "strict"\n{CALLS}',
}
"""Policies whose runs can make a user namespace and be root in it."""

FLOOD = """
import subprocess, sys
flooders, calls, execs, violations = sys.argv[1:]
started = [subprocess.Popen(["/attacks/flood", calls, execs], stdout=subprocess.DEVNULL) for _ in range(int(flooders))]
print("up", flush=True)
for number in range(int(violations)):
    try: open(f"/run/secrets/{number}")
    except OSError: pass
print(sum(one.wait() for one in started), flush=True)
"""

INNOCENT = """
import os, sys
for line in sys.stdin:
    for _ in range(1000): os.getppid()
    try: open(f"/run/secrets/{line.strip()}")
    except OSError: pass
    print("end of", line, end="", flush=True)
"""


class Innocent:
    """A run beside the one under test: a thousand calls and one violation a round, all of which must be there in the end."""

    def __init__(self, daemon: Daemon, level: run_pb2.TraceLevel) -> None:
        self._daemon = daemon
        self._full = level == FULL
        self._run = LiveRun(daemon, spec(PYTHON, "-c", INNOCENT, wall_seconds=900, trace=level, agent="innocent"))
        self._run.wait_started()
        self.rounds = 0

    def round(self) -> None:
        """It goes on only when it is told to, so what is heard of it meanwhile was told while it lived."""
        name = f"innocent-{self.rounds}"
        self.rounds += 1
        self._run.send(f"{name}\n".encode())
        self._run.read_until(f"end of {name}\n".encode())
        while f"/run/secrets/{name}" not in self._told():
            assert self._run.next_event() is not None and self._run.exited is None

    def _told(self) -> list[str]:
        return [event.violation.path for event in self._run.events if event.HasField("violation")]

    def check(self) -> None:
        self._run.close_stdin()
        result = self._run.finish()
        assert (result.outcome, result.exit_code) == (run_pb2.OUTCOME_EXITED, 0), result.detail
        assert [one.path for one in result.violations] == [f"/run/secrets/innocent-{n}" for n in range(self.rounds)]
        trace = result.trace
        assert trace.syscalls["getppid"].calls == 1000 * self.rounds
        assert (trace.complete, trace.dropped) == (True, 0)
        if self._full:
            counted = sum(count.calls for count in trace.syscalls.values())
            assert stored(self._daemon, self._run.run_id)["syscall"] == counted


def stored(daemon: Daemon, run_id: str) -> Counter[str]:
    """How many events of each kind the file of a full trace has."""
    table = pq.read_table(daemon.state / "traces" / f"{run_id}.parquet", columns=["kind"])
    return Counter(table["kind"].to_pylist())


@pytest.mark.parametrize("level", [SUMMARY, FULL], ids=["beside a summary", "beside a full trace"])
def test_a_flood_drowns_neither_its_own_executions_and_violations_nor_a_neighbours(
    daemon: Daemon, attacks: Path, level: run_pb2.TraceLevel
) -> None:
    calls, execs, violations = fewer(5_000_000, 20_000), fewer(10_000, 100), fewer(1_000, 50)
    share = [str(number) for number in (FLOODERS, calls // FLOODERS, execs // FLOODERS, violations)]
    mounts = [run_pb2.Mount(source=str(attacks).encode(), target=b"/attacks")]
    innocent = Innocent(daemon, level)
    request = spec(PYTHON, "-c", FLOOD, *share, wall_seconds=600, trace=FULL, mounts=mounts)
    request.limits.cpus = 8
    flood = LiveRun(daemon, request)
    flood.read_until(b"up")
    with ThreadPoolExecutor(1) as beside:
        finished = beside.submit(flood.finish)
        while innocent.rounds < 10 or (innocent.rounds < 1000 and not finished.done()):
            innocent.round()
    result = finished.result()
    assert flood.stdout == b"up\n0\n", (result.detail, flood.stderr)
    innocent.check()

    trace = result.trace
    made = int(share[2]) * FLOODERS
    # There is the alert of its rate of forks besides.
    secrets = [one.path for one in result.violations if one.rule == "secrets-read"]
    assert secrets == [f"/run/secrets/{n}" for n in range(violations)]
    assert trace.rules["secrets-read"] == violations
    kinds = stored(daemon, flood.run_id)
    assert kinds["exec"] == made + FLOODERS + 1
    assert trace.syscalls["execve"].calls == made + FLOODERS + 1
    assert trace.process_count == made + FLOODERS + 1
    assert trace.syscalls["getppid"].calls == int(share[1]) * FLOODERS
    counted = sum(count.calls for count in trace.syscalls.values())
    assert kinds["syscall"] + trace.dropped == counted
    assert trace.complete == (trace.dropped == 0)


@pytest.mark.parametrize("name", OWN_ROOT)
def test_the_root_of_a_runs_own_user_namespace_cannot_blind_the_probes(
    daemon: Daemon, supervisor: Supervisor, attacks: Path, name: str
) -> None:
    before = bpf_objects()
    ids = {kind: [int(one.split()[2]) for one in before if kind in one] for kind in ("program", "map", "link")}
    assert all(ids.values())
    innocent = Innocent(daemon, FULL)
    innocent.round()
    helpers = launchers(daemon)
    mounts, flood = ([], f"{attacks}/flood") if name == "basic" else ([f"{attacks}:/attacks:ro"], "/attacks/flood")
    result = supervisor.execute(
        [PYTHON, "-c", BLIND, json.dumps([daemon.pid, helpers, ids, flood, str(fewer(200_000, 2000))])],
        policy=OWN_ROOT[name],
        trace="full",
        timeout=scaled(120),
        mounts=mounts,
        pids=64,
    )
    innocent.round()
    said = result.stdout.decode().splitlines()
    assert result.outcome == "exited" and said[-1] == "over", (result.detail, result.stderr)
    assert {"namespaces made", "numbers 0"} <= set(said) and "capabilities 000001ffffffffff" in said
    assert [line for line in said if " EFFECT " in line] == []
    secrets = [one.path.split("/")[-1] for one in result.violations if one.rule == "secrets-read"]
    assert secrets == ["before", "plain", "root", "flood", "child", "after"]
    innocent.check()
    assert daemon.alive and launchers(daemon) == helpers
    assert before <= bpf_objects()


def test_what_io_uring_does_is_not_seen_and_that_is_told(supervisor: Supervisor) -> None:
    """Of the shipped policies only `basic`, which has no rules of its own, allows io_uring."""
    result = supervisor.execute([PYTHON, "-c", OPEN_BY_RING], policy=UNBOUND, timeout=scaled(30))
    if b"no io_uring" in result.stderr:
        pytest.xfail("this kernel has none")
    assert result.stdout == b"-2\n", result.stderr
    assert not result.violations and not result.trace.complete
    assert result.trace.rules["io-uring"] and result.trace.dropped == 0


def test_what_comes_while_nobody_reads_is_counted(make_daemon: Callable[..., Daemon], attacks: Path) -> None:
    """The daemon stands still while the rings run over: what is lost is told to the last event, to whom it belongs."""
    daemon = make_daemon("still")
    calls, token = 1_000_000, f"token-{uuid.uuid4().hex}"
    mounts = [run_pb2.Mount(source=str(attacks).encode(), target=b"/attacks")]
    script = "read go; /attacks/flood $1 10 > /dev/null; cat /run/secrets/late; read on"
    with Supervisor(daemon.address) as client:
        quiet = LiveRun(daemon, spec("cat", trace=FULL))
        quiet.wait_started()
        flood = LiveRun(
            daemon, spec("sh", "-c", script, "sh", str(calls), token, wall_seconds=600, trace=FULL, mounts=mounts)
        )
        flood.wait_started()

        def shells() -> list[int]:
            return [pid for pid in host_processes(token) if Path(f"/proc/{pid}/comm").read_text() == "sh\n"]

        wait_until(shells, 20, "the shell runs")
        (shell,) = shells()
        flood.send(b"go\n")
        wait_until(lambda: Path(f"/proc/{shell}/task/{shell}/children").read_text(), 20, "the flood has begun")
        os.kill(daemon.pid, signal.SIGSTOP)
        try:
            children = Path(f"/proc/{shell}/task/{shell}/children")
            wchan = Path(f"/proc/{shell}/wchan")
            wait_until(lambda: not children.read_text() and "pipe" in wchan.read_text(), 300, "the flood is over")
        finally:
            os.kill(daemon.pid, signal.SIGCONT)
        flood.send(b"on\n")
        result = flood.finish()
        quiet.close_stdin()
        beside = quiet.finish()
        assert client.execute(["true"], timeout=scaled(30)).trace.complete
    trace = result.trace
    assert trace.syscalls["getppid"].calls >= calls and trace.dropped > 0 and not trace.complete
    counted = sum(count.calls for count in trace.syscalls.values())
    kinds = stored(daemon, flood.run_id)
    assert kinds["syscall"] + trace.dropped == counted
    assert trace.dropped + trace.events >= counted and sum(kinds.values()) <= trace.events
    assert kinds["exec"] == trace.process_count == 13
    assert [one.path for one in result.violations] == ["/run/secrets/late"]
    assert (beside.trace.complete, beside.trace.dropped) == (True, 0)


def refuse_bpf(base: Path) -> Path:
    """The command, for whom bpf(2) answers EPERM: as in a container, or with neither CAP_BPF nor CAP_SYS_ADMIN.

    Without the latter nothing at all could run; without the former alone the kernel lets root have its way.
    """
    script = base / "without-bpf"
    script.write_text(
        f"#!{sys.executable}\nimport errno, os, sys, pyseccomp\n"
        "filter = pyseccomp.SyscallFilter(defaction=pyseccomp.ALLOW)\nfilter.set_attr(pyseccomp.Attr.CTL_NNP, 0)\n"
        "filter.add_rule(pyseccomp.ERRNO(errno.EPERM), 'bpf')\nfilter.load()\n"
        f"os.execv({str(daemon_fixture.COMMAND)!r}, ['supervisor', *sys.argv[1:]])\n"
    )
    return script


def leave_out_object(base: Path) -> Path:
    """The command of a copy of the package as it is where there was no clang."""
    shutil.copytree(PACKAGE_DIR, base / "supervisor", ignore=shutil.ignore_patterns("__pycache__", "*.bpf.o"))
    if (policies := PACKAGE_DIR.parent / "policies").is_dir():
        shutil.copytree(policies, base / "policies")
    start = f"import sys; sys.path.insert(0, {str(base)!r}); from supervisor.cli.main import main; sys.exit(main())"
    script = base / "without-object"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} -P -c "{start}" "$@"\n')
    return script


@dataclass(frozen=True)
class Lack:
    """A daemon without probes, the command it was started by, and what is said to be amiss."""

    daemon: Daemon
    command: Path
    detail: str


@pytest.fixture(params=["bpf(2) is refused", "the object is missing"])
def lack(
    request: pytest.FixtureRequest,
    scratch: Callable[..., Path],
    make_daemon: Callable[..., Daemon],
    monkeypatch: pytest.MonkeyPatch,
) -> Lack:
    make, detail = (
        (refuse_bpf, "Operation not permitted")
        if request.param == "bpf(2) is refused"
        else (leave_out_object, "built without clang")
    )
    command = make(scratch("command"))
    command.chmod(0o755)
    monkeypatch.setattr(daemon_fixture, "COMMAND", command)
    return Lack(make_daemon("blind"), command, detail)


def test_without_probes_doctor_says_so(lack: Lack) -> None:
    """And so does the daemon to whoever asks it."""
    told = subprocess.run([lack.command, "doctor", "--json"], stdout=subprocess.PIPE, check=True, timeout=scaled(60))
    features = {feature["name"]: feature for feature in json.loads(told.stdout)["features"]}
    with Supervisor(lack.daemon.address) as client:
        host = {feature.name: feature for feature in client.host().features}
    for name in ("trace", "cgroup_bpf"):
        assert features[name]["available"] is False and lack.detail in features[name]["detail"]
        assert features[name]["remedy"] and features[name]["loss"]
        assert (host[name].available, host[name].detail) == (False, features[name]["detail"])
        assert host[name].remedy == features[name]["remedy"]


def test_without_probes_strict_runs_and_says_what_is_missing(lack: Lack) -> None:
    with Supervisor(lack.daemon.address) as client:
        result = client.execute(["sh", "-c", "cat /etc/shadow; echo done"], policy="strict", timeout=scaled(30))
        assert (result.outcome, result.exit_code, result.stdout) == ("exited", 0, b"done\n")
        assert {"trace", "rules"} <= set(result.enforcement.missing)
        assert not result.violations and not result.trace.complete
        # What seccomp does needs no probe.
        killed = client.execute(["unshare", "--user", "true"], policy="strict", timeout=scaled(30))
        assert killed.outcome == "violation" and killed.violations[0].syscall == "unshare"


NEEDING: dict[str, tuple[str, dict[str, object]]] = {
    "paranoid": ("trace", {"policy": "paranoid"}),
    "a full trace": ("trace", {"policy": "strict", "trace": "full"}),
    "a summary asked for": ("trace", {"policy": "strict", "trace": "summary"}),
    "an inline policy that requires it": ("trace", {"policy": 'extends = "strict"\n[trace]\nrequired = true\n'}),
    "a filtered network": ("cgroup_bpf", {"policy": "moderate", "net": "filtered", "allow": ["127.0.0.1:1"]}),
    "denied addresses": (
        "cgroup_bpf",
        {"policy": 'extends = "moderate"\n[network]\ndeny = ["10.0.0.0/8:*"]\n', "net": "full"},
    ),
}


@pytest.mark.parametrize("name", NEEDING)
def test_without_probes_what_needs_them_is_refused(lack: Lack, name: str) -> None:
    """FAILED_PRECONDITION, which the client knows as HostLacks, with what to do about it."""
    feature, options = NEEDING[name]
    with Supervisor(lack.daemon.address) as client:
        with pytest.raises(errors.HostLacks, match=re.escape(lack.detail)) as caught:
            client.execute(["true"], timeout=scaled(30), **options)  # type: ignore[arg-type]
        remedy = {one.name: one.remedy for one in client.host().features}[feature]
    assert remedy and {"feature": feature, "remedy": remedy}.items() <= caught.value.metadata.items()


def test_a_refusal_for_want_of_probes_is_a_failed_precondition(lack: Lack) -> None:
    with lack.daemon.channel() as channel, pytest.raises(grpc.RpcError) as caught:
        RunStub(channel).Execute(spec("true", policy="paranoid"), timeout=scaled(30))
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
