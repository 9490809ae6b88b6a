"""Records of ended runs that could not be written at once: a full disk must cost no client its result."""

from __future__ import annotations

import threading
from typing import Final

import structlog

from supervisor.errors import SupervisorError
from supervisor.evidence.records import RunRecords
from supervisor.model import RunRecord

KEPT_MAX: Final = 1000

log = structlog.get_logger(__name__)


class PendingRecords:
    """Finishes records, or keeps them until `retry` can. Safe for threads.

    At most `kept_max` are kept; beyond that the oldest is given up, and its run is marked lost by the next daemon.
    """

    def __init__(self, records: RunRecords, kept_max: int = KEPT_MAX) -> None:
        self._records = records
        self._kept_max = kept_max
        self._lock = threading.Lock()
        self._kept: dict[str, RunRecord] = {}
        self._given_up = 0

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, run_id: str) -> RunRecord | None:
        """The record of a run whose end is known here only."""
        return self._kept.get(run_id)

    def finish(self, record: RunRecord) -> bool:
        """Records how a run ended; whether that is written by now. Never raises SupervisorError."""
        try:
            self._records.finish(record)
        except SupervisorError as error:
            if error.reason != "RECORDS_UNAVAILABLE":
                log.error("record_refused", run_id=record.run_id, error=str(error))
            else:
                self._keep(record, error)
            return False
        return True

    def _keep(self, record: RunRecord, error: SupervisorError) -> None:
        with self._lock:
            first = not self._kept
            self._kept[record.run_id] = record
            if len(self._kept) > self._kept_max:
                del self._kept[next(iter(self._kept))]
                self._given_up += 1
        if first:  # the next ones fail for the same reason; `retry` tells how many they were
            log.error("records_not_written", run_id=record.run_id, error=str(error))

    def retry(self) -> int:
        """Writes what is kept, oldest first, until one fails again; how many are left. For a thread that may wait."""
        written = 0
        while (record := self._oldest()) is not None:
            try:
                self._records.finish(record)
                written += 1
            except SupervisorError as error:
                if error.reason == "RECORDS_UNAVAILABLE":
                    break
                log.error("record_refused", run_id=record.run_id, error=str(error))
            with self._lock:
                self._kept.pop(record.run_id, None)
        if written:
            log.warning("records_written_late", count=written, left=len(self._kept), given_up=self._given_up)
        return len(self._kept)

    def _oldest(self) -> RunRecord | None:
        with self._lock:
            return next(iter(self._kept.values()), None)
