"""Events that are gone, over real sockets, by a real server and its database: what a device that was away sees."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from keepstep.client import EventsPruned, Policy, open_device
from keepstep.eventlog.retention import DAY_MS, SNAPSHOT_DELAY_MS, RetentionRules
from keepstep.postgres.maintenance import PostgresMaintenance
from keepstep.postgres.pool import Database
from keepstep.postgres.retention import PostgresRetention
from keepstep.runtime import SystemClock, WorkerThreads
from tests.support.laptop import STREAM, make_user, write
from tests.support.server import running_server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NONE = RetentionRules(None)
NO_TAIL = {"tail_bytes_max": 0, "tail_stream_bytes_max": 0}
"""What is read comes from the database: nothing is remembered of before the clean-up."""


@contextmanager
def retention_of(url: str) -> Iterator[PostgresRetention]:
    """The clean-up of a server's database."""
    database = Database(url, threads=WorkerThreads(), clock=SystemClock())
    yield PostgresRetention(database)
    database.close()


async def prune(url: str, *, after_ms: int, rules: RetentionRules = NONE) -> int:
    """Let everything go that goes so much later; how many events."""
    events = 0
    now_ms = SystemClock().now_ms() + after_ms
    with retention_of(url) as retention:
        while (step := await retention.advance_tail(now_ms=now_ms, rules=rules, events_max=3)) is not None:
            events += step.to_seq - step.from_seq
        await retention.drop_partitions(now_ms=now_ms)
        while await retention.remove_rows(rows_max=2):
            pass
    return events


async def test_a_device_that_was_away_is_told_what_is_gone(data_dir: Path, tmp_path: Path, database_url: str) -> None:
    """It goes on after the gap and verifies what comes; so does one that reads the stream for the first time."""
    async with (
        running_server(data_dir, database_url=database_url) as server,
        open_device(await make_user(server, tmp_path)) as laptop,
    ):
        await laptop.wait_until_ready()
        await laptop.enrol(tmp_path / "phone.sqlite3", "phone")
        await laptop.enrol(tmp_path / "watch.sqlite3", "watch")
        await write(laptop, b"1", b"2")
        async with open_device(tmp_path / "phone.sqlite3") as phone:
            await phone.subscribe(STREAM)
            await phone.wait_until_caught_up(STREAM)
        await write(laptop, b"3", b"4", b"5")

        assert await prune(database_url, after_ms=30 * DAY_MS, rules=RetentionRules(7)) == 5
        await write(laptop, b"6")

        async with open_device(tmp_path / "phone.sqlite3") as phone:
            notes = await phone.subscribe(STREAM, after=0)
            assert [(await anext(notes)).data for _ in range(2)] == [b"1", b"2"]
            with pytest.raises(EventsPruned) as told:
                await anext(notes)
            assert (told.value.stream, told.value.first_seq, told.value.last_seq) == (STREAM, 3, 5)
            event = await anext(notes)
            assert (event.seq, event.data) == (6, b"6")
            await write(phone, b"7")
            assert (await anext(notes)).data == b"7"
            assert await phone.alarms() == []
        async with open_device(tmp_path / "watch.sqlite3") as watch:
            notes = await watch.subscribe(STREAM)
            with pytest.raises(EventsPruned) as told:
                await anext(notes)
            assert (told.value.first_seq, told.value.last_seq) == (1, 5)
            assert [(await anext(notes)).data for _ in range(2)] == [b"6", b"7"]
            assert await watch.alarms() == []
        async with open_device(tmp_path / "watch.sqlite3") as watch:
            notes = await watch.subscribe(STREAM, after=5)
            assert (await anext(notes)).seq == 6


