"""Every message of a session and of the handshake, as MessagePack arrays ``[type, ...]`` (protocol.md section 4).

Trailing fields are ignored, unknown types raise ``ProtocolError("unsupported")``, anything else that is not one
of these raises ``ProtocolError("malformed")``. Bytes that are signed or hashed travel inside as opaque ``bytes``
and are never re-encoded.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Final, Literal, TypeVar, get_args

import msgspec
from msgspec import Meta, Raw, Struct

from keepstep.errors import ProtocolError
from keepstep.model import STREAM_NAME_BYTES_MAX, STREAM_NAME_PATTERN
from keepstep.protocol.codec import decode_lenient, decode_strict, message_type
from keepstep.protocol.codec import encode as encode_value
from keepstep.validation import parse_size

T = TypeVar("T")
S = TypeVar("S", bound=Struct)

MESSAGE_BYTES_MAX: Final = 2 * 1024 * 1024
"""Largest message of an active session in either direction, bytes: a publish of 1 MiB of events and its framing."""
HANDSHAKE_MESSAGE_BYTES_MAX: Final = 4 * 1024
"""Largest message until a device is authenticated, bytes."""
CORE_BYTES_MAX: Final = 2048
"""Largest signed part of a handshake message, bytes."""
HEAD_BYTES_MAX: Final = 512
"""Largest head, bytes: every field at its largest makes less."""
REWIND_BYTES_MAX: Final = 512
"""Largest rewind, bytes: every field at its largest makes less."""
REWINDS_MAX: Final = 16
"""Restores of one stream that a device is told of, the latest."""
CHAINS_ASKED_MAX: Final = 64
"""Positions in one ``ChainAt``."""
HEAL_ROWS_MAX: Final = 256
"""Events in one ``Heal``."""
HEAL_LINKS_MAX: Final = 20_000
"""Events between the last of a ``Heal``'s rows and the signed head that proves them."""
LINK_BYTES: Final = 40
"""One of them: received_at as big-endian u64, and the hash of the event."""
PUBLISH_EVENTS_MAX: Final = 256
PUBLISH_BYTES_MAX: Final = 1024 * 1024
SUBSCRIBE_STREAMS_MAX: Final = 1024
READ_EVENTS_MAX: Final = 1000
KEPT_ROWS_MAX: Final = 16
"""Events that are kept of a beginning that is gone; this version keeps three."""
SIGNAL_BYTES_MAX: Final = 16 * 1024
"""Largest signal, sealed, bytes."""
PRESENCE_BYTES_MAX: Final = 4 * 1024
"""Largest state of a device, sealed, bytes."""

Bytes12 = Annotated[bytes, Meta(min_length=12, max_length=12)]
Bytes16 = Annotated[bytes, Meta(min_length=16, max_length=16)]
Bytes32 = Annotated[bytes, Meta(min_length=32, max_length=32)]
Bytes64 = Annotated[bytes, Meta(min_length=64, max_length=64)]
INTEGER_MAX: Final = 2**63 - 1
"""Every integer on the wire fits a PostgreSQL bigint."""
U64 = Annotated[int, Meta(ge=0, le=INTEGER_MAX)]
StreamName = Annotated[str, Meta(min_length=1, max_length=STREAM_NAME_BYTES_MAX, pattern=STREAM_NAME_PATTERN)]
WirePosition = tuple[U64, Bytes32]
"""``[seq, chain]``."""
SignedHead = tuple[Annotated[bytes, Meta(max_length=HEAD_BYTES_MAX)], Bytes64]
"""``[bytes of [1, user_key, stream, epoch, seq, chain, time_ms], server signature]``."""
EventRow = tuple[U64, Bytes16, U64, bytes, Bytes64, bytes | None, bytes | None]
"""``[seq, device_id, received_at_ms, header, sig, payload|nil, trace|nil]``."""
SignedRewind = tuple[Annotated[bytes, Meta(max_length=REWIND_BYTES_MAX)], Bytes64]
"""``[bytes of [1, user_key, stream, epoch, seq, chain], server signature]`` (``rewind``)."""
SignedRewinds = Annotated[list[SignedRewind], Meta(max_length=REWINDS_MAX)]


