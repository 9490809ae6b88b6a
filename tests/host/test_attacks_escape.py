"""Hostile programs that try to get out: every one is refused or killed, and the host is as it was."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from supervisor import errors
from supervisor.client import Supervisor
from supervisor.model import RunResult
from tests.host.daemon_fixture import Daemon, LiveRun, scaled, spec
from tests.host.hostile import AbstractListener
from tests.host.witnesses import POLICIES, Witnesses, assert_no_effect, assert_recorded, lines, watched

ANY = frozenset({"EPERM", "EACCES", "ENOSYS", "EAFNOSUPPORT", "EPROTONOSUPPORT", "EROFS"})

# attempt -> the call that strict must kill for; "" where an errno is answer enough.
KERNEL = {
    "init_module": "init_module",
    "finit_module": "finit_module",
    "delete_module": "delete_module",
    "bpf": "bpf",
    "perf_event_open": "perf_event_open",
    "userfaultfd": "userfaultfd",
    "io_uring_setup": "",
    "keyctl_join": "keyctl",
    "keyctl_user": "keyctl",
    "add_key": "add_key",
    "open_by_handle_at": "open_by_handle_at",
    "kexec_load": "kexec_load",
    "kexec_file_load": "kexec_file_load",
    "reboot": "reboot",
    "swapon": "swapon",
    "swapoff": "swapoff",
    "acct": "acct",
    "syslog": "",
    "vhangup": "",
    "iopl": "iopl",
    "ioperm": "ioperm",
    "settimeofday": "settimeofday",
    "clock_settime": "",
    "adjtimex": "",
    "sethostname": "",
    "setdomainname": "",
    "fanotify_init": "",
    "mknod_block": "",
    "mknod_char": "",
    "ptrace_attach": "ptrace",
    "ptrace_seize": "ptrace",
    "process_vm_readv": "process_vm_readv",
    "process_vm_writev": "process_vm_writev",
    "pidfd_getfd": "pidfd_getfd",
    "kcmp": "kcmp",
    "kill_init": "",
    "kill_all": "",
    "capset": "",
    "setuid_root": "",
    "setgroups": "",
    "nice": "",
    "ioprio": "",
    "realtime": "",
    "raise_files": "",
}
SPACE = {
    **dict.fromkeys(("mount_tmpfs", "mount_proc", "mount_bind", "remount"), "mount"),
    "umount_tmp": "umount2",
    "umount_proc": "umount2",
    "pivot_root": "pivot_root",
    "chroot": "",
    **{name: name for name in ("fsopen", "fspick", "fsmount", "open_tree", "move_mount", "mount_setattr")},
    **{
        f"unshare_{kind}": "unshare"
        for kind in ("user", "user_mount", "mount", "net", "pid", "ipc", "uts", "cgroup", "time")
    },
    "clone_user": "clone",
    "clone_mount": "clone",
    "clone3_user": "",
    "setns_self": "setns",
    "setns_init": "",
    "setns_pidfd": "setns",
    "af_packet": "socket",
    "raw_icmp": "socket",
    "raw_icmp6": "socket",
    "af_vsock": "",
    "af_alg": "",
    "af_key": "",
    "af_xdp": "",
    "netlink_uevent": "",
    "netlink_audit": "",
    "netlink_netfilter": "",
    "netlink_link": "",
    "tiocsti": "ioctl",
    "tiocsti_high": "ioctl",
    "tioclinux": "ioctl",
    "ia32_getpid": "",
    "ia32_mkdir": "",
    "x32_getpid": "",
    "memfd_exec": "",
    "memfd_exec_path": "",
    "shm_exec": "",
    "setuid_bit": "",
}
# Answers that mean refusal for one attempt only.
ALSO = {
    "kill_all": {"ESRCH"},
    "setuid_root": {"EINVAL"},
    "setgroups": {"EINVAL"},
    "open_by_handle_at": {"ESTALE", "EOPNOTSUPP"},
    "tiocsti": {"ENOTTY", "EIO"},
    "tiocsti_high": {"ENOTTY", "EIO"},
    "tioclinux": {"ENOTTY"},
    "setns_pidfd": {"ESRCH"},
    "userfaultfd": {"ENOSYS"},
}
# What a system call filter answers does not depend on the machine: where time is short, the default policy's is tried.


@pytest.fixture(scope="module")
def witnesses(daemon: Daemon) -> Iterator[Witnesses]:
    with watched(daemon) as standing:
        yield standing


def attack(client: Supervisor, attacks: Path, policy: str, *argv: str, **options: object) -> RunResult:
    mounts = [f"{attacks}:/attacks:ro", *options.pop("mounts", ())]  # type: ignore[misc]
    return client.execute(list(argv), policy=policy, timeout=scaled(30), mounts=mounts, **options)  # type: ignore[arg-type]


def judge(client: Supervisor, result: RunResult, name: str, killer: str, policy: str) -> None:
    assert_no_effect(result)
    if policy == "strict" and killer:
        assert_recorded(client, result)
        assert result.violations[0].syscall == killer
        return
    if result.outcome == "violation":
        assert_recorded(client, result)
        return
    assert result.outcome == "exited", (result.outcome, result.detail, result.stderr)
    told = lines(result)
    assert [line[0] for line in told] == [name], (told, result.stderr)
    assert told[0][2] in ANY | ALSO.get(name, set()), told


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", KERNEL)
def test_kernel(supervisor: Supervisor, attacks: Path, witnesses: Witnesses, name: str, policy: str) -> None:
    result = attack(supervisor, attacks, policy, "/attacks/escape_kernel", name)
    judge(supervisor, result, name, KERNEL[name], policy)
    witnesses.check()


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", SPACE)
def test_space(supervisor: Supervisor, attacks: Path, witnesses: Witnesses, name: str, policy: str) -> None:
    result = attack(supervisor, attacks, policy, "/attacks/escape_space", name)
    judge(supervisor, result, name, SPACE[name], policy)
    witnesses.check()


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("way", ["child", "thread", "vfork"])
def test_killed_also_in_a_child(
    supervisor: Supervisor, attacks: Path, witnesses: Witnesses, way: str, policy: str
) -> None:
    """The run ends, not only the process that tried."""
    start = {
        "child": "import subprocess, time\nsubprocess.run(['/attacks/escape_kernel', 'settimeofday'])\ntime.sleep(1000)",
        "thread": "import threading, ctypes, time\n"
        "threading.Thread(target=lambda: ctypes.CDLL(None).syscall(164, ctypes.create_string_buffer(16), None)).start()\n"
        "time.sleep(1000)",
        "vfork": "import os, time\nos.posix_spawn('/attacks/escape_kernel', ['x', 'settimeofday'], {})\ntime.sleep(1000)",
    }[way]
    result = attack(supervisor, attacks, policy, "python3", "-c", start)
    assert_recorded(supervisor, result)
    assert result.violations[0].syscall == "settimeofday"
    witnesses.check()


PATHS = ("own_executable", "descriptors", "kernel_files", "control_groups", "devices", "hidden_files", "old_root")


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", PATHS)
def test_paths(
    supervisor: Supervisor,
    attacks: Path,
    witnesses: Witnesses,
    scratch: Callable[..., Path],
    name: str,
    policy: str,
) -> None:
    marker = scratch("host") / "marker"
    marker.write_text("of the host")
    result = attack(supervisor, attacks, policy, "python3", "/attacks/escape_files.py", name, str(marker))
    assert_no_effect(result)
    assert result.outcome in ("exited", "violation"), (result.detail, result.stderr)
    assert result.outcome == "violation" or (result.exit_code == 0 and lines(result)), result.stderr
    assert os.listdir(marker.parent) == ["marker"]
    witnesses.check()


@pytest.mark.parametrize("policy", POLICIES)
def test_other_processes(supervisor: Supervisor, attacks: Path, witnesses: Witnesses, policy: str) -> None:
    token = uuid.uuid4().hex
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", token], stdin=subprocess.DEVNULL)
    try:
        result = attack(supervisor, attacks, policy, "python3", "/attacks/escape_files.py", "process_memory", token)
        assert_no_effect(result)
        assert result.exit_code == 0 and process.poll() is None, result.stderr
    finally:
        process.kill()
        process.wait()
    witnesses.check()


@pytest.mark.parametrize("policy", POLICIES)
def test_set_user_id_program(
    supervisor: Supervisor, attacks: Path, witnesses: Witnesses, scratch: Callable[..., Path], policy: str
) -> None:
    directory = scratch("setuid")
    planted = directory / "rise"
    shutil.copy(attacks / "rise", planted)
    planted.chmod(0o6755)
    mounts = [f"{directory}:/planted:ro"]
    result = attack(supervisor, attacks, policy, "/planted/rise", mounts=mounts)
    assert result.outcome in ("not_started", "exited"), result.detail
    assert_no_effect(result)
    script = "su -c id root </dev/null; mount -t tmpfs x /tmp; passwd -S; true"
    result = attack(supervisor, attacks, policy, "sh", "-c", script)
    assert b"uid=0" not in result.stdout
    witnesses.check()


@pytest.mark.parametrize("policy", POLICIES)
def test_sockets_of_the_host(
    supervisor: Supervisor,
    attacks: Path,
    witnesses: Witnesses,
    scratch: Callable[..., Path],
    daemon: Daemon,
    policy: str,
) -> None:
    name = f"supervisor-test-{uuid.uuid4().hex}"
    listener = AbstractListener(name)
    try:
        result = attack(supervisor, attacks, policy, "/attacks/escape_space", "abstract_socket", name)
        assert_no_effect(result)
        assert not listener.reached
    finally:
        listener.close()
    for path in (daemon.address.removeprefix("unix://"), "/run/supervisor/supervisor.sock"):
        result = attack(supervisor, attacks, policy, "python3", "/attacks/escape_files.py", "unix_socket", path)
        assert_no_effect(result)
        assert lines(result), result.stderr
    witnesses.check()


@pytest.mark.parametrize("policy", POLICIES)
def test_descriptors_between_runs(
    supervisor: Supervisor, attacks: Path, daemon: Daemon, witnesses: Witnesses, policy: str
) -> None:
    """SCM_RIGHTS wants a socket that both reach: there is none, abstract ones included."""
    name = uuid.uuid4().hex
    script = f"import socket\ns = socket.socket(socket.AF_UNIX); s.bind('\\x00{name}'); s.listen(); print('up', flush=True)\ns.accept(); print('reached')"
    server = LiveRun(daemon, spec("python3", "-c", script, policy=policy))
    try:
        server.read_until(b"up")
        result = attack(supervisor, attacks, policy, "/attacks/escape_space", "abstract_socket", name)
        assert_no_effect(result)
        assert lines(result)[0][2] in ("ECONNREFUSED", "EPERM")
    finally:
        server.close()
    witnesses.check()


@pytest.mark.parametrize("policy", POLICIES)
def test_working_directory_through_a_descriptor(
    supervisor: Supervisor, attacks: Path, witnesses: Witnesses, policy: str
) -> None:
    """CVE-2024-21626: the request itself names a descriptor that the set-up may hold."""
    script = "cat ../../../../../../etc/shadow ../../../etc/machine-id; ls -a . .. ../../../home"
    for directory in [f"/proc/self/fd/{n}" for n in range(3, 24)] + [
        "/proc/1/root",
        "/proc/self/root/..",
        "/proc/1/cwd",
    ]:
        with suppress(errors.InvalidRequest, errors.PolicyRefused):
            result = attack(supervisor, attacks, policy, "sh", "-c", script, cwd=directory)
            assert b"root:" not in result.stdout and b"lost+found" not in result.stdout, directory
            assert result.outcome in ("not_started", "exited"), result.detail
            if result.outcome == "exited":
                inside = attack(supervisor, attacks, policy, "ls", "-a", "/").stdout.split()
                assert b"lost+found" not in inside
    witnesses.check()


@pytest.mark.parametrize("policy", POLICIES)
def test_launcher_as_program(supervisor: Supervisor, attacks: Path, witnesses: Witnesses, policy: str) -> None:
    """CVE-2019-5736, second half: the run names the set-up's own binary as its program or interpreter."""
    script = (b"#!/proc/self/exe\n", 0o755)
    for argv in (["/proc/self/exe"], ["/proc/1/exe"], ["./script"], *[[f"/proc/self/fd/{n}"] for n in range(3, 16)]):
        result = attack(supervisor, attacks, policy, *argv, files={"script": script})
        assert result.outcome != "exited" or result.exit_code != 0, (argv, result.stdout)
        assert not result.stdout
    witnesses.check()
