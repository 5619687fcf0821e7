"""A device's one file: a SQLite database with its keys, outbox, received events and positions.

Everything a device may not lose is in here, so every transaction is on the disk before it counts (WAL with
``synchronous = FULL``). The file holds secret keys and is readable by its owner only (mode 0600, its directory
0700). Whoever opens it holds it alone: two processes on one device would number events twice.

The calls block on the disk; ``device`` makes them in a worker thread, one at a time.
"""

from __future__ import annotations

import contextlib
import sqlite3
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from keepstep.client.files import make_private, move_into_place, writing
from keepstep.client.notices import Notice, NoticeKind
from keepstep.client.payload import ContentKey
from keepstep.client.schema import SCHEMA, SCHEMA_VERSION, UPGRADES
from keepstep.errors import ClientError, StoreError
from keepstep.model import KEY_BYTES, Capability, Position

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

BUSY_TIMEOUT_S: Final = 0.5
"""How long to wait for another process to let go of the file, seconds."""
ALARMS_MAX: Final = 1000
"""Alarms kept, the newest; a server that lies all the time fills no disk."""
NOTICES_MAX: Final = 1000
"""Notices kept, the newest."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a device is and which server it belongs to.

    Attributes:
        name: what its user calls it; the server sees it sealed only.
        user_key: the user id, 32 bytes.
        device_id: 16 bytes.
        device_secret: Ed25519 seed, 32 bytes, secret.
        box_secret: X25519 secret, 32 bytes.
        capabilities: as enrolled.
        device_url: ``ws://`` or ``wss://`` address, without the key.
        rest_url: ``http://`` or ``https://`` address of the same server.
        server_key: the pinned server identity key, 32 bytes.
        handed_over: ``$devices`` as known at enrolment.
    """

    name: str
    user_key: bytes
    device_id: bytes
    device_secret: bytes
    box_secret: bytes
    capabilities: Capability
    device_url: str
    rest_url: str
    server_key: bytes
    handed_over: Position

    def __repr__(self) -> str:
        return f"Identity({self.name!r}, {self.device_id.hex()})"


@dataclass(frozen=True, slots=True)
class Alarm:
    """A lie of the server or of an author, or a sign that this device was copied or set back."""

    at_ms: int
    stream: str
    seq: int | None
    reason: str


