"""`supervisor ps`, `inspect`, `kill` and `top`: the daemon's runs."""

from __future__ import annotations

import json as jsonlib
import sys
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from supervisor.cli.find import RunArgument, find_run
from supervisor.cli.render import (
    age,
    command_line,
    explain,
    moment,
    outcome_text,
    print_table,
    printable,
    say,
    size,
    table,
    violation_line,
)
from supervisor.model import RunRecord

if TYPE_CHECKING:
    from supervisor.client.result import Host

_ORDER = {"running": 0, "queued": 1, "ended": 2}


def ps(
    agent: Annotated[str, typer.Option("--agent", metavar="ID", help="Only this agent's runs.")] = "",
    state: Annotated[str, typer.Option("--state", metavar="STATE", help="Only running, queued or ended ones.")] = "",
    limit: Annotated[int, typer.Option("--limit", metavar="N", min=1, help="At most so many of the newest.")] = 50,
    json: Annotated[bool, typer.Option("--json", help="One JSON object per line.")] = False,
) -> None:
    """List runs: running, queued, then the newest that ended, of which only the program's name is kept."""
    from supervisor.cli.connect import daemon
    from supervisor.client.result import record_to_json

    with daemon() as client:
        if state:
            found = client.runs(agent, state, limit)
        else:
            # What runs now is listed even where so many have ended since that the newest are others.
            found = [*client.runs(agent, "running", limit), *client.runs(agent, "queued", limit)]
            found = (found + client.runs(agent, "ended", max(1, limit - len(found))))[:limit]
    found.sort(key=lambda run: (_ORDER.get(run.state, 3), -run.created_at))
    if json:
        for run in found:
            typer.echo(jsonlib.dumps(record_to_json(run)))
        return
    print_table(("RUN", "AGENT", "POLICY", "STATE", "OUTCOME", "AGE", "PROGRAM"), map(_ps_row, found), one_line=True)


def _ps_row(run: RunRecord) -> tuple[str, ...]:
    return (run.run_id, run.agent or "-", run.policy, run.state, outcome_text(run), _age(run), command_line(run))


def _age(run: RunRecord) -> str:
    return age(time.time() - run.created_at) if run.created_at else "-"


def inspect(
    run: RunArgument,
    json: Annotated[bool, typer.Option("--json", help="The record as one JSON object.")] = False,
) -> None:
    """Show one run: what it used, what was enforced, why it ended."""
    from supervisor.cli.connect import daemon
    from supervisor.client.result import record_to_json

    with daemon() as client:
        record = find_run(client, run)
    if json:
        typer.echo(jsonlib.dumps(record_to_json(record), indent=2))
        return
    for name, value in _inspect_lines(record):
        typer.echo(f"{name:<14}{printable(value)}")


def _inspect_lines(run: RunRecord) -> Iterator[tuple[str, str]]:
    usage, enforced = run.usage, run.enforcement
    yield "run", run.run_id
    yield "program", run.program
    if run.argv:
        yield "command line", command_line(run)
    yield "state", run.state
    yield "outcome", outcome_text(run)
    if cause := explain(run):
        yield "cause", cause
    yield "policy", f"{run.policy}  {run.policy_digest}"
    yield "backend", run.backend or "-"
    for name, value in (("agent", run.agent), ("request_id", run.request_id)):
        if value:
            yield name, value
    for key, label in run.labels.items():
        yield "label", f"{key}={label}"
    yield "spec", run.spec_digest
    yield "created", moment(run.created_at)
    yield "started", moment(run.started_at)
    yield "ended", moment(run.ended_at)
    yield "wall clock", _seconds(usage.wall_seconds)
    yield "CPU", f"{_seconds(usage.cpu_user_seconds)} user, {_seconds(usage.cpu_system_seconds)} system"
    yield "memory peak", size(usage.memory_peak_bytes)
    yield "pids peak", "-" if usage.pids_peak is None else str(usage.pids_peak)
    yield "disk I/O", f"{size(usage.io_read_bytes)} read, {size(usage.io_write_bytes)} written"
    yield "namespaces", " ".join(enforced.namespaces) or "-"
    for name in ("cgroup", "seccomp", "landlock", "cgroup_bpf", "lsm", "network", "user"):
        yield name, getattr(enforced, name) or "-"
    yield "missing", " ".join(enforced.missing) or "nothing"
    for violation in run.violations:
        yield "violation", f"{violation.action}, {violation_line(violation)}"


