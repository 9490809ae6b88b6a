from supervisor.v1 import run_pb2 as _run_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GetTraceRequest(_message.Message):
    __slots__ = ("run_id",)
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    def __init__(self, run_id: _Optional[str] = ...) -> None: ...

class TraceEvent(_message.Message):
    __slots__ = ("time", "kind", "pid", "tid", "comm", "syscall", "abi", "args", "result", "path", "address", "port", "detail", "parent", "argv")
    TIME_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    TID_FIELD_NUMBER: _ClassVar[int]
    COMM_FIELD_NUMBER: _ClassVar[int]
    SYSCALL_FIELD_NUMBER: _ClassVar[int]
    ABI_FIELD_NUMBER: _ClassVar[int]
    ARGS_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    PORT_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    PARENT_FIELD_NUMBER: _ClassVar[int]
    ARGV_FIELD_NUMBER: _ClassVar[int]
    time: float
    kind: str
    pid: int
    tid: int
    comm: str
    syscall: str
    abi: str
    args: _containers.RepeatedScalarFieldContainer[int]
    result: int
    path: str
    address: str
    port: int
    detail: str
    parent: int
    argv: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, time: _Optional[float] = ..., kind: _Optional[str] = ..., pid: _Optional[int] = ..., tid: _Optional[int] = ..., comm: _Optional[str] = ..., syscall: _Optional[str] = ..., abi: _Optional[str] = ..., args: _Optional[_Iterable[int]] = ..., result: _Optional[int] = ..., path: _Optional[str] = ..., address: _Optional[str] = ..., port: _Optional[int] = ..., detail: _Optional[str] = ..., parent: _Optional[int] = ..., argv: _Optional[_Iterable[str]] = ...) -> None: ...

class GetTraceResponse(_message.Message):
    __slots__ = ("events",)
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    events: _containers.RepeatedCompositeFieldContainer[TraceEvent]
    def __init__(self, events: _Optional[_Iterable[_Union[TraceEvent, _Mapping]]] = ...) -> None: ...

class GetTraceSummaryRequest(_message.Message):
    __slots__ = ("run_id",)
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    def __init__(self, run_id: _Optional[str] = ...) -> None: ...

class GetTraceSummaryResponse(_message.Message):
    __slots__ = ("summary",)
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    summary: _run_pb2.TraceSummary
    def __init__(self, summary: _Optional[_Union[_run_pb2.TraceSummary, _Mapping]] = ...) -> None: ...

class SearchTracesRequest(_message.Message):
    __slots__ = ("run_id", "path", "address", "syscalls", "kinds", "program", "failed", "since", "until", "limit")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    SYSCALLS_FIELD_NUMBER: _ClassVar[int]
    KINDS_FIELD_NUMBER: _ClassVar[int]
    PROGRAM_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    SINCE_FIELD_NUMBER: _ClassVar[int]
    UNTIL_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    path: str
    address: str
    syscalls: _containers.RepeatedScalarFieldContainer[str]
    kinds: _containers.RepeatedScalarFieldContainer[str]
    program: str
    failed: bool
    since: float
    until: float
    limit: int
    def __init__(self, run_id: _Optional[str] = ..., path: _Optional[str] = ..., address: _Optional[str] = ..., syscalls: _Optional[_Iterable[str]] = ..., kinds: _Optional[_Iterable[str]] = ..., program: _Optional[str] = ..., failed: bool = ..., since: _Optional[float] = ..., until: _Optional[float] = ..., limit: _Optional[int] = ...) -> None: ...

class SearchTracesResponse(_message.Message):
    __slots__ = ("run_id", "events", "end")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    events: _containers.RepeatedCompositeFieldContainer[TraceEvent]
    end: SearchTracesEnd
    def __init__(self, run_id: _Optional[str] = ..., events: _Optional[_Iterable[_Union[TraceEvent, _Mapping]]] = ..., end: _Optional[_Union[SearchTracesEnd, _Mapping]] = ...) -> None: ...

class SearchTracesEnd(_message.Message):
    __slots__ = ("searched", "skipped", "skipped_run_ids", "limit_reached")
    SEARCHED_FIELD_NUMBER: _ClassVar[int]
    SKIPPED_FIELD_NUMBER: _ClassVar[int]
    SKIPPED_RUN_IDS_FIELD_NUMBER: _ClassVar[int]
    LIMIT_REACHED_FIELD_NUMBER: _ClassVar[int]
    searched: int
    skipped: int
    skipped_run_ids: _containers.RepeatedScalarFieldContainer[str]
    limit_reached: bool
    def __init__(self, searched: _Optional[int] = ..., skipped: _Optional[int] = ..., skipped_run_ids: _Optional[_Iterable[str]] = ..., limit_reached: bool = ...) -> None: ...

class FollowTraceRequest(_message.Message):
    __slots__ = ("run_id", "without_calls")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    WITHOUT_CALLS_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    without_calls: bool
    def __init__(self, run_id: _Optional[str] = ..., without_calls: bool = ...) -> None: ...

class FollowTraceResponse(_message.Message):
    __slots__ = ("events", "dropped", "level")
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    DROPPED_FIELD_NUMBER: _ClassVar[int]
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    events: _containers.RepeatedCompositeFieldContainer[TraceEvent]
    dropped: int
    level: str
    def __init__(self, events: _Optional[_Iterable[_Union[TraceEvent, _Mapping]]] = ..., dropped: _Optional[int] = ..., level: _Optional[str] = ...) -> None: ...