class Store:
    """The open file. Use ``create_store`` or ``open_store``; close it when done."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path = path
        self._connection = connection
        self._closed = False
        self.identity = self._load_identity()

    def close(self) -> None:
        """Let go of the file; idempotent."""
        self._closed = True
        self._connection.close()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing; on the disk when the block ends.

        Raises:
            StoreError: the disk is full or the file is damaged; nothing was changed.
        """
        connection = self._open()
        with _plain_errors(self.path):
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

    def rows(self, sql: str, *parameters: Any) -> list[Any]:
        """Every row of a query. Raises StoreError after ``close``."""
        return self._open().execute(sql, parameters).fetchall()

    def row(self, sql: str, *parameters: Any) -> Any:
        """The first row of a query, or ``None``. Raises StoreError after ``close``."""
        return self._open().execute(sql, parameters).fetchone()

    def execute(self, sql: str, *parameters: Any) -> int:
        """Run a statement of a transaction; returns the id of an inserted row, else a number without meaning."""
        return self._open().execute(sql, parameters).lastrowid or 0

    def execute_many(self, sql: str, parameters: Iterable[tuple[Any, ...]]) -> None:
        """Run a statement of a transaction for each tuple."""
        self._open().executemany(sql, parameters)

    def _open(self) -> sqlite3.Connection:
        if self._closed:
            raise StoreError("the device was closed")
        return self._connection

    def content_keys(self) -> list[ContentKey]:
        """Every content epoch this device has the key of."""
        return [
            ContentKey(*row)
            for row in self.rows("SELECT content_epoch, after_seq, content_key, index_key FROM content_keys")
        ]

    def add_content_keys(self, keys: Iterable[ContentKey]) -> None:
        """Keep content keys; one that is there keeps the highest ``after``. Part of a transaction."""
        self.execute_many(
            "INSERT INTO content_keys VALUES (?, ?, ?, ?)"
            " ON CONFLICT (content_epoch) DO UPDATE SET after_seq = max(after_seq, excluded.after_seq)",
            ((key.content_epoch, key.after, key.content_key, key.index_key) for key in keys),
        )

    def safe_at_ms(self) -> int | None:
        """What the server received by then is in a verified backup, as it said last, unix milliseconds."""
        at_ms: int | None = self.row("SELECT safe_at_ms FROM device")[0]
        return at_ms

    def count_fallen(self, stream: str, events: int, *, now_ms: int) -> None:
        """This device let events go before they were in a verified backup. Part of a transaction."""
        if events:
            self.execute(
                "INSERT INTO fallen VALUES (?, ?, ?) ON CONFLICT (stream) DO UPDATE SET"
                " events = events + excluded.events, last_at_ms = excluded.last_at_ms",
                stream, events, now_ms,
            )  # fmt: skip

    def hlc(self) -> int:
        """The highest hybrid logical clock given or seen."""
        return int(self.row("SELECT hlc FROM device")[0])

    def raise_hlc(self, hlc: int) -> None:
        """Part of a transaction; never lowers it."""
        self.execute("UPDATE device SET hlc = max(hlc, ?)", hlc)

    def epoch(self) -> int:
        """The highest epoch the server showed."""
        return int(self.row("SELECT epoch FROM device")[0])

    def raise_epoch(self, epoch: int) -> None:
        """Part of a transaction; never lowers it."""
        self.execute("UPDATE device SET epoch = max(epoch, ?)", epoch)

    def healed_epoch(self) -> int:
        """Up to this epoch everything was handed in that restores had lost."""
        return int(self.row("SELECT healed_epoch FROM device")[0])

    def set_healed(self, epoch: int) -> None:
        """Part of a transaction."""
        self.execute("UPDATE device SET healed_epoch = ?", epoch)

    def genesis(self) -> bytes | None:
        """The signed genesis that the server has not been known to accept."""
        genesis: bytes | None = self.row("SELECT genesis FROM device")[0]
        return genesis

    def forget_genesis(self) -> None:
        """It is accepted. Part of a transaction."""
        self.execute("UPDATE device SET genesis = NULL")

    def account(self) -> bytes | None:
        """The account log as far as ``$devices`` is verified."""
        account: bytes | None = self.row("SELECT account FROM device")[0]
        return account

    def save_account(self, account: bytes) -> None:
        """Part of a transaction."""
        self.execute("UPDATE device SET account = ?", account)

    def hand_over(self, position: Position) -> None:
        """Pin ``$devices`` as the enrolling device knows it. Part of a transaction."""
        self.execute("UPDATE device SET handed_over_seq = ?, handed_over_chain = ?", position.seq, position.chain)

    def receipt(self, stream: str) -> Position:
        """The last place that the server said it gave to an event of this device; seq 0 where there is none."""
        row = self.row("SELECT receipt_seq, receipt_chain FROM own WHERE stream = ?", stream)
        return Position(0, b"") if row is None else Position(*row)

    def own_epoch(self, stream: str) -> int:
        """The epoch of the log when this device's own numbers in a stream were last known to be the server's."""
        row = self.row("SELECT epoch FROM own WHERE stream = ?", stream)
        return 0 if row is None else int(row[0])

    def forget_receipt(self, stream: str) -> None:
        """A restore took the place away that the server gave to an event of this device. Part of a transaction."""
        self.execute("UPDATE own SET receipt_seq = 0, receipt_chain = x'' WHERE stream = ?", stream)

    def add_alarm(self, alarm: Alarm) -> None:
        """Keep an alarm for the user. Part of a transaction."""
        newest = self.execute(
            "INSERT INTO alarms (at_ms, stream, seq, reason) VALUES (?, ?, ?, ?)",
            alarm.at_ms, alarm.stream, alarm.seq, alarm.reason,
        )  # fmt: skip
        self.execute("DELETE FROM alarms WHERE id <= ?", newest - ALARMS_MAX)

    def alarms(self) -> list[Alarm]:
        """Every alarm kept, oldest first."""
        return [Alarm(*row) for row in self.rows("SELECT at_ms, stream, seq, reason FROM alarms ORDER BY id")]

    def add_notice(self, notice: Notice) -> None:
        """Keep a notice for the user. Part of a transaction."""
        newest = self.execute(
            "INSERT INTO notices (at_ms, kind, device_id, until_ms) VALUES (?, ?, ?, ?)",
            notice.at_ms, notice.kind.value, notice.device_id, notice.until_ms,
        )  # fmt: skip
        self.execute("DELETE FROM notices WHERE id <= ?", newest - NOTICES_MAX)

    def notices(self, *, after: int = 0) -> list[Notice]:
        """The notices kept that are numbered above ``after``, oldest first."""
        return [
            Notice(NoticeKind(kind), at_ms, device_id, until_ms, number)
            for number, at_ms, kind, device_id, until_ms in self.rows(
                "SELECT id, at_ms, kind, device_id, until_ms FROM notices WHERE id > ? ORDER BY id", after
            )
        ]

    def keep_seen(self, seen: Mapping[bytes, int]) -> None:
        """Keep when devices were last connected, unix milliseconds, in place of what was known. In a transaction."""
        self.execute("DELETE FROM seen")
        for device_id, at_ms in seen.items():
            self.execute("INSERT INTO seen (device_id, at_ms) VALUES (?, ?)", device_id, at_ms)

    def seen(self) -> dict[bytes, int]:
        """When devices were last connected, unix milliseconds, as the server said last."""
        return dict(self.rows("SELECT device_id, at_ms FROM seen"))

    def revoked_at_ms(self) -> int | None:
        """When this device ended, unix milliseconds; ``None`` while it has its keys."""
        at_ms: int | None = self.row("SELECT revoked_at_ms FROM device")[0]
        return at_ms

    def wipe(self, at_ms: int) -> None:
        """Take this device's keys, outbox and events away, for good; who it was and its notices stay.

        What is freed is overwritten in the file, as far as the file system and the medium overwrite at all.
        """
        self._open().execute("PRAGMA secure_delete = ON")
        with self.transaction():
            nothing = bytes(KEY_BYTES)
            self.execute(
                "UPDATE device SET device_secret = ?, box_secret = ?, genesis = NULL, kept_bytes = 0,"
                " revoked_at_ms = ?",
                nothing, nothing, at_ms,
            )  # fmt: skip
            for table in ("content_keys", "outbox", "superseded", "events", "streams", "cursors", "own", "kept"):
                self.execute(f"DELETE FROM {table}")  # noqa: S608 - names of this file
        self._open().execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self._open().execute("VACUUM")

    def relocate(self, device_url: str, rest_url: str) -> None:
        """Know the server under other addresses from now on; within a transaction."""
        self.execute("UPDATE device SET device_url = ?, rest_url = ?", device_url, rest_url)
        self.identity = replace(self.identity, device_url=device_url, rest_url=rest_url)

    def repin(self, server_key: bytes) -> None:
        """Know the server by another identity key from now on; within a transaction."""
        self.execute("UPDATE device SET server_key = ?", server_key)
        self.identity = replace(self.identity, server_key=server_key)

    def belong_to(self, device_url: str, rest_url: str, server_key: bytes) -> None:
        """Belong to another server, whose log has epochs of its own; within a transaction."""
        self.execute(
            "UPDATE device SET device_url = ?, rest_url = ?, server_key = ?, epoch = 0, healed_epoch = 0,"
            " safe_at_ms = NULL",
            device_url,
            rest_url,
            server_key,
        )
        self.execute("UPDATE own SET epoch = 0")
        self.execute("DELETE FROM rewinds")
        self.identity = replace(self.identity, device_url=device_url, rest_url=rest_url, server_key=server_key)

    def own_streams(self) -> list[str]:
        """Streams that this device has written."""
        return [str(stream) for (stream,) in self.rows("SELECT stream FROM own")]

    def _load_identity(self) -> Identity:
        row = self.row(
            "SELECT name, user_key, device_id, device_secret, box_secret, capabilities, device_url, rest_url,"
            " server_key, handed_over_seq, handed_over_chain FROM device"
        )
        if row is None:
            raise StoreError(f"{self.path} is not a device's file: nobody's keys are in it")
        name, user_key, device_id, device_secret, box_secret, capabilities, device_url, rest_url, server_key = row[:9]
        return Identity(
            name=name,
            user_key=user_key,
            device_id=device_id,
            device_secret=device_secret,
            box_secret=box_secret,
            capabilities=Capability(capabilities),
            device_url=device_url,
            rest_url=rest_url,
            server_key=server_key,
            handed_over=Position(*row[9:]),
        )


