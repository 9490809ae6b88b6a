from google.rpc import status_pb2 as _status_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class NetworkMode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    NETWORK_MODE_UNSPECIFIED: _ClassVar[NetworkMode]
    NETWORK_MODE_NONE: _ClassVar[NetworkMode]
    NETWORK_MODE_INTERNAL: _ClassVar[NetworkMode]
    NETWORK_MODE_FILTERED: _ClassVar[NetworkMode]
    NETWORK_MODE_FULL: _ClassVar[NetworkMode]

class TraceLevel(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TRACE_LEVEL_UNSPECIFIED: _ClassVar[TraceLevel]
    TRACE_LEVEL_OFF: _ClassVar[TraceLevel]
    TRACE_LEVEL_SUMMARY: _ClassVar[TraceLevel]
    TRACE_LEVEL_FULL: _ClassVar[TraceLevel]

class Backend(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    BACKEND_UNSPECIFIED: _ClassVar[Backend]
    BACKEND_NATIVE: _ClassVar[Backend]
    BACKEND_DOCKER: _ClassVar[Backend]

class Outcome(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    OUTCOME_UNSPECIFIED: _ClassVar[Outcome]
    OUTCOME_EXITED: _ClassVar[Outcome]
    OUTCOME_SIGNALED: _ClassVar[Outcome]
    OUTCOME_TIMED_OUT: _ClassVar[Outcome]
    OUTCOME_CPU_LIMIT: _ClassVar[Outcome]
    OUTCOME_OUT_OF_MEMORY: _ClassVar[Outcome]
    OUTCOME_OUTPUT_LIMIT: _ClassVar[Outcome]
    OUTCOME_VIOLATION: _ClassVar[Outcome]
    OUTCOME_CANCELLED: _ClassVar[Outcome]
    OUTCOME_LOST: _ClassVar[Outcome]
    OUTCOME_NOT_STARTED: _ClassVar[Outcome]

class RunState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    RUN_STATE_UNSPECIFIED: _ClassVar[RunState]
    RUN_STATE_QUEUED: _ClassVar[RunState]
    RUN_STATE_RUNNING: _ClassVar[RunState]
    RUN_STATE_ENDED: _ClassVar[RunState]
NETWORK_MODE_UNSPECIFIED: NetworkMode
NETWORK_MODE_NONE: NetworkMode
NETWORK_MODE_INTERNAL: NetworkMode
NETWORK_MODE_FILTERED: NetworkMode
NETWORK_MODE_FULL: NetworkMode
TRACE_LEVEL_UNSPECIFIED: TraceLevel
TRACE_LEVEL_OFF: TraceLevel
TRACE_LEVEL_SUMMARY: TraceLevel
TRACE_LEVEL_FULL: TraceLevel
BACKEND_UNSPECIFIED: Backend
BACKEND_NATIVE: Backend
BACKEND_DOCKER: Backend
OUTCOME_UNSPECIFIED: Outcome
OUTCOME_EXITED: Outcome
OUTCOME_SIGNALED: Outcome
OUTCOME_TIMED_OUT: Outcome
OUTCOME_CPU_LIMIT: Outcome
OUTCOME_OUT_OF_MEMORY: Outcome
OUTCOME_OUTPUT_LIMIT: Outcome
OUTCOME_VIOLATION: Outcome
OUTCOME_CANCELLED: Outcome
OUTCOME_LOST: Outcome
OUTCOME_NOT_STARTED: Outcome
RUN_STATE_UNSPECIFIED: RunState
RUN_STATE_QUEUED: RunState
RUN_STATE_RUNNING: RunState
RUN_STATE_ENDED: RunState

class RunSpec(_message.Message):
    __slots__ = ("request_id", "agent", "labels", "argv", "env", "cwd", "stdin", "policy", "policy_toml", "limits", "network", "allow", "mounts", "files", "collect", "trace", "backend", "image", "terminal")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    AGENT_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    ARGV_FIELD_NUMBER: _ClassVar[int]
    ENV_FIELD_NUMBER: _ClassVar[int]
    CWD_FIELD_NUMBER: _ClassVar[int]
    STDIN_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    POLICY_TOML_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    NETWORK_FIELD_NUMBER: _ClassVar[int]
    ALLOW_FIELD_NUMBER: _ClassVar[int]
    MOUNTS_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    COLLECT_FIELD_NUMBER: _ClassVar[int]
    TRACE_FIELD_NUMBER: _ClassVar[int]
    BACKEND_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    TERMINAL_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    agent: str
    labels: _containers.ScalarMap[str, str]
    argv: _containers.RepeatedScalarFieldContainer[bytes]
    env: _containers.RepeatedCompositeFieldContainer[EnvironmentVariable]
    cwd: bytes
    stdin: bytes
    policy: str
    policy_toml: str
    limits: Limits
    network: NetworkMode
    allow: _containers.RepeatedScalarFieldContainer[str]
    mounts: _containers.RepeatedCompositeFieldContainer[Mount]
    files: _containers.RepeatedCompositeFieldContainer[InputFile]
    collect: _containers.RepeatedScalarFieldContainer[bytes]
    trace: TraceLevel
    backend: Backend
    image: str
    terminal: Terminal
    def __init__(self, request_id: _Optional[str] = ..., agent: _Optional[str] = ..., labels: _Optional[_Mapping[str, str]] = ..., argv: _Optional[_Iterable[bytes]] = ..., env: _Optional[_Iterable[_Union[EnvironmentVariable, _Mapping]]] = ..., cwd: _Optional[bytes] = ..., stdin: _Optional[bytes] = ..., policy: _Optional[str] = ..., policy_toml: _Optional[str] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ..., network: _Optional[_Union[NetworkMode, str]] = ..., allow: _Optional[_Iterable[str]] = ..., mounts: _Optional[_Iterable[_Union[Mount, _Mapping]]] = ..., files: _Optional[_Iterable[_Union[InputFile, _Mapping]]] = ..., collect: _Optional[_Iterable[bytes]] = ..., trace: _Optional[_Union[TraceLevel, str]] = ..., backend: _Optional[_Union[Backend, str]] = ..., image: _Optional[str] = ..., terminal: _Optional[_Union[Terminal, _Mapping]] = ...) -> None: ...

class EnvironmentVariable(_message.Message):
    __slots__ = ("name", "value")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    name: bytes
    value: bytes
    def __init__(self, name: _Optional[bytes] = ..., value: _Optional[bytes] = ...) -> None: ...

class Limits(_message.Message):
    __slots__ = ("wall_seconds", "cpu_seconds", "memory_bytes", "cpus", "pids", "open_files", "file_size_bytes", "disk_bytes", "inodes", "output_bytes")
    WALL_SECONDS_FIELD_NUMBER: _ClassVar[int]
    CPU_SECONDS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    CPUS_FIELD_NUMBER: _ClassVar[int]
    PIDS_FIELD_NUMBER: _ClassVar[int]
    OPEN_FILES_FIELD_NUMBER: _ClassVar[int]
    FILE_SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    DISK_BYTES_FIELD_NUMBER: _ClassVar[int]
    INODES_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_BYTES_FIELD_NUMBER: _ClassVar[int]
    wall_seconds: float
    cpu_seconds: float
    memory_bytes: int
    cpus: float
    pids: int
    open_files: int
    file_size_bytes: int
    disk_bytes: int
    inodes: int
    output_bytes: int
    def __init__(self, wall_seconds: _Optional[float] = ..., cpu_seconds: _Optional[float] = ..., memory_bytes: _Optional[int] = ..., cpus: _Optional[float] = ..., pids: _Optional[int] = ..., open_files: _Optional[int] = ..., file_size_bytes: _Optional[int] = ..., disk_bytes: _Optional[int] = ..., inodes: _Optional[int] = ..., output_bytes: _Optional[int] = ...) -> None: ...

class Mount(_message.Message):
    __slots__ = ("source", "target", "writable")
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    WRITABLE_FIELD_NUMBER: _ClassVar[int]
    source: bytes
    target: bytes
    writable: bool
    def __init__(self, source: _Optional[bytes] = ..., target: _Optional[bytes] = ..., writable: bool = ...) -> None: ...

class InputFile(_message.Message):
    __slots__ = ("path", "data", "mode")
    PATH_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    path: bytes
    data: bytes
    mode: int
    def __init__(self, path: _Optional[bytes] = ..., data: _Optional[bytes] = ..., mode: _Optional[int] = ...) -> None: ...

class Terminal(_message.Message):
    __slots__ = ("rows", "columns")
    ROWS_FIELD_NUMBER: _ClassVar[int]
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    rows: int
    columns: int
    def __init__(self, rows: _Optional[int] = ..., columns: _Optional[int] = ...) -> None: ...

class RunResult(_message.Message):
    __slots__ = ("run_id", "request_id", "agent", "labels", "policy", "backend", "outcome", "exit_code", "signal", "signal_name", "detail", "stdout", "stderr", "stdout_truncated", "stderr_truncated", "usage", "files", "violations", "enforcement", "trace", "error", "started_at", "ended_at")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    AGENT_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    BACKEND_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    EXIT_CODE_FIELD_NUMBER: _ClassVar[int]
    SIGNAL_FIELD_NUMBER: _ClassVar[int]
    SIGNAL_NAME_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    STDOUT_FIELD_NUMBER: _ClassVar[int]
    STDERR_FIELD_NUMBER: _ClassVar[int]
    STDOUT_TRUNCATED_FIELD_NUMBER: _ClassVar[int]
    STDERR_TRUNCATED_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    VIOLATIONS_FIELD_NUMBER: _ClassVar[int]
    ENFORCEMENT_FIELD_NUMBER: _ClassVar[int]
    TRACE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    STARTED_AT_FIELD_NUMBER: _ClassVar[int]
    ENDED_AT_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    request_id: str
    agent: str
    labels: _containers.ScalarMap[str, str]
    policy: str
    backend: str
    outcome: Outcome
    exit_code: int
    signal: int
    signal_name: str
    detail: str
    stdout: bytes
    stderr: bytes
    stdout_truncated: bool
    stderr_truncated: bool
    usage: Usage
    files: _containers.RepeatedCompositeFieldContainer[OutputFile]
    violations: _containers.RepeatedCompositeFieldContainer[Violation]
    enforcement: Enforcement
    trace: TraceSummary
    error: StartError
    started_at: float
    ended_at: float
    def __init__(self, run_id: _Optional[str] = ..., request_id: _Optional[str] = ..., agent: _Optional[str] = ..., labels: _Optional[_Mapping[str, str]] = ..., policy: _Optional[str] = ..., backend: _Optional[str] = ..., outcome: _Optional[_Union[Outcome, str]] = ..., exit_code: _Optional[int] = ..., signal: _Optional[int] = ..., signal_name: _Optional[str] = ..., detail: _Optional[str] = ..., stdout: _Optional[bytes] = ..., stderr: _Optional[bytes] = ..., stdout_truncated: bool = ..., stderr_truncated: bool = ..., usage: _Optional[_Union[Usage, _Mapping]] = ..., files: _Optional[_Iterable[_Union[OutputFile, _Mapping]]] = ..., violations: _Optional[_Iterable[_Union[Violation, _Mapping]]] = ..., enforcement: _Optional[_Union[Enforcement, _Mapping]] = ..., trace: _Optional[_Union[TraceSummary, _Mapping]] = ..., error: _Optional[_Union[StartError, _Mapping]] = ..., started_at: _Optional[float] = ..., ended_at: _Optional[float] = ...) -> None: ...

class Usage(_message.Message):
    __slots__ = ("wall_seconds", "cpu_user_seconds", "cpu_system_seconds", "memory_peak_bytes", "pids_peak", "io_read_bytes", "io_write_bytes", "pids_limit_hits", "memory_limit_hits", "oom_kills", "cpu_throttled_seconds")
    WALL_SECONDS_FIELD_NUMBER: _ClassVar[int]
    CPU_USER_SECONDS_FIELD_NUMBER: _ClassVar[int]
    CPU_SYSTEM_SECONDS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_PEAK_BYTES_FIELD_NUMBER: _ClassVar[int]
    PIDS_PEAK_FIELD_NUMBER: _ClassVar[int]
    IO_READ_BYTES_FIELD_NUMBER: _ClassVar[int]
    IO_WRITE_BYTES_FIELD_NUMBER: _ClassVar[int]
    PIDS_LIMIT_HITS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_LIMIT_HITS_FIELD_NUMBER: _ClassVar[int]
    OOM_KILLS_FIELD_NUMBER: _ClassVar[int]
    CPU_THROTTLED_SECONDS_FIELD_NUMBER: _ClassVar[int]
    wall_seconds: float
    cpu_user_seconds: float
    cpu_system_seconds: float
    memory_peak_bytes: int
    pids_peak: int
    io_read_bytes: int
    io_write_bytes: int
    pids_limit_hits: int
    memory_limit_hits: int
    oom_kills: int
    cpu_throttled_seconds: float
    def __init__(self, wall_seconds: _Optional[float] = ..., cpu_user_seconds: _Optional[float] = ..., cpu_system_seconds: _Optional[float] = ..., memory_peak_bytes: _Optional[int] = ..., pids_peak: _Optional[int] = ..., io_read_bytes: _Optional[int] = ..., io_write_bytes: _Optional[int] = ..., pids_limit_hits: _Optional[int] = ..., memory_limit_hits: _Optional[int] = ..., oom_kills: _Optional[int] = ..., cpu_throttled_seconds: _Optional[float] = ...) -> None: ...

class OutputFile(_message.Message):
    __slots__ = ("path", "data", "mode", "truncated")
    PATH_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    TRUNCATED_FIELD_NUMBER: _ClassVar[int]
    path: bytes
    data: bytes
    mode: int
    truncated: bool
    def __init__(self, path: _Optional[bytes] = ..., data: _Optional[bytes] = ..., mode: _Optional[int] = ..., truncated: bool = ...) -> None: ...

class Violation(_message.Message):
    __slots__ = ("rule", "kind", "severity", "action", "syscall", "abi", "args", "pid", "tid", "comm", "exe", "path", "address", "port", "time")
    RULE_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    SEVERITY_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    SYSCALL_FIELD_NUMBER: _ClassVar[int]
    ABI_FIELD_NUMBER: _ClassVar[int]
    ARGS_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    TID_FIELD_NUMBER: _ClassVar[int]
    COMM_FIELD_NUMBER: _ClassVar[int]
    EXE_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    PORT_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    rule: str
    kind: str
    severity: str
    action: str
    syscall: str
    abi: str
    args: _containers.RepeatedScalarFieldContainer[int]
    pid: int
    tid: int
    comm: str
    exe: str
    path: str
    address: str
    port: int
    time: float
    def __init__(self, rule: _Optional[str] = ..., kind: _Optional[str] = ..., severity: _Optional[str] = ..., action: _Optional[str] = ..., syscall: _Optional[str] = ..., abi: _Optional[str] = ..., args: _Optional[_Iterable[int]] = ..., pid: _Optional[int] = ..., tid: _Optional[int] = ..., comm: _Optional[str] = ..., exe: _Optional[str] = ..., path: _Optional[str] = ..., address: _Optional[str] = ..., port: _Optional[int] = ..., time: _Optional[float] = ...) -> None: ...

class Enforcement(_message.Message):
    __slots__ = ("namespaces", "cgroup", "seccomp", "landlock", "cgroup_bpf", "lsm", "network", "user", "missing")
    NAMESPACES_FIELD_NUMBER: _ClassVar[int]
    CGROUP_FIELD_NUMBER: _ClassVar[int]
    SECCOMP_FIELD_NUMBER: _ClassVar[int]
    LANDLOCK_FIELD_NUMBER: _ClassVar[int]
    CGROUP_BPF_FIELD_NUMBER: _ClassVar[int]
    LSM_FIELD_NUMBER: _ClassVar[int]
    NETWORK_FIELD_NUMBER: _ClassVar[int]
    USER_FIELD_NUMBER: _ClassVar[int]
    MISSING_FIELD_NUMBER: _ClassVar[int]
    namespaces: _containers.RepeatedScalarFieldContainer[str]
    cgroup: str
    seccomp: str
    landlock: str
    cgroup_bpf: str
    lsm: str
    network: str
    user: str
    missing: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, namespaces: _Optional[_Iterable[str]] = ..., cgroup: _Optional[str] = ..., seccomp: _Optional[str] = ..., landlock: _Optional[str] = ..., cgroup_bpf: _Optional[str] = ..., lsm: _Optional[str] = ..., network: _Optional[str] = ..., user: _Optional[str] = ..., missing: _Optional[_Iterable[str]] = ...) -> None: ...

class SyscallCount(_message.Message):
    __slots__ = ("calls", "errors")
    CALLS_FIELD_NUMBER: _ClassVar[int]
    ERRORS_FIELD_NUMBER: _ClassVar[int]
    calls: int
    errors: int
    def __init__(self, calls: _Optional[int] = ..., errors: _Optional[int] = ...) -> None: ...

class TraceSummary(_message.Message):
    __slots__ = ("level", "complete", "events", "dropped", "syscalls", "processes", "process_count", "addresses", "files", "rules", "programs")
    class SyscallsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: SyscallCount
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[SyscallCount, _Mapping]] = ...) -> None: ...
    class FilesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: FileCount
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[FileCount, _Mapping]] = ...) -> None: ...
    class RulesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    COMPLETE_FIELD_NUMBER: _ClassVar[int]
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    DROPPED_FIELD_NUMBER: _ClassVar[int]
    SYSCALLS_FIELD_NUMBER: _ClassVar[int]
    PROCESSES_FIELD_NUMBER: _ClassVar[int]
    PROCESS_COUNT_FIELD_NUMBER: _ClassVar[int]
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    RULES_FIELD_NUMBER: _ClassVar[int]
    PROGRAMS_FIELD_NUMBER: _ClassVar[int]
    level: str
    complete: bool
    events: int
    dropped: int
    syscalls: _containers.MessageMap[str, SyscallCount]
    processes: _containers.RepeatedCompositeFieldContainer[TracedProcess]
    process_count: int
    addresses: _containers.RepeatedCompositeFieldContainer[TracedAddress]
    files: _containers.MessageMap[str, FileCount]
    rules: _containers.ScalarMap[str, int]
    programs: _containers.RepeatedCompositeFieldContainer[TracedProgram]
    def __init__(self, level: _Optional[str] = ..., complete: bool = ..., events: _Optional[int] = ..., dropped: _Optional[int] = ..., syscalls: _Optional[_Mapping[str, SyscallCount]] = ..., processes: _Optional[_Iterable[_Union[TracedProcess, _Mapping]]] = ..., process_count: _Optional[int] = ..., addresses: _Optional[_Iterable[_Union[TracedAddress, _Mapping]]] = ..., files: _Optional[_Mapping[str, FileCount]] = ..., rules: _Optional[_Mapping[str, int]] = ..., programs: _Optional[_Iterable[_Union[TracedProgram, _Mapping]]] = ...) -> None: ...

