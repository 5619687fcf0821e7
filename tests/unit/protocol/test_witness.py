"""What a device remembers of signed heads. What it does with them is in test_reader."""

from __future__ import annotations

from keepstep.client import crypto
from keepstep.protocol.witness import HEADS_MAX, HeadWitness
from tests.support.events import NOW_MS, seed
from tests.support.scripted_log import ScriptedStream, ScriptedUser


def stream_of_many() -> ScriptedStream:
    """A stream long enough for more heads than are remembered."""
    user = ScriptedUser()
    stream = user.stream()
    for _ in range(HEADS_MAX + 3):
        stream.append(user.laptop)
    return stream


def witness_of(stream: ScriptedStream, **arguments: list[tuple[bytes, bytes]]) -> HeadWitness:
    """A witness of a stream."""
    user = stream.user
    return HeadWitness(
        crypto, user_key=user.user_key, server_key=user.server_key, stream=stream.name, heads=arguments.get("heads", ())
    )


def test_the_newest_heads_are_remembered() -> None:
    """Their number is bounded, and the oldest go first."""
    stream = stream_of_many()
    witness = witness_of(stream)
    for seq in (5, 3, 4, *range(6, HEADS_MAX + 4)):
        witness.take(stream.head(seq))
    assert witness.signed == [stream.head(seq) for seq in range(4, HEADS_MAX + 4)]


def test_the_later_of_two_equal_heads_is_kept() -> None:
    """Its time explains more; the latest time never goes back."""
    stream = stream_of_many()
    witness = witness_of(stream)
    for time_ms in (NOW_MS, NOW_MS + 5, NOW_MS + 2):
        witness.take(stream.head(3, time_ms=time_ms))
    assert witness.signed == [stream.head(3, time_ms=NOW_MS + 5)]
    witness.take(stream.head(4, time_ms=NOW_MS))
    assert witness.time_ms == NOW_MS + 5


def test_what_was_remembered_comes_back() -> None:
    """Heads go through a store, with the time they told."""
    stream = stream_of_many()
    heads = [stream.head(3), stream.head(4, time_ms=NOW_MS + 9999, epoch=2)]
    witness = witness_of(stream, heads=heads)
    assert witness.signed == heads
    assert witness.time_ms == NOW_MS + 9999
    assert witness_of(stream).time_ms == 0


def test_epochs_are_places_of_their_own() -> None:
    """Only within one epoch do two chains prove a fork."""
    stream = stream_of_many()
    witness = witness_of(stream)
    witness.take(stream.head(3))
    other = stream.head(3, epoch=2, chain=seed("another"))
    witness.take(other)
    assert witness.signed == [stream.head(3), other]
