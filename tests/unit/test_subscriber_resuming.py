"""Where streams go on is asked once, for all that are sought at the same time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pytest

from keepstep.errors import Unavailable
from keepstep.interfaces import RESUMED_TOGETHER_MAX
from keepstep.memory.reader import MemoryReader
from keepstep.model import StreamPk
from keepstep.protocol.messages import CaughtUp, Events, Resumed
from tests.support.following import Following, seqs

if TYPE_CHECKING:
    from keepstep._keepstep import Run
    from keepstep.eventlog.store import StreamKey, StreamRow


async def test_what_is_committed_while_a_stream_is_looked_for_is_not_missed() -> None:
    """The device is at the head that was found, and that is not the head any more."""
    bench = await Following.start()
    await bench.publish("notes", 2)

    def hint(runs: Sequence[tuple[StreamKey, Run]]) -> None:
        for _, run in runs:
            bench.committed(StreamPk(run.stream_pk), run.first_seq, run.last_seq)

    bench.parts.log.subscribe_commits(hint)
    ask = bench.parts.log.follow

    async def meanwhile(*arguments: Any, **options: Any) -> Any:
        found = await ask(*arguments, **options)
        await bench.publish("notes")
        return found

    bench.parts.log.follow = meanwhile  # type: ignore[method-assign]
    bench.subscribe({"notes": "end"})
    messages = await bench.pull_all()
    assert [type(one) for one in messages] == [Resumed, Events, CaughtUp]
    assert seqs(messages) == [3]


async def test_a_device_that_has_everything_is_told_so_without_a_page_being_read() -> None:
    """One question for all its streams, whatever it names, and nothing more."""
    bench = await Following.start()
    await bench.publish("a", 2)
    await bench.publish("b")
    questions: list[Any] = []
    ask = bench.parts.log.follow

    async def counted(principal: Any, starts: Any, **options: Any) -> Any:
        questions.append(dict(starts))
        return await ask(principal, starts, **options)

    async def unwanted(*_arguments: Any, **_options: Any) -> Any:
        raise AssertionError

    bench.parts.log.follow = counted  # type: ignore[method-assign]
    bench.parts.log.read = unwanted  # type: ignore[method-assign]
    bench.subscribe({"a": (2, (await bench.head("a")).chain), "b": "end", "$keys": "start"})
    messages = await bench.pull_all()
    assert questions == [{"a": 2, "b": 0, "$keys": 0}]
    assert [(type(one), one.stream) for one in messages] == [
        (each, stream) for stream in ("$keys", "a", "b") for each in (Resumed, CaughtUp)
    ]


async def test_many_streams_are_answered_in_parts() -> None:
    """As many at a time as are looked up together, each once."""
    bench = await Following.start(subscriptions_max=RESUMED_TOGETHER_MAX + 2)
    names = [f"s{number}" for number in range(RESUMED_TOGETHER_MAX + 1)]
    bench.subscribe(dict.fromkeys(names, "start"))
    first = await bench.pull()
    assert len(first) == RESUMED_TOGETHER_MAX
    assert [one.stream for one in first + await bench.pull_all()] == names


async def test_what_was_answered_goes_when_the_log_goes_away_in_between() -> None:
    """The others are answered when it is back."""
    rewound: list[str] = []

    async def rewinds(_user_pk: Any, _user_key: bytes, stream: str) -> list[Any]:
        rewound.append(stream)
        if len(rewound) == 2:
            raise Unavailable
        return []

    bench = await Following.start()
    bench.subscriber._rewinds_of = rewinds
    bench.subscribe({"a": "start", "b": "start"})
    assert [one.stream for one in await bench.pull_all()] == ["a", "b"]
    assert rewound == ["a", "b", "b"]


async def test_commits_that_are_told_in_another_order_while_a_stream_is_looked_for_are_not_missed() -> None:
    """A rotation and a pipeline are tasks of their own: which of them goes on first is not said."""
    bench = await Following.start()
    await bench.publish("notes", 2)
    pk = await bench.pk("notes")
    ask = bench.parts.log.follow

    async def meanwhile(*arguments: Any, **options: Any) -> Any:
        found = await ask(*arguments, **options)
        await bench.publish("notes")
        bench.committed(pk, 3, 3)
        bench.committed(pk, 2, 2)
        return found

    bench.parts.log.follow = meanwhile  # type: ignore[method-assign]
    bench.subscribe({"notes": "end"})
    assert seqs(await bench.pull_all()) == [3]


async def test_a_rereading_while_a_stream_is_looked_for_does_not_have_it_answered_twice() -> None:
    """It may find one waiting whose answer is under way."""
    bench = await Following.start()
    await bench.publish("notes", 2)
    ask = bench.parts.log.follow

    async def meanwhile(*arguments: Any, **options: Any) -> Any:
        bench.subscriber.reread(await bench.parts.log.streams(bench.principal.user_pk))
        return await ask(*arguments, **options)

    bench.parts.log.follow = meanwhile  # type: ignore[method-assign]
    bench.subscribe({"notes": "end"})
    assert [type(one) for one in await bench.pull_all()] == [Resumed, CaughtUp]


async def test_listing_again_reads_no_page_of_what_is_followed() -> None:
    """A stream that came into being is all that is new."""
    bench = await Following.start()
    await bench.publish("a")
    bench.subscribe("all")
    await bench.pull_all()
    await bench.publish("b")

    async def unwanted(*_arguments: Any, **_options: Any) -> Any:
        raise AssertionError

    bench.parts.log.read = unwanted  # type: ignore[method-assign]
    bench.subscriber.reread(await bench.parts.log.streams(bench.principal.user_pk))
    assert {one.stream for one in await bench.pull()} == {"b"}


async def test_listing_again_looks_up_no_chain_of_what_is_followed_or_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first looks them up where streams were acknowledged in their middle; those after it only what is new."""
    looked_up: list[str] = []
    chain = MemoryReader.chain

    def counted(self: MemoryReader, stream: StreamRow, seq: int) -> bytes | None:
        looked_up.append(stream.name)
        return chain(self, stream, seq)

    monkeypatch.setattr(MemoryReader, "chain", counted)
    streams = RESUMED_TOGETHER_MAX + 3
    bench = await Following.start(subscriptions_max=streams + 3, unacked_bytes_max=10**9)
    names = [f"s{number:03}" for number in range(streams)]
    for name in names:
        await bench.append(bench.phone.event(name), bench.phone.event(name))
    await bench.parts.accounts.save_acks(bench.principal, dict.fromkeys(names, (1, bytes(16))))
    bench.subscribe("all")
    messages = await bench.pull_all()
    assert [one.stream for one in messages if isinstance(one, Resumed)] == ["$devices", "$keys", *names]
    assert sorted(set(looked_up)) == names
    assert len(looked_up) == len(names) + 2, "two of the listed ones come after those that are answered at once"

    looked_up.clear()
    bench.subscriber.unsubscribe(["s000"])
    bench.subscriber.reread(await bench.parts.log.streams(bench.principal.user_pk))
    await bench.publish("new")
    bench.committed(await bench.pk("new"), 1, 1, name="new")
    assert {one.stream for one in await bench.pull_all()} == {"new"}
    assert looked_up == []
    bench.subscribe("all")
    assert {one.stream for one in await bench.pull_all()} == {"s000"}
    assert looked_up == ["s000"]
    bench.subscribe("all")
    assert await bench.pull_all() == []
    assert looked_up == ["s000"]


