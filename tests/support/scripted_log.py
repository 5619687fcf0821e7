"""A user with devices and streams whose every byte a test decides: events are built and chained as a server would."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import pytest

from keepstep.client import crypto
from keepstep.errors import VerificationError
from keepstep.model import DEVICES_STREAM, KEYS_STREAM, PREV_BYTES, Capability, DeviceEntry, Kind
from keepstep.protocol.account import FULL_CAPABILITIES, AccountEvent, AccountLog, encode_enrol, encode_genesis
from keepstep.protocol.chain import Head, chain_0, chain_next, event_hash, sign_head
from keepstep.protocol.event import NO_PREV, Header, sign_event
from keepstep.protocol.reader import StreamVerifier, state_at_start

if TYPE_CHECKING:
    from collections.abc import Callable

    from keepstep.protocol.messages import EventRow, SignedHead
    from keepstep.protocol.reader import StreamState

NOW_MS: Final = 1_750_000_000_000
EVENT_ID: Final = bytes.fromhex("0197711f3a0070008000000000000000")
"""A UUID of version 7."""


def seed(name: str) -> bytes:
    """32 bytes that stand for random ones, the same for the same name in every run."""
    return crypto.blake3(name.encode())


@dataclass(frozen=True)
class ScriptedDevice:
    """A device's secrets and what ``$devices`` lists of it."""

    secret: bytes
    box_secret: bytes
    entry: DeviceEntry

    @property
    def device_id(self) -> bytes:
        """16 bytes."""
        return self.entry.device_id


def make_device(
    name: str, capabilities: Capability = FULL_CAPABILITIES, *, expires_at_ms: int | None = None, **changes: Any
) -> ScriptedDevice:
    """A device whose id and keys follow from its name; ``changes`` replace fields of its entry."""
    secret, device_key = crypto.ed25519_generate(seed(f"{name} device key"))
    box_secret, box_key = crypto.x25519_generate(seed(f"{name} box key"))
    fields: dict[str, Any] = {
        "device_id": seed(f"{name} device id")[:16],
        "device_key": device_key,
        "box_key": box_key,
        "capabilities": capabilities,
        "issued_at_ms": NOW_MS,
        "expires_at_ms": expires_at_ms,
        "sealed_label": b"sealed " + name.encode(),
    }
    return ScriptedDevice(secret, box_secret, DeviceEntry(**(fields | changes)))


