"""What a device holds of restores: the signed rewinds, and what became of the events that a restore took away.

Going back is an attack unless the server signed that it had to (protocol.md section 4, "After a restore"). Calls block
on the disk.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from keepstep.client import crypto
from keepstep.client.notices import Notice, NoticeKind
from keepstep.errors import ProtocolError, VerificationError
from keepstep.protocol.rewind import decode_rewind, verify_rewind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from keepstep.client.store import Store
    from keepstep.protocol.messages import SignedRewind
    from keepstep.protocol.rewind import Rewind


@dataclass(frozen=True, slots=True)
class Restoration:
    """What a restore of the server took from a stream, and what came of it.

    Attributes:
        stream: its name.
        at_ms: when this device saw it, unix milliseconds.
        common_seq: up to here the stream is as it was.
        held_seq: what this device held of it; of a stream that it only writes, the last place it was told.
        handed_in: events that this device handed in and that are in their places again.
        anew: events that were appended anew, or wait to be published again.
        lost: events that joined on nowhere; they are on no server any more, as far as this device knows.
    """

    stream: str
    at_ms: int
    common_seq: int
    held_seq: int
    handed_in: int
    anew: int
    lost: int


class Rewinds:
    """The rewinds of one device's streams."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: dict[str, list[Rewind]] = {}
        for stream, data in store.rows("SELECT stream, rewind FROM rewinds ORDER BY stream, epoch"):
            self._known.setdefault(stream, []).append(decode_rewind(data))

    def take(self, stream: str, signed: Sequence[SignedRewind]) -> None:
        """Keep rewinds that the server signed; part of a transaction.

        Raises:
            VerificationError: it did not sign one of them, or signed two of one restore, or it is of another stream.
        """
        identity = self._store.identity
        for each in signed:
            known = {rewind.epoch: rewind for rewind in self._known.get(stream, ())}
            try:
                rewind = decode_rewind(each[0])
                if known.get(rewind.epoch) == rewind:
                    continue
                verify_rewind(crypto, identity.server_key, each)
            except ProtocolError as exc:
                raise VerificationError("a rewind does not verify", stream=stream) from exc
            if (rewind.user_key, rewind.stream) != (identity.user_key, stream):
                raise VerificationError("a rewind is of another stream", stream=stream)
            if rewind.epoch in known or rewind.epoch > self._store.epoch():
                raise VerificationError("a rewind of no restore that there was", stream=stream, seq=rewind.seq)
            self._known.setdefault(stream, []).append(rewind)
            self._store.execute("INSERT INTO rewinds VALUES (?, ?, ?, ?)", stream, rewind.epoch, each[0], each[1])

    def floor(self, stream: str, *, since: int) -> int | None:
        """How far back restores since an epoch may have set a stream; ``None`` where there was none since."""
        return min((each.seq for each in self._known.get(stream, ()) if each.epoch > since), default=None)

    def of(self, stream: str) -> Sequence[Rewind]:
        """The restores that set a stream back, as far as the server has told."""
        return self._known.get(stream, ())

    def chain_at(self, stream: str, seq: int) -> bytes:
        """The chain at a place that a restore set a stream back to."""
        return next(each.chain for each in self._known[stream] if each.seq == seq)

    def add(self, restoration: Restoration) -> None:
        """Keep what came of a restore, and tell the user of it; part of a transaction."""
        self._store.execute(
            "INSERT INTO restorations (stream, at_ms, common_seq, held_seq, handed_in, anew, lost)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            restoration.stream, restoration.at_ms, restoration.common_seq, restoration.held_seq,
            restoration.handed_in, restoration.anew, restoration.lost,
        )  # fmt: skip
        self._store.add_notice(Notice(NoticeKind.RESTORED, restoration.at_ms))

    def restorations(self) -> list[Restoration]:
        """What came of restores, the earliest first."""
        return [
            Restoration(*row)
            for row in self._store.rows(
                "SELECT stream, at_ms, common_seq, held_seq, handed_in, anew, lost FROM restorations ORDER BY id"
            )
        ]
