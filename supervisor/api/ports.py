"""What the servicers ask of the rest of the daemon: protocols, so that `api` can be tried without a sandbox."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from types import TracebackType
from typing import Protocol, Self

from supervisor.evidence.trace_query import TraceQuery
from supervisor.evidence.traces import Found, SearchEnd
from supervisor.model import Peer, RunRecord, RunResult, RunSpec, TraceEvent
from supervisor.policy import Policy, PolicyProblem
from supervisor.probes.followers import Followed
from supervisor.run_events import Event


class LiveRun(Protocol):
    """One run with live input and output; leaving its context before Exited cancels it."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None: ...

    def events(self) -> AsyncIterator[Event]:
        """Started, Output, ViolationSeen, then Exited, whose result has its files but no stdout and stderr."""
        ...

    async def write_stdin(self, data: bytes) -> None:
        """Returns when `data` is taken; what a program that has closed its input would get is dropped."""
        ...

    def close_stdin(self) -> None: ...

    def signal(self, number: int) -> None: ...

    def resize(self, rows: int, columns: int) -> None: ...


class Runs(Protocol):
    """Every run of the daemon: admission, life and record. All methods raise SupervisorError for what they refuse."""

    @property
    def running(self) -> int: ...

    @property
    def queued(self) -> int: ...

    @property
    def draining(self) -> bool: ...

    async def execute(self, spec: RunSpec, peer: Peer) -> RunResult:
        """Run to the end; cancelling the awaiting task ends the run (outcome cancelled, recorded)."""
        ...

    def open(self, spec: RunSpec, peer: Peer, *, stdin_follows: bool) -> LiveRun: ...

    def trace(self, run_id: str) -> AsyncIterator[list[TraceEvent]]:
        """Raises NotFound, InvalidRequest for a run that has no full trace or none yet."""
        ...

    def follow(self, run_id: str, *, calls: bool) -> AsyncIterator[Followed]:
        """First the level alone, then what the run does until it has ended. Raises NotFound, HostLacks, Exhausted."""
        ...

    def search(self, query: TraceQuery) -> AsyncIterator[Found | SearchEnd]:
        """Small steps, some without events; last, how it went. Raises NotFound, InvalidRequest for the query's own run."""
        ...

    async def kill(self, run_id: str) -> bool:
        """False: it had ended already. Raises NotFound."""
        ...

    async def kill_agent(self, agent: str) -> int: ...

    def get(self, run_id: str) -> RunRecord:
        """Raises NotFound."""
        ...

    def list(self, *, agent: str, state: str, limit: int, before: str) -> list[RunRecord]:
        """Newest first, older than the run `before`; empty strings select everything."""
        ...

    def watch(self, agent: str) -> AsyncIterator[tuple[float, str, str, Event, int]]:
        """(time, run_id, agent, event, dropped) of all runs of `agent`, or of all."""
        ...


class Policies(Protocol):
    """The daemon's policies; `policy_file.PolicySet` is one."""

    def get(self, name: str) -> Policy:
        """Raises NotFound."""
        ...

    def names(self) -> Sequence[str]: ...

    def check_text(self, text: str, /, *, name: str = "") -> Sequence[PolicyProblem]:
        """What is wrong with a text; `name` is the policy's where the text has none. Safe in a thread."""
        ...

    def resolve_text(self, text: str, /, *, name: str = "") -> Policy:
        """At once for what has just been checked. Raises InvalidRequest."""
        ...

    def resolved_toml(self, policy: Policy, /) -> str: ...
