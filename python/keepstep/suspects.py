"""Devices that sent bad signatures, and how many more of them each may cost the server (ADR 0331).

A bad signature costs a verification and brings its sender nothing: a device could have the server verify for it alone.
Every device, and all devices of a user together, have a bucket that each bad signature takes one from. A device whose
bucket, or whose user's, is empty waits until one has come back before anything of it is verified again. Only devices
that have sent a bad signature are looked up here: what another device of the user does costs an honest one nothing.

What is known is of this process alone, bounded in number, and outlives the device's connections for ``REMEMBERED_S``.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Hashable
from typing import TYPE_CHECKING, Final, Generic, TypeVar

import trio

from keepstep.errors import ProtocolError

if TYPE_CHECKING:
    from keepstep.interfaces import Clock
    from keepstep.model import DevicePk, Principal, UserPk
    from keepstep.telemetry import Metrics

DEVICE_BURST: Final = 64.0
"""Bad signatures that a device may send before it waits."""
DEVICE_PER_S: Final = 1.0
"""Bad signatures of a device in a second from then on. What counts is the message more than its verification (30 µs):
one by itself takes a wake-up, a batch and a question to the database, 5 ms in all on an idle server."""
USER_BURST: Final = 256.0
"""Bad signatures of all devices of a user before those that send them wait."""
USER_PER_S: Final = 4.0
"""Those in a second from then on."""
WAIT_MAX_S: Final = 20.0
"""The longest wait, seconds: below the time within which a device gives up a connection that takes nothing."""
REMEMBERED_S: Final = 600.0
"""How long after its last bad signature a device is suspect, seconds."""
REMEMBERED_MAX: Final = 10_000
"""Devices, and users, that are remembered; beyond it the one that sent a bad signature longest ago is forgotten."""
SUSPECT_INFLIGHT_MAX: Final = 1
"""Publishes without an answer of a suspect device's session: no more is verified than it is charged for in time."""

_Who = TypeVar("_Who", bound=Hashable)


class _Buckets(Generic[_Who]):
    """One bucket for each of many; one that was never taken from is full."""

    def __init__(self, burst: float, per_s: float, remembered_max: int) -> None:
        self._burst = burst
        self._per_s = per_s
        self._remembered_max = remembered_max
        self._held: OrderedDict[_Who, tuple[float, float]] = OrderedDict()

    def take(self, who: _Who, count: int, now_s: float) -> None:
        """Take so many out, also more than there are; nobody's wait gets longer than ``WAIT_MAX_S`` by it."""
        left = self._level(who, now_s) - count
        self._held[who] = max(left, 1 - WAIT_MAX_S * self._per_s), now_s
        self._held.move_to_end(who)
        if len(self._held) > self._remembered_max:
            self._held.popitem(last=False)

    def holds(self, who: _Who, now_s: float) -> bool:
        """Whether something was taken from it within ``REMEMBERED_S``; forgets what is older."""
        held = self._held.get(who)
        if held is None:
            return False
        if now_s - held[1] >= REMEMBERED_S:
            del self._held[who]
            return False
        return True

    def wait_s(self, who: _Who, now_s: float) -> float:
        """Seconds until one is in it."""
        return max(0.0, (1 - self._level(who, now_s)) / self._per_s)

    def _level(self, who: _Who, now_s: float) -> float:
        level, at_s = self._held.get(who, (self._burst, now_s))
        return min(self._burst, level + (now_s - at_s) * self._per_s)


class Suspects:
    """Who sent bad signatures to this process, and when more of it may be verified.

    Args:
        clock: its monotonic seconds fill the buckets.
        metrics: counts what waits or is refused.
        remembered_max: devices, and users, that are remembered.
    """

    def __init__(self, clock: Clock, metrics: Metrics, *, remembered_max: int = REMEMBERED_MAX) -> None:
        self._clock = clock
        self._metrics = metrics
        self._devices: _Buckets[tuple[UserPk, DevicePk]] = _Buckets(DEVICE_BURST, DEVICE_PER_S, remembered_max)
        self._users: _Buckets[UserPk] = _Buckets(USER_BURST, USER_PER_S, remembered_max)

    def blame(self, principal: Principal, bad_signatures: int) -> None:
        """Charge a device, and its user, with so many."""
        now_s = self._clock.monotonic_s()
        self._devices.take((principal.user_pk, principal.device_pk), bad_signatures, now_s)
        self._users.take(principal.user_pk, bad_signatures, now_s)

    def knows(self, principal: Principal) -> bool:
        """Whether the device sent a bad signature within ``REMEMBERED_S``."""
        return self._devices.holds((principal.user_pk, principal.device_pk), self._clock.monotonic_s())

    def wait_ms(self, principal: Principal) -> int:
        """Until more of the device may be verified; 0: now, and always where it is not suspect."""
        if not self.knows(principal):
            return 0
        now_s = self._clock.monotonic_s()
        wait_s = self._devices.wait_s((principal.user_pk, principal.device_pk), now_s)
        return math.ceil(max(wait_s, self._users.wait_s(principal.user_pk, now_s)) * 1000)

    async def wait(self, principal: Principal) -> None:
        """Return when more of the device may be verified. Cancel-safe: nothing is taken by waiting."""
        self._metrics.suspects_held_back.inc()
        # Again and again: another device of the user may be charged meanwhile.
        while wait_ms := self.wait_ms(principal):  # noqa: ASYNC110 (time is what is waited for)
            await trio.sleep(wait_ms / 1000)

    def require(self, principal: Principal) -> None:
        """For callers that cannot be held. Raises ProtocolError ``limit_exceeded`` where the device has to wait."""
        wait_ms = self.wait_ms(principal)
        if wait_ms:
            self._metrics.suspects_held_back.inc()
            raise ProtocolError("limit_exceeded", "the device sends bad signatures", retry_after_ms=wait_ms)
