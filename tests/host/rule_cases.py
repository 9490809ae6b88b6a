"""Programs for the default rules: what fires each, by every way that we know of, and its innocent neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

PYTHON = "/usr/bin/python3"


def sh(text: str) -> tuple[str, ...]:
    return ("sh", "-c", text)


def py(text: str) -> tuple[str, ...]:
    return (PYTHON, "-c", text)


_SERVER = """
import fcntl, os, socket, subprocess, sys
def pair(family=socket.AF_INET, host="127.0.0.1"):
    server = socket.socket(family)
    server.bind((host, 0))
    server.listen()
    client = socket.create_connection(server.getsockname()[:2])
    return server, client
"""
_MEMFD = """
import os
fd = os.memfd_create("x")
os.write(fd, open("/bin/true", "rb").read())
"""
_SCRIPT = """
import os
fd = {}
os.write(fd, b"#!/bin/true\\n")
os.set_inheritable(fd, True)
"""
_CALL = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
"""

FIRES: dict[str, dict[str, Sequence[str]]] = {
    "reverse-shell": {
        "dup2": py(_SERVER + "p = pair(); os.dup2(p[1].fileno(), 0)"),
        "dup3": py(_SERVER + "p = pair(); os.dup2(p[1].fileno(), 1, inheritable=False)"),
        "fcntl": py(_SERVER + "c = pair()[1]; os.close(0); fcntl.fcntl(c, fcntl.F_DUPFD, 0)"),
        "dup": py(_SERVER + "c = pair()[1]; os.close(2); os.dup(c.fileno())"),
        "IPv6": py(_SERVER + "p = pair(socket.AF_INET6, '::1'); os.dup2(p[1].fileno(), 0)"),
        "vfork": py(_SERVER + "subprocess.run(['/bin/sh'], stdin=pair()[1])"),
        "bash": (
            "bash", "-c", "python3 -m http.server --bind 127.0.0.1 8000 & sleep 2; exec 5<>/dev/tcp/127.0.0.1/8000; exec sh <&5"
        ),
    },
    "exec-from-memory": {
        "execveat": py(_MEMFD + "os.execve(fd, ['x'], {})"),
        "a script": py(_SCRIPT.format("os.memfd_create('x', 0)") + "os.execve(fd, ['x'], {})"),
    },
    "deleted-file-executed": {
        "by its descriptor": sh("cp /bin/true x; exec 3<x; rm x; exec /proc/self/fd/3"),
        "a script without a name": py(
            _SCRIPT.format("os.open('.', os.O_TMPFILE | os.O_RDWR, 0o700)")
            + "fd = os.open(f'/proc/self/fd/{fd}', os.O_RDONLY); os.set_inheritable(fd, True)\n"
            + "os.closerange(fd - 1, fd); os.execve(fd, ['x'], {})"
        ),
    },
    "memory-file-mapped": {
        "mmap": py(_MEMFD + "import mmap; mmap.mmap(fd, 4096, prot=5, flags=2)"),
        "the dynamic linker": py(
            _MEMFD
            + "os.set_inheritable(fd, True); os.execv('/lib64/ld-linux-x86-64.so.2', ['ld.so', f'/proc/self/fd/{fd}'])"
        ),
    },
    "exec-from-shared-memory": {
        "its path": sh("cp /bin/true /dev/shm/x; /dev/shm/x"),
        "a relative path": sh("cd /dev/shm; cp /bin/true x; ./x"),
        "dots": sh("cp /bin/true /dev/shm/x; /tmp/../dev/./shm/x"),
    },
    "process-memory-tried": {
        "self": py("open('/proc/self/mem', 'r+b')"),
        "a pid": py("import os; open(f'/proc/{os.getpid()}/mem', 'r+b')"),
        "a thread": py("open('/proc/thread-self/mem', 'r+b')"),
        "a relative path": sh("cd /proc/self; exec 3<>mem"),
        "a directory's descriptor": py(
            "import os; d = os.open('/proc/self', os.O_RDONLY); os.open('mem', os.O_WRONLY, dir_fd=d)"
        ),
    },
    "setuid-bit": {
        "chmod": sh("touch x; chmod 4755 x"),
        "fchmod": py("import os; f = open('x', 'w'); os.fchmod(f.fileno(), 0o4711)"),
        "creation": py("import os; os.open('x', os.O_CREAT | os.O_WRONLY, 0o4755)"),
        "openat2": py(_CALL + "libc.syscall(437, -100, b'x', (ctypes.c_uint64 * 3)(0o101, 0o4755, 0), 24)"),
        "a file without a name": py("import os; os.open('.', os.O_TMPFILE | os.O_WRONLY, 0o4755)"),
        "a renamed tool": sh("cp /bin/chmod innocent; touch x; ./innocent u+s x"),
    },
    "kernel-helper-written": {
        "its path": sh("echo '|/tmp/x' > /proc/sys/kernel/core_pattern"),
        "a relative path": sh("cd /proc/sys/kernel; echo x > ./core_pattern"),
        "a directory's descriptor": py(
            "import os; d = os.open('/proc/sys/kernel', os.O_RDONLY); os.open('core_pattern', os.O_WRONLY, dir_fd=d)"
        ),
        "modprobe": sh("echo /tmp/x > /proc/sys/kernel/modprobe"),
        "release_agent": sh("echo /tmp/x > /sys/fs/cgroup/release_agent"),
        "sysrq": sh("echo b > /proc/sysrq-trigger"),
    },
    "miner": {
        "its option": sh("/bin/true -o stratum+tcp://pool.example:3333"),
        "a renamed tool": sh("cp /bin/true innocent; ./innocent stratum+ssl://pool.example"),
        "behind other arguments": sh(f"/bin/true {'-v ' * 1000} -o stratum+tcp://pool.example:3333"),
    },
    "miner-pool": {
        "IPv4": py("import socket; socket.socket().connect(('203.0.113.7', 3333))"),
        "v4-mapped": py("import socket; socket.socket(socket.AF_INET6).connect(('::ffff:203.0.113.7', 14444))"),
        "IPv6": py("import socket; socket.socket(socket.AF_INET6).connect(('2001:db8::1', 45700))"),
    },
    "secrets-read": {
        "shadow": sh("cat /etc/shadow"),
        "dots": sh("cat /usr/../etc/./shadow"),
        "a renamed tool": sh("cp /bin/cat innocent; ./innocent /etc/gshadow"),
        "a relative path": sh("cd /etc; cat shadow"),
        "a number with more bits": py(_CALL + f"libc.syscall(ctypes.c_long({1 << 32 | 257}), -100, b'/etc/shadow', 0)"),
        "a negative number": py(_CALL + f"libc.syscall(ctypes.c_long({257 - (1 << 63)}), -100, b'/etc/shadow', 0)"),
    },
    "keys-read": {
        "a key": sh("mkdir -p .ssh; echo k > .ssh/id_rsa; cat .ssh/id_rsa"),
        "a relative path": sh("mkdir -p .aws; cd .aws; echo k > credentials; cat credentials"),
        "a symlink": sh("mkdir -p .aws; echo k > .aws/credentials; ln -s .aws/credentials innocent; cat innocent"),
        "a directory's symlink": sh("mkdir -p .ssh; echo k > .ssh/id; ln -s .ssh d; cat d/id"),
        "far down": sh(f"d={'a' * 60}; d=$d/$d/$d/$d/$d/$d/.ssh; mkdir -p $d; echo k > $d/id; cat $d/id"),
        "further down": sh(f"d=.ssh/{'x/' * 45}; mkdir -p $d; echo k > $d/id; cat $d/id"),
        "below long names": sh(f"d={'a' * 60}; d=.ssh/$d/$d/$d/$d; mkdir -p $d; echo k > $d/id; cat $d/id"),
        "under a long name": sh(f"mkdir .ssh; echo k > .ssh/{'a' * 200}; cat .ssh/*"),
        "a renamed tool": sh("cp /bin/cat innocent; echo k > .netrc; ./innocent .netrc"),
    },
    "configuration-written": {
        "etc": sh("echo x > /etc/passwd"),
        "a relative path": sh("cd /etc; rm hosts"),
        "bashrc": sh("echo x > $HOME/.bashrc"),
        "a rename": sh("echo x > y; mv y $HOME/.profile"),
        "a link": sh("echo x > y; ln y .bashrc"),
        "a symlink": sh("ln -s $HOME/.bashrc innocent; echo x > innocent"),
        "cron": sh("mkdir /var/spool/cron/crontabs/x"),
        "a long way": sh(f"touch .bashrc; chmod 600 {'./' * 1000}.bashrc"),
        "a long way to it": sh(f"echo x > y; mv y {'./' * 2000}.profile"),
        "a long way out and back": sh(f"mkdir -p .ssh/d; rmdir {'.ssh/../' * 200}.ssh/d"),
        "a long way from a directory": sh(f"mkdir -p .ssh/a/b; cd .ssh; rmdir {'a/../' * 100}a/b"),
        "the other directory's descriptor": py(
            "import os; os.mkdir('.ssh'); open('y', 'w'); d = os.open('.ssh', os.O_RDONLY)\n"
            "os.rename('y', 'z', dst_dir_fd=d)"
        ),
        "a link in a directory's descriptor": py(
            "import os; os.mkdir('.ssh'); open('y', 'w'); d = os.open('.ssh', os.O_RDONLY); os.link('y', 'z', dst_dir_fd=d)"
        ),
        "a symlink in a directory's descriptor": py(
            "import os; os.mkdir('.ssh'); d = os.open('.ssh', os.O_RDONLY); os.symlink('y', 'z', dir_fd=d)"
        ),
        "its mode by descriptor": py("import os; os.mkdir('.ssh'); os.fchmod(os.open('.ssh', os.O_RDONLY), 0o500)"),
        "its owner by descriptor": py("import os; os.mkdir('.ssh'); os.fchown(os.open('.ssh', os.O_RDONLY), -1, -1)"),
    },
    "log-deleted": {
        "history": sh("touch .bash_history; rm .bash_history"),
        "a log": sh("rm /var/log/dpkg.log"),
        "by rename": sh("touch .bash_history; mv .bash_history x"),
    },
    "port-scan": {
        "ports": py(
            "import socket\nfor port in range(1000, 1030):\n    socket.socket().connect_ex(('127.0.0.1', port))"
        ),
        "addresses": py(
            "import socket\nfor n in range(1, 30):\n    socket.socket().connect_ex((f'127.0.0.{n}', 9))"
        ),
    },
    "dns-tunnel": {
        "UDP": py(
            "import socket\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
            "for n in range(201):\n    s.sendto(b'x', ('127.0.0.1', 53))"
        ),
        "a connected socket": py(
            "import socket\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\ns.connect(('127.0.0.1', 53))\n"
            "for n in range(402):\n    try: s.send(b'x')\n    except OSError: pass"
        ),
        "messages on it": py(
            "import socket\ns = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)\ns.connect(('::1', 53))\n"
            "for n in range(402):\n    try: s.sendmsg([b'x'])\n    except OSError: pass"
        ),
    },
    "fork-rate": {"fork": py("import os\nfor n in range(2001):\n    os.fork() or os._exit(0)\n    os.wait()")},
    "refused-burst": {
        "chroot": py("import os\nfor n in range(110):\n    try: os.chroot('/')\n    except OSError: pass")
    },
    "download-to-shell": {
        "curl": sh("cp /bin/echo curl; ./curl 'echo x' | sh"),
        "a renamed shell": sh("cp /bin/echo wget; cp /bin/dash bash; ./wget 'echo x' | ./bash"),
    },
    "downloader": {"curl": sh("cp /bin/echo curl; ./curl x")},
    "package-install": {"pip": sh("pip install nothing-at-all --no-index || true")},
    "dropped-file-executed": {
        "work": sh("cp /bin/true x; ./x"),
        "a symlink": sh("cp /bin/true /tmp/x; ln -s /tmp/x y; ./y"),
        "a script": sh("printf '#!/bin/sh\\n' > x; chmod +x x; ./x"),
    },
    "environment-read": {
        "its own": sh("cat /proc/self/environ"),
        "another's": sh("sleep 5 & cat /proc/$!/environ"),
        "a thread's": sh("cat /proc/thread-self/environ"),
    },
    "bulk-delete": {"rm": sh("touch $(seq 110); rm $(seq 110)")},
    "memory-made-executable": {
        "mprotect": py(
            _CALL + "import mmap\nm = mmap.mmap(-1, 4096)\na = ctypes.addressof(ctypes.c_char.from_buffer(m))\n"
            "assert libc.mprotect(ctypes.c_void_p(a), 4096, 5) == 0"
        )
    },
    "writable-and-executable": {"mmap": py("import mmap; mmap.mmap(-1, 4096, prot=7)")},
    "memory-file": {"memfd_create": py("import os; os.memfd_create('x')")},
    "io-uring": {"io_uring_setup": py(_CALL + "libc.syscall(425, 8, None)")},
}  # fmt: skip
"""By rule: a label, and what is executed under `strict`."""

