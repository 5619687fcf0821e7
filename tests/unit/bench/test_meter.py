"""Processes are read at the phases of a run, where they are on this machine."""

from __future__ import annotations

import mmap
import os

from bench.meter import Meter
from bench.scenario import Load


def test_what_two_phases_lie_apart_is_the_usage() -> None:
    """Of the server and the generator; memory is not read for a load of events."""
    meter = Meter(os.getpid(), None)
    phases = meter.phases(Load(name="l", workload="relay"))
    assert list(phases) == ["measuring", "measured"]
    phases["measuring"](os.getpid())
    phases["measured"](os.getpid())
    usage = meter.usage()
    assert usage is not None
    assert usage.elapsed_s > 0
    assert usage.server.server_s >= 0
    assert meter.growth() is None


def test_for_idle_connections_memory_is_read_before_and_after() -> None:
    """The difference is theirs."""
    meter = Meter(os.getpid(), None)
    phases = meter.phases(Load(name="l", workload="idle"))
    assert list(phases) == ["before", "measuring", "measured"]
    phases["before"](0)
    with mmap.mmap(-1, 64 * 2**20) as taken:  # pages that the process cannot have had before
        taken.write(b"x" * len(taken))
        for phase in ("measuring", "measured"):
            phases[phase](os.getpid())
    growth = meter.growth()
    assert growth is not None
    assert growth.resident > 32 * 2**20


def test_a_server_elsewhere_has_no_usage() -> None:
    """Nor memory."""
    meter = Meter(None, None)
    for phase in meter.phases(Load(name="l", workload="idle")).values():
        phase(1)
    assert meter.usage() is None
    assert meter.growth() is None
