"""Traces for other programs: what each format must be, line by line."""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
import time

import pytest
from trace_samples import START, call, end, event, execute, file, fork, sample

from supervisor import errors
from supervisor.client import ExportInfo, export
from supervisor.client.exports import FORMATS, host_name

INFO = ExportInfo("run-1", "there", "0.1")


def lines(events, format):
    return "".join(export(events, format, INFO)).splitlines()


def test_jsonl_and_csv_have_every_event():
    found = [json.loads(line) for line in lines(sample(), "jsonl")]
    assert len(found) == len(sample())
    assert found[0]["argv"] == ["sh", "-c", "ls \x1b[31m\n"] and found[1]["args"] == [0, 0, 0, 57005, 57005, 57005]
    rows = list(csv.DictReader(io.StringIO("".join(export(sample(), "csv")))))
    assert len(rows) == len(sample())
    assert (rows[2]["syscall"], rows[2]["args"]) == ("mmap", "0x0 0x2000 0x3 0x22 0xffffffff 0x0")
    assert (rows[0]["argv"], rows[10]["path"]) == (r"sh -c 'ls \x1b[31m\n'", r"/no\x1b[31m")


def test_an_unknown_format_is_the_request_s_fault():
    with pytest.raises(errors.InvalidRequest, match="jsonl, csv, strace, perfetto, ocsf") as caught:
        export([], "xml")
    assert caught.value.field == "format"


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_streams(format):
    """The first piece comes long before the last event is asked for; and nothing is a trace, too."""
    endless = export((call(n * 1e-3, 2, "read", result=1) for n in itertools.count()), format, INFO)
    assert len(list(itertools.islice(endless, 100))) == 100
    assert isinstance("".join(export([], format, INFO)), str)
    for piece in export(sample(), format, INFO):
        assert piece.endswith(("\n", "}"))


# strace


CALL = re.compile(r"^(\w+)\(.*\) += (?:(-?\d+|0x[0-9a-f]+)(?: ([A-Z]\w*) \(.+\))?|\?(?: ([A-Z_]+) \(.+\))?)$")
LINE = re.compile(r"^(\d+) +(\d\d:\d\d:\d\d\.\d{6}) (.*)$")
"""What strace -f -tt -o writes: strace(1)."""


def test_strace(monkeypatch):
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    shown = lines(sample(), "strace")
    monkeypatch.undo()
    time.tzset()
    for line in shown:
        assert line.isascii() and line.isprintable()
        rest = LINE.match(line)[3]
        assert CALL.match(rest) or re.fullmatch(r"\+\+\+ (exited with \d+|killed by SIG\w+) \+\+\+", rest), line
    assert shown == [
        '2     13:39:58.000002 execve("/usr/bin/sh", ["sh", "-c", "ls \\033[31m\\n"]) = 0',
        "2     13:39:58.001000 mmap(NULL, 8192, 0x3, 0x22, -1, 0) = 0x7f0000001000",
        "2     13:39:58.002100 vfork() = 3",
        '3     13:39:58.003002 execve("/usr/bin/ls", ["ls", "/root"]) = 0',
        '3     13:39:58.004000 openat(AT_FDCWD, "/etc/ld.so.cache", O_RDONLY|O_CLOEXEC) = 3',
        '3     13:39:58.005000 openat(AT_FDCWD, "/no\\033[31m", O_WRONLY|O_CREAT|O_EXCL|O_CLOEXEC, 0644) = '
        "-1 ENOENT (No such file or directory)",
        '3     13:39:58.006000 rename("old", "new") = 0',
        "3     13:39:58.007000 exit_group(2) = ?",
        "3     13:39:58.007000 +++ exited with 2 +++",
        '4     13:39:58.500000 connect(5, {sa_family=AF_INET, sin_port=htons(80), sin_addr=inet_addr("192.0.2.1")}, 16)'
        " = -1 ECONNREFUSED (Connection refused)",
        "2     13:39:58.600002 connect(6, {sa_family=AF_INET6, sin6_port=htons(443), sin6_flowinfo=htonl(0), "
        'inet_pton(AF_INET6, "2001:db8::1", &sin6_addr), sin6_scope_id=0}, 28) = -1 EPERM (Operation not permitted)',
        "2     13:39:58.700000 nanosleep(0x1, 0x2) = ? ERESTART_RESTARTBLOCK (Interrupted by signal)",
        "4     13:39:58.800000 +++ killed by SIGKILL +++",
        "2     13:39:58.900000 +++ killed by SIGKILL +++",
    ]


