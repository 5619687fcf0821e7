"""``interfaces.EventLog`` over any store: the Trio side of appending, and reading by position."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from keepstep import _keepstep
from keepstep.errors import ProtocolError, Pruned
from keepstep.eventlog.append import STREAM_AHEAD_MS_MAX, Appending
from keepstep.eventlog.beginning import begin_after
from keepstep.eventlog.devices import DeviceCache
from keepstep.eventlog.genesis import create_account
from keepstep.eventlog.heads import HeadCache
from keepstep.eventlog.healing import Bounds, heal
from keepstep.eventlog.known import append_known
from keepstep.eventlog.rooms import ByteRooms
from keepstep.eventlog.rotation import append_rotation
from keepstep.eventlog.store import SNAPSHOTS_MAX, Contended
from keepstep.hits import Hits
from keepstep.interfaces import RESUMED_TOGETHER_MAX, Followed, Page, StreamInfo
from keepstep.model import DEVICES_STREAM, KEY_BYTES, Position, is_inbox
from keepstep.protocol.chain import chain_0
from keepstep.tail import Tail

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    from keepstep._keepstep import Run, Submission
    from keepstep.eventlog.answers import Outcome
    from keepstep.eventlog.healing import LostEvents
    from keepstep.eventlog.store import Backend, FollowedRow, Past, Reader, Store, StreamKey, StreamRow
    from keepstep.interfaces import Appended, Genesis, SnapshotInfo
    from keepstep.model import AccountChange, DevicePk, Principal, PrunedPrefix, Rotation, UserPk
    from keepstep.protocol.messages import Result

REMEMBERED_HEADS_MAX: Final = 100_000
"""Heads this node remembers, about 1 KiB each with their authors."""
STREAMS_PER_USER_MAX: Final = 10_000
TAIL_BYTES_MAX: Final = 64 * 1024 * 1024
TAIL_STREAM_BYTES_MAX: Final = 4 * 1024 * 1024
"""What the settings of the same names have by default."""


class StoredLog:
    """The append-only log per stream.

    Args:
        backend: where it is kept.
        streams_per_user_max: streams a user may have, ``$devices`` and ``$keys`` among them.
        bytes_per_user_max: what a user without a quota of its own may store outside those two, bytes; ``None`` for all.
        tail_bytes_max: memory for the newest events of all streams, bytes.
        tail_stream_bytes_max: the share of one stream, bytes.

    Attributes:
        generation: changes when the log turns out to be another one than it was. The backend's own, as is ``epoch``:
            both are asked with every message.
        epoch: unix milliseconds of the latest restore, 0 where there was none.
        past: where events below the tails of their streams are; ``None`` where they are gone.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        streams_per_user_max: int = STREAMS_PER_USER_MAX,
        bytes_per_user_max: int | None = None,
        tail_bytes_max: int = TAIL_BYTES_MAX,
        tail_stream_bytes_max: int = TAIL_STREAM_BYTES_MAX,
    ) -> None:
        self._backend = backend
        self.generation = backend.generation
        self.epoch = backend.epoch
        self._streams_per_user_max = streams_per_user_max
        self._heads = HeadCache(streams_max=REMEMBERED_HEADS_MAX)
        self._bytes_per_user_max = bytes_per_user_max
        self._devices = DeviceCache()
        self._rooms = ByteRooms()
        self._generation = backend.generation()
        self._pages = Hits()
        self._listeners: list[Callable[[Sequence[tuple[StreamKey, Run]]], None]] = []
        self._devices_listeners: list[Callable[[Sequence[Run]], None]] = []
        self.past: Past | None = None
        self.tail = Tail(bytes_max=tail_bytes_max, stream_bytes_max=tail_stream_bytes_max)

    def cache_hits(self) -> Mapping[str, Hits]:
        """What the caches had: heads and users' devices that batches need, and pages with events, of the tail."""
        return {"heads": self._heads.hits, "devices": self._devices.hits, "tail": self._pages}

    def subscribe_commits(self, listener: Callable[[Sequence[tuple[StreamKey, Run]]], None]) -> None:
        """As ``EventLog.subscribe_commits``."""
        self._listeners.append(listener)

    def subscribe_device_commits(self, listener: Callable[[Sequence[Run]], None]) -> None:
        """As ``EventLog.subscribe_device_commits``."""
        self._devices_listeners.append(listener)

    async def create_account(self, genesis: Genesis, *, now_ms: int, invite_hash: bytes | None = None) -> Result:
        """Create user, first device, ``$devices``, ``$keys`` and append the genesis event, in one transaction.

        With ``invite_hash`` that invite is used up with it, or the answer is ``invite_invalid``. A cancellation waits
        for the outcome.

        Raises:
            Unavailable: the outcome is not that it was stored, or it is unknown even after looking.
        """
        generation = self._backend.generation()
        result, runs = await self._backend.write(
            lambda store: create_account(store, genesis, now_ms=now_ms, invite_hash=invite_hash)
        )
        self._announce(runs, generation)
        return result

    async def rotate(self, rotation: Rotation, change: AccountChange, *, now_ms: int) -> Result:
        """Append a checked rotation by a device that it enrols itself, and what it changes, in one transaction.

        A cancellation waits for the outcome.

        Raises:
            Unavailable: not stored: ``$devices`` has moved since ``change.checked_seq``, or the database is away; or
                it is unknown even after looking.
        """
        generation = self._backend.generation()
        result, runs = await self._backend.write(lambda store: append_rotation(store, rotation, change, now_ms=now_ms))
        self._heads.drop([(int(rotation.user_pk), DEVICES_STREAM)])
        self._announce(runs, generation)
        return result

    async def append(
        self, batch: Sequence[Submission], *, now_ms: int, account_change: AccountChange | None = None
    ) -> Appended:
        """Verify, order and store a batch durably: when it returns, every accepted event has been fsynced.

        Called for one user by one task at a time. A cancellation waits for the outcome.

        Raises:
            Unavailable: nothing of the batch was stored; or, ``OutcomeUnknown``, nothing can be learned of it now, and
                the same events sent again are stored or answered as duplicates, whichever is right.
        """
        generation = self._backend.generation()
        outcome, is_short = None, True
        if account_change is None and self._bytes_per_user_max is None:
            try:
                outcome = await append_known(
                    self._backend,
                    batch,
                    heads=self._heads,
                    devices=self._devices,
                    rooms=self._rooms,
                    now_ms=now_ms,
                    received_at_ms_max=now_ms + STREAM_AHEAD_MS_MAX,
                    generation=generation,
                )
            except Contended:
                is_short = False

        def append(store: Store) -> Outcome:
            return Appending(
                store=store,
                generation=generation,
                heads=self._heads,
                devices=self._devices,
                rooms=self._rooms,
                streams_per_user_max=self._streams_per_user_max,
                bytes_per_user_max=self._bytes_per_user_max,
                batch=batch,
                now_ms=now_ms,
                change=account_change,
                is_short=is_short,
            ).run()

        if outcome is None:
            outcome = await self._backend.write(append)
        self._announce(outcome.runs, generation, outcome.erased)
        return outcome

    async def heal(self, key: StreamKey, before: Position, lost: Sequence[LostEvents], *, is_proven: bool) -> None:
        """As ``EventLog.heal``."""
        generation = self._backend.generation()
        bounds = None if is_proven else Bounds(self._streams_per_user_max, self._bytes_per_user_max)
        healed = await self._backend.write(lambda store: heal(store, key, before, lost, bounds))
        self._heads.drop([key])
        self._rooms.drop([key[0]])
        self._announce(healed.runs, generation, [key] if healed.erased else ())

    async def read(
        self, user_pk: UserPk, stream: str, *, after: int, events_max: int, bytes_max: int, now_ms: int
    ) -> Page:
        """Events after a position, from the in-memory tail when that reaches, from the database when not.

        Cancel-safe. A page from the tail comes without a checkpoint: sending it has one.

        Raises:
            ProtocolError: ``unknown_stream``; ``unknown_position`` where ``after`` is above the head; ``internal``
                where the log has a hole, which nothing may step over.
            Pruned: what follows ``after`` is gone with the beginning of the stream.
            Unavailable: the database is needed and away.
        """
        page = self.read_in_memory(
            user_pk, stream, after=after, events_max=events_max, bytes_max=bytes_max, now_ms=now_ms
        )
        if page is not None:
            return page
        key = (int(user_pk), stream)

        def work(reader: Reader) -> Page:
            row = _known(reader, user_pk, stream, up_to=after, left_after=after)
            if after == row.head_seq:
                return Page(after, b"", 0, after, row.head_chain, after)
            rows, chain = reader.page(row, after=after, events_max=events_max, bytes_max=bytes_max, now_ms=now_ms)
            last_seq = after + len(rows)
            if not rows or (rows[0][0], rows[-1][0]) != (after + 1, last_seq):
                _known(reader, user_pk, stream, left_after=after)  # the beginning may have gone meanwhile
                raise ProtocolError("internal", "the log has a hole")
            return Page(after, _keepstep.encode_rows(rows), len(rows), last_seq, chain, max(row.head_seq, last_seq))

        try:
            page = await self._backend.read(user_pk, work)
        except Pruned as error:
            pruned = error
        else:
            self._pages.missing += page.count > 0
            return self._as_of_now(key, page)
        limits = {"events_max": events_max, "bytes_max": bytes_max, "now_ms": now_ms}
        past = None if self.past is None else await self.past.page(user_pk, stream, after=after, **limits)
        if past is None:
            raise pruned
        return past

    def read_in_memory(
        self, user_pk: UserPk, stream: str, *, after: int, events_max: int, bytes_max: int, now_ms: int
    ) -> Page | None:
        """As ``EventLog.read_in_memory``."""
        self._check_generation()
        limits = {"events_max": events_max, "bytes_max": bytes_max, "now_ms": now_ms}
        page = self.tail.page((int(user_pk), stream), after, **limits)
        self._pages.found += page is not None
        return page

    def ends_with(self, stream: str, run: Run) -> bool:
        """As ``EventLog.ends_with``."""
        ends = self.tail.ends_with((run.user_pk, stream), run)
        self._pages.found += ends
        return ends

    def _as_of_now(self, key: StreamKey, page: Page) -> Page:
        """A page that was read just now. Raises Unavailable."""
        self._check_generation()
        if self.tail.last_seq(key) > page.head_seq:
            # The snapshot is older than what this node has committed since: not an answer to "caught up".
            page = replace(page, head_seq=self.tail.last_seq(key))
        return page

    async def chain_at(self, user_pk: UserPk, stream: str, seq: int) -> bytes:
        """The chain at ``seq`` (chain_0 at 0). Cancel-safe; raises as ``read``."""

        def work(reader: Reader) -> bytes:
            row = _known(reader, user_pk, stream, up_to=seq)
            if seq == 0:
                return chain_0(_keepstep, row.user_key, stream)
            known = {each.seq: each.chain for each in (row.tail,) if each is not None} | {row.head_seq: row.head_chain}
            chain = known.get(seq) or reader.chain(row, seq)
            if chain is None:
                _known(reader, user_pk, stream, left_after=seq)
                raise ProtocolError("internal", "the log has a hole")
            return chain

        try:
            return await self._backend.read(user_pk, work)
        except Pruned as error:
            pruned = error
        chain = None if self.past is None else await self.past.chain(user_pk, stream, seq)
        if chain is None:
            raise pruned
        return chain

    async def author(self, user_pk: UserPk, stream: str, device_pk: DevicePk) -> tuple[int, bytes]:
        """(last_n, last_hash) of a device in a stream; (0, 32 zero bytes) where it never wrote.

        Cancel-safe; raises as ``read``.
        """

        def work(reader: Reader) -> tuple[int, bytes]:
            return reader.author(_known(reader, user_pk, stream), device_pk) or (0, bytes(KEY_BYTES))

        return await self._backend.read(user_pk, work)

    async def stream(self, user_pk: UserPk, name: str) -> StreamInfo:
        """Head of one stream. Cancel-safe; raises as ``read``."""
        row = await self._backend.read(user_pk, lambda reader: _known(reader, user_pk, name))
        self._drop_overtaken([row])
        return _info(row)

    async def streams(self, user_pk: UserPk) -> list[StreamInfo]:
        """All streams of a user: ``$devices``, ``$keys``, then by name. Cancel-safe; raises as ``read``."""
        rows = await self._backend.read(user_pk, lambda reader: reader.streams(user_pk))
        self._drop_overtaken(rows)
        return [_info(row) for row in rows]

    async def follow(
        self, principal: Principal, starts: Mapping[str, int | None], *, every: bool, known: Collection[str] = ()
    ) -> list[Followed]:
        """As ``EventLog.follow``. Cancel-safe; raises as ``read``."""

        def work(reader: Reader) -> list[tuple[FollowedRow, bytes | None]]:
            found = []
            others_left = RESUMED_TOGETHER_MAX
            for row in reader.follow(principal, None if every else starts.keys()):
                stream, named = row.stream, starts.get(row.stream.name)
                seq = row.acked_seq if named is None else named
                if stream.name in starts:
                    chain = _chain_at(reader, stream, seq)
                elif stream.name in known or (_is_looked_up(stream, seq) and not others_left):
                    chain = None
                else:
                    others_left -= _is_looked_up(stream, seq)
                    chain = _chain_at(reader, stream, seq)
                found.append((row, chain))
            return found

        found = await self._backend.read(principal.user_pk, work)
        self._drop_overtaken([row.stream for row, _ in found])
        nothing = 0, bytes(KEY_BYTES)
        return [Followed(_info(row.stream), row.author or nothing, row.acked_seq, chain) for row, chain in found]

    async def pruned(self, user_pk: UserPk, stream: str) -> PrunedPrefix | None:
        """What stands for the beginning of a stream; ``None`` where nothing of it is gone.

        Cancel-safe; raises as ``read``.
        """
        return await self._backend.read(user_pk, lambda reader: reader.pruned(_known(reader, user_pk, stream)))

    async def begin_after(self, user_pk: UserPk, stream: str, prefix: PrunedPrefix, *, now_ms: int) -> bool:
        """Create a stream whose first events are gone; whether it was not there. A cancellation waits for the end.

        Raises:
            ProtocolError, Unavailable: as ``beginning.begin_after``.
        """
        return await self._backend.write(lambda store: begin_after(store, user_pk, stream, prefix, now_ms=now_ms))

    async def snapshots(self, user_pk: UserPk, stream: str) -> list[SnapshotInfo]:
        """The newest snapshots of a stream, newest first, at most ``SNAPSHOTS_MAX``.

        Cancel-safe; raises as ``read``.
        """
        return await self._backend.read(
            user_pk, lambda reader: reader.snapshots(_known(reader, user_pk, stream), rows_max=SNAPSHOTS_MAX)
        )

    def _drop_overtaken(self, rows: Sequence[StreamRow]) -> None:
        """Forget the tails that another node has gone beyond: they would answer that there is nothing new.

        And of any tail what is gone from its stream.
        """
        for row in rows:
            if row.tail is not None:
                self.tail.drop_before((int(row.user_pk), row.name), row.tail.seq)
            if row.head_seq > self.tail.last_seq((int(row.user_pk), row.name)):
                self.tail.drop((int(row.user_pk), row.name))

    def _announce(self, runs: list[tuple[StreamKey, Run]], generation: int, erased: Iterable[StreamKey] = ()) -> None:
        """Take what was committed into the tail and tell the listeners.

        ``generation``: when the commit was begun. ``erased``: streams of which it erased payloads, which nobody is
        served from the tail any more.
        """
        self._check_generation()
        if generation == self._generation:  # else it may have been committed to the log that was
            for key, run in runs:
                # Any node may drop an inbox's payloads, as its device acknowledges them: none remembers them.
                if key[1][0] != "$" or not is_inbox(key[1]):
                    self.tail.append(key, run)
        for key in erased:
            self.tail.drop(key)
        if runs:
            for listener in self._listeners:
                listener(runs)
            devices = [run for (_, name), run in runs if name == DEVICES_STREAM]
            for devices_listener in self._devices_listeners if devices else ():
                devices_listener(devices)

    def _check_generation(self) -> None:
        """Forget what was remembered of a database that is not the one it was."""
        if self._backend.generation() != self._generation:
            self._generation = self._backend.generation()
            self.tail.clear()


