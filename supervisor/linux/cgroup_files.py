"""The files of a control group, v2 and v1: cgroups(7), Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/.

Modelled by cgroupspy's typed descriptors: its own kinds, and ours on the same base for v2, which it lacks.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from cgroupspy.interfaces import BaseFileInterface, IntegerFile

_PERIOD_US = 100_000


def quota_us(cpus: float) -> int:
    """CPU time for each period of 100 ms; the kernel takes no quota below 1 ms."""
    return max(1000, round(cpus * _PERIOD_US))


class MaxFile(BaseFileInterface):  # type: ignore[misc]  # cgroupspy has no types
    """A v2 limit: an integer, or None for "max"."""

    def sanitize_get(self, value: str) -> int | None:
        return None if value == "max" else int(value)

    def sanitize_set(self, value: int | None) -> str:
        return "max" if value is None else str(value)


class BandwidthFile(BaseFileInterface):  # type: ignore[misc]
    """cpu.max: CPUs as a fraction of one, or None."""

    def sanitize_set(self, value: float | None) -> str:
        quota = "max" if value is None else str(quota_us(value))
        return f"{quota} {_PERIOD_US}"


class KeyedFile(BaseFileInterface):  # type: ignore[misc]
    """Lines of "KEY NUMBER", as in *.events and cpu.stat."""

    readonly = True

    def sanitize_get(self, value: str) -> dict[str, int]:
        pairs = (line.split() for line in value.splitlines())
        return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2}


class IoStatFile(BaseFileInterface):  # type: ignore[misc]
    """io.stat, summed over devices: {"rbytes": n, "wbytes": n, ...}."""

    readonly = True

    def sanitize_get(self, value: str) -> dict[str, int]:
        totals: dict[str, int] = {"rbytes": 0, "wbytes": 0}
        for pair in value.split():
            key, _, number = pair.partition("=")
            if number.isdigit():
                totals[key] = totals.get(key, 0) + int(number)
        return totals


@dataclass(slots=True)
class Group:
    """An open cgroup directory: what cgroupspy's descriptors read and write through. Raises OSError."""

    directory: int

    def get_property(self, filename: bytes) -> str:
        fd = os.open(filename, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self.directory)
        try:
            return os.read(fd, 65536).decode().strip()
        finally:
            os.close(fd)

    def set_property(self, filename: bytes, value: object) -> None:
        fd = os.open(filename, os.O_WRONLY | os.O_CLOEXEC, dir_fd=self.directory)
        try:
            os.write(fd, str(value).encode())
        finally:
            os.close(fd)


class UnifiedGroup(Group):
    """A group of the v2 tree."""

    memory_max: Any = MaxFile("memory.max")
    memory_swap_max: Any = MaxFile("memory.swap.max")
    memory_peak = IntegerFile("memory.peak", readonly=True)
    memory_events = KeyedFile("memory.events")
    pids_max: Any = MaxFile("pids.max")
    pids_peak = IntegerFile("pids.peak", readonly=True)
    pids_events = KeyedFile("pids.events")
    cpu_max: Any = BandwidthFile("cpu.max")
    cpu_stat = KeyedFile("cpu.stat")
    io_stat = IoStatFile("io.stat")
    events = KeyedFile("cgroup.events")


class MemoryGroup(Group):
    """A group of the v1 memory hierarchy."""

    limit = IntegerFile("memory.limit_in_bytes")
    limit_with_swap = IntegerFile("memory.memsw.limit_in_bytes")
    peak = IntegerFile("memory.max_usage_in_bytes")
    limit_hits = IntegerFile("memory.failcnt")
    limit_with_swap_hits = IntegerFile("memory.memsw.failcnt")
    oom_control = KeyedFile("memory.oom_control")
    sockets_limit = IntegerFile("memory.kmem.tcp.limit_in_bytes")


class PidsGroup(Group):
    """A group of the v1 pids hierarchy."""

    limit: Any = MaxFile("pids.max")
    peak = IntegerFile("pids.peak", readonly=True)
    events = KeyedFile("pids.events")


class CpuGroup(Group):
    """A group of the v1 cpu hierarchy."""

    quota_us = IntegerFile("cpu.cfs_quota_us")
    period_us = IntegerFile("cpu.cfs_period_us")
    stat = KeyedFile("cpu.stat")
