"""What each event of a batch is answered, gathered while the batch is stored in one or more parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from keepstep import _keepstep
from keepstep.errors import ERRORS, Retry
from keepstep.interfaces import Appended
from keepstep.protocol.chain import event_hash
from keepstep.protocol.messages import Result, ResultAccepted, ResultDuplicate, ResultError

if TYPE_CHECKING:
    from keepstep._keepstep import Run, Submission
    from keepstep.eventlog.store import Found, Lookup, StreamKey

NEW: Final = 0
DUPLICATE: Final = 1
REFUSED: Final = 2
LOOK_UP: Final = 3
"""What the runs of ``Ingested.results`` begin with."""

UNCHECKED: Final = ResultDuplicate(None, None, None)
"""Stored before, too far back or too long ago to say where (protocol.md section 3)."""

AnswerRun = tuple[Any, ...]
"""A run of ``Ingested.results``."""


def refusal(code: str, retry_after_ms: int | None = None) -> ResultError:
    """The answer with ``code`` and what belongs to it, where that is not more than a time."""
    return ResultError(code, [retry_after_ms] if ERRORS[code].retry is Retry.LATER else [])


Place = tuple[int, int]
"""Where an event is in a batch: which submission, and which of its events."""


@dataclass(frozen=True, slots=True)
class _Open:
    """An answer that takes a lookup: ``hash`` is the event's own, ``None`` where it is known to be the stored one."""

    place: Place
    lookup: Lookup
    hash: bytes | None


@dataclass(frozen=True, slots=True)
class Outcome(Appended):
    """What became of a batch, what it added to which stream, in the order of the commits, and where payloads went."""

    runs: list[tuple[StreamKey, Run]]
    erased: frozenset[StreamKey]


class Answers:
    """The answers to one batch. Every event is answered once.

    Args:
        batch: what is answered.
    """

    def __init__(self, batch: Sequence[Submission]) -> None:
        self._batch = batch
        self._given: list[dict[int, tuple[int, Result]]] = [{} for _ in batch]
        self._open: list[_Open] = []
        self._suspects: set[int] = set()
        self._names_stored = False
        self._in_order = True
        self._broken_up = False

    def give(self, place: Place, run: AnswerRun) -> None:
        """Answer with a run of ``Ingested.results`` of kind NEW, DUPLICATE or REFUSED."""
        if run[0] == NEW:
            submission, event = place
            given = self._given[submission]
            assert event not in given, place
            given[event] = (run[1], ResultAccepted(*run[1:]))
        elif run[0] == DUPLICATE:
            _, seq, stored_chain, stored_at_ms = run
            self._names_stored = True
            self.answer(place, ResultDuplicate(seq, stored_chain, stored_at_ms))
        else:
            _, code, detail = run
            if code == "bad_signature":
                self._suspects.add(place[0])
            self.answer(place, ResultError(code, list(detail)))

    def answer(self, place: Place, result: Result, *, count: int = 1) -> None:
        """Answer ``count`` events from ``place`` on."""
        submission, event = place
        given = self._given[submission]
        assert event not in given, place
        given[event] = (count, result)

    def look_up(self, place: Place, lookup: Lookup, hash_: bytes | None) -> None:
        """Leave an answer to what a lookup finds; ``hash_`` is the event's, where it may differ from what is stored."""
        self._open.append(_Open(place, lookup, hash_))

    def break_up(self) -> None:
        """From now on runs are answered in pieces, which ``results`` joins again."""
        self._broken_up = True
        self._in_order = False

    def close(self, find: Callable[[Sequence[Lookup]], Mapping[Lookup, Found]]) -> None:
        """Answer what was left to lookups. What ``find`` raises is raised, and those answers stay open."""
        if not self._open:
            return
        found = find([each.lookup for each in self._open])
        self._in_order = False
        for each in self._open:
            result = _stored(found.get(each.lookup), each.hash)
            self._names_stored = self._names_stored or isinstance(result, ResultDuplicate)
            self.answer(each.place, result)
        self._open.clear()

    def give_up(self, result: ResultError) -> None:
        """Answer every event that has no answer yet."""
        self._open.clear()
        self._in_order = False
        for index, (submission, given) in enumerate(zip(self._batch, self._given, strict=True)):
            answered = {event for start, (count, _) in given.items() for event in range(start, start + count)}
            for event in range(len(submission.events)):
                if event not in answered:
                    self.answer((index, event), result)

    @property
    def name_stored(self) -> bool:
        """Whether one of them says that its event was stored before."""
        return self._names_stored

    def suspects(self) -> frozenset[int]:
        """Indices of submissions that held a bad signature."""
        return frozenset(self._suspects)

    def results(self) -> list[list[Result]]:
        """The answers per submission, in order of its events, consecutive seqs of one stream joined."""
        if self._in_order:
            return [[result for _, result in given.values()] for given in self._given]
        ordered = [sorted(given.items()) for given in self._given]
        if not self._broken_up:
            return [[result for _, (_, result) in given] for given in ordered]
        return [self._joined(*each) for each in zip(self._batch, ordered, strict=True)]

    @staticmethod
    def _joined(submission: Submission, given: list[tuple[int, tuple[int, Result]]]) -> list[Result]:
        joined: list[Result] = []
        stream = ""
        for start, (_, result) in given:
            last = joined[-1] if joined else None
            if isinstance(result, ResultAccepted):
                last_stream, stream = stream, submission.events.event(start).stream
                if (
                    isinstance(last, ResultAccepted)
                    and last_stream == stream
                    and last.first_seq + last.count == result.first_seq
                    and last.received_at_ms == result.received_at_ms
                ):
                    joined[-1] = ResultAccepted(
                        last.count + result.count, last.first_seq, last.received_at_ms, result.chain
                    )
                    continue
            joined.append(result)
        return joined


def _stored(found: Found | None, hash_: bytes | None) -> Result:
    """The answer to an event under whose author number ``found`` is stored."""
    if found is None:
        return UNCHECKED
    stored_hash = event_hash(_keepstep, found.header, found.sig)
    if hash_ is not None and hash_ != stored_hash:
        return ResultError("id_reused", [found.seq, stored_hash])
    return ResultDuplicate(found.seq, found.chain, found.received_at_ms)
