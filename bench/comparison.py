"""Two commits in pairs: ``python -m bench compare --base REF SCENARIO``.

The base is checked out and built below ``build/``; then both run alternately, each time in an order drawn by lot, so
that whatever else the machine does falls on both. The ratio of each pair is one sample.
"""

from __future__ import annotations

import dataclasses
import math
import os
import random
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from bench.runner import ORIGIN, Bench, run_scenario
from bench.server import REPOSITORY, BenchError
from bench.statistics import median_interval

if TYPE_CHECKING:
    from bench.scenario import Scenario

BASES: Final = REPOSITORY / "build" / "bench-base"
PAIRS_MIN: Final = 6
"""Below six pairs no 95 % interval of a median exists."""
PAIRS_MAX: Final = 100
COMPARED: Final = (
    *("acknowledged_per_s", "delivered_per_s", "connected_per_s", "downloaded_per_s", "per_server_cpu_s"),
    *("acknowledge_ms_p50", "acknowledge_ms_p99", "deliver_ms_p50", "deliver_ms_p99", "ready_ms_p50", "ready_ms_p99"),
    *("server_us", "loop_us", "database_us", "server_and_database_us", "proportional_kib"),
)
"""Figures that are compared, where both have them."""


@dataclass(frozen=True, slots=True)
class Ratio:
    """This commit's figure as a part of the base's.

    Attributes:
        median: of the pairs' ratios.
        low: end of its confidence interval.
        high: the other end.
        pairs: how many there are.
    """

    median: float
    low: float
    high: float
    pairs: int


def build_base(reference: str, python: Path = Path(sys.executable)) -> Path:
    """A commit's package, built: the folder to put first on Python's path. Built once for each commit.

    Raises:
        BenchError: there is no such commit, or it does not build.
    """
    commit = _output("git", "rev-parse", "--verify", f"{reference}^{{commit}}").strip()
    folder = BASES / commit[:16]
    package = folder / "package"
    if (package / "keepstep").is_dir():
        return package
    checkout = folder / "checkout"
    if not checkout.exists():
        folder.mkdir(parents=True, exist_ok=True)
        _output("git", "worktree", "add", "--detach", "--force", str(checkout), commit)
    try:
        wheels = folder / "wheels"
        maturin = python.with_name("maturin")
        _output(maturin, "build", "--release", "--interpreter", python, "--out", wheels, folder=checkout)
        (wheel,) = wheels.glob("*.whl")
        unpacked = folder / "unpacked"
        shutil.rmtree(unpacked, ignore_errors=True)
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(unpacked)
        unpacked.rename(package)
    finally:
        _output("git", "worktree", "remove", "--force", str(checkout))
    return package


def _output(*command: str | Path, folder: Path = REPOSITORY) -> str:
    """What a command says. Raises BenchError with the end of what it complained about."""
    # The base's own build folder is kept in `build`: the next base builds only what differs.
    environment = os.environ | {"CARGO_TARGET_DIR": str(BASES / "target")}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        raise BenchError(f"{command[0]} {command[1]} ended with {done.returncode}: {done.stderr[-1_000:]}")
    return done.stdout


def compare_in_pairs(
    name: str, scenario: Scenario, this: Bench, base: Bench, *, pairs: int, seed: int
) -> dict[str, Any]:
    """Run a scenario in two ways, ``pairs`` times each; the results.

    Args:
        name: of the comparison.
        scenario: its repetitions are replaced by the pairs.
        this: one way.
        base: the other; ratios are ``this`` divided by it.
        pairs: at least six.
        seed: decides which of a pair runs first.

    Raises:
        BenchError: too few pairs, or a run has no result.
    """
    if not PAIRS_MIN <= pairs <= PAIRS_MAX:
        raise BenchError(f"{PAIRS_MIN} to {PAIRS_MAX} pairs, not {pairs}: fewer prove nothing")
    once = msgspec.structs.replace(scenario, repetitions=1, goals=())
    order = random.Random(seed)  # noqa: S311 - a lot that can be drawn again
    benches = {"this": this, "base": base}
    figures: dict[str, list[dict[str, dict[str, float]]]] = {"this": [], "base": []}
    results: dict[str, Any] = {}
    for pair in range(pairs):
        for side in order.sample(sorted(benches), 2):
            this.say(f"pair {pair + 1} of {pairs}: {side}")
            results = run_scenario(name, once, benches[side])
            figures[side].append({load: _medians(found) for load, found in results["loads"].items()})
    return {key: results[key] for key in ORIGIN if key in results} | {
        "pairs": pairs,
        "seed": seed,
        "ratios": _ratios(figures["this"], figures["base"]),
        "figures": figures,
    }


def _medians(load: dict[str, Any]) -> dict[str, float]:
    return {name: figure["median"] for name, figure in load["figures"].items()}


def _ratios(
    this: list[dict[str, dict[str, float]]], base: list[dict[str, dict[str, float]]]
) -> dict[str, dict[str, dict[str, float]]]:
    """By load and figure."""
    return {
        load: {
            name: dataclasses.asdict(ratio_of([each[load][name] for each in this], [each[load][name] for each in base]))
            for name in COMPARED
            if all(each[load].get(name) for each in this + base)
        }
        for load in this[0]
    }


def ratio_of(this: list[float], base: list[float]) -> Ratio:
    """Of values that were measured in pairs, all above 0."""
    logarithms = [math.log(one / other) for one, other in zip(this, base, strict=True)]
    middle, low, high = (math.exp(value) for value in median_interval(logarithms))
    return Ratio(middle, low, high, len(logarithms))
