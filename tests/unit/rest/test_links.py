"""Links over REST: a device begins one, whoever knows its id writes and reads."""

from __future__ import annotations

from typing import Any, Final

import httpx
import pytest
import trio
import trio.testing

from keepstep.links import LINK_LIFETIME_MS, LINKS_PER_USER_MAX, LinkMessage, Links, Side
from keepstep.memory import MemoryLinks
from keepstep.model import Capability
from keepstep.protocol.linking import MESSAGE_BYTES_MAX
from keepstep.rest.links import CONCURRENCY_PER_ADDRESS_MAX
from keepstep.validation import format_base64url
from tests.support.events import NOW_MS, DeviceFixture
from tests.support.rest import Site, site

ID: Final = "00112233445566778899aabbccddeeff"
PATH: Final = f"/api/v1/links/{ID}"


async def begun(here: Site, path: str = PATH) -> tuple[httpx.Response, dict[str, str]]:
    """A link that alice's phone began, and what proves the phone."""
    (phone,) = await here.parts.register("alice")
    headers = await here.token(phone)
    return await here.http.put(path, headers=headers), headers


async def write(here: Site, message: str, place: str = "new/0") -> httpx.Response:
    """Write a message."""
    return await here.http.put(f"{PATH}/{place}", json={"message": message})


def code(answer: httpx.Response) -> tuple[int, str]:
    """Status and code of a problem."""
    return answer.status_code, answer.json()["code"]


async def test_two_sides_talk_through_a_link() -> None:
    """Without a token; each is told the other's address."""
    async with site() as here:
        answer, _ = await begun(here)
        assert (answer.status_code, answer.json()) == (201, {"expires_at_ms": NOW_MS + LINK_LIFETIME_MS})
        assert (await write(here, "AQID")).status_code == 204
        read = await here.http.get(f"{PATH}/new/0")
        assert (read.status_code, read.json()["message"]) == (200, "AQID")
        assert read.json()["address"]
        assert (await write(here, "BAUG", "trusted/0")).status_code == 204
        assert (await here.http.get(f"{PATH}/trusted/0")).json()["message"] == "BAUG"


async def test_one_network_does_not_take_every_place_to_wait(autojump_clock: trio.testing.MockClock) -> None:
    """So many readers of one address prefix wait at a time; the next one is asked to come again, others are not."""
    async with site() as here:
        await begun(here)
        statuses: list[int] = []

        async def wait(http: httpx.AsyncClient) -> None:
            statuses.append((await http.get(f"{PATH}/new/0", params={"wait_s": 15})).status_code)

        application = here.http._transport.app  # type: ignore[attr-defined]
        transport = httpx.ASGITransport(app=application, client=("192.0.2.7", 1))
        async with trio.open_nursery() as nursery, httpx.AsyncClient(transport=transport, base_url="http://x") as other:
            for _ in range(CONCURRENCY_PER_ADDRESS_MAX):
                nursery.start_soon(wait, here.http)
            await trio.testing.wait_all_tasks_blocked()
            refused = await here.http.get(f"{PATH}/new/0")
            assert (code(refused), refused.headers["retry-after"]) == ((429, "rate_limited"), "1")
            assert (await other.get(f"{PATH}/new/0")).status_code == 204
        assert statuses == [204] * CONCURRENCY_PER_ADDRESS_MAX
        assert (await here.http.get(f"{PATH}/new/0")).status_code == 204


async def test_the_first_message_in_a_place_stays() -> None:
    """A second device finds the link taken; the first may write the same again."""
    async with site() as here:
        await begun(here)
        assert (await write(here, "AQID")).status_code == 204
        assert (await write(here, "AQID")).status_code == 204
        assert code(await write(here, "BAUG")) == (409, "link_taken")