def _seconds(amount: float | None) -> str:
    return "-" if amount is None else f"{amount:.3f} s"


def kill(
    run: Annotated[
        str | None, typer.Argument(metavar="[RUN]", help="A run's id, or its beginning.", show_default=False)
    ] = None,
    agent: Annotated[str, typer.Option("--agent", metavar="ID", help="All runs of this agent, queued ones too.")] = "",
) -> None:
    """End a run, or all runs of an agent, with all their processes.

    \b
      supervisor kill 01J9ZQ...
      supervisor kill --agent crawler
    """
    if bool(run) == bool(agent):
        raise typer.BadParameter("name a RUN, or --agent ID")
    from supervisor.cli.connect import daemon

    with daemon() as client:
        if run:
            run_id = find_run(client, run).run_id
            typer.echo(f"{run_id} {'killed' if client.kill(run_id) else 'had ended already'}")
        else:
            count = client.kill_agent(agent)
            typer.echo(f"{count} {'run' if count == 1 else 'runs'} of {agent} killed")


def top(
    interval: Annotated[float, typer.Option("--interval", metavar="SECONDS", min=0.1, help="Between two looks.")] = 1.0,
) -> None:
    """Watch what runs now, until Ctrl-C. Where stdout is no terminal: one look."""
    from supervisor.cli.connect import daemon

    with daemon() as client:

        def look() -> tuple[str, Sequence[tuple[str, ...]]]:
            running = [*client.runs(state="running"), *client.runs(state="queued")]
            return _top_line(client.host()), [_top_row(run) for run in running]

        if not sys.stdout.isatty():
            line, rows = look()
            typer.echo(line)
            print_table(_TOP, rows, one_line=True)
            return
        _watch(look, interval)


_TOP = ("RUN", "AGENT", "POLICY", "STATE", "AGE", "MEMORY PEAK", "CPU", "PIDS PEAK", "PROGRAM")


def _top_line(host: Host) -> str:
    draining = ", draining" if host.draining else ""
    return (
        f"{host.running} of {host.max_concurrent_runs} running, {host.queued} of {host.max_queued_runs} queued{draining}"
        f"   {host.cpus} CPUs, {size(host.memory_bytes)}, kernel {host.kernel}, cgroup {host.cgroup}"
    )


def _top_row(run: RunRecord) -> tuple[str, ...]:
    usage = run.usage
    spent = None if usage.cpu_user_seconds is None else usage.cpu_user_seconds + (usage.cpu_system_seconds or 0)
    pids = "-" if usage.pids_peak is None else str(usage.pids_peak)
    figures = (size(usage.memory_peak_bytes), "-" if spent is None else f"{spent:.1f} s", pids)
    return (run.run_id, run.agent or "-", run.policy, run.state, _age(run), *figures, command_line(run))


def _watch(look: Any, interval: float) -> None:
    from rich.console import Group
    from rich.live import Live

    from supervisor import errors

    with Live(screen=True, auto_refresh=False) as live:
        try:
            while True:
                line, rows = look()
                live.update(Group(line, "", table(_TOP, rows, live.console.width)), refresh=True)
                time.sleep(interval)
        except KeyboardInterrupt:
            return
        except errors.Unreachable:
            live.stop()
            say("the daemon has gone", "red")
            raise typer.Exit(125) from None
