"""Following the trace of a run that is going: what it does arrives while it does it, whoever else follows, reads or leaves."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from supervisor import errors
from supervisor.client import AsyncSupervisor, Supervisor, TraceFollow
from supervisor.client.result import TraceEvent
from supervisor.probes.followers import FOLLOWERS_MAX, QUEUE_BYTES
from supervisor.probes.table import CALL
from supervisor.v1 import run_pb2, trace_pb2, trace_pb2_grpc
from tests.host.daemon_fixture import Daemon, LiveRun, fewer, scaled, spec, wait_until
from tests.host.live_shell import PROMPT_SECONDS, SHELL, do, end, shell

FLOOD_CALLS = 400_000
FLOOD = (
    "import os, sys, time\n"
    "print('ready', flush=True); sys.stdin.readline()\n"
    f"call, start = os.getppid, time.monotonic()\nfor _ in range({FLOOD_CALLS}): call()\n"
    "print(f'took {time.monotonic() - start:.3f}', flush=True); sys.stdin.readline()\n"
    "os.mkdir('/tmp/after'); sys.stdin.readline()\n"
)


class Reader:
    """Reads what is followed in a thread of its own, as it comes."""

    def __init__(self, follow: TraceFollow) -> None:
        self.follow = follow
        self.events: list[TraceEvent] = []
        self.error: Exception | None = None
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        try:
            for event in self.follow:
                self.events.append(event)
        except Exception as error:
            self.error = error

    def wait_for(self, wanted: Callable[[TraceEvent], bool], what: str) -> TraceEvent:
        """The first such event, which must come promptly: the run does nothing further meanwhile."""
        wait_until(lambda: any(map(wanted, tuple(self.events))), PROMPT_SECONDS, what)
        return next(event for event in self.events if wanted(event))

    @property
    def over(self) -> bool:
        return not self._thread.is_alive()

    def join(self) -> None:
        self._thread.join(scaled(20))
        assert self.over, "the stream goes on after its run"
        if self.error is not None:
            raise self.error


def test_events_arrive_while_the_run_lives(supervisor: Supervisor, live: Callable[..., LiveRun]) -> None:
    run = shell(live)
    do(run, "mkdir /tmp/before")
    with supervisor.follow_trace(run.run_id) as follow:
        assert follow.level == "full"
        reader = Reader(follow)
        for step in range(3):
            do(run, f"mkdir /tmp/step-{step}")
            execed = reader.wait_for(
                lambda event, step=step: event.kind == "exec" and event.argv[-1:] == (f"/tmp/step-{step}",), "the exec"
            )
            assert (execed.comm, execed.parent) == ("mkdir", 2)
            made = reader.wait_for(
                lambda event, step=step: event.path == f"/tmp/step-{step}" and event.kind == "mkdir", "mkdir"
            )
            assert (made.syscall, made.result) == ("mkdir", 0)
            calls = [event for event in reader.events if event.pid == execed.pid and event.kind == "syscall"]
            assert [event.result for event in calls if event.syscall == "mkdir"] == [0]
            ended = reader.wait_for(lambda event, pid=execed.pid: (event.kind, event.pid) == ("exit", pid), "the exit")
            assert ended.detail.startswith("process exited with 0")
        assert not reader.over
        result = end(run)
        reader.join()
    assert follow.dropped == 0 and not any("/tmp/before" in event.path for event in reader.events)
    assert any((event.kind, event.pid) == ("exit", 2) for event in reader.events)
    # What was followed is what is stored, from there on.
    stored = list(supervisor.trace(run.run_id))
    assert result.trace.complete and 0 < len(reader.events) < len(stored)
    since = min(event.time for event in reader.events)
    assert sorted(map(repr, reader.events)) == sorted(repr(event) for event in stored if event.time >= since)


def test_two_followers_see_the_same_and_one_leaves_the_other_alone(
    daemon: Daemon, supervisor: Supervisor, live: Callable[..., LiveRun]
) -> None:
    run = shell(live)
    first, second = supervisor.follow_trace(run.run_id), supervisor.follow_trace(run.run_id)
    with Supervisor(daemon.address) as other, other.follow_trace(run.run_id, calls=False) as third:
        readers = [Reader(follow) for follow in (first, second, third)]
        do(run, "mkdir /tmp/both")
        for reader in readers:
            reader.wait_for(lambda event: event.path == "/tmp/both", "mkdir")
        first.close()
        readers[0].join()
        do(run, "mkdir /tmp/one")
        for reader in readers[1:]:
            reader.wait_for(lambda event: event.path == "/tmp/one", "mkdir")
        end(run)
        for reader in readers[1:]:
            reader.join()
    told = {event.kind for event in readers[2].events}
    assert "syscall" not in told and {"exec", "fork", "exit", "mkdir"} <= told
    assert [e for e in readers[1].events if e.kind != "syscall"] == readers[2].events
    assert not any(event.path == "/tmp/one" for event in readers[0].events)


def test_a_run_at_the_level_summary_tells_what_is_recorded_of_it_anyway(
    supervisor: Supervisor, live: Callable[..., LiveRun]
) -> None:
    run = shell(live, "summary")
    with supervisor.follow_trace(run.run_id) as follow:
        assert follow.level == "summary"
        reader = Reader(follow)
        do(
            run,
            "python3 -c 'import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect((\"127.0.0.1\", 9))'",
        )
        reader.wait_for(lambda event: event.kind == "exec" and event.path.startswith("/usr/bin/python3"), "the exec")
        reader.wait_for(lambda event: (event.kind, event.address, event.port) == ("connect", "127.0.0.1", 9), "connect")
        reader.wait_for(lambda event: event.kind == "exit", "the exit")
        end(run)
        reader.join()
    assert not any(event.kind == "syscall" for event in reader.events)


def test_violations_come_while_the_run_lives(supervisor: Supervisor, live: Callable[..., LiveRun]) -> None:
    policy = (
        'extends = "moderate"\n[[rules]]\nname = "no-id"\non = ["exec"]\n'
        'match.path = ["*/id"]\nseverity = "low"\naction = "alert"\n'
    )
    fields = {"policy": "", "policy_toml": policy}
    run = shell(live, "summary", **fields)
    with supervisor.follow_trace(run.run_id) as follow:
        reader = Reader(follow)
        do(run, "id > /dev/null")
        found = reader.wait_for(lambda event: event.kind == "violation", "the violation")
        assert found.detail == "no-id: alert, low, exec" and found.path.endswith("/id")
        execed = next(event for event in reader.events if event.kind == "exec")
        assert execed.pid == found.pid and reader.events.index(execed) < reader.events.index(found)
        result = end(run)
        reader.join()
    assert [event.kind for event in reader.events].count("violation") == len(result.violations) == 1


def test_what_ended_the_run_is_told_before_the_stream_ends(
    supervisor: Supervisor, live: Callable[..., LiveRun]
) -> None:
    run = shell(live)
    with supervisor.follow_trace(run.run_id) as follow:
        reader = Reader(follow)
        run.send(b"mount -t tmpfs none /tmp || unshare -m true; exec unshare -Ur true\n")
        result = run.finish()
        reader.join()
    assert result.outcome == run_pb2.OUTCOME_VIOLATION, result
    told = [event for event in reader.events if event.kind == "violation"]
    assert [(event.syscall, event.detail.partition(":")[0]) for event in told] == [
        (one.syscall, one.rule) for one in result.violations
    ]


def test_the_run_has_ended_when_the_stream_has(supervisor: Supervisor, live: Callable[..., LiveRun]) -> None:
    run = shell(live)
    with supervisor.follow_trace(run.run_id) as follow:
        reader = Reader(follow)
        run.send(b"exit 3\n")
        reader.join()
        assert supervisor.get(run.run_id).exit_code == 3
        assert len(list(supervisor.trace(run.run_id))) >= len(reader.events)
    run.finish()


@contextmanager
def unread(daemon: Daemon, run_id: str) -> Iterator[Iterator[trace_pb2.FollowTraceResponse]]:
    """A follower on the wire, which reads when it is asked to: the SDK's thread would read ahead."""
    with daemon.channel() as channel:
        call = trace_pb2_grpc.TraceServiceStub(channel).FollowTrace(trace_pb2.FollowTraceRequest(run_id=run_id))
        first = next(call)
        assert (first.level, len(first.events), first.dropped) == ("full", 0, 0)
        yield call
        call.cancel()


