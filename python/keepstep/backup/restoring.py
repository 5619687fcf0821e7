"""Restoring a backup: into a data directory that the server then runs in, or into a scratch one to be verified.

All of it happens in a directory of its own beside the final place, which is renamed into it at the very end: an
interrupted restore leaves nothing that a server would start with, and is begun again from the beginning.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tarfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Final, Protocol, TypeVar

import outcome
import trio

from keepstep import keys
from keepstep.backup import mirror, wal
from keepstep.backup.files import CHUNK_BYTES, Stop, content_of, read_sealed, sync_directory
from keepstep.backup.making import encryption_key
from keepstep.errors import BackupBusyError, BackupError, DamagedBackupError, StartupError
from keepstep.postgres import backups as source
from keepstep.postgres import migrate
from keepstep.postgres.cluster import ROLE
from keepstep.postgres.directory import DirectoryLock
from keepstep.postgres.recovery import (
    RestoredCluster,
    TargetNotReachedError,
    check_reach,
    find_server,
    give_to,
    recovered,
)

if TYPE_CHECKING:
    from datetime import datetime

    from keepstep.backup.choosing import Plan
    from keepstep.backup.keyfile import BackupKey
    from keepstep.config import Settings
    from keepstep.interfaces import Clock
    from keepstep.postgres.installation import Account, Installation
    from keepstep.postgres.recovery import Recovered

T = TypeVar("T")

RESTORING: Final = "postgres.restoring"
"""Directory in ``data_dir`` that becomes ``postgres``; one that an interrupted restore left is removed."""
FINAL: Final = "postgres"
LOCK_FILE: Final = "postgres.lock"
RESERVE_BYTES: Final = 256 << 20
"""Disk space that must be left beside what a restore takes."""
SHARED_MODE: Final = 0o711
"""Of a directory that PostgreSQL's account passes through; what is in it is private."""
ENTRIES_MAX: Final = 10_000_000
"""Files in a copy."""


@dataclass(frozen=True, slots=True)
class Restored:
    """What a restore did.

    Attributes:
        backup: id of the backup it began with.
        reached_target: whether the log reached the time asked for; else all there is was restored.
        last_at: when the last transaction that is there was committed; ``None`` where the log says of none.
        begun: the server's new epoch; ``None`` where it must still be declared.
        directory: where the database is.
    """

    backup: str
    reached_target: bool
    last_at: datetime | None
    begun: Begun | None
    directory: Path


class Begun(Protocol):
    """What ``restoring.begin_epoch`` did."""

    @property
    def epoch(self) -> int:
        """The server's new epoch."""

    @property
    def rewinds(self) -> int:
        """Streams that went back."""

    @property
    def replayed(self) -> int:
        """Entries that were put back from the journal."""

    @property
    def unplaced(self) -> Sequence[object]:
        """Entries of the journal that could not be put back."""

    @property
    def revived(self) -> Sequence[object]:
        """Accounts that only the journal held."""


class BeginEpoch(Protocol):
    """``restoring.begin_epoch``."""

    async def __call__(self, database_url: str, data_dir: Path, *, now_ms: int) -> Begun:
        """Raises StartupError."""


async def interruptible(function: Callable[[Stop], T]) -> T:
    """Run ``function`` in a worker thread; cancelling sets its ``Stop`` and waits for its end."""
    stop, done = Stop(), trio.Event()
    result: list[outcome.Outcome[T]] = []

    async def run() -> None:
        with trio.CancelScope(shield=True):
            result.append(await trio.to_thread.run_sync(outcome.capture, function, stop))
        done.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        try:
            await done.wait()
        finally:
            stop.set()
    return result[0].unwrap()


async def restore(
    settings: Settings, plan: Plan, *, begin_epoch: BeginEpoch, clock: Clock, into: Path | None = None
) -> Restored:
    """Restore into an empty data directory, and raise the server's epoch, so that devices heal what is missing.

    Args:
        settings: where the data directory is, and whom PostgreSQL runs as.
        plan: what is restored.
        begin_epoch: ``restoring.begin_epoch``.
        clock: this machine's.
        into: where a backup of another PostgreSQL than the embedded one goes, to be run by that PostgreSQL, and
            declared afterwards.

    Raises:
        BackupError: it cannot be done; the message says why and what to do. Nothing is left but the server's keys and
            the journal, which a second attempt takes as they are.
        StartupError: no PostgreSQL of that version runs here, or the data directory is in use.

    Cancel-safe: what was begun is removed.
    """
    embedded = plan.backup.manifest.embedded and into is None
    parent = settings.data_dir if embedded else into
    if parent is None:
        raise BackupError("this is a backup of a PostgreSQL of your own: say by --into where its data directory goes")
    key = encryption_key(settings)
    lock = await trio.to_thread.run_sync(_open_empty, parent, plan, embedded)
    home = parent / RESTORING
    try:
        if embedded:
            await interruptible(lambda stop: _restore_keys(settings, plan, key, stop))
        declare = partial(begin_epoch, data_dir=settings.data_dir, now_ms=clock.now_ms()) if embedded else None
        restored = await _restore_database(settings, plan, home, lock, key, declare)
        await trio.to_thread.run_sync(_put_into_place, home, parent / FINAL if embedded else parent / "data")
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(_remove, home)
        lock.release()
    return restored


