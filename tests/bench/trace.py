"""`make bench-trace`: what tracing costs, as ratios in one run on one machine. Never part of pass or fail.

A system call outside and inside runs at every level; a C compile and redis-benchmark in the same sandbox with tracing off,
at `summary` and `full`, and under strace -f; how many events a second are kept; how long a violating tree lives on.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.table import Table

from supervisor.client import Supervisor
from supervisor.model import RunResult
from supervisor.probes.layout import Level
from supervisor.probes.load import open_probes
from tests.bench.own import BenchError, daemon
from tests.bench.report import machine
from tests.host.probed import Watched, watched

LEVELS = ("off", "summary", "full")
ROUNDS = 7
POLICY = 'name = "bench-{level}"\nextends = "{base}"\n{rules}[trace]\nlevel = "{level}"\n'
NO_RULES = "rule_sets = []\n"  # they are held whatever the trace's level

LOOP = r"""
#define _GNU_SOURCE
#include <stdio.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
static double now(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec * 1e9 + t.tv_nsec; }
int main(void)
{
	double best = 1e18;
	for (int round = 0; round < 20; round++) {
		double begun = now(), each;
		for (int i = 0; i < 100000; i++)
			syscall(SYS_getppid);
		each = (now() - begun) / 100000;
		if (each < best)
			best = each;
	}
	printf("%.1f\n", best);
}
"""
REDIS = "redis-server --save '' --daemonize yes > /dev/null; sleep 0.3; redis-benchmark -q --csv -n 40000 -c 10 -t set,get; redis-cli shutdown nosave"


def sources(count: int = 24) -> dict[str, bytes]:
    """Many small C files, so that a compile is what it is in a project: processes, headers, temporary files."""
    body = "".join(f'int f{n}(int x) {{ return printf("%d", x * {n}); }}\n' for n in range(20))
    text = f"#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\n#include <unistd.h>\n{body}".encode()
    return {f"p{number}.c": text for number in range(count)}


class Bench:
    def __init__(self, client: Supervisor, programs: Path, console: Console) -> None:
        self.client = client
        self.programs = programs
        self.console = console

    def execute(self, argv: list[str], level: str, base: str = "strict", **options: object) -> RunResult:
        result = self.client.execute(
            argv,
            policy=POLICY.format(level=level, base=base, rules=NO_RULES if level == "off" else ""),
            mounts=[f"{self.programs}:/bench:ro"] if base == "strict" else [],
            timeout=300,
            limits={"output": 1 << 20},
            **options,  # type: ignore[arg-type]
        )
        if result.exit_code != 0:
            raise BenchError(f"{argv}: {result.detail} {result.stderr[-200:]!r}")
        return result

    def interleaved(self, subjects: dict[str, Callable[[], float]], what: str) -> dict[str, float]:
        """The median of each, one after another in every round."""
        found: dict[str, list[float]] = {name: [] for name in subjects}
        with self.console.status(what):
            for _ in range(ROUNDS):
                for name, run in subjects.items():
                    found[name].append(run())
        return {name: statistics.median(values) for name, values in found.items()}

    def loops(self, alone: float) -> None:
        loop = str(self.programs / "loop")
        inside = {level: (lambda level=level: float(self.execute(["/bench/loop"], level).stdout)) for level in LEVELS}
        outside = {"outside of runs": lambda: float(subprocess.run([loop], capture_output=True, check=True).stdout)}
        found = self.interleaved({**outside, **inside}, "getppid loops")
        table = Table(
            "getppid", "ns", "added", title=f"One system call ({alone:.0f} ns before the probes were attached)"
        )
        table.add_row(
            "outside of runs", f"{found['outside of runs']:.0f}", f"{found['outside of runs'] - alone:+.0f} ns"
        )
        for level in LEVELS:
            base = found["off"]
            table.add_row(
                f"inside, {level}", f"{found[level]:.0f}", "" if level == "off" else f"{found[level] - base:+.0f} ns"
            )
        self.console.print(table)

    def compiles(self) -> None:
        files = sources()
        gcc = ["sh", "-c", "for file in *.c; do gcc -O1 -c $file || exit 1; done"]

        def wall(argv: list[str], level: str, base: str = "strict") -> float:
            result = self.execute(argv, level, base, files=files)
            return float(result.usage.wall_seconds or 0)

        subjects: dict[str, Callable[[], float]] = {level: (lambda level=level: wall(gcc, level)) for level in LEVELS}
        subjects["strace -f"] = lambda: wall(["strace", "-f", "-o", "/dev/null", *gcc], "off", "basic")
        found = self.interleaved(subjects, "compiling")
        self._ratios("gcc of 24 small files, seconds", found, higher_is_better=False)

    def redis(self) -> None:
        def rate(level: str, base: str = "strict", prefix: str = "") -> float:
            script = prefix + REDIS if not prefix else f'{prefix} sh -c "{REDIS}"'
            lines = self.execute(["sh", "-c", script], level, base, pids=64).stdout.decode().splitlines()
            rates = [float(line.split(",")[1].strip('"')) for line in lines if line.startswith(('"SET"', '"GET"'))]
            return statistics.mean(rates)

        subjects: dict[str, Callable[[], float]] = {level: (lambda level=level: rate(level)) for level in LEVELS}
        subjects["strace -f"] = lambda: rate("off", "basic", "strace -f -o /dev/null")
        self._ratios(
            "redis-benchmark, requests/s", self.interleaved(subjects, "redis-benchmark"), higher_is_better=True
        )

    def _ratios(self, what: str, found: dict[str, float], higher_is_better: bool) -> None:
        table = Table(what, "median", "slower than off")
        for name, value in found.items():
            ratio = found["off"] / value if higher_is_better else value / found["off"]
            table.add_row(name, f"{value:,.0f}" if higher_is_better else f"{value:.3f}", f"{(ratio - 1) * 100:+.1f} %")
        self.console.print(table)

    def deaths(self, count: int = 60) -> None:
        script = "for i in $(seq 100); do sleep 100 & setsid sleep 100 & done; sleep 0.1; exec mount x y"
        took = []
        with self.console.status("violating trees"):
            for _ in range(count):
                result = self.client.execute(["bash", "-c", script], policy="strict", pids=256, timeout=60)
                if not result.violations:
                    raise BenchError(f"no violation: {result.detail}")
                took.append((result.ended_at - result.violations[0].time) * 1e3)
        self._times("violation to the end of a tree of 200 processes", took)
        self.floor_of_deaths()

    def floor_of_deaths(self, count: int = 30) -> None:
        """The same tree under cgroup.kill alone: what the kernel takes for it, without sandbox, rules and tear-down."""
        script = "for i in $(seq 100); do sleep 100 & setsid sleep 100 & done; echo up; exec sleep 100"
        took = []
        with self.console.status("cgroup.kill alone"):
            for _ in range(count):
                with watched(1, Level.OFF) as (tree,):
                    process = tree.start(["bash", "-c", script])
                    assert process.stdout is not None
                    process.stdout.readline()
                    time.sleep(0.1)
                    begun = time.perf_counter()
                    tree.group.kill()
                    while tree.group.populated:
                        time.sleep(0.0002)
                    took.append((time.perf_counter() - begun) * 1e3)
                    process.wait()
        self._times("cgroup.kill of such a tree, and nothing else", took)

    def _times(self, what: str, took: list[float]) -> None:
        took.sort()
        table = Table(what, "ms")
        table.add_row("p50", f"{took[len(took) // 2]:.1f}")
        table.add_row("p99", f"{took[min(len(took) - 1, int(len(took) * 0.99))]:.1f}")
        self.console.print(table)

    def reader(self, flood: Path) -> None:
        """The reader's side alone: how many events a second it keeps, and what they cost it."""
        kept, spent, done = 0, 0.0, threading.Event()

        def read(run: Watched) -> None:
            nonlocal kept, spent
            begun = time.thread_time()
            while not done.is_set():
                run.probes.drain()
                kept += sum(map(len, run.probes.take_calls(run.watch)))
                done.wait(0.005)
            spent = time.thread_time() - begun

        with self.console.status("the reader"), watched(1) as (run,):
            thread = threading.Thread(target=read, args=(run,))
            thread.start()
            begun = time.perf_counter()
            run.execute([str(flood)])
            wall = time.perf_counter() - begun
            done.set()
            thread.join()
            seen = run.finish()
            kept += sum(map(len, seen.calls))
        table = Table("the reader alone", "")
        table.add_row("events/s", f"{kept / wall:,.0f}")
        table.add_row("dropped", f"{seen.dropped:,}")
        table.add_row(
            "CPU per event", f"{spent / kept * 1e9:.0f} ns, {spent / kept * 2e8:.0f} % of a core at 2,000,000/s"
        )
        self.console.print(table)

    def flood(self, pid: int, calls: int = 4_000_000) -> None:
        before = cpu_seconds(pid)
        with self.console.status("a flood of events"):
            result = self.execute(["/bench/flood"], "full")
        spent = cpu_seconds(pid) - before
        wall = float(result.usage.wall_seconds or 1)
        kept = result.trace.events - result.trace.dropped
        table = Table("every event of a flood kept", "")
        table.add_row("events/s offered", f"{result.trace.syscalls['getppid'].calls / wall:,.0f}")
        table.add_row("dropped", f"{result.trace.dropped:,} of {result.trace.dropped + kept:,}")
        table.add_row("daemon's CPU, writing Parquet included", f"{spent / wall * 100:.0f} % of a core")
        self.console.print(table)


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def compile_program(directory: Path, name: str, text: str) -> None:
    command = ["gcc", "-O2", "-static", "-x", "c", "-o", str(directory / name), "-"]
    subprocess.run(command, input=text.encode(), check=True, capture_output=True)


