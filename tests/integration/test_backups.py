"""Backups of a real PostgreSQL: made, verified, restored to a second; and what is refused."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
import structlog
import trio
import trio.testing
from structlog.testing import capture_logs

from keepstep import keys
from keepstep.backup import making, manifest, restoring, schedule, verifying, wal
from keepstep.backup.choosing import make_plan
from keepstep.backup.files import Stop
from keepstep.backup.keyfile import make_key
from keepstep.backup.making import make
from keepstep.backup.restoring import Restored, interruptible, restore
from keepstep.backup.verifying import declare_safe, verify, walk
from keepstep.config import Settings
from keepstep.errors import BackupBusyError, BackupError
from keepstep.journal import DIRECTORY, SUFFIX
from keepstep.postgres import backups as source
from keepstep.postgres import embedded, migrate
from keepstep.restoring import begin_epoch
from keepstep.runtime import SystemClock, SystemRandomness, WorkerThreads
from keepstep.telemetry import Metrics

CLOCK = SystemClock()
TIMEOUT_S = 60


@dataclass(frozen=True)
class Place:
    """A server's directories."""

    settings: Settings
    root: Path

    @property
    def backups(self) -> list[manifest.Backup]:
        """What there is."""
        return manifest.all_backups(self.root / "backups")

    def lose_the_disk(self) -> None:
        """Everything of the server is gone but its backups."""
        shutil.rmtree(self.settings.data_dir)

    @asynccontextmanager
    async def database(self) -> AsyncIterator[str]:
        """The server's database, migrated, and its key."""
        keys.load_or_create(self.settings.data_dir, SystemRandomness())
        async with embedded.running(self.settings) as url:
            await trio.to_thread.run_sync(migrate.up, url)
            execute(url, "CREATE TABLE IF NOT EXISTS marks (number int)")
            yield url

    async def make(self) -> manifest.Backup:
        """A backup of the running database."""
        database, now_ms = source.find_source(self.settings), CLOCK.now_ms()
        return await interruptible(lambda stop: make(self.settings, database, now_ms=now_ms, stop=stop))

    async def restore(self, target: datetime | None = None, **arguments: Any) -> Restored:
        """Restore it into the data directory."""
        plan = make_plan(self.root / "backups", target=target, name=arguments.pop("name", None))
        return await restore(self.settings, plan, begin_epoch=begin_epoch, clock=CLOCK, **arguments)


@pytest.fixture
def place(data_dir: Path) -> Place:
    """A server that was never started, whose backups are encrypted."""
    make_key(data_dir / "backup.key", now_ms=0)
    settings = Settings(
        data_dir=data_dir / "server",
        backup_dir=data_dir / "backups",
        backup_key_file=data_dir / "backup.key",
        backup_wal_interval_s=1,
    )
    return Place(settings, data_dir)


def add_mark(url: str, number: int) -> None:
    """A row by which it is seen what was restored."""
    execute(url, f"INSERT INTO marks SELECT {number}")


def marks(url: str) -> int:
    """How many there are."""
    return int(value(url, "SELECT count(*) FROM marks"))


def execute(url: str, statement: str) -> None:
    """Run and commit one statement."""
    with psycopg.connect(url) as connection:
        connection.execute(statement.encode())


def value(url: str, query: str) -> Any:
    """The first value of a query's first row; ``None`` where there is no row."""
    with psycopg.connect(url) as connection:
        row = connection.execute(query.encode()).fetchone()
    return None if row is None else row[0]


async def until(condition: Any) -> None:
    """Wait for what another task or process does on the disk."""
    with trio.fail_after(TIMEOUT_S):
        while not condition():  # noqa: ASYNC110 - the disk tells nobody
            await trio.sleep(0.02)


@asynccontextmanager
async def scheduled(place: Place, metrics: Metrics | None = None) -> AsyncIterator[None]:
    """What a server does for its backups."""
    made = schedule.scheduled(
        lambda: place.settings, source.find_source(place.settings), CLOCK, metrics or Metrics(), structlog.get_logger()
    )
    assert made is not None
    async with trio.open_nursery() as nursery:
        await nursery.start(made.run)
        yield
        nursery.cancel_scope.cancel()


