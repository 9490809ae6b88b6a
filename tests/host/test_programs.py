"""Ordinary programs are not over-blocked under `strict`."""

from __future__ import annotations

from typing import Any

import pytest

from supervisor.client import Supervisor
from tests.host.daemon_fixture import scaled

PYTHON = "/usr/bin/python3"


def succeed(supervisor: Supervisor, argv: list[str], expected: str, seconds: float = 30, **options: Any) -> str:
    result = supervisor.execute(argv, policy=options.pop("policy", "strict"), timeout=scaled(seconds), **options)
    told = (result.outcome, result.detail, result.stderr.decode(errors="replace"), result.violations)
    assert (result.outcome, result.exit_code) == ("exited", 0), told
    assert expected in result.stdout.decode(), (result.stdout, told)
    assert not result.violations
    return result.stdout.decode()


SHELL = {
    "pipeline": ("seq 1000 | grep 7 | sort -rn | head -3 | tr '\\n' ,", "997,987,979,"),
    "substitution": ("diff <(seq 3) <(seq 3) && echo same", "same"),
    "here_document": ("cat <<END | wc -l\na\nb\nEND", "2"),
    "jobs": ("sleep 0.1 & sleep 0.1 & wait && echo waited; kill -0 $$", "waited"),
    "trap": ("trap 'echo caught' USR1; kill -USR1 $$; echo after", "caught\nafter"),
    "coproc": ("coproc cat; echo hi >&${COPROC[1]}; read -r x <&${COPROC[0]}; echo got $x", "got hi"),
    "ulimit": ("ulimit -n 32 && ulimit -n", "32"),
    "subshell_limits": ("(ulimit -v 4000000; nice -n 5 true) && echo ok", "ok"),
}

COREUTILS = {
    "files": (
        "mkdir -p a/b && cp /etc/passwd a/b/p && mv a/b/p a/q && ln -s q a/l && cat a/l | wc -l && rm -r a && echo ok",
        "ok",
    ),
    "find": ("find /usr/bin -name 'bas*' -type f | head -1", "/usr/bin/bas"),
    "sort_big": ("seq 200000 | sort -R --random-source=/dev/zero | sort -n | tail -1", "200000"),
    "times": ("touch -d 2001-01-01 f && stat -c %y f && date +%Y", "2001-01-01"),
    "owner": ("touch f && chown $(id -u):$(id -g) f && chmod 640 f && stat -c %a f", "640"),
    "sums": ("printf abc | sha256sum", "ba7816bf"),
    "dd": ("dd if=/dev/urandom of=r bs=1k count=64 conv=fsync 2>/dev/null && wc -c < r", "65536"),
    "mkfifo": ("mkfifo p && (echo through > p &) && cat p", "through"),
    "timeout": ("timeout 0.1 sleep 5; echo $?", "124"),
    "tty": (
        "tty; df -h . >/dev/null && ls -la / > /dev/null && id && uname -s && nproc && ps aux >/dev/null && echo ok",
        "ok",
    ),
    "install": ("install -m 755 /bin/true t && ./t && echo ran", "ran"),
    "xargs": ("seq 20 | xargs -P 4 -n 1 echo | wc -l", "20"),
    "compress": (
        "seq 9999 > s && gzip -k s && xz -k s && zcat s.gz | cmp - s && xzcat s.xz | cmp - s && echo same",
        "same",
    ),
    "devices": (
        "test -c /dev/full && ! echo x 2>/dev/null >/dev/full && head -c 4 /dev/zero | od -An -tx1 && head -c 9 /dev/random | wc -c",
        " 00 00 00 00\n9\n",
    ),
    "sed_awk": ("seq 10 | sed -n '3,5p' | awk '{t += $1} END {print t}'", "12"),
}


@pytest.mark.parametrize("name", SHELL)
def test_bash(supervisor: Supervisor, name: str) -> None:
    script, expected = SHELL[name]
    succeed(supervisor, ["bash", "-c", script], expected)


@pytest.mark.parametrize("name", COREUTILS)
def test_coreutils(supervisor: Supervisor, name: str) -> None:
    script, expected = COREUTILS[name]
    succeed(supervisor, ["bash", "-c", script], expected)