def flood(live: Callable[..., LiveRun]) -> LiveRun:
    run = live("python3", "-c", FLOOD, trace="TRACE_LEVEL_FULL")
    run.read_until(b"ready\n")
    return run


def seconds_of(run: LiveRun) -> float:
    run.send(b"\n")
    run.read_until(b"\n")
    while b"took" not in run.stdout or not run.stdout.endswith(b"\n"):
        run.next_event()
    return float(run.stdout.split()[-1])


@pytest.mark.slow
def test_a_follower_that_never_reads_costs_the_run_nothing(
    daemon: Daemon, supervisor: Supervisor, live: Callable[..., LiveRun]
) -> None:
    alone = flood(live)
    before = seconds_of(alone)
    assert alone.run_id
    for _ in range(2):
        alone.send(b"\n")
    end(alone)
    run = flood(live)
    with unread(daemon, run.run_id) as messages, Supervisor(daemon.address) as client:
        with client.follow_trace(run.run_id, calls=False) as other:
            reader = Reader(other)
            took = seconds_of(run)
            run.send(b"\n")
            # Another follower has not been kept waiting.
            reader.wait_for(lambda event: event.path == "/tmp/after", "mkdir")
            run.send(b"\n")
            result = end(run)
        # It reads again only now: what is missing is told, and all in all nothing is lost without a word.
        count = dropped = 0
        gap_first = None
        for message in messages:
            dropped += message.dropped
            if message.dropped and gap_first is None:
                gap_first = count
            count += len(message.events)
    assert took < before * 3 + 1, (took, before)
    # What waited was bounded, and the oldest of it has been kept.
    assert 1000 < count < 3 * QUEUE_BYTES / CALL.itemsize < FLOOD_CALLS
    assert dropped > FLOOD_CALLS / 3 and gap_first is not None and gap_first > 1000
    told = result.trace.events + result.trace.dropped
    assert FLOOD_CALLS < count + dropped + result.trace.dropped <= told + 1000, (count, dropped, told)


