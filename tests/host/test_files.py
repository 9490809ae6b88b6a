"""Files that go in with the request and come back with the result, for clients that share no file system."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import grpc
import pytest

from supervisor import errors
from supervisor.client import Supervisor
from supervisor.client.build import FileData
from supervisor.model import RunResult
from supervisor.v1 import run_pb2, run_pb2_grpc
from tests.host.daemon_fixture import MIB, SLOW_MACHINE, Daemon, LiveRun, Prober, RunStub, fewer, scaled, spec

ODD_NAMES = [
    b"with space",
    b"with\nnewline",
    b"newline at the end\n",
    b" space before",
    b"tab\there",
    b"\xff\xfe not utf-8",
    b"-rf",
    b"*?[x]",
    b"quote'\"",
    "ä中".encode(),
]


def collected(result: RunResult) -> dict[bytes, bytes]:
    """path below /work (or absolute elsewhere) -> data."""
    found = {file.path.removeprefix(b"/work/"): file.data for file in result.files}
    assert len(found) == len(result.files), "a file came twice"
    return found


def test_five_thousand_small_files_both_ways(supervisor: Supervisor, daemon: Daemon) -> None:
    count = fewer(5000)
    files = {f"in/{n % 50}/{n}.txt": f"number {n}".encode() for n in range(count)}
    with Prober(daemon):
        result = supervisor.execute(
            ["cp", "-r", "in", "out"],
            policy="strict",
            timeout=scaled(60),
            files=files,
            collect=["out/*/*"],
            disk="128M",
        )
    assert (result.outcome, result.exit_code) == ("exited", 0), (result.detail, result.stderr)
    assert collected(result) == {path.replace("in/", "out/", 1).encode(): data for path, data in files.items()}


def test_one_large_file_both_ways(supervisor: Supervisor, daemon: Daemon, tmp_path: Path) -> None:
    size = 200 * MIB if not SLOW_MACHINE else 40 * MIB
    source = tmp_path / "large"
    block = os.urandom(MIB)
    with source.open("wb") as file:
        for n in range(size // MIB):
            file.write(n.to_bytes(8, "big") + block[8:])  # no two alike: their order counts
    result = supervisor.execute(
        ["sh", "-c", "wc -c < large && tail -c +2 large > back"],
        policy="strict",
        timeout=scaled(120),
        files={"large": source},
        collect=["back"],
        disk="1G",
        memory="1G",
        limits={"file_size": "1G"},
    )
    assert (result.outcome, result.stdout) == ("exited", str(size).encode() + b"\n"), (result.detail, result.stderr)
    (back,) = result.files
    assert not back.truncated and len(back.data) == size - 1
    expected = hashlib.sha256()
    with source.open("rb") as file:
        file.read(1)
        while data := file.read(MIB):
            expected.update(data)
    assert hashlib.sha256(back.data).digest() == expected.digest()


def test_odd_names(supervisor: Supervisor) -> None:
    files: dict[bytes, bytes] = {b"in/" + name: name + b"!" for name in ODD_NAMES}
    result = supervisor.execute(
        ["cp", "-r", "in", "out"], policy="strict", timeout=scaled(10), files=files, collect=["out/*"]
    )
    assert (result.outcome, result.exit_code) == ("exited", 0), result.stderr
    assert collected(result) == {b"out/" + name: name + b"!" for name in ODD_NAMES}


def test_modes_and_owner(supervisor: Supervisor) -> None:
    tool = (b"#!/bin/sh\necho ran\n", 0o755)
    files: dict[str, FileData] = {"default": b"d", "tool": tool, "/tmp/elsewhere": (b"e", 0o600)}
    script = "stat -c '%a %u' default tool /tmp/elsewhere; ./tool; id -u; echo more >> default; printf x > new; chmod 750 new"
    result = supervisor.execute(
        ["sh", "-c", script],
        policy="strict",
        timeout=scaled(10),
        files=files,
        collect=["new", "/tmp/elsewhere"],
    )
    lines = result.stdout.decode().split()
    uid = lines[-1]
    assert lines == ["644", uid, "755", uid, "600", uid, "ran", uid], result
    assert {file.path.removeprefix(b"/work/"): file.mode & 0o777 for file in result.files} == {
        b"new": 0o750,
        b"/tmp/elsewhere": 0o600,
    }


def test_empty_files_and_nothing_found(supervisor: Supervisor) -> None:
    result = supervisor.execute(
        ["touch", "made"], policy="strict", timeout=scaled(10), files={"empty": b""}, collect=["made", "empty", "no*"]
    )
    assert collected(result) == {b"made": b"", b"empty": b""}


def test_collected_also_after_failure(supervisor: Supervisor) -> None:
    script = "echo partial > result; kill -9 $$"
    result = supervisor.execute(["sh", "-c", script], policy="strict", timeout=scaled(10), collect=["result"])
    assert result.outcome == "signaled" and collected(result) == {b"result": b"partial\n"}
    script = "echo partial > result; sleep 1000"
    result = supervisor.execute(["sh", "-c", script], policy="strict", timeout=scaled(0.5), collect=["result"])
    assert result.outcome == "timed_out" and collected(result) == {b"result": b"partial\n"}


def test_files_into_a_mounted_work_directory(supervisor: Supervisor, scratch: Callable[..., Path]) -> None:
    """The host's side of a mount is not written to by root: the request is refused, and says where files may go."""
    directory = scratch("shared", 4321)
    for mount, path in (("/work", "sub/in"), ("/work/deep", "deep/in"), ("/tmp/x", "/tmp/x/in")):
        with pytest.raises(errors.InvalidRequest) as caught:
            supervisor.execute(["true"], policy="strict", files={path: b"data"}, mounts=[f"{directory}:{mount}:rw"])
        assert caught.value.field.startswith("files[0]") and "mount" in caught.value.message, mount
        assert os.listdir(directory) == []