PYTHON_PROGRAMS = {
    "threads": """
import threading, queue
q = queue.Queue()
threads = [threading.Thread(target=lambda n=n: q.put(n * n)) for n in range(30)]
[t.start() for t in threads]; [t.join() for t in threads]
print(sum(q.queue))""",
    "subprocess": """
import subprocess
a = subprocess.run(["tr", "a-z", "A-Z"], input=b"x" * 100000, capture_output=True, check=True)
b = subprocess.run("echo $0 | cat", shell=True, capture_output=True, start_new_session=True, close_fds=True)
p = subprocess.Popen(["sleep", "100"]); p.terminate(); assert p.wait() == -15
print(len(a.stdout) + len(b.stdout))""",
    "multiprocessing": """
import multiprocessing as m
def square(n): return n * n
if __name__ == "__main__":
    for method in ("fork", "spawn", "forkserver"):
        with m.get_context(method).Pool(3) as pool:
            print(sum(pool.map(square, range(100))))
    lock, value = m.Lock(), m.Value("i", 0)
    shared = m.shared_memory = __import__("multiprocessing.shared_memory").shared_memory.SharedMemory(create=True, size=10)
    shared.close(); shared.unlink()""",
    "asyncio": """
import asyncio
async def main():
    async def echo(r, w): w.write(await r.read(100)); await w.drain(); w.close()
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    r, w = await asyncio.open_connection(*server.sockets[0].getsockname())
    w.write(b"hello"); w.write_eof(); print((await r.read()).decode())
    p = await asyncio.create_subprocess_exec("echo", "child", stdout=-1); print((await p.communicate())[0])
    await asyncio.to_thread(print, "thread")
asyncio.run(main())""",
    "sqlite3": """
import sqlite3
for path in (":memory:", "file.db", "/dev/shm/x.db"):
    c = sqlite3.connect(path); c.execute("pragma journal_mode=wal"); c.execute("create table t(x)")
    c.executemany("insert into t values (?)", ((n,) for n in range(1000))); c.commit()
    print(c.execute("select sum(x) from t").fetchone()[0])""",
    "signals": """
import signal, os, time
signal.signal(signal.SIGALRM, lambda *a: print("alarm")); signal.setitimer(signal.ITIMER_REAL, 0.05); time.sleep(0.2)
r = os.fork()
if r == 0: os._exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(r, 0)[1]))
f = os.pidfd_open(os.getpid()); os.close(f)""",
    "files": """
import tempfile, mmap, os, shutil, fcntl, pathlib, zipfile
with tempfile.NamedTemporaryFile() as f:
    f.write(b"x" * 8192); f.flush(); fcntl.flock(f, fcntl.LOCK_EX)
    with mmap.mmap(f.fileno(), 0) as m: m[0:1] = b"y"; m.flush()
d = pathlib.Path(tempfile.mkdtemp()); (d / "a").write_text("t"); os.utime(d / "a", (10**9, 10**9)); shutil.copytree(d, "copy")
os.setxattr if hasattr(os, "setxattr") else None
with zipfile.ZipFile("z.zip", "w") as z: z.write("copy/a")
e = os.eventfd(0); print(os.listdir("copy"), os.sched_getaffinity(0) != set())""",
    "standard_library": """
import ssl, ctypes, decimal, json, uuid, secrets, hashlib, locale, selectors, socket, select, zlib, lzma, bz2, curses, readline
a, b = socket.socketpair(); socket.send_fds(a, [b"x"], [0]); print(socket.recv_fds(b, 10, 1)[0])
print(ctypes.CDLL(None).getpid() > 0, uuid.uuid4() != uuid.uuid4(), len(ssl.create_default_context().get_ca_certs()) >= 0)
print(socket.getaddrinfo("localhost", 80)[0][4][0] in ("127.0.0.1", "::1"), socket.gethostname())""",
    "terminal": """
import os, pty
pid, master = pty.fork()
if pid == 0: os.execlp("sh", "sh", "-c", "test -t 0 && test -t 1 && echo in $(tty) > /dev/tty")
print(os.read(master, 100).decode().strip())""",
    "system_calls": """
import ctypes, errno, os, socket
c = ctypes.CDLL(None, use_errno=True)
def call(name, *arguments):
    if getattr(c, name)(*arguments) == -1: raise OSError(ctypes.get_errno(), name)
a, b = os.open("a", os.O_RDWR | os.O_CREAT), os.open("b", os.O_RDWR | os.O_CREAT)
(r, w), room, child, (one, other) = os.pipe(), ctypes.create_string_buffer(1 << 16), os.fork(), socket.socketpair()
if child == 0: os._exit(0)
tries = {
    "fallocate": lambda: call("fallocate", a, 0, ctypes.c_long(0), ctypes.c_long(8192)),
    "pwritev2": lambda: os.pwritev(a, [b"x"], 0, os.RWF_SYNC), "fadvise64": lambda: os.posix_fadvise(a, 0, 0, os.POSIX_FADV_WILLNEED),
    "sendfile": lambda: os.sendfile(b, a, 0, 2), "copy_file_range": lambda: os.copy_file_range(a, b, 2, 0, 0),
    "splice": lambda: os.splice(a, w, 2, offset_src=0), "tee": lambda: call("tee", r, os.pipe()[1], ctypes.c_size_t(2), 2),
    "setxattr": lambda: os.setxattr("a", "user.x", b"1"), "waitid": lambda: os.waitid(os.P_PID, child, os.WEXITED),
    "setaffinity": lambda: os.sched_setaffinity(0, os.sched_getaffinity(0)),
    "setscheduler": lambda: os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0)),
    "setgid": lambda: os.setgid(os.getgid()), "setresuid": lambda: os.setresuid(*os.getresuid()),
    "timerfd": lambda: call("timerfd_create", 1, 0), "timer": lambda: call("timer_create", 1, None, room),
    "signalfd": lambda: call("signalfd", -1, room, 0), "inotify": lambda: call("inotify_add_watch", c.inotify_init1(0), b".", 2),
    "shm": lambda: call("shmget", 0, ctypes.c_size_t(4096), 0o1600), "sem": lambda: call("semget", 0, 1, 0o1600),
    "msg": lambda: call("msgget", 0, 0o1600),
    "mlock": lambda: call("mlock", room, ctypes.c_size_t(4096)), "mincore": lambda: call("mincore", ctypes.c_void_p(
        ctypes.addressof(room) + 4095 & ~4095), ctypes.c_size_t(4096), ctypes.create_string_buffer(8)),
    "membarrier": lambda: call("syscall", {"x86_64": 324}.get(os.uname().machine, 283), 0, 0, 0), "personality": lambda: call("personality", ctypes.c_ulong(0xFFFFFFFF)),
    "sendmmsg": lambda: call("sendmmsg", one.fileno(), room, 1, 0),
}
failed = []
for name, attempt in tries.items():
    try: attempt()
    except OSError as e:
        if (name, e.errno) != ("setxattr", errno.EOPNOTSUPP): failed.append((name, errno.errorcode[e.errno]))
print(len(tries), "tried, failed:", failed)""",
}
EXPECTED = {
    "threads": "8555",
    "subprocess": "100008",
    "multiprocessing": "328350\n328350\n328350",
    "asyncio": "hello\nb'child\\n'\nthread",
    "sqlite3": "499500\n499500\n499500",
    "signals": "alarm\n7",
    "files": "['a'] True",
    "standard_library": "b'x'\nTrue True True\nTrue",
    "terminal": "in /dev/pts/0",
    "system_calls": "tried, failed: []",
}


