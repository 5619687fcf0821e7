"""What a device does with what the server sends of its streams: verify, store, then acknowledge.

``apply`` takes everything that has arrived and commits it in one transaction. ``$devices`` comes first, for the authors
of everything else are judged by it. A stream in which a lie is found stops; the others go on.

Calls block on the disk and on cryptography, and belong to the store's one worker thread at a time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal

import msgspec

from keepstep.client import crypto
from keepstep.client.accountchanges import AccountChanges
from keepstep.client.keys import Wraps, recovery_box, unwrap
from keepstep.client.losers import excused
from keepstep.client.payload import PayloadError
from keepstep.client.rewinds import Rewinds
from keepstep.client.safekeeping import Safekeeping
from keepstep.client.setback import SetBack
from keepstep.client.store import Alarm
from keepstep.errors import KeepstepError, ProtocolError, VerificationError
from keepstep.model import DEVICES_STREAM, KEYS_STREAM, RESERVED_STREAMS, Kind, Position, inbox_of
from keepstep.protocol.account import AccountEvent, AccountLog
from keepstep.protocol.account_payloads import CheckpointPayload, decode_account
from keepstep.protocol.account_state import decode_account_state
from keepstep.protocol.chain import decode_head, verify_head
from keepstep.protocol.keys import decode_keys
from keepstep.protocol.messages import CaughtUp, Events, Head, Pruned, ReadResult, Resumed, Rewound
from keepstep.protocol.reader import BehindDevices, StreamVerifier
from keepstep.protocol.snapshot import decode_erase
from keepstep.protocol.streamstate import state_at, state_at_start

if TYPE_CHECKING:
    from keepstep.client.environment import Environment
    from keepstep.client.keys import Keyring
    from keepstep.client.locallog import LocalLog
    from keepstep.client.store import Store
    from keepstep.protocol.event import Header
    from keepstep.protocol.messages import EventRow
    from keepstep.protocol.streamstate import StreamState
    from keepstep.protocol.verified import VerifiedEvent

Arrived = Events | CaughtUp | Head | Pruned | Resumed | Rewound | ReadResult
"""What the server says of one stream."""
Start = Literal["start", "end"]
"""Where a subscription may begin without a position."""
HLC_AHEAD_MS_MAX: Final = 10 * 60 * 1000
"""An hlc further ahead of this device's clock than this is not followed (protocol.md section 3)."""
HLC_COUNTER_BITS: Final = 16


@dataclass(slots=True, eq=False)
class Followed:
    """A stream this device reads.

    Attributes:
        name: the stream.
        start: where reading begins where nothing was read yet.
        verifier: ``None`` until the server has answered where the end is.
        promised_seq: what the server had promised when it was last asked for the stream.
        failure: why it stopped.
    """

    name: str
    start: Start
    verifier: StreamVerifier | None
    promised_seq: int = 0
    failure: KeepstepError | None = None


@dataclass(slots=True)
class Outcome:
    """What one ``apply`` did.

    Attributes:
        acks: positions that are on the disk now.
        caught_up: streams of which everything is there.
        authors: this device's own last event in streams whose resumption was answered.
        missing: (stream, seq) of payloads to read once more.
        behind: a page waits for ``$devices`` to reach this seq.
        waiting: what was not taken because of that.
        failed: streams that stopped.
        keys_changed: a content key came.
        rewound: streams that restores set back, and how far they may have.
        ended_at_ms: this device ended, as ``$devices`` shows to its head; unix milliseconds, else ``None``.
    """

    acks: dict[str, Position] = field(default_factory=dict)
    caught_up: list[str] = field(default_factory=list)
    authors: dict[str, tuple[int, bytes]] = field(default_factory=dict)
    missing: list[tuple[str, int]] = field(default_factory=list)
    behind: int | None = None
    waiting: list[Arrived] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    keys_changed: bool = False
    rewound: dict[str, int] = field(default_factory=dict)
    ended_at_ms: int | None = None


