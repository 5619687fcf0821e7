"""The answers to a publish, encoded where they are made and put into ``messages.Accepted`` as they are."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

import msgspec

from keepstep.protocol.codec import encode
from keepstep.protocol.messages import Result, ResultAccepted, ResultDuplicate

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_ACCEPTED_HEAD: Final = b"\x93\x40"
"""An array of three that begins with 64 (``messages.Accepted``)."""
_DECODER: Final = msgspec.msgpack.Decoder(list[Result])


def encode_results(results: Sequence[Result]) -> bytes:
    """The answers to one submission, in order of its events, as an array."""
    return encode(results)


def decode_results(encoded: bytes) -> list[Result]:
    """What ``encode_results`` encoded, or the extension."""
    return _DECODER.decode(encoded)


def encode_accepted(rid: int, results: bytes) -> bytes:
    """``Accepted`` of encoded answers."""
    return b"".join((_ACCEPTED_HEAD, encode(rid), results))


def count_results(results: Iterable[Result]) -> dict[str, int]:
    """How many events were answered ``accepted``, ``duplicate`` or the code of an error."""
    counts: Counter[str] = Counter()
    for result in results:
        if isinstance(result, ResultAccepted):
            counts["accepted"] += result.count
        else:
            counts["duplicate" if isinstance(result, ResultDuplicate) else result.code] += 1
    return dict(counts)
