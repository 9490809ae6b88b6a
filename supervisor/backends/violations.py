"""What a run tried and policy forbids, out of what init and the probes have seen."""

from __future__ import annotations

from collections.abc import Iterator

from supervisor.launcher.protocol import Reply
from supervisor.linux.seccomp import decode_syscall
from supervisor.model import Violation
from supervisor.probes.recorder import Tracing


def forbidden_calls(reply: Reply, tracing: Tracing | None) -> Iterator[Violation]:
    """System calls that seccomp handed to the run's init, which ended the run for them."""
    for seen in reply.violations:
        # -1: its caller was gone before it could be looked at.
        name, abi = decode_syscall(seen.number, seen.arch) if seen.number >= 0 else ("unknown", "")
        pid, exe = tracing.processes.owner(seen.pid) if tracing is not None else (0, "")
        yield Violation(
            rule=f"syscalls.{name}",
            kind="syscall",
            severity="high",
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


def denied_addresses(tracing: Tracing | None) -> Iterator[Violation]:
    """Addresses that the run was not let reach, each once."""
    if tracing is None:
        return
    for one in tracing.contacts.denied():
        yield Violation(
            rule="network",
            kind=one.operation,
            severity="medium",
            action="deny",
            time=tracing.wall_time(one.time_ns),
            pid=one.pid,
            tid=one.tid,
            exe=tracing.processes.owner(one.tid)[1],
            address=one.address,
            port=one.port,
        )
