"""Every command of the README is run as it stands there, and its Python too, by a newcomer with nothing configured."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.host.daemon_fixture import Daemon, scaled

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
SHELL = re.findall(r"^```sh\n(.*?)^```", README, re.S | re.M)
PYTHON = re.findall(r"^```python\n(.*?)^```", README, re.S | re.M)

pytestmark = pytest.mark.slow  # in the VM lane Python's start alone takes seconds, dozens of times


@pytest.fixture
def newcomer(base_directory: Path) -> Iterator[dict[str, str]]:
    """The repository as working directory; the daemon's files under our own directory instead of /run and /var/lib."""
    base = Path(tempfile.mkdtemp(prefix="readme-", dir=base_directory))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SUPERVISOR_")}
    environment["SUPERVISOR_STATE_DIR"] = f"{base}/state"
    environment["SUPERVISOR_RUNTIME_DIR"] = f"{base}/run"
    yield environment
    shutil.rmtree(base)


def run_shell(block: str, environment: dict[str, str], directory: Path) -> subprocess.CompletedProcess[str]:
    # A block with a daemon of its own talks to that one; the others find none and embed one.
    if "supervisor serve" in block:
        environment = {
            **environment,
            "SUPERVISOR_ADDRESS": f"unix://{environment['SUPERVISOR_RUNTIME_DIR']}/supervisor.sock",
        }
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-m", "-c", block.replace(".venv/bin/", f"{ROOT}/.venv/bin/")],
        cwd=directory,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=scaled(300),
    )


def test_there_is_something_to_run() -> None:
    assert len(SHELL) >= 5 and len(PYTHON) == 1
    assert SHELL[0] == "make setup\nmake run\n"


def test_the_two_commands(newcomer: dict[str, str]) -> None:
    done = run_shell(SHELL[0], newcomer, ROOT)
    assert done.returncode == 0, done.stderr
    for word in (
        "timed_out",
        "out_of_memory",
        "violation",
        "output_limit",
        "11 queens: 2680 solutions",
        "complete: yes",
    ):
        assert word in done.stdout, done.stdout


@pytest.mark.parametrize("number", range(1, len(SHELL)))
def test_shell(number: int, newcomer: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(README)
    done = run_shell(SHELL[number], newcomer, tmp_path)
    assert done.returncode == 0, (SHELL[number], done.stdout, done.stderr)
    if "print(6 * 7)" in SHELL[number]:
        assert done.stdout.splitlines()[0] == "42"
        assert "HELLO" in done.stdout and "and home is /tmp" in done.stdout
        assert int((tmp_path / "out" / "words").read_text().split()[0]) == len(README.split())


def test_python(newcomer: dict[str, str], daemon: Daemon, tmp_path: Path) -> None:
    script = tmp_path / "example.py"
    script.write_text(PYTHON[0])
    environment = {**newcomer, "SUPERVISOR_ADDRESS": daemon.address}
    done = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=scaled(60)
    )
    assert done.returncode == 0, done.stderr
    assert "b'6\\n'" in done.stdout and "Started(" in done.stdout and "b'one\\n'" in done.stdout
