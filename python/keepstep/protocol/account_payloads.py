"""The payloads of account events: what changes a user's devices, as signed (protocol.md section 1).

Form only: what may happen when is decided by ``account``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
from msgspec import Meta, Struct

from keepstep.errors import ProtocolError
from keepstep.model import DEVICE_LABEL_BYTES_MAX, Capability, DeviceEntry
from keepstep.protocol.chain import start_of_devices
from keepstep.protocol.codec import decode_strict, encode, message_type
from keepstep.protocol.messages import U64, Bytes16, Bytes32, Bytes64, StreamName, WirePosition
from keepstep.protocol.succession import Announcement

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from keepstep.protocol.primitives import Primitives

ROOT_PREFIX: Final = b"keepstep/v1/root\0"
NEXT_ROOT_CONTEXT: Final = "keepstep/v1/next-root"
ACCOUNT_PAYLOAD_BYTES_MAX: Final = 256 * 1024
"""Largest payload of an account event, bytes."""
STREAMS_MAX: Final = 8192
"""Streams that a revocation or a checkpoint names; names of ordinary length reach the limit in bytes first."""
STAYING_MAX: Final = 4096
"""Devices that stay after a rotation."""
FULL_CAPABILITIES: Final = Capability.PUBLISH | Capability.SUBSCRIBE | Capability.MANAGE
"""What the first device of a user, and a recovering one, must be able to do."""

WireEntry = tuple[
    Bytes16, Bytes32, Bytes32, U64, U64, U64 | None, Annotated[bytes, Meta(max_length=DEVICE_LABEL_BYTES_MAX)]
]
"""``[device_id, device_key, box_key, capabilities, issued_at_ms, expires_at_ms | nil, sealed_label]``."""


class _Genesis(Struct, frozen=True, array_like=True, tag=0):
    user_key: Bytes32
    next_root_hash: Bytes32
    device: WireEntry
    root_sig: Bytes64


class _Enrol(Struct, frozen=True, array_like=True, tag=1):
    device: WireEntry


class _Rotate(Struct, frozen=True, array_like=True, tag=3):
    root_key: Bytes32
    next_root_hash: Bytes32
    staying: Annotated[list[Bytes16], Meta(max_length=STAYING_MAX)]
    device: WireEntry
    root_sig: Bytes64


class RevokePayload(Struct, frozen=True, array_like=True, tag=2):
    """``[2, device_id, {stream: accepted n}]``: streams that are not named have accepted n = 0.

    ``$devices`` among them bounds what the device enrolled: its later enrolments are revoked with it.
    """

    device_id: Bytes16
    accepted: Annotated[dict[StreamName, U64], Meta(max_length=STREAMS_MAX)]


class CheckpointPayload(Struct, frozen=True, array_like=True, tag=4):
    """``[4, {stream: [seq, chain]}]``: what its author has verified of each stream."""

    positions: Annotated[dict[StreamName, WirePosition], Meta(min_length=1, max_length=STREAMS_MAX)]


class ServerKeyPayload(Struct, frozen=True, array_like=True, tag=5):
    """``[5, announcement]``: the server has a new identity key."""

    announcement: Announcement


@dataclass(frozen=True, slots=True)
class GenesisPayload:
    """``[0, user_key, next_root_hash, device entry, root_sig]``."""

    user_key: bytes
    next_root_hash: bytes
    device: DeviceEntry
    root_sig: bytes


@dataclass(frozen=True, slots=True)
class EnrolPayload:
    """``[1, device entry]``."""

    device: DeviceEntry


@dataclass(frozen=True, slots=True)
class RotatePayload:
    """``[3, root_key, next_root_hash, [staying device_id ...], device entry, root_sig]``."""

    root_key: bytes
    next_root_hash: bytes
    staying: tuple[bytes, ...]
    device: DeviceEntry
    root_sig: bytes


AccountPayload = GenesisPayload | EnrolPayload | RevokePayload | RotatePayload | CheckpointPayload | ServerKeyPayload

_Wire = _Genesis | _Enrol | RevokePayload | _Rotate | CheckpointPayload | ServerKeyPayload
_DECODER: Final[msgspec.msgpack.Decoder[_Wire]] = msgspec.msgpack.Decoder(_Wire)
_OPERATIONS: Final = frozenset(range(6))


def entry_to_wire(entry: DeviceEntry) -> WireEntry:
    """A device entry as it is signed."""
    return (
        entry.device_id,
        entry.device_key,
        entry.box_key,
        int(entry.capabilities),
        entry.issued_at_ms,
        entry.expires_at_ms,
        entry.sealed_label,
    )


def entry_from_wire(wire: WireEntry) -> DeviceEntry:
    """A device entry, read. Raises ``ProtocolError`` ``unsupported`` for a capability of a later version."""
    device_id, device_key, box_key, capabilities, issued_at_ms, expires_at_ms, sealed_label = wire
    if capabilities & ~int(FULL_CAPABILITIES):
        raise ProtocolError("unsupported", "a device entry has a capability this version does not have")
    return DeviceEntry(
        device_id=device_id,
        device_key=device_key,
        box_key=box_key,
        capabilities=Capability(capabilities),
        issued_at_ms=issued_at_ms,
        expires_at_ms=expires_at_ms,
        sealed_label=sealed_label,
    )


def next_root_hash(primitives: Primitives, next_root_key: bytes) -> bytes:
    """What genesis and rotate commit to: the hash of the root public key that may sign the next ``rotate``."""
    return primitives.blake3_derive(NEXT_ROOT_CONTEXT, next_root_key)


def _root_signing_input(primitives: Primitives, user_key: bytes, built_on: bytes, unsigned: list[Any]) -> bytes:
    """What a root key signs: ``built_on`` is the chain of ``$devices`` in the event's ``seen``."""
    return ROOT_PREFIX + user_key + built_on + primitives.blake3(encode(unsigned))


