"""The reducer: what is known about the end of a run becomes its one outcome. Pure."""

from __future__ import annotations

import errno
import math
import os
import signal
from dataclasses import dataclass

from supervisor.backends.base import SandboxEnd
from supervisor.errors import Exhausted, HostLacks, InvalidRequest, LaunchFailed, SupervisorError
from supervisor.linux.signals import signal_name
from supervisor.model import Limits, Outcome, StartError, Violation


@dataclass(frozen=True, slots=True)
class Verdict:
    """How the run ended: see RunResult for each field. `cause` is why in one line, for people."""

    outcome: Outcome
    detail: str
    exit_code: int | None = None
    signal: int | None = None
    error: StartError | None = None


def _violated(first: Violation, end: SandboxEnd) -> Verdict:
    if end.status is not None and os.WIFEXITED(end.status):
        # It was over before the rule's word came.
        code = os.WEXITSTATUS(end.status)
        return Verdict(Outcome.VIOLATION, f"{_words(first)}; it had already exited with {code}", exit_code=code)
    return Verdict(Outcome.VIOLATION, f"killed: {_words(first)}", signal=signal.SIGKILL)


def _words(violation: Violation) -> str:
    if violation.syscall and violation.kind == "syscall":
        return f"{violation.syscall} ({violation.abi}) is forbidden by rule {violation.rule}"
    if violation.kind == "syscall":
        return "a forbidden system call, withdrawn before it could be looked at"
    about = violation.path or (f"{violation.address} port {violation.port}" if violation.address else violation.syscall)
    return f"rule {violation.rule}: {violation.kind}{f' of {_shown(about)}' if about else ''}"


_ENOTSUPP = 524  # the kernel's own, without a name in user space

PROGRAM_STAGES = frozenset({"exec", "cwd"})
"""Set-up steps that fail by what the program is, not by what we are: a result, not an error."""


def judge(end: SandboxEnd, limits: Limits, stopped: Outcome | None, program: bytes, reason: str = "") -> Verdict:
    """The verdict on a run. `stopped` is the cause for which the daemon itself ended the run, if it did; `reason` its words.

    Raises LaunchFailed, HostLacks or InvalidRequest where not the program but its set-up failed.
    """
    killing = [violation for violation in end.violations if violation.action == "kill"]
    if killing:
        return _violated(killing[0], end)
    if stopped is Outcome.OUTPUT_LIMIT:
        return _stopped(end, stopped, limits, reason)
    if end.stage in PROGRAM_STAGES:
        message = _start_message(end, program)
        return Verdict(Outcome.NOT_STARTED, message, error=StartError(end.stage, end.errno, message))
    if end.status is not None:
        return _by_itself(end, end.status, limits)
    if stopped is not None:
        return _stopped(end, stopped, limits, reason)
    if end.usage.oom_kills:
        return _out_of_memory(limits)
    if end.stage:
        if end.errno == errno.ENOMEM and end.usage.memory_limit_hits:
            return _out_of_memory(limits)
        if end.stage == "seccomp" and end.errno == _ENOTSUPP:
            raise Exhausted(
                "no room for the run's seccomp filter: the host's net.core.bpf_jit_limit is used up",
                reason="BPF_JIT_LIMIT",
                metadata={"remedy": "raise net.core.bpf_jit_limit, or see who attaches so many filters"},
                retry_seconds=1.0,
            )
        raise set_up_error(end)
    return Verdict(Outcome.SIGNALED, "killed from outside, with its whole sandbox", signal=signal.SIGKILL)


