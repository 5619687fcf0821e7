"""Where commits wait for a standby: an ack says that it has them, or it is not given."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

import psycopg
import pytest
import trio

from keepstep.eventlog.store import OutcomeUnknown
from keepstep.postgres.pool import Limits
from keepstep.protocol.messages import ResultAccepted, ResultDuplicate
from tests.support.events import NOW_MS, DeviceFixture, UserFixture
from tests.support.logs import append, create_account, session_no

if TYPE_CHECKING:
    from tests.support.database import DatabaseServer
    from tests.support.logs import PostgresPlace

WAITING: Final = (
    "SELECT pid FROM pg_stat_activity WHERE datname = %s AND application_name = 'keepstep append'"
    " AND wait_event = 'SyncRep' AND query LIKE %s"
)
CANCEL_WAIT: Final = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE pid = %s AND wait_event = 'SyncRep'"
PATIENCE_S: Final = 60
"""After this what a test waits for does not come."""
COMMIT: Final = {"psycopg": "COMMIT", "flight": "COPY%", "thread": "COPY%"}
"""The statement that PostgreSQL shows meanwhile, by the way of the commit: a flight ends without one of its own."""
BARRIER: Final = "%pg_logical_emit_message%"


class Standby:
    """A standby that commits have to wait for, and that is not there."""

    def __init__(self, admin_url: str, name: str) -> None:
        self._name = name
        self._admin_url = admin_url
        self._admin = psycopg.connect(admin_url, autocommit=True)
        self._admin.execute("SET synchronous_commit = local")

    def require(self) -> None:
        """From now on commits wait."""
        self._configure("ALTER SYSTEM SET synchronous_standby_names = 'elsewhere'", "elsewhere")
        waited = False
        with psycopg.connect(self._admin_url, autocommit=True) as connection:
            while not waited:  # the setting takes effect when one of the server's own processes has read it
                commit = threading.Thread(
                    target=connection.execute, args=("SELECT pg_logical_emit_message(true, 'test', '')",)
                )
                commit.start()
                while commit.is_alive():
                    row = self._admin.execute(CANCEL_WAIT, [connection.info.backend_pid]).fetchone()
                    waited = waited or row is not None
                commit.join()

    def release(self) -> None:
        """From now on they do not, and those that wait go on."""
        self._configure("ALTER SYSTEM RESET synchronous_standby_names", "")

    def cancel(self, statement: str) -> None:
        """Cut the wait of that statement short, as an administrator may."""
        give_up_s = time.monotonic() + PATIENCE_S
        while (row := self._admin.execute(WAITING, [self._name, statement]).fetchone()) is None:
            assert time.monotonic() < give_up_s, f"{statement} never waited"
        self._admin.execute("SELECT pg_cancel_backend(%s)", row)

    def close(self) -> None:
        """As before."""
        self.release()
        self._admin.close()

    def _configure(self, statement: str, names: str) -> None:
        self._admin.execute(statement.encode())
        self._admin.execute("SELECT pg_reload_conf()")
        while self._admin.execute("SHOW synchronous_standby_names").fetchone() != (names,):
            pass  # the server has not read it yet


@pytest.fixture
def standby(place: PostgresPlace, database_server: DatabaseServer) -> Iterator[Standby]:
    """Not required until a test does."""
    standby = Standby(database_server.admin_url, place.name)
    yield standby
    standby.close()


async def cut_short(
    place: PostgresPlace, standby: Standby, way: str, then: Callable[[], None]
) -> tuple[list[object], list[str]]:
    """Append while the standby is required, cut the wait short, and go on; returns answers and what went wrong."""
    log = place.node()
    device = DeviceFixture(UserFixture("ada"), "phone")
    principal = await create_account(place, log, device)
    await append(log, principal, device.event("notes"))
    event = device.event("notes")
    answers: list[object] = []
    errors: list[str] = []

    async def write() -> None:
        try:
            answers.extend(await append(log, principal, event))
        except OutcomeUnknown as error:
            errors.append(error.detail)

    standby.require()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(write)
        await trio.to_thread.run_sync(standby.cancel, COMMIT[way])
        await trio.to_thread.run_sync(then)
    standby.release()
    answers.extend(await append(log, principal, event))
    return answers, errors


async def test_a_wait_that_was_cut_short_is_made_up_for(place: PostgresPlace, standby: Standby, way: str) -> None:
    """A small commit after it waits in its place: when the standby has that, it has the events."""
    answers, errors = await cut_short(place, standby, way, standby.release)

    assert errors == []
    assert [type(answer) for answer in answers] == [ResultAccepted, ResultDuplicate]


async def test_without_the_standby_nothing_is_acknowledged(place: PostgresPlace, standby: Standby, way: str) -> None:
    """The events are in the database and may be lost with it: the outcome is unknown, and the retry finds them."""
    answers, errors = await cut_short(place, standby, way, lambda: standby.cancel(BARRIER))

    assert errors == ["a transaction may not have reached the standby"]
    assert [type(answer) for answer in answers] == [ResultDuplicate]


@pytest.mark.slow
@pytest.mark.usefixtures("way")
async def test_a_wait_for_the_standby_ends_by_itself(place: PostgresPlace, standby: Standby) -> None:
    """PostgreSQL would wait for ever, and with it the pipeline and a server that was told to stop."""
    log = place.node(database=place.connect(Limits(statement_timeout_ms=1_000, lock_timeout_ms=1_000)))
    device = DeviceFixture(UserFixture("ada"), "phone")
    principal = await create_account(place, log, device)
    await append(log, principal, device.event("notes"))
    event, next_event = device.events("notes", 2)
    standby.require()

    for _ in range(2):  # sent again it is there, and may still be lost with this database
        with pytest.raises(OutcomeUnknown, match="may not have reached the standby"):
            await append(log, principal, event)
    standby.release()
    results = await append(log, principal, event, next_event)

    assert [type(result) for result in results] == [ResultDuplicate, ResultAccepted]


async def test_devices_connect_while_there_is_no_standby(place: PostgresPlace, standby: Standby) -> None:
    """What is not acknowledged does not wait for it: sessions, ack positions, housekeeping."""
    principal = await create_account(place, place.node(), DeviceFixture(UserFixture("ada"), "phone"))
    standby.require()

    assert await session_no(place, principal, bytes(16)) == 1
    await place.accounts.save_acks(principal, {"$devices": (1, bytes(16))})
    await place.accounts.close_session(bytes(16), now_ms=NOW_MS, reason="bye")
    assert await place.maintenance.make_partitions(now_ms=NOW_MS, ahead=9) > 0
