"""What this host can do, found by doing it: namespaces(7), cgroups(7), mount_setattr(2), seccomp(2), landlock(7).

What needs a process of its own is done by supervisor-probe, a small C program, since the daemon never forks. Control
groups' limits are tried here, by writing them into a cgroup made for the purpose. Nothing is left behind.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from supervisor.linux.features import CATALOGUE, describe
from supervisor.model import Feature, HostFeatures

PROBE_PROGRAM: Final = Path(__file__).resolve().parent.parent / "launcher" / "bin" / "supervisor-probe"
DEFAULT_STATE_DIR: Final = "/var/lib/supervisor"

_LIMITED = ("memory", "pids", "cpu")
_WANTED = (*_LIMITED, "io")
_PROGRAM_SECONDS = 30.0
_REMOVE_SECONDS = 0.5
_CPU_QUOTA = "50000"
_MEMORY = str(64 << 20)


@dataclass(frozen=True, slots=True)
class CgroupLayout:
    """Where control groups are. Paths are absolute and of the mounts' tops; "" and no key where nothing is mounted."""

    v2_mount: str
    v1_mounts: Mapping[str, str]
    controllers_v2: frozenset[str]


def cgroup_layout(
    mountinfo: str = "/proc/self/mountinfo", controllers: str = "/proc/cgroups", root: str = ""
) -> CgroupLayout:
    """Reads the mounts (proc_pid_mountinfo(5)) and cgroup.controllers. Of several mounts of a hierarchy the first that
    shows its root counts. The arguments are for tests: other files, and a directory put before the v2 mount.

    Raises OSError when /proc is not mounted.
    """
    known = {line.split()[0] for line in Path(controllers).read_text().splitlines()[1:] if line.strip()}
    v2, v1 = "", dict[str, str]()
    for line in Path(mountinfo).read_text(errors="surrogateescape").splitlines():
        left, _, right = line.partition(" - ")
        mount_root, mount_point = left.split()[3:5]
        kind, *_, options = right.split()
        if mount_root != "/":
            continue
        mount_point = _unescape(mount_point)
        if kind == "cgroup2":
            v2 = v2 or mount_point
        elif kind == "cgroup":
            for name in known.intersection(options.split(",")):
                v1.setdefault(name, mount_point)
    found = frozenset[str]()
    if v2:
        with contextlib.suppress(OSError):
            found = frozenset(Path(f"{root}{v2}/cgroup.controllers").read_text().split())
    return CgroupLayout(v2, dict(sorted(v1.items())), found)


def probe_host(
    state_dir: str | os.PathLike[str] = DEFAULT_STATE_DIR,
    layout: CgroupLayout | None = None,
    program: Path = PROBE_PROGRAM,
) -> HostFeatures:
    """Every feature of the catalogue but docker. Takes some tens of milliseconds; a probe that hangs, 2 s more.

    To be called before threads that must not see a child process start (gRPC's). Raises nothing for what the host lacks:
    that is a feature that is not available, with the host's words as its detail.
    """
    layout = layout or cgroup_layout()
    found: dict[str, Feature] = {}
    with contextlib.ExitStack() as stack:
        unified = ""
        if layout.v2_mount:
            try:
                stack.enter_context(_enabled(layout))
                unified = stack.enter_context(_temporary_cgroup(layout.v2_mount))
                found["cgroup2"] = describe("cgroup2", True, f"at {layout.v2_mount}")
            except OSError as error:
                found["cgroup2"] = describe("cgroup2", False, f"{layout.v2_mount}: {_words(error)}")
        else:
            found["cgroup2"] = describe("cgroup2", False, "not mounted")
        found |= _run_program(program, state_dir, unified)
        limits, through_v2 = _probe_limits(layout, unified)
        found |= limits
    found["btf"] = _probe_btf()
    found["memfd_noexec"] = _probe_memfd_noexec()
    landlock = re.fullmatch(r"ABI (\d+)", found["landlock"].detail)
    memory = re.search(r"^MemTotal:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    return HostFeatures(
        kernel=os.uname().release,
        cgroup="v2" if through_v2.issuperset(_LIMITED) else "hybrid",
        cpus=len(os.sched_getaffinity(0)),
        memory_bytes=int(memory[1]) << 10 if memory else 0,
        landlock_abi=int(landlock[1]) if landlock else 0,
        features={name: found[name] for name in CATALOGUE if name in found},
    )