@pytest.mark.parametrize("name", PYTHON_PROGRAMS)
def test_python(supervisor: Supervisor, name: str) -> None:
    succeed(
        supervisor, [PYTHON, "program.py"], EXPECTED[name], 60, files={"program.py": PYTHON_PROGRAMS[name].encode()}
    )


def test_standard_streams_by_their_names(supervisor: Supervisor) -> None:
    script = "cat /dev/stdin > /dev/stdout; echo err > /dev/stderr; echo y | tee /dev/fd/2"
    result = supervisor.execute(["sh", "-c", script], policy="strict", timeout=scaled(10), stdin=b"in ")
    assert (result.stdout, result.stderr) == (b"in y\n", b"err\ny\n")


def test_memfd(supervisor: Supervisor) -> None:
    """Anonymous files work where the kernel can keep them from being executed (6.3), and are denied elsewhere."""
    features = {feature.name: feature.available for feature in supervisor.host().features}
    script = "import os; m = os.memfd_create('m'); os.write(m, b'z'); print(os.pread(m, 1, 0).decode())"
    result = supervisor.execute([PYTHON, "-c", script], timeout=scaled(10))
    if features["memfd_noexec"]:
        assert (result.exit_code, result.stdout) == (0, b"z\n"), result.stderr
    else:
        assert result.exit_code == 1 and b"PermissionError" in result.stderr, result.stderr


