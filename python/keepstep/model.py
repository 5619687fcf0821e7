"""The words every part shares: ids, positions, devices. Frozen values only."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final, NewType

UserPk = NewType("UserPk", int)
"""Row number of a user in one database; never on the wire."""
DevicePk = NewType("DevicePk", int)
"""Row number of a device, unique within its user; never on the wire."""
StreamPk = NewType("StreamPk", int)
"""Row number of a stream, unique within its user; ``$devices`` has the lowest."""

DEVICES_STREAM: Final = "$devices"
KEYS_STREAM: Final = "$keys"

KEY_BYTES: Final = 32
"""Ed25519 and X25519 public keys, BLAKE3 hashes and chains."""
SIGNATURE_BYTES: Final = 64
DEVICE_ID_BYTES: Final = 16
EVENT_ID_BYTES: Final = 16
SESSION_ID_BYTES: Final = 16
PREV_BYTES: Final = 16
STREAM_NAME_BYTES_MAX: Final = 128
STREAM_NAME_PATTERN: Final = r"\A[A-Za-z0-9._:@/$-]+\Z"
"""What a stream name is made of; only names the protocol reserves begin with ``$`` (protocol.md section 3)."""
DEVICE_LABEL_BYTES_MAX: Final = 256


class Kind(enum.IntEnum):
    """What an event is (protocol.md section 3)."""

    APPLICATION = 0
    POLICY = 1
    SNAPSHOT = 2
    CONFIRM = 3
    ERASE = 4
    ACCOUNT = 5
    KEYS = 6


class Capability(enum.IntFlag):
    """What a device may do, as the bits of a device entry's ``capabilities``."""

    PUBLISH = 1
    SUBSCRIBE = 2
    MANAGE = 4


class RetentionClass(enum.IntEnum):
    """Which event table a stream's rows live in; one table per class, so that expiry is a dropped partition."""

    KEEP = 0
    STANDARD = 1


@dataclass(frozen=True, slots=True)
class Position:
    """A place in a stream: everything up to and including ``seq``; ``chain`` is the hash chain there."""

    seq: int
    chain: bytes


@dataclass(frozen=True, slots=True)
class DeviceEntry:
    """A device as ``$devices`` lists it (protocol.md section 1).

    Attributes:
        device_id: 16 bytes, a UUID; never reused.
        device_key: Ed25519 public key, 32 bytes.
        box_key: X25519 public key that receives wrapped content keys, 32 bytes.
        capabilities: what the device may do.
        issued_at_ms: unix milliseconds, by the enrolling device's clock.
        expires_at_ms: unix milliseconds, or ``None`` for never.
        sealed_label: the device's name, sealed under the content key; at most 256 bytes.
    """

    device_id: bytes
    device_key: bytes
    box_key: bytes
    capabilities: Capability
    issued_at_ms: int
    expires_at_ms: int | None
    sealed_label: bytes


@dataclass(frozen=True, slots=True)
class Principal:
    """A device that proved who it is: the subject of every decision about access.

    Attributes:
        user_pk: the user's row number.
        user_key: the user id, the genesis root public key, 32 bytes.
        device_pk: the device's row number.
        device_id: 16 bytes.
        device_key: 32 bytes.
        capabilities: as enrolled.
        expires_at_ms: as enrolled.
    """

    user_pk: UserPk
    user_key: bytes
    device_pk: DevicePk
    device_id: bytes
    device_key: bytes
    capabilities: Capability
    expires_at_ms: int | None
