"""Signed heads, as a reader compares them with what it was shown (protocol.md sections 3 and 4)."""

from __future__ import annotations

from typing import Any

import pytest

from keepstep.model import Position
from keepstep.protocol.streamstate import state_at
from keepstep.protocol.witness import HEADS_MAX
from tests.support.events import seed
from tests.support.scripted_log import follow, lie, two_authors

OTHER_CHAIN = seed("another chain")


def test_the_head_that_says_caught_up_is_the_readers_position() -> None:
    """Then nothing is missing, and the time in it counts."""
    _, stream = two_authors()
    reader = follow(stream)
    reader.resumed(stream.head())
    reader.feed(*stream.page(0))
    assert reader.caught_up(stream.head()) == []
    assert reader.state.heads == [stream.head()]


@pytest.mark.parametrize("seq", [2, 4])
def test_caught_up_at_another_position_is_a_lie(seq: int) -> None:
    """The server may not say so early or late."""
    _, stream = two_authors()
    reader = follow(stream)
    reader.feed(*stream.page(0, 3))
    error = lie(lambda: reader.caught_up(stream.head(seq)))
    assert "another position" in error.reason
    assert error.evidence == (stream.head(seq),)


def test_a_head_with_another_chain_is_proof() -> None:
    """The server signed what it did not show."""
    _, stream = two_authors()
    reader = follow(stream)
    reader.feed(*stream.page(0))
    forged = stream.head(chain=OTHER_CHAIN)
    error = lie(lambda: reader.caught_up(forged))
    assert "not of the events that were shown" in error.reason
    assert error.evidence == (forged,)


def test_a_head_of_an_earlier_position_is_compared_too() -> None:
    """As far back as the reader, or its store, holds chains."""
    _, stream = two_authors()
    reader = follow(stream)
    reader.feed(*stream.page(0))
    reader.note(stream.head(2))
    lie(lambda: reader.note(stream.head(3, chain=OTHER_CHAIN)))
    lie(lambda: reader.note(stream.head(0, chain=OTHER_CHAIN)))
    reopened = follow(stream, state=state_at(Position(*stream.head_position)), chain_at={2: stream.chains[2]}.get)
    reopened.note(stream.head(1, chain=OTHER_CHAIN))
    lie(lambda: reopened.note(stream.head(2, chain=OTHER_CHAIN)))


def test_a_head_above_the_position_is_compared_when_the_reader_gets_there() -> None:
    """A server that signs one history and shows another is caught by its own signature."""
    _, stream = two_authors()
    reader = follow(stream)
    forged = stream.head(5, chain=OTHER_CHAIN)
    reader.note(forged)
    reader.feed(*stream.page(0, 4))
    error = lie(lambda: reader.feed(*stream.page(4)))
    assert "not those of a signed head" in error.reason
    assert error.evidence == (forged,)


def test_two_heads_of_one_place_prove_a_fork() -> None:
    """Both are handed out, signed, as evidence for anybody."""
    _, stream = two_authors()
    reader = follow(stream)
    one, two = stream.head(6), stream.head(6, chain=OTHER_CHAIN)
    reader.note(one)
    error = lie(lambda: reader.note(two))
    assert error.evidence == (one, two)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"user_key": seed("another user")}, "of another stream"),
        ({"stream": "other"}, "of another stream"),
    ],
)
def test_a_head_of_something_else_is_a_lie(changes: dict[str, Any], reason: str) -> None:
    """Signed, but not of this stream."""
    _, stream = two_authors()
    assert reason in lie(lambda: follow(stream).note(stream.head(**changes))).reason


def test_a_head_that_the_server_did_not_sign_is_a_lie() -> None:
    """Any other signature."""
    _, stream = two_authors()
    head, _ = stream.head()
    assert "does not verify" in lie(lambda: follow(stream).note((head, bytes(64)))).reason


def test_a_log_that_went_back_behind_the_reader_is_a_lie() -> None:
    """Without a signed rewind, which this version does not have, going back is an attack."""
    _, stream = two_authors()
    reader = follow(stream)
    reader.feed(*stream.page(0))
    error = lie(lambda: reader.resumed(stream.head(5)))
    assert "went back behind what this device has verified" in error.reason
    assert error.evidence == (stream.head(5),)


@pytest.mark.parametrize(("seq", "epoch"), [(5, 1), (5, 2), (6, 0)])
def test_a_log_that_went_back_behind_a_signed_head_is_a_lie(seq: int, epoch: int) -> None:
    """Even if the reader never got as far as that head itself."""
    _, stream = two_authors()
    reader = follow(stream)
    reader.feed(*stream.page(0, 2))
    reader.note(stream.head(6))
    error = lie(lambda: reader.resumed(stream.head(seq, epoch=epoch)))
    assert "went back behind a signed head" in error.reason
    assert error.evidence[0] == stream.head(6)


def test_caught_up_behind_a_signed_head_is_a_lie() -> None:
    """That it once signed a later one is not forgotten, however many heads the server signs."""
    _, stream = two_authors()
    reader = follow(stream)
    for epoch in range(1, 2 * HEADS_MAX):
        reader.note(stream.head(6, epoch=epoch))
    reader.feed(*stream.page(0, 5))
    assert "went back behind a signed head" in lie(lambda: reader.caught_up(stream.head(5))).reason


def test_heads_of_later_epochs_do_not_push_out_one_that_is_ahead() -> None:
    """Epoch and seq rise together: a later epoch in which the stream is shorter went back."""
    _, stream = two_authors()
    reader = follow(stream)
    reader.resumed(stream.head(6))
    earlier = stream.head(0, epoch=2)
    error = lie(lambda: reader.note(earlier))
    assert "went back behind a signed head" in error.reason
    assert error.evidence == (stream.head(6), earlier)
    later = follow(stream)
    later.note(stream.head(5, epoch=2))
    lie(lambda: later.note(stream.head(6, epoch=1)))


def test_a_log_that_moved_on_is_resumed() -> None:
    """Also in a later epoch, as long as nothing is lost."""
    _, stream = two_authors()
    reader = follow(stream)
    reader.feed(*stream.page(0, 3))
    reader.resumed(stream.head(3))
    reader.resumed(stream.head(5))
    reader.resumed(stream.head(6, epoch=2))
    assert len(reader.state.heads) == 3


def test_a_stream_that_vanished_is_a_lie() -> None:
    """No head is an answer only for a stream that nobody has written into."""
    _, stream = two_authors()
    reader = follow(stream)
    reader.resumed(None)
    reader.note(stream.head(1))
    assert "no longer has this stream" in lie(lambda: reader.resumed(None)).reason
    reader = follow(stream)
    reader.feed(*stream.page(0))
    assert "no longer has this stream" in lie(lambda: reader.resumed(None)).reason
