"""A real daemon as a subprocess, and the witnesses that host tests set beside a run: a prober and a neighbour."""

from __future__ import annotations

import hashlib
import json
import os
import queue
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from supervisor.v1 import policy_pb2_grpc, run_pb2, run_pb2_grpc

TIME_FACTOR = float(os.environ.get("SUPERVISOR_TIME_FACTOR", "1"))
"""How much slower than an ordinary machine this one is; every limit of time in these tests is multiplied by it."""

SLOW_MACHINE = TIME_FACTOR > 1
LONGEST_RUN = 3600.0
"""The longest wall clock that `strict` allows."""

RUN_UIDS = range(0x30000000 + (os.getpid() % 4096 << 16), 0x30000000 + (os.getpid() % 4096 + 1 << 16))
"""Host uids of this session's runs, so that a supervisor in use on the same machine does not disturb the counting."""

COMMAND = Path(os.environ.get("SUPERVISOR_COMMAND") or Path(sys.executable).parent / "supervisor")
MIB = 1024 * 1024

Argument = str | bytes

# The generated stubs carry no types.
RunStub: Any = run_pb2_grpc.RunServiceStub
PolicyStub: Any = policy_pb2_grpc.PolicyServiceStub


def scaled(seconds: float) -> float:
    return seconds * TIME_FACTOR


def fewer(count: int, least: int = 1) -> int:
    """`count` here, about a twentieth of it in a slow machine."""
    return max(least, int(count / TIME_FACTOR))


def wait_until(true: Callable[[], object], seconds: float, what: str) -> None:
    """Polls `true` for at most `seconds` (scaled), else raises AssertionError naming `what`."""
    deadline = time.monotonic() + scaled(seconds)
    while not true():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {scaled(seconds)} s: {what}")
        time.sleep(0.02)


def to_bytes(value: Argument) -> bytes:
    return value.encode() if isinstance(value, str) else value


def spec(*argv: Argument, policy: str = "strict", wall_seconds: float = 30, **fields: Any) -> run_pb2.RunSpec:
    """A request as the wire has it; `fields` are those of RunSpec."""
    message = run_pb2.RunSpec(argv=[to_bytes(a) for a in argv], policy=policy, **fields)
    if not message.limits.HasField("wall_seconds"):
        message.limits.wall_seconds = min(scaled(wall_seconds), LONGEST_RUN)
    return message


def host_processes(token: str) -> list[int]:
    """Host pids whose arguments or environment contain `token` (kernel view, so nothing inside can hide them)."""
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        for part in ("cmdline", "environ"):
            try:
                if token.encode() in Path("/proc", entry, part).read_bytes():
                    found.append(int(entry))
                    break
            except OSError:
                continue
    return found


def process_status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def is_gone(pid: int) -> bool:
    try:
        return process_status(pid)["State"].startswith(("Z", "X"))
    except (OSError, KeyError):
        return True


class Daemon:
    """`supervisor serve` on a Unix socket below `base`, with its own state and runtime directories there."""

    def __init__(self, base: Path, environment: dict[str, str] | None = None) -> None:
        self.base = base
        self.address = f"unix://{base}/s.sock"
        self.log = base / "daemon.log"
        self.state = base / "state"
        self.runtime = base / "runtime"
        self._environment = environment or {}
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def instance(self) -> str:
        """The name that the daemon gives itself, from its state directory: that of its cgroups."""
        return "d-" + hashlib.sha256(os.path.realpath(self.state).encode()).hexdigest()[:12]

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def environment(self) -> dict[str, str]:
        own = {
            "SUPERVISOR_STATE_DIR": str(self.state),
            "SUPERVISOR_RUNTIME_DIR": str(self.runtime),
            "SUPERVISOR_RUN_UID_BASE": str(RUN_UIDS.start),
            "SUPERVISOR_RUN_UID_COUNT": str(len(RUN_UIDS)),
        }
        return {**os.environ, "DAEMON_SECRET": "must not be inherited", **own, **self._environment}

    def start(self) -> None:
        """Starts it and waits until health says SERVING."""
        for directory in (self.state, self.runtime):
            directory.mkdir(mode=0o700, exist_ok=True)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [COMMAND, "serve", "--listen", self.address],
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                extra_groups=[0, 4],  # as a login has some: no run inherits them
            )
        try:
            wait_until(self.is_serving, 60, "health SERVING")
        except AssertionError:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"the daemon does not serve; its log ends:\n{self.log_tail()}") from None

    def is_serving(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            raise AssertionError(f"the daemon ended with {self.process.returncode}")
        try:
            with grpc.insecure_channel(self.address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
                answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=scaled(2))
        except grpc.RpcError:
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    def stop(self) -> int:
        """SIGTERM, then its exit status."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=scaled(30))

    def kill(self) -> None:
        """SIGKILL to the daemon alone, as the kernel's OOM killer would."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(timeout=scaled(30))

    def rss_bytes(self) -> int:
        return int(process_status(self.pid)["VmRSS"].split()[0]) * 1024

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def log_tail(self, lines: int = 40) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def channel(self) -> grpc.Channel:
        """A connection of its own, so that tests do not queue behind one another's."""
        options = [
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.max_receive_message_length", -1),
            ("grpc.max_send_message_length", -1),
        ]
        return grpc.insecure_channel(self.address, options=options)


class Prober:
    """prober.py beside a test: every answer so far must have come within one second (scaled), on leaving and on `check`."""

    _processes: ClassVar[dict[str, subprocess.Popen[bytes]]] = {}

    def __init__(self, daemon: Daemon) -> None:
        self._address = daemon.address

    def __enter__(self) -> Prober:
        process = self._processes.get(self._address)
        if process is None or process.poll() is not None:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.host.prober", self._address, str(scaled(5))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                cwd=Path(__file__).parents[2],
            )
            self._processes[self._address] = process
        self._process = process
        self._ask("go")
        wait_until(lambda: self._ask("ask")["answers"], 20, "the prober's first answer")
        return self

    @classmethod
    def end_all(cls) -> None:
        for process in cls._processes.values():
            process.communicate()
        cls._processes.clear()

    def _ask(self, word: str) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f"{word}\n".encode())
        self._process.stdin.flush()
        found: dict[str, Any] = json.loads(self._process.stdout.readline())
        return found

    def check(self) -> None:
        found = self._ask("ask")
        assert not found["failures"], f"the daemon did not answer: {found['failures']}"
        assert found["slowest"] < scaled(1), f"the daemon answered only after {found['slowest']:.2f} s"

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.check()
        finally:
            self._ask("stop")


