"""What is measured: one way to run `true` each, from the caller's decision to the known exit status."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from supervisor.client import Supervisor
from supervisor.errors import SupervisorError
from supervisor.model import Outcome
from tests.bench.own import BenchError, last_line

POLICIES = ("strict", "moderate", "paranoid")
PEERS = ("bwrap", "firejail", "docker")
SPAWN, BWRAP = "posix_spawn", "bwrap"

GUEST_DIR = "/bench"
_TRIAL_SECONDS = 60
_TRIALS = 4
_NULL = [(os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_RDWR, 0) for number in range(3)]
_ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/root", "LANG": "C.UTF-8"}
_SEARCH = "/usr/bin:/usr/sbin:/bin:/sbin:" + os.environ.get("PATH", "")


@dataclass(frozen=True, slots=True)
class Subject:
    """`once` runs the program to its end and returns whether it went well; `trial` raises BenchError with the reason."""

    name: str
    program: str
    isolation: str
    once: Callable[[], bool]
    trial: Callable[[], None]


def spawn(argv: list[str], environment: Mapping[str, str]) -> bool:
    """posix_spawn(3) and waitpid(2), standard streams on /dev/null; True for exit status 0."""
    pid = os.posix_spawn(argv[0], argv, environment, file_actions=_NULL)
    try:
        return os.waitpid(pid, 0)[1] == 0
    except BaseException:
        os.waitpid(pid, 0)
        raise


def command(
    name: str, program: str, isolation: str, argv: list[str], environment: Mapping[str, str] = _ENVIRONMENT
) -> Subject:
    """A subject that is one process of the host."""

    def trial() -> None:
        try:
            done = subprocess.run(
                argv, env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=_TRIAL_SECONDS
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise BenchError(str(error)) from None
        if done.returncode:
            raise BenchError(f"exit status {done.returncode}: {last_line(done.stderr or done.stdout)}")

    return Subject(name, program, isolation, lambda: spawn(argv, environment), trial)


def supervised(
    supervisor: Supervisor, policy: str, program: str, argv: Sequence[str], mounts: Sequence[str]
) -> Subject:
    """`Execute` of the SDK, over the daemon's Unix socket, with the result in hand at the end."""

    def trial() -> None:
        try:
            result = supervisor.execute(argv, policy=policy, mounts=mounts)
        except SupervisorError as error:
            raise BenchError(str(error)) from None
        if not (result.outcome is Outcome.EXITED and result.exit_code == 0):
            raise BenchError(f"{result.outcome.value}: {result.detail or result.exit_code}")

    def once() -> bool:
        try:
            result = supervisor.execute(argv, policy=policy, mounts=mounts)
        except SupervisorError:
            return False
        return result.outcome is Outcome.EXITED and result.exit_code == 0

    return Subject(
        f"Supervisor {policy}", program, _supervisor_isolation(supervisor, policy, argv, mounts), once, trial
    )


def _supervisor_isolation(supervisor: Supervisor, policy: str, argv: Sequence[str], mounts: Sequence[str]) -> str:
    """As a run's own result has it."""
    try:
        enforced = supervisor.execute(argv, policy=policy, mounts=mounts).enforcement
    except SupervisorError:
        return ""
    parts = [
        f"{len(enforced.namespaces)} namespaces",
        "limits",
        f"seccomp {enforced.seccomp}" if enforced.seccomp else "",
    ]
    parts.append("Landlock" if enforced.landlock else "")
    return ", ".join(filter(None, parts))


def find_program(name: str, package: str) -> str:
    """The absolute path of a peer's program, the distribution's own first. Raises BenchError."""
    path = shutil.which(name, path=_SEARCH)
    if path is None:
        raise BenchError(f"{name} is not installed: apt-get install {package}")
    return path


def bwrap_argv(directory: Path, program: str) -> list[str]:
    """All namespaces, a root of /usr and our directory, read-only; bwrap has no limits, and a filter only if given one."""
    argv = [find_program("bwrap", "bubblewrap"), "--unshare-all", "--die-with-parent", "--new-session", "--clearenv"]
    argv += ["--cap-drop", "ALL", "--ro-bind", "/usr", "/usr"]
    for name in ("/bin", "/lib", "/lib64"):
        if os.path.islink(name):
            argv += ["--symlink", os.readlink(name), name]
        elif os.path.isdir(name):
            argv += ["--ro-bind", name, name]
    argv += ["--ro-bind", str(directory), GUEST_DIR, "--proc", "/proc", "--dev", "/dev"]
    return [*argv, "--tmpfs", "/tmp", "--tmpfs", "/work", "--chdir", "/work", program]


def firejail_argv(home: Path, static: Path) -> list[str]:
    """firejail shows `home` (it writes to it) as the user's own; so that is where the program is."""
    home.mkdir(mode=0o700)
    shutil.copy(static, home / "true")
    argv = [find_program("firejail", "firejail"), "--quiet", "--noprofile", "--net=none", "--ipc-namespace"]
    argv += [f"--private={home}", "--private-dev", "--private-tmp", "--caps.drop=all", "--seccomp", "--nonewprivs"]
    return [*argv, "--", os.path.expanduser("~root/true")]


def cost_seconds(subject: Subject) -> float:
    """What one run takes at best, after one that fills the caches. Raises BenchError when it cannot run at all."""
    subject.trial()
    costs = []
    for _ in range(_TRIALS):
        before = time.perf_counter()
        subject.once()
        costs.append(time.perf_counter() - before)
    return min(costs)