NEIGHBOURS: dict[str, Sequence[str]] = {
    "reverse-shell": py(
        _SERVER + "a, b = socket.socketpair(); os.dup2(a.fileno(), 0); p = pair(); os.dup2(p[1].fileno(), 7)"
    ),
    "exec-from-memory": py(_MEMFD + "os.execv('/bin/true', ['true'])"),
    "exec-from-shared-memory": sh("cp /bin/true shm; ./shm; echo x > /dev/shm/x; cat /dev/shm/x"),
    "deleted-file-executed": sh("cp /bin/true x; ./x; rm x"),
    "memory-file-mapped": py(_MEMFD + "import mmap; mmap.mmap(fd, 4096, prot=1, flags=2); mmap.mmap(-1, 4096, prot=5)"),
    "process-memory-tried": sh("head -c 0 /proc/self/mem; mkdir mem; echo x > mem/mem"),
    "setuid-bit": sh("touch x; chmod 755 x; chmod 1777 .; mkdir -m 2755 d"),
    "credentials-risen": sh("id -u; su --version"),
    "kernel-helper-written": sh("cat /proc/sys/kernel/core_pattern; echo x > core_pattern"),
    "miner": sh("echo stratum tcp; /bin/true tcp://pool.example:3333"),
    "miner-pool": py(
        "import socket; s = socket.create_server(('127.0.0.1', 3333)); socket.create_connection(('127.0.0.1', 3333))"
    ),
    "secrets-read": sh("cat /etc/passwd; echo k > shadow; cat shadow; cd /etc; ls"),
    "keys-read": sh("mkdir -p x.ssh; echo k > x.ssh/id_rsa; cat x.ssh/id_rsa; cat .netrc .ssh/id_rsa; true"),
    "configuration-written": sh(
        "mkdir etc; echo x > etc/passwd; cat /etc/passwd; echo x > bashrc; ln -s /etc/passwd x; cd /etc; ls"
    ),
    "log-deleted": sh(f"touch log history; rm log; rm {'./' * 1000}history"),
    "port-scan": py("import socket\nfor n in range(40):\n    socket.socket().connect_ex(('127.0.0.1', 9))"),
    "dns-tunnel": py(
        "import socket\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        "for n in range(201):\n    s.sendto(b'x', ('127.0.0.1', 54))"
    ),
    "fork-rate": sh("for n in $(seq 50); do (true); done"),
    "refused-burst": py("import os\nfor n in range(20):\n    try: os.chroot('/')\n    except OSError: pass"),
    "download-to-shell": sh("cp /bin/echo curl; ./curl x; echo x | sh -c cat"),
    "downloader": sh("cp /bin/echo curls; ./curls curl"),
    "package-install": sh("pip --version || true"),
    "dropped-file-executed": sh("/bin/true"),
    "environment-read": sh("echo x > environ; cat environ /proc/self/status; env"),
    "bulk-delete": sh("touch $(seq 50); rm $(seq 50)"),
    "memory-made-executable": py("import mmap; mmap.mmap(-1, 4096, prot=3)"),
    "writable-and-executable": py("import mmap; mmap.mmap(-1, 4096, prot=5)"),
    "memory-file": py("import tempfile; tempfile.TemporaryFile()"),
    "io-uring": py(_CALL + "libc.syscall(39)"),
}
"""By rule: what looks much like it and is nothing of it."""

FLIPPING = (
    _CALL
    + """
import threading
os.makedirs("d/.ssh"), os.makedirs("d/.sss")
open("d/.ssh/key", "w").write("secret")
open("d/.sss/key", "w").write("nothing")
path = ctypes.create_string_buffer(b"d/.ssh/key")
done = False
def flip():
    while not done:
        path[5] = b"s"
        path[5] = b"h"
thread = threading.Thread(target=flip)
thread.start()
secrets = 0
for n in range(int(sys.argv[1])):
    fd = libc.open(path, 0)
    secrets += os.read(fd, 9) == b"secret"
    os.close(fd)
done = True
thread.join()
print(secrets)
"""
)
"""A second thread changes the path all the while: what the kernel opened counts, not what memory holds afterwards."""


@dataclass(frozen=True, slots=True)
class Case:
    rule: str
    label: str
    argv: Sequence[str]

    @property
    def id(self) -> str:
        return f"{self.rule}: {self.label}"


CASES = [Case(rule, label, argv) for rule, ways in FIRES.items() for label, argv in ways.items()]
