"""The short way of a batch: when it is gone, and what is left behind by it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from keepstep._keepstep import StreamHead
from keepstep.errors import Unavailable
from keepstep.eventlog.append import STREAM_AHEAD_MS_MAX
from keepstep.eventlog.heads import LANE_BATCHES
from keepstep.eventlog.known import append_known
from keepstep.eventlog.store import Contended, DataFault, LiveDevices, TryAgain
from keepstep.protocol.messages import ResultAccepted, ResultError
from tests.support.corridor import USERS, Corridor
from tests.support.events import NOW_MS, submission


def remember(corridor: Corridor, **fields: object) -> None:
    """The first user's stream as it is, but for ``fields``."""
    (head,) = corridor.heads.get([(1, "notes")], generation=0).values()
    names = ("user_pk", "stream_pk", "name", "retention_class", "seq", "chain", "received_at_ms", "auth_epoch")
    known: dict[str, object] = {name: getattr(head, name) for name in (*names, "authors_packed")}
    corridor.heads.put([StreamHead.load(**(known | fields))], generation=0)  # type: ignore[arg-type]


def goes(corridor: Corridor, *, generation: int = 0) -> bool:
    """Whether a batch of all devices goes the short way; if not, nothing of it was stored."""
    before = len(corridor.store.taken)
    outcome = append_known(
        store=corridor.store,  # type: ignore[arg-type]
        heads=corridor.heads,
        devices=corridor.devices,
        rooms=corridor.rooms,
        batch=corridor.batch(1),
        now_ms=NOW_MS,
        received_at_ms_max=NOW_MS + STREAM_AHEAD_MS_MAX,
        generation=generation,
    )
    assert len(corridor.store.taken) - before == (outcome is not None)
    return outcome is not None


def ready() -> Corridor:
    """Everything is remembered."""
    corridor = Corridor()
    corridor.warm()
    return corridor


def test_a_batch_is_stored_and_answered_at_once() -> None:
    """Each event gets its place, the heads are remembered as they are then, and the runs are by stream."""
    corridor = ready()

    outcome = corridor.appending(corridor.batch(2)).run()

    assert [type(result) for results in outcome.results for result in results] == [ResultAccepted] * USERS
    assert {(each.count, each.first_seq) for (each,) in outcome.results if isinstance(each, ResultAccepted)} == {(2, 2)}
    assert [key for key, _ in outcome.runs] == [(number, "notes") for number in range(1, USERS + 1)]
    assert {(run.first_seq, run.last_seq) for _, run in outcome.runs} == {(2, 3)}
    assert {each.seq for each in corridor.heads.get([(1, "notes"), (2, "notes")], generation=0).values()} == {3}
    assert (outcome.suspects, outcome.erased) == (frozenset(), frozenset())


def test_what_was_asked_for_is_counted() -> None:
    """A batch that goes the short way found everything; one that does not counts nothing by it."""
    corridor = ready()
    heads, devices = corridor.heads.hits.found, corridor.devices.hits.found

    assert goes(corridor)
    corridor.heads.drop([(1, "notes")])
    assert not goes(corridor)

    assert (corridor.heads.hits.found - heads, corridor.devices.hits.found - devices) == (USERS, USERS)


def test_a_bad_signature_is_answered_on_the_way() -> None:
    """Its neighbours are stored with it in the batch; who sent it is named."""
    corridor = ready()
    batch = corridor.batch(1)
    sender, device = corridor.senders[0]
    (event,) = device.events("notes", 1)

    outcome = corridor.appending([submission(sender, replace(event, sig=bytes(64))), *batch]).run()

    assert outcome.results[0] == [ResultError("bad_signature", [])]
    assert outcome.suspects == {0}
    assert all(isinstance(each, ResultAccepted) for (each,) in outcome.results[1:])
    assert len(corridor.store.taken) == 2


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
def test_what_is_not_remembered_so_takes_the_long_way(change: Callable[[Corridor], None]) -> None:
    """One stream or device of the batch is enough."""
    corridor = ready()
    assert goes(corridor)

    change(corridor)

    assert not goes(corridor)


def test_a_stream_in_the_lane_that_is_not_in_the_batch_keeps_nobody_off() -> None:
    """Whoever writes on two nodes, or did once, is no matter of others."""
    corridor = ready()
    corridor.heads.contend([(USERS + 1, "notes")])

    assert goes(corridor)
    assert goes(corridor)


def test_a_stream_takes_the_short_way_again_when_its_time_in_the_lane_is_over() -> None:
    """So many batches later; that its head was known in between is not enough."""
    corridor = ready()
    (head,) = corridor.heads.get([(1, "notes")], generation=0).values()
    corridor.heads.contend([(1, "notes")])

    for _ in range(LANE_BATCHES):
        corridor.heads.put([head], generation=0)
        assert corridor.heads.get([(1, "notes")], generation=0) == {}
        assert corridor.heads.takes_the_lane([(1, "notes")])
    corridor.heads.put([head], generation=0)

    assert goes(corridor)


def test_positions_that_are_not_known_take_the_long_way() -> None:
    """They may never have been."""
    assert not goes(Corridor())


def test_another_generation_takes_the_long_way() -> None:
    """Nothing that is remembered is believed."""
    assert not goes(ready(), generation=1)


def test_grants_are_counted_down() -> None:
    """An account that had a quota gets it back as it is."""
    corridor = ready()
    asked = {1: (1, 2**40)}
    before = corridor.rooms.rooms(asked, lambda _: {}, now_ms=NOW_MS, generation=0)[1]

    assert goes(corridor)

    (old, new), *_ = corridor.store.taken[-1].moved
    assert new.stored_bytes > old.stored_bytes
    after = corridor.rooms.rooms(asked, lambda _: {}, now_ms=NOW_MS, generation=0)[1]
    assert before - after == new.stored_bytes - old.stored_bytes


@pytest.mark.parametrize("fault", [TryAgain(), Contended(), DataFault("internal")])
def test_what_the_store_refused_is_decided_again(fault: Exception) -> None:
    """Nothing was stored: the long way finds out what is at fault."""
    corridor = ready()
    corridor.store.fault = fault

    assert corridor.appending(corridor.batch(1))._append_known() is None


def test_heads_in_doubt_are_forgotten() -> None:
    """Where it is not known whether the batch was stored, the next one asks the store."""
    corridor = ready()
    corridor.store.fault = Unavailable("gone", retry_after_ms=1)

    with pytest.raises(Unavailable):
        corridor.appending(corridor.batch(1)).run()

    assert corridor.heads.get([(1, "notes"), (2, "notes")], generation=0) == {}
