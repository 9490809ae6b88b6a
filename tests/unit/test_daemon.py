"""What a daemon does at its start and end when something is in the way."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock, Mock

import pytest
from structlog.testing import capture_logs

from supervisor import instances
from supervisor.daemon import Service


@pytest.mark.parametrize("hanging", [(), ("r",)])
async def test_nothing_is_closed_under_a_run_that_hangs(hanging: tuple[str, ...]) -> None:
    parts: Any = SimpleNamespace(
        config=SimpleNamespace(drain_seconds=1),
        backend=Mock(close=AsyncMock()),
        **{name: Mock() for name in ("hierarchies", "records", "instance", "uids")},
    )
    runs: Any = SimpleNamespace(drain=AsyncMock(return_value=hanging), write_pending=Mock(return_value=0))
    server: Any = SimpleNamespace(drain=AsyncMock(), stop=AsyncMock())
    service = Service(parts, runs, server, asyncio.create_task(asyncio.sleep(60)))
    assert await service.stop() is (not hanging)
    closed = [parts.backend.close, parts.hierarchies.remove, parts.records.close, parts.instance.close]
    assert [method.called for method in closed] == [not hanging] * 4
    assert runs.write_pending.called and server.stop.called


@pytest.mark.skipif("os.geteuid() != 0", reason="only root's directories are removed")
def test_what_cannot_be_removed_does_not_end_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"unit-{os.getpid()}"
    path = Path(f"/tmp/supervisor-{name}-x")
    path.mkdir()
    try:
        monkeypatch.setattr(instances, "remove_tree", Mock(side_effect=OSError("busy")))
        with capture_logs() as logged:
            instances._remove_work_directories(name)
        assert [(entry["event"], entry["path"]) for entry in logged] == [("work_directory_left", str(path))]
    finally:
        path.rmdir()
