"""What a supervisor could leave behind on a host, taken before and after: `before.diff()` names what is still there.

    before = Snapshot.take(pids=[daemon.pid], directories=[state])
    ...
    assert not before.diff()

Another supervisor may be at work on the same machine: what belongs to a living one that this test did not start is left
out where that can be seen, and only what stays through the whole settling time is reported.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

SETTLE_SECONDS = 5.0 * float(os.environ.get("SUPERVISOR_TIME_FACTOR", "1"))
"""How long the kernel, and a daemon tearing down, may take until a difference counts."""

RUN_UID_MIN = 65536
"""Keys of uids from here on belong to runs; below are the host's own users."""

_LAUNCHER_COMM = "supervisor-laun"
_GROUP = re.compile(r"(?:^|/)supervisor(?:/|$)")
_OUR_DIRECTORIES = re.compile(r"supervisor-(?!test-|vm-|proto-|demo-|bench-)")
_NUMBERED = re.compile(r"\[?\d+\]?$")


@dataclass(frozen=True, slots=True)
class Process:
    pid: int
    parent: int
    state: str
    comm: str
    groups: tuple[str, ...]

    @property
    def is_launcher(self) -> bool:
        return self.comm.startswith(_LAUNCHER_COMM)

    @property
    def is_supervised(self) -> bool:
        return self.is_launcher or any(_GROUP.search(group) for group in self.groups)


def read_process(pid: int) -> Process | None:
    """None when it is gone. proc_pid_stat(5): comm may hold anything, so the fields are counted from the last ")"."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
        groups = Path(f"/proc/{pid}/cgroup").read_text(errors="replace").splitlines()
    except OSError:
        return None
    head, _, tail = stat.rpartition(")")
    state, parent = tail.split()[:2]
    return Process(
        pid, int(parent), state, head.partition("(")[2], tuple(line.split(":", 2)[2] for line in groups if ":" in line)
    )


def all_processes() -> dict[int, Process]:
    """Every process but kernel threads, by pid."""
    found = (read_process(int(name)) for name in os.listdir("/proc") if name.isdigit())
    return {process.pid: process for process in found if process is not None and process.parent != 2}


def is_foreign(process: Process, processes: Mapping[int, Process]) -> bool:
    """Whether a living supervisor that is neither ours nor below this process owns it.

    Orphans are never foreign: nobody is left to end them.
    """
    below_launcher = False
    current = process
    while True:
        if current.pid == os.getpid():
            return False
        below_launcher = below_launcher or current.is_launcher
        parent = processes.get(current.parent)
        if parent is None or parent.pid == 1:
            return below_launcher and not current.is_launcher
        current = parent


def _supervised(processes: Mapping[int, Process]) -> list[Process]:
    """Ours; a zombie that init has adopted is init's to reap."""
    return [
        one
        for one in processes.values()
        if one.is_supervised and not (one.state == "Z" and one.parent == 1) and not is_foreign(one, processes)
    ]


def _describe(process: Process) -> str:
    # Not its state: one that sleeps now and ran before is the same.
    return f"process {process.pid} ({process.comm})"


def _links(directory: str) -> dict[str, str]:
    found = {}
    with contextlib.suppress(OSError):
        for name in os.listdir(directory):
            with contextlib.suppress(OSError):
                found[name] = os.readlink(f"{directory}/{name}")
    return found


def _namespaces(processes: Iterable[Process]) -> Iterator[str]:
    own = set(_links("/proc/self/ns").values())
    for process in processes:
        for target in set(_links(f"/proc/{process.pid}/ns").values()) - own:
            yield f"namespace {target}"


def _cgroups(instances: Collection[str] | None) -> Iterator[str]:
    """The directories below every hierarchy's supervisor/."""
    with open("/proc/self/mountinfo") as file:
        mounts = [(line.split()[4], line.split(" - ")[1].split()[0]) for line in file]
    for mount, kind in mounts:
        if kind not in ("cgroup", "cgroup2"):
            continue
        for top in (
            *Path(mount).glob("supervisor"),
            *Path(mount).glob("*/supervisor"),
            *Path(mount).glob("*/*/supervisor"),
        ):
            for directory, names, _ in os.walk(top):
                if instances is not None and Path(directory) == top:
                    names[:] = [name for name in names if name in instances]
                for name in names:
                    yield f"cgroup {directory}/{name}"


