"""The command line runs scenarios, or parts of them, and keeps results; it says why there is none."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

import pytest

from bench import __main__ as command_line
from bench.scenario import read_scenario, scenario_names
from bench.server import Target
from tests.support.observed_run import ObservedRun
from tests.support.pretended_generator import arguments_of, pretended_generator

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where results go; generator and target only pretend."""
    generator = pretended_generator(tmp_path, ObservedRun(1).write(tmp_path / "source.jsonl"))
    monkeypatch.setattr(command_line, "build_generator", lambda: generator.path)
    monkeypatch.setattr(command_line, "find_target", lambda url: Target(url, "ws://x/#00", "0"))
    return tmp_path / "output"


def test_all_scenarios_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    """With their titles."""
    assert command_line.main(["list"]) == 0
    printed = capsys.readouterr().out
    for name in scenario_names():
        assert name in printed
        assert read_scenario(name).title.split(":")[0] in printed


def test_what_the_command_line_says_goes_before_what_the_scenario_says(output: Path, tmp_path: Path) -> None:
    """One load, shorter, with fewer connections, at one's own server, which may be on another machine."""
    options = ["--only", "saturation", "--duration-s", "1", "--warm-up-s", "0", "--connections", "6"]
    place = ["--directory", str(tmp_path), "--output", str(output), "--target", "http://h", "--target-is-mine"]
    assert command_line.main(["run", "smoke", *options, *place]) == 0

    results = json.loads((output / "smoke.json").read_text())
    assert list(results["loads"]) == ["saturation"]
    assert "machine" not in results
    (report,) = results["loads"]["saturation"]["runs"]
    arguments = arguments_of(report)
    assert (arguments["--duration-s"], arguments["--warm-up-s"], arguments["--connections"]) == ("1", "0", "6")
    assert arguments["--rest"] == "http://h"
    assert "--target-is-mine" in report["arguments"]


def test_two_loads_that_are_compared_can_be_chosen_without_the_others() -> None:
    """Their goal is judged; one that needs a load which was left out is not."""
    flood, nothing = read_scenario("flood"), dict.fromkeys(("duration_s", "warm_up_s", "repetitions", "connections"))
    for chosen, goals in ((["quiet", "flooded"], 1), (["flooded"], 0), (["quiet"], 0)):
        adapted = command_line.adapt(flood, argparse.Namespace(only=chosen, quick=False, **nothing))
        assert ([load.name for load in adapted.loads], len(adapted.goals)) == (chosen, goals)


def test_quick_runs_everything_once_and_short(output: Path, tmp_path: Path) -> None:
    """But what has a command of its own, and sweeps."""
    place = ["--directory", str(tmp_path), "--output", str(output), "--target", "http://h"]
    assert command_line.main(["run", "smoke", "--quick", *place]) == 0
    (report,) = json.loads((output / "smoke.json").read_text())["loads"]["saturation"]["runs"]
    assert arguments_of(report)["--duration-s"] == "2"

    quick = command_line.chosen(argparse.Namespace(scenarios=["all"], quick=True, target=None))
    everything = command_line.chosen(argparse.Namespace(scenarios=["all"], quick=False, target=None))
    assert set(scenario_names()) - set(everything) == {"growth", "soak"}
    assert set(everything) - set(quick) == {"rates", "streams"}
    idle = command_line.shortened(everything["w4-idle"])
    assert {load.connections for load in idle.loads} == {command_line.QUICK_IDLE_CONNECTIONS}


def test_goals_are_shown_as_they_come_out(output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The pretended server is a slow one."""
    place = ["--directory", str(tmp_path), "--output", str(output), "--target", "http://h"]
    assert command_line.main(["run", "w1-publish", "--repetitions", "1", *place]) == 0
    assert "NOT reached" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "smoky"], "no scenario smoky"),
        (["run", "smoke", "--only", "nothing"], "no load nothing; there are: saturation, half load"),
        (["run", "smoke", "--duration-s", "0"], "duration_s"),
        (["soak", "--target", "http://h"], "takes no --target"),
        (["growth", "--target", "http://h"], "takes no --target"),
        (["flames", "smoke", "--target", "http://h"], "takes no --target"),
        (["flames", "smoke", "--only", "half load"], "no load saturation comes before"),
        (["flames", "smoke", "--only", "saturation", "--duration-s", "2"], "at least 3 seconds"),
        (["run", "w3-catch-up-tail", "--target", "http://h"], "needs a server with KEEPSTEP_TAIL_BYTES_MAX"),
    ],
)
def test_what_cannot_be_run_is_said(
    arguments: list[str], said: str, output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything is measured, with exit status 1."""
    assert command_line.main([*arguments, "--output", str(output)]) == 1
    assert said in capsys.readouterr().out
    assert list(output.glob("*")) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["compare", "--base", "main", "--pairs", "5", "smoke"], "--pairs: 6 to 100, not 5"),
        (["growth", "--events", "0"], "--events: 1 to 1,000,000,000, not 0"),
        (["soak", "--window-s", "0"], "--window-s: 1 to 86,400, not 0"),
        (["soak", "--hours", "nan"], "--hours: 0 to 1,000, not nan"),
        (["soak", "--hours", "two"], "--hours: 'two' is no number"),
    ],
)
def test_numbers_out_of_their_bounds_are_refused_by_name(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before the base is built or a database filled, with exit status 2."""
    with pytest.raises(SystemExit, match="2"):
        command_line.main(arguments)
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("place", ["--directory", "--output"])
def test_a_folder_that_cannot_be_is_named(
    place: str, output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not after an hour of measuring, and by no traceback."""
    (tmp_path / "file").touch()
    places = {"--directory": str(tmp_path), "--output": str(output), "--target": "http://h"}
    places[place] = str(tmp_path / "file" / "below")
    assert command_line.main(["run", "smoke", *(part for pair in places.items() for part in pair)]) == 1
    assert places[place] in capsys.readouterr().out
    assert not (output / "smoke.json").exists()


def test_everything_leaves_out_what_a_server_elsewhere_is_not_set_up_for() -> None:
    """Its settings are its own."""
    everything = command_line.chosen(argparse.Namespace(scenarios=["all"], quick=False, target=None))
    elsewhere = command_line.chosen(argparse.Namespace(scenarios=["all"], quick=False, target="http://h"))
    assert set(everything) - set(elsewhere) == {name for name, each in everything.items() if each.settings}


def test_an_interruption_is_said_in_a_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """With the exit status of an interrupted program."""

    def interrupt(_name: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command_line, "read_scenario", interrupt)
    assert command_line.main(["run", "smoke"]) == 130
    assert capsys.readouterr().out == "no result: interrupted\n"


def test_without_a_generator_there_is_no_result(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Cargo is not there."""
    monkeypatch.setenv("PATH", "")
    assert command_line.main(["run", "smoke"]) == 1
    assert "cannot be built" in capsys.readouterr().out
