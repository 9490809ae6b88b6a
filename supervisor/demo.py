"""`make run`: a daemon of its own, real work under it through gRPC, then hostile programs, one table of it all, and one trace."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rich import box
from rich.console import Console
from rich.table import Table

from supervisor.cli.render import size
from supervisor.cli.trace_view import describe, event_line, print_tree
from supervisor.client import Supervisor
from supervisor.client.calls import paired
from supervisor.client.process_tree import ProcessTree
from supervisor.errors import SupervisorError
from supervisor.model import Outcome, RunResult

_START_SECONDS = 30.0

_ANALYSIS = b"""
import collections, re
sections, sizes = collections.Counter(), collections.Counter()
packages = open("/data/status", encoding="utf-8").read().split("\\n\\n")
for entry in packages:
    fields = dict(re.findall(r"^([A-Za-z-]+): (.*)$", entry, re.M))
    if "Package" in fields:
        sections[fields.get("Section", "?")] += 1
        sizes[fields["Package"]] += int(fields.get("Installed-Size", 0))
name, size = sizes.most_common(1)[0]
print(f"{len(sizes)} packages in {len(sections)} sections, {sum(sizes.values()) // 1024} MiB; largest: {name}, {size // 1024} MiB")
"""

_QUEENS = b"""
#include <stdio.h>
static int place(int n, unsigned all, unsigned columns, unsigned left, unsigned right)
{
	int found = 0;
	if (columns == all)
		return 1;
	for (unsigned free = all & ~(columns | left | right); free; free &= free - 1) {
		unsigned bit = free & -free;
		found += place(n, all, columns | bit, (left | bit) << 1, (right | bit) >> 1);
	}
	return found;
}
int main(void)
{
	printf("11 queens: %d solutions\\n", place(11, (1u << 11) - 1, 0, 0, 0));
	return 0;
}
"""

_PIPELINE = (
    r"""find /usr/bin -type f -printf '%s %f\n' | sort -rn | head -3 | awk '{printf "%s %.1f MiB; ", $2, $1/1048576}'"""
)

_OUTLIVER = b"""
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork() == 0:
    os.setsid()
    if os.fork():
        os._exit(0)
while True:
    time.sleep(60)
