"""``keepstep serve`` in this process: its signals, and what it hands to the server."""

from __future__ import annotations

import os
import pty
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from keepstep import cli, server
from keepstep.config import Settings
from keepstep.reloading import ReloadRequests
from keepstep.server import Started

STARTED = Started("http://127.0.0.1:8440", "ws://127.0.0.1:8441/v1/connect#00", bytes(32), "PostgreSQL")


class FakeServer:
    """Stands in for ``server.run``: starts when it may, drains when it may."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.may_start, self.may_stop = trio.Event(), trio.Event()
        self.entered, self.stopping = trio.Event(), trio.Event()
        self.history: list[str] = []
        self.requests: ReloadRequests | None = None
        monkeypatch.setattr(server, "run", self.run)

    async def run(
        self,
        _settings: object,
        *,
        stop: trio.Event,
        reload_requests: ReloadRequests,
        task_status: trio.TaskStatus[Started],
    ) -> None:
        """As ``server.run``."""
        self.requests = reload_requests
        try:
            self.entered.set()
            await self.may_start.wait()
            task_status.started(STARTED)
            self.history.append("started")
            await stop.wait()
            self.stopping.set()
            await self.may_stop.wait()
            self.history.append("drained")
        except trio.Cancelled:
            self.history.append("cancelled")
            raise


@pytest.mark.parametrize("one", [signal.SIGTERM, signal.SIGINT])
async def test_the_first_signal_drains(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], data_dir: Path, one: signal.Signals
) -> None:
    """And the command returns when the server has stopped."""
    fake = FakeServer(monkeypatch)
    fake.may_start.set()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(cli._serve, Settings(data_dir=data_dir), Settings)
        await trio.testing.wait_all_tasks_blocked()
        signal.raise_signal(one)
        await fake.stopping.wait()
        fake.may_stop.set()
    assert fake.history == ["started", "drained"]
    printed = capsys.readouterr().out
    assert STARTED.device_url in printed
    assert " device new laptop\n" in printed
    assert printed.endswith("Ctrl-C stops the server.\n")


async def test_the_second_signal_does_not_wait(monkeypatch: pytest.MonkeyPatch, data_dir: Path) -> None:
    """For what hangs."""
    fake = FakeServer(monkeypatch)
    fake.may_start.set()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(cli._serve, Settings(data_dir=data_dir), Settings)
        await trio.testing.wait_all_tasks_blocked()
        signal.raise_signal(signal.SIGTERM)
        await fake.stopping.wait()
        signal.raise_signal(signal.SIGTERM)
    assert fake.history == ["started", "cancelled"]


async def test_a_signal_while_it_starts_stops_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], data_dir: Path
) -> None:
    """Nothing is announced."""
    fake = FakeServer(monkeypatch)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(cli._serve, Settings(data_dir=data_dir), Settings)
        await fake.entered.wait()
        await trio.testing.wait_all_tasks_blocked()
        signal.raise_signal(signal.SIGINT)
    assert fake.history == ["cancelled"]
    assert capsys.readouterr().out == ""


async def test_sighup_asks_for_the_configuration_and_stops_nothing(
    monkeypatch: pytest.MonkeyPatch, data_dir: Path
) -> None:
    """Also while the server still starts: the request waits for it."""
    fake = FakeServer(monkeypatch)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(cli._serve, Settings(data_dir=data_dir), Settings)
        await fake.entered.wait()
        signal.raise_signal(signal.SIGHUP)
        await trio.testing.wait_all_tasks_blocked()
        assert fake.requests is not None
        with trio.fail_after(1):
            await fake.requests.wait()
        fake.may_start.set()
        fake.may_stop.set()
        await trio.testing.wait_all_tasks_blocked()
        signal.raise_signal(signal.SIGTERM)
    assert fake.history == ["started", "drained"]


async def test_a_terminal_that_closes_stops_the_server(monkeypatch: pytest.MonkeyPatch, data_dir: Path) -> None:
    """It sends SIGHUP as well, and the server would go on unseen."""
    fake = FakeServer(monkeypatch)
    fake.may_start.set()
    fake.may_stop.set()
    there, here = pty.openpty()
    monkeypatch.setattr(cli, "STANDARD_INPUT", here)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(cli._serve, Settings(data_dir=data_dir), Settings)
        await trio.testing.wait_all_tasks_blocked()
        os.close(there)
        signal.raise_signal(signal.SIGHUP)
    os.close(here)
    assert fake.history == ["started", "drained"]


def test_unsafe_has_to_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the option or by its setting."""
    seen: list[bool] = []

    async def serve(settings: Settings, load: Callable[[], Settings]) -> None:
        await trio.lowlevel.checkpoint()
        seen.append(settings.unsafe)
        assert load() == settings

    def configure(*_arguments: Any) -> None:
        """Leave this process' logging alone."""

    monkeypatch.setattr(cli, "_serve", serve)
    monkeypatch.setattr("keepstep.telemetry.configure_logging", configure)
    for arguments in (["serve"], ["serve", "--unsafe"]):
        with pytest.raises(SystemExit):
            cli.main(arguments)
    assert seen == [False, True]
