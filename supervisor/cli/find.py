"""The run that somebody means: by its id, or by as much of it as no other run shares."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from supervisor import errors

if TYPE_CHECKING:
    from supervisor.client.sync_client import Supervisor
    from supervisor.model import RunRecord

RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="A run's id, or its beginning.", show_default=False)]

_SHOWN = 8
_OLDER = 1000
"""So many runs with smaller ids, and no more with the one that is sought will come: ids begin with their time."""


def find_run(client: Supervisor, asked: str) -> RunRecord:
    """The run whose id is `asked`, else the only one whose id begins so.

    Raises NotFound where there is none, InvalidRequest where there are several.
    """
    try:
        return client.get(asked)
    except errors.NotFound as error:
        missing = error
    found: list[RunRecord] = []
    older = 0
    for run in client.each_run():
        if run.run_id.startswith(asked):
            found.append(run)
        elif run.run_id < asked:
            older += 1
        if older > _OLDER or len(found) > _SHOWN:
            break
    if not found:
        raise missing
    if len(found) > 1:
        names = ", ".join(run.run_id for run in found[:_SHOWN]) + (", ..." if len(found) > _SHOWN else "")
        raise errors.InvalidRequest(f"{asked!r} begins the ids of several runs, write more of it: {names}", field="RUN")
    return found[0]
