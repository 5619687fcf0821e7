"""What a device remembers of the heads that the server signed, so that two histories cannot be shown to it.

Two signed heads of one (stream, epoch, seq) with different chains prove a fork to anybody (protocol.md section 4).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from keepstep.errors import ProtocolError, VerificationError
from keepstep.protocol.chain import Head, decode_head, verify_head

if TYPE_CHECKING:
    from collections.abc import Iterable

    from keepstep.protocol.messages import SignedHead
    from keepstep.protocol.primitives import Primitives

HEADS_MAX: Final = 8
"""Heads remembered per stream, those with the highest (epoch, seq)."""


class HeadWitness:
    """The signed heads of one stream.

    Args:
        primitives: the cryptography.
        user_key: the user id.
        server_key: the pinned server identity key.
        stream: the stream's name.
        heads: those remembered, as ``signed`` gave them; not verified again.
    """

    def __init__(
        self,
        primitives: Primitives,
        *,
        user_key: bytes,
        server_key: bytes,
        stream: str,
        heads: Iterable[SignedHead] = (),
    ) -> None:
        self._primitives = primitives
        self._user_key = user_key
        self._server_key = server_key
        self._stream = stream
        self._heads: dict[tuple[int, int], tuple[Head, SignedHead]] = {}
        self._time_ms = 0
        for signed in heads:
            head = decode_head(signed[0])
            self._heads[head.epoch, head.seq] = (head, signed)
            self._time_ms = max(self._time_ms, head.time_ms)

    @property
    def signed(self) -> list[SignedHead]:
        """The remembered heads, oldest first."""
        return [signed for _, (_, signed) in sorted(self._heads.items())]

    @property
    def time_ms(self) -> int:
        """The latest time the server has signed for this stream, unix milliseconds; 0 where none."""
        return self._time_ms

    def take(self, signed: SignedHead) -> Head:
        """Verify a head and remember it.

        Raises:
            VerificationError: the server did not sign it, it is another user's or stream's, or it proves a fork or a
                log that went back.
        """
        head = self._verified(signed)
        for other, told in self._heads.values():
            # Both only rise. Else eight heads of later epochs, however short, would push out what is remembered.
            if (head.epoch - other.epoch) * (head.seq - other.seq) < 0:
                raise VerificationError(
                    "the log went back behind a signed head",
                    stream=self._stream,
                    seq=head.seq,
                    evidence=(told, signed),
                )
        place = (head.epoch, head.seq)
        known = self._heads.get(place)
        if known is not None and known[0].chain != head.chain:
            raise VerificationError(
                "the server signed two histories", stream=self._stream, seq=head.seq, evidence=(known[1], signed)
            )
        self._time_ms = max(self._time_ms, head.time_ms)
        if known is None or known[0].time_ms < head.time_ms:
            self._heads[place] = (head, signed)
        if len(self._heads) > HEADS_MAX:
            del self._heads[min(self._heads)]
        return head

    def take_past(self, signed: SignedHead) -> Head:
        """Verify a head of a place before the end, which says nothing of where the stream ends.

        Raises:
            VerificationError: the server did not sign it, it is another user's or stream's, or it proves a fork.
        """
        head = self._verified(signed)
        known = self._heads.get((head.epoch, head.seq))
        if known is not None and known[0].chain != head.chain:
            raise VerificationError(
                "the server signed two histories", stream=self._stream, seq=head.seq, evidence=(known[1], signed)
            )
        self.check_chain(head.seq, head.chain)
        self._time_ms = max(self._time_ms, head.time_ms)
        return head

    def _verified(self, signed: SignedHead) -> Head:
        try:
            head = verify_head(self._primitives, self._server_key, signed)
        except ProtocolError as exc:
            raise VerificationError("a head does not verify", stream=self._stream) from exc
        if head.user_key != self._user_key or head.stream != self._stream:
            raise VerificationError("a head is of another stream", stream=self._stream, evidence=(signed,))
        return head

    def check_end(self, head: Head) -> None:
        """Check a head that says where the stream ends now: nothing the server signed before may be gone.

        Raises:
            VerificationError: it lies before a remembered one, in epoch or seq.
        """
        epoch, seq = max(epoch for epoch, _ in self._heads), max(seq for _, seq in self._heads)
        if head.epoch < epoch or head.seq < seq:
            signed = max(self._heads.values(), key=lambda each: each[0].seq)[1]
            raise VerificationError(
                "the log went back behind a signed head", stream=self._stream, seq=head.seq, evidence=(signed,)
            )

    def check_chain(self, seq: int, chain: bytes) -> None:
        """Check the chain that a device computed against what the server signed for that seq, in any epoch.

        Raises:
            VerificationError: they differ.
        """
        for (_, at), (head, signed) in self._heads.items():
            if at == seq and head.chain != chain:
                raise VerificationError(
                    "the events are not those of a signed head", stream=self._stream, seq=seq, evidence=(signed,)
                )
