"""The connection is lost in COMMIT: what became of the transaction is found out, never guessed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from keepstep.errors import Unavailable
from keepstep.eventlog.store import OutcomeUnknown
from keepstep.postgres.outcome import OUTCOME_LOOKS_MAX
from keepstep.postgres.pool import Database
from keepstep.protocol.messages import ResultAccepted, ResultDuplicate
from keepstep.runtime import WorkerThreads
from tests.support.events import NOW_MS, DeviceFixture, UserFixture
from tests.support.logs import FixedClock, append, create_account, read_all
from tests.support.proxy import Proxy, hold_request, lose_reply, lose_request

if TYPE_CHECKING:
    from collections.abc import Iterator

    from keepstep.model import Principal
    from keepstep.postgres.log import PostgresLog
    from tests.support.logs import PostgresPlace

PHONE = "phone"
BACKENDS = (
    "SELECT pid FROM pg_stat_activity WHERE application_name = 'keepstep append' AND datname = current_database()"
)


class Breakable:
    """A node whose connections go through the proxy, with a rule for its next COMMIT."""

    def __init__(self, place: PostgresPlace, proxy: Proxy) -> None:
        self.place = place
        self.proxy = proxy
        self.rule: Callable[..., None] | None = None
        self.pauses = 0
        self.on_pause: Callable[[int], None] | None = None
        self.backends: set[int] = set()
        self.database = Database(proxy.url, threads=WorkerThreads(), clock=FixedClock())
        self.log: PostgresLog = place.node(database=self.database, probe=self._probe, pause=self._pause)
        self.device = DeviceFixture(UserFixture("ada"), PHONE)

    async def start(self) -> Principal:
        """An account with one event in "notes"."""
        principal = await create_account(self.place, self.log, self.device)
        await append(self.log, principal, self.device.event("notes"))
        return principal

    def wait_until_over(self) -> None:
        """Until the server has noticed that the cut connection is gone, and its transaction is over."""
        while self.backends & self._living():
            pass

    def _living(self) -> set[int]:
        return {pid for (pid,) in self.place.execute(BACKENDS)}

    def _probe(self, point: str) -> None:
        if point == "before_commit" and self.rule is not None:
            self.backends = self._living()
            self.proxy.once(self.rule)
            self.rule = None

    def _pause(self, seconds: float) -> None:
        assert seconds > 0
        self.pauses += 1
        if self.on_pause is not None:
            self.on_pause(self.pauses)


@pytest.fixture
def node(place: PostgresPlace, proxy: Proxy, way: str) -> Iterator[Breakable]:
    """A node that can be cut off, whichever way it commits."""
    del way
    node = Breakable(place, proxy)
    yield node
    node.database.close()


async def test_a_commit_that_never_arrived_was_not_stored(node: Breakable) -> None:
    """It is said so, and the retry is accepted with the seq that was never used."""
    principal = await node.start()
    event = node.device.event("notes")
    node.rule = lose_request
    # On a busy machine the server may notice late that its client is gone; until then the outcome is open.
    node.on_pause = lambda _pauses: node.wait_until_over()

    with pytest.raises(Unavailable) as refused:
        await append(node.log, principal, event)

    assert not isinstance(refused.value, OutcomeUnknown)
    (accepted,) = await append(node.log, principal, event)
    assert isinstance(accepted, ResultAccepted)
    assert accepted.first_seq == 2


async def test_a_commit_whose_answer_was_lost_is_acknowledged(node: Breakable) -> None:
    """It is found stored, enters the tail, and listeners hear of it: as if nothing had happened."""
    principal = await node.start()
    heard: list[int] = []
    node.log.subscribe_commits(lambda runs: heard.extend(run.last_seq for _, run in runs))
    node.rule = lose_reply
    node.on_pause = lambda _pauses: node.wait_until_over()

    (accepted,) = await append(node.log, principal, node.device.event("notes"))

    assert isinstance(accepted, ResultAccepted)
    assert (accepted.first_seq, heard) == (2, [2])
    assert node.log.tail.last_seq((principal.user_pk, "notes")) == 2
    assert len((await read_all(node.place.node(), principal, "notes")).rows) == 2


async def test_an_account_whose_answer_was_lost_is_acknowledged(node: Breakable) -> None:
    """Genesis is a commit like any other."""
    node.rule = lose_reply

    result = await node.log.create_account(node.device.genesis(), now_ms=NOW_MS)

    assert isinstance(result, ResultAccepted)


@pytest.mark.parametrize("committed", [False, True])
async def test_a_transaction_in_progress_is_waited_for(node: Breakable, committed: bool) -> None:
    """While the server still has it open nothing is concluded; then it is what the server makes of it."""
    principal = await node.start()
    event = node.device.event("notes")
    node.rule = hold_request

    def finish(pauses: int) -> None:
        if pauses == 3:
            (link,) = node.proxy.held
            if committed:
                link.let_go()
            link.cut_server()
            node.wait_until_over()

    node.on_pause = finish
    if committed:
        (result,) = await append(node.log, principal, event)
    else:
        with pytest.raises(Unavailable) as refused:
            await append(node.log, principal, event)
        assert not isinstance(refused.value, OutcomeUnknown)
        (result,) = await append(node.log, principal, event)

    assert isinstance(result, ResultAccepted)
    assert result.first_seq == 2
    assert node.pauses >= 3


@pytest.mark.parametrize("committed", [False, True])
async def test_an_outcome_that_stays_unknown_is_decided_by_the_retry(node: Breakable, committed: bool) -> None:
    """Nothing is answered about it but that it is unavailable; sent again it is stored once in either case."""
    principal = await node.start()
    event, next_event = node.device.events("notes", 2)
    node.rule = hold_request

    with pytest.raises(OutcomeUnknown):
        await append(node.log, principal, event)
    assert node.pauses == OUTCOME_LOOKS_MAX - 1
    (link,) = node.proxy.held
    if committed:
        link.let_go()
    link.cut_server()
    results = await append(node.log, principal, event, next_event)

    assert isinstance(results[0], ResultDuplicate if committed else ResultAccepted)
    assert isinstance(results[-1], ResultAccepted)
    assert (await read_all(node.log, principal, "notes")).hashes[1:] == [event.hash, next_event.hash]


async def test_a_database_that_does_not_come_back_leaves_the_outcome_open(place: PostgresPlace) -> None:
    """It is asked a bounded number of times."""
    pauses: list[float] = []
    away = False

    def leave(point: str) -> None:
        if point == "before_commit" and away:
            place.go_away()

    log = place.node(probe=leave, pause=pauses.append)
    device = DeviceFixture(UserFixture("ada"), PHONE)
    principal = await create_account(place, log, device)
    event = device.event("notes")
    away = True

    with pytest.raises(OutcomeUnknown):
        await append(log, principal, event)
    place.come_back()
    away = False

    assert len(pauses) == OUTCOME_LOOKS_MAX - 1
    (accepted,) = await append(log, principal, event)
    assert isinstance(accepted, ResultAccepted)


async def test_an_outcome_is_looked_for_only_so_long(node: Breakable, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where each look waits for a database that says nothing, their number alone would be minutes."""
    monkeypatch.setattr("keepstep.postgres.outcome.OUTCOME_TIMEOUT_S", 0)
    principal = await node.start()
    event = node.device.event("notes")
    node.rule = hold_request

    with pytest.raises(OutcomeUnknown):
        await append(node.log, principal, event)

    assert node.pauses == 0
    (link,) = node.proxy.held
    link.cut_server()
    (result,) = await append(node.log, principal, event)
    assert isinstance(result, ResultAccepted)


