"""What every request passes before its handler: headers, tokens, rates, capabilities, form."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing

from keepstep.access import RatePolicy
from keepstep.errors import ProtocolError, Unavailable
from keepstep.model import Capability
from keepstep.rest.headers import EVERY_ANSWER
from tests.support.events import DeviceFixture
from tests.support.rest import Site, site

ORIGIN = "https://notes.example"


async def alice(here: Site) -> tuple[DeviceFixture, dict[str, str]]:
    """A user's device, and what proves it."""
    (phone,) = await here.parts.register("alice", "phone")
    return phone, await here.token(phone)


@pytest.mark.parametrize("headers", [{}, {"authorization": "Bearer guessed"}, {"authorization": "Basic eDp5"}])
async def test_a_device_endpoint_wants_a_token(headers: dict[str, str]) -> None:
    """The same answer for none and a wrong one, with how to prove oneself."""
    async with site() as here:
        answer = await here.http.get("/api/v1/account", headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (401, "invalid_token")
        assert answer.headers["www-authenticate"] == 'Bearer error="invalid_token"'


async def test_tokens_that_cannot_be_looked_up_are_not_refused() -> None:
    """The client tries again instead of asking for a new one."""
    async with site() as here:
        here.tokens.away = Unavailable()
        answer = await here.http.get("/api/v1/account")
        assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")


async def test_a_user_id_in_a_header_proves_nothing() -> None:
    """Refused with a hint, also where the request is proven otherwise, and whatever it asks for."""
    async with site() as here:
        _, token = await alice(here)
        for path in ("/api/v1/account", "/health/live", "/nowhere"):
            answer = await here.http.get(path, headers=token | {"X-User-ID": "alice"})
            assert (answer.status_code, answer.json()["code"]) == (400, "user_id_header")
            assert "Authorization" in answer.json()["title"]


async def test_only_the_version_there_is_may_be_asked_for() -> None:
    """Every answer says which one it is."""
    async with site() as here:
        assert (await here.http.get("/api/v1/server", headers={"keepstep-version": "1"})).status_code == 200
        answer = await here.http.get("/api/v1/server", headers={"keepstep-version": "2"})
        assert (answer.status_code, answer.json()["code"]) == (400, "unsupported_version")
        assert answer.headers["keepstep-version"] == "1"


async def test_every_answer_has_the_security_headers() -> None:
    """Also one to a body that is refused before the application."""
    async with site() as here:
        for answer in (
            await here.http.get("/health/live"),
            await here.http.get("/nowhere"),
            await here.http.post("/api/v1/accounts", content=bytes(70_000)),
        ):
            assert {name: answer.headers[name] for name in EVERY_ANSWER} == EVERY_ANSWER


# -- browsers -------------------------------------------------------------------------------------------------------


async def test_a_page_of_an_allowed_origin_may_read_answers() -> None:
    """And asks first what it may send."""
    async with site(cors_origins=frozenset({ORIGIN})) as here:
        answer = await here.http.get("/api/v1/server", headers={"origin": ORIGIN})
        assert answer.headers["access-control-allow-origin"] == ORIGIN
        assert "ETag" in answer.headers["access-control-expose-headers"]
        assert "access-control-allow-credentials" not in answer.headers
        preflight = await here.http.options(
            "/api/v1/events", headers={"origin": ORIGIN, "access-control-request-method": "POST"}
        )
        assert preflight.status_code == 204
        assert "POST" in preflight.headers["access-control-allow-methods"]
        assert "Authorization" in preflight.headers["access-control-allow-headers"]


async def test_a_page_of_another_origin_may_not() -> None:
    """Its browser keeps the answer from it."""
    async with site(cors_origins=frozenset({ORIGIN})) as here:
        answer = await here.http.get("/api/v1/server", headers={"origin": "https://evil.example"})
        assert "access-control-allow-origin" not in answer.headers
        assert answer.headers["vary"] == "Origin"


async def test_no_origin_is_allowed_unless_it_is_named() -> None:
    """Nothing of CORS is said then."""
    async with site() as here:
        answer = await here.http.get("/api/v1/server", headers={"origin": ORIGIN})
        assert not {name for name in answer.headers if name.startswith("access-control")}
        headers = {"origin": ORIGIN, "access-control-request-method": "GET"}
        assert (
            "access-control-allow-methods" not in (await here.http.options("/api/v1/server", headers=headers)).headers
        )


# -- rates and numbers ----------------------------------------------------------------------------------------------


async def test_a_user_is_told_how_many_calls_are_left(autojump_clock: trio.testing.MockClock) -> None:
    """And when it has none, when to come back."""
    async with site(per_user=RatePolicy("user", 2, 60)) as here:
        _, token = await alice(here)
        answers = [await here.http.get("/api/v1/account", headers=token) for _ in range(3)]
        assert [answer.status_code for answer in answers] == [200, 200, 429]
        assert [answer.headers["ratelimit"] for answer in answers] == [
            '"user";r=1;t=30',
            '"user";r=0;t=60',
            '"user";r=0;t=60',
        ]
        assert answers[2].headers["ratelimit-policy"] == '"user";q=2;w=60'
        assert (answers[2].json()["code"], answers[2].headers["retry-after"]) == ("rate_limited", "30")
        await trio.sleep(30)
        assert (await here.http.get("/api/v1/account", headers=token)).status_code == 200


async def test_who_proves_nothing_is_counted_by_address() -> None:
    """Guessing tokens ends soon, and takes nothing from those who have one."""
    async with site(per_address=RatePolicy("address", 1, 60)) as here:
        _, token = await alice(here)
        guesses = [await here.http.get("/api/v1/account", headers={"authorization": "Bearer x"}) for _ in range(2)]
        assert [guess.status_code for guess in guesses] == [401, 429]
        assert (await here.http.get("/api/v1/server")).status_code == 429
        assert (await here.http.get("/api/v1/account", headers=token)).status_code == 200


async def test_health_is_never_rationed() -> None:
    """A balancer asks often, from one address."""
    async with site(per_address=RatePolicy("address", 1, 60)) as here:
        answers = [await here.http.get("/health/live") for _ in range(3)]
        assert [(answer.status_code, "ratelimit" in answer.headers) for answer in answers] == [(200, False)] * 3


class Gate:
    """A log whose heads are asked for and not answered until it is opened."""

    def __init__(self, here: Site) -> None:
        self.open = trio.Event()
        self._stream = here.parts.log.stream
        here.parts.log.stream = self._wait  # type: ignore[method-assign, assignment]

    async def _wait(self, *arguments: Any) -> Any:
        await self.open.wait()
        return await self._stream(*arguments)


async def together(here: Site, calls: int, **arguments: Any) -> list[int]:
    """Statuses of calls that are all under way before any is answered, in the order of the answers."""
    gate = Gate(here)
    statuses: list[int] = []

    async def call() -> None:
        statuses.append((await here.http.get("/api/v1/account", **arguments)).status_code)

    async with trio.open_nursery() as nursery:
        for _ in range(calls):
            nursery.start_soon(call)
        await trio.testing.wait_all_tasks_blocked()
        gate.open.set()
    return statuses


async def test_one_user_does_not_take_all_places() -> None:
    """Calls of one user at a time are bounded below those of all."""
    async with site() as here:
        _, token = await alice(here)
        assert await together(here, 17, headers=token) == [429, *[200] * 16]


async def test_an_endpoint_answers_so_many_calls_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """More may be tried again."""
    async with site() as here:
        tokens = [await here.token((await here.parts.register(f"user {index}"))[0], str(index)) for index in range(5)]
        gate = Gate(here)
        statuses: list[int] = []

        async def call(headers: dict[str, str]) -> None:
            statuses.append((await here.http.get("/api/v1/account", headers=headers)).status_code)

        async with trio.open_nursery() as nursery:
            for index in range(65):
                nursery.start_soon(call, tokens[index % 5])
            await trio.testing.wait_all_tasks_blocked()
            gate.open.set()
        assert statuses == [503, *[200] * 64]


async def test_a_call_that_takes_too_long_is_given_up(autojump_clock: trio.testing.MockClock) -> None:
    """After twenty seconds."""
    async with site() as here:
        _, token = await alice(here)
        Gate(here)
        answer = await here.http.get("/api/v1/account", headers=token)
        assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
        assert trio.current_time() == 20


async def test_an_answer_of_another_log_is_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """Row numbers that were looked up in one log may be another user's in the next."""
    async with site() as here:
        _, token = await alice(here)
        generations = iter(range(10))
        monkeypatch.setattr(here.parts.log, "generation", lambda: next(generations))
        answer = await here.http.get("/api/v1/account", headers=token)
        assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")


# -- what is asked --------------------------------------------------------------------------------------------------


async def test_a_device_without_the_capability_is_refused() -> None:
    """Before anything else of the request is looked at."""
    async with site() as here:
        phone, _ = await alice(here)
        blind = DeviceFixture(phone.user, "blind", capabilities=Capability.PUBLISH)
        await here.parts.enrol(phone, blind)
        token = await here.token(blind)
        answer = await here.http.get("/api/v1/streams?nonsense=1", headers=token)
        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")


@pytest.mark.parametrize(
    ("path", "where"),
    [
        ("/api/v1/devices?limit=0", "`int` >= 1"),
        ("/api/v1/devices?limit=many", "Expected `int`"),
        ("/api/v1/devices?limit=1&limit=2", "twice"),
        ("/api/v1/devices?" + "&".join(f"x{index}=" for index in range(40)), "too many"),
        ("/api/v1/devices?page=1", "unknown field `page`"),
        ("/api/v1/devices?cursor=A", "length"),
        ("/api/v1/devices?cursor=AB", "regex"),
        ("/api/v1/devices/phone", "length"),
        ("/api/v1/streams/caf%C3%A9", "regex"),
    ],
)
async def test_what_is_wrong_with_a_request_is_said(path: str, where: str) -> None:
    """In words about the request, with nothing of the server."""
    async with site() as here:
        _, token = await alice(here)
        answer = await here.http.get(path, headers=token)
        assert (answer.status_code, answer.json()["code"]) == (400, "malformed")
        assert where in answer.json()["detail"]


@pytest.mark.parametrize(
    ("body", "where"),
    [
        (b"{", "not JSON"),
        (b"\xff", "not JSON"),
        (b'{"events":' + b"[" * 5000, "not JSON"),
        (b'{"events": []}', "length"),
        (b'{"events": [{}]}', "`header`"),
        (b'{"events": [], "more": 1}', "length"),
    ],
)
async def test_what_is_wrong_with_a_body_is_said(body: bytes, where: str) -> None:
    """Likewise."""
    async with site() as here:
        _, token = await alice(here)
        headers = token | {"content-type": "application/json"}
        answer = await here.http.post("/api/v1/events", content=body, headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (400, "malformed")
        assert where in answer.json()["detail"]


async def test_a_body_that_nobody_asked_for_is_refused() -> None:
    """It was meant for something else."""
    async with site() as here:
        answer = await here.http.request("GET", "/api/v1/server", content=b"{}")
        assert (answer.status_code, answer.json()["code"]) == (400, "malformed")


async def test_an_error_without_a_token_says_nothing_of_the_form() -> None:
    """A stranger learns only that it is one."""
    async with site() as here:
        assert (await here.http.get("/api/v1/devices?limit=0")).status_code == 401
        assert (await here.http.post("/api/v1/events", content=b"{")).status_code == 401


async def test_an_error_while_tokens_are_checked_is_not_counted_by_address() -> None:
    """Only a refused token is."""
    async with site() as here:
        here.tokens.away = ProtocolError("unavailable")
        assert "ratelimit" not in (await here.http.get("/api/v1/account")).headers