def create_store(path: Path, identity: Identity, *, genesis: bytes | None, content_keys: Iterable[ContentKey]) -> Store:
    """Make a device's file; complete on the disk when this returns, or not there.

    Args:
        path: where; its directory is made if needed.
        identity: who the device is.
        genesis: for a user's first device.
        content_keys: what it may read at once.

    Raises:
        ClientError: something is there already, or the place cannot be written.
    """
    beside = path.with_name(path.name + ".new")
    with writing(path):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if path.exists():
            raise ClientError(f"{path} exists already")
        for suffix in ("", "-wal", "-journal"):
            beside.with_name(beside.name + suffix).unlink(missing_ok=True)
        make_private(beside)
    with _plain_errors(path), contextlib.closing(_connect(beside)) as connection:
        connection.executescript(f"BEGIN;{SCHEMA}PRAGMA user_version = {SCHEMA_VERSION};COMMIT;")
        connection.execute(
            "INSERT INTO device VALUES (1, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, NULL, ?, ?, 0, 0, NULL, 0, NULL, 0)",
            (
                identity.name, identity.user_key, identity.device_id, identity.device_secret, identity.box_secret,
                int(identity.capabilities), identity.device_url, identity.rest_url, identity.server_key, genesis,
                identity.handed_over.seq, identity.handed_over.chain,
            ),
        )  # fmt: skip
        store = Store(beside, connection)
        with store.transaction():
            store.add_content_keys(content_keys)
    # Closing has moved everything out of the write-ahead log, so the one file is the whole store.
    with writing(path):
        move_into_place(beside, path)
    return open_store(path)


