"""Linking a new device to a user, sans-I/O: both sides' state machines (protocol.md section 4, Linking).

A trusted device shows an ``Invitation``; the new one reads it with its camera or its user's hands. They exchange
messages through a mailbox that anybody who knows its id can use: the invitation's secret and ephemeral key keep the
mailbox's owner out. Whoever has seen the invitation too, over a shoulder, is kept out by the code: the new device
commits to its keys before it knows the other's nonce, and shows six digits of the transcript that its user types into
the trusted device. Nobody in the middle can make both sides' digits the same, but by luck, one time in a million.

Feed in what the other side wrote, in order, and send what comes out. Every error ends the link.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Annotated, Final, Literal

import msgspec
from msgspec import Meta, Struct

from keepstep.errors import ProtocolError
from keepstep.model import DEVICE_LABEL_BYTES_MAX
from keepstep.protocol.account_payloads import WireEntry
from keepstep.protocol.codec import decode_strict, encode
from keepstep.protocol.messages import Bytes16, Bytes32, Bytes64, SignedHead, StreamName, WirePosition
from keepstep.protocol.primitives import RECORD_TAG_BYTES, SUITE_CHACHA20_POLY1305
from keepstep.validation import format_base64url, parse_base64url

if TYPE_CHECKING:
    from keepstep.protocol.primitives import Opener, Primitives, Sealer

LINK_ID_BYTES: Final = 16
MESSAGE_BYTES_MAX: Final = 16 * 1024
"""Largest message of a link, bytes."""
MESSAGES_MAX: Final = 8
"""Messages of each side."""
INVITATION_PREFIX: Final = "keepstep:"
INVITATION_BYTES_MAX: Final = 1_024
CODE_DIGITS: Final = 6
CODE_TRIES_MAX: Final = 3
"""Codes that may be typed; then the link is over."""
HANDOVER_BYTES_MAX: Final = (MESSAGES_MAX - 1) * (MESSAGE_BYTES_MAX - 64)
"""Largest handover, bytes: what the trusted device's messages after its first can carry."""
_CHUNK_BYTES: Final = MESSAGE_BYTES_MAX - 64

COMMIT_CONTEXT: Final = "keepstep/v1/link-commit"
TH1_CONTEXT: Final = "keepstep/v1/link-th1"
TH2_CONTEXT: Final = "keepstep/v1/link-th2"
TH3_CONTEXT: Final = "keepstep/v1/link-th3"
CODE_CONTEXT: Final = "keepstep/v1/link-code"
KEYS_INFO: Final = b"keepstep/v1/link"
DEVICE_PREFIX: Final = b"keepstep/v1/link-device\0"

_Text = Annotated[str, Meta(min_length=1, max_length=256)]


class Invitation(Struct, frozen=True, array_like=True):
    """``[1, rest_url, device_url, user_key, server_key, link_id, secret, ephemeral]``: what the trusted device shows.

    Whoever sees it can take part in the link; it is good for one link and two minutes.
    """

    version: Literal[1]
    rest_url: _Text
    device_url: _Text
    user_key: Bytes32
    server_key: Bytes32
    link_id: Bytes16
    secret: Bytes32
    ephemeral: Bytes32

    def __repr__(self) -> str:
        return f"Invitation({self.link_id.hex()})"


class Introduction(Struct, frozen=True, array_like=True):
    r"""``[device_id, device_key, box_key, name, platform, signature]``: who the new device is.

    The signature, with the device key over ``"keepstep/v1/link-device\0" ‖ th2``, proves that it has that key.
    """

    device_id: Bytes16
    device_key: Bytes32
    box_key: Bytes32
    name: Annotated[str, Meta(min_length=1, max_length=DEVICE_LABEL_BYTES_MAX)]
    platform: Annotated[str, Meta(max_length=128)]
    signature: Bytes64


