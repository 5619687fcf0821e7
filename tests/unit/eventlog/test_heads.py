"""The heads a node remembers."""

from __future__ import annotations

from keepstep._keepstep import StreamHead
from keepstep.eventlog.heads import LANE_BATCHES, LANE_STREAMS_MAX, HeadCache


def head(name: str) -> StreamHead:
    """The head of an empty stream."""
    return StreamHead.create(user_pk=1, user_key=bytes(32), stream_pk=3, name=name, retention_class=1, auth_epoch=0)


def known(cache: HeadCache, *names: str, generation: int = 0) -> set[str]:
    """Which of the names it remembers."""
    return {name for _, name in cache.get([(1, name) for name in names], generation=generation)}


def test_the_head_used_longest_ago_is_forgotten_first() -> None:
    """Looking one up counts as use."""
    cache = HeadCache(streams_max=2)
    cache.put([head("a"), head("b")], generation=0)
    assert known(cache, "a") == {"a"}

    cache.put([head("c")], generation=0)

    assert known(cache, "a", "b", "c") == {"a", "c"}


def test_what_was_asked_for_is_counted() -> None:
    """Found or missing, head by head."""
    cache = HeadCache(streams_max=9)
    cache.put([head("a"), head("b")], generation=0)

    known(cache, "a", "b", "c")
    known(cache, "c")

    assert (cache.hits.found, cache.hits.missing) == (2, 2)


def test_another_generation_voids_everything() -> None:
    """Heads of a database that was set back are not offered, and late ones of it are not taken."""
    cache = HeadCache(streams_max=9)
    cache.put([head("a")], generation=0)

    assert known(cache, "a", generation=1) == set()
    cache.put([head("b")], generation=0)
    assert known(cache, "a", "b", generation=1) == set()
    cache.put([head("b")], generation=1)
    assert known(cache, "b", generation=1) == {"b"}


def test_heads_in_doubt_are_dropped() -> None:
    """Others stay; dropping what is not there is no error."""
    cache = HeadCache(streams_max=9)
    cache.put([head("a"), head("b")], generation=0)

    cache.drop([(1, "a"), (1, "c")])

    assert known(cache, "a", "b") == {"b"}


def test_a_contended_stream_keeps_to_the_lane_for_a_while() -> None:
    """So many batches, counted anew with every conflict; batches without it do not count."""
    cache = HeadCache(streams_max=9)
    cache.put([head("a"), head("b")], generation=0)
    assert not cache.takes_the_lane([(1, "a")])

    cache.contend([(1, "a")])

    assert known(cache, "a", "b") == {"b"}
    assert not cache.takes_the_lane([(1, "b")])
    assert [cache.takes_the_lane([(1, "a"), (1, "b")]) for _ in range(LANE_BATCHES + 1)] == [True] * LANE_BATCHES + [
        False
    ]


def test_the_head_of_a_stream_in_the_lane_is_not_remembered() -> None:
    """Until its last batch there; those of others are."""
    cache = HeadCache(streams_max=9)
    cache.contend([(1, "a")])

    for _ in range(LANE_BATCHES):
        cache.put([head("a"), head("b")], generation=0)
        assert known(cache, "a", "b") == {"b"}
        assert cache.takes_the_lane([(1, "a")])
    cache.put([head("a")], generation=0)

    assert known(cache, "a") == {"a"}


def test_the_lane_holds_so_many_streams() -> None:
    """The one that came first leaves it."""
    cache = HeadCache(streams_max=9)
    cache.contend((1, str(number)) for number in range(LANE_STREAMS_MAX + 1))

    assert not cache.takes_the_lane([(1, "0")])
    assert cache.takes_the_lane([(1, "1")])
