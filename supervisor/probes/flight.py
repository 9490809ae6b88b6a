"""A run's last calls and records, kept for as long as nothing has come to light, and as they stood when something did.

What a run that is traced in summary leaves behind when it has violated its policy: the calls that led there. A run without
a violation costs its ring in memory alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING

from supervisor.probes.layout import FLIGHT_CALL, FLIGHT_CALLS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

RECORDS_KEPT = 1_000
_FREEZES_MAX = 32
"""Moments of one run that are kept: the first ones, and its end."""


class FlightRecorder:
    """Of one run. `keep` what comes; `freeze` when something was violated; `calls` and `records` are what is to be stored."""

    def __init__(self) -> None:
        self._recent: deque[bytes] = deque(maxlen=RECORDS_KEPT)
        self._frozen: list[bytes] = []

    @property
    def is_frozen(self) -> bool:
        return bool(self._frozen)

    def keep(self, records: Iterable[bytes]) -> None:
        self._recent.extend(records)

    def freeze(self, memory: bytes) -> None:
        """`memory` is the run's struct flight as it stands."""
        if len(self._frozen) >= _FREEZES_MAX:
            self._frozen.pop()
        self._frozen.append(memory)

    def records(self) -> list[bytes]:
        return list(self._recent)

    def calls(self) -> list[NDArray[np.uint8]]:
        """The calls of every frozen moment, each once, as rows of the bulk ring."""
        import numpy as np

        from supervisor.probes.table import CALL

        rows = np.frombuffer(b"".join(self._frozen), _dtype())
        # 0: the place was being written to.
        rows = rows[rows["place"] > 0]
        _, first = np.unique(rows["place"], return_index=True)
        rows = rows[first]
        calls = np.zeros(len(rows), CALL)
        for name in ("time_ns", "result", "args", "pid", "tid", "nr", "abi"):
            calls[name] = rows[name]
        return [calls.view("u1").reshape(len(rows), CALL.itemsize)] if len(rows) else []


def _dtype() -> np.dtype[np.void]:
    import numpy as np

    found = np.dtype(
        [
            *(("time_ns", "u8"), ("result", "i8"), ("args", "u8", 6)),
            *(("pid", "u4"), ("tid", "u4"), ("nr", "u4"), ("abi", "u4"), ("place", "u8")),
        ]
    )
    assert found.itemsize * FLIGHT_CALLS == FLIGHT_CALL.size * FLIGHT_CALLS
    return found