class Handover(Struct, frozen=True, array_like=True):
    """``[device entry, [seq, chain] of $devices with it, {stream: signed head}]``: what the new device checks against.

    ``heads``: of as many streams as fit, ``$devices`` and ``$keys`` first.
    """

    entry: WireEntry
    devices: WirePosition
    heads: dict[StreamName, SignedHead]


class _Commitment(Struct, frozen=True, array_like=True, tag=0):
    commitment: Bytes32


class _Nonce(Struct, frozen=True, array_like=True, tag=1):
    nonce: Bytes32


class _Reveal(Struct, frozen=True, array_like=True, tag=2):
    ephemeral: Bytes32
    nonce: Bytes32
    sealed: Annotated[bytes, Meta(max_length=MESSAGE_BYTES_MAX)]


class _Part(Struct, frozen=True, array_like=True, tag=3):
    is_last: bool
    chunk: Annotated[bytes, Meta(max_length=MESSAGE_BYTES_MAX)]


class _Refusal(Struct, frozen=True, array_like=True, tag=4):
    pass


class _Done(Struct, frozen=True, array_like=True, tag=5):
    pass


class State(enum.Enum):
    """Where one side of a link is. The table of transitions is ``_NEXT``."""

    AWAIT_COMMITMENT = "await_commitment"
    AWAIT_NONCE = "await_nonce"
    AWAIT_REVEAL = "await_reveal"
    AWAIT_CODE = "await_code"
    AWAIT_DECISION = "await_decision"
    AWAIT_HANDOVER = "await_handover"
    AWAIT_DONE = "await_done"
    LINKED = "linked"
    CLOSED = "closed"


class _Step(enum.Enum):
    COMMITMENT = "commitment"
    NONCE = "nonce"
    REVEAL = "reveal"
    CODE = "code"
    HANDOVER = "handover"
    DONE = "done"


_NEXT: Final = {
    # the trusted device
    (State.AWAIT_COMMITMENT, _Step.COMMITMENT): State.AWAIT_REVEAL,
    (State.AWAIT_REVEAL, _Step.REVEAL): State.AWAIT_CODE,
    (State.AWAIT_CODE, _Step.CODE): State.AWAIT_DECISION,
    (State.AWAIT_DECISION, _Step.HANDOVER): State.AWAIT_DONE,
    (State.AWAIT_DONE, _Step.DONE): State.LINKED,
    # the new device
    (State.AWAIT_NONCE, _Step.NONCE): State.AWAIT_HANDOVER,
    (State.AWAIT_HANDOVER, _Step.HANDOVER): State.LINKED,
}

_INVITATION: Final = msgspec.msgpack.Decoder(Invitation)
_COMMITMENT: Final = msgspec.msgpack.Decoder(_Commitment)
_NONCE: Final = msgspec.msgpack.Decoder(_Nonce)
_REVEAL: Final = msgspec.msgpack.Decoder(_Reveal)
_INTRODUCTION: Final = msgspec.msgpack.Decoder(Introduction)
_HANDOVER: Final = msgspec.msgpack.Decoder(Handover)
_ANSWER: Final[msgspec.msgpack.Decoder[_Part | _Refusal]] = msgspec.msgpack.Decoder(_Part | _Refusal)
_DONE: Final = msgspec.msgpack.Decoder(_Done)


def format_invitation(invitation: Invitation) -> str:
    """An invitation as text for a QR code, a message or a terminal: ``keepstep:`` and base64url."""
    return INVITATION_PREFIX + format_base64url(encode(invitation))


def parse_invitation(text: str) -> Invitation:
    """The inverse of ``format_invitation``; space around it is ignored.

    Raises:
        ProtocolError: ``malformed`` or ``too_large``.
    """
    stripped = text.strip()
    if not stripped.startswith(INVITATION_PREFIX):
        raise ProtocolError("malformed", f"an invitation begins with {INVITATION_PREFIX}")
    body = stripped.removeprefix(INVITATION_PREFIX)
    data = parse_base64url(body, bytes_max=INVITATION_BYTES_MAX, what="an invitation")
    return decode_strict(_INVITATION, data, "an invitation", bytes_max=INVITATION_BYTES_MAX)