class TracedProgram(_message.Message):
    __slots__ = ("path", "sha256", "count")
    PATH_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    path: str
    sha256: str
    count: int
    def __init__(self, path: _Optional[str] = ..., sha256: _Optional[str] = ..., count: _Optional[int] = ...) -> None: ...

class FileCount(_message.Message):
    __slots__ = ("read", "written")
    READ_FIELD_NUMBER: _ClassVar[int]
    WRITTEN_FIELD_NUMBER: _ClassVar[int]
    read: int
    written: int
    def __init__(self, read: _Optional[int] = ..., written: _Optional[int] = ...) -> None: ...

class TracedAddress(_message.Message):
    __slots__ = ("operation", "protocol", "address", "port", "count", "denied")
    OPERATION_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    PORT_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    DENIED_FIELD_NUMBER: _ClassVar[int]
    operation: str
    protocol: str
    address: str
    port: int
    count: int
    denied: bool
    def __init__(self, operation: _Optional[str] = ..., protocol: _Optional[str] = ..., address: _Optional[str] = ..., port: _Optional[int] = ..., count: _Optional[int] = ..., denied: bool = ...) -> None: ...

class TracedProcess(_message.Message):
    __slots__ = ("pid", "parent", "comm", "path", "started_at", "ended_at", "result")
    PID_FIELD_NUMBER: _ClassVar[int]
    PARENT_FIELD_NUMBER: _ClassVar[int]
    COMM_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    STARTED_AT_FIELD_NUMBER: _ClassVar[int]
    ENDED_AT_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    pid: int
    parent: int
    comm: str
    path: str
    started_at: float
    ended_at: float
    result: int
    def __init__(self, pid: _Optional[int] = ..., parent: _Optional[int] = ..., comm: _Optional[str] = ..., path: _Optional[str] = ..., started_at: _Optional[float] = ..., ended_at: _Optional[float] = ..., result: _Optional[int] = ...) -> None: ...