_MFD_NOEXEC_SEAL: Final = 8

_PROGRAM_PROBES: Final = (
    "pid_namespace", "mount_namespace", "network_namespace", "ipc_namespace", "uts_namespace", "cgroup_namespace",
    "user_namespace", "new_mount_api", "idmapped_mounts_tmpfs", "idmapped_mounts_state", "tmpfs_quota", "openat2",
    "close_range", "pidfd", "clone_into_cgroup", "cgroup_kill", "cgroup_freeze", "io_accounting", "seccomp_filter",
    "seccomp_notify", "landlock", "keyrings", "task_io", "bpf", "ia32",
)  # fmt: skip


def _run_program(program: Path, state_dir: str | os.PathLike[str], cgroup: str) -> dict[str, Feature]:
    """The features that supervisor-probe tells; those that it does not tell are not available."""
    output, silence = b"", "the probe gave no answer"
    try:
        # close_fds=False lets subprocess use posix_spawn; the program closes what it inherits.
        output = subprocess.run(
            [str(program), os.fspath(state_dir), cgroup],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            close_fds=False,
            timeout=_PROGRAM_SECONDS,
            check=False,
        ).stdout
    except subprocess.TimeoutExpired as error:
        output, silence = error.stdout or b"", f"supervisor-probe did not end within {_PROGRAM_SECONDS:g} s"
    except OSError as error:
        silence = f"{program}: {_words(error)}; build it with `make setup`"
    found = {name: describe(name, False, silence) for name in _PROGRAM_PROBES}
    for line in output.decode(errors="replace").splitlines():
        name, _, answer = line.partition(" ")
        number, _, detail = answer.partition(" ")
        if name in found and number.isdigit():
            code = int(number)
            symbol = errno.errorcode.get(code, number)
            found[name] = describe(name, code == 0, f"{symbol}: {detail}" if code else detail)
    return found


def _probe_memfd_noexec() -> Feature:
    """memfd_create(2) with MFD_NOEXEC_SEAL, which came together with the sysctl that runs get."""
    try:
        os.close(os.memfd_create("supervisor-probe", os.MFD_CLOEXEC | _MFD_NOEXEC_SEAL))
    except OSError as error:
        return describe("memfd_noexec", False, _words(error))
    present = Path("/proc/sys/vm/memfd_noexec").exists()
    return describe("memfd_noexec", present, "MFD_NOEXEC_SEAL" if present else "no /proc/sys/vm/memfd_noexec")


# Feature -> (controller, v2 file, v1 file, value written, or None: the file is read).
_FILES: Final = (
    ("memory_limit", "memory", "memory.max", "memory.limit_in_bytes", _MEMORY),
    ("memory_peak", "memory", "memory.peak", "memory.max_usage_in_bytes", None),
    ("swap_accounting", "memory", "memory.swap.max", "memory.memsw.limit_in_bytes", _MEMORY),
    ("pids_limit", "pids", "pids.max", "pids.max", "17"),
    ("pids_peak", "pids", "pids.peak", "pids.peak", None),
    ("cpu_limit", "cpu", "cpu.max", "cpu.cfs_quota_us", _CPU_QUOTA),
)


