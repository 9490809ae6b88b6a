"""A Docker daemon of our own: private socket, directories, namespaces and cgroups, and nothing of it left afterwards."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.bench.own import BenchError, last_line, stop
from tests.bench.subjects import Subject, command, find_program

_START_SECONDS = 30.0
_STOP_SECONDS = 15.0
_IMPORT_SECONDS = 60
_CGROUPS_SECONDS = 5.0
_IMAGE = "supervisor-bench:true"
# Near to what `strict` gives: its limits, no network, no capability, an unprivileged user; Docker's own seccomp profile.
_OPTIONS = [
    *("--rm", "--network", "none", "--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "--user", "65534:65534"),
    *("--security-opt", "no-new-privileges", "--memory", "512m", "--pids-limit", "128", "--cpus", "1"),
    *("--cgroupns", "private", "--log-driver", "none"),
]


@contextlib.contextmanager
def docker(base: Path, static: Path) -> Iterator[Subject]:
    """Starts dockerd and imports an image that holds `static` alone. Raises BenchError when that does not work."""
    client = find_program("docker", "docker.io")
    base.mkdir(mode=0o700)
    environment = {"PATH": os.environ.get("PATH", ""), "HOME": str(base), "DOCKER_CONFIG": str(base)}
    environment["DOCKER_HOST"] = f"unix://{base}/docker.sock"
    with _dockerd(base, client, environment):
        imported = subprocess.run(
            [client, "import", "-", _IMAGE],
            env=environment,
            input=_image(static),
            capture_output=True,
            timeout=_IMPORT_SECONDS,
        )
        if imported.returncode:
            raise BenchError(f"docker import: {last_line(imported.stderr)}")
        argv = [client, "run", *_OPTIONS, _IMAGE, "/true"]
        yield command("docker run", "static", "6 namespaces, limits, seccomp filter", argv, environment)


@contextlib.contextmanager
def _dockerd(base: Path, client: str, environment: dict[str, str]) -> Iterator[None]:
    cgroup = f"supervisor-bench-{os.getpid()}"
    config, log_path = base / "daemon.json", base / "dockerd.log"
    config.write_text(json.dumps({}))
    # As the first process of a pid namespace it takes containerd and every shim with it, also when we are killed; no
    # network of the host's is near enough to be changed.
    argv = ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--pid", "--net", "--fork", "--kill-child=KILL"]
    argv += ["--mount-proc", "--"]
    argv += [find_program("dockerd", "docker.io"), "--config-file", str(config), "--storage-driver", "overlay2"]
    argv += ["--data-root", f"{base}/data", "--exec-root", f"{base}/exec", "--pidfile", f"{base}/docker.pid"]
    argv += ["-H", environment["DOCKER_HOST"], "--exec-opt", "native.cgroupdriver=cgroupfs", "--cgroup-parent"]
    argv += [f"/{cgroup}", "--bridge", "none", "--iptables=false", "--ip6tables=false"]
    with log_path.open("wb") as log:
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
    try:
        deadline = time.monotonic() + _START_SECONDS
        while subprocess.run([client, "version"], env=environment, capture_output=True).returncode:
            if process.poll() is not None or time.monotonic() > deadline:
                raise BenchError(f"dockerd did not start: {last_line(log_path.read_bytes())}")
            time.sleep(0.1)
        yield
    finally:
        stop(process, "dockerd", _STOP_SECONDS, _children(process.pid))
        _remove_cgroups(cgroup)


def _children(pid: int) -> list[int]:
    """unshare(1) waits for the process it forked, deaf to SIGTERM itself."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _image(static: Path) -> bytes:
    """A tar with the program and the mount point it needs."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        tar.add(static, arcname="true")
        directory = tarfile.TarInfo("tmp")
        directory.type, directory.mode = tarfile.DIRTYPE, 0o1777
        tar.addfile(directory)
    return packed.getvalue()


def _remove_cgroups(name: str) -> None:
    """Removes the cgroup `name` from every hierarchy; says what could not be removed."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    roots = [Path(fields[1], name) for fields in mounts if fields[2] in ("cgroup", "cgroup2")]
    deadline = time.monotonic() + _CGROUPS_SECONDS
    while True:
        for root in roots:
            for directory, _, _ in os.walk(root, topdown=False):
                with contextlib.suppress(OSError):
                    os.rmdir(directory)
        left = [str(root) for root in roots if root.exists()]
        if not left:
            return
        if time.monotonic() > deadline:
            sys.stderr.write(f"bench: left behind: {', '.join(left)}\n")
            return
        time.sleep(0.1)