HOSTILE_TREE = """
ln -s /etc/shadow shadow; ln -s /etc etc; ln -s / root; ln -s ../../../../etc/passwd up; ln -s regular inside
mkfifo fifo; mkdir sub; ln -s /etc sub/etc; echo kept > regular; echo deep > sub/regular
python3 -c "import socket; socket.socket(socket.AF_UNIX).bind('sock')"
ln -s loop loop; ln regular hard; touch secret; chmod 000 secret; mkdir closed; echo x > closed/x; chmod 000 closed
"""


def test_collect_follows_no_link_and_opens_no_special_file(supervisor: Supervisor, daemon: Daemon) -> None:
    patterns = [
        "*",
        "*/*",
        "**",
        "etc/passwd",
        "etc/*",
        "root/etc/passwd",
        "sub/etc/*",
        "shadow",
        "fifo",
        "sock",
        "/etc/passwd",
    ]
    with Prober(daemon):
        result = supervisor.execute(["sh", "-c", HOSTILE_TREE], policy="strict", timeout=scaled(20), collect=patterns)
    assert result.outcome == "exited", result.detail
    found = collected(result)
    assert found[b"regular"] == b"kept\n" and found[b"sub/regular"] == b"deep\n"
    allowed = {b"regular", b"hard", b"sub/regular", b"secret", b"closed/x"}
    assert set(found) <= allowed, set(found) - allowed
    assert not any(b"root:" in data for data in found.values())


def test_links_in_a_mounted_tree_are_not_followed(supervisor: Supervisor, scratch: Callable[..., Path]) -> None:
    """The links were there before the run, made by whoever owns the directory; so was a device, which is no file."""
    directory, outside = scratch("tree"), scratch("outside")
    os.mknod(directory / "device", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    (outside / "secret").write_text("of the host")
    (directory / "file").symlink_to(outside / "secret")
    (directory / "dir").symlink_to(outside)
    (directory / "plain").write_text("plain")
    for target in ("/work", "/data"):
        result = supervisor.execute(
            ["true"],
            policy="strict",
            timeout=scaled(10),
            mounts=[f"{directory}:{target}:rw"],
            collect=[f"{target}/*", f"{target}/dir/*", f"{target}/dir/secret"],
        )
        assert [file.data for file in result.files] == [b"plain"], (target, result.files)


def test_input_does_not_follow_links(supervisor: Supervisor, scratch: Callable[..., Path]) -> None:
    directory, outside = scratch("tree"), scratch("outside")
    (outside / "victim").write_text("untouched")
    (directory / "dir").symlink_to(outside)
    (directory / "file").symlink_to(outside / "victim")
    for path in ("dir/new", "dir/victim", "file"):
        with suppress(errors.SupervisorError):
            supervisor.execute(
                ["true"],
                policy="strict",
                timeout=scaled(10),
                mounts=[f"{directory}:/work:rw"],
                files={path: b"overwritten"},
            )
        assert os.listdir(outside) == ["victim"] and (outside / "victim").read_text() == "untouched", path


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "/usr/bin/new", "/proc/self/x", "../x", "a/../../x", "/dev/null", "", "/", "d/"]
)
def test_input_only_where_a_run_may_write(supervisor: Supervisor, path: str) -> None:
    with pytest.raises((errors.InvalidRequest, errors.PolicyRefused)) as caught:
        supervisor.execute(["true"], policy="strict", timeout=scaled(10), files={path: b"x"})
    assert "file" in caught.value.field