class _Keys:
    """What both sides derive once the new device has revealed its keys (protocol.md section 4, Linking)."""

    def __init__(self, primitives: Primitives, invitation: Invitation, th2: bytes, dh: bytes) -> None:
        # One extract and one expand: from_new ‖ from_trusted ‖ code key. The secret is a pre-shared key beside the DH.
        keys = primitives.hkdf_sha256(th2, dh + invitation.secret, KEYS_INFO, 96)
        self.from_new, self.from_trusted, self._code_key = keys[:32], keys[32:64], keys[64:]
        self._primitives = primitives

    def code(self, th2: bytes, sealed: bytes) -> str:
        """Six digits of the whole transcript, the sealed introduction included."""
        th3 = self._primitives.blake3_derive(TH3_CONTEXT, th2 + sealed)
        digest = self._primitives.blake3_derive(CODE_CONTEXT, self._code_key + th3)
        return f"{int.from_bytes(digest[:8], 'big') % 10**CODE_DIGITS:0{CODE_DIGITS}}"


def _commitment(primitives: Primitives, invitation: Invitation, ephemeral: bytes, nonce: bytes) -> bytes:
    return primitives.blake3_derive(COMMIT_CONTEXT, invitation.link_id + ephemeral + nonce)


def _transcript(
    primitives: Primitives,
    invitation: Invitation,
    commitment: bytes,
    trusted_nonce: bytes,
    ephemeral: bytes,
    nonce: bytes,
) -> bytes:
    """th2: everything up to the revealed keys."""
    th1 = primitives.blake3_derive(TH1_CONTEXT, primitives.blake3(encode(invitation)) + commitment + trusted_nonce)
    return primitives.blake3_derive(TH2_CONTEXT, th1 + ephemeral + nonce)


class _Side:
    """What both sides share: the state, and that an error is the end."""

    def __init__(self, primitives: Primitives, invitation: Invitation, state: State) -> None:
        self._primitives = primitives
        self._invitation = invitation
        self._state = state

    @property
    def state(self) -> State:
        """Where this side is."""
        return self._state

    def close(self) -> None:
        """Take nothing more."""
        self._state = State.CLOSED

    def _expect(self, step: _Step) -> State:
        """The state after a step. Raises ``unexpected`` where it is not allowed now; the link is over then."""
        following = _NEXT.get((self._state, step))
        self._state = State.CLOSED  # until everything about the step is found to be good
        if following is None:
            raise ProtocolError("unexpected", "that is not the next step of the link")
        return following


