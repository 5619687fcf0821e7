"""Payloads of events about other events: snapshots, confirmations, erasures (protocol.md section 3).

The server reads and checks them against what is stored. What a snapshot says of the state is sealed, and only devices
read it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Final, TypeVar

import msgspec
from msgspec import Meta, Struct

from keepstep.errors import ProtocolError
from keepstep.model import Kind
from keepstep.protocol.codec import decode_strict, encode, message_type
from keepstep.protocol.event import AuthorNumber
from keepstep.protocol.messages import INTEGER_MAX, Bytes16, Bytes32

if TYPE_CHECKING:
    from keepstep.model import Position

VERSION: Final = 1
"""The first element of each of these payloads."""
SNAPSHOT_PAYLOAD_BYTES_MAX: Final = 256 * 1024
CONFIRM_PAYLOAD_BYTES_MAX: Final = 16
ERASE_PAYLOAD_BYTES_MAX: Final = 16 * 1024
SNAPSHOT_AUTHORS_MAX: Final = 4096
"""Devices that may have written into one stream."""
ERASABLE: Final = frozenset({Kind.APPLICATION, Kind.SNAPSHOT})
"""Kinds whose payloads may go. The others say how the stream is to be read: readers need them for ever."""
ERASE_EVENTS_MAX: Final = 1024
"""Events that one erasure names: a transaction that others wait for stays short."""

Seq = Annotated[int, Meta(ge=1, le=INTEGER_MAX)]


class SnapshotPayload(Struct, frozen=True, array_like=True, tag=VERSION):
    """``[1, covers_seq, covers_chain, {device_id: n}, sealed]``.

    Attributes:
        covers_seq: the last event that the state holds.
        covers_chain: the chain there.
        authors: the last author number of each device up to there.
        sealed: the state, under the content key.
    """

    covers_seq: Seq
    covers_chain: Bytes32
    authors: Annotated[dict[Bytes16, AuthorNumber], Meta(min_length=1, max_length=SNAPSHOT_AUTHORS_MAX)]
    sealed: bytes


class ConfirmPayload(Struct, frozen=True, array_like=True, tag=VERSION):
    """``[1, snapshot_seq]``: the author found the snapshot at that seq to be what the stream says."""

    snapshot_seq: Seq


class ErasePayload(Struct, frozen=True, array_like=True, tag=VERSION):
    """``[1, {device_id: [n ...]}]``: the events whose payloads go; numbers ascend.

    Attributes:
        events: author numbers by author.
    """

    events: Annotated[
        dict[Bytes16, Annotated[list[AuthorNumber], Meta(min_length=1, max_length=ERASE_EVENTS_MAX)]],
        Meta(min_length=1, max_length=ERASE_EVENTS_MAX),
    ]


_SNAPSHOT: Final = msgspec.msgpack.Decoder(SnapshotPayload)
_CONFIRM: Final = msgspec.msgpack.Decoder(ConfirmPayload)
_ERASE: Final = msgspec.msgpack.Decoder(ErasePayload)

T = TypeVar("T")


def encode_snapshot(covers: Position, authors: Mapping[bytes, int], sealed: bytes) -> bytes:
    """The payload of an event of kind 2, by a device that may publish.

    Args:
        covers: the last event that the state holds.
        authors: the last author number of each device that has written, up to there.
        sealed: the state, sealed as the payload of an application event is.
    """
    return encode(SnapshotPayload(covers.seq, covers.chain, dict(authors), sealed))


def encode_confirm(snapshot_seq: int) -> bytes:
    """The payload of an event of kind 3, by another device than the snapshot's, or by the user's only live one."""
    return encode(ConfirmPayload(snapshot_seq))


def encode_erase(events: Mapping[bytes, Sequence[int]]) -> bytes:
    """The payload of an event of kind 4: author numbers by device id, at most ``ERASE_EVENTS_MAX`` in all.

    A device erases its own events; those of others only one that manages.
    """
    return encode(ErasePayload({device_id: sorted(numbers) for device_id, numbers in events.items()}))


def decode_snapshot(payload: bytes) -> SnapshotPayload:
    """Decode strictly. Raises ``ProtocolError`` ``malformed``, ``too_large``, ``unsupported`` (another version)."""
    return _decode(_SNAPSHOT, payload, "a snapshot", SNAPSHOT_PAYLOAD_BYTES_MAX)


def decode_confirm(payload: bytes) -> ConfirmPayload:
    """Decode strictly. Raises as ``decode_snapshot``."""
    return _decode(_CONFIRM, payload, "a confirmation", CONFIRM_PAYLOAD_BYTES_MAX)


def decode_erase(payload: bytes) -> ErasePayload:
    """Decode strictly. Raises as ``decode_snapshot``."""
    erase = _decode(_ERASE, payload, "an erasure", ERASE_PAYLOAD_BYTES_MAX)
    if sum(map(len, erase.events.values())) > ERASE_EVENTS_MAX:
        raise ProtocolError("malformed", "an erasure names too many events")
    for numbers in erase.events.values():
        if any(later <= earlier for earlier, later in pairwise(numbers)):
            raise ProtocolError("malformed", "the numbers of an erasure do not ascend")
    return erase


def _decode(decoder: msgspec.msgpack.Decoder[T], payload: bytes, what: str, bytes_max: int) -> T:
    if message_type(payload) not in (None, VERSION):
        raise ProtocolError("unsupported", f"this version does not have that form of {what}")
    return decode_strict(decoder, payload, what, bytes_max=bytes_max)
