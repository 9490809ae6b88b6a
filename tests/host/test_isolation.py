"""What a program under `strict` can see, be and write; and who owns what it writes into mounts."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from supervisor.client import Supervisor
from tests.host.daemon_fixture import (
    SLOW_MACHINE,
    Daemon,
    LiveRun,
    host_processes,
    process_status,
    scaled,
    spec,
    wait_until,
)
from tests.host.hostile import ATTACKS

KINDS = ("pid", "mnt", "net", "ipc", "uts", "cgroup", "user")
KERNEL_OR_OURS = {"proc", "devpts", "tmpfs", "mqueue"}
WRITABLE_MOUNTS = {
    "/tmp": {"nosuid", "nodev"},
    "/work": {"nosuid", "nodev"},
    "/dev/shm": {"nosuid", "nodev", "noexec"},
    "/dev/pts": {"nosuid", "noexec"},
}


@pytest.fixture(scope="module")
def marker(base_directory: Path) -> str:
    path = base_directory / "host-marker"
    path.write_text("only the host sees this")
    return str(path)


@pytest.fixture(scope="module")
def view(daemon: Daemon, attacks: Path, marker: str) -> dict[str, Any]:
    with Supervisor(daemon.address) as client:
        result = client.execute(
            [
                "/usr/bin/python3",
                "/attacks/inspect_view.py",
                marker,
                str(ATTACKS),
                *(["--shallow"] if SLOW_MACHINE else []),
            ],
            # It tries to write wherever it can, which the rules would end it for.
            policy='name = "unruled"\nextends = "strict"\nrule_sets = []\n',
            timeout=scaled(60),
            mounts=[f"{attacks}:/attacks:ro"],
        )
    assert (result.outcome, result.exit_code) == ("exited", 0), (result.outcome, result.detail, result.stderr)
    seen: dict[str, Any] = json.loads(result.stdout)
    return seen


@pytest.fixture(scope="module")
def status(daemon: Daemon) -> dict[str, str]:
    """/proc/self/status of a program that is not Python, which changes its own signal dispositions."""
    with Supervisor(daemon.address) as client:
        result = client.execute(["cat", "/proc/self/status"], policy="strict", timeout=scaled(10))
    lines = result.stdout.decode().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


@pytest.mark.parametrize("kind", KINDS)
def test_namespace_differs(view: dict[str, Any], kind: str) -> None:
    assert view["namespaces"][kind] != os.readlink(f"/proc/self/ns/{kind}")


def test_result_names_the_namespaces(supervisor: Supervisor) -> None:
    result = supervisor.execute(["true"], policy="strict", timeout=scaled(10))
    assert {"pid", "mount", "network", "ipc", "uts", "cgroup", "user"} <= set(result.enforcement.namespaces)
    assert result.enforcement.cgroup in ("v2", "hybrid")
    assert result.enforcement.seccomp and result.enforcement.user


def test_every_run_has_namespaces_of_its_own(supervisor: Supervisor) -> None:
    script = "readlink /proc/self/ns/user /proc/self/ns/net /proc/self/ns/ipc"
    with supervisor.run(["sleep", "30"], policy="strict") as beside:
        next(iter(beside))
        token = supervisor.execute(["sh", "-c", script], policy="strict", timeout=scaled(10)).stdout.split()
        inside = {os.readlink(f"/proc/{pid}/ns/{kind}") for pid in host_processes("sleep\x0030") for kind in KINDS}
    assert token and not {t.decode() for t in token} & inside


def test_no_privilege(status: dict[str, str]) -> None:
    for capabilities in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(status[capabilities], 16) == 0, capabilities
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"


def test_init_has_no_privilege_either(view: dict[str, Any]) -> None:
    if view["init_status"].startswith("!"):
        return  # Hidden altogether.
    init = {key: value.strip() for key, _, value in (line.partition(":") for line in view["init_status"].splitlines())}
    assert int(init["CapEff"], 16) == int(init["CapPrm"], 16) == int(init["CapBnd"], 16) == 0
    assert init["NoNewPrivs"] == "1"


def test_root_of_the_host_is_not_mapped(view: dict[str, Any]) -> None:
    for name in ("uid_map", "gid_map"):
        for line in view[name].splitlines():
            _, outside, count = map(int, line.split())
            assert outside >= 65536 and count >= 1, f"{name}: {line}"
    assert 0 not in view["groups"] or view["ids"][0] == 0


def test_host_uid_is_the_runs_own(daemon: Daemon) -> None:
    runs = [LiveRun(daemon, spec("sleep", f"30.00{n}")) for n in range(2)]
    uids = []
    try:
        for n, run in enumerate(runs):
            run.wait_started()
            pids = host_processes(f"sleep\x0030.00{n}")
            assert pids
            fields = process_status(pids[0])
            assert len(set(fields["Uid"].split())) == 1 and len(set(fields["Gid"].split())) == 1
            assert fields["Groups"] in ("", fields["Gid"].split()[0])
            uids.append(int(fields["Uid"].split()[0]))
    finally:
        for run in runs:
            run.close()
    assert len(set(uids)) == 2 and min(uids) >= 65536


def test_only_own_processes(view: dict[str, Any]) -> None:
    assert {view["pid"]} <= set(view["processes"]) <= {1, view["pid"]}
    assert view["pid"] != 1


def test_only_loopback_and_it_is_up(view: dict[str, Any]) -> None:
    assert view["interfaces"] == {"lo": True}


def test_nothing_of_the_host_beyond_the_view(view: dict[str, Any]) -> None:
    assert not any(view["markers"].values()), view["markers"]
    for path, names in view["listings"].items():
        assert not names or (path == "/var" and set(names) <= {"tmp"}), f"{path} holds {names}"
    for path, content in view["secrets"].items():
        assert content == "" or content.startswith("!"), f"{path} can be read"
    assert "lost+found" not in view["top"]


def test_minimal_etc(view: dict[str, Any]) -> None:
    forbidden = {"shadow", "gshadow", "machine-id", "sudoers", "ssh", "cron.d", "systemd", "supervisor"}
    assert not forbidden & set(view["etc"])
    for line in view["passwd"].splitlines():
        assert line.split(":")[1] in ("x", "*", "!", ""), "a password in /etc/passwd"


def test_mounts_show_no_path_of_the_host(view: dict[str, Any], base_directory: Path) -> None:
    state = str(base_directory / "main")
    for line in view["mounts"].splitlines():
        assert state not in line, line
        fields = line.split()
        target, options, kind = fields[4], fields[5].split(","), fields[fields.index("-") + 1]
        if kind not in KERNEL_OR_OURS:
            assert "ro" in options and "nosuid" in options, line
        if target != "/dev" and not target.startswith("/dev/"):
            assert "nodev" in options or target == "/", line
        # Whatever Landlock and the files' modes say.
        wanted = WRITABLE_MOUNTS.get(target, {"ro", "nosuid"})
        assert wanted <= set(options), line


def test_nothing_writable_but_three_places(view: dict[str, Any]) -> None:
    writable = {p for p in view["writable"] if not p.startswith(("/tmp/", "/work/", "/dev/shm/"))}
    assert writable == {"/tmp", "/dev/shm", "/work"}


def test_environment_is_built_not_passed(view: dict[str, Any]) -> None:
    environment = view["environment"]
    assert environment.pop("LC_CTYPE", "C.UTF-8") == "C.UTF-8"  # Python's own.
    assert environment == {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "HOME": "/tmp",
        "TMPDIR": "/tmp",
        "LANG": "C.UTF-8",
    }


def test_cwd_umask_descriptors(view: dict[str, Any]) -> None:
    assert view["cwd"] == "/work"
    assert view["umask"] == 0o022
    assert set(view["descriptors"]) == {"0", "1", "2"}
    assert view["core"] == [0, 0]


def test_of_the_host_a_run_goes_first_when_memory_is_short(daemon: Daemon) -> None:
    run = LiveRun(daemon, spec("sleep", "30.0077"))
    run.wait_started()
    # Its arguments are in place a moment after it is executed.
    wait_until(lambda: host_processes("sleep\x0030.0077"), 5, "it is there")
    (pid,) = host_processes("sleep\x0030.0077")
    score = int(Path(f"/proc/{pid}/oom_score_adj").read_text())
    run.close()
    assert score == 300


def test_landlock_is_in_force(supervisor: Supervisor) -> None:
    """It repeats what mounts and modes forbid, so that only the layers that landlock(7) still allows show it."""
    script = (
        "import ctypes\n"
        "call, rights = ctypes.CDLL(None).syscall, ctypes.c_uint64(1)\n"
        "layers = 0\n"
        "while call(446, call(444, ctypes.byref(rights), ctypes.c_size_t(8), 0), 0) == 0: layers += 1\n"
        "print(layers)\n"
    )
    without = 'name = "mine"\nextends = "strict"\n[isolation]\nlandlock = false\n'
    layers = {}
    for policy in ("strict", without):
        result = supervisor.execute(["python3", "-c", script], policy=policy, timeout=scaled(20))
        layers[policy] = int(result.stdout)
        assert bool(result.enforcement.landlock) == (policy == "strict" and layers[policy] > 0)
    assert layers["strict"] == max(layers[without] - 1, 0)


def test_keyring_of_its_own(supervisor: Supervisor) -> None:
    """Under `basic`, where keyctl(2) is allowed: a session keyring that nobody else has, not that of the uid."""
    result = supervisor.execute(["keyctl", "rdescribe", "@s"], policy="basic", timeout=scaled(10))
    assert result.exit_code == 0 and result.stdout.endswith(b";_ses\n"), result


def test_own_session_without_terminal(view: dict[str, Any]) -> None:
    assert view["session"] == view["group"] == view["pid"]
    assert view["terminal"] is False


def test_default_signals(status: dict[str, str]) -> None:
    for name in ("SigBlk", "SigIgn", "SigCgt", "SigPnd", "ShdPnd"):
        assert int(status[name], 16) == 0, name


def test_hostname_and_cgroup_tell_nothing(view: dict[str, Any]) -> None:
    assert view["hostname"] != os.uname().nodename
    for line in view["cgroup"].splitlines():
        assert ".." not in line and line.split(":", 2)[2] in ("/", ""), f"the cgroup's place shows: {line}"


@pytest.mark.parametrize("landlock", ["true", "false"])
def test_not_dumpable_init_hides_the_host(supervisor: Supervisor, landlock: str) -> None:
    """Landlock would, too, where the host has it."""
    script = "cat /proc/1/environ; ls -l /proc/1/exe /proc/1/root /proc/1/cwd /proc/1/fd; cat /proc/1/maps"
    text = f'name = "mine"\nextends = "strict"\n[isolation]\nlandlock = {landlock}\n'
    result = supervisor.execute(["sh", "-c", script], policy=text, timeout=scaled(10))
    assert b"/" not in result.stdout.replace(b"/proc/1/", b""), result.stdout


@pytest.mark.parametrize("uid", [12345, 0])
def test_files_in_a_mount_belong_to_its_owner(supervisor: Supervisor, scratch: Callable[..., Path], uid: int) -> None:
    directory = scratch("shared", uid, 0o700)
    before = directory / "before"
    before.write_text("from the host")
    os.chown(before, uid, uid)
    before.chmod(0o600)
    script = "cat before && echo changed >> before && echo new > new && mkdir -p sub/deep && stat -c %u new before ."
    result = supervisor.execute(
        ["sh", "-c", script], policy="strict", timeout=scaled(10), mounts=[f"{directory}:/work:rw"]
    )
    assert (result.exit_code, result.stderr) == (0, b""), result
    assert result.stdout.startswith(b"from the host")
    assert before.read_text() == "from the hostchanged\n"
    for path in (directory / "new", before, directory / "sub" / "deep"):
        found = path.stat()
        assert (found.st_uid, found.st_gid) == (uid, uid), path
    assert len(set(result.stdout.split()[3:])) == 1, "inside, everything belongs to the run's user"


def test_read_only_mount(supervisor: Supervisor, scratch: Callable[..., Path]) -> None:
    directory = scratch("data", 12345, 0o755)
    (directory / "input").write_text("kept")
    os.chown(directory / "input", 12345, 12345)
    script = (
        "import os, errno\n"
        "print(open('/data/input').read())\n"
        "for do in (lambda: open('/data/input', 'a'), lambda: open('/data/new', 'w'), lambda: os.unlink('/data/input'),\n"
        "           lambda: os.mkdir('/data/d'), lambda: os.chmod('/data/input', 0o777), lambda: os.utime('/data/input'),\n"
        "           lambda: os.rename('/data/input', '/data/x'), lambda: os.symlink('/etc', '/data/s')):\n"
        "    try: do(); print('EFFECT')\n"
        "    except OSError as e: print(errno.errorcode[e.errno])\n"
    )
    result = supervisor.execute(
        ["python3", "-c", script], policy="strict", timeout=scaled(20), mounts=[f"{directory}:/data:ro"]
    )
    assert result.stdout.split() == [b"kept", *[errno.errorcode[errno.EROFS].encode()] * 8], result.stderr
    assert sorted(os.listdir(directory)) == ["input"]


def test_mounted_file_and_nested_targets(supervisor: Supervisor, scratch: Callable[..., Path]) -> None:
    directory = scratch("data")
    (directory / "a").write_text("A")
    other = scratch("other", 777)
    mounts = [f"{directory}/a:/work/in/a:ro", f"{other}:/work/out:rw", f"{directory}:/deep/er/still:ro"]
    script = "cat in/a /deep/er/still/a && echo done > out/result && touch beside"
    result = supervisor.execute(["sh", "-c", script], policy="strict", timeout=scaled(10), mounts=mounts)
    assert (result.exit_code, result.stdout) == (0, b"AA"), result.stderr
    assert (other / "result").read_text() == "done\n"
    assert (other / "result").stat().st_uid == 777


def test_foreign_owner_in_a_mount_is_not_ours(supervisor: Supervisor, scratch: Callable[..., Path]) -> None:
    """A file of root in a directory of 12345 must not become writable by being mounted."""
    directory = scratch("mixed", 12345, 0o755)
    secret = directory / "of-root"
    secret.write_text("root's")
    secret.chmod(0o600)
    script = "cat of-root; echo x >> of-root; chmod 777 of-root; chown 0 of-root"
    result = supervisor.execute(
        ["sh", "-c", script], policy="strict", timeout=scaled(10), mounts=[f"{directory}:/work:rw"]
    )
    assert b"root's" not in result.stdout
    assert secret.read_text() == "root's" and secret.stat().st_mode & 0o777 == 0o600


def test_no_set_id_bits_through_a_writable_mount(supervisor: Supervisor, scratch: Callable[..., Path]) -> None:
    """A set-user-ID program planted in a root-owned directory would be root's on the host."""
    directory = scratch("planted")
    script = "cp /bin/true t; chmod 4755 t; chmod 2755 t; install -m 6755 /bin/true u; mknod d b 7 0; ls -l"
    supervisor.execute(["sh", "-c", script], policy="strict", timeout=scaled(10), mounts=[f"{directory}:/work:rw"])
    for path in directory.iterdir():
        assert path.stat().st_mode & 0o6000 == 0, path
        assert not path.is_block_device()
