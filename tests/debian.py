"""A small Debian for the tests that boot one, and this machine's pip for the Python in it."""

import platform
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def build(tree: Path, *packages: str) -> None:
    """Build a tree; the test is skipped where that cannot be done."""
    include = f"--include={','.join(packages)}"
    command = ["mmdebstrap", "--variant=minbase", include, "bookworm", str(tree)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    if built.returncode:
        pytest.skip(f"needs a Debian mirror, for a tree to boot: {built.stderr[-500:]}")


def dependencies() -> list[str]:
    """Return what the program needs, as requirements."""
    return list(_project()["project"]["dependencies"])


def build_dependencies() -> list[str]:
    """Return what it takes to build the program's wheel."""
    return list(_project()["build-system"]["requires"])


def _project() -> dict[str, dict[str, list[str]]]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def pip(tree: Path, command: str, *arguments: str) -> None:
    """Let pip `download` or `install --target` for the Python of the tree."""
    ask = "import sys; print('%d.%d' % sys.version_info[:2])"
    inside = ["chroot", str(tree), "python3", "-c", ask]
    version = subprocess.run(inside, capture_output=True, text=True, check=True).stdout.strip()
    platforms = [f"--platform=manylinux{glibc}_{platform.machine()}" for glibc in ("2014", "_2_28")]
    wheels = ["--quiet", "--only-binary=:all:", f"--python-version={version}", *platforms]
    whole = [sys.executable, "-m", "pip", command, *wheels, *arguments]
    subprocess.run(whole, check=True, capture_output=True)
