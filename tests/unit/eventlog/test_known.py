"""The short way of a batch: when it is gone, and what is left behind by it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import trio

from keepstep._keepstep import StreamHead
from keepstep.errors import Unavailable
from keepstep.eventlog.append import STREAM_AHEAD_MS_MAX
from keepstep.eventlog.heads import LANE_BATCHES
from keepstep.eventlog.store import Contended, DataFault, KnownBatch, LiveDevices, TryAgain
from keepstep.protocol.messages import ResultAccepted, ResultError
from tests.support.corridor import USERS, Corridor
from tests.support.events import NOW_MS, submission
from tests.support.flying import BOUND, IDLE, CommittingServer, message


def remember(corridor: Corridor, **fields: object) -> None:
    """The first user's stream as it is, but for ``fields``."""
    (head,) = corridor.heads.get([(1, "notes")], generation=0).values()
    names = ("user_pk", "stream_pk", "name", "retention_class", "seq", "chain", "received_at_ms", "auth_epoch")
    known: dict[str, object] = {name: getattr(head, name) for name in (*names, "authors_packed")}
    corridor.heads.put([StreamHead.load(**(known | fields))], generation=0)  # type: ignore[arg-type]


async def goes(corridor: Corridor, *, generation: int = 0) -> bool:
    """Whether a batch of all devices goes the short way; if not, nothing of it was stored."""
    before = len(corridor.backend.taken)
    outcome = await corridor.append_known(corridor.batch(1), generation=generation)
    assert len(corridor.backend.taken) - before == (outcome is not None)
    return outcome is not None


@pytest.fixture
def server() -> Iterator[CommittingServer]:
    """Commits everything."""
    server = CommittingServer()
    yield server
    server.close()


@pytest.fixture
def corridor(server: CommittingServer) -> Corridor:
    """Everything is remembered."""
    corridor = Corridor(server)
    corridor.warm()
    return corridor


async def test_a_batch_is_stored_and_answered_at_once(corridor: Corridor) -> None:
    """Each event gets its place, the heads are remembered as they are then, and the runs are by stream."""
    outcome = await corridor.append_known(corridor.batch(2))

    assert outcome is not None
    assert [type(result) for results in outcome.results for result in results] == [ResultAccepted] * USERS
    assert {(each.count, each.first_seq) for (each,) in outcome.results if isinstance(each, ResultAccepted)} == {(2, 2)}
    assert [key for key, _ in outcome.runs] == [(number, "notes") for number in range(1, USERS + 1)]
    assert {(run.first_seq, run.last_seq) for _, run in outcome.runs} == {(2, 3)}
    assert {each.seq for each in corridor.heads.get([(1, "notes"), (2, "notes")], generation=0).values()} == {3}
    assert (outcome.suspects, outcome.erased) == (frozenset(), frozenset())


async def test_what_was_asked_for_is_counted(corridor: Corridor) -> None:
    """A batch that goes the short way found everything; one that does not counts nothing by it."""
    heads, devices = corridor.heads.hits.found, corridor.devices.hits.found

    assert await goes(corridor)
    corridor.heads.drop([(1, "notes")])
    assert not await goes(corridor)

    assert (corridor.heads.hits.found - heads, corridor.devices.hits.found - devices) == (USERS, USERS)


async def test_a_bad_signature_is_answered_on_the_way(corridor: Corridor) -> None:
    """Its neighbours are stored with it in the batch; who sent it is named."""
    batch = corridor.batch(1)
    sender, device = corridor.senders[0]
    (event,) = device.events("notes", 1)

    outcome = await corridor.append_known([submission(sender, replace(event, sig=bytes(64))), *batch])

    assert outcome is not None
    assert outcome.results[0] == [ResultError("bad_signature", [])]
    assert outcome.suspects == {0}
    assert all(isinstance(each, ResultAccepted) for (each,) in outcome.results[1:])
    assert len(corridor.backend.taken) == 1


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda corridor: corridor.heads.drop([(1, "notes")]), id="a head"),
        pytest.param(lambda corridor: remember(corridor, bytes_max=2**40), id="a bound"),
        pytest.param(lambda corridor: remember(corridor, auth_epoch=1), id="an epoch"),
        pytest.param(lambda corridor: remember(corridor, received_at_ms=NOW_MS + STREAM_AHEAD_MS_MAX + 1), id="a time"),
        pytest.param(lambda corridor: remember(corridor, authors_packed=b"", seq=0), id="an author"),
        pytest.param(lambda corridor: corridor.heads.contend([(1, "notes")]), id="the lane"),
        pytest.param(lambda corridor: corridor.devices.put({1: LiveDevices(0, {})}, generation=0), id="a device"),
        pytest.param(
            lambda corridor: corridor.devices.put({1: LiveDevices(0, {1: NOW_MS + 1})}, generation=0), id="an end"
        ),
        pytest.param(
            lambda corridor: corridor.devices.put({1: LiveDevices(0, {1: None}, 2**40)}, generation=0), id="a quota"
        ),
    ],
)
async def test_what_is_not_remembered_so_takes_the_long_way(
    corridor: Corridor, change: Callable[[Corridor], None]
) -> None:
    """One stream or device of the batch is enough."""
    assert await goes(corridor)

    change(corridor)

    assert not await goes(corridor)


async def test_a_stream_in_the_lane_that_is_not_in_the_batch_keeps_nobody_off(corridor: Corridor) -> None:
    """Whoever writes on two nodes, or did once, is no matter of others."""
    corridor.heads.contend([(USERS + 1, "notes")])

    assert await goes(corridor)
    assert await goes(corridor)


