"""The commands beside `run`, and what they print."""

from __future__ import annotations

import json
import sys

import pytest
from fake_daemon import RUN_ID
from typer.testing import CliRunner

from supervisor.cli import connect, render
from supervisor.cli.main import app


def invoke(*arguments):
    return CliRunner().invoke(app, list(arguments))


def test_ps(daemon, monkeypatch):
    monkeypatch.setenv("SUPERVISOR_ADDRESS", daemon.address)
    lines = invoke("ps").stdout.splitlines()
    assert lines[0].split() == ["RUN", "AGENT", "POLICY", "STATE", "OUTCOME", "AGE", "PROGRAM"]
    assert lines[1].split() == ["run-1", "a", "strict", "running", "-", "1m", "python3"]
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


def test_kill_top_trace_policy(daemon, monkeypatch, tmp_path):
    monkeypatch.setenv("SUPERVISOR_ADDRESS", daemon.address)
    assert invoke("kill", RUN_ID).stdout == f"{RUN_ID} killed\n"
    assert invoke("kill", "x").stdout == "x had ended already\n"
    assert invoke("kill", "--agent", "a").stdout == "2 runs of a killed\n"
    assert "run-1" in invoke("top").stdout
    assert "openat /x" in invoke("trace", "show", RUN_ID).stdout
    assert json.loads(invoke("trace", "show", RUN_ID, "--json").stdout.splitlines()[1])["path"] == "/x"
    assert "level full, complete: 2 events, 0 dropped" in invoke("trace", "summary", RUN_ID).stdout
    assert json.loads(invoke("trace", "summary", RUN_ID, "--json").stdout)["syscalls"]["openat"]["calls"] == 2
    assert invoke("trace", "export", RUN_ID, "--format", "csv").stdout.splitlines()[0].startswith("time,kind,pid")
    target = tmp_path / "t.jsonl"
    assert invoke("trace", "export", RUN_ID, "--output", str(target)).exit_code == 0
    assert len(target.read_text().splitlines()) == 2
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
        assert (good.exit_code, good.stdout) == (0, f"{file}: good\n")
    assert invoke("policy", "check", "/none").exit_code == 125


def test_doctor(monkeypatch):
    import types

    from supervisor.model import Feature

    features = [Feature("a", True, "fine"), Feature("b", False, "EPERM", "no b", "get b")]
    fake = types.SimpleNamespace(report=lambda: features, required=frozenset({"a"}))
    monkeypatch.setitem(sys.modules, "supervisor.linux.doctor", fake)
    monkeypatch.setattr("supervisor.linux.doctor", fake, raising=False)
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
    render.print_table(("RUN", "AGENT", "POLICY", "STATE", "OUTCOME", "AGE", "PROGRAM"), [row])
    assert row[0] in capsys.readouterr().out
