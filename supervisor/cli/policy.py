"""`supervisor policy`: what the daemon's policies say. Without a daemon, what the shipped ones say."""

from __future__ import annotations

import json as jsonlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from supervisor.cli.policy_diff import diff
from supervisor.cli.policy_find import all_policies, check_text, name_of, named_policy, read_text
from supervisor.cli.policy_learn import learn
from supervisor.cli.render import print_table, printable, say

if TYPE_CHECKING:
    from supervisor.client.result import Policy

app = typer.Typer(
    help="""Look at policies, check new ones, compare them, and learn the least one from what runs did.

A policy says what a run may do: limits, files, network, system calls, and what happens on a violation.
Without a daemon these commands use the policies that ship with the supervisor; only `learn` needs one.

\b
  supervisor policy show strict                  what is in force
  supervisor policy check mine.toml              what is wrong in a file, with its line
  supervisor policy learn RUN -o mine.toml       the least under which that run would have gone as it did
  supervisor policy diff strict mine.toml        what the second allows more or less than the first
""",
    no_args_is_help=True,
)


@app.command("list")
def list_policies(
    json: Annotated[bool, typer.Option("--json", help="One JSON object per line.")] = False,
) -> None:
    """Name the policies, each with its description."""
    found = all_policies()
    if json:
        for policy in found:
            shown = {"name": policy.name, "extends": policy.extends, "description": policy.description}
            typer.echo(jsonlib.dumps(shown | {"digest": policy.digest}))
        return
    rows = [(policy.name, policy.extends or "-", policy.description) for policy in found]
    print_table(("POLICY", "EXTENDS", "DESCRIPTION"), rows)


@app.command()
def show(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Such as strict.", show_default=False)],
    as_written: Annotated[bool, typer.Option("--as-written", help="The file itself, without what it extends.")] = False,
) -> None:
    """Print a policy as TOML, with everything that is in force after `extends`."""
    policy = named_policy(name)
    typer.echo((policy.toml if as_written else policy.resolved_toml).rstrip("\n"))


@app.command()
def check(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="A policy file; - for standard input.", show_default=False)
    ],
) -> None:
    """Check a policy file without using it: problems with their line, and exit status 1 when there are any."""
    name = name_of(file)
    verdict = check_text(read_text(file, "FILE"), name)
    for problem in verdict.problems:
        place = f"{file}:{problem.line}" if problem.line else str(file)
        key = f"{problem.key}: " if problem.key and problem.key not in problem.message else ""
        typer.echo(printable(f"{place}: {key}{problem.message}"))
    if not verdict.good:
        raise typer.Exit(1)
    typer.echo(f"{file}: good")
    if verdict.policy is not None and name:
        _warn(verdict.policy, file.stem)


def _warn(policy: Policy, stem: str) -> None:
    """Tells what is good in a file for --policy, but not in a policy directory."""
    name = policy.name.removeprefix("inline:")
    why = ""
    if name not in (stem, "inline"):
        why = f"its name is {name!r}, and there it must be called {name}.toml"
    elif name == policy.extends:
        why = f"it extends its own name, and there {name!r} would be itself"
    if why:
        say(f"warning: good for --policy, but with it in a policy directory the daemon does not start: {why}", "yellow")


app.command()(diff)
app.command()(learn)
