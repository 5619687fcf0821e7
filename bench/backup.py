"""What backups and the archive cost: ``python -m bench.backup`` (``make bench-backup``).

A server with real events, each signed and sealed; a device goes on publishing as fast as it is answered, in turns of
some seconds by itself and beside a whole backup. Then, with nobody publishing: how fast a database is backed up,
restored, verified and archived, by the commands and the code that operators run.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

import structlog
import trio

from bench.clients import make_account, run
from bench.retention import MIB, MILLISECONDS, WRITERS, database_bytes
from bench.server import BenchError, database_url
from bench.statistics import percentile
from keepstep import keys
from keepstep.archive.opening import ArchiveKeys, archive_run, open_archive
from keepstep.archive.verifying import verify_archive
from keepstep.client import open_device
from keepstep.config import Settings
from keepstep.eventlog.retention import DAY_MS
from keepstep.postgres.housekeeping import PostgresHousekeeping
from keepstep.postgres.log import PostgresLog
from keepstep.postgres.pool import Database
from keepstep.runtime import OffsetClock, SystemClock, WorkerThreads
from keepstep.telemetry import Metrics

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from bench.server import Server
    from keepstep.client import Device

EVENTS: Final = 20_000
PAYLOAD_BYTES: Final = 2_048
FILL_EVENTS: Final = 100
"""Published together while the database is filled."""
WINDOW_S: Final = 3.0
PAIRS: Final = 4
DAYS_LATER: Final = 60
"""By so many days the archive's clock is ahead: everything is old enough."""
_Samples = list[float]


@dataclass(frozen=True, slots=True)
class Figures:
    """What was measured; what does not belong to a column is 0.

    Attributes:
        events: published, or in what was copied.
        seconds: it took.
        publishes_per_s: acknowledged.
        p50_ms: from a publish to its receipt.
        p99_ms: 99 % are not above it.
        mib: of the database, or of the archive's objects.
        mib_per_s: the same, a second.
        p99_ratio: to that without a backup.
    """

    events: int
    seconds: float
    publishes_per_s: float = 0.0
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    mib: float = 0.0
    mib_per_s: float = 0.0
    p99_ratio: float = 0.0


async def measure(server: Server, directory: Path, count: int) -> dict[str, Figures]:
    """Publishing beside a backup, then each step by itself. Raises BenchError."""
    path = await make_account(server, directory)
    environment = _environment(server, directory)
    async with open_device(path) as device:
        await device.wait_until_ready()
        await _fill(device, count)
        results = await _publishing(device, environment)
    size_mib = database_bytes(database_url(server)) / MIB
    events = count + sum(each.events for each in results.values())
    for name, arguments in (
        ("back up", ["run"]),
        ("restore and verify", ["verify"]),
        ("restore", ["restore", "--into", str(directory / "restored")]),
    ):
        began_s = time.perf_counter()
        await trio.to_thread.run_sync(_operate, arguments, environment)
        seconds = time.perf_counter() - began_s
        results[name] = Figures(events, seconds, mib=size_mib, mib_per_s=size_mib / seconds)
    return results | await _archiving(server, directory, events)


async def _fill(device: Device, count: int) -> None:
    """Publish so many events, a fifth of them into each of five streams."""
    for first in range(0, count, FILL_EVENTS):
        texts = [os.urandom(PAYLOAD_BYTES) for _ in range(min(FILL_EVENTS, count - first))]
        published = await device.publish_many(f"old-{first // FILL_EVENTS % 5}", texts)
        await published[-1].accepted()


async def _publishing(device: Device, environment: dict[str, str]) -> dict[str, Figures]:
    """Turns without and with a backup that runs all the time."""
    quiet: _Samples = []
    busy: _Samples = []
    await _window(device, [])  # what is done for the first time
    for _ in range(PAIRS):
        await _window(device, quiet)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_keep_backing_up, environment)
            await _window(device, busy)
            nursery.cancel_scope.cancel()
    without_ms = percentile(quiet, 0.99)
    return {"without a backup": _figures(quiet, without_ms), "beside a backup": _figures(busy, without_ms)}


