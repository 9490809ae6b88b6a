"""`make bench`: latency and throughput beside peers, on the same machine in the same run. Never part of pass or fail."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from types import FrameType

from supervisor.client import Supervisor
from tests.bench import latency, throughput
from tests.bench.dockerd import docker
from tests.bench.own import BenchError, compile_true, daemon, enter_private_mounts, scratch
from tests.bench.report import Report, as_json, machine, show
from tests.bench.subjects import (
    BWRAP,
    GUEST_DIR,
    PEERS,
    POLICIES,
    SPAWN,
    Subject,
    bwrap_argv,
    command,
    cost_seconds,
    firejail_argv,
    supervised,
)

_ROUNDS = 500
_LATENCY_SECONDS = 45.0
_QUIET_SECONDS = 2.0
_PROGRESS_SECONDS = 5.0
_DYNAMIC = "/usr/bin/true"
_GUEST_TRUE = f"{GUEST_DIR}/true"


class Progress:
    """Says on stderr what is going on, once that takes longer than a moment."""

    def __init__(self) -> None:
        self._next = time.monotonic() + _QUIET_SECONDS

    def __call__(self, text: str) -> None:
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + _PROGRESS_SECONDS
            sys.stderr.write(f"bench: {text}\n")


def _peers(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip() and name.strip() != "none"]
    if unknown := [name for name in names if name not in PEERS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]} is none of {', '.join(PEERS)}")
    return names


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return int(text)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench",
        description="Measures Execute of a `true` under the shipped policies beside posix_spawn, bwrap, firejail and "
        "docker run, and the throughput of Supervisor and bwrap. Needs root; starts its own daemons, leaves nothing.",
    )
    parser.add_argument(
        "--rounds",
        type=_count,
        default=None,
        metavar="N",
        help=f"rounds (default: {_ROUNDS}, fewer where they would take too long); what is slow runs in some of them",
    )
    parser.add_argument(
        "--peers", type=_peers, default=list(PEERS), metavar="LIST", help=f"of {','.join(PEERS)} (the default), or none"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout in place of the tables")
    return parser.parse_args(argv)


def _run(
    report: Report, rounds: int | None, peers: Sequence[str], progress: Progress, stack: contextlib.ExitStack
) -> None:
    base = stack.enter_context(scratch())
    static = compile_true(base / "bench")
    mount = f"{static.parent}:{GUEST_DIR}:ro"
    subjects = [command(SPAWN, "static", "none", [str(static)])]
    progress("starting the daemon")
    address = stack.enter_context(daemon(base / "supervisor"))
    supervisor = stack.enter_context(Supervisor(address))
    subjects += [supervised(supervisor, policy, "static", [_GUEST_TRUE], [mount]) for policy in POLICIES]

    def attempt(name: str, make: Callable[[], Subject]) -> None:
        if name in peers:
            try:
                subjects.append(make())
            except BenchError as error:
                report.skipped[name] = str(error)

    def bwrap(program: str, inside: str) -> Subject:
        return command(BWRAP, program, "7 namespaces", bwrap_argv(static.parent, inside))

    def firejail() -> Subject:
        argv = firejail_argv(base / "home", static)
        return command("firejail", "static", "5 namespaces, seccomp filter", argv)

    attempt("bwrap", lambda: bwrap("static", _GUEST_TRUE))
    attempt("firejail", firejail)
    progress("starting the Docker daemon")
    attempt("docker", lambda: stack.enter_context(docker(base / "docker", static)))
    subjects += [command(SPAWN, "dynamic", "none", [_DYNAMIC])]
    subjects += [supervised(supervisor, "strict", "dynamic", [_DYNAMIC], [])]
    if "bwrap" not in report.skipped:
        attempt("bwrap", lambda: bwrap("dynamic", _DYNAMIC))

    costs = []
    for subject in subjects:
        progress(f"trying {subject.name}")
        try:
            costs.append((subject, cost_seconds(subject)))
        except BenchError as error:
            report.skipped[f"{subject.name}, {subject.program}"] = str(error)
    report.series = latency.plan(costs, rounds or _ROUNDS)
    seconds = math.inf if rounds else _LATENCY_SECONDS
    report.rounds = latency.measure(report.series, rounds or _ROUNDS, seconds, progress)
    measured = {subject.name for subject, _ in costs if subject.program == "static"}
    if throughput.SUPERVISOR in measured:
        argv = bwrap_argv(static.parent, _GUEST_TRUE) if BWRAP in measured else None
        report.rates = throughput.measure(address, mount, _GUEST_TRUE, argv, progress)
    progress("cleaning up")


def _terminate(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def main(argv: Sequence[str] | None = None) -> int:
    """0 when it measured, 1 when it could not, 130 after Ctrl-C; whatever it was, what was started is ended."""
    arguments = _arguments(argv)
    if sys.platform != "linux" or os.geteuid() != 0:
        sys.stderr.write("bench: needs root on Linux: namespaces, mounts and control groups are made by it\n")
        return 1
    signal.signal(signal.SIGTERM, _terminate)
    began = time.monotonic()
    report = Report(machine())
    stack = contextlib.ExitStack()
    try:
        enter_private_mounts()
        _run(report, arguments.rounds, arguments.peers, Progress(), stack)
    except BenchError as error:
        sys.stderr.write(f"bench: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("bench: interrupted, cleaning up\n")
        return 130
    finally:
        # Once is enough: a second Ctrl-C must not leave a daemon behind.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        stack.close()
    report.seconds = time.monotonic() - began
    if arguments.json:
        print(json.dumps(as_json(report), indent=2))
    else:
        show(report)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
