"""The payload of a policy event: what a stream does with its events (protocol.md section 3, Policies).

A policy event lies in the stream itself and moves its head, so every node and every reader applies it at the same
place: it holds from the event after its own on.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct

from keepstep.errors import ProtocolError
from keepstep.model import Policy, RetentionClass
from keepstep.protocol.codec import decode_strict, encode, message_type
from keepstep.protocol.event import TtlSeconds
from keepstep.protocol.messages import U64

VERSION: Final = 1
"""The first element of the payload."""
POLICY_PAYLOAD_BYTES_MAX: Final = 64


class PolicyPayload(Struct, frozen=True, array_like=True, tag=VERSION):
    """``[1, policy, retention_class, ttl_max_s | nil, stream_bytes_max | nil]``.

    Attributes:
        policy: a ``model.Policy``, or one of a later version.
        retention_class: a ``model.RetentionClass``, or one of a later version; fixed by the stream's first event.
        ttl_max_s: the longest life of an application event, seconds; ``None`` where it may live for ever. Where it is
            given, every application event has a ttl.
        stream_bytes_max: the most bytes that headers, signatures and payloads of the stream may take together; ``None``
            where the stream has no bound of its own.
    """

    policy: U64
    retention_class: U64
    ttl_max_s: TtlSeconds | None
    stream_bytes_max: Annotated[int, Meta(ge=0)] | None


_POLICIES: Final = frozenset(Policy)
_RETENTION_CLASSES: Final = frozenset(RetentionClass)
_DECODER: Final = msgspec.msgpack.Decoder(PolicyPayload)


def encode_policy(
    policy: Policy,
    *,
    retention_class: RetentionClass = RetentionClass.STANDARD,
    ttl_max_s: int | None = None,
    stream_bytes_max: int | None = None,
) -> bytes:
    """The payload of an event of kind 1; a ``manage`` device signs it, and the first event of a stream may be one.

    Args:
        policy: what becomes of concurrent events.
        retention_class: how long rows are kept; the same as before where the stream has events.
        ttl_max_s: the longest life of an application event, seconds, 1 to 100 years.
        stream_bytes_max: what the stream may store, bytes.
    """
    return encode(PolicyPayload(policy, retention_class, ttl_max_s, stream_bytes_max))


def decode_policy(payload: bytes) -> PolicyPayload:
    """Decode and check the payload of a policy event.

    Raises:
        ProtocolError: ``malformed``, ``too_large``; ``unsupported`` for another version, policy or retention class.
    """
    if message_type(payload) not in (None, VERSION):
        raise ProtocolError("unsupported", "this version does not have that form of policy")
    decoded = decode_strict(_DECODER, payload, "a policy", bytes_max=POLICY_PAYLOAD_BYTES_MAX)
    if decoded.policy not in _POLICIES or decoded.retention_class not in _RETENTION_CLASSES:
        raise ProtocolError("unsupported", "this version does not have that policy or retention class")
    return decoded


def check_change(before: PolicyPayload, after: PolicyPayload) -> None:
    """Check that a policy may follow the one in force in a stream that has events.

    Raises:
        ProtocolError: ``unprocessable``: another retention class, or another policy than ``append`` given up.
    """
    if after.retention_class != before.retention_class:
        raise ProtocolError("unprocessable", "a stream with events keeps its retention class")
    if after.policy != before.policy and before.policy != Policy.APPEND:
        raise ProtocolError("unprocessable", "a stream with events only changes from append to another policy")


def concurrent_with(
    policy: Policy, *, seq: int, base: tuple[int, bytes] | int | None, own_seq: int | None
) -> tuple[int, int] | None:
    """The seqs (first, last) that an event of a ``fork`` stream does not build on; ``None`` where it builds on all.

    Args:
        policy: in force at the event.
        seq: the event's own.
        base: as its header says.
        own_seq: seq of the author's event before it, which an integer ``base`` stands for; ``None`` where not known.
    """
    if policy != Policy.FORK:
        return None
    if isinstance(base, tuple):
        base_seq = base[0]
    else:
        base_seq = own_seq if base is not None and own_seq is not None else 0
    return (base_seq + 1, seq - 1) if base_seq < seq - 1 else None
