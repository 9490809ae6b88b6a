"""The commands beside `run`, and what they print."""

from __future__ import annotations

import json
import sys

import fake_daemon
import pytest
from fake_daemon import RUN_ID
from rich.cells import cell_len
from typer.testing import CliRunner

from supervisor.cli import connect, render, show
from supervisor.cli.main import app
from supervisor.model import RunRecord


def invoke(*arguments):
    return CliRunner().invoke(app, list(arguments))


SHOWN = r"""python3 -c 'print('"'"'\x1b[31m'"'"')\n' '""" + "\ufffd'"


def test_ps(daemon, monkeypatch):
    monkeypatch.setenv("SUPERVISOR_ADDRESS", daemon.address)
    lines = invoke("ps").stdout.splitlines()
    assert lines[0].split() == ["RUN", "AGENT", "POLICY", "STATE", "OUTCOME", "AGE", "PROGRAM"]
    assert lines[1].split() == ["run-1", "a", "strict", "running", "-", "1m", *SHOWN.split()]
    assert lines[2].split() == ["run-3", "b", "strict", "ended", "exited", "0", "1m", "python3"]
    assert next(json.loads(line)["run_id"] for line in invoke("ps", "--json").stdout.splitlines()) == "run-1"
    assert len(invoke("ps", "--state", "ended").stdout.splitlines()) == 3
    assert "queued, running, ended" in invoke("ps", "--state", "dead").stderr


def test_inspect(daemon, monkeypatch):
    monkeypatch.setenv("SUPERVISOR_ADDRESS", daemon.address)
    shown = invoke("inspect", "run-2").stdout
    assert "cause         killed: out of memory\\x1b[31m\\nx\n" in shown
    assert json.loads(invoke("inspect", "run-2", "--json").stdout)["outcome"] == "out_of_memory"
    missing = invoke("inspect", "run-9")
    assert (missing.exit_code, missing.stderr) == (125, "supervisor: run_id: no run run-9\n")


def test_a_run_by_the_beginning_of_its_id(daemon, monkeypatch):
    monkeypatch.setenv("SUPERVISOR_ADDRESS", daemon.address)
    ids = ["c9", *(f"b{digit}" for digit in range(9, 1, -1)), "run-12", "run-1", "ab1", "a1"]
    monkeypatch.setattr(fake_daemon, "RECORDS", [fake_daemon.record(run_id, 3) for run_id in ids])
    for asked, run_id in (("c", "c9"), ("b7", "b7"), ("run-1", "run-1"), ("run-12", "run-12"), ("ab", "ab1")):
        assert invoke("inspect", asked).stdout.splitlines()[0].split() == ["run", run_id]
    assert invoke("kill", "ab").stdout == "ab1 had ended already\n"
    assert invoke("trace", "show", "run-1").exit_code == 0
    several = invoke("kill", "run")
    assert several.exit_code == 125
    assert several.stderr == "supervisor: RUN: 'run' begins the ids of several runs, write more of it: run-12, run-1\n"
    assert "b9, b8, b7, b6, b5, b4, b3, b2\n" in invoke("inspect", "b").stderr
    assert invoke("trace", "summary", "d").stderr == "supervisor: run_id: no run d\n"


def test_kill_top_policy(daemon, monkeypatch):
    monkeypatch.setenv("SUPERVISOR_ADDRESS", daemon.address)
    assert invoke("kill", RUN_ID).stdout == f"{RUN_ID} killed\n"
    assert invoke("kill", "run-2").stdout == "run-2 had ended already\n"
    assert invoke("kill", "x").stderr == "supervisor: run_id: no run x\n"
    assert invoke("kill", "--agent", "a").stdout == "2 runs of a killed\n"
    assert "run-1" in invoke("top").stdout
    assert invoke("policy", "list").stdout.splitlines()[1].split() == ["strict", "-", "the", "default"]
    assert invoke("policy", "show", "strict").stdout == "b = 2\n"
    assert invoke("policy", "show", "strict", "--as-written").stdout == "a = 1\n"


