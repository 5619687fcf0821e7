"""A PostgreSQL of the distribution, of another major version: backed up, restored, upgraded from; and pgBackRest."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import psycopg
import pytest
import trio

from keepstep import keys
from keepstep.backup import manifest
from keepstep.config import Settings
from keepstep.errors import StartupError
from keepstep.postgres import cluster, embedded, migrate
from keepstep.postgres.installation import Account, Installation
from keepstep.postgres.upgrading import upgrade
from keepstep.runtime import SystemRandomness
from tests.ops.machine import ROOT, tool_output

MAJOR: Final = 15
PROGRAMS: Final = Path(f"/usr/lib/postgresql/{MAJOR}/bin")
DEPLOY: Final = ROOT / "deploy" / "pgbackrest"
KEEPSTEP: Final = ROOT / ".venv" / "bin" / "keepstep"


@dataclass(frozen=True)
class OtherServer:
    """A server of the distribution's PostgreSQL, run by its own account, reached over a socket."""

    folder: Path

    @property
    def data(self) -> Path:
        """Its data directory."""
        return self.folder / "main"

    @property
    def url(self) -> str:
        """The database keepstep is in, as the superuser."""
        return f"postgresql://postgres@/keepstep?host={self.folder}"

    def program(self, name: str, *arguments: str | Path) -> str:
        """Run one of its programs as its account."""
        return tool_output("runuser", "-u", "postgres", "--", PROGRAMS / name, *arguments)

    def start(self) -> None:
        """Start it and wait until it answers."""
        self.program("pg_ctl", "-D", self.data, "-w", "-l", self.folder / "log", "start")

    def stop(self) -> None:
        """Stop it."""
        self.program("pg_ctl", "-D", self.data, "-m", "fast", "-w", "stop")

    def configure(self, text: str) -> None:
        """More settings."""
        with (self.data / "postgresql.conf").open("a") as file:
            file.write(text)

    def execute(self, statement: str) -> object:
        """The first value of one statement, committed."""
        with psycopg.connect(self.url) as connection:
            cursor = connection.execute(statement.encode())
            row = cursor.fetchone() if cursor.description else None
        return None if row is None else row[0]


@pytest.fixture
def other(place: Path) -> Iterator[OtherServer]:
    """One with keepstep's schema in it."""
    folder = place / "other"
    folder.mkdir()
    shutil.chown(folder, "postgres", "postgres")
    made = OtherServer(folder)
    made.program("initdb", "-D", made.data, "-A", "trust", "-U", "postgres", "--no-instructions")
    made.configure(
        f"listen_addresses = ''\nunix_socket_directories = '{folder}'\nmax_slot_wal_keep_size = 1GB\nfsync = off\n"
    )
    made.start()
    made.program("createdb", "-h", folder, "keepstep")
    migrate.up(made.url)
    made.execute("CREATE TABLE marks (number int)")
    yield made
    subprocess.run(
        ["runuser", "-u", "postgres", "--", PROGRAMS / "pg_ctl", "-D", made.data, "-m", "immediate", "stop"],
        check=False,
        capture_output=True,
    )
    shutil.rmtree(folder)


def keepstep(place: Path, url: str, *arguments: str) -> str:
    """The command, with its directories below ``place``."""
    return tool_output(
        "env",
        f"KEEPSTEP_DATA_DIR={place / 'server'}",
        f"KEEPSTEP_BACKUP_DIR={place / 'backups'}",
        f"KEEPSTEP_BACKUP_SCRATCH_DIR={place / 'scratch'}",
        f"DATABASE_URL={url}",
        KEEPSTEP,
        *arguments,
    )


