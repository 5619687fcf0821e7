"""A backup is good when it was restored and all of it verified: every file, every chain, every signature."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, Protocol

import trio

from keepstep.backup import manifest
from keepstep.backup.choosing import make_plan
from keepstep.backup.files import Stop
from keepstep.backup.making import WORK_DIRECTORY, encryption_key
from keepstep.backup.restoring import check_space, interruptible, restored_server, scratch
from keepstep.errors import BackupError, DamagedBackupError
from keepstep.postgres import backups as source
from keepstep.postgres.verification import verify_database
from keepstep.runtime import SystemClock

if TYPE_CHECKING:
    from keepstep.config import Settings
    from keepstep.interfaces import Clock
    from keepstep.postgres.backups import Source

SAFE_MARGIN_MS: Final = 60_000
"""What was received so long before a backup began was committed by then: no statement takes as long."""
FAULTS_KEPT: Final = 100
"""Faults that are written down; there may be one for each event."""


class Walked(Protocol):
    """What walking a whole database found."""

    @property
    def events(self) -> int:
        """How many events were verified."""

    @property
    def faults(self) -> Sequence[object]:
        """What is wrong, each in words; none in a good one."""


Walk = Callable[[str, Stop], Walked]
"""Verifies all of the database at a URL, in this thread. Raises KeepstepError where it cannot be walked."""


async def verify(settings: Settings, backup: manifest.Backup, *, walk: Walk, clock: Clock) -> manifest.Verified:
    """Restore a backup and the log after it into a scratch directory, verify all of it, and write down what was found.

    Args:
        settings: where the scratch directory is, and whom PostgreSQL runs as.
        backup: which one.
        walk: verifies every chain and signature of a database.
        clock: this machine's.

    Returns:
        What was found; a damaged backup has faults.

    Raises:
        BackupError: it could not be verified, for reasons that say nothing of the backup: no space, another key.
        StartupError: no PostgreSQL of that version runs here.

    Cancel-safe: what was restored is removed.
    """
    began_s = clock.monotonic_s()
    key = await trio.to_thread.run_sync(encryption_key, settings)
    events, faults = 0, list[str]()
    plan = await trio.to_thread.run_sync(
        lambda: make_plan(
            backup.path.parent.parent,
            target=None,
            name=f"{backup.manifest.system}/{backup.manifest.id}",
            timeline="current",
        )
    )
    with scratch(settings, f"{WORK_DIRECTORY}/scratch") as (home, lock):
        check_space(home.parent, plan.disk_bytes)
        try:
            async with restored_server(settings, plan, home, lock, key, role=None) as (found, _):
                walked = await interruptible(lambda stop: walk(found.url, stop))
                events, faults = walked.events, [str(fault) for fault in walked.faults[:FAULTS_KEPT]]
        except DamagedBackupError as error:
            faults = [str(error)]
    seconds = round(clock.monotonic_s() - began_s, 1)
    verified = manifest.Verified(at=clock.now_ms(), seconds=seconds, events=events, faults=faults)
    try:
        await trio.to_thread.run_sync(manifest.write_verified, backup.path, verified)
    except OSError as error:
        raise BackupError(f"cannot write into {backup.path}: {error.strerror}") from error
    return verified


def declare_safe(database: Source, backup: manifest.Backup) -> None:
    """Note in the database what a verified backup of it holds, so that devices need not keep it. Raises BackupError."""
    source.record_safe_at(database.owner_url, max(0, backup.manifest.started_at - SAFE_MARGIN_MS))


def walk(url: str, stop: Stop) -> Walked:
    """Every chain, signature, head and count of the database at a URL. Raises StartupError, BackupError."""
    return verify_database(url, now_ms=SystemClock().now_ms(), progress=lambda _: stop.check())
