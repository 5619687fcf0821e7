"""Appending: one transaction for everything that waits (docs/explanation/log.md).

Heads are remembered and moved by compare and set, so the fast path reads nothing. What another node moved in the
meantime is decided again under locks, stream by stream; a batch that the store refuses is halved until the event at
fault is alone. Everything here runs in one worker thread from beginning to end.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, compress, groupby
from operator import attrgetter
from typing import TYPE_CHECKING, Final, cast

from keepstep._keepstep import StreamHead, ingest
from keepstep.errors import ProtocolError, Unavailable
from keepstep.eventlog.answers import DUPLICATE, LOOK_UP, NEW, REFUSED, AnswerRun, Answers, Outcome, Place, refusal
from keepstep.eventlog.apart import Apart
from keepstep.eventlog.part import RETRY_AFTER_MS, Part
from keepstep.eventlog.store import (
    Contended,
    DataFault,
    Loaded,
    Lookup,
    StreamKey,
    StreamPlace,
    TryAgain,
)
from keepstep.model import RetentionClass
from keepstep.protocol.results import count_results, encode_results

if TYPE_CHECKING:
    from keepstep._keepstep import Ingested, Run, Submission
    from keepstep.eventlog.devices import AccountPosition, DeviceCache
    from keepstep.eventlog.heads import HeadCache
    from keepstep.eventlog.rooms import ByteRooms
    from keepstep.eventlog.store import Found, LiveDevices, Store, Transaction
    from keepstep.model import AccountChange

STREAM_AHEAD_MS_MAX: Final = 10 * 60 * 1000
"""How far a stream's last received_at may be ahead of the clock (protocol.md section 3)."""

_CHECKED_APART: Final = attrgetter("events.checked_apart")
_BYTES_MAX: Final = attrgetter("bytes_max")
"""Without a Python call for each submission and head."""


@dataclass(frozen=True, slots=True)
class _Decision:
    """A part decided upon the heads as they seem to be; true once it has committed.

    Attributes:
        ingested: what the events become.
        moved: (old, new) heads of the streams that move.
        heads: what was decided upon.
        fresh: the streams that would be created.
        refused: streams that take no events for now, and the code that says why.
    """

    ingested: Ingested
    moved: list[tuple[StreamHead, StreamHead]]
    heads: dict[StreamKey, StreamHead]
    fresh: dict[StreamKey, StreamHead]
    refused: dict[StreamKey, str]