def test_strace_of_what_is_only_half_there():
    events = [
        *execute(0, 2, "sh")[:1],
        event(1, "connect", 2, address="::1", port=1),
        file(2, 2, "unlink", "unlink", "/x"),
    ]
    assert [LINE.match(line)[3] for line in lines(events, "strace")] == [
        'execve("/usr/bin/sh", ["sh"]) = 0',
        'unlink("/x") = 0',
    ]


# Perfetto


def check_perfetto(text):
    """The JSON Object Format of Chrome's trace events, as far as these phases go; its slices must nest on each thread."""
    found = json.loads(text)
    assert found["displayTimeUnit"] in ("ms", "ns") and isinstance(found["otherData"], dict)
    slices = {}
    for one in found["traceEvents"]:
        assert type(one["pid"]) is int and type(one["tid"]) is int and isinstance(one["name"], str) and one["name"]
        if one["ph"] == "M":
            key = "labels" if one["name"] == "process_labels" else "name"
            assert one["name"] in ("process_name", "thread_name", "process_labels")
            assert isinstance(one["args"][key], str)
            continue
        assert isinstance(one["ts"], float | int) and one["ts"] >= 0 and isinstance(one["args"], dict) and one["cat"]
        if one["ph"] == "i":
            assert one["s"] == "t"
        else:
            assert one["ph"] == "X" and one["dur"] >= 0
            slices.setdefault((one["pid"], one["tid"]), []).append((one["ts"], one["ts"] + one["dur"]))
    for spans in slices.values():
        spans.sort()
        assert all(a[1] <= b[0] + 0.002 for a, b in itertools.pairwise(spans))
    return found["traceEvents"]


def test_perfetto():
    events = check_perfetto("".join(export(sample(), "perfetto", INFO)))
    slices = {
        (one["pid"], one["name"]): (round(one["ts"]), round(one["dur"]), one["args"].get("ended"))
        for one in events
        if one["ph"] == "X"
    }
    assert slices == {
        (2, "sh -c 'ls \x1b[31m\n'"): (0, 900_000, "killed by SIGKILL"),
        (3, "(sh -c 'ls \x1b[31m\n')"): (2_000, 1_000, None),
        (3, "ls /root"): (3_000, 4_000, "exited 2"),
    }
    assert [one["args"]["name"] for one in events if one["name"] == "process_name"] == ["sh", "sh", "ls"]
    assert {(one["pid"], one["tid"]) for one in events if one["name"] == "thread_name"} == {(2, 2), (3, 3), (2, 4)}
    (refused,) = (one for one in events if one["ph"] == "i" and one["args"].get("error") == "ECONNREFUSED")
    assert (refused["cat"], refused["args"]["call"]) == ("failed", "connect(5, 192.0.2.1:80, 16)")


def test_perfetto_of_a_trace_that_breaks_off():
    events = check_perfetto("".join(export([*execute(0, 2, "sh"), fork(1, 2, 3), call(2, 3, "read")], "perfetto")))
    assert [(one["pid"], one["dur"]) for one in events if one["ph"] == "X"] == [(2, 2e6), (3, 1e6)]
    late = [*execute(0, 2, "sh"), end(1, 2), event(1.1, "exit", 2, tid=5)]
    assert len([one for one in check_perfetto("".join(export(late, "perfetto"))) if one["ph"] == "X"]) == 1


# OCSF


CLASSES = {1001: ("file",), 1003: ("kernel",), 1007: ("process",), 4001: ("connection_info",)}
REQUIRED = (
    "activity_id",
    "category_uid",
    "class_uid",
    "device",
    "metadata",
    "severity_id",
    "time",
    "type_uid",
    "actor",
)
"""https://schema.ocsf.io/1.7.0: what the classes require, and Network Activity's profile host."""


