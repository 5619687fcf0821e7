"""``eventlog.retention.Retention`` over PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from psycopg import sql

from keepstep.eventlog.retention import (
    DAY_MS,
    PARTITION_MARGIN_MS,
    PARTITIONS_PER_RUN_MAX,
    SNAPSHOT_DELAY_MS,
    Advanced,
    RetentionRules,
    RetentionState,
    advanced_authors,
    decode_authors,
    encode_authors,
)
from keepstep.model import RetentionClass, UserPk
from keepstep.postgres.arrays import bigints, texts
from keepstep.postgres.partitions import partitions_of
from keepstep.postgres.queries import EVENT_TABLES, query
from keepstep.protocol.event import decode_header

if TYPE_CHECKING:
    from keepstep._keepstep import StreamHead
    from keepstep.model import PrunedPrefix
    from keepstep.postgres.partitions import Partition
    from keepstep.postgres.pool import Connection, Database

T = TypeVar("T")

RETENTION_LOCK: Final = 0x6B65_6570_7265_7465
"""Advisory lock ("keeprete"): one node takes away events at a time."""
_TABLE: Final = EVENT_TABLES[RetentionClass.STANDARD]
_HOLDS_EVENTS: Final = sql.SQL("""
SELECT FROM streams s CROSS JOIN LATERAL (
    SELECT FROM {partition} e WHERE e.user_pk = s.user_pk AND e.stream_pk = s.stream_pk AND e.seq > s.tail_seq LIMIT 1
) held
WHERE s.retention_class = 1 AND s.head_seq > s.tail_seq LIMIT 1
""")


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A locked stream that should lose events: up to ``up_to``, received before ``cutoff_ms``.

    ``with_partition``: its rows go with their partition, not one by one.
    """

    user_pk: int
    stream_pk: int
    up_to: int | None
    cutoff_ms: int
    with_partition: bool = False

    @property
    def place(self) -> dict[str, int]:
        """As statements name it."""
        return {"user_pk": self.user_pk, "stream_pk": self.stream_pk}


class PostgresRetention:
    """Takes away the oldest events. A cancellation waits for the end of a step.

    Args:
        database: what is kept.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def advance_tail(self, *, now_ms: int, rules: RetentionRules, events_max: int) -> Advanced | None:
        """As ``Retention.advance_tail``."""

        def advance(connection: Connection) -> Advanced | None:
            with connection.transaction():
                if not _one(connection, "take_retention_turn", key=RETENTION_LOCK)[0]:
                    return None
                candidate = _candidate(connection, now_ms, rules)
                if candidate is None:
                    return None
                return _advance(connection, candidate, rules, events_max=events_max, now_ms=now_ms)

        return await self._ask(advance)

    async def remove_rows(self, *, rows_max: int) -> int:
        """As ``Retention.remove_rows``."""

        def remove(connection: Connection) -> int:
            with connection.transaction():
                row = connection.execute(query("take_pruning"), binary=True).fetchone()
                if row is None:
                    return 0
                user_pk, stream_pk, removed_seq, to_seq, from_at, to_at, _ = cast("Any", row)
                up_to = min(to_seq, removed_seq + rows_max)
                place = {"user_pk": user_pk, "stream_pk": stream_pk}
                arguments = {"removed_seq": removed_seq, "up_to": up_to, "from_at": from_at, "to_at": to_at}
                connection.execute(query("remove_rows"), place | arguments)
                if up_to == to_seq:
                    connection.execute(query("end_pruning"), place)
                else:
                    connection.execute(query("move_pruning"), place | {"up_to": up_to})
                return cast("int", up_to - removed_seq)

        return await self._ask(remove)

    async def drop_partitions(self, *, now_ms: int, partitions_max: int = PARTITIONS_PER_RUN_MAX) -> list[str]:
        """As ``Retention.drop_partitions``."""

        def drop(connection: Connection) -> list[str]:
            if not _one(connection, "take_partition_turn", key=RETENTION_LOCK)[0]:
                return []
            try:
                _finish_drops(connection)
                return _drop_partitions(connection, now_ms, partitions_max)
            finally:
                if not connection.closed:
                    connection.execute(query("give_partition_turn"), {"key": RETENTION_LOCK})

        return await self._ask(drop)

    async def state(self, *, now_ms: int, rules: RetentionRules) -> RetentionState:
        """As ``Retention.state``."""

        def measure(connection: Connection) -> RetentionState:
            oldest_at_ms, waiting_rows, waiting_partitions = _one(connection, "measure_retention")
            (overdue_of_users,) = _one(connection, "measure_overdue_of_users", now_ms=now_ms)
            overdue = [0, overdue_of_users or 0]
            cutoff_ms = _partition_cutoff(now_ms, rules)
            if cutoff_ms is not None and oldest_at_ms is not None:
                overdue.append(cutoff_ms - oldest_at_ms)
            return RetentionState(oldest_at_ms, max(overdue), waiting_rows, waiting_partitions)

        return await self._ask(measure)

    async def _ask(self, ask: Callable[[Connection], T]) -> T:
        return await self._database.accounts.run(lambda lease: lease.ask(ask))


def store_beginning(
    connection: Connection, head: StreamHead, prefix: PrunedPrefix, device_pks: Mapping[bytes, int], *, now_ms: int
) -> None:
    """Create a stream whose events up to ``head`` are gone (``Transaction.begin_after``). Raises psycopg.Error."""
    place = {"user_pk": head.user_pk, "stream_pk": head.stream_pk}
    values = {
        "name": head.name,
        "retention_class": head.retention_class,
        "policy": head.policy,
        "ttl_max_s": head.ttl_max_s,
        "bytes_max": head.bytes_max,
        "seq": head.seq,
        "chain": head.chain,
        "received_at": head.received_at_ms,
        "auth_epoch": head.auth_epoch,
        "authors": head.authors_packed,
        "tail_authors": encode_authors(prefix.authors),
        "now_ms": now_ms,
    }
    connection.execute(query("begin_after"), place | values)
    for seq, device_id, received_at_ms, header, sig, payload in prefix.kept:
        decoded = decode_header(header)
        row = {"seq": seq, "kind": decoded.kind, "received_at": received_at_ms, "device_pk": device_pks[device_id]}
        event = {"n": decoded.n, "header": header, "sig": sig, "payload": payload}
        connection.execute(query("add_kept"), place | row | event)


def _one(connection: Connection, name: str, **arguments: object) -> Any:
    row = connection.execute(query(name), arguments, binary=True).fetchone()
    assert row is not None
    return row


def _partition_cutoff(now_ms: int, rules: RetentionRules) -> int | None:
    """The server's own rule takes whole partitions: what is received before the one at its edge goes."""
    cutoff_ms = rules.cutoff_ms(now_ms)
    return None if cutoff_ms is None else next(partitions_of(RetentionClass.STANDARD, max(0, cutoff_ms))).from_ms


