"""Answers to a publish that are encoded where they are made."""

from __future__ import annotations

from keepstep.protocol.messages import (
    Accepted,
    Result,
    ResultAccepted,
    ResultDuplicate,
    ResultError,
    decode_from_server,
    encode,
)
from keepstep.protocol.results import count_results, decode_results, encode_accepted, encode_results

CHAIN = bytes(range(32))
RESULTS: list[Result] = [
    ResultAccepted(3, 7, 1_000_000, CHAIN),
    ResultDuplicate(4, CHAIN, 5),
    ResultDuplicate(None, None, None),
    ResultError("out_of_order", [2, CHAIN]),
    ResultAccepted(1, 10, 1_000_000, CHAIN),
]


def test_the_message_is_what_the_codec_would_make() -> None:
    """Byte for byte, for small and large request ids."""
    for rid in (0, 127, 128, 2**63 - 1):
        message = encode_accepted(rid, encode_results(RESULTS))
        assert message == encode(Accepted(rid, RESULTS))
        assert decode_from_server(message) == Accepted(rid, RESULTS)


def test_answers_are_decoded_as_they_were() -> None:
    """For those that look at them instead of sending them on."""
    assert decode_results(encode_results(RESULTS)) == RESULTS
    assert decode_results(encode_results([])) == []


def test_events_are_counted_by_their_answers() -> None:
    """A run counts as many as it holds."""
    assert count_results(RESULTS) == {"accepted": 4, "duplicate": 2, "out_of_order": 1}
