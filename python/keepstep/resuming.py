"""Where a device goes on with a stream, and whether the log holds that (protocol.md section 4)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from keepstep import _keepstep, errors
from keepstep.model import PREV_BYTES, Position
from keepstep.protocol.chain import chain_0
from keepstep.protocol.messages import Pruned, encode

if TYPE_CHECKING:
    from keepstep.interfaces import EventLog, Followed
    from keepstep.model import Principal, PrunedPrefix, UserPk
    from keepstep.protocol.messages import SignedHead, SignedRewind
    from keepstep.subscription import Start


def seq_of(start: Start | None) -> int:
    """The seq that a device named, 0 where it named none."""
    if isinstance(start, Position):
        return start.seq
    return start if isinstance(start, int) else 0


async def position_of(
    log: EventLog, principal: Principal, name: str, start: Start | None, found: Followed | None
) -> Position | None:
    """Where a stream goes on from; ``None`` where the log does not hold the position that the device named.

    Cancel-safe; raises as ``EventLog.chain_at``.

    Args:
        log: asked for a chain that ``found`` does not tell.
        principal: the device.
        name: of the stream.
        start: what the device named.
        found: the stream by ``EventLog.follow``, asked with ``seq_of(start)``; ``None`` where it is not there.
    """
    empty = Position(0, chain_0(_keepstep, principal.user_key, name))
    seq = seq_of(start)
    if found is None or seq == 0:
        if start == "end" and found is not None:
            return found.info.head
        return empty if start in ("start", "end", 0, empty) else None
    if seq > found.info.head.seq:
        return None
    # What is gone cannot be compared: the device is told what stands for it, and compares that.
    chain = found.chain if found.chain is not None else await _chain_left_at(log, principal.user_pk, name, seq)
    if isinstance(start, Position):
        return start if start.chain == (chain or start.chain) else None
    return Position(seq, chain)


async def _chain_left_at(log: EventLog, user_pk: UserPk, name: str, seq: int) -> bytes:
    """The chain at a position; ``b""`` where it is gone with the stream's beginning."""
    try:
        return await log.chain_at(user_pk, name, seq)
    except errors.Pruned:
        return b""


def tell_pruned(name: str, after: int, prefix: PrunedPrefix, head: SignedHead) -> bytes:
    """What stands for the beginning of a stream that is gone beyond ``after``, encoded; ``head`` is where it ends."""
    message = Pruned(
        stream=name,
        after=after,
        to_seq=prefix.to.seq,
        chain=prefix.to.chain,
        authors={device_id: (n, hash_[:PREV_BYTES]) for device_id, (n, hash_) in prefix.authors.items()},
        kept=[(*row, None) for row in prefix.kept],
        head=head,
    )
    return encode(message)


async def no_rewinds(user_pk: UserPk, user_key: bytes, stream: str) -> list[SignedRewind]:
    """Of a log that no restore set back."""
    del user_pk, user_key, stream
    return []
