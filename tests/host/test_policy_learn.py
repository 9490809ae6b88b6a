"""`supervisor policy learn` end to end: what was really traced becomes a policy, and what it does not name has no effect."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from supervisor.client import Supervisor
from supervisor.model import Outcome, RunResult
from tests.host.daemon_fixture import COMMAND, Daemon, scaled

pytestmark = pytest.mark.slow  # in the VM lane Python's start alone takes seconds, and every test here starts it

PYTHON = "/usr/bin/python3"
WORKER = """
import json, os, pathlib, sys
out = pathlib.Path("out")
out.mkdir()
for n in range(3):
    (out / f"{n}.json").write_text(json.dumps({"n": n, "in": pathlib.Path("in.txt").read_text()}))
os.rename(out / "0.json", out / "zero.json")
print(sorted(os.listdir(out)), sum(path.stat().st_size for path in out.iterdir()))
if sys.argv[1:] == ["more"]:
    for name, act in (("chmod", lambda: os.chmod("in.txt", 0o600)), ("socket", lambda: __import__("socket").socket())):
        try:
            act()
            print(name, "done")
        except OSError as error:
            print(name, error.errno)
"""
PIPELINE = "printf 'b\\na\\nc\\n' | sort | tee sorted | tr a-z A-Z; wc -l < sorted; cat /none || true"
ENOSYS = 38

Policy = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def policy(daemon: Daemon) -> Policy:
    """policy(*arguments): `supervisor policy` against the session's daemon."""

    def call(*arguments: str | Path, status: int = 0) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "SUPERVISOR_ADDRESS": daemon.address}
        done = subprocess.run(
            [COMMAND, "policy", *arguments], capture_output=True, text=True, env=environment, timeout=scaled(60)
        )
        assert done.returncode == status, done.stderr
        assert "Traceback" not in done.stderr
        return done

    return call


def work(supervisor: Supervisor, *arguments: str, **options: Any) -> RunResult:
    files = {"in.txt": b"text", "worker.py": WORKER.encode()}
    return supervisor.execute([PYTHON, "worker.py", *arguments], files=files, **options)


def ended_well(result: RunResult) -> str:
    assert (result.outcome, result.exit_code) == (Outcome.EXITED, 0), (result.detail, result.stdout, result.stderr)
    return result.stdout.decode()


def test_a_program_runs_under_what_was_learnt_from_it(supervisor: Supervisor, policy: Policy, tmp_path: Path) -> None:
    first = work(supervisor, trace="full")
    said = ended_well(first)
    file = tmp_path / "worker.toml"
    policy("learn", first.run_id, "-o", file)
    assert re.search(rf"^#   {first.run_id}  python3, exited 0, .* \d+ events, full$", file.read_text(), re.MULTILINE)
    assert policy("check", file).stdout == f"{file}: good\n"
    again = work(supervisor, policy=file)
    assert ended_well(again) == said and not again.violations
    # The same text, sent as it is.
    assert ended_well(work(supervisor, policy=file.read_text())) == said
    assert not [line for line in policy("diff", "strict", file, status=1).stdout.splitlines() if line[0] != "-"]


def test_what_the_program_did_not_use_is_refused(supervisor: Supervisor, policy: Policy) -> None:
    # The same program has used both under strict, but not in the run that is learnt from.
    used = ended_well(work(supervisor, "more"))
    assert "chmod done" in used and "socket done" in used
    text = policy("learn", work(supervisor, trace="full").run_id).stdout
    refused = ended_well(work(supervisor, "more", policy=text))
    assert f"chmod {ENOSYS}" in refused and f"socket {ENOSYS}" in refused
    tmp = supervisor.execute(["sh", "-c", ": > /tmp/x"], policy=text)
    assert tmp.exit_code != 0
    # United with a run that did use them, they are allowed again, and guards stay on.
    both = [work(supervisor, trace="full").run_id, work(supervisor, "more", trace="full").run_id]
    union = policy("learn", *both).stdout
    assert union == policy("learn", *reversed(both)).stdout
    allowed = ended_well(work(supervisor, "more", policy=union))
    assert "chmod done" in allowed and "socket done" in allowed
    netlink = "import socket\ntry: socket.socket(socket.AF_NETLINK, 3)\nexcept OSError as e: print(e.errno)"
    assert ended_well(supervisor.execute([PYTHON, "-c", netlink], policy=union)) == "97\n"