async def test_a_stream_takes_the_short_way_again_when_its_time_in_the_lane_is_over(corridor: Corridor) -> None:
    """So many batches later; that its head was known in between is not enough."""
    (head,) = corridor.heads.get([(1, "notes")], generation=0).values()
    corridor.heads.contend([(1, "notes")])

    for _ in range(LANE_BATCHES):
        corridor.heads.put([head], generation=0)
        assert corridor.heads.get([(1, "notes")], generation=0) == {}
        assert corridor.heads.takes_the_lane([(1, "notes")])
    corridor.heads.put([head], generation=0)

    assert await goes(corridor)


async def test_positions_that_are_not_known_take_the_long_way(server: CommittingServer) -> None:
    """They may never have been."""
    assert not await goes(Corridor(server))


async def test_another_generation_takes_the_long_way(corridor: Corridor) -> None:
    """Nothing that is remembered is believed."""
    assert not await goes(corridor, generation=1)


async def test_grants_are_counted_down(corridor: Corridor) -> None:
    """An account that had a quota gets it back as it is."""
    asked = {1: (1, 2**40)}
    before = corridor.rooms.rooms(asked, lambda _: {}, now_ms=NOW_MS, generation=0)[1]

    assert await goes(corridor)

    (old, new), *_ = corridor.backend.taken[-1].moved
    assert new.stored_bytes > old.stored_bytes
    after = corridor.rooms.rooms(asked, lambda _: {}, now_ms=NOW_MS, generation=0)[1]
    assert before - after == new.stored_bytes - old.stored_bytes


@pytest.mark.parametrize("fault", [TryAgain(), DataFault("internal")])
async def test_what_the_store_refused_is_decided_again(corridor: Corridor, fault: Exception) -> None:
    """Nothing was stored: the long way finds out what is at fault."""
    corridor.backend.fault = fault

    assert await corridor.append_known(corridor.batch(1)) is None


async def test_a_head_that_moved_is_told(corridor: Corridor) -> None:
    """The long way goes under locks then."""
    corridor.backend.fault = Contended()

    with pytest.raises(Contended):
        await corridor.append_known(corridor.batch(1))


async def test_heads_in_doubt_are_forgotten(corridor: Corridor) -> None:
    """Where it is not known whether the batch was stored, the next one asks the store."""
    corridor.backend.fault = Unavailable("gone", retry_after_ms=1)

    with pytest.raises(Unavailable):
        await corridor.append_known(corridor.batch(1))

    assert corridor.heads.get([(1, "notes"), (2, "notes")], generation=0) == {}


async def test_a_head_that_moved_is_not_remembered(corridor: Corridor, server: CommittingServer) -> None:
    """What becomes of such a flight is for others to say, and so is what its heads are."""
    server.answer = BOUND + message(b"E", b"SERROR\0VERROR\0C22P02\0Mheads that moved\0\0") + IDLE

    await corridor.append_known(corridor.batch(1))

    (flight,) = corridor.backend.flights
    assert flight.in_step
    assert flight.error is not None
    assert {each.seq for each in corridor.heads.get([(1, "notes")], generation=0).values()} == {1}


async def test_a_server_that_says_something_unasked_gets_nothing(corridor: Corridor, server: CommittingServer) -> None:
    """It may be about to go, and nobody can tell of a flight that did not arrive."""
    assert await goes(corridor)
    server.say(message(b"N", b"\0"))

    assert not await goes(corridor)


async def test_probes_are_called_around_the_commit(corridor: Corridor) -> None:
    """In the thread that commits."""
    points: list[tuple[str, bool]] = []
    corridor.backend.probe = lambda point: points.append((point, threading.current_thread() is threading.main_thread()))

    assert await goes(corridor)

    assert points == [("before_commit", False), ("after_commit", False)]


async def test_what_a_probe_raises_takes_the_place_of_what_would_follow(corridor: Corridor) -> None:
    """And the next batch goes as ever."""

    def fail(point: str) -> None:
        raise OSError(point)

    corridor.backend.probe = fail
    with pytest.raises(OSError, match="before_commit"):
        await corridor.append_known(corridor.batch(1))
    corridor.backend.probe = None
    remember(corridor)
    assert corridor.backend.taken == []


async def test_one_batch_at_a_time(corridor: Corridor) -> None:
    """And nothing is given before it is there."""
    backend, held = corridor.backend, threading.Event()
    backend.probe = lambda _: (held.wait(), None)[1]
    batch = KnownBatch(corridor.batch(1), corridor.heads.memory, corridor.devices.memory, NOW_MS, NOW_MS, 0)
    with pytest.raises(RuntimeError, match="nothing is done"):
        backend.committer.take()
    backend.start(batch)

    with pytest.raises(RuntimeError, match="on its way"):
        backend.start(batch)
    with pytest.raises(RuntimeError, match="nothing is done"):
        backend.committer.take()

    held.set()
    await trio.lowlevel.wait_readable(backend.committer.fileno())
    assert backend.committer.take() is not None


@pytest.mark.parametrize(("name", "value"), [("descriptor", -1), ("timeout_s", -1.0)])
def test_nonsense_is_refused(corridor: Corridor, name: str, value: float) -> None:
    """Before anything begins."""
    arguments: dict[str, Any] = {"descriptor": 0, "timeout_s": 1.0} | {name: value}

    with pytest.raises(ValueError, match="not a"):
        corridor.backend.committer.start(
            [],
            corridor.heads.memory,
            corridor.devices.memory,
            now_ms=NOW_MS,
            received_at_ms_max=NOW_MS,
            generation=0,
            connection=None,
            move_heads="move",
            copies={},
            **arguments,
        )