"""

_MEMORY = "b = []\nwhile True: b.append(bytearray(8 << 20))"
_ESCAPE = "import ctypes; ctypes.CDLL(None).unshare(0x10020000); print(open('/etc/shadow').read())"


@dataclass(frozen=True)
class Job:
    """One program of the demonstration: what `Supervisor.execute` gets, and what is to be expected of it."""

    title: str
    argv: list[str]
    expected: Outcome
    options: Mapping[str, Any] = field(default_factory=dict)
    hostile: bool = False


JOBS = (
    Job(
        "Python: analyse the package database",
        ["python3", "analyse.py"],
        Outcome.EXITED,
        {"files": {"analyse.py": _ANALYSIS}, "mounts": ["/var/lib/dpkg:/data:ro"]},
    ),
    Job(
        "C: compile and run eleven queens",
        ["sh", "-c", "gcc -O2 queens.c -o queens && ./queens"],
        Outcome.EXITED,
        {"files": {"queens.c": _QUEENS}},
    ),
    Job("shell: a pipeline over /usr/bin", ["bash", "-c", _PIPELINE], Outcome.EXITED),
    Job(
        "fork bomb",
        ["bash", "-c", ":(){ :|:& };:; sleep 60"],
        Outcome.TIMED_OUT,
        {"pids": 32, "timeout": 2},
        hostile=True,
    ),
    Job(
        "memory hog",
        ["python3", "-c", _MEMORY],
        Outcome.OUT_OF_MEMORY,
        {"memory": "64M", "timeout": 20},
        hostile=True,
    ),
    Job(
        "escape by new namespaces, then /etc/shadow",
        ["python3", "-c", _ESCAPE],
        Outcome.VIOLATION,
        {"timeout": 20},
        hostile=True,
    ),
    Job("output flood", ["yes", "flood"], Outcome.OUTPUT_LIMIT, {"output_limit": "1M", "timeout": 20}, hostile=True),
    Job(
        "orphan that ignores SIGTERM",
        ["python3", "hide.py"],
        Outcome.TIMED_OUT,
        {"files": {"hide.py": _OUTLIVER}, "timeout": 1},
        hostile=True,
    ),
)


@contextlib.contextmanager
def daemon(state: Path) -> Iterator[str]:
    """A daemon of our own with all its files below `state`; yields its address, stops it at the end."""
    address = f"unix://{state}/run/supervisor.sock"
    environment = {**os.environ, "SUPERVISOR_STATE_DIR": f"{state}/state", "SUPERVISOR_RUNTIME_DIR": f"{state}/run"}
    with (state / "daemon.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "supervisor.cli", "serve", "--listen", address],
            env=environment,
            stderr=log,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + _START_SECONDS
        while not (state / "run" / "supervisor.sock").exists():
            if process.poll() is not None or time.monotonic() > deadline:
                raise SupervisorError(f"the daemon did not start: {(state / 'daemon.log').read_text()[-2000:]}")
            time.sleep(0.02)
        yield address
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=40)
        except subprocess.TimeoutExpired:
            process.kill()


_PIPED_WIDTH = 160
_SHARES = {"program": 13, "cause": 16, "limit\nin force": 10, "enforced": 14}
"""Of the columns of text in what the others leave; their widths where a terminal has 100 columns."""
_FIGURES = {"outcome": 13, "peak\nmemory": 8, "CPU": 6, "wall\ntime": 6}
_COLUMNS = ("program", "outcome", "cause", "peak\nmemory", "CPU", "wall\ntime", "limit\nin force", "enforced")
_GAP = 2
_POLICYS = "of the policy"


def results_table(width: int) -> Table:
    """The table for a terminal so wide, without its rows: texts are broken over lines where need be, figures never."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, _GAP - 1, 0, 0), pad_edge=False, show_edge=False, show_lines=True)
    room = max(0, width - sum(_FIGURES.values()) - _GAP * (len(_COLUMNS) - 1))
    for heading in _COLUMNS:
        if heading in _SHARES:
            share = room * _SHARES[heading] // sum(_SHARES.values())
            table.add_column(heading, overflow="fold", width=max(share, 1))
        else:
            justify: Literal["left", "right"] = "left" if heading == "outcome" else "right"
            table.add_column(heading, width=_FIGURES[heading], no_wrap=True, justify=justify)
    return table


def table_row(job: Job, result: RunResult) -> tuple[str, ...]:
    """What ran, how and why it ended, what it used, the limit that mattered, and what was enforced all the while."""
    usage, enforced = result.usage, result.enforcement
    cpu = None if usage.cpu_user_seconds is None else usage.cpu_user_seconds + (usage.cpu_system_seconds or 0.0)
    figures = (size(usage.memory_peak_bytes), _seconds(cpu), _seconds(usage.wall_seconds))
    by = [f"{len(enforced.namespaces)} namespaces", f"cgroup {enforced.cgroup}", "seccomp"]
    if enforced.landlock:
        by.append(f"Landlock {enforced.landlock}")
    limits = ", ".join(_limits_that_mattered(job.options, result)) or "-"
    cause = result.detail.removeprefix("killed: ")
    return (job.title, result.outcome.value, cause, *figures, limits, ", ".join(by))


def _seconds(amount: float | None) -> str:
    return "-" if amount is None else f"{amount:.2f} s" if amount < 10 else f"{amount:.1f} s"


