"""What the server signs and cannot take back: heads of streams, and that it deleted an account (protocol.md)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from keepstep import _keepstep
from keepstep.errors import ProtocolError
from keepstep.protocol.chain import Head, sign_head, verify_head
from keepstep.protocol.receipt import DeletionReceipt, sign_receipt
from keepstep.protocol.rewind import sign_rewind

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from keepstep.interfaces import Clock
    from keepstep.protocol.messages import SignedHead, SignedRewind
    from keepstep.protocol.rewind import Rewind


class HeadSigner:
    """Signs heads, and receipts for deleted accounts, with the server's identity key.

    Args:
        secret: the seed of the server's identity key, 32 bytes.
        epoch: tells the log's epoch, which a restore raises while the server runs.
        clock: the one ``received_at`` follows: readers judge by a head's time whether a payload may be missing.
        predecessors: public keys that the server had before.
        safe_at_ms: tells what ``safety.Safety.at_ms`` does, which goes along with heads and is not signed.
    """

    def __init__(
        self,
        secret: bytes,
        *,
        epoch: Callable[[], int],
        clock: Clock,
        predecessors: Sequence[bytes] = (),
        safe_at_ms: Callable[[], int | None] = lambda: None,
    ) -> None:
        self._secret = secret
        self._identity = _keepstep.SigningKey(secret)
        self._keys = (self._identity.public, *predecessors)
        self._clock = clock
        self._epoch = epoch
        self._safe_at_ms = safe_at_ms

    @property
    def epoch(self) -> int:
        """The log's epoch now."""
        return self._epoch()

    @property
    def safe_at_ms(self) -> int | None:
        """What was received by then is in a verified backup, unix milliseconds; ``None`` for nothing."""
        return self._safe_at_ms()

    def sign(self, user_key: bytes, stream: str, *, seq: int, chain: bytes, epoch: int | None = None) -> SignedHead:
        """That ``stream`` stands at ``seq`` with ``chain`` now.

        ``epoch``: the log's that it was read from. Where it is left out, the caller looks afterwards whether the log is
        still that one: a thread may learn of another at any time, and of its generation before its epoch.
        """
        epoch = self.epoch if epoch is None else epoch
        head = Head(user_key=user_key, stream=stream, epoch=epoch, seq=seq, chain=chain, time_ms=self._clock.now_ms())
        return sign_head(self._identity, head)

    def sign_rewind(self, rewind: Rewind) -> SignedRewind:
        """That a restore set a stream back."""
        return sign_rewind(_keepstep, self._secret, rewind)

    def verify(self, signed: SignedHead) -> Head:
        """A head that this server signed, with this key or one before it. Raises ProtocolError ``bad_signature``."""
        for key in self._keys:
            try:
                return verify_head(_keepstep, key, signed)
            except ProtocolError:
                continue
        raise ProtocolError("bad_signature", "the server signed no such head")

    def sign_deletion(self, user_key: bytes, *, deleted_at_ms: int) -> tuple[bytes, bytes]:
        """That the account is deleted: the receipt's bytes and the signature (protocol.md section 2)."""
        return sign_receipt(_keepstep, self._secret, DeletionReceipt(user_key, deleted_at_ms))
