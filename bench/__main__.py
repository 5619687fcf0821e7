"""``python -m bench``: run scenarios, list them. ``docs/how-to/run-the-benchmarks.md`` explains what they say."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
from rich.console import Console

from bench.comparison import PAIRS_MAX, PAIRS_MIN, build_base, compare_in_pairs
from bench.flames import record
from bench.generator import Generator, build_generator
from bench.growth import measure_growth
from bench.machine import command_line
from bench.runner import Bench, run_scenario
from bench.scenario import InvalidScenarioError, Scenario, check_scenario, read_scenario, scenario_names
from bench.server import REPOSITORY, BenchError, find_target
from bench.soak import soak
from bench.tables import figure_table, goal_table, ratio_table

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

QUICK_DURATION_S: Final = 2
QUICK_IDLE_CONNECTIONS: Final = 999
HOUR_S: Final = 3_600
HOURS_MAX: Final = 1_000
WINDOW_S_MAX: Final = 86_400
FILLED_EVENTS_MAX: Final = 1_000_000_000
INTERRUPTED: Final = 128 + signal.SIGINT
OUTPUT: Final = REPOSITORY / "build" / "bench"


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says; the exit status."""
    options = _parser().parse_args(arguments)
    console = Console()
    try:
        status: int = options.act(options, console)
    except (BenchError, InvalidScenarioError) as exc:
        console.print(f"no result: {exc}", style="red", highlight=False, markup=False, soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        console.print("no result: interrupted", style="red")
        return INTERRUPTED
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    listing = commands.add_parser("list", help="the scenarios that there are")
    listing.set_defaults(act=_list)
    run = commands.add_parser("run", help="run scenarios, one after the other")
    run.add_argument("scenarios", nargs="+", metavar="SCENARIO", help="a name that `list` gives, a .toml file, or all")
    add_options(run)
    run.set_defaults(act=_run)
    compare = commands.add_parser("compare", help="this checkout against a commit, in pairs")
    compare.add_argument("--base", required=True, metavar="REF", help="the commit, branch or tag to compare with")
    pairs = _between(PAIRS_MIN, PAIRS_MAX)
    compare.add_argument("--pairs", type=pairs, default=10, help="of runs; at least 6 (10)")
    compare.add_argument("--seed", type=int, default=1, help="draws which of a pair runs first (1)")
    compare.add_argument("scenarios", nargs="+", metavar="SCENARIO")
    add_options(compare)
    compare.set_defaults(act=_compare)
    growth = commands.add_parser("growth", help="W1 and W2 on a filled database beside an empty one, in pairs")
    events = _between(1, FILLED_EVENTS_MAX)
    growth.add_argument("--events", type=events, default=20_000_000, help="that are filled in (20,000,000)")
    growth.add_argument("--pairs", type=pairs, default=6, help="of runs; at least 6 (6)")
    growth.add_argument("--seed", type=int, default=1, help="draws which of a pair runs first (1)")
    add_options(growth)
    growth.set_defaults(act=_growth)
    soak = commands.add_parser("soak", help="a load for hours; fails where the server's memory grows")
    soak.add_argument("--hours", type=_between(0, HOURS_MAX, float), default=2.0, help="how long (2)")
    soak.add_argument(
        "--window-s", type=_between(1, WINDOW_S_MAX), default=60, help="seconds that one figure is of (60)"
    )
    add_options(soak)
    soak.set_defaults(act=_soak)
    flames = commands.add_parser("flames", help="a flame graph of the server under one load; needs py-spy")
    flames.add_argument("scenario", metavar="SCENARIO")
    add_options(flames)
    flames.set_defaults(act=_flames)
    return parser


def _between(least: int, most: int, kind: type[int | float] = int) -> Callable[[str], int | float]:
    """Reads a number of the command line and refuses one that is out of these bounds."""

    def read(text: str) -> int | float:
        try:
            value = kind(text)
        except ValueError as exc:
            raise argparse.ArgumentTypeError(f"{text!r} is no number of that kind") from exc
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{least:,} to {most:,}, not {text}")
        return value

    return read


def add_options(parser: argparse.ArgumentParser) -> None:
    """What every command that measures takes."""
    parser.add_argument("--quick", action="store_true", help="once, two seconds of each load, fewer idle connections")
    parser.add_argument("--duration-s", type=int, help="measured seconds of each load, instead of the scenario's")
    parser.add_argument("--warm-up-s", type=int, help="seconds of load before, instead of the scenario's")
    parser.add_argument("--repetitions", type=int, help="each on a new server, instead of the scenario's")
    parser.add_argument("--only", metavar="LOAD", action="append", help="leave others out; may be given more than once")
    parser.add_argument("--connections", type=int, help="of every load, instead of the scenario's")
    parser.add_argument("--directory", type=Path, default=Path("/var/tmp"), help="on the disk to measure (/var/tmp)")  # noqa: S108 - a new directory is made in it
    parser.add_argument("--output", type=Path, default=OUTPUT, help="folder for the results, as JSON (build/bench)")
    parser.add_argument("--target", metavar="URL", help="REST address of a running server, which takes the load")
    parser.add_argument("--target-is-mine", action="store_true", help="the target may be another machine, and is yours")


def _list(_options: argparse.Namespace, console: Console) -> int:
    for name in scenario_names():
        console.print(f"{name:<24}{read_scenario(name).title}", highlight=False, soft_wrap=True)
    return 0


def _run(options: argparse.Namespace, console: Console) -> int:
    scenarios = {name: adapt(scenario, options) for name, scenario in chosen(options).items()}
    bench = make_bench(options, console)
    for name, scenario in scenarios.items():
        results = run_scenario(Path(name).stem, scenario, bench)
        console.print(figure_table(results))
        if results["goals"]:
            console.print(goal_table(results["goals"]))
        console.print(f"written to {keep(results, options.output)}", highlight=False)
    return 0


def _compare(options: argparse.Namespace, console: Console) -> int:
    scenarios = {name: adapt(read_scenario(name), options) for name in options.scenarios}
    bench = make_bench(options, console)
    base = build_base(options.base)
    for name, scenario in scenarios.items():
        other = dataclasses.replace(bench, python_path=base)
        pairs, seed = options.pairs, options.seed
        results = compare_in_pairs(f"compare-{Path(name).stem}", scenario, bench, other, pairs=pairs, seed=seed)
        console.print(ratio_table(results, options.base))
        console.print(f"written to {keep(results, options.output)}", highlight=False)
    return 0


def _growth(options: argparse.Namespace, console: Console) -> int:
    bench = make_own_bench(options, console)
    scenario = adapt(read_scenario("growth"), options)
    results = measure_growth(scenario, bench, events=options.events, pairs=options.pairs, seed=options.seed)
    console.print(ratio_table(results, "an empty database"))
    if results["goals"]:
        console.print(goal_table(results["goals"]))
    console.print(f"written to {keep(results, options.output)}", highlight=False)
    return 0


def _soak(options: argparse.Namespace, console: Console) -> int:
    bench = make_own_bench(options, console)
    windows = math.ceil(options.hours * HOUR_S / options.window_s)
    scenario = adapt(read_scenario("soak"), options)
    results = soak(scenario, bench, windows=windows, window_s=options.window_s)
    console.print(f"written to {keep(results, options.output)}", highlight=False)
    console.print(results["verdict"], style="green" if results["flat"] else "red", highlight=False)
    return 0 if results["flat"] else 1


def _flames(options: argparse.Namespace, console: Console) -> int:
    scenario = adapt(read_scenario(options.scenario), options)
    output = options.output / f"{Path(options.scenario).stem}-{scenario.loads[0].name.replace(' ', '-')}.svg"
    console.print(f"written to {record(scenario, make_own_bench(options, console), output)}", highlight=False)
    return 0


def chosen(options: argparse.Namespace) -> dict[str, Scenario]:
    """The scenarios that the command line names. Raises InvalidScenarioError."""
    if options.scenarios != ["all"]:
        return {name: read_scenario(name) for name in options.scenarios}
    scenarios = {name: read_scenario(name) for name in scenario_names()}
    return {
        name: scenario
        for name, scenario in scenarios.items()
        if scenario.in_all
        and (scenario.in_quick or not options.quick)
        and not (scenario.settings and options.target)  # it has settings of its own
    }


def shortened(scenario: Scenario) -> Scenario:
    """Once, two seconds a load, and fewer idle connections: enough to see that everything works."""
    loads = tuple(
        msgspec.structs.replace(load, connections=QUICK_IDLE_CONNECTIONS) if load.workload == "idle" else load
        for load in scenario.loads
    )
    return msgspec.structs.replace(scenario, loads=loads, repetitions=1, duration_s=QUICK_DURATION_S, warm_up_s=1)


def make_bench(options: argparse.Namespace, console: Console) -> Bench:
    """The generator, built, and where it runs. Raises BenchError."""
    _make_output(options.output)
    target = find_target(options.target) if options.target else None
    generator = Generator(build_generator(), options.target_is_mine)

    def say(line: str) -> None:
        console.print(line, highlight=False, markup=False, soft_wrap=True)

    return Bench(generator, options.directory, say, target)


def _make_output(folder: Path) -> None:
    """Make it, before anything is measured. Raises BenchError where it cannot be written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise BenchError(f"no results can be written to {folder}: {exc.strerror}") from exc
    if not os.access(folder, os.W_OK | os.X_OK):
        raise BenchError(f"no results can be written to {folder}")


def make_own_bench(options: argparse.Namespace, console: Console) -> Bench:
    """The same for what reads the server's processes or database. Raises BenchError."""
    if options.target:
        raise BenchError("this starts a server of its own: it takes no --target")
    return make_bench(options, console)


def adapt(scenario: Scenario, options: argparse.Namespace) -> Scenario:
    """The scenario with what the command line says instead. Raises InvalidScenarioError."""
    if options.quick:
        scenario = shortened(scenario)
    given = {name: getattr(options, name) for name in ("duration_s", "warm_up_s", "repetitions")}
    changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    loads = scenario.loads
    if options.only is not None:
        unknown = set(options.only) - {load.name for load in loads}
        if unknown:
            names = ", ".join(load.name for load in loads)
            raise InvalidScenarioError(f"{scenario.title}: no load {', '.join(sorted(unknown))}; there are: {names}")
        loads = tuple(load for load in loads if load.name in options.only)
        kept = {None, *options.only}
        changes["goals"] = tuple(goal for goal in scenario.goals if {goal.load, goal.ratio_to} <= kept)
    if options.connections is not None:
        loads = tuple(msgspec.structs.replace(load, connections=options.connections) for load in loads)
    changed = msgspec.structs.replace(scenario, loads=loads, **changes)
    try:
        adapted = msgspec.convert(msgspec.to_builtins(changed), Scenario)
    except msgspec.ValidationError as exc:
        raise InvalidScenarioError(f"{scenario.title}: {exc}") from exc
    check_scenario(adapted, scenario.title)
    return adapted


def keep(results: dict[str, Any], folder: Path) -> Path:
    """Write results where they are looked for; the file."""
    path = folder / f"{results['scenario']}.json"
    path.write_text(json.dumps(results | {"command": command_line("bench", sys.argv[1:])}, indent=2) + "\n")
    return path


def end(number: int, _frame: object) -> None:
    """End at a signal as at an exception: servers that run are stopped."""
    sys.exit(128 + number)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, end)
    sys.exit(main())
