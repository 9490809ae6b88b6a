"""What one run could use up for the whole host, or get at through what its caller names: budgets, uids, roots, policies."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from supervisor import errors
from supervisor.client import Supervisor
from supervisor.run_events import Started
from tests.host.daemon_fixture import Daemon, Prober, scaled

LIBC_EXCHANGE = """
import ctypes, sys
libc, a, b = ctypes.CDLL(None), sys.argv[1].encode(), sys.argv[2].encode()
while True:
    libc.renameat2(-100, a, -100, b, 2)
"""


@pytest.mark.parametrize("policy", ["strict", "moderate"])
@pytest.mark.parametrize("attempt", ["socket_filter", "aio", "terminals"])
def test_budgets_of_the_host(supervisor: Supervisor, daemon: Daemon, attacks: Path, attempt: str, policy: str) -> None:
    with Prober(daemon):
        result = supervisor.execute(
            ["/attacks/shared", attempt],
            policy=policy,
            mounts=[f"{attacks}:/attacks"],
            memory="64M",
            timeout=scaled(30),
            limits={"open_files": 1024},
        )
    assert b"EFFECT" not in result.stdout, result.stdout
    assert f"{attempt} blocked".encode() in result.stdout, result


def test_socket_buffers_are_memory_of_the_run(supervisor: Supervisor, daemon: Daemon, attacks: Path) -> None:
    """v2 counts them with the rest. v1 has an account beside it, which slows a run down at its limit but stops no packet."""
    with Prober(daemon):
        options = {"mounts": [f"{attacks}:/attacks"], "memory": "64M", "timeout": scaled(60)}
        result = supervisor.execute(["/attacks/shared", "tcp"], **options)  # type: ignore[arg-type]
    if result.enforcement.cgroup == "v2":
        assert b"EFFECT" not in result.stdout, result
        return
    with supervisor.run(["sleep", "1000"], memory="64M", timeout=scaled(60)) as run:
        run_id = next(event.run_id for event in run if isinstance(event, Started))
        (limit,) = Path("/sys/fs/cgroup/memory/supervisor").glob(f"*/{run_id}/memory.kmem.tcp.limit_in_bytes")
        assert int(limit.read_text()) == 64 << 20


def directory_root(path: Path) -> str:
    return f'name = "rooted"\nextends = "strict"\n[filesystem]\nroot = "{path}"\n'


def test_a_root_whose_content_is_exchanged_shows_nothing_of_the_host(
    supervisor: Supervisor, scratch: Callable[..., Path]
) -> None:
    """Between the look at the root and the mount of what is in it, a link to the host takes a directory's place."""
    root = scratch("root")
    (root / "secret").mkdir()
    outside = root.parent / "link"
    hidden = scratch("hidden")
    (hidden / "of-the-host").touch()
    # In a run the link itself dangles; only a mount of what it leads to would show anything.
    outside.symlink_to(hidden)
    # Only what a static program needs: busybox is one.
    (root / "bin").mkdir()
    (root / "bin" / "busybox").write_bytes(Path("/bin/busybox").read_bytes())
    (root / "bin" / "busybox").chmod(0o755)
    exchanger = subprocess.Popen([sys.executable, "-c", LIBC_EXCHANGE, str(root / "secret"), str(outside)])
    seen: list[bytes] = []
    try:
        for _ in range(40):
            try:
                result = supervisor.execute(
                    ["/bin/busybox", "ls", "/secret/"], policy=directory_root(root), timeout=scaled(10)
                )
            except errors.HostLacks as error:
                assert error.field == "filesystem.root"
                continue
            seen.append(result.stdout)
    finally:
        exchanger.kill()
        exchanger.wait()
    assert not any(b"of-the-host" in listing for listing in seen), seen


@pytest.mark.parametrize(
    "files",
    [
        'read_only = ["/etc"]',
        'root = "/"',
        'read_write = ["/run"]',
        'root = "/etc"',
        'read_only = ["/root/.ssh", "/proc"]',
    ],
)
def test_an_inline_policy_is_its_clients_word(supervisor: Supervisor, files: str) -> None:
    """What mount_deny keeps out does not come in by way of a policy that the client has written."""
    text = f'name = "mine"\nextends = "strict"\n[filesystem]\n{files}\n'
    try:
        result = supervisor.execute(["cat", "/etc/machine-id"], policy=text, timeout=scaled(10))
    except errors.SupervisorError as error:
        assert isinstance(error, errors.PolicyRefused | errors.InvalidRequest | errors.HostLacks), error
    else:
        assert "/root/.ssh" in files and not Path("/root/.ssh").exists(), result


def test_a_root_of_too_many_directories_is_refused_and_harms_nobody(
    supervisor: Supervisor, scratch: Callable[..., Path]
) -> None:
    root = scratch("wide")
    for number in range(300):
        (root / f"d{number}").mkdir()
    neighbour = threading.Thread(target=lambda: results.append(supervisor.execute(["sleep", "1"])))
    results: list[object] = []
    neighbour.start()
    with pytest.raises(errors.InvalidRequest) as caught:
        supervisor.execute(["true"], policy=directory_root(root))
    assert caught.value.field == "filesystem.root"
    neighbour.join()
    assert len(results) == 1 and results[0].exit_code == 0  # type: ignore[attr-defined]


def test_instances_do_not_share_uids(make_daemon: Callable[..., Daemon]) -> None:
    """Two daemons of one configuration: under `basic` one's run could otherwise signal the other's."""
    shared = {"SUPERVISOR_RUN_UID_BASE": "900000000", "SUPERVISOR_RUN_UID_COUNT": "4096"}
    uids = set()
    for name in ("first", "second"):
        with Supervisor(make_daemon(name, **shared).address) as client:
            uids.add(int(client.execute(["id", "-u"], policy="basic").stdout))
    assert len(uids) == 2


def test_the_install_path_is_not_in_proc(supervisor: Supervisor) -> None:
    result = supervisor.execute(["cat", "/proc/1/cmdline", "/proc/1/comm", "/proc/cmdline"])
    assert result.stdout.replace(b"\0", b"") == b"initinit\n"
    assert supervisor.execute(["cat", "/proc/sys/kernel/random/boot_id"]).stdout == b""


def test_escapes_in_a_programs_name_do_not_reach_a_terminal(supervisor: Supervisor) -> None:
    evil = f"/tmp/\x1b[31m{uuid.uuid4().hex[:4]}"
    result = supervisor.execute([evil])
    assert result.error is not None and "\x1b" not in result.error.message + result.detail


def test_a_mount_source_that_never_answers_stalls_only_its_own_run(
    supervisor: Supervisor, daemon: Daemon, scratch: Callable[..., Path]
) -> None:
    """A FUSE file system whose server reads no request: what a dead network file system looks like."""
    directory = scratch("dead")
    fuse = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={fuse},rootmode=40000,user_id=0,group_id=0"
    mounted = subprocess.run(
        ["mount", "-i", "-t", "fuse", "-o", options, "supervisor-test", str(directory)],
        pass_fds=(fuse,),
        capture_output=True,
    )
    if mounted.returncode:
        os.close(fuse)
        pytest.fail(f"cannot mount FUSE: {mounted.stderr!r}")
    try:
        with Prober(daemon), pytest.raises(errors.InvalidRequest) as caught:
            supervisor.execute(["true"], mounts=[f"{directory}:/data"])
        assert caught.value.field == "mounts[0].source"
        assert supervisor.execute(["true"]).exit_code == 0
    finally:
        os.close(fuse)  # aborts the connection: whoever waits gets ENOTCONN
        subprocess.run(["umount", "-l", str(directory)], check=True)
