"""Appending: one transaction for everything that waits (docs/explanation/log.md).

Heads are remembered and moved by compare and set, so the fast path reads nothing. What another node moved in the
meantime is decided again under locks, stream by stream; a batch that the store refuses is halved until the event at
fault is alone. Everything here runs in one worker thread from beginning to end.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import groupby
from typing import TYPE_CHECKING, Final, cast

from keepstep._keepstep import StreamHead, ingest
from keepstep.errors import ProtocolError, Unavailable
from keepstep.eventlog.answers import DUPLICATE, LOOK_UP, NEW, REFUSED, AnswerRun, Answers, Place, refusal
from keepstep.eventlog.store import Contended, DataFault, Loaded, Lookup, StreamKey, StreamPlace, TryAgain
from keepstep.model import RetentionClass

if TYPE_CHECKING:
    from keepstep._keepstep import Ingested, Run, Submission
    from keepstep.eventlog.heads import HeadCache
    from keepstep.eventlog.store import Found, Store, Transaction
    from keepstep.interfaces import AccountChange
    from keepstep.protocol.messages import Result

ATTEMPTS_MAX: Final = 5
"""How often one part of a batch is stored again before it is answered ``unavailable``."""
STREAM_AHEAD_MS_MAX: Final = 10 * 60 * 1000
"""How far a stream's last received_at may be ahead of the clock (protocol.md section 3)."""
RETRY_AFTER_MS: Final = 1_000
"""When a device tries again what could not be stored for now."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a batch, and what it added to which stream, in the order of the commits."""

    results: list[list[Result]]
    suspects: frozenset[int]
    runs: list[tuple[StreamKey, Run]]