def test_sparse_giant_is_cut(supervisor: Supervisor, daemon: Daemon) -> None:
    script = "truncate -s 3G giant; echo small > small"
    before = daemon.rss_bytes()
    with Prober(daemon):
        result = supervisor.execute(
            ["sh", "-c", script],
            policy="strict",
            timeout=scaled(60),
            collect=["*"],
            limits={"file_size": "4G"},
        )
    assert result.outcome == "exited", (result.detail, result.stderr)
    files = {file.path.removeprefix(b"/work/"): file for file in result.files}
    assert files[b"small"].data == b"small\n" or files[b"small"].truncated
    assert b"giant" not in files or (files[b"giant"].truncated and len(files[b"giant"].data) < 1024 * MIB)
    assert daemon.rss_bytes() - before < 128 * MIB


def test_holes_cost_no_memory(supervisor: Supervisor, daemon: Daemon) -> None:
    """The files' bytes are zeros that the run never paid for; they reach the client without a stay in the daemon's heap."""
    before = daemon.rss_bytes()
    result = supervisor.execute(
        ["sh", "-c", "for n in $(seq 300); do truncate -s 1M $n; done"],
        policy="strict",
        timeout=scaled(60),
        collect=["*"],
    )
    assert result.outcome == "exited" and len(result.files) == 300, result.detail
    assert all(file.data == bytes(MIB) for file in result.files)
    assert daemon.rss_bytes() - before < 128 * MIB


def test_patterns_that_could_match_in_many_ways(supervisor: Supervisor, daemon: Daemon) -> None:
    script = "import os\nfor _ in range(60):\n os.mkdir('a')\n os.chdir('a')\nopen('f', 'w').write('deep')"
    with Prober(daemon):
        result = supervisor.execute(
            ["python3", "-c", script],
            policy="strict",
            timeout=scaled(20),
            collect=["**/a/" * 20 + "**/zz", "**/a/" * 10 + "f"],
        )
    assert result.outcome == "exited", result.detail
    assert list(collected(result).values()) == [b"deep"]
    assert not any("collect" in missing for missing in result.enforcement.missing)


def test_what_the_run_could_not_read_is_not_collected(supervisor: Supervisor, scratch: Callable[..., Path]) -> None:
    directory = scratch("shared", 1234)
    for name, mode in (("secret", 0o600), ("public", 0o644)):
        (directory / name).write_text(name)
        os.chown(directory / name, 0, 0)
        (directory / name).chmod(mode)
    (directory / "closed").mkdir(mode=0o700)
    (directory / "closed" / "f").write_text("closed")
    result = supervisor.execute(
        ["sh", "-c", "echo own > own; chmod 600 own"],
        policy="strict",
        timeout=scaled(10),
        mounts=[f"{directory}:/work:rw"],
        collect=["**", "secret", "closed/f"],
    )
    assert result.outcome == "exited", result.detail
    assert collected(result) == {b"own": b"own\n", b"public": b"public"}


def test_deep_input_is_refused(supervisor: Supervisor, daemon: Daemon) -> None:
    with Prober(daemon), pytest.raises(errors.InvalidRequest) as caught:
        supervisor.execute(["true"], policy="strict", files={"a": b"", "d/" * 1900 + "f": b"x"})
    assert caught.value.field.startswith("files[") and "components" in caught.value.message


def test_number_of_collected_files_is_bounded(supervisor: Supervisor, daemon: Daemon) -> None:
    count = 30_000 if not SLOW_MACHINE else 2_000
    script = (
        f"import os\nos.mkdir('d')\nfor n in range({count}): os.close(os.open(f'd/{{n}}', os.O_CREAT | os.O_WRONLY))"
    )
    with Prober(daemon):
        result = supervisor.execute(["python3", "-c", script], policy="strict", timeout=scaled(60), collect=["d/*"])
    assert result.outcome == "exited", (result.detail, result.stderr)
    assert len(result.files) <= 20_000
    assert count <= 20_000 or any("collect" in missing for missing in result.enforcement.missing)


