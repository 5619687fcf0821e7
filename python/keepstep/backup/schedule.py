"""What the server does for its backups: keeps the log as it is written, makes whole ones on time, verifies them.

One node at a time receives the log and keeps the schedule, under an advisory lock of the database; every node keeps
its journal. A backup that was missed is made at the start. Nothing here ends the server: what fails is logged, counted
and tried again.
"""

from __future__ import annotations

import contextlib
import math
import subprocess
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio

from keepstep.backup import manifest, wal
from keepstep.backup.making import WORK_DIRECTORY, backup_dir, encryption_key, make
from keepstep.backup.mirror import Mirror
from keepstep.backup.pruning import prune_journal
from keepstep.backup.restoring import interruptible
from keepstep.backup.verifying import Walk, declare_safe, verify, walk
from keepstep.errors import BackupBusyError, BackupError, KeepstepError
from keepstep.postgres import backups as source
from keepstep.telemetry import describe

if TYPE_CHECKING:
    from keepstep.config import Settings
    from keepstep.interfaces import Clock, Threads
    from keepstep.postgres.backups import Facts, Held, Source
    from keepstep.telemetry import Log, Metrics

RETRY_S: Final = 30.0
"""Seconds until the lock, the receiver or the journal are tried again."""
FAILURE_RETRY_S: Final = 600.0
"""Seconds until a backup that failed is tried again."""
LOOK_INTERVAL_S: Final = 60.0
"""Seconds between looks at the clock and at what backups there are, for others make some too."""
LAST_RECEIVED_S: Final = 3.0
"""Seconds to wait for what was committed last, so that a server that was stopped has all of it in its backups."""
LAST_COPY_S: Final = 15.0
"""Seconds for keeping the end of the log when the server goes down."""
UNLOCK_S: Final = 5.0
"""Seconds for giving back the lock, for a database that is away does not answer."""
PRUNE_INTERVAL_S: Final = 3_600.0
"""Seconds between looks at what of the journal is in every backup."""
GAP_LOOKS: Final = 2
"""So often a gap in the log has to be seen before it is one."""
SPOOL: Final = "received"
_MENDABLE: Final = (KeepstepError, OSError)
"""What the server goes on after: a database that is away, a disk that is full, a file that is damaged."""
OUTPUT_BYTES_MAX: Final = 2_000


def last_due_ms(now_ms: int, *, interval_s: int, offset_s: int) -> int:
    """When the backup was due that should be there by now, unix milliseconds."""
    interval_ms, offset_ms = interval_s * 1000, offset_s * 1000
    return (now_ms - offset_ms) // interval_ms * interval_ms + offset_ms


async def backup_source(settings: Settings, threads: Threads) -> Source:
    """How backups reach the settings' database, which is running.

    Where none are wanted any more, the embedded PostgreSQL is told not to keep its log for them.
    """
    found = source.find_source(settings)
    if settings.backup_dir is None and settings.database_url is None:
        with contextlib.suppress(BackupError):
            await threads.run(lambda: source.drop_slot(found.url), limiter=trio.CapacityLimiter(1))
    return found


def scheduled(
    settings: Callable[[], Settings], database: Source | None, clock: Clock, metrics: Metrics, logger: Log
) -> Backups | None:
    """The backups of a server with these settings, which are asked for whenever they are used; ``None``: no backups."""
    if settings().backup_dir is None or database is None:
        return None
    return Backups(settings, database, walk=walk, clock=clock, metrics=metrics, logger=logger)


def _find_gap(system: Path, newest: manifest.Manifest) -> str | None:
    """The name of the first piece of the log that is missing behind a backup. Blocks; raises BackupError, OSError.

    A node that dies may take with it what it had received and not kept yet: the database has let go of it.
    """
    segment_bytes = newest.wal_segment_bytes
    copied = (wal.lsn_bytes(newest.end_lsn) - 1) // segment_bytes
    gap = None
    for _ in range(GAP_LOOKS):  # a directory that is read while files come may show a later one alone
        found = wal.segments(system / wal.DIRECTORY, segment_bytes)
        gap = wal.find_gap(found, timeline=newest.timeline, copied=copied)
        if gap is None:
            return None
    return None if gap is None else wal.segment_name(newest.timeline, gap, segment_bytes)


