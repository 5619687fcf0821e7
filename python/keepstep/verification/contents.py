"""What the events of a stream say about the stream: its policy, what was erased, snapshots, who writes which key."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from keepstep.errors import ProtocolError
from keepstep.model import Kind, Policy, has_expired, is_inbox
from keepstep.protocol.policy import PolicyPayload, check_change, decode_policy
from keepstep.protocol.snapshot import ERASABLE, decode_confirm, decode_erase, decode_snapshot

if TYPE_CHECKING:
    from collections.abc import Sequence

    from keepstep.protocol.event import Header
    from keepstep.verification.faults import Faults
    from keepstep.verification.walk import SignedRow, Walked

CLOCKS_APART_MS: Final = 10 * 60 * 1000
"""How much earlier than by our clock a server may have taken a payload's time to be over, milliseconds."""
UNEXPLAINED_MAX: Final = 1_000_000
"""Payloads that are gone for no reason yet, of one stream: their erasures come later. Beyond it they are not judged."""


class KeyedEvent(NamedTuple):
    """An event that competes for its key: the highest (hlc, device_id, seq) wins."""

    key: bytes
    hlc: int
    device_id: bytes
    seq: int
    n: int


class SnapshotSaid(NamedTuple):
    """What a snapshot event says; ``covers`` is ``None`` where its payload is gone."""

    device_id: bytes
    received_at_ms: int
    covers: tuple[int, bytes] | None


class Contents:
    """Follows one stream.

    Args:
        stream: its name.
        policy: in force where the walk begins; ``None`` where no event has set one.
        now_ms: unix milliseconds: what has run out by then may be gone.
        faults: where faults go.
    """

    def __init__(self, stream: str, *, policy: PolicyPayload | None, now_ms: int, faults: Faults) -> None:
        self._is_inbox = is_inbox(stream)
        self._now_ms = now_ms
        self._faults = faults
        self._unexplained: dict[tuple[bytes, int], int] = {}
        self.policy = policy
        self.snapshots: dict[int, SnapshotSaid] = {}
        self.confirmations: dict[int, tuple[int, bytes]] = {}

    def take(self, batch: Sequence[Walked]) -> list[KeyedEvent]:
        """Follow the next events; those of them that compete for a key."""
        keyed: list[KeyedEvent] = []
        for walked in batch:
            row, header = walked.row, walked.header
            if header is None or row.device_id is None:
                continue
            if self._competes(header) and header.key is not None:
                keyed.append(KeyedEvent(header.key, header.hlc, row.device_id, row.seq, header.n))
            if row.payload is None:
                self._check_loss(row, header)
            elif header.kind != Kind.APPLICATION:
                self._read(row, header, row.payload, row.device_id)
        return keyed

    def loses_key(self, event: KeyedEvent) -> None:
        """An event is not the winner of its key: that accounts for a payload that is gone."""
        self._unexplained.pop((event.device_id, event.n), None)

    def finish(self) -> None:
        """What no erasure has accounted for is lost."""
        for seq in sorted(self._unexplained.values()):
            self._faults.add("payload_lost", seq, "its payload is gone, and nothing accounts for it")

    def _competes(self, header: Header) -> bool:
        is_latest = self.policy is not None and self.policy.policy == Policy.LATEST
        return is_latest and header.kind == Kind.APPLICATION and header.key is not None

    def _check_loss(self, row: SignedRow, header: Header) -> None:
        if header.kind not in ERASABLE:
            self._faults.add("payload_lost", row.seq, f"an event of kind {header.kind} keeps its payload for ever")
            return
        runs_out_at_ms = None if header.ttl_s is None else row.received_at_ms + header.ttl_s * 1000
        # An inbox is emptied when its device has read it, a snapshot goes when there is a newer one.
        if (
            header.kind == Kind.SNAPSHOT
            or self._is_inbox
            or has_expired(runs_out_at_ms, self._now_ms + CLOCKS_APART_MS)
        ):
            if header.kind == Kind.SNAPSHOT:
                self.snapshots[row.seq] = SnapshotSaid(row.device_id or b"", row.received_at_ms, None)
            return
        if len(self._unexplained) < UNEXPLAINED_MAX:
            self._unexplained[row.device_id or b"", header.n] = row.seq

    def _read(self, row: SignedRow, header: Header, payload: bytes, device_id: bytes) -> None:
        """An event about others. Where its payload is not of its form, that was told of it, or is told here."""
        try:
            match header.kind:
                case Kind.POLICY:
                    policy = decode_policy(payload)
                    if self.policy is not None:
                        check_change(self.policy, policy)
                    self.policy = policy
                case Kind.SNAPSHOT:
                    snapshot = decode_snapshot(payload)
                    covers = (snapshot.covers_seq, snapshot.covers_chain)
                    self.snapshots[row.seq] = SnapshotSaid(device_id, row.received_at_ms, covers)
                case Kind.CONFIRM:
                    seq = decode_confirm(payload).snapshot_seq
                    self.confirmations.setdefault(seq, (row.seq, device_id))
                case Kind.ERASE:
                    for author, numbers in decode_erase(payload).events.items():
                        for n in numbers:
                            self._unexplained.pop((author, n), None)
        except ProtocolError as error:
            self._faults.add("payload_differs", row.seq, f"its payload is not of its kind's form: {error.detail}")
