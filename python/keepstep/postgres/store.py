"""``eventlog.store`` over PostgreSQL: heads by compare and set, events by COPY, outcomes that are known."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar, cast

import psycopg

from keepstep import _keepstep
from keepstep.eventlog.store import WALK_EVENTS_MAX, Found, Loaded, Lookup, StreamKey, TryAgain
from keepstep.model import UserPk
from keepstep.postgres.arrays import bigints
from keepstep.postgres.commit import is_readable
from keepstep.postgres.faults import away, fault, misses_partition
from keepstep.postgres.heads import load_device_chains, load_devices, load_heads, load_stored_bytes
from keepstep.postgres.outcome import LostTransaction, pass_barrier
from keepstep.postgres.partitions import make_partitions, partitions_of
from keepstep.postgres.queries import query
from keepstep.postgres.transaction import PostgresTransaction

if TYPE_CHECKING:
    from keepstep._keepstep import Flight, Ingested, StreamHead
    from keepstep.errors import KeepstepError
    from keepstep.eventlog.store import LiveDevices
    from keepstep.postgres.flight import Flights, Flown
    from keepstep.postgres.pool import Connection, Database, Lease

T = TypeVar("T")


class PostgresStore:
    """The writing side, on one connection at a time.

    Args:
        database: whose identity counts.
        lease: the connection.
        probe: called with "before_commit" and "after_commit"; what it raises takes the place of what would follow.
        pause: waits that many seconds, between looks at a transaction whose outcome is not known yet.
    """

    def __init__(
        self, database: Database, lease: Lease, *, probe: Callable[[str], None], pause: Callable[[float], None]
    ) -> None:
        self._database = database
        self._lease = lease
        self._probe = probe
        self._pause = pause
        self._generation = database.generation

    def generation(self) -> int:
        """As ``Store.generation``: of the connection that is used from here on."""
        try:
            self._lease.connection  # noqa: B018  # opening it tells which database it leads to
        except psycopg.Error as error:
            raise away(error) from error
        self._generation = self._database.generation
        return self._generation

    def load(self, keys: Collection[StreamKey]) -> Loaded:
        """As ``Store.load``."""
        return self._ask(lambda connection: load_heads(connection, keys))

    def devices(self, user_pks: Collection[int]) -> dict[int, LiveDevices]:
        """As ``Store.devices``."""
        return self._ask(lambda connection: load_devices(connection, user_pks))

    def stored_bytes(self, user_pks: Collection[int]) -> dict[int, int]:
        """As ``Store.stored_bytes``."""
        return self._ask(lambda connection: load_stored_bytes(connection, user_pks))

    def device_chains(self, places: Collection[tuple[int, int]]) -> dict[tuple[int, int], bytes]:
        """As ``Store.device_chains``."""
        return self._ask(lambda connection: load_device_chains(connection, places))

    @contextmanager
    def begin(self) -> Iterator[PostgresTransaction]:
        """As ``Store.begin``."""
        self._ask(lambda connection: connection.execute("BEGIN", prepare=False))
        transaction = PostgresTransaction(self._lease, probe=self._probe, pause=self._pause)
        try:
            yield transaction
        except psycopg.Error as error:
            transaction.roll_back()
            raise self._fault(error, transaction.heads) from error
        finally:
            transaction.roll_back()

    def append(self, ingested: Ingested) -> bool:
        """As ``Store.append``: in one flight, where the connection takes one."""
        flights = self._ask(self._flights)
        if flights is None:
            return False
        self._probe("before_commit")
        flown = flights.fly(self._lease.connection, ingested, timeout_s=self._database.statement_timeout_s)
        return self._conclude(flights, flown, ingested)

    def conclude(self, flights: Flights, flight: Flight, ingested: Ingested) -> bool:
        """As ``append``, with a flight that has begun and is late, or did not end as they do in general."""
        timeout_s = self._database.statement_timeout_s
        flown = flights.land(self._lease.connection, flight, remaining_s=0.0, timeout_s=timeout_s)
        return self._conclude(flights, flown, ingested)

    def _conclude(self, flights: Flights, flown: Flown, ingested: Ingested) -> bool:
        heads = [new for _, new in ingested.moved]
        if flown.error is None:
            if flown.warned:
                pass_barrier(self._lease)
        elif self._lease.discard_if_lost(flown.error):
            lost = LostTransaction(heads[0], flown.xid, flights.backend_pid)
            if not lost.was_committed(self._lease, pause=self._pause):
                raise away(flown.error) from flown.error
            pass_barrier(self._lease)
        else:
            if flown.is_not_prepared:
                self._lease.forget_flights()
            if flown.is_not_moved or flown.is_not_prepared:
                return False
            raise self._fault(flown.error, heads) from flown.error
        self._probe("after_commit")
        return True

    def _flights(self, connection: Connection) -> Flights | None:
        """What takes a flight. Nobody can tell of one that did not arrive: a dead connection is found out before."""
        if is_readable(connection.pgconn, 0.0):
            connection.execute("SELECT")  # takes what the server said meanwhile, if it was not that it goes
        return self._lease.flights

    def _fault(self, error: psycopg.Error, heads: Sequence[StreamHead]) -> KeepstepError:
        """What the caller is told of a transaction that was rolled back and would have moved streams to ``heads``."""
        self._lease.discard_if_lost(error)
        if misses_partition(error):
            self._add_partitions({(head.retention_class, head.received_at_ms) for head in heads})
            return TryAgain()
        return fault(error)

    def find(self, lookups: Sequence[Lookup]) -> Mapping[Lookup, Found]:
        """As ``Store.find``: the lookups that start at the same event are one walk."""
        by_class: defaultdict[int, list[Lookup]] = defaultdict(list)
        for lookup in lookups:
            by_class[lookup.retention_class].append(lookup)
        found: dict[Lookup, Found] = {}
        for retention_class, group in by_class.items():
            found |= self._ask(lambda connection, c=retention_class, g=group: _find(connection, c, g))  # type: ignore[misc]
        return found

    def confirm(self) -> None:
        """As ``Store.confirm``."""
        pass_barrier(self._lease)

    def user_pk(self, user_key: bytes) -> UserPk | None:
        """As ``Store.user_pk``."""
        row = self._ask(lambda connection: connection.execute(query("find_user"), {"user_id": user_key}).fetchone())
        return None if row is None else UserPk(cast("int", row[0]))

    def is_deleted(self, user_key: bytes) -> bool:
        """As ``Store.is_deleted``."""
        arguments = {"user_hash": _keepstep.blake3(user_key)}
        rows = self._ask(lambda connection: connection.execute(query("find_deleted_user"), arguments).fetchall())
        return bool(rows)

    def _ask(self, ask: Callable[[Connection], T]) -> T:
        """Ask outside a transaction, on a new connection where the old one had died.

        Raises:
            TryAgain: the new one leads to a database that is not the one whose heads were remembered.
            Unavailable: there is none.
        """

        def guarded(connection: Connection) -> T:
            if self._database.generation != self._generation:
                self._generation = self._database.generation
                raise TryAgain
            return ask(connection)

        try:
            return self._lease.ask(guarded)
        except psycopg.Error as error:
            self._lease.discard_if_lost(error)
            raise away(error) from error

    def _add_partitions(self, needs: Collection[tuple[int, int]]) -> None:
        """Make what the job that makes partitions ahead of time has not made.

        ``needs``: (retention class, received_at in unix ms) of the rows that are stored.
        """
        needed = [
            partition
            for retention_class, received_at_ms in sorted(needs)
            for partition in partitions_of(retention_class, received_at_ms)
        ]
        try:
            make_partitions(self._lease.connection, needed)
            self._lease.forget_flights()  # psycopg drops all prepared statements when a table has changed
        except psycopg.Error as error:
            self._lease.discard_if_lost(error)
            raise away(error) from error


def _find(connection: Connection, retention_class: int, lookups: Sequence[Lookup]) -> dict[Lookup, Found]:
    walks: defaultdict[tuple[int, int, int], list[int]] = defaultdict(list)
    for lookup in lookups:
        walks[lookup.user_pk, lookup.stream_pk, lookup.from_seq].append(lookup.n)
    user_pks, stream_pks, from_seqs = zip(*walks, strict=True)
    arguments = {
        "user_pks": bigints(user_pks),
        "stream_pks": bigints(stream_pks),
        "from_seqs": bigints(from_seqs),
        "low_ns": bigints([min(numbers) for numbers in walks.values()]),
        "high_ns": bigints([max(numbers) for numbers in walks.values()]),
        "steps_max": WALK_EVENTS_MAX,
    }
    rows = connection.execute(query("find_events", retention_class), arguments, binary=True).fetchall()
    wanted = set(lookups)
    found = {}
    for user_pk, stream_pk, from_seq, n, *event in cast("Iterable[Any]", rows):
        lookup = Lookup(user_pk, stream_pk, retention_class, from_seq, n)
        if lookup in wanted:
            found[lookup] = Found(*event)
    return found
