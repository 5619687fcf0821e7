"""A PostgreSQL started in a restored directory: it replays the write-ahead log to a time or to its end, and is its own.

What it replays is in ``pg_wal`` already, so that no program of ours has to be run by PostgreSQL, perhaps as another
account. The directory is ``home/data``, as in ``keepstep.postgres.cluster``.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio

from keepstep.errors import BackupError, DamagedBackupError, StartupError
from keepstep.postgres import embedded, guardian
from keepstep.postgres.backups import server_programs
from keepstep.postgres.cluster import ADMIN_ROLE, PORT, ROLE, Cluster
from keepstep.postgres.directory import DirectoryLock, SocketAddress
from keepstep.postgres.installation import Account, Installation, find_account, find_installation

if TYPE_CHECKING:
    from keepstep.config import Settings

RECOVERY_TIMEOUT_S: Final = 24 * 3_600.0
"""Seconds that replaying may take: a day of a busy server's log is replayed in an hour."""
ENTERS_BY_DESCRIPTOR: Final = 16
"""Major version from which PostgreSQL stays in a working directory that it cannot name."""
LOG_BYTES_MAX: Final = 1 << 20
"""How much of the end of PostgreSQL's log is read."""
_LOG_FILE: Final = "recovery.log"
_NOT_REACHED: Final = "recovery ended before configured recovery target was reached"
_LAST: Final = re.compile(r"last completed transaction was at log time (\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(?:\.\d+)?)\+00")


class TargetNotReachedError(BackupError):
    """The log ends before the time that was asked for."""


@dataclass(frozen=True, slots=True)
class Recovered:
    """A restored database that runs.

    Attributes:
        url: as the role asked for.
        last_at: when the last transaction that it has was committed; ``None`` where the log says of none.
    """

    url: str
    last_at: datetime | None


class RestoredCluster(Cluster):
    """A restored data directory.

    Args:
        home: holds ``data``, ``socket`` and ``log``.
        account: whom PostgreSQL runs as.
        installation: of the version that the directory was made by.
        lock: of the directory around it; released by ``close``.
        superuser: the name of one.
        target: replay up to and including this time; ``None``: to the end.
        timeline: which history to follow: ``current`` or ``latest``.
    """

    start_timeout_s = RECOVERY_TIMEOUT_S

    def __init__(
        self,
        home: Path,
        *,
        account: Account,
        installation: Installation,
        lock: DirectoryLock,
        superuser: str,
        target: datetime | None,
        timeline: str,
    ) -> None:
        address = SocketAddress(home / "socket", f".s.PGSQL.{PORT}")
        super().__init__(home, account=account, installation=installation, address=address, lock=lock)
        self._superuser = superuser
        self.target = target
        self._timeline = timeline

    @property
    def roles(self) -> tuple[str, ...]:
        """Also the superuser, whose name another PostgreSQL may have chosen."""
        return tuple(dict.fromkeys((ROLE, ADMIN_ROLE, self._superuser)))

    @property
    def extra_settings(self) -> Mapping[str, str]:
        """How to replay, and nothing of what the running server did to the world around it."""
        target = {} if self.target is None else {"recovery_target_time": self.target.astimezone(UTC).isoformat(" ")}
        return {
            "archive_mode": "off",
            "hot_standby": "off",
            "log_filename": _LOG_FILE,
            "log_rotation_age": "0",
            "primary_conninfo": "",
            "recovery_target_action": "promote",
            "recovery_target_inclusive": "on",
            "recovery_target_timeline": self._timeline,
            "restore_command": "false",
            "shared_preload_libraries": "",
            **target,
        }

    def prepare(self) -> None:
        """As for any start; and the directory is told that it is a restored one."""
        super().prepare()
        self.write("recovery.signal", "")

    def ensure_database(self) -> None:
        """Nothing: a restored one has its roles and its database."""

    def log_tail(self) -> str:
        """The end of PostgreSQL's log. Raises OSError."""
        path = self.home / "log" / _LOG_FILE
        if not path.exists():
            return ""
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - LOG_BYTES_MAX))
            return file.read().decode("utf-8", "replace")


def find_server(settings: Settings, major: int) -> tuple[Account, Installation]:
    """Whom PostgreSQL runs as and its programs, of exactly this major version. Raises BackupError, StartupError."""
    account = find_account(settings.embedded_user)
    with contextlib.suppress(StartupError):
        installation = find_installation(account)
        if installation.major == major:
            return account, installation
    return account, Installation(server_programs(major), major)


def check_reach(home: Path, account: Account, installation: Installation) -> None:
    """Refuse where PostgreSQL's account cannot enter by path, which its versions before 16 insist on.

    Raises:
        BackupError: it cannot; the message says what to do.
        OSError: a directory above cannot be looked at.
    """
    if not account.other or installation.major >= ENTERS_BY_DESCRIPTOR:
        return
    for directory in home.parents:
        status = directory.stat()
        bit = 0o100 if status.st_uid == account.uid else 0o010 if status.st_gid == account.gid else 0o001
        if not status.st_mode & bit:
            raise BackupError(
                f"PostgreSQL {installation.major} would run as {account.name}, who may not enter {directory}: take a "
                "directory that account can reach (KEEPSTEP_BACKUP_SCRATCH_DIR, or --into), or do not run this as root"
            )


async def _started(cluster: RestoredCluster) -> trio.Process:
    """Raises as ``recovered``. Cancel-safe: what was started is stopped."""
    try:
        return await embedded.start(cluster)
    except StartupError as error:
        failure = error
    log = await trio.to_thread.run_sync(cluster.log_tail)
    if _NOT_REACHED in log:
        raise TargetNotReachedError("the backups end before that time") from failure
    fatal = [line for line in log.splitlines() if "FATAL" in line or "PANIC" in line]
    raise DamagedBackupError(f"the restored PostgreSQL does not start: {fatal[-1] if fatal else failure}") from failure


@contextlib.asynccontextmanager
async def recovered(cluster: RestoredCluster, database: str, role: str) -> AsyncIterator[Recovered]:
    """The restored database, replayed, for as long as the block runs; then stopped cleanly.

    Raises:
        TargetNotReachedError: the log ends before the target; started again without one it is replayed to its end.
        BackupError: it does not start; the message says why.

    Cancel-safe: whatever was started by then is stopped.
    """
    process = await _started(cluster)
    try:
        log = await trio.to_thread.run_sync(cluster.log_tail)
        said = _LAST.findall(log)
        last = datetime.fromisoformat(f"{said[-1]}+00:00") if said else None
        yield Recovered(cluster.url(database, role=role), last)
    finally:
        with trio.move_on_after(embedded.STOP_TIMEOUT_S + guardian.KILL_S, shield=True):
            await embedded.stop(process)


def give_to(home: Path, account: Account) -> None:
    """Hand a restored directory to the account PostgreSQL runs as. Raises OSError."""
    if not account.other:
        return
    for path in (home, *home.rglob("*")):
        os.chown(path, account.uid, account.gid, follow_symlinks=False)
