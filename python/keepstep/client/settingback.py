"""A stream's state as it was at an earlier position, from the events that the device keeps (protocol.md section 4).

After a restore the device drops what it derived beyond the last position that it and the server have in common.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from keepstep.client import crypto
from keepstep.model import DEVICES_STREAM, Kind
from keepstep.protocol.account import AccountEvent, AccountLog
from keepstep.protocol.chain import decode_head
from keepstep.protocol.event import decode_header
from keepstep.protocol.missing import RULES_AT_START, Rules
from keepstep.protocol.policy import decode_policy
from keepstep.protocol.streamstate import Author

if TYPE_CHECKING:
    from keepstep.client.locallog import LocalLog
    from keepstep.model import Position
    from keepstep.protocol.messages import SignedHead
    from keepstep.protocol.policy import PolicyPayload
    from keepstep.protocol.streamstate import StreamState

PAGE_EVENTS: Final = 1_000


def set_back(log: LocalLog, stream: str, state: StreamState, to: Position) -> StreamState:
    """The state at an earlier position. What was read of authors before stays; heads beyond it are forgotten.

    Args:
        log: still with the events beyond ``to``.
        stream: its name.
        state: as it is.
        to: the earlier position.
    """
    authors = {device_id: author for device_id, author in state.authors.items() if author.seq <= to.seq}
    policy = state.rules.policy
    after = to.seq
    passed: set[bytes] = set()
    while rows := log.exact_rows(stream, after=after, events_max=PAGE_EVENTS):
        for seq, device_id, _, data, _, _, _ in rows:
            header = decode_header(data)
            if device_id not in passed and header.n > 1:
                # It names the event before it, which is the author's last one that stays.
                known = state.authors.get(device_id)
                knew = (0, 0) if known is None else (known.knew_ms, known.knew_devices_ms)
                authors[device_id] = Author(header.n - 1, header.prev, 0, to.seq, *knew)
            passed.add(device_id)
            if header.kind == Kind.POLICY:
                policy = _policy_at(log, stream, to, is_whole=state.whole)
            after = seq
    return msgspec.structs.replace(
        state,
        seq=to.seq,
        chain=to.chain,
        received_at_ms=log.received_at_ms(stream, to.seq),
        authors=authors,
        missing={seq: each for seq, each in state.missing.items() if seq <= to.seq},
        heads=heads_up_to(state, to.seq),
        claimed=None,
        rules=Rules(policy, {key: rank for key, rank in state.rules.winners.items() if rank.seq <= to.seq}),
    )


def heads_up_to(state: StreamState, seq: int) -> list[SignedHead]:
    """The signed heads that are not beyond a place."""
    return [signed for signed in state.heads if decode_head(signed[0]).seq <= seq]


def _policy_at(log: LocalLog, stream: str, to: Position, *, is_whole: bool) -> PolicyPayload | None:
    """The policy in force at a position; ``None`` where that is not known."""
    payload = log.last_policy(stream, up_to=to.seq)
    if payload is not None:
        return decode_policy(payload)
    return RULES_AT_START.policy if is_whole else None


def account_at(log: LocalLog, user_key: bytes, to: Position) -> AccountLog:
    """The account log at an earlier position: ``$devices`` is kept whole.

    Raises:
        ProtocolError: what is kept does not verify.
    """
    account = AccountLog(crypto, user_key)
    while account.position.seq < to.seq:
        events_max = min(PAGE_EVENTS, to.seq - account.position.seq)
        for _, device_id, received_at_ms, header, sig, payload, _ in log.exact_rows(
            DEVICES_STREAM, after=account.position.seq, events_max=events_max
        ):
            account.apply(AccountEvent(device_id, header, sig, payload or b"", received_at_ms))
    return account
