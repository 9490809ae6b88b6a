#!/usr/bin/python3
"""Ways out through paths: procfs, sysfs, devices, descriptors, symlinks. One line per attempt, as in attack.h.

Called with the attempt's name, then its argument (a host path or a token that must not be reachable).
"""

import errno
import glob
import os
import socket
import stat
import sys
from collections.abc import Callable


def refused(name: str, error: OSError) -> None:
    print(name, "blocked", errno.errorcode.get(error.errno or 0, str(error.errno)), flush=True)


def effect(name: str, detail: object) -> None:
    print(name, "EFFECT", detail, flush=True)


def attempt(name: str, action: Callable[[], object]) -> None:
    try:
        detail = action()
    except OSError as error:
        refused(name, error)
    else:
        effect(name, detail)


def write(path: str, data: bytes) -> Callable[[], object]:
    def action() -> object:
        fd = os.open(path, os.O_WRONLY)
        try:
            return os.write(fd, data)
        finally:
            os.close(fd)

    return action


def read(path: str) -> Callable[[], object]:
    def action() -> object:
        with open(path, "rb", buffering=0) as file:
            got = len(file.read(4096) or b"")
            if not got:
                raise OSError(errno.ENODATA, "masked")
            return got

    return action


def own_executable(_: str) -> None:
    """CVE-2019-5736: the launcher's own binary, reached through procfs."""
    for path in ("/proc/1/exe", "/proc/self/exe", "/proc/thread-self/exe"):
        attempt(path, write(path, b"\x7fELFowned"))

        def reopened(path: str = path) -> object:
            pinned = os.open(path, os.O_PATH)
            return write(f"/proc/self/fd/{pinned}", b"\x7fELFowned")()

        attempt(path + ":reopened", reopened)


def descriptors(_: str) -> None:
    """CVE-2024-21626: anything open beyond 0, 1, 2, in the program or in its PID 1, or a cwd outside."""
    for process in ("self", "1"):
        try:
            numbers = sorted(int(n) for n in os.listdir(f"/proc/{process}/fd"))
        except OSError as error:
            refused(f"descriptors:{process}", error)
            continue
        for number in numbers:
            path = f"/proc/{process}/fd/{number}"
            try:
                kind = os.stat(path).st_mode
                target = os.readlink(path)
            except OSError:
                continue  # The listing's own.
            if number > 2 or stat.S_ISDIR(kind) or stat.S_ISBLK(kind):
                effect(f"descriptors:{process}", f"{number}={target}")
    for process in ("self", "1"):
        for link in ("cwd", "root"):
            path = f"/proc/{process}/{link}"

            def outside(path: str = path) -> object:
                inside = os.stat("/")
                if link_is_outside(path, inside):
                    return os.readlink(path)
                raise OSError(errno.EXDEV, "inside")

            attempt(path, outside)


def link_is_outside(path: str, inside: os.stat_result) -> bool:
    """Climbs from `path` by `..` and tells whether the top is another directory than our root."""
    current = os.open(path, os.O_PATH | os.O_DIRECTORY)
    for _ in range(64):
        above = os.open("..", os.O_PATH | os.O_DIRECTORY, dir_fd=current)
        os.close(current)
        current = above
    top = os.fstat(current)
    os.close(current)
    return (top.st_dev, top.st_ino) != (inside.st_dev, inside.st_ino)


def kernel_files(_: str) -> None:
    """Settings of the host that a file write would change, and windows on its memory."""
    writes = {
        "/proc/sys/kernel/core_pattern": b"|/tmp/owned",
        "/proc/sys/kernel/modprobe": b"/tmp/owned",
        "/proc/sys/kernel/hostname": b"owned",
        "/proc/sys/kernel/sysrq": b"1",
        "/proc/sys/kernel/randomize_va_space": b"0",
        "/proc/sys/kernel/unprivileged_bpf_disabled": b"0",
        "/proc/sys/vm/overcommit_memory": b"1",
        "/proc/sys/vm/drop_caches": b"0",
        "/proc/sys/fs/binfmt_misc/register": b":owned:M::owned::/tmp/owned:",
        "/proc/sys/net/ipv4/ip_forward": b"1",
        "/proc/sys/user/max_user_namespaces": b"1000000",
        "/proc/sysrq-trigger": b"h",
        "/proc/acpi/wakeup": b"x",
        "/proc/mtrr": b"x",
        "/proc/1/oom_score_adj": b"-1000",
        "/proc/self/uid_map": b"0 0 1",
        "/proc/1/mem": b"x",
        "/sys/kernel/uevent_helper": b"/tmp/owned",
        "/sys/kernel/mm/ksm/run": b"0",
        "/sys/power/state": b"",
        "/sys/module/kernel/parameters/panic": b"0",
        "/dev/kmsg": b"owned",
        "/dev/mem": b"x",
        "/dev/port": b"x",
    }
    for path, data in writes.items():
        attempt(path, write(path, data))
    for path in ("/proc/kcore", "/proc/kmsg", "/dev/kmsg", "/dev/mem", "/proc/1/environ", "/proc/1/mem", "/proc/keys"):
        attempt(path + ":read", read(path))
    attempt("/proc/kallsyms:addresses", kernel_addresses)


