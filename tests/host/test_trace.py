"""Traces against strace as referee: what the probes tell of a program is what happened, call by call."""

from __future__ import annotations

import errno
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from supervisor import errors
from supervisor.client import Supervisor
from supervisor.client.result import TraceEvent
from supervisor.model import RunResult
from tests.host.daemon_fixture import Daemon, LiveRun, fewer, scaled, spec, wait_until
from tests.leaks import bpf_objects

PYTHON = "/usr/bin/python3"
THREADS = "import threading\nts = [threading.Thread(target=print, args=(n,)) for n in range(5)]\n[t.start() for t in ts]; [t.join() for t in ts]"
C_SOURCE = b'#include <stdio.h>\nint main(void) { printf("%d\\n", 42); return 7; }\n'
# Errors that only the kernel itself sees: include/linux/errno.h.
RESTARTS = {"ERESTARTSYS": 512, "ERESTARTNOINTR": 513, "ERESTARTNOHAND": 514, "ERESTART_RESTARTBLOCK": 516}
PROGRAMS: dict[str, list[str]] = {
    "true": ["/bin/true"],
    "ls": ["ls", "-R", "/usr/share/doc/bash"],
    "pipeline": ["bash", "-c", "seq 1000 | sort -rn | head -3 | tr '\\n' ,"],
    "threads": [PYTHON, "-c", THREADS],
    "gcc": ["gcc", "-O1", "-o", "a.out", "program.c"],
    "signals": ["bash", "-c", "trap 'echo caught' USR1; for i in 1 2 3; do kill -USR1 $$; done; sleep 0.1 & wait"],
    "killed": ["bash", "-c", "sleep 100 & sleep 0.2; kill -9 $!; wait $!; exec false"],
}


@dataclass
class Thread:
    """One thread's calls and results, in order, from its first successful execve or its birth on."""

    calls: list[tuple[str, int | None]] = field(default_factory=list)


LINE = re.compile(r"^(\d+) +(.*)$")
CALL = re.compile(r"^(\w+)\(.*\) += (-?\d+|0x[0-9a-f]+|\?)(?: ([A-Z]\w*))?(?: .*)?$", re.DOTALL)
RESUMED = re.compile(r"^<\.\.\. (\w+) resumed>(.*)$", re.DOTALL)


def read_strace(text: str) -> dict[int, Thread]:
    """strace -f's output, by thread. What was unfinished when its thread died stays out of it."""
    threads: dict[int, Thread] = {}
    for line in text.splitlines():
        found = LINE.match(line)
        assert found, line
        pid, rest = int(found[1]), found[2]
        if rest.startswith(("+++", "---")) or rest.endswith("<unfinished ...>"):
            continue
        resumed = RESUMED.match(rest)
        if resumed:
            rest = f"{resumed[1]}({resumed[2]}"
        call = CALL.match(rest)
        if call is None:
            assert rest.endswith(("= ?", "<unfinished ...>) = ?")), rest
            continue
        name, value, error = call.groups()
        if value == "?" and error is None:  # it never came back, or its thread was killed before strace could ask
            result = None
        elif error in RESTARTS:
            result = -RESTARTS[error]
        elif value == "-1" and error is not None:
            result = -getattr(errno, error)
        else:
            result = int(value, 8 if re.fullmatch("0[0-7]+", value) else 0)
        threads.setdefault(pid, Thread()).calls.append((name, result))
    return threads


def read_trace(events: list[TraceEvent], first: dict[int, bool]) -> dict[int, Thread]:
    """The same of our events, for the threads in `first`; those with True begin with their first successful execve."""
    threads: dict[int, Thread] = {}
    begun: set[int] = {tid for tid, executes in first.items() if not executes}
    for event in events:
        if event.kind != "syscall" or event.tid not in first:
            continue
        if event.syscall == "execve" and event.result == 0:
            begun.add(event.tid)
        if event.tid not in begun:
            continue
        result = None if event.syscall in ("exit", "exit_group") else event.result
        threads.setdefault(event.tid, Thread()).calls.append((event.syscall, result))
    return threads


def differences(ours: Thread, theirs: Thread) -> list[object]:
    """Where two accounts differ; None is a result that strace did not see. It prints addresses unsigned."""
    if len(ours.calls) != len(theirs.calls):
        return [(len(ours.calls), len(theirs.calls)), *(set(ours.calls) ^ set(theirs.calls))]

    def same(a: tuple[str, int | None], b: tuple[str, int | None]) -> bool:
        return a[0] == b[0] and (a[1] is None or b[1] is None or (a[1] - b[1]) % (1 << 64) == 0)

    return [pair for pair in zip(ours.calls, theirs.calls, strict=True) if not same(*pair)]


