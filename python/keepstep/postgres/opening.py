"""Opening the database of the settings: started where it is ours, migrated, checked, with its pools."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import psycopg
import trio

from keepstep.errors import StartupError
from keepstep.postgres import embedded, migrate
from keepstep.postgres.accounts import PostgresAccounts
from keepstep.postgres.admin import PostgresAdministration
from keepstep.postgres.breaker import BreakerState
from keepstep.postgres.durability import Durability, check_durability
from keepstep.postgres.housekeeping import PostgresHousekeeping
from keepstep.postgres.isolation import check_isolation
from keepstep.postgres.links import PostgresLinks
from keepstep.postgres.log import PostgresLog
from keepstep.postgres.maintenance import PostgresMaintenance
from keepstep.postgres.pool import Database, Limits
from keepstep.postgres.restores import PostgresRestores
from keepstep.postgres.retention import PostgresRetention
from keepstep.postgres.tokens import PostgresTokens

if TYPE_CHECKING:
    from keepstep.config import Settings
    from keepstep.hits import Hits
    from keepstep.interfaces import Clock, Threads


@dataclass(frozen=True, slots=True)
class Opened:
    """An open database.

    Attributes:
        log: the event log in it.
        accounts: users, devices and sessions in it.
        maintenance: its housekeeping.
        retention: takes away its oldest events.
        tokens: challenges and tokens of REST in it.
        administration: users, sessions, invites and the audit trail in it.
        links: mailboxes through which devices are linked in it.
        housekeeping: clean-up and measuring of it.
        restores: rewinds and heal windows in it.
        database: for what its breaker says.
        durability: what it promises.
        place: which one it is, in words, without credentials.
    """

    log: PostgresLog
    accounts: PostgresAccounts
    maintenance: PostgresMaintenance
    retention: PostgresRetention
    tokens: PostgresTokens
    administration: PostgresAdministration
    links: PostgresLinks
    housekeeping: PostgresHousekeeping
    restores: PostgresRestores
    database: Database
    durability: Durability
    place: str

    def is_away(self) -> bool:
        """Whether calls fail at once because the database did not answer."""
        return self.database.breaker.state is not BreakerState.CLOSED

    def cache_hits(self) -> Mapping[str, Hits]:
        """What the log's caches had, by their names."""
        return self.log.cache_hits()

    def tail_bytes(self) -> int:
        """What the newest events take up in memory, bytes."""
        return self.log.tail.size_bytes


@asynccontextmanager
async def opened(
    settings: Settings, *, clock: Clock, threads: Threads, probe: Callable[[str], None] | None
) -> AsyncIterator[Opened]:
    """The database for as long as the block runs.

    Raises:
        StartupError: it cannot be used; the message says why. In an exception group where the database is our own.
    """
    limiter = trio.CapacityLimiter(1)
    async with AsyncExitStack() as stack:
        if settings.database_url is None:
            url = await stack.enter_async_context(embedded.running(settings))
        else:
            url = settings.database_url.get_secret_value()
        bring_up = migrate.up if settings.migrate_at_start else migrate.check
        await threads.run(lambda: bring_up(url), limiter=limiter)
        durability = await threads.run(lambda: check_promises(url, settings), limiter=limiter)
        limits = Limits(
            pipelines=settings.pipelines,
            read_connections=settings.read_connections,
            statement_timeout_ms=settings.statement_timeout_ms,
            lock_timeout_ms=settings.lock_timeout_ms,
            connect_timeout_s=settings.database_connect_timeout_s,
        )
        database = Database(url, threads=threads, clock=clock, limits=limits, durable=not settings.unsafe)
        stack.callback(database.close)
        log = PostgresLog(
            database,
            streams_per_user_max=settings.streams_per_user_max,
            bytes_per_user_max=settings.bytes_per_user_max,
            tail_bytes_max=settings.tail_bytes_max,
            tail_stream_bytes_max=settings.tail_stream_bytes_max,
            probe=probe,
        )
        yield Opened(
            log,
            PostgresAccounts(database),
            PostgresMaintenance(database),
            PostgresRetention(database),
            PostgresTokens(database),
            PostgresAdministration(database),
            PostgresLinks(database),
            PostgresHousekeeping(database),
            PostgresRestores(database),
            database,
            durability,
            _place(settings, url, durability),
        )


def check_promises(url: str, settings: Settings, *, migrated: bool = True) -> Durability:
    """What a database promises: that it keeps what it acknowledges, and users apart. Blocks; changes nothing.

    Args:
        url: of the role that owns the tables.
        settings: whose timeouts count.
        migrated: whether its tables are there, which users are kept apart in.

    Raises:
        StartupError: it cannot be reached, or does not promise it; the message says why.
    """
    try:
        with psycopg.connect(url, connect_timeout=settings.database_connect_timeout_s) as connection:
            durability = check_durability(connection, unsafe=settings.unsafe)
            if migrated:
                check_isolation(connection)
            return durability
    except psycopg.Error as error:
        raise StartupError(f"the database cannot be used: {type(error).__name__}") from error


def _place(settings: Settings, url: str, durability: Durability) -> str:
    version = f"PostgreSQL {durability.release}"
    if settings.database_url is None:
        return f"{version}, its own in {settings.data_dir / 'postgres'}"
    parts = urlsplit(url)
    return f"{version} at {parts.hostname or 'localhost'}{f':{parts.port}' if parts.port else ''}{parts.path}"