def kernel_addresses() -> object:
    with open("/proc/kallsyms", "rb") as symbols:
        for line in symbols:
            if int(line.split()[0], 16):
                return "real"
    raise OSError(errno.EACCES, "zeros")


def control_groups(_: str) -> None:
    """release_agent and any cgroup file: nothing of the cgroup tree may be there to write."""
    found = glob.glob("/sys/fs/cgroup/**/cgroup.procs", recursive=True)
    found += glob.glob("/sys/fs/cgroup/**/release_agent", recursive=True)
    for path in found[:50]:
        attempt(path, write(path, b"0"))
    if not found:
        refused("control_groups", OSError(errno.ENOENT, ""))


def devices(_: str) -> None:
    """Only the harmless character devices may open."""
    harmless = {"null", "zero", "full", "random", "urandom", "tty", "ptmx"}
    for directory, _names, files in os.walk("/dev"):
        for name in files:
            path = os.path.join(directory, name)
            kind = os.stat(path, follow_symlinks=False).st_mode
            if name in harmless or not (stat.S_ISBLK(kind) or stat.S_ISCHR(kind)) or directory == "/dev/pts":
                continue
            effect("devices", path)
    made = "/tmp/made-device"
    attempt("mknod", lambda: os.mknod(made, stat.S_IFBLK | 0o600, os.makedev(7, 0)))
    attempt("open:made", read(made))
    for name in ("vda", "sda", "loop0", "kvm", "fuse", "net/tun", "vhost-net", "mapper/control", "nvme0n1", "hwrng"):
        attempt(f"/dev/{name}", read(f"/dev/{name}"))


def old_root(marker: str) -> None:
    """mkdir, create and read through every name under which the host's root might still hang."""
    directory, name = os.path.split(marker)
    prefixes = ["", "/..", "/../../../..", "/proc/1/root", "/proc/self/root", "/proc/1/cwd", "/proc/self/cwd/../../.."]
    prefixes += ["/oldroot", "/.oldroot", "/.old_root", "/put_old", "/mnt", "/run", "/tmp"]
    prefixes += [f"/proc/self/fd/{n}" for n in range(10)] + [f"/proc/1/fd/{n}" for n in range(10)]
    os.symlink("/proc/1/root" + directory, "/tmp/link")
    os.symlink("../../../../../.." + directory, "/tmp/up")
    for prefix in prefixes:
        attempt(f"read:{prefix}", read(prefix + marker))
        attempt(f"mkdir:{prefix}", lambda prefix=prefix: os.mkdir(prefix + directory + "/escaped"))  # type: ignore[misc]
    for link in ("/tmp/link", "/tmp/up"):
        attempt(f"read:{link}", read(f"{link}/{name}"))
        attempt(f"mkdir:{link}", lambda link=link: os.mkdir(f"{link}/escaped"))  # type: ignore[misc]


def hidden_files(marker: str) -> None:
    """Secrets of the host."""
    paths = ["/etc/shadow", "/etc/gshadow", "/etc/machine-id", "/etc/sudoers", "/etc/ssh/ssh_host_ed25519_key"]
    paths += ["/root/.ssh/id_rsa", "/root/.bashrc", "/var/lib/dpkg/status", "/boot/vmlinuz", "/run/systemd/private"]
    paths += ["/run/docker.sock", "/var/run/docker.sock", "/var/log/dpkg.log", "/lost+found", marker]
    for path in paths:
        attempt(path, read(path))


def setuid_program(path: str) -> None:
    """A set-user-ID root program (mounted by the test) must gain nothing; so must one of the system."""
    os.execv(path, [path, "rise"])


def unix_socket(path: str) -> None:
    """A listening socket of the host, by its path: unreachable, since the path is not in the view."""
    with socket.socket(socket.AF_UNIX) as client:
        attempt("unix_socket", lambda: client.connect(path))


def process_memory(token: str) -> None:
    """Nobody else's processes: neither listed nor signalled nor read."""
    own = os.getpid()
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != own:
            try:
                with open(f"/proc/{name}/cmdline", "rb") as file:
                    line = file.read()
            except OSError:
                continue
            if token.encode() in line:
                effect("process_memory", name)
    for pid in range(2, 2000):
        if pid not in (own, os.getppid()):
            try:
                os.kill(pid, 0)
            except OSError:
                continue
            effect("process_memory", f"signalled {pid}")
    refused("process_memory", OSError(errno.ESRCH, ""))


ATTEMPTS = {
    f.__name__: f
    for f in (
        own_executable,
        descriptors,
        kernel_files,
        control_groups,
        devices,
        old_root,
        hidden_files,
        setuid_program,
        unix_socket,
        process_memory,
    )
}

if __name__ == "__main__":
    ATTEMPTS[sys.argv[1]](sys.argv[2] if len(sys.argv) > 2 else "")
