"""Signed heads: what the server cannot take back about a stream (protocol.md section 4)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from keepstep import _keepstep
from keepstep.protocol.chain import Head, sign_head

if TYPE_CHECKING:
    from keepstep.interfaces import Clock
    from keepstep.protocol.messages import SignedHead


class HeadSigner:
    """Signs heads with the server's identity key.

    Args:
        secret: the seed of the server's identity key, 32 bytes.
        epoch: the log's epoch.
        clock: the one ``received_at`` follows: readers judge by a head's time whether a payload may be missing.
    """

    def __init__(self, secret: bytes, *, epoch: int, clock: Clock) -> None:
        self._secret = secret
        self._clock = clock
        self.epoch = epoch

    def sign(self, user_key: bytes, stream: str, *, seq: int, chain: bytes) -> SignedHead:
        """That ``stream`` stands at ``seq`` with ``chain`` now."""
        head = Head(
            user_key=user_key, stream=stream, epoch=self.epoch, seq=seq, chain=chain, time_ms=self._clock.now_ms()
        )
        return sign_head(_keepstep, self._secret, head)