# -- handshake (protocol.md section 2) -------------------------------------------------------------------------


class ClientHello(Struct, frozen=True, array_like=True, tag=1):
    """``[1, versions, suites, c_eph, c_nonce]``, in clear."""

    versions: Annotated[list[U64], Meta(min_length=1, max_length=8)]
    suites: Annotated[list[U64], Meta(min_length=1, max_length=8)]
    ephemeral: Bytes32
    nonce: Bytes32


class ServerHello(Struct, frozen=True, array_like=True, tag=2):
    """``[2, core, s_sig]``, in clear; ``core`` are the bytes of a ``ServerHelloCore``."""

    core: Annotated[bytes, Meta(max_length=CORE_BYTES_MAX)]
    signature: Bytes64


class ServerHelloCore(Struct, frozen=True, array_like=True):
    """``[version, suite, s_eph, s_nonce, server_key, server_time_ms, epoch]``."""

    version: U64
    suite: U64
    ephemeral: Bytes32
    nonce: Bytes32
    server_key: Bytes32
    server_time_ms: U64
    epoch: U64


class ClientAuth(Struct, frozen=True, array_like=True, tag=3):
    """``[3, core, c_sig]``, sealed under hs_c with AAD th1; ``core`` are the bytes of a ``ClientAuthCore``."""

    core: Annotated[bytes, Meta(max_length=CORE_BYTES_MAX)]
    signature: Bytes64


class ClientAuthCore(Struct, frozen=True, array_like=True):
    """``[user_key, device_id, device_key, resume, options]``.

    ``resume``: ``"all"`` (as ``Subscribe("all")``), ``"none"``, or ``[position in $devices]``, whose head Ready then
    carries.
    """

    user_key: Bytes32
    device_id: Bytes16
    device_key: Bytes32
    resume: Literal["all", "none"] | tuple[WirePosition]
    options: dict[Annotated[str, Meta(max_length=32)], Any]


class Ready(Struct, frozen=True, array_like=True, tag=4):
    """``[4, session_id, session_no, limits, features, heads]``, sealed under ap_s with AAD th3.

    ``limits``: name to number (``message_bytes``, ``publish_events``, ``publish_bytes``, ``inflight_publishes``,
    ``unacked_bytes``, ``payload_bytes``). ``features``: names of what this server can do beyond version 1's core.
    ``heads``: ``$devices``' signed head where the device asked to resume, else empty.
    """

    session_id: Bytes16
    session_no: U64
    limits: dict[str, int]
    features: list[str]
    heads: list[SignedHead]


# -- device to server -------------------------------------------------------------------------------------------


class Publish(Struct, frozen=True, array_like=True, tag=16):
    """``[16, rid, [event...]]`` with event = ``[header, sig, payload|nil, trace|nil]``; at most 256 events or 1 MiB.

    ``events`` stays raw MessagePack: the ingest call parses it in one pass.
    """

    rid: U64
    events: Raw


class Ack(Struct, frozen=True, array_like=True, tag=17):
    """``[17, {stream: [seq, chain16]}]``: all up to ``seq`` is safe on the device.

    ``chain16``: the first 16 bytes of the chain there.
    """

    positions: Annotated[dict[StreamName, tuple[U64, Bytes16]], Meta(max_length=SUBSCRIBE_STREAMS_MAX)]


class Subscribe(Struct, frozen=True, array_like=True, tag=18):
    """``[18, "all" | {stream: [seq, chain] | "start" | "end"}]``."""

    streams: (
        Literal["all"]
        | Annotated[dict[StreamName, WirePosition | Literal["start", "end"]], Meta(max_length=SUBSCRIBE_STREAMS_MAX)]
    )


class Unsubscribe(Struct, frozen=True, array_like=True, tag=19):
    """``[19, [stream...]]``."""

    streams: Annotated[list[StreamName], Meta(max_length=SUBSCRIBE_STREAMS_MAX)]


class Read(Struct, frozen=True, array_like=True, tag=20):
    """``[20, rid, stream, after, limit]``: up to ``limit`` events with seq > ``after``."""

    rid: U64
    stream: StreamName
    after: U64
    limit: Annotated[int, Meta(ge=1, le=READ_EVENTS_MAX)]


