"""The words every part shares: ids, positions, devices. Frozen values only."""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass
from typing import Final, Literal, NewType

UserPk = NewType("UserPk", int)
"""Row number of a user in one database; never on the wire."""
DevicePk = NewType("DevicePk", int)
"""Row number of a device, unique within its user; never on the wire."""
StreamPk = NewType("StreamPk", int)
"""Row number of a stream, unique within its user; ``$devices`` has the lowest."""

DEVICES_STREAM: Final = "$devices"
KEYS_STREAM: Final = "$keys"
RESERVED_STREAMS: Final = (DEVICES_STREAM, KEYS_STREAM)
"""Streams of every account, without which a device cannot go on."""
INBOX_PREFIX: Final = "$inbox/"
"""What the name of a device's inbox begins with; its id follows as 32 lowercase hexadecimal digits."""

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
SESSIONS_PER_DEVICE_MAX: Final = 1_000
"""Sessions of one device that stay recorded: one that connects again and again fills no disk with them."""
SESSION_LOST: Final = "node_lost"
"""Why a session ended whose node died: nobody could record it then."""
CHANGES_MAX: Final = 10_000
"""Devices that ``Accounts.revoked_since`` and ``cloned_since`` answer at most, the latest."""


_INBOX: Final = re.compile(r"\A\$inbox/[0-9a-f]{32}\Z", re.ASCII)


def inbox_of(device_id: bytes) -> str:
    """The stream that only that device reads (protocol.md section 3)."""
    return f"{INBOX_PREFIX}{device_id.hex()}"


def is_inbox(stream: str) -> bool:
    """Whether a stream is the inbox of some device."""
    return stream.startswith(INBOX_PREFIX) and _INBOX.match(stream) is not None


def reading_refusal(stream: str, device_id: bytes) -> Literal["forbidden", "unknown_stream"] | None:
    """Why a device may not read a stream, by its name alone: application streams, ``$devices``, ``$keys`` it may.

    protocol.md section 3: of an inbox "only that device reads".
    """
    if not stream.startswith("$") or stream in RESERVED_STREAMS or stream == inbox_of(device_id):
        return None
    return "forbidden" if is_inbox(stream) else "unknown_stream"


def has_expired(expires_at_ms: int | None, now_ms: int) -> bool:
    """Whether something is over by then, unix milliseconds: from the very moment it names on; never for ``None``."""
    return expires_at_ms is not None and expires_at_ms <= now_ms


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


class Policy(enum.IntEnum):
    """What a stream does with events that do not know of each other (protocol.md section 3)."""

    APPEND = 0
    EXPECT = 1
    FORK = 2
    LATEST = 3


class RetentionClass(enum.IntEnum):
    """Which event table a stream's rows live in; one table per class, so that expiry is a dropped partition."""

    KEEP = 0
    STANDARD = 1


@dataclass(frozen=True, slots=True)
class Position:
    """A place in a stream: everything up to and including ``seq``; ``chain`` is the hash chain there."""

    seq: int
    chain: bytes


KeptRow = tuple[int, bytes, int, bytes, bytes, bytes | None]
"""(seq, device_id, received_at_ms, header, sig, payload) of an event that stays although those around it are gone."""


@dataclass(frozen=True, slots=True)
class PrunedPrefix:
    """What stands for the beginning of a stream that is gone (protocol.md section 3, Pruning).

    Attributes:
        to: everything up to here is gone.
        authors: each author's last number up to there and the hash of that event (32 bytes), by device id.
        kept: of what is gone, the policy in force and the newest confirmed snapshot with its confirmation, by seq.
    """

    to: Position
    authors: dict[bytes, tuple[int, bytes]]
    kept: tuple[KeptRow, ...]


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
        manage_from_ms: unix milliseconds at which its cool-down ends, 0 where it has none (protocol.md section 1).
    """

    user_pk: UserPk
    user_key: bytes
    device_pk: DevicePk
    device_id: bytes
    device_key: bytes
    capabilities: Capability
    expires_at_ms: int | None
    manage_from_ms: int = 0

    def is_expired(self, now_ms: int) -> bool:
        """Whether its time is over; whoever acts on a device's word asks this first."""
        return has_expired(self.expires_at_ms, now_ms)

    def capabilities_at(self, now_ms: int) -> Capability:
        """What the device may do at that moment: a cool-down holds ``manage`` back."""
        if now_ms < self.manage_from_ms:
            return self.capabilities & ~Capability.MANAGE
        return self.capabilities


@dataclass(frozen=True, slots=True)
class KnownDevice:
    """A device that is or was live.

    Attributes:
        principal: the device.
        revoked_seq: the seq in ``$devices`` that ended it, ``None`` while it is live.
    """

    principal: Principal
    revoked_seq: int | None


@dataclass(frozen=True, slots=True)
class RevokedDevice:
    """A device that ended, as other nodes learn of it."""

    user_pk: UserPk
    device_pk: DevicePk
    revoked_seq: int


@dataclass(frozen=True, slots=True)
class ClonedDevice:
    """A device that connects from more than one place, and when that was noticed, unix milliseconds."""

    user_pk: UserPk
    device_id: bytes
    cloned_at_ms: int


@dataclass(frozen=True, slots=True)
class AccountChange:
    """What an accepted event of ``$devices`` does to the device table, applied in the event's own transaction.

    Attributes:
        enrolled: the device that becomes live.
        checked_seq: the head of ``$devices`` the event was checked against. Where another event came in between,
            ``append`` raises Unavailable and the caller checks it against the new head; ``None`` asks for no such test.
        checked_chain: the chain there, which no other user's stream has; ``None`` asks for no such test.
        manage_from_ms: unix milliseconds at which the enrolled device's cool-down ends, 0 where it has none.
        revoked: ids of the devices that end.
        restored: ids of devices that had ended and are live again.
        next_root_hash: what a rotation commits to.
    """

    enrolled: DeviceEntry | None = None
    checked_seq: int | None = None
    checked_chain: bytes | None = None
    manage_from_ms: int = 0
    revoked: tuple[bytes, ...] = ()
    restored: tuple[bytes, ...] = ()
    next_root_hash: bytes | None = None

    def fits(self, seq: int, chain: bytes) -> bool:
        """Whether that head of ``$devices`` is the one that the event was checked against."""
        return self.checked_seq in (None, seq) and self.checked_chain in (None, chain)

    @property
    def is_essential(self) -> bool:
        """Whether it takes a device's access away or gives the account another root key: no quota stands in its way."""
        return bool(self.revoked or self.restored) or self.next_root_hash is not None

    @property
    def changes_access(self) -> bool:
        """Whether devices that were live are not, or the other way round: what was decided upon them is void."""
        return bool(self.revoked or self.restored or self.next_root_hash)


@dataclass(frozen=True, slots=True)
class Rotation:
    """A checked rotation (``identity.check_rotation``): its user, the recovering device, and the event as signed."""

    user_pk: UserPk
    user_key: bytes
    device: DeviceEntry
    header: bytes
    sig: bytes
    payload: bytes