async def test_another_database_is_asked_for_the_events_themselves(node: Breakable) -> None:
    """On another timeline, or after a restore, transaction numbers mean nothing; the chain in the log does."""
    principal = await node.start()
    event = node.device.event("notes")
    node.rule = lose_reply
    node.on_pause = lambda _pauses: node.wait_until_over()
    before = node.database.generation
    node.place.execute("UPDATE server_state SET epoch = epoch + 1")

    (accepted,) = await append(node.log, principal, event)

    assert isinstance(accepted, ResultAccepted)
    assert node.database.generation == before + 1
    assert (await read_all(node.log, principal, "notes")).hashes[1:] == [event.hash]


async def test_what_was_stored_stays_acknowledged_when_the_rest_fails(node: Breakable) -> None:
    """Of a batch that took two transactions the second one was lost: its events are answered ``unavailable``."""
    principal = await node.start()
    other = DeviceFixture(node.device.user, "laptop")
    there = node.place.node()
    event, change = node.device.enrol(other)
    await append(there, principal, event, account_change=change)
    on_laptop = await node.place.accounts.principal(other.user.user_key, other.device_id)
    assert on_laptop is not None
    await append(there, on_laptop, other.event("notes"))  # moves what the node remembers of "notes"
    commits = 0

    def lose_second(point: str) -> None:
        nonlocal commits
        if point == "before_commit":
            commits += 1
            if commits == 2:
                node.proxy.once(lose_request)

    log = node.log
    log._backend._probe = lose_second  # type: ignore[attr-defined]
    results = await append(log, principal, node.device.event("other"), *node.device.events("notes", 2))

    kinds = [type(result).__name__ for result in results]
    assert kinds == ["ResultAccepted", "ResultError", "ResultError"]
    assert {result.code for result in results[1:]} == {"unavailable"}  # type: ignore[union-attr]
    assert (await node.place.node().stream(principal.user_pk, "notes")).head.seq == 2
