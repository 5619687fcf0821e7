"""scripts/prepare.py refuses in plain words what it cannot or should not do."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).resolve().parents[2]


def make_checkout(folder: Path) -> Path:
    """A checkout with the set-up script, whose lock files ask for nothing."""
    (folder / "scripts").mkdir()
    shutil.copy(ROOT / "scripts" / "prepare.py", folder / "scripts")
    for name in ("requirements.lock", "requirements-build.lock", "requirements-dev.lock"):
        (folder / name).touch()
    return folder


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout of a test's own."""
    return make_checkout(tmp_path)


def prepare(checkout: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the script of a checkout."""
    command = [sys.executable, str(checkout / "scripts" / "prepare.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_folder_that_is_no_environment_is_left_alone(checkout: Path) -> None:
    """It would be deleted if it were taken for a broken environment."""
    (checkout / ".venv").mkdir()
    (checkout / ".venv" / "thesis.txt").write_text("years of work")
    done = prepare(checkout, "serve")
    assert done.returncode == 1
    assert "is not a virtual environment" in done.stderr
    assert (checkout / ".venv" / "thesis.txt").read_text() == "years of work"


def test_a_wheel_that_is_not_there_is_said_before_anything_is_made(checkout: Path) -> None:
    """The message says how to build one."""
    done = prepare(checkout, "serve", "--wheel", "dist/none.whl")
    assert done.returncode == 1
    assert "there is no wheel at dist/none.whl" in done.stderr
    assert not (checkout / ".venv").exists()


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A checkout whose environment lost its interpreter, after being given a wheel that is none."""
    checkout = make_checkout(tmp_path_factory.mktemp("broken"))
    (checkout / ".venv").mkdir()
    (checkout / ".venv" / "pyvenv.cfg").write_text("home = /nowhere\n")
    wheel = checkout / "keepstep-0.1.0-py3-none-any.whl"
    wheel.write_bytes(b"not a wheel")
    return checkout, prepare(checkout, "serve", "--wheel", str(wheel))


@pytest.mark.slow
def test_a_broken_environment_is_made_anew(broken: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    """An environment whose interpreter is gone, as after an upgrade of Python, is replaced."""
    checkout, done = broken
    assert "making the virtual environment" in done.stdout
    assert (checkout / ".venv" / "bin" / "python").exists()


@pytest.mark.slow
def test_a_failing_step_names_itself_and_is_not_recorded(
    broken: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    """After pip's own words it says which step it was; the next run tries it again."""
    checkout, done = broken
    assert done.returncode != 0
    assert "this step failed:" in done.stdout
    record = json.loads((checkout / ".venv" / "keepstep.json").read_text())
    assert "package" not in record
    assert record.keys() == {"base", "wheel"}