class StartError(_message.Message):
    __slots__ = ("stage", "errno", "message")
    STAGE_FIELD_NUMBER: _ClassVar[int]
    ERRNO_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    stage: str
    errno: int
    message: str
    def __init__(self, stage: _Optional[str] = ..., errno: _Optional[int] = ..., message: _Optional[str] = ...) -> None: ...

class ExecuteStreamResponse(_message.Message):
    __slots__ = ("request_id", "result", "error")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    result: RunResult
    error: _status_pb2.Status
    def __init__(self, request_id: _Optional[str] = ..., result: _Optional[_Union[RunResult, _Mapping]] = ..., error: _Optional[_Union[_status_pb2.Status, _Mapping]] = ...) -> None: ...

class RunRequest(_message.Message):
    __slots__ = ("start", "file", "files_end", "stdin", "signal", "resize")
    START_FIELD_NUMBER: _ClassVar[int]
    FILE_FIELD_NUMBER: _ClassVar[int]
    FILES_END_FIELD_NUMBER: _ClassVar[int]
    STDIN_FIELD_NUMBER: _ClassVar[int]
    SIGNAL_FIELD_NUMBER: _ClassVar[int]
    RESIZE_FIELD_NUMBER: _ClassVar[int]
    start: StartRun
    file: FileChunk
    files_end: FilesEnd
    stdin: bytes
    signal: int
    resize: Terminal
    def __init__(self, start: _Optional[_Union[StartRun, _Mapping]] = ..., file: _Optional[_Union[FileChunk, _Mapping]] = ..., files_end: _Optional[_Union[FilesEnd, _Mapping]] = ..., stdin: _Optional[bytes] = ..., signal: _Optional[int] = ..., resize: _Optional[_Union[Terminal, _Mapping]] = ...) -> None: ...

