"""A trace as events of the Open Cybersecurity Schema Framework, for security data lakes: https://schema.ocsf.io/1.7.0

Process Activity for programs and processes, File System Activity and Network Activity for calls whose path or address is in
the trace, Kernel Activity (Invoke) for all other calls.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from supervisor.client.calls import UNIX, Entry, call_text, endpoint_text, paired
from supervisor.client.linux_words import signal_name
from supervisor.client.process_tree import Process, ProcessTree
from supervisor.client.result import TraceEvent

SCHEMA_VERSION = "1.7.0"

_FILE, _KERNEL, _PROCESS, _NETWORK = 1001, 1003, 1007, 4001
_CLASSES: Mapping[int, tuple[str, int, str]] = {
    _FILE: ("File System Activity", 1, "System Activity"),
    _KERNEL: ("Kernel Activity", 1, "System Activity"),
    _PROCESS: ("Process Activity", 1, "System Activity"),
    _NETWORK: ("Network Activity", 4, "Network Activity"),
}
_OTHER = 99
_FILE_ACTIVITIES: Mapping[tuple[int, str], str] = {
    (1, "Create"): "creat mkdir mkdirat mknod mknodat link linkat symlink symlinkat",
    (3, "Update"): "truncate",
    (4, "Delete"): "unlink unlinkat rmdir",
    (5, "Rename"): "rename renameat renameat2",
    (6, "Set Attributes"): "utime utimes utimensat futimesat setxattr lsetxattr removexattr lremovexattr setxattrat "
    "removexattrat file_setattr",
    (7, "Set Security"): "chmod fchmodat fchmodat2 chown lchown fchownat",
    (
        8,
        "Get Attributes",
    ): "stat lstat newfstatat statx statfs access faccessat faccessat2 readlink readlinkat getxattr "
    "lgetxattr listxattr llistxattr getxattrat listxattrat file_getattr",
    (12, "Mount"): "mount move_mount",
    (13, "Unmount"): "umount2",
    (14, "Open"): "open openat openat2 open_by_handle_at open_tree",
}
_FILE_CALLS = {name: activity for activity, names in _FILE_ACTIVITIES.items() for name in names.split()}
_NETWORK_CALLS = {
    "connect": (1, "Open"),
    "accept": (1, "Open"),
    "accept4": (1, "Open"),
    "listen": (7, "Listen"),
    **dict.fromkeys(("send", "sendto", "sendmsg", "sendmmsg", "recvfrom", "recvmsg"), (6, "Traffic")),
}
_INBOUND = {"bind", "accept", "accept4", "listen", "recvfrom", "recvmsg"}
_PENDING = {"EINPROGRESS", "EALREADY"}


def to_ocsf(
    events: Iterable[TraceEvent], *, run_id: str = "", host: str = "", version: str = ""
) -> Iterator[dict[str, Any]]:
    """One event for each that the trace has, details joined to their calls; memory goes with the processes."""
    writer = _Writer(run_id, host, version)
    for number, entry in enumerate(paired(events)):
        yield writer.convert(entry, number)


class _Writer:
    def __init__(self, run_id: str, host: str, version: str) -> None:
        self._run_id = run_id
        self._device = {"type_id": 0, "type": "Unknown", "hostname": host or "unknown"}
        product = {"name": "Supervisor", "vendor_name": "Supervisor"} | ({"version": version} if version else {})
        self._metadata: dict[str, Any] = {"version": SCHEMA_VERSION, "product": product, "log_name": "trace"}
        if run_id:
            self._metadata["correlation_uid"] = run_id
        self._tree = ProcessTree(keep=False)

    def convert(self, entry: Entry, sequence: int) -> dict[str, Any]:
        event, executed = entry.event, entry.executes
        known = self._tree.get(event.pid)
        before = self._process(known, event) if known is not None else None
        process = self._tree.add(executed or event)
        if executed is not None:
            made = self._executed(process, event, before)
        elif event.kind == "fork":
            made = self._forked(process, event)
        elif event.kind == "exit":
            made = self._ended(process, event)
        else:
            made = self._called(process, entry)
        made["metadata"] = {**self._metadata, "sequence": sequence, **made.get("metadata", {})}
        return made

    def _base(
        self, event: TraceEvent, class_uid: int, activity: tuple[int, str], actor: dict[str, Any]
    ) -> dict[str, Any]:
        class_name, category, category_name = _CLASSES[class_uid]
        number, name = activity
        return {
            "activity_id": number,
            "activity_name": name,
            "category_uid": category,
            "category_name": category_name,
            "class_uid": class_uid,
            "class_name": class_name,
            "type_uid": class_uid * 100 + number,
            "type_name": f"{class_name}: {name}",
            "severity_id": 1,
            "severity": "Informational",
            "time": int(event.time * 1000),
            "status_id": 1,
            "status": "Success",
            "actor": {"process": actor},
            "device": self._device,
        }

    def _process(self, process: Process, event: TraceEvent | None = None) -> dict[str, Any]:
        """The object `process`; the thread is `event`'s, if it is not the first one."""
        made: dict[str, Any] = {"pid": process.pid, "created_time": int(process.start * 1000)}
        if process.name:
            made["name"] = process.name
        if process.program:
            made["path"] = process.program
            made["file"] = _file(process.program, 8, "Executable File")
        if process.argv:
            made["cmd_line"] = process.command_line
        if process.parent_pid:
            made["parent_process"] = {"pid": process.parent_pid}
        if event is not None and event.tid not in (0, process.pid):
            made["ptid"] = event.tid
        if self._run_id:
            made["sandbox"] = self._run_id
        return made

    def _executed(self, process: Process, event: TraceEvent, before: dict[str, Any] | None) -> dict[str, Any]:
        actor = before or {"pid": process.parent_pid or process.pid}
        made = self._base(event, _PROCESS, (1, "Launch"), actor)
        return made | {"launch_type_id": 3, "launch_type": "Exec", "process": self._process(process)}

    def _forked(self, process: Process, event: TraceEvent) -> dict[str, Any]:
        actor = self._process(process, event)
        child = self._tree.get(event.result)
        if event.detail == "thread" or child is None:
            made = self._base(event, _PROCESS, (_OTHER, "Launch Thread"), actor)
            return made | {"process": self._process(process) | {"ptid": event.result}}
        made = self._base(event, _PROCESS, (1, "Launch"), actor)
        return made | {"launch_type_id": 2, "launch_type": "Fork", "process": self._process(child)}

    def _ended(self, process: Process, event: TraceEvent) -> dict[str, Any]:
        shown = self._process(process, event)
        whole = event.tid in (0, event.pid)
        made = self._base(event, _PROCESS, (2, "Terminate") if whole else (_OTHER, "Terminate Thread"), shown)
        if event.result < 0:
            made["status_detail"] = f"killed by {signal_name(-event.result)}"
        # As a shell has it, where a signal ended the process.
        return made | {"process": shown, "exit_code": event.result if event.result >= 0 else 128 - event.result}

    def _called(self, process: Process, entry: Entry) -> dict[str, Any]:
        event, actor = entry.event, self._process(process, entry.event)
        call = event.syscall or event.kind
        paths, endpoint = entry.paths, entry.endpoint
        if endpoint is not None:
            made = self._base(event, _NETWORK, _network_activity(call, entry.error), actor)
            made |= _network(call, *endpoint, protocol=_protocol(entry))
        elif paths:
            made = self._base(event, _FILE, _file_activity(call, entry), actor)
            made["file"] = _file(paths[0])
            if len(paths) > 1:
                made["file_result"] = _file(paths[1])
        else:
            made = self._base(event, _KERNEL, (4, "Invoke"), actor)
            made["kernel"] = {"name": call, "type_id": 2, "type": "System Call", "system_call": call}
        if entry.error:
            if any(one.address and one.detail.endswith("denied") for one in (event, *entry.details)):
                made["status_detail"] = "denied by the run's policy"
            made |= {"status_id": 2, "status": "Failure", "status_code": entry.error}
        elif not event.syscall:  # what came of an address that was allowed is its call's to say
            made |= {"status_id": 0, "status": "Unknown"}
        made["message"] = call_text(entry, endpoint_text, 1000)
        made["unmapped"] = {
            "syscall": call,
            "abi": event.abi,
            "args": list(map(hex, event.args)),
            "result": event.result,
        }
        return made


