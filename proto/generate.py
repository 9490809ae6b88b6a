"""Regenerate supervisor/v1 from proto/; `make proto` runs this.

Generated code demands runtimes at least as new as its generator, and protobuf runs code of its own and of the previous
major release. So the generator is pinned here, apart from what the package runs on, and lives in an environment of its own.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import venv
from pathlib import Path

GENERATOR = ("grpcio-tools==1.74.0", "googleapis-common-protos==1.70.0")
"""Yields a floor of grpcio 1.74.0 and protobuf 6.31.1, and runs on protobuf 7."""

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = Path("supervisor/v1")


def create_generator(directory: Path) -> Path:
    """Install the pinned generator under `directory`; returns its interpreter."""
    venv.create(directory, with_pip=True)
    python = directory / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", *GENERATOR], check=True)
    return python


def generate(python: Path) -> None:
    """Write messages, stubs and type information beside the package's __init__.py."""
    where = "import google.rpc, pathlib; print(pathlib.Path(list(google.rpc.__path__)[0]).parent.parent)"
    common_protos = subprocess.run([python, "-c", where], check=True, capture_output=True, text=True).stdout.strip()
    sources = sorted(str(path.relative_to(ROOT / "proto")) for path in (ROOT / "proto" / PACKAGE).glob("*.proto"))
    subprocess.run(
        [
            python,
            "-m",
            "grpc_tools.protoc",
            f"--proto_path={ROOT / 'proto'}",
            f"--proto_path={common_protos}",
            f"--python_out={ROOT}",
            f"--pyi_out={ROOT}",
            f"--grpc_python_out={ROOT}",
            *sources,
        ],
        check=True,
        cwd=ROOT,
    )


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="supervisor-proto-") as directory:
        generate(create_generator(Path(directory)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