def _candidate(connection: Connection, now_ms: int, rules: RetentionRules) -> _Candidate | None:
    """The next stream that should lose events, locked."""
    archived = {"only_archived": rules.only_archived}
    cutoff_ms = _partition_cutoff(now_ms, rules)
    if cutoff_ms is not None:
        row = _first(connection, "find_aged", cutoff_ms=cutoff_ms, **archived)
        if row is not None:
            user_pk, stream_pk = row
            return _Candidate(user_pk, stream_pk, up_to=None, cutoff_ms=cutoff_ms, with_partition=True)
    row = _first(connection, "find_aged_of_users", now_ms=now_ms, days=rules.days, **archived)
    if row is not None:
        user_pk, stream_pk, days = row
        of_user_ms = rules.cutoff_ms(now_ms, days)
        assert of_user_ms is not None
        return _Candidate(user_pk, stream_pk, up_to=None, cutoff_ms=of_user_ms)
    row = _first(connection, "find_covered", confirmed_by_ms=now_ms - SNAPSHOT_DELAY_MS, **archived)
    if row is None:
        row = _first(connection, "find_read_inbox")
    if row is None:
        return None
    user_pk, stream_pk, up_to = row
    return _Candidate(user_pk, stream_pk, up_to=up_to, cutoff_ms=2**48)


def _first(connection: Connection, name: str, **arguments: object) -> Any:
    return connection.execute(query(name), arguments, binary=True).fetchone()


def _advance(
    connection: Connection, candidate: _Candidate, rules: RetentionRules, *, events_max: int, now_ms: int
) -> Advanced:
    place = candidate.place
    tail_seq, authors, head_seq, head_at, archived_seq, from_ms = _one(connection, "read_tail", **place)
    bounds = [tail_seq + events_max, head_seq]
    bounds += [] if candidate.up_to is None else [candidate.up_to]
    bounds += [archived_seq] if rules.only_archived else []
    to_seq, size_bytes, to_ms, policy_seq = _one(
        connection,
        "measure_prefix",
        **place,
        tail_seq=tail_seq,
        up_to=min(bounds),
        from_ms=from_ms,
        cutoff_ms=candidate.cutoff_ms,
    )
    at = tail_seq if to_seq is None else to_seq
    around = {
        seq: (received_at_ms, chain)
        for seq, received_at_ms, chain in cast(
            "Any", connection.execute(query("read_around"), place | {"to_seq": at}, binary=True).fetchall()
        )
    }
    # Of what comes next, nothing is older than the head, nor than any clock that may be in use.
    first_at = around[at + 1][0] if at + 1 in around else max(head_at, now_ms - DAY_MS)
    if to_seq is None:
        connection.execute(query("note_first_at"), place | {"first_at": first_at})
        return Advanced(UserPk(candidate.user_pk), candidate.stream_pk, tail_seq, tail_seq)
    span = {"tail_seq": tail_seq, "to_seq": to_seq, "from_ms": from_ms, "to_ms": to_ms}
    rows = connection.execute(query("read_last_of_authors"), place | span, binary=True).fetchall()
    known = advanced_authors(decode_authors(authors), cast("Any", rows))
    _keep(connection, place, to_seq=to_seq, policy_seq=policy_seq)
    moved = {"chain": around[to_seq][1], "authors": encode_authors(known), "first_at": first_at, "bytes": size_bytes}
    connection.execute(query("advance_tail"), place | {"tail_seq": tail_seq, "to_seq": to_seq} | moved)
    if not candidate.with_partition:
        connection.execute(query("add_pruning"), place | span)
    return Advanced(UserPk(candidate.user_pk), candidate.stream_pk, tail_seq, to_seq)


