"""The account log ``$devices``: which devices a user has, and who may change that (protocol.md section 1).

``AccountLog`` is fed the events of ``$devices`` in order. The server asks it before it stores an event, a device asks
it for every event it reads; both come to the same answer from the same bytes. This version has genesis and enrolment;
revocation, rotation, checkpoints, successor server keys, and the third ``manage`` device are ``unsupported``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Final

import msgspec
from msgspec import Meta, Struct

from keepstep.errors import ProtocolError
from keepstep.model import DEVICE_LABEL_BYTES_MAX, Capability, DeviceEntry, Kind, Position
from keepstep.protocol.chain import chain_next, event_hash, start_of_devices
from keepstep.protocol.codec import decode_strict, encode, message_type
from keepstep.protocol.event import NO_PREV, Header, check_placement, decode_header, verify_event
from keepstep.protocol.messages import U64, Bytes16, Bytes32, Bytes64
from keepstep.validation import parse_device_id, parse_public_key, parse_user_id

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from keepstep.protocol.primitives import Primitives

ROOT_PREFIX: Final = b"keepstep/v1/root\0"
NEXT_ROOT_CONTEXT: Final = "keepstep/v1/next-root"
ACCOUNT_PAYLOAD_BYTES_MAX: Final = 1024
"""Largest payload of an account event, bytes: every field at its largest makes less."""
STATE_BYTES_MAX: Final = 64 * 1024 * 1024
MANAGERS_MAX: Final = 2
"""``manage`` devices without a cool-down; the next one needs it, which this version does not have."""
FULL_CAPABILITIES: Final = Capability.PUBLISH | Capability.SUBSCRIBE | Capability.MANAGE
"""What the first device of a user must be able to do."""

_PROBE_SECRET: Final = bytes([1]) * 32
"""Any X25519 secret shows whether a public key is of small order: the shared secret is then all zeros (RFC 7748)."""

_WireEntry = tuple[
    Bytes16, Bytes32, Bytes32, U64, U64, U64 | None, Annotated[bytes, Meta(max_length=DEVICE_LABEL_BYTES_MAX)]
]
"""``[device_id, device_key, box_key, capabilities, issued_at_ms, expires_at_ms | nil, sealed_label]``."""


class _Genesis(Struct, frozen=True, array_like=True, tag=0):
    user_key: Bytes32
    next_root_hash: Bytes32
    device: _WireEntry
    root_sig: Bytes64


class _Enrol(Struct, frozen=True, array_like=True, tag=1):
    device: _WireEntry


_DECODER: Final[msgspec.msgpack.Decoder[_Genesis | _Enrol]] = msgspec.msgpack.Decoder(_Genesis | _Enrol)


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


def _to_wire(entry: DeviceEntry) -> _WireEntry:
    return (
        entry.device_id,
        entry.device_key,
        entry.box_key,
        int(entry.capabilities),
        entry.issued_at_ms,
        entry.expires_at_ms,
        entry.sealed_label,
    )


def _from_wire(wire: _WireEntry) -> DeviceEntry:
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
    """What genesis commits to: the hash of the root public key that may sign the next ``rotate``."""
    return primitives.blake3_derive(NEXT_ROOT_CONTEXT, next_root_key)


def _root_signing_input(primitives: Primitives, user_key: bytes, next_hash: bytes, device: DeviceEntry) -> bytes:
    # The chain that the payload builds on: for genesis that of the empty $devices.
    built_on = start_of_devices(primitives, user_key).chain
    unsigned = encode([0, user_key, next_hash, _to_wire(device)])
    return ROOT_PREFIX + user_key + built_on + primitives.blake3(unsigned)


def encode_genesis(primitives: Primitives, *, root_secret: bytes, next_root_key: bytes, device: DeviceEntry) -> bytes:
    """The payload of a genesis event, signed by the root key, whose public key is the user id."""
    user_key = primitives.ed25519_public(root_secret)
    next_hash = next_root_hash(primitives, next_root_key)
    root_sig = primitives.ed25519_sign(root_secret, _root_signing_input(primitives, user_key, next_hash, device))
    return encode(_Genesis(user_key, next_hash, _to_wire(device), root_sig))


def encode_enrol(device: DeviceEntry) -> bytes:
    """The payload of an enrolment."""
    return encode(_Enrol(_to_wire(device)))


def decode_account(payload: bytes) -> GenesisPayload | EnrolPayload:
    """Decode the payload of an account event strictly.

    Raises:
        ProtocolError: ``unsupported`` for operations and capabilities of later versions; ``malformed``, ``too_large``.
    """
    if len(payload) <= ACCOUNT_PAYLOAD_BYTES_MAX and message_type(payload) not in (None, 0, 1):
        raise ProtocolError("unsupported", "this version does not have that account operation")
    wire = decode_strict(_DECODER, payload, "an account payload", bytes_max=ACCOUNT_PAYLOAD_BYTES_MAX)
    if isinstance(wire, _Enrol):
        return EnrolPayload(_from_wire(wire.device))
    return GenesisPayload(wire.user_key, wire.next_root_hash, _from_wire(wire.device), wire.root_sig)


@dataclass(frozen=True, slots=True)
class AccountEvent:
    """An event of ``$devices`` as signed, with what the server adds to it."""

    device_id: bytes
    header: bytes
    sig: bytes
    payload: bytes
    received_at_ms: int


@dataclass(frozen=True, slots=True)
class EnrolledDevice:
    """A device and the seq in ``$devices`` from which it is live."""

    entry: DeviceEntry
    seq: int


class AccountState(Struct, frozen=True, array_like=True):
    """An ``AccountLog`` as simple values, for a device's own store.

    Attributes:
        chains: the chain at every seq, from 0 on.
        devices: (seq, entry) of every device, in order of enrolment.
        devices_seen: the seq in ``devices_seen`` of each author's last event.
    """

    chains: Annotated[list[Bytes32], Meta(min_length=1)]
    devices: list[tuple[U64, _WireEntry]]
    devices_seen: dict[Bytes16, U64]

    def encode(self) -> bytes:
        """As bytes, for a store."""
        return encode(self)


_STATE: Final = msgspec.msgpack.Decoder(AccountState)


def decode_account_state(data: bytes) -> AccountState:
    """What ``AccountState.encode`` gave. Raises ``ProtocolError`` ``malformed``, ``too_large``."""
    return decode_strict(_STATE, data, "an account log's state", bytes_max=STATE_BYTES_MAX)


class AccountLog:
    """The devices of one user as ``$devices`` tells them, event by event.

    Args:
        primitives: the cryptography.
        user_key: the user id, 32 bytes.
        state: where to go on from, as ``state`` gave it; the caller vouches for it.
    """

    def __init__(self, primitives: Primitives, user_key: bytes, state: AccountState | None = None) -> None:
        self._primitives = primitives
        self._user_key = user_key
        self._chains: list[bytes] = [start_of_devices(primitives, user_key).chain]
        self._devices: dict[bytes, EnrolledDevice] = {}
        self._keys_used: set[bytes] = {user_key}
        self._devices_seen: dict[bytes, int] = {}
        if state is not None:
            self._chains = list(state.chains)
            self._devices_seen = dict(state.devices_seen)
            for seq, wire in state.devices:
                self._enrol(EnrolledDevice(_from_wire(wire), seq))

    @property
    def user_key(self) -> bytes:
        """The user id."""
        return self._user_key

    @property
    def position(self) -> Position:
        """How far this log has followed ``$devices``."""
        return Position(len(self._chains) - 1, self._chains[-1])

    @property
    def devices(self) -> Mapping[bytes, EnrolledDevice]:
        """Every device ever enrolled, by id, in order of enrolment."""
        return self._devices

    @property
    def state(self) -> AccountState:
        """This log as simple values."""
        devices = [(each.seq, _to_wire(each.entry)) for each in self._devices.values()]
        return AccountState(self._chains.copy(), devices, self._devices_seen.copy())

    def copy(self) -> AccountLog:
        """Another log at the same position."""
        other = AccountLog(self._primitives, self._user_key)
        other.adopt(self)
        return other

    def adopt(self, other: AccountLog) -> None:
        """Become what ``other`` is, a log of the same user that has followed further."""
        assert other._user_key == self._user_key
        self._chains = other._chains.copy()
        self._devices = other._devices.copy()
        self._keys_used = other._keys_used.copy()
        self._devices_seen = other._devices_seen.copy()

    def chain_at(self, seq: int) -> bytes | None:
        """The chain at ``seq``, ``None`` beyond ``position``."""
        return self._chains[seq] if 0 <= seq < len(self._chains) else None

    def author(
        self, device_id: bytes, *, capability: Capability, devices_seen: tuple[int, bytes], received_at_ms: int
    ) -> DeviceEntry:
        """The author of an event, if it was allowed to write it (protocol.md section 3, ``devices_seen``).

        Args:
            device_id: the author's.
            capability: what the event takes.
            devices_seen: (seq, chain) from the event's header.
            received_at_ms: unix milliseconds, when the server took the event.

        Raises:
            ProtocolError: ``unknown_position``: this log does not hold ``devices_seen``; ``forbidden``: the author is
                not live there, lacks the capability, or had expired.
        """
        seq, chain = devices_seen
        if self.chain_at(seq) != chain:
            raise ProtocolError("unknown_position", "devices_seen is not a position of this account log")
        device = self._devices.get(device_id)
        if device is None or device.seq > seq:
            raise ProtocolError("forbidden", "the author is no device of this account at devices_seen")
        if capability not in device.entry.capabilities:
            raise ProtocolError("forbidden", "the author lacks the capability")
        if _expired(device.entry, received_at_ms):
            raise ProtocolError("forbidden", "the author had expired")
        return device.entry

    def check(self, event: AccountEvent) -> DeviceEntry:
        """Whether ``event`` may come next; nothing changes.

        Author number and ``prev`` are not checked here: they are the same for every stream (``reader``, ingest).

        Returns:
            the device that it makes live.

        Raises:
            ProtocolError: ``malformed``, ``too_large``, ``unsupported``, ``bad_signature``, ``unknown_position``,
                ``forbidden`` (the author may not), ``unprocessable`` (an id or key was used before, the new device
                has already expired, or the author's ``devices_seen`` went back).
        """
        return self._check(event)[1]

    def _check(self, event: AccountEvent) -> tuple[Header, DeviceEntry]:
        header = decode_header(event.header)
        check_placement(header)
        if header.kind != Kind.ACCOUNT:
            raise ProtocolError("malformed", "only account events go into the account log")
        if header.payload_len != len(event.payload) or header.payload_hash != self._primitives.blake3(event.payload):
            raise ProtocolError("malformed", "the payload is not the one that the header names")
        change = decode_account(event.payload)
        if isinstance(change, GenesisPayload):
            author = self._check_genesis(event, header, change)
        else:
            author = self.author(
                event.device_id,
                capability=Capability.MANAGE,
                devices_seen=header.devices_seen,
                received_at_ms=event.received_at_ms,
            )
        if header.devices_seen[0] < self._devices_seen.get(event.device_id, 0):
            raise ProtocolError("unprocessable", "devices_seen never goes back for an author")
        if self.chain_at(header.seen[0]) != header.seen[1]:
            raise ProtocolError("unknown_position", "seen is not a position of this account log")
        verify_event(
            self._primitives,
            device_key=author.device_key,
            user_key=self._user_key,
            device_id=event.device_id,
            header=event.header,
            sig=event.sig,
        )
        self._check_entry(change.device, event.received_at_ms)
        return header, change.device

    def _check_genesis(self, event: AccountEvent, header: Header, genesis: GenesisPayload) -> DeviceEntry:
        if self.position.seq != 0:
            raise ProtocolError("unprocessable", "this account has its genesis already")
        if genesis.user_key != self._user_key:
            raise ProtocolError("malformed", "a genesis names another user")
        parse_user_id(genesis.user_key)
        if event.device_id != genesis.device.device_id:
            raise ProtocolError("malformed", "a genesis is signed by the device that it lists")
        start = (0, self._chains[0])
        if (header.n, header.prev, header.seen, header.devices_seen) != (1, NO_PREV, start, start):
            raise ProtocolError("malformed", "a genesis builds on nothing")
        if genesis.device.capabilities != FULL_CAPABILITIES:
            raise ProtocolError("malformed", "the first device publishes, subscribes and manages")
        signed = _root_signing_input(self._primitives, self._user_key, genesis.next_root_hash, genesis.device)
        self._primitives.ed25519_verify(self._user_key, signed, genesis.root_sig)
        return genesis.device

    def _check_entry(self, entry: DeviceEntry, received_at_ms: int) -> None:
        if not entry.capabilities:
            raise ProtocolError("malformed", "a device entry has no capability")
        if entry.expires_at_ms is not None and entry.expires_at_ms <= entry.issued_at_ms:
            raise ProtocolError("malformed", "a device entry expires before it is issued")
        if entry.device_id in self._devices or not self._keys_used.isdisjoint((entry.device_key, entry.box_key)):
            raise ProtocolError("unprocessable", "ids and keys of devices are never reused")
        parse_device_id(entry.device_id)
        parse_public_key(entry.device_key)
        self._primitives.x25519(_PROBE_SECRET, entry.box_key)
        if _expired(entry, received_at_ms):
            raise ProtocolError("unprocessable", "the device entry has already expired")
        if Capability.MANAGE in entry.capabilities and self._managers(received_at_ms) >= MANAGERS_MAX:
            raise ProtocolError("unsupported", "this version has two managing devices at most")

    def _managers(self, now_ms: int) -> int:
        return sum(
            Capability.MANAGE in each.entry.capabilities and not _expired(each.entry, now_ms)
            for each in self._devices.values()
        )

    def apply(self, event: AccountEvent) -> DeviceEntry:
        """``check`` the next accepted event and follow it. Raises as ``check``; then nothing has changed."""
        header, entry = self._check(event)
        self.skip(event)
        self._devices_seen[event.device_id] = header.devices_seen[0]
        self._enrol(EnrolledDevice(entry, self.position.seq))
        return entry

    def skip(self, event: AccountEvent) -> None:
        """Follow the next accepted event without effect: it keeps its place, but ``check`` refuses it."""
        hash_ = event_hash(self._primitives, event.header, event.sig)
        seq = len(self._chains)
        self._chains.append(chain_next(self._primitives, self._chains[-1], seq, event.received_at_ms, hash_))

    def _enrol(self, device: EnrolledDevice) -> None:
        self._devices[device.entry.device_id] = device
        self._keys_used |= {device.entry.device_key, device.entry.box_key}


def replay(primitives: Primitives, user_key: bytes, events: Sequence[AccountEvent]) -> AccountLog:
    """The account log after accepted events, all of which must be valid. Raises as ``AccountLog.check``."""
    log = AccountLog(primitives, user_key)
    for event in events:
        log.apply(event)
    return log


def _expired(entry: DeviceEntry, now_ms: int) -> bool:
    return entry.expires_at_ms is not None and entry.expires_at_ms <= now_ms
