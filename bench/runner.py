"""Run a scenario: every repetition on a new server, every load checked, medians with their spread in the end."""

from __future__ import annotations

import contextlib
import dataclasses
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from bench.checker import check_observations
from bench.disk import DiskProbe
from bench.figures import figures_of, headline
from bench.generator import Generator, command_of, run_generator
from bench.machine import commit, describe_machine
from bench.meter import Meter
from bench.server import (
    BenchError,
    Server,
    Target,
    checkpoint,
    describe,
    new_directory,
    read_durability,
    running_server,
    use_wal_files,
)
from bench.statistics import spread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bench.scenario import Load, Scenario

FORMAT: Final = 1
"""Of the results; a reader refuses another."""
ORIGIN: Final = ("format", "scenario", "title", "at", "commit", "version", "machine", "durability", "duration_s")
"""What says where figures come from; machine and durability are missing where the server is elsewhere."""


@dataclass(frozen=True, slots=True)
class Bench:
    """Where and with what a scenario runs.

    Attributes:
        generator: the load generator.
        directory: on the disk to measure; a new one is made in it for each server.
        say: told what happens, a line at a time.
        target: one's own server; ``None`` for a new one each time.
        python_path: of the package to measure; ``None`` for this one.
    """

    generator: Generator
    directory: Path
    say: Callable[[str], None]
    target: Target | None = None
    python_path: Path | None = None

    @property
    def is_elsewhere(self) -> bool:
        """The server was not started here: it has settings of its own, and its processes are not read."""
        return self.target is not None and not isinstance(self.target, Server)


@dataclass(frozen=True, slots=True)
class Run:
    """One load in one repetition: what the generator reported, and the figures of it."""

    report: dict[str, Any]
    figures: dict[str, float]
    disk_ms: dict[str, float] | None


def run_scenario(name: str, scenario: Scenario, bench: Bench) -> dict[str, Any]:
    """All repetitions; the results, as they are kept. Raises BenchError where any run has none."""
    if bench.is_elsewhere and scenario.settings:
        raise BenchError(f"{name} needs a server with {', '.join(sorted(scenario.settings))}: it takes no --target")
    runs: dict[str, list[Run]] = {load.name: [] for load in scenario.loads}
    place: dict[str, Any] = {}
    for repetition in range(scenario.repetitions):
        bench.say(f"{name}: repetition {repetition + 1} of {scenario.repetitions}")
        with _server(scenario, bench) as (target, directory):
            if isinstance(target, Server):
                durability = read_durability(target)
                machine = describe_machine(directory)
                place = {"machine": dataclasses.asdict(machine), "durability": dataclasses.asdict(durability)}
                if not repetition:
                    bench.say(describe(durability, machine.file_system))
            place["version"] = target.version
            for load in loads_of(scenario, repetition):
                if scenario.alternate and isinstance(target, Server):
                    checkpoint(target)  # else the second of two that are compared is in the checkpoint of the first
                run = run_load(load, scenario, bench, target, directory, _rate(load, runs))
                runs[load.name].append(run)
    return {
        "format": FORMAT,
        "scenario": name,
        "title": scenario.title,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        **place,
        "settings": scenario.settings,
        "duration_s": scenario.duration_s,
        "repetitions": scenario.repetitions,
        "loads": {load.name: _summary(load, runs[load.name]) for load in scenario.loads},
        "goals": judge(scenario, runs, is_elsewhere=bench.is_elsewhere),
    }


def loads_of(scenario: Scenario, repetition: int) -> tuple[Load, ...]:
    """In the order in which a repetition, counted from 0, runs them."""
    return scenario.loads[::-1] if scenario.alternate and repetition % 2 else scenario.loads


def _summary(load: Load, runs: list[Run]) -> dict[str, Any]:
    """One load over all repetitions. A figure that some repetition lacks is left out."""
    names = [name for name in runs[0].figures if all(name in run.figures for run in runs)]
    return {
        "load": msgspec.to_builtins(load),
        "figures": {name: dataclasses.asdict(spread([run.figures[name] for run in runs])) for name in names},
        "runs": [run.report for run in runs],
        "disk_ms": [run.disk_ms for run in runs if run.disk_ms is not None],
    }


def judge(scenario: Scenario, runs: dict[str, list[Run]], *, is_elsewhere: bool) -> list[dict[str, Any]]:
    """Each goal with the median that it is held against. Raises BenchError for a figure that there is not.

    Args:
        scenario: has the goals.
        runs: of each load.
        is_elsewhere: the server's processes and disk were not read; goals for what they show are left out.
    """
    judged = []
    for goal in scenario.goals:
        if is_elsewhere and not all(goal.figure in run.figures for run in runs[goal.load]):
            continue
        try:
            values = [run.figures[goal.figure] for run in runs[goal.load]]
            if goal.ratio_to is not None:
                others = [run.figures[goal.figure] for run in runs[goal.ratio_to]]
                values = [value / other for value, other in zip(values, others, strict=True)]
            median = spread(values).median
        except KeyError as exc:
            raise BenchError(f"{goal.load} has no figure {exc}") from exc
        judged.append(msgspec.to_builtins(goal) | {"median": median, "reached": goal.reached(median)})
    return judged


def _rate(load: Load, runs: dict[str, list[Run]]) -> float | None:
    """Events a second of an open loop."""
    if load.rate_share is None:
        return load.rate
    return runs[load.rate_share.of][-1].figures["acknowledged_per_s"] * load.rate_share.share


@contextlib.contextmanager
def _server(scenario: Scenario, bench: Bench) -> Iterator[tuple[Target, Path]]:
    """A new server, or one's own; with a directory for what a run writes."""
    with new_directory(bench.directory) as directory:
        if bench.target is not None:
            yield bench.target, directory
        else:
            with running_server(directory, scenario.settings, python_path=bench.python_path) as server:
                use_wal_files(server)
                yield server, directory


def run_load(load: Load, scenario: Scenario, bench: Bench, target: Target, directory: Path, rate: float | None) -> Run:
    """One load, measured from its first to its last measured second, then checked. Raises BenchError."""
    observations = directory / "observed.jsonl" if load.publishes else None
    command = command_of(
        bench.generator,
        target,
        load,
        duration_s=scenario.duration_s,
        warm_up_s=scenario.warm_up_s,
        rate=rate,
        observations=observations,
    )
    meter = Meter(target.process.pid, target.rest_url) if isinstance(target, Server) else Meter(None, None)
    # Beside a full disk queue it would only measure the queue.
    probing = rate is not None and isinstance(target, Server)
    with DiskProbe(directory) if probing else contextlib.nullcontext() as probe:
        report = run_generator(command, meter.phases(load))
        disk_ms = probe.latencies_ms() if probe is not None else None
    if observations is not None:
        report["checked"] = check(observations, report, load)
    figures = figures_of(report, meter.usage(), meter.growth(), disk_ms)
    bench.say(f"  {load.name}: {headline(figures)}")
    if (warm_up := report.get("warm_up")) is not None and not warm_up["steady"]:
        bench.say(f"  {load.name}: never steady; {warm_up['unanswered']:,} messages were unanswered as it began")
    return Run(report, figures, disk_ms)


def check(observations: Path, report: dict[str, Any], load: Load) -> int:
    """How many rows the checker compared; the file is removed. Raises BenchError where it does not accept them."""
    verdict = check_observations([observations])
    observations.unlink()
    if not verdict.clean or verdict.acknowledged != report["acknowledged_in_all"]:
        raise BenchError(f"the checker does not accept {load.name}:\n{verdict}")
    return verdict.delivered
