"""``eventlog.retention.Retention`` in memory: rows go in the step in which their stream's tail advances."""

from __future__ import annotations

from itertools import takewhile
from typing import TYPE_CHECKING

import trio

from keepstep.eventlog.retention import (
    PARTITIONS_PER_RUN_MAX,
    SNAPSHOT_DELAY_MS,
    Advanced,
    RetentionState,
    advanced_authors,
)
from keepstep.memory.database import TailRow
from keepstep.model import Kind, RetentionClass, UserPk, is_inbox
from keepstep.protocol.event import decode_header

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from keepstep._keepstep import StreamHead
    from keepstep.eventlog.retention import RetentionRules
    from keepstep.eventlog.store import StreamPlace
    from keepstep.memory.database import MemoryDatabase, UserRow
    from keepstep.memory.rows import EventRow

_NOTHING_GONE = TailRow(0, b"", {})


class MemoryRetention:
    """Takes away the oldest events of a log in memory, which has no archive: ``only_archived`` keeps everything.

    Args:
        database: the tables.
    """

    def __init__(self, database: MemoryDatabase) -> None:
        self._database = database

    async def advance_tail(self, *, now_ms: int, rules: RetentionRules, events_max: int) -> Advanced | None:
        """As ``Retention.advance_tail``, by age to the millisecond. Cancel-safe."""
        await self._arrive()
        if rules.only_archived:
            return None
        for user_pk, user, head in self._streams():
            place = user_pk, head.stream_pk
            due = self._due(place, user, head, now_ms, rules)[:events_max]
            if due:
                return self._advance(place, user, due)
        return None

    async def drop_partitions(self, *, now_ms: int, partitions_max: int = PARTITIONS_PER_RUN_MAX) -> list[str]:
        """As ``Retention.drop_partitions``: memory has none. Cancel-safe."""
        del now_ms, partitions_max
        await self._arrive()
        return []

    async def remove_rows(self, *, rows_max: int) -> int:
        """As ``Retention.remove_rows``: they went with their tail. Cancel-safe."""
        del rows_max
        await self._arrive()
        return 0

    async def state(self, *, now_ms: int, rules: RetentionRules) -> RetentionState:
        """As ``Retention.state``. Cancel-safe."""
        await self._arrive()
        oldest: list[int] = []
        overdue = [0]
        for user_pk, user, head in self._streams():
            for row in self._database.events[user_pk, head.stream_pk][:1]:
                oldest.append(row.received_at_ms)
                cutoff_ms = rules.cutoff_ms(now_ms, user.quota.retention_days)
                overdue.append(0 if cutoff_ms is None else cutoff_ms - row.received_at_ms)
        return RetentionState(min(oldest, default=None), max(overdue), 0, 0)

    def _streams(self) -> Iterator[tuple[int, UserRow, StreamHead]]:
        for user_pk, user in self._database.users.items():
            for head in user.heads.values():
                if head.retention_class == RetentionClass.STANDARD:
                    yield user_pk, user, head

    def _due(
        self, place: StreamPlace, user: UserRow, head: StreamHead, now_ms: int, rules: RetentionRules
    ) -> list[EventRow]:
        """The rows that should go, from the first one on."""
        up_to = [0]
        if is_inbox(head.name):
            owner = bytes.fromhex(head.name.rpartition("/")[2])
            acks = (row.acks.get(head.stream_pk) for row in user.devices.values() if row.entry.device_id == owner)
            up_to += [ack[0] for ack in acks if ack is not None]
        for snapshot in self._database.snapshots[place].values():
            confirmation = None if snapshot.confirmed is None else self._database.row(place, snapshot.confirmed[0])
            if confirmation is not None and confirmation.received_at_ms <= now_ms - SNAPSHOT_DELAY_MS:
                up_to.append(snapshot.covers_seq)
        cutoff_ms = rules.cutoff_ms(now_ms, user.quota.retention_days) or 0
        rows = self._database.events[place]
        return list(takewhile(lambda row: row.seq <= max(up_to) or row.received_at_ms < cutoff_ms, rows))

    def _advance(self, place: StreamPlace, user: UserRow, due: Sequence[EventRow]) -> Advanced:
        database = self._database
        before = database.tails.get(place, _NOTHING_GONE)
        last = {row.device_pk: row for row in due}
        authors = advanced_authors(
            before.authors,
            [(user.devices[pk].entry.device_id, row.n, row.header, row.sig) for pk, row in last.items()],
        )
        to = due[-1]
        database.tails[place] = TailRow(to.seq, to.chain, authors, self._kept(place, before, due))
        del database.events[place][: len(due)]
        head = user.heads[place[1]]
        size_bytes = sum(len(row.header) + len(row.sig) + len(row.payload or b"") for row in due)
        user.heads[place[1]] = head.with_stored_bytes(head.stored_bytes - size_bytes)
        return Advanced(UserPk(place[0]), place[1], before.seq, to.seq)

    def _kept(self, place: StreamPlace, before: TailRow, due: Sequence[EventRow]) -> tuple[EventRow, ...]:
        """The policy in force, and the newest confirmed snapshot with its confirmation."""
        rows = {row.seq: row for row in (*before.kept, *due)}
        snapshots = self._database.snapshots[place]
        policies = [seq for seq, row in rows.items() if decode_header(row.header).kind == Kind.POLICY]
        confirmed = [seq for seq, snapshot in snapshots.items() if snapshot.confirmed is not None and seq in rows]
        wanted = set(policies[-1:])
        if confirmed:
            base = snapshots[max(confirmed)]
            assert base.confirmed is not None
            wanted |= {base.seq, base.confirmed[0]}
        for seq in [seq for seq in snapshots if seq <= due[-1].seq and seq not in wanted]:
            del snapshots[seq]
        return tuple(rows[seq] for seq in sorted(wanted) if seq in rows)

    async def _arrive(self) -> None:
        await trio.lowlevel.checkpoint()
        self._database.check_here()