@dataclass
class ScriptedStream:
    """A stream: its rows, the chain at every seq, and where each author is."""

    user: ScriptedUser
    name: str
    kind: int
    rows: list[EventRow] = field(default_factory=list)
    chains: list[bytes] = field(default_factory=list)
    authors: dict[bytes, tuple[int, bytes]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.chains = [chain_0(crypto, self.user.user_key, self.name)]

    @property
    def head_position(self) -> tuple[int, bytes]:
        """(seq, chain)."""
        return len(self.rows), self.chains[-1]

    def header(self, device: ScriptedDevice, payload: bytes, **changes: Any) -> Header:
        """The header that comes next for this author; ``changes`` replace fields."""
        n, last_hash = self.authors.get(device.device_id, (0, NO_PREV))
        fields: dict[str, Any] = {
            "kind": self.kind,
            "id": EVENT_ID,
            "stream": self.name,
            "n": n + 1,
            "prev": last_hash[:PREV_BYTES],
            "base": None,
            "seen": self.head_position,
            "devices_seen": self.user.devices_stream.head_position,
            "key": None,
            "hlc": NOW_MS << 16,
            "ttl_s": None,
            "payload_len": len(payload),
            "payload_hash": crypto.blake3(payload),
        }
        return Header(**(fields | changes))

    def append(
        self,
        device: ScriptedDevice,
        payload: bytes = b"sealed",
        *,
        received_at_ms: int | None = None,
        stored_payload: bytes | None = b"",
        sig: bytes | None = None,
        **changes: Any,
    ) -> EventRow:
        """Put an event into the stream as a server would, whatever it is.

        ``stored_payload``: what is delivered in place of the payload, ``None`` for a payload that is gone.
        """
        header = self.header(device, payload, **changes)
        encoded = header.encode()
        if sig is None:
            sig = sign_event(
                crypto,
                secret=device.secret,
                user_key=self.user.user_key,
                device_id=device.device_id,
                header=encoded,
            )
        seq = len(self.rows) + 1
        time_ms = NOW_MS + seq if received_at_ms is None else received_at_ms
        hash_ = event_hash(crypto, encoded, sig)
        self.chains.append(chain_next(crypto, self.chains[-1], seq, time_ms, hash_))
        self.authors[device.device_id] = (header.n, hash_)
        row = (seq, device.device_id, time_ms, encoded, sig, payload if stored_payload == b"" else stored_payload, None)
        self.rows.append(row)
        return row

    def page(self, after: int, upto: int | None = None) -> tuple[list[EventRow], bytes]:
        """(rows, chain) of the page after a seq."""
        end = len(self.rows) if upto is None else upto
        return self.rows[after:end], self.chains[end]

    def head(self, seq: int | None = None, **changes: Any) -> SignedHead:
        """The head at a seq, the last by default, signed by the server; ``changes`` replace fields."""
        at = len(self.rows) if seq is None else seq
        fields: dict[str, Any] = {
            "user_key": self.user.user_key,
            "stream": self.name,
            "epoch": 1,
            "seq": at,
            "chain": self.chains[at],
            "time_ms": NOW_MS + 1000,
        }
        return sign_head(crypto, self.user.server_secret, Head(**(fields | changes)))


class ScriptedUser:
    """A user whose account log begins with the genesis of the device ``laptop``."""

    def __init__(self) -> None:
        self.root_secret, self.user_key = crypto.ed25519_generate(seed("root key"))
        self.next_root_secret, self.next_root_key = crypto.ed25519_generate(seed("next root key"))
        self.server_secret, self.server_key = crypto.ed25519_generate(seed("server key"))
        self.devices_stream = ScriptedStream(self, DEVICES_STREAM, Kind.ACCOUNT)
        self.laptop = make_device("laptop")
        self.devices_stream.append(
            self.laptop,
            encode_genesis(
                crypto, root_secret=self.root_secret, next_root_key=self.next_root_key, device=self.laptop.entry
            ),
        )

    def enrol(self, device: ScriptedDevice, *, by: ScriptedDevice | None = None, **changes: Any) -> EventRow:
        """Enrol a device by another one, the laptop by default."""
        return self.devices_stream.append(by or self.laptop, encode_enrol(device.entry), **changes)

    def stream(self, name: str = "notes") -> ScriptedStream:
        """A new application stream."""
        return ScriptedStream(self, name, Kind.APPLICATION)

    def keys_stream(self) -> ScriptedStream:
        """The stream of wrapped keys."""
        return ScriptedStream(self, KEYS_STREAM, Kind.KEYS)

    def account(self, upto: int | None = None) -> AccountLog:
        """The account log up to a seq, the last by default."""
        log = AccountLog(crypto, self.user_key)
        for row in self.devices_stream.rows[:upto]:
            log.apply(account_event(row))
        return log


def account_event(row: EventRow) -> AccountEvent:
    """A row of ``$devices`` as the account log takes it."""
    _, device_id, received_at_ms, header, sig, payload, _ = row
    assert payload is not None
    return AccountEvent(device_id, header, sig, payload, received_at_ms)


def follow(stream: ScriptedStream, *, state: StreamState | None = None, **arguments: Any) -> StreamVerifier:
    """A reader of a stream, from its start and with the whole account log by default."""
    user = stream.user
    own = stream is user.devices_stream
    return StreamVerifier(
        crypto,
        user_key=user.user_key,
        server_key=user.server_key,
        stream=stream.name,
        state=state or state_at_start(crypto, user.user_key, stream.name),
        **({"account": user.account(upto=0 if own else None)} | arguments),
    )


def two_authors() -> tuple[ScriptedUser, ScriptedStream]:
    """A stream into which laptop and phone write in turn."""
    user = ScriptedUser()
    phone = make_device("phone")
    user.enrol(phone)
    stream = user.stream()
    for number in range(6):
        stream.append(phone if number % 2 else user.laptop, b"event %d" % number)
    return user, stream


def replaced(row: EventRow, index: int, value: Any) -> EventRow:
    """A row with another value in one place."""
    return (*row[:index], value, *row[index + 1 :])


def lie(call: Callable[[], object]) -> VerificationError:
    """The error by which a reader stops."""
    with pytest.raises(VerificationError) as caught:
        call()
    return caught.value
