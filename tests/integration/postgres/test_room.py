"""Rows that move often find room on their page (HOT), however many of a page move in one commit."""

from __future__ import annotations

from typing import Final

from tests.support.events import DeviceFixture, UserFixture
from tests.support.logs import PostgresPlace, append, create_account

STREAMS: Final = [f"notes-{number}" for number in range(200)]


def pages(place: PostgresPlace, table: str) -> dict[int, int]:
    """Stream → the page that its row is on."""
    sql = f"SELECT stream_pk, (ctid::text::point)[0]::int FROM {table} WHERE stream_pk > 2"  # noqa: S608
    return dict(place.execute(sql))


async def test_all_heads_of_a_page_move_at_once(place: PostgresPlace) -> None:
    """By a device that wrote before; whoever writes next to all of them finds room too, once the old rows are gone."""
    log = place.node()
    device = DeviceFixture(UserFixture("ada"), "phone")
    principal = await create_account(place, log, device)
    await append(log, principal, *(device.event(name, b"1") for name in STREAMS))
    before = pages(place, "streams")
    assert len(set(before.values())) > 1
    for _ in range(2):
        await append(log, principal, *(device.event(name, b"2") for name in STREAMS))
        assert pages(place, "streams") == before


async def test_a_device_acknowledges_all_streams_of_a_page_at_once(place: PostgresPlace) -> None:
    """Its positions stay where they are."""
    log = place.node()
    device = DeviceFixture(UserFixture("ada"), "phone")
    principal = await create_account(place, log, device)
    after: dict[int, int] = {}
    for seq in (1, 2, 3):
        await append(log, principal, *(device.event(name, b"%d" % seq) for name in STREAMS))
        before = pages(place, "positions")
        await place.accounts.save_acks(principal, dict.fromkeys(STREAMS, (seq, bytes(16))))
        after = pages(place, "positions")
        assert after.keys() >= before.keys()
        assert {key: after[key] for key in before} == before
    assert len(set(after.values())) > 1
