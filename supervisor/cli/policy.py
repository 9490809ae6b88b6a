"""`supervisor policy`: what the daemon's policies say. Without a daemon, what the shipped ones say."""

from __future__ import annotations

import json as jsonlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from supervisor import errors
from supervisor.cli.render import print_table, printable

if TYPE_CHECKING:
    from supervisor.client.result import Policy, PolicyCheck

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
    verdict = _check(text)
    for problem in verdict.problems:
        place = f"{file}:{problem.line}" if problem.line else str(file)
        key = f"{problem.key}: " if problem.key and problem.key not in problem.message else ""
        typer.echo(printable(f"{place}: {key}{problem.message}"))
    if not verdict.good:
        raise typer.Exit(1)
    typer.echo(f"{file}: good")


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


def _check(text: str) -> PolicyCheck:
    from supervisor.cli.connect import daemon

    if _offline():
        return _Shipped().check(text)
    with daemon() as client:
        return client.check_policy(text)


def _offline() -> bool:
    from supervisor.cli.connect import listening, named

    return not named() and not listening()


class _Shipped:
    """The policies of this installation, as the client shows a daemon's."""

    def __init__(self) -> None:
        from supervisor.policy_file import PolicySet
        from supervisor.shipped import shipped_policy_dir

        self._directory = shipped_policy_dir()
        self._set = PolicySet(self._directory)

    def names(self) -> Sequence[str]:
        return self._set.names()

    def policy(self, name: str) -> Policy:
        import tomllib

        from supervisor.client.result import Policy as Shown

        found = self._set.get(name)
        text = (self._directory / f"{name}.toml").read_text("utf-8")
        extends = str(tomllib.loads(text).get("extends", ""))
        return Shown(found.name, found.description, extends, text, self._set.resolved_toml(found), found.digest)

    def check(self, text: str) -> PolicyCheck:
        from supervisor.client.result import PolicyCheck as Check
        from supervisor.client.result import PolicyProblem

        problems = self._set.check_text(text)
        return Check(tuple(PolicyProblem(found.line, found.key, found.message) for found in problems), None)
