"""`supervisor run`: one program, its streams live on ours, its end as our exit status."""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Annotated, Any

import typer

from supervisor import errors
from supervisor.model import LIMIT_KEYS, NetworkMode, TraceLevel

_BACKENDS = ("auto", "native", "docker")


def _one_of(words: Sequence[str]) -> Callable[[str | None], str | None]:
    def check(value: str | None) -> str | None:
        if value is not None and value not in words:
            raise typer.BadParameter(f"{value!r} is none of {', '.join(words)}{_nearest(value, words)}")
        return value

    return check


def _limit(key: str) -> Callable[[str | None], str | None]:
    def check(value: str | None) -> str | None:
        if value is not None:
            _checked_limit(key, value)
        return value

    return check


def _checked_limit(key: str, value: str) -> None:
    from supervisor.client.units import limit_value

    try:
        limit_value(key, value)
    except errors.InvalidRequest as error:
        raise typer.BadParameter(error.message.partition(": ")[2]) from None


def _limits(entries: list[str] | None) -> list[str] | None:
    for key, value in _pairs(entries, "KEY=VALUE").items():
        if key not in LIMIT_KEYS:
            hint = _nearest(key, LIMIT_KEYS) or f"; known are {', '.join(LIMIT_KEYS)}"
            raise typer.BadParameter(f"there is no limit {key!r}{hint}")
        _checked_limit(key, value)
    return entries


def _key_values(entries: list[str] | None) -> list[str] | None:
    _pairs(entries, "K=V")
    return entries


def _pairs(entries: Sequence[str] | None, form: str) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for entry in entries or ():
        key, equals, value = entry.partition("=")
        if not key or not equals:
            raise typer.BadParameter(f"{entry!r} is not of the form {form}")
        pairs[key] = value
    return pairs


def _nearest(word: str, words: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, words, 1)
    return f"; did you mean {near[0]}?" if near else ""


def _option(*names: str, metavar: str, help: str, check: Callable[..., Any] | None = None) -> Any:
    return typer.Option(*names, metavar=metavar, help=help, callback=check)


