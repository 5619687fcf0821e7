"""What a device checks of every stream it reads, sans-I/O (protocol.md section 3): pages in, verified events out.

Three things can be wrong. What only a lying or broken server can cause (a gap, another chain, bytes that are not those
an author signed for) raises ``VerificationError`` and stops the stream. What an author alone can cause (a signature
that this device's library refuses, an event that its author was not allowed to write) keeps its place in the chain,
and its payload is withheld. A missing payload is judged once the device has caught up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from keepstep.errors import KeepstepError, ProtocolError, VerificationError
from keepstep.model import DEVICES_STREAM, KEYS_STREAM, PREV_BYTES, Position
from keepstep.protocol.account import AccountEvent
from keepstep.protocol.chain import chain_0, chain_next, event_hash
from keepstep.protocol.event import NO_PREV, TIME_MS_MAX, Header, check_placement, decode_header, verify_event
from keepstep.protocol.missing import (
    MISSING_MAX,
    Missing,
    Reading,
    capability_for,
)
from keepstep.protocol.pruning import KEPT_KINDS, state_after
from keepstep.protocol.rewind import explains, lifts_base
from keepstep.protocol.streamstate import AUTHORS_MAX, Author
from keepstep.protocol.verified import Problem, VerifiedEvent
from keepstep.protocol.witness import HeadWitness

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from keepstep.protocol.account import AccountLog
    from keepstep.protocol.chain import Head
    from keepstep.protocol.messages import EventRow, Pruned, SignedHead
    from keepstep.protocol.primitives import Primitives
    from keepstep.protocol.rewind import Rewind
    from keepstep.protocol.streamstate import StreamState

CHAINS_MAX: Final = 256
"""Chains kept in memory for comparing ``seen``; older ones are asked of the device's store."""


class BehindDevices(KeepstepError):
    """An event names a position in ``$devices`` that the device has not read: read there first, then feed again.

    Attributes:
        seq: the position to reach in ``$devices``.
    """

    def __init__(self, seq: int) -> None:
        super().__init__(f"an event knows $devices up to {seq}: that has to be read first")
        self.seq = seq


class _Page:
    """The state while one page is fed; it becomes the verifier's when the whole page has verified."""

    def __init__(self, state: StreamState, account: AccountLog, chains: dict[int, bytes]) -> None:
        self.seq = state.seq
        self.chain = state.chain
        self.received_at_ms = state.received_at_ms
        self.authors = dict(state.authors)
        self.missing = dict(state.missing)
        self.reading = Reading(state.rules, self.missing)
        self.account = account
        self.chains = dict(chains)
        self.times: dict[int, int] = {}


