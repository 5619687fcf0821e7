"""An archive behind a real server: a device that was away for long, and the operator's commands."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any, Final

import httpx
import pytest
import structlog
import trio
from click.testing import CliRunner
from pydantic import SecretStr

from keepstep.account_file import AccountFile
from keepstep.account_intake import verify_account
from keepstep.archive.opening import ArchiveKeys, archive_run, open_archive
from keepstep.cli import commands
from keepstep.client import open_device
from keepstep.client.restdevice import open_rest_device
from keepstep.config import Settings
from keepstep.errors import StartupError
from keepstep.eventlog.retention import DAY_MS, RetentionRules
from keepstep.keys import load
from keepstep.postgres.housekeeping import PostgresHousekeeping
from keepstep.postgres.log import PostgresLog
from keepstep.postgres.pool import Database
from keepstep.postgres.retention import PostgresRetention
from keepstep.postgres.verification import verify_database
from keepstep.runtime import OffsetClock, SystemClock, WorkerThreads
from keepstep.telemetry import Metrics
from tests.support.archives import ACCESS, BUCKET, s3_server
from tests.support.laptop import STREAM, make_user, write
from tests.support.server import RunningServer, running_server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DAYS: Final = 7


@pytest.fixture(scope="module")
def s3_url() -> Iterator[str]:
    """An S3 API."""
    with s3_server() as url:
        yield url


async def archive_and_prune(settings: Settings, url: str, *, count: int) -> None:
    """What a server's jobs do when all is thirty days old, until so many events are pruned."""
    clock, threads = OffsetClock(SystemClock()), WorkerThreads()
    clock.offset_ms = 30 * DAY_MS
    database = Database(url, threads=threads, clock=clock)
    archive = open_archive(settings, database, PostgresLog(database), threads=threads, clock=clock)
    assert archive is not None
    run = archive_run(
        lambda: settings,
        archive,
        ArchiveKeys(load(settings.data_dir).secret, []),
        PostgresHousekeeping(database),
        bytes(16),
        clock,
        threads,
        metrics=Metrics(),
        logger=structlog.get_logger(),
    )
    await run.job()
    events = 0
    retention = PostgresRetention(database)
    rules = RetentionRules(DAYS, only_archived=True)
    with trio.fail_after(60):
        while events < count:
            step = await retention.advance_tail(now_ms=clock.now_ms(), rules=rules, events_max=3)
            if step is None:
                await trio.sleep(0.02)  # it was the running server's turn, which lets it go at once
                await run.job()
            else:
                events += step.to_seq - step.from_seq
    await retention.drop_partitions(now_ms=clock.now_ms())
    while await retention.remove_rows(rows_max=2):
        pass
    database.close()
    assert events == count


async def metric(server: RunningServer, line: str) -> None:
    """Wait until the server's metrics have a line."""
    async with httpx.AsyncClient(timeout=60) as client:
        with trio.fail_after(60):
            while line not in (await client.get(f"{server.rest_url}/metrics")).text.splitlines():  # noqa: ASYNC110
                await trio.sleep(0.02)


