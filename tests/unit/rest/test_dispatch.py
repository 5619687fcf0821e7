"""What the framework does for an endpoint: administration and its record, keys of calls, the table's promises."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import trio
import trio.testing

from keepstep.errors import ProtocolError
from keepstep.model import Capability
from keepstep.rest.endpoints import (
    Access,
    AnswerBody,
    Binary,
    Call,
    Endpoint,
    NoParameters,
    Reply,
    RequestBody,
)
from keepstep.rest.openapi import openapi
from tests.support.rest import Site, site

ADMIN = {"authorization": "Bearer the key"}


class Name(RequestBody, frozen=True, kw_only=True):
    """A parameter."""

    name: str


class Made(AnswerBody, frozen=True, kw_only=True):
    """How many there are."""

    count: int


class Admins:
    """Administration with a key, and what was recorded."""

    def __init__(self) -> None:
        self.audited: list[tuple[str, dict[str, str], int]] = []

    async def authenticate(self, authorization: str | None, *, address: str) -> None:
        """See ``access.AdminAccess``."""
        assert address
        if authorization != "Bearer the key":
            raise ProtocolError("invalid_token")

    async def audit(
        self, operation: str, target: Mapping[str, str], *, status: int, address: str, request_id: str
    ) -> None:
        """See ``access.AdminAccess``."""
        assert address
        assert request_id
        self.audited.append((operation, dict(target), status))


class Maker:
    """Endpoints that make something, for administrators and for devices."""

    def __init__(self) -> None:
        self.made = 0

    async def __call__(self, call: Call[Name, NoParameters, None]) -> Reply:
        """Make one more."""
        if call.path.name == "nobody":
            raise ProtocolError("not_found")
        if call.path.name == "bug":
            raise KeyError
        if call.path.name == "slow":
            await trio.sleep_forever()
        self.made += 1
        return Reply(Made(count=self.made), status=201)

    def endpoints(self) -> list[Endpoint]:
        """The same for both."""
        return [
            Endpoint(
                method="POST",
                path=path,
                access=access,
                summary="Make one more",
                handler=self,
                answers={201: Made},
                path_type=Name,
                errors=("not_found",),
                idempotent=True,
                timeout_s=10,
                tag="admin",
            )
            for path, access in (("/admin/{name}", Access.ADMIN), ("/api/v1/{name}", Access.DEVICE))
        ]


def _with_key(key: str) -> dict[str, str]:
    return {"Idempotency-Key": key} if key else {}


async def make(here: Site, name: str = "alice", headers: Mapping[str, str] = ADMIN, key: str = "") -> tuple[int, Any]:
    """An administrator's call."""
    answer = await here.http.post(f"/admin/{name}", headers={**headers, **_with_key(key)})
    return answer.status_code, answer.json().get("count") or answer.json()["code"]


async def test_without_a_key_there_is_no_administration() -> None:
    """Nothing tells that there could be."""
    async with site(endpoints=Maker().endpoints()) as here:
        assert await make(here) == (404, "not_found")


async def test_an_administrator_proves_it() -> None:
    """A device's token is not the key, and the key is no device's token."""
    admins = Admins()
    async with site(endpoints=Maker().endpoints(), admin=admins) as here:
        (phone,) = await here.parts.register("alice", "phone")
        token = await here.token(phone)
        assert await make(here) == (201, 1)
        assert await make(here, headers=token) == (401, "invalid_token")
        assert await make(here, headers={}) == (401, "invalid_token")
        assert (await here.http.post("/api/v1/alice", headers=ADMIN)).status_code == 401
        assert (await here.http.post("/api/v1/alice", headers=token)).status_code == 201
        assert len(admins.audited) == 1


async def test_every_call_of_an_administrator_is_recorded(autojump_clock: trio.testing.MockClock) -> None:
    """However it ended."""
    admins = Admins()
    async with site(endpoints=Maker().endpoints(), admin=admins) as here:
        names = ("alice", "nobody", "bug", "slow")
        assert [(await make(here, name))[0] for name in names] == [201, 404, 500, 503]
    assert [(target["name"], status) for _, target, status in admins.audited] == [
        ("alice", 201),
        ("nobody", 404),
        ("bug", 500),
        ("slow", 500),
    ]
    assert {operation for operation, _, _ in admins.audited} == {"post_admin_by_name"}