def _limits_that_mattered(asked: Mapping[str, Any], result: RunResult) -> Iterator[str]:
    if result.usage.pids_limit_hits:
        yield f"pids {asked.get('pids', _POLICYS)} ({result.usage.pids_limit_hits} forks refused)"
    for outcome, name, option, unit in (
        (Outcome.TIMED_OUT, "wall", "timeout", "s"),
        (Outcome.OUT_OF_MEMORY, "memory", "memory", ""),
        (Outcome.OUTPUT_LIMIT, "output", "output_limit", ""),
    ):
        if result.outcome is outcome:
            yield f"{name} {asked[option]}{unit}" if option in asked else f"{name} {_POLICYS}"


_INTRUDER = """
sleep 60 & setsid sleep 60 & sleep 0.1
cat /etc/shadow; touch /usr/bin/backdoor; python3 -c 'import socket; socket.create_connection(("169.254.169.254", 80), 1)'
exec mount -t tmpfs none /mnt
"""
_REFUSED = (errno.EPERM, errno.EACCES, errno.EROFS, errno.ENETUNREACH, errno.ENOENT)
_SHOWN_CALLS = ("openat", "connect", "mount")


def show_trace(console: Console, supervisor: Supervisor) -> bool:
    """A hostile run as its trace tells it: who started whom, what was refused, what ended it; whether all of that is there."""
    result = supervisor.execute(["sh", "-c", _INTRUDER], policy="strict", trace="full", timeout=20)
    events = list(supervisor.trace(result.run_id))
    tree = ProcessTree.of(events)
    console.print("\nOne hostile run as its trace tells it:\n")
    print_tree(tree)
    console.print()
    for entry in paired(events):
        refused = -entry.event.result in _REFUSED and entry.event.syscall in _SHOWN_CALLS
        if refused and any(place in describe(entry) for place in ("shadow", "backdoor", "169.254")):
            console.print(f"  {event_line(entry, tree.start or 0)}", markup=False)
    killed = [violation for violation in result.violations if violation.action == "kill"]
    for violation in killed:
        after = (result.ended_at - violation.time) * 1e3
        console.print(
            f"  {violation.exe} ({violation.pid}) called {violation.syscall}: forbidden by {violation.rule}; "
            f"all {tree_size(tree)} processes gone {after:.1f} ms later",
            markup=False,
        )
    complete = "yes" if result.trace.complete else "no"
    console.print(f"  complete: {complete}, {result.trace.events} events, {result.trace.dropped} dropped")
    return bool(killed) and result.trace.complete


def tree_size(tree: ProcessTree) -> int:
    return sum(1 for _ in tree.walk())


def main() -> int:
    """Prints one table and one trace; 0 when every program ended as it should."""
    console = Console(width=None if sys.stdout.isatty() else _PIPED_WIDTH, highlight=False)
    table = results_table(console.width)
    surprises = 0
    with tempfile.TemporaryDirectory(prefix="supervisor-demo-") as directory:
        console.print("Starting a daemon of our own ...")
        with daemon(Path(directory)) as address, Supervisor(address) as supervisor:
            for job in JOBS:
                if job.hostile and not any(j.hostile for j in JOBS[: JOBS.index(job)]):
                    table.add_section()
                result = supervisor.execute(job.argv, policy="strict", **job.options)
                good = result.outcome is job.expected
                surprises += not good
                table.add_row(*table_row(job, result), style="" if good else "red")
                said = result.stdout.decode("utf-8", "replace").strip()
                shown = said if said and not job.hostile else result.detail
                console.print(f"  {'hostile: ' if job.hostile else ''}{job.title}: {shown}", markup=False)
            console.print("\nWhat ran, how it ended, what it cost, and what held it:\n")
            console.print(table)
            surprises += not show_trace(console, supervisor)
    if surprises:
        console.print(f"{surprises} of {len(JOBS) + 1} ended otherwise than they should", style="red")
    return 1 if surprises else 0


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except SupervisorError as error:
        sys.stderr.write(f"supervisor: {error}\n")
        raise SystemExit(125) from None
