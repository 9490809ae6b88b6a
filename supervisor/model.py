"""The data that one run passes through: RunSpec -> Policy -> LaunchPlan (plan.py) -> events (run_events.py) -> RunResult.

Frozen, slotted, free of behaviour; imports nothing of ours. Sizes are bytes, durations seconds, times Unix seconds
(float, UTC). Paths, arguments and environment are bytes, as the kernel takes them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

LIMIT_KEYS = (
    "wall_seconds",
    "cpu_seconds",
    "memory",
    "cpus",
    "pids",
    "open_files",
    "file_size",
    "disk",
    "inodes",
    "output",
)
"""The keys of [limits] in a policy, of `--limit KEY=VALUE` and of `limits=` in the SDK."""


class Outcome(str, Enum):
    """How a run ended; see interface.md for each word."""

    EXITED = "exited"
    SIGNALED = "signaled"
    TIMED_OUT = "timed_out"
    CPU_LIMIT = "cpu_limit"
    OUT_OF_MEMORY = "out_of_memory"
    OUTPUT_LIMIT = "output_limit"
    VIOLATION = "violation"
    CANCELLED = "cancelled"
    LOST = "lost"
    NOT_STARTED = "not_started"


class NetworkMode(str, Enum):
    """What a run can reach: nothing but its own loopback; peers; what `allow` names; the host's network."""

    NONE = "none"
    INTERNAL = "internal"
    FILTERED = "filtered"
    FULL = "full"


class TraceLevel(str, Enum):
    OFF = "off"
    SUMMARY = "summary"
    FULL = "full"


@dataclass(frozen=True, slots=True)
class Limits:
    """Effective limits of one run; None is unlimited. `cpus` is a fraction of CPUs, `output` bytes per stream."""

    wall_seconds: float | None = None
    cpu_seconds: float | None = None
    memory: int | None = None
    cpus: float | None = None
    pids: int | None = None
    open_files: int | None = None
    file_size: int | None = None
    disk: int | None = None
    inodes: int | None = None
    output: int | None = None


@dataclass(frozen=True, slots=True)
class Mount:
    """A host directory or file shown to the run at `target`; read-only unless `writable`."""

    source: bytes
    target: bytes
    writable: bool = False


@dataclass(frozen=True, slots=True)
class InputFile:
    """A file written into the run before it starts; a relative `path` is below the run's /work."""

    path: bytes
    data: bytes
    mode: int = 0o644


class FileData(Protocol):
    """Data of a file that is read piece by piece: a length, and slices of it as bytes, until it is closed."""

    def __len__(self) -> int: ...

    def __getitem__(self, piece: slice, /) -> bytes: ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class OutputFile:
    """A regular file taken out of the run; `truncated` when its data did not fit the bound (data is then a prefix).

    Inside the daemon a large file's data is in `spool` instead, not in memory.
    """

    path: bytes
    data: bytes
    mode: int
    truncated: bool = False
    spool: FileData | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class RunSpec:
    """What a client asks for. None means "as the policy says". Exactly one of `policy` and `policy_toml` is set."""

    argv: tuple[bytes, ...]
    env: tuple[tuple[bytes, bytes], ...] = ()
    cwd: bytes | None = None
    stdin: bytes = b""
    policy: str = "strict"
    policy_toml: str | None = None
    limits: Mapping[str, float | int] = field(default_factory=dict)
    network: NetworkMode | None = None
    allow: tuple[str, ...] = ()
    mounts: tuple[Mount, ...] = ()
    files: tuple[InputFile, ...] = ()
    collect: tuple[bytes, ...] = ()
    trace: TraceLevel | None = None
    backend: str = "auto"
    image: str | None = None
    agent: str = ""
    request_id: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    terminal: bool = False


@dataclass(frozen=True, slots=True)
class Usage:
    """What a run used. None: this host cannot measure it (the field's name then stands in Enforcement.missing)."""

    wall_seconds: float | None = None
    cpu_user_seconds: float | None = None
    cpu_system_seconds: float | None = None
    memory_peak_bytes: int | None = None
    pids_peak: int | None = None
    io_read_bytes: int | None = None
    io_write_bytes: int | None = None
    pids_limit_hits: int | None = None
    memory_limit_hits: int | None = None
    oom_kills: int | None = None
    cpu_throttled_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Violation:
    """One thing that policy forbids and the run tried. `pid`, `tid` are the run's own; `args` the raw registers."""

    rule: str
    kind: str
    severity: str
    action: str
    time: float
    syscall: str = ""
    abi: str = ""
    args: tuple[int, ...] = ()
    pid: int = 0
    tid: int = 0
    comm: str = ""
    exe: str = ""
    path: str = ""
    address: str = ""
    port: int = 0


@dataclass(frozen=True, slots=True)
class Enforcement:
    """By which mechanism the policy was held for this run. `missing` names what was not enforced or not measured."""

    namespaces: tuple[str, ...] = ()
    cgroup: str = ""
    seccomp: str = ""
    landlock: str = ""
    cgroup_bpf: str = ""
    lsm: str = ""
    network: str = ""
    user: str = ""
    missing: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SyscallCount:
    calls: int
    errors: int