async def test_a_message_that_is_not_there_yet_is_waited_for(autojump_clock: trio.testing.MockClock) -> None:
    """It comes as soon as it is written here; without it the answer is empty."""
    async with site() as here:
        await begun(here)
        came: list[tuple[int, float]] = []

        async def read() -> None:
            answer = await here.http.get(f"{PATH}/new/0", params={"wait_s": 10})
            came.append((answer.status_code, trio.current_time()))

        began_s = trio.current_time()
        await read()
        assert came[0][0] == 204
        assert came[0][1] == pytest.approx(began_s + 10)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await trio.sleep(0.2)
            written_s = trio.current_time()
            await write(here, "AQID")
        assert came[1] == (200, written_s)


async def test_what_another_node_took_is_found(autojump_clock: trio.testing.MockClock) -> None:
    """By looking, twice a second."""
    async with site() as here:
        (phone,) = await here.parts.register("alice")
        store = MemoryLinks(here.parts.database)
        one, other = Links(store, here.parts.clock), Links(store, here.parts.clock)
        await one.begin((await here.parts.principal(phone)).user_pk, bytes(16))
        found: list[LinkMessage | None] = []

        async def read() -> None:
            found.append(await one.read(bytes(16), Side.NEW, 0, wait_s=10))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await trio.testing.wait_all_tasks_blocked()
            await other.write(bytes(16), Side.NEW, 0, b"message", address="192.0.2.1")
        assert found == [LinkMessage(b"message", "192.0.2.1")]


async def test_a_link_that_is_over_is_not_found() -> None:
    """By its time, by its owner, or because it never was."""
    async with site() as here:
        _, headers = await begun(here)
        assert code(await here.http.get("/api/v1/links/ffffffffffffffffffffffffffffffff/new/0")) == (404, "not_found")
        here.parts.clock.at_ms += LINK_LIFETIME_MS
        assert code(await write(here, "AQID")) == (404, "not_found")
        await MemoryLinks(here.parts.database).clean_up(now_ms=here.parts.clock.now_ms(), rows_max=9)
        await here.http.put(PATH, headers=headers)
        assert (await here.http.delete(PATH, headers=headers)).status_code == 204
        assert code(await here.http.get(f"{PATH}/new/0")) == (404, "not_found")


async def test_links_of_one_user_are_bounded() -> None:
    """And another user cannot end them."""
    async with site() as here:
        _, headers = await begun(here)
        (tablet,) = await here.parts.register("bob", "tablet")
        others = await here.token(tablet, "bob")
        for number in range(LINKS_PER_USER_MAX - 1):
            assert (await here.http.put(f"/api/v1/links/{number:032x}", headers=headers)).status_code == 201
        assert code(await here.http.put(f"/api/v1/links/{'f' * 32}", headers=headers)) == (429, "limit_exceeded")
        assert (await here.http.delete(PATH, headers=others)).status_code == 204
        assert (await here.http.get(f"{PATH}/new/0")).status_code == 204


async def test_only_a_device_that_manages_begins_a_link() -> None:
    """It is the one that can enrol."""
    async with site() as here:
        (phone,) = await here.parts.register("alice")
        reader = DeviceFixture(phone.user, "reader", capabilities=Capability.SUBSCRIBE)
        await here.parts.enrol(phone, reader)
        assert code(await here.http.put(PATH, headers=await here.token(reader))) == (403, "forbidden")
        assert code(await here.http.put(PATH)) == (401, "invalid_token")


@pytest.mark.parametrize(
    ("path", "body", "expected"),
    [
        (f"{PATH}/new/8", {"message": "AQID"}, "malformed"),
        (f"{PATH}/somebody/0", {"message": "AQID"}, "malformed"),
        ("/api/v1/links/short/new/0", {"message": "AQID"}, "malformed"),
        (f"{PATH}/new/0", {"message": "!"}, "malformed"),
        (f"{PATH}/new/0", {}, "malformed"),
        (f"{PATH}/new/0", {"message": format_base64url(bytes(MESSAGE_BYTES_MAX + 1))}, "too_large"),
    ],
)
async def test_what_has_another_form_is_refused(path: str, body: Any, expected: str) -> None:
    """Before the store is asked."""
    async with site() as here:
        await begun(here)
        assert (await here.http.put(path, json=body)).json()["code"] == expected
