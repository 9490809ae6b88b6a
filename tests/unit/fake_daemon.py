"""A daemon's face without its work: the API on a Unix socket, answering by what argv says."""

from __future__ import annotations

import contextlib
import queue
import re
import sys
import threading
import time
from collections.abc import Iterator
from concurrent import futures

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status
from trace_samples import event, sample

from supervisor.client.result import TraceEvent
from supervisor.v1 import (
    host_pb2,
    host_pb2_grpc,
    policy_pb2,
    policy_pb2_grpc,
    run_pb2,
    run_pb2_grpc,
    trace_pb2,
    trace_pb2_grpc,
)

COMMAND = [sys.executable, "-m", "supervisor.cli"]
RUN_ID = "run-1"
ANSI = "\x1b[31m"
ARGV = (b"python3", b"-c", f"print('{ANSI}')\n".encode(), b"\xff")


def refuse(context, code, message, reason="", field="", metadata=None, retry=None):
    status = status_pb2.Status(code=code.value[0], message=message)
    details = [error_details_pb2.ErrorInfo(reason=reason, domain="supervisor", metadata=metadata or {})]
    if field:
        violation = error_details_pb2.BadRequest.FieldViolation(field=field, description=message)
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if retry is not None:
        details.append(error_details_pb2.RetryInfo(retry_delay=duration_pb2.Duration(nanos=int(retry * 1e9))))
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    context.abort_with_status(rpc_status.to_status(status))


def created(run_id: str) -> float:
    """A minute and a half ago, whenever it is asked for."""
    return time.time() - 90 + int(run_id[-1])


def record(run_id: str, state: int, argv: tuple[bytes, ...] = (), **result) -> run_pb2.RunRecord:
    return run_pb2.RunRecord(
        state=state,
        argv=argv,
        program="/usr/bin/python3",
        created_at=created(run_id),
        result=run_pb2.RunResult(run_id=run_id, policy="strict", **result),
    )


RECORDS = [
    record("run-3", run_pb2.RUN_STATE_ENDED, outcome=run_pb2.OUTCOME_EXITED, exit_code=0, agent="b"),
    record("run-2", run_pb2.RUN_STATE_ENDED, outcome=run_pb2.OUTCOME_OUT_OF_MEMORY, detail=f"out of memory{ANSI}\nx"),
    record("run-1", run_pb2.RUN_STATE_RUNNING, ARGV, agent="a"),
]


SUMMARY = run_pb2.TraceSummary(
    level="summary",
    events=40,
    dropped=2,
    process_count=3,
    processes=[
        run_pb2.TracedProcess(pid=2, parent=1, comm="sh", path="/bin/sh", started_at=1.0, ended_at=2.0, result=0),
        run_pb2.TracedProcess(pid=3, parent=2, comm="ls", path=f"/bin/ls{ANSI}", started_at=1.5),
    ],
    syscalls={"read": run_pb2.SyscallCount(calls=30, errors=3), "open": run_pb2.SyscallCount(calls=10)},
    addresses=[
        run_pb2.TracedAddress(operation="connect", protocol="tcp", address="::1", port=80, count=2, denied=True)
    ],
)


VIOLATION = event(1.0, "violation", 3, comm="ls", path=f"/etc/shadow{ANSI}", detail="no-shadow: alert, high, open")


