"""search_traces of both clients, against a daemon's face."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from fake_daemon import RUN_ID

from supervisor import errors
from supervisor.client import AsyncSupervisor, SearchEnd, Supervisor


@pytest.fixture
def client(daemon):
    with Supervisor(daemon.address) as connected:
        yield connected


def test_what_is_found_comes_with_its_run_and_in_the_end_how_it_went(daemon, client):
    daemon.traces.end.skipped = 1
    daemon.traces.end.skipped_run_ids.append("x")
    found = client.search_traces(
        syscall="openat", kind=("open", "exec"), since=1.5, until=datetime(2026, 1, 1, tzinfo=UTC)
    )
    assert found.end is None
    events = list(found)
    assert [run_id for run_id, _ in events] == ["run-3"] * 9 + [RUN_ID]
    assert (events[8].event.path, events[8].event.result) == ("/etc/ld.so.cache", 3)
    assert found.end == SearchEnd(2, 1, ("x",), False)
    (asked,) = daemon.traces.searches
    assert (list(asked.syscalls), list(asked.kinds), asked.limit) == (["openat"], ["open", "exec"], 0)
    assert (asked.since, asked.until) == (1.5, 1_767_225_600.0)


def test_a_search_may_be_left(client):
    found = client.search_traces()
    assert next(found).run_id == "run-3"
    found.close()
    assert list(found) == [] and found.end is None


@pytest.mark.parametrize(
    ("options", "field"),
    [({"path": "["}, "path"), ({"since": "soon"}, "since"), ({"until": object()}, "until"), ({"limit": "x"}, "")],
)
def test_what_makes_no_sense_names_its_field(client, options, field):
    with pytest.raises(errors.InvalidRequest) as caught:
        list(client.search_traces(**options))
    assert caught.value.field == field


def test_unknown_options_are_mistakes_of_the_program(client):
    with pytest.raises(TypeError, match="no option pth"):
        client.search_traces(pth="/x")


async def test_the_same_awaited(daemon):
    async with AsyncSupervisor(daemon.address) as client:
        found = client.search_traces(path="/etc/*")
        assert len([event async for _, event in found]) == 10
        assert found.end == SearchEnd(2, 0, (), False)
        with pytest.raises(errors.InvalidRequest):
            async for _ in client.search_traces(path="["):
                pass
        left = client.search_traces()
        async for _ in left:
            break
        await left.close()