@dataclass(frozen=True, slots=True)
class TracedProcess:
    """One process of a run, by its last program. `result`: its exit status, or the negated number of the signal it died of.

    `ended_at` and `result` are None where its end was not seen. Times are Unix time in seconds, pids the run's own.
    """

    pid: int
    parent: int
    comm: str
    path: str
    started_at: float
    ended_at: float | None = None
    result: int | None = None


@dataclass(frozen=True, slots=True)
class TracedAddress:
    """What a run connected to, sent to, bound, listened at or accepted: a Unix socket by path, or "@" and abstract name."""

    operation: str
    protocol: str
    address: str
    port: int
    count: int
    denied: bool


@dataclass(frozen=True, slots=True)
class FileCount:
    """How often files were opened: for reading alone, and for writing."""

    read: int
    written: int


@dataclass(frozen=True, slots=True)
class TracedProgram:
    """A file that was executed, `count` times, by the path where it lies; an interpreter for a script.

    `sha256` is hexadecimal, of its content at that time; empty where it could not be had, or had changed before it was read.
    """

    path: str
    sha256: str
    count: int


@dataclass(frozen=True, slots=True)
class TraceSummary:
    """`complete` is true only when everything that happened was seen: no event dropped, nothing unobservable.

    `processes` are the first 200 of `process_count`, `addresses` the first 200. `files` counts what was opened by class:
    system, config, proc, sys, device, temporary, work, home, state, other. `rules`: how often each of the policy's rules has
    matched, those that only log included. `programs` are the first 200 files executed.
    """

    level: str = "off"
    complete: bool = False
    events: int = 0
    dropped: int = 0
    syscalls: Mapping[str, SyscallCount] = field(default_factory=dict)
    processes: tuple[TracedProcess, ...] = ()
    process_count: int = 0
    addresses: tuple[TracedAddress, ...] = ()
    files: Mapping[str, FileCount] = field(default_factory=dict)
    rules: Mapping[str, int] = field(default_factory=dict)
    programs: tuple[TracedProgram, ...] = ()


@dataclass(frozen=True, slots=True)
class TraceEvent:
    """One thing that a run did; what does not apply is empty.

    `time` is Unix time in nanoseconds; `pid`, `tid` and `parent` are the run's own. `kind`: "syscall" has syscall, abi, args
    (raw registers) and result; "exec" has path, argv, parent; "fork" the child's tid as result; "exit" the exit status, or the
    negated number of the signal that ended the process; "signal", which is its receiver's, its number. "open", "connect" and
    the like have path, or address and port, beside their system call.
    """

    time: int
    kind: str
    pid: int
    tid: int
    syscall: str = ""
    abi: str = ""
    result: int = 0
    args: tuple[int, ...] = ()
    comm: str = ""
    path: str = ""
    address: str = ""
    port: int = 0
    parent: int = 0
    argv: tuple[str, ...] = ()
    detail: str = ""


@dataclass(frozen=True, slots=True)
class StartError:
    """Why the program could not be executed: `stage` of ours, `errno` of the host (0: none)."""

    stage: str
    errno: int
    message: str


@dataclass(frozen=True, slots=True)
class RunResult:
    """The one answer to a RunSpec. `exit_code` is None when a signal ended the program; `detail` says why in a line."""

    run_id: str
    outcome: Outcome
    policy: str
    backend: str
    request_id: str = ""
    agent: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    exit_code: int | None = None
    signal: int | None = None
    signal_name: str | None = None
    detail: str = ""
    stdout: bytes = b""
    stderr: bytes = b""
    stdout_truncated: bool = False
    stderr_truncated: bool = False
    usage: Usage = Usage()
    files: tuple[OutputFile, ...] = ()
    violations: tuple[Violation, ...] = ()
    enforcement: Enforcement = Enforcement()
    trace: TraceSummary = TraceSummary()
    error: StartError | None = None
    started_at: float = 0.0
    ended_at: float = 0.0


@dataclass(frozen=True, slots=True)
class RunRecord:
    """A run as the record keeps it: everything of the result but its output and files. `state` is queued, running or ended.

    `argv` is known only of a run that has not ended: no record keeps it.
    """

    run_id: str
    state: str
    spec_digest: str
    policy: str
    policy_digest: str
    backend: str
    program: str
    agent: str = ""
    request_id: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    created_at: float = 0.0
    started_at: float | None = None
    ended_at: float | None = None
    outcome: Outcome | None = None
    exit_code: int | None = None
    signal: int | None = None
    detail: str = ""
    usage: Usage = Usage()
    violations: tuple[Violation, ...] = ()
    enforcement: Enforcement = Enforcement()
    error: StartError | None = None
    trace: TraceSummary = TraceSummary()
    argv: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class Feature:
    """One thing the design uses, found by doing it: `detail` is what the host said; `loss` and `remedy` are for people."""

    name: str
    available: bool
    detail: str = ""
    loss: str = ""
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class HostFeatures:
    """What this host can enforce. `cgroup` is "v2" where the v2 tree holds memory, pids and cpu, else "hybrid"."""

    kernel: str
    cgroup: str
    cpus: int
    memory_bytes: int
    landlock_abi: int = 0
    features: Mapping[str, Feature] = field(default_factory=dict)

    def has(self, name: str) -> bool:
        found = self.features.get(name)
        return found is not None and found.available


@dataclass(frozen=True, slots=True)
class Peer:
    """Who sent a request: `local` over a Unix socket; `name` the certificate's common name over mTLS, else empty."""

    local: bool = True
    name: str = ""