def check_ocsf(lines):
    found = [json.loads(line) for line in lines]
    for one in found:
        assert set(REQUIRED) | set(CLASSES[one["class_uid"]]) <= set(one), one
        assert one["type_uid"] == one["class_uid"] * 100 + one["activity_id"]
        assert one["category_uid"] == one["class_uid"] // 1000
        assert one["metadata"]["version"].startswith("1.") and one["metadata"]["product"]["name"] == "Supervisor"
        assert one["device"]["hostname"] and one["device"]["type_id"] == 0 and type(one["time"]) is int
        assert (one["status_id"] == 2) == ("status_code" in one)
        assert type(one["actor"]["process"]["pid"]) is int
        if one["class_uid"] == 4001:
            assert one["metadata"]["profiles"] == ["host"]
            assert {"src_endpoint", "dst_endpoint"} & set(one)
        if one["class_uid"] == 1003:
            assert one["kernel"]["type_id"] == 2 and one["kernel"]["name"]
    return found


def test_ocsf():
    found = check_ocsf(lines(sample(), "ocsf"))
    assert [(one["class_uid"], one["activity_id"]) for one in found] == [
        (1007, 1), (1003, 4), (1007, 1), (1003, 4), (1007, 1), (1001, 14), (1001, 14), (1001, 5), (1003, 4),
        (1007, 2), (1007, 99), (4001, 5), (4001, 4), (1003, 4), (1007, 99), (1007, 2),
    ]  # fmt: skip
    assert [one["metadata"]["sequence"] for one in found] == list(range(16))
    launched, forked, terminated, killed = found[4], found[2], found[9], found[15]
    assert (launched["launch_type"], launched["process"]["cmd_line"]) == ("Exec", "ls /root")
    assert launched["actor"]["process"]["name"] == "sh" and launched["process"]["parent_process"] == {"pid": 2}
    assert (forked["launch_type"], forked["process"]["pid"]) == ("Fork", 3)
    assert (terminated["exit_code"], killed["exit_code"], killed["status_detail"]) == (2, 137, "killed by SIGKILL")
    assert found[6]["file"] == {"name": "no\x1b[31m", "path": "/no\x1b[31m", "type_id": 0, "type": "Unknown"}
    assert (found[6]["status"], found[6]["status_code"]) == ("Failure", "ENOENT")
    assert (found[7]["file"]["path"], found[7]["file_result"]["path"]) == ("old", "new")
    refused, denied = found[11], found[12]
    assert (refused["dst_endpoint"], refused["status_code"]) == ({"ip": "192.0.2.1", "port": 80}, "ECONNREFUSED")
    assert refused["connection_info"]["protocol_name"] == "tcp" and refused["actor"]["process"]["ptid"] == 4
    assert denied["status_detail"] == "denied by the run's policy" and denied["connection_info"]["protocol_ver_id"] == 6
    assert found[0]["time"] == int(START * 1000) and found[0]["metadata"]["correlation_uid"] == "run-1"


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        ([call(0, 2, "unlink", 1), file(0, 2, "unlink", "unlink", "/x")], (1001, 4)),
        ([call(0, 2, "mkdir", 1), file(0, 2, "mkdir", "mkdir", "/x")], (1001, 1)),
        ([call(0, 2, "chmod", 1), file(0, 2, "chmod", "chmod", "/x")], (1001, 7)),
        ([call(0, 2, "chdir", 1), file(0, 2, "chdir", "chdir", "/x")], (1001, 99)),
        (
            [
                call(0, 2, "open", 1, result=3),
                file(0, 2, "open", "open", "/x", result=3, detail="O_RDWR|O_CREAT|O_EXCL"),
            ],
            (1001, 1),
        ),
        ([event(0, "bind", 2, address="::", port=1), call(0, 2, "bind", 3, 4, 5)], (4001, 99)),
        ([event(0, "send", 2, address="::1", port=1, detail="udp"), call(0, 2, "sendto", 3, result=1)], (4001, 6)),
        ([event(0, "connect", 2, address="::1", port=1), call(0, 2, "connect", 3, result=-115)], (4001, 1)),
        ([event(0, "something", 2, detail="new")], (1003, 4)),
    ],
)
def test_ocsf_by_call(made, expected):
    (found,) = check_ocsf(lines(made, "ocsf"))
    assert (found["class_uid"], found["activity_id"]) == expected


def test_the_machine_is_the_daemon_s(monkeypatch):
    monkeypatch.setattr("socket.gethostname", lambda: "here")
    assert host_name("unix:///run/s") == "here"
    assert (host_name("there:7443"), host_name("[::1]:7443")) == ("there", "::1")
