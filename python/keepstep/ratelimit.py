"""How often one caller may call: token buckets in this process's memory, bounded in number.

A bucket holds a window's worth of calls and fills evenly, so that a caller may spend all of it at once and then goes
on at the rate. A server of several nodes counts on each; ``access.RateLimiter`` is where a shared count fits.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from keepstep.access import RateState
from keepstep.errors import ProtocolError

if TYPE_CHECKING:
    from keepstep.access import RatePolicy
    from keepstep.interfaces import Clock

CALLERS_MAX: Final = 20_000
"""Buckets that are remembered; beyond it the one used longest ago is forgotten, as if it were full again."""


class RateLimited(ProtocolError):
    """A caller has used up its calls.

    Attributes:
        state: what it is told of its bucket.
    """

    def __init__(self, state: RateState, *, retry_after_ms: int) -> None:
        super().__init__("rate_limited", retry_after_ms=retry_after_ms)
        self.state = state


class MemoryRateLimiter:
    """Token buckets by caller.

    Args:
        clock: its monotonic seconds fill the buckets.
        callers_max: buckets that are remembered.
    """

    def __init__(self, clock: Clock, *, callers_max: int = CALLERS_MAX) -> None:
        self._clock = clock
        self._callers_max = callers_max
        self._buckets: OrderedDict[tuple[str, str], tuple[float, float]] = OrderedDict()

    async def take(self, caller: str, policy: RatePolicy) -> RateState:
        """Count one call; never waits. See ``access.RateLimiter``."""
        now_s = self._clock.monotonic_s()
        key = (policy.name, caller)
        held, at_s = self._buckets.get(key, (float(policy.calls), now_s))
        rate = policy.calls / policy.window_s
        held = min(float(policy.calls), held + (now_s - at_s) * rate)
        granted = held >= 1
        held -= granted
        self._buckets[key] = held, now_s
        self._buckets.move_to_end(key)
        if len(self._buckets) > self._callers_max:
            self._buckets.popitem(last=False)
        state = RateState(policy=policy, remaining=int(held), reset_s=_whole((policy.calls - held) / rate))
        if not granted:
            raise RateLimited(state, retry_after_ms=max(1, _whole((1 - held) / rate * 1000)))
        return state


def _whole(value: float) -> int:
    """Rounded up: a caller that waits this long has waited long enough."""
    return -int(-value // 1)
