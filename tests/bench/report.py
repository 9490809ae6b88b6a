"""The measurements as tables for people, or as one JSON object."""

from __future__ import annotations

import contextlib
import datetime
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.bench.latency import Series, reference
from tests.bench.subjects import BWRAP, SPAWN
from tests.bench.throughput import CLIENTS, SUPERVISOR, Rate

_WIDTH = 132
_NOTES = (
    "Latency is the whole run as its caller sees it: Execute over the Unix socket with output and usage in hand, or a "
    "peer's process from posix_spawn to waitpid with its streams on /dev/null. Ratios are of medians, to the same "
    "program; - means too few runs to tell. Supervisor and Docker have a daemon that is already running; bwrap here "
    "sets no limits and no seccomp filter, and records nothing. Clients of the throughput are processes on these same CPUs."
)


@dataclass(slots=True)
class Report:
    """All that one run of the benchmark found out."""

    machine: Mapping[str, Any]
    rounds: int = 0
    series: list[Series] = field(default_factory=list)
    rates: list[Rate] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0


def machine() -> dict[str, Any]:
    """What the numbers depend on; the load is the one from before the benchmark."""
    model = platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return {
        "cpu": model,
        "cpus": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "cgroup": _cgroup_mode(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "load_average": [round(value, 2) for value in os.getloadavg()],
    }


def _cgroup_mode() -> str:
    kinds = {line.split()[2] for line in Path("/proc/mounts").read_text().splitlines()}
    if "cgroup2" in kinds:
        return "hybrid" if "cgroup" in kinds else "v2"
    return "v1"


def _ratio(value: float | None, base: float | None) -> float | None:
    return round(value / base, 3) if value is not None and base else None


def _latency_rows(series: Sequence[Series]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for one in series:
        subject, median = one.subject, one.quantile(0.5)
        rows.append(
            {
                "subject": subject.name,
                "program": subject.program,
                "isolation": subject.isolation,
                "runs": len(one.times),
                "failed": one.failed,
                "p50_ms": median,
                "p90_ms": one.quantile(0.9),
                "p99_ms": one.quantile(0.99),
                "ratio_to_bwrap": _ratio(median, reference(series, BWRAP, subject.program)),
                "ratio_to_posix_spawn": _ratio(median, reference(series, SPAWN, subject.program)),
            }
        )
    return rows


def as_json(report: Report) -> dict[str, Any]:
    """Times in milliseconds; null where there are too few runs for the quantile, or no peer for the ratio."""
    return {
        "machine": dict(report.machine),
        "rounds": report.rounds,
        "seconds": round(report.seconds, 1),
        "latency": _latency_rows(report.series),
        "throughput": [asdict(rate) for rate in report.rates],
        "skipped": report.skipped,
    }


def show(report: Report) -> None:
    """Prints the tables on stdout."""
    console = Console(width=None if sys.stdout.isatty() else _WIDTH, highlight=False)
    console.print(describe(report.machine), markup=False)
    if report.machine["load_average"][0] > report.machine["cpus"] / 2:
        console.print("The machine was busy before this began: trust the ratios, not the milliseconds.")
    console.print(_latency_table(report.series))
    if report.rates:
        console.print(_throughput_table(report.rates))
    for name, reason in report.skipped.items():
        console.print(f"{name}: skipped: {reason}", markup=False)
    for one in report.series:
        if one.failed:
            console.print(f"{one.subject.name}, {one.subject.program}: {one.failed} runs failed and do not count")
    console.print(_NOTES)


def describe(facts: Mapping[str, Any]) -> str:
    """One line."""
    load = " ".join(f"{value:.2f}" for value in facts["load_average"])
    return (
        f"{facts['cpu']}, {facts['cpus']} CPUs, Linux {facts['kernel']}, cgroup {facts['cgroup']}, {facts['date']}, "
        f"load before: {load}"
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}" if value < 100 else f"{value:.0f}"


def _times(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}x" if value < 10 else f"{value:.0f}x"


def _latency_table(series: Sequence[Series]) -> Table:
    table = Table(title="One run of `true`, milliseconds", title_justify="left")
    table.add_column("")
    for heading in ("p50", "p90", "p99", "to bwrap", "to spawn", "runs"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("isolation")
    previous = None
    for row in _latency_rows(series):
        if previous not in (None, row["program"]):
            table.add_section()
        previous = row["program"]
        times = [_number(row[key]) for key in ("p50_ms", "p90_ms", "p99_ms")]
        ratios = [_times(row[key]) for key in ("ratio_to_bwrap", "ratio_to_posix_spawn")]
        table.add_row(f"{row['subject']}, {row['program']}", *times, *ratios, str(row["runs"]), row["isolation"])
    return table


def _throughput_table(rates: Sequence[Rate]) -> Table:
    found = {(rate.subject, rate.clients): rate for rate in rates}
    table = Table(title="Runs per second of the static `true`, by concurrent clients", title_justify="left")
    table.add_column("clients", justify="right")
    for heading in (SUPERVISOR, BWRAP, "to bwrap", "failed"):
        table.add_column(heading, justify="right")
    for clients in CLIENTS:
        ours, theirs = found.get((SUPERVISOR, clients)), found.get((BWRAP, clients))
        cells = ["-" if rate is None else f"{rate.runs_per_second:.0f}" for rate in (ours, theirs)]
        ratio = _ratio(ours.runs_per_second if ours else None, theirs.runs_per_second if theirs else None)
        failed = sum(rate.failed for rate in (ours, theirs) if rate is not None)
        table.add_row(str(clients), *cells, _times(ratio), str(failed))
    return table
