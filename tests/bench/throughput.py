"""Throughput: client processes that start one run after another, as many as asked, against the same number with bwrap.

`python -m tests.bench.throughput ADDRESS MOUNT PROGRAM BWRAP-ARGV...` is one such client: a JSON line in says what to
do from when to when, a JSON line out how many runs it was.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from supervisor.client import Supervisor
from tests.bench.own import BenchError, stop
from tests.bench.subjects import BWRAP, command, supervised

CLIENTS = (1, 2, 4, 8)
SUPERVISOR = "Supervisor strict"

_REPEATS = 2
_SLICE_SECONDS = 0.8
_HEAD_START_SECONDS = 0.03
_STOP_SECONDS = 10.0
_ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Rate:
    """Runs per second, all clients together; `runs` were counted, `failed` not among them."""

    subject: str
    clients: int
    runs_per_second: float
    runs: int
    failed: int


def measure(
    address: str, mount: str, program: str, bwrap: Sequence[str] | None, progress: Callable[[str], None]
) -> list[Rate]:
    """Both subjects in turn at every number of clients, and the whole again. Raises BenchError."""
    subjects = [SUPERVISOR, *([BWRAP] if bwrap else [])]
    slices: dict[tuple[int, str], list[tuple[int, int, float]]] = {}
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(_worker(address, mount, program, bwrap or [])) for _ in range(max(CLIENTS))]
        for worker in workers:
            _tell(worker, SUPERVISOR, 0)
        for worker in workers:
            _hear(worker)
        for repeat in range(_REPEATS):
            for clients in CLIENTS:
                for subject in subjects if repeat % 2 == 0 else reversed(subjects):
                    progress(f"throughput, {clients} at once")
                    start = time.monotonic() + _HEAD_START_SECONDS
                    for worker in workers[:clients]:
                        _tell(worker, subject, start)
                    answers = [_hear(worker) for worker in workers[:clients]]
                    slices.setdefault((clients, subject), []).extend(answers)
    return [
        Rate(
            subject,
            clients,
            round(sum(runs / seconds for runs, _, seconds in answers) / _REPEATS, 1),
            sum(runs for runs, _, _ in answers),
            sum(failed for _, failed, _ in answers),
        )
        for (clients, subject), answers in slices.items()
    ]


@contextlib.contextmanager
def _worker(address: str, mount: str, program: str, bwrap: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.bench.throughput", address, mount, program, *bwrap],
        cwd=_ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        stop(process, "a client", _STOP_SECONDS)
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()


def _tell(worker: subprocess.Popen[bytes], subject: str, start: float) -> None:
    assert worker.stdin is not None
    worker.stdin.write(json.dumps({"subject": subject, "start": start}).encode() + b"\n")
    worker.stdin.flush()


def _hear(worker: subprocess.Popen[bytes]) -> tuple[int, int, float]:
    assert worker.stdout is not None
    line = worker.stdout.readline()
    if not line:
        raise BenchError("a client of the throughput measurement ended early")
    answer: dict[str, Any] = json.loads(line)
    return answer["runs"], answer["failed"], answer["seconds"]


def _work(address: str, mount: str, program: str, *bwrap: str) -> None:
    with Supervisor(address) as supervisor:
        subjects = {SUPERVISOR: supervised(supervisor, "strict", "static", [program], [mount]).once}
        if bwrap:
            subjects[BWRAP] = command(BWRAP, "static", "", list(bwrap)).once
        for line in sys.stdin:
            order = json.loads(line)
            print(json.dumps(_slice(subjects[order["subject"]], order["start"])), flush=True)


def _slice(once: Callable[[], bool], start: float) -> dict[str, float]:
    """Runs for one slice from `start` (time.monotonic); one single run when that is 0, to warm up."""
    time.sleep(max(0.0, start - time.monotonic()))
    begin = now = time.monotonic()
    end = start + _SLICE_SECONDS
    runs = failed = 0
    while True:
        if once():
            runs += 1
        else:
            failed += 1
        now = time.monotonic()
        if now >= end:
            return {"runs": runs, "failed": failed, "seconds": now - begin}


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        _work(*sys.argv[1:])
