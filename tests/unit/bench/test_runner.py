"""A scenario gives a result only for runs that the checker accepts, and says where its figures come from."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from bench import runner
from bench.generator import Generator, build_generator, command_of, run_generator
from bench.runner import Bench, judge, loads_of, run_load, run_scenario
from bench.scenario import Goal, Load, RateShare, Scenario
from bench.server import BenchError, Target
from tests.support.observed_run import ObservedRun
from tests.support.planted_faults import PLANTED
from tests.support.pretended_generator import REPORT, arguments_of, pretended_generator

if TYPE_CHECKING:
    from bench.runner import Run

TARGET = Target("http://127.0.0.1:1", "ws://127.0.0.1:1/v1/connect#00", "0")
RELAY = Load(name="relay", workload="relay", connections=6, events_per_frame=1)


def run(observed: ObservedRun, tmp_path: Path, *, status: int = 0) -> Run:
    """One load with a generator that observed this."""
    generator = pretended_generator(tmp_path, observed.write(tmp_path / "source.jsonl"), status=status)
    bench = Bench(generator, tmp_path, lambda _line: None, TARGET)
    return run_load(RELAY, Scenario(title="t", loads=(RELAY,)), bench, TARGET, tmp_path, None)


def test_a_run_that_the_checker_accepts_has_a_result(tmp_path: Path) -> None:
    """Rates are the generator's; the observations are not kept; another machine's processes cost nothing here."""
    found = run(ObservedRun(1), tmp_path)
    assert found.figures["acknowledged_per_s"] == REPORT["acknowledged_per_s"]
    assert found.report["checked"] == 72
    assert "server_us" not in found.figures
    assert not (tmp_path / "observed.jsonl").exists()
    arguments = arguments_of(found.report)
    assert (arguments["--connections"], arguments["--events-per-frame"]) == ("6", "1")
    assert arguments["--events-max"] == str(RELAY.events_per_s_max * 12)
    assert "--rate" not in arguments


def test_a_long_closed_loop_asks_for_no_more_events_than_the_generator_signs(tmp_path: Path) -> None:
    """It ends early then, instead of not at all."""
    command = command_of(
        Generator(tmp_path), TARGET, RELAY, duration_s=3_600, warm_up_s=2, rate=None, observations=None
    )
    assert command[command.index("--events-max") + 1] == "10000000"


def test_a_run_that_the_checker_does_not_accept_has_no_result(tmp_path: Path) -> None:
    """However fast it was."""
    observed = ObservedRun(1)
    plant, fault = PLANTED[0]
    plant(observed)
    with pytest.raises(BenchError, match=fault.name.lower()):
        run(observed, tmp_path)


def test_a_run_with_fewer_observations_than_acks_has_no_result(tmp_path: Path) -> None:
    """Otherwise a generator that observed nothing would always pass."""
    with pytest.raises(BenchError, match="does not accept"):
        run(ObservedRun(1, events=10), tmp_path)


def test_a_generator_that_met_errors_has_no_result(tmp_path: Path) -> None:
    """Its exit status says so."""
    with pytest.raises(BenchError, match="ended with 1"):
        run(ObservedRun(1), tmp_path, status=1)


def test_an_open_loop_that_never_became_steady_says_so(tmp_path: Path) -> None:
    """Its latencies are those of a backlog, which must not be taken for the server's."""
    said: list[str] = []
    source = ObservedRun(1).write(tmp_path / "source.jsonl")
    for steady in (True, False):
        report = dict(REPORT) | {"warm_up": {"seconds": 7.0, "unanswered": 12_345, "steady": steady}}
        bench = Bench(pretended_generator(tmp_path, source, report), tmp_path, said.append, TARGET)
        run_load(RELAY, Scenario(title="t", loads=(RELAY,)), bench, TARGET, tmp_path, 10.0)
    assert [line for line in said if "steady" in line] == [
        "  relay: never steady; 12,345 messages were unanswered as it began"
    ]