@dataclass(eq=False)
class Appending:
    """One batch on its way into the store. Made, run once, and thrown away.

    Attributes:
        store: where it goes.
        generation: of the store that the submissions' row numbers are of.
        heads: the heads that this node remembers.
        devices: the live devices that it remembers.
        rooms: what this node may store for accounts with a quota of bytes.
        streams_per_user_max: streams a user may have, ``$devices`` and ``$keys`` among them.
        bytes_per_user_max: what a user without a quota of its own may store outside those two, bytes; ``None`` for all.
        batch: the events, in order.
        now_ms: unix milliseconds, as the database's clock has it.
        change: what the only event of the batch does to the device table.
        is_short: whether the store's shorter way is taken; not where a head was found to have moved.
    """

    store: Store
    generation: int
    heads: HeadCache
    devices: DeviceCache
    rooms: ByteRooms
    streams_per_user_max: int
    bytes_per_user_max: int | None
    batch: Sequence[Submission]
    now_ms: int
    change: AccountChange | None
    is_short: bool
    answers: Answers = field(init=False)
    runs: list[tuple[StreamKey, Run]] = field(default_factory=list)
    erased: set[StreamKey] = field(default_factory=set)
    misplaced: set[AccountPosition] = field(default_factory=set)

    def __post_init__(self) -> None:
        assert self.change is None or [len(each.events) for each in self.batch] == [1], "a change is one event's"

    def run(self) -> Outcome:
        """Store the batch, in as many transactions as it takes.

        Raises:
            Unavailable: nothing of it was stored; or what is stored cannot be confirmed now, and the same events sent
                again are answered as duplicates once it can.
        """
        self.answers = Answers(self.batch)
        part = Part(self.batch, [(index, 0) for index in range(len(self.batch))])
        part = replace(part, locked=self.change is not None or self.heads.takes_the_lane(part.keys))
        parts = deque(self._parts(part))
        try:
            while parts:
                parts.extendleft(self._advance(parts.popleft()))
            self.answers.close(self._find)
        except Unavailable as error:
            self._forget(part)
            if not self.runs:
                raise
            self.answers.give_up(refusal("unavailable", error.retry_after_ms))
        if self.answers.name_stored:
            self.store.confirm()
        results = self.answers.results()
        encoded, counts = list(map(encode_results, results)), count_results(chain.from_iterable(results))
        return Outcome(encoded, counts, self.answers.suspects(), self.runs, frozenset(self.erased))

    def _forget(self, part: Part) -> None:
        """What was remembered of a part is in doubt."""
        self.heads.drop(part.keys)
        self.rooms.drop(part.users)

    def _parts(self, whole: Part) -> list[Part]:
        """Events that are checked against what is stored alone and under locks, the others together, in their order."""
        if not any(map(_CHECKED_APART, whole.submissions)):
            return [whole]
        self.answers.break_up()
        parts = []
        for apart, group in groupby(whole.singles(), key=lambda single: single[0].events.checked_apart):
            members = list(group)
            for some in [[one] for one in members] if apart else [members]:
                submissions, places = zip(*some, strict=True)
                parts.append(replace(whole, submissions=submissions, places=places, locked=apart or whole.locked))
        return parts

    def _find(self, lookups: Sequence[Lookup]) -> Mapping[Lookup, Found]:
        try:
            return self.store.find(lookups)
        except TryAgain as error:
            raise Unavailable("the database is not the one that was asked", retry_after_ms=RETRY_AFTER_MS) from error

    def _advance(self, part: Part) -> list[Part]:
        """Store one part; returns what is left of it, last first."""
        try:
            apart = self._apart(part)
            if apart:
                return apart
            left = self._store(part)
        except TryAgain:
            return [part.again(locked=part.locked)]
        except Contended:
            return [part.again(locked=True)]
        except DataFault as fault:
            if part.event_count > 1:
                self.answers.break_up()
                return list(reversed(part.halves()))
            self.heads.drop(part.keys)
            self.answers.answer(part.places[0], refusal(fault.code))
            return []
        if not left:
            return []
        self.heads.contend(left)
        self.answers.break_up()
        return [part.of_streams(left)]

    def _store(self, part: Part) -> set[StreamKey]:
        """Decide a part and commit it; returns the streams to be decided again, of which nothing was stored."""
        generation = self.store.generation()
        if generation != self.generation:
            # A row number of another database may be another user's in this one.
            raise Unavailable("the database is another one than the devices were looked up in", retry_after_ms=0)
        left: set[StreamKey] = set()
        if part.locked:
            with self.store.begin() as transaction:
                loaded = transaction.lock(part.keys)
                devices: Mapping[int, LiveDevices] = transaction.devices(part.users)
                self.devices.put(devices, generation=generation)
                decision = self._decide(part, {}, loaded, devices, transaction)
                if decision.moved:
                    unmoved = self._write(transaction, part, decision)
                    assert not unmoved, "a locked stream did not move"
        else:
            remembered = self._roomy(part, self.heads.get(part.keys, generation=generation))
            missing = [key for key in part.keys if key not in remembered]
            loaded = self.store.load(missing) if missing else Loaded()
            devices = self._devices(part, remembered, loaded, generation)
            decision = self._decide(part, remembered, loaded, devices, self.store)
            left |= self._stale(decision, remembered)
            if decision.moved and self._append(part, decision):
                self._take_stored(decision)
            elif decision.moved:
                with self.store.begin() as transaction:
                    unmoved = self._write(transaction, part, decision)
                if unmoved:
                    left |= {_key(new) for _, new in decision.moved if _place(new) in unmoved}
        self._keep(decision, left, generation)
        if self.change is not None and self.change.changes_access:
            self.heads.drop(part.keys)  # its auth_epoch has gone up since
        self._record(part, decision, left)
        return left

    def _devices(
        self, part: Part, remembered: dict[StreamKey, StreamHead], loaded: Loaded, generation: int
    ) -> Mapping[int, LiveDevices]:
        """The live devices of the part's users as of the ``auth_epoch`` of its heads, which commit only with it.

        Raises:
            Contended: heads and devices are of different epochs: another transaction is changing the account.
        """
        epochs: set[tuple[int, int]] = {(head.user_pk, head.auth_epoch) for head in remembered.values()}
        epochs |= {(head.user_pk, head.auth_epoch) for head in loaded.heads.values()}
        epochs |= {(user_pk, user.auth_epoch) for user_pk, user in loaded.users.items()}
        devices = self.devices.get(part.users, generation=generation)
        unknown = {
            user_pk for user_pk, epoch in epochs if user_pk not in devices or devices[user_pk].auth_epoch != epoch
        }
        # An enrolment moves no epoch: a device that is not remembered may be new.
        unknown |= {
            each.user_pk
            for each in part.submissions
            if each.user_pk in devices and each.device_pk not in devices[each.user_pk].expires_at_ms
        }
        if unknown:
            read = self.store.devices(unknown)
            self.devices.put(read, generation=generation)
            devices |= read
            if any(user_pk in devices and devices[user_pk].auth_epoch != epoch for user_pk, epoch in epochs):
                raise Contended
        return devices

    def _apart(self, part: Part) -> list[Part]:
        """Events that name a position of ``$devices`` that never was, each alone, and the others; last first.

        Nothing where there is no such event, or nothing beside it. A reader would stop at such an event and take the
        server for a liar, so it is not stored: whoever holds a stolen device must not be able to say it.
        """
        generation = self.store.generation()
        asked = {(each.user_pk, at) for each in part.submissions for at in each.events.devices_seen}
        unknown = self.devices.unheld(asked, generation=generation) - self.misplaced
        if unknown:
            seqs = {(user_pk, seq) for user_pk, (seq, _) in unknown}
            chains = self.store.device_chains(seqs | {(user_pk, 0) for user_pk, _ in seqs})
            unknown = {each for each in unknown if (each[0], 0) in chains}  # without a user there is no stream either
            held = {each for each in unknown if chains.get((each[0], each[1][0])) == each[1][1]}
            self.devices.hold(held, generation=generation)
            self.misplaced |= unknown - held
        if self.misplaced.isdisjoint(asked) or part.event_count == 1:
            return []
        self.answers.break_up()
        parts = []
        for misplaced, group in groupby(part.singles(), key=lambda single: self._is_misplaced(single[0])):
            members = list(group)
            for some in [[one] for one in members] if misplaced else [members]:
                submissions, places = zip(*some, strict=True)
                parts.append(replace(part, submissions=submissions, places=places))
        return list(reversed(parts))

    def _is_misplaced(self, submission: Submission) -> bool:
        return bool(self.misplaced) and not self.misplaced.isdisjoint(
            (submission.user_pk, at) for at in submission.events.devices_seen
        )

    def _permitted(
        self, submission: Submission, devices: Mapping[int, LiveDevices], heads: Mapping[StreamKey, StreamHead]
    ) -> Submission:
        """The submission of a device that has ended, or expired, without capabilities: only what is stored is answered.

        So no node takes a new event of it, whatever its sessions know (protocol.md section 1). The same for an event
        that names a position of ``$devices`` that never was.
        """
        if self.misplaced and self._is_misplaced(submission):
            return submission.with_capabilities(0)
        live = devices.get(submission.user_pk)
        if live is None:
            return submission  # of a user that is not there there is no stream either
        now_ms = self.now_ms
        expires_at_ms = live.expires_at_ms.get(submission.device_pk, 0)
        if expires_at_ms is None:
            return submission  # live, and for ever: nearly every one
        if expires_at_ms:
            # Readers go by received_at, which is later than now where a stream's last one is.
            keys = [(submission.user_pk, name) for name in submission.events.streams]
            now_ms = max([now_ms, *(heads[key].received_at_ms for key in keys if key in heads)])
        return submission if live.lets_write(submission.device_pk, now_ms) else submission.with_capabilities(0)

    def _decide(
        self,
        part: Part,
        remembered: dict[StreamKey, StreamHead],
        loaded: Loaded,
        devices: Mapping[int, LiveDevices],
        place: Store | Transaction,
    ) -> _Decision:
        heads = remembered | loaded.heads
        fresh, refused = self._fresh(part, heads, loaded)
        for key, head in heads.items():
            if head.received_at_ms > self.now_ms + STREAM_AHEAD_MS_MAX:
                refused[key] = "unavailable"
        offered = heads | fresh
        if refused:
            offered = {key: head for key, head in offered.items() if key not in refused}
        submissions = [self._permitted(each, devices, offered) for each in part.submissions]
        ingested = ingest(
            submissions,
            offered,
            now_ms=self.now_ms,
            rooms=self._rooms(part, devices, place),
            essential=self.change is not None and self.change.is_essential,
        )
        return _Decision(ingested, ingested.moved, heads, fresh, refused)

    def _fresh(
        self, part: Part, heads: dict[StreamKey, StreamHead], loaded: Loaded
    ) -> tuple[dict[StreamKey, StreamHead], dict[StreamKey, str]]:
        """Heads for the streams that are not there yet, as far as the user may have more."""
        fresh: dict[StreamKey, StreamHead] = {}
        refused: dict[StreamKey, str] = {}
        missing = [key for key in part.keys if key not in heads and _may_begin(key, loaded)]
        for user_pk, keys in groupby(sorted(missing), key=lambda key: key[0]):
            user = loaded.users[user_pk]
            for number, key in enumerate(keys, 1):
                if user.stream_count + number > self.streams_per_user_max:
                    refused[key] = "limit_exceeded"
                    continue
                if user.streams_max is not None and user.stream_count + number > user.streams_max:
                    refused[key] = "quota_exceeded"
                    continue
                fresh[key] = StreamHead.create(
                    user_pk=user_pk,
                    user_key=user.user_key,
                    stream_pk=user.last_stream_pk + number,
                    name=key[1],
                    retention_class=RetentionClass.STANDARD,
                    auth_epoch=user.auth_epoch,
                )
        return fresh, refused

    def _roomy(self, part: Part, remembered: dict[StreamKey, StreamHead]) -> dict[StreamKey, StreamHead]:
        """The heads without those whose bound may be reached: payloads that went since are still counted in them."""
        if {None}.issuperset(map(_BYTES_MAX, remembered.values())):
            return remembered
        return {
            key: head
            for key, head in remembered.items()
            if head.bytes_max is None or head.stored_bytes + part.bytes_by_user[key[0]] <= head.bytes_max
        }

    def _rooms(self, part: Part, devices: Mapping[int, LiveDevices], place: Store | Transaction) -> Mapping[int, int]:
        """What users with a quota of bytes may still store."""
        default = self.bytes_per_user_max
        asked = {
            user_pk: (part.bytes_by_user[user_pk], quota)
            for user_pk, live in devices.items()
            if (quota := default if live.bytes_max is None else live.bytes_max) is not None
        }
        if not asked:
            return {}
        return self.rooms.rooms(asked, place.stored_bytes, now_ms=self.now_ms, generation=self.generation)

    def _stale(self, decision: _Decision, remembered: dict[StreamKey, StreamHead]) -> set[StreamKey]:
        """The remembered heads that are not the store's any more, of streams where no compare and set shows it.

        Whoever is told 'duplicate' or 'out of order' is told it of the stream as it is, not as it was remembered.
        """
        if len(decision.moved) == len(decision.heads) + len(decision.fresh):
            return set()
        moved = {_key(new) for _, new in decision.moved}
        unproven = [key for key in remembered if key not in moved]
        if not unproven:
            return set()
        actual = self.store.load(unproven).heads
        return {key for key in unproven if key not in actual or _version(actual[key]) != _version(remembered[key])}

    def _append(self, part: Part, decision: _Decision) -> bool:
        """Store what only moves heads by the store's shorter way; whether it went."""
        return (
            self.is_short
            and not decision.fresh
            and self.change is None
            and decision.ingested.only_moves
            and not part.submissions[0].events.checked_apart
            and self.store.append(decision.ingested)
        )

    def _write(self, transaction: Transaction, part: Part, decision: _Decision) -> frozenset[StreamPlace]:
        moved = decision.moved
        created = {_key(new) for _, new in moved if _key(new) in decision.fresh} if decision.fresh else ()
        unmoved = transaction.write(decision.ingested, created=created)
        if len(unmoved) == len(moved):
            return unmoved
        if self.change is not None:
            old, new = moved[0]
            if not self.change.fits(old.seq, old.chain):
                raise Unavailable("$devices has moved since the change was checked", retry_after_ms=0)
            transaction.apply_account_change(new.user_pk, self.change, seq=new.seq, received_at_ms=new.received_at_ms)
        emptied = False
        if part.submissions[0].events.checked_apart:
            emptied = Apart(transaction, part.submissions[0], *moved[0], now_ms=self.now_ms).apply()
        transaction.commit()
        if emptied:
            self.erased.add(_key(moved[0][1]))
        self._take_stored(decision, unmoved)
        return unmoved

    def _take_stored(self, decision: _Decision, unmoved: Collection[StreamPlace] = ()) -> None:
        """What was committed is announced, and takes up room."""
        moved, runs = decision.moved, decision.ingested.runs_by_stream
        if unmoved:
            stored = [_place(new) not in unmoved for _, new in moved]
            moved, runs = list(compress(moved, stored)), list(compress(runs, stored))
        self.rooms.take_moved(moved)
        self.runs += runs

    def _keep(self, decision: _Decision, left: set[StreamKey], generation: int) -> None:
        """Remember the heads that are proven now."""
        proven = [new for _, new in decision.moved]
        if len(proven) < len(decision.heads):
            moved = {_key(head) for head in proven}
            proven += [head for key, head in decision.heads.items() if key not in moved]
        if left:
            proven = [head for head in proven if _key(head) not in left]
        self.heads.put(proven, generation=generation)

    def _record(self, part: Part, decision: _Decision, left: set[StreamKey]) -> None:
        """Give the answers that are true now."""
        results = cast("list[list[AnswerRun]]", decision.ingested.results)
        for submission, place, runs in zip(part.submissions, part.places, results, strict=True):
            event = 0
            for run in runs:
                here = (place[0], place[1] + event)
                if run[0] == NEW and not left:
                    self.answers.give(here, run)
                else:
                    self._record_one(decision, left, submission, event, here, run)
                event += run[1] if run[0] == NEW else 1

    def _record_one(
        self,
        decision: _Decision,
        left: set[StreamKey],
        submission: Submission,
        event: int,
        place: Place,
        run: AnswerRun,
    ) -> None:
        """Give, leave to a lookup, or keep back one answer."""
        try:
            parsed = submission.events.event(event)
        except ProtocolError:
            self.answers.give(place, run)
            return
        key = (submission.user_pk, parsed.stream)
        if key in left:
            return
        if run[0] == REFUSED and run[1] == "forbidden" and self._is_misplaced(submission):
            self.answers.answer(place, refusal("unknown_position"))
        elif run[0] == REFUSED and run[1] == "unknown_stream" and key in decision.refused:
            self.answers.answer(place, refusal(decision.refused[key], RETRY_AFTER_MS))
        elif run[0] == DUPLICATE and run[2] is None:
            self._look_up(decision.heads[key], place, from_seq=run[1], n=parsed.n, hash_=None)
        elif run[0] == LOOK_UP:
            _, _, n, hash_, last_seq = run
            self._look_up(decision.heads[key], place, from_seq=last_seq, n=n, hash_=hash_)
        else:
            self.answers.give(place, run)

    def _look_up(self, head: StreamHead, place: Place, *, from_seq: int, n: int, hash_: bytes | None) -> None:
        lookup = Lookup(head.user_pk, head.stream_pk, head.retention_class, from_seq, n)
        self.answers.look_up(place, lookup, hash_)


def _may_begin(key: StreamKey, loaded: Loaded) -> bool:
    """Whether the first event of a stream makes it: an application stream, or the inbox of a device that there is."""
    user = loaded.users.get(key[0])
    return user is not None and (key[1][0] != "$" or key[1] in user.inboxes)


def _key(head: StreamHead) -> StreamKey:
    return head.user_pk, head.name


def _place(head: StreamHead) -> StreamPlace:
    return head.user_pk, head.stream_pk


def _version(head: StreamHead) -> tuple[int, bytes, int]:
    return head.seq, head.chain, head.auth_epoch
