"""``keepstep retention``, as an operator types it, on a database."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest
import structlog
import trio
from click.testing import CliRunner

from keepstep.cli import commands
from keepstep.runtime import SystemClock
from tests.support.events import DeviceFixture, UserFixture
from tests.support.logs import PostgresPlace, append, create_account

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.database import DatabaseServer

ADA: Final = UserFixture("ada")


@pytest.fixture
def settings(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Events stay for ninety days; logging is afterwards as it was."""
    monkeypatch.setenv("KEEPSTEP_DATABASE_URL", database_url)
    monkeypatch.setenv("KEEPSTEP_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("KEEPSTEP_RETENTION_DAYS", "90")
    yield
    structlog.reset_defaults()


@pytest.mark.usefixtures("settings")
def test_old_events_are_shown_and_let_go(database_url: str, database_server: DatabaseServer) -> None:
    """By hand, as the server does by itself."""

    async def fill(place: PostgresPlace) -> None:
        log = place.node()
        phone = DeviceFixture(ADA, "phone")
        principal = await create_account(place, log, phone)
        await append(log, principal, *phone.events("notes", 3))
        await append(log, principal, phone.event("notes", b"young"), now_ms=SystemClock().now_ms())

    place = PostgresPlace(database_url, database_server.admin_url)
    trio.run(fill, place)
    place.close()

    before = CliRunner().invoke(commands, ["retention", "status"], catch_exceptions=False)
    done = CliRunner().invoke(commands, ["retention", "run"], catch_exceptions=False)
    after = CliRunner().invoke(commands, ["retention", "status"], catch_exceptions=False)

    assert "events stay: 90 days" in before.output
    assert "overdue: nothing" not in before.output
    assert done.output == "let go of 3 events; removed 0 rows, dropped 1 partitions\n"
    assert "overdue: nothing" in after.output
    assert "oldest event that may go: 0.0 days" in after.output


@pytest.mark.usefixtures("settings")
def test_an_empty_database_has_nothing_to_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """And without a rule everything stays."""
    monkeypatch.delenv("KEEPSTEP_RETENTION_DAYS")
    status = CliRunner().invoke(commands, ["retention", "status"], catch_exceptions=False)
    assert "events stay: for ever" in status.output
    assert "oldest event that may go: none" in status.output
    done = CliRunner().invoke(commands, ["retention", "run", "--at-once"], catch_exceptions=False)
    assert done.output.startswith("let go of 0 events; removed 0 rows")