class ChainAt(Struct, frozen=True, array_like=True, tag=21):
    """``[21, rid, stream, [seq...]]``: what is the chain there? Answered by ``ChainAtResult``."""

    rid: U64
    stream: StreamName
    seqs: Annotated[list[U64], Meta(max_length=CHAINS_ASKED_MAX)]


class Heal(Struct, frozen=True, array_like=True, tag=22):
    """``[22, rid, stream, after, [row...], proof, report]``: events that a restore lost; answered by ``HealResult``.

    ``after``: ``[seq, chain]`` that the rows continue, which the log holds; nil: append them anew. ``proof``:
    ``[links, signed head]``, where ``links`` are the links (``LINK_BYTES``) of the events from behind the rows up to
    the head; nil where no head proves them. ``report``: 1 = everything that is proven is handed in, 2 = everything is,
    3 = end the time for handing in (``manage``); 0 = none of that.
    """

    rid: U64
    stream: StreamName
    after: WirePosition | None
    rows: Annotated[list[EventRow], Meta(max_length=HEAL_ROWS_MAX)]
    proof: tuple[Annotated[bytes, Meta(max_length=HEAL_LINKS_MAX * LINK_BYTES)], SignedHead] | None
    report: Literal[0, 1, 2, 3]


class Signal(Struct, frozen=True, array_like=True, tag=23):
    """``[23, rid, to, sealed]``: for one device of the same user, if it is connected; answered by ``Signalled``."""

    rid: U64
    to: Bytes16
    sealed: Annotated[bytes, Meta(max_length=SIGNAL_BYTES_MAX)]


class Presence(Struct, frozen=True, array_like=True, tag=24):
    """``[24, sealed]``: this device's state, for the user's other devices while it is connected."""

    sealed: Annotated[bytes, Meta(max_length=PRESENCE_BYTES_MAX)]


class Ping(Struct, frozen=True, array_like=True, tag=25):
    """``[25, rid]``; answered by ``Pong`` with the same rid."""

    rid: U64


class Rekey(Struct, frozen=True, array_like=True, tag=26):
    """``[26]``: the last record under this direction's secret; the next one is under its successor."""


class Bye(Struct, frozen=True, array_like=True, tag=27):
    """``[27]``: the device is about to close."""


# -- server to device -------------------------------------------------------------------------------------------


class ResultAccepted(Struct, frozen=True, array_like=True, tag=0):
    """``[0, count, first_seq, received_at_ms, chain]``: ``count`` consecutive seqs from ``first_seq``.

    ``chain``: after the last of them.
    """

    count: U64
    first_seq: U64
    received_at_ms: U64
    chain: Bytes32


class ResultDuplicate(Struct, frozen=True, array_like=True, tag=1):
    """``[1, seq, chain, received_at_ms]``: stored before, at ``seq``; all nil: unchecked (protocol.md section 3)."""

    seq: U64 | None
    chain: Bytes32 | None
    received_at_ms: U64 | None


class ResultError(Struct, frozen=True, array_like=True, tag=2):
    """``[2, code, detail]``: not stored.

    ``detail``: ``out_of_order`` -> ``[last_n, last_hash]``; ``id_reused`` -> ``[seq, hash]`` of what is stored;
    ``conflict`` -> ``[head_seq, head_chain]``; ``Retry.LATER`` codes -> ``[retry_after_ms|nil]``; all others ->
    ``[]``.
    """

    code: Annotated[str, Meta(max_length=32)]
    detail: list[Any]


Result = ResultAccepted | ResultDuplicate | ResultError


class Accepted(Struct, frozen=True, array_like=True, tag=64):
    """``[64, rid, results]``: one answer per event in order, runs joined; sent only after the commit was fsynced."""

    rid: U64
    results: list[Result]


class Events(Struct, frozen=True, array_like=True, tag=65):
    """``[65, stream, [row...], chain]``: rows with consecutive seq; chain after the last one."""

    stream: StreamName
    rows: list[EventRow]
    chain: Bytes32


class CaughtUp(Struct, frozen=True, array_like=True, tag=66):
    """``[66, stream, signed head, safe_at_ms]``: the session's position is that head; the last as in ``Head``."""

    stream: StreamName
    head: SignedHead
    safe_at_ms: U64 | None = None