def test_venv_with_numpy(supervisor: Supervisor) -> None:
    script = (
        f"{PYTHON} -m venv --without-pip --system-site-packages v && . v/bin/activate && "
        'python -c "import sys, numpy as n; print(sys.prefix, n.linalg.inv(n.eye(200) * 2).trace())"'
    )
    succeed(supervisor, ["bash", "-c", script], "/work/v 100.0", 60)


def test_node(supervisor: Supervisor) -> None:
    script = """
const {Worker} = require("worker_threads"), http = require("http"), fs = require("fs"), cp = require("child_process");
fs.writeFileSync("f", "file"); console.log(fs.readFileSync("f", "utf8"), cp.execSync("echo child").toString().trim());
const server = http.createServer((q, r) => r.end("served")).listen(0, "127.0.0.1", () => {
  http.get(server.address(), r => r.on("data", d => { console.log(d.toString()); server.close(); }));
});
new Worker("console.log('worker')", {eval: true});
require("crypto").pbkdf2("p", "s", 1000, 8, "sha1", (e, k) => console.log(k.length));
"""
    text = succeed(supervisor, ["node", "-e", script], "file child", 60, memory="1G")
    assert {"served", "worker", "8"} <= set(text.split())


def test_compile_and_run(supervisor: Supervisor) -> None:
    source = b'#include <stdio.h>\n#include <math.h>\nint main(int c, char **v) { printf("%.3f\\n", sqrt(c * 2.0)); return 0; }\n'
    script = "gcc -O2 -Wall -g -o prog main.c -lm && ./prog x && cp prog /tmp/ && /tmp/prog x y"
    succeed(supervisor, ["sh", "-c", script], "2.000\n2.449", 60, files={"main.c": source})


def test_git(supervisor: Supervisor) -> None:
    script = (
        "git init -q r && cd r && git config user.email a@b && git config user.name n && seq 100 > f && git add f && "
        "git commit -qm first && git gc -q && git clone -q . ../s && cd ../s && git log --format=%s && git status --short"
    )
    succeed(supervisor, ["bash", "-c", script], "first")


def test_tar_and_perl(supervisor: Supervisor) -> None:
    script = "mkdir d && seq 50 > d/f && ln -s f d/l && tar czf t.tgz d && rm -r d && tar xzpf t.tgz && wc -l < d/l"
    succeed(supervisor, ["bash", "-c", script], "50")
    program = "use IO::Socket; use POSIX; my $p = fork // die; exit 3 unless $p; waitpid $p, 0; print $? >> 8, join ',', map {$_*2} 1..3"
    succeed(supervisor, ["perl", "-we", program], "32,4,6")


def test_loopback_server_and_client_in_one_run(supervisor: Supervisor) -> None:
    script = (
        f"echo page > index.html; {PYTHON} -m http.server --bind 127.0.0.1 8000 2>/dev/null & "
        f'for i in $(seq 50); do {PYTHON} -c "import urllib.request as u; '
        "print(u.urlopen('http://127.0.0.1:8000/').read())\" 2>/dev/null && exit 0; sleep 0.1; done; exit 1"
    )
    succeed(supervisor, ["bash", "-c", script], "page", 60)
    ipv6 = (
        "import socket; s = socket.create_server(('::1', 0), family=socket.AF_INET6); "
        "c = socket.create_connection(s.getsockname()[:2]); print('six')"
    )
    succeed(supervisor, [PYTHON, "-c", ipv6], "six")


@pytest.mark.parametrize("policy", ["basic", "moderate", "strict", "paranoid"])
def test_every_policy_runs_something(supervisor: Supervisor, policy: str) -> None:
    limits: dict[str, Any] = {"timeout": None} if policy == "paranoid" else {}
    result = supervisor.execute(["python3", "-c", "print(6 * 7)"], policy=policy, **limits)
    assert (result.outcome, result.stdout) == ("exited", b"42\n"), (result.detail, result.stderr, result.violations)
