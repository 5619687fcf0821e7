"""The composition root: starting, stopping, and what is handed in."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import trio
import trio.testing

from bench.machine import free_ports
from keepstep import composition, keys, server
from keepstep.client import crypto
from keepstep.config import Settings
from keepstep.errors import StartupError
from keepstep.listening import bind
from keepstep.memory import MemoryDatabase
from keepstep.protocol.messages import Accepted, Draining, KeyAnnounced
from keepstep.protocol.succession import encode_announcement, verify_announcement
from keepstep.runtime import SystemClock, SystemRandomness
from keepstep.validation import format_base64url
from tests.support.events import DeviceFixture, UserFixture
from tests.support.server import RunningServer, free_listeners, memory_storage, running_server
from tests.support.wire import Closed, WireDevice, open_socket


async def register(running: RunningServer, name: str) -> DeviceFixture:
    """A new user's first device, through REST."""
    phone = DeviceFixture(UserFixture(name), "phone")
    genesis = phone.genesis()
    async with httpx.AsyncClient(base_url=running.rest_url, timeout=60) as http:
        answer = await http.post(
            "/api/v1/accounts",
            content=msgspec.msgpack.encode([genesis.header, genesis.sig, genesis.payload]),
            headers={"content-type": "application/msgpack"},
        )
    assert answer.status_code == 201
    return phone


async def test_a_started_server_says_where_it_is(data_dir: Path) -> None:
    """The addresses, the key devices pin, and the database without credentials."""
    async with running_server(data_dir) as running:
        key = keys.load(data_dir)
        started = running.started
        assert started.server_key == key.public
        assert started.device_url.startswith("ws://127.0.0.1:")
        assert started.device_url.endswith(f"/v1/connect#{key.public.hex()}")
        assert started.database == "memory"
        async with httpx.AsyncClient(base_url=started.rest_url, timeout=60) as http:
            told = (await http.get("/api/v1/server")).json()
        assert told["device_url"] == started.device_url
    await running.stopped.wait()


async def test_devices_are_told_of_the_servers_next_key_until_it_is_old(data_dir: Path) -> None:
    """After Ready and over REST; at the next start after its time it is the server's key, and still announced."""
    old = keys.load_or_create(data_dir, SystemRandomness())
    now_ms = SystemClock().now_ms()
    announcement = keys.announce_successor(data_dir, SystemRandomness(), from_ms=now_ms - 1, until_ms=now_ms + 600_000)
    encoded = encode_announcement(announcement)
    async with running_server(data_dir) as running:
        key = running.started.server_key
        assert key == verify_announcement(crypto, announcement).new_key != old.public
        async with httpx.AsyncClient(base_url=running.rest_url, timeout=60) as http:
            told = (await http.get("/api/v1/server")).json()
        assert told["server_key_announcements"] == [format_base64url(encoded)]
        phone = await register(running, "alice")
        async with open_socket(running.device_url) as end:
            session = await WireDevice.connect(phone, end, key)
            assert await session.expect(KeyAnnounced) == KeyAnnounced(encoded)


@pytest.mark.parametrize(
    ("settings", "url"),
    [
        ({"public_device_url": "wss://sync.example.org/v1/connect"}, "wss://sync.example.org/v1/connect#"),
        ({"device_host": "0.0.0.0"}, "ws://127.0.0.1:"),  # noqa: S104 - nothing is bound to it
        ({"device_host": "::"}, "ws://[::1]:"),
    ],
)
async def test_devices_are_told_an_address_that_works(data_dir: Path, settings: dict[str, Any], url: str) -> None:
    """The public one where there is one; never the address for 'everywhere'."""
    async with running_server(data_dir, settings=settings) as running:
        assert running.started.device_url.startswith(url)


