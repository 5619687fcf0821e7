"""Connections to PostgreSQL, the threads that use them, and what is known of the database behind them.

psycopg blocks, so every piece of work runs in a worker thread, one connection each, behind a limiter of the pool's
size: whoever has a thread has a connection, and nobody waits for one while holding the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar, cast
from weakref import WeakKeyDictionary

import psycopg
import trio
from psycopg.pq import TransactionStatus

from keepstep.fairness import FairLimiter
from keepstep.postgres import arrays
from keepstep.postgres.breaker import Breaker, BreakerState
from keepstep.postgres.commit import execute_bounded
from keepstep.postgres.durability import require_durability
from keepstep.postgres.faults import away, ends_connection
from keepstep.postgres.flight import flights_on
from keepstep.postgres.isolation import READER_ROLE
from keepstep.postgres.queries import query
from keepstep.postgres.questions import Questions, is_forgotten

if TYPE_CHECKING:
    from keepstep.interfaces import Clock, Threads
    from keepstep.postgres.flight import Flights

T = TypeVar("T")
Connection = psycopg.Connection[tuple[object, ...]]

IDLE_IN_TRANSACTION_MS: Final = 10_000
"""After this a transaction whose client is gone gives its rows back."""
TCP_USER_TIMEOUT_MS: Final = 10_000
"""After this a connection whose packets are not acknowledged is dead, on both sides."""
KEEPALIVE_IDLE_S: Final = 10
"""Silence after which packets are sent to be acknowledged: a machine that went away while its database owed an answer
would be waited for for two hours."""
KEEPALIVE_INTERVAL_S: Final = 5
"""Between two of them."""
KEEPALIVES_MAX: Final = 2
"""How many of them may go unanswered."""

_SETTINGS: Final = {
    "default_transaction_isolation": "read committed",  # the compare and set of the heads relies on it
    "jit": "off",  # no statement is worth compiling
    "idle_in_transaction_session_timeout": str(IDLE_IN_TRANSACTION_MS),
    "tcp_user_timeout": str(TCP_USER_TIMEOUT_MS),
}
_KEYED_SETTINGS: Final = {
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "plan_cache_mode": "force_generic_plan",
    "cpu_index_tuple_cost": "10",  # what reads a whole index costs more than any number of look-ups
}
"""Every statement goes through a key; statistics that are behind must not tempt the planner to anything else."""
_ORDERED_SETTINGS: Final = {"enable_bitmapscan": "off", "default_transaction_read_only": "on"}
"""Pages are read in the order of their key, which a bitmap scan would have to sort."""
_LOCAL_SETTINGS: Final = {"synchronous_commit": "local"}
"""Only what is acknowledged waits for a standby: devices connect, and payloads expire, while there is none."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Which database this is, and of which past."""

    system: int
    timeline: str
    epoch: int


@dataclass(frozen=True, slots=True)
class Limits:
    """What a database may take, each from the setting of that name."""

    pipelines: int = 2
    read_connections: int = 4
    statement_timeout_ms: int = 15_000
    lock_timeout_ms: int = 2_000
    connect_timeout_s: int = 5


APPEND: Final = "append"
"""The purpose of connections whose commits are acknowledged."""
ACCOUNT_CONNECTIONS: Final = 2
"""Connections for handshakes, acks and housekeeping: short statements that never keep the log waiting."""