CHANGER = """
import os, itertools
print('changing', flush=True)
os.makedirs('t/a', exist_ok=True)
for n in itertools.count():
    name = f't/a/{n % 20}'
    for step in (lambda: open(name, 'w').write('own'), lambda: os.rename('t/a', 't/b'), lambda: os.symlink(OUTSIDE, 't/a'),
                 lambda: os.unlink('t/a'), lambda: os.rename('t/b', 't/a'), lambda: os.unlink(name),
                 lambda: os.symlink(OUTSIDE + '/secret', name), lambda: os.unlink(name), lambda: os.mkfifo(name), lambda: os.unlink(name)):
        try: step()
        except OSError: pass
"""


def test_tree_that_changes_while_it_is_read(
    supervisor: Supervisor, daemon: Daemon, scratch: Callable[..., Path]
) -> None:
    """One run swaps files for links to the host's; another collects from the same mounted directory."""
    directory, outside = scratch("shared"), scratch("outside")
    (outside / "secret").write_text("of the host")
    script = CHANGER.replace("OUTSIDE", repr(str(outside)))
    request = spec("python3", "-c", script, wall_seconds=300)
    request.mounts.add(source=str(directory).encode(), target=b"/work", writable=True)
    changer = LiveRun(daemon, request)
    try:
        changer.read_until(b"changing")
        with Prober(daemon):
            for _ in range(fewer(60, 5)):
                result = supervisor.execute(
                    ["true"],
                    policy="strict",
                    timeout=scaled(20),
                    mounts=[f"{directory}:/work:rw"],
                    collect=["t/a/*", "t/a/secret", "t/**"],
                )
                assert result.outcome == "exited", result.detail
                assert all(file.data in (b"", b"own") for file in result.files), result.files
    finally:
        changer.close()
    assert (outside / "secret").read_text() == "of the host" and os.listdir(outside) == ["secret"]


def test_chunked_files_over_the_wire(daemon: Daemon) -> None:
    """Several chunks a file, several files, then the program; collected files come before `exited`."""
    requests = [run_pb2.RunRequest(start=run_pb2.StartRun(spec=spec("cp", "a", "b", "out/"), files_follow=True))]
    requests[0].start.spec.collect.extend([b"out/*"])
    for path, parts in ((b"a", [b"one", b"two", b"three"]), (b"b", [b""]), (b"out/.keep", [b"k"])):
        for index, part in enumerate(parts):
            last = index == len(parts) - 1
            requests.append(run_pb2.RunRequest(file=run_pb2.FileChunk(path=path, data=part, last=last)))
    requests.append(run_pb2.RunRequest(files_end=run_pb2.FilesEnd()))
    with daemon.channel() as channel:
        events = list(RunStub(channel).Run(iter(requests), timeout=scaled(20)))
    kinds = [event.WhichOneof("event") for event in events]
    assert kinds[0] == "started" and kinds[-1] == "exited" and kinds.count("exited") == 1
    files: dict[bytes, bytes] = {}
    for event in events:
        if event.HasField("file"):
            files[event.file.path] = files.get(event.file.path, b"") + event.file.data
    assert {path.removeprefix(b"/work/"): data for path, data in files.items()}.items() >= {
        (b"out/a", b"onetwothree"),
        (b"out/b", b""),
    }


def test_upload_that_never_ends_is_given_up(daemon: Daemon, stub: run_pb2_grpc.RunServiceStub) -> None:
    """The client leaves in the middle of a file: no run starts and nothing is kept."""

    def requests() -> object:
        yield run_pb2.RunRequest(start=run_pb2.StartRun(spec=spec("true", request_id="half-sent"), files_follow=True))
        yield run_pb2.RunRequest(file=run_pb2.FileChunk(path=b"a", data=b"x" * MIB))
        raise RuntimeError("the client breaks off")

    before = daemon.rss_bytes()
    for _ in range(20):
        with pytest.raises((grpc.RpcError, RuntimeError)):
            list(stub.Run(requests(), timeout=scaled(5)))
    assert daemon.rss_bytes() - before < 64 * MIB
