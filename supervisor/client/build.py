"""Keyword arguments of the SDK into the wire's RunSpec, and large ones into a stream of chunks.

Only what needs the caller's side is decided here: sizes written as "256M", files of the client's machine, mount
sources relative to its directory. Everything else is the daemon's to judge.
"""

from __future__ import annotations

import difflib
import io
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, TypedDict

from supervisor import errors
from supervisor.client.units import limit_value
from supervisor.model import LIMIT_KEYS, Mount, NetworkMode, TraceLevel
from supervisor.v1 import run_pb2

CHUNK_BYTES = 1 << 20
UNARY_BYTES = 32 << 20
"""Requests above this, and answers that may be above it, go through the Run stream."""

Text = str | bytes


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A file of this machine to be sent: read in chunks when its turn comes, never whole. `mode` None: 0644."""

    open: Callable[[], BinaryIO]
    size: int
    mode: int | None = None


FileData = Text | os.PathLike[str] | LocalFile | tuple[Text | os.PathLike[str], int]
"""Content, or a path of this machine (an os.PathLike), each alone or as (content, mode)."""


class RunOptions(TypedDict, total=False):
    """What `execute` and `run` take besides argv. Left out or None: as the policy says.

    policy: a name, the path of a policy file (*.toml or os.PathLike), or a policy's text
    stdin: all of standard input
    timeout: wall clock that the run may take, in seconds or as "500ms", "5s", "2m", "1h"; the limit `wall_seconds`
    memory, disk, output_limit: bytes, or text such as "256M"; output_limit is per stream
    cpus, pids: CPUs (0.5 is half of one), processes and threads
    limits: any key of model.LIMIT_KEYS
    env: variables added to the policy's own environment
    cwd: absolute, inside the run; /work by default
    mounts: "source:target", "source:target:rw", or model.Mount; read-only unless :rw says otherwise
    files: path below /work (or absolute) -> FileData; written before the program starts
    collect: glob patterns of the files that come back in the result
    net: none | internal | filtered | full; allow: HOST:PORT for filtered
    labels, agent, request_id: kept in the record; request_id may be used once
    trace: off | summary | full; backend: auto | native | docker; image: for policies whose root is an image
    terminal: (rows, columns) of a pseudo-terminal; only `run`
    deadline: seconds until the call itself gives up, which ends the run
    """

    policy: Text | os.PathLike[str] | None
    stdin: Text | None
    timeout: float | str | None
    memory: int | str | None
    cpus: float | None
    pids: int | None
    disk: int | str | None
    output_limit: int | str | None
    limits: Mapping[str, float | int | str] | None
    env: Mapping[str, Text] | Mapping[bytes, Text] | None
    cwd: Text | os.PathLike[str] | None
    mounts: Sequence[Text | Mount] | None
    files: Mapping[str, FileData] | Mapping[bytes, FileData] | None
    collect: Sequence[Text] | None
    net: str | NetworkMode | None
    allow: Sequence[str] | None
    labels: Mapping[str, str] | None
    agent: str | None
    request_id: str | None
    trace: str | TraceLevel | None
    backend: str | None
    image: str | None
    terminal: tuple[int, int] | None
    deadline: float | None


@dataclass(slots=True)
class Request:
    """One run to ask for: `spec` without its files, the files, and whether one message can carry both ways."""

    spec: run_pb2.RunSpec
    files: list[tuple[bytes, LocalFile]] = field(default_factory=list)
    deadline: float | None = None

    @property
    def small(self) -> bool:
        """True where the request with its files fits one message."""
        size: int = self.spec.ByteSize() + sum(len(path) + file.size + 16 for path, file in self.files)
        return size <= UNARY_BYTES

    @property
    def streamed(self) -> bool:
        """True where request or answer may not fit one message: large input, collected files, a large output limit."""
        return not self.small or bool(self.spec.collect) or 2 * self.spec.limits.output_bytes > UNARY_BYTES

    def unary(self) -> run_pb2.RunSpec:
        """The spec with its files inside, for Execute."""
        spec = run_pb2.RunSpec()
        spec.CopyFrom(self.spec)
        for path, file in self.files:
            with file.open() as opened:
                spec.files.add(path=path, data=opened.read(), mode=file.mode)
        return spec

    def opening(self, *, stdin_follows: bool) -> Iterator[run_pb2.RunRequest]:
        """What starts a Run stream: spec, files in chunks, and the standard input that was given whole."""
        if self.small:
            yield run_pb2.RunRequest(start=run_pb2.StartRun(spec=self.unary(), stdin_follows=stdin_follows))
            return
        spec = run_pb2.RunSpec()
        spec.CopyFrom(self.spec)
        spec.ClearField("stdin")
        in_chunks = bool(self.spec.stdin)
        yield run_pb2.RunRequest(
            start=run_pb2.StartRun(spec=spec, files_follow=bool(self.files), stdin_follows=stdin_follows or in_chunks)
        )
        for path, file in self.files:
            yield from _file_chunks(path, file)
        if self.files:
            yield run_pb2.RunRequest(files_end=run_pb2.FilesEnd())
        yield from stdin_chunks(self.spec.stdin)
        if in_chunks and not stdin_follows:
            yield run_pb2.RunRequest(stdin=b"")


def stdin_chunks(data: bytes) -> Iterator[run_pb2.RunRequest]:
    """`data` as stdin messages of at most CHUNK_BYTES; none for no data, since an empty one is the end."""
    for start in range(0, len(data), CHUNK_BYTES):
        yield run_pb2.RunRequest(stdin=data[start : start + CHUNK_BYTES])


def _file_chunks(path: bytes, file: LocalFile) -> Iterator[run_pb2.RunRequest]:
    with file.open() as opened:
        data = opened.read(CHUNK_BYTES)
        first = True
        while True:
            following = opened.read(CHUNK_BYTES) if len(data) == CHUNK_BYTES else b""
            chunk = run_pb2.FileChunk(path=path, data=data, last=not following)
            if first and file.mode is not None:
                chunk.mode = file.mode
            yield run_pb2.RunRequest(file=chunk)
            if not following:
                return
            data, first = following, False


def build_request(argv: Sequence[Text], options: RunOptions, *, local: bool) -> Request:
    """The request for `argv` and `options`; `local`: the daemon shares this machine's file system.

    Raises TypeError for an unknown option and InvalidRequest, naming the field, for a value that cannot be sent.
    """
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    _known_options(given)
    if isinstance(argv, str | bytes):
        raise errors.InvalidRequest(f"argv is a list of arguments, not the text {argv!r}", field="argv")
    if argv and not argv[0]:
        raise errors.InvalidRequest("argv[0] is empty: name the program to run", field="argv[0]")
    spec = run_pb2.RunSpec(argv=[to_bytes(argument, f"argv[{at}]") for at, argument in enumerate(argv)])
    _set_policy(spec, given.get("policy"))
    _set_limits(spec, given)
    for name, value in given.get("env", {}).items():
        spec.env.add(name=to_bytes(name, "env"), value=to_bytes(value, f"env.{_readable(name)}"))
    if "cwd" in given:
        spec.cwd = to_bytes(given["cwd"], "cwd")
    spec.stdin = to_bytes(given.get("stdin", b""), "stdin")
    spec.mounts.extend(_mount(mount, f"mounts[{at}]", local) for at, mount in enumerate(given.get("mounts", ())))
    spec.collect.extend(to_bytes(pattern, "collect") for pattern in _list(given, "collect"))
    spec.allow.extend(_plain(entry, "allow") for entry in _list(given, "allow"))
    spec.labels.update(
        {_plain(key, "labels"): _plain(value, f"labels.{key}") for key, value in given.get("labels", {}).items()}
    )
    for name in ("agent", "request_id", "image"):
        if name in given:
            setattr(spec, name, _plain(given[name], name))
    spec.network = _word(run_pb2.NetworkMode, "NETWORK_MODE_", given.get("net"), "net")
    spec.trace = _word(run_pb2.TraceLevel, "TRACE_LEVEL_", given.get("trace"), "trace")
    backend = given.get("backend")
    spec.backend = _word(run_pb2.Backend, "BACKEND_", None if backend == "auto" else backend, "backend", "auto")
    if "terminal" in given:
        spec.terminal.CopyFrom(_terminal(given["terminal"]))
    files = [
        (to_bytes(path, "files"), _file(data, f"files.{_readable(path)}"))
        for path, data in given.get("files", {}).items()
    ]
    return Request(spec, files, given.get("deadline"))


def to_bytes(value: object, name: str) -> bytes:
    """`value` as the kernel takes it: bytes as they are, text as UTF-8 (surrogate escapes give back their bytes)."""
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if isinstance(value, bytes):
        return value
    if isinstance(value, bytearray | memoryview):
        return bytes(value)
    if isinstance(value, str):
        try:
            return value.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError as error:
            raise errors.InvalidRequest(f"{name} has a lone surrogate at {error.start}", field=name) from error
    raise errors.InvalidRequest(f"{name} wants text or bytes, not {type(value).__name__}", field=name)


def _known_options(given: Iterable[str]) -> None:
    for name in given:
        if name not in RunOptions.__annotations__:
            near = difflib.get_close_matches(name, RunOptions.__annotations__, 1)
            raise TypeError(f"unknown option {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))


def _list(given: Mapping[str, Any], name: str) -> Sequence[object]:
    value: Sequence[object] = given.get(name, ())
    if isinstance(value, str | bytes):
        raise errors.InvalidRequest(f"{name} is a list, not the text {value!r}", field=name)
    return value


def _plain(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise errors.InvalidRequest(f"{name} wants text, not {type(value).__name__}", field=name)
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise errors.InvalidRequest(f"{name} is not UTF-8", field=name) from error
    return value


def _readable(value: Text) -> str:
    return value if isinstance(value, str) else value.decode("utf-8", "replace")


def _set_policy(spec: run_pb2.RunSpec, policy: Text | os.PathLike[str] | None) -> None:
    if policy is None:
        return
    if isinstance(policy, bytes):
        policy = policy.decode("utf-8", "surrogateescape")
    if isinstance(policy, str) and ("\n" in policy or "=" in policy):
        spec.policy_toml = _plain(policy, "policy")
    elif isinstance(policy, str) and not policy.endswith(".toml"):
        spec.policy = _plain(policy, "policy")
    else:
        try:
            spec.policy_toml = Path(policy).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            said = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise errors.InvalidRequest(f"cannot read the policy file {policy}: {said}", field="policy") from error


def _set_limits(spec: run_pb2.RunSpec, given: Mapping[str, Any]) -> None:
    asked = {str(key): value for key, value in given.get("limits", {}).items() if value is not None}
    named = {"timeout": "wall_seconds", "output_limit": "output", "memory": "memory", "cpus": "cpus"}
    named |= {"pids": "pids", "disk": "disk"}
    for option, key in named.items():
        if option in given:
            if key in asked:
                raise errors.InvalidRequest(
                    f"limits.{key} is given twice, as {option} and in limits", field=f"limits.{key}"
                )
            asked[key] = given[option]
    for key, value in asked.items():
        if key not in LIMIT_KEYS:
            near = difflib.get_close_matches(key, LIMIT_KEYS, 1)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(LIMIT_KEYS)}"
            raise errors.InvalidRequest(f"there is no limit {key!r}; {hint}", field=f"limits.{key}")
        wire = f"{key}_bytes" if key in ("memory", "file_size", "disk", "output") else key
        setattr(spec.limits, wire, limit_value(key, value))


def _mount(mount: object, name: str, local: bool) -> run_pb2.Mount:
    if isinstance(mount, Mount):
        source, target, writable = mount.source, mount.target, mount.writable
    else:
        text = to_bytes(mount, name)
        writable = text.endswith(b":rw")
        source, colon, target = (text[:-3] if text.endswith((b":ro", b":rw")) else text).rpartition(b":")
        if not colon or not source or not target:
            raise errors.InvalidRequest(f"{_readable(text)!r} is no mount; write SOURCE:TARGET[:ro|:rw]", field=name)
        if b":" in source and not target.startswith(b"/"):
            raise errors.InvalidRequest(
                f"{_readable(text)!r} ends in {_readable(target)!r}, which is no mode: a mount's mode is ro or rw",
                field=name,
            )
    if not source.startswith(b"/") and local:
        source = os.path.normpath(bytes(Path.cwd()) + b"/" + source)
    return run_pb2.Mount(source=source, target=target, writable=writable)


def _terminal(size: Any) -> run_pb2.Terminal:
    try:
        rows, columns = size
        return run_pb2.Terminal(rows=rows, columns=columns)
    except (TypeError, ValueError) as error:
        raise errors.InvalidRequest(f"terminal wants (rows, columns), not {size!r}", field="terminal") from error


def _file(data: object, name: str) -> LocalFile:
    mode: int | None = None
    if isinstance(data, tuple):
        if len(data) != 2 or not isinstance(data[1], int) or not 0 <= data[1] < 1 << 32:
            raise errors.InvalidRequest(f"{name} wants (content, mode), with a mode such as 0o755", field=name)
        data, mode = data
    if isinstance(data, LocalFile):
        return data
    if isinstance(data, os.PathLike):
        path = Path(os.fspath(data))
        try:
            found = path.stat()
        except OSError as error:
            raise errors.InvalidRequest(f"cannot read {path}: {error.strerror}", field=name) from error
        return LocalFile(lambda: path.open("rb"), found.st_size, found.st_mode & 0o777 if mode is None else mode)
    content = to_bytes(data, name)
    return LocalFile(lambda: io.BytesIO(content), len(content), mode)


def _word(enum: Any, prefix: str, value: object, name: str, *extra: str) -> Any:
    """The number of `value` in a wire enum; 0, unspecified, for None."""
    if value is None:
        return 0
    word = getattr(value, "value", value)
    known = {key.removeprefix(prefix).lower(): number for key, number in enum.items() if number}
    if word not in known:
        words = (*extra, *known)
        near = difflib.get_close_matches(str(word), words, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise errors.InvalidRequest(f"{name} {word!r} is none of {', '.join(words)}{hint}", field=name)
    return known[word]
