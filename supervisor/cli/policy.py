"""`supervisor policy`: what the daemon's policies say. Without a daemon, what the shipped ones say."""

from __future__ import annotations

import json as jsonlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from supervisor import errors
from supervisor.cli.render import print_table, printable, say

if TYPE_CHECKING:
    from supervisor.client.result import Policy, PolicyCheck
    from supervisor.policy import Policy as Found

app = typer.Typer(
    help="""Look at policies and check new ones.

A policy says what a run may do: limits, files, network, system calls, and what happens on a violation.
Without a daemon these commands use the policies that ship with the supervisor.
""",
    no_args_is_help=True,
)


@app.command("list")
def list_policies(
    json: Annotated[bool, typer.Option("--json", help="One JSON object per line.")] = False,
) -> None:
    """Name the policies, each with its description."""
    found = _policies()
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
    policy = _policy(name)
    typer.echo((policy.toml if as_written else policy.resolved_toml).rstrip("\n"))


@app.command()
def check(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="A policy file; - for standard input.", show_default=False)
    ],
) -> None:
    """Check a policy file without using it: problems with their line, and exit status 1 when there are any."""
    try:
        text = sys.stdin.read() if str(file) == "-" else file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise errors.InvalidRequest(f"cannot read {file}: {why}", field="FILE") from error
    named = file.suffix == ".toml" and file.stem.isprintable()
    verdict = _check(text, file.stem if named else "")
    for problem in verdict.problems:
        place = f"{file}:{problem.line}" if problem.line else str(file)
        key = f"{problem.key}: " if problem.key and problem.key not in problem.message else ""
        typer.echo(printable(f"{place}: {key}{problem.message}"))
    if not verdict.good:
        raise typer.Exit(1)
    typer.echo(f"{file}: good")
    if verdict.policy is not None and named:
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


def _policies() -> Sequence[Policy]:
    from supervisor.cli.connect import daemon

    if not _offline():
        with daemon() as client:
            return client.policies()
    shipped = _Shipped()
    return [shipped.policy(name) for name in shipped.names()]


def _policy(name: str) -> Policy:
    from supervisor.cli.connect import daemon

    if _offline():
        return _Shipped().policy(name)
    with daemon() as client:
        return client.policy(name)


def _check(text: str, name: str) -> PolicyCheck:
    from supervisor.cli.connect import daemon

    if _offline():
        return _Shipped().check(text, name)
    with daemon() as client:
        return client.check_policy(text, name)


def _offline() -> bool:
    from supervisor.cli.connect import listening, named

    return not named() and not listening()


class _Shipped:
    """The policies of this installation, as the client shows a daemon's."""

    def __init__(self) -> None:
        from supervisor.policy_file import PolicySet
        from supervisor.shipped import shipped_policy_dir

        self._set = PolicySet(shipped_policy_dir())

    def names(self) -> Sequence[str]:
        return self._set.names()

    def policy(self, name: str) -> Policy:
        return self._shown(self._set.get(name))

    def check(self, text: str, name: str) -> PolicyCheck:
        from supervisor.client.result import PolicyCheck as Check
        from supervisor.client.result import PolicyProblem

        problems = [PolicyProblem(each.line, each.key, each.message) for each in self._set.check_text(text, name=name)]
        return Check(tuple(problems), None if problems else self._shown(self._set.resolve_text(text, name=name)))

    def _shown(self, found: Found) -> Policy:
        from supervisor.client.result import Policy as Shown

        resolved = self._set.resolved_toml(found)
        return Shown(found.name, found.description, found.extends, found.toml, resolved, found.digest)
