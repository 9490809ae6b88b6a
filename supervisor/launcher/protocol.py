"""The launcher's wire format, the Python side of protocol.h: plans out, replies in. Native byte order, one machine."""

from __future__ import annotations

import resource
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache

from supervisor.errors import InvalidRequest
from supervisor.plan import HOSTNAME, LaunchPlan
from supervisor.plan_root import Op, OpKind

MAGIC = 0x31505653
MAX_PACKET = 128 * 1024
MAX_PLAN = 16 * 1024 * 1024
MAX_FDS = 200
MAX_VIOLATIONS = 8
PLAN_IN_FD = 1


class Request(IntEnum):
    LAUNCH = 1
    TEMPLATE = 2
    CHECK = 3
    PING = 4


class ReplyKind(IntEnum):
    STARTED = 1
    ENDED = 2
    FAILED = 3
    OK = 4


STAGES = (
    "none",
    "request",
    "plan",
    "idmap",
    "clone",
    "cgroup",
    "launcher",
    "loopback",
    "hostname",
    "root",
    "mount",
    "pivot",
    "cgroup_ns",
    "keyring",
    "user",
    "user_ns",
    "capabilities",
    "landlock",
    "stdio",
    "fork",
    "rlimit",
    "terminal",
    "cwd",
    "seccomp",
    "exec",
    "template",
)
"""enum stage: the steps of a set-up that can fail, by number."""

HEADER = struct.Struct("=IHHQII")
PLAN = struct.Struct("=II5I5i7Ii3Q")
RLIMIT = struct.Struct("=IIQQ")
OP = struct.Struct("=IIiIQII")
_LENGTH = struct.Struct("=I")
_ACCESS = struct.Struct("=Q")
_FD = struct.Struct("=i")
VIOLATION = struct.Struct("=Q6QIii16sI")
REPLY = struct.Struct("=IIQiiiiiii4xQQqqQII")
REPLY_SIZE = REPLY.size + MAX_VIOLATIONS * VIOLATION.size

_NAMESPACE_FLAGS = {"pid": 1, "mount": 2, "network": 4, "ipc": 8, "uts": 16, "cgroup": 32, "user": 64}
_TERMINAL, _NOTIFY, _AS_ROOT, _KEYRING, _NO_NEW_PRIVS, _MEMFD_NOEXEC = 128, 256, 512, 1024, 2048, 4096
_OWN, _IDMAP, _IDMAP_OPTIONAL, _RECURSIVE = 1, 2, 4, 8


@dataclass(frozen=True, slots=True)
class SeccompViolation:
    """What the filter caught: `time` Unix seconds, `arch` an AUDIT_ARCH_* constant, `pid` the run's own."""

    time: float
    arch: int
    number: int
    args: tuple[int, ...]
    pid: int
    comm: str


@dataclass(frozen=True, slots=True)
class Reply:
    """One message of the launcher. Statuses are waitpid(2)'s, times seconds; None is what could not be measured."""

    kind: ReplyKind
    run: int
    pid: int
    stage: str
    index: int
    errno: int
    program_status: int | None
    init_status: int
    idmap_skipped: int
    user_seconds: float
    system_seconds: float
    read_bytes: int | None
    write_bytes: int | None
    violations: tuple[SeccompViolation, ...]
    violations_lost: int


def request(kind: Request, run: int, body: bytes = b"", *, fds: int = 0, flags: int = 0) -> bytes:
    """One packet to the launcher, to be sent with `fds` descriptors."""
    return HEADER.pack(MAGIC, kind, flags, run, len(body), fds) + body


def decode_reply(packet: bytes) -> Reply:
    """Raises ValueError for what is no reply."""
    if len(packet) != REPLY_SIZE:
        raise ValueError(f"launcher sent {len(packet)} bytes, not {REPLY_SIZE}")
    (
        magic, kind, run, pid, stage, index, error, program_status, program_done, init_status,
        user_us, system_us, read_bytes, write_bytes, skipped, count, lost,
    ) = REPLY.unpack_from(packet)  # fmt: skip
    if magic != MAGIC or not 0 <= stage < len(STAGES):
        raise ValueError("launcher sent something that is no reply")
    return Reply(
        kind=ReplyKind(kind),
        run=run,
        pid=pid,
        stage=STAGES[stage],
        index=index,
        errno=error,
        program_status=program_status if program_done else None,
        init_status=init_status,
        idmap_skipped=skipped,
        user_seconds=user_us / 1e6,
        system_seconds=system_us / 1e6,
        read_bytes=None if read_bytes < 0 else read_bytes,
        write_bytes=None if write_bytes < 0 else write_bytes,
        violations=tuple(_violation(packet, i) for i in range(count)),
        violations_lost=lost,
    )


def printable(text: bytes) -> str:
    """A run's own words as they may be shown: no control characters, no escapes."""
    return "".join(c if c.isprintable() else "\ufffd" for c in text.decode("utf-8", "replace"))


def _violation(packet: bytes, index: int) -> SeccompViolation:
    fields = VIOLATION.unpack_from(packet, REPLY.size + index * VIOLATION.size)
    time_ns, args, (arch, number, pid, comm, _pad) = fields[0], fields[1:7], fields[7:]
    name = printable(comm.split(b"\0", 1)[0])
    return SeccompViolation(time_ns / 1e9, arch, number, args, pid, name)


