"""The workloads that every peer gets, and how the two load generators are asked for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

WARM_UP_S: Final = 2
FINISH_S: Final = 10
"""What is missing then is lost."""
PAYLOAD_BYTES: Final = 256

Workload = Literal["publish", "relay", "catch-up", "idle"]


@dataclass(frozen=True, slots=True)
class Work:
    """One workload.

    Attributes:
        name: of it in the results.
        title: for people.
        workload: of the load generators.
        connections: open; in relay three of them are a group.
        rate: open loop, events a second over all connections; ``None``: closed loop, as fast as it is answered.
        events_per_s_max: closed loop, bounds the events that are made, and signed, beforehand.
        events: that are stored and read in catch-up.
    """

    name: str
    title: str
    workload: Workload
    connections: int
    rate: float | None = None
    events_per_s_max: int = 0
    events: int = 0


PUBLISH: Final = Work("publish", "publish and ack, 100 connections, pipelined", "publish", 100)
PUBLISH_TENS: Final = Work("publish-tens", "publish and ack, ten events a message", "publish", 100)
RELAY: Final = Work("relay", "relay to two others, 99 connections, at saturation", "relay", 99)
RELAY_TENS: Final = Work("relay-tens", "relay to two others, ten events a message, at saturation", "relay", 99)
LATENCY: Final = Work("latency", "relay to two others, 99 connections, at a fixed rate", "relay", 99)
CATCH_UP: Final = Work("catch-up", "one connection reads what is stored", "catch-up", 1)
IDLE: Final = Work("idle", "999 connections that are silent", "idle", 999)


def generator_arguments(work: Work, duration_s: int) -> list[str]:
    """Arguments of ``keepstep-peers`` after protocol and workload.

    Args:
        work: with everything set that its workload needs.
        duration_s: measured seconds.
    """
    given: dict[str, object] = {"connections": work.connections, "payload-bytes": PAYLOAD_BYTES}
    given |= {"duration-s": duration_s, "warm-up-s": WARM_UP_S, "finish-s": FINISH_S}
    if work.rate is not None:
        given["rate"] = f"{work.rate:.0f}"
    elif work.workload == "catch-up":
        given["events-max"] = work.events
    elif work.events_per_s_max:
        given["events-max"] = work.events_per_s_max * (duration_s + WARM_UP_S)
    return [part for name, value in given.items() for part in (f"--{name}", str(value))]
