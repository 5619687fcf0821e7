"""Mailboxes of links: who begins them, what is written once, and that they end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest
import trio

from keepstep.errors import Unavailable
from keepstep.links import LinkMessage, LinkPlace, Side
from tests.support.events import NOW_MS, DeviceFixture, UserFixture, seed
from tests.support.logs import Place, create_account

if TYPE_CHECKING:
    from keepstep.model import UserPk

LINK: Final = seed("link")
AT: Final = LinkPlace(LINK, Side.NEW, 0)
FIRST: Final = LinkMessage(b"first", "192.0.2.1")
SECOND: Final = LinkMessage(b"second", "192.0.2.2")
END_MS: Final = NOW_MS + 1_000


async def register(place: Place, name: str = "ada") -> UserPk:
    """A user with one device."""
    device = DeviceFixture(UserFixture(name), "phone")
    await create_account(place, place.node(), device)
    user_pk = await place.accounts.user(device.user.user_key)
    assert user_pk is not None
    return user_pk


async def begin(
    place: Place, user_pk: UserPk, link: bytes = LINK, *, now_ms: int = NOW_MS, end_ms: int = END_MS, links_max: int = 3
) -> int | None:
    """Begin a link; a user may have two."""
    return await place.links.begin(
        user_pk, link, now_ms=now_ms, expires_at_ms=end_ms, links_per_user_max=2, links_max=links_max
    )


async def test_what_one_writes_the_other_reads(place: Place) -> None:
    """Each side and number is a place of its own."""
    await begin(place, await register(place))
    assert await place.links.read(AT, now_ms=NOW_MS) == (True, None)
    assert await place.links.write(AT, FIRST, now_ms=NOW_MS) == FIRST
    assert await place.links.read(AT, now_ms=NOW_MS) == (True, FIRST)
    for other in (LinkPlace(LINK, Side.TRUSTED, 0), LinkPlace(LINK, Side.NEW, 7)):
        assert await place.links.read(other, now_ms=NOW_MS) == (True, None)


async def test_a_place_is_written_once(place: Place) -> None:
    """The first stays; writing it again changes nothing."""
    await begin(place, await register(place))
    await place.links.write(AT, FIRST, now_ms=NOW_MS)
    assert await place.links.write(AT, SECOND, now_ms=NOW_MS) == FIRST
    assert await place.links.write(AT, FIRST, now_ms=NOW_MS) == FIRST


async def test_of_two_that_write_at_once_one_has_the_place(place: Place) -> None:
    """Both are told what is there."""
    await begin(place, await register(place))
    told: list[LinkMessage | None] = []

    async def write(message: LinkMessage) -> None:
        told.append(await place.links.write(AT, message, now_ms=NOW_MS))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(write, FIRST)
        nursery.start_soon(write, SECOND)
    assert told[0] == told[1]
    assert told[0] in (FIRST, SECOND)


async def test_a_link_that_was_not_begun_is_not_there(place: Place) -> None:
    """Nothing can be written or read."""
    assert await place.links.write(AT, FIRST, now_ms=NOW_MS) is None
    assert await place.links.read(AT, now_ms=NOW_MS) == (False, None)


async def test_a_link_ends_with_its_time(place: Place) -> None:
    """It is not there any more, and can be cleaned up."""
    user_pk = await register(place)
    await begin(place, user_pk)
    await place.links.write(AT, FIRST, now_ms=NOW_MS)
    assert await place.links.write(AT, FIRST, now_ms=END_MS) is None
    assert await place.links.read(AT, now_ms=END_MS) == (False, None)
    assert await begin(place, user_pk, now_ms=END_MS, end_ms=END_MS + 1) is None
    assert await place.links.clean_up(now_ms=END_MS - 1, rows_max=10) == 0
    assert await place.links.clean_up(now_ms=END_MS, rows_max=10) == 1
    assert await begin(place, user_pk, now_ms=END_MS, end_ms=END_MS + 1) == END_MS + 1
    assert await place.links.read(AT, now_ms=END_MS) == (True, None)


async def test_cleaning_up_is_bounded(place: Place) -> None:
    """So many at a time."""
    user_pk = await register(place)
    for label in ("one", "two"):
        await begin(place, user_pk, seed(label))
    assert [await place.links.clean_up(now_ms=END_MS, rows_max=1) for _ in range(3)] == [1, 1, 0]


async def test_beginning_again_is_the_same_link(place: Place) -> None:
    """As after an answer that was lost; for another user it is none."""
    user_pk, other = await register(place), await register(place, "ben")
    assert await begin(place, user_pk) == END_MS
    assert await begin(place, user_pk, end_ms=END_MS + 5) == END_MS
    assert await begin(place, other) is None


async def test_links_are_bounded_by_user_and_in_all(place: Place) -> None:
    """Another user's do not count as one's own."""
    user_pk, other = await register(place), await register(place, "ben")
    assert await begin(place, user_pk, seed("1")) == END_MS
    assert await begin(place, user_pk, seed("2")) == END_MS
    assert await begin(place, user_pk, seed("3")) is None
    assert await begin(place, other, seed("4")) == END_MS
    assert await begin(place, other, seed("5")) is None
    assert await begin(place, other, seed("5"), links_max=4) == END_MS


async def test_only_who_began_a_link_ends_it(place: Place) -> None:
    """With its messages; a second time there is nothing to do."""
    user_pk, other = await register(place), await register(place, "ben")
    await begin(place, user_pk)
    await place.links.write(AT, FIRST, now_ms=NOW_MS)
    await place.links.end(other, LINK)
    assert await place.links.read(AT, now_ms=NOW_MS) == (True, FIRST)
    await place.links.end(user_pk, LINK)
    await place.links.end(user_pk, LINK)
    assert await place.links.read(AT, now_ms=NOW_MS) == (False, None)


async def test_a_database_that_is_away_is_said_to_be(place: Place) -> None:
    """By every call."""
    user_pk = await register(place)
    place.go_away()
    for call in (
        lambda: begin(place, user_pk),
        lambda: place.links.write(AT, FIRST, now_ms=NOW_MS),
        lambda: place.links.read(AT, now_ms=NOW_MS),
        lambda: place.links.end(user_pk, LINK),
        lambda: place.links.clean_up(now_ms=NOW_MS, rows_max=1),
    ):
        with pytest.raises(Unavailable):
            await call()
