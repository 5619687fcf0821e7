"""Logs for tests, over memory and over PostgreSQL, behind one set of controls; and what a reader makes of a log."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol
from urllib.parse import urlsplit

import msgspec
import psycopg

from keepstep.cleanup import Housekeeping
from keepstep.client import crypto
from keepstep.measuring import MeasuredDatabase
from keepstep.memory import (
    MemoryAccounts,
    MemoryAdministration,
    MemoryDatabase,
    MemoryHousekeeping,
    MemoryLinks,
    MemoryLog,
    MemoryMaintenance,
    MemoryRestores,
    MemoryTokens,
)
from keepstep.memory.database import InviteRow
from keepstep.memory.restores import begin_epoch as begin_epoch_in_memory
from keepstep.memory.retention import MemoryRetention
from keepstep.postgres.accounts import PostgresAccounts
from keepstep.postgres.admin import PostgresAdministration
from keepstep.postgres.housekeeping import PostgresHousekeeping
from keepstep.postgres.links import PostgresLinks
from keepstep.postgres.log import PostgresLog
from keepstep.postgres.maintenance import PostgresMaintenance
from keepstep.postgres.pool import Connection, Database, Limits, Pool
from keepstep.postgres.restores import PostgresRestores, begin_epoch
from keepstep.postgres.retention import PostgresRetention
from keepstep.postgres.tokens import PostgresTokens
from keepstep.protocol.chain import chain_next, event_hash
from keepstep.protocol.messages import EventRow, Result, ResultAccepted
from keepstep.runtime import WorkerThreads
from tests.support.events import NOW_MS, DeviceFixture, SignedEvent, submission

if TYPE_CHECKING:
    import pytest

    from keepstep.administration import Administration
    from keepstep.eventlog.log import StoredLog
    from keepstep.eventlog.retention import Retention
    from keepstep.interfaces import Accounts, EventLog, Maintenance
    from keepstep.links import LinkStore
    from keepstep.memory.rows import EventRow as MemoryRow
    from keepstep.model import AccountChange, Principal
    from keepstep.restores import Restores
    from keepstep.tokenstore import TokenStore

PAGE_BYTES_MAX: Final = 1024 * 1024
BREAKER_S: Final = 60.0
"""Seconds after which a breaker lets somebody try again."""
LIMITS: Final = Limits(lock_timeout_ms=5_000)


class FixedClock:
    """A clock that shows what a test says."""

    def __init__(self, now_ms: int = NOW_MS) -> None:
        self.at_ms = now_ms
        self.at_s = 0.0

    def now_ms(self) -> int:
        """Unix milliseconds."""
        return self.at_ms

    def monotonic_s(self) -> float:
        """Seconds."""
        return self.at_s


class Housekept(Housekeeping, MeasuredDatabase, Protocol):
    """Cleaned up and measured."""


class Place(Protocol):
    """One database with the nodes on it."""

    @property
    def accounts(self) -> Accounts:
        """Users, devices and sessions."""

    @property
    def maintenance(self) -> Maintenance:
        """Housekeeping."""

    @property
    def retention(self) -> Retention:
        """What takes away the oldest events."""

    @property
    def tokens(self) -> TokenStore:
        """Challenges, families of refresh tokens, revoked access tokens."""

    @property
    def administration(self) -> Administration:
        """Users, sessions, invites, the audit trail."""

    @property
    def links(self) -> LinkStore:
        """Mailboxes through which devices are linked."""

    @property
    def housekeeping(self) -> Housekept:
        """Clean-up and measuring."""

    @property
    def restores(self) -> Restores:
        """Rewinds and heal windows."""

    def node(self, **options: Any) -> StoredLog:
        """Another node's log; ``options`` as for ``PostgresLog`` and ``MemoryLog``."""

    def refuse(self, marker: bytes) -> None:
        """From now on the database does not take application events whose payload begins with ``marker``."""

    def invite(self, code_hash: bytes, *, expires_at_ms: int) -> None:
        """Let somebody register with an invite."""

    def go_away(self) -> None:
        """Cut all connections and let no new one in."""

    def come_back(self) -> None:
        """End ``go_away``."""

    def back_up(self) -> None:
        """Keep the database as it is now; connections may be cut."""

    def restore(self) -> None:
        """Set the database back to ``back_up``, in a new epoch."""

    def close(self) -> None:
        """Close what is open."""


