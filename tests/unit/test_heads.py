"""Signed heads."""

from __future__ import annotations

from keepstep.client import crypto
from keepstep.heads import HeadSigner
from keepstep.protocol.chain import Head, verify_head
from tests.support.events import NOW_MS, seed
from tests.support.parts import SERVER_KEY, SERVER_SECRET, TestClock


def test_a_head_states_the_position_at_that_time() -> None:
    """A device verifies it with the server's key and finds stream, epoch, position and the clock's time."""
    user_key, chain = seed("user"), seed("chain")
    signer = HeadSigner(SERVER_SECRET, epoch=lambda: 7, clock=TestClock())
    signed = signer.sign(user_key, "notes", seq=3, chain=chain)
    assert verify_head(crypto, SERVER_KEY, signed) == Head(
        user_key=user_key, stream="notes", epoch=7, seq=3, chain=chain, time_ms=NOW_MS
    )
