"""Scenarios: what is run, as TOML files in ``bench/scenarios``; every field is checked and bounded here."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec

from bench.figures import FIGURES

SCENARIOS: Final = Path(__file__).parent / "scenarios"
LOADS_MAX: Final = 32
GOALS_MAX: Final = 64
RATE_MAX: Final = 10_000_000
EVENTS_PER_S_MAX: Final = 200_000
"""More than a server of this kind does on two cores: bounds the events that are signed for a closed loop."""

Workload = Literal["publish", "relay", "idle", "connect", "catch-up"]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=60)]


class InvalidScenarioError(Exception):
    """A scenario's file cannot be used; the message says where it is wrong."""


class RateShare(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A rate that follows from what another load reached in the same repetition.

    Attributes:
        of: that load, which comes before.
        share: of its acknowledged events a second.
    """

    of: Name
    share: Annotated[float, msgspec.Meta(gt=0, le=1)]


class Load(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One load; what is left out has the generator's default.

    Attributes:
        name: unlike the others' in the scenario.
        workload: of the generator.
        connections: one a device.
        devices_per_user: of each user.
        at_once: connections that are being opened at the same time.
        subscribed: idle devices follow their user's stream.
        streams_per_user: that the messages of a device go into in turns.
        messages_per_stream: of a device, into one before it is the next one's turn.
        bad_signers: further devices that flood the server with bad signatures meanwhile.
        events: stored before a catch-up.
        downloads: how often they are downloaded.
        verify: every signature is verified in a catch-up.
        events_per_frame: events in one publish message.
        payload_bytes: of an event.
        window: publish messages in flight on a connection.
        rate: open loop, events a second over all connections; closed loop without it.
        rate_share: the same, as a share of what another load reached.
        suite: AEAD of the records.
        events_per_s_max: closed loop, bounds the events that are signed beforehand.
    """

    name: Name
    workload: Workload
    connections: Annotated[int, msgspec.Meta(ge=1, le=50_000)] | None = None
    devices_per_user: Annotated[int, msgspec.Meta(ge=1, le=64)] | None = None
    at_once: Annotated[int, msgspec.Meta(ge=1, le=256)] | None = None
    subscribed: bool = False
    streams_per_user: Annotated[int, msgspec.Meta(ge=1, le=9_990)] | None = None
    messages_per_stream: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] | None = None
    bad_signers: Annotated[int, msgspec.Meta(ge=1, le=1_000)] | None = None
    events: Annotated[int, msgspec.Meta(ge=100, le=10_000_000)] | None = None
    downloads: Annotated[int, msgspec.Meta(ge=1, le=1_000)] | None = None
    verify: bool = False
    events_per_frame: Annotated[int, msgspec.Meta(ge=1, le=256)] | None = None
    payload_bytes: Annotated[int, msgspec.Meta(ge=0, le=900 * 1024)] | None = None
    window: Annotated[int, msgspec.Meta(ge=1, le=1024)] | None = None
    rate: Annotated[float, msgspec.Meta(gt=0, le=RATE_MAX)] | None = None
    rate_share: RateShare | None = None
    suite: Literal[1, 2] | None = None
    events_per_s_max: Annotated[int, msgspec.Meta(ge=1, le=RATE_MAX)] = EVENTS_PER_S_MAX

    @property
    def publishes(self) -> bool:
        """Whether the load is of events, whose observations the checker can judge."""
        return self.workload in {"publish", "relay"}


class Goal(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a figure's median has to be.

    Attributes:
        load: whose figure.
        figure: its name in the results.
        ratio_to: another load; its figure in the same repetition is what this one is divided by first.
        at_least: reached at this or above.
        at_most: reached at this or below.
    """

    load: Name
    figure: Name
    ratio_to: Name | None = None
    at_least: float | None = None
    at_most: float | None = None

    def reached(self, median: float) -> bool:
        """Whether this is good enough."""
        return (self.at_least is None or median >= self.at_least) and (self.at_most is None or median <= self.at_most)


class Scenario(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Loads that run one after the other on one new server, repeated.

    Attributes:
        title: one line.
        loads: in their order.
        goals: judged over all repetitions.
        repetitions: each on a new server with empty tables.
        duration_s: measured seconds of each load.
        warm_up_s: seconds of the same load before.
        settings: ``KEEPSTEP_…`` variables of the server.
        alternate: every second repetition has the loads backwards: what grows with time then counts for either of
            two that are compared.
        in_all: run by ``all``; others have commands of their own.
        in_quick: run by ``all --quick`` too.
    """

    title: Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
    loads: Annotated[tuple[Load, ...], msgspec.Meta(min_length=1, max_length=LOADS_MAX)]
    goals: Annotated[tuple[Goal, ...], msgspec.Meta(max_length=GOALS_MAX)] = ()
    repetitions: Annotated[int, msgspec.Meta(ge=1, le=100)] = 3
    duration_s: Annotated[int, msgspec.Meta(ge=1, le=86_400)] = 10
    warm_up_s: Annotated[int, msgspec.Meta(ge=0, le=3_600)] = 2
    settings: dict[str, str] = {}
    alternate: bool = False
    in_all: bool = True
    in_quick: bool = True


def scenario_names() -> list[str]:
    """All scenarios that there are, in their order."""
    return sorted(path.stem for path in SCENARIOS.glob("*.toml"))


def read_scenario(name: str) -> Scenario:
    """A scenario of ``bench/scenarios``, or of a file where ``name`` ends in ``.toml``.

    Raises:
        InvalidScenarioError: there is none, or its file is wrong.
    """
    path = Path(name) if name.endswith(".toml") else SCENARIOS / f"{name}.toml"
    try:
        scenario = msgspec.convert(tomllib.loads(path.read_text()), Scenario)
    except FileNotFoundError as exc:
        raise InvalidScenarioError(f"no scenario {name}: there are {', '.join(scenario_names())}") from exc
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, msgspec.ValidationError) as exc:
        raise InvalidScenarioError(f"{path}: {exc}") from exc
    check_scenario(scenario, str(path))
    return scenario


def check_scenario(scenario: Scenario, name: str) -> None:
    """What no type says. Raises InvalidScenarioError, which says ``name``."""
    before: set[str] = set()
    for load in scenario.loads:
        if load.name in before:
            raise InvalidScenarioError(f"{name}: two loads are named {load.name}")
        if load.rate is not None and load.rate_share is not None:
            raise InvalidScenarioError(f"{name}: {load.name} has a rate and a rate_share")
        if load.rate_share is not None and load.rate_share.of not in before:
            raise InvalidScenarioError(f"{name}: no load {load.rate_share.of} comes before {load.name}")
        if load.rate_share is not None and scenario.alternate:
            raise InvalidScenarioError(f"{name}: {load.name} has a rate_share, and the loads alternate")
        before.add(load.name)
    for goal in scenario.goals:
        for load_name in (goal.load, goal.ratio_to):
            if load_name is not None and load_name not in before:
                raise InvalidScenarioError(f"{name}: a goal for {load_name}, which is no load")
        if goal.figure not in FIGURES:
            raise InvalidScenarioError(f"{name}: a goal for {goal.figure}, which is no figure")
        if goal.at_least is None and goal.at_most is None:
            raise InvalidScenarioError(f"{name}: the goal for {goal.figure} has neither at_least nor at_most")
    for variable in scenario.settings:
        if not variable.startswith("KEEPSTEP_"):
            raise InvalidScenarioError(f"{name}: {variable} is no setting of the server")