class StartRun(_message.Message):
    __slots__ = ("spec", "files_follow", "stdin_follows")
    SPEC_FIELD_NUMBER: _ClassVar[int]
    FILES_FOLLOW_FIELD_NUMBER: _ClassVar[int]
    STDIN_FOLLOWS_FIELD_NUMBER: _ClassVar[int]
    spec: RunSpec
    files_follow: bool
    stdin_follows: bool
    def __init__(self, spec: _Optional[_Union[RunSpec, _Mapping]] = ..., files_follow: bool = ..., stdin_follows: bool = ...) -> None: ...

class FileChunk(_message.Message):
    __slots__ = ("path", "data", "mode", "last", "truncated")
    PATH_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    TRUNCATED_FIELD_NUMBER: _ClassVar[int]
    path: bytes
    data: bytes
    mode: int
    last: bool
    truncated: bool
    def __init__(self, path: _Optional[bytes] = ..., data: _Optional[bytes] = ..., mode: _Optional[int] = ..., last: bool = ..., truncated: bool = ...) -> None: ...

class FilesEnd(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RunResponse(_message.Message):
    __slots__ = ("started", "stdout", "stderr", "violation", "file", "exited")
    STARTED_FIELD_NUMBER: _ClassVar[int]
    STDOUT_FIELD_NUMBER: _ClassVar[int]
    STDERR_FIELD_NUMBER: _ClassVar[int]
    VIOLATION_FIELD_NUMBER: _ClassVar[int]
    FILE_FIELD_NUMBER: _ClassVar[int]
    EXITED_FIELD_NUMBER: _ClassVar[int]
    started: RunStarted
    stdout: bytes
    stderr: bytes
    violation: Violation
    file: FileChunk
    exited: RunResult
    def __init__(self, started: _Optional[_Union[RunStarted, _Mapping]] = ..., stdout: _Optional[bytes] = ..., stderr: _Optional[bytes] = ..., violation: _Optional[_Union[Violation, _Mapping]] = ..., file: _Optional[_Union[FileChunk, _Mapping]] = ..., exited: _Optional[_Union[RunResult, _Mapping]] = ...) -> None: ...

class RunStarted(_message.Message):
    __slots__ = ("run_id", "time")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    time: float
    def __init__(self, run_id: _Optional[str] = ..., time: _Optional[float] = ...) -> None: ...

class RunRecord(_message.Message):
    __slots__ = ("state", "spec_digest", "policy_digest", "program", "created_at", "result", "argv")
    STATE_FIELD_NUMBER: _ClassVar[int]
    SPEC_DIGEST_FIELD_NUMBER: _ClassVar[int]
    POLICY_DIGEST_FIELD_NUMBER: _ClassVar[int]
    PROGRAM_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    ARGV_FIELD_NUMBER: _ClassVar[int]
    state: RunState
    spec_digest: str
    policy_digest: str
    program: str
    created_at: float
    result: RunResult
    argv: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, state: _Optional[_Union[RunState, str]] = ..., spec_digest: _Optional[str] = ..., policy_digest: _Optional[str] = ..., program: _Optional[str] = ..., created_at: _Optional[float] = ..., result: _Optional[_Union[RunResult, _Mapping]] = ..., argv: _Optional[_Iterable[bytes]] = ...) -> None: ...

