"""What a stream's own events say about how to read it: its policy, who won which key, what was erased.

A reader keeps this beside the positions of the authors. From it follows whether an event kept the rules of the stream,
and whether a payload that is gone may be gone (protocol.md section 3, Only the payload can go away).
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Annotated, Final

from msgspec import Meta, Struct

from keepstep.errors import ProtocolError
from keepstep.model import Capability, Kind, Policy, RetentionClass
from keepstep.protocol.messages import U64, Bytes16, Bytes32
from keepstep.protocol.policy import PolicyPayload, check_change, concurrent_with, decode_policy
from keepstep.protocol.snapshot import decode_confirm, decode_erase, decode_snapshot

if TYPE_CHECKING:
    from collections.abc import Mapping

    from keepstep.model import Position
    from keepstep.protocol.event import Header

WINNERS_MAX: Final = 16_384
"""Keys of one stream whose winners a reader remembers; the one that changed longest ago goes first."""
MISSING_MAX: Final = 16_384
"""Payloads that may be missing without a visible reason until the device has caught up."""


class Rank(Struct, frozen=True, array_like=True, order=True):
    """What decides between two events of one key: the higher one wins."""

    hlc: U64
    device_id: Bytes16
    seq: U64


class Missing(Struct, frozen=True, array_like=True):
    """A payload that is gone: what its event was, and until when it should have been there (nil: for ever).

    ``key`` and ``rank`` are nil where the event does not compete for a key.
    """

    chain: Bytes32
    hash: Bytes32
    device_id: Bytes16
    received_at_ms: U64
    expires_at_ms: U64 | None
    n: U64
    key: Bytes16 | None
    rank: Rank | None


class Rules(Struct, frozen=True, array_like=True):
    """What is known of a stream's own rules.

    Attributes:
        policy: in force, nil where the stream was not read from its start and has not said it since.
        winners: the best event of each key, in streams of the policy ``latest``.
    """

    policy: PolicyPayload | None
    winners: Annotated[dict[Bytes16, Rank], Meta(max_length=WINNERS_MAX)]


RULES_AT_START: Final = Rules(PolicyPayload(Policy.APPEND, RetentionClass.STANDARD, None, None), {})
"""Of a stream that has not said anything yet."""
RULES_UNKNOWN: Final = Rules(None, {})
"""Of a stream whose past is not read."""


def capability_for(header: Header, payload: bytes | None, device_id: bytes) -> Capability:
    """What the author of an event outside ``$devices`` has to be allowed."""
    if header.kind in (Kind.POLICY, Kind.KEYS):
        return Capability.MANAGE
    if header.kind == Kind.ERASE and payload is not None:
        try:
            erases_others = decode_erase(payload).events.keys() != {device_id}
        except ProtocolError:
            return Capability.PUBLISH  # whoever it was, the event has no effect
        return Capability.MANAGE if erases_others else Capability.PUBLISH
    return Capability.PUBLISH


class Reading:
    """The rules while one page is read.

    Args:
        rules: before the page.
        missing: payloads without a visible reason, by seq; entries go as reasons show.
    """

    def __init__(self, rules: Rules, missing: dict[int, Missing]) -> None:
        self._policy = rules.policy
        self._winners = dict(rules.winners)
        self._missing = missing
        self._by_key: defaultdict[bytes, set[int]] = defaultdict(set)
        for seq, each in missing.items():
            if each.key is not None:
                self._by_key[each.key].add(seq)

    @property
    def rules(self) -> Rules:
        """After what was read so far."""
        return Rules(self._policy, self._winners)

    def check(
        self, header: Header, payload: bytes | None, *, before: Position, own_seq: int | None, is_anew: bool = False
    ) -> None:
        """Check that an event keeps the stream's rules, as far as they are known.

        Args:
            header: the event's.
            payload: ``None`` where it is gone.
            before: the position that the event follows.
            own_seq: seq of the author's event before it, ``None`` where there is none or it was not read.
            is_anew: a restore took its place away: what it builds on is not asked.

        Raises:
            ProtocolError: as the server should have answered it.
        """
        if payload is not None:
            self._check_payload(header.kind, payload, is_first=before.seq == 0)
        if self._policy is None or header.kind != Kind.APPLICATION:
            return
        if self._policy.policy == Policy.EXPECT and not is_anew and not _builds_on(header, before, own_seq):
            raise ProtocolError("conflict", "the event does not build on the one before it")
        if self._policy.policy == Policy.LATEST and header.key is None:
            raise ProtocolError("unprocessable", "the stream's policy asks for a key")

    def _check_payload(self, kind: int, payload: bytes, *, is_first: bool) -> None:
        if kind == Kind.POLICY:
            policy = decode_policy(payload)
            if self._policy is not None and not is_first:
                check_change(self._policy, policy)
        elif kind == Kind.SNAPSHOT:
            decode_snapshot(payload)
        elif kind == Kind.CONFIRM:
            decode_confirm(payload)
        elif kind == Kind.ERASE:
            decode_erase(payload)

    def apply(self, header: Header, payload: bytes | None, *, seq: int, device_id: bytes) -> None:
        """Take what a checked event says; its author may have ended since, for the server has acted upon it."""
        if header.kind == Kind.POLICY:
            self._policy = decode_policy(payload) if payload is not None else None
        elif header.kind == Kind.ERASE and payload is not None:
            self._erase(decode_erase(payload).events)
        elif (rank := self.rank(header, seq=seq, device_id=device_id)) is not None and header.key is not None:
            self._compete(header.key, rank)

    def rank(self, header: Header, *, seq: int, device_id: bytes) -> Rank | None:
        """Of an event that competes for its key, else ``None``."""
        if self._policy is None or self._policy.policy != Policy.LATEST:
            return None
        if header.kind != Kind.APPLICATION or header.key is None:
            return None
        return Rank(header.hlc, device_id, seq)

    def lost(self, key: bytes, rank: Rank) -> bool:
        """Whether another event of the key is known that wins against it."""
        winner = self._winners.get(key)
        return winner is not None and winner > rank

    def miss(self, seq: int, missing: Missing) -> None:
        """Remember a payload that is gone without a visible reason."""
        self._missing[seq] = missing
        if missing.key is not None:
            self._by_key[missing.key].add(seq)

    def concurrent_with(self, header: Header, *, seq: int, own_seq: int | None) -> tuple[int, int] | None:
        """The seqs (first, last) that an application event of a ``fork`` stream does not build on."""
        if self._policy is None or header.kind != Kind.APPLICATION:
            return None
        own_seq = own_seq if header.base == header.n - 1 else None
        return concurrent_with(Policy(self._policy.policy), seq=seq, base=header.base, own_seq=own_seq)

    def _compete(self, key: bytes, rank: Rank) -> None:
        winner = self._winners.pop(key, None)
        best = rank if winner is None else max(rank, winner)
        if len(self._winners) == WINNERS_MAX:
            del self._winners[next(iter(self._winners))]
        self._winners[key] = best
        for seq in [seq for seq in self._by_key.get(key, ()) if (self._missing[seq].rank or best) < best]:
            self._forget(seq)

    def _erase(self, events: Mapping[bytes, list[int]]) -> None:
        erased = {(device_id, n) for device_id, numbers in events.items() for n in numbers}
        for seq in [seq for seq, each in self._missing.items() if (each.device_id, each.n) in erased]:
            self._forget(seq)

    def _forget(self, seq: int) -> None:
        key = self._missing.pop(seq).key
        if key is not None:
            self._by_key[key].discard(seq)


def _builds_on(header: Header, before: Position, own_seq: int | None) -> bool:
    if isinstance(header.base, tuple):
        return header.base == (before.seq, before.chain)
    return header.base == header.n - 1 and (own_seq is None or own_seq == before.seq)
