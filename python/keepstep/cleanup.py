"""Clean-up: what nobody needs any more goes, in small steps, by one node at a time.

Every kind of leftover goes the same way: a named step drops at most ``ROWS_MAX`` rows in a short transaction of its
own and says how many. A run takes the steps in turn until each has nothing left or has had its share; what is left
waits for the next run, of whichever node. A node that dies in between leaves nothing half done.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final, Protocol

from keepstep.pacing import GENTLE

if TYPE_CHECKING:
    from keepstep.interfaces import Clock
    from keepstep.telemetry import Metrics

ROWS_MAX: Final = 1_000
"""Rows that one transaction drops."""
STEPS_MAX: Final = 100
"""Transactions of one step in one run."""
TURN: Final = "clean_up"
"""The lease of the node that cleans up."""
TURN_MS: Final = 5 * 60 * 1000
"""How long a node that says nothing keeps the others waiting: longer than a run of all steps takes."""
HOLDER_BYTES: Final = 16
"""Random bytes that tell nodes apart."""
DAY_MS: Final = 24 * 60 * 60 * 1000
SESSION_LOST_MS: Final = 60 * 60 * 1000
"""A session of which no node has said for so long that it is open is closed: six times ``jobs.KEEP_SESSIONS_S``."""


class Housekeeping(Protocol):
    """What clean-up needs of the database. All methods raise Unavailable; a cancellation waits for the end."""

    async def take_turn(self, name: str, holder: bytes, *, now_ms: int, until_ms: int) -> bool:
        """Take or keep a lease until then, unless another holder has it; whether it is ours."""

    async def close_lost_sessions(self, *, before_ms: int, rows_max: int) -> int:
        """Record the end of at most ``rows_max`` sessions of which no node has said since then that they are open.

        They end, as ``SESSION_LOST``, when they were last known to be open. Returns how many.
        """

    async def drop_sessions(self, *, before_ms: int, rows_max: int) -> int:
        """Forget at most ``rows_max`` sessions that were closed before then; how many."""

    async def drop_invites(self, *, before_ms: int, rows_max: int) -> int:
        """Forget at most ``rows_max`` invites that were used or ran out before then; how many."""

    async def clean_devices(self, *, before_ms: int, now_ms: int, rows_max: int) -> int:
        """Drop about ``rows_max`` rows of devices that were not seen since then; how many.

        Positions, closed sessions, families of refresh tokens, payloads in the inbox. The devices stay live: only a
        device that manages can end them, and with its keys in hand one reads everything again from where it likes.
        """


class Step(Protocol):
    """One kind of leftover."""

    async def __call__(self, *, now_ms: int, rows_max: int) -> int:
        """Drop at most ``rows_max`` rows; how many. Raises Unavailable."""


class CleanUp:
    """Runs the steps.

    Args:
        housekeeping: where the lease is.
        holder: this node, 16 random bytes.
        steps: by name.
        clock: the one ``received_at`` follows.
        metrics: counted into.
    """

    def __init__(
        self, housekeeping: Housekeeping, holder: bytes, steps: Mapping[str, Step], clock: Clock, metrics: Metrics
    ) -> None:
        self._housekeeping = housekeeping
        self._holder = holder
        self._steps = steps
        self._clock = clock
        self._metrics = metrics

    async def run(self) -> None:
        """One run, if it is this node's turn. Raises Unavailable."""
        for name, step in self._steps.items():
            now_ms = self._clock.now_ms()
            turn = self._housekeeping.take_turn(TURN, self._holder, now_ms=now_ms, until_ms=now_ms + TURN_MS)
            if not await turn:
                return
            if await self._exhaust(name, step):
                self._metrics.clean_up_done_timestamp.labels(name).set(self._clock.now_ms() / 1000)

    async def _exhaust(self, name: str, step: Step) -> bool:
        """Whether nothing is left."""
        for _ in range(STEPS_MAX):
            dropped = await GENTLE.step(lambda: step(now_ms=self._clock.now_ms(), rows_max=ROWS_MAX))
            self._metrics.cleaned_up_rows.labels(name).inc(dropped)
            if not dropped:
                return True
        return False


def lost_sessions_step(housekeeping: Housekeeping) -> Step:
    """Sessions whose node died."""

    async def step(*, now_ms: int, rows_max: int) -> int:
        return await housekeeping.close_lost_sessions(before_ms=now_ms - SESSION_LOST_MS, rows_max=rows_max)

    return step


def sessions_step(housekeeping: Housekeeping, days: Callable[[], int]) -> Step:
    """Sessions closed so many days ago; asked each time, for settings change while the server runs."""

    async def step(*, now_ms: int, rows_max: int) -> int:
        return await housekeeping.drop_sessions(before_ms=now_ms - days() * DAY_MS, rows_max=rows_max)

    return step


def invites_step(housekeeping: Housekeeping, days: Callable[[], int]) -> Step:
    """Invites used, or run out, so many days ago."""

    async def step(*, now_ms: int, rows_max: int) -> int:
        return await housekeeping.drop_invites(before_ms=now_ms - days() * DAY_MS, rows_max=rows_max)

    return step


def devices_step(housekeeping: Housekeeping, days: Callable[[], int | None]) -> Step:
    """Devices not seen for so many days; ``None``: none."""

    async def step(*, now_ms: int, rows_max: int) -> int:
        inactive_days = days()
        if inactive_days is None:
            return 0
        before_ms = now_ms - inactive_days * DAY_MS
        return await housekeeping.clean_devices(before_ms=before_ms, now_ms=now_ms, rows_max=rows_max)

    return step