class Database:
    """One PostgreSQL database: three pools, one breaker, one identity.

    Args:
        conninfo: a connection string or URL, as libpq takes it.
        threads: the hop to worker threads.
        clock: for the breaker.
        limits: connections and timeouts.
        durable: append only where the database keeps what it acknowledges, whichever one a new connection leads to.

    Attributes:
        breaker: its ``state`` is a metric.
        threads: the hop to worker threads.
        append: for appending: one connection for each pipeline and one for new accounts.
        read: for reading what belongs to one user, see ``read_as``.
        accounts: for everything else.
        generation: goes up when a new connection shows another system, timeline or epoch than the one before.
        epoch: the epoch that the newest connection showed; 0 before the first.
    """

    def __init__(
        self, conninfo: str, *, threads: Threads, clock: Clock, limits: Limits | None = None, durable: bool = False
    ) -> None:
        limits = limits or Limits()
        self._durable = durable
        self._conninfo = conninfo
        self._limits = limits
        self._identity: Identity | None = None
        self.epoch = 0
        self.generation = 0
        self._identity_lock = Lock()
        self.breaker = Breaker(clock)
        self.threads = threads
        self.append = Pool(self, threads, name=APPEND, size=limits.pipelines + 1, settings=_KEYED_SETTINGS)
        self.read = Pool(
            self,
            threads,
            name="read",
            size=limits.read_connections,
            settings=_KEYED_SETTINGS | _ORDERED_SETTINGS,
            role=READER_ROLE,
        )
        self._readers = FairLimiter(limits.read_connections)
        self.accounts = Pool(
            self, threads, name="accounts", size=ACCOUNT_CONNECTIONS, settings=_KEYED_SETTINGS | _LOCAL_SETTINGS
        )

    @property
    def statement_timeout_s(self) -> float:
        """Seconds for one statement."""
        return self._limits.statement_timeout_ms / 1000

    def close(self) -> None:
        """Close the idle connections; those in use are closed when their work is done."""
        for pool in (self.append, self.read, self.accounts):
            pool.close()

    async def read_as(self, user_pk: int, ask: Callable[[Connection], T]) -> T:
        """Ask, perhaps twice, on a connection that is shown the rows of that user only.

        While all connections are in use users take turns. A cancellation waits for its end.
        Raises Unavailable while the database is away.
        """

        def ask_as(connection: Connection) -> T:
            connection.execute(query("name_user"), {"user_pk": user_pk})
            return ask(connection)

        async with self._readers.place(user_pk):
            return await self.read.run(lambda lease: lease.ask(ask_as))

    def connect(self, name: str, settings: dict[str, str], role: str | None) -> tuple[Connection, int]:
        """A new connection, set up, and the generation of the database that it leads to. Blocks.

        With ``role`` it becomes that one when it has been recognised, which not every role may do.

        Raises:
            psycopg.Error: there is none to be had.
        """
        connection = psycopg.connect(
            self._conninfo,
            autocommit=True,
            connect_timeout=self._limits.connect_timeout_s,
            application_name=f"keepstep {name}",
            tcp_user_timeout=TCP_USER_TIMEOUT_MS,
            keepalives_idle=KEEPALIVE_IDLE_S,
            keepalives_interval=KEEPALIVE_INTERVAL_S,
            keepalives_count=KEEPALIVES_MAX,
        )
        try:
            arrays.register(connection)
            connection.prepare_threshold = 0
            timeouts = {
                "statement_timeout": str(self._limits.statement_timeout_ms),
                "lock_timeout": str(self._limits.lock_timeout_ms),
            }
            values = _SETTINGS | timeouts | settings
            connection.execute(query("apply_settings"), {"names": list(values), "values": list(values.values())})
            row = connection.execute(query("identity"), binary=True).fetchone()
            assert row is not None
            if self._durable and name == APPEND:
                require_durability(connection)
            generation = self._recognise(Identity(*cast("tuple[int, str, int]", row)))
            if role is not None:
                connection.execute(query("become"), {"role": role})
        except BaseException:
            connection.close()
            raise
        return connection, generation

    def _recognise(self, identity: Identity) -> int:
        # The generation first: who reads a new epoch and the old generation after it would not notice the change.
        with self._identity_lock:
            if self._identity is not None and identity != self._identity:
                self.generation += 1
            self._identity = identity
            self.epoch = identity.epoch
            return self.generation


