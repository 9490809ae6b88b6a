"""`make soak`: mixed runs, eight at a time, for SUPERVISOR_SOAK_SECONDS (600): memory level, nothing left, every answer right."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections import Counter
from typing import Any

import pytest

from supervisor.client import AsyncSupervisor
from tests.host.daemon_fixture import MIB, Daemon

SECONDS = float(os.environ.get("SUPERVISOR_SOAK_SECONDS", "600"))

JOBS: tuple[tuple[list[str], dict[str, Any], str], ...] = (
    (["true"], {}, "exited"),
    (["sh", "-c", "exit 3"], {}, "exited"),
    (["sleep", "5"], {"timeout": 0.05}, "timed_out"),
    (["yes"], {"output_limit": 10_000}, "output_limit"),
    (["python3", "-c", "import os; os.fork(); os.setsid(); print(1)"], {}, "exited"),
    (["no-such-program"], {}, "not_started"),
    (["cat"], {"stdin": b"x" * 200_000}, "exited"),
    (["sh", "-c", "echo x > out"], {"collect": ["*"], "files": {"in": b"y" * 5000}}, "exited"),
    (["python3", "-c", "import ctypes; ctypes.CDLL(None).unshare(0x10000000)"], {}, "violation"),
    (["python3", "-c", "b = bytearray(100 << 20)"], {"memory": "20M"}, "out_of_memory"),
    (["bash", "-c", ":(){ :|:& };:"], {"pids": 20, "timeout": 0.3}, ""),
)


@pytest.mark.soak
async def test_soak(daemon: Daemon) -> None:
    chance = random.Random(1)
    ended: Counter[str] = Counter()
    levels: list[int] = []
    until = time.monotonic() + SECONDS
    async with AsyncSupervisor(daemon.address) as client:

        async def worker() -> None:
            while time.monotonic() < until:
                argv, options, expected = chance.choice(JOBS)
                result = await client.execute(argv, **options)
                assert not expected or result.outcome.value == expected, (argv, result)
                ended[result.outcome.value] += 1

        async def watch() -> None:
            while time.monotonic() < until:
                await asyncio.sleep(SECONDS / 20)
                levels.append(daemon.rss_bytes())
                print(f"{sum(ended.values())} runs, {levels[-1] / MIB:.1f} MiB, {dict(ended)}", flush=True)

        await asyncio.gather(watch(), *(worker() for _ in range(8)))
    # What the first quarter has warmed up is kept; from then on it must not grow.
    assert max(levels[-3:]) <= max(levels[:5]) + 32 * MIB, levels
