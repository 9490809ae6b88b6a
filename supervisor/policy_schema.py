"""What may stand in a policy file, key by key: pydantic models of one file, before `extends` is followed."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from supervisor.policy import NAMESPACES, SIZE_KEYS, check_address, check_limit, nearest, parse_size
from supervisor.rules.kinds import FIELDS, check_rule
from supervisor.syscall_sets import GUARDS, KNOWN_SYSCALLS, SYSCALL_SETS

UNLIMITED = "unlimited"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_ENTRY = re.compile(r"([@%]?[a-z0-9_-]{1,64})(?::([A-Z0-9]{1,16}))?")
_ERRNO_NAMES = frozenset(errno.errorcode.values()) | {"EOPNOTSUPP", "EWOULDBLOCK", "EDEADLOCK"}
_CAPABILITIES = tuple(f"CAP_{name}" for name in (
    "AUDIT_CONTROL", "AUDIT_READ", "AUDIT_WRITE", "BLOCK_SUSPEND", "BPF", "CHECKPOINT_RESTORE", "CHOWN",
    "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "IPC_LOCK", "IPC_OWNER", "KILL", "LEASE",
    "LINUX_IMMUTABLE", "MAC_ADMIN", "MAC_OVERRIDE", "MKNOD", "NET_ADMIN", "NET_BIND_SERVICE", "NET_BROADCAST",
    "NET_RAW", "PERFMON", "SETFCAP", "SETGID", "SETPCAP", "SETUID", "SYSLOG", "SYS_ADMIN", "SYS_BOOT", "SYS_CHROOT",
    "SYS_MODULE", "SYS_NICE", "SYS_PACCT", "SYS_PTRACE", "SYS_RAWIO", "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG",
    "WAKE_ALARM",
))  # fmt: skip


class UnknownWord(ValueError):
    """A word that is not among the known ones; finding the nearest is slow, so it waits until somebody will read it."""

    def __init__(self, message: str, word: str, known: Iterable[str]) -> None:
        super().__init__(message)
        self._word = word
        self._known = known

    def hint(self) -> str:
        return nearest(self._word, self._known)


def _limit(key: str) -> Callable[[Any], int | float | str]:
    def check(value: Any) -> int | float | str:
        if value == UNLIMITED:
            return UNLIMITED
        if key in SIZE_KEYS and isinstance(value, str):
            value = parse_size(value)
        return check_limit(key, value)

    return check


def _name(value: str) -> str:
    if not _NAME.fullmatch(value):
        raise ValueError("a name is made of letters, digits, '.', '_' and '-', 64 at most")
    return value


def _name_or_empty(value: str) -> str:
    return _name(value) if value else value


def _path(value: str) -> str:
    if not value.startswith("/") or "\0" in value or len(value.encode()) > 4095:
        raise ValueError(f"{value[:64]!r} is not an absolute path")
    parts = [part for part in value.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise ValueError(f"{value[:64]!r} has '..' in it")
    return "/" + "/".join(parts)


def _root(value: str) -> str:
    if value == "host":
        return value
    if value.startswith("image:"):
        if not re.fullmatch(r"image:[A-Za-z0-9][A-Za-z0-9_./:@-]{0,254}", value):
            raise ValueError(f"{value[:64]!r} names no image")
        return value
    if not value.startswith("/"):
        raise ValueError('"host", "image:NAME" or an absolute path')
    return _path(value)


def _environment(value: dict[str, str]) -> dict[str, str]:
    for name, text in value.items():
        if not name or "=" in name or "\0" in name + text:
            raise ValueError(f"{name[:64]!r} is no environment variable")
    return value


def _capability(value: str) -> str:
    name = value.upper() if value.upper().startswith("CAP_") else f"CAP_{value.upper()}"
    if name not in _CAPABILITIES:
        raise UnknownWord(f"unknown capability {value[:64]!r}", name, _CAPABILITIES)
    return name


def _namespace(value: str) -> str:
    if value not in NAMESPACES:
        raise UnknownWord(f"unknown namespace {value[:64]!r}", value, NAMESPACES)
    return value


def _errno_name(value: str) -> str:
    if value not in _ERRNO_NAMES:
        raise UnknownWord(f"unknown error {value[:64]!r}", value, _ERRNO_NAMES)
    return value


def _call(value: str) -> str:
    match = _ENTRY.fullmatch(value)
    if match is None:
        raise ValueError(f"{value[:64]!r} is no system call, @set or %guard, with or without :ERRNO")
    name = match[1]
    known, what = {"@": (frozenset(SYSCALL_SETS), "set"), "%": (frozenset(GUARDS), "guard")}.get(
        name[0], (KNOWN_SYSCALLS, "system call")
    )
    if name not in known:
        raise UnknownWord(f"unknown {what} '{name}'", name, known)
    if match[2] is not None:
        _errno_name(match[2])
    return value


def _call_without_errno(value: str) -> str:
    if ":" in value:
        raise ValueError(f"{value[:64]!r}: only the list errno takes :ERRNO")
    return _call(value)


def _patterns(value: Any) -> Any:
    """One pattern stands for a list of one; numbers and booleans count as their text."""
    items = value if isinstance(value, list) else [value]
    if not all(isinstance(item, str | int) for item in items):
        raise ValueError("a text, a number, or a list of them")
    return [str(item).lower() if isinstance(item, bool) else str(item) for item in items]


def _kind(value: str) -> str:
    if value not in FIELDS:
        raise UnknownWord(f"unknown kind of event '{value[:64]}'", value, FIELDS)
    return value


Name = Annotated[str, AfterValidator(_name)]
NameOrEmpty = Annotated[str, AfterValidator(_name_or_empty)]
AbsolutePath = Annotated[str, AfterValidator(_path)]
Address = Annotated[str, AfterValidator(check_address)]
Call = Annotated[str, AfterValidator(_call)]
PlainCall = Annotated[str, AfterValidator(_call_without_errno)]
Writable = Literal["rw", "noexec", "ro"]
Mode = Literal["none", "internal", "filtered", "full"]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class LimitsMaxTable(_Table):
    wall_seconds: Annotated[Any, BeforeValidator(_limit("wall_seconds"))] = None
    cpu_seconds: Annotated[Any, BeforeValidator(_limit("cpu_seconds"))] = None
    memory: Annotated[Any, BeforeValidator(_limit("memory"))] = None
    cpus: Annotated[Any, BeforeValidator(_limit("cpus"))] = None
    pids: Annotated[Any, BeforeValidator(_limit("pids"))] = None
    open_files: Annotated[Any, BeforeValidator(_limit("open_files"))] = None
    file_size: Annotated[Any, BeforeValidator(_limit("file_size"))] = None
    disk: Annotated[Any, BeforeValidator(_limit("disk"))] = None
    inodes: Annotated[Any, BeforeValidator(_limit("inodes"))] = None
    output: Annotated[Any, BeforeValidator(_limit("output"))] = None


class LimitsTable(LimitsMaxTable):
    max: LimitsMaxTable = LimitsMaxTable()


class IsolationTable(_Table):
    namespaces: list[Annotated[str, AfterValidator(_namespace)]] = []
    landlock: bool = False


class FilesystemTable(_Table):
    root: Annotated[str, AfterValidator(_root)] = "host"
    read_only: list[AbsolutePath] = []
    read_write: list[AbsolutePath] = []
    hidden: list[AbsolutePath] = []
    tmp: Writable = "rw"
    work: Writable = "rw"


class NetworkTable(_Table):
    mode: Mode = "none"
    max: Mode = "none"
    allow: list[Address] = []
    deny: list[Address] = []


class SyscallsTable(_Table):
    default: Literal["allow", "errno", "kill"] = "allow"
    default_errno: Annotated[str, AfterValidator(_errno_name)] = "ENOSYS"
    allow: list[PlainCall] = []
    errno: list[Call] = []
    kill: list[PlainCall] = []


class ProcessTable(_Table):
    user: Literal["run", "root"] = "run"
    capabilities: list[Annotated[str, AfterValidator(_capability)]] = []
    env: Annotated[dict[str, str], AfterValidator(_environment)] = {}
    new_session: bool = True
    core_dumps: bool = False


class TraceTable(_Table):
    level: Literal["off", "summary", "full"] = "summary"
    required: bool = False


class RuleTable(_Table):
    name: Name
    on: Annotated[list[Annotated[str, AfterValidator(_kind)]], BeforeValidator(_patterns), Field(min_length=1)]
    match: dict[str, Annotated[list[str], BeforeValidator(_patterns), Field(max_length=200)]] = {}
    severity: Literal["info", "low", "medium", "high", "critical"] = "medium"
    action: Literal["off", "log", "alert", "deny", "kill"] = "log"
    count: Annotated[int, Field(ge=1, le=10_000)] = 1
    seconds: Annotated[float, Field(gt=0, le=86_400)] = 10.0
    distinct: Annotated[list[str], BeforeValidator(_patterns)] = []
    near: NameOrEmpty = ""

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_rule(self.on, self.match, self.action, self.count, self.distinct, self.near)
        return self


class ResponseTable(_Table):
    violation_threshold: Annotated[int | None, Field(ge=1, le=2**31 - 1)] = None


class PolicyFile(_Table):
    """One file as written; what it leaves out is its parent's (`model_fields_set` tells)."""

    name: NameOrEmpty = ""
    extends: NameOrEmpty = ""
    description: Annotated[str, Field(max_length=4096)] = ""
    limits: LimitsTable = LimitsTable()
    isolation: IsolationTable = IsolationTable()
    filesystem: FilesystemTable = FilesystemTable()
    network: NetworkTable = NetworkTable()
    syscalls: SyscallsTable = SyscallsTable()
    process: ProcessTable = ProcessTable()
    trace: TraceTable = TraceTable()
    rule_sets: list[Name] = []
    rules: Annotated[list[RuleTable], Field(max_length=500)] = []
    response: ResponseTable = ResponseTable()


def known_keys(table: Sequence[str | int]) -> list[str]:
    """The keys that the table at this place of a file knows."""
    model: type[BaseModel] = PolicyFile
    for part in table:
        if isinstance(part, int):
            continue
        default = model.model_fields[part].default if part in model.model_fields else None
        if part == "rules":
            model = RuleTable
        elif isinstance(default, BaseModel):
            model = type(default)
        else:
            return []
    return list(model.model_fields)


def lay_syscalls(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """A file's [syscalls] laid over its parent's: {default, default_errno, actions: name -> (action, errno name)}.

    Within one file a call's own name counts for more than a set that holds it, then kill for more than errno, and that
    for more than allow.
    """
    merged = {**under, **{key: over[key] for key in ("default", "default_errno") if key in over}}
    actions: dict[str, tuple[str, str]] = dict(under.get("actions", {}))
    for sets in (True, False):
        for action in ("allow", "errno", "kill"):
            for entry in over.get(action, ()):
                name, _, error = entry.partition(":")
                if name.startswith("@") == sets:
                    value = (action, (error or "EPERM") if action == "errno" else "")
                    actions.update(dict.fromkeys(SYSCALL_SETS[name] if sets else (name,), value))
    merged["actions"] = actions
    return merged
