"""`supervisor policy learn`: what it prints, what it warns of, what it refuses."""

from __future__ import annotations

import contextlib
import types

import pytest
from learn_samples import SET, SOME, STRICT, USAGE, summary_of
from trace_samples import call
from typer.testing import CliRunner

from supervisor import errors
from supervisor.cli import connect
from supervisor.cli.main import app
from supervisor.client import result as wire
from supervisor.model import Outcome, RunRecord, TraceSummary


class Client:
    """As much of the SDK's client as the command asks; what a run has is `found`."""

    def __init__(self) -> None:
        self.records: dict[str, RunRecord] = {}
        self.traces: dict[str, tuple[TraceSummary, list]] = {}
        self.checked: list[str] = []

    def run(self, run_id: str, events=SOME, policy=STRICT, **settings) -> None:
        trace = {key: settings.pop(key) for key in ("level", "dropped") if key in settings}
        values = {"state": "ended", "outcome": Outcome.EXITED, "exit_code": 0, "created_at": 1.8e9, "usage": USAGE}
        self.records[run_id] = RunRecord(
            run_id=run_id,
            spec_digest="",
            policy=policy.name,
            policy_digest=policy.digest,
            backend="native",
            program="/usr/bin/python3",
            **values | settings,
        )
        self.traces[run_id] = (summary_of(events, **trace), list(events))

    def get(self, run_id):
        if run_id not in self.records:
            raise errors.NotFound(f"no run {run_id}")
        return self.records[run_id]

    def each_run(self):
        return iter(self.records.values())

    def trace_summary(self, run_id):
        return self.traces[run_id][0]

    def trace(self, run_id):
        _, events = self.traces[run_id]
        if not events:
            raise errors.NotFound(f"run {run_id} has no full trace")
        yield from events

    def policy(self, name):
        return self._shown(SET.get(name))

    def check_policy(self, text, name=""):
        self.checked.append(name)
        problems = tuple(wire.PolicyProblem(p.line, p.key, p.message) for p in SET.check_text(text, name=name))
        return wire.PolicyCheck(problems, None if problems else self._shown(SET.resolve_text(text, name=name)))

    def _shown(self, found):
        return wire.Policy(
            found.name, found.description, found.extends, found.toml, SET.resolved_toml(found), found.digest
        )


@pytest.fixture
def client(monkeypatch):
    made = Client()
    monkeypatch.setattr(connect, "named", lambda: True)
    monkeypatch.setattr(connect, "daemon", lambda **_: contextlib.nullcontext(made))
    return made


def invoke(*arguments):
    return CliRunner().invoke(app, ["policy", "learn", *map(str, arguments)])


def test_learn_prints_a_policy_with_its_origin(client):
    client.run("run-b")
    client.run("run-a", [call(0, 2, "write")])
    done = invoke("run-b", "run-a", "run-b")
    assert done.exit_code == 0 and not done.stderr, done.stderr
    lines = done.stdout.splitlines()
    assert "run-a" in lines[1] and "run-b" in lines[2] and lines[3] == "#"
    assert "python3, exited 0, 2027-01-15 08:00:00 UTC, 1 events, full" in lines[1]
    assert done.stdout == invoke("run-a", "run-b").stdout
    found = SET.resolve_text(done.stdout)
    assert {"read", "write"} <= set(found.syscalls.allow) and found.name == "learnt"


def test_learn_into_a_file(client, tmp_path):
    client.run("run-a")
    target = tmp_path / "mine.toml"
    done = invoke("run-a", "-o", target)
    assert done.exit_code == 0 and not done.stdout and f"--policy {target}" in done.stderr
    text = target.read_text()
    assert SET.resolve_text(text).name == "mine" and client.checked[-1] == "mine"
    again = invoke("run-a", "-o", target, "--name", "other")
    assert again.exit_code == 125 and "exists" in again.stderr and "--force" in again.stderr
    assert target.read_text() == text
    assert invoke("run-a", "-o", target, "--name", "other", "--force").exit_code == 0
    assert SET.resolve_text(target.read_text()).name == "other"
    missing = invoke("run-a", "-o", tmp_path / "no" / "x.toml")
    assert missing.exit_code == 125 and "No such file" in missing.stderr
    assert invoke("run-a", "-o", "-").stdout.startswith("# The least policy")