class Lease:
    """A connection lent to one thread for one piece of work, replaced on request when it breaks.

    Attributes:
        fresh: whether the connection was opened for this work; one from the pool may have died since its last use.
        lost: whether the database was found to be away, and not found again since.
    """

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._connection: Connection | None = pool.take()
        self.fresh = False
        self.lost = False

    @property
    def held(self) -> Connection | None:
        """The connection, ``None`` where it is still to be opened."""
        return self._connection

    @property
    def connection(self) -> Connection:
        """The connection, opened if there is none. Raises psycopg.Error."""
        if self._connection is None:
            self.lost = True
            self._connection = self._pool.connect()
            self.fresh = True
            self.lost = False
        return self._connection

    def ask(self, ask: Callable[[Connection], T]) -> T:
        """Ask something that may be asked twice: of a new connection where the one from the pool had died."""
        try:
            return ask(self.connection)
        except psycopg.Error as error:
            was_fresh = self.fresh
            if not self.discard_if_lost(error) or was_fresh:
                raise
            return ask(self.connection)

    def execute_bounded(self, statement: bytes) -> bytes:
        """As ``commit.execute_bounded``, within the time of any statement."""
        return execute_bounded(self.connection, statement, timeout_s=self._pool.statement_timeout_s)

    @property
    def flights(self) -> Flights | None:
        """What commits on the connection in one flight; ``None`` where it takes none. Raises psycopg.Error."""
        return self._pool.flights(self.connection)

    def forget_flights(self) -> None:
        """The session may have lost what is prepared for flights."""
        if self._connection is not None:
            self._pool.forget_flights(self._connection)

    def discard_if_lost(self, error: psycopg.Error) -> bool:
        """Drop the connection if it did not survive an error; returns whether there is none any more."""
        if self._connection is not None and (self._connection.closed or ends_connection(error)):
            self._connection.close()
            self._connection = None
            self.lost = True
        return self._connection is None

    def give_back(self) -> None:
        """Return the connection to the pool, unless it is in no state for it."""
        connection, self._connection = self._connection, None
        if connection is not None:
            self._pool.put(connection)


class LentFlights(NamedTuple):
    """A connection that takes flights, in nobody's thread.

    Attributes:
        lease: holds it.
        connection: it.
        flights: prepared on it.
    """

    lease: Lease
    connection: Connection
    flights: Flights


