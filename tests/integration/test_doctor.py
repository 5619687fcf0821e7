"""scripts/doctor.sh lists everything that is missing at once, each with its one-line install."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).resolve().parents[2]
SCRIPT: Final = ROOT / "scripts" / "doctor.sh"
SHELL_TOOLS: Final = ("dirname", "head", "id", "sed")
"""What every POSIX system has and the script uses."""


class Machine:
    """A search path with only what a test puts into it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for tool in SHELL_TOOLS:
            found = shutil.which(tool)
            assert found is not None
            (folder / tool).symlink_to(found)

    def add(self, name: str, script: str) -> None:
        """Put a program there."""
        program = self.folder / name
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)

    def add_python(self, name: str = "python3") -> None:
        """Put the interpreter of this test there."""
        self.add(name, f'exec "{sys.executable}" "$@"')

    def add_toolchain(self, version: str = "1.95.0") -> None:
        """Put a compiler that links and a complete Rust there."""
        self.add("cc", "exit 0")
        self.add("cargo", f'case "$1" in --version) echo "cargo {version} (0123 2026-01-01)";; *) exit 0;; esac')

    def doctor(self, need: str, **variables: str) -> tuple[int, str]:
        """Run the script with nothing else of this machine: exit code and everything it says."""
        environment = {"PATH": str(self.folder), **variables}
        result = subprocess.run(
            ["/bin/sh", SCRIPT, need], env=environment, capture_output=True, text=True, check=False, cwd="/"
        )
        return result.returncode, result.stdout + result.stderr


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A machine with a shell and nothing else."""
    return Machine(tmp_path)


def test_an_empty_machine_is_told_everything_at_once(machine: Machine) -> None:
    """Python, compiler, Rust and curl are listed together, each with a line for Debian, Ubuntu and macOS."""
    code, text = machine.doctor("test")
    assert code == 1
    assert "keepstep needs 4 things that are not on this machine" in text
    for line in ("Python 3.11 or newer", "a C compiler", "Rust 1.89 or newer", "curl"):
        assert line in text
    for system in ("Debian ", "Ubuntu ", "macOS "):
        assert text.count(f"      {system}") == 4
    assert "rustup" in text


def test_a_complete_machine_hears_nothing(machine: Machine) -> None:
    """With Python, compiler and Rust there is nothing to say; the tests want curl too."""
    machine.add_python()
    machine.add_toolchain()
    assert machine.doctor("serve") == (0, "")
    assert machine.doctor("test")[0] == 1
    machine.add("curl", "exit 0")
    assert machine.doctor("test") == (0, "")


def test_a_wheel_needs_python_only(machine: Machine) -> None:
    """Neither compiler nor Rust is asked for to run a built wheel."""
    machine.add_python()
    assert machine.doctor("wheel") == (0, "")


def test_an_old_python_is_named_with_the_newer_one_beside_it(machine: Machine) -> None:
    """The message gives the version found, and the command that uses the newer interpreter."""
    machine.add("python3", 'case "$2" in *version_info*) echo 3.9;; esac')
    machine.add_toolchain()
    code, text = machine.doctor("serve")
    assert code == 1
    assert "'python3' is Python 3.9" in text
    assert "python3.12" not in text
    machine.add_python("python3.12")
    assert "make PYTHON=python3.12" in machine.doctor("serve")[1]
    assert machine.doctor("serve", PYTHON="python3.12") == (0, "")


def test_a_python_without_venv_is_told_the_package(machine: Machine) -> None:
    """Debian's Python comes without venv: the package that has it is named by version."""
    machine.add("python3", 'case "$2" in *version_info*) echo 3.11;; *) exit 1;; esac')
    code, text = machine.doctor("wheel")
    assert code == 1
    assert "apt-get install -y python3.11-venv" in text


def test_debians_own_rust_is_too_old(machine: Machine) -> None:
    """An old cargo is named with its version and place, and rustup is what helps."""
    machine.add_python()
    machine.add_toolchain("1.63.0")
    code, text = machine.doctor("serve")
    assert code == 1
    assert f"{machine.folder}/cargo is Rust 1.63.0, too old" in text
    assert "sh.rustup.rs" in text


@pytest.mark.parametrize(
    ("version", "code"), [("1.88.1", 1), ("1.89.0", 0), ("1.100.0", 0), ("2.0.0", 0), ("0.99.0", 1)]
)
def test_versions_are_compared_as_numbers(machine: Machine, version: str, code: int) -> None:
    """1.100 is newer than 1.89, and 1.88 is not."""
    machine.add_python()
    machine.add_toolchain(version)
    assert machine.doctor("serve")[0] == code


def test_a_compiler_that_cannot_link_does_not_count(machine: Machine) -> None:
    """A cc without the C library's development files is as good as none."""
    machine.add_python()
    machine.add_toolchain()
    machine.add("cc", "exit 1")
    code, text = machine.doctor("serve")
    assert code == 1
    assert "cc is here but cannot link a program" in text


def test_missing_rust_components_are_named(machine: Machine) -> None:
    """A minimal rustup profile lacks clippy and rustfmt, which the checks need and the build does not."""
    machine.add_python()
    machine.add_toolchain()
    machine.add("cargo", 'case "$1" in --version) echo "cargo 1.95.0 (0123 2026-01-01)";; *) exit 101;; esac')
    assert machine.doctor("serve")[0] == 0
    code, text = machine.doctor("test")
    assert code == 1
    assert "rustup component add clippy" in text
    assert "rustup component add rustfmt" in text


def test_operations_tests_name_their_own_tools(machine: Machine) -> None:
    """`make test-ops` lists buildah, chromium, debootstrap, the reverse proxies, setpriv and valgrind too."""
    machine.add_python()
    machine.add_toolchain()
    code, text = machine.doctor("ops")
    assert code == 1
    packages = (
        *("buildah", "caddy", "chromium", "debootstrap", "haproxy", "nginx-light", "pgbackrest", "postgresql-15"),
        "valgrind",
        "util-linux",
    )
    assert all(f"apt-get install -y {package}" in text for package in packages)


def test_this_machine_passes_its_own_check() -> None:
    """What runs the tests has everything the check asks for."""
    result = subprocess.run(
        ["/bin/sh", SCRIPT, "test"], env=dict(os.environ), capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