class MemoryPlace:
    """A ``MemoryDatabase``."""

    def __init__(self) -> None:
        self.database = MemoryDatabase()
        self.accounts = MemoryAccounts(self.database)
        self.maintenance = MemoryMaintenance(self.database, clock=FixedClock())
        self.retention = MemoryRetention(self.database)
        self.tokens = MemoryTokens(self.database)
        self.administration = MemoryAdministration(self.database)
        self.links = MemoryLinks(self.database)
        self.housekeeping = MemoryHousekeeping(self.database)
        self.restores = MemoryRestores(self.database)

    def node(self, **options: Any) -> StoredLog:
        """As ``Place.node``."""
        return MemoryLog(self.database, **options)

    def refuse(self, marker: bytes) -> None:
        """As ``Place.refuse``."""

        def refuses(row: MemoryRow) -> bool:
            return row.payload is not None and row.payload.startswith(marker)

        self.database.refuses = refuses

    def invite(self, code_hash: bytes, *, expires_at_ms: int) -> None:
        """As ``Place.invite``."""
        self.database.invites[code_hash] = InviteRow(NOW_MS, expires_at_ms)

    def go_away(self) -> None:
        """As ``Place.go_away``."""
        self.database.away = True

    def come_back(self) -> None:
        """As ``Place.come_back``."""
        self.database.away = False

    def back_up(self) -> None:
        """As ``Place.back_up``."""
        # Heads and rows are frozen values, which copy.deepcopy cannot take apart and need not.
        self._kept_heads = {user_pk: dict(user.heads) for user_pk, user in self.database.users.items()}
        self._kept_events = {place: list(rows) for place, rows in self.database.events.items()}
        self._kept_latest = {place: dict(rows) for place, rows in self.database.latest.items()}
        self._kept_removals = {place: dict(rows) for place, rows in self.database.removals.items()}
        self._kept_snapshots = {place: dict(rows) for place, rows in self.database.snapshots.items()}

    def restore(self) -> None:
        """As ``Place.restore``."""
        for user_pk, heads in self._kept_heads.items():
            self.database.users[user_pk].heads = heads
        self.database.events.clear()
        self.database.events.update(self._kept_events)
        self.database.latest.clear()
        self.database.latest.update(self._kept_latest)
        self.database.removals.clear()
        self.database.removals.update(self._kept_removals)
        self.database.snapshots.clear()
        self.database.snapshots.update(self._kept_snapshots)
        begin_epoch_in_memory(self.database, at_least=NOW_MS)
        self.database.generation += 1

    def close(self) -> None:
        """As ``Place.close``."""


class PostgresPlace:
    """A fresh PostgreSQL database."""

    def __init__(self, url: str, admin_url: str) -> None:
        self.url = url
        self._admin_url = admin_url
        self._databases: list[Database] = []
        self.clock = FixedClock()
        database = self.connect()
        self.accounts = PostgresAccounts(database)
        self.maintenance = PostgresMaintenance(database)
        self.retention = PostgresRetention(database)
        self.tokens = PostgresTokens(database)
        self.administration = PostgresAdministration(database)
        self.links = PostgresLinks(database)
        self.housekeeping = PostgresHousekeeping(database)
        self.restores = PostgresRestores(database)

    @property
    def name(self) -> str:
        """The database's."""
        return urlsplit(self.url).path.removeprefix("/")

    def connect(self, limits: Limits = LIMITS, *, durable: bool = False) -> Database:
        """Connections of another node."""
        database = Database(self.url, threads=WorkerThreads(), clock=self.clock, limits=limits, durable=durable)
        self._databases.append(database)
        return database

    def node(self, *, database: Database | None = None, **options: Any) -> PostgresLog:
        """As ``Place.node``; ``database`` where a test needs to know its connections."""
        return PostgresLog(database or self.connect(), **options)

    def refuse(self, marker: bytes) -> None:
        """As ``Place.refuse``."""
        begins = f"left(encode(payload, 'hex'), {2 * len(marker)})"
        self.execute(f"ALTER TABLE events_standard ADD CHECK ({begins} <> '{marker.hex()}')")

    def invite(self, code_hash: bytes, *, expires_at_ms: int) -> None:
        """As ``Place.invite``."""
        values = f"'\\x{code_hash.hex()}', {NOW_MS}, {expires_at_ms}"
        self.execute(f"INSERT INTO invites (code_hash, created_at, expires_at) VALUES ({values})")  # noqa: S608  # ours

    def go_away(self) -> None:
        """As ``Place.go_away``."""
        self.administer(f"ALTER DATABASE {self.name} ALLOW_CONNECTIONS false")
        self.cut()

    def come_back(self) -> None:
        """As ``Place.come_back``."""
        self.administer(f"ALTER DATABASE {self.name} ALLOW_CONNECTIONS true")
        self.clock.at_s += BREAKER_S

    def cut(self, which: str = "%") -> None:
        """End the server's side of all connections whose application_name is like ``which``, and wait for it."""
        self.administer(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"  # noqa: S608  # names of our own
            f" WHERE datname = '{self.name}' AND application_name LIKE '{which}'"
        )

    def back_up(self) -> None:
        """As ``Place.back_up``."""
        self.cut()
        self.administer(f"CREATE DATABASE {self.name}_backup TEMPLATE {self.name}")

    def restore(self) -> None:
        """As ``Place.restore``."""
        owner = urlsplit(self.url).username
        self.administer(
            f"DROP DATABASE {self.name} WITH (FORCE)",
            f"CREATE DATABASE {self.name} TEMPLATE {self.name}_backup OWNER {owner}",
            f"DROP DATABASE {self.name}_backup",
        )
        with psycopg.connect(self.url, autocommit=True) as connection:
            begin_epoch(connection, at_least=NOW_MS)

    def execute(self, statement: str) -> list[Any]:
        """Run SQL in the database, as its owner; returns rows where there are any."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def administer(self, *statements: str) -> None:
        """Run SQL as a superuser, beside the database."""
        with psycopg.connect(self._admin_url, autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement)

    def close(self) -> None:
        """As ``Place.close``."""
        for database in self._databases:
            database.close()


def without_flights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections take no flights from now on, as where they are encrypted: everything goes through psycopg."""
    monkeypatch.setattr("keepstep.postgres.pool.flights_on", lambda _connection: None)


