"""Snapshots, confirmations and erasures: events that are checked against what is stored (protocol.md section 3).

Each is stored alone, in a transaction that holds its stream's lock, so what it was checked against is what it is stored
upon; and what it does is done in that transaction.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from keepstep.errors import ProtocolError
from keepstep.eventlog.store import DataFault, SnapshotRow
from keepstep.model import Capability, Kind
from keepstep.protocol.event import decode_header
from keepstep.protocol.snapshot import (
    ERASABLE,
    ConfirmPayload,
    ErasePayload,
    SnapshotPayload,
    decode_confirm,
    decode_erase,
    decode_snapshot,
)

if TYPE_CHECKING:
    from keepstep._keepstep import StreamHead, Submission
    from keepstep.eventlog.store import StoredStream, Transaction


@dataclass(frozen=True, slots=True)
class Apart:
    """One such event that has just got its place.

    Attributes:
        transaction: in which it is stored; its stream is locked.
        submission: the event and its device.
        old: the head that it moves.
        new: the head that it makes.
        now_ms: unix milliseconds, as the database's clock has it.
    """

    transaction: Transaction
    submission: Submission
    old: StreamHead
    new: StreamHead
    now_ms: int

    def apply(self) -> bool:
        """Check the event and do what it says; whether payloads went.

        Raises:
            DataFault: it must not be stored; with the code that its author is answered.
        """
        event = self.submission.events.event(0)
        if event.payload_dropped:
            return False  # an erased snapshot that comes back with its account: there is nothing to start from
        stream = self.transaction.stored(self.old)
        try:
            if event.kind == Kind.SNAPSHOT:
                self._add_snapshot(stream, decode_snapshot(event.payload))
            elif event.kind == Kind.CONFIRM:
                self._confirm(stream, decode_confirm(event.payload))
            else:
                self._erase(stream, decode_erase(event.payload))
        except ProtocolError as error:
            raise DataFault(error.code) from error
        return event.kind == Kind.ERASE

    def _add_snapshot(self, stream: StoredStream, snapshot: SnapshotPayload) -> None:
        chain = self.old.chain if snapshot.covers_seq == self.old.seq else stream.chain(snapshot.covers_seq)
        if chain != snapshot.covers_chain:
            raise DataFault("unprocessable")
        device_pks = stream.device_pks(snapshot.authors)
        for device_id, n in snapshot.authors.items():
            known = self.old.author(device_pks.get(device_id, 0))
            if known is None or n > known[0]:
                raise DataFault("unprocessable")
        stream.add_snapshot(
            SnapshotRow(
                self.new.seq,
                snapshot.covers_seq,
                snapshot.covers_chain,
                self.submission.device_pk,
                self.new.received_at_ms,
            )
        )

    def _confirm(self, stream: StoredStream, confirm: ConfirmPayload) -> None:
        author_pk = stream.snapshot_author(confirm.snapshot_seq)
        if author_pk is None:
            header = stream.emptied_header(confirm.snapshot_seq)
            if header is None or decode_header(header).kind != Kind.SNAPSHOT:
                raise DataFault("unprocessable")
            return  # of a snapshot that was erased before it came here with its account
        if author_pk == self.submission.device_pk:
            live = self.transaction.devices([self.old.user_pk])[self.old.user_pk]
            if sum(live.lets_write(device_pk, self.now_ms) for device_pk in live.expires_at_ms) > 1:
                raise DataFault("forbidden")
        stream.confirm_snapshot(confirm.snapshot_seq, seq=self.new.seq, device_pk=self.submission.device_pk)

    def _erase(self, stream: StoredStream, erase: ErasePayload) -> None:
        if erase.events.keys() != {self.submission.device_id} and not self.submission.capabilities & Capability.MANAGE:
            raise DataFault("forbidden")
        device_pks = stream.device_pks(erase.events)
        pruned = stream.pruned_authors()
        places: list[tuple[int, int]] = []
        for device_id, numbers in erase.events.items():
            known = self.old.author(device_pks.get(device_id, 0))
            if known is None or numbers[-1] > known[0]:
                raise DataFault("unprocessable")
            # What is gone with its stream's beginning has nothing left to erase, but for what is kept of that; the
            # devices that hold it are told all the same, and so is the archive.
            last_gone = pruned[device_id][0] if device_id in pruned else 0
            gone = [n for n in numbers if n <= last_gone]
            stream.erase_archived(device_pks[device_id], numbers)
            if gone:
                stream.drop_kept(device_pks[device_id], gone)
            left = numbers[len(gone) :]
            found = stream.authored(device_pks[device_id], left, from_seq=known[1]) if left else []
            if len(found) < len(left) or any(decode_header(each.header).kind not in ERASABLE for each in found):
                raise DataFault("unprocessable")
            places += ((each.seq, each.received_at_ms) for each in found)
        if places:
            stream.drop_payloads(sorted(places))