async def test_a_call_with_the_same_key_is_made_once() -> None:
    """For an administrator and for each user apart; another request needs another key."""
    async with site(endpoints=Maker().endpoints(), admin=Admins()) as here:
        assert await make(here, key="one") == (201, 1)
        assert await make(here, key="one") == (201, 1)
        assert await make(here) == (201, 2)
        assert await make(here, "bob", key="one") == (422, "key_reused")
        assert await make(here, "nobody", key="two") == (404, "not_found")
        counts = []
        for name in ("alice", "carol"):
            (phone,) = await here.parts.register(name, "phone")
            headers = {**await here.token(phone, name), **_with_key("one")}
            counts.append((await here.http.post("/api/v1/alice", headers=headers)).json()["count"])
        assert counts == [3, 4]


async def test_the_document_shows_the_key_of_a_call() -> None:
    """Where an endpoint takes one."""
    endpoint = openapi(Maker().endpoints())["paths"]["/admin/{name}"]["post"]
    assert "Idempotency-Key" in [parameter["name"] for parameter in endpoint["parameters"]]
    assert "422" in endpoint["responses"]


# -- the table's promises -------------------------------------------------------------------------------------------


async def answer(reply: Reply, answers: Mapping[int, Any]) -> tuple[int, bytes]:
    """What comes of a reply of an endpoint that declares other or the same answers."""

    async def handler(_call: Call[Any, Any, Any]) -> Reply:
        return reply

    endpoint = Endpoint(
        method="GET", path="/it", access=Access.PUBLIC, summary="It", handler=handler, answers=answers, tag="admin"
    )
    async with site(endpoints=[endpoint]) as here:
        got = await here.http.get("/it")
        return got.status_code, got.content


async def test_an_answer_without_content_has_none() -> None:
    """Nor a type of it."""
    assert await answer(Reply(None, status=204), {204: None}) == (204, b"")


@pytest.mark.parametrize(
    ("reply", "answers"),
    [
        (Reply(None), {200: Made}),
        (Reply(b"x"), {200: Made}),
        (Reply(NoParameters()), {200: Made}),
        (Reply(Made(count=1)), {200: Binary("text/plain", "text")}),
        (Reply(Made(count=1), status=201), {200: Made}),
    ],
)
async def test_an_answer_that_was_not_declared_is_our_fault(reply: Reply, answers: Mapping[int, Any]) -> None:
    """The document would lie: a test finds it before a client does."""
    assert (await answer(reply, answers))[0] == 500


@pytest.mark.parametrize(
    "wrong",
    [
        {"path": "/it/{name}"},
        {"path_type": Name},
        {"errors": ("surprise",)},
        {"answers": {}},
        {"path": "/it/{name}", "path_type": Name, "body_bytes_max": 1_000_000},
        {"capability": Capability.SUBSCRIBE},
    ],
)
def test_an_endpoint_that_contradicts_itself_cannot_be_made(wrong: dict[str, Any]) -> None:
    """Found when the table is imported."""
    right: dict[str, Any] = {
        "method": "GET",
        "path": "/it",
        "access": Access.PUBLIC,
        "summary": "It",
        "handler": Maker(),
        "answers": {200: Made},
    }
    Endpoint(**right)
    with pytest.raises(AssertionError):
        Endpoint(**(right | wrong))


class Many(RequestBody, frozen=True, kw_only=True):
    """A body with numbers."""

    counts: list[int]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b'{"counts": [1, 2.0, 3e2]}', 200),
        (b'{"counts": [1.5]}', 400),
        (b'{"counts": ["1"]}', 400),
        (b'{"counts": 1.0}', 400),
        (b'{"counts": [1.0, null]}', 400),
        (b'{"counts": [1e400]}', 400),
    ],
)
async def test_a_number_without_a_fraction_is_an_integer(body: bytes, status: int) -> None:
    """However it is written: JSON has one kind of number. A text is none."""

    async def add(call: Call[NoParameters, NoParameters, Many]) -> Reply:
        return Reply(Made(count=sum(call.body.counts)))

    endpoint = Endpoint(
        method="POST",
        path="/it",
        access=Access.PUBLIC,
        summary="Add",
        handler=add,
        answers={200: Made},
        body_type=Many,
        tag="admin",
    )
    async with site(endpoints=[endpoint]) as here:
        answer = await here.http.post("/it", content=body, headers={"content-type": "application/json"})
        assert (answer.status_code, answer.json().get("count")) == (status, 303 if status == 200 else None)