async def _window(device: Device, samples: _Samples) -> None:
    """Publish for so long, each writer as soon as it is answered; the samples are milliseconds."""
    end_s = time.perf_counter() + WINDOW_S

    async def write(number: int) -> None:
        while (began_s := time.perf_counter()) < end_s:
            publication = await device.publish(f"bench-{number}", os.urandom(PAYLOAD_BYTES))
            await publication.accepted()
            samples.append((time.perf_counter() - began_s) * MILLISECONDS)

    async with trio.open_nursery() as nursery:
        for number in range(WRITERS):
            nursery.start_soon(write, number)


def _figures(samples: _Samples, without_ms: float) -> Figures:
    seconds, p99_ms = PAIRS * WINDOW_S, percentile(samples, 0.99)
    return Figures(
        len(samples),
        seconds,
        publishes_per_s=len(samples) / seconds,
        p50_ms=percentile(samples, 0.5),
        p99_ms=p99_ms,
        p99_ratio=p99_ms / without_ms,
    )


def _environment(server: Server, directory: Path) -> dict[str, str]:
    """Of the operator's commands: this server's directories."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("KEEPSTEP_")}
    kept.pop("DATABASE_URL", None)
    return kept | {"KEEPSTEP_DATA_DIR": str(server.data_dir), "KEEPSTEP_BACKUP_DIR": str(directory / "backups")}


async def _keep_backing_up(environment: dict[str, str]) -> None:
    """One whole backup after the other until cancelled, which ends the one under way."""
    while True:
        await trio.run_process(_command(["run"]), env=environment, capture_stdout=True, capture_stderr=True)


def _operate(arguments: Sequence[str], environment: dict[str, str]) -> None:
    """Run a command of ``keepstep backup``. Blocks; raises BenchError."""
    done = subprocess.run(_command(arguments), env=environment, capture_output=True, text=True)  # noqa: S603
    if done.returncode:
        raise BenchError(f"keepstep backup {' '.join(arguments)} failed: {done.stderr[-1_000:]}")


def _command(arguments: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "keepstep", "backup", *arguments]


async def _archiving(server: Server, directory: Path, events: int) -> dict[str, Figures]:
    """All that is there into an archive, and read back with every signature and chain verified."""
    objects = directory / "archive"
    settings = Settings(data_dir=server.data_dir, archive_url=str(objects), retention_days=1)
    threads, clock = WorkerThreads(), OffsetClock(SystemClock())
    clock.offset_ms = DAYS_LATER * DAY_MS
    database = Database(database_url(server), threads=threads, clock=clock)
    archive = open_archive(settings, database, PostgresLog(database), threads=threads, clock=clock)
    assert archive is not None
    archive_keys = ArchiveKeys(keys.load(server.data_dir).secret, [])
    housekeeping, logger = PostgresHousekeeping(database), structlog.get_logger()
    writing = archive_run(
        lambda: settings,
        archive,
        archive_keys,
        housekeeping,
        bytes(16),
        clock,
        threads,
        metrics=Metrics(),
        logger=logger,
    )

    async def write() -> None:
        while not (await writing.run()).is_done:
            pass

    results: dict[str, Figures] = {}
    try:
        for name, work in (
            ("archive", write),
            ("read the archive", partial(verify_archive, archive.index, archive.store, archive_keys.public, threads)),
        ):
            began_s = time.perf_counter()
            report = await work()
            seconds = time.perf_counter() - began_s
            size_mib = sum(each.stat().st_size for each in objects.rglob("*") if each.is_file()) / MIB
            results[name] = Figures(events, seconds, mib=size_mib, mib_per_s=size_mib / seconds)
            if report is not None and (not report.is_clean or report.events < events):
                raise BenchError(f"the archive has {report.events} events, faults: {list(report.faults)}")
    finally:
        database.close()
    return results


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and keep; the exit status."""
    return run(
        "backup",
        "publishing beside a backup; backing up, restoring, verifying and archiving",
        measure,
        arguments,
        count=EVENTS,
        what=f"events of {PAYLOAD_BYTES} bytes in the database",
    )


if __name__ == "__main__":
    sys.exit(main())
