"""``archive.index.ArchiveIndex`` and ``archive.index.PastIndex`` over PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast

from keepstep.archive.index import (
    SEGMENTS_PAGE,
    ArchivedPlace,
    ArchivedStream,
    ArchiveState,
    ArchiveTail,
    Due,
    SegmentEntry,
    UnarchivedEvent,
)
from keepstep.archive.segment import Edge
from keepstep.eventlog.retention import SNAPSHOT_DELAY_MS, decode_authors, encode_authors
from keepstep.eventlog.store import ROW_BYTES_MAX
from keepstep.model import Position, RetentionClass, StreamPk, UserPk
from keepstep.postgres.arrays import bigints, byteas
from keepstep.postgres.queries import query

if TYPE_CHECKING:
    from keepstep.archive.index import NewSegment
    from keepstep.eventlog.store import StreamPlace
    from keepstep.postgres.pool import Connection, Database

T = TypeVar("T")


class PostgresArchive:
    """What a database knows of the archive. A cancellation waits for the end of a statement.

    Args:
        database: which one.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    @property
    def database(self) -> Database:
        """Which one."""
        return self._database

    # -- what is due --------------------------------------------------------------------------------------------

    async def find_due(self, *, now_ms: int, days: int | None, skip: Collection[StreamPlace]) -> Due | None:
        """As ``ArchiveIndex.find_due``."""
        skipped = _skipped(skip)

        def find(connection: Connection) -> Due | None:
            row = _first(connection, "find_unarchived_aged", now_ms=now_ms, days=days, **skipped)
            if row is None:
                confirmed_by_ms = now_ms - SNAPSHOT_DELAY_MS
                row = _first(connection, "find_unarchived_covered", confirmed_by_ms=confirmed_by_ms, **skipped)
            return None if row is None else Due(_stream(row[:4]), *row[4:])

        return await self._ask(find)

    async def start(self, due: Due) -> Edge | None:
        """As ``ArchiveIndex.start``."""
        row = await self._ask(lambda connection: _first(connection, "read_archive_start", **_of_due(due)))
        if row is None or row[0] is None:
            return None
        chain, authors, to_at_ms = row
        return Edge(Position(due.from_seq, chain), decode_authors(authors), to_at_ms)

    async def events(self, due: Due, *, events_max: int, bytes_max: int) -> list[UnarchivedEvent]:
        """As ``ArchiveIndex.events``."""
        arguments = {
            **_place(due.stream.place),
            "after": due.from_seq,
            "events_max": events_max,
            "bytes_max": bytes_max,
            "now_ms": 0,  # payloads that have run out are there until they are dropped, and are counted
            "row_bytes": ROW_BYTES_MAX,
        }
        statement = query("read_page", RetentionClass.STANDARD)
        rows = await self._ask(lambda connection: connection.execute(statement, arguments, binary=True).fetchall())
        return [UnarchivedEvent(*row) for row in cast("list[Any]", rows)]

    async def device_keys(self, user_pk: UserPk) -> dict[bytes, bytes]:
        """As ``ArchiveIndex.device_keys``."""
        rows = await self._ask(lambda connection: _all(connection, "read_device_keys", user_pk=int(user_pk)))
        return {device_id: device_key for _, device_id, device_key in rows}

    async def note_unarchived(self, due: Due, at_ms: int) -> None:
        """As ``ArchiveIndex.note_unarchived``."""
        await self._execute("note_unarchived_at", **_place(due.stream.place), at_ms=at_ms)

    # -- segments -----------------------------------------------------------------------------------------------

    async def begin_user(self, user_pk: UserPk) -> None:
        """As ``ArchiveIndex.begin_user``."""
        await self._execute("begin_archive_user", user_pk=int(user_pk))

    async def add(self, segment: NewSegment) -> bool:
        """As ``ArchiveIndex.add``: its stream is locked meanwhile."""
        due, entry = segment.due, segment.entry
        arguments = {
            **_of_due(due),
            "archived_seq": due.archived_seq,
            "to_seq": entry.to.seq,
            "from_chain": entry.from_.chain,
            "to_chain": entry.to.chain,
            "authors": encode_authors(entry.authors),
            "to_at": entry.to_at_ms,
            "expires_at": entry.expires_at_ms,
            "bytes": entry.size_bytes,
            "name": entry.name,
            "payloads": segment.payloads,
            "unarchived_at": segment.unarchived_at_ms,
        }

        def add(connection: Connection) -> bool:
            with connection.transaction():
                if _first(connection, "lock_unarchived", **arguments) is None:
                    return False
                if _first(connection, "check_unarchived", **arguments) != (True,):
                    return False
                connection.execute(query("add_archive_segment"), arguments)
            return True

        return await self._ask(add)

    async def segments(self, stream: ArchivedStream, *, after: int) -> list[SegmentEntry]:
        """As ``ArchiveIndex.segments``."""
        arguments = {**_place(stream.place), "after": after, "rows_max": SEGMENTS_PAGE}
        rows = await self._ask(lambda connection: _all(connection, "read_archive_segments", **arguments))
        return [_entry(row) for row in rows]

    async def streams(self, *, after: StreamPlace, user_key: bytes | None) -> Sequence[ArchiveTail]:
        """As ``ArchiveIndex.streams``."""
        arguments = {**_place(after), "user_id": user_key, "rows_max": SEGMENTS_PAGE}
        rows = await self._ask(lambda connection: _all(connection, "list_archived_streams", **arguments))
        return [
            ArchiveTail(_stream(row[:4]), Position(row[4], row[5]) if row[4] else None, decode_authors(row[6]), row[7])
            for row in rows
        ]

    async def find(self, user_pk: UserPk, stream: str, *, after: int) -> ArchivedPlace | None:
        """As ``PastIndex.find``: shown the rows of that user only."""

        def find(connection: Connection) -> ArchivedPlace | None:
            row = _first(connection, "find_archived", user_pk=int(user_pk), stream=stream, after=after)
            if row is None:
                return None
            user_key, stream_pk, head_seq, tail_seq, *segment = row
            erased = _all(connection, "find_archive_erasures", user_pk=int(user_pk), stream_pk=stream_pk)
            whose = ArchivedStream(user_pk, user_key, StreamPk(stream_pk), stream)
            erased_events = frozenset((device_id, n) for device_id, n in erased)
            return ArchivedPlace(whose, head_seq, tail_seq, _entry(segment), erased_events)

        return await self._database.read_as(int(user_pk), find)

    # -- what has to leave --------------------------------------------------------------------------------------

    async def erasures(
        self, *, skip: Collection[StreamPlace]
    ) -> tuple[ArchivedStream, frozenset[tuple[bytes, int]]] | None:
        """As ``ArchiveIndex.erasures``."""
        skipped = _skipped(skip)

        def find(connection: Connection) -> tuple[ArchivedStream, frozenset[tuple[bytes, int]]] | None:
            row = _first(connection, "find_erased_stream", **skipped)
            if row is None:
                return None
            stream = _stream(row)
            erased = _all(connection, "find_archive_erasures", **_place(stream.place))
            return stream, frozenset((device_id, n) for device_id, n in erased)

        return await self._ask(find)

    async def expired(
        self, *, now_ms: int, skip: Collection[StreamPlace]
    ) -> tuple[ArchivedStream, SegmentEntry] | None:
        """As ``ArchiveIndex.expired``."""
        skipped = _skipped(skip)
        row = await self._ask(lambda connection: _first(connection, "find_expired_segment", now_ms=now_ms, **skipped))
        return None if row is None else (_stream(row[:4]), _entry(row[4:]))

    async def replace(self, stream: ArchivedStream, entry: SegmentEntry, new: SegmentEntry) -> bool:
        """As ``ArchiveIndex.replace``."""
        arguments = {
            "to_seq": entry.to.seq,
            "name": entry.name,
            "new_name": new.name,
            "bytes": new.size_bytes,
            "expires_at": new.expires_at_ms,
        }
        return await self._execute("replace_archive_segment", **_place(stream.place), **arguments) == 1

    async def end_erasures(self, stream: ArchivedStream, erased: Collection[tuple[bytes, int]]) -> None:
        """As ``ArchiveIndex.end_erasures``."""
        device_ids, numbers = zip(*erased, strict=True)
        await self._execute(
            "end_archive_erasures", **_place(stream.place), device_ids=byteas(device_ids), numbers=bigints(numbers)
        )

    async def old_object(self) -> tuple[StreamPlace, int, str] | None:
        """As ``ArchiveIndex.old_object``."""
        row = await self._ask(lambda connection: _first(connection, "find_old_object"))
        return None if row is None else ((row[0], row[1]), row[2], row[3])

    async def end_old_object(self, place: StreamPlace, to_seq: int, name: str) -> None:
        """As ``ArchiveIndex.end_old_object``."""
        await self._execute("end_old_object", **_place(place), to_seq=to_seq, old_name=name)

    async def deleted_user(self) -> tuple[UserPk, bytes] | None:
        """As ``ArchiveIndex.deleted_user``."""
        row = await self._ask(lambda connection: _first(connection, "find_deleted_archive_user"))
        return None if row is None else (UserPk(row[0]), row[1])

    async def forget_user(self, user_pk: UserPk) -> None:
        """As ``ArchiveIndex.forget_user``, in one transaction."""

        def forget(connection: Connection) -> None:
            with connection.transaction():
                for name in ("forget_archive_segments", "forget_archive_erasures", "forget_archive_user"):
                    connection.execute(query(name), {"user_pk": int(user_pk)})

        await self._ask(forget)

    async def state(self, *, now_ms: int, days: int | None) -> ArchiveState:
        """As ``ArchiveIndex.state``."""
        row = await self._ask(lambda connection: _first(connection, "measure_archive", now_ms=now_ms, days=days))
        segments, size_bytes, overdue_ms = row
        return ArchiveState(segments, size_bytes, max(0, overdue_ms or 0))

    async def _execute(self, name: str, /, **arguments: Any) -> int:
        """Run a statement; how many rows it changed."""
        return await self._ask(lambda connection: connection.execute(query(name), arguments).rowcount)

    async def _ask(self, ask: Callable[[Connection], T]) -> T:
        return await self._database.accounts.run(lambda lease: lease.ask(ask))