def _keep(connection: Connection, place: dict[str, int], *, to_seq: int, policy_seq: int | None) -> None:
    """Copy out the policy in force and the newest confirmed snapshot, in place of those that were kept before."""
    base = _first(connection, "find_base", **place, to_seq=to_seq) or ()
    seqs = [seq for seq in (policy_seq, *base) if seq is not None]
    snapshot_seq = base[0] if base else 0
    if seqs:
        connection.execute(query("keep_events"), place | {"seqs": bigints(seqs), "to_seq": to_seq})
        superseded = {"policy_seq": policy_seq or 0, "snapshot_seq": snapshot_seq}
        connection.execute(query("forget_kept"), place | superseded)
    connection.execute(query("forget_snapshots"), place | {"to_seq": to_seq, "snapshot_seq": snapshot_seq})


def _drop_partitions(connection: Connection, now_ms: int, partitions_max: int) -> list[str]:
    """The oldest first, up to the first that is needed."""
    dropped: list[str] = []
    for name, pending in cast("Any", connection.execute(query("read_partitions")).fetchall()):
        partition = _partition(name)
        if len(dropped) == partitions_max or partition is None or partition.to_ms + PARTITION_MARGIN_MS > now_ms:
            break
        if _one(connection, "is_partition_needed", to_ms=partition.to_ms)[0]:
            break
        arguments = {"name": name, "from_ms": partition.from_ms, "to_ms": partition.to_ms}
        connection.execute(query("begin_partition_drop"), arguments)
        how = "FINALIZE" if pending else "CONCURRENTLY"
        statement = f"ALTER TABLE {{table}} DETACH PARTITION {{partition}} {how}"
        _alter(connection, statement, name)
        if _drop(connection, name, partition.from_ms, partition.to_ms):
            dropped.append(name)
    return dropped


def _finish_drops(connection: Connection) -> None:
    """Go on where a crash, or the end of a statement's time, cut a drop short."""
    attached = dict(cast("Any", connection.execute(query("read_partitions")).fetchall()))
    for name, from_ms, to_ms in cast("Any", connection.execute(query("read_partition_drops")).fetchall()):
        if attached.get(name):
            _alter(connection, "ALTER TABLE {table} DETACH PARTITION {partition} FINALIZE", name)
        if attached.get(name) is False:
            connection.execute(query("end_partition_drop"), {"name": name, "to_ms": to_ms, "dropped": False})
        else:
            _drop(connection, name, from_ms, to_ms)


def _drop(connection: Connection, name: str, from_ms: int, to_ms: int) -> bool:
    """Drop a detached partition, unless something was stored in it at the last moment: then it is attached again."""
    needed = _holds_events(connection, name)
    if needed:
        bounds = f"FOR VALUES FROM ({int(from_ms)}) TO ({int(to_ms)})"
        _alter(connection, f"ALTER TABLE {{table}} ATTACH PARTITION {{partition}} {bounds}", name)
    else:
        _alter(connection, "DROP TABLE IF EXISTS {partition}", name)
    connection.execute(query("end_partition_drop"), {"name": name, "to_ms": to_ms, "dropped": not needed})
    return not needed


def _holds_events(connection: Connection, name: str) -> bool:
    """Whether an event that is above its stream's tail is in a partition: one look for each stream, exact."""
    if connection.execute(query("missing_partitions"), {"names": texts([name])}).fetchone() is not None:
        return False
    statement = _HOLDS_EVENTS.format(partition=sql.Identifier(name))
    return connection.execute(statement, prepare=False).fetchone() is not None


def _alter(connection: Connection, statement: str, name: str) -> None:
    names = {"table": sql.Identifier(_TABLE), "partition": sql.Identifier(name)}
    connection.execute(sql.SQL(cast("Any", statement)).format(**names), prepare=False)


def _partition(name: str) -> Partition | None:
    """What a partition holds, by its name; ``None`` for a table that was not made here."""
    try:
        start = datetime.strptime(name.removeprefix(f"{_TABLE}_"), "%Y%m%d").replace(tzinfo=UTC)
    except ValueError:
        return None
    from_ms = (start - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)
    partition = next(partitions_of(RetentionClass.STANDARD, from_ms))
    return partition if partition.name == name else None
