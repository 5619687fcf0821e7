"""Scenario files are read strictly: what is misspelt, out of bounds or makes no sense is refused by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from bench.scenario import Goal, InvalidScenarioError, read_scenario, scenario_names
from keepstep.config import load

if TYPE_CHECKING:
    from pathlib import Path

LOAD = '[[loads]]\nname = "one"\nworkload = "relay"\n'
OTHER = LOAD.replace("one", "two")


def refusal(tmp_path: Path, text: str) -> str:
    """What is said about a file of this text."""
    path = tmp_path / "scenario.toml"
    path.write_text(text)
    with pytest.raises(InvalidScenarioError) as caught:
        read_scenario(str(path))
    return str(caught.value)


@pytest.mark.parametrize("name", scenario_names())
def test_every_scenario_that_comes_with_it_is_valid(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And says what it is; a server takes its settings."""
    scenario = read_scenario(name)
    assert scenario.title
    assert scenario.loads
    for variable, value in scenario.settings.items():
        monkeypatch.setenv(variable, value)
    load()


def test_the_defaults_are_three_repetitions_of_ten_seconds(tmp_path: Path) -> None:
    """After two of warming up."""
    path = tmp_path / "scenario.toml"
    path.write_text(f'title = "t"\n{LOAD}')
    scenario = read_scenario(str(path))
    assert (scenario.repetitions, scenario.duration_s, scenario.warm_up_s) == (3, 10, 2)
    assert scenario.loads[0].connections is None


def test_a_scenario_that_there_is_not_is_named_with_those_that_there_are() -> None:
    """So that a misspelling is found at once."""
    with pytest.raises(InvalidScenarioError, match=r"no scenario smoky: .*smoke"):
        read_scenario("smoky")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("title = ", "Invalid value"),
        ('title = "t"\nloads = []\n', "length >= 1"),
        (f'title = "t"\nspeed = 1\n{LOAD}', "unknown field `speed`"),
        (f'title = "t"\n{LOAD}conections = 3\n', "unknown field `conections`"),
        (f'title = "t"\n{LOAD}connections = 0\n', "connections"),
        ('title = "t"\n[[loads]]\nname = "one"\nworkload = "juggle"\n', "juggle"),
        (f'title = "t"\n{LOAD}{LOAD}', "two loads are named one"),
        (f'title = "t"\n{LOAD}rate = 5\nrate_share = {{ of = "one", share = 0.5 }}\n', "a rate and a rate_share"),
        (f'title = "t"\n{LOAD}rate_share = {{ of = "two", share = 0.5 }}\n', "no load two comes before one"),
        (
            f'title = "t"\nalternate = true\n{LOAD}{OTHER}rate_share = {{ of = "one", share = 0.5 }}\n',
            "two has a rate_share, and the loads alternate",
        ),
        (f'title = "t"\n{LOAD}[[goals]]\nload = "two"\nfigure = "f"\nat_least = 1\n', "two, which is no load"),
        (f'title = "t"\n{LOAD}[[goals]]\nload = "one"\nfigure = "speed"\nat_least = 1\n', "speed, which is no figure"),
        (f'title = "t"\n{LOAD}[[goals]]\nload = "one"\nfigure = "ready_ms_p90"\n', "neither at_least nor at_most"),
        (f'title = "t"\n{LOAD}[settings]\nPATH = "x"\n', "PATH is no setting"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, text: str, said: str) -> None:
    """With the file's name."""
    message = refusal(tmp_path, text)
    assert said in message
    assert "scenario.toml" in message


def test_what_is_no_text_is_said(tmp_path: Path) -> None:
    """With the file's name."""
    (tmp_path / "bytes.toml").write_bytes(b"\xff")
    (tmp_path / "folder.toml").mkdir()
    for name in ("bytes.toml", "folder.toml"):
        with pytest.raises(InvalidScenarioError, match=name):
            read_scenario(str(tmp_path / name))


def test_a_goal_is_reached_at_its_bound() -> None:
    """From either side."""
    assert Goal(load="one", figure="f", at_least=5).reached(5)
    assert not Goal(load="one", figure="f", at_least=5).reached(4.9)
    assert Goal(load="one", figure="f", at_most=5).reached(5)
    assert not Goal(load="one", figure="f", at_most=5).reached(5.1)
