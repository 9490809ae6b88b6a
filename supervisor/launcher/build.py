"""Compiles the launcher: `python3 build.py [--asan] [--out DIR]`. Standard library only; the package's build calls it too.

Every *.c beside this file but probe.c makes supervisor-launcher; probe.c makes supervisor-probe, a program of its own.
Both are static, so that they start inside any root and load nothing from it.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SOURCE_DIR = Path(__file__).resolve().parent
PROBE = "probe.c"

COMMON_FLAGS = ("-std=gnu11", "-Wall", "-Wextra", "-Werror")
RELEASE_FLAGS = ("-O2", "-g", "-D_FORTIFY_SOURCE=2", "-fstack-protector-strong", "-static-pie", "-fPIE")
RELEASE_LINK = ("-Wl,-z,relro,-z,now", "-Wl,-z,noexecstack")
ASAN_FLAGS = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer")


def programs(asan: bool = False) -> dict[str, list[Path]]:
    """Program name -> its C sources; a program without sources is left out."""
    launcher = sorted(path for path in SOURCE_DIR.glob("*.c") if path.name != PROBE)
    if asan:
        return {"supervisor-launcher-asan": launcher} if launcher else {}
    probe = [path for path in (SOURCE_DIR / PROBE,) if path.exists()]
    found = {"supervisor-launcher": launcher, "supervisor-probe": probe}
    return {name: sources for name, sources in found.items() if sources}


def compile_program(sources: list[Path], output: Path, flags: tuple[str, ...]) -> None:
    """Compile with $CC (gcc) and $CFLAGS to `output`, which is replaced whole: a program in use keeps its old file.

    Raises subprocess.CalledProcessError when the compiler refuses, FileNotFoundError when there is none.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(f".{output.name}.{os.getpid()}")
    compiler = shlex.split(os.environ.get("CC", "gcc"))
    extra = shlex.split(os.environ.get("CFLAGS", ""))
    command = [*compiler, *COMMON_FLAGS, *flags, *extra, "-o", str(partial), *map(str, sources)]
    print(shlex.join(command).replace(f"{SOURCE_DIR}{os.sep}", ""), flush=True)  # noqa: T201
    try:
        subprocess.run(command, check=True)
        partial.replace(output)
    finally:
        partial.unlink(missing_ok=True)


def build(output_dir: Path, asan: bool = False) -> None:
    """Compile every program into `output_dir`."""
    flags = ASAN_FLAGS if asan else (*RELEASE_FLAGS, *RELEASE_LINK)
    with ThreadPoolExecutor() as pool:
        jobs = [
            pool.submit(compile_program, sources, output_dir / name, flags) for name, sources in programs(asan).items()
        ]
    for job in jobs:
        job.result()


def main() -> None:
    parser = argparse.ArgumentParser(description="Compile the launcher.")
    parser.add_argument("--asan", action="store_true", help="build supervisor-launcher-asan: ASAN and UBSAN, dynamic")
    parser.add_argument("--out", type=Path, default=SOURCE_DIR / "bin", help="where the programs go")
    arguments = parser.parse_args()
    try:
        build(arguments.out, arguments.asan)
    except (subprocess.CalledProcessError, FileNotFoundError) as error:
        raise SystemExit(f"launcher: not built: {error}") from None


if __name__ == "__main__":
    main()
