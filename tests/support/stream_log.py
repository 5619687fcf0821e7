"""A stream as a server keeps it, without the server: every event that a test gives it is taken, whatever it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from keepstep.client import crypto
from keepstep.protocol.chain import chain_0, chain_next, event_hash
from keepstep.protocol.event import decode_header

if TYPE_CHECKING:
    from keepstep.protocol.messages import EventRow


class StreamLog:
    """Rows of one stream.

    Attributes:
        user_key: the user id.
        name: the stream's.
        rows: in order of seq.
        chains: the chain at every seq, from 0 on.
        authors: (last_n, last_hash) by device id.
    """

    def __init__(self, user_key: bytes, name: str) -> None:
        self.user_key = user_key
        self.name = name
        self.rows: list[EventRow] = []
        self.chains = [chain_0(crypto, user_key, name)]
        self.authors: dict[bytes, tuple[int, bytes]] = {}

    def take(
        self, device_id: bytes, header: bytes, sig: bytes, payload: bytes | None, *, received_at_ms: int
    ) -> EventRow:
        """Give an event the next place."""
        seq = len(self.rows) + 1
        hash_ = event_hash(crypto, header, sig)
        row = (seq, device_id, received_at_ms, header, sig, payload, None)
        self.rows.append(row)
        self.chains.append(chain_next(crypto, self.chains[-1], seq, received_at_ms, hash_))
        self.authors[device_id] = (decode_header(header).n, hash_)
        return row

    def truncate(self, seq: int) -> None:
        """Forget everything after ``seq``, as a restored database would."""
        del self.rows[seq:], self.chains[seq + 1 :]
        self.authors = {row[1]: (decode_header(row[3]).n, event_hash(crypto, row[3], row[4])) for row in self.rows}