def _mounts(pids: Iterable[int]) -> Iterator[str]:
    """Field numbers of proc_pid_mountinfo(5); ids are left out, the kernel uses them again."""
    for pid in (os.getpid(), *pids):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/mountinfo").read_text(errors="replace").splitlines():
                fields = line.split()
                yield f"mount in process {pid}: {fields[3]} on {fields[4]} ({line.partition(' - ')[2].split()[0]})"


def _descriptors(pids: Iterable[int]) -> Iterator[str]:
    """A descriptor's kind and its count, so that other numbers for the same things are no difference."""
    for pid in pids:
        kinds = Counter(_NUMBERED.sub("", target) for target in _links(f"/proc/{pid}/fd").values())
        for kind, count in kinds.items():
            for number in range(1, count + 1):
                yield f"descriptor of process {pid}: {kind} (number {number} of its kind)"


def _files(directories: Iterable[Path]) -> Iterator[str]:
    for name in os.listdir("/tmp"):
        if _OUR_DIRECTORIES.match(name):
            yield f"file /tmp/{name}"
    for directory in (Path("/dev/shm"), *directories):
        for parent, folders, names in os.walk(directory):
            for name in (*folders, *names):
                yield f"file {parent}/{name}"


def _ipc() -> Iterator[str]:
    """System V objects; POSIX queues and shared memory are files, and of a run's own IPC namespace or tmpfs."""
    for kind in ("shm", "sem", "msg"):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/sysvipc/{kind}").read_text().splitlines()[1:]:
                key, number = line.split()[:2]
                yield f"System V {kind} {number} (key {key})"


def _keys() -> Iterator[str]:
    """Keys of runs' uids, proc_keys(5). Those that are dead, revoked or expired only wait for the collector."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/keys").read_text(errors="replace").splitlines():
            serial, flags, _, expiry, _, uid, _, kind, *description = line.split()
            if int(uid) >= RUN_UID_MIN and not set("RD") & set(flags) and expiry != "expd":
                yield f"key {serial} of uid {uid}: {kind} {' '.join(description)}"


def _interfaces() -> Iterator[str]:
    for name in _links("/sys/class/net"):
        yield f"network interface {name}"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What there is, one line for each thing. The arguments of `take` are kept, to take the same again."""

    things: frozenset[str]
    pids: tuple[int, ...]
    directories: tuple[Path, ...]
    instances: frozenset[str] | None

    @classmethod
    def take(
        cls,
        pids: Iterable[int] = (),
        directories: Iterable[str | os.PathLike[str]] = (),
        instances: Iterable[str] | None = None,
    ) -> Snapshot:
        """Looks now. `pids`: whose descriptors and mounts to count, too; `directories`: whose files, recursively.

        `instances`: count cgroups of these daemons only (the names below supervisor/); None: of every one.
        """
        pids = tuple(pids)
        paths = tuple(Path(directory) for directory in directories)
        chosen = None if instances is None else frozenset(instances)
        supervised = _supervised(all_processes())
        things = {
            *map(_describe, supervised),
            *_namespaces(supervised),
            *_cgroups(chosen),
            *_mounts(pids),
            *_descriptors(pids),
            *_files(paths),
            *_ipc(),
            *_keys(),
            *_interfaces(),
        }
        return cls(frozenset(things), pids, paths, chosen)

    def again(self) -> Snapshot:
        """The same look, now."""
        return Snapshot.take(self.pids, self.directories, self.instances)

    def diff(
        self, after: Snapshot | None = None, settle_seconds: float = SETTLE_SECONDS, stays: str | None = None
    ) -> list[str]:
        """What is there now, was not there in this one, and does not go away within `settle_seconds`; sorted.

        What has `stays` in its name may.
        """
        deadline = time.monotonic() + settle_seconds
        left = (after or self.again()).things - self.things
        left = {thing for thing in left if stays is None or stays not in thing}
        while left and time.monotonic() < deadline:
            time.sleep(0.1)
            left &= self.again().things
        return sorted(left)


_BPF_CALL = 321
_BPF_NEXT = {"program": 11, "map": 12, "link": 31}
"""bpf(2): the commands that give the next id of a kind."""


def bpf_objects() -> frozenset[str]:
    """Every eBPF program, map and link that the kernel holds, by id. Other supervisors' are among them."""
    libc = ctypes.CDLL(None, use_errno=True)
    found = set()
    for kind, get_next in _BPF_NEXT.items():
        number = 0
        while True:
            attributes = (ctypes.c_uint32 * 3)(number, 0, 0)
            if libc.syscall(_BPF_CALL, get_next, attributes, ctypes.sizeof(attributes)):
                break
            number = attributes[1]
            found.add(f"bpf {kind} {number}")
    return frozenset(found)
