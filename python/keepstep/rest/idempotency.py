"""Answers that are given again to a call with the same ``Idempotency-Key``, in this process's memory."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

from keepstep.errors import ProtocolError, Unavailable
from keepstep.rest.endpoints import BadRequest, Reply

if TYPE_CHECKING:
    from keepstep.interfaces import Clock

KEEP_S: Final = 600.0
"""How long an answer is kept: a client that repeats a call does so soon."""
ANSWERS_MAX: Final = 1_000
"""Answers that are kept; beyond it the oldest is forgotten."""

_KEY: Final = re.compile(r"\A[A-Za-z0-9._-]{1,64}\Z")


class RepeatedAnswers:
    """What was answered under which key.

    Args:
        clock: its monotonic seconds.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._answers: OrderedDict[tuple[str, str], tuple[float, bytes, Reply | None]] = OrderedDict()

    async def once(self, caller: str, key: str, request: bytes, answer: Callable[[], Awaitable[Reply]]) -> Reply:
        """The answer to a call, made by ``answer`` unless it was made before.

        An error is not kept: the call may be made again. Cancel-safe likewise.

        Args:
            caller: who calls what; keys of different callers have nothing to do with each other.
            key: as the caller gave it.
            request: what tells one request from another, hashed.
            answer: makes the answer.

        Raises:
            ProtocolError: ``malformed`` key; ``key_reused`` for another request; ``unavailable`` while the first call
                is being answered.
        """
        if not _KEY.match(key):
            raise BadRequest("Idempotency-Key: 1 to 64 of A-Z a-z 0-9 . _ -")
        self._forget()
        found = self._answers.get((caller, key))
        if found is not None:
            _, made_for, reply = found
            if made_for != request:
                raise ProtocolError("key_reused")
            if reply is None:
                raise Unavailable("the first call with this key is being answered")
            return reply
        place = caller, key
        self._answers[place] = self._clock.monotonic_s(), request, None
        try:
            reply = await answer()
        except BaseException:
            self._answers.pop(place, None)
            raise
        self._answers[place] = self._clock.monotonic_s(), request, reply
        return reply

    def _forget(self) -> None:
        """What is too old or too much."""
        now_s = self._clock.monotonic_s()
        while self._answers:
            place, (at_s, _, _) = next(iter(self._answers.items()))
            if at_s > now_s - KEEP_S and len(self._answers) < ANSWERS_MAX:
                return
            del self._answers[place]
