"""``keepstep database move | upgrade``: to another PostgreSQL, or to another major version of the embedded one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
import trio

from keepstep.cli_database import counted, server_installed
from keepstep.errors import StartupError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from keepstep.config import Settings


@click.group()
def database() -> None:
    """Move or upgrade the database."""


@database.command("move")
@click.argument("url")
def move_to(url: str) -> None:
    """Move everything to the PostgreSQL at URL.

    URL is an empty database (postgresql://user:password@host/name), its role the owner to be. Stop the server first.
    Devices notice nothing: start the server with DATABASE_URL set to URL, and they connect again by themselves.
    """
    with server_installed():
        trio.run(_move, _settings(), url)


@database.command()
@click.option(
    "--programs",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Where postgres of the earlier version is; looked for where distributions have it by default.",
)
def upgrade(programs: Path | None) -> None:
    """Move the embedded database to a newer PostgreSQL.

    To the one that this keepstep carries, from the earlier one that made it. Stop the server first. The old directory
    stays until you remove it.
    """
    with server_installed():
        trio.run(_upgrade, _settings(), programs)


def _settings() -> Settings:
    from keepstep import config, telemetry

    settings = config.load()
    telemetry.configure_logging("warning", settings.log_format)
    return settings


async def _move(settings: Settings, url: str) -> None:
    from keepstep.postgres import backups, embedded
    from keepstep.postgres.installation import find_account, find_installation
    from keepstep.postgres.moving import move

    installation = await trio.to_thread.run_sync(lambda: find_installation(find_account(settings.embedded_user)))

    async def work(source_url: str) -> None:
        rows = await trio.to_thread.run_sync(
            lambda: move(source_url, url, programs=installation.programs, private=settings.data_dir / "backup")
        )
        await _verify(url)
        _tell(rows)

    if settings.database_url is not None:
        await work(settings.database_url.get_secret_value())
    else:
        async with embedded.running(settings):
            await work(backups.find_source(settings).url)
    click.echo("Set DATABASE_URL to the new database and start the server. The old database was not changed.")


async def _upgrade(settings: Settings, programs: Path | None) -> None:
    from keepstep.postgres.upgrading import upgrade as upgrade_embedded

    kept, rows = await upgrade_embedded(settings, programs)
    _tell(rows)
    click.echo(f"The old one is kept in {kept}: remove it once the server has run well.")


async def _verify(url: str) -> None:
    """Every chain and signature, in the new place. Raises StartupError where one is wrong."""
    from keepstep.postgres.verification import verify_database
    from keepstep.runtime import SystemClock

    report = await trio.to_thread.run_sync(lambda: verify_database(url, now_ms=SystemClock().now_ms()))
    if not report.is_clean:
        raise StartupError(f"the moved database does not verify: {report.faults[0]}")
    click.echo(f"{counted(report.events, 'event')} of {counted(report.users, 'user')} verified")


def _tell(rows: Mapping[str, int]) -> None:
    click.echo(f"{sum(rows.values())} rows in {len(rows)} tables were copied")
