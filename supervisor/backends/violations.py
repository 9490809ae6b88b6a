"""What a run tried and policy forbids, out of what init and the probes have seen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from supervisor.launcher.protocol import Reply
from supervisor.linux.seccomp import decode_syscall
from supervisor.model import Violation
from supervisor.policy import Rule
from supervisor.probes.recorder import Tracing


def forbidden_calls(reply: Reply, tracing: Tracing | None, rules: Sequence[Rule]) -> Iterator[Violation]:
    """System calls that seccomp handed to the run's init, which ended the run for them. A rule may stand behind one."""
    for seen in reply.violations:
        # -1: its caller was gone before it could be looked at.
        name, abi = decode_syscall(seen.number, seen.arch) if seen.number >= 0 else ("unknown", "")
        rule = next((one for one in rules if one.action == "kill" and name in one.match.get("syscall", ())), None)
        pid, exe = tracing.processes.owner(seen.pid) if tracing is not None else (0, "")
        yield Violation(
            rule=rule.name if rule else f"syscalls.{name}",
            kind="syscall",
            severity=rule.severity if rule else "high",
            action="kill",
            time=seen.time,
            syscall=name,
            abi=abi,
            args=seen.args,
            pid=pid or seen.pid,
            tid=seen.pid,
            comm=seen.comm,
            exe=exe,
        )