@pytest.mark.parametrize("where", ["directory", "s3"])
async def test_a_device_away_for_long_reads_everything_from_the_archive(
    data_dir: Path, tmp_path: Path, database_url: str, where: str, request: pytest.FixtureRequest
) -> None:
    """From the first event on, verifying every chain; so do devices that read for the first time, one over REST."""
    archive: dict[str, Any] = {"archive_url": str(tmp_path / "archive"), "retention_days": DAYS}
    if where == "s3":
        archive |= {f"archive_s3_{name}": value for name, value in ACCESS.items()}
        archive |= {"archive_url": f"s3://{BUCKET}/", "archive_s3_endpoint": request.getfixturevalue("s3_url")}
    archive |= {"archive_segment_events_max": 3, "cleanup_interval_s": 0.05}
    settings = Settings(data_dir=data_dir, database_url=SecretStr(database_url), **archive)
    async with (
        running_server(data_dir, database_url=database_url, settings=archive) as server,
        open_device(await make_user(server, tmp_path)) as laptop,
    ):
        await laptop.wait_until_ready()
        await laptop.enrol(tmp_path / "phone.sqlite3", "phone")
        await laptop.enrol(tmp_path / "watch.sqlite3", "watch")
        await laptop.enrol(tmp_path / "web.sqlite3", "web")
        await write(laptop, b"1", b"2")
        async with open_device(tmp_path / "phone.sqlite3") as phone:
            await phone.subscribe(STREAM)
            await phone.wait_until_caught_up(STREAM)
            await write(phone, b"3")
        await write(laptop, b"4", b"5", b"6")

        await archive_and_prune(settings, database_url, count=6)
        assert verify_database(database_url, now_ms=SystemClock().now_ms()).is_clean
        await metric(server, "keepstep_archive_segments 2.0")
        await write(laptop, b"7")

        for name in ("phone", "watch"):
            async with open_device(tmp_path / f"{name}.sqlite3") as device:
                notes = await device.subscribe(STREAM, after=0)
                assert [(await anext(notes)).data for _ in range(7)] == [b"%d" % n for n in range(1, 8)], name
                assert await device.alarms() == []
        async with open_rest_device(tmp_path / "web.sqlite3") as web:
            assert [event.data for event in await web.read(STREAM)] == [b"%d" % n for n in range(1, 8)]


def operate(*arguments: str) -> tuple[int, str]:
    """Type a command; its exit code and output."""
    result = CliRunner().invoke(commands, ["archive", *arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def test_an_operator_lists_verifies_and_restores(
    data_dir: Path, tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The account file has all events, and reads in; a damaged segment is named."""
    settings = Settings(
        data_dir=data_dir,
        database_url=SecretStr(database_url),
        archive_url=str(tmp_path / "archive"),
        retention_days=DAYS,
        archive_segment_events_max=2,
    )
    monkeypatch.setenv("KEEPSTEP_DATABASE_URL", database_url)
    monkeypatch.setenv("KEEPSTEP_DATA_DIR", str(data_dir))

    async def live() -> str:
        async with (
            running_server(data_dir, database_url=database_url) as server,
            open_device(await make_user(server, tmp_path)) as laptop,
        ):
            await laptop.wait_until_ready()
            await write(laptop, b"1", b"2", b"3")
            await archive_and_prune(settings, database_url, count=3)
            await write(laptop, b"4")
            return laptop.identity.user_key.hex()

    user = trio.run(live)
    with pytest.raises(StartupError, match="KEEPSTEP_ARCHIVE_URL"):
        operate("list")
    monkeypatch.setenv("KEEPSTEP_ARCHIVE_URL", str(tmp_path / "archive"))

    code, listed = operate("list", "--user", user)
    assert (code, listed.count(f"{user} {STREAM} ")) == (0, 2)
    assert f"{user} {STREAM} 1-2 " in listed
    code, verified = operate("verify")
    assert (code, verified) == (0, "verified 3 events in 2 segments of 1 streams: all as it was written\n")

    file = tmp_path / "account"
    code, _ = operate("restore", user, str(file))
    assert code == 0
    account = AccountFile(io.BytesIO(file.read_bytes()))
    assert [row[0] for row in account.rows(STREAM)] == [1, 2, 3, 4]
    trio.run(verify_account, account)
    with pytest.raises(StartupError, match="there already"):
        operate("restore", user, str(file))
    with pytest.raises(StartupError, match="there is no user"):
        operate("restore", bytes(32).hex(), str(tmp_path / "nobody"))

    (first, *_) = sorted(path for path in (tmp_path / "archive").rglob("*-*") if path.is_file())
    first.write_bytes(first.read_bytes()[:-1])
    code, verified = operate("verify", "--user", user)
    assert code == 1
    assert verified.startswith(f"segment_damaged: user {user} stream {STREAM} seq 1: ")
    assert verified.endswith("1 faults\n")
