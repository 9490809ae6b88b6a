"""The command as a whole: help, wrong usage, and what it does where no daemon listens."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest
from typer.testing import CliRunner

from supervisor import errors
from supervisor.cli import connect
from supervisor.cli.main import app


def invoke(*arguments):
    return CliRunner().invoke(app, list(arguments))


# Help and wrong usage


def test_help_is_fast_and_teaches(command):
    times = []
    for _ in range(3):
        began = time.monotonic()
        shown = command("--help", check=0).stdout.decode()
        times.append(time.monotonic() - began)
    assert min(times) < 0.4
    assert "supervisor run -- python3" in shown
    assert "SUPERVISOR_ADDRESS" in shown
    assert "unix:///run/supervisor/supervisor.sock" in shown


def test_help_imports_neither_grpc_nor_rich():
    code = (
        "import sys; from supervisor.cli.main import app\n"
        "try: app(['--help'])\nexcept SystemExit: pass\n"
        "print([name for name in ('grpc', 'rich.console', 'pydantic') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    "name",
    [
        *("run", "serve", "doctor", "ps", "inspect", "kill", "top", "trace", "policy", "policy check"),
        *("trace show", "trace summary", "trace search", "trace export"),
    ],
)
def test_every_command_has_help(name):
    done = invoke(*name.split(), "--help")
    assert done.exit_code == 0
    assert done.output.startswith("Usage: supervisor")


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["run", "--memroy", "3", "--", "true"], 125, ["--memroy", "--memory"]),
        (["run", "--memory", "12Q", "--", "true"], 125, ["--memory", "12Q", "256M"]),
        (["run", "--timeout", "soon", "--", "true"], 125, ["--timeout", "soon", "seconds", "500ms", "2m"]),
        (["run", "--limit", "memry=3", "--", "true"], 125, ["--limit", "memry", "did you mean memory?"]),
        (["run", "--limit", "pids", "--", "true"], 125, ["--limit", "KEY=VALUE"]),
        (["run", "--net", "ful", "--", "true"], 125, ["--net", "did you mean full?"]),
        (["run", "--trace", "summry", "--", "true"], 125, ["--trace", "did you mean summary?"]),
        (["run", "--env", "A", "--", "true"], 125, ["--env", "K=V"]),
        (["run", "--memory", "1M"], 125, ["no program"]),
        (["run"], 125, ["Usage"]),
        (["run", "--", ""], 125, ["argv[0] is empty"]),
        (["run", "--mount", "x:/data:rx", "--", "true"], 125, ["'rx'", "mode is ro or rw"]),
        (["rnu"], 2, ["rnu", "run"]),
        (["ps", "--jsn"], 2, ["--jsn", "--json"]),
        (["kill"], 2, ["--agent"]),
        (["trace", "export", "r", "--format", "xml"], 2, ["--format", "jsonl"]),
        (["trace", "show", "r", "--syscall", "opnat"], 2, ["--syscall", "did you mean openat?"]),
        (["trace", "search", "--limit", "0"], 2, ["--limit"]),
    ],
)
def test_wrong_usage_names_the_flag_and_the_nearest(arguments, status, words):
    done = invoke(*arguments)
    assert done.exit_code == status
    assert not done.stdout
    for word in words:
        assert word in done.stderr


def test_serve_help_lists_the_keys_and_takes_tcp(monkeypatch):
    import types

    shown = invoke("serve", "--help").output
    from supervisor.config import Config

    for key in Config.model_fields:
        assert f"\n  {key} " in shown
    listened = []
    fake = types.SimpleNamespace(serve=lambda config, listen: listened.extend(listen) or 0)
    monkeypatch.setitem(sys.modules, "supervisor.daemon", fake)
    assert invoke("serve", "--listen", "tcp://0.0.0.0:7443", "--listen", "unix:///x").exit_code == 0
    assert listened == ["0.0.0.0:7443", "unix:///x"]


# Without a daemon


def test_a_named_daemon_is_never_replaced(tmp_path, monkeypatch):
    monkeypatch.setenv("SUPERVISOR_ADDRESS", f"unix://{tmp_path}/none")
    for arguments in (["run", "--", "true"], ["ps"]):
        done = invoke(*arguments)
        assert done.exit_code == 125
        assert f"no daemon answers at unix://{tmp_path}/none" in done.stderr
        assert "supervisor serve" in done.stderr


def test_run_embeds_a_daemon(daemon, monkeypatch):
    import contextlib
    import types

    entered = []

    @contextlib.contextmanager
    def embedded():
        entered.append(True)
        yield daemon.address
        entered.append(False)

    monkeypatch.delenv("SUPERVISOR_ADDRESS", raising=False)
    monkeypatch.setattr(connect, "listening", lambda: False)
    monkeypatch.setitem(sys.modules, "supervisor.daemon", types.SimpleNamespace(EmbeddedDaemon=embedded))
    done = invoke("run", "--", "end", "exited", "exit_code=3")
    assert (done.exit_code, entered) == (3, [True, False])
    assert invoke("ps").exit_code == 125


def test_a_socket_that_is_not_ours_to_use(monkeypatch):
    def denied(self, path):
        raise PermissionError(13, "Permission denied")

    class Socket:
        connect = denied

        def __init__(self, *_):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(connect.socket, "socket", Socket)
    with pytest.raises(errors.Unreachable, match="you may not use") as caught:
        connect.listening()
    assert "group" in caught.value.metadata["remedy"]