class NewLink(_Side):
    """The new device's side.

    Args:
        primitives: the cryptography; record suite 2.
        invitation: what the trusted device showed.
        ephemeral_secret: 32 random bytes, used for this link only.
        nonce: 32 random bytes, used for this link only.
    """

    def __init__(
        self, primitives: Primitives, invitation: Invitation, *, ephemeral_secret: bytes, nonce: bytes
    ) -> None:
        super().__init__(primitives, invitation, State.AWAIT_NONCE)
        self._ephemeral_secret = ephemeral_secret
        self._ephemeral = primitives.x25519_public(ephemeral_secret)
        self._nonce = nonce
        self._sealer: Sealer | None = None
        self._opener: Opener | None = None
        self._chunks: list[bytes] = []
        self._code = ""

    @property
    def code(self) -> str:
        """Six digits for its user to type into the trusted device; known after ``receive_nonce``."""
        assert self._code
        return self._code

    def commit(self) -> bytes:
        """The first message: a commitment to its keys."""
        return encode(_Commitment(_commitment(self._primitives, self._invitation, self._ephemeral, self._nonce)))

    def receive_nonce(
        self, data: bytes, *, device_id: bytes, device_secret: bytes, box_key: bytes, name: str, platform: str
    ) -> bytes:
        """Take the trusted device's nonce; the second message, with the keys and who this device is.

        Args:
            data: the trusted device's first message.
            device_id: of this device, 16 bytes.
            device_secret: its Ed25519 seed.
            box_key: its X25519 public key.
            name: what its user calls it.
            platform: what it runs on, for its user to recognise.

        Raises:
            ProtocolError: ``malformed``, ``unexpected``.
        """
        following = self._expect(_Step.NONCE)
        primitives = self._primitives
        trusted_nonce = decode_strict(_NONCE, data, "a link's nonce", bytes_max=MESSAGE_BYTES_MAX).nonce
        commitment = _commitment(primitives, self._invitation, self._ephemeral, self._nonce)
        th2 = _transcript(primitives, self._invitation, commitment, trusted_nonce, self._ephemeral, self._nonce)
        dh = primitives.x25519(self._ephemeral_secret, self._invitation.ephemeral)
        keys = _Keys(primitives, self._invitation, th2, dh)
        self._sealer = primitives.RecordSealer(SUITE_CHACHA20_POLY1305, keys.from_new, th2)
        self._opener = primitives.RecordOpener(SUITE_CHACHA20_POLY1305, keys.from_trusted, th2)
        introduction = Introduction(
            device_id=device_id,
            device_key=primitives.ed25519_public(device_secret),
            box_key=box_key,
            name=name,
            platform=platform,
            signature=primitives.ed25519_sign(device_secret, DEVICE_PREFIX + th2),
        )
        sealed = self._sealer.seal(encode(introduction))
        self._code = keys.code(th2, sealed)
        self._state = following
        return encode(_Reveal(self._ephemeral, self._nonce, sealed))

    def receive_handover(self, data: bytes) -> Handover | None:
        """Take the next message of the trusted device; ``None`` while more are to come.

        Raises:
            ProtocolError: ``forbidden``: its user refused, or typed wrong codes; ``bad_record``, ``malformed``,
                ``too_large``, ``unexpected``.
        """
        before = self._state
        following = self._expect(_Step.HANDOVER)
        assert self._opener is not None
        if len(data) > MESSAGE_BYTES_MAX + RECORD_TAG_BYTES:
            raise ProtocolError("too_large", "a message of a link is above its limit")
        opened = self._opener.open(data)
        answer = decode_strict(_ANSWER, opened, "an answer of a link", bytes_max=MESSAGE_BYTES_MAX)
        if isinstance(answer, _Refusal):
            raise ProtocolError("forbidden", "the trusted device refused the link")
        self._chunks.append(answer.chunk)
        if len(self._chunks) >= MESSAGES_MAX:
            raise ProtocolError("too_large", "a handover has too many parts")
        if not answer.is_last:
            self._state = before
            return None
        handover = decode_strict(_HANDOVER, b"".join(self._chunks), "a handover", bytes_max=HANDOVER_BYTES_MAX)
        self._state = following
        return handover

    def done(self) -> bytes:
        """The last message: everything is on this device's disk."""
        assert self._state is State.LINKED
        assert self._sealer is not None
        return self._sealer.seal(encode(_Done()))