def test_it_is_backed_up_verified_and_restored(place: Path, other: OtherServer) -> None:
    """By the embedded server's tools, in a scratch server of its own version; then it runs what was restored."""
    keys.load_or_create(place / "server", SystemRandomness())
    other.execute("INSERT INTO marks VALUES (1)")
    assert "is good" in keepstep(place, other.url, "backup", "run", "--verify")
    (backup,) = manifest.all_backups(place / "backups")
    assert backup.manifest.postgres_version // 10_000 == MAJOR
    other.execute("INSERT INTO marks VALUES (2)")
    other.stop()
    keepstep(place, other.url, "backup", "restore", "--into", str(place / "restored"))
    shutil.rmtree(other.data)
    shutil.move(place / "restored" / "data", other.data)
    tool_output("chown", "-R", "postgres:postgres", other.data)
    (other.data / "pg_hba.conf").write_text("local all all trust\n")
    other.configure(f"listen_addresses = ''\nunix_socket_directories = '{other.folder}'\nlogging_collector = off\n")
    other.start()
    assert "went back" in keepstep(place, other.url, "backup", "declare-restored", "--yes")
    assert other.execute("SELECT count(*) FROM marks") == 1
    shutil.rmtree(place / "server")
    shutil.rmtree(place / "backups")


def test_pgbackrest_restores_to_a_second(place: Path, other: OtherServer) -> None:
    """The files in deploy and the steps in the how-to; then keepstep is told, and everything verifies."""
    repository = other.folder / "repository"
    config = other.folder / "pgbackrest.conf"
    text = (DEPLOY / "pgbackrest.conf").read_text().replace("CHANGE-ME", "a passphrase of this test")
    text = text.replace("/var/lib/postgresql/15/main", str(other.data)).replace("/var/lib/pgbackrest", str(repository))
    config.write_text(f"{text}pg1-socket-path={other.folder}\n[global:archive-push]\nlog-level-file=off\n")
    for path in (repository, other.folder / "logs", other.folder / "locks"):
        path.mkdir()
        shutil.chown(path, "postgres", "postgres")

    def pgbackrest(*arguments: str) -> None:
        common = [f"--config={config}", f"--log-path={other.folder / 'logs'}", f"--lock-path={other.folder / 'locks'}"]
        tool_output("runuser", "-u", "postgres", "--", "pgbackrest", *common, "--stanza=keepstep", *arguments)

    keys.load_or_create(place / "server", SystemRandomness())
    settings = (DEPLOY / "postgresql.conf").read_text()
    push = f"pgbackrest --config={config} --log-path={other.folder / 'logs'} --lock-path={other.folder / 'locks'}"
    other.configure(settings.replace("'pgbackrest ", f"'{push} "))
    other.stop()
    other.start()
    pgbackrest("stanza-create")
    pgbackrest("--type=full", "backup")
    other.execute("SELECT pg_sleep(2)")  # pgBackRest counts in whole seconds
    other.execute("INSERT INTO marks VALUES (1)")
    between = datetime.now(UTC)
    other.execute("INSERT INTO marks VALUES (2)")
    other.execute("SELECT pg_switch_wal()")
    other.stop()
    target = f"--target={between:%Y-%m-%d %H:%M:%S.%f+00}"
    pgbackrest("--delta", "--type=time", target, "--target-action=promote", "restore")
    other.start()
    assert "went back" in keepstep(place, other.url, "backup", "declare-restored", "--yes")
    keepstep(place, other.url, "verify", "--quiet")
    assert other.execute("SELECT count(*) FROM marks") == 1
    shutil.rmtree(place / "server")


def test_the_embedded_database_of_an_earlier_major_version_is_upgraded(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the programs of that version, found where the distribution has them; the old directory stays."""
    data_dir = place / "upgraded"
    data_dir.mkdir(mode=0o755)
    settings = Settings(data_dir=data_dir)

    def earlier(_account: Account) -> Installation:
        return Installation(PROGRAMS, MAJOR)

    async def make() -> None:
        async with embedded.running(settings) as url:
            await trio.to_thread.run_sync(migrate.up, url)

    async def look() -> str:
        async with embedded.running(settings) as url:
            with psycopg.connect(url) as connection:
                row = connection.execute("SELECT current_setting('server_version'), epoch FROM server_state").fetchone()
        assert row is not None
        return str(row[0])

    with monkeypatch.context() as patched:
        patched.setattr(cluster, "find_installation", earlier)
        trio.run(make)
    with pytest.raises(StartupError, match="run keepstep database upgrade"):
        trio.run(look)
    kept, rows = trio.run(upgrade, settings, None)
    assert kept == data_dir / f"postgres.{MAJOR}"
    assert kept.is_dir()
    assert rows["server_state"] == 1
    assert not trio.run(look).startswith(str(MAJOR))
    shutil.rmtree(data_dir)
