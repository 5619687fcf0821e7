"""The server's upkeep: its periodic jobs, made with what they need, and those done that come before the first event."""

from __future__ import annotations

from typing import TYPE_CHECKING

from keepstep.admin import administration_step, deleted_accounts_step
from keepstep.cleanup import HOLDER_BYTES, CleanUp, devices_step, invites_step, lost_sessions_step, sessions_step
from keepstep.diskspace import STOPPING_PLACE, DiskSpace
from keepstep.errors import StartupError, Unavailable
from keepstep.jobs import Jobs
from keepstep.limits import retention_rules
from keepstep.measuring import Measuring
from keepstep.retention import RetentionRun

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from keepstep.composition import Storage
    from keepstep.config import Settings
    from keepstep.gateway import Gateway
    from keepstep.interfaces import Clock, Randomness, Threads
    from keepstep.reloading import Reloads
    from keepstep.runtime import OffsetClock
    from keepstep.safety import Safety
    from keepstep.telemetry import Log, Metrics


def disk_space(settings: Settings, threads: Threads, metrics: Metrics, logger: Log) -> DiskSpace:
    """The directories of this machine; of a database elsewhere nothing is known."""
    places = {STOPPING_PLACE: settings.data_dir}
    if settings.backup_dir is not None:
        places["backups"] = settings.backup_dir
    return DiskSpace(
        places, free_bytes_min=settings.disk_free_bytes_min, threads=threads, metrics=metrics, logger=logger
    )


def other_jobs(
    storage: Storage, reloads: Reloads, clock: Clock, randomness: Randomness, metrics: Metrics, logger: Log
) -> dict[str, Callable[[], Awaitable[None]]]:
    """Clean-up and measuring; what is kept for how long is as it is set when they run."""
    housekeeping, administration = storage.housekeeping, storage.administration
    reloads.read_at_use(
        *("audit_retention_days", "session_kept_days", "invite_kept_days", "device_inactive_days", "retention_days")
    )
    steps = {
        "tokens": storage.tokens.clean_up_tokens,
        "links": storage.links.clean_up,
        "accounts": deleted_accounts_step(administration),
        "administration": administration_step(administration, lambda: reloads.settings.audit_retention_days),
        "lost_sessions": lost_sessions_step(housekeeping),
        "sessions": sessions_step(housekeeping, lambda: reloads.settings.session_kept_days),
        "invites": invites_step(housekeeping, lambda: reloads.settings.invite_kept_days),
        "devices": devices_step(housekeeping, lambda: reloads.settings.device_inactive_days),
    }
    clean_up = CleanUp(housekeeping, randomness.bytes(HOLDER_BYTES), steps, clock, metrics)
    retention = RetentionRun(
        storage.retention,
        clock,
        lambda: retention_rules(reloads.settings),
        metrics=metrics,
        logger=logger,
    )
    return {
        "clean_up": clean_up.run,
        "measure": Measuring(housekeeping, clock, metrics).run,
        "retention": retention.clean_up,
    }


async def prepared_jobs(
    settings: Settings,
    storage: Storage,
    gateway: Gateway,
    machine_clock: Clock,
    clock: OffsetClock,
    reloads: Reloads,
    randomness: Randomness,
    safety: Safety,
    metrics: Metrics,
    logger: Log,
    more: Mapping[str, Callable[[], Awaitable[None]]],
) -> Jobs:
    """All jobs, with ``more``, after what must be done once before the first event. Raises StartupError."""
    jobs = Jobs(
        storage.maintenance,
        machine_clock,
        clock,
        gateway.save_acks,
        lambda: storage.accounts.keep_sessions(now_ms=clock.now_ms()),
        {**other_jobs(storage, reloads, clock, randomness, metrics, logger), "safe_at": safety.read, **more},
        partitions_ahead=settings.partitions_ahead,
        metrics=metrics,
        logger=logger,
    )
    try:
        await jobs.prepare()
        await safety.read()
    except Unavailable as exc:
        raise StartupError("the database went away while the server was starting; start it again") from exc
    return jobs