@dataclass(frozen=True, slots=True)
class Descriptors:
    """Where the plan's descriptors stand among those sent along; `mounts` by the index that an Op names."""

    stdin: int
    stdout: int
    stderr: int
    cgroup: int
    tmpfs: int = -1
    v1: tuple[int, ...] = ()
    mounts: Mapping[int, int] | None = None


def encode_plan(
    plan: LaunchPlan,
    descriptors: Descriptors,
    *,
    host_id: int,
    filter_program: bytes,
    file_mounts: frozenset[int] = frozenset(),
    owners: Mapping[int, tuple[int, int]] | None = None,
) -> bytes:
    """The plan as the launcher reads it. `host_id` is the run's uid and gid; `owners` the uid and gid that each mount's
    source has, for idmapping; `file_mounts` the mounts whose source is a file.

    Raises InvalidRequest where it does not fit MAX_PLAN: arguments and environment beyond what any exec takes.
    """
    inner = plan.inner_id if plan.inner_id is not None else host_id
    rlimits = _clipped_rlimits(plan.rlimits)
    parts = [
        PLAN.pack(
            MAGIC, _plan_flags(plan), host_id, host_id, inner, inner, 0o022,
            descriptors.stdin, descriptors.stdout, descriptors.stderr, descriptors.tmpfs, descriptors.cgroup,
            len(descriptors.v1), len(rlimits), len(filter_program) // 8, len(plan.ops), len(plan.landlock_rules),
            len(plan.argv), len(plan.env),
            plan.oom_score_adj, plan.landlock_fs, 0, plan.landlock_scoped,
        )
    ]  # fmt: skip
    parts += [_FD.pack(fd) for fd in descriptors.v1]
    parts += [RLIMIT.pack(number, 0, soft, hard) for number, soft, hard in rlimits]
    parts.append(filter_program)
    parts.append(_string(HOSTNAME))
    parts.append(_string(plan.cwd))
    mounts = descriptors.mounts or {}
    if mounts:
        parts += [_encode_op(op, mounts, file_mounts, owners or {}, plan) for op in plan.ops]
    else:
        parts.append(_encode_plain_ops(plan.ops))
    for rule in plan.landlock_rules:
        parts.append(_ACCESS.pack(rule.access) + _string(rule.path))
    parts += _strings(plan.argv)
    parts += _strings([name + b"=" + value for name, value in plan.env])
    body = b"".join(parts)
    if len(body) > MAX_PLAN:
        raise InvalidRequest(f"arguments and environment are over {MAX_PLAN} bytes together", field="argv")
    return body


def _plan_flags(plan: LaunchPlan) -> int:
    flags = sum(_NAMESPACE_FLAGS[name] for name in plan.namespaces)
    flags |= _TERMINAL if plan.terminal else 0
    flags |= _NOTIFY if plan.notify else 0
    flags |= _MEMFD_NOEXEC if plan.memfd_noexec else 0
    flags |= _AS_ROOT if plan.as_root else _KEYRING | _NO_NEW_PRIVS
    return flags


def _clipped_rlimits(rlimits: Sequence[tuple[str, int]]) -> list[tuple[int, int, int]]:
    """(resource, soft, hard). Without CAP_SYS_RESOURCE nobody can raise a hard limit, and a run never may.

    Soft and hard are the same, but for CPU time: there a signal of its own tells the cause, before SIGKILL does not.
    """
    clipped = []
    for name, value in rlimits:
        number = getattr(resource, name)
        hard = resource.getrlimit(number)[1]
        most = (1 << 64) - 1 if hard == resource.RLIM_INFINITY else hard
        clipped.append((number, min(value, most), min(value + (name == "RLIMIT_CPU"), most)))
    return clipped


@lru_cache(maxsize=64)
def _encode_plain_ops(ops: tuple[Op, ...]) -> bytes:
    """Of a root without mounts, which is the same for most runs of a policy."""
    return b"".join(_encode_op(op, {}, frozenset(), {}, None) for op in ops)


def _encode_op(
    op: Op,
    mounts: Mapping[int, int],
    file_mounts: frozenset[int],
    owners: Mapping[int, tuple[int, int]],
    plan: LaunchPlan | None,
) -> bytes:
    kind = op.kind
    fd = -1
    numbers = op.number
    flags = (_OWN if op.own else 0) | (_RECURSIVE if op.recursive else 0)
    if op.mount is not None:
        fd = mounts[op.mount]
        owner = owners.get(op.mount)
        if op.idmap and owner is not None and plan is not None and not plan.as_root:
            flags |= _IDMAP | (_IDMAP_OPTIONAL if op.idmap_optional else 0)
            numbers = owner
    elif (
        plan is not None
        and kind is OpKind.MKDIR
        and any(plan.mounts[index].target == op.target for index in file_mounts)
    ):
        kind = OpKind.FILE
    head = OP.pack(kind, flags, fd, op.mode, op.attributes, numbers[0], numbers[1])
    return head + _string(op.target) + _string(op.source)


def _string(text: bytes) -> bytes:
    return _LENGTH.pack(len(text)) + text + b"\0"


def _strings(texts: Sequence[bytes]) -> list[bytes]:
    return [_LENGTH.pack(len(text)) + text + b"\0" for text in texts]
