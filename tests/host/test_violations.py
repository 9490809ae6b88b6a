"""System calls under "kill": their effect is absent, the run is over, and the violation says what it was.

`make violations` prints them as a table.
"""

from __future__ import annotations

import os
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from supervisor.client import Supervisor
from supervisor.model import RunResult
from tests.host.daemon_fixture import fewer, host_processes, scaled

EFFECTS = (
    "unlink", "unlinkat", "mkdir", "mkdirat", "rmdir", "open", "openat", "creat", "rename", "renameat2", "link", "symlink",
    "chmod", "fchmod", "truncate", "ftruncate", "utimensat", "setxattr", "mknod", "write", "pwrite64", "bind", "connect",
    "sendto", "kill",
)  # fmt: skip
"""These do something that is seen in /shared, where nothing forbids them."""
ADMINISTRATION = (
    "mount", "umount2", "ptrace", "bpf", "unshare", "setns", "io_uring_register", "keyctl", "userfaultfd", "perf_event_open",
    "process_vm_writev", "init_module", "kexec_load", "open_by_handle_at", "reboot", "swapon", "acct", "settimeofday",
)  # fmt: skip

POLICY = """
name = "forbidding"
extends = "moderate"
[syscalls]
default = "allow"
errno = []
kill = [{killed}]
"""


@dataclass(frozen=True)
class Shared:
    """The directory that the program works in, as it was made and as it is."""

    path: Path

    @classmethod
    def make(cls, path: Path) -> Shared:
        (path / "file").write_bytes(b"content")
        (path / "file").chmod(0o644)
        (path / "directory").mkdir()
        (path / "counter").write_bytes(bytes(4096))
        return cls(path)

    def look(self) -> dict[str, object]:
        found: dict[str, object] = {}
        for entry in sorted(self.path.iterdir()):
            status = entry.lstat()
            content = entry.read_bytes() if entry.name == "file" else b""
            found[entry.name] = (
                oct(status.st_mode),
                status.st_nlink,
                content,
                entry.name == "file" and status.st_mtime,
            )
        found["attributes"] = sorted(os.listxattr(self.path / "file")) if "file" in found else []
        return found

    @property
    def counter(self) -> int:
        return int.from_bytes((self.path / "counter").read_bytes()[:4], sys.byteorder)


def attempt(supervisor: Supervisor, attacks: Path, shared: Shared, name: str, killed: tuple[str, ...]) -> RunResult:
    return supervisor.execute(
        ["/attacks/forbidden", name],
        policy=POLICY.format(killed=", ".join(f'"{call}"' for call in killed)),
        mounts=[f"{attacks}:/attacks:ro", f"{shared.path}:/shared:rw"],
        timeout=scaled(10),
    )


@pytest.mark.parametrize("name", EFFECTS)
def test_it_has_an_effect_where_nothing_forbids_it(
    supervisor: Supervisor, attacks: Path, scratch: Callable[..., Path], name: str
) -> None:
    """Else its absence would prove nothing."""
    shared = Shared.make(scratch("shared"))
    before = shared.look()
    result = attempt(supervisor, attacks, shared, name, ())
    assert result.exit_code == 0, (result.detail, result.stdout, result.stderr)
    assert shared.look() != before and shared.counter == 2


@pytest.mark.parametrize("name", [*EFFECTS, *ADMINISTRATION])
def test_under_kill_it_has_none(supervisor: Supervisor, attacks: Path, scratch: Callable[..., Path], name: str) -> None:
    shared = Shared.make(scratch("shared"))
    before = shared.look()
    begun = time.time()
    result = attempt(supervisor, attacks, shared, name, (name,))
    assert shared.look() == before
    # The thread has not executed one instruction after the call.
    assert shared.counter == 1 and result.stdout == b""
    assert result.outcome == "violation", result.detail
    (violation,) = result.violations
    assert (violation.rule, violation.kind, violation.action) == (f"syscalls.{name}", "syscall", "kill")
    assert (violation.syscall, violation.abi, violation.comm) == (name, "x86_64", "forbidden")
    assert violation.exe == "/attacks/forbidden"
    assert len(violation.args) == 6 and violation.pid > 1
    assert begun - 1 < violation.time < time.time() + 1
    assert supervisor.runs(limit=1)[0].violations == result.violations


def test_the_whole_tree_is_gone_with_it(supervisor: Supervisor, attacks: Path, scratch: Callable[..., Path]) -> None:
    """Two hundred processes, half of them with a session of their own; none is left when the result is there."""
    token = f"violation-{uuid.uuid4().hex}"
    shared = Shared.make(scratch("shared"))
    half = fewer(100, 10)
    script = (
        f"for i in $(seq {half}); do sh -c ': {token}; sleep 1000; :' & setsid sh -c ': {token}; sleep 1000; :' & done; "
        f"until [ $(echo /proc/[0-9]* | wc -w) -gt {4 * half} ]; do sleep 0.05; done; exec /attacks/forbidden mount"
    )
    result = supervisor.execute(
        ["bash", "-c", script],
        policy=POLICY.format(killed='"mount"'),
        mounts=[f"{attacks}:/attacks:ro", f"{shared.path}:/shared:rw"],
        pids=512,
        timeout=scaled(30),
    )
    assert not host_processes(token)
    assert result.outcome == "violation" and shared.counter == 1, (result.detail, result.stderr)
    assert result.usage.pids_peak is None or result.usage.pids_peak > 4 * half
    assert result.trace.process_count > 4 * half
