"""`supervisor policy learn`: the least policy under which runs would have gone as they did."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from supervisor import errors
from supervisor.cli.render import command_line, outcome_text, printable, say

if TYPE_CHECKING:
    from supervisor.client.result import TraceEvent
    from supervisor.client.sync_client import Supervisor
    from supervisor.model import RunRecord, TraceSummary
    from supervisor.policy import Policy
    from supervisor.policy_learn import Learnt
    from supervisor.policy_seen import Observed

_WIDTH = 116


def learn(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN", help="Ids of runs, or their beginnings.", show_default=False)
    ],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE", help="Instead of standard output.", show_default=False),
    ] = None,
    name: Annotated[
        str,
        typer.Option("--name", metavar="NAME", help="Of the new policy; the file's, else learnt.", show_default=False),
    ] = "",
    extends: Annotated[
        str,
        typer.Option(
            "--extends",
            metavar="POLICY",
            help="Write what is other than in this policy of the daemon's; else the policy stands alone.",
            show_default=False,
        ),
    ] = "",
    policy: Annotated[
        str,
        typer.Option(
            "--policy",
            metavar="NAME|FILE",
            help="The policy that the runs had, where the daemon does not keep it: one that was sent as a file.",
            show_default=False,
        ),
    ] = "",
    force: Annotated[
        bool, typer.Option("--force", help="Also from traces that do not tell all, and over a file that exists.")
    ] = False,
) -> None:
    """Write the least policy under which runs would have gone as they did, from their full traces.

    \b
      run=$(supervisor run --trace full --json -- python3 job.py | jq -r .run_id)
      supervisor policy learn $run -o job.toml
      supervisor run --policy job.toml -- python3 job.py
      supervisor policy diff strict job.toml

    Only system calls that were seen are allowed, and only in as far as the runs' policy allowed them: what that refuses
    stays refused, guards of arguments (%setid, %sockets, ...) stay on. /tmp and /work are writable or executable only
    where that was used, addresses are those that were reached, limits twice what was used. So the result is
    never wider than the policy that the runs had.

    A way through the program that no run took will fail: learn from several runs that take them all, and try it.
    """
    from supervisor.cli.connect import daemon
    from supervisor.cli.policy_find import name_of

    if output is not None and str(output) == "-":
        output = None
    if output is not None and output.exists() and not force:
        raise _exists(output)
    with daemon() as client:
        text, learnt = _learn(
            client, runs, name or (name_of(output) if output else "") or "learnt", extends, policy, force
        )
    if output is None:
        typer.echo(text, nl=False)
        return
    _write(output, text, force)
    say(f"{output}: {len(learnt.syscalls.allow)} system calls; try it with supervisor run --policy {output}")


def _learn(
    client: Supervisor, runs: Sequence[str], name: str, extends: str, policy: str, force: bool
) -> tuple[str, Policy]:
    from supervisor.cli.find import find_run
    from supervisor.cli.policy_find import in_force
    from supervisor.policy_diff import differences
    from supervisor.policy_learn import learn as learn_policy
    from supervisor.policy_learn import widened, write
    from supervisor.policy_seen import Observed

    found = {record.run_id: record for record in (find_run(client, run) for run in runs)}
    records = [found[run_id] for run_id in sorted(found)]
    base = _base(client, records, policy)
    parent = in_force(client.policy(extends)) if extends else None
    observed = Observed(base)
    lines: list[str] = []
    warnings: list[str] = []
    for record in records:
        _add(client, record, observed, lines, warnings, force)
    learnt = learn_policy(base, observed, [record.usage for record in records], name)
    text = write(learnt.policy, _header(base, learnt, lines, warnings), parent)
    verdict = client.check_policy(text, name)
    if verdict.policy is None:
        why = "; ".join(problem.message for problem in verdict.problems)
        raise errors.InvalidRequest(
            f"what was learnt makes no policy: {why}", field="--extends" if extends else "--name"
        )
    got = in_force(verdict.policy)
    if wider := widened(base, got):
        raise errors.InvalidRequest(
            f"what was learnt would be wider than {base.name}: {'; '.join(map(str, wider[:5]))}",
            field="--extends" if extends else "RUN",
        )
    warnings += [f"{extends} makes it other than what was learnt: {one}" for one in differences(learnt.policy, got)]
    for warning in warnings:
        say(printable(f"warning: {warning}"), "yellow")
    return text, learnt.policy


def _base(client: Supervisor, records: Sequence[RunRecord], asked: str) -> Policy:
    """The policy that all of the runs had, word for word. Raises InvalidRequest where that cannot be found."""
    from supervisor.cli.policy_find import in_force, policy_meant

    first = records[0]
    for record in records:
        if record.policy_digest != first.policy_digest:
            raise errors.InvalidRequest(
                f"run {first.run_id} had the policy {first.policy}, and run {record.run_id} another one, {record.policy}",
                field="RUN",
                metadata={"remedy": "learn from runs that had the same policy"},
            )
    remedy = {"remedy": "name what it had with --policy: a policy, or the file that it was run with"}
    try:
        found = policy_meant(asked, "--policy") if asked else client.policy(first.policy)
    except errors.NotFound as error:
        if asked:
            raise
        raise errors.InvalidRequest(
            f"run {first.run_id} had the policy {first.policy}, which the daemon does not keep",
            field="RUN",
            metadata=remedy,
        ) from error
    if found.digest != first.policy_digest:
        why = "is not the one" if asked else "has changed since: it is not the one any more"
        raise errors.InvalidRequest(
            f"{'--policy ' if asked else ''}{found.name} {why} that run {first.run_id} had",
            field="--policy" if asked else "RUN",
            metadata=remedy,
        )
    return in_force(found)


def _add(
    client: Supervisor, record: RunRecord, observed: Observed, lines: list[str], warnings: list[str], force: bool
) -> None:
    from supervisor.model import Outcome

    run_id = record.run_id
    if record.state != "ended":
        raise errors.InvalidRequest(
            f"run {run_id} is {record.state}",
            field="RUN",
            metadata={"remedy": f"wait for its end: supervisor inspect {run_id}"},
        )
    summary = client.trace_summary(run_id)
    if summary.level == "off" or not summary.syscalls:
        raise errors.InvalidRequest(
            f"run {run_id} has no trace: {record.detail or 'nothing was executed'}",
            field="RUN",
            metadata={"remedy": "run it again with --trace full"},
        )
    summary, events = _events(client, run_id, summary)
    missing = _missing(summary)
    if missing and not force:
        raise errors.InvalidRequest(
            f"run {run_id} does not tell all that it did: {missing}",
            field="RUN",
            metadata={
                "remedy": "run it again with --trace full; or --force, which leaves files as its policy has them "
                "and learns the rest from its counts"
            },
        )
    observed.add(summary, events, host_network=record.enforcement.network.startswith("host"))
    if missing:
        warnings.append(f"run {run_id} does not tell all that it did: {missing}")
    if record.outcome is not Outcome.EXITED:
        warnings.append(f"run {run_id} did not come to its own end: {outcome_text(record)}, {record.detail}")
    trace = "full" if not missing else "NOT COMPLETE"
    lines.append(
        f"  {run_id}  {command_line(record)}, {outcome_text(record)}, {_utc(record)}, {summary.events} events, {trace}"
    )


def _events(client: Supervisor, run_id: str, summary: TraceSummary) -> tuple[TraceSummary, Iterator[TraceEvent]]:
    """Where only the counts are left, the summary says so."""
    if summary.level != "full":
        return summary, iter(())
    stream = client.trace(run_id)
    try:
        first = tuple(islice(stream, 1))
    except errors.NotFound:
        return replace(summary, level="summary"), iter(())
    return summary, chain(first, stream)


def _missing(summary: TraceSummary) -> str:
    if summary.level != "full":
        return f"only its trace at level {summary.level} is there, which counts calls and keeps none"
    if not summary.complete:
        return f"{summary.dropped} of {summary.events + summary.dropped} events were dropped"
    return ""


def _utc(record: RunRecord) -> str:
    """When it ran, the same wherever it is read."""
    from datetime import UTC, datetime

    return datetime.fromtimestamp(record.started_at or record.created_at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _header(base: Policy, learnt: Learnt, lines: Sequence[str], warnings: Sequence[str]) -> list[str]:
    head = [
        f"The least policy under which these runs under {base.name} would have gone as they did, by `policy learn`:",
        *lines,
    ]
    notes = [*(f"WARNING: {warning}." for warning in warnings), *learnt.notes]
    notes.append("A way through the program that no run took will fail: learn from runs that take them all.")
    wrapped = chain.from_iterable(
        textwrap.wrap(printable(note), _WIDTH, subsequent_indent="  ", break_on_hyphens=False) for note in notes
    )
    return [*map(printable, head), "", *wrapped]


def _exists(output: Path) -> errors.InvalidRequest:
    return errors.InvalidRequest(
        f"--output: {output} exists",
        field="--output",
        metadata={"remedy": "name another file, or --force to replace it"},
    )


def _write(output: Path, text: str, force: bool) -> None:
    try:
        with output.open("w" if force else "x", encoding="utf-8") as out:
            out.write(text)
    except FileExistsError:
        raise _exists(output) from None
    except OSError as error:
        raise errors.InvalidRequest(f"--output: cannot write {output}: {error.strerror}", field="--output") from error
