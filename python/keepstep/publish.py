"""From a session's submission to its answer: batch, append, acknowledge (protocol.md section 3).

Pipelines are sharded by user, so that one user's events stay in order while one pipeline commits and another waits
for the disk. A pipeline takes whatever waits, without a timer, appends it in one transaction, and answers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, groupby
from typing import TYPE_CHECKING, Final, Protocol

import trio
from msgspec import Struct

from keepstep._keepstep import Submission
from keepstep.diskspace import RETRY_AFTER_MS, EnoughRoom
from keepstep.errors import ProtocolError, Retry, Unavailable
from keepstep.identity import OutOfOrder
from keepstep.journal import NO_JOURNAL, keep_published
from keepstep.model import Kind, Principal
from keepstep.protocol.account_payloads import FULL_CAPABILITIES
from keepstep.protocol.keys import decode_keys
from keepstep.protocol.messages import ResultError
from keepstep.protocol.results import count_results, decode_results, encode_results
from keepstep.publishqueue import PublishQueue
from keepstep.suspects import Suspects

if TYPE_CHECKING:
    from keepstep._keepstep import Events
    from keepstep.diskspace import Room
    from keepstep.identity import Identity
    from keepstep.interfaces import Clock, EventLog
    from keepstep.journal import AccountJournal
    from keepstep.model import AccountChange, UserPk
    from keepstep.protocol.messages import Result
    from keepstep.telemetry import Log, Metrics


class Submitter(Protocol):
    """Who handed in a submission, and is told what became of it."""

    def answered(self, rid: int, results: bytes, *, suspect: bool) -> None:
        """A submission was decided; neither blocks nor raises.

        Args:
            rid: what it was handed in with.
            results: for ``messages.Accepted``, in order of its events, encoded (``protocol.results``).
            suspect: it held a bad signature.
        """


class AwaitedAnswer:
    """A ``Submitter`` that waits for the answer to the one submission it hands in."""

    def __init__(self) -> None:
        self._results: list[Result] = []
        self._decided = trio.Event()

    def answered(self, rid: int, results: bytes, *, suspect: bool) -> None:
        """As ``Submitter.answered``."""
        del rid, suspect
        self._results = decode_results(results)
        self._decided.set()

    async def wait(self) -> list[Result]:
        """The answers, in order of the events. Cancel-safe."""
        await self._decided.wait()
        return self._results


@dataclass(frozen=True, slots=True)
class PublishLimits:
    """What the pipelines may hold.

    Attributes:
        pipelines: how many.
        queue_max: submissions that wait for one pipeline.
        queue_bytes_max: bytes of their events; a single larger submission still waits there.
        batch_events_max: events in one transaction.
        batch_bytes_max: bytes of events in one transaction; a single larger submission still goes.
    """

    pipelines: int
    queue_max: int
    queue_bytes_max: int
    batch_events_max: int
    batch_bytes_max: int


_ESSENTIAL_KINDS: Final = frozenset({Kind.ACCOUNT, Kind.KEYS, Kind.ERASE})
TOLD_EVERY_S: Final = 60.0
"""The log has one line in so many seconds that nothing can be stored: devices come again and again meanwhile."""
_LATER: Final = ResultError("unavailable", [RETRY_AFTER_MS])
"""The disk has no room, or the log is another one than the submission was made for."""


class _Waiting(Struct):
    """A submission with its way back; a struct, for one is made of each."""

    principal: Principal
    submission: Submission
    submitter: Submitter
    rid: int
    generation: int
    submitted_at_s: float

    @property
    def events(self) -> int:
        """How many."""
        return len(self.submission)


class Gate(Protocol):
    """Says whether a user may publish now (``healing.Healing``)."""

    def is_open(self, user_pk: UserPk) -> bool:
        """Whether that is known to be so, without asking anybody."""

    async def wait_ms(self, user_pk: UserPk) -> int | None:
        """How long to wait before publishing, ``None``: not at all. Raises Unavailable."""


class OpenGate:
    """Lets everybody publish."""

    def is_open(self, user_pk: UserPk) -> bool:
        """As ``Gate.is_open``."""
        del user_pk
        return True

    async def wait_ms(self, user_pk: UserPk) -> int | None:
        """As ``Gate.wait_ms``."""
        del user_pk
        return None


class Publisher:
    """The pipelines.

    Args:
        log: what they append to.
        identity: checks account events.
        clock: the one ``received_at`` follows.
        limits: see ``PublishLimits``.
        metrics: counted into.
        gate: asked before anything is handed to a pipeline.
        journal: takes the events of ``$devices`` before they are acknowledged.
        room: whether the disks take new events; what revokes or deletes goes on without.
        logger: told why nothing can be stored.

    Attributes:
        suspects: charged with the bad signatures that are found; whoever hands in asks it first.
    """

    def __init__(
        self,
        log: EventLog,
        identity: Identity,
        clock: Clock,
        *,
        limits: PublishLimits,
        metrics: Metrics,
        gate: Gate | None = None,
        journal: AccountJournal = NO_JOURNAL,
        room: Room | None = None,
        logger: Log | None = None,
    ) -> None:
        self._logger = logger
        self._told_at_s = -TOLD_EVERY_S
        self._gate = gate or OpenGate()
        self._journal = journal
        self._room = room or EnoughRoom()
        self._log = log
        self._identity = identity
        self._clock = clock
        self._limits = limits
        self._metrics = metrics
        self.suspects = Suspects(clock, metrics)
        self._queues = [
            PublishQueue[_Waiting](limits.queue_max, limits.queue_bytes_max) for _ in range(limits.pipelines)
        ]

    @property
    def waiting(self) -> int:
        """Submissions that wait for a pipeline."""
        return sum(map(len, self._queues))

    @property
    def waits_for_room(self) -> bool:
        """Whether new events are turned away until a disk has room."""
        return self._room.is_low

    def submit_nowait(
        self,
        principal: Principal,
        submission: Submission,
        submitter: Submitter,
        rid: int,
        generation: int,
        now_s: float,
    ) -> bool:
        """Hand in a submission where that takes no waiting; whether it was. Else ``submit`` is the way.

        ``submitter`` is told as by ``submit``, never within this call. ``generation``: as there. ``now_s``: Trio time.
        """
        if not self._gate.is_open(principal.user_pk):
            return False
        waiting = _Waiting(principal, submission, submitter, rid, generation, now_s)
        queue = self._queues[principal.user_pk % len(self._queues)]
        return queue.add_nowait(principal.user_pk, waiting, submission.weight)

    async def submit(
        self,
        principal: Principal,
        submission: Submission,
        submitter: Submitter,
        rid: int = 0,
        *,
        generation: int | None = None,
    ) -> None:
        """Hand in a submission; waits while the pipeline's queue is full.

        ``generation``: of the log in which ``principal`` was looked up, where that was not just now. In another one its
        row numbers may be somebody else's: what is taken there is answered ``unavailable``.

        ``submitter`` is told exactly once, from a pipeline, in the order of submission for each user. Cancel-safe: a
        cancelled call has handed in nothing.
        """
        generation = self._log.generation() if generation is None else generation
        waiting = _Waiting(principal, submission, submitter, rid, generation, trio.current_time())
        try:
            wait_ms = await self._gate.wait_ms(principal.user_pk)
        except Unavailable as error:
            self._answer(waiting, [_refused(error)] * waiting.events, suspect=False)
            return
        if wait_ms is not None:
            self._answer(waiting, [ResultError("unavailable", [wait_ms])] * waiting.events, suspect=False)
            return
        queue = self._queues[principal.user_pk % len(self._queues)]
        await queue.add(principal.user_pk, waiting, submission.weight)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run the pipelines until ``close`` and everything handed in is answered."""
        async with trio.open_nursery() as nursery:
            for queue in self._queues:
                nursery.start_soon(self._pipeline, queue)
            task_status.started()

    def close(self) -> None:
        """Nothing more is handed in; ``run`` returns when what waits is answered."""
        for queue in self._queues:
            queue.close()

    async def _pipeline(self, queue: PublishQueue[_Waiting]) -> None:
        events_max, bytes_max = self._limits.batch_events_max, self._limits.batch_bytes_max
        while True:
            try:
                batch = await queue.take(events_max=events_max, bytes_max=bytes_max)
            except trio.EndOfChannel:
                return
            if batch[0].submission.has_reserved:
                await self._one_by_one(batch[0])
            else:
                for part in [[one] for one in batch] if self._room.is_low else [batch]:
                    await self._append(part)

    async def _append(self, batch: list[_Waiting]) -> None:
        if self._room.is_low and not _goes_on(batch[0].submission.events):
            for waiting in batch:
                self._answer(waiting, [_LATER] * waiting.events, suspect=False)
            return
        if {waiting.generation for waiting in batch} != {self._log.generation()}:
            batch = self._of_this_log(batch)
            if not batch:
                return
        started_s = trio.current_time()
        try:
            appended = await self._log.append([waiting.submission for waiting in batch], now_ms=self._clock.now_ms())
        except Unavailable as error:
            self._tell(error)
            for waiting in batch:
                self._answer(waiting, [_refused(error)] * waiting.events, suspect=False)
            return
        now_s = trio.current_time()
        self._metrics.appended(sum(appended.counts.values()), now_s - started_s)
        self._metrics.answered_together([now_s - waiting.submitted_at_s for waiting in batch], appended.counts)
        if appended.suspects:
            for index in appended.suspects:
                self._blame(batch[index].principal, decode_results(appended.encoded[index]))
        for index, (waiting, results) in enumerate(zip(batch, appended.encoded, strict=True)):
            waiting.submitter.answered(waiting.rid, results, suspect=index in appended.suspects)

    def _of_this_log(self, batch: list[_Waiting]) -> list[_Waiting]:
        """What is for the log as it is; the rest is answered."""
        generation = self._log.generation()
        for waiting in batch:
            if waiting.generation != generation:
                self._answer(waiting, [_LATER] * waiting.events, suspect=False)
        return [waiting for waiting in batch if waiting.generation == generation]

    def _tell(self, error: Unavailable) -> None:
        """Devices are not told what is wrong with the server; whoever runs it is."""
        now_s = trio.current_time()
        if self._logger is not None and now_s - self._told_at_s >= TOLD_EVERY_S:
            self._told_at_s = now_s
            self._logger.warning("publishing_refused", code=error.code, detail=error.detail)

    async def _one_by_one(self, waiting: _Waiting) -> None:
        """A submission with account or key events: each of those is decided on what the one before it left."""
        results: list[Result] = []
        suspect = False
        for group in _groups(waiting.submission.events.split()):
            if self._room.is_low and not all(map(_goes_on, group)):
                results += [_LATER] * len(group)
                continue
            if waiting.generation != self._log.generation():
                results += [_LATER] * len(group)
                continue
            batch = [waiting.submission.with_events(events) for events in group]
            now_ms = self._clock.now_ms()
            try:
                change = await self._check(waiting.principal, group[0], now_ms)
                if change is not None:
                    # The account log has decided: a device without ``manage`` may sign itself out.
                    batch = [batch[0].with_capabilities(int(FULL_CAPABILITIES))]
                appended = await self._log.append(batch, now_ms=now_ms, account_change=change)
                if group[0].kinds == [Kind.ACCOUNT]:
                    result = appended.results[0][0]
                    await keep_published(self._journal, waiting.principal.user_key, batch[0], result)
            except OutOfOrder as error:
                results.append(ResultError("out_of_order", [error.last_n, error.last_hash]))
            except ProtocolError as error:
                self._identity.forget(waiting.principal.user_pk)
                results += [_refused(error)] * len(group)
                suspect = suspect or error.code == "bad_signature"
            else:
                results += chain.from_iterable(appended.results)
                suspect = suspect or bool(appended.suspects)
        self._answer(waiting, results, suspect=suspect)

    async def _check(self, principal: Principal, events: Events, now_ms: int) -> AccountChange | None:
        """What the account log or the shape of a key event have to say before the log is asked."""
        if events.kinds == [Kind.ACCOUNT]:
            return await self._identity.check_account_event(principal, events.event(0), now_ms=now_ms)
        if events.kinds == [Kind.KEYS]:
            decode_keys(events.event(0).payload)
        return None

    def _answer(self, waiting: _Waiting, results: list[Result], *, suspect: bool) -> None:
        seconds = trio.current_time() - waiting.submitted_at_s
        self._metrics.answered_together([seconds], count_results(results))
        if suspect:
            self._blame(waiting.principal, results)
        waiting.submitter.answered(waiting.rid, encode_results(results), suspect=suspect)

    def _blame(self, principal: Principal, results: list[Result]) -> None:
        """Charge a device with the bad signatures of a submission."""
        bad = sum(isinstance(each, ResultError) and each.code == "bad_signature" for each in results)
        self.suspects.blame(principal, bad)


def _groups(events: list[Events]) -> Iterator[list[Events]]:
    """Account and key events alone, the others in runs."""
    for special, group in groupby(events, key=_is_special):
        if special:
            yield from ([one] for one in group)
        else:
            yield list(group)


def _is_special(events: Events) -> bool:
    return any(kind in (Kind.ACCOUNT, Kind.KEYS) for kind in events.kinds)


def _goes_on(events: Events) -> bool:
    """Whether they are stored while a disk is nearly full: they revoke, recover or delete."""
    return all(kind in _ESSENTIAL_KINDS for kind in events.kinds)


def _refused(error: ProtocolError) -> ResultError:
    """The answer to an event that an error kept from the log."""
    return ResultError(error.code, [error.retry_after_ms] if error.row.retry is Retry.LATER else [])
