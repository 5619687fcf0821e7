"""Users, devices and signed events for tests, deterministic from a name.

A ``DeviceFixture`` keeps its author numbers per stream as a device's outbox does, so a test says what is published
and not how it is encoded. The cryptography is the client library's, not the extension's that it is fed to. What a
server makes of such events is in ``stream_log``.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from keepstep import _keepstep
from keepstep.client import crypto
from keepstep.interfaces import Genesis
from keepstep.model import DEVICES_STREAM, PREV_BYTES, AccountChange, Capability, DeviceEntry, Kind, Principal
from keepstep.protocol.account_payloads import (
    encode_enrol,
    encode_genesis,
    encode_revoke,
    encode_rotate,
    next_root_hash,
)
from keepstep.protocol.chain import chain_0, event_hash
from keepstep.protocol.event import NO_PREV, Header, sign_event
from keepstep.protocol.messages import INTEGER_MAX

NOW_MS: Final = 1_760_000_000_000
"""A moment in October 2025; events of these fixtures are made then unless told otherwise."""
FULL: Final = Capability.PUBLISH | Capability.SUBSCRIBE | Capability.MANAGE
EVENTS_MAX: Final = 256
PAYLOAD_BYTES_MAX: Final = 256 * 1024


def seed(label: str) -> bytes:
    """32 bytes that stand for random ones, the same for the same label in every run."""
    return hashlib.sha256(label.encode()).digest()


def event_id(at_ms: int, label: str) -> bytes:
    """A UUID of version 7 (RFC 9562 section 5.7) made at ``at_ms``."""
    filler = seed(label)
    version_and_variant = bytes([0x70 | filler[0] & 0x0F, filler[1], 0x80 | filler[2] & 0x3F])
    return at_ms.to_bytes(6, "big") + version_and_variant + filler[3:10]


@dataclass(frozen=True)
class SignedEvent:
    """An event as its author sends it, with what a test wants to know of it."""

    header: bytes
    sig: bytes
    payload: bytes | None
    stream: str
    n: int
    trace: bytes | None = None

    @property
    def hash(self) -> bytes:
        """What identifies the signed bytes."""
        return event_hash(crypto, self.header, self.sig)

    @property
    def wire(self) -> list[bytes | None]:
        """``[header, sig, payload | nil, trace | nil]``."""
        return [self.header, self.sig, self.payload, self.trace]


@dataclass(eq=False)
class UserFixture:
    """A user: the root keys of the recovery file."""

    name: str
    root_secret: bytes = field(init=False)
    user_key: bytes = field(init=False)

    def __post_init__(self) -> None:
        self.root_secret = seed(f"{self.name} root")
        self.user_key = crypto.ed25519_public(self.root_secret)

    @property
    def next_root_secret(self) -> bytes:
        """Seed of the root key that genesis commits to."""
        return seed(f"{self.name} next root")

    @property
    def next_root_key(self) -> bytes:
        """Its public key."""
        return crypto.ed25519_public(self.next_root_secret)

    def chain_0(self, stream: str) -> bytes:
        """The chain of a stream before its first event."""
        return chain_0(crypto, self.user_key, stream)


@dataclass(eq=False)
class DeviceFixture:
    """A device of a user: keys, and last_n and last_hash per stream.

    Attributes:
        changes: fields of its entry that are other than those that follow from its name.
        authored: per stream (last_n, last_hash) of what the fixture has signed so far; tests may set it back.
        seen: per stream what the next event's header says was seen; nothing where a stream is missing.
    """

    user: UserFixture
    name: str
    capabilities: Capability = FULL
    expires_at_ms: int | None = None
    changes: dict[str, Any] = field(default_factory=dict)
    authored: dict[str, tuple[int, bytes]] = field(default_factory=dict)
    seen: dict[str, tuple[int, bytes]] = field(default_factory=dict)
    device_secret: bytes = field(init=False)
    box_secret: bytes = field(init=False)
    entry: DeviceEntry = field(init=False)

    def __post_init__(self) -> None:
        label = f"{self.user.name}/{self.name}"
        self.device_secret = seed(f"{label} device")
        self.box_secret = seed(f"{label} box")
        fields: dict[str, Any] = {
            "device_id": seed(f"{label} id")[:16],
            "device_key": crypto.ed25519_public(self.device_secret),
            "box_key": crypto.x25519_public(self.box_secret),
            "capabilities": self.capabilities,
            "issued_at_ms": NOW_MS,
            "expires_at_ms": self.expires_at_ms,
            "sealed_label": b"sealed " + self.name.encode(),
        }
        self.entry = DeviceEntry(**(fields | self.changes))

    @property
    def device_id(self) -> bytes:
        """16 bytes."""
        return self.entry.device_id

    @property
    def device_key(self) -> bytes:
        """32 bytes."""
        return self.entry.device_key

    def header(
        self, stream: str, payload: bytes, /, *, n: int, prev: bytes, at_ms: int = NOW_MS, **changes: Any
    ) -> Header:
        """A header with exactly that author number and ``prev``; ``changes`` replace any of its fields."""
        fields: dict[str, Any] = {
            "kind": Kind.APPLICATION,
            "id": event_id(at_ms, f"{self.name} {stream} {n} {payload!r}"),
            "stream": stream,
            "n": n,
            "prev": prev,
            "base": None,
            "seen": self.seen.get(stream, (0, self.user.chain_0(stream))),
            "devices_seen": self.seen.get(DEVICES_STREAM, (0, self.user.chain_0(DEVICES_STREAM))),
            "key": None,
            "hlc": at_ms << 16,
            "ttl_s": None,
            "payload_len": len(payload),
            "payload_hash": crypto.blake3(payload),
        }
        return Header(**(fields | changes))

    def sign(
        self,
        stream: str,
        payload: bytes | None = b"",
        /,
        *,
        n: int,
        prev: bytes,
        at_ms: int = NOW_MS,
        trace: bytes | None = None,
        **changes: Any,
    ) -> SignedEvent:
        """An event with that header; the fixture's own state stays as it is."""
        header = self.header(stream, payload or b"", n=n, prev=prev, at_ms=at_ms, **changes)
        encoded = header.encode()
        sig = sign_event(
            crypto, secret=self.device_secret, user_key=self.user.user_key, device_id=self.device_id, header=encoded
        )
        return SignedEvent(encoded, sig, payload, header.stream, header.n, trace)

    def event(
        self,
        stream: str,
        payload: bytes = b"",
        /,
        *,
        at_ms: int = NOW_MS,
        trace: bytes | None = None,
        **changes: Any,
    ) -> SignedEvent:
        """The device's next event in a stream; ``changes`` replace fields of its header."""
        last_n, last_hash = self.authored.get(stream, (0, NO_PREV))
        event = self.sign(
            stream, payload, n=last_n + 1, prev=last_hash[:PREV_BYTES], at_ms=at_ms, trace=trace, **changes
        )
        self.authored[stream] = (event.n, event.hash)
        return event

    def events(self, stream: str, count: int) -> list[SignedEvent]:
        """The device's next ``count`` events in a stream, each with a payload of its own."""
        return [self.event(stream, f"{self.name} {stream} {index}".encode()) for index in range(count)]

    def genesis(self) -> Genesis:
        """The checked genesis of the user with this first device; it takes n = 1 of ``$devices``."""
        payload = encode_genesis(
            crypto, root_secret=self.user.root_secret, next_root_key=self.user.next_root_key, device=self.entry
        )
        event = self.event(DEVICES_STREAM, payload, kind=Kind.ACCOUNT)
        return Genesis(
            user_key=self.user.user_key,
            next_root_hash=next_root_hash(crypto, self.user.next_root_key),
            device=self.entry,
            header=event.header,
            sig=event.sig,
            payload=payload,
        )

    def enrol(self, device: DeviceFixture, *, checked_seq: int | None = None) -> tuple[SignedEvent, AccountChange]:
        """This device's event that enrols another one, and what it does to the device table."""
        event = self.event(DEVICES_STREAM, encode_enrol(device.entry), kind=Kind.ACCOUNT)
        return event, AccountChange(device.entry, checked_seq)

    def revoke(
        self, device: DeviceFixture, accepted: dict[str, int] | None = None, *, checked_seq: int | None = None
    ) -> tuple[SignedEvent, AccountChange]:
        """This device's event that ends another one, or itself, and what it does to the device table."""
        payload = encode_revoke(device.device_id, {DEVICES_STREAM: INTEGER_MAX} if accepted is None else accepted)
        event = self.event(DEVICES_STREAM, payload, kind=Kind.ACCOUNT)
        return event, AccountChange(checked_seq=checked_seq, revoked=(device.device_id,))

    def rotate(
        self, *staying: DeviceFixture, root_secret: bytes | None = None, next_root: str = "the root after the next"
    ) -> SignedEvent:
        """The event by which this device enters the account, upon what it has seen of ``$devices``."""
        payload = encode_rotate(
            crypto,
            user_key=self.user.user_key,
            root_secret=root_secret or self.user.next_root_secret,
            next_root_key=crypto.ed25519_public(seed(next_root)),
            built_on=self.seen[DEVICES_STREAM][1],
            staying=[each.device_id for each in staying],
            device=self.entry,
        )
        return self.event(DEVICES_STREAM, payload, kind=Kind.ACCOUNT, seen=self.seen[DEVICES_STREAM])


def wire_events(*events: SignedEvent) -> bytes:
    """The events of a publish message, as MessagePack."""
    return msgspec.msgpack.encode([event.wire for event in events])


def parse(*events: SignedEvent) -> _keepstep.Events:
    """As the server parses them, with the limits of the protocol."""
    return _keepstep.Events.parse(wire_events(*events), events_max=EVENTS_MAX, payload_bytes_max=PAYLOAD_BYTES_MAX)


def submission(principal: Principal, *events: SignedEvent, suspect: bool = False) -> _keepstep.Submission:
    """Events as ``publish`` hands them to the log for a device that proved who it is."""
    return _keepstep.Submission(
        user_pk=principal.user_pk,
        user_key=principal.user_key,
        device_pk=principal.device_pk,
        device_id=principal.device_id,
        device_key=_keepstep.DeviceKey(principal.device_key),
        capabilities=int(principal.capabilities),
        events=parse(*events),
        suspect=suspect,
    )