async def _restore_database(
    settings: Settings,
    plan: Plan,
    home: Path,
    lock: DirectoryLock,
    key: BackupKey | None,
    declare: Callable[[str], Awaitable[Begun]] | None,
) -> Restored:
    """The database in ``home``, stopped; with its new epoch where it is told how to ``declare`` one."""
    async with restored_server(settings, plan, home, lock, key, role=None if declare is None else ROLE) as (
        found,
        reached,
    ):
        begun = None
        if declare is not None:
            await trio.to_thread.run_sync(migrate.up, found.url)
            begun = await declare(found.url)
    return Restored(plan.backup.manifest.id, reached, found.last_at, begun, home.parent)


@contextlib.asynccontextmanager
async def restored_server(
    settings: Settings, plan: Plan, home: Path, lock: DirectoryLock, key: BackupKey | None, *, role: str | None
) -> AsyncIterator[tuple[Recovered, bool]]:
    """The restored database, running in ``home``, and whether the log reached the target.

    Args:
        settings: whom PostgreSQL runs as.
        plan: what is restored.
        home: a directory that is made here; whoever calls removes it.
        lock: of the directory around it.
        key: opens encrypted backups.
        role: connects as this one; ``None``: as the superuser.

    Raises:
        BackupError: a file is damaged, the disk is full, or PostgreSQL does not start.
        StartupError: no PostgreSQL of that version runs here.
    """
    described = plan.backup.manifest
    account, installation = await trio.to_thread.run_sync(
        find_server, settings, described.postgres_version // source.VERSION_UNIT
    )
    await interruptible(lambda stop: _unpack(plan, home, account, installation, key, stop))
    cluster = RestoredCluster(
        home,
        account=account,
        installation=installation,
        lock=lock,
        superuser=described.superuser,
        target=plan.target,
        timeline=plan.timeline,
    )
    role = role or described.superuser
    reached = True
    async with contextlib.AsyncExitStack() as stack:
        try:
            found = await stack.enter_async_context(recovered(cluster, described.database, role))
        except TargetNotReachedError:
            # All that is there is from before the target, so all of it belongs to what was asked for.
            cluster.target, reached = None, False
            found = await stack.enter_async_context(recovered(cluster, described.database, role))
        yield found, reached


def _open_empty(parent: Path, plan: Plan, embedded: bool) -> DirectoryLock:
    """Lock the directory and check that a restore may go there. Raises BackupError, StartupError."""
    try:
        parent.mkdir(mode=0o700 if embedded else SHARED_MODE, parents=True, exist_ok=True)
        lock = DirectoryLock(parent)
        try:
            _remove(parent / RESTORING)
            known = {LOCK_FILE, mirror.JOURNAL, "backup", *mirror.KEY_FILES} if embedded else {LOCK_FILE}
            others = sorted(path.name for path in parent.iterdir() if path.name not in known)
            if others:
                raise BackupError(
                    f"{parent} is not empty ({', '.join(others[:5])}): a restore never writes over what is there. Move "
                    "the directory away, or restore into another one"
                )
            check_space(parent, plan.disk_bytes)
            _check_server_key(parent, plan.backup.manifest.server_key, embedded)
        except BaseException:
            lock.release()
            raise
    except OSError as error:
        raise BackupError(f"cannot restore into {parent}: {error.strerror}") from error
    return lock


def check_space(directory: Path, needed_bytes: int) -> None:
    """Refuse what does not fit. Raises BackupError."""
    free = shutil.disk_usage(directory).free
    if free < needed_bytes + RESERVE_BYTES:
        raise BackupError(
            f"{directory} has {free >> 20} MiB free and this takes {(needed_bytes + RESERVE_BYTES) >> 20} MiB"
        )


def _check_server_key(data_dir: Path, expected: str, embedded: bool) -> None:
    """The key that is there is the one devices know."""
    if embedded and expected and (data_dir / keys.FILE_NAME).exists():
        found = keys.load(data_dir).public.hex()
        if found != expected:
            raise BackupError(
                f"{data_dir / keys.FILE_NAME} is the key {found}, and devices of this backup know {expected}: put "
                "that one there"
            )


