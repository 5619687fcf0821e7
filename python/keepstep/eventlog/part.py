"""Parts of a batch: what is stored in one transaction, and how it is taken apart where that cannot be."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from operator import attrgetter
from typing import TYPE_CHECKING, Final

from keepstep.errors import Unavailable
from keepstep.eventlog.store import EVENT_OVERHEAD_BYTES_MAX, StreamKey

if TYPE_CHECKING:
    from keepstep._keepstep import Submission
    from keepstep.eventlog.answers import Place

ATTEMPTS_MAX: Final = 5
"""How often one part of a batch is stored again before it is answered ``unavailable``."""
RETRY_AFTER_MS: Final = 1_000
"""When a device tries again what could not be stored for now."""

_USER_PK: Final = attrgetter("user_pk")
"""Without a Python call for each submission."""


@dataclass(frozen=True)
class Part:
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

    @cached_property
    def users(self) -> frozenset[int]:
        """Who the events are from."""
        return frozenset(map(_USER_PK, self.submissions))

    @property
    def event_count(self) -> int:
        """How many events."""
        return sum(len(each.events) for each in self.submissions)

    @cached_property
    def bytes_by_user(self) -> dict[int, int]:
        """What each user's events take at most."""
        found: dict[int, int] = {}
        for each in self.submissions:
            bytes_ = each.events.payload_bytes + len(each.events) * EVENT_OVERHEAD_BYTES_MAX
            found[each.user_pk] = found.get(each.user_pk, 0) + bytes_
        return found

    def again(self, *, locked: bool) -> Part:
        """The same, to be tried once more. Raises Unavailable after ``ATTEMPTS_MAX``."""
        if self.attempts + 1 == ATTEMPTS_MAX:
            raise Unavailable("other transactions kept getting in the way", retry_after_ms=RETRY_AFTER_MS)
        return replace(self, locked=locked, attempts=self.attempts + 1)

    def singles(self) -> Iterator[tuple[Submission, Place]]:
        """The same events, one submission each; verdicts on signatures are kept."""
        for submission, place in zip(self.submissions, self.places, strict=True):
            for index, events in enumerate(submission.events.split()):
                yield submission.with_events(events), (place[0], place[1] + index)

    def halves(self) -> tuple[Part, Part]:
        """The events of more than one, in two parts."""
        submissions, places = zip(*self.singles(), strict=True)
        middle = len(submissions) // 2
        first = replace(self, submissions=submissions[:middle], places=places[:middle])
        second = replace(self, submissions=submissions[middle:], places=places[middle:])
        return first, second

    def of_streams(self, keys: set[StreamKey]) -> Part:
        """The events in some of the streams, to be stored under locks."""
        chosen = [
            (submission, place)
            for submission, place in self.singles()
            if any((submission.user_pk, name) in keys for name in submission.events.streams)
        ]
        submissions, places = zip(*chosen, strict=True)
        return replace(self.again(locked=True), submissions=submissions, places=places)
