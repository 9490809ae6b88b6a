"""What the benchmark makes for itself and takes away again: a mount namespace, a scratch directory, the programs, a daemon."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from supervisor.client import Supervisor
from supervisor.errors import SupervisorError

_START_SECONDS = 60.0
_STOP_SECONDS = 40.0

# unshare(2), mount(2)
_CLONE_NEWNS = 0x00020000
_MS_REC, _MS_PRIVATE = 1 << 14, 1 << 18

# Peers keep state in these: firejail leaves bind mounts below /run, dockerd a key in /etc/docker.
_COVERED = ("/run", "/etc/docker")

_SERVE = "from supervisor.daemon import serve; raise SystemExit(serve())"
_TRUE = "int main(void)\n{\n\treturn 0;\n}\n"


class BenchError(Exception):
    """The benchmark cannot go on, or a part of it cannot; the message is for people."""


def enter_private_mounts() -> None:
    """Moves this process and what it starts to a mount namespace of its own, with an empty /run.

    What peers mount or write there is gone with the last process, however it ends. Raises BenchError.
    """
    libc = ctypes.CDLL(None, use_errno=True)

    def check(what: str, status: int) -> None:
        if status:
            raise BenchError(f"{what}: {os.strerror(ctypes.get_errno())}; the benchmark needs root")

    check("unshare", libc.unshare(_CLONE_NEWNS))
    check("mount --make-rprivate /", libc.mount(None, b"/", None, ctypes.c_ulong(_MS_REC | _MS_PRIVATE), None))
    for path in _COVERED:
        if os.path.isdir(path):
            check(
                f"mount tmpfs on {path}", libc.mount(b"tmpfs", path.encode(), b"tmpfs", ctypes.c_ulong(0), b"mode=755")
            )


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A directory of our own; says so when something of it cannot be removed."""
    directory = tempfile.TemporaryDirectory(prefix="supervisor-bench-", ignore_cleanup_errors=True)
    try:
        yield Path(directory.name)
    finally:
        directory.cleanup()
        if os.path.exists(directory.name):
            sys.stderr.write(f"bench: left behind: {directory.name}\n")


def compile_true(directory: Path) -> Path:
    """A statically linked program that returns 0, in `directory`. Raises BenchError."""
    directory.mkdir(mode=0o755)
    program = directory / "true"
    try:
        subprocess.run(
            ["gcc", "-O2", "-static", "-x", "c", "-o", program, "-"],
            input=_TRUE.encode(),
            check=True,
            capture_output=True,
        )
    except FileNotFoundError:
        raise BenchError("gcc is not installed: apt-get install gcc libc6-dev") from None
    except subprocess.CalledProcessError as error:
        raise BenchError(f"gcc: {last_line(error.stderr)}") from None
    return program


def last_line(output: bytes) -> str:
    lines = output.decode(errors="replace").strip().splitlines()
    return lines[-1].strip()[-300:] if lines else "no message"


@contextlib.contextmanager
def daemon(base: Path) -> Iterator[str]:
    """A daemon with all its files below `base`; yields its address once it answers. It ends with us, however we end.

    Raises BenchError.
    """
    runtime, log_path = base / "run", base / "daemon.log"
    address = f"unix://{runtime}/supervisor.sock"
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("SUPERVISOR_")}
    base.mkdir(mode=0o700)
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "TERM", sys.executable, "-c", _SERVE],
            env={**inherited, "SUPERVISOR_STATE_DIR": f"{base}/state", "SUPERVISOR_RUNTIME_DIR": str(runtime)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + _START_SECONDS
        while not _answers(address):
            if process.poll() is not None or time.monotonic() > deadline:
                raise BenchError(f"the daemon did not start: {last_line(log_path.read_bytes())}")
            time.sleep(0.05)
        yield address
    finally:
        stop(process, "the daemon", _STOP_SECONDS)


def _answers(address: str) -> bool:
    with contextlib.suppress(SupervisorError), Supervisor(address) as supervisor:
        supervisor.host()
        return True
    return False


def stop(process: subprocess.Popen[bytes], what: str, seconds: float, pids: Sequence[int] = ()) -> None:
    """SIGTERM to the process (or to `pids` in its place), then SIGKILL if it has not ended in time."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        for pid in pids or (process.pid,):
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
        try:
            process.wait(timeout=seconds)
            return
        except subprocess.TimeoutExpired:
            sys.stderr.write(f"bench: {what} has not ended after {seconds:.0f} s\n")
