"""Runs inside a run: tries whatever its rules deny, by every call and every way, and prints what came of each as JSON.

/work holds `secret`, `free`, `tool`, `kept/` with `f` and `d/`, and `up/down/secret`.
"""

import ctypes
import errno
import json
import os
import subprocess
import sys
import threading

libc = ctypes.CDLL(None, use_errno=True)
LINKER = "/lib64/ld-linux-x86-64.so.2"
AT_FDCWD, RENAMEAT2, EXCHANGE = -100, 316, 2


def call(*arguments):
    if libc.syscall(*arguments) < 0:
        raise OSError(ctypes.get_errno(), "")


def read(path, **options):
    os.close(os.open(path, os.O_RDONLY, **options))


def write(path, flags=os.O_WRONLY):
    os.close(os.open(path, flags, 0o644))


def read_below(directory, name):
    read(name, dir_fd=os.open(directory, os.O_RDONLY))


def reopen(path):
    read(f"/proc/self/fd/{os.open(path, os.O_PATH)}")


def read_by_link(path):
    os.symlink(path, "/tmp/link")
    read("/tmp/link")


def execute(*argv):
    status = subprocess.run(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode
    if status:
        raise OSError(errno.EPERM if status == 127 else status, "")


TRIES = {
    "read": lambda: read("/work/secret"),
    "read-write": lambda: write("/work/secret", os.O_RDWR),
    "write": lambda: write("/work/secret"),
    "truncating": lambda: write("/work/secret", os.O_RDONLY | os.O_TRUNC),
    "create": lambda: write("/work/kept/new", os.O_WRONLY | os.O_CREAT),
    "create-named": lambda: write("/work/id_key", os.O_WRONLY | os.O_CREAT),
    "list": lambda: os.listdir("/work/kept"),
    "truncate": lambda: os.truncate("/work/secret", 0),
    "rename-away": lambda: os.rename("/work/secret", "/work/x"),
    "rename-onto": lambda: os.rename("/work/free", "/work/secret"),
    "rename-into": lambda: os.rename("/work/free", "/work/kept/x"),
    "rename-above": lambda: os.rename("/work/up", "/work/x"),
    "exchange": lambda: call(RENAMEAT2, AT_FDCWD, b"/work/free", AT_FDCWD, b"/work/up", EXCHANGE),
    "unlink": lambda: os.unlink("/work/secret"),
    "rmdir": lambda: os.rmdir("/work/kept/d"),
    "mkdir": lambda: os.mkdir("/work/kept/x"),
    "mknod": lambda: os.mkfifo("/work/kept/x"),
    "link-from": lambda: os.link("/work/secret", "/work/x"),
    "link-to": lambda: os.link("/work/free", "/work/kept/x"),
    "symlink": lambda: os.symlink("/work/free", "/work/kept/x"),
    "chmod": lambda: os.chmod("/work/secret", 0o777),
    "chown": lambda: os.chown("/work/secret", os.getuid(), os.getgid()),
    "exec": lambda: os.execv("/work/tool", ["tool"]),
    "exec-linked": lambda: execute(LINKER, "/work/tool"),
    "relative": lambda: read("secret"),
    "dots": lambda: read("/work/./kept/..//up/../secret"),
    "link": lambda: read_by_link("/work/secret"),
    "descriptor": lambda: read_below("/work/up/down", "secret"),
    "proc-root": lambda: read("/proc/self/root/work/secret"),
    "proc-cwd": lambda: read("/proc/self/cwd/secret"),
    "o-path": lambda: reopen("/work/secret"),
}
ALLOWED = {
    "free": lambda: write("/work/free", os.O_RDWR),
    "new": lambda: write("/tmp/new", os.O_WRONLY | os.O_CREAT),
    "near": lambda: write("/work/secret2", os.O_RDWR),
    "below": lambda: read("/work/up/down/other"),
    "rename": lambda: (os.rename("/work/free", "/work/x"), os.rename("/work/x", "/work/free")),
    "made": lambda: (
        os.mkdir("/tmp/kept"),
        write("/tmp/kept/x", os.O_WRONLY | os.O_CREAT),
        os.rename("/tmp/kept", "/tmp/k"),
    ),
    "true": lambda: execute("/bin/true"),
    "pipe": lambda: read(
        f"/proc/self/fd/{os.pipe()[0]}",
    ),
}


def outcome(act):
    try:
        act()
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error.errno))
    return "ok"


def flip(count):
    """A second thread changes the path while the call is made: (opened, denied, of the opened those that say secret)."""
    names = (b"/work/free\0\0", b"/work/secret")
    buffer = ctypes.create_string_buffer(names[0], 16)
    done = False

    def change():
        while not done:
            for name in names:
                ctypes.memmove(buffer, name, 12)

    thread = threading.Thread(target=change)
    thread.start()
    opened = denied = secrets = 0
    for _ in range(count):
        fd = libc.open(buffer, os.O_RDONLY)
        if fd >= 0:
            opened += 1
            secrets += os.read(fd, 100) == b"secret"
            os.close(fd)
        else:
            denied += ctypes.get_errno() == errno.EPERM
    done = True
    thread.join()
    return opened, denied, secrets


def main():
    os.chdir("/work")
    chosen = sys.argv[1:] or TRIES
    found = {name: outcome(TRIES[name]) for name in chosen}
    allowed = {} if sys.argv[1:] else {name: outcome(act) for name, act in ALLOWED.items()}
    flipped = () if sys.argv[1:] else flip(400)
    print(json.dumps({"tries": found, "allowed": allowed, "flipped": flipped}))


main()
