"""Where the files that come with the package are, in a source tree, an editable install and a wheel alike."""

from __future__ import annotations

from pathlib import Path

PACKAGE_DIR = Path(__file__).resolve().parent


def shipped_policy_dir() -> Path:
    """The directory of the shipped policies, *.toml. A wheel carries them in the package, a source tree beside it.

    Raises FileNotFoundError when neither is there: the installation is broken.
    """
    for directory in (PACKAGE_DIR / "_policies", PACKAGE_DIR.parent / "policies"):
        if directory.is_dir():
            return directory
    raise FileNotFoundError(f"no shipped policies in {PACKAGE_DIR / '_policies'}: reinstall host-supervisor")


def launcher_path(name: str = "supervisor-launcher") -> Path:
    """The compiled `name` (supervisor-launcher, supervisor-probe or supervisor-launcher-asan); it may not exist."""
    return PACKAGE_DIR / "launcher" / "bin" / name
