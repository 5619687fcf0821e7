"""``keepstep backup``: what an operator types, from the key to the restored server."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest

from keepstep import backup_cli, cli, keys
from keepstep.backup import manifest
from keepstep.runtime import SystemRandomness
from tests.support.backups import a_backup
from tests.support.database import DatabaseServer

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(data_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """The command line, with everything below one directory; gives exit code, output and errors."""
    for name, value in (
        ("KEEPSTEP_DATA_DIR", data_dir / "server"),
        ("KEEPSTEP_BACKUP_DIR", data_dir / "backups"),
        ("KEEPSTEP_BACKUP_KEY_FILE", data_dir / "backup.key"),
    ):
        monkeypatch.setenv(name, str(value))

    def run_once(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as raised:
            cli.main(["migrate", "up"] if arguments == ("migrate",) else ["backup", *arguments])
        said = capsys.readouterr()
        return int(raised.value.code or 0), said.out, said.err

    return run_once


def test_a_server_is_lost_and_restored(run: Run, data_dir: Path) -> None:
    """Key, backup, list, verify, restore; every step says what it did."""
    code, out, _ = run("keygen", str(data_dir / "backup.key"))
    assert code == 0
    assert "public key: age1" in out
    keys.load_or_create(data_dir / "server", SystemRandomness())
    code, _, err = run("run")
    assert (code, "cannot read the schema's version" in err) == (1, True)
    run("migrate")
    code, out, err = run("run", "--verify")
    assert (code, err) == (0, "")
    assert "encrypted  not verified" in out
    assert "is good: 0 events verified" in out
    code, out, _ = run("list")
    assert "encrypted  verified" in out
    assert "any second from" in out
    code, out, _ = run("verify")
    assert (code, "is good" in out) == (0, True)

    (name,) = [backup.manifest.id for backup in manifest.all_backups(data_dir / "backups")]
    code, _, err = run("restore")
    assert code == 1
    assert "is not empty (postgres)" in err
    shutil.rmtree(data_dir / "server")
    later = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    code, out, err = run("restore", "--backup", name, "--to-time", later)
    assert (code, err) == (0, "")
    assert "The backups end before the time asked for: all they hold was restored." in out
    assert "Start the server: keepstep serve." in out
    code, out, _ = run("declare-restored", "--yes")
    assert code == 0
    assert out.startswith("epoch ")


def test_what_cannot_be_done_is_said(run: Run, data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In words, with exit code 1; wrong usage is 2."""
    run("keygen", str(data_dir / "backup.key"))
    assert run("list")[0] == 1
    code, _, err = run("restore", "--to-time", "yesterday")
    assert code == 2
    assert "write 2026-03-01T12:00:00Z" in err
    monkeypatch.delenv("KEEPSTEP_BACKUP_DIR")
    code, _, err = run("list")
    assert (code, "set KEEPSTEP_BACKUP_DIR" in err) == (1, True)


def test_a_backup_that_is_not_good_is_listed_as_such(run: Run, data_dir: Path) -> None:
    """By its first fault; a directory of a database without a whole backup is shown too."""
    backup = a_backup(data_dir / "backups", day=1)
    manifest.write_verified(backup.path, manifest.Verified(at=0, seconds=1, events=0, faults=["a#1: forged"]))
    (data_dir / "backups" / "77").mkdir()
    code, out, _ = run("list")
    assert code == 0
    assert "plain  NOT GOOD: a#1: forged" in out
    assert "database 77: no whole backup" in out


def test_times_without_a_zone_are_utc() -> None:
    """And others are what they say."""
    assert backup_cli.parse_time("2026-03-01T12:00:00").isoformat() == "2026-03-01T12:00:00+00:00"
    assert backup_cli.parse_time("2026-03-01T12:00:00+02:00").isoformat() == "2026-03-01T10:00:00+00:00"


def test_a_postgresql_of_ones_own(
    run: Run, data_dir: Path, database_url: str, migrated_server: DatabaseServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes a role that may replicate; a restore gives a data directory for that PostgreSQL to run."""
    run("keygen", str(data_dir / "backup.key"))
    monkeypatch.setenv("DATABASE_URL", database_url)
    code, _, err = run("run")
    assert code == 1
    assert "set KEEPSTEP_BACKUP_DATABASE_URL to a role that may" in err
    parts = urlsplit(migrated_server.admin_url)
    admin = urlunsplit(parts._replace(path=urlsplit(database_url).path))
    monkeypatch.setenv("KEEPSTEP_BACKUP_DATABASE_URL", admin)
    code, out, err = run("run", "--verify")
    assert (code, err) == (0, "")
    assert "is good: 0 events verified" in out
    with psycopg.connect(database_url) as connection:
        row = connection.execute("SELECT safe_at FROM server_state").fetchone()
    assert row is not None
    assert row[0] > 0

    code, _, err = run("restore")
    assert code == 1
    assert "say by --into where its data directory goes" in err
    code, out, err = run("restore", "--into", str(data_dir / "restored"))
    assert (code, err) == (0, "")
    assert "then run keepstep backup declare-restored" in out
    assert (data_dir / "restored" / "data" / "PG_VERSION").exists()
    assert not (data_dir / "restored" / "data" / "recovery.signal").exists()
    code, out, _ = run("declare-restored", "--yes")
    assert (code, out.startswith("epoch ")) == (0, True)