def test_a_pipeline(supervisor: Supervisor, policy: Policy) -> None:
    first = supervisor.execute(["sh", "-c", PIPELINE], trace="full")
    said = ended_well(first)
    assert said == "A\nB\nC\n3\n"
    alone = policy("learn", first.run_id, "--name", "pipeline").stdout
    child = policy("learn", first.run_id, "--name", "pipeline", "--extends", "strict").stdout
    assert len(child) < len(alone) and 'extends = "strict"' in child
    for text in (alone, child):
        again = supervisor.execute(["sh", "-c", PIPELINE], policy=text)
        assert ended_well(again) == said and again.policy == "pipeline"
    refused = supervisor.execute(["sh", "-c", f"{PIPELINE}; chmod 700 sorted"], policy=child)
    assert refused.exit_code != 0 and b"Function not implemented" in refused.stderr
    # Nothing was executed in /work, so nothing can be.
    planted = supervisor.execute(["/work/x"], files={"x": (b"#!/bin/sh\n", 0o755)}, policy=child)
    assert (planted.outcome, planted.error.errno if planted.error else 0) == (Outcome.NOT_STARTED, 13)


def test_what_is_built_and_executed(supervisor: Supervisor, policy: Policy) -> None:
    script = "cp /bin/true /work/t; /work/t && echo ran; mkdir /tmp/d && echo made"
    first = supervisor.execute(["sh", "-c", script], trace="full")
    text = policy("learn", first.run_id).stdout
    assert 'work = "rw"' in text and 'tmp = "noexec"' in text
    assert ended_well(supervisor.execute(["sh", "-c", script], policy=text)) == ended_well(first) == "ran\nmade\n"


def test_under_paranoid_the_rest_still_kills(supervisor: Supervisor, policy: Policy) -> None:
    argv = [PYTHON, "-c", "print(6 * 7)"]
    first = supervisor.execute(argv, policy="paranoid")
    text = policy("learn", first.run_id).stdout
    assert ended_well(supervisor.execute(argv, policy=text)) == ended_well(first) == "42\n"
    other = supervisor.execute([PYTHON, "-c", "import os; os.unlink('/tmp/x')"], policy=text)
    assert other.outcome is Outcome.VIOLATION and other.violations[0].syscall == "unlink"


@pytest.fixture
def listener() -> Iterator[int]:
    """The port of something of the host's that takes connections."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_only_addresses_that_were_reached(supervisor: Supervisor, policy: Policy, listener: int) -> None:
    script = (
        "import socket, sys\n"
        "for port in map(int, sys.argv[1:]):\n"
        "    try: socket.create_connection(('127.0.0.1', port), 3); print('reached')\n"
        "    except OSError as error: print(error.errno)\n"
    )
    first = supervisor.execute([PYTHON, "-c", script, str(listener)], policy="moderate", net="full", trace="full")
    assert ended_well(first) == "reached\n"
    text = policy("learn", first.run_id).stdout
    assert f'allow = ["127.0.0.1:{listener}"]' in text and 'mode = "filtered"' in text
    found = supervisor.execute([PYTHON, "-c", script, str(listener), "1"], policy=text)
    assert ended_well(found) == "reached\n1\n"


def test_what_is_refused(supervisor: Supervisor, policy: Policy, tmp_path: Path) -> None:
    counted = supervisor.execute(["true"]).run_id
    told = policy("learn", counted, status=125).stderr
    assert "only its trace at level summary" in told and "--trace full" in told
    forced = policy("learn", counted, "--force")
    assert "warning: " in forced.stderr and "# WARNING: " in forced.stdout
    assert ended_well(supervisor.execute(["true"], policy=forced.stdout)) == ""
    sent = 'name = "sent"\nextends = "strict"\n[limits]\npids = 50\n'
    run_id = supervisor.execute(["true"], policy=sent, trace="full").run_id
    assert "sent, which the daemon does not keep" in policy("learn", run_id, status=125).stderr
    file = tmp_path / "sent.toml"
    file.write_text(sent)
    assert policy("learn", run_id, "--policy", file).stdout.startswith("# The least policy")
    assert "no run nothing" in policy("learn", "nothing", status=125).stderr


def test_diff_asks_the_daemon(policy: Policy, tmp_path: Path) -> None:
    assert policy("diff", "strict", "strict").stdout == ""
    shown = json.loads(policy("diff", "strict", "paranoid", "--json", status=1).stdout)
    assert {one["mark"] for one in shown["differences"]} == {"-"}
    assert "unknown key" in policy("diff", "strict", _bad(tmp_path), status=125).stderr


def _bad(directory: Path) -> Path:
    file = directory / "bad.toml"
    file.write_text("[limits]\nmemry = 1\n")
    return file
