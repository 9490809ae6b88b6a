"""What a declarative build cannot say: compile the C launcher and the probes, and ship policies/ inside the package."""

from __future__ import annotations

import runpy
import shutil
import sys
from pathlib import Path
from typing import ClassVar

from setuptools import Command, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build import build

LAUNCHER = Path("supervisor/launcher")
BPF = Path("bpf")
PROBES = Path("supervisor/probes")
POLICIES = Path("policies")


class build_shipped(Command):
    """Puts launcher binaries and policies into the package; an editable install finds the policies where they are."""

    description = "compile the launcher and the probes, and copy the shipped policies"
    user_options: ClassVar[list] = []

    def initialize_options(self) -> None:
        self.build_lib = None
        self.editable_mode = False

    def finalize_options(self) -> None:
        self.set_undefined_options("build_py", ("build_lib", "build_lib"))

    def _launcher(self) -> dict:
        return runpy.run_path(str(LAUNCHER / "build.py"))

    def _bpf(self) -> dict:
        return runpy.run_path(str(BPF / "build.py"))

    def run(self) -> None:
        root = Path() if self.editable_mode else Path(self.build_lib)
        if sys.platform == "linux":
            self._launcher()["build"](root / LAUNCHER / "bin")
            try:
                self._bpf()["build"](root / PROBES / "bin")
            except FileNotFoundError as error:  # `doctor` says what is lost
                self.warn(f"runs cannot be traced: {error}")
        if not self.editable_mode:
            target = root / "supervisor" / "_policies"
            for source in POLICIES.rglob("*.toml"):
                place = target / source.relative_to(POLICIES)
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, place)

    def get_source_files(self) -> list[str]:
        sources = [
            LAUNCHER / "build.py",
            *LAUNCHER.glob("*.[ch]"),
            BPF / "build.py",
            *BPF.glob("*.[ch]"),
            *POLICIES.rglob("*.toml"),
        ]
        return [str(path) for path in sources]

    def get_outputs(self) -> list[str]:
        root = Path(self.build_lib)
        shipped = root / "supervisor" / "_policies"
        outputs = [shipped / path.relative_to(POLICIES) for path in POLICIES.rglob("*.toml")]
        if sys.platform == "linux":
            outputs += [root / LAUNCHER / "bin" / name for name in self._launcher()["programs"]()]
            outputs += [path for name in self._bpf()["objects"]() if (path := root / PROBES / "bin" / name).exists()]
        return [str(path) for path in outputs]

    def get_output_mapping(self) -> dict[str, str]:
        return {}


class build_with_shipped(build):
    sub_commands: ClassVar[list] = [*build.sub_commands, ("build_shipped", None)]


class wheel_with_launcher(bdist_wheel):
    """Any Python 3, but on Linux this machine's architecture only: the launcher is a static executable."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.root_is_pure = sys.platform != "linux"

    def get_tag(self) -> tuple[str, str, str]:
        _, _, platform = super().get_tag()
        return "py3", "none", platform


setup(cmdclass={"build": build_with_shipped, "build_shipped": build_shipped, "bdist_wheel": wheel_with_launcher})
