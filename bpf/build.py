"""Compiles the kernel programs: `python3 build.py [--out DIR]`. Standard library only; the package's build calls it too.

Every *.bpf.c beside this file makes one object of its name. They hold type information (CO-RE), so that one object loads
on every kernel with BTF; what of them a kernel refuses is found when they are loaded.
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import shutil
import subprocess
import sysconfig
from pathlib import Path

SOURCE_DIR = Path(__file__).resolve().parent
DEFAULT_OUT = SOURCE_DIR.parent / "supervisor" / "probes" / "bin"
COMPILERS = ("clang", *(f"clang-{version}" for version in range(21, 10, -1)))
ARCHITECTURES = {"x86_64": "x86", "aarch64": "arm64"}
FLAGS = ("-target", "bpf", "-mcpu=v3", "-O2", "-g", "-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter")


def objects() -> dict[str, Path]:
    """Object name -> its C source."""
    return {path.name.removesuffix(".c") + ".o": path for path in sorted(SOURCE_DIR.glob("*.bpf.c"))}


def compiler() -> list[str]:
    """$CLANG, else the newest clang there is. Raises FileNotFoundError."""
    if given := os.environ.get("CLANG"):
        return shlex.split(given)
    for name in COMPILERS:
        if found := shutil.which(name):
            return [found]
    raise FileNotFoundError("no clang: apt-get install clang libbpf-dev, or set CLANG")


def build(output_dir: Path) -> None:
    """Compiles every object into `output_dir`. Raises CalledProcessError, FileNotFoundError."""
    output_dir.mkdir(parents=True, exist_ok=True)
    architecture = ARCHITECTURES.get(platform.machine(), platform.machine())
    include = Path("/usr/include") / (sysconfig.get_config_var("MULTIARCH") or "")
    for name, source in objects().items():
        partial = output_dir / f".{name}.{os.getpid()}"
        command = [*compiler(), *FLAGS, f"-D__TARGET_ARCH_{architecture}", f"-I{include}"]
        command += ["-c", str(source), "-o", str(partial)]
        print(shlex.join(command).replace(f"{SOURCE_DIR}{os.sep}", ""), flush=True)  # noqa: T201
        try:
            subprocess.run(command, check=True)
            partial.replace(output_dir / name)
        finally:
            partial.unlink(missing_ok=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Compile the kernel programs.")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="where the objects go")
    arguments = parser.parse_args()
    try:
        build(arguments.out)
    except (subprocess.CalledProcessError, FileNotFoundError) as error:
        raise SystemExit(f"bpf: not built: {error}") from None


if __name__ == "__main__":
    main()