def _file_activity(call: str, entry: Entry) -> tuple[int, str]:
    """What is opened with O_CREAT and O_EXCL, and is, has been created."""
    words = {word for event in entry.details for word in event.detail.split("|")}
    if {"O_CREAT", "O_EXCL"} <= words and not entry.error:
        return 1, "Create"
    return _FILE_CALLS.get(call, (_OTHER, call))


def _protocol(entry: Entry) -> str:
    """tcp, udp: the first word that the event with the address says."""
    events = (*entry.details, entry.event)
    return next(
        (one.detail.partition(",")[0] for one in events if (one.address or one.detail == UNIX) and one.detail), ""
    )


def _network_activity(call: str, error: str) -> tuple[int, str]:
    if error == "ECONNREFUSED":
        return 5, "Refuse"
    if error and error not in _PENDING:
        return 4, "Fail"
    return _NETWORK_CALLS.get(call, (_OTHER, call.title()))


def _network(call: str, address: str, port: int, protocol: str) -> dict[str, Any]:
    inbound = call in _INBOUND
    peer: dict[str, Any] = {"name": address} if protocol == UNIX else {"ip": address, "port": port}
    version = 0 if protocol == UNIX else 6 if ":" in address else 4
    return {
        # The profile host lends a class of the network the device and the process.
        "metadata": {"profiles": ["host"]},
        "src_endpoint" if inbound else "dst_endpoint": peer,
        "connection_info": {
            "direction_id": 1 if inbound else 2,
            "direction": "Inbound" if inbound else "Outbound",
            "protocol_ver_id": version,
        }
        | ({"protocol_name": protocol} if protocol.isalpha() else {}),
    }


def _file(path: str, type_id: int = 0, type: str = "Unknown") -> dict[str, Any]:
    return {"name": path.rstrip("/").rpartition("/")[2] or path, "path": path, "type_id": type_id, "type": type}
