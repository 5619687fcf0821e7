"""The REST application: every route, and what a client sees when something is wrong."""

from __future__ import annotations

import json
from typing import Any

import httpx
import msgspec
import pytest
import structlog
import trio
import trio.testing
from prometheus_client.parser import text_string_to_metric_families

from keepstep.client import crypto
from keepstep.identity import Registrations
from keepstep.memory import MemoryDatabase, MemoryMaintenance
from keepstep.protocol.chain import verify_head
from keepstep.rest.endpoints import BODY_BYTES_MAX
from keepstep.rest.readiness import Readiness
from keepstep.telemetry import STRANGERS_LINES_MAX, STRANGERS_LINES_S
from tests.support.events import DeviceFixture, UserFixture
from tests.support.parts import SERVER_KEY, TestClock
from tests.support.rest import Site, site

MSGPACK = {"content-type": "application/msgpack"}


async def post(here: Site, body: bytes, **headers: str) -> httpx.Response:
    """Register."""
    return await here.http.post("/api/v1/accounts", content=body, headers=MSGPACK | headers)


def genesis_body(name: str = "alice") -> tuple[DeviceFixture, bytes]:
    """A new user's first device, and what it posts."""
    phone = DeviceFixture(UserFixture(name), "phone")
    genesis = phone.genesis()
    return phone, msgspec.msgpack.encode([genesis.header, genesis.sig, genesis.payload])


# -- health and metrics ---------------------------------------------------------------------------------------------


async def test_a_live_process_says_so() -> None:
    """Whatever the database does."""
    async with site() as here:
        here.parts.database.away = True
        answer = await here.http.get("/health/live")
        assert (answer.status_code, answer.json()) == (200, {"status": "live"})


async def test_a_ready_server_says_so() -> None:
    """It can reach its database and is not going down."""
    async with site() as here:
        answer = await here.http.get("/health/ready")
        assert answer.status_code == 200
        assert answer.json() == {"status": "ready", "database": "ok", "disk": "ok", "draining": False, "unsafe": False}


async def test_a_server_without_its_database_is_not_ready() -> None:
    """Devices should be sent elsewhere."""
    async with site() as here:
        here.parts.database.away = True
        answer = await here.http.get("/health/ready")
        assert answer.status_code == 503
        assert answer.json()["database"] == "away"


async def test_a_database_that_does_not_answer_counts_as_away(autojump_clock: trio.testing.MockClock) -> None:
    """After two seconds."""

    class Silent(MemoryMaintenance):
        """A database that hangs."""

        async def ping(self) -> None:
            """Never answers."""
            await trio.sleep_forever()

    silent = Silent(MemoryDatabase(), clock=TestClock())
    async with site(readiness=Readiness(silent)) as here:
        answer = await here.http.get("/health/ready")
        assert (answer.status_code, answer.json()["status"]) == (503, "not_ready")
        assert trio.current_time() == 2


async def test_a_draining_server_is_not_ready() -> None:
    """So that nobody is sent there any more."""
    async with site(is_draining=lambda: True) as here:
        answer = await here.http.get("/health/ready")
        assert (answer.status_code, answer.json()["draining"]) == (503, True)


async def test_an_unsafe_server_says_so() -> None:
    """Wherever somebody might look before trusting it."""
    async with site(unsafe=True) as here:
        assert (await here.http.get("/health/ready")).json()["unsafe"] is True


async def test_metrics_are_collected_when_they_are_asked_for() -> None:
    """In Prometheus' text format, requests by route and known method: a client cannot make up series."""
    collected: list[str] = []
    async with site(collect=lambda: collected.append("now")) as here:
        await here.http.get("/health/live")
        await here.http.get("/nowhere/in/particular")
        await here.http.request("MADE-UP", "/health/live")
        answer = await here.http.get("/metrics")
        assert collected == ["now"]
        assert answer.headers["content-type"].startswith("text/plain; version=")
        families = {family.name: family for family in text_string_to_metric_families(answer.text)}
        counted = {tuple(sample.labels.values()): sample.value for sample in families["keepstep_rest_requests"].samples}
        assert counted == {
            ("GET", "/health/live", "200"): 1.0,
            ("GET", "none", "404"): 1.0,
            ("other", "none", "405"): 1.0,
        }


