"""Asks a daemon again and again whether it is there: `python -m tests.host.prober ADDRESS TIMEOUT`.

A process of its own, so that it measures the daemon and not the test beside it; one for all tests of a daemon, since Python
takes seconds to start on a slow machine. For every word on standard input it prints one line: "go" begins anew, "ask" tells
of the time since, {"slowest": seconds, "answers": count, "failures": [...]}, and "stop" ends the asking and the connection.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from supervisor.v1 import host_pb2, host_pb2_grpc

PAUSE_SECONDS = 0.03


class Record:
    def __init__(self) -> None:
        self.slowest = 0.0
        self.answers = 0
        self.failures: list[str] = []
        self.asked_at: float | None = None
        self.over = threading.Event()

    def to_json(self) -> str:
        """With the call that is under way, which may be the slowest of all."""
        waiting = 0.0 if self.asked_at is None else time.monotonic() - self.asked_at
        slowest = max(self.slowest, waiting)
        return json.dumps({"slowest": slowest, "answers": self.answers, "failures": self.failures[:3]})


def probe(address: str, timeout: float, record: Record) -> None:
    host_stub: Any = host_pb2_grpc.HostServiceStub
    with grpc.insecure_channel(address) as channel:
        host, health = host_stub(channel), health_pb2_grpc.HealthStub(channel)
        while not record.over.is_set():
            for method, request in (
                (host.GetHost, host_pb2.GetHostRequest()),
                (health.Check, health_pb2.HealthCheckRequest()),
            ):
                record.asked_at = time.monotonic()
                try:
                    method(request, timeout=timeout)
                    record.answers += 1
                except grpc.RpcError as error:
                    record.failures.append(f"{error.code()}: {error.details()}")
                record.slowest = max(record.slowest, time.monotonic() - record.asked_at)
                record.asked_at = None
            record.over.wait(PAUSE_SECONDS)


def main(address: str, timeout: str) -> None:
    record, thread = Record(), None
    for line in sys.stdin:
        word = line.strip()
        if word == "go":
            record = Record()
            thread = threading.Thread(target=probe, args=(address, float(timeout), record), daemon=True)
            thread.start()
        elif word == "stop" and thread is not None:
            record.over.set()
            thread.join()
        print(record.to_json(), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