class Backups:
    """The backups of a running server.

    Args:
        settings: where to and how often, as it is set now; ``backup_dir`` is.
        database: how it is reached.
        walk: verifies every chain and signature of a database.
        clock: this machine's.
        metrics: counted into.
        logger: told of what was made and of what failed.
    """

    def __init__(
        self,
        settings: Callable[[], Settings],
        database: Source,
        *,
        walk: Walk,
        clock: Clock,
        metrics: Metrics,
        logger: Log,
    ) -> None:
        self._read_settings = settings
        self._database = database
        self._walk = walk
        self._clock = clock
        self._metrics = metrics
        self._logger = logger
        self._verified_at_ms: int | None = None
        self._wanted = trio.Event()
        metrics.backup_verified_age_seconds.set_function(self._verified_age_s)

    @property
    def _settings(self) -> Settings:
        """Of now: some change while the server runs."""
        return self._read_settings()

    @property
    def spool(self) -> Path:
        """Where the log is received."""
        return self._settings.data_dir / WORK_DIRECTORY / SPOOL

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled; then the end of the log is kept and what runs is ended."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._repeat, "journal", self._keep_journal)
            nursery.start_soon(self._repeat, "wal", self._lead)
            task_status.started()

    async def _repeat(self, step: str, work: Callable[[], Awaitable[None]]) -> None:
        while True:
            with contextlib.suppress(BackupBusyError):  # another node's turn
                await self._reported(step, work)
            await trio.sleep(RETRY_S)

    async def _reported(self, step: str, work: Callable[[], Awaitable[None]]) -> bool:
        """Whether it went well. Raises BackupBusyError."""
        try:
            await work()
        except BackupBusyError:
            raise
        except (*_MENDABLE, BaseExceptionGroup) as error:
            if isinstance(error, BaseExceptionGroup) and error.split(_MENDABLE)[1] is not None:
                raise
            self._metrics.backup_failures.labels(step).inc()
            self._logger.error("backup_failed", job=step, **describe(error))
            return False
        return True

    # -- one node's turn ------------------------------------------------------------------------------------------

    async def _lead(self) -> None:
        """Receive and keep the schedule for as long as this node has the lock. Raises KeepstepError."""
        stack = contextlib.ExitStack()
        try:
            held = await trio.to_thread.run_sync(
                lambda: stack.enter_context(
                    source.held(self._database.url, source.RECEIVER_LOCK, "backups are kept by another node")
                )
            )
            facts = await trio.to_thread.run_sync(source.read_facts, self._database.url)
            with contextlib.suppress(BackupError):  # the receiver says so
                await self._have_slot()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._repeat, "wal", lambda: self._receive(facts))
                nursery.start_soon(self._keep_schedule, facts)
                await self._watch(held)
                nursery.cancel_scope.cancel()
        finally:
            with trio.move_on_after(UNLOCK_S, shield=True):
                await trio.to_thread.run_sync(stack.close, abandon_on_cancel=True)
        raise BackupError("the database went away")

    async def _watch(self, held: Held) -> None:
        """Until the connection, and with it the lock, is lost."""
        while await trio.to_thread.run_sync(held.is_held):  # noqa: ASYNC110 - nothing tells us
            await trio.sleep(RETRY_S)

    async def _have_slot(self) -> None:
        """Have the log held back for us. Raises BackupError."""
        if await trio.to_thread.run_sync(source.ensure_slot, self._database.url):
            self._wanted.set()  # from here on the log is kept, and it takes a whole backup to begin with

    async def _receive(self, facts: Facts) -> None:
        """Receive the log and keep it, until something fails. Raises BackupError."""
        settings = self._settings
        target = backup_dir(settings) / facts.system / wal.DIRECTORY
        shipper = wal.Shipper(self.spool, target, key=encryption_key(settings))
        self.spool.mkdir(mode=0o700, parents=True, exist_ok=True)
        await self._ship(shipper)
        await trio.to_thread.run_sync(shipper.forget_superseded, facts.segment_bytes)
        await self._have_slot()
        programs = await trio.to_thread.run_sync(source.client_programs, settings, facts.version)
        with source.credentials(self._database.url, self.spool.parent) as url, tempfile.TemporaryFile() as output:
            process = await trio.lowlevel.open_process(
                source.receiving_command(url, programs, self.spool),
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=output,
                start_new_session=True,
            )
            try:
                while process.returncode is None:
                    with trio.move_on_after(self._settings.backup_wal_interval_s):
                        await process.wait()
                    await self._ship(shipper)
            finally:
                with trio.move_on_after(LAST_COPY_S, shield=True):
                    assert process.stdin is not None
                    with contextlib.suppress(BackupError):
                        await trio.to_thread.run_sync(
                            lambda: source.wait_until_received(self._database.url, bound_s=LAST_RECEIVED_S)
                        )
                    await process.stdin.aclose()
                    await process.wait()
                    with contextlib.suppress(BackupError):
                        await self._ship(shipper)
                if process.returncode is None:
                    process.kill()
                    with trio.CancelScope(shield=True):
                        await process.wait()
            output.seek(0)
            said = output.read(OUTPUT_BYTES_MAX).decode("utf-8", "replace").strip()
        raise BackupError(f"pg_receivewal ended: {said.splitlines()[-1] if said else process.returncode}")

    async def _ship(self, shipper: wal.Shipper) -> None:
        taken = await interruptible(shipper.ship)
        self._metrics.backup_wal_bytes.inc(taken)
        self._metrics.backup_wal_timestamp.set(self._clock.now_ms() / 1000)

    async def _keep_schedule(self, facts: Facts) -> None:
        """Make and verify backups when they are due, until cancelled."""
        system = backup_dir(self._settings) / facts.system
        while True:
            good = True
            with contextlib.suppress(BackupBusyError):
                good = await self._reported("make", lambda: self._make_if_due(system, facts))
                if good and self._settings.backup_verify:
                    good = await self._reported("verify", lambda: self._verify_newest(system))
            if not good:  # also where one is wanted at once: what is wrong may take long to be mended
                await trio.sleep(FAILURE_RETRY_S)
                continue
            with trio.move_on_after(LOOK_INTERVAL_S):
                await self._wanted.wait()

    async def _make_if_due(self, system: Path, facts: Facts) -> None:
        settings = self._settings
        found = await trio.to_thread.run_sync(manifest.backups, system)
        self._show(found)
        now_ms = self._clock.now_ms()
        due_ms = last_due_ms(now_ms, interval_s=settings.backup_interval_s, offset_s=settings.backup_offset_s)
        newest = found[-1].manifest if found else None
        is_there = newest is not None and newest.started_at >= due_ms and newest.timeline == facts.timeline
        gap = None if newest is None else await trio.to_thread.run_sync(_find_gap, system, newest)
        self._metrics.backup_wal_gap.set(0 if gap is None else 1)
        if gap is not None:
            self._logger.error("backup_log_gap", detail=f"segment {gap} was never kept: a whole backup is made now")
        elif is_there and not self._wanted.is_set():
            return
        made = await interruptible(lambda stop: make(settings, self._database, now_ms=now_ms, stop=stop))
        self._wanted = trio.Event()
        self._metrics.backup_wal_gap.set(0)
        self._show([made, *[one for one in found if one.is_good]])
        seconds = (made.manifest.finished_at - made.manifest.started_at) / 1000
        self._logger.info("backup_made", count=made.size_bytes, duration_ms=round(seconds * 1000))

    async def _verify_newest(self, system: Path) -> None:
        found = await trio.to_thread.run_sync(manifest.backups, system)
        if not found or found[-1].verified is not None:
            return
        newest = found[-1]
        verified = await verify(self._settings, newest, walk=self._walk, clock=self._clock)
        if verified.faults:
            raise BackupError(f"backup {newest.manifest.id} is not good: {verified.faults[0]}")
        await trio.to_thread.run_sync(declare_safe, self._database, newest)
        self._show(await trio.to_thread.run_sync(manifest.backups, system))
        self._logger.info("backup_verified", count=verified.events, duration_ms=round(verified.seconds * 1000))

    async def _keep_journal(self) -> None:
        """Copy the journal and the keys whenever they change, until that fails. Raises KeepstepError."""
        facts = await trio.to_thread.run_sync(source.read_facts, self._database.url)
        settings = self._settings
        system = backup_dir(settings) / facts.system
        mirror = Mirror(settings.data_dir, system, key=encryption_key(settings))
        prune_at_s = trio.current_time()
        while True:
            await interruptible(mirror.update)
            if trio.current_time() >= prune_at_s:
                await self._reported("journal", lambda: self._prune_journal(system))
                prune_at_s = trio.current_time() + PRUNE_INTERVAL_S
            await trio.sleep(self._settings.backup_wal_interval_s)

    async def _prune_journal(self, system: Path) -> None:
        """Remove what of the journal every backup holds. Raises BackupError."""
        data_dir = self._settings.data_dir
        removed = await interruptible(lambda stop: prune_journal(data_dir, system.parent, system.name, stop))
        if removed:
            self._logger.info("journal_pruned", count=removed)

    # -- metrics --------------------------------------------------------------------------------------------------

    def _show(self, found: list[manifest.Backup]) -> None:
        """Show the newest and the newest verified one."""
        metrics = self._metrics
        newest = max(found, key=lambda one: one.manifest.started_at, default=None)
        if newest is not None:
            described = newest.manifest
            metrics.backup_last_timestamp.set(described.started_at / 1000)
            metrics.backup_last_bytes.set(newest.size_bytes)
            metrics.backup_last_seconds.set((described.finished_at - described.started_at) / 1000)
        self._verified_at_ms = max((one.manifest.started_at for one in found if one.is_good), default=None)
        metrics.backup_verified_timestamp.set((self._verified_at_ms or 0) / 1000)

    def _verified_age_s(self) -> float:
        at_ms = self._verified_at_ms
        return math.inf if at_ms is None else (self._clock.now_ms() - at_ms) / 1000
