"""A device's file: private, alone, all or nothing, and plain words when it cannot be used."""

from __future__ import annotations

import contextlib
import sqlite3
import stat
from pathlib import Path

import pytest

from keepstep.client import store as stores
from keepstep.client.notices import Notice, NoticeKind
from keepstep.client.payload import ContentKey
from keepstep.client.store import Alarm, Identity, check_live, create_store, open_store
from keepstep.errors import ClientError, StoreError
from keepstep.model import Capability, Position

IDENTITY = Identity(
    name="laptop",
    user_key=b"u" * 32,
    device_id=b"d" * 16,
    device_secret=b"s" * 32,
    box_secret=b"b" * 32,
    capabilities=Capability.PUBLISH | Capability.SUBSCRIBE,
    device_url="ws://server.test/v1/connect",
    rest_url="http://server.test",
    server_key=b"k" * 32,
    handed_over=Position(3, b"c" * 32),
)
KEY = ContentKey(b"e" * 16, 1, b"k" * 32, b"i" * 32)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A device's file, closed."""
    file = tmp_path / "devices" / "laptop.sqlite3"
    create_store(file, IDENTITY, genesis=b"genesis", content_keys=[KEY]).close()
    return file


def test_what_was_put_in_is_there_when_it_is_opened_again(path: Path) -> None:
    """Who the device is, its keys, and the genesis that was not posted."""
    store = open_store(path)
    assert store.identity == IDENTITY
    assert store.content_keys() == [KEY]
    assert (store.genesis(), store.account(), store.hlc(), store.epoch()) == (b"genesis", None, 0, 0)
    assert store.receipt("notes") == Position(0, b"")
    store.close()


def test_only_its_owner_reads_it(path: Path) -> None:
    """The file, what SQLite keeps beside it, and the directory."""
    store = open_store(path)
    with store.transaction():
        store.raise_hlc(1)
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
    store.close()
    assert modes == {"laptop.sqlite3": 0o600, "laptop.sqlite3-wal": 0o600}
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert repr(IDENTITY) == f"Identity('laptop', {(b'd' * 16).hex()})"


def test_every_transaction_is_forced_to_the_disk(path: Path) -> None:
    """Write-ahead log, synchronous FULL (2)."""
    store = open_store(path)
    assert store.row("PRAGMA journal_mode")[0] == "wal"
    assert store.row("PRAGMA synchronous")[0] == 2
    store.close()


def test_one_process_at_a_time(path: Path) -> None:
    """Two would give one number to two events."""
    store = open_store(path)
    with pytest.raises(StoreError, match="in use by another process"):
        open_store(path)
    store.close()
    open_store(path).close()


def test_a_transaction_is_all_or_nothing(path: Path) -> None:
    """An error in the middle undoes what came before it."""
    store = open_store(path)

    def fail_half_way() -> None:
        with store.transaction():
            store.raise_epoch(7)
            raise ValueError("half way")

    with pytest.raises(ValueError, match="half way"):
        fail_half_way()
    assert store.epoch() == 0
    with store.transaction():
        store.raise_epoch(7)
        store.raise_epoch(3)
        store.hand_over(Position(9, b"x" * 32))
        store.forget_genesis()
        store.save_account(b"account")
    assert (store.epoch(), store.genesis(), store.account()) == (7, None, b"account")
    store.close()
    reopened = open_store(path)
    assert reopened.identity.handed_over == Position(9, b"x" * 32)
    reopened.close()


def test_a_full_disk_is_told_plainly_and_changes_nothing(path: Path) -> None:
    """SQLite's own limit stands for the disk's."""
    store = open_store(path)
    pages = store.row("PRAGMA page_count")[0]
    store.execute(f"PRAGMA max_page_count = {pages}")

    def fill() -> None:
        with store.transaction():
            store.save_account(bytes(100_000))

    with pytest.raises(StoreError, match="full"):
        fill()
    assert store.account() is None
    store.close()


def test_what_is_there_is_not_overwritten(path: Path) -> None:
    """A device's keys cannot be made again."""
    with pytest.raises(ClientError, match="exists already"):
        create_store(path, IDENTITY, genesis=None, content_keys=[])


def test_a_place_that_cannot_be_written_is_told_plainly(path: Path) -> None:
    """Here a file stands where a directory should be."""
    with pytest.raises(ClientError, match="cannot be written: "):
        create_store(path / "phone.sqlite3", IDENTITY, genesis=None, content_keys=())