def test_a_scenario_says_medians_spread_and_goals(tmp_path: Path) -> None:
    """The second load's rate is a share of what the first one reached in the same repetition."""
    half = Load(name="half", workload="relay", rate_share=RateShare(of="relay", share=0.5))
    scenario = Scenario(
        title="two loads",
        loads=(RELAY, half),
        goals=(
            Goal(load="relay", figure="acknowledged_per_s", at_least=2_400),
            Goal(load="half", figure="acknowledge_ms_p99", at_most=2),
        ),
        repetitions=3,
    )
    said: list[str] = []
    generator = pretended_generator(tmp_path, ObservedRun(1).write(tmp_path / "source.jsonl"))

    results = run_scenario("two", scenario, Bench(generator, tmp_path, said.append, TARGET))

    assert (results["scenario"], results["format"], results["version"]) == ("two", runner.FORMAT, "0")
    assert results["commit"]
    assert results["loads"]["half"]["figures"]["deliver_ms_p99"] == {
        "median": 3.0,
        "low": 3.0,
        "high": 3.0,
        "values": (3.0, 3.0, 3.0),
    }
    assert [arguments_of(each)["--rate"] for each in results["loads"]["half"]["runs"]] == ["1200"] * 3
    assert [goal["reached"] for goal in results["goals"]] == [True, False]
    assert said[0] == "two: repetition 1 of 3"


def test_loads_that_are_compared_take_turns_at_being_first() -> None:
    """Tables grow with every load: the second of two would always be the slower one."""
    loads = (RELAY, Load(name="other", workload="relay", connections=6))
    scenario = Scenario(title="t", loads=loads, alternate=True)
    names = [[load.name for load in loads_of(scenario, repetition)] for repetition in range(3)]
    assert names == [["relay", "other"], ["other", "relay"], ["relay", "other"]]
    assert loads_of(Scenario(title="t", loads=loads), 1) == loads


GOALS = (Goal(load="relay", figure="server_us", at_most=1), Goal(load="relay", figure="acknowledged_per_s", at_least=1))


def test_goals_for_processes_are_left_out_where_the_server_is_elsewhere(tmp_path: Path) -> None:
    """The others are judged."""
    scenario = Scenario(title="t", loads=(RELAY,), goals=GOALS)
    generator = pretended_generator(tmp_path, ObservedRun(1).write(tmp_path / "source.jsonl"))
    results = run_scenario("t", scenario, Bench(generator, tmp_path, lambda _line: None, TARGET))
    assert [goal["figure"] for goal in results["goals"]] == ["acknowledged_per_s"]


def test_a_goal_for_a_figure_that_there_is_not_is_an_error() -> None:
    """It must not count as reached."""
    scenario = Scenario(title="t", loads=(RELAY,), goals=GOALS)
    found = {"relay": [runner.Run({}, {"acknowledged_per_s": 2.0}, None)]}
    with pytest.raises(BenchError, match="relay has no figure 'server_us'"):
        judge(scenario, found, is_elsewhere=False)


def test_a_scenario_with_settings_is_not_run_on_a_server_elsewhere(tmp_path: Path) -> None:
    """Which has settings of its own: the results would say others."""
    scenario = Scenario(title="t", loads=(RELAY,), settings={"KEEPSTEP_PIPELINES": "4"})
    bench = Bench(pretended_generator(tmp_path, None), tmp_path, lambda _line: None, TARGET)
    with pytest.raises(BenchError, match="needs a server with KEEPSTEP_PIPELINES"):
        run_scenario("t", scenario, bench)


def test_a_generator_is_ended_where_nobody_waits_for_it() -> None:
    """It would go on for as long as its load takes."""
    program = "import json, signal; print(json.dumps({'phase': 'measuring'}), flush=True); signal.pause()"
    seen: list[int] = []

    def interrupt(pid: int) -> None:
        seen.append(pid)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_generator([sys.executable, "-c", program], {"measuring": interrupt})
    with pytest.raises(ProcessLookupError):
        os.kill(seen[0], 0)


def test_without_cargo_there_is_no_generator(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message says what could not be done."""
    monkeypatch.setenv("PATH", "")
    with pytest.raises(BenchError, match="cannot be built"):
        build_generator()
