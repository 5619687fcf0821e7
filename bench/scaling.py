"""What more cores would do, from measured processor time an event: a projection, and no measurement.

An event costs time on the event-loop thread, of which a server process has one, on the server's other threads, and in
PostgreSQL. With `cores` cores the rate is bounded by the loop (one core for each process) and by all cores together.
The costs are taken as they were measured: larger batches at higher rates make them smaller, contention that two cores
do not show makes them larger. The load generator runs elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

MICROSECONDS: Final = 1e6
CORES: Final = (2, 4, 16, 64)
PROCESSES_MAX: Final = 256


@dataclass(frozen=True, slots=True)
class EventCost:
    """Processor microseconds an event.

    Attributes:
        loop_us: on the event-loop thread.
        threads_us: on the server's other threads.
        database_us: in PostgreSQL.
    """

    loop_us: float
    threads_us: float
    database_us: float

    @property
    def total_us(self) -> float:
        """On all of them."""
        return self.loop_us + self.threads_us + self.database_us


@dataclass(frozen=True, slots=True)
class Projection:
    """What so many cores would do.

    Attributes:
        cores: that server and database have.
        processes: of the server, on one database.
        events_per_s: the bound.
        bound_by: what is used up first.
    """

    cores: int
    processes: int
    events_per_s: float
    bound_by: Literal["event-loop thread", "cores"]


def project(cost: EventCost, cores: int, processes: int = 1) -> Projection:
    """The rate that so many cores and server processes bound. A cost of 0 bounds nothing; some cost is above 0.

    Args:
        cost: as measured.
        cores: at least 1.
        processes: at least 1.
    """
    by_cores = cores * MICROSECONDS / cost.total_us
    if cost.loop_us * by_cores <= min(processes, cores) * MICROSECONDS:
        return Projection(cores, processes, by_cores, "cores")
    return Projection(cores, processes, min(processes, cores) * MICROSECONDS / cost.loop_us, "event-loop thread")


def processes_needed(cost: EventCost, cores: int) -> int:
    """The fewest server processes whose event loops do not bound the rate, at most one a core."""
    return next(
        processes
        for processes in range(1, PROCESSES_MAX + 1)
        if processes >= cores or project(cost, cores, processes).bound_by == "cores"
    )


def cost_of(figures: dict[str, dict[str, float]]) -> EventCost | None:
    """From the figures of a load; ``None`` where processes were not measured."""
    if not {"loop_us", "server_us", "database_us"} <= figures.keys():
        return None
    loop_us, server_us, database_us = (figures[name]["median"] for name in ("loop_us", "server_us", "database_us"))
    return EventCost(loop_us, max(0.0, server_us - loop_us), database_us)