# -- the server and accounts ----------------------------------------------------------------------------------------


async def test_the_server_tells_what_a_device_needs() -> None:
    """Version, identity key, and the address with the key to pin."""
    async with site() as here:
        answer = await here.http.get("/api/v1/server")
        assert answer.json() == {
            "version": "1.2.3",
            "name": "home",
            "server_key": SERVER_KEY.hex(),
            "device_url": f"ws://here:8441/v1/connect#{SERVER_KEY.hex()}",
            "registration": "open",
            "server_key_announcements": [],
        }


async def test_a_genesis_makes_an_account() -> None:
    """The answer says where the event is, with the signed head."""
    async with site() as here:
        phone, body = genesis_body()
        answer = await post(here, body)
        assert (answer.status_code, answer.headers["content-type"]) == (201, "application/msgpack")
        seq, received_at_ms, chain, signed = msgspec.msgpack.decode(answer.content)
        head = verify_head(crypto, SERVER_KEY, tuple(signed))
        assert (seq, received_at_ms) == (1, here.parts.clock.now_ms())
        assert (head.user_key, head.stream, head.seq, head.chain) == (phone.user.user_key, "$devices", 1, chain)
        again = await post(here, body)
        assert again.status_code == 200
        assert msgspec.msgpack.decode(again.content)[:3] == [seq, received_at_ms, chain]
        count = here.parts.metrics.registry.get_sample_value
        assert count("keepstep_registrations_total", {"result": "created"}) == 1
        assert count("keepstep_registrations_total", {"result": "duplicate"}) == 1


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        (lambda _: b"", 400, "malformed"),
        (lambda body: body[:-1], 400, "malformed"),
        (lambda body: body + b"\xc0", 400, "malformed"),
        (lambda body: body.replace(b"sealed phone", b"sealed clone"), 400, "malformed"),
        (lambda body: body[:-70] + bytes(70), 400, "malformed"),
        (lambda _: bytes(5_000), 413, "too_large"),
        (lambda _: bytes(BODY_BYTES_MAX + 1), 413, "too_large"),
    ],
)
async def test_a_wrong_genesis_is_a_problem(change: Any, status: int, code: str) -> None:
    """Typed, and counted; nothing is stored."""
    async with site() as here:
        answer = await post(here, change(genesis_body()[1]))
        assert (answer.status_code, answer.json()["code"]) == (status, code)
        assert answer.headers["content-type"] == "application/problem+json"
    assert not here.parts.database.users


async def test_a_second_account_of_a_root_key_is_a_conflict() -> None:
    """The first one stays."""
    async with site() as here:
        phone, body = genesis_body()
        await post(here, body)
        genesis = DeviceFixture(phone.user, "laptop").genesis()
        answer = await post(here, msgspec.msgpack.encode([genesis.header, genesis.sig, genesis.payload]))
        assert (answer.status_code, answer.json()["code"]) == (409, "id_reused")


async def test_a_closed_server_registers_nobody() -> None:
    """Forbidden, and not to be tried again."""
    async with site() as here:
        here.parts.identity._registrations = Registrations(
            "closed", per_address_hour=1, per_hour=1, clock=here.parts.clock
        )
        answer = await post(here, genesis_body()[1])
        assert (answer.status_code, answer.json()["code"]) == (403, "registration_closed")
        assert "retry-after" not in answer.headers


async def test_a_registration_while_the_database_is_away_may_be_tried_again() -> None:
    """Unavailable, with when."""
    async with site() as here:
        here.parts.database.away = True
        answer = await post(here, genesis_body()[1])
        assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
        assert answer.headers["retry-after"] == "1"
        assert answer.json()["retry_after_ms"] == 1_000


async def test_a_registration_that_takes_too_long_may_be_tried_again(autojump_clock: trio.testing.MockClock) -> None:
    """The same genesis is answered the same, whether the first one was stored or not."""
    async with site() as here:

        async def hang(*_arguments: Any, **_keywords: Any) -> Any:
            await trio.sleep_forever()

        here.parts.log.create_account = hang  # type: ignore[method-assign]
        answer = await post(here, genesis_body()[1])
        assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
        assert trio.current_time() == 20


