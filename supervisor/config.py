"""The daemon's configuration: one TOML file of flat keys, each overridable by SUPERVISOR_<KEY> in the environment.

Every key is a field of `Config`; its description there is its documentation. Sizes are bytes (an integer, or a string
such as "64M", with binary K, M, G, T), durations what the key's name says.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from supervisor.errors import InvalidRequest

DEFAULT_PATH = "/etc/supervisor/config.toml"
ENVIRONMENT_PREFIX = "SUPERVISOR_"

_NOT_KEYS = frozenset({"CONFIG", "ADDRESS", "REQUIRE", "CLIENT_CA", "CLIENT_CERT", "CLIENT_KEY"})
_UNIX_PATH_MAX = 107
_NEAR = 0.8
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([KMGT]?)(?:i?B)?", re.IGNORECASE)
_SIZE_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def parse_size(value: object) -> object:
    """Bytes of a size such as "64M" or "1.5 GiB" (binary units); what is not a string is returned as it came.

    Raises ValueError for a string that is no size.
    """
    if not isinstance(value, str):
        return value
    match = _SIZE.fullmatch(value.strip())
    if match is None:
        raise ValueError(f"{value!r} is not a size: write bytes, or a number with K, M, G or T")
    return int(float(match[1]) * _SIZE_UNITS[match[2].upper()])


def _split(value: object) -> object:
    """A comma-separated string (how the environment writes a list) as a list."""
    if isinstance(value, str):
        return [item.strip() for item in value.split(",") if item.strip()]
    return value


def _absolute(value: str) -> str:
    if not value.startswith("/") or "\0" in value:
        raise ValueError(f"{value!r} is not an absolute path")
    return os.path.normpath("/" + value.lstrip("/"))


def _absolute_or_empty(value: str) -> str:
    return _absolute(value) if value else ""


def _default_concurrent_runs() -> int:
    return max(64, 16 * (os.cpu_count() or 1))


Size = Annotated[int, BeforeValidator(parse_size)]
Strings = Annotated[tuple[str, ...], BeforeValidator(_split)]


class Config(BaseModel):
    """What the operator decides. Frozen; made by `load_config`, which says where a wrong value stands."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    state_dir: str = Field("/var/lib/supervisor", description="Directory of run records and other lasting state.")
    runtime_dir: str = Field(
        "/run/supervisor", description="Directory of the socket and of what lives with the daemon."
    )
    listen: Strings = Field(
        default_factory=lambda data: (f"unix://{data.get('runtime_dir', '/run/supervisor')}/supervisor.sock",),
        description="Addresses: unix:///PATH, or tcp://HOST:PORT (only with tls_cert, tls_key and tls_client_ca). "
        "By default supervisor.sock in runtime_dir.",
    )
    socket_group: str = Field("", description="Group that may use the Unix socket; empty: root's own group.")
    policy_dirs: Strings = Field(
        ("/etc/supervisor/policies",), description="Directories of policy files, beside the shipped policies."
    )
    max_concurrent_runs: int = Field(
        default_factory=_default_concurrent_runs, ge=1, le=65536,
        description="Runs alive at once. By default 16 for each CPU, at least 64.",
    )  # fmt: skip
    max_queued_runs: int = Field(1024, ge=0, description="Runs that wait for a place; one more is RESOURCE_EXHAUSTED.")
    max_message_bytes: Size = Field(64 << 20, ge=64 << 10, le=(2 << 30) - 1, description="One gRPC message, in bytes.")
    max_upload_bytes: Size = Field(1 << 30, ge=0, description="Files sent into one run, in bytes together.")
    max_collect_bytes: Size = Field(512 << 20, ge=0, description="Files taken out of one run, in bytes together.")
    max_collect_files: int = Field(20000, ge=0, description="Files taken out of one run.")
    allow_unisolated: bool = Field(False, description="Whether the policy `none` may be used.")
    inline_policies: Literal["local", "all", "none"] = Field(
        "local", description="Who may send a policy's text: peers of the Unix socket, everyone, no one."
    )
    mount_allow: Strings = Field(("/",), description="Host path prefixes that a request may mount.")
    mount_deny: Strings = Field(
        ("/proc", "/sys", "/dev", "/run", "/boot", "/etc", "/root/.ssh"),
        description="Host path prefixes that no request may mount, nor a directory that contains one. "
        "/ itself, state_dir and runtime_dir are refused whatever stands here.",
    )
    remote_mounts: bool = Field(False, description="Whether peers over mTLS may mount host paths.")
    run_uid_base: int = Field(0x30000000, ge=65536, description="First host uid (and gid) given to runs.")
    run_uid_count: int = Field(65536, ge=1, description="How many host uids runs have; at least max_concurrent_runs.")
    cgroup_parent: str = Field(
        "", description="Cgroup below which runs are made, from the mount's top; empty: automatic."
    )
    launcher: str = Field("", description="Path of another launcher program than the package's own; empty: that one.")
    launchers: int = Field(0, ge=0, le=256, description="Launcher processes; 0: one for each CPU.")
    drain_seconds: float = Field(
        30.0, ge=0, description="How long runs may go on after SIGTERM before they are killed."
    )
    record_days: float = Field(30.0, ge=0, description="Days that a run's record is kept; 0: for ever.")
    trace_days: float = Field(14.0, ge=0, description="Days that a full trace is kept; 0: as long as there is room.")
    max_traces_bytes: int = Field(10 << 30, ge=0, description="Room for all full traces, oldest go first; 0: no bound.")
    max_trace_bytes: int = Field(1 << 30, ge=1 << 20, description="Room for one full trace; the rest of it is dropped.")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level that is logged.")
    log_format: Literal["auto", "json", "console"] = Field(
        "auto", description="auto: console on a terminal, else json."
    )
    tls_cert: str = Field("", description="PEM certificate chain of the daemon, for TCP addresses.")
    tls_key: str = Field("", description="PEM private key of tls_cert.")
    tls_client_ca: str = Field("", description="PEM certificates that a client's certificate must descend from.")

    _paths = field_validator("state_dir", "runtime_dir")(_absolute)
    _files = field_validator("tls_cert", "tls_key", "tls_client_ca", "launcher")(_absolute_or_empty)

    @field_validator("policy_dirs", "mount_allow", "mount_deny")
    @classmethod
    def _path_lists(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(_absolute(item) for item in value)

    @field_validator("listen")
    @classmethod
    def _addresses(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise ValueError("no address to listen on")
        addresses = tuple(address.removeprefix("tcp://") for address in value)
        for address in addresses:
            _check_address(address)
        return addresses

    @field_validator("cgroup_parent")
    @classmethod
    def _cgroup(cls, value: str) -> str:
        parts = [part for part in value.split("/") if part]
        if ".." in parts or "." in parts or "\0" in value:
            raise ValueError(f"{value!r} is not the path of a cgroup below its mount")
        return "/".join(parts)

    @model_validator(mode="after")
    def _together(self) -> Self:
        tls = (self.tls_cert, self.tls_key, self.tls_client_ca)
        if any(tls) and not all(tls):
            raise ValueError("tls_cert, tls_key and tls_client_ca are set together or not at all")
        remote = [address for address in self.listen if not address.startswith("unix:")]
        if remote and not all(tls):
            raise ValueError(
                f"listen: {remote[0]} is TCP, which takes mutual TLS: set tls_cert, tls_key and tls_client_ca"
            )
        if self.run_uid_base + self.run_uid_count > 0xFFFFFFFE:
            raise ValueError("run_uid_base + run_uid_count goes beyond the last uid, 4294967293")
        if self.run_uid_count < self.max_concurrent_runs:
            raise ValueError(
                f"run_uid_count ({self.run_uid_count}) is below max_concurrent_runs ({self.max_concurrent_runs}): "
                "each run takes a uid of its own"
            )
        return self

    def mount_refusal(self, source: str) -> str:
        """Why a request may not mount the host path `source`; empty when it may.

        `source` must be absolute with every symlink resolved, and what is then mounted must be what was resolved:
        the answer is about this path, not about where a link in it may lead. A directory that contains a denied
        path is refused with it, since mounting it would show the denied one.
        """
        path = _absolute(source)
        if path == "/":
            return "the host's whole file system is never mounted"
        for denied in (*self.mount_deny, self.state_dir, self.runtime_dir):
            if _below(path, denied):
                return f"{path} is in {denied}, which mount_deny holds back"
            if _below(denied, path):
                return f"{path} contains {denied}, which mount_deny holds back"
        if not any(_below(path, allowed) for allowed in self.mount_allow):
            return f"{path} is in none of mount_allow ({', '.join(self.mount_allow) or 'empty'})"
        return ""


def load_config(
    path: str | None,
    environ: Mapping[str, str],
    overrides: Mapping[str, object] | None = None,
) -> Config:
    """The configuration of `path`, else of SUPERVISOR_CONFIG, else of /etc/supervisor/config.toml where that exists.

    `overrides` (the command line) wins over `environ`, which wins over the file. Raises InvalidRequest with the key in
    `field` and file:line in the message and the metadata: for a file that is missing or no TOML, for a wrong value, and
    for an unknown key, with the nearest known one. Variables named SUPERVISOR_* that resemble no key are left alone
    (other software uses the prefix); one that is nearly a key is an error.
    """
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    file = path or environ.get(ENVIRONMENT_PREFIX + "CONFIG") or ""
    if not file and Path(DEFAULT_PATH).exists():
        file = DEFAULT_PATH
    if file:
        _read_file(file, values, sources)
    for name, text in environ.items():
        if name.startswith(ENVIRONMENT_PREFIX):
            _read_variable(name, text, values, sources)
    for key, value in (overrides or {}).items():
        if key not in Config.model_fields:
            raise _unknown(key, "command line")
        values[key], sources[key] = value, "command line"
    try:
        return Config(**values)
    except ValidationError as error:
        raise _invalid(error, sources) from None


def _read_file(file: str, values: dict[str, Any], sources: dict[str, str]) -> None:
    text = ""
    try:
        text = Path(file).read_bytes().decode()
        parsed = tomllib.loads(text)
    except OSError as error:
        raise InvalidRequest(
            f"{file}: {error.strerror}: name a readable configuration file", field="config", metadata={"file": file}
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        found = re.search(r"line (\d+)", str(error))
        where = (
            f"{file}:{found[1] if found else text.count(chr(10)) + 1}"  # tomllib says "end of document" of a last line
        )
        raise InvalidRequest(f"{where}: not TOML: {error}", field="config", metadata=_place(where)) from error
    for key, value in parsed.items():
        where = f"{file}:{_line_of(text, key)}"
        if key not in Config.model_fields:
            raise _unknown(key, where)
        values[key], sources[key] = value, where


def _read_variable(name: str, text: str, values: dict[str, Any], sources: dict[str, str]) -> None:
    suffix = name.removeprefix(ENVIRONMENT_PREFIX)
    key = suffix.lower()
    if suffix == suffix.upper() and key in Config.model_fields:
        values[key], sources[key] = text, name
    elif suffix not in _NOT_KEYS and difflib.get_close_matches(key, Config.model_fields, 1, _NEAR):
        raise _unknown(key, name)


def _line_of(text: str, key: str) -> int:
    """The line where a top-level `key` stands (tomllib keeps no positions); 1 when it is written in no usual way."""
    pattern = re.compile(rf"\s*(?:\[\[?\s*)?[\"']?{re.escape(key)}[\"']?\s*[=.\]]")
    return next((number for number, line in enumerate(text.splitlines(), 1) if pattern.match(line)), 1)


def _place(where: str) -> dict[str, str]:
    file, colon, line = where.rpartition(":")
    return {"file": file, "line": line} if colon and line.isdigit() else {"source": where}


def _unknown(key: str, where: str) -> InvalidRequest:
    near = difflib.get_close_matches(key.lower(), Config.model_fields, 1, 0.5)
    hint = f"; did you mean {near[0]}?" if near else ""
    return InvalidRequest(f"{where}: unknown key {key}{hint}", field=key, metadata=_place(where))


def _invalid(error: ValidationError, sources: Mapping[str, str]) -> InvalidRequest:
    """The first fault that pydantic found, as file:line: key: what is wrong."""
    fault = error.errors(include_url=False, include_context=False)[0]
    message = fault["msg"].removeprefix("Value error, ")
    key = str(fault["loc"][0]) if fault["loc"] else ""
    if not key:
        key = next((name for name in re.findall(r"[a-z_]+", message) if name in Config.model_fields), "")
        where = sources.get(key, "") or next(
            (sources[name] for name in re.findall(r"[a-z_]+", message) if name in sources), ""
        )
    else:
        where = sources.get(key, "")
    prefix = f"{where}: " if where else ""
    separator = "" if message.startswith(key) else f"{key}: "
    return InvalidRequest(f"{prefix}{separator}{message}", field=key, metadata=_place(where) if where else {})


def _check_address(address: str) -> None:
    if address.startswith("unix:"):
        path = address.removeprefix("unix://") if address.startswith("unix://") else address.removeprefix("unix:")
        _absolute(path)
        if len(os.fsencode(path)) > _UNIX_PATH_MAX:
            raise ValueError(f"{address!r}: a Unix socket's path has at most {_UNIX_PATH_MAX} bytes (unix(7))")
        return
    host, colon, port = address.rpartition(":")
    bare = host.strip("[]")
    if not colon or not bare or (":" in bare and not host.startswith("[")) or "/" in address:
        raise ValueError(f"{address!r} is neither unix:///PATH nor tcp://HOST:PORT")
    if not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError(f"{address!r}: {port!r} is not a port")


def _below(path: str, prefix: str) -> bool:
    return prefix == "/" or path == prefix or path.startswith(prefix + "/")
