"""`supervisor trace`: what it prints of a run that did this and that."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import sys
import time

import pytest
from fake_daemon import COMMAND, RUN_ID
from rich.cells import cell_len
from trace_samples import START, event, sample
from typer.testing import CliRunner

from supervisor.cli import trace_view
from supervisor.cli.main import app
from supervisor.client.calls import Entry
from supervisor.client.process_tree import ProcessTree

SAMPLE = "run-3"


@pytest.fixture
def trace(daemon, monkeypatch):
    monkeypatch.setenv("SUPERVISOR_ADDRESS", daemon.address)

    def call(*arguments, status=0):
        done = CliRunner().invoke(app, ["trace", *arguments])
        assert done.exit_code == status, done.stderr
        assert "\x1b" not in done.stdout + done.stderr
        return done

    return call


def test_show_draws_the_tree_then_the_events(trace):
    shown = trace("show", SAMPLE).stdout.splitlines()
    assert shown[0].startswith("run run-3  python3  started ") and shown[0].endswith("complete: yes")
    assert shown[1] == shown[5] == ""
    assert [re.split(r"  +", line, maxsplit=6) for line in shown[2:5]] == [
        ["PID", "START", "SECONDS", "ENDED", "CALLS", "FAILED", "PROGRAM"],
        ["2", "0.000000", "0.900000", "killed by SIGKILL", "6", "3", r"sh -c 'ls \x1b[31m\n' [2 threads]"],
        ["3", "0.002000", "0.005000", "exited 2", "5", "1", "ls /root"],
    ]
    assert shown[4].index("ls /root") == shown[3].index("sh -c") + 2
    assert shown[6:] == [
        r'    0.000002         2  execve("/usr/bin/sh", ["sh", "-c", "ls \033[31m\n"]) = 0',
        "    0.001000         2  mmap(NULL, 8192, 0x3, 0x22, -1, 0) = 0x7f0000001000",
        "    0.002000         2  fork: process 3",
        "    0.002100         2  vfork() = 3",
        '    0.003002         3  execve("/usr/bin/ls", ["ls", "/root"]) = 0',
        '    0.004000         3  openat(AT_FDCWD, "/etc/ld.so.cache", O_RDONLY|O_CLOEXEC) = 3',
        r'    0.005000         3  openat(AT_FDCWD, "/no\033[31m", O_WRONLY|O_CREAT|O_EXCL|O_CLOEXEC, 0644) = -2 ENOENT',
        '    0.006000         3  rename("old", "new") = 0',
        "    0.007000         3  exit_group(2) = ?",
        "    0.007000         3  exit: process exited with 2",
        "    0.008000         2  fork: thread 4",
        "    0.500000       2/4  connect(5, 192.0.2.1:80, 16) = -111 ECONNREFUSED (tcp)",
        "    0.600002         2  connect(6, [2001:db8::1]:443, 28) = -1 EPERM (tcp, denied)",
        "    0.700000         2  nanosleep(0x1, 0x2) = -516 ERESTART_RESTARTBLOCK",
        "    0.800000       2/4  exit: thread killed by signal 9",
        "    0.900000         2  exit: process killed by signal 9",
    ]


@pytest.mark.parametrize(
    ("options", "calls"),
    [
        (["--failed"], ["openat", "connect", "connect", "nanosleep"]),
        (["--syscall", "openat", "--syscall", "rename"], ["openat", "openat", "rename"]),
        (["--pid", "3", "--failed"], ["openat"]),
        (["--pid", "4"], ["connect", "exit:"]),
        (["--pid", "77"], []),
        (["--limit", "2"], ["execve", "mmap"]),
        (["--no-events"], []),
    ],
)
def test_show_only_what_was_asked_for(trace, options, calls):
    done = trace("show", SAMPLE, "--no-tree", *options)
    assert [re.split(r"[( ]", line[24:])[0] for line in done.stdout.splitlines()] == calls
    assert done.stderr == ("stopped at --limit 2: there are more\n" if "--limit" in options else "")


def test_show_the_tree_alone(trace):
    assert len(trace("show", SAMPLE, "--no-events").stdout.splitlines()) == 5


def test_show_as_json_is_the_events_as_stored(trace):
    found = [json.loads(line) for line in trace("show", SAMPLE, "--json").stdout.splitlines()]
    assert len(found) == len(sample()) and set(found[0]) == set(type(sample()[0]).__slots__)
    kept = [
        json.loads(line) for line in trace("show", SAMPLE, "--json", "--failed", "--limit", "3").stdout.splitlines()
    ]
    assert [one["kind"] for one in kept] == ["syscall", "open", "syscall"]


def test_show_of_a_run_with_counts_only(trace):
    done = trace("show", "run-2")
    lines = done.stdout.splitlines()
    assert lines[0].endswith("complete: no, 2 of 42 events were dropped")
    assert [line.split() for line in lines[2:]] == [
        ["PID", "START", "SECONDS", "ENDED", "PROGRAM"],
        ["2", "0.000000", "1.000000", "exited", "0", "/bin/sh"],
        ["3", "0.500000", "0.000000", "-", "/bin/ls\\x1b[31m"],
    ]
    assert "the first 2 of 3 processes" in done.stderr and "--trace full" in done.stderr


def test_summary(trace):
    lines = trace("summary", "run-2").stdout.splitlines()
    assert lines[0] == "level summary, complete: no, 2 of 42 events were dropped"
    assert lines[1] == "40 events, 2 dropped, 3 processes"
    assert [re.split("  +", line) for line in lines[2:]] == [
        ["SYSCALL", "CALLS", "SHARE", "ERRORS", "OF ITS CALLS"],
        ["read", "30", "75.0 %", "3", "10.0 %"],
        ["open", "10", "25.0 %", "0", "-"],
        ["total", "40", "100.0 %", "3", "7.5 %"],
        [""],
        ["OPERATION", "ADDRESS", "PROTOCOL", "COUNT", "VERDICT"],
        ["connect", "[::1]:80", "tcp", "2", "denied"],
    ]
    assert trace("summary", RUN_ID).stdout.startswith("level full, complete: yes\n2 events, 0 dropped")
    assert json.loads(trace("summary", RUN_ID, "--json").stdout)["syscalls"]["openat"]["calls"] == 2


def test_search(trace, daemon, monkeypatch):
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    done = trace(
        "search", "--path", "/etc/*", "--address", "10.0.0.0/8", "--syscall", "openat", "--kind", "open", "--program",
        "ls", "--failed", "--since", "2026-11-24", "--until", "1795527600", "--run", "run-3", "--limit", "7",
    )  # fmt: skip
    monkeypatch.delenv("TZ")
    time.tzset()
    (asked,) = daemon.traces.searches
    assert (asked.path, asked.address, asked.program, asked.run_id) == ("/etc/*", "10.0.0.0/8", "ls", "run-3")
    assert (list(asked.syscalls), list(asked.kinds), asked.failed, asked.limit) == (["openat"], ["open"], True, 7)
    assert (asked.since, asked.until) == (1_795_478_400.0, 1_795_527_600.0)
    lines = done.stdout.splitlines()
    assert lines[0].startswith("run-3  2026-11-24 13:39:58.000002         2  execve(") and len(lines) == 7
    assert lines[5].endswith('openat(AT_FDCWD, "/etc/ld.so.cache", O_RDONLY|O_CLOEXEC) = 3')
    assert lines[6] == f"{RUN_ID}  2026-11-24 13:39:58.009000       2/4  connect(192.0.2.1:80) (tcp)"
    assert done.stderr == "10 events found in 2 traces\n"


def test_search_tells_how_it_went(trace, daemon):
    daemon.traces.end.limit_reached = True
    daemon.traces.end.searched, daemon.traces.end.skipped = 1, 3
    daemon.traces.end.skipped_run_ids[:] = ["a\x1b", "b"]
    done = trace("search", "--json")
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [one["run_id"] for one in found] == ["run-3"] * 9 + [RUN_ID]
    assert found[8]["path"] == "/etc/ld.so.cache"
    assert done.stderr.splitlines() == [
        "10 events found in 1 trace",
        "stopped at --limit 1000: there may be more",
        "not read, or not to the end: a\\x1b, b, ... (3)",
    ]
    (asked,) = daemon.traces.searches
    assert asked.limit == 1000 and not asked.HasField("since") and not asked.HasField("until")


def test_search_that_makes_no_sense(trace):
    assert trace("search", "--path", "[", status=125).stderr == "supervisor: path has a '[' without its ']'\n"
    assert "since: 'soon' is no time" in trace("search", "--since", "soon", status=125).stderr
    assert "no run xyz" in trace("search", "--run", "xyz", status=125).stderr


@pytest.mark.parametrize("format", ["jsonl", "csv", "strace", "perfetto", "ocsf"])
def test_export(trace, tmp_path, format):
    printed = trace("export", SAMPLE, "--format", format).stdout
    assert trace("export", SAMPLE, "--format", format, "--output", "-").stdout == printed
    target = tmp_path / "out"
    done = trace("export", SAMPLE, "--format", format, "--output", str(target))
    assert (done.stdout, done.stderr) == ("", f"{len(sample())} events in {target}\n")
    assert target.read_text() == printed
    if format == "perfetto":
        assert json.loads(printed)["otherData"]["run_id"] == SAMPLE
    elif format == "csv":
        assert len(list(csv.reader(io.StringIO(printed)))) == len(sample()) + 1
    elif format == "ocsf":
        assert json.loads(printed.splitlines()[0])["metadata"]["product"]["version"]


def test_export_of_nothing_touches_no_file(trace, tmp_path):
    target = tmp_path / "out"
    target.write_text("kept")
    assert "no run xyz" in trace("export", "xyz", "--output", str(target), status=125).stderr
    assert "no such run" in trace("export", "run-2", "--output", str(target), status=125).stderr
    assert target.read_text() == "kept"
    assert "cannot write" in trace("export", SAMPLE, "--output", str(tmp_path), status=125).stderr


@pytest.mark.parametrize("arguments", [("show", SAMPLE), ("export", SAMPLE, "--format", "strace"), ("search",)])
def test_a_reader_that_leaves(environment, arguments):
    """The pipe is closed before anything is written."""
    with subprocess.Popen(
        [*COMMAND, "trace", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    ) as process:
        process.stdout.close()
        told = process.stderr.read()
        assert process.wait(60) == 128 + 13
    assert told == b""


def plain(capsys):
    return re.sub("\x1b\\[[0-9;]*m", "", capsys.readouterr().out).splitlines()


@pytest.mark.parametrize("width", [60, 100, 200])
def test_the_tree_on_a_terminal(monkeypatch, capsys, width):
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    trace_view.print_tree(ProcessTree.of(sample()))
    first, second = plain(capsys)
    assert first.startswith(r"sh -c 'ls \x1b[")
    assert second.startswith("└── ls /root  pid 3, +0.002 s, 0.005 s")
    assert cell_len(first.rstrip()) <= width and cell_len(second.rstrip()) <= width
    if width > 60:
        assert first.rstrip().endswith(", killed by SIGKILL, 6 calls, 3 failed")


def test_control_characters_of_any_kind_stay_out():
    evil = "\x1b]0;x\x07\r\n\u202e\x9b\udcff"
    for kind in ("exec", "fork", "exit", "open", "syscall", "connect", "new"):
        made = event(1, kind, 2, path=evil, address=evil, syscall=evil, comm=evil, argv=(evil,), detail=evil)
        for line in (trace_view.event_line(Entry(made), START), trace_view.found_line("r", Entry(made))):
            assert line.isprintable()
    tree = ProcessTree.of(
        [event(0, "exec", 2, path=evil, argv=(evil, evil)), event(1, "exec", 2, path="/x", argv=("x",))]
    )
    assert "".join(trace_view._label(process) for _, process in tree.walk()).count("\x1b") == 1


def test_deep_trees_stay_on_the_screen(monkeypatch, capsys):
    forks = [event(n, "fork", n, result=n + 1, detail="process") for n in range(2, 200)]
    tree = ProcessTree.of([event(0, "exec", 2, path="/bin/sh", argv=("sh",)), *forks])
    trace_view.print_tree(tree)
    assert max(map(len, capsys.readouterr().out.splitlines())) < 140
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    trace_view.print_tree(tree)
    shown = plain(capsys)
    assert len(shown) == 199 and max(cell_len(line.rstrip()) for line in shown) <= 80