def run(
    context: typer.Context,
    policy: Annotated[
        str, _option("--policy", metavar="NAME|FILE", help="A policy that the daemon knows, or a policy file to send.")
    ] = "strict",
    agent: Annotated[
        str, _option("--agent", metavar="ID", help="On whose behalf; quotas and kill --agent go by it.")
    ] = "",
    timeout: Annotated[
        str | None,
        _option(
            "--timeout",
            metavar="SECONDS",
            help="Wall clock, or such as 500ms, 5s, 2m; exit status 124.",
            check=_limit("wall_seconds"),
        ),
    ] = None,
    memory: Annotated[
        str | None,
        _option("--memory", metavar="SIZE", help="Such as 256M; exit status 137.", check=_limit("memory")),
    ] = None,
    cpus: Annotated[
        str | None, _option("--cpus", metavar="N", help="CPUs at a time; 0.5 is half of one.", check=_limit("cpus"))
    ] = None,
    pids: Annotated[
        str | None, _option("--pids", metavar="N", help="Processes and threads at once.", check=_limit("pids"))
    ] = None,
    disk: Annotated[
        str | None,
        _option("--disk", metavar="SIZE", help="All that is written to /tmp, /work, /dev/shm.", check=_limit("disk")),
    ] = None,
    output_limit: Annotated[
        str | None,
        _option(
            "--output-limit", metavar="SIZE", help="Of stdout, and of stderr; exit status 137.", check=_limit("output")
        ),
    ] = None,
    limit: Annotated[
        list[str] | None,
        _option("--limit", metavar="KEY=VALUE", help=f"Any limit: {', '.join(LIMIT_KEYS)}.", check=_limits),
    ] = None,
    net: Annotated[
        str | None,
        _option(
            "--net",
            metavar="MODE",
            help="none, internal (peers only), filtered (what --allow names) or full.",
            check=_one_of([mode.value for mode in NetworkMode]),
        ),
    ] = None,
    allow: Annotated[
        list[str] | None, _option("--allow", metavar="HOST:PORT", help="Reachable with --net filtered; repeatable.")
    ] = None,
    mount: Annotated[
        list[str] | None,
        _option(
            "--mount", metavar="SRC:DST[:ro|:rw]", help="Show a directory of the daemon's host; read-only unless :rw."
        ),
    ] = None,
    put: Annotated[
        list[str] | None,
        _option("--put", metavar="SRC:DST", help="Copy a file or directory in; a relative DST is below /work."),
    ] = None,
    get: Annotated[
        list[str] | None,
        _option(
            "--get",
            metavar="GLOB",
            help="Copy files of the run out, below this directory, over files of these names; relative to /work.",
        ),
    ] = None,
    env: Annotated[
        list[str] | None,
        _option("--env", metavar="K=V", help="A variable; nothing of this shell's is passed on.", check=_key_values),
    ] = None,
    cwd: Annotated[str | None, _option("--cwd", metavar="DIR", help="Where it starts; /work by default.")] = None,
    stdin: Annotated[
        str | None, _option("--stdin", metavar="FILE|-", help="Its standard input, - for ours; empty by default.")
    ] = None,
    interactive: Annotated[
        bool, typer.Option("-i", "--interactive", help="Pass on our standard input: the same as --stdin -.")
    ] = False,
    tty: Annotated[
        bool, typer.Option("-t", "--tty", help="Give it a terminal, which ours is passed on to; implies -i.")
    ] = False,
    label: Annotated[
        list[str] | None,
        _option("--label", metavar="K=V", help="Kept in the run's record; repeatable.", check=_key_values),
    ] = None,
    image: Annotated[
        str | None, _option("--image", metavar="NAME", help="Root file system, where the policy takes one.")
    ] = None,
    trace: Annotated[
        str | None,
        _option(
            "--trace",
            metavar="LEVEL",
            help="off, summary or full.",
            check=_one_of([level.value for level in TraceLevel]),
        ),
    ] = None,
    backend: Annotated[
        str, _option("--backend", metavar="NAME", help="auto, native or docker.", check=_one_of(_BACKENDS))
    ] = "auto",
    request_id: Annotated[
        str, _option("--request-id", metavar="ID", help="Refused when it was used before; makes a retry safe.")
    ] = "",
    json: Annotated[
        bool, typer.Option("--json", help="Print the result as one JSON object, and nothing else.")
    ] = False,
) -> None:
    """Run one program in a sandbox of its own.

    Its output appears here as it is written; why it was ended appears on stderr. Limits that are left out are
    the policy's; asking for more than the policy allows is refused.

    \b
      supervisor run -- python3 -c 'print(6 * 7)'
      supervisor run --timeout 5 --memory 256M --mount ./data:/work/data -- python3 /work/data/job.py
      supervisor run --put ./src:src --get 'out/*' --cwd /work/src -- make
      supervisor run --policy moderate --net full --stdin - --json -- sort < names.txt
      supervisor run -t --timeout 30m -- bash

    \b
    Exit status: the program's own, or
      124  timed out                    127  no such program
      125  the supervisor failed        159  ended for a violation of its policy
      126  refused by policy, or not executable
      128+N  ended by signal N; 137 also for memory, CPU and output limits, 130 when cancelled

    Ctrl-C is passed to the program; a second one ends the run. With -t every key is the program's, Ctrl-C too, and
    the policy's limits on time and output count as ever: ask for more where somebody sits before it.
    """
    if not context.args:
        raise errors.InvalidRequest("no program; write supervisor run [OPTIONS] -- PROGRAM [ARG...]", field="PROGRAM")
    from supervisor.cli.attach import attach
    from supervisor.cli.connect import daemon
    from supervisor.cli.transfer import files_to_put

    if tty and json:
        raise typer.BadParameter("a terminal is live, and --json is not: leave -t or --json out")
    file = _policy_file(policy)
    with ExitStack() as stack:
        options: dict[str, Any] = {
            "policy": file or policy,
            "agent": agent,
            "timeout": timeout,
            "memory": memory,
            "cpus": cpus,
            "pids": pids,
            "disk": disk,
            "output_limit": output_limit,
            "limits": _pairs(limit, "KEY=VALUE"),
            "net": net,
            "allow": allow,
            "mounts": [os.fsencode(entry) for entry in mount or ()],
            "files": files_to_put(put or (), stack),
            "collect": [os.fsencode(pattern) for pattern in get or ()],
            "env": {os.fsencode(key): os.fsencode(value) for key, value in _pairs(env, "K=V").items()},
            "cwd": None if cwd is None else os.fsencode(cwd),
            "labels": _pairs(label, "K=V"),
            "image": image,
            "trace": trace,
            "backend": backend,
            "request_id": request_id,
        }
        if tty:
            _add_terminal(options)
        source = _stdin("-" if stdin is None and (interactive or tty) else stdin, stack)
        argv = [os.fsencode(argument) for argument in context.args]
        client = stack.enter_context(daemon(embed=True))
        try:
            status = attach(client, argv, options, source, as_json=json)
        except errors.SupervisorError as error:
            raise _naming_file(error, file) from None
    raise typer.Exit(status)


def _add_terminal(options: dict[str, Any]) -> None:
    """A terminal of our own's size and kind; of this shell's environment nothing else is passed on."""
    from supervisor.cli.terminal import terminal_size

    options["terminal"] = terminal_size()
    if kind := os.environb.get(b"TERM"):
        options["env"] = {b"TERM": kind} | options["env"]


def _policy_file(asked: str) -> os.PathLike[str] | None:
    """The path of a policy's file where `asked` looks like one, so that a missing file is told as that."""
    from pathlib import Path

    return Path(asked) if "/" in asked or asked.endswith(".toml") else None


def _naming_file(error: errors.SupervisorError, file: os.PathLike[str] | None) -> errors.SupervisorError:
    """`error` with the policy's file in the place of what the daemon, which knows only its text, calls it."""
    if file is not None and error.metadata.get("file") == "inline":
        name = os.fspath(file)
        error.metadata["file"] = name
        error.message = re.sub(r"(^|; )inline(?=:)", lambda found: found[1] + name, error.message)
    return error


def _stdin(asked: str | None, stack: ExitStack) -> int | None:
    """The descriptor to read standard input from; None for an empty one."""
    if asked is None:
        return None
    if asked == "-":
        return sys.stdin.fileno()
    try:
        opened = os.open(asked, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise errors.InvalidRequest(f"--stdin: cannot read {asked}: {error.strerror}", field="--stdin") from error
    stack.callback(os.close, opened)
    return opened
