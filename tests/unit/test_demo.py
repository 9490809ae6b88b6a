"""The one table of `make run`."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from supervisor.demo import JOBS, Job, results_table, table_row
from supervisor.model import Enforcement, Outcome, RunResult, Usage

ENFORCED = Enforcement(("pid", "mount"), "v2", "allow list", "ABI 7")
USAGE = Usage(wall_seconds=2.04, cpu_user_seconds=12.0, cpu_system_seconds=0.5, memory_peak_bytes=1023 << 20)


def result(job: Job, outcome: Outcome, **usage: int) -> RunResult:
    detail = "killed: unshare (x86_64) is forbidden by rule syscalls.unshare"
    used = Usage(**{name: getattr(USAGE, name) for name in Usage.__slots__} | usage)
    return RunResult("r", outcome, "strict", "native", detail=detail, usage=used, enforcement=ENFORCED)


@pytest.mark.parametrize("width", [100, 160, 200])
def test_it_fits_and_nothing_is_cut(width: int) -> None:
    table = results_table(width)
    rows = [table_row(job, result(job, job.expected, pids_limit_hits=123456)) for job in JOBS]
    for row in rows:
        table.add_row(*row)
    console = Console(width=width, file=io.StringIO())
    console.print(table)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert max(map(len, shown.splitlines())) <= width
    assert "\u2026" not in shown
    words = shown.split()
    for row in rows:
        assert set(" ".join(row).split()) <= set(words)
    for word in ("program", "outcome", "cause", "peak", "memory", "CPU", "wall", "time", "limit", "force", "enforced"):
        assert word in words


def test_what_a_row_says() -> None:
    bomb = next(job for job in JOBS if job.title == "fork bomb")
    cells = table_row(bomb, result(bomb, Outcome.TIMED_OUT, pids_limit_hits=3))
    assert cells[1:6] == (
        "timed_out",
        "unshare (x86_64) is forbidden by rule syscalls.unshare",
        "1023 MiB",
        "12.5 s",
        "2.04 s",
    )
    assert cells[6:] == ("pids 32 (3 forks refused), wall 2s", "2 namespaces, cgroup v2, seccomp, Landlock ABI 7")
    work = JOBS[0]
    assert table_row(work, result(work, Outcome.EXITED))[6] == "-"
    assert table_row(work, result(work, Outcome.TIMED_OUT))[6] == "wall of the policy"
