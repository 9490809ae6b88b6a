"""The command `supervisor`, its sub-commands and how each of its errors ends.

Start-up is kept short: what is heavy (gRPC, rich, the daemon) is imported by the command that needs it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from supervisor import errors
from supervisor.cli import doctor, policy, run, show, trace
from supervisor.cli.render import failure

BROKEN_PIPE_STATUS = 128 + 13
USAGE_STATUS = 2
RUN_USAGE_STATUS = 125
"""`run` keeps the statuses below for the program itself."""

# ClickException, wherever this typer keeps its click: BadParameter -> UsageError -> ClickException.
_CommandLineError: Any = typer.BadParameter.__mro__[2]


class Commands(TyperGroup):
    """Ends the process with the exit status of the outcome, and tells errors in plain lines on stderr."""

    def main(
        self, args: Sequence[str] | None = None, prog_name: str | None = None, *_args: Any, **settings: Any
    ) -> Any:
        settings["standalone_mode"] = False
        try:
            status = super().main(args=args, prog_name=prog_name or "supervisor", **settings)
            sys.stdout.flush()
        except errors.SupervisorError as error:
            failure(error)
            status = errors.row_for(error).exit_status
        except _CommandLineError as error:
            status = _wrong_usage(error)
        except BrokenPipeError:
            status = _reader_gone()
        except (KeyboardInterrupt, typer.Abort):
            status = 130
        sys.exit(status if isinstance(status, int) else 0)

    def invoke(self, ctx: Any) -> Any:
        # Here and not in main: typer's own main ends with status 1 at EPIPE.
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            return _reader_gone()


def _reader_gone() -> int:
    """Whoever read our output has gone; what is flushed at exit must not complain either."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return BROKEN_PIPE_STATUS


def _wrong_usage(error: Any) -> int:
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "supervisor"
    message = error.format_message()
    if message.startswith("Usage:"):
        # A command without anything is asked for its help.
        typer.echo(message, err=True)
    else:
        typer.echo(f"{path}: {message.rstrip('.')}", err=True)
        typer.echo(f"try '{path} --help'", err=True)
    return RUN_USAGE_STATUS if path.endswith(" run") else USAGE_STATUS


app = typer.Typer(
    cls=Commands,
    name="supervisor",
    help="""Run programs nobody trusts, each in a kernel sandbox of its own.

\b
  supervisor run -- python3 -c 'print(1)'        one program under the policy strict
  supervisor run --put a.out:a.out --memory 64M --timeout 5 -- ./a.out
  supervisor doctor                              what this host can enforce
  supervisor ps                                  runs of the daemon

The daemon is the one at SUPERVISOR_ADDRESS, else at supervisor.sock in SUPERVISOR_RUNTIME_DIR, else at
unix:///run/supervisor/supervisor.sock. Over TCP (tcp://HOST:PORT) set SUPERVISOR_CLIENT_CA,
SUPERVISOR_CLIENT_CERT and SUPERVISOR_CLIENT_KEY, too. Without a daemon, `run` starts one of its own for that run.
""",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(version("host-supervisor"))
        raise typer.Exit()


@app.callback()
def _root(
    _: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    pass


_PASS_ON = {"allow_interspersed_args": False, "allow_extra_args": True}

app.command("run", context_settings=_PASS_ON, options_metavar="[OPTIONS] -- PROGRAM [ARG...]", no_args_is_help=True)(
    run.run
)
app.command("serve", cls=doctor.ServeCommand)(doctor.serve)
app.command("doctor")(doctor.doctor)
app.command("ps")(show.ps)
app.command("inspect")(show.inspect)
app.command("kill")(show.kill)
app.command("top")(show.top)
app.add_typer(trace.app, name="trace")
app.add_typer(policy.app, name="policy")


def main() -> None:
    """The entry point of the command `supervisor`."""
    app()
