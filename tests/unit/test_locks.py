"""The lock files: in step with pyproject.toml and each other, every package hashed, no package index named."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT: Final = Path(__file__).resolve().parents[2]
RUN: Final = "requirements.lock"
BUILD: Final = "requirements-build.lock"
DEVELOP: Final = "requirements-dev.lock"


def project() -> dict[str, Any]:
    """pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def entries(lock: str) -> list[tuple[Requirement, list[str]]]:
    """A lock file's requirements with their hashes."""
    joined = (ROOT / lock).read_text(encoding="utf-8").replace("\\\n", " ")
    found = []
    for line in joined.splitlines():
        requirement, *hashes = line.split(" --hash=")
        found.append((Requirement(requirement.strip()), [value.strip() for value in hashes]))
    return found


def pinned(lock: str) -> dict[str, set[str]]:
    """Versions by package; several where platforms differ."""
    versions: dict[str, set[str]] = {}
    for requirement, _ in entries(lock):
        versions.setdefault(canonicalize_name(requirement.name), set()).add(str(requirement.specifier))
    return versions


def group(name: str) -> Iterator[str]:
    """Requirements of a dependency group, those of the groups it includes among them."""
    for item in project()["dependency-groups"][name]:
        if isinstance(item, str):
            yield item
        else:
            yield from group(item["include-group"])


def wanted(lock: str) -> list[Requirement]:
    """What pyproject.toml asks for in a lock file."""
    described = project()["project"]
    run = [*described["dependencies"], *described["optional-dependencies"]["server"]]
    texts = {RUN: run, BUILD: list(group("build")), DEVELOP: [*run, *group("dev")]}[lock]
    return [Requirement(text) for text in texts]


@pytest.mark.parametrize("lock", [RUN, BUILD, DEVELOP])
def test_a_lock_has_what_the_project_asks_for(lock: str) -> None:
    """Every dependency is locked, at a version that pyproject.toml allows."""
    versions = pinned(lock)
    for requirement in wanted(lock):
        found = versions.get(canonicalize_name(requirement.name), set())
        assert found, f"{requirement.name} is not in {lock}: run make lock"
        assert all(requirement.specifier.contains(version.removeprefix("==")) for version in found), requirement


@pytest.mark.parametrize("lock", [RUN, BUILD, DEVELOP])
def test_a_lock_pins_and_hashes_everything(lock: str) -> None:
    """Each package has one exact version and SHA-256 hashes; nothing names where it comes from."""
    for requirement, hashes in entries(lock):
        assert re.fullmatch(r"==[^,*]+", str(requirement.specifier)), requirement
        assert hashes, requirement
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", value) for value in hashes), requirement
    assert "://" not in (ROOT / lock).read_text(encoding="utf-8")


@pytest.mark.parametrize("lock", [RUN, BUILD])
def test_developers_have_the_versions_that_servers_have(lock: str) -> None:
    """The development lock holds all that the other locks hold, at the same versions."""
    develop = pinned(DEVELOP)
    assert {name: versions for name, versions in pinned(lock).items() if develop.get(name) != versions} == {}