class SignalFrom(Struct, frozen=True, array_like=True, tag=67):
    """``[67, from_device_id, sealed]``: a signal from another device of the user."""

    device_id: Bytes16
    sealed: Annotated[bytes, Meta(max_length=SIGNAL_BYTES_MAX)]


PresenceState = tuple[Bytes16, Annotated[bytes, Meta(max_length=PRESENCE_BYTES_MAX)] | None, U64]
"""``[device_id, sealed|nil, at_ms]``."""


class PresenceFrom(Struct, frozen=True, array_like=True, tag=68):
    """``[68, [[device_id, sealed|nil, at_ms]...]]``: states of other devices that changed; nil: it is away."""

    devices: list[PresenceState]


class DevicesChanged(Struct, frozen=True, array_like=True, tag=69):
    """``[69, seq]``: ``$devices`` moved to ``seq``."""

    seq: U64


class ReadResult(Struct, frozen=True, array_like=True, tag=70):
    """``[70, rid, stream, [row...], chain, head_seq]``.

    ``chain``: after the last row, or at ``after`` where there is none.
    """

    rid: U64
    stream: StreamName
    rows: list[EventRow]
    chain: Bytes32
    head_seq: U64


class Error(Struct, frozen=True, array_like=True, tag=71):
    """``[71, rid|nil, code, retry_after_ms|nil]``."""

    rid: U64 | None
    code: Annotated[str, Meta(max_length=32)]
    retry_after_ms: U64 | None


class Pong(Struct, frozen=True, array_like=True, tag=72):
    """``[72, rid]``."""

    rid: U64


class Draining(Struct, frozen=True, array_like=True, tag=73):
    """``[73, reconnect_after_ms]``: nothing new is accepted; what is committed is still acknowledged."""

    reconnect_after_ms: U64


class Resumed(Struct, frozen=True, array_like=True, tag=74):
    """``[74, stream, answer, head, author]``: the typed answer to a subscription of one stream.

    ``answer``: ``"contiguous"`` (what is missing follows, without a gap), ``"unknown_position"`` (the log does not
    hold the position the device named: a lying or restored server, or another stream), ``"unknown_stream"``,
    ``"forbidden"`` or ``"limit_exceeded"`` (not subscribed). ``head``: signed head, nil where there is none to
    show. ``author``: the asking device's own ``[last_n, last_hash]`` in that stream (``[0, zeros]`` = none yet).
    ``rewinds``: the restores that set the stream back, the latest ``REWINDS_MAX``.
    """

    stream: StreamName
    answer: Literal["contiguous", "unknown_position", "unknown_stream", "forbidden", "limit_exceeded"]
    head: SignedHead | None
    author: tuple[U64, Bytes32]
    rewinds: SignedRewinds = msgspec.field(default_factory=list)


class ServerRekey(Struct, frozen=True, array_like=True, tag=75):
    """``[75]``: as ``Rekey``, for the server's direction."""


class Head(Struct, frozen=True, array_like=True, tag=76):
    """``[76, stream, signed head, safe_at_ms]``: once a minute on a moving stream that is subscribed.

    ``safe_at_ms``: what was received by then is in a verified backup; nil for nothing, or where nobody says so.
    """

    stream: StreamName
    head: SignedHead
    safe_at_ms: U64 | None = None


class Revoked(Struct, frozen=True, array_like=True, tag=77):
    """``[77, row]``: the event of ``$devices`` that ended this device; the server closes the connection after it.

    In a session, or in place of ``Ready``.
    """

    row: EventRow


class Cloned(Struct, frozen=True, array_like=True, tag=78):
    """``[78, device_id, at_ms]``: that device of the user connects from more than one place."""

    device_id: Bytes16
    at_ms: U64


class KeyAnnounced(Struct, frozen=True, array_like=True, tag=79):
    """``[79, announcement]``: the server's next identity key (``succession``), as ``bytes`` of the announcement."""

    announcement: Annotated[bytes, Meta(max_length=HEAD_BYTES_MAX)]