async def test_the_ports_of_the_settings_are_listened_on(data_dir: Path) -> None:
    """Where no sockets are handed in."""
    rest_port, device_port = free_ports(2)
    settings = Settings(data_dir=data_dir, rest_port=rest_port, device_port=device_port)
    async with trio.open_nursery() as nursery:
        started = await nursery.start(partial(server.run, settings, storage=memory_storage()))
        assert started.rest_url == f"http://127.0.0.1:{rest_port}"
        assert f":{device_port}/" in started.device_url
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("taken", ["device_port", "rest_port"])
async def test_a_busy_port_shows_before_anything_is_opened(data_dir: Path, taken: str) -> None:
    """By the name of its setting; the other port is let go again, and no key was made."""
    ports: dict[str, Any] = dict(zip(("device_port", "rest_port"), free_ports(2), strict=True))
    (busy,) = bind("127.0.0.1", ports[taken], setting=taken)
    busy.listen(1)
    with pytest.raises(StartupError, match=f"KEEPSTEP_{taken.upper()}"):
        await server.run(Settings(data_dir=data_dir, **ports), storage=memory_storage())
    busy.close()
    assert not list(data_dir.iterdir())
    for port in ports.values():
        for sock in bind("127.0.0.1", port, setting="any"):
            sock.close()


async def test_a_database_that_goes_away_while_starting_is_said_so(data_dir: Path) -> None:
    """In plain words; the ports are let go."""
    database = MemoryDatabase()
    database.away = True
    listeners = free_listeners()
    port = listeners.rest[0].getsockname()[1]
    with pytest.raises(StartupError, match="went away while the server was starting"):
        await server.run(Settings(data_dir=data_dir), storage=memory_storage(database), listeners=listeners)
    for sock in bind("127.0.0.1", port, setting="any"):
        sock.close()


async def test_stopping_drains_and_lets_the_ports_go(data_dir: Path) -> None:
    """Devices are told, what is under way is acknowledged, and another server can start in the same place."""
    database = MemoryDatabase()
    async with running_server(data_dir, storage=memory_storage(database)) as running:
        phone = await register(running, "alice")
        async with open_socket(running.device_url) as end:
            device = await WireDevice.connect(phone, end, running.started.server_key)
            await device.start_publish(phone.event("notes"))
            await device.expect(Accepted)
            running.stop.set()
            await device.expect(Draining)
            with pytest.raises(Closed) as caught:
                await device.receive()
            assert caught.value.reason == "draining"
        await running.stopped.wait()
        with pytest.raises(OSError, match="failed"):
            await trio.open_tcp_stream("127.0.0.1", httpx.URL(running.rest_url).port or 0)
    async with running_server(data_dir, storage=memory_storage(database)) as again:
        assert again.started.server_key == running.started.server_key


async def test_a_server_that_drains_is_not_ready_but_alive(data_dir: Path) -> None:
    """Until its last device is gone, whoever asks is told to go elsewhere."""
    async with running_server(data_dir) as running:
        phone = await register(running, "alice")
        async with (
            open_socket(running.device_url) as end,
            httpx.AsyncClient(base_url=running.rest_url, timeout=60) as http,
        ):
            await WireDevice.connect(phone, end, running.started.server_key)
            end.websocket._stream_lock.acquire_nowait()  # it cannot even answer the close frame
            running.stop.set()
            await trio.testing.wait_all_tasks_blocked(0.05)
            ready, live = await http.get("/health/ready"), await http.get("/health/live")
            assert (ready.status_code, ready.json()["draining"], live.status_code) == (503, True, 200)
            end.websocket._stream_lock.release()