def test_a_client_that_goes_away_leaves_nothing(daemon: Daemon, live: Callable[..., LiveRun]) -> None:
    run = shell(live)
    before = daemon.descriptors()
    for _ in range(fewer(30, 3)):
        with Supervisor(daemon.address) as client:
            client.follow_trace(run.run_id)
    with unread(daemon, run.run_id):
        do(run, "true")
    wait_until(lambda: daemon.descriptors() <= before, 5, "connections are closed")
    # More than may follow at a time have come and gone.
    with Supervisor(daemon.address) as client:
        for _ in range(FOLLOWERS_MAX + 1):
            with client.follow_trace(run.run_id):
                pass
    with Supervisor(daemon.address) as client, client.follow_trace(run.run_id) as follow:
        reader = Reader(follow)
        do(run, "mkdir /tmp/still")
        reader.wait_for(lambda event: event.path == "/tmp/still", "mkdir")
        assert end(run).exit_code == 0
        reader.join()


def test_a_daemon_that_stops_ends_the_run_then_its_followers(make_daemon: Callable[..., Daemon]) -> None:
    one = make_daemon("followed", SUPERVISOR_DRAIN_SECONDS="1")
    run = LiveRun(one, spec("sh", "-c", SHELL, trace="TRACE_LEVEL_FULL", wall_seconds=120))
    run.wait_started()
    do(run, ":")
    with Supervisor(one.address) as client, unread(one, run.run_id), client.follow_trace(run.run_id) as follow:
        reader = Reader(follow)
        do(run, "yes | head -n 100000 > /dev/null")
        assert one.stop() == 0
        reader.join()
        assert reader.events
    run.close()


def test_what_cannot_be_followed(supervisor: Supervisor, live: Callable[..., LiveRun]) -> None:
    with pytest.raises(errors.NotFound):
        supervisor.follow_trace("0" * 20)
    with pytest.raises(errors.InvalidRequest):
        supervisor.follow_trace("a\n")
    ended = supervisor.execute(["true"], trace="full")
    with pytest.raises(errors.HostLacks) as caught:
        supervisor.follow_trace(ended.run_id)
    assert caught.value.reason == "RUN_ENDED"
    assert caught.value.metadata["remedy"] == f"supervisor trace show {ended.run_id}"
    run = live("cat", policy="", policy_toml='extends = "moderate"\n[trace]\nlevel = "off"\n')
    with pytest.raises(errors.HostLacks) as caught:
        supervisor.follow_trace(run.run_id)
    assert caught.value.reason == "TRACE_NOT_AVAILABLE" and "--trace" in caught.value.metadata["remedy"]
    end(run)


async def test_the_same_awaited(daemon: Daemon) -> None:
    async with AsyncSupervisor(daemon.address) as client:
        run = client.run(["sh", "-c", SHELL], trace="full", timeout=scaled(60))
        async for _ in run:
            break
        assert run.run_id is not None
        async with client.follow_trace(run.run_id) as follow:
            assert follow.level == "full"
            await run.write(b"mkdir /tmp/x\n")
            async for event in follow:
                if event.path == "/tmp/x":
                    break
            await run.close_stdin()
            async for _ in run:
                pass
        with pytest.raises(errors.HostLacks):
            async for _ in client.follow_trace(run.run_id):
                pass
