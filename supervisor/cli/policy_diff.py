"""`supervisor policy diff`: what one policy allows more or less than another."""

from __future__ import annotations

import json as jsonlib
from dataclasses import asdict
from typing import Annotated

import typer

from supervisor.cli.render import printable


def diff(
    a: Annotated[
        str,
        typer.Argument(metavar="A", help="A policy's name, or a file: with a / in it or .toml.", show_default=False),
    ],
    b: Annotated[str, typer.Argument(metavar="B", help="Likewise; - for standard input.", show_default=False)],
    json: Annotated[bool, typer.Option("--json", help="The same as one JSON object.")] = False,
) -> None:
    """Print what policy B allows more or less than policy A, a line each, sorted.

    \b
      supervisor policy diff strict paranoid
      supervisor policy diff strict ./mine.toml | grep '^+'

    \b
    +  wider: B allows it, or allows more of it; or is less watched
    -  narrower
    ~  different, and neither: another error for the same refusal

    Both are compared as they are in force, after `extends`: system calls one by one by what becomes of each, not by how
    a file lists them. Names and descriptions do not count.

    Exit status: 0 when both come to the same, 1 when they differ, above that when one cannot be had.
    """
    from supervisor.cli.policy_find import in_force, policy_meant
    from supervisor.policy_diff import differences

    before, after = policy_meant(a, "A"), policy_meant(b, "B")
    found = differences(in_force(before), in_force(after))
    if json:
        names = {"a": before.name, "b": after.name, "equal": not found}
        typer.echo(jsonlib.dumps(names | {"differences": [asdict(one) for one in found]}, indent=2))
    else:
        for one in found:
            typer.echo(printable(str(one)))
    if found:
        raise typer.Exit(1)
