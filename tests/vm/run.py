"""Runs the host tests inside Debian's stock kernel, with full cgroup v2 and every LSM, under emulation.

    run.py [--minutes N] [--memory SIZE] [--cpus N] [PYTEST ARGUMENT...]
    run.py --exec COMMAND [ARGUMENT...]          any other command in the same machine, to look around

The guest sees this machine's own root file system, read-only below an overlay whose upper layer is a fresh ext4 disk:
what the tests write is gone with it, and work directories are on a file system that can map ids. Output comes live;
the exit status is pytest's own, 124 when the time is up, 125 when the machine did not get as far as to tell one.
"""

from __future__ import annotations

import argparse
import os
import re
import selectors
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.host.hostile import compile_attacks

ROOT = Path(__file__).resolve().parent.parent.parent
GUEST_SCRIPT = Path(__file__).resolve().parent / "guest.sh"

TIME_FACTOR = 20
"""How much slower than this machine a CPU of the guest is, about; the tests stretch their limits by it."""

PASSED_ON = ("SUPERVISOR_COMMAND", "SUPERVISOR_LAUNCHER")
"""Of our own environment: which command and which launcher the tests are to take."""

STATUS_LINE = re.compile(rb"^supervisor-vm: status (\d+)\r?$", re.MULTILINE)
STATUS_TIMED_OUT = 124
STATUS_NO_ANSWER = 125
CONSOLE_TAIL_LINES = 60
DISK_SIZE = "8G"

LIBRARY_DIR = Path("/usr/lib") / (sysconfig.get_config_var("MULTIARCH") or "")
LIBRARY_SIZE_MAX = 8 << 20


def hot_files() -> Iterator[Path]:
    """What the guest opens again and again, and must not fetch through 9p, where even a cached file costs three round
    trips to open and a symbolic link one to follow: Python, the package and its environment, libraries, and links.
    """
    trees = [ROOT / name for name in (".venv", "supervisor", "tests", "policies", "pyproject.toml")]
    trees += [Path(sysconfig.get_path("stdlib")), Path("/usr/lib/python3/dist-packages")]
    parents = {parent for tree in trees for parent in tree.parents if parent != Path("/")}
    yield from sorted(parents)
    for tree in trees:
        yield from (tree, *sorted(tree.rglob("*")))
    for directory in (Path("/"), Path("/usr/bin"), Path("/usr/sbin"), LIBRARY_DIR):
        yield from (path for path in directory.iterdir() if path.is_symlink())
    for path in LIBRARY_DIR.glob("*.so*"):
        if path.is_file() and not path.is_symlink() and path.stat().st_size <= LIBRARY_SIZE_MAX:
            yield path


def make_disk(directory: Path) -> Path:
    """The guest's disk, an ext4 image; its upper/ lies over our root file system there."""
    content, disk = directory / "content", directory / "disk"
    (content / "upper").mkdir(parents=True, mode=0o755)
    names = b"".join(os.fsencode(path.relative_to("/")) + b"\0" for path in hot_files())
    pack = ["tar", "--create", "--directory=/", "--no-recursion", "--null", "--files-from=-", "--ignore-failed-read"]
    unpack = ["tar", "--extract", f"--directory={content / 'upper'}"]
    # On the way out, also by a signal, both have ended before the directory is removed.
    with (
        subprocess.Popen(unpack, stdin=subprocess.PIPE) as unpacked,
        subprocess.Popen(pack, stdin=subprocess.PIPE, stdout=unpacked.stdin, stderr=subprocess.DEVNULL) as packed,
    ):
        assert packed.stdin is not None and unpacked.stdin is not None
        unpacked.stdin.close()
        packed.stdin.write(names)
    # The packer's own status does not count: a file that vanished or changed meanwhile is read through 9p.
    if unpacked.returncode:
        raise SystemExit("vm: could not copy to the guest's disk: is there room in the temporary directory?")
    subprocess.run(["truncate", "--size", DISK_SIZE, str(disk)], check=True)
    # Without a journal: the disk lives as long as the machine.
    make = ["/sbin/mkfs.ext4", "-q", "-L", "supervisor", "-O", "^has_journal", "-d", str(content), str(disk)]
    subprocess.run(make, check=True)
    shutil.rmtree(content)
    return disk


def newest_kernel(boot: Path = Path("/boot"), modules: Path = Path("/lib/modules")) -> Path:
    """The newest stock kernel that has its modules; cloud kernels have no 9p and are passed over.

    Raises SystemExit, with the package to install, when there is none.
    """
    found = [
        path
        for path in boot.glob("vmlinuz-*-amd64")
        if "cloud" not in path.name and (modules / path.name.removeprefix("vmlinuz-")).is_dir()
    ]
    if not found:
        raise SystemExit("no Debian kernel in /boot: apt-get install linux-image-amd64, or make setup-vm")
    return max(found, key=lambda path: [int(number) for number in re.findall(r"\d+", path.name)])


def guest_command(arguments: argparse.Namespace) -> list[str]:
    """What runs in the guest, at the repository's root."""
    if arguments.exec:
        return list(arguments.rest)
    # -u: the output passes through a pipe on its way out.
    pytest = [sys.executable, "-u", "-m", "pytest", "-p", "no:cacheprovider", "--color=no", "--durations=10"]
    chosen = arguments.rest
    if not any(not word.startswith("-") and Path(word.split("::")[0]).exists() for word in chosen):
        chosen = ["tests/host", *chosen]
    if "-m" not in chosen:
        chosen = [*chosen, "-m", "not slow and not soak"]
    return [*pytest, *chosen]


