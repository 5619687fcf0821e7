"""Two ways to run are compared in pairs, in an order that a lot decides and that can be drawn again."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from bench import comparison
from bench.comparison import build_base, compare_in_pairs, ratio_of
from bench.runner import Bench
from bench.scenario import Goal, Load, Scenario
from bench.server import BenchError, Target
from tests.support.observed_run import ObservedRun
from tests.support.pretended_generator import REPORT, pretended_generator

TARGET = Target("http://127.0.0.1:1", "ws://127.0.0.1:1/v1/connect#00", "0")
RELAY = Load(name="relay", workload="relay")
SCENARIO = Scenario(title="t", loads=(RELAY,), goals=(Goal(load="relay", figure="f", at_least=1),), repetitions=3)


@pytest.fixture
def benches(tmp_path: Path) -> tuple[Bench, Bench, list[str]]:
    """A fast way, and one that takes twice as long an event; what is said."""
    said: list[str] = []
    observed = ObservedRun(1).write(tmp_path / "source.jsonl")
    found = []
    for name, rate in (("fast", 2_000.0), ("slow", 1_000.0)):
        folder = tmp_path / name
        folder.mkdir()
        generator = pretended_generator(folder, observed, dict(REPORT) | {"acknowledged_per_s": rate})
        found.append(Bench(generator, tmp_path, said.append, TARGET))
    return found[0], found[1], said


def test_pairs_give_the_ratio_with_its_interval(benches: tuple[Bench, Bench, list[str]]) -> None:
    """The scenario's own repetitions and goals do not count."""
    this, base, said = benches
    results = compare_in_pairs("compare-t", SCENARIO, this, base, pairs=6, seed=1)
    ratio = results["ratios"]["relay"]["acknowledged_per_s"]
    assert ratio == {"median": pytest.approx(2), "low": pytest.approx(2), "high": pytest.approx(2), "pairs": 6}
    assert results["ratios"]["relay"]["deliver_ms_p99"]["median"] == pytest.approx(1)
    assert len(results["figures"]["base"]) == 6
    assert results["scenario"] == "compare-t"
    order = [line.rsplit(" ", 1)[1] for line in said if line.startswith("pair ")]
    assert sorted(order) == ["base"] * 6 + ["this"] * 6
    assert order != ["this", "base"] * 6


def test_the_same_seed_draws_the_same_order(benches: tuple[Bench, Bench, list[str]]) -> None:
    """So that a comparison can be repeated."""
    this, base, said = benches
    for _ in range(2):
        compare_in_pairs("compare-t", SCENARIO, this, base, pairs=6, seed=7)
    order = [line for line in said if line.startswith("pair ")]
    assert order[:12] == order[12:]


@pytest.mark.parametrize("pairs", [5, 101])
def test_too_few_pairs_are_refused(benches: tuple[Bench, Bench, list[str]], pairs: int) -> None:
    """They would prove nothing; too many never end."""
    this, base, _ = benches
    with pytest.raises(BenchError, match="6 to 100 pairs"):
        compare_in_pairs("compare-t", SCENARIO, this, base, pairs=pairs, seed=1)


def test_ratios_are_averaged_as_ratios() -> None:
    """Twice and half of it cancel out."""
    assert ratio_of([2.0, 1.0] * 3, [1.0, 2.0] * 3).median == pytest.approx(1)


def test_a_base_is_built_once_and_its_checkout_removed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In a worktree of its own; what runs is the package from the wheel."""
    called: list[list[str]] = []

    def output(*command: str | Path, folder: Path = tmp_path) -> str:
        called.append([str(part) for part in command])
        if "rev-parse" in called[-1]:
            return "0123456789abcdef0123\n"
        if "--out" in called[-1]:
            wheels = Path(called[-1][-1])
            wheels.mkdir()
            with zipfile.ZipFile(wheels / "keepstep.whl", "w") as archive:
                archive.writestr("keepstep/__init__.py", "")
        return ""

    monkeypatch.setattr(comparison, "_output", output)
    monkeypatch.setattr(comparison, "BASES", tmp_path / "bases")

    package = build_base("v1")
    assert package == tmp_path / "bases" / "0123456789abcdef" / "package"
    assert (package / "keepstep" / "__init__.py").exists()
    assert [command[1:3] for command in called] == [
        ["rev-parse", "--verify"],
        ["worktree", "add"],
        ["build", "--release"],
        ["worktree", "remove"],
    ]
    assert build_base("v1") == package
    assert called[4:] == [["git", "rev-parse", "--verify", "v1^{commit}"]]


def test_a_base_that_there_is_not_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In the words of git."""
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    with pytest.raises(BenchError, match=r"git rev-parse ended with 128: .*"):
        comparison._output("git", "rev-parse", "--verify", "nothing^{commit}", folder=tmp_path)
    assert comparison._output(sys.executable, "-c", "print(1)") == "1\n"
