"""Which PostgreSQL programs are run, and as whom."""

from __future__ import annotations

import os
import pwd
import shutil
from pathlib import Path
from typing import Any

import pytest

from keepstep.errors import StartupError
from keepstep.postgres import installation
from keepstep.postgres.installation import Account, Installation, find_account, find_installation

ORDINARY = pwd.getpwnam("nobody")
OWN = Account("me", os.geteuid(), os.getegid(), other=False)
OTHER = Account("nobody", ORDINARY.pw_uid, ORDINARY.pw_gid, other=True)


def test_an_ordinary_user_runs_postgresql_as_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is switched; the setting is for root."""
    monkeypatch.setattr(os, "geteuid", lambda: ORDINARY.pw_uid)
    account = find_account("ignored")
    assert account == Account("nobody", ORDINARY.pw_uid, ORDINARY.pw_gid, other=False)
    assert account.popen_arguments == {}


def test_root_runs_postgresql_as_the_configured_account(monkeypatch: pytest.MonkeyPatch) -> None:
    """With its group and none of root's."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    account = find_account("nobody")
    assert account == OTHER
    assert account.popen_arguments == {"user": ORDINARY.pw_uid, "group": ORDINARY.pw_gid, "extra_groups": []}


@pytest.mark.parametrize(
    ("uid", "name", "fragment"),
    [
        (0, "no-such-account", "no account 'no-such-account': set KEEPSTEP_EMBEDDED_USER"),
        (0, "root", "cannot run the embedded PostgreSQL as root"),
        (987_654, "nobody", "no name for user 987654"),
    ],
)
def test_an_account_that_cannot_be_used_is_refused(
    uid: int, name: str, fragment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message says which, and what to do."""
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    with pytest.raises(StartupError, match=fragment):
        find_account(name)


def test_the_wheels_programs_are_found_without_importing_it() -> None:
    """Its Python part would make users and open directories."""
    found = find_installation(OWN)
    assert (found.programs / "initdb").is_file()
    assert found.major == 18


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package in the wheel's place, whose postgres says a version; it may be changed."""
    made = tmp_path / "site" / "fake_postgres"
    programs = made / "pginstall" / "bin"
    programs.mkdir(parents=True)
    write_program(programs / "postgres", "echo 'postgres (PostgreSQL) 18.1'")
    (made / "pginstall" / "include").mkdir()
    metadata = made.with_name("fake_postgres-1.2.dist-info")
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: fake-postgres\nVersion: 1.2\n")
    monkeypatch.syspath_prepend(made.parent)
    monkeypatch.setattr(installation, "PACKAGE", "fake_postgres")
    return made


def write_program(path: Path, script: str) -> None:
    """A program that only its owner may run, as below a private home."""
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o700)


def test_a_platform_without_a_wheel_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is a PostgreSQL for every platform, if not from us."""
    monkeypatch.setattr(installation, "PACKAGE", "no_such_package")
    with pytest.raises(StartupError, match=r"no embedded PostgreSQL for this platform.*set DATABASE_URL"):
        find_installation(OWN)


def test_a_wheel_without_programs_counts_as_none(package: Path) -> None:
    """Half removed, for example."""
    shutil.rmtree(package / "pginstall")
    with pytest.raises(StartupError, match="no embedded PostgreSQL for this platform"):
        find_installation(OWN)


@pytest.mark.parametrize(
    ("script", "fragment"),
    [
        ("echo 'libz.so.1: cannot open shared object file' >&2; exit 127", "libz.so.1"),
        ("echo 'another program'", "another program"),
        ("exec sleep 60", "timed out"),
    ],
)
def test_programs_that_do_not_run_are_reported(
    script: str, fragment: str, package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A missing system library, a wheel for another machine: in the program's own words."""
    monkeypatch.setattr(installation, "PROGRAM_TIMEOUT_S", 0.2)
    write_program(package / "pginstall" / "bin" / "postgres", script)
    with pytest.raises(StartupError, match=f"cannot run the embedded PostgreSQL: .*{fragment}.*or set DATABASE_URL"):
        find_installation(OWN)


@pytest.fixture
def unreadable(package: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The package, where the other account cannot read it; what is elsewhere runs."""
    run = installation._try

    def run_elsewhere(tried: Path, account: Account) -> Installation:
        if tried == package:
            raise PermissionError(13, "Permission denied", str(tried))
        return run(tried, OWN)

    monkeypatch.setattr(installation, "_try", run_elsewhere)
    return package


def test_programs_that_the_account_cannot_read_are_copied_for_it(unreadable: Path, tmp_path: Path) -> None:
    """Once for each version, without what is not needed to run, readable by all."""
    libraries = unreadable.with_name("fake_postgres.libs")
    libraries.mkdir(mode=0o700)
    (libraries / "libpq.so").touch(mode=0o600)
    cache = tmp_path / "cache"
    found = find_installation(OTHER, cache)
    assert find_installation(OTHER, cache) == found == Installation(found.programs, 18)
    copy = cache / "postgresql-1.2"
    assert list(cache.iterdir()) == [copy]
    modes = {str(path.relative_to(copy)): oct(path.stat().st_mode & 0o777) for path in copy.rglob("*")}
    assert modes == {
        "fake_postgres": "0o755",
        "fake_postgres/pginstall": "0o755",
        "fake_postgres/pginstall/bin": "0o755",
        "fake_postgres/pginstall/bin/postgres": "0o755",
        "fake_postgres.libs": "0o755",
        "fake_postgres.libs/libpq.so": "0o644",
    }


def test_a_copy_that_another_server_finished_first_is_used(
    unreadable: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two servers of one machine start at once."""
    cache = tmp_path / "cache"
    rename = Path.rename

    def rename_late(partial: Path, target: Path) -> Path:
        shutil.copytree(partial, target)
        return rename(partial, target)

    monkeypatch.setattr(Path, "rename", rename_late)
    found = find_installation(OTHER, cache)
    assert found.programs == cache / "postgresql-1.2" / "fake_postgres" / "pginstall" / "bin"
    assert [path.name for path in cache.iterdir()] == ["postgresql-1.2"]


def test_a_copy_that_cannot_be_made_is_reported(
    unreadable: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk leaves nothing half made behind."""

    def fill(_source: Path, target: Path, **_options: Any) -> None:
        target.mkdir(parents=True)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copytree", fill)
    cache = tmp_path / "cache"
    with pytest.raises(StartupError, match=r"as 'nobody': .*No space left on device.*KEEPSTEP_EMBEDDED_USER"):
        find_installation(OTHER, cache)
    assert not list(cache.iterdir())
