"""The hostile programs of attacks/, built, and what they must not reach."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from pathlib import Path

ATTACKS = Path(__file__).parent / "attacks"


def compile_attacks(target: Path) -> Path:
    """Every program of attacks/ into `target`: C statically linked, the rest copied; all mode 0755."""
    built_before = os.environ.get("SUPERVISOR_TEST_ATTACKS")
    if built_before:  # a compiler under emulation takes minutes
        shutil.copytree(built_before, target)
        return target
    target.mkdir(mode=0o755, exist_ok=True)
    for source in sorted(ATTACKS.iterdir()):
        built = target / (source.stem if source.suffix == ".c" else source.name)
        if source.suffix == ".c":
            command = ["gcc", "-O1", "-static", "-pthread", "-Wall", "-Wextra", "-Werror", "-D_GNU_SOURCE"]
            subprocess.run([*command, "-o", built, source], check=True)
        elif source.suffix in (".py", ".sh"):
            built.write_bytes(source.read_bytes())
        else:
            continue
        built.chmod(0o755)
    return target


class AbstractListener:
    """An abstract Unix socket of the host named `name`; `reached` once anything has connected to it."""

    def __init__(self, name: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.bind("\0" + name)
        self._socket.listen(8)
        self._socket.setblocking(False)

    @property
    def reached(self) -> bool:
        try:
            peer, _ = self._socket.accept()
        except BlockingIOError:
            return False
        peer.close()
        return True

    def close(self) -> None:
        self._socket.close()