def metric(metrics: Metrics, name: str, **labels: str) -> float | None:
    """The value of one of the backups' metrics."""
    return metrics.registry.get_sample_value(f"keepstep_backup_{name}", labels)


async def test_every_second_between_two_backups_can_be_restored(place: Place) -> None:
    """Everything that was committed by then is there, and nothing that was committed later."""
    metrics = Metrics()
    async with place.database() as url, scheduled(place, metrics):
        # What is shown is the last of it: after the file beside the backup, and after what the database is told.
        await until(lambda: metric(metrics, "verified_timestamp_seconds"))
        await trio.to_thread.run_sync(add_mark, url, 1)
        between = datetime.now(UTC)
        await trio.to_thread.run_sync(add_mark, url, 2)
        safe_at = value(url, "SELECT safe_at FROM server_state")
        assert safe_at == place.backups[0].manifest.started_at - verifying.SAFE_MARGIN_MS
    assert len(place.backups) == 1, "the first one, with which the log begins, is enough"
    assert metric(metrics, "last_timestamp_seconds") == metric(metrics, "verified_timestamp_seconds")
    assert (metric(metrics, "verified_age_seconds") or 0) < TIMEOUT_S
    assert (metric(metrics, "wal_bytes_total") or 0) > 0
    for target, count, reached in (
        (between, 1, True),
        (None, 2, True),
        (datetime.now(UTC) + timedelta(hours=1), 2, False),
    ):
        place.lose_the_disk()
        restored = await place.restore(target)
        assert restored.reached_target is reached
        assert restored.begun is not None
        async with embedded.running(place.settings) as url:
            assert await trio.to_thread.run_sync(marks, url) == count
            assert value(url, "SELECT epoch FROM server_state") == restored.begun.epoch
    assert keys.load(place.settings.data_dir).public.hex() == place.backups[0].manifest.server_key


async def test_after_a_restore_the_next_backups_continue_on_their_own_timeline(place: Place) -> None:
    """A new whole one is made at once; the second life and the first can both be restored."""
    async with place.database() as url, scheduled(place):
        await until(lambda: place.backups and place.backups[0].is_good)
        await trio.to_thread.run_sync(add_mark, url, 1)
    first_life = datetime.now(UTC)
    place.lose_the_disk()
    await place.restore(name=place.backups[0].manifest.id)
    async with place.database() as url, scheduled(place):
        await trio.to_thread.run_sync(add_mark, url, 2)
        await until(lambda: len(place.backups) == 2 and place.backups[1].is_good)
        await trio.to_thread.run_sync(add_mark, url, 3)
    assert [one.manifest.timeline for one in place.backups] == [1, 2]
    for target, count in ((first_life, 1), (None, 3)):
        place.lose_the_disk()
        await place.restore(target)
        async with embedded.running(place.settings) as url:
            assert await trio.to_thread.run_sync(marks, url) == count


async def test_log_that_a_node_took_with_it_is_noticed_and_a_whole_backup_made(place: Place) -> None:
    """What was received and not kept leaves a gap; from the new backup on everything can be restored again."""
    metrics = Metrics()
    admin = source.find_source(place.settings).url

    def kept() -> list[wal.Segment]:
        directory = place.backups[0].path.parent / wal.DIRECTORY
        return [one for one in wal.segments(directory, place.backups[0].manifest.wal_segment_bytes) if one.is_whole]

    async with place.database() as url:
        async with scheduled(place, metrics):
            await until(lambda: place.backups and place.backups[0].is_good)
            for number in range(3):
                await trio.to_thread.run_sync(add_mark, url, number)
                await trio.to_thread.run_sync(execute, admin, "SELECT pg_switch_wal()")
            await until(lambda: len(kept()) >= 3)
            assert metric(metrics, "wal_gap") == 0
        kept()[-2].path.unlink()
        with capture_logs() as logs:
            async with scheduled(place, metrics):
                await until(lambda: len(place.backups) == 2 and place.backups[1].is_good)
                assert metric(metrics, "wal_gap") == 0
                await trio.to_thread.run_sync(add_mark, url, 3)
        assert [entry["log_level"] for entry in logs if entry["event"] == "backup_log_gap"] == ["error"]
    place.lose_the_disk()
    await place.restore()
    async with embedded.running(place.settings) as url:
        assert await trio.to_thread.run_sync(marks, url) == 4