def _restore_keys(settings: Settings, plan: Plan, key: BackupKey | None, stop: Stop) -> None:
    """The server's keys and the journal into the data directory. Raises BackupError where there is no server key."""
    system, expected = plan.backup.path.parent, plan.backup.manifest.server_key
    mirror.restore_keys(system, expected, settings.data_dir, key=key, stop=stop)
    if expected and not (settings.data_dir / keys.FILE_NAME).exists():
        raise BackupError(
            f"the backups do not hold the server's key, for they are not encrypted: copy {keys.FILE_NAME} of the key "
            f"{expected} to {settings.data_dir} from where you keep it, then restore again"
        )
    mirror.restore_journal(system, settings.data_dir, key=key, stop=stop)


def _unpack(
    plan: Plan, home: Path, account: Account, installation: Installation, key: BackupKey | None, stop: Stop
) -> None:
    """The copy and the log into ``home``, each file checked. Raises BackupError."""
    described = plan.backup.manifest
    try:
        for directory in (home, home / "data", home / "socket", home / "log"):
            directory.mkdir(mode=0o700)
        check_reach(home, account, installation)
        for file in described.files:
            path = plan.backup.path / file.name
            with content_of(path, key=key, stop=stop, expected=bytes.fromhex(file.blake3)) as stream:
                _extract(stream, home / "data", stop)
        source.check_copy(installation.programs, home / "data", calling=stop.calling)
        if not described.embedded:
            (home / "data" / "postgresql.auto.conf").unlink(missing_ok=True)
        target = home / "data" / "pg_wal"
        wal.place(plan.segments, target, described.wal_segment_bytes, key=key, stop=stop)
        for path in wal.histories(plan.backup.path.parent / wal.DIRECTORY):
            with (target / wal.plain_name(path)).open("wb") as sink:
                read_sealed(path, sink, key=key, stop=stop, expected=None)
        give_to(home, account)
    except OSError as error:
        raise BackupError(f"cannot restore into {home}: {error.strerror}") from error


def _extract(stream: IO[bytes], target: Path, stop: Stop) -> None:
    """Files and directories of PostgreSQL's tar stream, nothing else, nowhere else. Raises BackupError, OSError."""
    count = 0
    try:
        with tarfile.open(fileobj=stream, mode="r|", bufsize=CHUNK_BYTES) as archive:
            for member in archive:
                stop.check()
                count += 1
                name = PurePosixPath(member.name)
                if name.is_absolute() or ".." in name.parts or count > ENTRIES_MAX:
                    raise DamagedBackupError(f"the copy holds {member.name!r}, which does not belong into it")
                path = target / name
                if member.isdir():
                    path.mkdir(mode=0o700, parents=True, exist_ok=True)
                elif member.isfile():
                    _extract_file(archive, member, path, stop)
                else:
                    raise DamagedBackupError(f"the copy holds {member.name!r}, which is neither a file nor a directory")
    except tarfile.TarError as error:
        raise DamagedBackupError(f"the copy is damaged: {error}") from error


def _extract_file(archive: tarfile.TarFile, member: tarfile.TarInfo, path: Path, stop: Stop) -> None:
    content = archive.extractfile(member)
    assert content is not None
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        while chunk := content.read(CHUNK_BYTES):
            stop.check()
            file.write(chunk)


def _put_into_place(home: Path, final: Path) -> None:
    """Give the restored directory its name. Raises BackupError."""
    try:
        os.sync()
        (home if final.name == FINAL else home / "data").rename(final)
        sync_directory(final.parent)
    except OSError as error:
        raise BackupError(f"cannot move {home} to {final}: {error.strerror}") from error


def _remove(directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)


@contextlib.contextmanager
def scratch(settings: Settings, name: str) -> Iterator[tuple[Path, DirectoryLock]]:
    """An empty directory to restore into, and its lock; removed after the block. Raises BackupError."""
    parent = settings.backup_scratch_dir or settings.data_dir / name
    try:
        parent.mkdir(mode=SHARED_MODE, parents=True, exist_ok=True)
        lock = DirectoryLock(parent)
    except StartupError as error:
        raise BackupBusyError("a backup is being verified already: wait until it is done") from error
    except OSError as error:
        raise BackupError(f"cannot restore into {parent}: {error.strerror}") from error
    home = parent / RESTORING
    try:
        _remove(home)
        yield home, lock
    finally:
        _remove(home)
        lock.release()
