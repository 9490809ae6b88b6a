"""One run's trace, from before its first process to the summary."""

from __future__ import annotations

from supervisor.model import TraceLevel, TraceSummary
from supervisor.probes.engine import Probes, Watch
from supervisor.probes.layout import Level
from supervisor.probes.summary import summarise

_LEVELS = {TraceLevel.SUMMARY: Level.SUMMARY, TraceLevel.FULL: Level.FULL}


class Tracing:
    """Made before the run is launched; `finish` when none of its processes is left; `close` in any case."""

    def __init__(self, probes: Probes, cgroup: int, level: TraceLevel) -> None:
        self._probes = probes
        self._level = level
        self._watch: Watch | None = probes.watch(cgroup, _LEVELS[level])

    def finish(self) -> TraceSummary:
        watch, self._watch = self._watch, None
        assert watch is not None
        return summarise(self._probes.finish(watch), self._level.value)

    def close(self) -> None:
        """Forgets a run that never came to its end."""
        if self._watch is not None:
            self.finish()
