"""People, a toolchain, a wheel and base images for the operations tests; all are made once and removed in the end."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.ops.machine import Person, clone_toolchain, tool_output

ORDINARY_USER = f"keepstep-{os.getpid()}"
"""Of this run alone, so that two of them on one machine do not take away each other's user."""
DISK_BYTES: Final = 200 << 20
"""A disk on which a cluster just fits."""


@pytest.fixture(scope="session")
def place() -> Iterator[Path]:
    """A folder that every user can enter, unlike pytest's own."""
    folder = Path(tempfile.mkdtemp(prefix="keepstep-ops-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def disk(place: Path) -> Iterator[Path]:
    """A small disk of its own."""
    folder = place / "disk"
    folder.mkdir()
    tool_output("mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", folder)
    yield folder
    tool_output("umount", folder)
    folder.rmdir()


@pytest.fixture(scope="session")
def ordinary(place: Path) -> Iterator[Person]:
    """A user without any privilege, with a home of its own."""
    home = place / "home"
    tool_output("useradd", "--create-home", "--home-dir", home, "--shell", "/bin/sh", ORDINARY_USER)
    yield Person(ORDINARY_USER)
    tool_output("userdel", ORDINARY_USER)


@pytest.fixture(scope="session")
def root() -> Person:
    """The superuser, with a fresh login's environment."""
    assert os.geteuid() == 0, "the operations tests need root"
    return Person("root")


@pytest.fixture(scope="session")
def toolchain(place: Path) -> Path:
    """The ``bin`` of a Rust toolchain that an ordinary user can read."""
    return clone_toolchain(place / "rust") / "bin"


@pytest.fixture(scope="session")
def distribution(place: Path) -> Path:
    """What ``make wheel`` builds: the wheel and the source distribution."""
    tool_output("make", "wheel", f"DIST={place / 'dist'}")
    return place / "dist"


@pytest.fixture(scope="session")
def wheel(distribution: Path) -> Path:
    """The project's wheel."""
    (built,) = distribution.glob("*.whl")
    return built
