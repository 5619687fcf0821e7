"""Reads what processes use at the phases of a run."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.caches import Lookups, found_percent, read_lookups
from bench.machine import Cost, Memory, cost, memory

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from bench.scenario import Load


@dataclass(frozen=True, slots=True)
class Usage:
    """Processor time in the measured phase.

    Attributes:
        server: and its database.
        generator_s: of the load generator, in seconds.
        elapsed_s: seconds of the clock.
        found_percent: cache → percent of its look-ups that found what they asked for.
    """

    server: Cost
    generator_s: float
    elapsed_s: float
    found_percent: Mapping[str, float]


class Meter:
    """Of a server whose process is on this machine; reads nothing where there is none.

    Args:
        server_pid: its process.
        rest_url: where it has its metrics.
    """

    def __init__(self, server_pid: int | None, rest_url: str | None) -> None:
        self._server_pid = server_pid
        self._rest_url = rest_url
        self._lookups: list[Lookups] = []
        self._costs: list[tuple[Cost, float, float]] = []
        self._memories: list[Memory] = []

    def phases(self, load: Load) -> Mapping[str, Callable[[int], None]]:
        """What to call at which phase of a load."""
        if load.workload == "idle":
            return {"before": self._read_memory, "measuring": self._read_cost, "measured": self._read_both}
        return {"measuring": self._read_cost, "measured": self._read_cost}

    def _read_cost(self, generator_pid: int) -> None:
        if self._server_pid is not None:
            reading = (cost(self._server_pid), cost(generator_pid).server_s, time.monotonic())
            self._costs.append(reading)
        if self._rest_url is not None:
            self._lookups.append(read_lookups(self._rest_url))

    def _read_memory(self, _generator_pid: int) -> None:
        if self._server_pid is not None:
            self._memories.append(memory(self._server_pid))

    def _read_both(self, generator_pid: int) -> None:
        self._read_cost(generator_pid)
        self._read_memory(generator_pid)

    def usage(self) -> Usage | None:
        """What was used between the two readings."""
        if not self._costs:
            return None
        (server, generator_s, begin_s), (server_after, generator_after_s, end_s) = self._costs
        found = found_percent(*self._lookups) if self._lookups else {}
        return Usage(server_after.since(server), generator_after_s - generator_s, end_s - begin_s, found)

    def growth(self) -> Memory | None:
        """How much more memory there was at the second reading, where memory was read."""
        if not self._memories:
            return None
        before, after = self._memories
        return Memory(after.resident - before.resident, after.proportional - before.proportional)