class Runs(run_pb2_grpc.RunServiceServicer):
    def __init__(self) -> None:
        self.specs: list[run_pb2.RunSpec] = []
        self.executed = 0
        self.signals: list[int] = []
        self.sizes: list[tuple[int, int]] = []
        self.killed = threading.Event()
        self.cancelled = threading.Event()
        self.largest = 0

    def Execute(self, spec, context):
        self.executed += 1
        self.specs.append(spec)
        self._maybe_refuse(spec, context)
        result = self._result(spec)
        result.stdout = b" ".join(spec.argv[1:]) if spec.argv[0] == b"echo" else spec.stdin
        return result

    def _maybe_refuse(self, spec, context) -> None:
        if spec.argv[0] == b"wider":
            refuse(
                context,
                grpc.StatusCode.PERMISSION_DENIED,
                "limits.memory 8G is wider than policy strict allows (4G)",
                "REFUSED_BY_POLICY",
                "limits.memory",
            )
        if spec.argv[0] == b"full":
            refuse(context, grpc.StatusCode.RESOURCE_EXHAUSTED, "the queue is full", "QUEUE_FULL", retry=0.5)
        if spec.argv[0] == b"lacks":
            metadata = {"feature": "landlock", "remedy": "a newer kernel"}
            refuse(context, grpc.StatusCode.FAILED_PRECONDITION, "no landlock", "HOST_LACKS_FEATURE", "", metadata)
        if spec.argv[0] == b"broken":
            metadata = {"stage": "mount", "errno": "2"}
            refuse(context, grpc.StatusCode.INTERNAL, "mount 3 of 9", "LAUNCH_FAILED", "", metadata)
        if spec.argv[0] == b"slow":
            time.sleep(2)

    def _result(self, spec) -> run_pb2.RunResult:
        result = run_pb2.RunResult(
            run_id=RUN_ID, policy=spec.policy, backend="native", outcome=run_pb2.OUTCOME_EXITED, exit_code=0
        )
        if spec.argv[0] == b"end":
            result.outcome = run_pb2.Outcome.Value(f"OUTCOME_{spec.argv[1].decode().upper()}")
            result.ClearField("exit_code")
            for setting in spec.argv[2:]:
                name, _, value = setting.decode().partition("=")
                if name == "errno":
                    result.error.CopyFrom(run_pb2.StartError(stage="exec", errno=int(value), message="no such program"))
                else:
                    setattr(result, name, int(value) if value.isdigit() else value)
        return result

    def Run(self, requests, context) -> Iterator[run_pb2.RunResponse]:
        start = next(requests).start
        spec = start.spec
        self._maybe_refuse(spec, context)
        context.add_callback(self.cancelled.set)
        if start.files_follow:
            self._take_files(spec, requests)
        self.specs.append(spec)
        yield run_pb2.RunResponse(started=run_pb2.RunStarted(run_id=RUN_ID, time=1.5))
        yield from self._work(start, requests, context)
        for pattern in spec.collect:
            for at in range(3):
                chunk = run_pb2.FileChunk(path=pattern, data=b"part%d;" % at, mode=0o100755 & 0o7777, last=at == 2)
                yield run_pb2.RunResponse(file=chunk)
        if spec.argv[0] == b"link":
            chunk = run_pb2.FileChunk(path=spec.argv[1], data=b"evil", mode=0o4755, last=True)
            yield run_pb2.RunResponse(file=chunk)
        result = self._result(spec)
        if self.killed.is_set():
            result.outcome = run_pb2.OUTCOME_CANCELLED
        yield run_pb2.RunResponse(exited=result)

    def _take_files(self, spec, requests) -> None:
        held: dict[bytes, tuple[bytearray, run_pb2.FileChunk]] = {}
        for request in requests:
            if request.WhichOneof("message") == "files_end":
                break
            self.largest = max(self.largest, request.ByteSize())
            data, _ = held.setdefault(request.file.path, (bytearray(), request.file))
            data.extend(request.file.data)
        for path, (data, first) in held.items():
            spec.files.add(path=path, data=bytes(data), mode=first.mode if first.HasField("mode") else None)

    def _work(self, start, requests, context) -> Iterator[run_pb2.RunResponse]:
        spec = start.spec
        if spec.argv[0] == b"echo":
            yield run_pb2.RunResponse(stdout=b" ".join(spec.argv[1:]))
        elif spec.argv[0] == b"both":
            yield run_pb2.RunResponse(stdout=b"out\n")
            yield run_pb2.RunResponse(stderr=b"err\xff\n")
            violation = run_pb2.Violation(rule="net", kind="connect", action="deny", address="1.2.3.4", port=80)
            yield run_pb2.RunResponse(violation=violation)
        elif spec.argv[0] == b"yes":
            while context.is_active() and not self.killed.is_set():
                yield run_pb2.RunResponse(stdout=b"y\n" * 4096)
        elif spec.argv[0] == b"sleep":
            yield run_pb2.RunResponse(stdout=b"asleep\n")
            threading.Thread(target=self._read_signals, args=(requests,), daemon=True).start()
            while context.is_active() and not self.killed.wait(0.02):
                pass
        elif spec.argv[0] == b"keys":
            yield from self._type(requests)
        elif spec.argv[0] == b"cat":
            yield run_pb2.RunResponse(stdout=spec.stdin)
            for request in requests if start.stdin_follows else ():
                kind = request.WhichOneof("message")
                if kind == "signal":
                    self.signals.append(request.signal)
                elif kind == "resize":
                    self.sizes.append((request.resize.rows, request.resize.columns))
                elif not request.stdin:
                    break
                else:
                    self.largest = max(self.largest, len(request.stdin))
                    yield run_pb2.RunResponse(stdout=request.stdin)

    def _type(self, requests) -> Iterator[run_pb2.RunResponse]:
        """What is typed comes back as it came, new sizes in words, until Ctrl-D."""
        yield run_pb2.RunResponse(stdout=b"ready\n")
        came: queue.SimpleQueue[run_pb2.RunRequest] = queue.SimpleQueue()

        def read() -> None:
            with contextlib.suppress(grpc.RpcError):
                for request in requests:
                    came.put(request)

        threading.Thread(target=read, daemon=True).start()
        while not self.killed.is_set():
            try:
                request = came.get(timeout=0.02)
            except queue.Empty:
                continue
            if request.WhichOneof("message") == "resize":
                yield run_pb2.RunResponse(stdout=b"%d x %d\n" % (request.resize.rows, request.resize.columns))
            else:
                yield run_pb2.RunResponse(stdout=request.stdin)
            if request.stdin.endswith(b"\x04"):
                return

    def _read_signals(self, requests) -> None:
        try:
            for request in requests:
                self.signals.append(request.signal)
        except grpc.RpcError:
            pass

    def GetRun(self, request, context):
        for found in RECORDS:
            if found.result.run_id == request.run_id:
                return run_pb2.GetRunResponse(run=found)
        return refuse(context, grpc.StatusCode.NOT_FOUND, f"no run {request.run_id}", "NOT_FOUND", "run_id")

    def ListRuns(self, request, context):
        found = [run for run in RECORDS if request.state in (0, run.state) and request.agent in ("", run.result.agent)]
        for run in found:
            run.created_at = created(run.result.run_id)
        at = int(request.page_token or 0)
        # One a page, so that every listing turns pages.
        token = str(at + 1) if at + 1 < len(found) else ""
        return run_pb2.ListRunsResponse(runs=found[at : at + 1], next_page_token=token)

    def KillRun(self, request, context):
        self.killed.set()
        return run_pb2.KillRunResponse(killed=request.run_id == RUN_ID)

    def KillAgentRuns(self, request, context):
        return run_pb2.KillAgentRunsResponse(killed=2)