def main() -> int:
    console = Console(width=110)
    console.print({name: value for name, value in machine().items() if name != "cgroup"})
    with TemporaryDirectory(prefix="supervisor-bench-") as directory:
        base = Path(directory)
        base.chmod(0o755)
        programs = base / "programs"
        programs.mkdir()
        compile_program(programs, "loop", LOOP)
        compile_program(programs, "flood", LOOP.replace("round < 20", "round < 40"))
        alone = min(
            float(subprocess.run([programs / "loop"], capture_output=True, check=True).stdout) for _ in range(5)
        )
        begun = time.perf_counter()
        probes, features = open_probes("", slots=64)
        console.print(f"engine start: {(time.perf_counter() - begun) * 1e3:.0f} ms ({features[0].detail})")
        if probes is None:
            return 1
        probes.close()
        try:
            with daemon(base / "daemon") as address, Supervisor(address) as client:
                bench = Bench(client, programs, console)
                parts: dict[str, Callable[[], None]] = {
                    "loops": lambda: bench.loops(alone),
                    "reader": lambda: bench.reader(programs / "flood"),
                    "flood": lambda: bench.flood(daemon_pid(address)),
                    "compiles": bench.compiles,
                    "redis": bench.redis,
                    "deaths": bench.deaths,
                }
                for name in sys.argv[1:] or parts:
                    parts[name]()
        except BenchError as error:
            sys.stderr.write(f"bench-trace: {error}\n")
            return 1
    return 0


def daemon_pid(address: str) -> int:
    """The process that listens at a Unix socket."""
    path = address.removeprefix("unix://")
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "environ").read_bytes()
            except OSError:
                continue
            if (
                f"SUPERVISOR_RUNTIME_DIR={Path(path).parent}".encode() in words
                and b"serve" in (entry / "cmdline").read_bytes()
            ):
                return int(entry.name)
    raise BenchError(f"nobody listens at {address}")


if __name__ == "__main__":
    raise SystemExit(main())