def set_up_error(end: SandboxEnd) -> SupervisorError:
    """The error for a set-up step that failed: the step, what it was about, what the host said."""
    said = os.strerror(end.errno) if end.errno else "the launcher gave no reason"
    about = f" ({end.about})" if end.about else ""
    metadata = {"stage": end.stage, "errno": errno.errorcode.get(end.errno, str(end.errno)), "about": end.about}
    where = f"mounts[{end.mount}]" if end.mount is not None else ""
    if end.stage == "idmap":
        return HostLacks(
            f"cannot mount writable{about}: its file system takes no idmapped mounts. "
            "Mount it read-only, or copy with files and collect",
            field=f"{where}.source" if where else "",
            metadata={**metadata, "feature": "idmapped_mounts", "remedy": "mount read-only, or use files and collect"},
        )
    if end.stage == "mount" and where:
        return InvalidRequest(
            f"{where}.target: cannot mount there{about}: {said}", field=f"{where}.target", metadata=metadata
        )
    if end.stage == "mount" and end.errno in (errno.ENOSPC, errno.ENOMEM):
        return InvalidRequest(f"the limits leave no room for the run's own root{about}: {said}", field="limits")
    return LaunchFailed(f"sandbox set-up failed at {end.stage}{about}: {said}", metadata=metadata)


def _by_itself(end: SandboxEnd, status: int, limits: Limits) -> Verdict:
    if os.WIFEXITED(status):
        code = os.WEXITSTATUS(status)
        return Verdict(Outcome.EXITED, f"exited with {code}", exit_code=code)
    number = os.WTERMSIG(status)
    if number == signal.SIGKILL and end.usage.oom_kills:
        return _out_of_memory(limits)
    if number == signal.SIGSYS and end.filter_kills:
        return Verdict(Outcome.VIOLATION, "killed: a forbidden system call", signal=number)
    if number == signal.SIGXCPU and _cpu_used(end) >= (limits.cpu_seconds or math.inf):
        return Verdict(Outcome.CPU_LIMIT, f"killed: CPU time limit of {limits.cpu_seconds or 0:g} s", signal=number)
    return Verdict(Outcome.SIGNALED, f"killed by signal {number} ({signal_name(number)})", signal=number)


def _cpu_used(end: SandboxEnd) -> float:
    return (end.usage.cpu_user_seconds or 0) + (end.usage.cpu_system_seconds or 0)


def _out_of_memory(limits: Limits) -> Verdict:
    limit = "" if limits.memory is None else f" at {_mib(limits.memory)}, limit {_mib(limits.memory)}"
    return Verdict(Outcome.OUT_OF_MEMORY, f"killed: out of memory{limit}", signal=signal.SIGKILL)


def _stopped(end: SandboxEnd, stopped: Outcome, limits: Limits, reason: str) -> Verdict:
    if stopped is Outcome.TIMED_OUT:
        detail = f"killed: wall clock limit of {limits.wall_seconds:g} s"
    elif stopped is Outcome.CPU_LIMIT:
        detail = f"killed: CPU time limit of {limits.cpu_seconds:g} s"
    elif stopped is Outcome.OUTPUT_LIMIT:
        detail = f"killed: more than {limits.output} bytes of output on one stream"
    else:
        detail = f"killed: {reason or 'cancelled'}"
    if stopped is Outcome.OUTPUT_LIMIT and end.status is not None and os.WIFEXITED(end.status):
        # It was over before the kill came; its output is cut all the same.
        return Verdict(stopped, detail, exit_code=os.WEXITSTATUS(end.status))
    return Verdict(stopped, detail, signal=signal.SIGKILL)


def _start_message(end: SandboxEnd, program: bytes) -> str:
    if end.stage == "cwd":
        directory = f" {_shown(end.about)}" if end.about else ""
        return f"cannot enter the working directory{directory}: {os.strerror(end.errno)}"
    name = _shown(program.decode("utf-8", "replace"))
    hints = {
        errno.ENOENT: "no such program in the run (or its interpreter is missing)",
        errno.EACCES: "not executable: a directory, no execute permission, or a noexec place",
        errno.ENOEXEC: "not a program this kernel can execute (wrong format, or a script without #!)",
        errno.E2BIG: "arguments and environment are too large for the kernel",
        errno.ENOMEM: "not enough memory to start it",
    }
    hint = hints.get(end.errno)
    return f"cannot execute {name}: {os.strerror(end.errno)}" + (f"; {hint}" if hint else "")


def _shown(text: str) -> str:
    return "".join(c if c.isprintable() else "\ufffd" for c in text[:200])


def _mib(size: int) -> str:
    return f"{size / (1 << 20):.4g} MiB"
