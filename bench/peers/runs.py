"""Runs one workload on one server, and says what came of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from bench.generator import run_generator
from bench.machine import written_bytes
from bench.peers.accounting import Reading, disk_figures, figures, read
from bench.peers.works import (
    CATCH_UP,
    IDLE,
    LATENCY,
    PAYLOAD_BYTES,
    PUBLISH,
    PUBLISH_TENS,
    RELAY,
    RELAY_TENS,
    WARM_UP_S,
    Work,
    generator_arguments,
)
from bench.runner import Bench, run_load
from bench.scenario import Load, Scenario

if TYPE_CHECKING:
    from pathlib import Path

    from bench.peers.servers import Peer, Running
    from bench.server import Server


FIGURES: Final = {
    **{f"{kind}_{each}": f"{kind}_{each}" for kind in ("acknowledge_ms", "deliver_ms") for each in ("p50", "p99")},
    "acknowledged_per_s": "acknowledged_per_s",
    "delivered_per_s": "delivered_per_s",
    "downloaded_per_s": "delivered_per_s",
    "server_and_database_us": "server_us",
    "generator_us": "generator_us",
    "proportional_kib": "connection_kib",
}
"""What keepstep's own benchmarks call the figures of a comparison."""


@dataclass(frozen=True, slots=True)
class Run:
    """One workload that ran: the generator's report, and the figures of it."""

    report: dict[str, Any]
    figures: dict[str, float]


class Meter:
    """Reads the counters of server and generator when told to; two readings make the figures of a run."""

    def __init__(self, server_pid: int | None) -> None:
        self._server_pid = server_pid
        self._server: list[Reading] = []
        self._generator: list[Reading] = []

    def read(self, generator_pid: int) -> None:
        """Take a reading."""
        if self._server_pid is not None:
            self._server.append(read(self._server_pid))
        self._generator.append(read(generator_pid))

    def figures(self, report: dict[str, Any], workload: str) -> dict[str, float]:
        """Of the first and the second reading."""
        server = (self._server[0], self._server[1]) if self._server else None
        return figures(report, workload, server, (self._generator[0], self._generator[1]))


def run_peer(peer: Peer, running: Running, work: Work, generator: Path, directory: Path, duration_s: int) -> Run:
    """One workload on a peer that runs and keeps its data on the disk of ``directory``. Raises BenchError."""
    command = [
        str(generator),
        peer.protocol,
        work.workload,
        *("--address", running.address),
        *generator_arguments(work, duration_s),
        *peer.arguments,
    ]
    meter = Meter(running.pid)
    written = written_bytes(directory)
    report = run_generator(command, {"measuring": meter.read, "measured": meter.read})
    found = meter.figures(report, work.workload)
    if work.workload in {"publish", "relay"}:
        found |= disk_figures(report, written, written_bytes(directory))
    return Run(report, found)


@dataclass(frozen=True, slots=True)
class OwnWork:
    """A workload of keepstep: as the peers' one, with a number of events in each message.

    Attributes:
        work: whose name it has in the results.
        load: for keepstep's own generator.
    """

    work: Work
    load: Load


def run_keepstep(own: OwnWork, bench: Bench, server: Server, directory: Path, duration_s: int) -> Run:
    """One workload on keepstep, as its own benchmarks run it, judged by the checker. Raises BenchError."""
    scenario = Scenario(title=own.work.title, loads=(own.load,), duration_s=duration_s, warm_up_s=WARM_UP_S)
    written = written_bytes(directory)
    run = run_load(own.load, scenario, bench, server, directory, own.load.rate)
    found = {name: run.figures[own_name] for own_name, name in FIGURES.items() if own_name in run.figures}
    if own.load.publishes:
        found |= disk_figures(run.report, written, written_bytes(directory))
    if own.load.workload == "relay":
        # The checker would have refused the run otherwise.
        found |= {"lost": 0, "duplicates": 0, "out_of_order": 0}
    return Run(run.report, found)


def _own(work: Work, **given: Any) -> OwnWork:
    given = {"connections": work.connections, "payload_bytes": PAYLOAD_BYTES, **given}
    return OwnWork(work, Load(name=work.name, workload=work.workload, **given))


KEEPSTEP_WORKS: Final = (
    _own(PUBLISH, events_per_frame=1, window=40, events_per_s_max=100_000),
    _own(PUBLISH_TENS, events_per_frame=10, window=4),
    _own(RELAY, events_per_frame=1, window=40, events_per_s_max=80_000),
    _own(RELAY_TENS, events_per_frame=10, window=4, events_per_s_max=110_000),
    _own(LATENCY, events_per_frame=1, rate=1_000),
    _own(CATCH_UP, connections=2, events=100_000),
    _own(IDLE, subscribed=True),
)
"""What keepstep is put to: one event in a message as the peers have it, and ten, as its devices send them."""
