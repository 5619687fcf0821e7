"""The commands of the archive: ``keepstep archive list | verify | restore``."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
import trio

from keepstep.cli_database import server_installed
from keepstep.errors import StartupError
from keepstep.verify_cli import user_key_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from keepstep.archive.index import ArchiveTail, SegmentEntry
    from keepstep.archive.opening import Archive, ArchiveKeys
    from keepstep.config import Settings
    from keepstep.heads import HeadSigner
    from keepstep.interfaces import Clock

EXIT_FAULTS: Final = 1
"""Something was found: the archive is not what was written there."""


@click.group()
def archive() -> None:
    """Look after the archive.

    Where it is, is set by KEEPSTEP_ARCHIVE_URL; then a running server writes events there before it lets them go.
    """


@archive.command("list")
@click.option("--user", help="Only this user, by id: 64 hexadecimal digits.")
def archive_list(user: str | None) -> None:
    """Show the segments: user, stream, events, last of them, bytes, object."""
    key = None if user is None else user_key_of(user)

    async def show(opened: Opened) -> None:
        from keepstep.archive.verifying import visit_segments, visit_streams

        count = size_bytes = 0

        async def show_stream(tail: ArchiveTail) -> None:
            async def show_segment(entry: SegmentEntry) -> None:
                nonlocal count, size_bytes
                count, size_bytes = count + 1, size_bytes + entry.size_bytes
                last = datetime.fromtimestamp(entry.to_at_ms / 1000, UTC).strftime("%Y-%m-%d")
                events = f"{entry.from_.seq + 1}-{entry.to.seq}"
                click.echo(
                    f"{tail.stream.user_key.hex()} {tail.stream.name} {events} {last} {entry.size_bytes} {entry.name}"
                )

            await visit_segments(opened.archive.index, tail.stream, show_segment)

        await visit_streams(opened.archive.index, key, show_stream)
        click.echo(f"{count} segments, {size_bytes} bytes")

    _with_archive(show)


@archive.command("verify")
@click.option("--user", help="Only this user, by id: 64 hexadecimal digits.")
def archive_verify(user: str | None) -> None:
    """Check every segment: digests, signatures, chains, numbers.

    Changes nothing; servers may go on meanwhile. Exits with 0 where all is as it was written, with 1 where it is not.
    """
    key = None if user is None else user_key_of(user)

    async def verify(opened: Opened) -> None:
        from keepstep.archive.verifying import verify_archive
        from keepstep.runtime import WorkerThreads

        report = await verify_archive(
            opened.archive.index, opened.archive.store, opened.keys.public, WorkerThreads(), user_key=key
        )
        for fault in report.faults:
            click.echo(str(fault))
        for note in report.notes:
            click.echo(f"note: {note}")
        verdict = "all as it was written" if report.is_clean else f"{report.found.count} faults"
        click.echo(
            f"verified {report.events} events in {report.segments} segments of {report.streams} streams: {verdict}"
        )
        if not report.is_clean:
            sys.exit(EXIT_FAULTS)

    _with_archive(verify)


@archive.command("restore")
@click.argument("user")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
def archive_restore(user: str, file: Path) -> None:
    """Write a user's whole account to a new FILE, with what is archived.

    FILE is an account file, which `keepstep import-account` reads in on a server that has not got the account. Devices
    need no restore: they read what is archived from this server as if it had never gone.
    """
    key = user_key_of(user)
    if file.exists():
        raise StartupError(f"{file} is there already")

    async def restore(opened: Opened) -> None:
        from keepstep.account_file import AccountExport
        from keepstep.postgres.admin import PostgresAdministration

        whose = await PostgresAdministration(opened.archive.index.database).user(key)
        if whose is None:
            raise StartupError(f"there is no user {user}")
        pieces = AccountExport(
            opened.archive.log,
            opened.signer,
            whose,
            opened.clock,
            server_key=opened.keys.public[0],
            check=trio.lowlevel.checkpoint,
        )
        size_bytes = await _write(file, pieces)
        click.echo(f"wrote {size_bytes} bytes to {file}")

    _with_archive(restore)


@dataclass(frozen=True, slots=True)
class Opened:
    """The archive of the settings, and what reading it takes.

    Attributes:
        archive: with the database behind it; its log reads what is archived.
        keys: the server's.
        signer: of heads.
        clock: this machine's.
    """

    archive: Archive
    keys: ArchiveKeys
    signer: HeadSigner
    clock: Clock


def _with_archive(work: Callable[[Opened], Awaitable[None]]) -> None:
    """Run ``work`` on the settings' archive and database. Raises StartupError, ConfigError, Unavailable."""
    with server_installed():
        from keepstep import config, telemetry

        settings = config.load()
        telemetry.configure_logging("warning", settings.log_format)
        if settings.archive_url is None:
            raise StartupError(f"there is no archive: set {config.variable('archive_url')}")
        trio.run(_work, settings, work)


async def _work(settings: Settings, work: Callable[[Opened], Awaitable[None]]) -> None:
    """Cancel-safe between calls of the database and the archive."""
    from keepstep.postgres import embedded

    if settings.database_url is not None:
        async with _opened(settings, settings.database_url.get_secret_value()) as opened:
            await work(opened)
        return
    async with embedded.running(settings) as url, _opened(settings, url) as opened:
        await work(opened)


@asynccontextmanager
async def _opened(settings: Settings, url: str) -> AsyncIterator[Opened]:
    import structlog

    from keepstep import _keepstep, keys
    from keepstep.archive.opening import ArchiveKeys, open_archive, read_through
    from keepstep.heads import HeadSigner
    from keepstep.postgres.log import PostgresLog
    from keepstep.postgres.pool import Database
    from keepstep.protocol.succession import verify_announcement
    from keepstep.runtime import SystemClock, WorkerThreads
    from keepstep.telemetry import Metrics

    clock, threads = SystemClock(), WorkerThreads()
    database = Database(url, threads=threads, clock=clock)
    try:
        log = PostgresLog(database, tail_bytes_max=0)
        key = keys.load(settings.data_dir)
        announced = keys.load_announcements(settings.data_dir)
        predecessors = [verify_announcement(_keepstep, each).old_key for each in announced]
        archive_keys = ArchiveKeys(key.secret, predecessors)
        found = open_archive(settings, database, log, threads=threads, clock=clock)
        assert found is not None
        read_through(settings, found, archive_keys, threads, Metrics(), structlog.get_logger())
        signer = HeadSigner(key.secret, epoch=log.epoch, clock=clock, predecessors=predecessors)
        yield Opened(found, archive_keys, signer, clock)
    finally:
        database.close()


async def _write(file: Path, pieces: AsyncIterator[bytes]) -> int:
    """A new file for its owner's eyes only, whole or not at all; its size, bytes. Raises StartupError."""
    draft = file.with_name(f"{file.name}.part")
    size_bytes = 0
    try:
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as output:
            async for piece in pieces:
                size_bytes += output.write(piece)
            output.flush()
            os.fsync(output.fileno())
        draft.replace(file)
        return size_bytes
    finally:
        draft.unlink(missing_ok=True)
