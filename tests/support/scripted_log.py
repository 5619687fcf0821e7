"""A user with devices and streams whose every byte a test decides: events are built and chained as a server would."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import pytest

from keepstep.client import crypto
from keepstep.errors import VerificationError
from keepstep.model import DEVICES_STREAM, KEYS_STREAM, PREV_BYTES, Capability, Kind
from keepstep.protocol.account import AccountEvent, AccountLog
from keepstep.protocol.account_payloads import encode_enrol, encode_genesis, encode_revoke, encode_rotate
from keepstep.protocol.chain import Head, sign_head
from keepstep.protocol.event import NO_PREV
from keepstep.protocol.messages import INTEGER_MAX
from keepstep.protocol.reader import StreamVerifier
from keepstep.protocol.streamstate import state_at_start
from tests.support.events import FULL, NOW_MS, DeviceFixture, UserFixture, seed
from tests.support.stream_log import StreamLog

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from keepstep.protocol.event import Header
    from keepstep.protocol.messages import EventRow, SignedHead
    from keepstep.protocol.primitives import Primitives
    from keepstep.protocol.streamstate import StreamState

ALICE: Final = UserFixture("alice")


def make_device(
    name: str, capabilities: Capability = FULL, *, expires_at_ms: int | None = None, **changes: Any
) -> DeviceFixture:
    """A device of the scripted user; the same name gives the same one. ``changes`` replace fields of its entry."""
    return DeviceFixture(ALICE, name, capabilities, expires_at_ms, changes)


class ScriptedStream(StreamLog):
    """A stream of the scripted user, into which its devices write what a test says."""

    def __init__(self, user: ScriptedUser, name: str, kind: int) -> None:
        super().__init__(ALICE.user_key, name)
        self.user = user
        self.kind = kind

    @property
    def head_position(self) -> tuple[int, bytes]:
        """(seq, chain)."""
        return len(self.rows), self.chains[-1]

    def header(self, device: DeviceFixture, payload: bytes, **changes: Any) -> Header:
        """The header that comes next for this author; ``changes`` replace fields."""
        return device.header(self.name, payload, **(self._next(device) | changes))

    def _next(self, device: DeviceFixture) -> dict[str, Any]:
        n, last_hash = self.authors.get(device.device_id, (0, NO_PREV))
        return {
            "kind": self.kind,
            "n": n + 1,
            "prev": last_hash[:PREV_BYTES],
            "seen": self.head_position,
            "devices_seen": self.user.devices_stream.head_position,
        }

    def append(
        self,
        device: DeviceFixture,
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
        event = device.sign(self.name, payload, **(self._next(device) | changes))
        return self.take(
            device.device_id,
            event.header,
            event.sig if sig is None else sig,
            payload if stored_payload == b"" else stored_payload,
            received_at_ms=NOW_MS + len(self.rows) + 1 if received_at_ms is None else received_at_ms,
        )

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
        return sign_head(crypto.SigningKey(self.user.server_secret), Head(**(fields | changes)))


class ScriptedUser:
    """A user whose account log begins with the genesis of the device ``laptop``."""

    def __init__(self) -> None:
        self.root_secret = ALICE.root_secret
        self.next_root_key = ALICE.next_root_key
        self.next_root_secret = ALICE.next_root_secret
        self.user_key = ALICE.user_key
        self.server_secret, self.server_key = crypto.ed25519_generate(seed("server key"))
        self.devices_stream = ScriptedStream(self, DEVICES_STREAM, Kind.ACCOUNT)
        self.laptop = make_device("laptop")
        self.devices_stream.append(
            self.laptop,
            encode_genesis(
                crypto, root_secret=self.root_secret, next_root_key=self.next_root_key, device=self.laptop.entry
            ),
        )

    def enrol(self, device: DeviceFixture, *, by: DeviceFixture | None = None, **changes: Any) -> EventRow:
        """Enrol a device by another one, the laptop by default."""
        return self.devices_stream.append(by or self.laptop, encode_enrol(device.entry), **changes)

    def revoke(
        self,
        device: DeviceFixture,
        accepted: dict[str, int] | None = None,
        *,
        by: DeviceFixture | None = None,
        **changes: Any,
    ) -> EventRow:
        """Revoke a device by another one, the laptop by default; what it enrolled stays unless ``accepted`` says."""
        if accepted is None:
            accepted = {DEVICES_STREAM: INTEGER_MAX}
        return self.devices_stream.append(by or self.laptop, encode_revoke(device.device_id, accepted), **changes)

    def rotate(
        self,
        device: DeviceFixture,
        *staying: DeviceFixture,
        root_secret: bytes | None = None,
        next_root: str = "root key after the next",
        at: int | None = None,
        **changes: Any,
    ) -> EventRow:
        """Rotate to a new device and those that stay, upon a seq of ``$devices``, its head by default."""
        stream = self.devices_stream
        seq = len(stream.rows) if at is None else at
        position = seq, stream.chains[seq]
        payload = encode_rotate(
            crypto,
            user_key=self.user_key,
            root_secret=root_secret or self.next_root_secret,
            next_root_key=crypto.ed25519_public(seed(next_root)),
            built_on=position[1],
            staying=[each.device_id for each in staying],
            device=device.entry,
        )
        return stream.append(device, payload, **({"seen": position, "devices_seen": position} | changes))

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


def replay(primitives: Primitives, user_key: bytes, events: Iterable[AccountEvent]) -> AccountLog:
    """The account log after accepted events, all of which must be valid."""
    log = AccountLog(primitives, user_key)
    for event in events:
        log.apply(event)
    return log


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