def _known(reader: Reader, user_pk: UserPk, name: str, *, up_to: int = 0, left_after: int | None = None) -> StreamRow:
    """The stream.

    Raises ``unknown_stream``, ``unknown_position`` where it does not reach ``up_to``, Pruned where what follows
    ``left_after`` is gone.
    """
    row = reader.stream(user_pk, name)
    if row is None:
        raise ProtocolError("unknown_stream")
    if up_to > row.head_seq:
        raise ProtocolError("unknown_position")
    if left_after is not None and row.tail is not None and left_after < row.tail.seq:
        raise Pruned(left_after, row.tail.seq)
    return row


def _is_looked_up(row: StreamRow, seq: int) -> bool:
    """Whether the chain at a position takes a question of its own: the row does not tell it."""
    return 0 < seq < row.head_seq and (row.tail is None or row.tail.seq != seq)


def _chain_at(reader: Reader, row: StreamRow, seq: int) -> bytes | None:
    """The chain at a position; ``None`` where it is not there."""
    if seq == 0:
        return chain_0(_keepstep, row.user_key, row.name)
    if seq >= row.head_seq:
        return row.head_chain if seq == row.head_seq else None
    return row.tail.chain if row.tail is not None and row.tail.seq == seq else reader.chain(row, seq)


def _info(row: StreamRow) -> StreamInfo:
    head = Position(row.head_seq, row.head_chain)
    return StreamInfo(
        row.user_pk,
        row.stream_pk,
        row.name,
        head,
        row.policy,
        row.retention_class,
        row.ttl_max_s,
        row.bytes_max,
        row.stored_bytes,
        row.tail,
    )
