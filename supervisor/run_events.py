"""The ordered stream of events that one run gives while it lives; what it did in the kernel is a TraceEvent of `model`."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from supervisor.model import RunResult, Violation


class Stream(str, Enum):
    STDOUT = "stdout"
    STDERR = "stderr"


@dataclass(frozen=True, slots=True)
class Started:
    run_id: str
    time: float


@dataclass(frozen=True, slots=True)
class Output:
    stream: Stream
    data: bytes


@dataclass(frozen=True, slots=True)
class ViolationSeen:
    violation: Violation


@dataclass(frozen=True, slots=True)
class Exited:
    result: RunResult


Event = Started | Output | ViolationSeen | Exited
"""One run's stream: Started (absent when the program could not be executed), Output and ViolationSeen, then Exited."""
