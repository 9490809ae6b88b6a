"""Those who look on while a run is traced: what they are told, what is dropped where they are slow, and how it ends."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import numpy as np
import pytest

from supervisor.errors import Exhausted
from supervisor.model import Violation
from supervisor.probes import followers as module
from supervisor.probes.followers import Followed, Follower, Followers
from supervisor.probes.layout import FORK, HEAD, SYSCALL, RecordType
from supervisor.probes.table import CALL

OFFSET = 1_000_000_000_000
GETPPID = 110


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Any:
    """An Followers whose clock stands at 0: nothing is too old."""
    monkeypatch.setattr(time, "monotonic_ns", lambda: 0)
    made = Followers()
    yield made
    made.close()


def calls(*times: int) -> np.ndarray[Any, Any]:
    rows = np.zeros(len(times), CALL)
    rows["time_ns"], rows["nr"], rows["pid"], rows["tid"] = times, GETPPID, 2, 2
    return rows.view("u1").reshape(len(times), SYSCALL.size)


def fork(time_ns: int, child: int = 3) -> bytes:
    record = bytearray(FORK.size)
    FORK.pack_into(record, 0, child, child, b"sh")
    HEAD.pack_into(record, 0, time_ns, 1, 2, 2, RecordType.FORK, FORK.size, 0)
    return bytes(record)


def violation(time: float = 1.0) -> Violation:
    return Violation(
        "no-x", "exec", "high", "alert", time, "execve", "x86-64", (-1, 2), 3, 4, "sh", "/bin/sh", "/x", "10.0.0.1", 80
    )


async def rest(follower: Follower) -> list[Followed]:
    follower.end()
    return [batch async for batch in follower.batches()]


def kinds(batches: list[Followed]) -> list[str]:
    return [event.kind for batch in batches for event in batch.events]


async def test_records_and_calls_come_as_events_in_order_of_time(told: Followers) -> None:
    feed, follower = told.feed("run", OFFSET), told.join("run")
    feed.tell([fork(20)], [calls(10, 30)])
    (batch,) = await rest(follower)
    assert [(event.kind, event.time - OFFSET) for event in batch.events] == [
        ("syscall", 10),
        ("fork", 20),
        ("syscall", 30),
    ]
    assert (batch.events[0].syscall, batch.events[1].result, batch.dropped) == ("getppid", 3, 0)


async def test_each_call_is_told_once_whether_it_is_taken_or_not(told: Followers) -> None:
    feed = told.feed("run", OFFSET)
    gathered = [calls(1)]
    feed.tell([], gathered)  # before anybody followed
    follower = told.join("run")
    gathered.append(calls(2))
    feed.tell([], gathered)
    feed.tell([], gathered)
    gathered.append(calls(3))
    feed.tell([], gathered, taken=True)
    gathered = [calls(4)]
    feed.tell([], gathered)
    feed.tell([], gathered, taken=True)
    assert [event.time - OFFSET for batch in await rest(follower) for event in batch.events] == [2, 3, 4]


async def test_nothing_of_before_is_told() -> None:
    told = Followers()
    follower = told.join("run")
    now = time.monotonic_ns()
    told.feed("run", OFFSET).tell([fork(now - 10**9)], [calls(now - 10**9, now)])
    assert [event.time - OFFSET for batch in await rest(follower) for event in batch.events] == [now]
    told.close()


async def test_runs_are_told_apart_and_calls_can_be_left_out(told: Followers) -> None:
    mine, other, few = told.join("mine"), told.join("other"), told.join("mine", calls=False)
    told.feed("mine", OFFSET).tell([fork(1)], [calls(2)])
    assert kinds(await rest(mine)) == ["fork", "syscall"]
    assert kinds(await rest(few)) == ["fork"]
    assert await rest(other) == []


async def test_a_violation_comes_behind_what_it_is_about(told: Followers) -> None:
    follower = told.join("run", calls=False)
    told.feed("run", OFFSET).tell([fork(1)], [])
    told.tell("run", violation(2.5))
    told.tell("else", violation())
    first, second = await rest(follower)
    assert kinds([first, second]) == ["fork", "violation"]
    (event,) = second.events
    assert (event.time, event.detail) == (2_500_000_000, "no-x: alert, high, exec")
    assert (event.syscall, event.path, event.address, event.port, event.pid, event.tid, event.comm) == (
        "execve", "/x", "10.0.0.1", 80, 3, 4, "sh",
    )  # fmt: skip
    assert event.args == ((1 << 64) - 1, 2)


async def test_what_finds_no_room_is_counted_before_what_comes_next(
    told: Followers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "QUEUE_BYTES", 10 * SYSCALL.size + FORK.size)
    feed, follower = told.feed("run", OFFSET), told.join("run")
    feed.tell([fork(0)], [calls(*range(1, 5)), calls(*range(5, 18))], taken=True)  # 10 of 17 calls fit
    feed.tell([fork(18)], [calls(19, 20)], taken=True)  # nothing does
    told.tell("run", violation())
    assert follower.queued_bytes == module.QUEUE_BYTES
    batches = follower.batches()
    first = await anext(batches)
    assert ([event.time - OFFSET for event in first.events], first.dropped) == (list(range(11)), 0)
    gap = await anext(batches)
    assert (gap.events, gap.dropped) == ([], 7 + 3 + 1)
    assert follower.queued_bytes == 0
    feed.tell([], [calls(30)], taken=True)
    assert [(len(batch.events), batch.dropped) for batch in await rest(follower)] == [(1, 0)]


async def test_a_gap_stands_where_it_is(told: Followers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "QUEUE_BYTES", 4 * SYSCALL.size)
    feed, follower = told.feed("run", OFFSET), told.join("run")
    batches = follower.batches()
    feed.tell([], [calls(1, 2, 3)], taken=True)
    waiting = await anext(batches)
    assert waiting.dropped == 0
    feed.tell([], [calls(4, 5, 6)], taken=True)
    feed.tell([], [calls(7, 8)], taken=True)  # 8 does not fit
    follower._take()
    feed.tell([], [calls(9)], taken=True)
    feed.tell([], [calls(10)], taken=True)
    follower.end()
    assert [([e.time - OFFSET for e in batch.events], batch.dropped) async for batch in batches] == [([9, 10], 1)]


async def test_a_kept_part_does_not_hold_the_whole(told: Followers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "QUEUE_BYTES", 4 * SYSCALL.size)
    follower = told.join("run")
    follower.offer([], [calls(*range(1000))], OFFSET)
    (piece,) = follower._queue
    assert len(piece.calls[0]) == 4 and piece.calls[0].base is None


async def test_large_pieces_are_made_events_in_batches_off_the_loop(
    told: Followers, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = set()
    make = module._events

    def events(*arguments: Any) -> Any:
        for batch in make(*arguments):
            threads.add(threading.current_thread().name)
            yield batch

    monkeypatch.setattr(module, "_events", events)
    follower = told.join("run")
    told.feed("run", OFFSET).tell([], [calls(*range(2500))])
    assert [len(batch.events) for batch in await rest(follower)] == [1000, 1000, 500]
    assert threads == {"trace-follow_0"}


async def test_a_waiting_follower_is_woken_from_another_thread(told: Followers) -> None:
    feed, follower = told.feed("run", OFFSET), told.join("run")
    batches = follower.batches()
    for number in (1, 2, 3):
        waiting = asyncio.ensure_future(anext(batches))
        await asyncio.sleep(0.01)
        assert not waiting.done()
        threading.Thread(target=feed.tell, args=([fork(number)], [])).start()
        async with asyncio.timeout(5):
            assert kinds([await waiting]) == ["fork"]
    waiting = asyncio.ensure_future(anext(batches, None))
    await asyncio.sleep(0.01)
    follower.end()
    async with asyncio.timeout(5):
        assert await waiting is None


async def test_who_has_left_is_told_nothing(told: Followers) -> None:
    first, second = told.join("run"), told.join("run")
    first.leave()
    first.leave()
    told.feed("run", OFFSET).tell([fork(1)], [])
    assert first.queued_bytes == 0 and second.queued_bytes == FORK.size
    second.leave()
    assert told.of("run") == () and not told._of


async def test_so_many_may_follow(told: Followers) -> None:
    joined = [told.join(f"run-{number % 3}") for number in range(module.FOLLOWERS_MAX)]
    with pytest.raises(Exhausted):
        told.join("run-0")
    joined[0].leave()
    told.join("run-0")