class GetRunRequest(_message.Message):
    __slots__ = ("run_id",)
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    def __init__(self, run_id: _Optional[str] = ...) -> None: ...

class GetRunResponse(_message.Message):
    __slots__ = ("run",)
    RUN_FIELD_NUMBER: _ClassVar[int]
    run: RunRecord
    def __init__(self, run: _Optional[_Union[RunRecord, _Mapping]] = ...) -> None: ...

class ListRunsRequest(_message.Message):
    __slots__ = ("agent", "state", "page_size", "page_token")
    AGENT_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    agent: str
    state: RunState
    page_size: int
    page_token: str
    def __init__(self, agent: _Optional[str] = ..., state: _Optional[_Union[RunState, str]] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListRunsResponse(_message.Message):
    __slots__ = ("runs", "next_page_token")
    RUNS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    runs: _containers.RepeatedCompositeFieldContainer[RunRecord]
    next_page_token: str
    def __init__(self, runs: _Optional[_Iterable[_Union[RunRecord, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class KillRunRequest(_message.Message):
    __slots__ = ("run_id",)
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    def __init__(self, run_id: _Optional[str] = ...) -> None: ...

class KillRunResponse(_message.Message):
    __slots__ = ("killed",)
    KILLED_FIELD_NUMBER: _ClassVar[int]
    killed: bool
    def __init__(self, killed: bool = ...) -> None: ...

class KillAgentRunsRequest(_message.Message):
    __slots__ = ("agent",)
    AGENT_FIELD_NUMBER: _ClassVar[int]
    agent: str
    def __init__(self, agent: _Optional[str] = ...) -> None: ...

class KillAgentRunsResponse(_message.Message):
    __slots__ = ("killed",)
    KILLED_FIELD_NUMBER: _ClassVar[int]
    killed: int
    def __init__(self, killed: _Optional[int] = ...) -> None: ...
