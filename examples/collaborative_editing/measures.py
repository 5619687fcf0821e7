"""What a session measures: when each event was published, acknowledged and delivered, and what that comes to."""

from __future__ import annotations

import time
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Latency:
    """Of many events, milliseconds."""

    p50_ms: float
    p99_ms: float

    def __str__(self) -> str:
        return f"p50 {self.p50_ms:.1f} ms, p99 {self.p99_ms:.1f} ms"


def latency(seconds: list[float]) -> Latency:
    """The middle one, and the one that a hundredth are above."""
    ordered = sorted(seconds) or [0.0]
    return Latency(1000 * ordered[len(ordered) // 2], 1000 * ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)])


@dataclass(slots=True)
class Measures:
    """Seconds on one monotonic clock; all devices of the session run in one process.

    Attributes:
        published_s: when an event was given to its device, by index.
        ack_s: from there until its device knew that the server has it on its disk.
        delivery_s: from there until the other author had it verified and decrypted.
    """

    published_s: dict[int, float] = field(default_factory=dict)
    ack_s: list[float] = field(default_factory=list)
    delivery_s: list[float] = field(default_factory=list)

    def published(self, index: int) -> None:
        """An event is given to its device."""
        self.published_s[index] = time.monotonic()

    def acknowledged(self, index: int) -> None:
        """Its device knows that the server has it."""
        self.ack_s.append(time.monotonic() - self.published_s[index])

    def delivered(self, index: int) -> None:
        """The other author has it."""
        self.delivery_s.append(time.monotonic() - self.published_s[index])
