"""RunSpec from the wire, with everything that is malformed about a request found here and named by its field.

Whether a well-formed request is allowed is the policy's business, not this file's. What goes the other way stands in
`results`. Pure; raises nothing but InvalidRequest.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from supervisor.errors import InvalidRequest
from supervisor.model import InputFile, Mount, NetworkMode, RunSpec, TraceLevel
from supervisor.plan_root import below_work
from supervisor.v1 import run_pb2 as pb

V = TypeVar("V")

MAX_ARGUMENTS = 100_000
"""Of argv and environment together; how many bytes they may have is the kernel's to say."""
MAX_FILES = 20_000
MAX_MOUNTS = 256
MAX_PATTERNS = 1_000
MAX_ALLOWED = 1_000
MAX_LABELS = 64
MAX_NAME_CHARS = 256
MAX_PATH_BYTES = 4_095
MAX_COMPONENT_BYTES = 255
MAX_POLICY_CHARS = 1 << 20
MAX_DURATION_SECONDS = 1e9
MAX_CPUS = 1e6

NETWORK_MODES = {
    pb.NETWORK_MODE_UNSPECIFIED: None,
    pb.NETWORK_MODE_NONE: NetworkMode.NONE,
    pb.NETWORK_MODE_INTERNAL: NetworkMode.INTERNAL,
    pb.NETWORK_MODE_FILTERED: NetworkMode.FILTERED,
    pb.NETWORK_MODE_FULL: NetworkMode.FULL,
}
TRACE_LEVELS = {
    pb.TRACE_LEVEL_UNSPECIFIED: None,
    pb.TRACE_LEVEL_OFF: TraceLevel.OFF,
    pb.TRACE_LEVEL_SUMMARY: TraceLevel.SUMMARY,
    pb.TRACE_LEVEL_FULL: TraceLevel.FULL,
}
BACKENDS = {pb.BACKEND_UNSPECIFIED: "auto", pb.BACKEND_NATIVE: "native", pb.BACKEND_DOCKER: "docker"}
LIMITS = (
    ("wall_seconds", "wall_seconds", MAX_DURATION_SECONDS),
    ("cpu_seconds", "cpu_seconds", MAX_DURATION_SECONDS),
    ("memory_bytes", "memory", math.inf),
    ("cpus", "cpus", MAX_CPUS),
    ("pids", "pids", math.inf),
    ("open_files", "open_files", math.inf),
    ("file_size_bytes", "file_size", math.inf),
    ("disk_bytes", "disk", math.inf),
    ("inodes", "inodes", math.inf),
    ("output_bytes", "output", math.inf),
)
"""Name on the wire, name in model.LIMIT_KEYS, most that makes sense."""


def run_spec(message: pb.RunSpec, *, files: Sequence[InputFile] = (), terminal_allowed: bool = False) -> RunSpec:
    """The RunSpec of `message`, with `files` that came beside it; raises InvalidRequest naming the offending field."""
    if not message.argv or not message.argv[0]:
        raise InvalidRequest("argv is empty: there is no program to run", field="argv")
    if len(message.argv) + len(message.env) > MAX_ARGUMENTS:
        raise InvalidRequest(f"more than {MAX_ARGUMENTS} arguments and environment variables", field="argv")
    terminal = message.HasField("terminal")
    if terminal and not terminal_allowed:
        raise InvalidRequest("a terminal needs live input and output: use Run", field="terminal")
    source = message.WhichOneof("policy_source")
    policy, policy_toml = (message.policy or "strict"), None
    if source == "policy_toml":
        policy, policy_toml = "", message.policy_toml
        if not policy_toml.strip() or len(policy_toml) > MAX_POLICY_CHARS:
            raise InvalidRequest(f"an inline policy has 1 to {MAX_POLICY_CHARS} characters", field="policy_toml")
    return RunSpec(
        argv=_arguments(message.argv),
        env=_environment(message.env) if message.env else (),
        cwd=_absolute(message.cwd, "cwd") if message.cwd else None,
        stdin=message.stdin,
        policy=_name(policy, "policy"),
        policy_toml=policy_toml,
        limits=_limits(message.limits) if message.HasField("limits") else {},
        network=_enumerated(NETWORK_MODES, message.network, "network"),
        allow=_allowed(message.allow) if message.allow else (),
        mounts=_mounts(message.mounts) if message.mounts else (),
        files=_files(message.files, files) if message.files or files else (),
        collect=_patterns(message.collect) if message.collect else (),
        trace=_enumerated(TRACE_LEVELS, message.trace, "trace"),
        backend=_enumerated(BACKENDS, message.backend, "backend"),
        image=_name(message.image, "image") if message.image else None,
        agent=_name(message.agent, "agent"),
        request_id=_name(message.request_id, "request_id"),
        labels=_labels(message.labels) if message.labels else {},
        terminal=terminal,
    )


