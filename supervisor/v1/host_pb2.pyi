from supervisor.v1 import run_pb2 as _run_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GetHostRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class HostFeature(_message.Message):
    __slots__ = ("name", "available", "detail", "loss", "remedy")
    NAME_FIELD_NUMBER: _ClassVar[int]
    AVAILABLE_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    REMEDY_FIELD_NUMBER: _ClassVar[int]
    name: str
    available: bool
    detail: str
    loss: str
    remedy: str
    def __init__(self, name: _Optional[str] = ..., available: bool = ..., detail: _Optional[str] = ..., loss: _Optional[str] = ..., remedy: _Optional[str] = ...) -> None: ...

class GetHostResponse(_message.Message):
    __slots__ = ("version", "kernel", "cgroup", "cpus", "memory_bytes", "max_concurrent_runs", "max_queued_runs", "running", "queued", "draining", "features", "max_message_bytes", "tier")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    KERNEL_FIELD_NUMBER: _ClassVar[int]
    CGROUP_FIELD_NUMBER: _ClassVar[int]
    CPUS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_CONCURRENT_RUNS_FIELD_NUMBER: _ClassVar[int]
    MAX_QUEUED_RUNS_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    QUEUED_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    MAX_MESSAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    TIER_FIELD_NUMBER: _ClassVar[int]
    version: str
    kernel: str
    cgroup: str
    cpus: int
    memory_bytes: int
    max_concurrent_runs: int
    max_queued_runs: int
    running: int
    queued: int
    draining: bool
    features: _containers.RepeatedCompositeFieldContainer[HostFeature]
    max_message_bytes: int
    tier: str
    def __init__(self, version: _Optional[str] = ..., kernel: _Optional[str] = ..., cgroup: _Optional[str] = ..., cpus: _Optional[int] = ..., memory_bytes: _Optional[int] = ..., max_concurrent_runs: _Optional[int] = ..., max_queued_runs: _Optional[int] = ..., running: _Optional[int] = ..., queued: _Optional[int] = ..., draining: bool = ..., features: _Optional[_Iterable[_Union[HostFeature, _Mapping]]] = ..., max_message_bytes: _Optional[int] = ..., tier: _Optional[str] = ...) -> None: ...

class WatchEventsRequest(_message.Message):
    __slots__ = ("agent",)
    AGENT_FIELD_NUMBER: _ClassVar[int]
    agent: str
    def __init__(self, agent: _Optional[str] = ...) -> None: ...

class WatchEventsResponse(_message.Message):
    __slots__ = ("time", "run_id", "agent", "started", "violation", "ended", "dropped")
    TIME_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    AGENT_FIELD_NUMBER: _ClassVar[int]
    STARTED_FIELD_NUMBER: _ClassVar[int]
    VIOLATION_FIELD_NUMBER: _ClassVar[int]
    ENDED_FIELD_NUMBER: _ClassVar[int]
    DROPPED_FIELD_NUMBER: _ClassVar[int]
    time: float
    run_id: str
    agent: str
    started: _run_pb2.RunStarted
    violation: _run_pb2.Violation
    ended: _run_pb2.RunResult
    dropped: int
    def __init__(self, time: _Optional[float] = ..., run_id: _Optional[str] = ..., agent: _Optional[str] = ..., started: _Optional[_Union[_run_pb2.RunStarted, _Mapping]] = ..., violation: _Optional[_Union[_run_pb2.Violation, _Mapping]] = ..., ended: _Optional[_Union[_run_pb2.RunResult, _Mapping]] = ..., dropped: _Optional[int] = ...) -> None: ...
