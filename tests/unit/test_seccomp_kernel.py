"""Compiled filters on the running kernel: what they stop, and that ordinary programs do not notice them."""

from __future__ import annotations

import errno
import functools
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from supervisor.policy import Syscalls
from supervisor.policy_file import PolicySet
from supervisor.shipped import shipped_policy_dir
from supervisor.syscall_sets import KNOWN_SYSCALLS, SYSCALL_SETS

if sys.platform != "linux" or os.uname().machine != "x86_64":
    pytest.skip("numbers here are those of x86-64 Linux", allow_module_level=True)

from supervisor.linux.seccomp import compile_filter, syscall_number

HIGH = 0xDEADBEEF_00000000
NEWUSER = 0x10000000

Confined = Callable[[str, str], subprocess.CompletedProcess[str]]


@functools.cache
def policies() -> PolicySet:
    return PolicySet(shipped_policy_dir())


def number(name: str) -> int:
    found = syscall_number(name)
    assert found is not None, name
    return found


PRELUDE = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]
def install(program):
    buffer = ctypes.create_string_buffer(program, len(program))
    fprog = Program(len(program) // 8, ctypes.addressof(buffer))
    assert libc.prctl(38, 1, 0, 0, 0) == 0
    assert libc.prctl(22, 2, ctypes.byref(fprog), 0, 0) == 0, os.strerror(ctypes.get_errno())
def call(nr, *args):
    ctypes.set_errno(0)
    result = libc.syscall(ctypes.c_long(nr), *[ctypes.c_ulong(a) for a in args])
    return ctypes.get_errno() if result == -1 else -result
install(open(sys.argv[1], "rb").read())
"""


@pytest.fixture
def confined(tmp_path: Path) -> Confined:
    """Runs a Python script under a policy's filter."""

    def run(policy: str, script: str) -> subprocess.CompletedProcess[str]:
        program = tmp_path / "filter"
        program.write_bytes(compile_filter(policies().get(policy)).program)
        return subprocess.run(
            ["/usr/bin/python3", "-I", "-c", PRELUDE + script, str(program)],
            capture_output=True, text=True, timeout=120, cwd=tmp_path, env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
        )  # fmt: skip

    return run


def test_kernel_refuses_with_errors(confined: Confined) -> None:
    cases = [
        ("socket", 16, 3, 0), ("socket", 38, 5, 0), ("socketpair", 30, 1, 0, 0), ("clone3", 0, 0), ("openat2", 0, 0),
        ("io_uring_setup", 1, 0), ("chroot", 0), ("fchmod", 1, 0o4755), ("personality", 0x0400000),
        ("sched_setscheduler", 0, 1, 0),
    ]  # fmt: skip
    expected = [
        errno.EAFNOSUPPORT, errno.EAFNOSUPPORT, errno.EAFNOSUPPORT, errno.ENOSYS, errno.ENOSYS,
        errno.ENOSYS, errno.EPERM, errno.EPERM, errno.EPERM, errno.EPERM,
    ]  # fmt: skip
    numbers = [(number(str(case[0])), *case[1:]) for case in cases]
    done = confined("strict", f"import json; print(json.dumps([call(*c) for c in {numbers!r}]))")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == expected


@pytest.mark.parametrize("call", [
    ("mount", 0, 0, 0, 0, 0), ("unshare", NEWUSER), ("setns", 0, 0), ("bpf", 0, 0, 0), ("ptrace", 0, 0, 0, 0),
    ("keyctl", 0), ("clone", NEWUSER | 17, 0, 0, 0, 0), ("ioctl", 0, 0x5412, 0), ("ioctl", 0, HIGH | 0x541C, 0),
    ("socket", 17, 3, 0), ("socket", 2, 3, 1), ("socket", HIGH | 2, 3, 1), ("perf_event_open", 0, 0, 0, 0, 0),
    ("userfaultfd", 0), ("open_by_handle_at", 0, 0, 0), ("init_module", 0, 0, 0), ("process_vm_writev", 0, 0, 0, 0, 0, 0),
])  # fmt: skip
def test_kernel_kills(confined: Confined, call: tuple[str, *tuple[int, ...]]) -> None:
    name, args = call[0], call[1:]
    done = confined("strict", f"print('before', flush=True); call({number(name)}, *{args!r}); print('after')")
    assert done.stdout == "before\n"
    assert done.returncode == -signal.SIGSYS


def test_kernel_agrees_on_a_filter_with_long_jumps(tmp_path: Path) -> None:
    names = sorted(KNOWN_SYSCALLS - SYSCALL_SETS["@start"])
    errors = itertools.cycle(sorted(errno.errorcode.values()))
    refused = {name: error for name, error in zip(names, errors, strict=False) if syscall_number(name) is not None}
    compiled = compile_filter(Syscalls(errno=tuple(refused.items())))
    assert compiled.instruction_count > 2 * 255
    program = tmp_path / "filter"
    program.write_bytes(compiled.program)
    script = f"print([call(nr) for nr in {[number(name) for name in refused]!r}])"
    done = subprocess.run(
        ["/usr/bin/python3", "-I", "-c", PRELUDE + script, str(program)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [getattr(errno, error) for error in refused.values()]


def test_kernel_kills_other_abis(confined: Confined, tmp_path: Path) -> None:
    x32 = f"print('before', flush=True); call({0x40000000 | 39}); print('after')"
    assert confined("strict", x32).returncode == -signal.SIGSYS
    ia32 = """
import mmap
code = mmap.mmap(-1, 4096, prot=7)
code.write(bytes([0xB8, 20, 0, 0, 0, 0xCD, 0x80, 0xC3]))  # mov eax, 20 (getpid); int 0x80; ret
run = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))
print("before", flush=True); run(); print("after")
"""
    done = confined("strict", ia32)
    assert (done.returncode, done.stdout) == (-signal.SIGSYS, "before\n")


ORDINARY = {
    "bash": "bash -c 'for i in 1 2 3; do echo $i; done | sort -r | head -1; x=$(seq 5 | wc -l); echo $x; sleep 0.01 & wait'",
    "coreutils": "mkdir d && cp -a /etc/hostname d/x && ln -s x d/y && mv d/x d/z && chmod 755 d/z && stat d/z && touch d/z "
                 "&& mkfifo d/f && install -m 644 d/z d/w && rm -r d && df . && timeout 5 nice true && nproc && id && sort /etc/passwd",
    "python": """python3 -c '
import threading, subprocess, multiprocessing, asyncio, sqlite3, socket, tempfile, os, select, mmap, signal
t = threading.Thread(target=print, args=("thread",)); t.start(); t.join()
assert subprocess.run(["true"]).returncode == 0
with multiprocessing.get_context("fork").Pool(2) as pool: assert pool.map(abs, [-1, 2]) == [1, 2]
multiprocessing.Semaphore(1).acquire()
async def main():
    server = await asyncio.start_server(lambda r, w: w.close(), "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    assert await reader.read() == b""
    writer.close()
    process = await asyncio.create_subprocess_exec("true")
    assert await process.wait() == 0
asyncio.run(main())
db = sqlite3.connect("x.db"); db.execute("create table t(a)"); db.commit()
socket.getaddrinfo("127.0.0.1", 80); socket.gethostname(); socket.if_nameindex if 0 else None
os.sched_setaffinity(0, os.sched_getaffinity(0)); os.memfd_create("x"); os.urandom(4); os.cpu_count()
'""",
    "spawn": """python3 -c 'import multiprocessing as m, os, sys; os.posix_spawn("/bin/true", ["true"], {}); os.wait(); sys.exit()'""",
    "perl": "perl -e 'my @a = map { $_ * 2 } 1..3; print `echo @a`; fork // die; wait'",
    "tar": "mkdir t && echo a > t/a && tar czf t.tgz t && rm -r t && tar xzf t.tgz && cat t/a",
    "gcc": "echo 'int main(){return 0;}' > a.c && gcc -O2 a.c -o a && ./a",
    "git": "git init -q r && cd r && echo a > a && git add a && git -c user.name=a -c user.email=a@b commit -qm a && git log --oneline",
    "node": "node -e 'const fs = require(\"fs\"), cp = require(\"child_process\"); fs.writeFileSync(\"n\", \"1\"); "
            "cp.execSync(\"true\"); new (require(\"worker_threads\").Worker)(\"1\", {eval: true}); "
            "const s = require(\"net\").createServer(c => c.end()).listen(0, \"127.0.0.1\", () => "
            "require(\"net\").connect(s.address().port, \"127.0.0.1\").on(\"close\", () => s.close()).resume()); "
            "require(\"dns\").lookup(\"127.0.0.1\", () => console.log(fs.readFileSync(\"n\", \"utf8\")))'",
}  # fmt: skip


@pytest.mark.parametrize("policy", ["strict", "moderate"])
@pytest.mark.parametrize("name", sorted(ORDINARY))
def test_ordinary_programs_run(confined: Confined, policy: str, name: str) -> None:
    tool = {"coreutils": "cp", "python": "python3", "spawn": "python3"}.get(name, name)
    if shutil.which(tool) is None:
        pytest.skip(f"no {tool} here")
    done = confined(policy, f"os.execv('/bin/bash', ['bash', '-ec', {ORDINARY[name]!r}])")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("program", [
    ["/bin/bash", "-c", "for i in 1 2; do echo hello | cat; done; x=$(ls / | wc -l); echo $x"],
    ["/usr/bin/python3", "-I", "-c", "import json, os, re, subprocess; print(json.dumps({'hello': os.getpid()}))"],
    ["/bin/ls", "-l", "/"],
    ["/usr/bin/sort", "/etc/passwd"],
    ["/usr/bin/python3", "-I", "-c", "import subprocess; print(subprocess.run(['echo', 'x'], capture_output=True))"],
    ["/usr/bin/python3", "-I", "-c", "import threading as t; x = t.Thread(target=print); x.start(); x.join()"],
])  # fmt: skip
def test_paranoid_still_runs_small_things(confined: Confined, program: list[str]) -> None:
    done = confined("paranoid", f"os.execv({program[0]!r}, {program!r})")
    assert done.returncode == 0, done.stderr
    assert done.stdout