async def test_a_registration_says_what_it_is() -> None:
    """Another content type is not looked at; the answer names the one that is."""
    async with site() as here:
        answer = await here.http.post("/api/v1/accounts", content=genesis_body()[1])
        assert (answer.status_code, answer.json()["title"]) == (415, "Unsupported Media Type")
        assert answer.json()["detail"] == "Content-Type has to be application/msgpack"
        assert answer.headers["accept-post"] == "application/msgpack"


async def test_strangers_do_not_fill_the_log() -> None:
    """So many lines of those who prove nobody, then how many more there were; a device's requests are all there."""
    async with site() as here:
        (phone,) = await here.parts.register("alice", "phone")
        token = await here.token(phone)
        with structlog.testing.capture_logs() as lines:
            for _ in range(STRANGERS_LINES_MAX + 5):
                await here.http.get("/no/such/path")
            for _ in range(2):
                assert (await here.http.get("/api/v1/account", headers=token)).status_code == 200
            here.parts.clock.monotonic_s = lambda: trio.current_time() + STRANGERS_LINES_S  # type: ignore[method-assign]
            await here.http.get("/no/such/path")
        requests = [line for line in lines if line["event"] == "rest_request"]
        assert [line["status"] for line in requests if "status" in line] == [404] * STRANGERS_LINES_MAX + [
            200,
            200,
            404,
        ]
        assert [line["count"] for line in requests if "count" in line] == [5]


async def test_a_refused_request_says_in_the_log_why() -> None:
    """The answer has the code alone; whoever runs the server looks for the reason."""
    async with site() as here:
        with structlog.testing.capture_logs() as lines:
            assert (await here.http.get("/api/v1/account")).status_code == 401
            assert (await here.http.get("/health/live")).status_code == 200
        refused, fine = (line for line in lines if line["event"] == "rest_request")
        assert refused["code"] == "invalid_token"
        assert "code" not in fine


# -- what goes wrong ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/nowhere", 404), ("GET", "/api/v1/accounts", 405), ("PUT", "/metrics", 405)]
)
async def test_what_is_not_here_is_a_problem(method: str, path: str, status: int) -> None:
    """With the request's id, as every answer."""
    async with site() as here:
        answer = await here.http.request(method, path, headers={"x-request-id": "mine"})
        assert answer.status_code == status
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["request_id"] == answer.headers["x-request-id"] == "mine"


async def test_a_fault_of_ours_shows_nothing_of_itself() -> None:
    """The log says where; the client gets a code and the id to ask for."""

    def broken() -> None:
        raise KeyError("a bug")

    async with site(collect=broken) as here:
        with structlog.testing.capture_logs() as lines:
            answer = await here.http.get("/metrics")
        assert (answer.status_code, answer.json()["code"]) == (500, "internal")
        assert "bug" not in answer.text
        (fault,) = [line for line in lines if line["event"] == "rest_fault"]
        assert fault["request_id"] == answer.headers["x-request-id"]
        assert "a bug" not in json.dumps(fault)
        assert here.parts.metrics.registry.get_sample_value("keepstep_faults_total") == 1


async def test_every_request_is_logged_once_by_its_route() -> None:
    """Not by its path, which may hold anything."""
    async with site() as here:
        with structlog.testing.capture_logs() as lines:
            await here.http.get("/api/v1/server?token=secret", headers={"authorization": "Bearer secret"})
            await here.http.get("/secret")
    assert [(line["method"], line["route"], line["status"], line["api_version"]) for line in lines] == [
        ("GET", "/api/v1/server", 400, "1"),
        ("GET", "none", 404, None),
    ]
    assert "secret" not in json.dumps(lines)


async def test_no_answer_is_cached_or_guessed_at() -> None:
    """By browsers and proxies."""
    async with site() as here:
        answer = await here.http.get("/health/live")
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["x-content-type-options"] == "nosniff"
