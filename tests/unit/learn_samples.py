"""What a policy is learnt from in tests: hand-made traces, their summaries, and policies that runs had."""

from __future__ import annotations

from trace_samples import AT_FDCWD, call, execute, file

from supervisor.model import SyscallCount, TraceSummary, Usage
from supervisor.policy_file import PolicySet
from supervisor.policy_learn import learn
from supervisor.policy_seen import Observed
from supervisor.shipped import shipped_policy_dir

SET = PolicySet(shipped_policy_dir())
STRICT = SET.get("strict")
USAGE = Usage(wall_seconds=3.2, cpu_user_seconds=1.0, cpu_system_seconds=0.4, memory_peak_bytes=33 << 20, pids_peak=3)


def summary_of(events, level="full", dropped=0, **counts: int) -> TraceSummary:
    calls: dict[str, list[int]] = {}
    for one in events:
        if one.kind == "syscall":
            count = calls.setdefault(one.syscall, [0, 0])
            count[0] += 1
            count[1] += one.result < 0
    calls |= {name: [number, 0] for name, number in counts.items()}
    found = {name: SyscallCount(*count) for name, count in calls.items()}
    return TraceSummary(level, not dropped, len(events), dropped, found)


def observed(*events, base=STRICT, host_network=False, **settings) -> Observed:
    found = Observed(base)
    found.add(summary_of(events, **settings), events, host_network=host_network)
    return found


def learnt(*events, base=STRICT, usages=(USAGE,), **settings):
    return learn(base, observed(*events, base=base, **settings), usages, "learnt")


def opened(pid: int, path: str, flags: str = "O_RDONLY", fd: int = 3, at: float = 0.0):
    return [
        call(at, pid, "openat", AT_FDCWD, 1, 0, 0, result=fd),
        file(at, pid, "open", "openat", path, result=fd, detail=flags),
    ]


SOME = [*execute(0, 2, "python3"), call(1, 2, "read"), *opened(2, "/work/x", "O_WRONLY"), call(2, 2, "socket", 16, 3, 0, result=-97)]  # fmt: skip
