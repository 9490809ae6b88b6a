"""What the SDK makes of its arguments before anything is sent."""

from __future__ import annotations

from pathlib import Path

import pytest

from supervisor import errors
from supervisor.client.build import build_request
from supervisor.client.channel import DEFAULT_ADDRESS, resolve_target
from supervisor.client.units import parse_size
from supervisor.model import (
    Mount,
)
from supervisor.v1 import run_pb2


def spec_of(argv=("true",), local=True, **options) -> run_pb2.RunSpec:
    return build_request(argv, options, local=local).unary()


def test_every_option_reaches_the_wire():
    spec = spec_of(
        ["sh", b"-c", "\udcff"],
        policy="moderate",
        stdin="in",
        timeout=1.5,
        memory="256M",
        cpus=0.5,
        pids=64,
        disk="1G",
        output_limit=100,
        limits={"open_files": 32, "file_size": "2K", "inodes": "7", "cpu_seconds": "0.5"},
        env={"A": "1", b"B": b"\xff"},
        cwd="/work/x",
        files={"a b": "text", b"\xff": (b"\0", 0o755)},
        collect=["out/*", b"\xfe"],
        net="filtered",
        allow=["a:1"],
        labels={"task": "7"},
        agent="me",
        request_id="r",
        trace="full",
        backend="docker",
        image="debian",
    )
    assert list(spec.argv) == [b"sh", b"-c", b"\xff"]
    assert (spec.policy, spec.stdin, spec.cwd) == ("moderate", b"in", b"/work/x")
    limits = spec.limits
    assert (limits.wall_seconds, limits.cpu_seconds, limits.cpus, limits.pids) == (1.5, 0.5, 0.5, 64)
    assert (limits.memory_bytes, limits.disk_bytes, limits.output_bytes) == (256 << 20, 1 << 30, 100)
    assert (limits.open_files, limits.file_size_bytes, limits.inodes) == (32, 2048, 7)
    assert [(item.name, item.value) for item in spec.env] == [(b"A", b"1"), (b"B", b"\xff")]
    assert [(file.path, file.data, file.mode) for file in spec.files] == [(b"a b", b"text", 0), (b"\xff", b"\0", 0o755)]
    assert not spec.files[0].HasField("mode")
    assert list(spec.collect) == [b"out/*", b"\xfe"]
    assert (spec.network, list(spec.allow)) == (run_pb2.NETWORK_MODE_FILTERED, ["a:1"])
    assert (spec.trace, spec.backend, spec.image) == (run_pb2.TRACE_LEVEL_FULL, run_pb2.BACKEND_DOCKER, "debian")
    assert (dict(spec.labels), spec.agent, spec.request_id) == ({"task": "7"}, "me", "r")


def test_nothing_is_asked_that_was_not_given():
    spec = spec_of(memory=None, policy=None, env=None, net=None)
    assert spec == run_pb2.RunSpec(argv=[b"true"])


@pytest.mark.parametrize(
    ("mount", "source", "target", "writable"),
    [
        ("/data:/work:ro", b"/data", b"/work", False),
        ("/data:/work:rw", b"/data", b"/work", True),
        (b"/\xff:/work", b"/\xff", b"/work", False),
        ("/a:b:/work", b"/a:b", b"/work", False),
        (Mount(b"/m", b"/n", True), b"/m", b"/n", True),
    ],
)
def test_mounts(mount, source, target, writable):
    (made,) = spec_of(mounts=[mount]).mounts
    assert (made.source, made.target, made.writable) == (source, target, writable)


