"""What the server signs and cannot take back: heads of streams, and that it deleted an account (protocol.md)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from keepstep import _keepstep
from keepstep.protocol.chain import Head, sign_head
from keepstep.protocol.receipt import DeletionReceipt, sign_receipt

if TYPE_CHECKING:
    from collections.abc import Callable

    from keepstep.interfaces import Clock
    from keepstep.protocol.messages import SignedHead


class HeadSigner:
    """Signs heads, and receipts for deleted accounts, with the server's identity key.

    Args:
        secret: the seed of the server's identity key, 32 bytes.
        epoch: tells the log's epoch, which a restore raises while the server runs.
        clock: the one ``received_at`` follows: readers judge by a head's time whether a payload may be missing.
    """

    def __init__(self, secret: bytes, *, epoch: Callable[[], int], clock: Clock) -> None:
        self._secret = secret
        self._clock = clock
        self._epoch = epoch

    @property
    def epoch(self) -> int:
        """The log's epoch now."""
        return self._epoch()

    def sign(self, user_key: bytes, stream: str, *, seq: int, chain: bytes) -> SignedHead:
        """That ``stream`` stands at ``seq`` with ``chain`` now."""
        head = Head(
            user_key=user_key, stream=stream, epoch=self.epoch, seq=seq, chain=chain, time_ms=self._clock.now_ms()
        )
        return sign_head(_keepstep, self._secret, head)

    def sign_deletion(self, user_key: bytes, *, deleted_at_ms: int) -> tuple[bytes, bytes]:
        """That the account is deleted: the receipt's bytes and the signature (protocol.md section 2)."""
        return sign_receipt(_keepstep, self._secret, DeletionReceipt(user_key, deleted_at_ms))
