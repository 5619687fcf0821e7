"""The account log ``$devices``: which devices a user has, and who may change that (protocol.md section 1).

``AccountLog`` is fed the events of ``$devices`` in order. The server asks it before it stores an event, a device asks
it for every event it reads; both come to the same answer from the same bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from keepstep.errors import ProtocolError
from keepstep.model import DEVICES_STREAM, Capability, Kind, Position, has_expired
from keepstep.protocol.account_payloads import (
    FULL_CAPABILITIES,
    AccountPayload,
    CheckpointPayload,
    EnrolPayload,
    GenesisPayload,
    RevokePayload,
    RotatePayload,
    ServerKeyPayload,
    decode_account,
    next_root_hash,
    verify_genesis,
    verify_rotate,
)
from keepstep.protocol.account_state import (
    AccountState,
    Ended,
    EndReason,
    EnrolledDevice,
    accepted_devices_n,
    device_from_wire,
    device_to_wire,
    undone_with,
)
from keepstep.protocol.chain import chain_next, event_hash, start_of_devices
from keepstep.protocol.event import NO_PREV, Header, check_placement, decode_header, verify_event
from keepstep.protocol.succession import Announcement, verify_announcement
from keepstep.validation import parse_device_id, parse_public_key, parse_user_id

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from keepstep.model import DeviceEntry
    from keepstep.protocol.primitives import Primitives

MANAGE_COOL_DOWN_MS: Final = 24 * 60 * 60 * 1000
"""How long after its enrolment a device manages, by ``received_at``; the same for every reader."""
MANAGERS_WITHOUT_COOL_DOWN: Final = 2
"""``manage`` devices that are live at once; where there are as many, the next one needs the cool-down."""

_PROBE_SECRET: Final = bytes([1]) * 32
"""Any X25519 secret shows whether a public key is of small order: the shared secret is then all zeros (RFC 7748)."""


@dataclass(frozen=True, slots=True)
class AccountEvent:
    """An event of ``$devices`` as signed, with what the server adds to it."""

    device_id: bytes
    header: bytes
    sig: bytes
    payload: bytes
    received_at_ms: int


@dataclass(frozen=True, slots=True)
class AccountEffect:
    """What an event of ``$devices`` changes: the devices that become others, as they are then.

    Attributes:
        enrolled: the device that becomes live.
        ended: devices that are no longer live, and those whose accepted author numbers are known now.
        staying: devices that a rotation lists, for which the root key answers from now on.
        next_root_hash: what genesis or a rotation commits to.
        root_key: the root key that signed it.
        checkpoint: the positions that its author has verified.
        announcement: of the server's next identity key.
    """

    enrolled: EnrolledDevice | None = None
    ended: tuple[EnrolledDevice, ...] = ()
    staying: tuple[EnrolledDevice, ...] = ()
    next_root_hash: bytes | None = None
    root_key: bytes | None = None
    checkpoint: Mapping[str, tuple[int, bytes]] | None = None
    announcement: Announcement | None = None

    @property
    def changed(self) -> tuple[EnrolledDevice, ...]:
        """Every device that is another than before."""
        return (*self.ended, *self.staying, *(() if self.enrolled is None else (self.enrolled,)))


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
        self._received_at_ms = 0
        self._next_root_hash: bytes | None = None
        self._root_keys: list[bytes] = []
        self._checkpoint: tuple[int, int] | None = None
        self._announcements: list[Announcement] = []
        if state is not None:
            self._chains = list(state.chains)
            self._devices_seen = dict(state.devices_seen)
            self._received_at_ms = state.received_at_ms
            self._next_root_hash = state.next_root_hash
            self._root_keys = list(state.root_keys)
            self._keys_used |= set(state.root_keys)
            self._checkpoint = state.checkpoint
            self._announcements = list(state.announcements)
            for wire in state.devices:
                self._put(device_from_wire(wire))

    # -- what it knows ----------------------------------------------------------------------------------------------

    @property
    def user_key(self) -> bytes:
        """The user id."""
        return self._user_key

    @property
    def position(self) -> Position:
        """How far this log has followed ``$devices``."""
        return Position(len(self._chains) - 1, self._chains[-1])

    @property
    def received_at_ms(self) -> int:
        """Unix milliseconds of the last event; 0 before the first."""
        return self._received_at_ms

    @property
    def devices(self) -> Mapping[bytes, EnrolledDevice]:
        """Every device ever enrolled, by id, in order of enrolment."""
        return self._devices

    @property
    def next_root_hash(self) -> bytes | None:
        """Hash of the root key that may sign the next ``rotate``; ``None`` before genesis."""
        return self._next_root_hash

    @property
    def root_key(self) -> bytes:
        """The root key that signed last: the user id, or that of the latest ``rotate``."""
        return self._root_keys[-1] if self._root_keys else self._user_key

    @property
    def checkpoint(self) -> tuple[int, int] | None:
        """(seq, received_at_ms) of the latest checkpoint, ``None`` where there was none."""
        return self._checkpoint

    @property
    def announcements(self) -> Sequence[Announcement]:
        """Of successors of the server's identity key, verified, in order."""
        return self._announcements

    @property
    def state(self) -> AccountState:
        """This log as simple values."""
        return AccountState(
            chains=self._chains.copy(),
            devices=[device_to_wire(each) for each in self._devices.values()],
            devices_seen=self._devices_seen.copy(),
            received_at_ms=self._received_at_ms,
            next_root_hash=self._next_root_hash,
            root_keys=self._root_keys.copy(),
            checkpoint=self._checkpoint,
            announcements=self._announcements.copy(),
        )

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
        self._received_at_ms = other._received_at_ms
        self._next_root_hash = other._next_root_hash
        self._root_keys = other._root_keys.copy()
        self._checkpoint = other._checkpoint
        self._announcements = other._announcements.copy()

    def chain_at(self, seq: int) -> bytes | None:
        """The chain at ``seq``, ``None`` beyond ``position``."""
        return self._chains[seq] if 0 <= seq < len(self._chains) else None

    def author(
        self,
        device_id: bytes,
        *,
        capability: Capability,
        devices_seen: tuple[int, bytes],
        received_at_ms: int,
        stream: str,
        n: int,
    ) -> DeviceEntry:
        """The author of an event, if it was allowed to write it (protocol.md section 3, ``devices_seen``).

        Args:
            device_id: the author's.
            capability: what the event takes.
            devices_seen: (seq, chain) from the event's header.
            received_at_ms: unix milliseconds, when the server took the event.
            stream: the event's.
            n: the author's number in that stream.

        Raises:
            ProtocolError: ``unknown_position``: this log does not hold ``devices_seen``; ``forbidden``: the author is
                not live there, lacks the capability, or had expired; ``revoked``: it has ended since, and the event is
                not among those that stay.
        """
        seq, chain = devices_seen
        if self.is_after_revocation(device_id, stream, n):
            raise ProtocolError("revoked", "the author has ended, and this event is not among those that stay")
        if self.chain_at(seq) != chain:
            raise ProtocolError("unknown_position", "devices_seen is not a position of this account log")
        device = self._devices.get(device_id)
        if device is None or device.seq > seq:
            raise ProtocolError("forbidden", "the author is no device of this account at devices_seen")
        if device.ended is not None and device.ended.seq <= seq:
            raise ProtocolError("revoked", "the author knew that it had ended")
        if not device.may(capability, received_at_ms):
            raise ProtocolError("forbidden", "the author lacks the capability")
        if device.is_expired(received_at_ms):
            raise ProtocolError("forbidden", "the author had expired")
        return device.entry

    def is_after_revocation(self, device_id: bytes, stream: str, n: int) -> bool:
        """Whether an event is not among those that stay of a device that has ended: nothing that it says counts."""
        device = self._devices.get(device_id)
        return device is not None and device.ended is not None and not device.ended.accepts(stream, n)

    # -- the next event ---------------------------------------------------------------------------------------------

    def check(self, event: AccountEvent) -> AccountEffect:
        """Whether ``event`` may come next; nothing changes.

        Author number and ``prev`` are not checked here, but of genesis and rotate: they are the same for every stream
        (``reader``, ingest).

        Returns:
            what it changes.

        Raises:
            ProtocolError: ``malformed``, ``too_large``, ``unsupported``, ``bad_signature``, ``unknown_position``,
                ``forbidden`` (the author may not), ``revoked`` (the author has ended), ``unprocessable`` (an id or key
                was used before, the new device has already expired, the device to end is none or has ended, or the
                author's ``devices_seen`` went back).
        """
        return self._check(event)[1]

    def _check(self, event: AccountEvent) -> tuple[Header, AccountEffect]:
        header = decode_header(event.header)
        check_placement(header)
        if header.kind != Kind.ACCOUNT:
            raise ProtocolError("malformed", "only account events go into the account log")
        if header.payload_len != len(event.payload) or header.payload_hash != self._primitives.blake3(event.payload):
            raise ProtocolError("malformed", "the payload is not the one that the header names")
        change = decode_account(event.payload)
        author = self._check_author(event, header, change)
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
        return header, self._effect(event, header, change)

    def _check_author(self, event: AccountEvent, header: Header, change: AccountPayload) -> DeviceEntry:
        """Who signs, if it may: a live device, or the one that genesis or rotate lists, by the root key's word."""
        match change:
            case GenesisPayload():
                return self._check_genesis(event, header, change)
            case RotatePayload():
                return self._check_rotate(event, header, change)
            case RevokePayload() if change.device_id == event.device_id:
                capability = Capability(0)  # any device may sign itself out
            case _:
                capability = Capability.MANAGE
        device = self._devices.get(event.device_id)
        if device is not None and device.ended is not None:
            # protocol.md section 1: "signed by a `manage` device that is live at that point of `$devices`"
            raise ProtocolError("revoked", "the author is no longer a device of this account")
        return self.author(
            event.device_id,
            capability=capability,
            devices_seen=header.devices_seen,
            received_at_ms=event.received_at_ms,
            stream=DEVICES_STREAM,
            n=header.n,
        )

    def _check_genesis(self, event: AccountEvent, header: Header, genesis: GenesisPayload) -> DeviceEntry:
        if self.position.seq != 0:
            raise ProtocolError("unprocessable", "this account has its genesis already")
        if genesis.user_key != self._user_key:
            raise ProtocolError("malformed", "a genesis names another user")
        parse_user_id(genesis.user_key)
        self._check_lists_its_author(event, header, genesis.device)
        start = (0, self._chains[0])
        if (header.seen, header.devices_seen) != (start, start):
            raise ProtocolError("malformed", "a genesis builds on nothing")
        verify_genesis(self._primitives, genesis)
        return genesis.device

    def _check_rotate(self, event: AccountEvent, header: Header, rotate: RotatePayload) -> DeviceEntry:
        if next_root_hash(self._primitives, rotate.root_key) != self._next_root_hash:
            raise ProtocolError("forbidden", "that is not the root key that was committed to")
        parse_public_key(rotate.root_key)
        self._check_lists_its_author(event, header, rotate.device)
        if rotate.root_key in (rotate.device.device_key, rotate.device.box_key):
            raise ProtocolError("unprocessable", "the root key is no key of a device")
        if header.seen != header.devices_seen:
            raise ProtocolError("malformed", "a rotation names one position of $devices twice")
        verify_rotate(self._primitives, rotate, user_key=self._user_key, built_on=header.seen[1])
        return rotate.device

    @staticmethod
    def _check_lists_its_author(event: AccountEvent, header: Header, device: DeviceEntry) -> None:
        if event.device_id != device.device_id:
            raise ProtocolError("malformed", "genesis and rotate are signed by the device that they list")
        if (header.n, header.prev) != (1, NO_PREV):
            raise ProtocolError("malformed", "genesis and rotate are the first event of their author")
        if device.capabilities != FULL_CAPABILITIES:
            raise ProtocolError("malformed", "the device of genesis and rotate publishes, subscribes and manages")

    # -- what it changes --------------------------------------------------------------------------------------------

    def _effect(self, event: AccountEvent, header: Header, change: AccountPayload) -> AccountEffect:
        match change:
            case GenesisPayload():
                return AccountEffect(
                    enrolled=self._entered(change.device, event),
                    next_root_hash=change.next_root_hash,
                    root_key=change.user_key,
                )
            case EnrolPayload():
                return AccountEffect(enrolled=self._enrolment(event, header, change.device))
            case RevokePayload():
                return self._revocation(event, change)
            case RotatePayload():
                return self._rotation(event, change)
            case CheckpointPayload():
                position = change.positions.get(DEVICES_STREAM)
                if position is not None and self.chain_at(position[0]) != position[1]:
                    raise ProtocolError("unknown_position", "a checkpoint names another history of $devices")
                return AccountEffect(checkpoint=change.positions)
            case ServerKeyPayload():
                verify_announcement(self._primitives, change.announcement)
                return AccountEffect(announcement=change.announcement)

    def _entered(self, entry: DeviceEntry, event: AccountEvent) -> EnrolledDevice:
        """A device for which the root key answers."""
        self._check_entry(entry, event.received_at_ms)
        return EnrolledDevice(entry, self.position.seq + 1)

    def _enrolment(self, event: AccountEvent, header: Header, entry: DeviceEntry) -> EnrolledDevice:
        self._check_entry(entry, event.received_at_ms)
        managers = sum(each.manages(event.received_at_ms) for each in self._devices.values())
        cools_down = Capability.MANAGE in entry.capabilities and managers >= MANAGERS_WITHOUT_COOL_DOWN
        return EnrolledDevice(
            entry,
            self.position.seq + 1,
            enrolled_by=event.device_id,
            enrolled_n=header.n,
            manage_from_ms=event.received_at_ms + MANAGE_COOL_DOWN_MS if cools_down else 0,
        )

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
        if has_expired(entry.expires_at_ms, received_at_ms):
            raise ProtocolError("unprocessable", "the device entry has already expired")

    def _revocation(self, event: AccountEvent, revoke: RevokePayload) -> AccountEffect:
        target = self._devices.get(revoke.device_id)
        if target is None:
            raise ProtocolError("unprocessable", "there is no such device to revoke")
        if target.ended is not None and target.ended.accepted is not None:
            raise ProtocolError("unprocessable", "the device has been revoked already")
        undone = undone_with(self._devices, revoke.device_id, accepted_n=accepted_devices_n(revoke.accepted))
        if event.device_id in {each.entry.device_id for each in undone}:
            raise ProtocolError("forbidden", "a revocation does not undo its own author")
        ended = (
            self._end(target, event, EndReason.REVOKED, revoke.accepted),
            *(self._end(each, event, EndReason.REVOKED_WITH, {}) for each in undone),
        )
        if revoke.device_id == event.device_id and target.manages(event.received_at_ms):
            gone = {each.entry.device_id for each in ended}
            if not any(
                each.manages(event.received_at_ms)
                for each in self._devices.values()
                if each.entry.device_id not in gone
            ):
                raise ProtocolError("forbidden", "the last device that manages cannot sign itself out")
        return AccountEffect(ended=ended)

    def _end(
        self, device: EnrolledDevice, event: AccountEvent, reason: EndReason, accepted: Mapping[str, int] | None
    ) -> EnrolledDevice:
        """A device as it ends now, or as it has ended before, with what is accepted of it."""
        seq, received_at_ms = self.position.seq + 1, event.received_at_ms
        if device.ended is not None:
            seq, received_at_ms = device.ended.seq, device.ended.received_at_ms
        return replace(device, ended=Ended(seq, received_at_ms, reason, event.device_id, accepted))

    def _rotation(self, event: AccountEvent, rotate: RotatePayload) -> AccountEffect:
        spent = {next_root_hash(self._primitives, key) for key in (*self._root_keys, rotate.root_key)}
        if rotate.next_root_hash in spent:
            raise ProtocolError("unprocessable", "a root key signs once")
        listed = set(rotate.staying)
        if len(listed) != len(rotate.staying):
            raise ProtocolError("malformed", "a rotation lists a device twice")
        if not listed <= self._devices.keys():
            raise ProtocolError("unprocessable", "a rotation lists a device that never was")
        staying = tuple(
            replace(self._devices[each], enrolled_by=None, enrolled_n=0, ended=None) for each in rotate.staying
        )
        ended = tuple(
            self._end(device, event, EndReason.ROTATED, None)
            for device_id, device in self._devices.items()
            if device_id not in listed and device.ended is None
        )
        return AccountEffect(
            enrolled=self._entered(rotate.device, event),
            ended=ended,
            staying=staying,
            next_root_hash=rotate.next_root_hash,
            root_key=rotate.root_key,
        )

    # -- following --------------------------------------------------------------------------------------------------

    def apply(self, event: AccountEvent) -> AccountEffect:
        """``check`` the next accepted event and follow it. Raises as ``check``; then nothing has changed."""
        header, effect = self._check(event)
        self.skip(event)
        self._devices_seen[event.device_id] = header.devices_seen[0]
        for device in effect.changed:
            self._put(device)
        if effect.root_key is not None:
            self._root_keys.append(effect.root_key)
            self._keys_used.add(effect.root_key)
            self._next_root_hash = effect.next_root_hash
        if effect.checkpoint is not None:
            self._checkpoint = self.position.seq, event.received_at_ms
        if effect.announcement is not None:
            self._announcements.append(effect.announcement)
        return effect

    def skip(self, event: AccountEvent) -> None:
        """Follow the next accepted event without effect: it keeps its place, but ``check`` refuses it."""
        hash_ = event_hash(self._primitives, event.header, event.sig)
        seq = len(self._chains)
        self._chains.append(chain_next(self._primitives, self._chains[-1], seq, event.received_at_ms, hash_))
        self._received_at_ms = event.received_at_ms

    def _put(self, device: EnrolledDevice) -> None:
        self._devices[device.entry.device_id] = device
        self._keys_used |= {device.entry.device_key, device.entry.box_key}

    # -- a revocation that is shown on its own ----------------------------------------------------------------------

    def verify_end(self, device_id: bytes, event: AccountEvent, seq: int) -> None:
        """Check that an event of ``$devices`` ends a device, before everything up to it was followed.

        The server shows it to a device that it lets in no more (``messages.Revoked``): what wipes itself on it must
        not believe a server alone.

        Args:
            device_id: whose end it should be.
            event: as shown.
            seq: its place, as shown.

        Raises:
            ProtocolError: it does not end that device, or this log cannot tell without following further.
        """
        device = self._devices.get(device_id)
        if seq <= self.position.seq:
            if device is None or device.ended is None:
                raise ProtocolError("forbidden", "the device is live in all that was followed")
            return
        if seq == self.position.seq + 1:
            if device_id not in {each.entry.device_id for each in self.copy().apply(event).ended}:
                raise ProtocolError("forbidden", "the event does not end the device")
            return
        self._verify_distant_end(device_id, event)

    def _verify_distant_end(self, device_id: bytes, event: AccountEvent) -> None:
        """``verify_end`` across a gap: signed by a device that manages as far as is known, or by the next root key."""
        header = decode_header(event.header)
        if header.payload_len != len(event.payload) or header.payload_hash != self._primitives.blake3(event.payload):
            raise ProtocolError("malformed", "the payload is not the one that the header names")
        change = decode_account(event.payload)
        if isinstance(change, RotatePayload):
            author = self._check_rotate(event, header, change)
            ends = device_id not in change.staying
        else:
            device = self._devices.get(event.device_id)
            ends = isinstance(change, RevokePayload) and change.device_id == device_id
            if device is None or not (device.manages(event.received_at_ms) or event.device_id == device_id):
                raise ProtocolError("unknown_position", "the author of the event is not known to manage")
            author = device.entry
        if not ends:
            raise ProtocolError("forbidden", "the event does not end the device")
        verify_event(
            self._primitives,
            device_key=author.device_key,
            user_key=self._user_key,
            device_id=event.device_id,
            header=event.header,
            sig=event.sig,
        )
