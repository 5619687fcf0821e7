"""Sessions of devices whose row somebody else has locked: they wait, and nobody waits with them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import psycopg
import pytest
import trio

from keepstep.errors import Unavailable
from keepstep.model import KnownDevice
from keepstep.postgres.accounts import LOCKED_PAUSES_S, PostgresAccounts
from tests.support.events import NOW_MS, DeviceFixture, UserFixture
from tests.support.logs import PostgresPlace, append, create_account, enrol

if TYPE_CHECKING:
    from keepstep.model import Principal

ADA = UserFixture("ada")


@contextmanager
def locked(place: PostgresPlace, principal: Principal) -> Iterator[psycopg.Connection]:
    """Its row is, until the block ends or the connection is closed."""
    with psycopg.connect(place.url) as connection:
        row = [int(principal.user_pk), int(principal.device_pk)]
        connection.execute("SELECT FROM devices WHERE user_pk = %s AND device_pk = %s FOR UPDATE", row)
        yield connection


class Pauses:
    """What the sessions wait for that are asked for again.

    Attributes:
        begun: set when one waits.
        over: those that wait go on when it is set.
        seconds: how long each was to be.
    """

    def __init__(self) -> None:
        self.begun = trio.Event()
        self.over = trio.Event()
        self.seconds: list[float] = []

    async def wait(self, seconds: float) -> None:
        """One pause."""
        self.seconds.append(seconds)
        self.begun.set()
        await self.over.wait()


async def test_a_locked_device_holds_up_nobody_else(place: PostgresPlace) -> None:
    """Neither who asks in the same statement nor who asks later; it has its session when its row is free."""
    log = place.node()
    on_phone = await create_account(place, log, DeviceFixture(ADA, "phone"))
    others = [await create_account(place, log, DeviceFixture(UserFixture(f"{n}"), "phone")) for n in range(4)]
    pauses = Pauses()
    accounts = PostgresAccounts(place.connect(), pause=pauses.wait)
    opened: dict[bytes, int | None] = {}

    async def open_session(claim: Principal) -> None:
        found = await accounts.open_session(claim, claim.user_key[:16], now_ms=NOW_MS)
        assert found is not None
        opened[claim.user_key] = found.session_no

    with locked(place, on_phone) as connection:
        async with trio.open_nursery() as nursery:
            async with trio.open_nursery() as together:
                nursery.start_soon(open_session, on_phone)
                for other in others[:3]:
                    together.start_soon(open_session, other)
            await pauses.begun.wait()
            await open_session(others[3])
            assert opened == {other.user_key: 1 for other in others}
            connection.rollback()
            pauses.over.set()

    assert opened[ADA.user_key] == 1


async def test_a_device_that_stays_locked_is_told_at_last(place: PostgresPlace) -> None:
    """After all pauses; nothing is recorded of it, and the next time it has its first session."""
    on_phone = await create_account(place, place.node(), DeviceFixture(ADA, "phone"))
    pauses = Pauses()
    pauses.over.set()
    accounts = PostgresAccounts(place.connect(), pause=pauses.wait)

    with locked(place, on_phone), pytest.raises(Unavailable, match="not free"):
        await accounts.open_session(on_phone, b"a" * 16, now_ms=NOW_MS)

    assert tuple(pauses.seconds) == LOCKED_PAUSES_S
    opened = await accounts.open_session(on_phone, b"b" * 16, now_ms=NOW_MS)
    assert opened is not None
    assert opened.session_no == 1


async def test_a_device_that_was_revoked_while_it_waited_has_no_session(place: PostgresPlace) -> None:
    """It is looked at anew each time."""
    log = place.node()
    phone, laptop = DeviceFixture(ADA, "phone"), DeviceFixture(ADA, "laptop")
    on_phone = await create_account(place, log, phone)
    on_laptop = await enrol(place, log, phone, laptop)

    with locked(place, on_laptop) as connection:

        async def revoke(_seconds: float) -> None:
            connection.rollback()
            event, change = phone.revoke(laptop)
            await append(log, on_phone, event, account_change=change)

        accounts = PostgresAccounts(place.connect(), pause=revoke)
        opened = await accounts.open_session(on_laptop, b"a" * 16, now_ms=NOW_MS)

    assert opened is not None
    assert opened.known == KnownDevice(on_laptop, opened.known.revoked_seq)
    assert opened.known.revoked_seq is not None
    assert opened.session_no is None


async def last_seen_ms(accounts: PostgresAccounts, principal: Principal) -> int | None:
    """As the list of devices says."""
    (listed,) = await accounts.devices(principal.user_pk)
    return listed.last_seen_ms


async def test_the_end_of_a_locked_devices_session_waits_for_nobody(place: PostgresPlace) -> None:
    """It is recorded, and so is that of another; when the device was seen last is left as it was."""
    log = place.node()
    on_phone = await create_account(place, log, DeviceFixture(ADA, "phone"))
    other = await create_account(place, log, DeviceFixture(UserFixture("bob"), "phone"))
    accounts = PostgresAccounts(place.connect())
    for number, principal in enumerate((on_phone, other)):
        assert await accounts.open_session(principal, bytes([number]) * 16, now_ms=NOW_MS) is not None

    with locked(place, on_phone) as connection:
        await accounts.keep_sessions(now_ms=NOW_MS + 1)
        async with trio.open_nursery() as nursery:
            for number in range(2):
                nursery.start_soon(
                    partial(accounts.close_session, bytes([number]) * 16, now_ms=NOW_MS + 2, reason="bye")
                )
        rows = connection.execute("SELECT close_reason FROM sessions").fetchall()

    assert rows == [("bye",), ("bye",)]
    assert await last_seen_ms(accounts, on_phone) == NOW_MS
    assert await last_seen_ms(accounts, other) == NOW_MS + 2