def input_path(path: bytes, field: str) -> bytes:
    """A file's place in the run, relative to /work or absolute, without empty and `.` components."""
    if not path:
        raise InvalidRequest(f"{field} is empty", field=field)
    normal = _normal(path, field)
    if path.endswith((b"/", b"/.")) or normal in (b"", b"/", b"."):
        raise InvalidRequest(f"{field} names a directory, not a file", field=field)
    if _below(normal, b"/proc", b"/sys") or (_below(normal, b"/dev") and not _below(normal, b"/dev/shm")):
        raise InvalidRequest(f"{field} is below a directory that the kernel fills: {_shown(normal)}", field=field)
    return normal


def file_mode(mode: int | None, field: str) -> int:
    """Permission bits, 0644 where none were sent."""
    if mode is None:
        return 0o644
    if mode > 0o777:
        raise InvalidRequest(f"{field} is {mode:#o}: only permission bits, at most 0o777, can be set", field=field)
    return mode


def terminal_size(message: pb.Terminal, field: str) -> tuple[int, int]:
    """(rows, columns), each at most 65535 as the kernel's `struct winsize` has it."""
    if message.rows > 0xFFFF or message.columns > 0xFFFF:
        raise InvalidRequest(f"{field} is larger than 65535", field=field)
    return message.rows, message.columns


def name(value: str, field: str) -> str:
    """A name that must not be empty: at most 256 characters, none of them control characters."""
    if not value:
        raise InvalidRequest(f"{field} is empty", field=field)
    return _name(value, field)


def _name(value: str, field: str) -> str:
    if len(value) > MAX_NAME_CHARS:
        raise InvalidRequest(f"{field} has more than {MAX_NAME_CHARS} characters", field=field)
    if not value.isprintable() and any(unicodedata.category(character) == "Cc" for character in value):
        raise InvalidRequest(f"{field} has control characters", field=field)
    return value


def _enumerated(table: Mapping[Any, V], value: int, field: str) -> V:
    try:
        return table[value]
    except KeyError:
        raise InvalidRequest(f"{field} has no value number {value}", field=field) from None


def _arguments(argv: Iterable[bytes]) -> tuple[bytes, ...]:
    arguments = tuple(argv)
    for index, argument in enumerate(arguments):
        if b"\0" in argument:
            raise InvalidRequest(f"argv[{index}] has a NUL byte", field=f"argv[{index}]")
    return arguments


def _environment(env: Iterable[pb.EnvironmentVariable]) -> tuple[tuple[bytes, bytes], ...]:
    variables = {}
    for index, variable in enumerate(env):
        key, value = variable.name, variable.value
        if not key or b"=" in key or b"\0" in key:
            field = f"env[{index}].name"
            raise InvalidRequest(f"{field} is empty or has '=' or a NUL byte", field=field)
        if b"\0" in value:
            raise InvalidRequest(f"env[{index}].value has a NUL byte", field=f"env[{index}].value")
        if key in variables:
            raise InvalidRequest(f"env[{index}].name was given before: {_shown(key)}", field=f"env[{index}].name")
        variables[key] = value
    return tuple(variables.items())


def _limits(message: pb.Limits) -> dict[str, float | int]:
    limits: dict[str, float | int] = {}
    for wire, key, most in LIMITS:
        if not message.HasField(wire):
            continue
        value = getattr(message, wire)
        field = f"limits.{key}"
        if not 0 < value <= most or value == math.inf:
            raise InvalidRequest(f"{field} is {value}: {_range(most)} was expected", field=field)
        limits[key] = value
    return limits


def _range(most: float) -> str:
    return "a positive number" if most == math.inf else f"a positive number up to {most:g}"


