"""Both sides of the handshake, sans-I/O: bytes in, bytes out (protocol.md section 2).

SIGMA-I shape: ephemeral X25519, both sides sign the transcript, the device's identity travels encrypted. Freshness
comes from nonces and ephemerals that the caller gives, so nothing here reads a clock or draws a random byte.
Every error is a ``ProtocolError`` and ends the handshake: the object is closed and takes nothing more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal

from keepstep.errors import DeviceRevoked, ProtocolError
from keepstep.model import KEY_BYTES
from keepstep.protocol import transcript
from keepstep.protocol.codec import encode, message_type
from keepstep.protocol.messages import (
    CORE_BYTES_MAX,
    HANDSHAKE_MESSAGE_BYTES_MAX,
    MESSAGE_BYTES_MAX,
    ClientAuth,
    ClientAuthCore,
    ClientHello,
    Ready,
    Revoked,
    ServerHello,
    ServerHelloCore,
    decode_client_auth,
    decode_client_auth_core,
    decode_client_hello,
    decode_ready,
    decode_revoked,
    decode_server_hello,
    decode_server_hello_core,
)
from keepstep.protocol.primitives import RECORD_TAG_BYTES
from keepstep.protocol.session import ClientSession, ServerSession
from keepstep.protocol.states import State, Step, advance
from keepstep.validation import parse_size

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from keepstep.protocol.primitives import Primitives, Signing

Resume = Literal["all", "none"] | tuple[tuple[int, bytes]]
"""``"all"``, ``"none"``, or a 1-tuple with the position in ``$devices``."""

_ZEROS: Final = bytes(KEY_BYTES)


def _check_nonce(nonce: bytes) -> None:
    # protocol.md section 2: "Nonces: 32 bytes, all-zero refused"
    if nonce == _ZEROS:
        raise ProtocolError("malformed", "a handshake nonce is all zeros")


class _Handshake:
    """What both sides share: the state, and that any error closes."""

    def __init__(self, primitives: Primitives) -> None:
        self._primitives = primitives
        self._state = State.AWAIT_HELLO

    @property
    def state(self) -> State:
        """Where this side is."""
        return self._state

    def _advance(self, step: Step) -> None:
        self._state = advance(self._state, step)

    def close(self) -> None:
        """Take nothing more."""
        self._state = advance(self._state, Step.CLOSE)


class ServerHandshake(_Handshake):
    """The server's side of one handshake.

    Args:
        primitives: the cryptography.
        identity: the server's identity key.
        ephemeral_secret: 32 random bytes, used for this handshake only.
        nonce: 32 random bytes, used for this handshake only.
        server_time_ms: unix milliseconds, for the device's information.
        epoch: the log's epoch (protocol.md section 4, "After a restore").
        suites: record suites in the server's order of preference, at least one.
    """

    def __init__(
        self,
        primitives: Primitives,
        *,
        identity: Signing,
        ephemeral_secret: bytes,
        nonce: bytes,
        server_time_ms: int,
        epoch: int,
        suites: Sequence[int],
    ) -> None:
        super().__init__(primitives)
        assert suites
        assert nonce != _ZEROS
        self._identity = identity
        self._ephemeral_secret = ephemeral_secret
        self._nonce = nonce
        self._server_time_ms = server_time_ms
        self._epoch = epoch
        self._suites = tuple(suites)
        self._suite = 0
        self._shared = b""
        self._th1 = b""
        self._th3 = b""
        self._signature = b""

    def receive_hello(self, data: bytes) -> bytes:
        """Take ClientHello, give ServerHello.

        Args:
            data: one WebSocket message, at most 4 KiB.

        Returns:
            the message to send.

        Raises:
            ProtocolError: ``unexpected``, ``too_large``, ``malformed`` (also an all-zero nonce or an ephemeral key
                that gives the all-zero secret), ``unsupported`` (no common version or suite).
        """
        try:
            return self._receive_hello(data)
        except ProtocolError:
            self.close()
            raise

    def _receive_hello(self, data: bytes) -> bytes:
        self._advance(Step.SERVER_TAKES_HELLO)
        hello = decode_client_hello(data)
        _check_nonce(hello.nonce)
        if transcript.VERSION not in hello.versions:
            raise ProtocolError("unsupported", "the device offers no protocol version this server speaks")
        self._suite = next((suite for suite in self._suites if suite in hello.suites), 0)
        if self._suite == 0:
            raise ProtocolError("unsupported", "the device offers no record suite this server has")
        primitives = self._primitives
        self._shared = primitives.x25519(self._ephemeral_secret, hello.ephemeral)
        core = encode(
            ServerHelloCore(
                version=transcript.VERSION,
                suite=self._suite,
                ephemeral=primitives.x25519_public(self._ephemeral_secret),
                nonce=self._nonce,
                server_key=self._identity.public,
                server_time_ms=self._server_time_ms,
                epoch=self._epoch,
            )
        )
        self._th1 = transcript.th1(primitives, data, core)
        self._signature = self._identity.sign(transcript.SERVER_AUTH_PREFIX + self._th1)
        return encode(ServerHello(core=core, signature=self._signature))

    def receive_auth(self, data: bytes) -> ClientAuthCore:
        """Take ClientAuth and check that its sender holds ``device_key``.

        Whether that key is a live device of ``user_key`` is for the caller to look up, after this [so that only
        holders of a key learn anything].

        Args:
            data: one WebSocket message, at most 4 KiB.

        Returns:
            what the device claims to be.

        Raises:
            ProtocolError: ``unexpected``, ``too_large``, ``bad_record``, ``malformed``, ``auth_failed``.
        """
        try:
            return self._receive_auth(data)
        except ProtocolError:
            self.close()
            raise

    def _receive_auth(self, data: bytes) -> ClientAuthCore:
        self._advance(Step.SERVER_TAKES_AUTH)
        parse_size(len(data), bytes_max=HANDSHAKE_MESSAGE_BYTES_MAX, what="a handshake message")
        primitives = self._primitives
        secret = transcript.handshake_key(primitives, self._th1, self._shared)
        auth = decode_client_auth(primitives.RecordOpener(self._suite, secret, self._th1).open(data))
        core = decode_client_auth_core(auth.core)
        second = transcript.th2(primitives, self._th1, self._signature, auth.core)
        try:
            primitives.ed25519_verify(core.device_key, transcript.DEVICE_AUTH_PREFIX + second, auth.signature)
        except ProtocolError as exc:
            # protocol.md section 2: "unknown user, unknown device, bad signature: the same auth_failed"
            raise ProtocolError("auth_failed", "the device's signature does not verify") from exc
        self._th3 = transcript.th3(primitives, second, auth.signature)
        return core

    def ready(self, ready: Ready, *, now_s: float) -> tuple[bytes, ServerSession]:
        """Give the sealed Ready and the session it opens.

        Args:
            ready: what the device is told; with its seal at most 4 KiB.
            now_s: monotonic seconds, from which the hour to the first rekey counts.

        Raises:
            ProtocolError: ``unexpected``: no device has proven its key.
        """
        session = self._open_session(now_s)
        sealed = session.seal_ready(encode(ready))
        assert len(sealed) <= HANDSHAKE_MESSAGE_BYTES_MAX
        return sealed, session

    def refuse(self, notice: bytes, *, now_s: float) -> bytes:
        """Give a sealed ``messages.Revoked``, which takes the place of Ready; the connection is closed after it.

        Args:
            notice: the encoded message.
            now_s: monotonic seconds.

        Raises:
            ProtocolError: ``unexpected``: no device has proven its key.
        """
        session = self._open_session(now_s)
        session.close()
        self.close()
        return session.seal_ready(notice)

    def _open_session(self, now_s: float) -> ServerSession:
        self._advance(Step.READY)
        keys = transcript.session_keys(self._primitives, self._th3, self._shared)
        self._shared = b""
        return ServerSession(
            self._primitives,
            suite=self._suite,
            send_secret=keys.server,
            receive_secret=keys.device,
            aad=self._th3,
            exporter=keys.exporter,
            now_s=now_s,
        )


class ClientHandshake(_Handshake):
    """The device's side of one handshake.

    Args:
        primitives: the cryptography.
        server_key: the server identity key that the device pinned, 32 bytes.
        user_key: the user id, 32 bytes.
        device_id: 16 bytes.
        device_secret: the device key's 32-byte seed.
        ephemeral_secret: 32 random bytes, used for this handshake only.
        nonce: 32 random bytes, used for this handshake only.
        suites: record suites the device has, at least one.
        resume: what to subscribe to at once.
        options: for later versions; at most a few short entries.

    Raises:
        ProtocolError: ``too_large``: the options are.
    """

    def __init__(
        self,
        primitives: Primitives,
        *,
        server_key: bytes,
        user_key: bytes,
        device_id: bytes,
        device_secret: bytes,
        ephemeral_secret: bytes,
        nonce: bytes,
        suites: Sequence[int],
        resume: Resume,
        options: Mapping[str, Any],
    ) -> None:
        super().__init__(primitives)
        assert nonce != _ZEROS
        self._server_key = server_key
        self._device_secret = device_secret
        self._ephemeral_secret = ephemeral_secret
        self._suites = tuple(suites)
        self._core = encode(
            ClientAuthCore(
                user_key=user_key,
                device_id=device_id,
                device_key=primitives.ed25519_public(device_secret),
                resume=resume,
                options=dict(options),
            )
        )
        parse_size(len(self._core), bytes_max=CORE_BYTES_MAX, what="the core of ClientAuth")
        self._hello = encode(
            ClientHello(
                versions=[transcript.VERSION],
                suites=list(suites),
                ephemeral=primitives.x25519_public(ephemeral_secret),
                nonce=nonce,
            )
        )
        self._suite = 0
        self._shared = b""
        self._th3 = b""
        self._server: ServerHelloCore | None = None

    @property
    def server(self) -> ServerHelloCore:
        """What the server said of itself, once its hello was verified: its time, its epoch, the suite it chose."""
        assert self._server is not None
        return self._server

    def hello(self) -> bytes:
        """ClientHello, the first message to send; the same bytes each time."""
        return self._hello

    def receive_server_hello(self, data: bytes) -> bytes:
        """Take ServerHello, check that the pinned server signed it, give the sealed ClientAuth.

        Args:
            data: one WebSocket message, at most 4 KiB.

        Returns:
            the message to send.

        Raises:
            ProtocolError: ``unexpected``, ``too_large``, ``malformed``, ``auth_failed`` (another server key than the
                pinned one), ``bad_signature``, ``unsupported`` (a version or suite that was not offered).
        """
        try:
            return self._receive_server_hello(data)
        except ProtocolError:
            self.close()
            raise

    def _receive_server_hello(self, data: bytes) -> bytes:
        self._advance(Step.DEVICE_TAKES_HELLO)
        primitives = self._primitives
        hello = decode_server_hello(data)
        core = decode_server_hello_core(hello.core)
        if core.server_key != self._server_key:
            raise ProtocolError("auth_failed", "the server shows another identity key than the pinned one")
        first = transcript.th1(primitives, self._hello, hello.core)
        primitives.ed25519_verify(self._server_key, transcript.SERVER_AUTH_PREFIX + first, hello.signature)
        if core.version != transcript.VERSION or core.suite not in self._suites:
            raise ProtocolError("unsupported", "the server chose a version or suite that was not offered")
        _check_nonce(core.nonce)
        self._shared = primitives.x25519(self._ephemeral_secret, core.ephemeral)
        self._suite = core.suite
        self._server = core
        second = transcript.th2(primitives, first, hello.signature, self._core)
        signature = primitives.ed25519_sign(self._device_secret, transcript.DEVICE_AUTH_PREFIX + second)
        self._th3 = transcript.th3(primitives, second, signature)
        secret = transcript.handshake_key(primitives, first, self._shared)
        plaintext = encode(ClientAuth(core=self._core, signature=signature))
        return primitives.RecordSealer(self._suite, secret, first).seal(plaintext)

    def receive_ready(self, data: bytes, *, now_s: float) -> tuple[Ready, ClientSession]:
        """Take Ready, give the session it opens.

        Args:
            data: one WebSocket message; Ready has at most 4 KiB, a revocation in its place at most 2 MiB.
            now_s: monotonic seconds, from which the hour to the first rekey counts.

        Raises:
            DeviceRevoked: the server shows, in place of Ready, the event that ended this device.
            ProtocolError: ``unexpected``, ``too_large``, ``bad_record``, ``malformed``.
        """
        try:
            return self._receive_ready(data, now_s=now_s)
        except ProtocolError:
            self.close()
            raise

    def _receive_ready(self, data: bytes, *, now_s: float) -> tuple[Ready, ClientSession]:
        self._advance(Step.READY)
        parse_size(len(data), bytes_max=MESSAGE_BYTES_MAX + RECORD_TAG_BYTES, what="a handshake message")
        keys = transcript.session_keys(self._primitives, self._th3, self._shared)
        self._shared = b""
        session = ClientSession(
            self._primitives,
            suite=self._suite,
            send_secret=keys.device,
            receive_secret=keys.server,
            aad=self._th3,
            exporter=keys.exporter,
            now_s=now_s,
        )
        plaintext = session.open_ready(data)
        if message_type(plaintext) == Revoked.__struct_config__.tag:
            raise DeviceRevoked(decode_revoked(plaintext).row)
        return decode_ready(plaintext), session
