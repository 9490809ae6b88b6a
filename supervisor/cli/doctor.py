"""`supervisor doctor` and `supervisor serve`: the host and the daemon itself."""

from __future__ import annotations

import json as jsonlib
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from supervisor import errors
from supervisor.cli.render import print_table, say


class ServeCommand(TyperCommand):
    """`serve`, whose help names the configuration's keys; they are imported when that is asked for."""

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        from supervisor.config import DEFAULT_PATH, Config

        rows = [(key, _described(key, field)) for key, field in Config.model_fields.items()]
        with formatter.section(f"Keys of the configuration ({DEFAULT_PATH}; key = value, or SUPERVISOR_<KEY>)"):
            formatter.write_dl(rows)


def _described(key: str, field: Any) -> str:
    """A key's description and its default; one that is computed is told in the description."""
    if field.default_factory is not None:
        return str(field.description)
    default = field.default
    if isinstance(default, tuple):
        shown = ", ".join(default)
    elif key.endswith("_bytes"):
        shown = f"{default >> 20}M"
    elif isinstance(default, bool):
        shown = str(default).lower()
    else:
        shown = str(default)
    return f"{field.description} [default: {shown or 'empty'}]"


def serve(
    config: Annotated[
        Path | None,
        typer.Option(
            "--config", metavar="FILE", envvar="SUPERVISOR_CONFIG", help="TOML; SUPERVISOR_* override its keys."
        ),
    ] = None,
    listen: Annotated[
        list[str] | None,
        typer.Option(
            "--listen",
            metavar="ADDRESS",
            help="unix:///PATH or tcp://HOST:PORT (mutual TLS only); repeatable. Default: the key listen.",
        ),
    ] = None,
) -> None:
    """Run the daemon, in the foreground, until SIGTERM. Needs root.

    \b
      supervisor serve
      supervisor serve --config /etc/supervisor.toml --listen tcp://0.0.0.0:7443
    """
    try:
        from supervisor.daemon import serve as serve_daemon
    except ImportError as error:
        raise _not_here("daemon", error) from error
    raise typer.Exit(
        serve_daemon(
            None if config is None else str(config), [address.removeprefix("tcp://") for address in listen or ()]
        )
    )


def doctor(
    json: Annotated[bool, typer.Option("--json", help="Print {ready, features} as one JSON object.")] = False,
) -> None:
    """Tell what this host can enforce, what is missing, the remedy.

    Every feature is found by trying it. The exit status is 0 when all that a run needs is there, else 1.
    """
    try:
        from supervisor import doctor as probes
    except ImportError as error:
        raise _not_here("doctor", error) from error
    features = probes.report()
    lacking = [feature for feature in features if feature.name in probes.required and not feature.available]
    if json:
        shown = [asdict(feature) | {"required": feature.name in probes.required} for feature in features]
        typer.echo(jsonlib.dumps({"ready": not lacking, "features": shown}, indent=2))
    else:
        print_table(
            ("FEATURE", "AVAILABLE", "THE HOST SAID", "WITHOUT IT", "REMEDY"),
            [
                (
                    feature.name,
                    "yes" if feature.available else "MISSING" if feature.name in probes.required else "no",
                    feature.detail,
                    "" if feature.available else feature.loss,
                    "" if feature.available else feature.remedy,
                )
                for feature in features
            ],
        )
        if lacking:
            say(f"not ready: {', '.join(feature.name for feature in lacking)} missing, which every run needs", "red")
    raise typer.Exit(1 if lacking else 0)


def _not_here(what: str, error: ImportError) -> errors.HostLacks:
    return errors.HostLacks(
        f"the {what} needs Linux and its dependencies: {error}",
        metadata={"feature": what, "remedy": "run it on a Linux host; clients reach it with SUPERVISOR_ADDRESS"},
    )
