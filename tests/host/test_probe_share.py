"""What one run puts into the rings leaves room for what another does, however slow the reader: here nobody reads."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from supervisor.probes.layout import SYSCALL_SLOTS
from tests.host.probed import watched

OPENS = "import sys\nfor n in range(int(sys.argv[1])): open('/dev/null').close()"


@pytest.mark.parametrize("kind", ["calls", "files"])
def test_a_flood_leaves_room(attacks: Path, kind: str) -> None:
    with watched(2) as (flooder, innocent):
        if kind == "calls":
            flooder.execute([str(attacks / "flood"), "1000000", "0"])
            innocent.execute([str(attacks / "flood"), "10000", "0"])
        else:
            flooder.execute([sys.executable, "-c", OPENS, "50000"])
            innocent.execute([sys.executable, "-c", OPENS, "500"])
        seen = innocent.finish()
        assert seen.dropped == 0
        assert sum(map(len, seen.calls)) == sum(seen.counts[: 2 * SYSCALL_SLOTS])
        seen = flooder.finish()
        assert seen.dropped > 0
        if kind == "calls":
            assert sum(map(len, seen.calls)) + seen.dropped == sum(seen.counts[: 2 * SYSCALL_SLOTS])
