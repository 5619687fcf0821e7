"""The server with the PostgreSQL that it runs itself."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import httpx
import msgspec
import psycopg
import pytest
import trio

from keepstep import server
from keepstep.config import Settings
from keepstep.errors import StartupError
from keepstep.postgres import opening
from tests.support.events import DeviceFixture, UserFixture
from tests.support.server import free_listeners
from tests.support.wire import WireDevice, open_socket


@pytest.mark.slow
async def test_its_own_database_keeps_what_it_acknowledged(data_dir: Path) -> None:
    """Started with the server, stopped with it; at the second start everything is there."""
    phone = DeviceFixture(UserFixture("alice"), "phone")
    genesis, event = phone.genesis(), phone.event("notes")
    body = msgspec.msgpack.encode([genesis.header, genesis.sig, genesis.payload])
    seqs = []
    for status in (201, 200):
        async with trio.open_nursery() as nursery:
            run = partial(server.run, Settings(data_dir=data_dir), listeners=free_listeners())
            started = await nursery.start(run)
            assert started.database.endswith(f"its own in {data_dir / 'postgres'}")
            async with httpx.AsyncClient(base_url=started.rest_url, timeout=60) as http:
                answer = await http.post(
                    "/api/v1/accounts", content=body, headers={"content-type": "application/msgpack"}
                )
                assert answer.status_code == status
                metrics = (await http.get("/metrics")).text
                assert "keepstep_database_away 0.0" in metrics
                assert 'keepstep_cache_lookups_total{cache="heads",result="missing"}' in metrics
            async with open_socket(started.device_url) as end:
                device = await WireDevice.connect(phone, end, started.server_key)
                (result,) = await device.publish(event)
                seqs.append(getattr(result, "first_seq", None) or result.seq)
            nursery.cancel_scope.cancel()
    assert seqs == [1, 1]


async def test_a_database_that_cannot_be_asked_is_said_so(
    data_dir: Path, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was there for the migrations and is not any more."""

    def away(*_arguments: object, **_keywords: object) -> None:
        raise psycopg.OperationalError("secret")

    monkeypatch.setattr(opening, "check_durability", away)
    settings = Settings(data_dir=data_dir, database_url=database_url)  # type: ignore[arg-type]
    with pytest.raises(StartupError, match="the database cannot be used: OperationalError"):
        await server.run(settings, listeners=free_listeners())
