"""The features of a host that the design uses: what is lost without each, and the remedy.

Names are fixed: policies, plans, results (`Enforcement.missing`) and `doctor` speak of features by them.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from supervisor.model import Feature

_ROOT = "run as root with CAP_SYS_ADMIN, and outside a container"
_CONTROLLERS = "mount the controller's v1 hierarchy, or boot with systemd.unified_cgroup_hierarchy=1"


def _namespace(name: str, option: str, loss: str) -> tuple[str, tuple[str, str]]:
    return f"{name}_namespace", (loss, f"use a kernel with {option}; {_ROOT}")


CATALOGUE: Final[Mapping[str, tuple[str, str]]] = MappingProxyType(
    dict(
        (
            _namespace("pid", "CONFIG_PID_NS", "runs would see and signal the host's processes: no policy but `none` and `basic`"),
            _namespace("mount", "CONFIG_NAMESPACES", "runs would see the host's files: no policy but `none` and `basic`"),
            _namespace("network", "CONFIG_NET_NS", "--net none is impossible: no policy but `none` and `basic`"),
            _namespace("ipc", "CONFIG_IPC_NS", "runs would share the host's SysV and POSIX IPC: no policy but `none` and `basic`"),
            _namespace("uts", "CONFIG_UTS_NS", "runs would share the host's name: no policy but `none` and `basic`"),
            _namespace("cgroup", "CONFIG_CGROUPS", "runs would see the host's cgroup paths: no policy but `none` and `basic`"),
            _namespace("user", "CONFIG_USER_NS and user.max_user_namespaces above 0", "no `strict` and no `paranoid`"),
            ("new_mount_api", ("a run's root cannot be built: no policy but `none` and `basic`", "use Linux 5.12 or later")),
            ("openat2", ("mount targets cannot be resolved safely inside a run's root", "use Linux 5.6 or later")),
            ("close_range", ("the host's descriptors are closed one by one", "use Linux 5.9 or later")),
            ("pidfd", ("a run's processes cannot be waited for without races: no native runs", "use Linux 5.4 or later")),
            ("clone_into_cgroup", ("a run would start outside its limits: no native runs", "use Linux 5.7 or later, with cgroup v2 mounted")),
            ("cgroup2", ("runs have no identity, kill or freeze: no native runs", "mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified")),
            ("cgroup_kill", ("a run's whole tree cannot be killed at once: no native runs", "use Linux 5.14 or later, with cgroup v2 mounted")),
            ("cgroup_freeze", ("a run cannot be stopped as a whole before it is looked at", "use Linux 5.2 or later, with cgroup v2 mounted")),
            ("memory_limit", ("no memory limit: no native runs", _CONTROLLERS)),
            ("pids_limit", ("no limit on processes: no native runs", _CONTROLLERS)),
            ("cpu_limit", ("no share of CPUs can be set: no native runs", f"use a kernel with CONFIG_CFS_BANDWIDTH; {_CONTROLLERS}")),
            ("memory_peak", ("usage.memory_peak_bytes is null", "use Linux 5.19 or later for cgroup v2")),
            ("pids_peak", ("usage.pids_peak is null", "use Linux 6.1 or later")),
            ("io_accounting", ("I/O is counted per process (io_read_bytes, io_write_bytes), not per device", "boot with systemd.unified_cgroup_hierarchy=1: v1 blkio does not count what is written back")),
            ("swap_accounting", ("the memory limit does not bound swap", "boot with swapaccount=1 and a kernel with CONFIG_SWAP, or turn swap off")),
            ("idmapped_mounts_tmpfs", ("files in a tmpfs of a run belong to the run's host uid", "use Linux 6.3 or later")),
            ("idmapped_mounts_state", ("files in a mounted directory on the state directory's file system belong to the run's host uid, not to the caller", "put the directory on ext4, xfs or btrfs, with Linux 5.12 or later")),
            ("tmpfs_quota", ("a run could fill memory with files", "use a kernel with CONFIG_TMPFS")),
            ("seccomp_filter", ("no system call is denied: no policy but `none` and `basic`", "use a kernel with CONFIG_SECCOMP_FILTER")),
            ("seccomp_notify", ("a denied system call is refused but not recorded as a violation", "use Linux 5.0 or later")),
            ("memfd_noexec", ("memfd_create(2) is denied to runs, since what it makes could be executed", "use Linux 6.3 or later")),
            ("landlock", ("no second check of file access behind the mount namespace", "use Linux 5.13 or later, booted with lsm=landlock,...")),
            ("keyrings", ("none: this kernel has no keys that a run could reach", "none needed")),
            ("task_io", ("I/O of single processes is not seen", "use a kernel with CONFIG_TASK_IO_ACCOUNTING")),
            ("ia32", ("none: 32-bit programs do not run here", "none needed")),
            ("btf", ("eBPF probes cannot be loaded as they ship", "use a kernel with CONFIG_DEBUG_INFO_BTF")),
            ("bpf", ("no eBPF: no traces and no address filter", "use a kernel with CONFIG_BPF_SYSCALL; run as root with CAP_BPF")),
            ("trace", ("runs are not traced: neither counts of their system calls nor their processes", "use a kernel with CONFIG_DEBUG_INFO_BTF, as root with CAP_BPF and CAP_PERFMON; build with clang and libbpf-dev, run with libbpf1")),
            ("cgroup_bpf", ("--net filtered is impossible, and no address can be denied", "use Linux 5.12 or later with CONFIG_CGROUP_BPF; as for trace")),
            ("bpf_lsm", ("no file can be denied by a rule, and rules that kill for one act when the call has been made", "use Linux 6.1 or later with CONFIG_BPF_LSM, booted with bpf in lsm=; as for trace")),
            ("docker", ("the docker backend cannot be used; native runs need none", "start dockerd, or set DOCKER_HOST")),
        )
    )
)  # fmt: skip
"""Feature name -> (loss, remedy), in the order in which `doctor` shows them."""

REQUIRED: Final = frozenset(
    {
        "pid_namespace", "mount_namespace", "network_namespace", "ipc_namespace", "uts_namespace", "cgroup_namespace",
        "user_namespace", "new_mount_api", "openat2", "close_range", "pidfd", "clone_into_cgroup", "cgroup2", "cgroup_kill",
        "memory_limit", "pids_limit", "cpu_limit", "tmpfs_quota", "seccomp_filter",
    }
)  # fmt: skip
"""What the default policy, `strict`, cannot do without."""


def describe(name: str, available: bool, detail: str = "") -> Feature:
    """The feature `name` as found, with the catalogue's loss and remedy (what they would be, where it is there)."""
    loss, remedy = CATALOGUE[name]
    return Feature(name, available, detail, loss, remedy)