def test_a_creation_that_was_interrupted_is_begun_anew(path: Path) -> None:
    """What it left behind is in nobody's way."""
    other = path.with_name("other.sqlite3")
    other.with_name("other.sqlite3.new").write_bytes(b"half")
    create_store(other, IDENTITY, genesis=None, content_keys=[]).close()
    assert sorted(file.name for file in path.parent.iterdir()) == ["laptop.sqlite3", "other.sqlite3"]


def test_another_file_is_told_apart(tmp_path: Path) -> None:
    """Nothing, no database, and a database of something else."""
    with pytest.raises(ClientError, match="there is no device"):
        open_store(tmp_path / "none")
    (tmp_path / "text").write_text("not a database at all, by far" * 100)
    with pytest.raises(StoreError, match="not a device's file"):
        open_store(tmp_path / "text")
    sqlite3.connect(tmp_path / "other").execute("CREATE TABLE t (x)").connection.close()
    with pytest.raises(ClientError, match="another version"):
        open_store(tmp_path / "other")


def test_alarms_are_kept_up_to_a_limit(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The newest ones; a server that lies all the time fills no disk."""
    monkeypatch.setattr(stores, "ALARMS_MAX", 2)
    store = open_store(path)
    alarms = [Alarm(at, "notes", at or None, f"lie {at}") for at in range(4)]
    for alarm in alarms:
        with store.transaction():
            store.add_alarm(alarm)
    assert store.alarms() == alarms[-2:]
    store.close()


def test_a_store_without_a_device_is_told_apart_and_let_go(path: Path) -> None:
    """It can be opened again, or removed."""
    connection = sqlite3.connect(path)
    connection.execute("DELETE FROM device").connection.commit()
    connection.close()
    for _ in range(2):
        with pytest.raises(StoreError, match="nobody's keys"):
            open_store(path)


def test_a_file_of_the_first_format_is_brought_up_to_date(path: Path) -> None:
    """With what it holds; another process of the new version then finds it as it makes its own."""
    expected = columns(path)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.executescript(
            "ALTER TABLE device DROP COLUMN revoked_at_ms; ALTER TABLE events DROP COLUMN concurrent_from;"
            "DROP TABLE notices; DROP TABLE gaps; DROP TABLE rewinds; DROP TABLE restorations; DROP TABLE seen;"
            "ALTER TABLE own DROP COLUMN epoch; ALTER TABLE device DROP COLUMN healed_epoch;"
            "ALTER TABLE cursors DROP COLUMN rewound_from; DROP TABLE kept; DROP TABLE fallen;"
            "ALTER TABLE device DROP COLUMN safe_at_ms; ALTER TABLE device DROP COLUMN kept_bytes;"
            "PRAGMA user_version = 1;"
        )
    for _ in range(2):
        store = open_store(path)
        assert (store.identity, store.notices(), store.revoked_at_ms()) == (IDENTITY, [], None)
        store.close()
    assert columns(path) == expected


def columns(path: Path) -> dict[str, list[str]]:
    """Of every table."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        tables = connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name").fetchall()
        return {name: [column[1] for column in connection.execute(f"PRAGMA table_info({name})")] for (name,) in tables}


def test_the_newest_notices_are_kept(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In order, each with a number by which the next ones are found."""
    monkeypatch.setattr(stores, "NOTICES_MAX", 2)
    store = open_store(path)
    with store.transaction():
        for at_ms in (1, 2, 3):
            store.add_notice(Notice(NoticeKind.MANAGE_PENDING, at_ms, b"d" * 16, at_ms + 10))
    kept = [Notice(NoticeKind.MANAGE_PENDING, at_ms, b"d" * 16, at_ms + 10, at_ms) for at_ms in (2, 3)]
    assert (store.notices(), store.notices(after=2)) == (kept, kept[1:])
    store.close()


def test_a_wiped_file_says_so_and_holds_no_secrets(path: Path) -> None:
    """Neither in its rows nor in its bytes."""
    store = open_store(path)
    check_live(store)
    with store.transaction():
        store.add_content_keys([ContentKey(b"f" * 16, 2, b"CONTENT-KEY-CONTENT-KEY-CONTENT!", b"i" * 32)])
    store.wipe(7)
    assert (store.revoked_at_ms(), store.content_keys(), store.genesis()) == (7, [], None)
    with pytest.raises(ClientError, match="laptop was revoked"):
        check_live(store)
    store.close()
    content = path.read_bytes()
    assert not any(secret in content for secret in (b"s" * 32, b"b" * 32, b"CONTENT-KEY"))
