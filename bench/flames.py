"""Where the processor time of a server goes: a flame graph of one load, the event-loop thread apart from the others.

py-spy samples the running server from outside, with the frames of its native code.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bench.generator import command_of, run_generator
from bench.runner import check
from bench.server import BenchError, new_directory, running_server

if TYPE_CHECKING:
    from bench.runner import Bench
    from bench.scenario import Scenario

SAMPLES_PER_S: Final = 200
SPARE_S: Final = 2
"""The recording ends before the load does."""


def recording(pid: int, duration_s: int, output: Path) -> list[str]:
    """The command that samples a process for so long and writes its flame graph."""
    return [
        str(Path(sys.executable).with_name("py-spy")),
        *("record", "--native", "--threads", "--format", "flamegraph"),
        *("--rate", str(SAMPLES_PER_S), "--duration", str(duration_s)),
        *("--pid", str(pid), "--output", str(output)),
    ]


def record(scenario: Scenario, bench: Bench, output: Path) -> Path:
    """Run the scenario's first load once and record the server meanwhile; the flame graph. Raises BenchError.

    Args:
        scenario: one load of it is run; it takes at least three seconds.
        bench: starts the server.
        output: the file, an SVG.
    """
    load = scenario.loads[0]
    duration_s = scenario.duration_s - SPARE_S
    if duration_s < 1 or load.rate_share is not None:
        raise BenchError("a profile is of a load of at least 3 seconds with a rate of its own")
    recorder: list[subprocess.Popen[bytes]] = []

    with (
        new_directory(bench.directory) as directory,
        running_server(directory, scenario.settings, python_path=bench.python_path) as server,
    ):
        command = recording(server.process.pid, duration_s, output)
        observations = directory / "observed.jsonl" if load.publishes else None
        generator = command_of(
            bench.generator,
            server,
            load,
            duration_s=scenario.duration_s,
            warm_up_s=scenario.warm_up_s,
            rate=load.rate,
            observations=observations,
        )

        def begin(_generator_pid: int) -> None:
            recorder.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE))  # noqa: S603

        report = run_generator(generator, {"measuring": begin})
        if observations is not None:
            check(observations, report, load)
        (process,) = recorder
        _, said = process.communicate()
    if process.returncode:
        raise BenchError(f"py-spy ended with {process.returncode}: {said.decode(errors='replace')[-1_000:]}")
    return output