class TrustedLink(_Side):
    """The trusted device's side.

    Args:
        primitives: the cryptography; record suite 2.
        invitation: what it shows.
        ephemeral_secret: of ``invitation.ephemeral``, used for this link only.
        nonce: 32 random bytes, used for this link only.
    """

    def __init__(
        self, primitives: Primitives, invitation: Invitation, *, ephemeral_secret: bytes, nonce: bytes
    ) -> None:
        super().__init__(primitives, invitation, State.AWAIT_COMMITMENT)
        self._ephemeral_secret = ephemeral_secret
        self._nonce = nonce
        self._commitment = b""
        self._code = ""
        self._tries = 0
        self._sealer: Sealer | None = None
        self._opener: Opener | None = None

    @property
    def is_confirmed(self) -> bool:
        """Whether the right code was typed, and nothing handed over yet."""
        return self._state is State.AWAIT_DECISION

    @property
    def tries_left(self) -> int:
        """Codes that may still be typed."""
        return CODE_TRIES_MAX - self._tries

    def receive_commitment(self, data: bytes) -> bytes:
        """Take the new device's commitment; the first message. Raises ProtocolError: ``malformed``, ``unexpected``."""
        following = self._expect(_Step.COMMITMENT)
        message = decode_strict(_COMMITMENT, data, "a link's commitment", bytes_max=MESSAGE_BYTES_MAX)
        self._commitment = message.commitment
        self._state = following
        return encode(_Nonce(self._nonce))

    def receive_reveal(self, data: bytes) -> Introduction:
        """Take the new device's keys; who it says it is, not to be believed before ``check_code``.

        Raises:
            ProtocolError: ``bad_signature``: they are not what was committed to, or it does not have its device key;
                ``bad_record``: it has not seen the invitation; ``malformed``, ``unexpected``.
        """
        following = self._expect(_Step.REVEAL)
        primitives = self._primitives
        message = decode_strict(_REVEAL, data, "a link's keys", bytes_max=MESSAGE_BYTES_MAX)
        commitment = _commitment(primitives, self._invitation, message.ephemeral, message.nonce)
        if not primitives.constant_time_equal(commitment, self._commitment):
            raise ProtocolError("bad_signature", "the keys are not those that were committed to")
        th2 = _transcript(primitives, self._invitation, commitment, self._nonce, message.ephemeral, message.nonce)
        keys = _Keys(primitives, self._invitation, th2, primitives.x25519(self._ephemeral_secret, message.ephemeral))
        self._sealer = primitives.RecordSealer(SUITE_CHACHA20_POLY1305, keys.from_trusted, th2)
        self._opener = primitives.RecordOpener(SUITE_CHACHA20_POLY1305, keys.from_new, th2)
        opened = self._opener.open(message.sealed)
        introduction = decode_strict(_INTRODUCTION, opened, "an introduction", bytes_max=MESSAGE_BYTES_MAX)
        primitives.ed25519_verify(introduction.device_key, DEVICE_PREFIX + th2, introduction.signature)
        self._code = keys.code(th2, message.sealed)
        self._state = following
        return introduction

    def check_code(self, typed: str) -> None:
        """Compare what the user read from the new device; at most ``CODE_TRIES_MAX`` times.

        Raises:
            ProtocolError: ``auth_failed``: it is another code; ``unexpected``: there is none to compare any more.
        """
        before = self._state
        following = self._expect(_Step.CODE)
        self._tries += 1
        if self._primitives.constant_time_equal(typed.encode(), self._code.encode()):
            self._state = following
            return
        if self.tries_left:
            self._state = before
        raise ProtocolError("auth_failed", "that is not the code of the new device")

    def hand_over(self, handover: Handover) -> list[bytes]:
        """The messages that tell the new device that it is enrolled.

        Raises:
            ProtocolError: ``too_large``: it does not fit; ``unexpected``: no right code was typed.
        """
        following = self._expect(_Step.HANDOVER)
        assert self._sealer is not None
        data = encode(handover)
        if len(data) > HANDOVER_BYTES_MAX:
            raise ProtocolError("too_large", "a handover does not fit its messages")
        chunks = [data[at : at + _CHUNK_BYTES] for at in range(0, len(data), _CHUNK_BYTES)]
        parts = [encode(_Part(number == len(chunks), chunk)) for number, chunk in enumerate(chunks, 1)]
        self._state = following
        return self._sealer.seal_many(parts)

    def refuse(self) -> bytes | None:
        """End the link; what tells the new device so, where they share keys already."""
        shares_keys = self._sealer is not None
        self.close()
        if not shares_keys:
            return None
        assert self._sealer is not None
        return self._sealer.seal(encode(_Refusal()))

    def receive_done(self, data: bytes) -> None:
        """Take the new device's word that it is complete. Raises ProtocolError: ``bad_record``, ``unexpected``."""
        following = self._expect(_Step.DONE)
        assert self._opener is not None
        decode_strict(_DONE, self._opener.open(data), "the end of a link", bytes_max=MESSAGE_BYTES_MAX)
        self._state = following
