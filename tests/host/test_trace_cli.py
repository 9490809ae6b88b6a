"""`supervisor trace` end to end: programs that are really traced, shown, searched for and exported."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import time
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from supervisor.client import ProcessTree, Supervisor, export
from tests.host.daemon_fixture import COMMAND, Daemon, scaled

pytestmark = pytest.mark.slow  # in the VM lane Python's start alone takes seconds, and every test here starts it

CONNECT = "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect(('127.0.0.1', 9))"
STRACE_LINE = re.compile(r"^\d+ +\d\d:\d\d:\d\d\.\d{6} (.*)$")
# As tests/host/test_trace.py reads strace's own.
STRACE_CALL = re.compile(r"^(\w+)\(.*\) += (-?\d+|0x[0-9a-f]+|\?)(?: ([A-Z]\w*))?(?: .*)?$", re.DOTALL)

Trace = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def trace(daemon: Daemon) -> Trace:
    """trace(*arguments): `supervisor trace` against the session's daemon."""

    def call(*arguments: str, status: int = 0) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "SUPERVISOR_ADDRESS": daemon.address}
        done = subprocess.run(
            [COMMAND, "trace", *arguments], capture_output=True, text=True, env=environment, timeout=scaled(60)
        )
        assert done.returncode == status, done.stderr
        assert "Traceback" not in done.stderr and "\x1b" not in done.stdout + done.stderr
        return done

    return call


@dataclass(frozen=True)
class Traced:
    run_id: str
    token: str
    """In the name of a file that no other run has."""
    since: float


@pytest.fixture(scope="module")
def traced(daemon: Daemon) -> Traced:
    """A shell that runs `mkdir`, a `cat` that fails, a connecting Python, and one that is killed."""
    token, since = uuid.uuid4().hex, time.time()
    script = (
        f'mkdir {token}; mv {token} {token}.moved; cat /none/{token}; python3 -c "{CONNECT}"; '
        "printf '\\033[31m' > $(printf 'e\\033[31m'); sleep 100 & kill -9 $!; wait $!; exit 3"
    )
    with Supervisor(daemon.address) as client:
        result = client.execute(["sh", "-c", script], trace="full", timeout=scaled(30))
    assert (result.outcome, result.exit_code) == ("exited", 3), (result.detail, result.stderr)
    assert result.trace.complete
    return Traced(result.run_id, token, since)


def test_show(trace: Trace, traced: Traced) -> None:
    shown = trace("show", traced.run_id).stdout
    heading, _, table = shown.partition("\n\n")
    assert traced.run_id in heading and heading.endswith("complete: yes")
    tree = table.partition("\n\n")[0].splitlines()
    assert [line.split()[0] for line in tree] == ["PID", *(str(2 + n) for n in range(len(tree) - 1))]
    column = tree[0].index("PROGRAM")
    ended = {line[column:].rstrip(): re.split("  +", line)[3] for line in tree[1:]}
    top = next(iter(ended))
    assert top.startswith("sh -c ") and ended[top] == "exited 3"
    assert ended[f"  mkdir {traced.token}"] == "exited 0" and ended[f"  cat /none/{traced.token}"] == "exited 1"
    assert "killed by SIGKILL" in ended.values()
    events = table.partition("\n\n")[2].splitlines()
    times = [float(line.split()[0]) for line in events]
    assert all(b - a > -0.005 for a, b in itertools.pairwise(times))
    assert f'mkdir("{traced.token}", 0777) = 0' in shown
    assert f'openat(AT_FDCWD, "/none/{traced.token}", O_RDONLY) = -2 ENOENT' in shown
    assert re.search(r"connect\(\d, 127\.0\.0\.1:9, 16\) = 0 \(udp\)", shown)
    assert r"e\x1b[31m" in shown or r"e\033[31m" in shown


def test_show_selects(trace: Trace, supervisor: Supervisor, traced: Traced) -> None:
    events = list(supervisor.trace(traced.run_id))
    found = trace("show", traced.run_id[:14], "--json", "--syscall", "openat", "--failed").stdout.splitlines()
    assert len(found) == sum(event.syscall == "openat" and event.result < 0 for event in events)
    assert len(trace("show", traced.run_id, "--json").stdout.splitlines()) == len(events)
    lines = trace("show", traced.run_id, "--no-tree", "--pid", "3", "--limit", "5").stdout.splitlines()
    assert len(lines) == 5 and {line.split()[1] for line in lines} == {"3"}


def test_the_tree_counts_what_the_summary_has(trace: Trace, supervisor: Supervisor, traced: Traced) -> None:
    tree = ProcessTree.of(supervisor.trace(traced.run_id))
    summary = supervisor.trace_summary(traced.run_id)
    processes = [process for _, process in tree.walk()]
    assert sum(process.calls for process in processes) == sum(one.calls for one in summary.syscalls.values())
    assert sum(process.failed for process in processes) == sum(one.errors for one in summary.syscalls.values())
    assert len(processes) == summary.process_count and len(tree.roots) == 1
    told = {one.pid: (one.parent, one.result) for one in summary.processes}
    assert {process.pid: (process.parent_pid, process.result) for process in processes} == told
    lines = trace("summary", traced.run_id).stdout.splitlines()
    assert lines[0] == "level full, complete: yes" and "connect" in lines[-1]
    total = next(line.split() for line in lines if line.startswith("total "))
    assert int(total[1]) == sum(process.calls for process in processes)