class Pool:
    """Connections of one purpose.

    Args:
        database: whose connections.
        threads: the hop to worker threads.
        name: of the purpose; PostgreSQL shows it.
        size: connections and threads.
        settings: what their sessions are set to.
        role: what they become, if it is not the role that connects.
    """

    def __init__(
        self,
        database: Database,
        threads: Threads,
        *,
        name: str,
        size: int,
        settings: dict[str, str],
        role: str | None = None,
    ) -> None:
        self._database = database
        self._threads = threads
        self._name = name
        self._settings = settings
        self._role = role
        self._idle: list[Connection] = []
        self._generations: WeakKeyDictionary[Connection, int] = WeakKeyDictionary()
        self._flights: WeakKeyDictionary[Connection, Flights | None] = WeakKeyDictionary()
        self._questions: WeakKeyDictionary[Connection, Questions] = WeakKeyDictionary()
        self._closed = False
        self.limiter = trio.CapacityLimiter(size)

    async def run(self, work: Callable[[Lease], T]) -> T:
        """Run ``work`` in a worker thread with a connection. A cancellation waits for its end.

        Raises:
            Unavailable: the database is away, or the breaker says so without asking.
        """
        breaker = self._database.breaker
        breaker.enter()
        failed: bool | None = None  # until a thread was free

        def job() -> T:
            nonlocal failed
            with self._lease() as lease:
                try:
                    return work(lease)
                except psycopg.Error as error:
                    lease.discard_if_lost(error)
                    raise away(error) from error
                finally:
                    failed = lease.lost

        try:
            return await self._threads.run(job, limiter=self.limiter)
        finally:
            breaker.leave(failed=failed)

    @property
    def statement_timeout_s(self) -> float:
        """Seconds for one statement."""
        return self._database.statement_timeout_s

    def connect(self) -> Connection:
        """A new connection. Blocks; raises psycopg.Error."""
        connection, generation = self._database.connect(self._name, self._settings, self._role)
        self._generations[connection] = generation
        return connection

    def flights(self, connection: Connection) -> Flights | None:
        """As ``Lease.flights``."""
        if connection not in self._flights:
            self._flights[connection] = flights_on(connection)
        return self._flights[connection]

    def forget_flights(self, connection: Connection) -> None:
        """As ``Lease.forget_flights``."""
        self._flights.pop(connection, None)

    async def ask(self, name: str, arguments: Mapping[str, object]) -> list[tuple[Any, ...]]:
        """The rows that a statement of ``queries`` answers, which may be asked twice; none where it has none.

        On an idle connection it takes no thread. A cancellation waits for its end. Raises as ``run``.
        """
        breaker = self._database.breaker
        lease = self._lend_nowait() if breaker.state is BreakerState.CLOSED else None
        if lease is not None:
            rows = None
            try:
                with trio.CancelScope(shield=True):
                    rows = await self._ask(lease, name, arguments)
            finally:
                breaker.leave(failed=None if lease.lost else False)
                self._take_back(lease)
            if rows is not None:
                return rows
        return await self.run(lambda lease: lease.ask(lambda connection: _rows(connection, name, arguments)))

    async def _ask(self, lease: Lease, name: str, arguments: Mapping[str, object]) -> list[tuple[Any, ...]] | None:
        """``None`` where it is to be asked anew: the connection had died, or its session forgot what was prepared."""
        connection = lease.connection
        questions = self._questions.get(connection)
        if questions is None:
            questions = self._questions[connection] = Questions(connection)
        try:
            return await questions.ask(connection, name, arguments)
        except psycopg.Error as error:
            if is_forgotten(error):
                connection.close()  # its next one prepares everything anew
            if not lease.discard_if_lost(error):
                raise away(error) from error
            return None

    def lend_nowait(self) -> LentFlights | None:
        """An idle connection that is prepared for flights, lent to the caller; ``None`` where that takes a thread."""
        lease = self._lend_nowait()
        if lease is None:
            return None
        flights = self._flights.get(lease.connection)
        if flights is None:
            self._take_back(lease)
            return None
        return LentFlights(lease, lease.connection, flights)

    def take_back(self, lent: LentFlights) -> None:
        """What ``lend_nowait`` lent."""
        self._take_back(lent.lease)

    def _lend_nowait(self) -> Lease | None:
        """An idle connection, with the place of whoever uses it; ``None`` where there is none."""
        lease = Lease(self)
        if lease.held is not None:
            with suppress(trio.WouldBlock):
                self.limiter.acquire_on_behalf_of_nowait(lease)
                return lease
            lease.give_back()
        return None

    def _take_back(self, lease: Lease) -> None:
        lease.give_back()
        self.limiter.release_on_behalf_of(lease)

    def take(self) -> Connection | None:
        """An idle connection, the one used last; it may have died since.

        It does not lead to a database that was: that may still answer, and take what nobody reads there any more.
        """
        with suppress(IndexError):  # asking first would race with another thread
            while self._generations[connection := self._idle.pop()] != self._database.generation:
                connection.close()
            return connection
        return None

    def put(self, connection: Connection) -> None:
        """Take a connection back, or close it where it cannot be used again."""
        if self._closed or connection.info.transaction_status is not TransactionStatus.IDLE:
            connection.close()
        else:
            self._idle.append(connection)

    def close(self) -> None:
        """Close what is idle now, and what comes back later."""
        self._closed = True
        while self._idle:
            self._idle.pop().close()

    @contextmanager
    def _lease(self) -> Iterator[Lease]:
        lease = Lease(self)
        try:
            yield lease
        finally:
            lease.give_back()


def _rows(connection: Connection, name: str, arguments: Mapping[str, object]) -> list[tuple[Any, ...]]:
    """As ``Questions.ask``, in a thread."""
    cursor = connection.execute(query(name), arguments, binary=True)
    return [] if cursor.description is None else cursor.fetchall()