class Follower(SetBack):
    """The verified streams of one device.

    Args:
        store: the device's file.
        log: its events.
        keyring: takes the content keys that ``$keys`` brings.
        environment: clock.
        settle: writes down what the server acknowledged, as part of each transaction here: acknowledged and shown is
            compared whichever comes first.
    """

    def __init__(
        self,
        store: Store,
        log: LocalLog,
        keyring: Keyring,
        environment: Environment,
        settle: Callable[[], None],
    ) -> None:
        self._store = store
        self._log = log
        self._keyring = keyring
        self._environment = environment
        self._settle = settle
        account = store.account()
        state = None if account is None else decode_account_state(account)
        self.account = AccountLog(crypto, store.identity.user_key, state)
        self._changes = AccountChanges(store, log)
        self.rewinds = Rewinds(store)
        self.kept = Safekeeping(store)
        self._read_wraps()
        self._states = log.streams()
        self.followed: dict[str, Followed] = {}
        self.follow(DEVICES_STREAM, "start")
        self.follow(KEYS_STREAM, "start")

    def _read_wraps(self) -> None:
        self.wraps = Wraps()
        for header, payload in self._log.key_events():
            with contextlib.suppress(PayloadError, ProtocolError):  # an alarm told of it when it came
                self._take_wraps(header, payload)

    def position(self, stream: str) -> Position:
        """How far a stream is verified and stored."""
        return self._state(stream).position

    def follow(self, stream: str, start: Start | Position) -> Followed:
        """Read a stream from now on; ``start`` counts where nothing of it was read yet."""
        followed = self.followed.get(stream)
        if followed is None:
            state = self._state(stream)
            if isinstance(start, Position) and state.seq == 0:
                # The heads that its enroller handed over stay: what the server shows from there on has to agree.
                state = msgspec.structs.replace(state_at(start), heads=state.heads, claimed=state.claimed)
            is_read = stream in self._states and not _is_only_known_of(state)
            verifier = self._verifier(stream, state) if is_read or start != "end" else None
            begins: Start = "end" if start == "end" else "start"
            followed = self.followed[stream] = Followed(stream, begins, verifier)
        return followed

    def ask_from(self, stream: str) -> tuple[int, bytes] | Start:
        """What to subscribe to a followed stream with, now."""
        followed = self.followed[stream]
        followed.promised_seq = max(promise.seq for promise in self._promises(stream))
        if followed.verifier is None:
            return followed.start
        position = followed.verifier.position
        return (position.seq, position.chain)

    def repin(self, server_key: bytes) -> None:
        """Know the server by another identity key from now on: what it signs next is verified under that."""
        with self._store.transaction():
            self._store.repin(server_key)
        for stream, followed in self.followed.items():
            if followed.verifier is not None:
                followed.verifier = self._verifier(stream, followed.verifier.state)

    def _state(self, stream: str) -> StreamState:
        state = self._states.get(stream)
        return state or state_at_start(crypto, self._store.identity.user_key, stream)

    def _verifier(self, stream: str, state: StreamState) -> StreamVerifier:
        identity = self._store.identity
        return StreamVerifier(
            crypto,
            user_key=identity.user_key,
            server_key=identity.server_key,
            stream=stream,
            account=self.account,
            state=state,
            chain_at=lambda seq: self._log.chain_at(stream, seq),
            is_own_inbox=stream == inbox_of(identity.device_id),
            rewinds=self.rewinds.of,
            received_at_ms=self._log.received_at_ms,
        )

    # -- what has arrived -----------------------------------------------------------------------------------------

    def apply(self, arrived: Sequence[Arrived], *, again: int = 0, devices_complete: bool = False) -> Outcome:
        """Verify and store, in one transaction.

        Args:
            arrived: in order of arrival.
            again: how many of them, the first ones, were here before and waited.
            devices_complete: ``$devices`` was read to its head after all of these had arrived.

        Raises:
            StoreError: the disk is full: nothing of it was taken.
            VerificationError: the server acknowledged another history than it has shown.
        """
        outcome = Outcome()
        waiting: set[str] = set()
        with self._store.transaction():
            self._settle()
            self._learn(arrived[again:])
            for message in sorted(arrived, key=_precedence):
                followed = self.followed.get(message.stream)
                if followed is None or followed.failure is not None:
                    continue
                if message.stream in waiting:
                    outcome.waiting.append(message)
                    continue
                try:
                    self._apply(followed, message, outcome, devices_complete=devices_complete)
                except BehindDevices as behind:
                    waiting.add(message.stream)
                    outcome.waiting.append(message)
                    outcome.behind = max(outcome.behind or 0, behind.seq)
                except (VerificationError, ProtocolError) as failure:
                    followed.failure = failure
                    outcome.failed.append(message.stream)
                    if isinstance(failure, VerificationError) and message.stream not in RESERVED_STREAMS:
                        self._alarm(failure)
        return outcome

    def _apply(self, followed: Followed, message: Arrived, outcome: Outcome, *, devices_complete: bool) -> None:
        if isinstance(message, Resumed):
            self._resumed(followed, message, outcome)
            return
        if isinstance(message, Rewound):
            outcome.rewound[followed.name] = self._rewound(followed, message)
            return
        verifier = followed.verifier
        if verifier is None:
            raise VerificationError("events came before the answer to the subscription", stream=followed.name)
        if isinstance(message, Events):
            self._page(verifier, message, outcome, devices_complete=devices_complete)
        elif isinstance(message, Pruned):
            self._pruned(verifier, message, outcome, devices_complete=devices_complete)
        elif isinstance(message, CaughtUp):
            before = verifier.state.missing.keys()
            missing = verifier.caught_up(message.head)
            self._log.expire(followed.name, before - set(missing))
            outcome.missing += [(followed.name, seq) for seq in missing]
            outcome.caught_up.append(followed.name)
            if followed.name == DEVICES_STREAM:
                outcome.ended_at_ms = self.ended_at_ms
            self._save(followed.name, verifier, ())
            self._let_go(followed.name)
        elif isinstance(message, Head):
            verifier.note(message.head)
            self._save(followed.name, verifier, ())
            self._let_go(followed.name)
        else:
            events = verifier.reread(message.rows)
            self._states[followed.name] = verifier.state
            self._log.fill(followed.name, verifier.state, excused(self._log, followed.name, verifier.state, events))

    def _learn(self, arrived: Sequence[Arrived]) -> None:
        """Keep apart no more what is safe: by the last word of the server, in whatever order streams are verified."""
        told = [message for message in arrived if isinstance(message, CaughtUp | Head)]
        if told:
            self.kept.learn(told[-1].safe_at_ms, now_ms=self._environment.now_ms())

    def _let_go(self, stream: str) -> None:
        """Keep apart no more what this device has read of its own."""
        mine = self._state(stream).authors.get(self._store.identity.device_id)
        if mine is not None:
            self.kept.forget(stream, mine.n)

    def _resumed(self, followed: Followed, message: Resumed, outcome: Outcome) -> None:
        name = followed.name
        if message.answer == "unknown_position":
            raise VerificationError("the server does not hold what this device has verified", stream=name)
        if message.answer != "contiguous":
            raise ProtocolError(message.answer, f"the server does not let this device read {name}")
        verifier = followed.verifier
        if verifier is None:
            verifier = followed.verifier = self._verifier_at_end(name, message)
        self.rewinds.take(name, message.rewinds)
        verifier = self._forget_dead(followed, verifier)
        verifier.resumed(message.head)
        head_seq = 0 if message.head is None else decode_head(message.head[0]).seq
        if head_seq < followed.promised_seq:
            raise VerificationError("the log went back behind what the server acknowledged", stream=name, seq=head_seq)
        self._save(name, verifier, ())
        outcome.authors[name] = message.author

    def _verifier_at_end(self, name: str, message: Resumed) -> StreamVerifier:
        if message.head is None:
            return self._verifier(name, self._state(name))
        try:
            head = verify_head(crypto, self._store.identity.server_key, message.head)
        except ProtocolError as exc:
            raise VerificationError("a head does not verify", stream=name) from exc
        # The heads that its enroller handed over stay, and what a checkpoint names beyond the end.
        known = self._state(name)
        claimed = known.claimed
        if claimed is not None and claimed[0] <= head.seq:
            if claimed[0] == head.seq and claimed[1] != head.chain:
                raise VerificationError("another device was shown another history", stream=name, seq=head.seq)
            claimed = None
        state = state_at(Position(head.seq, head.chain))
        return self._verifier(name, msgspec.structs.replace(state, heads=known.heads, claimed=claimed))

    def _page(self, verifier: StreamVerifier, page: Events, outcome: Outcome, *, devices_complete: bool) -> None:
        devices_before = self.account.devices
        events = verifier.feed(page.rows, page.chain, devices_complete=devices_complete)
        self._check_promises(page.stream, events)
        self._save(page.stream, verifier, events)
        outcome.acks[page.stream] = verifier.position
        if page.stream == KEYS_STREAM:
            outcome.keys_changed = self._take_keys(events) or outcome.keys_changed
        for event in events:
            if event.header.kind == Kind.ERASE and event.payload is not None:
                for device_id, numbers in decode_erase(event.payload).events.items():
                    self._log.erase(page.stream, device_id, frozenset(numbers))
        if page.stream == DEVICES_STREAM:
            self._changes.take(
                devices_before, self.account.devices, {event.seq: event.received_at_ms for event in events}
            )
            self._compare(events, outcome)
        latest_hlc = max((event.header.hlc for event in events), default=0)
        if latest_hlc >> HLC_COUNTER_BITS <= self._environment.now_ms() + HLC_AHEAD_MS_MAX:
            self._store.raise_hlc(latest_hlc)

    def _pruned(self, verifier: StreamVerifier, message: Pruned, outcome: Outcome, *, devices_complete: bool) -> None:
        """The beginning of a stream, or more of it, is gone on the server: go on after it."""
        before = verifier.position
        gone = verifier.pruned(message, devices_complete=devices_complete)
        for promise in self._promises(message.stream):
            if promise.seq == message.to_seq and promise.chain != message.chain:
                raise VerificationError(
                    "not the history that was shown before", stream=message.stream, seq=message.to_seq
                )
        self._log.expire(message.stream, gone)
        self._log.add_gap(message.stream, before.seq, verifier.position)
        self._save(message.stream, verifier, ())
        outcome.acks[message.stream] = verifier.position

    def _check_promises(self, stream: str, events: Sequence[VerifiedEvent]) -> None:
        """What was promised is what the server shows."""
        promises = self._promises(stream)
        for event in events:
            for position in promises:
                if position.seq == event.seq and position.chain != event.chain:
                    raise VerificationError("not the history that was shown before", stream=stream, seq=event.seq)

    def _promises(self, stream: str) -> list[Position]:
        """What the server has acknowledged to this device, and what its enroller knew."""
        handed_over = [self._store.identity.handed_over] if stream == DEVICES_STREAM else []
        return [self._store.receipt(stream), *handed_over]

    def _take_keys(self, events: Sequence[VerifiedEvent]) -> bool:
        identity = self._store.identity
        added = []
        for event in events:
            if event.payload is None:
                continue
            try:
                self._take_wraps(event.header, event.payload)
                key = event.payload and unwrap(
                    event.payload, device_id=identity.device_id, box_secret=identity.box_secret
                )
            except (PayloadError, ProtocolError) as exc:
                self._alarm(VerificationError(str(exc), stream=KEYS_STREAM, seq=event.seq))
                continue
            if key and self._keyring.add(key):
                added.append(key)
        self._store.add_content_keys(added)
        return bool(added)

    def _take_wraps(self, header: Header, payload: bytes) -> None:
        """Learn for whom a content key is wrapped. Raises PayloadError, ProtocolError: the event is not to be used."""
        if decode_keys(payload).after > header.devices_seen[0]:
            # Else one event could make its author's epoch the last one for ever.
            raise PayloadError("a content key is to be used from a place that its author had not read")
        self.wraps.add(payload)

    def _compare(self, events: Sequence[VerifiedEvent], outcome: Outcome) -> None:
        """What other devices say they have verified is what this device was shown (protocol.md section 1)."""
        for event in events:
            change = None if event.payload is None else decode_account(event.payload)
            if not isinstance(change, CheckpointPayload) or event.device_id == self._store.identity.device_id:
                continue
            for stream, (seq, chain) in change.positions.items():
                if stream != DEVICES_STREAM:  # the account log has compared that itself
                    self._compare_stream(stream, seq, chain, outcome)

    def _compare_stream(self, stream: str, seq: int, chain: bytes, outcome: Outcome) -> None:
        followed = self.followed.get(stream)
        verifier = None if followed is None else followed.verifier
        if verifier is None and stream in self._states:
            verifier = self._verifier(stream, self._states[stream])
        if verifier is None or (followed is not None and followed.failure is not None):
            return
        try:
            verifier.compare(seq, chain)
        except VerificationError as failure:
            if followed is not None:
                followed.failure = failure
                outcome.failed.append(stream)
            if followed is None or stream not in RESERVED_STREAMS:
                self._alarm(failure)
        else:
            self._save(stream, verifier, ())

    @property
    def ended_at_ms(self) -> int | None:
        """When this device ended, as far as ``$devices`` is verified; ``None`` while it is live."""
        mine = self.account.devices.get(self._store.identity.device_id)
        return None if mine is None or mine.ended is None else mine.ended.received_at_ms

    def end_shown(self, row: EventRow) -> int | None:
        """When this device ended, by an event of ``$devices`` that the server shows; ``None`` where it proves none."""
        seq, author, received_at_ms, header, sig, payload, _ = row
        event = AccountEvent(author, header, sig, payload or b"", received_at_ms)
        try:
            self.account.verify_end(self._store.identity.device_id, event, seq)
        except ProtocolError:
            return None
        return received_at_ms

    def author_n(self, stream: str, device_id: bytes) -> int | None:
        """The last author number verified of a device; ``None`` where this device has not read the beginning."""
        state = self._state(stream)
        author = state.authors.get(device_id)
        if author is not None:
            return author.n
        return 0 if state.whole and stream in self._states else None

    def author_numbers(self, stream: str) -> dict[bytes, int]:
        """The last author number verified of each device whose events this one has read."""
        return {device_id: author.n for device_id, author in self._state(stream).authors.items()}

    def is_whole(self, stream: str) -> bool:
        """Whether this device reads a stream from its first event on, with nothing gone in between."""
        followed = self.followed.get(stream)
        verifier = None if followed is None else followed.verifier
        state = self._state(stream) if verifier is None else verifier.state
        return state.whole and self._log.gap(stream, after=0) is None

    def positions(self) -> dict[str, Position]:
        """How far every stream that this device holds is verified."""
        return {stream: state.position for stream, state in self._states.items()}

    def take_recovered_keys(self, root_secret: bytes) -> None:
        """Take every content key that ``$keys`` holds for the recovery file with this root key."""
        receiver, _ = recovery_box(crypto.ed25519_public(root_secret))
        secret = crypto.box_secret_of_signer(root_secret)
        added = []
        for header, payload in self._log.key_events():
            with contextlib.suppress(PayloadError, ProtocolError):
                self._take_wraps(header, payload)
                key = unwrap(payload, device_id=receiver, box_secret=secret)
                if key is not None and self._keyring.add(key):
                    added.append(key)
        with self._store.transaction():
            self._store.add_content_keys(added)

    def _save(self, stream: str, verifier: StreamVerifier, events: Sequence[VerifiedEvent]) -> None:
        state = self._states[stream] = verifier.state
        self._log.save(stream, state, events)
        if stream == DEVICES_STREAM and events:
            self._store.save_account(self.account.state.encode())

    def _alarm(self, failure: VerificationError) -> None:
        self._store.add_alarm(Alarm(self._environment.now_ms(), failure.stream, failure.seq, failure.reason))


def _is_only_known_of(state: StreamState) -> bool:
    """Whether a device has read nothing of a stream that has events, as signed heads say, its enroller's perhaps."""
    return state.seq == 0 and any(decode_head(head).seq for head, _ in state.heads)


def _precedence(message: Arrived) -> int:
    """``$devices`` first, then ``$keys``; sorting keeps the order within a stream."""
    return {DEVICES_STREAM: 0, KEYS_STREAM: 1}.get(message.stream, 2)