def refereed(supervisor: Supervisor, argv: list[str]) -> tuple[RunResult, dict[int, Thread], dict[int, Thread]]:
    """A run of strace around `argv`, traced by us too: (result, strace's account, ours)."""
    result = supervisor.execute(
        ["strace", "-f", "-qq", "-s0", "-o", "strace.out", *argv],
        policy="basic",
        trace="full",
        timeout=scaled(60),
        files={"program.c": C_SOURCE},
        collect=["strace.out"],
        limits={"output": 1 << 20},
    )
    assert result.outcome == "exited" and result.files, (result.detail, result.stderr)
    (output,) = result.files
    theirs = read_strace(output.data.decode())
    top = min(theirs)
    ours = read_trace(list(supervisor.trace(result.run_id)), {tid: tid == top for tid in theirs})
    return result, theirs, ours


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_call_and_result_is_what_strace_saw(supervisor: Supervisor, name: str) -> None:
    result, theirs, ours = refereed(supervisor, PROGRAMS[name])
    assert result.trace.complete and result.trace.dropped == 0
    assert set(ours) == set(theirs)
    for tid, thread in theirs.items():
        assert not differences(ours[tid], thread), f"thread {tid}"
    assert sum(len(thread.calls) for thread in ours.values()) > 20


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_summary_counts_what_the_full_trace_has(supervisor: Supervisor, name: str) -> None:
    result = supervisor.execute(
        PROGRAMS[name], policy="basic", trace="full", timeout=scaled(60), files={"program.c": C_SOURCE}
    )
    calls: Counter[str] = Counter()
    failed: Counter[str] = Counter()
    for event in supervisor.trace(result.run_id):
        if event.kind == "syscall":
            calls[event.syscall] += 1
            failed[event.syscall] += -4095 <= event.result < 0
    assert {name: (count.calls, count.errors) for name, count in result.trace.syscalls.items()} == {
        name: (count, failed[name]) for name, count in calls.items()
    }
    assert supervisor.trace_summary(result.run_id) == result.trace


def test_a_flood_is_counted_to_the_last_call(daemon: Daemon, supervisor: Supervisor, attacks: Path) -> None:
    """What the rings could not take is told; the counts lack nothing; every program that was executed is there."""
    calls, execs = fewer(5_000_000, 20_000), fewer(2_000, 50)
    result = supervisor.execute(
        ["/attacks/flood", str(calls), str(execs)],
        trace="full",
        timeout=scaled(120),
        mounts=[f"{attacks}:/attacks:ro"],
    )
    assert result.stdout == b"done\n", (result.detail, result.stderr)
    trace = result.trace
    assert trace.syscalls["getppid"].calls == calls
    assert trace.syscalls["execve"].calls == execs + 1
    counted = sum(count.calls for count in trace.syscalls.values())
    stored = pq.read_table(daemon.base / "state" / "traces" / f"{result.run_id}.parquet", columns=["kind", "syscall"])
    kinds = Counter(stored["kind"].to_pylist())
    # Two threads of the program, and one that is every child.
    assert kinds["exec"] == execs + 1 and kinds["exit"] == execs + 3 and kinds["fork"] == execs + 2
    assert kinds["syscall"] + trace.dropped == counted
    assert trace.complete == (trace.dropped == 0)


def test_the_program_is_traced_from_its_first_instruction_and_nothing_of_ours_is(supervisor: Supervisor) -> None:
    result = supervisor.execute(["/bin/busybox", "true"], trace="full", timeout=scaled(10))
    events = list(supervisor.trace(result.run_id))
    assert [event.kind for event in events[:2]] == ["exec", "syscall"] and events[1].syscall == "execve"
    assert events[0].path == "/bin/busybox" and events[0].argv == ("/bin/busybox", "true")
    assert (events[-1].kind, events[-1].result) == ("exit", 0)
    assert {event.pid for event in events} == {2}
    assert not {"mount", "pivot_root", "setresuid", "seccomp", "capset"} & set(result.trace.syscalls)


