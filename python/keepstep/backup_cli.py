"""The commands of backups: ``keepstep backup keygen | run | list | verify | restore | declare-restored``."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
import trio

from keepstep.cli_database import database_url, server_installed
from keepstep.errors import BackupError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from keepstep.backup.manifest import Backup, Verified
    from keepstep.backup.restoring import Begun, Restored
    from keepstep.config import Settings
    from keepstep.postgres.backups import Source

MIB: Final = 1 << 20
SECONDS_SHOWN: Final = "%Y-%m-%d %H:%M:%S"


@click.group()
def backup() -> None:
    """Make, verify and restore backups.

    Where backups go is set by KEEPSTEP_BACKUP_DIR; then a running server makes them by itself.
    """


@backup.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
def keygen(file: Path) -> None:
    """Make a key that encrypts backups.

    It is written to a new FILE. Keep a copy of it away from this machine.
    """
    with server_installed():
        from keepstep.backup.keyfile import make_key
        from keepstep.runtime import SystemClock

        key = make_key(file, now_ms=SystemClock().now_ms())
        click.echo(f"public key: {key.public}")
        click.echo(f"Set KEEPSTEP_BACKUP_KEY_FILE={file.absolute()}")
        click.echo("Without this file nobody can restore the backups: keep a copy of it away from this machine.")


@backup.command()
@click.option("--verify", "verifying", is_flag=True, help="Restore it into a scratch server and verify all of it.")
def run(verifying: bool) -> None:
    """Make a backup now.

    The server may run or be stopped.
    """
    with server_installed():
        settings = _settings()
        trio.run(_run, settings, verifying)


@backup.command("list")
def list_backups() -> None:
    """List the backups there are.

    The oldest first; then the times that can be restored.
    """
    with server_installed():
        from keepstep.backup import manifest
        from keepstep.backup.making import backup_dir

        directory = backup_dir(_settings())
        found = manifest.all_backups(directory)
        for one in found:
            click.echo(_line(one))
        if not found:
            raise BackupError(f"there is no backup in {directory}")
        for system in manifest.systems(directory):
            click.echo(_range(system))


@backup.command()
@click.argument("name", required=False)
def verify(name: str | None) -> None:
    """Prove that a backup can be restored.

    Restores the newest one, or NAME, into a scratch server and verifies every file, chain and signature.
    """
    with server_installed():
        settings = _settings()
        trio.run(_verify_one, settings, name)


@backup.command()
@click.option("--to-time", help="Restore what was committed by then, e.g. 2026-03-01T12:00:00Z (UTC by default).")
@click.option("--backup", "name", help="Begin with this backup; the last one before the time by default.")
@click.option("--timeline", type=click.Choice(["current", "latest"]), help="Which history, after earlier restores.")
@click.option(
    "--into", type=click.Path(file_okay=False, path_type=Path), help="Restore a PostgreSQL data directory into here."
)
def restore(to_time: str | None, name: str | None, timeline: str | None, into: Path | None) -> None:
    """Restore into an empty data directory.

    The latest there is, or the state of a given second. Stop the server and move its data directory away first.
    Devices that come back afterwards hand in again what the
    restored server has lost.
    """
    with server_installed():
        settings = _settings()
        target = None if to_time is None else parse_time(to_time)
        trio.run(_restore, settings, target, name, timeline, into)


@backup.command("declare-restored")
@click.confirmation_option(prompt="This ends every session and token of this server. Go on?")
def declare_restored() -> None:
    """Declare a restore by other tools.

    That is, by others than `keepstep backup restore`. Run it before the server is started on the restored database,
    or devices take what is missing for an attack.
    """
    with server_installed():
        settings = _settings()
        trio.run(_declare, settings)


def parse_time(text: str) -> datetime:
    """A time as people write it; without a zone it is UTC. Raises click.BadParameter."""
    try:
        parsed = datetime.fromisoformat(text)
    except ValueError:
        raise click.BadParameter(f"{text!r} is no time: write 2026-03-01T12:00:00Z", param_hint="--to-time") from None
    return parsed.replace(tzinfo=UTC) if parsed.tzinfo is None else parsed.astimezone(UTC)


def _settings() -> Settings:
    from keepstep import config, telemetry

    settings = config.load()
    telemetry.configure_logging("warning", settings.log_format)
    return settings


async def _with_source(settings: Settings, work: Callable[[Source], Awaitable[None]]) -> None:
    """Run ``work`` on the settings' database: the running server's, or one that is started for it."""
    from keepstep.postgres import backups, embedded

    found = backups.find_source(settings)
    if settings.database_url is not None or await trio.to_thread.run_sync(backups.is_reached, found.url):
        await work(found)
        return
    async with embedded.running(settings):
        await work(backups.find_source(settings))


async def _run(settings: Settings, verifying: bool) -> None:
    from keepstep.backup.making import make
    from keepstep.backup.restoring import interruptible
    from keepstep.runtime import SystemClock

    async def work(database: Source) -> None:
        now_ms = SystemClock().now_ms()
        made = await interruptible(lambda stop: make(settings, database, now_ms=now_ms, stop=stop))
        click.echo(_line(made))
        if verifying:
            await _verify(settings, made, database)

    await _with_source(settings, work)


async def _verify_one(settings: Settings, name: str | None) -> None:
    from keepstep.backup.choosing import make_plan
    from keepstep.backup.making import backup_dir
    from keepstep.postgres import backups

    chosen = make_plan(backup_dir(settings), target=None, name=name).backup
    database = backups.find_source(settings)
    is_there = await trio.to_thread.run_sync(backups.is_reached, database.url)
    await _verify(settings, chosen, database if is_there else None)


async def _verify(settings: Settings, chosen: Backup, database: Source | None) -> None:
    """Verify, tell, and have the running database know. Raises BackupError where it is not good."""
    from keepstep.backup.verifying import declare_safe, verify, walk
    from keepstep.runtime import SystemClock

    verified = await verify(settings, chosen, walk=walk, clock=SystemClock())
    if verified.faults:
        for fault in verified.faults:
            click.echo(fault)
        raise BackupError(f"backup {chosen.manifest.id} is not good: {len(verified.faults)} faults")
    if database is not None:
        await trio.to_thread.run_sync(declare_safe, database, chosen)
    click.echo(f"backup {chosen.manifest.id} is good: {verified.events} events verified in {verified.seconds} s")


async def _restore(
    settings: Settings, target: datetime | None, name: str | None, timeline: str | None, into: Path | None
) -> None:
    from keepstep.backup.choosing import make_plan
    from keepstep.backup.making import backup_dir
    from keepstep.backup.restoring import restore
    from keepstep.restoring import begin_epoch
    from keepstep.runtime import SystemClock

    plan = make_plan(backup_dir(settings), target=target, name=name, timeline=timeline)
    click.echo(f"restoring backup {plan.backup.manifest.id} and {len(plan.segments)} segments of log after it")
    restored = await restore(settings, plan, begin_epoch=begin_epoch, clock=SystemClock(), into=into)
    _tell(restored, target)


def _tell(restored: Restored, target: datetime | None) -> None:
    """What was restored, and what to do next."""
    last = "" if restored.last_at is None else f"; the last change in it is of {restored.last_at:{SECONDS_SHOWN}} UTC"
    click.echo(f"restored into {restored.directory}{last}")
    if target is not None and not restored.reached_target:
        click.echo("The backups end before the time asked for: all they hold was restored.")
    begun = restored.begun
    if begun is None:
        click.echo("Start this directory's PostgreSQL, then run keepstep backup declare-restored, then keepstep serve.")
        return
    _tell_epoch(begun)
    click.echo("Start the server: keepstep serve. Devices hand in what is missing as they come back.")


def _tell_epoch(begun: Begun) -> None:
    click.echo(f"epoch {begun.epoch}: {begun.rewinds} streams went back")
    click.echo(
        f"journal: {begun.replayed} entries put back, {len(begun.revived)} accounts with them; "
        f"{len(begun.unplaced)} entries could not be"
    )


async def _declare(settings: Settings) -> None:
    from keepstep.restoring import begin_epoch
    from keepstep.runtime import SystemClock

    async with database_url(settings, beside_a_server=False) as url:
        begun = await begin_epoch(url, settings.data_dir, now_ms=SystemClock().now_ms())
    _tell_epoch(begun)


def _line(one: Backup) -> str:
    """A backup on a line."""
    described = one.manifest
    begun = datetime.fromtimestamp(described.started_at / 1000, UTC)
    sealed = "encrypted" if described.encrypted_to is not None else "plain"
    size = f"{one.size_bytes / MIB:.1f} MiB"
    return f"{described.id}  {begun:{SECONDS_SHOWN}} UTC  {size}  {sealed}  {_state(one.verified)}"


def _state(verified: Verified | None) -> str:
    if verified is None:
        return "not verified"
    at = datetime.fromtimestamp(verified.at / 1000, UTC)
    if verified.faults:
        return f"NOT GOOD: {verified.faults[0]}"
    return f"verified {at:{SECONDS_SHOWN}} UTC, {verified.events} events"


def _range(system: Path) -> str:
    """The times that one database's backups can be restored to."""
    from keepstep.backup import manifest, wal

    found = manifest.backups(system)
    if not found:
        return f"database {system.name}: no whole backup"
    first = datetime.fromtimestamp(found[0].manifest.finished_at / 1000, UTC)
    kept = wal.segments(system / wal.DIRECTORY, found[-1].manifest.wal_segment_bytes)
    last_s = max((one.path.stat().st_mtime for one in kept), default=found[-1].manifest.finished_at / 1000)
    last = datetime.fromtimestamp(last_s, UTC)
    return f"database {system.name}: any second from {first:{SECONDS_SHOWN}} to {last:{SECONDS_SHOWN}} UTC"