def _first(connection: Connection, statement: str, /, **arguments: Any) -> Any:
    return connection.execute(query(statement), arguments, binary=True).fetchone()


def _all(connection: Connection, statement: str, /, **arguments: Any) -> list[Any]:
    return connection.execute(query(statement), arguments, binary=True).fetchall()


def _place(place: StreamPlace) -> dict[str, int]:
    return {"user_pk": place[0], "stream_pk": place[1]}


def _skipped(skip: Collection[StreamPlace]) -> dict[str, object]:
    """Streams that are left out."""
    return {
        "user_pks": bigints([user_pk for user_pk, _ in skip]),
        "stream_pks": bigints([stream_pk for _, stream_pk in skip]),
    }


def _of_due(due: Due) -> dict[str, int]:
    return {**_place(due.stream.place), "from_seq": due.from_seq}


def _stream(row: Any) -> ArchivedStream:
    user_pk, user_key, stream_pk, name = row
    return ArchivedStream(UserPk(user_pk), user_key, StreamPk(stream_pk), name)


def _entry(row: Any) -> SegmentEntry:
    from_seq, to_seq, from_chain, to_chain, authors, to_at_ms, size_bytes, name, old_name, expires_at_ms = row
    return SegmentEntry(
        Position(from_seq, from_chain),
        Position(to_seq, to_chain),
        decode_authors(authors),
        to_at_ms,
        size_bytes,
        name,
        old_name,
        expires_at_ms,
    )
