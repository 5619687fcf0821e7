"""What the settings allow each part, and that a running server takes over what may change."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import structlog

from keepstep import composition, config, telemetry
from keepstep.config import Settings
from keepstep.gateway import Gateway
from keepstep.identity import Identity
from keepstep.reloading import Reloads
from keepstep.tokens import Tokens
from tests.support.events import DeviceFixture, UserFixture
from tests.support.server import running_server

KEY, OTHER_KEY = "k" * 32, "o" * 32
PAGE = "https://page.example"


class Running:
    """A server whose settings a test changes."""

    def __init__(self, data_dir: Path, reloads: Reloads, http: httpx.AsyncClient) -> None:
        self._data_dir = data_dir
        self.reloads = reloads
        self.http = http

    def reload(self, **values: Any) -> None:
        """The default settings with these instead."""
        self.reloads.take_over(Settings.model_validate({"data_dir": self._data_dir, **values}))

    async def register(self, name: str) -> httpx.Response:
        """Make an account."""
        genesis = DeviceFixture(UserFixture(name), "phone").genesis()
        body = msgspec.msgpack.encode([genesis.header, genesis.sig, genesis.payload])
        return await self.http.post("/api/v1/accounts", content=body, headers={"content-type": "application/msgpack"})

    async def audit(self, key: str) -> int:
        """The status of a call that needs the administration key."""
        return (await self.http.get("/admin/users", headers={"authorization": f"Bearer {key}"})).status_code


@asynccontextmanager
async def running(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Running]:
    """A server in memory, with its reloads at hand."""
    made: list[Reloads] = []

    def remember(*arguments: Any) -> Reloads:
        made.append(Reloads(*arguments))
        return made[-1]

    monkeypatch.setattr(composition, "Reloads", remember)
    async with running_server(data_dir) as server, httpx.AsyncClient(base_url=server.rest_url, timeout=60) as http:
        yield Running(data_dir, made[0], http)


async def test_every_setting_that_may_change_has_a_part_that_takes_it_over(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No mark is an empty promise, and nothing changes that the documentation calls fixed."""
    marked = {name for name in Settings.model_fields if config.reloadable(name)}
    async with running(data_dir, monkeypatch) as server:
        assert server.reloads.registered == marked


async def test_registration_and_its_rates_change(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also what the server tells of itself; what was counted stays counted."""
    async with running(data_dir, monkeypatch) as server:
        assert (await server.register("alice")).status_code == 201
        server.reload(registration="closed")
        assert (await server.register("bob")).status_code == 403
        assert (await server.http.get("/api/v1/server")).json()["registration"] == "closed"
        server.reload(registrations_per_address_hour=1)
        assert (await server.register("bob")).status_code == 429
        server.reload()
        assert (await server.register("bob")).status_code == 201


async def test_the_administration_key_changes(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set, replaced, and taken away; the old one is refused at once."""
    async with running(data_dir, monkeypatch) as server:
        assert await server.audit(KEY) == 404
        server.reload(admin_api_key=KEY)
        assert await server.audit(KEY) == 200
        server.reload(admin_api_key=OTHER_KEY)
        assert (await server.audit(KEY), await server.audit(OTHER_KEY)) == (401, 200)
        server.reload()
        assert await server.audit(OTHER_KEY) == 404


async def test_cors_origins_and_rest_rates_change(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the next call on."""
    async with running(data_dir, monkeypatch) as server:

        async def allowed() -> str | None:
            answer = await server.http.get("/api/v1/server", headers={"origin": PAGE})
            origin: str | None = answer.headers.get("access-control-allow-origin")
            return origin

        assert await allowed() is None
        server.reload(cors_origins=PAGE, rest_calls_per_address_minute=2)
        assert await allowed() == PAGE
        answers = [(await server.http.get("/api/v1/server")).status_code for _ in range(3)]
        assert answers[-1] == 429


async def test_limits_of_sessions_tokens_and_devices_change(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the parts read them at their next use."""
    parts: dict[type, Any] = {}
    for part in (Gateway, Identity, Tokens):
        made = part.__init__

        def remember(self: Any, *arguments: Any, _made: Any = made, **keywords: Any) -> None:
            _made(self, *arguments, **keywords)
            parts.setdefault(type(self), self)

        monkeypatch.setattr(part, "__init__", remember)
    async with running(data_dir, monkeypatch) as server:
        server.reload(idle_timeout_s="5m", access_token_lifetime_s=90, devices_per_user_max=3, drain_timeout_s=1)
        assert parts[Gateway].limits.session.idle_timeout_s == 300
        assert parts[Tokens].lifetimes.access_token_lifetime_s == 90
        assert parts[Identity].devices_per_user_max == 3
        assert server.reloads.settings.drain_timeout_s == 1


async def test_the_log_level_changes(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For loggers that are there as well."""
    configured: list[tuple[str, str]] = []
    monkeypatch.setattr("keepstep.limits.configure_logging", lambda *arguments: configured.append(arguments))
    async with running(data_dir, monkeypatch) as server:
        server.reload(log_level="error")
    assert configured == [("error", "console")]


def test_a_logger_follows_the_level(capsys: pytest.CaptureFixture[str]) -> None:
    """Parts keep the logger that they were given at the start."""
    before = structlog.get_config()
    try:
        logger = telemetry.configure_logging("info", "json")
        telemetry.configure_logging("error", "json")
        logger.info("not_written")
        logger.error("written")
    finally:
        structlog.configure(**before)
    written = capsys.readouterr().err
    assert '"written"' in written
    assert "not_written" not in written
