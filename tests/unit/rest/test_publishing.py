"""Publishing over REST: the same results as in a session, through the same pipelines."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import httpx
import msgspec
import pytest
import trio
import trio.testing

from keepstep.errors import Unavailable
from keepstep.model import Capability
from keepstep.protocol.messages import PUBLISH_BYTES_MAX
from keepstep.suspects import DEVICE_BURST
from keepstep.validation import format_base64url
from tests.support.events import DeviceFixture, SignedEvent, wire_events
from tests.support.rest import Site, site


def as_json(*events: SignedEvent) -> bytes:
    """A JSON body."""
    return msgspec.json.encode(
        {
            "events": [
                {
                    "header": format_base64url(event.header),
                    "sig": format_base64url(event.sig),
                    "payload": None if event.payload is None else format_base64url(event.payload),
                }
                for event in events
            ]
        }
    )


async def publish(here: Site, token: dict[str, str], body: bytes, *, content_type: str = "json") -> httpx.Response:
    """Post events."""
    headers = token | {"content-type": f"application/{content_type}"}
    return await here.http.post("/api/v1/events", content=body, headers=headers)


async def alice(here: Site) -> tuple[DeviceFixture, dict[str, str]]:
    """A user's device, and what proves it."""
    (phone,) = await here.parts.register("alice", "phone")
    return phone, await here.token(phone)


@pytest.mark.parametrize("content_type", ["json", "msgpack"])
async def test_events_are_stored_in_order(content_type: str) -> None:
    """The answer says where, and with which chain; the same again are duplicates."""
    async with site() as here, here.parts.running():
        phone, token = await alice(here)
        events = phone.events("notes", 3)
        body = as_json(*events) if content_type == "json" else wire_events(*events)
        answer = await publish(here, token, body, content_type=content_type)
        head = (await here.parts.log.stream((await here.parts.principal(phone)).user_pk, "notes")).head
        now_ms = here.parts.clock.now_ms()
        accepted = {
            "result": "accepted",
            "count": 3,
            "first_seq": 1,
            "received_at_ms": now_ms,
            "chain": head.chain.hex(),
        }
        assert (answer.status_code, answer.json()) == (200, {"results": [accepted]})
        again = (await publish(here, token, body, content_type=content_type)).json()["results"]
        assert [(result["result"], result["seq"]) for result in again] == [
            ("duplicate", 1),
            ("duplicate", 2),
            ("duplicate", 3),
        ]
        assert again[2] == {"result": "duplicate", "seq": 3, "received_at_ms": now_ms, "chain": head.chain.hex()}


async def test_each_event_that_is_refused_says_why() -> None:
    """With what the device needs to mend it."""
    async with site() as here, here.parts.running():
        phone, token = await alice(here)
        first, second, third = phone.events("notes", 3)
        await publish(here, token, as_json(first))
        other = phone.sign("notes", b"another first", n=1, prev=bytes(16))
        forged = SignedEvent(second.header, bytes(64), second.payload, "notes", 2, b"")
        results = (await publish(here, token, as_json(third, other, forged))).json()["results"]
        nothing = {"last_n": None, "last_hash": None, "seq": None, "hash": None, "chain": None, "retry_after_ms": None}
        refused = nothing | {"result": "refused"}
        assert results == [
            refused | {"code": "out_of_order", "last_n": 1, "last_hash": first.hash.hex()},
            refused | {"code": "id_reused", "seq": 1, "hash": first.hash.hex()},
            refused | {"code": "bad_signature"},
        ]


async def test_a_device_that_may_not_publish_is_told_so_for_each_event() -> None:
    """As in a session: what it published before is still a duplicate."""
    async with site() as here, here.parts.running():
        phone, _ = await alice(here)
        reader = DeviceFixture(phone.user, "reader", capabilities=Capability.SUBSCRIBE)
        await here.parts.enrol(phone, reader)
        answer = await publish(here, await here.token(reader), as_json(reader.event("notes")))
        assert [result["code"] for result in answer.json()["results"]] == ["forbidden"]


async def test_a_log_that_is_away_answers_for_each_event() -> None:
    """With a time to come back; nothing was stored."""
    async with site() as here, here.parts.running():
        phone, token = await alice(here)

        async def away(*_arguments: Any, **_keywords: Any) -> Any:
            raise Unavailable(retry_after_ms=2_000)

        here.parts.log.append = away  # type: ignore[method-assign]
        (result,) = (await publish(here, token, as_json(phone.event("notes")))).json()["results"]
        assert (result["code"], result["retry_after_ms"]) == ("unavailable", 2_000)


async def test_a_server_that_goes_down_takes_nothing_new() -> None:
    """The same body may be posted to the next."""
    async with site(is_draining=lambda: True) as here:
        phone, token = await alice(here)
        answer = await publish(here, token, as_json(phone.event("notes")))
        assert (answer.status_code, answer.json()["code"]) == (503, "draining")


@pytest.mark.parametrize(
    ("body", "content_type", "status", "code"),
    [
        (b"\x90", "msgpack", 400, "malformed"),
        (b"\x91", "msgpack", 400, "malformed"),
        (b'{"events": [{"header": "AA\\n", "sig": "AA"}]}', "json", 400, "malformed"),
        (b'{"events": [{"header": "A", "sig": "AA"}]}', "json", 400, "malformed"),
        (b'{"events": [{"header": "AA==", "sig": "AA"}]}', "json", 400, "malformed"),
        (bytes(PUBLISH_BYTES_MAX + 1), "msgpack", 413, "too_large"),
        (bytes(PUBLISH_BYTES_MAX * 3 // 2 + 1), "json", 413, "too_large"),
    ],
)
async def test_a_body_that_is_no_publish_is_refused(body: bytes, content_type: str, status: int, code: str) -> None:
    """As a whole: nothing of it is looked at."""
    async with site() as here:
        _, token = await alice(here)
        answer = await publish(here, token, body, content_type=content_type)
        assert (answer.status_code, answer.json()["code"]) == (status, code)


async def test_more_events_than_a_publish_may_have_are_refused() -> None:
    """The setting is the same as for a session."""
    async with site(publish_events_max=2) as here:
        phone, token = await alice(here)
        answer = await publish(here, token, as_json(*phone.events("notes", 3)))
        assert (answer.status_code, answer.json()["code"]) == (413, "too_large")


async def test_an_event_of_another_device_is_not_taken() -> None:
    """Its signature is not the caller's."""
    async with site() as here, here.parts.running():
        _, token = await alice(here)
        (bobs,) = await here.parts.register("bob", "phone")
        (result,) = (await publish(here, token, as_json(bobs.event("notes")))).json()["results"]
        assert result["code"] == "bad_signature"


async def test_a_device_that_sends_too_many_bad_signatures_is_told_to_wait(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Then it goes on; another device of the same user never waits."""
    async with site() as here, here.parts.running():
        phone, laptop = await here.parts.register("alice", "phone", "laptop")
        token, other = await here.token(phone), await here.token(laptop, "other")
        bad = replace(phone.sign("notes", b"x", n=1, prev=bytes(16)), sig=bytes(64))
        for _ in range(int(DEVICE_BURST) // 16):
            assert (await publish(here, token, as_json(*[bad] * 16))).status_code == 200
        answer = await publish(here, token, as_json(phone.event("notes")))
        assert (answer.status_code, answer.json()["code"], answer.headers["retry-after"]) == (
            429,
            "limit_exceeded",
            "1",
        )
        assert (await publish(here, other, as_json(laptop.event("notes")))).status_code == 200
        await trio.sleep(1)
        assert (await publish(here, token, as_json(phone.event("other")))).status_code == 200
