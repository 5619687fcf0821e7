"""What an account log knows of each device, and all of it as simple values for a store (protocol.md section 1)."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Final

import msgspec
from msgspec import Meta, Struct

from keepstep.model import DEVICES_STREAM, Capability, has_expired
from keepstep.protocol.account_payloads import WireEntry, entry_from_wire, entry_to_wire
from keepstep.protocol.codec import decode_strict, encode
from keepstep.protocol.messages import U64, Bytes16, Bytes32, StreamName
from keepstep.protocol.succession import Announcement

if TYPE_CHECKING:
    from collections.abc import Mapping

    from keepstep.model import DeviceEntry

STATE_BYTES_MAX: Final = 64 * 1024 * 1024


class EndReason(enum.IntEnum):
    """Why a device is no longer live."""

    REVOKED = 0
    """A ``revoke`` names it."""
    REVOKED_WITH = 1
    """Its enrolment was undone by the revocation of the device that enrolled it."""
    ROTATED = 2
    """A ``rotate`` does not list it."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How a device ended.

    Attributes:
        seq: of the event of ``$devices`` from which on it is not live.
        received_at_ms: of that event, unix milliseconds.
        reason: see ``EndReason``.
        by: the author of the event that ended it.
        accepted: per stream its last author number that stays, 0 for those not named; ``None`` after a rotation alone:
            what the log held by then stays.
    """

    seq: int
    received_at_ms: int
    reason: EndReason
    by: bytes
    accepted: Mapping[str, int] | None

    def accepts(self, stream: str, n: int) -> bool:
        """Whether the device's event with that author number stays."""
        return self.accepted is None or n <= self.accepted.get(stream, 0)


@dataclass(frozen=True, slots=True)
class EnrolledDevice:
    """A device that is or was live.

    Attributes:
        entry: as enrolled.
        seq: in ``$devices``, from which on it is live.
        enrolled_by: the device that answers for it: with that one's revocation its enrolment may be undone. ``None``
            where the root key does, by genesis or a rotation that lists it.
        enrolled_n: the author number of the enrolment; 0 where ``enrolled_by`` is ``None``.
        manage_from_ms: unix milliseconds of ``received_at`` from which it may manage, if it may: the end of its
            cool-down, 0 for at once.
        ended: ``None`` while it is live.
    """

    entry: DeviceEntry
    seq: int
    enrolled_by: bytes | None = None
    enrolled_n: int = 0
    manage_from_ms: int = 0
    ended: Ended | None = None

    def is_expired(self, now_ms: int) -> bool:
        """Whether its time is over."""
        return has_expired(self.entry.expires_at_ms, now_ms)

    def may(self, capability: Capability, now_ms: int) -> bool:
        """Whether its entry grants a capability, which a cool-down does not hold back. Not whether it is live."""
        held_back = Capability.MANAGE in capability and now_ms < self.manage_from_ms
        return capability in self.entry.capabilities and not held_back

    def manages(self, now_ms: int) -> bool:
        """Whether it may enrol and revoke at that moment."""
        return self.ended is None and not self.is_expired(now_ms) and self.may(Capability.MANAGE, now_ms)


_WireEnded = tuple[U64, U64, EndReason, Bytes16, dict[StreamName, U64] | None]
_WireDevice = tuple[WireEntry, U64, Bytes16 | None, U64, U64, _WireEnded | None]


def device_to_wire(device: EnrolledDevice) -> _WireDevice:
    """As ``AccountState`` carries it."""
    ended = device.ended
    return (
        entry_to_wire(device.entry),
        device.seq,
        device.enrolled_by,
        device.enrolled_n,
        device.manage_from_ms,
        None
        if ended is None
        else (
            ended.seq,
            ended.received_at_ms,
            ended.reason,
            ended.by,
            None if ended.accepted is None else dict(ended.accepted),
        ),
    )


def device_from_wire(wire: _WireDevice) -> EnrolledDevice:
    """What ``device_to_wire`` gave."""
    entry, seq, enrolled_by, enrolled_n, manage_from_ms, ended = wire
    return EnrolledDevice(
        entry_from_wire(entry),
        seq,
        enrolled_by,
        enrolled_n,
        manage_from_ms,
        None if ended is None else Ended(*ended),
    )


class AccountState(Struct, frozen=True, array_like=True):
    """An ``AccountLog`` as simple values, for a device's own store.

    Attributes:
        chains: the chain at every seq, from 0 on.
        devices: every device, in order of enrolment.
        devices_seen: the seq in ``devices_seen`` of each author's last event.
        received_at_ms: of the event at the last seq.
        next_root_hash: of the root key that may sign the next ``rotate``; nil before genesis.
        root_keys: the root keys that signed, the user id first.
        checkpoint: (seq, received_at_ms) of the latest checkpoint.
        announcements: of successors of the server's identity key, in order.
    """

    chains: Annotated[list[Bytes32], Meta(min_length=1)]
    devices: list[_WireDevice]
    devices_seen: dict[Bytes16, U64]
    received_at_ms: U64
    next_root_hash: Bytes32 | None
    root_keys: list[Bytes32]
    checkpoint: tuple[U64, U64] | None
    announcements: list[Announcement]

    def encode(self) -> bytes:
        """As bytes, for a store."""
        return encode(self)


_STATE: Final = msgspec.msgpack.Decoder(AccountState)


def decode_account_state(data: bytes) -> AccountState:
    """What ``AccountState.encode`` gave. Raises ``ProtocolError`` ``malformed``, ``too_large``."""
    return decode_strict(_STATE, data, "an account log's state", bytes_max=STATE_BYTES_MAX)


def undone_with(devices: Mapping[bytes, EnrolledDevice], device_id: bytes, *, accepted_n: int) -> list[EnrolledDevice]:
    """The devices that a device enrolled with author numbers above ``accepted_n``, and all that those enrolled."""
    enrolled: dict[bytes, list[EnrolledDevice]] = {}
    for device in devices.values():
        if device.enrolled_by is not None:
            enrolled.setdefault(device.enrolled_by, []).append(device)
    undone: list[EnrolledDevice] = [each for each in enrolled.get(device_id, ()) if each.enrolled_n > accepted_n]
    for device in undone:  # grows while it is walked: enrolments form a tree
        undone += enrolled.get(device.entry.device_id, ())
    return undone


def accepted_devices_n(accepted: Mapping[str, int]) -> int:
    """Up to which author number in ``$devices`` a revocation lets stay what its device enrolled."""
    return accepted.get(DEVICES_STREAM, 0)