class Policies(policy_pb2_grpc.PolicyServiceServicer):
    STRICT = policy_pb2.Policy(name="strict", description="the default", toml="a = 1\n", resolved_toml="b = 2\n")

    def ListPolicies(self, request, context):
        return policy_pb2.ListPoliciesResponse(policies=[self.STRICT])

    def GetPolicy(self, request, context):
        if request.name != "strict":
            refuse(context, grpc.StatusCode.NOT_FOUND, f"no policy {request.name!r}", "UNKNOWN_POLICY")
        return policy_pb2.GetPolicyResponse(policy=self.STRICT)

    def CheckPolicy(self, request, context):
        if "memry" in request.toml:
            problem = policy_pb2.PolicyProblem(line=2, key="limits.memry", message="did you mean memory?")
            return policy_pb2.CheckPolicyResponse(problems=[problem])
        found = re.search('name = "(.*)"', request.toml)
        return policy_pb2.CheckPolicyResponse(policy=policy_pb2.Policy(name=found[1] if found else request.name))


class Hosts(host_pb2_grpc.HostServiceServicer):
    def GetHost(self, request, context):
        feature = host_pb2.HostFeature(name="landlock", available=True)
        return host_pb2.GetHostResponse(version="1", kernel="6.18", cgroup="hybrid", cpus=2, features=[feature])