def _unsigned_genesis(user_key: bytes, next_hash: bytes, device: DeviceEntry) -> list[Any]:
    return [0, user_key, next_hash, entry_to_wire(device)]


def _unsigned_rotate(root_key: bytes, next_hash: bytes, staying: Sequence[bytes], device: DeviceEntry) -> list[Any]:
    return [3, root_key, next_hash, list(staying), entry_to_wire(device)]


def encode_genesis(primitives: Primitives, *, root_secret: bytes, next_root_key: bytes, device: DeviceEntry) -> bytes:
    """The payload of a genesis event, signed by the root key, whose public key is the user id."""
    user_key = primitives.ed25519_public(root_secret)
    built_on = start_of_devices(primitives, user_key).chain
    unsigned = _unsigned_genesis(user_key, next_root_hash(primitives, next_root_key), device)
    root_sig = primitives.ed25519_sign(root_secret, _root_signing_input(primitives, user_key, built_on, unsigned))
    return encode([*unsigned, root_sig])


def verify_genesis(primitives: Primitives, genesis: GenesisPayload) -> None:
    """Raises ``ProtocolError`` ``bad_signature`` where the user's root key did not sign it (or it is none)."""
    built_on = start_of_devices(primitives, genesis.user_key).chain
    unsigned = _unsigned_genesis(genesis.user_key, genesis.next_root_hash, genesis.device)
    signed = _root_signing_input(primitives, genesis.user_key, built_on, unsigned)
    primitives.ed25519_verify(genesis.user_key, signed, genesis.root_sig)


def encode_enrol(device: DeviceEntry) -> bytes:
    """The payload of an enrolment."""
    return encode(_Enrol(entry_to_wire(device)))


def encode_revoke(device_id: bytes, accepted: Mapping[str, int]) -> bytes:
    """The payload of a revocation.

    Args:
        device_id: the device that ends.
        accepted: per stream its last author number that stays; 0 for streams that are not named. Name ``$devices``
            with its last n there to keep every device it enrolled.

    Raises:
        ProtocolError: ``too_large``: more than 256 KiB.
    """
    return _bounded(encode(RevokePayload(device_id, dict(accepted))))


def encode_rotate(
    primitives: Primitives,
    *,
    user_key: bytes,
    root_secret: bytes,
    next_root_key: bytes,
    built_on: bytes,
    staying: Sequence[bytes],
    device: DeviceEntry,
) -> bytes:
    """The payload of a rotation, signed by the root key whose hash was committed to.

    The event around it is signed by ``device``, with n = 1 and ``seen`` and ``devices_seen`` both the position in
    ``$devices`` whose chain is ``built_on``.

    Args:
        primitives: the cryptography.
        user_key: the user id.
        root_secret: the seed of the root key whose time has come, 32 bytes.
        next_root_key: public key of the root key that may sign the rotation after this one; never used before.
        built_on: chain of ``$devices`` at any position the log holds.
        staying: ids of the devices that stay or come back; every other device ends.
        device: the recovering device, new, with every capability.
    """
    root_key = primitives.ed25519_public(root_secret)
    unsigned = _unsigned_rotate(root_key, next_root_hash(primitives, next_root_key), staying, device)
    root_sig = primitives.ed25519_sign(root_secret, _root_signing_input(primitives, user_key, built_on, unsigned))
    return encode([*unsigned, root_sig])


def verify_rotate(primitives: Primitives, rotate: RotatePayload, *, user_key: bytes, built_on: bytes) -> None:
    """Raises ``ProtocolError`` ``bad_signature`` where the root key it names did not sign it (or it is none)."""
    unsigned = _unsigned_rotate(rotate.root_key, rotate.next_root_hash, rotate.staying, rotate.device)
    signed = _root_signing_input(primitives, user_key, built_on, unsigned)
    primitives.ed25519_verify(rotate.root_key, signed, rotate.root_sig)


def encode_checkpoint(positions: Mapping[str, tuple[int, bytes]]) -> bytes:
    """The payload of a checkpoint: (seq, chain) of at least one stream. Raises ``too_large`` above 256 KiB."""
    return _bounded(encode(CheckpointPayload(dict(positions))))


def encode_server_key(announcement: Announcement) -> bytes:
    """The payload that tells a user's devices of the server's next identity key."""
    return encode(ServerKeyPayload(announcement))


def _bounded(payload: bytes) -> bytes:
    if len(payload) > ACCOUNT_PAYLOAD_BYTES_MAX:
        raise ProtocolError("too_large", "an account payload names too many streams")
    return payload


def decode_account(payload: bytes) -> AccountPayload:
    """Decode the payload of an account event strictly.

    Raises:
        ProtocolError: ``unsupported`` for operations and capabilities of later versions; ``malformed``, ``too_large``.
    """
    if len(payload) <= ACCOUNT_PAYLOAD_BYTES_MAX:
        operation = message_type(payload)
        if operation is not None and operation not in _OPERATIONS:
            raise ProtocolError("unsupported", "this version does not have that account operation")
    wire = decode_strict(_DECODER, payload, "an account payload", bytes_max=ACCOUNT_PAYLOAD_BYTES_MAX)
    match wire:
        case _Genesis():
            return GenesisPayload(wire.user_key, wire.next_root_hash, entry_from_wire(wire.device), wire.root_sig)
        case _Enrol():
            return EnrolPayload(entry_from_wire(wire.device))
        case _Rotate():
            device = entry_from_wire(wire.device)
            return RotatePayload(wire.root_key, wire.next_root_hash, tuple(wire.staying), device, wire.root_sig)
        case _:
            return wire