def _probe_limits(layout: CgroupLayout, unified: str) -> tuple[dict[str, Feature], frozenset[str]]:
    """The features of `_FILES`, and the controllers whose limit went through v2. `unified` is an empty v2 cgroup."""
    found: dict[str, Feature] = {}
    through_v2: set[str] = set()
    with contextlib.ExitStack() as stack:
        v1: dict[str, str | OSError] = {}
        for name in _LIMITED:
            if name in layout.v1_mounts:
                try:
                    v1[name] = stack.enter_context(_temporary_cgroup(layout.v1_mounts[name]))
                except OSError as error:
                    v1[name] = error
        for feature, controller, v2_file, v1_file, value in _FILES:
            place = v1.get(controller)
            if unified and controller in layout.controllers_v2:
                detail, fault = f"cgroup v2, {v2_file}", _try_file(f"{unified}/{v2_file}", value)
                if not fault and feature.endswith("_limit"):
                    through_v2.add(controller)
            elif isinstance(place, str):
                detail = f"cgroup v1, {layout.v1_mounts[controller]}/*/{v1_file}"
                fault = _try_file(f"{place}/{v1_file}", value)
            else:
                detail, fault = f"cgroup controller {controller}", _words(place) if place else "nowhere mounted"
            found[feature] = describe(feature, not fault, f"{detail}: {fault}" if fault else detail)
    if "io" not in layout.controllers_v2:
        found["io_accounting"] = describe("io_accounting", False, "cgroup v2 does not hold the controller io")
    return found, frozenset(through_v2)


def _try_file(path: str, value: str | None) -> str:
    """Why `value` cannot be set (or, None, the file not read); empty when it can."""
    try:
        if value is not None:
            _write(path, value)
        held = Path(path).read_text().split()
    except OSError as error:
        return _words(error)
    return "" if held and value in (None, held[0]) else f"{value} was written, but {held} is read"


@contextlib.contextmanager
def _enabled(layout: CgroupLayout) -> Iterator[None]:
    """The controllers that runs use, switched on for children of the v2 top, and off again where they were off."""
    path = f"{layout.v2_mount}/cgroup.subtree_control"
    before = set(Path(path).read_text().split())
    added = []
    for name in _WANTED:
        if name in layout.controllers_v2 and name not in before:
            with contextlib.suppress(OSError):
                _write(path, f"+{name}")
                added.append(name)
    try:
        yield
    finally:
        for name in added:
            # EBUSY: someone has come to use it meanwhile.
            with contextlib.suppress(OSError):
                _write(path, f"-{name}")


@contextlib.contextmanager
def _temporary_cgroup(parent: str) -> Iterator[str]:
    """An empty cgroup below `parent`, removed at the end; a process that just died in it holds it for a moment."""
    path = f"{parent}/supervisor-probe-{os.getpid()}-{time.monotonic_ns()}"
    Path(path).mkdir(mode=0o755)
    try:
        yield path
    finally:
        deadline = time.monotonic() + _REMOVE_SECONDS
        while True:
            try:
                Path(path).rmdir()
                break
            except OSError:
                if time.monotonic() > deadline:
                    structlog.get_logger(__name__).warning("host.probe_cgroup_left", path=path, exc_info=True)
                    break
                with contextlib.suppress(OSError):
                    _write(f"{path}/cgroup.kill", "1")
                time.sleep(0.002)


def _probe_btf() -> Feature:
    try:
        with Path("/sys/kernel/btf/vmlinux").open("rb") as file:
            magic = file.read(2)
    except OSError as error:
        return describe("btf", False, f"/sys/kernel/btf/vmlinux: {_words(error)}")
    return describe("btf", magic in (b"\x9f\xeb", b"\xeb\x9f"), "/sys/kernel/btf/vmlinux")


def _write(path: str, text: str) -> None:
    # O_CREAT, which open(path, "w") has, is refused by the cgroup file systems of some kernels with another errno.
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def _words(error: OSError) -> str:
    return f"{errno.errorcode.get(error.errno or 0, str(error.errno))}: {error.strerror}"


def _unescape(text: str) -> str:
    """The octal escapes of mountinfo: space, tab, newline, backslash."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)
