"""Time, randomness, network and threads of a device, in one value, so that a test or a simulation owns them."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from ssl import SSLContext
from typing import Final

from keepstep.client.transport import Transport, open_transport
from keepstep.client.worker import ThreadWorker, Worker


@dataclass(frozen=True, slots=True)
class Environment:
    """What the client takes from the machine besides files and sockets.

    Attributes:
        now_ms: wall clock, unix milliseconds; may step.
        random_bytes: that many bytes fit for keys and nonces.
        jitter: a number between 0 and its argument, evenly spread; only for waiting times.
        open_transport: connects to a ``ws://`` or ``wss://`` address, as ``transport.open_transport``.
        make_worker: makes what a device runs its blocking calls in.
    """

    now_ms: Callable[[], int]
    random_bytes: Callable[[int], bytes]
    jitter: Callable[[float], float]
    open_transport: Callable[[str, SSLContext | None], AbstractAsyncContextManager[Transport]]
    make_worker: Callable[[], Worker]


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _jitter(limit: float) -> float:
    return random.uniform(0, limit)  # noqa: S311 - spreads reconnects, keeps no secret


SYSTEM: Final = Environment(
    now_ms=_now_ms,
    random_bytes=os.urandom,
    jitter=_jitter,
    open_transport=open_transport,
    make_worker=ThreadWorker,
)
"""The machine's own."""


def uuid4(environment: Environment) -> bytes:
    """A random UUID (RFC 9562 section 5.4), 16 bytes."""
    return _with_version(int.from_bytes(environment.random_bytes(16), "big"), 4)


def uuid7(environment: Environment) -> bytes:
    """A time-ordered UUID (RFC 9562 section 5.7), 16 bytes."""
    random_part = int.from_bytes(environment.random_bytes(10), "big")
    return _with_version((environment.now_ms() & (2**48 - 1)) << 80 | random_part, 7)


def _with_version(value: int, version: int) -> bytes:
    value = value & ~(0xF << 76) | version << 76
    value = value & ~(0b11 << 62) | 0b10 << 62
    return value.to_bytes(16, "big")