def test_levels(supervisor: Supervisor) -> None:
    """`summary` is what a run gets that asks nothing; less than its policy's is refused; `off` leaves nothing."""
    result = supervisor.execute(["true"], timeout=scaled(10))
    assert result.trace.level == "summary" and result.trace.complete and result.trace.syscalls["execve"].calls == 1
    with pytest.raises(errors.NotFound, match="only the level full keeps every event"):
        list(supervisor.trace(result.run_id))
    with pytest.raises(errors.PolicyRefused, match="trace: off is less than the summary"):
        supervisor.execute(["true"], trace="off")
    policy = 'name = "quiet"\nextends = "strict"\n[trace]\nlevel = "off"\n'
    quiet = supervisor.execute(["true"], policy=policy, timeout=scaled(10))
    assert quiet.trace.level == "off" and not quiet.trace.syscalls
    with pytest.raises(errors.HostLacks, match="was not traced"):
        supervisor.trace_summary(quiet.run_id)
    with pytest.raises(errors.NotFound):
        supervisor.trace_summary("0" * 20)


def test_a_trace_of_a_run_that_is_still_going(daemon: Daemon, supervisor: Supervisor) -> None:
    run = LiveRun(daemon, spec("sleep", "1000", trace=3))
    run.wait_started()
    (alive,) = [one for one in supervisor.runs(state="running") if one.program == "sleep"]
    with pytest.raises(errors.InvalidRequest, match="still going"):
        list(supervisor.trace(alive.run_id))
    run.close()


def test_a_trace_directory_that_cannot_be_written_costs_the_trace_and_nothing_else(
    make_daemon: Callable[..., Daemon],
) -> None:
    daemon = make_daemon("unwritable")
    traces = daemon.base / "state" / "traces"
    traces.write_bytes(b"")  # a file where the directory should be
    with Supervisor(daemon.address) as client:
        result = client.execute(["true"], trace="full", timeout=scaled(10))
    assert (result.outcome, result.exit_code) == ("exited", 0)
    assert not result.trace.complete and result.trace.dropped > 0
    assert result.trace.syscalls["execve"].calls == 1
    assert any(name.startswith("trace (not stored: ") for name in result.enforcement.missing)


def test_a_damaged_trace_is_told(make_daemon: Callable[..., Daemon]) -> None:
    daemon = make_daemon("damaged")
    with Supervisor(daemon.address) as client:
        result = client.execute(["true"], trace="full", timeout=scaled(10))
        (path,) = (daemon.base / "state" / "traces").glob("*.parquet")
        path.write_bytes(path.read_bytes()[:-100])
        with pytest.raises(errors.SupervisorError, match="cannot be read"):
            list(client.trace(result.run_id))
        path.unlink()
        with pytest.raises(errors.NotFound):
            list(client.trace(result.run_id))


def test_two_daemons_see_their_own_runs_only(daemon: Daemon, make_daemon: Callable[..., Daemon]) -> None:
    other = make_daemon("other")
    with Supervisor(daemon.address) as ours, Supervisor(other.address) as theirs:
        counts = [client.execute(["true"], timeout=scaled(10)).trace.syscalls for client in (ours, theirs)]
        run = LiveRun(daemon, spec("sh", "-c", "echo up; read x"))
        run.read_until(b"up")
        again = [theirs.execute(["true"], timeout=scaled(10)).trace.syscalls for _ in range(3)]
        run.close()
    assert counts[0] == counts[1] and again == [counts[1]] * 3


def test_a_killed_daemon_leaves_no_program_map_or_link(make_daemon: Callable[..., Daemon]) -> None:
    before = bpf_objects()
    daemon = make_daemon("killed")
    during = bpf_objects()
    assert {thing.split()[1] for thing in during - before} >= {"program", "map", "link"}
    assert daemon.process is not None
    daemon.process.kill()
    daemon.process.wait()
    wait_until(lambda: not (during - before) & bpf_objects(), 5, "the kernel has taken them back")
    daemon.start()  # and removes what else was left


