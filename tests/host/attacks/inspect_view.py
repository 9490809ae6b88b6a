#!/usr/bin/python3
"""What a program finds inside: one JSON object, for test_isolation."""

import fcntl
import json
import os
import resource
import signal
import socket
import stat
import struct
import sys

WRITABLE_BY_DESIGN = (
    "/dev/null",
    "/dev/zero",
    "/dev/full",
    "/dev/random",
    "/dev/urandom",
    "/dev/tty",
    "/dev/ptmx",
    "/dev/pts/ptmx",
)

SECRETS = (
    "/etc/shadow",
    "/etc/machine-id",
    "/etc/ssh/ssh_host_rsa_key",
    "/proc/cmdline",
    "/proc/kallsyms",
    "/proc/keys",
    "/proc/sys/kernel/random/boot_id",
)


def namespaces() -> dict[str, str]:
    kinds = ("pid", "mnt", "net", "ipc", "uts", "cgroup", "user")
    return {kind: os.readlink(f"/proc/self/ns/{kind}") for kind in kinds}


def descriptors() -> dict[str, str]:
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[name] = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue  # The listing's own.
    return found


def interface_flags() -> dict[str, bool]:
    found = {}
    with open("/proc/net/dev") as table:
        names = [line.split(":")[0].strip() for line in table if ":" in line]
    for name in names:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            request = fcntl.ioctl(asking, 0x8913, struct.pack("16sH14x", name.encode(), 0))  # SIOCGIFFLAGS
        found[name] = bool(struct.unpack("16xH14x", request)[0] & 1)
    return found


SHALLOW = "--shallow" in sys.argv


def writable_places() -> list[str]:
    """Every directory where a file can be made, and every kernel or configuration file that opens for writing."""
    found = []
    for directory, names, files in os.walk("/"):
        # /usr is one mount: that nothing can be written in it shows at its top. All of it is looked at where there is time.
        if SHALLOW and directory.startswith("/usr/") and directory.count("/") >= 3:
            names.clear()
        if directory == "/proc":
            names[:] = [
                name for name in names if name in ("sys", "self", "1", "net", "fs", "irq", "bus", "acpi", "scsi")
            ]
        probe = os.path.join(directory, ".supervisor-probe")
        try:
            os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
            os.unlink(probe)
            found.append(directory)
        except OSError:
            pass
        if not directory.startswith(("/usr", "/bin", "/sbin", "/lib", "/work", "/tmp", "/dev/shm")):
            for name in files:
                path = os.path.join(directory, name)
                if path not in WRITABLE_BY_DESIGN and opens_for_writing(path):
                    found.append(path)
    return found


def opens_for_writing(path: str) -> bool:
    try:
        kind = os.stat(path, follow_symlinks=False).st_mode
        if not (stat.S_ISREG(kind) or stat.S_ISCHR(kind) or stat.S_ISBLK(kind)):
            return False
        os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW))
    except OSError:
        return False
    return True


def read(path: str) -> str:
    try:
        with open(path, errors="replace") as file:
            return file.read()
    except OSError as error:
        return f"!{error.errno}"


def listing(path: str) -> list[str] | None:
    try:
        return sorted(os.listdir(path))
    except OSError:
        return None


def controlling_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDWR))
    except OSError:
        return False
    return True


def view() -> dict[str, object]:
    umask = os.umask(0)
    os.umask(umask)
    return {
        "namespaces": namespaces(),
        "descriptors": descriptors(),
        "interfaces": interface_flags(),
        "processes": sorted(int(name) for name in os.listdir("/proc") if name.isdigit()),
        "pid": os.getpid(),
        "ids": [*os.getresuid(), *os.getresgid()],
        "groups": os.getgroups(),
        "session": os.getsid(0),
        "group": os.getpgrp(),
        "umask": umask,
        "cwd": os.getcwd(),
        "terminal": controlling_terminal(),
        "environment": dict(os.environ),
        "hostname": socket.gethostname(),
        "uid_map": read("/proc/self/uid_map"),
        "gid_map": read("/proc/self/gid_map"),
        "cgroup": read("/proc/self/cgroup"),
        "mounts": read("/proc/self/mountinfo"),
        "status": read("/proc/self/status"),
        "init_status": read("/proc/1/status"),
        "core": resource.getrlimit(resource.RLIMIT_CORE),
        "mask": [int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, [])],
        "top": listing("/"),
        "etc": listing("/etc"),
        "listings": {
            path: listing(path) for path in ("/root", "/home", "/var", "/sys", "/run", "/boot", "/mnt", "/media")
        },
        "secrets": {path: read(path)[:100] for path in SECRETS},
        "passwd": read("/etc/passwd"),
        "markers": {path: os.path.exists(path) for path in sys.argv[1:] if path != "--shallow"},
        "writable": writable_places(),
    }


if __name__ == "__main__":
    json.dump(view(), sys.stdout)