class Signalled(Struct, frozen=True, array_like=True, tag=80):
    """``[80, rid]``: a signal was handed to the session of the device it is for."""

    rid: U64


class Pruned(Struct, frozen=True, array_like=True, tag=81):
    """``[81, stream, after, to_seq, chain, {device_id: [n, prev]}, [row...], signed head]``: what is before is gone.

    In place of the events after ``after`` up to ``to_seq``; those after it follow. ``chain``: at ``to_seq``, as in the
    head of that seq. ``authors``: each author's last number there, and the first 16 bytes of that event's hash.
    ``kept``: of what is gone, the policy in force and the newest confirmed snapshot with its confirmation.
    """

    stream: StreamName
    after: U64
    to_seq: U64
    chain: Bytes32
    authors: dict[Bytes16, tuple[U64, Bytes16]]
    kept: Annotated[list[EventRow], Meta(max_length=KEPT_ROWS_MAX)]
    head: SignedHead


class Rewound(Struct, frozen=True, array_like=True, tag=82):
    """``[82, stream, [signed rewind...], head, author]``: the typed answer where a restore lost the position.

    In place of ``Resumed``: the log does not hold the position that the device named, and was set back by restores.
    The device finds the last position that both hold (``ChainAt``), hands in what it has above (``Heal``), and
    subscribes anew. ``head`` and ``author`` as in ``Resumed``.
    """

    stream: StreamName
    rewinds: SignedRewinds
    head: SignedHead | None
    author: tuple[U64, Bytes32]


class ChainAtResult(Struct, frozen=True, array_like=True, tag=83):
    """``[83, rid, stream, [chain|nil...], head_seq]``: in the order asked; nil above ``head_seq`` and where pruned."""

    rid: U64
    stream: StreamName
    chains: Annotated[list[Bytes32 | None], Meta(max_length=CHAINS_ASKED_MAX)]
    head_seq: U64


class HealResult(Struct, frozen=True, array_like=True, tag=84):
    """``[84, rid, stream, answer, head_seq, lost, retry_after_ms|nil]``: what became of a ``Heal``.

    ``answer``: ``"placed"`` (the log holds the rows, those in ``lost`` excepted, by the seq they were handed in with),
    ``"diverged"`` (the log has other events there), ``"later"`` (not proven: other devices hand in what is, first),
    ``"refused"`` (not what their authors signed, or the proof proves nothing), ``"open"`` or ``"closed"`` (to a report:
    whether publishing waits for others still).
    """

    rid: U64
    stream: StreamName
    answer: Literal["placed", "diverged", "later", "refused", "open", "closed"]
    head_seq: U64
    lost: Annotated[list[U64], Meta(max_length=HEAL_ROWS_MAX)]
    retry_after_ms: U64 | None


FromDevice = Publish | Ack | Subscribe | Unsubscribe | Read | ChainAt | Heal | Signal | Presence | Ping | Rekey | Bye
FromServer = (
    Accepted
    | Events
    | CaughtUp
    | SignalFrom
    | PresenceFrom
    | DevicesChanged
    | ReadResult
    | Error
    | Pong
    | Draining
    | Resumed
    | ServerRekey
    | Head
    | Revoked
    | Cloned
    | KeyAnnounced
    | Signalled
    | Pruned
    | Rewound
    | ChainAtResult
    | HealResult
)


# -- encoding and decoding ----------------------------------------------------------------------------------------

_CLIENT_HELLO: Final = msgspec.msgpack.Decoder(ClientHello)
_SERVER_HELLO: Final = msgspec.msgpack.Decoder(ServerHello)
_SERVER_HELLO_CORE: Final = msgspec.msgpack.Decoder(ServerHelloCore)
_CLIENT_AUTH: Final = msgspec.msgpack.Decoder(ClientAuth)
_CLIENT_AUTH_CORE: Final = msgspec.msgpack.Decoder(ClientAuthCore)
_READY: Final = msgspec.msgpack.Decoder(Ready)
_REVOKED: Final = msgspec.msgpack.Decoder(Revoked)
_FROM_DEVICE: Final[msgspec.msgpack.Decoder[FromDevice]] = msgspec.msgpack.Decoder(FromDevice)
_FROM_SERVER: Final[msgspec.msgpack.Decoder[FromServer]] = msgspec.msgpack.Decoder(FromServer)


