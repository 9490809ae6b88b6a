"""Latency: every subject in every round, in an order shuffled anew, so that drift of the machine hits all alike."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tests.bench.subjects import BWRAP, SPAWN, Subject

_SECONDS_EACH = 12.0
"""A subject that takes long is measured in fewer of the rounds, spread evenly."""

_LEAST = 20
# Fewer samples than this say nothing about the slowest hundredth.
_P99_LEAST = 100


@dataclass(slots=True)
class Series:
    """The measured times of one subject, in milliseconds."""

    subject: Subject
    planned: int
    times: list[float] = field(default_factory=list)
    failed: int = 0

    def quantile(self, part: float) -> float | None:
        """Nearest rank; None where there are too few samples for it."""
        if not self.times or (part > 0.95 and len(self.times) < _P99_LEAST):
            return None
        ordered = sorted(self.times)
        return ordered[max(0, math.ceil(part * len(ordered)) - 1)]


def plan(costs: Sequence[tuple[Subject, float]], rounds: int) -> list[Series]:
    """How often each subject is to run, from what one run costs in seconds."""
    return [Series(subject, min(rounds, max(_LEAST, int(_SECONDS_EACH / max(cost, 1e-6))))) for subject, cost in costs]


def measure(series: Sequence[Series], rounds: int, seconds: float, progress: Callable[[str], None]) -> int:
    """Fills the series, for `rounds` or until `seconds` have passed; returns how many rounds it was."""
    order = random.Random(1)
    deadline = time.monotonic() + seconds
    for number in range(rounds):
        if time.monotonic() > deadline:
            return number
        progress(f"latency, round {number + 1} of {rounds}")
        due = [s for s in series if (number + 1) * s.planned // rounds > number * s.planned // rounds]
        order.shuffle(due)
        for one in due:
            once = one.subject.once
            before = time.perf_counter_ns()
            good = once()
            taken = time.perf_counter_ns() - before
            if good:
                one.times.append(round(taken / 1e6, 4))
            else:
                one.failed += 1
    return rounds


def reference(series: Sequence[Series], name: str, program: str) -> float | None:
    """The median of the peer `name` for the same program."""
    assert name in (SPAWN, BWRAP)
    return next((s.quantile(0.5) for s in series if (s.subject.name, s.subject.program) == (name, program)), None)
