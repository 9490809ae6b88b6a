"""The Python SDK: runs programs in the sandboxes of a supervisor, on this machine or another.

    from supervisor.client import Supervisor

    with Supervisor() as supervisor:
        result = supervisor.execute(["python3", "-c", "print(1)"], timeout=5, memory="256M")
        print(result.outcome, result.exit_code, result.stdout)

A program that fails is a result. What the supervisor itself refuses or cannot do raises `SupervisorError` or one of
its kinds. Installs and runs without root and on any system.
"""

from supervisor.client.async_client import AsyncRunStream, AsyncSupervisor
from supervisor.client.build import LocalFile, RunOptions
from supervisor.client.channel import DEFAULT_ADDRESS
from supervisor.client.errors_wire import Cancelled, DeadlineExceeded
from supervisor.client.exports import ExportInfo, export
from supervisor.client.follow import AsyncTraceFollow, TraceFollow
from supervisor.client.process_tree import Process, ProcessTree
from supervisor.client.result import Host, Policy, PolicyCheck, PolicyProblem, TraceEvent, result_to_json
from supervisor.client.search import AsyncTraceSearch, FoundEvent, SearchEnd, SearchOptions, TraceSearch
from supervisor.client.sync_client import RunStream, Supervisor
from supervisor.errors import (
    AlreadyExists,
    Draining,
    Exhausted,
    HostLacks,
    InvalidRequest,
    LaunchFailed,
    NotFound,
    PolicyRefused,
    SupervisorError,
    Unreachable,
)

__all__ = [
    "DEFAULT_ADDRESS",
    "AlreadyExists",
    "AsyncRunStream",
    "AsyncSupervisor",
    "AsyncTraceFollow",
    "AsyncTraceSearch",
    "Cancelled",
    "DeadlineExceeded",
    "Draining",
    "Exhausted",
    "ExportInfo",
    "FoundEvent",
    "Host",
    "HostLacks",
    "InvalidRequest",
    "LaunchFailed",
    "LocalFile",
    "NotFound",
    "Policy",
    "PolicyCheck",
    "PolicyProblem",
    "PolicyRefused",
    "Process",
    "ProcessTree",
    "RunOptions",
    "RunStream",
    "SearchEnd",
    "SearchOptions",
    "Supervisor",
    "SupervisorError",
    "TraceEvent",
    "TraceFollow",
    "TraceSearch",
    "Unreachable",
    "export",
    "result_to_json",
]
