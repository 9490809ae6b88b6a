"""What a backend is: it turns a request into a sandbox that runs, tells its end, and leaves nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from supervisor.model import Enforcement, Limits, OutputFile, RunSpec, TraceSummary, Usage, Violation
from supervisor.policy import EffectivePolicy
from supervisor.run_events import Stream


@dataclass(frozen=True, slots=True)
class SandboxEnd:
    """How a sandbox ended, before anyone has judged it.

    `status` is waitpid(2)'s of the program, None when it was ended together with its sandbox. `stage` names a set-up step
    that failed (empty: none), with its `errno` and, for a step that is one of several, what it was `about`; `mount` is the
    index of the request's mount if it was about one. `filter_kills`: the seccomp filter kills by itself, with SIGSYS, and
    leaves no other evidence; otherwise a SIGSYS is a signal like any other. `gone_at` is when its last process was gone, by
    time.monotonic(): what is put in order afterwards is not the run's time.
    """

    status: int | None
    usage: Usage
    violations: tuple[Violation, ...] = ()
    missing: tuple[str, ...] = ()
    stage: str = ""
    errno: int = 0
    about: str = ""
    mount: int | None = None
    filter_kills: bool = False
    trace: TraceSummary = field(default_factory=TraceSummary)
    gone_at: float = field(default_factory=time.monotonic)


class Sandbox(Protocol):
    """One run, alive. All but `ended` return at once."""

    enforcement: Enforcement

    @property
    def started(self) -> asyncio.Future[Any]:
        """Done when the program has been executed; cancelled when it never was."""
        ...

    async def ended(self) -> SandboxEnd:
        """After it no process of the run is left and all its output has been handed on. Raises LaunchFailed."""
        ...

    async def collect(self) -> tuple[OutputFile, ...]: ...

    def kill(self) -> None:
        """Ends every process of the run. Safe to repeat."""
        ...

    def signal(self, number: int) -> None: ...

    def resize(self, rows: int, columns: int) -> None: ...

    def cpu_seconds(self) -> float: ...

    def usage(self) -> Usage:
        """What it has used so far; all None once it cannot be told."""
        ...

    def pause_output(self) -> None: ...

    def resume_output(self) -> None: ...

    @property
    def takes_stdin(self) -> bool:
        """Whether standard input is still to be written; false where the request's bytes were all of it."""
        ...

    async def write_stdin(self, data: bytes) -> None: ...

    def close_stdin(self) -> None: ...


@dataclass(frozen=True, slots=True)
class SandboxRequest:
    """What a backend needs for one sandbox. `terminal_size` is rows and columns; `on_over` is called once a stream has gone over the output limit, `on_violation` as soon as one is seen; the end tells all."""

    run_id: str
    spec: RunSpec
    effective: EffectivePolicy
    stdin_follows: bool
    terminal_size: tuple[int, int] | None
    on_output: Callable[[Stream, bytes], None]
    on_over: Callable[[Stream], None]
    on_violation: Callable[[Violation], None]

    @property
    def limits(self) -> Limits:
        return self.effective.limits


class Backend(Protocol):
    """A way to run programs. `check` raises SupervisorError for what cannot be done; `start` makes the sandbox."""

    name: str

    def check(self, spec: RunSpec, effective: EffectivePolicy) -> object:
        """What `start` takes as its plan: everything decided, nothing done."""
        ...

    def start(self, request: SandboxRequest, plan: object) -> AbstractAsyncContextManager[Sandbox]:
        """A context whose exit ends whatever of the run is left and removes every trace of it."""
        ...

    async def close(self) -> None: ...
