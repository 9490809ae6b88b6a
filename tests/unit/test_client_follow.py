"""follow_trace of both clients and `supervisor trace follow`, against a daemon's face."""

from __future__ import annotations

import json
import queue
import signal
import threading

import pytest
from fake_daemon import RUN_ID
from trace_samples import sample

from supervisor import errors
from supervisor.client import AsyncSupervisor, Supervisor
from supervisor.client.calls import Pairing, paired


@pytest.fixture
def client(daemon):
    with Supervisor(daemon.address) as connected:
        yield connected


def test_events_come_as_they_are_told(daemon, client):
    with client.follow_trace(RUN_ID) as follow:
        assert (follow.level, follow.dropped) == ("full", 0)
        assert [next(follow) for _ in range(4)] == sample()[:4]
        assert [next(follow) for _ in range(3)] == sample()[4:7]
        assert follow.dropped == 5
        threading.Timer(0.1, follow.close).start()
        assert list(follow) == []
    assert daemon.traces.left.wait(5)


def test_it_ends_with_the_run(client):
    follow = client.follow_trace("run-2", calls=False)
    assert [event.kind for event in follow][-1] == "violation" and follow.level == "summary"
    assert follow.dropped == 7


def test_one_that_is_left_is_closed(daemon, client):
    with client.follow_trace(RUN_ID):
        assert not daemon.traces.left.is_set()
    assert daemon.traces.left.wait(5)


def test_what_is_refused_is_raised_at_once(client):
    with pytest.raises(errors.HostLacks) as caught:
        client.follow_trace("run-3")
    assert caught.value.reason == "RUN_ENDED"


async def test_the_same_awaited(daemon):
    async with AsyncSupervisor(daemon.address) as client:
        follow = client.follow_trace("run-2", calls=False)
        assert [event.kind async for event in follow][-1] == "violation"
        assert (follow.level, follow.dropped) == ("summary", 7)
        async with client.follow_trace(RUN_ID) as left:
            assert left.level == "full"
            async for _ in left:
                break
        with pytest.raises(errors.HostLacks):
            async for _ in client.follow_trace("run-3"):
                pass
        with pytest.raises(errors.HostLacks):
            async with client.follow_trace("run-3"):
                pass


def test_what_is_held_for_its_call_can_be_had():
    events = sample()
    pairing = Pairing()
    assert [list(pairing.add(event)) for event in events[:1]] == [[]]
    assert [entry.event for entry in pairing.rest()] == events[:1]
    whole = [entry for event in events for entry in pairing.add(event)]
    whole += pairing.rest()
    assert whole == list(paired(events)) and list(pairing.rest()) == []


# --- the command ---


def test_lines_of_a_run_at_the_level_summary(daemon, command):
    done = command("trace", "follow", "run-2", "--no-calls", check=0)
    lines = done.stdout.decode().splitlines()
    assert lines[0] == r'    0.000000         2  execve("/usr/bin/sh", ["sh", "-c", "ls \033[31m\n"]) = 0'
    assert lines[-1] == r"    1.000000         3  violation: no-shadow: alert, high, open: /etc/shadow\x1b[31m"
    assert done.stderr.decode().splitlines() == [
        "following run run-2  python3  level summary",
        "5 events were not read in time and are missing here",
        "2 events were not read in time and are missing here",
        "run run-2 has ended: out_of_memory",
    ]
    (asked,) = daemon.traces.follows
    assert (asked.run_id, asked.without_calls) == ("run-2", True)


def test_objects(command):
    done = command("trace", "follow", "run-2", "--no-calls", "--json", check=0)
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert (events[0]["kind"], events[0]["argv"][0], events[-1]["kind"]) == ("exec", "sh", "violation")


def test_without_a_run_it_is_the_newest_that_runs(daemon, command):
    done = command("trace", "follow", "--no-calls", check=0)
    assert done.stderr.startswith(b"following run run-1  python3 -c ")
    assert daemon.traces.follows[0].run_id == "run-1"


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_lines_are_written_at_once_and_ctrl_c_ends_it(daemon, started, options):
    process = started("trace", "follow", "run-1", *options)
    came: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=lambda: [came.put(line) for line in process.stdout], daemon=True).start()
    count = 7 if options else 5  # two of them are of the same call
    lines = [came.get(timeout=20) for _ in range(count)]
    assert (b"execve" in lines[0] or b'"exec"' in lines[0]) and process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 130
    assert b"Traceback" not in process.stderr.read()
    assert daemon.traces.left.wait(5)


def test_what_cannot_be_followed(command):
    done = command("trace", "follow", "run-3", check=125)
    assert b"run run-3 has ended" in done.stderr and b"remedy: supervisor trace show run-3" in done.stderr
    assert b"nosuch" in command("trace", "follow", "nosuch", check=125).stderr


def test_help_teaches(command):
    done = command("trace", "follow", "--help", check=0)
    assert b"supervisor trace follow 01J9ZQ --no-calls" in done.stdout
    assert b"follow RUN" in command("trace", "--help", check=0).stdout