def open_store(path: Path) -> Store:
    """Open a device's file and hold it alone.

    Raises:
        ClientError: it is not there, not one, of a newer version, or in use by another process.
    """
    if not path.is_file():
        raise ClientError(f"there is no device at {path}")
    with _plain_errors(path):
        connection = _connect(path)
        try:
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if version not in (*UPGRADES, SCHEMA_VERSION):
                raise ClientError(f"{path} was made by another version of keepstep (its format is {version})")
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("COMMIT")
            upgrade = "".join(statements for since, statements in UPGRADES.items() if since >= version)
            if upgrade:
                connection.executescript(f"BEGIN;{upgrade}PRAGMA user_version = {SCHEMA_VERSION};COMMIT;")
            return Store(path, connection)
        except BaseException:
            connection.close()
            raise


def check_live(store: Store) -> None:
    """Raises ClientError where the device has ended, and its keys are gone."""
    if store.revoked_at_ms() is not None:
        raise ClientError(f"{store.identity.name} was revoked: its keys are gone; make another device")


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
    try:
        # Exclusive, before the first access: one process, and no shared-memory file.
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
    except BaseException:
        connection.close()
        raise
    return connection


@contextlib.contextmanager
def _plain_errors(path: Path) -> Iterator[None]:
    """SQLite's errors as messages for people."""
    try:
        yield
    except sqlite3.OperationalError as exc:
        if exc.sqlite_errorcode in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise StoreError(f"{path} is in use by another process: one device, one program at a time") from exc
        raise StoreError(f"{path} cannot be used: {exc}") from exc
    except sqlite3.DatabaseError as exc:
        raise StoreError(f"{path} is not a device's file, or it is damaged: {exc}") from exc