def test_policy_check(daemon, monkeypatch, tmp_path):
    file = tmp_path / "p.toml"
    for address in (daemon.address, ""):
        monkeypatch.setenv("SUPERVISOR_ADDRESS", address)
        monkeypatch.setattr(connect, "listening", lambda: False)
        file.write_text("[limits]\nmemry = 3\n")
        bad = invoke("policy", "check", str(file))
        assert bad.exit_code == 1
        assert bad.stdout.startswith(f"{file}:2: limits.memry: ")
        file.write_text('extends = "strict"\n')
        good = invoke("policy", "check", str(file))
        assert (good.exit_code, good.stdout, good.stderr) == (0, f"{file}: good\n", "")
        file.write_text('name = "other"\nextends = "strict"\n')
        renamed = invoke("policy", "check", str(file))
        assert (renamed.exit_code, renamed.stdout) == (0, f"{file}: good\n")
        assert renamed.stderr.startswith("warning: good for --policy, but with it in a policy directory")
        assert "its name is 'other', and there it must be called other.toml" in renamed.stderr
    own = tmp_path / "strict.toml"
    own.write_text('extends = "strict"\n')
    assert "it extends its own name, and there 'strict' would be itself" in invoke("policy", "check", str(own)).stderr
    file.write_text('extends = "p"\n')
    itself = invoke("policy", "check", str(file))
    assert itself.stdout == f"{file}:1: extends: 'p' is this policy, and none can extend itself\n"
    file.write_text("")
    empty = invoke("policy", "check", str(file))
    assert (empty.exit_code, empty.stdout) == (
        1,
        f'{file}: empty: a policy has at least a line such as extends = "strict"\n',
    )
    assert invoke("policy", "check", "/none").exit_code == 125


def test_doctor(monkeypatch):
    import types

    from supervisor.model import Feature

    features = [Feature("a", True, "fine"), Feature("b", False, "EPERM", "no b", "get b")]
    fake = types.SimpleNamespace(report=lambda: features, required=frozenset({"a"}))
    monkeypatch.setitem(sys.modules, "supervisor.doctor", fake)
    monkeypatch.setattr("supervisor.doctor", fake, raising=False)
    done = invoke("doctor")
    assert (done.exit_code, done.stdout.splitlines()[2].split()) == (0, ["b", "no", "EPERM", "no", "b", "get", "b"])
    fake.required = frozenset({"b"})
    assert invoke("doctor").exit_code == 1
    shown = json.loads(invoke("doctor", "--json").stdout)
    assert (shown["ready"], shown["features"][1]["remedy"]) == (False, "get b")


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0 B"), (1023, "1023 B"), (64 << 20, "64 MiB"), (3 << 29, "1.5 GiB"), (None, "-")]
)
def test_sizes(number, text):
    assert render.size(number) == text


def test_ages():
    assert [render.age(seconds) for seconds in (0.5, 59, 60, 7200, 200000)] == ["0s", "59s", "1m", "2h", "2d"]


def test_policy_list_as_json(daemon, monkeypatch):
    monkeypatch.setenv("SUPERVISOR_ADDRESS", daemon.address)
    (line,) = invoke("policy", "list", "--json").stdout.splitlines()
    assert json.loads(line) == {"name": "strict", "extends": "", "description": "the default", "digest": ""}


@pytest.mark.parametrize("width", [10, 30, 60])
def test_ids_are_never_cut_on_a_terminal(monkeypatch, capsys, width):
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    row = ("01a20d29c026543c0043", "an agent", "moderate", "running", "out_of_memory", "3m", "python3")
    for one_line in (False, True):
        render.print_table(("RUN", "AGENT", "POLICY", "STATE", "OUTCOME", "AGE", "PROGRAM"), [row], one_line=one_line)
        assert row[0] in capsys.readouterr().out


@pytest.mark.parametrize("width", [80, 100, 200])
def test_ps_shows_a_command_line_in_the_width_of_the_terminal(monkeypatch, capsys, width):
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    argv = (b"python3", b"-c", b"print('\x1b]0;owned\x07 \xe2\x80\xae')\n" + "\u4e2d".encode() * 200)
    run = RunRecord("01a20d29c026543c0043", "running", "", "strict", "", "native", "python3", argv=argv)
    short = RunRecord("01a20d29c026543c0044", "running", "", "strict", "", "native", "true", argv=(b"true",))
    headings = ("RUN", "AGENT", "POLICY", "STATE", "OUTCOME", "AGE", "PROGRAM")
    render.print_table(headings, map(show._ps_row, (run, short)), one_line=True)
    _, long, other = capsys.readouterr().out.splitlines()
    assert cell_len(long.rstrip()) in (width - 1, width) and long.rstrip().endswith("\u2026")
    assert "\x1b" not in long and "\x07" not in long and "\u202e" not in long
    assert r"python3 -c 'print" in long
    assert other.rstrip().endswith(" true") and long.index("python3") == other.index("true")
