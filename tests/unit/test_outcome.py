"""Every end of a run has one outcome, and each cause its own."""

from __future__ import annotations

import errno
import signal

import pytest

from supervisor.backends.base import SandboxEnd
from supervisor.errors import HostLacks, InvalidRequest, LaunchFailed
from supervisor.model import Limits, Outcome, Usage, Violation
from supervisor.outcome import judge

LIMITS = Limits(wall_seconds=2, cpu_seconds=1, memory=64 << 20, output=100)
EVIDENCE = Violation("syscalls.unshare", "syscall", "high", "kill", 1.0, syscall="unshare", abi="x86_64")


def end(status: int | None = None, **fields: object) -> SandboxEnd:
    return SandboxEnd(status=status, usage=fields.pop("usage", Usage()), **fields)  # type: ignore[arg-type]


def outcome(seen: SandboxEnd, stopped: Outcome | None = None) -> tuple[Outcome, int | None, int | None]:
    verdict = judge(seen, LIMITS, stopped, b"program")
    return verdict.outcome, verdict.exit_code, verdict.signal


@pytest.mark.parametrize("code", [0, 1, 124, 255])
def test_exit_codes(code: int) -> None:
    assert outcome(end(code << 8)) == (Outcome.EXITED, code, None)


@pytest.mark.parametrize("number", [1, 9, 11, 15, 64])
def test_signals(number: int) -> None:
    assert outcome(end(number)) == (Outcome.SIGNALED, None, number)


def test_memory() -> None:
    killed = Usage(oom_kills=1)
    assert outcome(end(9, usage=killed))[0] is Outcome.OUT_OF_MEMORY
    assert outcome(end(None, usage=killed))[0] is Outcome.OUT_OF_MEMORY
    assert outcome(end(0, usage=killed)) == (Outcome.EXITED, 0, None), "a child was killed, the program went on"
    verdict = judge(end(9, usage=killed), LIMITS, None, b"x")
    assert verdict.detail == "killed: out of memory at 64 MiB, limit 64 MiB"


@pytest.mark.parametrize("cause", [Outcome.TIMED_OUT, Outcome.CPU_LIMIT, Outcome.CANCELLED])
def test_what_the_daemon_ended(cause: Outcome) -> None:
    assert outcome(end(None), cause) == (cause, None, signal.SIGKILL)
    assert outcome(end(3 << 8), cause) == (Outcome.EXITED, 3, None), "it had ended by itself before the kill came"


def test_output_counts_even_when_the_program_was_faster() -> None:
    assert outcome(end(0), Outcome.OUTPUT_LIMIT) == (Outcome.OUTPUT_LIMIT, 0, None)
    assert outcome(end(None), Outcome.OUTPUT_LIMIT) == (Outcome.OUTPUT_LIMIT, None, signal.SIGKILL)


def test_violation_needs_evidence() -> None:
    assert outcome(end(None, violations=(EVIDENCE,)))[0] is Outcome.VIOLATION
    assert outcome(end(signal.SIGSYS))[0] is Outcome.SIGNALED, "a program may send itself SIGSYS"
    assert outcome(end(signal.SIGSYS, filter_kills=True))[0] is Outcome.VIOLATION


def test_cpu_rlimit_is_the_cpu_limit() -> None:
    assert (
        outcome(end(signal.SIGXCPU, usage=Usage(cpu_user_seconds=1.5, cpu_system_seconds=1.0)))[0] is Outcome.CPU_LIMIT
    )
    assert outcome(end(signal.SIGXCPU))[0] is Outcome.SIGNALED, "a program may send itself SIGXCPU"


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EACCES, errno.ENOEXEC, errno.E2BIG])
def test_not_started(number: int) -> None:
    verdict = judge(end(None, stage="exec", errno=number), LIMITS, None, b"prog\xff")
    assert verdict.outcome is Outcome.NOT_STARTED
    assert verdict.error is not None and (verdict.error.stage, verdict.error.errno) == ("exec", number)
    assert "prog\ufffd" in verdict.error.message


def test_a_working_directory_that_cannot_be_entered_is_named() -> None:
    verdict = judge(end(None, stage="cwd", errno=errno.ENOENT, about="/work/no\x1bwhere"), LIMITS, None, b"true")
    assert verdict.outcome is Outcome.NOT_STARTED
    assert verdict.detail == "cannot enter the working directory /work/no\ufffdwhere: No such file or directory"


def test_set_up_errors() -> None:
    with pytest.raises(LaunchFailed, match="at pivot: Operation not permitted") as caught:
        outcome(end(None, stage="pivot", errno=errno.EPERM))
    assert caught.value.metadata["errno"] == "EPERM"
    with pytest.raises(InvalidRequest) as refused:
        outcome(end(None, stage="mount", errno=errno.EROFS, about="step 3 of 9, mkdir /usr/x", mount=1))
    assert refused.value.field == "mounts[1].target"
    with pytest.raises(HostLacks) as lacking:
        outcome(end(None, stage="idmap", errno=errno.EINVAL, mount=0))
    assert lacking.value.metadata["feature"] == "idmapped_mounts"


def test_no_memory_for_the_set_up_is_the_memory_limit() -> None:
    seen = end(None, stage="mount", errno=errno.ENOMEM, usage=Usage(memory_limit_hits=3))
    assert outcome(seen)[0] is Outcome.OUT_OF_MEMORY


def test_killed_from_outside() -> None:
    assert outcome(end(None)) == (Outcome.SIGNALED, None, signal.SIGKILL)