async def test_all_that_is_asked_for_again_while_the_list_is_read_takes_what_that_finds() -> None:
    """It is read once; what was left before is followed again."""
    bench = await Following.start()
    await bench.publish("notes")
    bench.subscribe("all")
    await bench.pull_all()
    bench.subscriber.unsubscribe(["notes"])
    listed: list[bool] = []
    ask = bench.parts.log.follow

    async def meanwhile(*arguments: Any, **options: Any) -> Any:
        listed.append(options["every"])
        bench.subscribe("all")
        return await ask(*arguments, **options)

    bench.parts.log.follow = meanwhile  # type: ignore[method-assign]
    bench.subscribe("all")
    assert [one.stream for one in await bench.pull_all() if isinstance(one, Resumed)] == ["notes"]
    assert listed == [True]


async def test_the_list_that_could_not_be_read_is_read_when_the_log_is_back() -> None:
    """Also where it was asked for again in between."""
    bench = await Following.start()
    ask = bench.parts.log.follow

    async def away(*_arguments: Any, **_options: Any) -> Any:
        bench.subscribe("all")
        raise Unavailable

    bench.parts.log.follow = away  # type: ignore[method-assign]
    bench.subscribe("all")
    with pytest.raises(Unavailable):
        await bench.pull()
    bench.parts.log.follow = ask  # type: ignore[method-assign]
    assert [one.stream for one in await bench.pull_all() if isinstance(one, Resumed)] == ["$devices", "$keys"]


@pytest.mark.parametrize("followed", ["all", {"new": "start", "later": "start"}])
async def test_a_stream_that_begins_is_looked_up_alone(followed: Any) -> None:
    """With it those that began meanwhile; the others are not listed, however many there are, and nothing is twice."""
    bench = await Following.start()
    await bench.publish("notes")
    bench.subscribe(followed)
    await bench.pull_all()
    questions: list[Any] = []
    ask = bench.parts.log.follow

    async def counted(principal: Any, starts: Any, *, every: bool, known: Any = ()) -> Any:
        questions.append((dict(starts), every))
        return await ask(principal, starts, every=every, known=known)

    bench.parts.log.follow = counted  # type: ignore[method-assign]
    for name in ("new", "later"):
        await bench.publish(name)
        bench.committed(await bench.pk(name), 1, 1, name=name)

    messages = await bench.pull_all()

    assert questions == [({"new": None, "later": None}, False)]
    assert [one.stream for one in messages if isinstance(one, Events)] == ["new", "later"]
    assert await bench.pull_all() == []
    await bench.publish("new")
    bench.committed(await bench.pk("new"), 2, 2, name="new")
    assert seqs(await bench.pull_all(), "new") == [2]
    assert len(questions) == 1


async def test_a_stream_that_begins_while_the_log_is_away_is_looked_up_later() -> None:
    """It is not forgotten."""
    bench = await Following.start()
    bench.subscribe("all")
    await bench.pull_all()
    ask = bench.parts.log.follow

    async def away(*_arguments: Any, **_options: Any) -> Any:
        raise Unavailable("away", retry_after_ms=1)

    bench.parts.log.follow = away  # type: ignore[method-assign]
    await bench.publish("new")
    bench.committed(await bench.pk("new"), 1, 1, name="new")
    with pytest.raises(Unavailable):
        await bench.subscriber.pull()
    bench.parts.log.follow = ask  # type: ignore[method-assign]

    assert {one.stream for one in await bench.pull_all()} == {"new"}