async def test_draining_does_not_wait_for_ever(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A commit that hangs keeps its device from being answered, but not the server from stopping."""
    monkeypatch.setattr(composition, "PIPELINE_GRACE_S", 0.05)
    storage = memory_storage()
    entered = trio.Event()

    async def hang(*_arguments: Any, **_keywords: Any) -> Any:
        entered.set()
        await trio.sleep_forever()

    async with running_server(data_dir, storage=storage, settings={"drain_timeout_s": 0.05}) as running:
        phone = await register(running, "alice")
        storage.log.append = hang  # type: ignore[method-assign]
        async with open_socket(running.device_url) as end:
            device = await WireDevice.connect(phone, end, running.started.server_key)
            await device.start_publish(phone.event("notes"))
            await entered.wait()
            running.stop.set()
            await device.expect(Draining)
            with pytest.raises(Closed) as caught:
                await device.receive()
            assert caught.value.reason == "draining"


async def test_a_fault_in_a_service_ends_the_server(data_dir: Path) -> None:
    """It must not go on without one of its parts: whoever supervises it starts it again."""
    storage = memory_storage()

    async def broken(*_arguments: Any, **_keywords: Any) -> int:
        raise ZeroDivisionError

    with pytest.RaisesGroup(ZeroDivisionError, flatten_subgroups=True):
        async with running_server(data_dir, storage=storage, settings={"clock_offset_interval_s": 0.01}):
            storage.maintenance.now_ms = broken  # type: ignore[method-assign]
            await trio.sleep_forever()


async def test_rest_is_served_where_the_kernel_has_no_user_timeout(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other systems than Linux."""
    monkeypatch.delattr("socket.TCP_USER_TIMEOUT", raising=False)
    async with running_server(data_dir) as running, httpx.AsyncClient(base_url=running.rest_url, timeout=60) as http:
        assert (await http.get("/health/live")).status_code == 200


async def test_the_probe_is_told_of_acknowledgements(data_dir: Path) -> None:
    """After the socket has taken them."""
    points: list[str] = []
    async with running_server(data_dir, probe=points.append) as running:
        phone = await register(running, "alice")
        async with open_socket(running.device_url) as end:
            device = await WireDevice.connect(phone, end, running.started.server_key)
            await device.publish(phone.event("notes"))
        assert points == ["after_ack"]


async def test_counts_of_the_moment_are_exposed(data_dir: Path) -> None:
    """Connections, sessions and users, as they are when somebody asks."""
    async with running_server(data_dir) as running:
        phone = await register(running, "alice")
        async with (
            open_socket(running.device_url) as end,
            open_socket(running.device_url),
            httpx.AsyncClient(base_url=running.rest_url, timeout=60) as http,
        ):
            await WireDevice.connect(phone, end, running.started.server_key)
            lines = (await http.get("/metrics")).text.splitlines()
    for name, value in {
        "connections": 2,
        "unauthenticated_connections": 1,
        "connections_refused_total": 0,
        "sessions": 1,
        "session_users": 1,
        "submissions_waiting": 0,
        "unsafe": 0,
        "database_away": 0,
        "tail_bytes": 0,
        "draining": 0,
    }.items():
        assert f"keepstep_{name} {float(value)}" in lines


async def test_a_database_that_is_not_asked_is_a_metric(data_dir: Path) -> None:
    """What the breaker says now, for whoever is to be woken by it."""
    is_away = False
    storage = replace(memory_storage(), is_away=lambda: is_away)
    async with (
        running_server(data_dir, storage=storage) as running,
        httpx.AsyncClient(base_url=running.rest_url, timeout=60) as http,
    ):
        for away in (False, True, False):
            is_away = away
            assert f"keepstep_database_away {float(away)}" in (await http.get("/metrics")).text.splitlines()


@pytest.mark.parametrize(
    ("settings", "origin"),
    [
        ({}, None),
        ({"public_rest_url": "https://rest.example.org:8443"}, "https://rest.example.org:8443"),
        ({"public_device_url": "wss://sync.example.org/v1/connect"}, "https://sync.example.org"),
        ({"public_device_url": "ws://sync.example.org:8441/v1/connect"}, "http://sync.example.org:8440"),
    ],
)
async def test_rest_clients_are_told_the_address_that_they_sign(
    data_dir: Path, settings: dict[str, Any], origin: str | None
) -> None:
    """The public one, else the one beside the devices'; what signs tokens is in a file of its own."""
    async with running_server(data_dir, settings=settings) as running:
        async with httpx.AsyncClient(base_url=running.rest_url, timeout=60) as http:
            body = {"user_id": "ab" * 32, "device_id": "0f8fad5b-d9cb-469f-a165-70867728950e"}
            told = (await http.post("/api/v1/auth/challenge", json=body)).json()
        assert told["origin"] == (origin or running.rest_url)
        assert told["server_key"] == running.started.server_key.hex()
    assert (data_dir / "token-keys.json").stat().st_mode & 0o777 == 0o600


async def test_a_server_does_not_start_with_damaged_token_keys(data_dir: Path) -> None:
    """The message says what to do."""
    path = data_dir / "token-keys.json"
    path.write_text("{")
    path.chmod(0o600)
    with pytest.raises(StartupError, match="Delete the file"):
        await server.run(Settings(data_dir=data_dir), storage=memory_storage(), listeners=free_listeners())
