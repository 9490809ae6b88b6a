"""The programs of test_probe_attacks that try to blind the probes; a line for each attempt, as hostile programs print."""

from __future__ import annotations

BLIND = """
import ctypes, json, os, signal, struct, sys
daemon, launchers, ids, flood, calls = json.loads(sys.argv[1])
outside, group = os.getuid(), os.getgid()
init = os.getppid()
libc = ctypes.CDLL(None, use_errno=True)

def call(number, *arguments):
    result = libc.syscall(number, *arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), "")
    return result

def attempt(name, act):
    try:
        print(name, "EFFECT", act(), flush=True)
    except OSError as error:
        print(name, "blocked", error.errno, flush=True)

def bpf(command, *words):
    words = [word & 0xffffffff for word in words]
    attributes = ctypes.create_string_buffer(struct.pack("=32I", *words, *[0] * (32 - len(words))), 128)
    return call(321, command, attributes, 128)

def write(path, text):
    fd = os.open(path, os.O_WRONLY)
    try: return os.write(fd, text.encode())
    finally: os.close(fd)

def groups(top, name):
    return [os.path.join(parent, name) for parent, _, names in os.walk(top) if name in names]

def each(act, things):
    done = []
    for thing in things:
        try:
            act(thing)
            done.append(thing)
        except OSError as error: last = error
    if not done:
        raise OSError(last.errno if things else 2, "")
    return done[:5]

def perf(kind, config, pid, cpu):
    attributes = ctypes.create_string_buffer(struct.pack("=IIQ", kind, 128, config) + bytes(112), 128)
    return call(298, attributes, pid, cpu, -1, 0)

def attempts(where):
    for name, command in (("program", 13), ("map", 14), ("link", 30)):
        attempt(f"{where}:bpf_{name}_by_id", lambda: each(lambda number: bpf(command, number), ids[name]))
        attempt(f"{where}:bpf_next_{name}", lambda: bpf({"program": 11, "map": 12, "link": 31}[name], 0))
    for fd in (-1, *range(64)):
        for name, command in (("detach_link", 34), ("update_link", 29), ("pin", 6)):
            try:
                bpf(command, fd) if name != "pin" else bpf(command, *struct.unpack("=2I", struct.pack("=Q", ctypes.addressof(pin))), fd)
                print(f"{where}:bpf_{name}", "EFFECT", fd)
            except OSError: pass
    attempt(f"{where}:bpf_detach_from_group", lambda: each(
        lambda top: [bpf(9, os.open(top, os.O_RDONLY), 0, kind) for kind in (8, 9, 10, 11, 14, 15, 2)],
        [os.path.dirname(path) for path in groups("/sys/fs/cgroup", "cgroup.kill")]))
    attempt(f"{where}:bpf_load", lambda: bpf(5, 1, 0))
    attempt(f"{where}:bpf_map", lambda: bpf(0, 2, 4, 4, 1))
    attempt(f"{where}:bpf_files", lambda: each(str, os.listdir("/sys/fs/bpf")))
    attempt(f"{where}:perf_everybody", lambda: perf(1, 1, -1, 0))
    attempt(f"{where}:perf_tracepoint", lambda: perf(2, 1, -1, 0))
    attempt(f"{where}:perf_kernel", lambda: perf(1, 1, 0, -1))
    for file in ("cgroup.procs", "cgroup.threads", "tasks"):
        attempt(f"{where}:move_to_{file}", lambda: each(lambda path: write(path, "0"), groups("/sys/fs/cgroup", file)))
    attempt(f"{where}:born_elsewhere", lambda: each(born_in, groups("/sys/fs/cgroup", "cgroup.procs")))
    attempt(f"{where}:group_of_its_own", lambda: each(
        lambda path: os.mkdir(os.path.dirname(path) + "/attack"), groups("/sys/fs/cgroup", "cgroup.procs")))
    for file, text in (("cgroup.kill", "1"), ("cgroup.freeze", "1"), ("cgroup.subtree_control", "+pids")):
        attempt(f"{where}:{file}", lambda: each(lambda path: write(path, text), groups("/sys/fs/cgroup", file)))
    for name, pid in [("daemon", daemon), *[("launcher", pid) for pid in launchers]]:
        for number in (9, 19):
            attempt(f"{where}:signal_{number}_{name}", lambda: os.kill(pid, number))
    others = [("daemon", daemon), ("init", init)]
    for name, pid in others:
        attempt(f"{where}:attach_{name}", lambda: call(101, 16, pid, 0, 0))
        attempt(f"{where}:seize_{name}", lambda: call(101, 0x4206, pid, 0, 0))
        attempt(f"{where}:memory_of_{name}", lambda: os.open(f"/proc/{pid}/mem", os.O_RDONLY))
        attempt(f"{where}:files_of_{name}", lambda: os.listdir(f"/proc/{pid}/fd"))
        attempt(f"{where}:file_of_{name}", lambda: [call(438, os.pidfd_open(pid), fd, 0) for fd in range(3, 4)])
        attempt(f"{where}:namespace_of_{name}", lambda: os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY))
    attempt(f"{where}:kernel_settings", lambda: each(lambda path: write(path, open(path).read()), [
        "/proc/sys/kernel/unprivileged_bpf_disabled", "/proc/sys/kernel/bpf_stats_enabled", "/proc/sys/net/core/bpf_jit_enable",
        "/proc/sys/kernel/perf_event_paranoid", "/proc/sys/kernel/ftrace_enabled"]))

def born_in(path):
    # clone3(2) with CLONE_INTO_CGROUP
    fd = os.open(os.path.dirname(path), os.O_RDONLY)
    try:
        words = struct.pack("=11Q", 0x200000000, 0, 0, 0, signal.SIGCHLD, 0, 0, 0, 0, 0, fd)
        pid = call(435, ctypes.create_string_buffer(words, 88), 88)
        if not pid:
            os._exit(0)
        os.waitpid(pid, 0)
    finally: os.close(fd)

def violate(name):
    try: open(f"/run/secrets/{name}")
    except OSError: pass

pin = ctypes.create_string_buffer(b"/tmp/pinned")
violate("before")
attempts("plain")
violate("plain")
# Root of a user namespace of its own, with a mount and a control group namespace.
print("namespaces", "made" if not libc.unshare(0x10000000 | 0x00020000 | 0x02000000) else ctypes.get_errno())
for file, text in (("setgroups", "deny"), ("uid_map", f"0 {outside} 1"), ("gid_map", f"0 {group} 1")):
    try: write(f"/proc/self/{file}", text)
    except OSError as error: print(file, error.errno)
print("capabilities", next(line.split()[1] for line in open("/proc/self/status") if line.startswith("CapEff")))
os.makedirs("/tmp/at", exist_ok=True)
for kind in ("cgroup2", "bpf", "tracefs", "debugfs"):
    print("mount", kind, libc.mount(b"x", b"/tmp/at", kind.encode(), 0, None), ctypes.get_errno())
    if kind == "bpf":
        attempt("mount:token", lambda: bpf(36, 0, os.open("/tmp/at", os.O_RDONLY)))
    for file in ("cgroup.procs", "cgroup.threads"):
        attempt(f"mount:{kind}:{file}", lambda: each(lambda path: write(path, "0"), [
            path for path in groups("/tmp/at", file) if os.path.dirname(path) != "/tmp/at"]))
    libc.umount2(b"/tmp/at", 2)
attempts("root")
violate("root")
flooders = [os.spawnv(os.P_NOWAIT, flood, [flood, calls, "20"]) for _ in range(8)]
violate("flood")
for pid in flooders: os.waitpid(pid, 0)
# The first of a pid namespace of its own, in no session of ours, undumpable, its death signal cleared.
print("numbers", libc.unshare(0x20000000))
child = os.fork()
if not child:
    libc.prctl(1, 0), libc.prctl(4, 0), os.setsid()
    violate("child")
    os._exit(0)
os.waitpid(child, 0)
violate("after")
print("over")
"""

OPEN_BY_RING = """
import ctypes, mmap, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
params = ctypes.create_string_buffer(120)
ring = libc.syscall(425, 4, params)
if ring < 0:
    sys.exit("no io_uring")
word = lambda n: struct.unpack_from("=I", params.raw, n)[0]
rings = mmap.mmap(ring, max(word(64) + 4 * word(0), word(100) + 16 * word(4)))
entries = mmap.mmap(ring, 64 * word(0), offset=0x10000000)
path = ctypes.create_string_buffer(b"/run/secrets/ring")
entries[:32] = struct.pack("=BBHiQQII", 18, 0, 0, -100, 0, ctypes.addressof(path), 0, 0)  # IORING_OP_OPENAT
struct.pack_into("=I", rings, word(44), 1)
libc.syscall(426, ring, 1, 1, 1, None, 0)
print(struct.unpack_from("=i", rings, word(100) + 8)[0])
"""