def _allowed(allow: Sequence[str]) -> tuple[str, ...]:
    if len(allow) > MAX_ALLOWED:
        raise InvalidRequest(f"allow has more than {MAX_ALLOWED} entries", field="allow")
    return tuple(name(address, f"allow[{index}]") for index, address in enumerate(allow))


def _mounts(mounts: Sequence[pb.Mount]) -> tuple[Mount, ...]:
    if len(mounts) > MAX_MOUNTS:
        raise InvalidRequest(f"mounts has more than {MAX_MOUNTS} entries", field="mounts")
    made: dict[bytes, Mount] = {}
    for index, mount in enumerate(mounts):
        source = _absolute(mount.source, f"mounts[{index}].source")
        field = f"mounts[{index}].target"
        target = _absolute(mount.target, field)
        if target == b"/" or _below(target, b"/proc", b"/dev", b"/sys"):
            raise InvalidRequest(f"{field}: nothing can be mounted over {_shown(target)}", field=field)
        if target in made:
            raise InvalidRequest(f"{field} was given before: {_shown(target)}", field=field)
        made[target] = Mount(source=source, target=target, writable=mount.writable)
    return tuple(made.values())


def _files(inline: Sequence[pb.InputFile], streamed: Sequence[InputFile]) -> tuple[InputFile, ...]:
    if len(inline) + len(streamed) > MAX_FILES:
        raise InvalidRequest(f"more than {MAX_FILES} files", field="files")
    files: dict[bytes, InputFile] = {}
    for index, message in enumerate(inline):
        field = f"files[{index}]"
        path = input_path(message.path, f"{field}.path")
        mode = file_mode(message.mode if message.HasField("mode") else None, f"{field}.mode")
        _add_file(files, InputFile(path=path, data=message.data, mode=mode), f"{field}.path")
    for file in streamed:
        _add_file(files, file, "file.path")
    return tuple(files.values())


def _add_file(files: dict[bytes, InputFile], file: InputFile, field: str) -> None:
    place = below_work(file.path)
    if place in files:
        raise InvalidRequest(f"{field} was given before: {_shown(file.path)}", field=field)
    files[place] = file


def _patterns(patterns: Sequence[bytes]) -> tuple[bytes, ...]:
    if len(patterns) > MAX_PATTERNS:
        raise InvalidRequest(f"collect has more than {MAX_PATTERNS} patterns", field="collect")
    for index, pattern in enumerate(patterns):
        field = f"collect[{index}]"
        if not pattern:
            raise InvalidRequest(f"{field} is empty", field=field)
        _normal(pattern, field)
    return tuple(patterns)


def _labels(labels: Mapping[str, str]) -> dict[str, str]:
    if len(labels) > MAX_LABELS:
        raise InvalidRequest(f"more than {MAX_LABELS} labels", field="labels")
    for key, value in labels.items():
        name(key, "labels")
        _name(value, f"labels[{key}]")
    return dict(labels)


def _absolute(path: bytes, field: str) -> bytes:
    if not path:
        raise InvalidRequest(f"{field} is missing", field=field)
    if not path.startswith(b"/"):
        raise InvalidRequest(f"{field} is not an absolute path: {_shown(path)}", field=field)
    return _normal(path, field)


def _normal(path: bytes, field: str) -> bytes:
    """`path` without empty and `.` components; `..` is refused, since what it means depends on symbolic links."""
    if b"\0" in path:
        raise InvalidRequest(f"{field} has a NUL byte", field=field)
    if len(path) > MAX_PATH_BYTES:
        raise InvalidRequest(f"{field} is longer than {MAX_PATH_BYTES} bytes", field=field)
    parts = [part for part in path.split(b"/") if part not in (b"", b".")]
    for part in parts:
        if part == b"..":
            raise InvalidRequest(f"{field} has a '..' component: {_shown(path)}", field=field)
        if len(part) > MAX_COMPONENT_BYTES:
            raise InvalidRequest(f"{field} has a component longer than {MAX_COMPONENT_BYTES} bytes", field=field)
    return (b"/" if path.startswith(b"/") else b"") + b"/".join(parts)


def _below(path: bytes, *directories: bytes) -> bool:
    return any(path == directory or path.startswith(directory + b"/") for directory in directories)


def _shown(path: bytes) -> str:
    """A path as an error shows it: short, and harmless to a terminal."""
    return ascii(path[:200].decode("utf-8", "replace"))