def write_job(directory: Path, command: Sequence[str], seconds: float) -> Path:
    """The script that the guest finds through its view of our file system: its environment, then its command."""
    environment = {
        "SUPERVISOR_REQUIRE": "vm",
        "SUPERVISOR_TIME_FACTOR": str(TIME_FACTOR),
        "JOB_DIR": str(ROOT),
        "JOB_SECONDS": str(int(seconds)),
        "LANG": "C.UTF-8",
        "SUPERVISOR_TEST_ATTACKS": str(directory / "attacks"),
        **{name: os.environ[name] for name in PASSED_ON if name in os.environ},
    }
    lines = [f"export {name}={shlex.quote(value)}" for name, value in environment.items()]
    lines.append(shlex.join(["exec", "/bin/sh", str(GUEST_SCRIPT), *command]))
    job = directory / "job.sh"
    job.write_text("\n".join(lines) + "\n")
    return job


def machine_command(arguments: argparse.Namespace, kernel: Path, job: Path, disk: Path, console: Path) -> list[str]:
    """The vng command line. KVM stays off: where /dev/kvm is itself emulated, stock kernels hang under it."""
    qemu = [
        f"-drive file={disk},format=raw,if=virtio,cache=unsafe",
        # A second export of our root, for the guest to mount with a cache; the first one is mounted without.
        "-fsdev local,id=hostroot,path=/,security_model=none,readonly=on,multidevs=remap",
        "-device virtio-9p-pci,fsdev=hostroot,mount_tag=hostroot",
        f"-serial file:{console}",
        # The emulator's own best CPU has vector units, which the C library then uses, and which cost it most.
        "-cpu Nehalem",
    ]
    return [
        *("vng", "--disable-kvm", "--force-9p", "--run", str(kernel), "--user", "root"),
        *("--cpus", str(arguments.cpus), "--memory", arguments.memory),
        *("-a", "lsm=landlock,lockdown,yama,bpf", "-a", "loglevel=4", "-a", "mitigations=off"),
        # vng throws the console on the first serial port away, and the driver takes only one of its ports as a console.
        *("-a", "earlycon=uart8250,io,0x2f8", "-a", "keep_bootcon"),
        f"--qemu-opts={' '.join(qemu)}",
        *("--", "/bin/sh", str(job)),
    ]


def end_group(process: subprocess.Popen[bytes]) -> None:
    """End vng and the emulator below it; both are in the process group that we gave them."""
    for number, grace_seconds in ((signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0)):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        deadline = time.monotonic() + grace_seconds
        while time.monotonic() < deadline:
            process.poll()
            try:
                os.killpg(process.pid, 0)
            except ProcessLookupError:
                break
            time.sleep(0.1)
    process.wait()


def run_machine(command: Sequence[str], seconds: float) -> int:
    """Run the machine, its output passed on as it comes; returns the status that the guest told, see the module."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}"}
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
        start_new_session=True,
    )
    assert process.stdout is not None
    deadline = time.monotonic() + seconds
    tail = b""
    status: int | None = None
    try:
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while status is None:
                left = deadline - time.monotonic()
                if left <= 0:
                    print(f"\nvm: not done after {seconds / 60:.0f} minutes, ended", flush=True)
                    return STATUS_TIMED_OUT
                if not selector.select(left):
                    continue
                data = os.read(process.stdout.fileno(), 1 << 16)
                if not data:
                    break
                sys.stdout.buffer.write(data)
                sys.stdout.buffer.flush()
                tail = (tail + data)[-4096:]
                if (found := STATUS_LINE.search(tail)) and found.end() < len(tail):
                    status = int(found[1])
    finally:
        end_group(process)
        process.stdout.close()
    return STATUS_NO_ANSWER if status is None else status


def show_console(console: Path) -> None:
    """Print the end of what the kernel itself had to say."""
    lines = console.read_text(errors="replace").splitlines() if console.exists() else []
    print(f"vm: the last {CONSOLE_TAIL_LINES} of {len(lines)} lines of the kernel's console:")
    for line in lines[-CONSOLE_TAIL_LINES:]:
        print(f"    {line}")


def stop(number: int, _frame: FrameType | None) -> None:
    """Once: a second signal must not break off the ending of the machine and the removal of its disk."""
    for each in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)
    raise SystemExit(128 + number)


def main() -> int:
    parser = argparse.ArgumentParser(description="Run the host tests in an emulated Debian kernel.", allow_abbrev=False)
    parser.add_argument("--minutes", type=float, default=30, help="time limit for all of it")
    parser.add_argument("--memory", default="4G", help="memory of the guest")
    parser.add_argument("--cpus", type=int, default=min(4, os.cpu_count() or 1), help="CPUs of the guest")
    parser.add_argument("--exec", action="store_true", help="run the rest as a command instead of pytest")
    arguments, rest = parser.parse_known_args()
    arguments.rest = [word for word in rest if word != "--"]

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)
    os.chdir(ROOT)
    started = time.monotonic()
    seconds = arguments.minutes * 60
    with tempfile.TemporaryDirectory(prefix="supervisor-vm-") as name:
        directory = Path(name)
        disk, console = make_disk(directory), directory / "console"
        if not arguments.exec:
            compile_attacks(directory / "attacks")
        # The guest's own limit comes first, so that pytest can still say how far it got.
        job = write_job(directory, guest_command(arguments), seconds - min(60, seconds / 4))
        kernel = newest_kernel()
        print(f"vm: booting {kernel.name}, {arguments.cpus} CPUs, {arguments.memory}, emulated", flush=True)
        status = run_machine(machine_command(arguments, kernel, job, disk, console), seconds)
        if status:
            show_console(console)
    print(f"vm: status {status} after {time.monotonic() - started:.0f} s", flush=True)
    return status


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
