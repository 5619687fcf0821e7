"""Reloading: what changes, what is told, and that a wrong configuration changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping
from typing import Any

import pytest
import structlog
import trio
import trio.testing
from pydantic import SecretStr

from keepstep.config import Settings
from keepstep.errors import ConfigError
from keepstep.reloading import PROBLEMS_MAX, ReloadRequests, Reloads
from keepstep.telemetry import Metrics
from tests.support.certificates import SameThread

Lines = list[MutableMapping[str, Any]]


@pytest.fixture
def lines() -> Iterator[Lines]:
    """What is logged."""
    with structlog.testing.capture_logs() as captured:
        yield captured


class Fixture:
    """The settings of a server, and what its parts are told."""

    def __init__(self) -> None:
        self.metrics = Metrics()
        self.reloads = Reloads(Settings(), SameThread(), self.metrics, structlog.get_logger())
        self.told: list[Settings] = []
        self.reloads.on(("rest_calls_per_user_minute", "page_bytes_max"), self.told.append)

    def sample(self, name: str, **labels: str) -> float | None:
        """A metric's value."""
        return self.metrics.registry.get_sample_value(f"keepstep_{name}", labels)

    def reload(self, **values: Any) -> None:
        """Take settings over that differ from the defaults in these."""
        self.reloads.take_over(Settings(**values))


def test_a_part_is_told_of_its_settings_and_of_no_others(lines: Lines) -> None:
    """Once for all that changed, with the whole of the settings in force."""
    server = Fixture()
    server.reload(rest_calls_per_user_minute=7, page_bytes_max=2048, log_level="error", rest_port=9)
    (settings,) = server.told
    assert (settings.rest_calls_per_user_minute, settings.page_bytes_max, settings.log_level) == (7, 2048, "error")
    assert settings.rest_port == 8440, "what needs a restart is as it was"
    assert server.reloads.settings is settings
    server.reload(rest_calls_per_user_minute=7, page_bytes_max=2048, rest_port=9)
    assert len(server.told) == 1
    assert [line["setting"] for line in lines if line["event"] == "setting_needs_restart"] == ["rest_port"] * 2


def test_what_changed_is_logged_and_counted_with_secrets_masked(lines: Lines) -> None:
    """Old and new value, and what waits for a restart."""
    server = Fixture()
    server.reload(rest_calls_per_user_minute=7, admin_api_key=SecretStr("hunter2" * 8), server_name="other")
    assert lines == [
        {"event": "setting_changed", "setting": "rest_calls_per_user_minute", "old": "1200", "new": "7"}
        | {"log_level": "info"},
        {"event": "setting_changed", "setting": "admin_api_key", "old": "not set", "new": "***", "log_level": "info"},
        {"event": "setting_needs_restart", "setting": "server_name", "old": "keepstep", "new": "other"}
        | {"log_level": "info"},
        {"event": "configuration_reloaded", "count": 2, "needed": 1, "log_level": "info"},
    ]
    assert server.sample("settings_changed_total", setting="admin_api_key") == 1
    assert server.sample("setting_restart_needed", setting="server_name") == 1
    assert server.sample("configuration_reloads_total", result="applied") == 1
    server.reload(rest_calls_per_user_minute=7, admin_api_key=SecretStr("hunter2" * 8))
    assert server.sample("setting_restart_needed", setting="server_name") is None
    assert server.sample("configuration_reloads_total", result="unchanged") == 1


def test_what_contradicts_the_settings_that_stay_changes_nothing() -> None:
    """The rule holds in the new configuration, and would not in the server until it is started again."""
    server = Fixture()
    server.reloads.every_time(lambda: pytest.fail("nothing was taken over"))
    with pytest.raises(ConfigError, match=r"batch_bytes_max must be at least .* changes with a restart only"):
        server.reload(payload_bytes_max=5 << 20, batch_bytes_max=6 << 20, rest_calls_per_user_minute=7)
    assert server.reloads.settings == Settings()
    assert server.told == []


async def test_what_nobody_foresaw_leaves_the_settings_that_were(lines: Lines) -> None:
    """A part that fails, or a file that cannot be read: it is logged, who had taken over goes back, and all go on."""
    server = Fixture()

    def fail(settings: Settings) -> None:
        if settings.page_bytes_max == 2048:
            raise RuntimeError("not foreseen")

    server.reloads.on(("page_bytes_max",), fail)
    answers = [Settings(page_bytes_max=2048), Settings(page_bytes_max=4096)]
    requests = ReloadRequests(lambda: answers.pop(0))
    async with trio.open_nursery() as nursery:
        await nursery.start(server.reloads.run, requests)
        for expected in ([2048, Settings().page_bytes_max], [2048, Settings().page_bytes_max, 4096]):
            requests.request()
            await trio.testing.wait_all_tasks_blocked()
            assert [settings.page_bytes_max for settings in server.told] == expected
        nursery.cancel_scope.cancel()
    (refused,) = [line for line in lines if line["event"] == "configuration_refused"]
    assert refused["error"] == "RuntimeError"
    assert server.reloads.settings.page_bytes_max == 4096


def test_files_are_looked_at_every_time(lines: Lines) -> None:
    """They change without their path, and settings without them."""
    server = Fixture()
    looks: list[str] = []
    server.reloads.every_time(lambda: looks.append("look"))
    server.reload()
    server.reload(log_level="error")
    assert looks == ["look", "look"]
    assert lines[0]["event"] == "configuration_reloaded"


def test_who_reads_at_use_is_registered_as_well() -> None:
    """So that no setting is marked that nobody takes over."""
    server = Fixture()
    server.reloads.read_at_use("drain_timeout_s")
    assert server.reloads.registered == {"rest_calls_per_user_minute", "page_bytes_max", "drain_timeout_s"}


async def test_requests_are_answered_one_after_the_other(lines: Lines) -> None:
    """Also those from before the server ran; a configuration that is refused does not stop the next."""
    server = Fixture()
    problems = "\n".join(f"  KEEPSTEP_{number}: no" for number in range(PROBLEMS_MAX + 1))
    answers: list[Callable[[], Settings]] = [
        lambda: Settings(rest_calls_per_user_minute=7),
        lambda: refuse(f"the configuration cannot be used:\n{problems}"),
        lambda: Settings(rest_calls_per_user_minute=8),
    ]
    requests = ReloadRequests(lambda: answers.pop(0)())
    requests.request()
    requests.request()
    async with trio.open_nursery() as nursery:
        await nursery.start(server.reloads.run, requests)
        for left in (2, 1, 0):
            await trio.testing.wait_all_tasks_blocked()
            assert len(answers) == left, "two requests at once are one"
            requests.request()
        nursery.cancel_scope.cancel()
    assert [settings.rest_calls_per_user_minute for settings in server.told] == [7, 8]
    (refused,) = [line for line in lines if line["event"] == "configuration_refused"]
    assert refused["problems"] == [f"KEEPSTEP_{number}: no" for number in range(PROBLEMS_MAX)]
    assert server.sample("configuration_reloads_total", result="refused") == 1


def refuse(text: str) -> Settings:
    """As ``config.load`` where something is wrong."""
    raise ConfigError(text)