def test_relative_mount_sources_are_the_callers_where_it_shares_the_host(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert spec_of(mounts=["data:/work"]).mounts[0].source == bytes(tmp_path / "data")
    assert spec_of(mounts=["data:/work"], local=False).mounts[0].source == b"data"


def test_policies_by_name_path_and_text(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text('extends = "strict"\n')
    assert spec_of(policy="strict").policy == "strict"
    for given in (str(file), file, 'extends = "strict"\n'):
        spec = spec_of(policy=given)
        assert spec.WhichOneof("policy_source") == "policy_toml"
        assert spec.policy_toml == 'extends = "strict"\n'
    with pytest.raises(errors.InvalidRequest, match=r"gone\.toml: No such file"):
        spec_of(policy=str(tmp_path / "gone.toml"))


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"memory": "12Q"}, "limits.memory"),
        ({"memory": "lots"}, "limits.memory"),
        ({"memory": True}, "limits.memory"),
        ({"memory": 1 << 70}, "limits.memory"),
        ({"pids": 1.5}, "limits.pids"),
        ({"timeout": float("nan")}, "limits.wall_seconds"),
        ({"timeout": float("inf")}, "limits.wall_seconds"),
        ({"limits": {"memry": 1}}, "limits.memry"),
        ({"memory": 1, "limits": {"memory": 2}}, "limits.memory"),
        ({"mounts": ["nothing"]}, "mounts[0]"),
        ({"net": "ful"}, "net"),
        ({"trace": "all"}, "trace"),
        ({"backend": "podman"}, "backend"),
        ({"env": {"A": 1}}, "env.A"),
        ({"labels": {"a": "\udcff"}}, "labels.a"),
        ({"collect": "out/*"}, "collect"),
        ({"files": {"a": 3}}, "files.a"),
        ({"files": {"a": ("x", -1)}}, "files.a"),
        ({"files": {"a": Path("/nonexistent")}}, "files.a"),
        ({"cwd": "\ud800"}, "cwd"),
        ({"terminal": 3}, "terminal"),
    ],
)
def test_bad_values_name_their_field(options, field):
    with pytest.raises(errors.InvalidRequest) as caught:
        spec_of(**options)
    assert caught.value.field == field


def test_negative_and_zero_limits_are_the_daemons_to_refuse():
    assert spec_of(memory="-1").limits.memory_bytes == -1
    assert spec_of(limits={"wall_seconds": 0}).limits.HasField("wall_seconds")


def test_unknown_options_and_text_as_argv():
    with pytest.raises(TypeError, match="did you mean 'memory'"):
        spec_of(memry=1)
    with pytest.raises(errors.InvalidRequest, match="argv"):
        spec_of("true")


@pytest.mark.parametrize(
    ("text", "size"),
    [("4096", 4096), ("1k", 1024), ("256M", 256 << 20), ("1.5G", 3 << 29), ("64 MiB", 64 << 20), ("2TB", 2 << 40)],
)
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("text", "seconds"), [("5", 5), ("0.25", 0.25), ("5s", 5), ("500ms", 0.5), ("2m", 120), ("1.5 h", 5400)]
)
def test_durations(text, seconds):
    assert spec_of(timeout=text).limits.wall_seconds == seconds
    assert spec_of(limits={"cpu_seconds": text}).limits.cpu_seconds == seconds


@pytest.mark.parametrize("text", ["soon", "5x", "5 M", "", "ms"])
def test_what_is_no_duration_is_told_what_is_one(text):
    with pytest.raises(errors.InvalidRequest, match="seconds, or a number with ms, s, m or h, such as 500ms or 2m"):
        spec_of(timeout=text)


def test_addresses(monkeypatch):
    monkeypatch.delenv("SUPERVISOR_ADDRESS", raising=False)
    monkeypatch.delenv("SUPERVISOR_RUNTIME_DIR", raising=False)
    assert resolve_target().address == DEFAULT_ADDRESS
    monkeypatch.setenv("SUPERVISOR_RUNTIME_DIR", "/moved/")
    assert resolve_target().address == "unix:///moved/supervisor.sock"
    assert resolve_target("/x/y").address == "unix:///x/y"
    monkeypatch.setenv("SUPERVISOR_ADDRESS", "unix:///env")
    assert resolve_target().address == "unix:///env"
    assert resolve_target("unix:///arg").local
    with pytest.raises(errors.InvalidRequest, match="SUPERVISOR_CLIENT_CA"):
        resolve_target("tcp://host:1")
    with pytest.raises(errors.InvalidRequest, match="cannot read /nope"):
        resolve_target("tcp://host:1", ("/nope", "/nope", "/nope"))
    with pytest.raises(errors.InvalidRequest, match="no address"):
        resolve_target("host")
    for address in ("http://host:1", "grpc://host:1", "tcp://:1", "tcp://host:port"):
        with pytest.raises(errors.InvalidRequest, match="tcp://HOST:PORT"):
            resolve_target(address)