async def test_a_whole_backup_reads_no_faster_than_it_is_told(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The setting is pg_basebackup's, in its own unit."""
    commands: list[list[str]] = []
    popen = subprocess.Popen

    def remember(command: list[str], **arguments: Any) -> Any:
        commands.append([str(each) for each in command])
        return popen(command, **arguments)

    limited = replace(place, settings=place.settings.model_copy(update={"backup_bytes_per_s_max": 1 << 30}))
    async with place.database():
        monkeypatch.setattr(subprocess, "Popen", remember)
        await limited.make()
    assert ["--max-rate=1048576" in command for command in commands if command[0].endswith("pg_basebackup")] == [True]


async def test_a_damaged_backup_is_not_good(place: Place) -> None:
    """One flipped bit, and the server that verifies it says so; what was restored is removed again."""
    async with place.database() as url:
        backup = await place.make()
        declare_safe(source.find_source(place.settings), backup)
        safe_at = value(url, "SELECT safe_at FROM server_state")
        declare_safe(source.find_source(place.settings), backup)
        assert value(url, "SELECT safe_at FROM server_state") == safe_at
    assert (await verify(place.settings, backup, walk=walk, clock=CLOCK)).faults == []
    path = backup.path / backup.manifest.files[0].name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    verified = await verify(place.settings, backup, walk=walk, clock=CLOCK)
    assert "is damaged" in verified.faults[0]
    assert manifest.read_backup(backup.path).verified == verified
    scratch = place.settings.data_dir / "backup" / "scratch"
    assert [each.name for each in scratch.iterdir()] == ["postgres.lock"]
    place.lose_the_disk()
    with pytest.raises(BackupError, match="is damaged"):
        await place.restore()
    assert not (place.settings.data_dir / "postgres").exists()


async def test_what_is_wrong_in_the_database_is_wrong_in_its_backup(place: Place) -> None:
    """A backup is only as good as what it holds: the walk's findings are written down."""

    class Found:
        events = 7
        faults = ("a#1: bad_signature",)

    async with place.database():
        backup = await place.make()
    verified = await verify(place.settings, backup, walk=lambda _url, _stop: Found(), clock=CLOCK)
    assert (verified.events, verified.faults) == (7, ["a#1: bad_signature"])


async def test_a_restore_never_writes_over_what_is_there(place: Place) -> None:
    """Not over a database, not over anything else, and never with another server's key."""
    async with place.database():
        await place.make()
    with pytest.raises(BackupError, match=r"is not empty \(postgres\)"):
        await place.restore()
    place.lose_the_disk()
    place.settings.data_dir.mkdir()
    (place.settings.data_dir / "letters").touch()
    with pytest.raises(BackupError, match=r"is not empty \(letters\)"):
        await place.restore()
    (place.settings.data_dir / "letters").unlink()
    keys.load_or_create(place.settings.data_dir, SystemRandomness())
    with pytest.raises(BackupError, match="devices of this backup know"):
        await place.restore()


async def test_backups_that_are_not_encrypted_do_not_hold_the_servers_key(place: Place) -> None:
    """It is kept separately; a restore asks for it, and then goes on."""
    plain = Place(place.settings.model_copy(update={"backup_key_file": None}), place.root)
    async with plain.database():
        backup = await plain.make()
    assert (backup.manifest.keys, backup.manifest.encrypted_to) == ("kept separately", None)
    assert not list((place.root / "backups").rglob("server.key*"))
    key = (plain.settings.data_dir / "server.key").read_bytes()
    plain.lose_the_disk()
    with pytest.raises(BackupError, match=r"copy server\.key of the key"):
        await plain.restore()
    (plain.settings.data_dir / "server.key").touch(mode=0o600)
    (plain.settings.data_dir / "server.key").write_bytes(key)
    await plain.restore()
    assert (plain.settings.data_dir / "postgres").is_dir()


async def test_without_the_key_nothing_is_restored(place: Place) -> None:
    """The message says which setting names it."""
    async with place.database():
        await place.make()
    place.lose_the_disk()
    without = Place(place.settings.model_copy(update={"backup_key_file": None}), place.root)
    with pytest.raises(BackupError, match="set KEEPSTEP_BACKUP_KEY_FILE"):
        await without.restore()


async def test_too_little_space_is_said_before_anything_is_written(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A restore that stops half-way for a full disk helps nobody."""
    async with place.database():
        await place.make()
    place.lose_the_disk()
    monkeypatch.setattr(restoring, "RESERVE_BYTES", 1 << 60)
    with pytest.raises(BackupError, match="MiB free and this takes"):
        await place.restore()


async def test_an_interrupted_restore_leaves_nothing_to_start_with(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it had done is removed; the next attempt begins anew."""
    async with place.database():
        await place.make()
    place.lose_the_disk()
    plan = make_plan(place.root / "backups", target=None, name=None)

    async def interrupt(database_url: str, data_dir: Path, *, now_ms: int) -> Any:
        assert database_url.startswith("postgresql://keepstep@")
        assert (data_dir, now_ms > 0) == (place.settings.data_dir, True)
        scope.cancel()
        await trio.sleep_forever()

    with trio.CancelScope() as scope:
        await restore(place.settings, plan, begin_epoch=interrupt, clock=CLOCK)
    assert scope.cancelled_caught
    names = {path.name for path in place.settings.data_dir.iterdir()}
    assert names == {"postgres.lock", "server.key"}
    await place.restore()


async def test_a_run_that_fails_is_never_listed(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor are its remains left: the disk may be full, the copy may be ended half-way."""
    async with place.database():
        stop = Stop()
        stop.set()
        with pytest.raises(BackupError, match="interrupted"):
            make(place.settings, source.find_source(place.settings), now_ms=0, stop=stop)
        monkeypatch.setattr(source, "_START", source._END)
        with pytest.raises(IndexError):
            make(place.settings, source.find_source(place.settings), now_ms=0, stop=Stop())
        monkeypatch.undo()
        facts = source.read_facts(source.find_source(place.settings).url)
        assert list((place.root / "backups" / facts.system).iterdir()) == []
        await place.make()


async def test_two_runs_at_once_are_one_too_many(place: Place) -> None:
    """The second is told; so is a second node that would receive the log."""
    async with place.database():
        url = source.find_source(place.settings).url
        with (
            source.held(url, source.RUN_LOCK, "a backup is being made"),
            pytest.raises(BackupBusyError, match="a backup is being made already"),
        ):
            await place.make()
        with (
            restoring.scratch(place.settings, "scratch"),
            pytest.raises(BackupBusyError, match="is being verified already"),
            restoring.scratch(place.settings, "scratch"),
        ):
            pass


async def test_two_backups_of_one_second_are_of_two(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next one waits for its own; for so long only, for a clock may have gone back."""
    async with place.database():
        first, second, third = [await place.make() for _ in range(3)]
        assert first.manifest.id < second.manifest.id < third.manifest.id
        facts = source.read_facts
        monkeypatch.setattr(source, "read_facts", lambda url: replace(facts(url), now_ms=third.manifest.started_at))
        monkeypatch.setattr(making, "NAME_WAIT_S", 0.1)
        with pytest.raises(BackupError, match=f"there is a backup {third.manifest.id} already"):
            await place.make()
        assert len(place.backups) == 3


async def test_what_a_run_had_of_the_database_is_free_when_it_is_over(place: Place) -> None:
    """Its lock and its replication slot, and not only once the server's end of its connection has noticed."""
    slots = b"SELECT count(*) FROM pg_replication_slots"
    locks = b"SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"
    left = b"SELECT (%b), (%b)" % (slots, locks)
    async with place.database():
        url = source.find_source(place.settings).url
        with psycopg.connect(url, autocommit=True) as other:
            for _ in range(20):
                with source.held(url, source.RUN_LOCK, "a backup is being made"), source.retained(url):
                    assert other.execute(left).fetchone() == (1, 1)
                assert other.execute(left).fetchone() == (0, 0)


async def test_a_log_that_was_given_up_begins_anew_with_a_whole_backup(place: Place) -> None:
    """The database bounds what it keeps for backups that nobody takes; after that a new whole one is made."""
    async with place.database() as url:
        admin = source.find_source(place.settings).url
        assert value(url, "SHOW max_slot_wal_keep_size") == "4GB"
        async with scheduled(place):
            await until(lambda: len(place.backups) == 1)
        assert source.ensure_slot(admin) is False
        source.drop_slot(admin)
        source.drop_slot(admin)
        async with scheduled(place):
            await until(lambda: len(place.backups) == 2)
        await schedule.backup_source(place.settings.model_copy(update={"backup_dir": None}), WorkerThreads())
        assert value(admin, "SELECT count(*) FROM pg_replication_slots") == 0


async def test_what_a_verified_backup_holds_of_the_journal_goes(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """An old file of it, once a backup was verified; what was written lately stays."""
    monkeypatch.setattr(schedule, "PRUNE_INTERVAL_S", 0.0)
    directory = place.settings.data_dir / DIRECTORY
    directory.mkdir(parents=True)
    old, new = (directory / f"0000000{number}{SUFFIX}" for number in (1, 2))
    for path in (old, new):
        path.touch()
    os.utime(old, ns=(0, 0))
    async with place.database(), scheduled(place):
        await until(lambda: not old.exists())
        assert place.backups[0].is_good
        assert new.exists()


async def test_what_fails_is_counted_and_tried_again(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server goes on, the log stays where it was received, and is kept once the disk is back."""
    monkeypatch.setattr(schedule, "RETRY_S", 0.05)
    monkeypatch.setattr(schedule, "FAILURE_RETRY_S", 0.05)
    blocked = place.root / "backups"
    blocked.write_text("in the way of the directory")
    metrics = Metrics()
    async with place.database(), scheduled(place, metrics):
        for step in ("journal", "make", "wal"):
            await until(lambda step=step: (metric(metrics, "failures_total", step=step) or 0) > 1)
        assert metric(metrics, "verified_age_seconds") == float("inf")
        blocked.unlink()
        await until(lambda: bool(place.backups) and place.backups[0].is_good)


async def test_a_wanted_backup_that_fails_is_not_tried_all_the_time(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one, without which the log is of no use, waits its time too."""
    tried: list[None] = []

    def fail(*_arguments: Any, **_options: Any) -> None:
        tried.append(None)
        raise BackupError("the disk is full")

    monkeypatch.setattr(schedule, "make", fail)
    async with place.database(), scheduled(place):
        await until(lambda: tried)
        with trio.fail_after(TIMEOUT_S):
            await trio.testing.wait_all_tasks_blocked(0.2)
    assert len(tried) == 1


async def test_old_backups_and_their_log_are_removed(place: Place) -> None:
    """As many as are to be kept stay; with the oldest goes the log before the next."""
    settings = place.settings.model_copy(update={"backups_kept": 1, "backup_kept_days": 0, "backup_verify": False})
    few = Place(settings, place.root)
    async with few.database() as url:
        admin = source.find_source(settings).url
        first = await few.make()
        log = first.path.parent / "wal"
        async with scheduled(few):
            await until(lambda: len(list(log.glob("*"))) > 0)
            value(admin, "SELECT pg_switch_wal()")
            await trio.to_thread.run_sync(add_mark, url, 1)
            await until(lambda: len([one for one in log.iterdir() if "partial" not in one.name]) > 1)
        before = len(list(log.iterdir()))
        second = await few.make()
        assert [one.manifest.id for one in few.backups] == [second.manifest.id]
        assert len(list(log.iterdir())) < before


def test_a_backup_is_due_once_an_interval() -> None:
    """At a fixed time of the day, whatever happened to the one before."""
    day, hour = 86_400, 3_600
    for now_h, due_h in ((2, -21), (3, 3), (26, 3), (27, 27)):
        due_ms = schedule.last_due_ms(now_h * hour * 1000, interval_s=day, offset_s=3 * hour)
        assert due_ms == due_h * hour * 1000
