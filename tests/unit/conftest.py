"""The API's face on a socket, and the command pointed at it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator

import pytest
import structlog
from fake_daemon import COMMAND, FakeDaemon


@pytest.fixture
def daemon(tmp_path):
    with FakeDaemon(str(tmp_path / "s")) as running:
        yield running


@pytest.fixture
def environment(daemon):
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    return os.environ | {"SUPERVISOR_ADDRESS": daemon.address, "PYTHONPATH": root, "PYTHONWARNINGS": "default"}


@pytest.fixture
def command(environment, tmp_path):
    here = tmp_path / "here"
    here.mkdir()

    def call(*arguments, stdin=b"", check=None, **settings):
        settings = {"cwd": here, "env": environment, "capture_output": True, "timeout": 60} | settings
        done = subprocess.run([*COMMAND, *arguments], input=stdin, **settings)
        assert b"Traceback" not in done.stderr, done.stderr
        if check is not None:
            assert done.returncode == check, done.stderr
        return done

    call.here = here
    return call


@pytest.fixture
def started(environment):
    processes = []

    def start(*arguments, **settings):
        settings = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": environment} | settings
        processes.append(subprocess.Popen([*COMMAND, *arguments], **settings))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    """A test that configures logging does so for a standard error that is gone after it."""
    yield
    structlog.reset_defaults()
