"""Reading an account file in: its events are published again, each at the time at which it was received.

So every event passes the checks that it passed then, in whatever is behind the log, and has to come to the same place
and the same chain; what streams, devices, winners and snapshots there are follows from that. It may be repeated: what
is stored already has to be the same, and is passed over.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec
import trio

from keepstep import _keepstep
from keepstep._keepstep import DeviceKey, Events, Submission
from keepstep.account_beginning import is_signed, read_beginning
from keepstep.account_file import FRAME_BYTES_MAX, PAGE_EVENTS_MAX, AccountFileError
from keepstep.account_histories import stored_positions
from keepstep.errors import ProtocolError, Unavailable
from keepstep.identity import Identity, Registrations
from keepstep.journal import NO_JOURNAL, AccountRecord
from keepstep.model import DEVICES_STREAM, Position
from keepstep.protocol.account_payloads import RotatePayload, decode_account
from keepstep.protocol.chain import chain_next, event_hash, verify_head
from keepstep.protocol.event import decode_header, encode_events
from keepstep.protocol.messages import ResultAccepted, ResultError
from keepstep.protocol.snapshot import ERASABLE
from keepstep.publish import AwaitedAnswer, Publisher, PublishLimits
from keepstep.replaying import ReplayClock
from keepstep.telemetry import Metrics

if TYPE_CHECKING:
    from collections.abc import Sequence

    from keepstep.account_file import AccountFile
    from keepstep.diskspace import Room
    from keepstep.interfaces import Accounts, EventLog
    from keepstep.journal import AccountJournal
    from keepstep.model import Principal, PrunedPrefix
    from keepstep.protocol.messages import EventRow, Result

DEVICES_MAX: Final = 1_024
"""As the setting ``devices_per_user_max`` at its largest: what another server let be is let be here."""
_NOWHERE: Final = ""
"""The address of a file."""


@dataclass(frozen=True, slots=True)
class Imported:
    """What was read in.

    Attributes:
        user_key: whose account.
        streams: how many it has.
        events: in all of them.
        stored: those that were not there before.
    """

    user_key: bytes
    streams: int
    events: int
    stored: int


class _Cursor:
    """How far a stream has been replayed.

    Attributes:
        name: the stream's.
        at: how far.
        gone: what stands for events that are gone, until the stream is begun after them.
        stored_seq: up to here it is stored already, and the same.
    """

    def __init__(self, name: str, rows: Iterator[EventRow], start: Position, gone: PrunedPrefix | None) -> None:
        self.name = name
        self.at = start
        self.gone = gone
        self.stored_seq = 0
        self._rows = rows
        self._ahead: list[EventRow] = []
        self._look()

    @property
    def received_at_ms(self) -> int | None:
        """Of the next event, ``None`` at the end."""
        return self._ahead[0][2] if self._ahead else None

    def group(self) -> list[EventRow]:
        """The next events of one author and one moment, either all of them stored already or none."""
        first = self._ahead[0]
        count = 1
        while count < PAGE_EVENTS_MAX and self._look(count) and self._ahead[count][1:3] == first[1:3]:
            if first[0] <= self.stored_seq < self._ahead[count][0]:
                break
            count += 1
        return self._ahead[:count]

    def take(self, rows: Sequence[EventRow]) -> None:
        """Go beyond the next events. Raises AccountFileError where they do not follow."""
        for seq, _, received_at_ms, header, sig, _, _ in rows:
            if seq != self.at.seq + 1:
                raise AccountFileError(f"{self.name}#{seq}: the events do not follow each other")
            hash_ = event_hash(_keepstep, header, sig)
            self.at = Position(seq, chain_next(_keepstep, self.at.chain, seq, received_at_ms, hash_))
        del self._ahead[: len(rows)]
        self._look()

    def _look(self, index: int = 0) -> bool:
        """Whether there is an event so far ahead."""
        while len(self._ahead) <= index:
            row = next(self._rows, None)
            if row is None:
                return False
            self._ahead.append(row)
        return True


async def import_account(
    file: AccountFile,
    log: EventLog,
    accounts: Accounts,
    room: Room | None = None,
    *,
    journal: AccountJournal = NO_JOURNAL,
) -> Imported:
    """Read an account in. To verify a file is to read it into a log in memory.

    Args:
        file: whole.
        log: where to; what was there of the account before has to be of the same history.
        accounts: of the same storage.
        room: whether the disks take new events.
        journal: takes the account log, also what is stored of it already: a crash may have come between the two.

    Raises:
        AccountFileError: another history of the account is here, and nothing was stored; or the file is not what a
            server that keeps to the protocol wrote: what came before the event that is named may have been stored.
        Unavailable: the database is away, or the disk has no room; it may be repeated, and goes on where it was.
    """
    clock = ReplayClock()
    registrations = Registrations("open", per_address_hour=1, per_hour=1, clock=clock)
    identity = Identity(
        log, accounts, registrations, clock, devices_per_user_max=DEVICES_MAX, room=room, journal=journal
    )
    limits = PublishLimits(
        pipelines=1,
        queue_max=1,
        queue_bytes_max=1,
        batch_events_max=PAGE_EVENTS_MAX,
        batch_bytes_max=2 * FRAME_BYTES_MAX,
    )
    publisher = Publisher(log, identity, clock, limits=limits, metrics=Metrics(), room=room, journal=journal)
    error: AccountFileError | ProtocolError | None = None
    imported: Imported | None = None
    async with trio.open_nursery() as nursery:
        await nursery.start(publisher.run)
        try:
            imported = await _Replay(file, log, accounts, identity, publisher, clock, journal).run()
        except (AccountFileError, ProtocolError) as exc:  # not in a group
            error = exc
        publisher.close()
    if error is not None:
        raise error
    assert imported is not None
    return imported


class _Replay:
    """One reading in."""

    def __init__(
        self,
        file: AccountFile,
        log: EventLog,
        accounts: Accounts,
        identity: Identity,
        publisher: Publisher,
        clock: ReplayClock,
        journal: AccountJournal,
    ) -> None:
        self._journal = journal
        self._file = file
        self._user_key = file.begin.user_key
        self._log = log
        self._accounts = accounts
        self._identity = identity
        self._publisher = publisher
        self._clock = clock
        self._authors: dict[bytes, Principal] = {}
        self._events = 0
        self._stored = 0

    async def run(self) -> Imported:
        """From genesis to the heads."""
        cursors = {
            name: _Cursor(name, self._file.rows(name), *read_beginning(self._file, name)) for name in self._file.streams
        }
        user_pk = await self._accounts.user(self._user_key)
        if user_pk is not None:
            for name, seq in (await stored_positions(self._file, self._log, user_pk)).items():
                cursors[name].stored_seq, cursors[name].gone = seq, None
        devices = cursors[DEVICES_STREAM]
        others = [cursor for cursor in cursors.values() if cursor is not devices]
        while devices.received_at_ms is not None:
            if devices.at.seq:
                await self._catch_up(others, until_ms=devices.received_at_ms)
            await self._account_event(devices)
        await self._catch_up(others, until_ms=None)
        for cursor in others:
            await self._begin(cursor)
        for cursor in cursors.values():
            self._check_head(cursor)
        return Imported(self._user_key, len(cursors), self._events, self._stored)

    async def _catch_up(self, cursors: Sequence[_Cursor], *, until_ms: int | None) -> None:
        """Everything that was received before the account log's next event, and what of the same moment may be.

        An event of that moment came before it or after it: a device is enrolled by it, or ends by it.
        """
        for cursor in cursors:
            while (received_at_ms := cursor.received_at_ms) is not None:
                if until_ms is not None and received_at_ms > until_ms:
                    break
                await self._begin(cursor)
                rows = cursor.group()
                refused = await self._publish(cursor, rows)
                if refused is None:
                    continue
                if received_at_ms != until_ms:
                    raise AccountFileError(f"{cursor.name}#{rows[0][0]}: refused as {refused}")
                break

    async def _begin(self, cursor: _Cursor) -> None:
        """Create a stream that begins after events which are gone: their authors are enrolled by now."""
        gone, cursor.gone = cursor.gone, None
        if gone is None:
            return
        for row in gone.kept:
            author = await self._author(row[1])
            if author is None or not is_signed(self._user_key, author, row):
                raise AccountFileError(f"{cursor.name}#{row[0]}: not what its author signed")
        user_pk = await self._accounts.user(self._user_key)
        assert user_pk is not None, "its genesis was stored first"
        try:
            await self._log.begin_after(user_pk, cursor.name, gone, now_ms=self._clock.at_ms)
        except ProtocolError as error:
            if error.code == "unavailable":
                raise
            raise AccountFileError(f"{cursor.name}: refused as {error.code}") from error

    async def _account_event(self, devices: _Cursor) -> None:
        row = devices.group()[0]
        seq, device_id, received_at_ms, header, sig, payload, _ = row
        self._clock.at_ms = received_at_ms
        if seq <= devices.stored_seq:
            devices.take([row])
            if payload is not None:
                await self._journal.keep(
                    AccountRecord(self._user_key, seq, received_at_ms, device_id, header, sig, payload)
                )
            self._events += 1
            return
        body = msgspec.msgpack.encode([header, sig, payload])
        try:
            if seq == 1:
                registered = await self._identity.register(body, address=_NOWHERE)
            elif isinstance(decode_account(payload or b""), RotatePayload):
                registered = await self._identity.rotate(self._user_key, body, address=_NOWHERE)
            else:
                refused = await self._publish(devices, [row])
                if refused is not None:
                    raise AccountFileError(f"{DEVICES_STREAM}#{seq}: refused as {refused}")
                return
        except ProtocolError as error:
            if error.code == "unavailable":
                raise
            raise AccountFileError(f"{DEVICES_STREAM}#{seq}: refused as {error.code}") from error
        finally:
            self._authors.clear()
        if registered.user_key != self._user_key:
            raise AccountFileError("the genesis is that of another account")
        devices.take([row])
        if (registered.seq, registered.received_at_ms, registered.chain) != (seq, received_at_ms, devices.at.chain):
            raise AccountFileError(f"{DEVICES_STREAM}#{seq}: another history of this account is here")
        self._events += 1
        self._stored += registered.is_new

    async def _publish(self, cursor: _Cursor, rows: Sequence[EventRow]) -> str | None:
        """Publish events of one author and one moment; the code of their refusal, ``None`` where they are stored."""
        if rows[0][0] <= cursor.stored_seq:
            cursor.take(rows)
            self._events += len(rows)
            return None
        author = await self._author(rows[0][1])
        if author is None:
            return "forbidden"
        if any(payload is None and not _may_be_gone(header) for _, _, _, header, _, payload, _ in rows):
            return "malformed"
        self._clock.at_ms = rows[0][2]
        raw = encode_events((header, sig, payload) for _, _, _, header, sig, payload, _ in rows)
        submission = Submission(
            user_pk=author.user_pk,
            user_key=author.user_key,
            device_pk=author.device_pk,
            device_id=author.device_id,
            device_key=DeviceKey(author.device_key),
            capabilities=int(author.capabilities_at(self._clock.at_ms)),
            events=Events.parse(
                raw,
                events_max=PAGE_EVENTS_MAX,
                payload_bytes_max=FRAME_BYTES_MAX,
                payloads_may_be_missing=True,  # they have run out, were erased or compacted: the signature is checked
            ),
        )
        answer = AwaitedAnswer()
        await self._publisher.submit(author, submission, answer)
        return self._check(cursor, rows, await answer.wait())

    def _check(self, cursor: _Cursor, rows: Sequence[EventRow], results: Sequence[Result]) -> str | None:
        """Whether the answers say what the file says: all of the events are stored where it has them, or none is."""
        chain: bytes | None = None
        for result in results:
            if isinstance(result, ResultError):
                if result.code == "unavailable":
                    raise Unavailable("nothing of the account's next events was stored")
                return result.code
            chain = result.chain
        cursor.take(rows)
        if chain not in (None, cursor.at.chain):
            raise AccountFileError(f"{cursor.name}#{cursor.at.seq}: another history of this account is here")
        self._events += len(rows)
        self._stored += sum(result.count for result in results if isinstance(result, ResultAccepted))
        return None

    async def _author(self, device_id: bytes) -> Principal | None:
        """The device as it is at this point of the replay, also one that has ended: what it had stored is there."""
        if device_id not in self._authors:
            known = await self._accounts.device(self._user_key, device_id)
            if known is None:
                return None
            self._authors[device_id] = known.principal
        return self._authors[device_id]

    def _check_head(self, cursor: _Cursor) -> None:
        """The events end where the server that wrote the file signed that they do."""
        try:
            head = verify_head(_keepstep, self._file.begin.server_key, self._file.streams[cursor.name].head)
        except ProtocolError as exc:
            raise AccountFileError(f"{cursor.name}: the head is not signed by the server that wrote the file") from exc
        if (head.user_key, head.stream) != (self._user_key, cursor.name):
            raise AccountFileError(f"{cursor.name}: the head is that of another stream")
        if Position(head.seq, head.chain) != cursor.at:
            raise AccountFileError(f"{cursor.name}: the events do not end in the signed head")


def _may_be_gone(header: bytes) -> bool:
    """Whether a server may have dropped the payload of such an event."""
    try:
        return decode_header(header).kind in ERASABLE
    except ProtocolError:
        return False