def test_search(trace: Trace, traced: Traced, supervisor: Supervisor) -> None:
    done = trace("search", "--path", f"*{traced.token}*", "--json")
    kinds = Counter(json.loads(line)["kind"] for line in done.stdout.splitlines())
    assert (kinds["mkdir"], kinds["rename"], kinds["open"]) == (1, 1, 1)
    assert re.match(r"\d+ events found in \d+ traces?\n", done.stderr)
    assert json.loads(done.stdout.splitlines()[0])["run_id"] == traced.run_id
    (line,) = trace("search", "--path", f"/none/{traced.token}", "--failed", "--program", "cat").stdout.splitlines()
    assert line.startswith(traced.run_id) and line.endswith(" = -2 ENOENT")
    assert not trace("search", "--path", f"/none/{traced.token}", "--program", "mkdir").stdout
    network = trace("search", "--address", "127.0.0.0/8", "--since", "1h", "--run", traced.run_id).stdout
    assert "connect(127.0.0.1:9) (udp)" in network
    assert trace("search", "--address", ":9", "--kind", "connect", "--run", traced.run_id, "--json").stdout
    found = supervisor.search_traces(syscall="mkdir", run_id=traced.run_id, since=traced.since)
    assert [event.syscall for _, event in found] == ["mkdir", "mkdir"]
    assert found.end is not None and (found.end.searched, found.end.skipped) == (1, 0)
    assert not list(supervisor.search_traces(run_id=traced.run_id, until=traced.since - 60))
    limited = trace("search", "--run", traced.run_id, "--limit", "3", "--json")
    assert len(limited.stdout.splitlines()) == 3 and "stopped at --limit 3" in limited.stderr


def test_a_search_that_makes_no_sense(trace: Trace) -> None:
    for option, value in (("--path", "[a"), ("--address", "10.0.0.0/99"), ("--since", "soon"), ("--kind", "A B")):
        assert option[2:] in trace("search", option, value, status=125).stderr
    assert "no run 0000" in trace("search", "--run", "0000", status=125).stderr


def test_search_skips_what_is_damaged_and_says_so(daemon: Daemon, trace: Trace, traced: Traced) -> None:
    damaged = daemon.base / "state" / "traces" / f"{'f' * 20}.parquet"
    damaged.write_bytes(b"PAR1 and nothing")
    try:
        done = trace("search", "--path", f"/none/{traced.token}", "--json")
    finally:
        damaged.unlink()
    assert len(done.stdout.splitlines()) == 1
    assert f"not read, or not to the end: {'f' * 20} (1)" in done.stderr


def test_export(trace: Trace, supervisor: Supervisor, traced: Traced) -> None:
    events = list(supervisor.trace(traced.run_id))
    calls = Counter(event.syscall for event in events if event.kind == "syscall")
    seen: Counter[str] = Counter()
    for line in trace("export", traced.run_id, "--format", "strace").stdout.splitlines():
        found = STRACE_LINE.match(line)
        assert found and line.isascii(), line
        if not found[1].startswith("+++ "):
            call = STRACE_CALL.match(found[1])
            assert call, line
            seen[call[1]] += 1
    assert seen == calls
    timeline = json.loads("".join(export(iter(events), "perfetto")))["traceEvents"]
    assert sum(one["ph"] == "X" and one["args"].get("ended") is not None for one in timeline) == sum(
        event.kind == "exit" and event.detail.startswith("process") for event in events
    )
    assert all(one["dur"] >= 0 and one["ts"] >= 0 for one in timeline if one["ph"] == "X")
    ocsf = [json.loads(line) for line in "".join(export(iter(events), "ocsf")).splitlines()]
    classes = Counter(one["class_uid"] for one in ocsf)
    assert classes[4001] == 1 and classes[1007] == sum(event.kind in ("exec", "fork", "exit") for event in events)
    assert any(one["class_uid"] == 1001 and one["file"]["path"] == f"/none/{traced.token}" for one in ocsf)


def test_export_without_a_trace(trace: Trace, daemon: Daemon, supervisor: Supervisor) -> None:
    run_id = supervisor.execute(["true"], timeout=scaled(10)).run_id
    assert "only the level full keeps every event" in trace("export", run_id, status=125).stderr
    shown = trace("show", run_id)
    assert shown.stdout.splitlines()[-1].endswith("/true") and "--trace full" in shown.stderr
    assert "no run nothing" in trace("export", "nothing", status=125).stderr


def test_a_reader_that_leaves(daemon: Daemon, traced: Traced) -> None:
    environment = {**os.environ, "SUPERVISOR_ADDRESS": daemon.address}
    for arguments in (f"export {traced.run_id} --format ocsf", f"show {traced.run_id} --no-tree", "search"):
        line = f"{COMMAND} trace {arguments} | head -1"
        done = subprocess.run(["sh", "-c", line], capture_output=True, env=environment, timeout=scaled(60))
        assert (done.stdout.count(b"\n") == 1 and done.stderr in (b"",)) or b"events found" in done.stderr, done.stderr