class StreamVerifier:
    """Follows one stream.

    Args:
        primitives: the cryptography.
        user_key: the user id, 32 bytes.
        server_key: the pinned server identity key, 32 bytes.
        stream: the stream's name.
        account: the account log; for ``$devices`` itself this object feeds it, for all others it only asks it.
        state: where to go on from.
        chain_at: looks the chain at a seq up in the device's store; ``None`` where it is not held.
        is_own_inbox: the stream is the inbox of the device that reads.
        rewinds: the restores that set a stream back, by its name.
        received_at_ms: when the event at a seq of a stream that the device holds was received; 0 where it holds none.
    """

    def __init__(
        self,
        primitives: Primitives,
        *,
        user_key: bytes,
        server_key: bytes,
        stream: str,
        account: AccountLog,
        state: StreamState,
        chain_at: Callable[[int], bytes | None] = lambda _: None,
        is_own_inbox: bool = False,
        rewinds: Callable[[str], Sequence[Rewind]] = lambda _stream: (),
        received_at_ms: Callable[[str, int], int] = lambda _stream, _seq: 0,
    ) -> None:
        self._rewinds = rewinds
        self._received_at_ms = received_at_ms
        self._primitives = primitives
        self._user_key = user_key
        self._stream = stream
        self._account = account
        self._state = state
        self._chain_at = chain_at
        self._is_own_inbox = is_own_inbox
        self._chain_0 = chain_0(primitives, user_key, stream)
        self._chains: dict[int, bytes] = {state.seq: state.chain}
        self._witness = HeadWitness(
            primitives, user_key=user_key, server_key=server_key, stream=stream, heads=state.heads
        )
        assert stream != DEVICES_STREAM or account.position == state.position

    @property
    def state(self) -> StreamState:
        """Everything to store, as simple values."""
        return msgspec.structs.replace(self._state, heads=self._witness.signed)

    @property
    def position(self) -> Position:
        """Up to where the stream is verified."""
        return self._state.position

    def _lie(self, reason: str, seq: int) -> VerificationError:
        return VerificationError(reason, stream=self._stream, seq=seq)

    # -- pages

    def feed(self, rows: Sequence[EventRow], chain: bytes, *, devices_complete: bool = False) -> list[VerifiedEvent]:
        """Verify the next page; all of it, or nothing changes.

        Args:
            rows: as ``messages.Events`` carries them.
            chain: the chain after the last of them, as the server states it.
            devices_complete: ``$devices`` was read to its head after this page had arrived.

        Returns:
            one event per row, in order; store them and ``state`` together.

        Raises:
            BehindDevices: ``$devices`` has to be read further first; not with ``devices_complete``.
            VerificationError: the server lies or is broken; the stream must not be read on.
        """
        own = self._stream == DEVICES_STREAM
        page = _Page(self._state, self._account.copy() if own else self._account, self._chains)
        headers = [self._header(row[3], row[0]) for row in rows]
        if not own:
            self._check_devices_known(rows, headers, devices_complete=devices_complete)
        events = [self._row(page, row, header) for row, header in zip(rows, headers, strict=True)]
        if page.chain != chain:
            raise self._lie("the page does not end in the chain that the server states", page.seq)
        claimed = self._state.claimed
        self._state = msgspec.structs.replace(
            self._state,
            seq=page.seq,
            chain=page.chain,
            received_at_ms=page.received_at_ms,
            authors=page.authors,
            missing=page.missing,
            rules=page.reading.rules,
            claimed=None if claimed is not None and claimed[0] <= page.seq else claimed,
        )
        self._chains = page.chains
        if own:
            self._account.adopt(page.account)
        return events

    def _check_devices_known(
        self, rows: Sequence[EventRow], headers: Sequence[Header], *, devices_complete: bool
    ) -> None:
        """Before anything else: ``$devices`` is read as far as the authors of this page had read it."""
        known = self._account.position.seq
        for row, header in zip(rows, headers, strict=True):
            devices_seen = header.devices_seen[0]
            if devices_seen <= known or self._account.is_after_revocation(row[1], self._stream, header.n):
                continue
            if devices_complete and self._is_dead(DEVICES_STREAM, devices_seen, self._state.authors.get(row[1])):
                continue
            if devices_complete:
                # protocol.md section 1: "so a hidden revocation shows"
                raise self._lie("an author knows more of $devices than the server shows", row[0])
            raise BehindDevices(devices_seen)

    def _header(self, data: bytes, seq: int) -> Header:
        try:
            return decode_header(data)
        except ProtocolError as exc:
            raise self._lie("a header does not have the documented form", seq) from exc

    def _row(self, page: _Page, row: EventRow, header: Header) -> VerifiedEvent:
        seq, device_id, received_at_ms, header_bytes, sig, payload, _ = row
        if seq != page.seq + 1:
            raise self._lie(f"the event after {page.seq} is missing", seq)
        if header.stream != self._stream:
            raise self._lie("an event of another stream", seq)
        if received_at_ms < page.received_at_ms:
            raise self._lie("the time of reception steps back", seq)
        if received_at_ms > TIME_MS_MAX:  # with a ttl it would be no integer of this protocol, and not be stored
            raise self._lie("there is no such time of reception", seq)
        self._check_payload(header, payload, seq)
        hash_ = event_hash(self._primitives, header_bytes, sig)
        own_seq = last.seq if (last := page.authors.get(device_id)) is not None else None
        went_back = self._follow_author(page, seq, device_id, header, hash_)
        ahead = self._check_seen(page, seq, device_id, header, last)
        if self._stream == DEVICES_STREAM:
            problem = self._change_account(page, row)
        else:
            problem = self._check_author(row, header)
            if problem is None and (went_back or ahead):
                problem = Problem.INVALID
            if problem is None or (not ahead and self._was_acted_upon(row, header)):
                problem = self._check_rules(page, row, header, own_seq) or problem
        page.seq, page.received_at_ms, page.times[seq] = seq, received_at_ms, received_at_ms
        page.chain = chain_next(self._primitives, page.chain, seq, received_at_ms, hash_)
        page.chains[seq] = page.chain
        if len(page.chains) > CHAINS_MAX:
            del page.chains[next(iter(page.chains))]
        self._witness.check_chain(seq, page.chain)
        self._check_claimed(seq, page.chain)
        if payload is None and problem is None:
            problem = self._gone(page, device_id, header, hash_)
        concurrent = page.reading.concurrent_with(header, seq=seq, own_seq=own_seq) if problem is None else None
        return VerifiedEvent(
            seq=seq,
            chain=page.chain,
            device_id=device_id,
            received_at_ms=received_at_ms,
            header=header,
            header_bytes=header_bytes,
            sig=sig,
            hash=hash_,
            payload=payload if problem is None else None,
            problem=problem,
            concurrent_with=concurrent,
        )

    def _check_rules(self, page: _Page, row: EventRow, header: Header, own_seq: int | None) -> Problem | None:
        """The event keeps the stream's own rules, and what it says about them holds from here on."""
        if self._stream == KEYS_STREAM:
            return None
        seq, device_id, _, _, _, payload, _ = row
        before = Position(page.seq, page.chain)
        is_anew = lifts_base(self._rewinds(self._stream), header, seq)
        try:
            page.reading.check(header, payload, before=before, own_seq=own_seq, is_anew=is_anew)
        except ProtocolError as error:
            return _PROBLEMS.get(error.code, Problem.INVALID)
        page.reading.apply(header, payload, seq=seq, device_id=device_id)
        return None

    def _check_payload(self, header: Header, payload: bytes | None, seq: int) -> None:
        if payload is not None and (
            len(payload) != header.payload_len or self._primitives.blake3(payload) != header.payload_hash
        ):
            raise self._lie("the payload is not the one that the author signed for", seq)

    def _follow_author(self, page: _Page, seq: int, device_id: bytes, header: Header, hash_: bytes) -> bool:
        """Author numbers ascend by one and each event names the one before it; whether ``devices_seen`` went back."""
        last = page.authors.get(device_id)
        if last is not None:
            if (header.n, header.prev) != (last.n + 1, last.prev):
                raise self._lie("an event of the author is missing, repeated or exchanged", seq)
        elif len(page.authors) == AUTHORS_MAX:
            raise self._lie("the stream has too many authors", seq)
        elif self._state.whole and header.n != 1:
            raise self._lie("an author's first event is missing", seq)
        elif header.n == 1 and header.prev != NO_PREV:
            raise self._lie("an author's first event names one before it", seq)
        highest = max(header.devices_seen[0], last.devices_seen_seq if last is not None else 0)
        knew = (0, 0) if last is None else (last.knew_ms, last.knew_devices_ms)
        page.authors[device_id] = Author(header.n, hash_[:PREV_BYTES], highest, seq, *knew)
        return header.devices_seen[0] < highest

    def _check_seen(self, page: _Page, seq: int, device_id: bytes, header: Header, last: Author | None) -> bool:
        """What the author had read is what this device has read, where held; whether it names what comes later.

        What a device says after it was revoked is no sign of a lying server: revoking it heals the stream.
        """
        if self._stream != DEVICES_STREAM and page.account.is_after_revocation(device_id, self._stream, header.n):
            return False
        seen_seq, seen_chain = header.seen
        devices_seq, devices_chain = header.devices_seen
        held = self._held(page.chains, seen_seq) if seen_seq < seq else None
        is_dead = self._is_dead(self._stream, seen_seq, last)
        if held is not None and held != seen_chain and not is_dead:
            raise self._lie("an author was shown another history of this stream", seq)
        devices_held = page.account.chain_at(devices_seq)
        differs = devices_held is not None and devices_held != devices_chain
        if differs and not self._is_dead(DEVICES_STREAM, devices_seq, last):
            raise self._lie("an author was shown another history of $devices", seq)
        if self._rewinds(self._stream) or self._rewinds(DEVICES_STREAM):
            has_read = {self._stream: seen_seq if held == seen_chain else 0}
            has_read[DEVICES_STREAM] = devices_seq if devices_held == devices_chain else 0
            page.authors[device_id] = self._knowing(page, page.authors[device_id], has_read)
        return seen_seq >= seq and not is_dead

    def _is_dead(self, stream: str, seq: int, author: Author | None) -> bool:
        """Whether a restore explains that an author names a position which is not in the log."""
        rewinds = self._rewinds(stream)
        if not rewinds:
            return False
        knew_ms = 0 if author is None else author.knew_devices_ms if stream == DEVICES_STREAM else author.knew_ms
        return explains(rewinds, seq, knew_ms=knew_ms)

    def _knowing(self, page: _Page, author: Author, has_read: Mapping[str, int]) -> Author:
        """The author, with when the latest events were received that it has read, by their streams and seqs."""
        at_ms = {
            stream: (page.times.get(seq, 0) if stream == self._stream else 0) or self._received_at_ms(stream, seq)
            for stream, seq in has_read.items()
        }
        return msgspec.structs.replace(
            author,
            knew_ms=max(author.knew_ms, at_ms[self._stream]),
            knew_devices_ms=max(author.knew_devices_ms, at_ms[DEVICES_STREAM]),
        )

    def _check_author(self, row: EventRow, header: Header) -> Problem | None:
        """The author was allowed to write it and has signed it."""
        _, device_id, received_at_ms, _, _, payload, _ = row
        try:
            check_placement(header)
            author = self._account.author(
                device_id,
                capability=capability_for(header, payload, device_id),
                devices_seen=header.devices_seen,
                received_at_ms=received_at_ms,
                stream=header.stream,
                n=header.n,
            )
            self._verify(row, author.device_key)
        except ProtocolError as error:
            return _PROBLEMS.get(error.code, Problem.INVALID)
        return None

    def _was_acted_upon(self, row: EventRow, header: Header) -> bool:
        """Whether the server took an event in good faith that readers withhold: it does not judge ``devices_seen``.

        Or its author's revocation undid it later. What it says was done then: keys were won, payloads erased. Nobody
        but the author can have signed it.
        """
        _, device_id, received_at_ms, _, _, payload, _ = row
        device = self._account.devices.get(device_id)
        if device is None or device.is_expired(received_at_ms):
            return False
        if device.ended is not None and received_at_ms > device.ended.received_at_ms:
            return False
        if not device.may(capability_for(header, payload, device_id), received_at_ms):
            return False
        try:
            check_placement(header)
            self._verify(row, device.entry.device_key)
        except ProtocolError:
            return False
        return True

    def _verify(self, row: EventRow, device_key: bytes) -> None:
        """Raises ``ProtocolError`` where the author did not sign the event."""
        _, device_id, _, header, sig, _, _ = row
        verify_event(
            self._primitives,
            device_key=device_key,
            user_key=self._user_key,
            device_id=device_id,
            header=header,
            sig=sig,
        )

    def _change_account(self, page: _Page, row: EventRow) -> Problem | None:
        """An event of ``$devices``: the account log knows every rule, the server's is the same."""
        seq, device_id, received_at_ms, header_bytes, sig, payload, _ = row
        if payload is None:
            raise self._lie("a payload of $devices is missing, which nothing ever removes", seq)
        event = AccountEvent(device_id, header_bytes, sig, payload, received_at_ms)
        try:
            page.account.apply(event)
        except ProtocolError as error:
            page.account.skip(event)
            return _PROBLEMS.get(error.code, Problem.INVALID)
        return None

    def _gone(self, page: _Page, device_id: bytes, header: Header, hash_: bytes) -> Problem:
        """A payload is gone: by its ttl, as the time of a signed head shows (never this device's own clock), or not."""
        expires_at_ms = None if header.ttl_s is None else page.received_at_ms + header.ttl_s * 1000
        if expires_at_ms is not None and expires_at_ms <= self._witness.time_ms:
            return Problem.EXPIRED
        if self._is_own_inbox:
            # It meets what it has acknowledged again only where its store was set back, and then it cannot tell.
            return Problem.ACKNOWLEDGED
        rank = page.reading.rank(header, seq=page.seq, device_id=device_id)
        if rank is not None and header.key is not None and page.reading.lost(header.key, rank):
            return Problem.SUPERSEDED
        if len(page.missing) == MISSING_MAX:
            raise self._lie("too many payloads are missing without a visible reason", page.seq)
        missing = Missing(
            page.chain,
            hash_,
            device_id,
            page.received_at_ms,
            expires_at_ms,
            header.n,
            header.key if rank is not None else None,
            rank,
        )
        page.reading.miss(page.seq, missing)
        return Problem.MISSING

    def pruned(self, message: Pruned, *, devices_complete: bool = False) -> list[int]:
        """Go on after the beginning of the stream, or more of it, which is gone on the server.

        Args:
            message: what the server shows in its place.
            devices_complete: as for ``feed``.

        Returns:
            the seqs whose payloads were missing and will not be found any more.

        Raises:
            BehindDevices: as for ``feed``.
            VerificationError: nothing of this stream may go, or what is shown contradicts itself or what this device
                has verified.
        """
        if self._stream in (DEVICES_STREAM, KEYS_STREAM):
            raise self._lie("events are gone from a stream that is kept for ever", message.to_seq)
        headers = [self._header(row[3], row[0]) for row in message.kept]
        self._check_devices_known(message.kept, headers, devices_complete=devices_complete)
        head = self._witness.take_past(message.head)
        if (head.seq, head.chain) != (message.to_seq, message.chain):
            raise self._lie("the head is not that of the gap", message.to_seq)
        self._check_claimed(head.seq, head.chain)
        both = zip(message.kept, headers, strict=True)
        kept = [(row, header) for row, header in both if self._is_kept_rightly(row, header)]
        gone = list(self._state.missing)
        self._state = state_after(self._state, message, kept)
        self._chains = {head.seq: head.chain}
        return gone

    def _check_claimed(self, seq: int, chain: bytes) -> None:
        claimed = self._state.claimed
        if claimed is not None and seq == claimed[0] and chain != claimed[1]:
            raise self._lie("another device was shown another history, as its checkpoint says", seq)

    def _is_kept_rightly(self, row: EventRow, header: Header) -> bool:
        """Whether an event that outlives those around it counts: as for any other, its author signed it and may."""
        if header.stream != self._stream or header.kind not in KEPT_KINDS:
            raise self._lie("what is kept of the beginning does not belong there", row[0])
        self._check_payload(header, row[5], row[0])
        return self._check_author(row, header) is None or self._was_acted_upon(row, header)

    # -- heads

    def resumed(self, signed: SignedHead | None) -> None:
        """Take the head that a subscription is answered with (``messages.Resumed``, ``contiguous``).

        Raises:
            VerificationError: the log went back, forked, or contradicts what this device holds.
        """
        if signed is None:
            if self._state.seq or self._witness.signed:
                raise self._lie("the server no longer has this stream", self._state.seq)
            return
        head = self._take(signed)
        self._witness.check_end(head)
        if head.seq < self._state.seq:
            raise VerificationError(
                "the log went back behind what this device has verified",
                stream=self._stream,
                seq=head.seq,
                evidence=(signed,),
            )

    def note(self, signed: SignedHead) -> None:
        """Take any other head of this stream, from the server or through another device.

        A head above this device's position is remembered, and compared when the device gets there.

        Raises:
            VerificationError: it does not verify, proves a fork, or contradicts what this device holds.
        """
        self._take(signed)

    def caught_up(self, signed: SignedHead) -> list[int]:
        """Take the head that says: this device has everything (``messages.CaughtUp``).

        Returns:
            the seqs whose payloads are gone without a visible reason: read them once more and give them to ``reread``.

        Raises:
            VerificationError: as ``note``; or the head is not this device's position, or behind one signed before.
        """
        head = self._take(signed)
        if head.seq != self._state.seq:
            raise VerificationError(
                "the server says caught up at another position", stream=self._stream, seq=head.seq, evidence=(signed,)
            )
        self._witness.check_end(head)
        missing = {
            seq: each
            for seq, each in self._state.missing.items()
            if each.expires_at_ms is None or each.expires_at_ms > self._witness.time_ms
        }
        self._state = msgspec.structs.replace(self._state, missing=missing)
        return list(missing)

    def compare(self, seq: int, chain: bytes) -> None:
        """Take a position that another device of the user has verified (``account_payloads.CheckpointPayload``).

        A position above this device's is remembered, and compared when the device gets there.

        Raises:
            VerificationError: this device was shown another history.
        """
        claimed = self._state.claimed
        if seq <= self._state.seq:
            held = self._held(self._chains, seq)
        else:
            held = claimed[1] if claimed is not None and claimed[0] == seq else None
            if claimed is None or seq > claimed[0]:
                self._state = msgspec.structs.replace(self._state, claimed=(seq, chain))
        if held is not None and held != chain:
            raise self._lie("another device was shown another history, as its checkpoint says", seq)

    def _take(self, signed: SignedHead) -> Head:
        head = self._witness.take(signed)
        held = self._held(self._chains, head.seq) if head.seq <= self._state.seq else None
        if held is not None and held != head.chain:
            raise VerificationError(
                "a signed head is not of the events that were shown",
                stream=self._stream,
                seq=head.seq,
                evidence=(signed,),
            )
        return head

    def _held(self, chains: dict[int, bytes], seq: int) -> bytes | None:
        """The chain at ``seq``, where this device holds it."""
        return self._chain_0 if seq == 0 else chains.get(seq) or self._chain_at(seq)

    # -- payloads that were missing

    def reread(self, rows: Sequence[EventRow]) -> list[VerifiedEvent]:
        """Judge the payloads that ``caught_up`` asked for, from a second reading; other rows are passed over.

        Returns:
            one event per row that was asked for: with its payload, or with the problem ``WITHHELD``.

        Raises:
            VerificationError: a row is not the one that was verified in its place.
        """
        missing = dict(self._state.missing)
        events: list[VerifiedEvent] = []
        for seq, device_id, received_at_ms, header_bytes, sig, payload, _ in rows:
            known = missing.pop(seq, None)
            if known is None:
                continue
            header = self._header(header_bytes, seq)
            identity = (event_hash(self._primitives, header_bytes, sig), device_id, received_at_ms)
            if identity != (known.hash, known.device_id, known.received_at_ms):
                raise self._lie("another event than before in this place", seq)
            self._check_payload(header, payload, seq)
            events.append(
                VerifiedEvent(
                    seq=seq,
                    chain=known.chain,
                    device_id=device_id,
                    received_at_ms=received_at_ms,
                    header=header,
                    header_bytes=header_bytes,
                    sig=sig,
                    hash=known.hash,
                    payload=payload,
                    problem=None if payload is not None else Problem.WITHHELD,
                )
            )
        self._state = msgspec.structs.replace(self._state, missing=missing)
        return events


_PROBLEMS: Final = {
    "bad_signature": Problem.BAD_SIGNATURE,
    "forbidden": Problem.NOT_ALLOWED,
    "revoked": Problem.AFTER_REVOCATION,
    "unsupported": Problem.UNSUPPORTED,
}
"""What a refusal means to a reader; every other code is a rule broken: ``INVALID``."""
