"""Traces made by hand: a shell that starts `ls`, is told of a file, connects, and is killed."""

from __future__ import annotations

from typing import Any

from supervisor.client.result import TraceEvent

START = 1_795_527_598.0
AT_FDCWD = 0xFFFFFF9C
ANSI = "\x1b[31m"


def event(at: float, kind: str, pid: int, **fields: Any) -> TraceEvent:
    """`at`: seconds since START."""
    values: dict[str, Any] = {"time": START + at, "kind": kind, "pid": pid, "tid": pid, "comm": "", "syscall": ""}
    values |= {"abi": "", "args": (), "result": 0, "path": "", "address": "", "port": 0, "parent": 0, "argv": ()}
    return TraceEvent(**(values | {"detail": ""} | fields))


def call(at: float, pid: int, syscall: str, *args: int, **fields: Any) -> TraceEvent:
    """Registers that are not given hold what was left in them."""
    registers = (*args, *(0xDEAD,) * (6 - len(args)))
    return event(at, "syscall", pid, syscall=syscall, abi="x86-64", args=registers, **fields)


def file(at: float, pid: int, kind: str, syscall: str, path: str, **fields: Any) -> TraceEvent:
    return event(at, kind, pid, syscall=syscall, abi="x86-64", path=path, **fields)


def execute(at: float, pid: int, *argv: str, parent: int = 1) -> list[TraceEvent]:
    name = argv[0].rpartition("/")[2]
    return [
        event(at, "exec", pid, comm=name, path=f"/usr/bin/{name}", argv=argv, parent=parent),
        call(at + 2e-6, pid, "execve", 0, 0, 0),
    ]


def fork(at: float, pid: int, child: int, detail: str = "process") -> TraceEvent:
    return event(at, "fork", pid, result=child, detail=detail)


def end(at: float, pid: int, result: int = 0) -> TraceEvent:
    how = f"killed by signal {-result}" if result < 0 else f"exited with {result}"
    return event(at, "exit", pid, result=result, detail=f"process {how}")


def sample() -> list[TraceEvent]:
    return [
        *execute(0.0, 2, "sh", "-c", f"ls {ANSI}\n"),
        call(0.001, 2, "mmap", 0, 8192, 3, 0x22, 0xFFFFFFFF, 0, result=0x7F0000001000),
        fork(0.002, 2, 3),
        call(0.0021, 2, "vfork", result=3),
        *execute(0.003, 3, "ls", "/root", parent=2),
        call(0.004, 3, "openat", AT_FDCWD, 0x55550000, 0o2000000, 0, result=3),
        file(0.004002, 3, "open", "openat", "/etc/ld.so.cache", result=3, detail="O_RDONLY"),
        call(0.005, 3, "openat", AT_FDCWD, 0x55550000, 0o2000301, 0o644, result=-2),
        file(0.005002, 3, "open", "openat", f"/no{ANSI}", result=-2, detail="O_WRONLY|O_CREAT|O_EXCL"),
        call(0.006, 3, "rename", 1, 2, result=0),
        file(0.006002, 3, "rename", "rename", "old", detail="new"),
        call(0.007, 3, "exit_group", 2),
        end(0.007, 3, 2),
        fork(0.008, 2, 4, "thread"),
        event(0.009, "connect", 2, tid=4, address="192.0.2.1", port=80, detail="tcp"),
        call(0.5, 2, "connect", 5, 0x7FFF0000, 16, tid=4, result=-111),
        event(0.6, "connect", 2, address="2001:db8::1", port=443, detail="tcp, denied", result=-1),
        call(0.600002, 2, "connect", 6, 0x7FFF0000, 28, result=-1),
        call(0.7, 2, "nanosleep", 1, 2, result=-516),
        event(0.8, "exit", 2, tid=4, result=-9, detail="thread killed by signal 9"),
        end(0.9, 2, -9),
    ]