def wire_event(event: TraceEvent) -> trace_pb2.TraceEvent:
    return trace_pb2.TraceEvent(**{name: getattr(event, name) for name in TraceEvent.__slots__})


class Traces(trace_pb2_grpc.TraceServiceServicer):
    """run-1's trace is two events; run-3's is the sample; run-2 was traced at the level summary."""

    def __init__(self) -> None:
        self.searches: list[trace_pb2.SearchTracesRequest] = []
        self.end = trace_pb2.SearchTracesEnd(searched=2)
        self.follows: list[trace_pb2.FollowTraceRequest] = []
        self.left = threading.Event()

    def SearchTraces(self, request, context):
        self.searches.append(request)
        if request.path == "[":
            refuse(
                context, grpc.StatusCode.INVALID_ARGUMENT, "path has a '[' without its ']'", "INVALID_REQUEST", "path"
            )
        yield trace_pb2.SearchTracesResponse(run_id="run-3", events=map(wire_event, sample()[:7]))
        yield trace_pb2.SearchTracesResponse(run_id="run-3", events=map(wire_event, sample()[7:9]))
        yield trace_pb2.SearchTracesResponse(run_id=RUN_ID, events=map(wire_event, sample()[16:17]))
        yield trace_pb2.SearchTracesResponse(end=self.end)

    def FollowTrace(self, request, context):
        """run-1 does this and that, but never ends where its calls are asked for; run-2 is of the level summary."""
        self.follows.append(request)
        if request.run_id == "run-3":
            metadata = {"remedy": "supervisor trace show run-3"}
            refuse(context, grpc.StatusCode.FAILED_PRECONDITION, "run run-3 has ended", "RUN_ENDED", "", metadata)
        context.add_callback(self.left.set)
        level = "full" if request.run_id == RUN_ID else "summary"
        yield trace_pb2.FollowTraceResponse(level=level)
        found = [one for one in sample() if one.kind != "syscall" or not request.without_calls]
        yield trace_pb2.FollowTraceResponse(events=map(wire_event, found[:4]))
        yield trace_pb2.FollowTraceResponse(events=map(wire_event, found[4:7]), dropped=5)
        if level == "full" and not request.without_calls:
            while context.is_active():
                time.sleep(0.02)
            return
        yield trace_pb2.FollowTraceResponse(events=[wire_event(VIOLATION)])
        yield trace_pb2.FollowTraceResponse(dropped=2)

    def GetTrace(self, request, context):
        if request.run_id == "run-3":
            yield trace_pb2.GetTraceResponse(events=map(wire_event, sample()))
            return
        if request.run_id != RUN_ID:
            refuse(context, grpc.StatusCode.NOT_FOUND, "no such run", "NOT_FOUND")
        event = trace_pb2.TraceEvent(time=1.25, kind="open", pid=1, comm="sh", syscall="openat", path="/x", args=[1, 2])
        yield trace_pb2.GetTraceResponse(events=[event, event])

    def GetTraceSummary(self, request, context):
        if request.run_id == "run-2":
            return trace_pb2.GetTraceSummaryResponse(summary=SUMMARY)
        summary = run_pb2.TraceSummary(level="full", complete=True, events=2)
        summary.syscalls["openat"].calls = 2
        return trace_pb2.GetTraceSummaryResponse(summary=summary)


class FakeDaemon:
    """Serves at `address` for as long as the context lasts; `runs` holds what was asked."""

    def __init__(self, socket: str) -> None:
        self.address = f"unix://{socket}"
        self.runs = Runs()
        self.traces = Traces()

    def __enter__(self) -> FakeDaemon:
        options = [("grpc.max_receive_message_length", 65 << 20), ("grpc.max_send_message_length", 65 << 20)]
        self._server = grpc.server(futures.ThreadPoolExecutor(8), options=options)
        run_pb2_grpc.add_RunServiceServicer_to_server(self.runs, self._server)
        policy_pb2_grpc.add_PolicyServiceServicer_to_server(Policies(), self._server)
        host_pb2_grpc.add_HostServiceServicer_to_server(Hosts(), self._server)
        trace_pb2_grpc.add_TraceServiceServicer_to_server(self.traces, self._server)
        self._server.add_insecure_port(self.address)
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop(0).wait()