async def test_devices_start_from_the_snapshot_that_stands_for_what_is_gone(
    data_dir: Path, tmp_path: Path, database_url: str
) -> None:
    """One that was away as well as a new one; the snapshot is verified with what is left of the stream."""
    async with (
        running_server(data_dir, database_url=database_url) as server,
        open_device(await make_user(server, tmp_path)) as laptop,
    ):
        await laptop.wait_until_ready()
        for name in ("phone", "watch", "tablet"):
            await laptop.enrol(tmp_path / f"{name}.sqlite3", name)
        await write(laptop, b"1", b"2")
        async with open_device(tmp_path / "tablet.sqlite3") as tablet:
            await tablet.subscribe(STREAM)
            await tablet.wait_until_caught_up(STREAM)
        await write(laptop, b"3", b"4")
        await laptop.wait_until_caught_up(STREAM)
        written = await (await laptop.snapshot(STREAM, b"four")).accepted()
        async with open_device(tmp_path / "phone.sqlite3") as phone:
            await phone.wait_until_ready()
            await phone.wait_until_caught_up(STREAM)
            await (await phone.confirm(STREAM, written.seq or 0)).accepted()

        assert await prune(database_url, after_ms=SNAPSHOT_DELAY_MS - DAY_MS) == 0
        assert await prune(database_url, after_ms=SNAPSHOT_DELAY_MS + DAY_MS) == 4
        await write(laptop, b"after")

        async with open_device(tmp_path / "tablet.sqlite3") as tablet:
            with pytest.raises(EventsPruned):
                await anext(await tablet.subscribe(STREAM, after=2))
        for name in ("watch", "tablet"):
            async with open_device(tmp_path / f"{name}.sqlite3") as device:
                notes = await device.subscribe(STREAM, start="snapshot")
                assert notes.snapshot is not None, name
                assert (notes.snapshot.state, notes.snapshot.covers.seq) == (b"four", 4)
                assert (await anext(notes)).data == b"after"
                assert await device.alarms() == []


async def test_what_lost_its_key_to_an_event_that_is_gone_is_not_withheld(
    data_dir: Path, tmp_path: Path, database_url: str
) -> None:
    """A device that never saw the winner cannot tell, and does not accuse the server; the newest of a key is shown."""
    async with (
        running_server(data_dir, database_url=database_url, settings=NO_TAIL) as server,
        open_device(await make_user(server, tmp_path)) as laptop,
    ):
        await laptop.wait_until_ready()
        for name in ("phone", "watch"):
            await laptop.enrol(tmp_path / f"{name}.sqlite3", name)
        async with open_device(tmp_path / "phone.sqlite3") as phone:
            await phone.wait_until_ready()
        _, _, place = server.device_url.rpartition("#")
        async with open_device(tmp_path / "phone.sqlite3", device_url=f"ws://127.0.0.1:9/v1/connect#{place}") as phone:
            await phone.publish(STREAM, b"written before and sent after", key="title")
        await (await laptop.set_policy(STREAM, Policy.LATEST)).accepted()
        await (await laptop.publish(STREAM, b"wins, and goes", key="title")).accepted()
        await laptop.wait_until_caught_up(STREAM)
        written = await (await laptop.snapshot(STREAM, b"state")).accepted()
        async with open_device(tmp_path / "phone.sqlite3", device_url=server.device_url) as phone:
            await phone.wait_until_ready()
            await phone.wait_until_caught_up(STREAM)
            await (await phone.confirm(STREAM, written.seq or 0)).accepted()
        await (await laptop.publish(STREAM, b"another", key="other")).accepted()

        assert await prune(database_url, after_ms=SNAPSHOT_DELAY_MS + DAY_MS) == 2
        database = Database(database_url, threads=WorkerThreads(), clock=SystemClock())
        now_ms = SystemClock().now_ms() + DAY_MS
        assert await PostgresMaintenance(database).compact(now_ms=now_ms, rows_max=9) == 1
        database.close()

        async with open_device(tmp_path / "watch.sqlite3") as watch:
            notes = await watch.subscribe(STREAM, after=0)
            with pytest.raises(EventsPruned):
                await anext(notes)
            await watch.wait_until_caught_up(STREAM)
            lost, kept = await anext(notes), await anext(notes)
            assert (lost.data, lost.problem, kept.data) == (None, "superseded", b"another")
            assert await watch.alarms() == []