def test_files_are_told_by_their_real_paths(supervisor: Supervisor) -> None:
    """What was opened is found through the descriptor, whatever name led to it; what failed, by the name that was given."""
    script = (
        "mkdir d && cd d && ln -s /etc/hostname link && cat link > /dev/null; cat ../../etc/./hostname > /dev/null; "
        "echo x > new; mv new newer; chmod 600 newer; rm newer; cat /root/secret; : > /tmp/t"
    )
    result = supervisor.execute(["sh", "-c", script], trace="full", timeout=scaled(10))
    assert result.exit_code == 0, result.stderr
    events = list(supervisor.trace(result.run_id))

    def of(kind: str) -> set[tuple[str, str, bool]]:
        return {(event.path, event.detail, event.result >= 0) for event in events if event.kind == kind}

    assert ("/etc/hostname", "O_RDONLY", True) in of("open")
    assert not {path for path, _, good in of("open") if good and ("link" in path or ".." in path)}
    assert ("/work/d/new", "O_WRONLY|O_CREAT|O_TRUNC", True) in of("open")
    assert ("/tmp/t", "O_WRONLY|O_CREAT|O_TRUNC", True) in of("open")
    assert ("/root/secret", "O_RDONLY", False) in of("open")
    assert ("d", "", True) in of("mkdir")
    assert ("/etc/hostname", "link", True) in of("link")
    assert ("new", "newer", True) in of("rename")
    assert ("newer", "", True) in of("chmod")
    assert ("newer", "", True) in of("unlink")
    opened = [event for event in events if event.kind == "open" and event.path == "/etc/hostname"]
    assert len(opened) == 2 and {event.syscall for event in opened} == {"openat"}


def test_processes_of_namespaces_within_a_run_have_the_runs_numbers(supervisor: Supervisor) -> None:
    script = "for i in 1 2 3; do unshare -Urpf sh -c 'sleep 0.2; cat /etc/hostname; true' & done; wait"
    result = supervisor.execute(["sh", "-c", script], policy="basic", timeout=scaled(20))
    assert result.exit_code == 0, result.stderr
    processes = result.trace.processes
    assert len({one.pid for one in processes}) == len(processes) == result.trace.process_count
    assert all(one.result == 0 for one in processes)
    assert sorted(one.comm for one in processes) == sorted(["sh", *["unshare", "sh", "sleep", "cat"] * 3])


FOREIGN = """
import ctypes, mmap, os
code = mmap.mmap(-1, 4096, prot=7)
# setpgid(2) by its number of i386, which answers 0 as a fork does in the child: push rbx; mov eax, 57; xor ebx, ebx;
# xor ecx, ecx; int 0x80; pop rbx; ret
code.write(bytes.fromhex("53b83900000031db31c9cd805bc3"))
call = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))
child = os.fork()
if not child:
    print(sum(call() for _ in range(100)), flush=True)
    os._exit(0)
os.waitpid(child, 0)
"""


def test_calls_of_another_abi_are_counted_whatever_they_answer(supervisor: Supervisor) -> None:
    result = supervisor.execute([PYTHON, "-c", FOREIGN], policy="basic", timeout=scaled(20))
    assert result.stdout == b"0\n", result.stderr
    assert result.trace.syscalls["other"].calls == 100 and not result.trace.complete


def test_one_trace_has_its_bound(make_daemon: Callable[..., Daemon], attacks: Path) -> None:
    """What is beyond it is dropped and told; what came first is kept."""
    daemon = make_daemon("bounded", SUPERVISOR_MAX_TRACE_BYTES=str(1 << 20))
    with Supervisor(daemon.address) as client:
        result = client.execute(
            ["/attacks/flood", "4000000", "0"], trace="full", timeout=scaled(60), mounts=[f"{attacks}:/attacks:ro"]
        )
        assert result.exit_code == 0 and result.trace.syscalls["getppid"].calls == 4_000_000
        assert not result.trace.complete and result.trace.dropped > 100_000
        assert any("max_trace_bytes" in name for name in result.enforcement.missing)
        path = daemon.base / "state" / "traces" / f"{result.run_id}.parquet"
        assert path.stat().st_size < 16 << 20
        assert next(iter(client.trace(result.run_id))).kind == "exec"


def test_a_long_run_of_many_processes_keeps_no_record_of_each(supervisor: Supervisor, attacks: Path) -> None:
    """Its records are summed up while it goes on; none is lost, and the first processes are shown."""
    execs = fewer(8_000, 300)
    result = supervisor.execute(
        ["/attacks/flood", "2", str(execs)], timeout=scaled(60), mounts=[f"{attacks}:/attacks:ro"]
    )
    assert result.stdout == b"done\n" and result.trace.complete, result.detail
    assert result.trace.syscalls["execve"].calls == execs + 1
    assert result.trace.process_count == execs + 1 and len(result.trace.processes) == 200