def test_learn_extends(client):
    client.run("run-a")
    done = invoke("run-a", "--extends", "strict", "--name", "mine")
    assert done.exit_code == 0 and not done.stderr
    found = SET.resolve_text(done.stdout)
    assert (found.name, found.extends) == ("mine", "strict")
    narrower = invoke("run-a", "--extends", "paranoid")
    assert narrower.exit_code == 0 and "paranoid makes it other than what was learnt: - response" in narrower.stderr
    assert "did you mean 'strict'?" in invoke("run-a", "--extends", "stric").stderr
    bad = invoke("run-a", "--name", "a b")
    assert bad.exit_code == 125 and bad.stderr.startswith("supervisor: --name: what was learnt makes no policy: name:")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"level": "summary"}, "only its trace at level summary is there"),
        ({"dropped": 7}, f"7 of {len(SOME) + 7} events were dropped"),
        ({"events": [], "level": "full"}, None),
    ],
)
def test_a_trace_that_does_not_tell_all(client, settings, words):
    client.run("run-a", **settings)
    if words is None:
        client.traces["run-a"] = (summary_of(SOME), [])
        words = "only its trace at level summary is there"
    refused = invoke("run-a")
    assert refused.exit_code == 125 and not refused.stdout
    assert words in refused.stderr and "run it again with --trace full; or --force" in refused.stderr
    forced = invoke("run-a", "--force")
    assert forced.exit_code == 0 and words in forced.stderr
    assert "NOT COMPLETE" in forced.stdout and "# WARNING: run run-a does not tell all" in forced.stdout
    assert SET.resolve_text(forced.stdout).filesystem == STRICT.filesystem


def test_what_cannot_be_learnt_from(client):
    client.run("run-a", state="running", outcome=None)
    assert "run-a is running" in invoke("run-a", "--force").stderr
    client.run("run-b", [], level="off", detail="no such program")
    assert "run-b has no trace: no such program" in invoke("run-b", "--force").stderr
    assert "no run zzz" in invoke("zzz").stderr
    client.run("run-c")
    client.run("run-d", policy=SET.get("moderate"))
    assert "run-c had the policy strict, and run run-d another one, moderate" in invoke("run-d", "run-c").stderr
    assert invoke().exit_code == 2


def test_a_run_that_was_ended_is_told(client):
    client.run("run-a", outcome=Outcome.TIMED_OUT, exit_code=None, detail="after 5 s")
    done = invoke("run-a")
    assert done.exit_code == 0 and "run run-a did not come to its own end: timed_out, after 5 s" in done.stderr
    assert "# WARNING: run run-a did not come" in done.stdout


def test_the_policy_that_a_run_had(client, tmp_path):
    sent = 'name = "sent"\nextends = "strict"\n[limits]\npids = 64\n'
    client.run("run-a", policy=SET.resolve_text(sent))
    unknown = invoke("run-a")
    assert unknown.exit_code == 125 and "had the policy sent, which the daemon does not keep" in unknown.stderr
    assert "--policy" in unknown.stderr
    file = tmp_path / "sent.toml"
    file.write_text(sent)
    done = invoke("run-a", "--policy", file)
    assert done.exit_code == 0 and SET.resolve_text(done.stdout).limits.pids == 6
    file.write_text(sent.replace("64", "65"))
    other = invoke("run-a", "--policy", file)
    assert other.exit_code == 125 and "--policy sent is not the one that run run-a had" in other.stderr
    client.run("run-b", policy=types.SimpleNamespace(name="strict", digest="0" * 64))
    assert "strict has changed since" in invoke("run-b").stderr


def test_learn_has_help():
    shown = invoke("--help").output
    assert shown.startswith("Usage: supervisor policy learn") and "supervisor policy diff strict job.toml" in shown
