"""What a publisher knows of one connection: what is on its way, and which streams are held back and why."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from keepstep.client.connection import Connection
    from keepstep.client.outbox import Entry

UNCHECKED: Final = "duplicate(unchecked)"
"""The code of the trouble that a duplicate is in which the server cannot compare, of an event that was never sent."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why a stream is held back: the answer to one of its events."""

    entry: Entry
    code: str
    detail: list[Any]


@dataclass(slots=True, eq=False)
class Held:
    """A stream from which nothing is sent for now.

    Attributes:
        until_resumed: the answer to a subscription will say what the server has of this device.
        author: that answer.
        floor_n: what the server had acknowledged before it was asked: it cannot have less; ``None``: as of now.
        trouble: what has to be put right once nothing of the stream is on its way.
        until_s: when to go on, by Trio's clock.
    """

    until_resumed: bool = False
    author: tuple[int, bytes] | None = None
    floor_n: int | None = None
    trouble: Trouble | None = None
    until_s: float = math.inf


@dataclass(slots=True, eq=False)
class Sending:
    """What belongs to one connection.

    Attributes:
        connection: to the server.
        followed: streams that are read, now.
        held: streams from which nothing is sent for now.
        next_rid: the number of the next publish.
        inflight: publishes that are not answered.
        per_stream: how many events of a stream are among them.
        fruitless: how often a stream was sent again and got no further.
        retries: answers that said later, one after the other.
        adopted: streams in which this device was found to be behind itself.
        asking: streams subscribed to only to learn what the server has of this device.
        draining: the server takes nothing new.
    """

    connection: Connection
    followed: Collection[str]
    held: dict[str, Held]
    next_rid: int = 1
    inflight: dict[int, list[Entry]] = field(default_factory=dict)
    per_stream: Counter[str] = field(default_factory=Counter)
    fruitless: Counter[str] = field(default_factory=Counter)
    retries: Counter[str] = field(default_factory=Counter)
    adopted: set[str] = field(default_factory=set)
    asking: set[str] = field(default_factory=set)
    draining: bool = False