def with_prepared_flights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Idle connections for appending have their flights prepared from now on, so that threads of the extension commit.

    Else the first batch of a connection prepares them, in a thread of Python's.
    """
    put = Pool.put

    def prepared(pool: Pool, connection: Connection) -> None:
        if pool is pool._database.append and not connection.closed:
            pool.flights(connection)
        put(pool, connection)

    monkeypatch.setattr(Pool, "put", prepared)


async def create_account(place: Place, log: EventLog, device: DeviceFixture) -> Principal:
    """Create a user with its first device; the device once it proved who it is."""
    result = await log.create_account(device.genesis(), now_ms=NOW_MS)
    assert isinstance(result, ResultAccepted), result
    return await principal_of(place, device)


async def principal_of(place: Place, device: DeviceFixture) -> Principal:
    """An enrolled device once it proved who it is."""
    principal = await place.accounts.principal(device.user.user_key, device.device_id)
    assert principal is not None
    return principal


async def enrol(place: Place, log: EventLog, by: DeviceFixture, device: DeviceFixture) -> Principal:
    """Let ``by`` enrol ``device``."""
    event, change = by.enrol(device)
    results = await append(log, await principal_of(place, by), event, account_change=change)
    assert [type(result) for result in results] == [ResultAccepted], results
    return await principal_of(place, device)


async def session_no(place: Place, principal: Principal, session_id: bytes) -> int:
    """The number of a session that opens."""
    opened = await place.accounts.open_session(principal, session_id, now_ms=NOW_MS)
    assert opened is not None
    assert opened.session_no is not None
    return opened.session_no


async def acks_of(log: EventLog, principal: Principal) -> dict[str, int]:
    """Up to where a device has acknowledged which stream, as it is told where it goes on with all of them."""
    followed = await log.follow(principal, {}, every=True)
    return {each.info.name: each.acked_seq for each in followed if each.acked_seq}


async def append(
    log: EventLog,
    principal: Principal,
    *events: SignedEvent,
    now_ms: int = NOW_MS,
    account_change: AccountChange | None = None,
) -> list[Result]:
    """Append one submission and return its answers."""
    appended = await log.append([submission(principal, *events)], now_ms=now_ms, account_change=account_change)
    (results,) = appended.results
    return results


@dataclass
class Reading:
    """Everything a stream holds, read page by page as a new device would, its chain recomputed and compared."""

    rows: list[EventRow] = field(default_factory=list)
    pages: int = 0
    chain: bytes = b""

    @property
    def payloads(self) -> list[bytes | None]:
        """In order of seq."""
        return [row[5] for row in self.rows]

    @property
    def hashes(self) -> list[bytes]:
        """Event hashes in order of seq."""
        return [event_hash(crypto, row[3], row[4]) for row in self.rows]


def decode_rows(rows: bytes, count: int) -> list[EventRow]:
    """The rows of a page."""
    array = (b"\x90" if not count else b"\xdd" + count.to_bytes(4, "big")) + rows
    return msgspec.msgpack.decode(array, type=list[EventRow])


async def read_all(
    log: EventLog,
    principal: Principal,
    stream: str,
    *,
    after: int = 0,
    chain: bytes | None = None,
    now_ms: int = NOW_MS,
    events_max: int = 1000,
    bytes_max: int = PAGE_BYTES_MAX,
) -> Reading:
    """Read a stream to its head; asserts that seqs have no gap and that the chain holds."""
    reading = Reading(chain=chain or await log.chain_at(principal.user_pk, stream, after))
    position = after
    while True:
        page = await log.read(
            principal.user_pk, stream, after=position, events_max=events_max, bytes_max=bytes_max, now_ms=now_ms
        )
        assert page.after == position
        rows = decode_rows(page.rows, page.count)
        assert len(rows) <= events_max
        for row in rows:
            position += 1
            assert row[0] == position
            reading.chain = chain_next(crypto, reading.chain, row[0], row[2], event_hash(crypto, row[3], row[4]))
        assert (page.last_seq, page.chain) == (position, reading.chain)
        reading.rows += rows
        reading.pages += bool(rows)
        if page.last_seq == page.head_seq:
            return reading