def _types(structs: Iterable[Any]) -> frozenset[int]:
    return frozenset(struct.__struct_config__.tag for struct in structs)


_DEVICE_TYPES: Final = _types(get_args(FromDevice))
_SERVER_TYPES: Final = _types(get_args(FromServer))
_KNOWN_TYPES: Final = _types((ClientHello, ServerHello, ClientAuth, Ready)) | _DEVICE_TYPES | _SERVER_TYPES


def encode(message: Struct) -> bytes:
    """A message as MessagePack; the caller bounds its size (``MESSAGE_BYTES_MAX``)."""
    return encode_value(message)


def _decode(decoder: msgspec.msgpack.Decoder[T], types: frozenset[int], data: bytes, *, bytes_max: int) -> T:
    parse_size(len(data), bytes_max=bytes_max, what="a message")
    try:
        return decode_lenient(decoder, data, "a message")
    except ProtocolError:
        kind = message_type(data)
        if kind is None or kind in types:
            raise
        if kind in _KNOWN_TYPES:
            raise ProtocolError("unexpected", f"message type {kind} is not for this side or this state") from None
        raise ProtocolError("unsupported", "a message has an unknown type") from None


def _decode_handshake(decoder: msgspec.msgpack.Decoder[S], data: bytes) -> S:
    return _decode(decoder, _types([decoder.type]), data, bytes_max=HANDSHAKE_MESSAGE_BYTES_MAX)


def decode_from_device(data: bytes) -> FromDevice:
    """One message of an active session from a device, trailing fields ignored.

    Raises:
        ProtocolError: ``malformed``, ``too_large`` (also a publish of more than 1 MiB of events), ``unsupported`` (an
            unknown type), ``unexpected`` (a known type that a device does not send in a session).
    """
    message = _decode(_FROM_DEVICE, _DEVICE_TYPES, data, bytes_max=MESSAGE_BYTES_MAX)
    if isinstance(message, Publish):
        parse_size(len(message.events), bytes_max=PUBLISH_BYTES_MAX, what="the events of a publish")
    return message


def decode_from_server(data: bytes) -> FromServer:
    """One message of an active session from the server, trailing fields ignored.

    Raises:
        ProtocolError: as ``decode_from_device``.
    """
    return _decode(_FROM_SERVER, _SERVER_TYPES, data, bytes_max=MESSAGE_BYTES_MAX)


def decode_revoked(data: bytes) -> Revoked:
    """Raises ``ProtocolError``, as ``decode_from_device``."""
    return _decode(_REVOKED, _types([Revoked]), data, bytes_max=MESSAGE_BYTES_MAX)


def decode_client_hello(data: bytes) -> ClientHello:
    """Raises ``ProtocolError``, as ``decode_from_device``; at most 4 KiB."""
    return _decode_handshake(_CLIENT_HELLO, data)


def decode_server_hello(data: bytes) -> ServerHello:
    """Raises ``ProtocolError``, as ``decode_from_device``; at most 4 KiB."""
    return _decode_handshake(_SERVER_HELLO, data)


def decode_server_hello_core(data: bytes) -> ServerHelloCore:
    """The signed part of ServerHello, decoded strictly. Raises ``malformed``, ``too_large``."""
    return decode_strict(_SERVER_HELLO_CORE, data, "the core of ServerHello", bytes_max=CORE_BYTES_MAX)


def decode_client_auth(data: bytes) -> ClientAuth:
    """Raises ``ProtocolError``, as ``decode_from_device``; at most 4 KiB."""
    return _decode_handshake(_CLIENT_AUTH, data)


def decode_client_auth_core(data: bytes) -> ClientAuthCore:
    """The signed part of ClientAuth, decoded strictly. Raises ``malformed``, ``too_large``."""
    return decode_strict(_CLIENT_AUTH_CORE, data, "the core of ClientAuth", bytes_max=CORE_BYTES_MAX)


def decode_ready(data: bytes) -> Ready:
    """Raises ``ProtocolError``, as ``decode_from_device``; at most 4 KiB."""
    return _decode_handshake(_READY, data)