class LiveRun:
    """One RunService.Run stream driven step by step; every event is kept in `events`.

    `open_ones` holds those that nobody has finished or closed, for the fixture that clears up after a failed test.
    """

    open_ones: ClassVar[set[LiveRun]] = set()

    def __init__(self, daemon: Daemon, request: run_pb2.RunSpec, stdin_follows: bool = True) -> None:
        self._requests: queue.Queue[run_pb2.RunRequest | None] = queue.Queue()
        self._requests.put(run_pb2.RunRequest(start=run_pb2.StartRun(spec=request, stdin_follows=stdin_follows)))
        self._daemon = daemon
        self._channel = daemon.channel()
        self.call = RunStub(self._channel).Run(iter(self._requests.get, None))
        self.stdout = b""
        self.stderr = b""
        self.run_id = ""
        self.events: list[run_pb2.RunResponse] = []
        self.exited: run_pb2.RunResult | None = None
        LiveRun.open_ones.add(self)

    def send(self, data: bytes) -> None:
        self._requests.put(run_pb2.RunRequest(stdin=data))

    def close_stdin(self) -> None:
        self.send(b"")

    def send_signal(self, number: int) -> None:
        self._requests.put(run_pb2.RunRequest(signal=number))

    def resize(self, rows: int, columns: int) -> None:
        self._requests.put(run_pb2.RunRequest(resize=run_pb2.Terminal(rows=rows, columns=columns)))

    def next_event(self) -> run_pb2.RunResponse | None:
        try:
            event: run_pb2.RunResponse = next(self.call)
        except StopIteration:
            return None
        self.events.append(event)
        self.stdout += event.stdout
        self.stderr += event.stderr
        if event.HasField("started"):
            self.run_id = event.started.run_id
        if event.HasField("exited"):
            self.exited = event.exited
        return event

    def read_until(self, wanted: bytes) -> None:
        """Takes events until `wanted` stands in stdout."""
        while wanted not in self.stdout:
            event = self.next_event()
            assert event is not None and self.exited is None, f"ended before {wanted!r}: {self.exited}"

    def wait_started(self) -> str:
        while not self.run_id:
            event = self.next_event()
            assert event is not None and self.exited is None, f"never started: {self.exited}"
        return self.run_id

    def finish(self) -> run_pb2.RunResult:
        """Takes the rest of the stream and returns what `exited` carried."""
        while self.next_event() is not None:
            pass
        self.close()
        assert self.exited is not None, "the stream ended without `exited`"
        return self.exited

    def close(self) -> None:
        """Leaves the call, which ends the run, and waits until that is on record."""
        LiveRun.open_ones.discard(self)
        self._requests.put(None)
        self.call.cancel()
        self._channel.close()
        if self.run_id and self.exited is None and self._daemon.alive:
            with self._daemon.channel() as channel:
                runs, asked = RunStub(channel), run_pb2.GetRunRequest(run_id=self.run_id)
                wait_until(lambda: runs.GetRun(asked).run.state == run_pb2.RUN_STATE_ENDED, 5, "the run has ended")


class Neighbour:
    """A `cat` run beside the one under test: it must go on echoing promptly and end as it would alone."""

    def __init__(self, daemon: Daemon) -> None:
        self._run = LiveRun(daemon, spec("cat", wall_seconds=300, agent="neighbour"))
        self._lines = 0

    def echo(self) -> float:
        """One line there and back; returns the seconds it took."""
        self._lines += 1
        line = b"line %d\n" % self._lines
        before = time.monotonic()
        self._run.send(line)
        self._run.read_until(line)
        return time.monotonic() - before

    def __enter__(self) -> Neighbour:
        self._run.wait_started()
        self.echo()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._run.close()
            return
        took = self.echo()
        self._run.close_stdin()
        result = self._run.finish()
        assert (result.outcome, result.exit_code) == (run_pb2.OUTCOME_EXITED, 0), f"the neighbour was harmed: {result}"
        assert self._run.stdout == b"".join(b"line %d\n" % n for n in range(1, self._lines + 1))
        assert took < scaled(1), f"the neighbour answered only after {took:.2f} s"