@dataclass(frozen=True)
class _Part:
    """Events of a batch that are stored in one transaction.

    Attributes:
        submissions: the events, in order.
        places: where the first event of each submission is in the batch.
        locked: whether the heads are locked before anything is decided.
        attempts: how often this part was tried before.
    """

    submissions: Sequence[Submission]
    places: Sequence[Place]
    locked: bool = False
    attempts: int = 0

    @cached_property
    def keys(self) -> dict[StreamKey, None]:
        """The streams of the events, each once, in order of first use."""
        return {(each.user_pk, name): None for each in self.submissions for name in each.events.streams}

    @property
    def event_count(self) -> int:
        return sum(len(each.events) for each in self.submissions)

    def again(self, *, locked: bool) -> _Part:
        if self.attempts + 1 == ATTEMPTS_MAX:
            raise Unavailable("other transactions kept getting in the way", retry_after_ms=RETRY_AFTER_MS)
        return replace(self, locked=locked, attempts=self.attempts + 1)

    def singles(self) -> Iterator[tuple[Submission, Place]]:
        """The same events, one submission each; verdicts on signatures are kept."""
        for submission, place in zip(self.submissions, self.places, strict=True):
            for index, events in enumerate(submission.events.split()):
                yield submission.with_events(events), (place[0], place[1] + index)

    def halves(self) -> tuple[_Part, _Part]:
        submissions, places = zip(*self.singles(), strict=True)
        middle = len(submissions) // 2
        first = replace(self, submissions=submissions[:middle], places=places[:middle])
        second = replace(self, submissions=submissions[middle:], places=places[middle:])
        return first, second

    def of_streams(self, keys: set[StreamKey]) -> _Part:
        """The events in some of the streams, to be stored under locks."""
        chosen = [
            (submission, place)
            for submission, place in self.singles()
            if any((submission.user_pk, name) in keys for name in submission.events.streams)
        ]
        submissions, places = zip(*chosen, strict=True)
        return replace(self.again(locked=True), submissions=submissions, places=places)


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
        heads: what this node remembers.
        streams_per_user_max: streams a user may have, ``$devices`` and ``$keys`` among them.
        batch: the events, in order.
        now_ms: unix milliseconds, as the database's clock has it.
        change: what the only event of the batch does to the device table.
    """

    store: Store
    heads: HeadCache
    streams_per_user_max: int
    batch: Sequence[Submission]
    now_ms: int
    change: AccountChange | None
    answers: Answers = field(init=False)
    runs: list[tuple[StreamKey, Run]] = field(default_factory=list)

    def __post_init__(self) -> None:
        assert self.change is None or [len(each.events) for each in self.batch] == [1], "a change is one event's"
        self.answers = Answers(self.batch)

    def run(self) -> Outcome:
        """Store the batch, in as many transactions as it takes.

        Raises:
            Unavailable: nothing of it was stored.
        """
        part = _Part(self.batch, [(index, 0) for index in range(len(self.batch))])
        parts = deque([replace(part, locked=self.change is not None or self.heads.takes_the_lane(part.keys))])
        try:
            while parts:
                parts.extendleft(self._advance(parts.popleft()))
            self.answers.close(self._find)
        except Unavailable as error:
            self.heads.drop(part.keys)
            if not self.runs:
                raise
            self.answers.give_up(refusal("unavailable", error.retry_after_ms))
        return Outcome(self.answers.results(), self.answers.suspects(), self.runs)

    def _find(self, lookups: Sequence[Lookup]) -> Mapping[Lookup, Found]:
        try:
            return self.store.find(lookups)
        except TryAgain as error:
            raise Unavailable("the database is not the one that was asked", retry_after_ms=RETRY_AFTER_MS) from error

    def _advance(self, part: _Part) -> list[_Part]:
        """Store one part; returns what is left of it, last first."""
        try:
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

    def _store(self, part: _Part) -> set[StreamKey]:
        """Decide a part and commit it; returns the streams to be decided again, of which nothing was stored."""
        generation = self.store.generation()
        left: set[StreamKey] = set()
        if part.locked:
            with self.store.begin() as transaction:
                decision = self._decide(part, {}, transaction.lock(part.keys))
                if decision.moved:
                    unmoved = self._write(transaction, decision)
                    assert not unmoved, "a locked stream did not move"
        else:
            remembered = self.heads.get(part.keys, generation=generation)
            missing = [key for key in part.keys if key not in remembered]
            decision = self._decide(part, remembered, self.store.load(missing) if missing else Loaded())
            left |= self._stale(decision, remembered)
            if decision.moved:
                with self.store.begin() as transaction:
                    unmoved = self._write(transaction, decision)
                if unmoved:
                    left |= {_key(new) for _, new in decision.moved if _place(new) in unmoved}
        self._keep(decision, left, generation)
        self._record(part, decision, left)
        return left

    def _decide(self, part: _Part, remembered: dict[StreamKey, StreamHead], loaded: Loaded) -> _Decision:
        heads = remembered | loaded.heads
        fresh, refused = self._fresh(part, heads, loaded)
        for key, head in heads.items():
            if head.received_at_ms > self.now_ms + STREAM_AHEAD_MS_MAX:
                refused[key] = "unavailable"
        offered = heads | fresh
        if refused:
            offered = {key: head for key, head in offered.items() if key not in refused}
        ingested = ingest(part.submissions, offered, now_ms=self.now_ms)
        return _Decision(ingested, ingested.moved, heads, fresh, refused)

    def _fresh(
        self, part: _Part, heads: dict[StreamKey, StreamHead], loaded: Loaded
    ) -> tuple[dict[StreamKey, StreamHead], dict[StreamKey, str]]:
        """Heads for the streams that are not there yet, as far as the user may have more."""
        fresh: dict[StreamKey, StreamHead] = {}
        refused: dict[StreamKey, str] = {}
        missing = [key for key in part.keys if key not in heads and key[0] in loaded.users and key[1][0] != "$"]
        for user_pk, keys in groupby(sorted(missing), key=lambda key: key[0]):
            user = loaded.users[user_pk]
            for number, key in enumerate(keys, 1):
                if user.stream_count + number > self.streams_per_user_max:
                    refused[key] = "limit_exceeded"
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

    def _write(self, transaction: Transaction, decision: _Decision) -> frozenset[StreamPlace]:
        moved = decision.moved
        created = {_key(new) for _, new in moved if _key(new) in decision.fresh} if decision.fresh else ()
        unmoved = transaction.write(decision.ingested, created=created)
        if len(unmoved) == len(moved):
            return unmoved
        if self.change is not None:
            old, new = moved[0]
            if self.change.checked_seq not in (None, old.seq):
                raise Unavailable("$devices has moved since the change was checked", retry_after_ms=0)
            transaction.enrol(new.user_pk, self.change.enrolled, now_ms=new.received_at_ms)
        transaction.commit()
        self.runs.extend(
            (_key(new), run)
            for (_, new), run in zip(moved, decision.ingested.runs, strict=True)
            if not unmoved or _place(new) not in unmoved
        )
        return unmoved

    def _keep(self, decision: _Decision, left: set[StreamKey], generation: int) -> None:
        """Remember the heads that are proven now."""
        proven = [new for _, new in decision.moved]
        if len(proven) < len(decision.heads):
            moved = {_key(head) for head in proven}
            proven += [head for key, head in decision.heads.items() if key not in moved]
        if left:
            proven = [head for head in proven if _key(head) not in left]
        self.heads.put(proven, generation=generation)

    def _record(self, part: _Part, decision: _Decision, left: set[StreamKey]) -> None:
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
        if run[0] == REFUSED and run[1] == "unknown_stream" and key in decision.refused:
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


def _key(head: StreamHead) -> StreamKey:
    return head.user_pk, head.name


def _place(head: StreamHead) -> StreamPlace:
    return head.user_pk, head.stream_pk


def _version(head: StreamHead) -> tuple[int, bytes, int]:
    return head.seq, head.chain, head.auth_epoch
