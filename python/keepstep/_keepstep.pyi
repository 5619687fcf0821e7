"""The Rust extension: what must be fast or constant-time. Bytes in, bytes out.

Fallible cryptography raises, it never returns a verdict as bool, except where a batch needs one verdict per event.
Every error the peer can cause is ``keepstep.errors.ProtocolError`` with its code; a caller that breaks what is
documented here gets ``ValueError``, ``TypeError`` or ``OverflowError``. Secrets live in zeroised memory, as far as the
extension holds them.

The GIL is released by ``ingest``, ``ed25519_verify_many``, ``encode_rows`` and ``verify_chain``,
and by the others for 32 KiB and more. ``bytes`` are used where they are; any other contiguous buffer of bytes is copied
first, since another thread could change it meanwhile. All objects may be shared between threads.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Final, Literal, Self, TypeAlias, final

from typing_extensions import Buffer

from keepstep.errors import ProtocolError

__all__ = [
    "AUTHORS_PACKED_MAX",
    "BACKEND",
    "SOURCE_DIGEST",
    "Committer",
    "DeviceKey",
    "Events",
    "Flight",
    "FrameReader",
    "Ingested",
    "ParsedEvent",
    "RecordOpener",
    "RecordReader",
    "RecordSealer",
    "RememberedAccounts",
    "RememberedHeads",
    "Run",
    "SigningKey",
    "StreamHead",
    "Submission",
    "__version__",
    "aead_open",
    "aead_seal",
    "blake3",
    "blake3_derive",
    "constant_time_equal",
    "ed25519_generate",
    "ed25519_public",
    "ed25519_sign",
    "ed25519_verify",
    "ed25519_verify_many",
    "encode_rows",
    "frame_close",
    "frame_many",
    "hkdf_sha256",
    "hkdf_sha256_expand",
    "ingest",
    "verify_chain",
    "x25519",
    "x25519_public",
]

__version__: Final[str]
SOURCE_DIGEST: Final[str]
"""SHA-256 (hex) of the Rust sources this extension was built from; a test compares it to find a stale build.

Over, for each file in ascending order of its ``/``-separated path from the project's root: path ‖ 0x00 ‖ length as
big-endian u64 ‖ content. The files: ``.cargo/config.toml``, ``Cargo.lock``, ``Cargo.toml``, ``rust/core/Cargo.toml``,
``rust/py/Cargo.toml``, ``rust/py/build.rs``, and everything below ``rust/core/src`` and ``rust/py/src``.
"""
BACKEND: Final[str]
"""curve25519 backend in use on this CPU: ``avx512``, ``avx2`` or ``serial``."""

# -- primitives ---------------------------------------------------------------------------------------------------

def ed25519_generate(seed: Buffer) -> tuple[bytes, bytes]:
    """(secret seed 32, public key 32) from 32 random bytes (RFC 8032 section 5.1.5)."""

def ed25519_public(secret: Buffer) -> bytes:
    """Public key 32 of a secret seed 32."""

def ed25519_sign(secret: Buffer, message: Buffer) -> bytes:
    """64-byte signature (RFC 8032 section 5.1.6)."""

def ed25519_verify(public: Buffer, message: Buffer, signature: Buffer) -> None:
    """ZIP-215 with canonical encodings and no small-order key (protocol.md section 1). Raises bad_signature."""

def ed25519_verify_many(items: Sequence[tuple[DeviceKey, Buffer, Buffer]]) -> list[bool]:
    """One verdict per (key, message, signature), equal to ``ed25519_verify``'s whatever shares the batch."""

def x25519_public(secret: Buffer) -> bytes:
    """Public key 32 of 32 random bytes (RFC 7748 section 6.1)."""

def x25519(secret: Buffer, public: Buffer) -> bytes:
    """RFC 7748 shared secret, 32 bytes.

    Raises malformed on the all-zero result, or where ``public`` is not 32 bytes.
    """

def hkdf_sha256(salt: Buffer, ikm: Buffer, info: Buffer, length: int) -> bytes:
    """RFC 5869 extract and expand; length 1..=8160 bytes."""

def hkdf_sha256_expand(prk: Buffer, info: Buffer, length: int) -> bytes:
    """RFC 5869 expand alone; ``prk`` has at least 32 bytes."""

def aead_seal(suite: int, key: Buffer, nonce: Buffer, aad: Buffer, plaintext: Buffer) -> bytes:
    """Ciphertext ‖ tag 16. Suites 1 = AES-256-GCM, 2 = ChaCha20-Poly1305 (RFC 8439); key 32, nonce 12.

    Raises unsupported for another suite.
    """

def aead_open(suite: int, key: Buffer, nonce: Buffer, aad: Buffer, ciphertext: Buffer) -> bytes:
    """Plaintext of what ``aead_seal`` made. Raises bad_record; unsupported for another suite."""

def blake3(data: Buffer) -> bytes:
    """BLAKE3, 32 bytes."""

def blake3_derive(context: str, data: Buffer) -> bytes:
    """H(context, data) of protocol.md: BLAKE3 derive-key, 32 bytes."""

def constant_time_equal(a: Buffer, b: Buffer) -> bool:
    """Whether both are equal, in time that depends on their lengths only."""

@final
class DeviceKey:
    """An Ed25519 public key, checked and decompressed once; immutable, shareable between threads."""
    def __new__(cls, public: Buffer) -> DeviceKey:
        """Raises malformed: not 32 bytes, non-canonical, not on the curve, or of small order."""
    @property
    def public(self) -> bytes:
        """The 32 bytes it was made from."""

@final
class SigningKey:
    """An Ed25519 secret key, expanded once; immutable, shareable between threads, erased when it goes."""
    def __new__(cls, secret: Buffer) -> SigningKey:
        """Of a 32-byte secret seed."""
    @property
    def public(self) -> bytes:
        """Its public key, 32 bytes."""
    def sign(self, message: Buffer) -> bytes:
        """64-byte signature (RFC 8032 section 5.1.6)."""

@final
class RecordSealer:
    """One direction's sealing key and counter (protocol.md section 2, Records)."""
    def __new__(cls, suite: int, secret: Buffer, aad: Buffer) -> RecordSealer:
        """Counter 0; ``secret`` has 32 bytes and is the suite's key. Raises unsupported for another suite."""
    def seal(self, plaintext: Buffer) -> bytes:
        """The next record: ciphertext ‖ tag 16, nonce = 32 zero bits ‖ counter."""
    def seal_many(self, plaintexts: Sequence[Buffer]) -> list[bytes]:
        """The next records, in order, with no other thread's between them."""
    @property
    def records(self) -> int:
        """Records sealed under the current secret: the next counter."""
    def rekey(self) -> None:
        """secret' = HKDF-Expand(secret, "keepstep/v1/rekey", 32); counter 0; the old secret is erased."""

@final
class RecordOpener:
    """One direction's opening key and counter (protocol.md section 2, Records)."""
    def __new__(cls, suite: int, secret: Buffer, aad: Buffer) -> RecordOpener:
        """As ``RecordSealer``."""
    def open(self, record: Buffer) -> bytes:
        """Raises bad_record; the counter moves only on success."""
    def open_many(self, records: Sequence[Buffer]) -> list[bytes]:
        """All of these consecutive records, or bad_record and the counter stays where it was."""
    @property
    def records(self) -> int:
        """Records opened under the current secret: the next counter."""
    def rekey(self) -> None:
        """As ``RecordSealer.rekey``."""

# -- events -------------------------------------------------------------------------------------------------------

@final
class ParsedEvent:
    """One well-formed event of a publish; all fields as in protocol.md section 3."""
    @property
    def kind(self) -> int:
        """0 to 6."""
    @property
    def id(self) -> bytes:
        """16 bytes, a UUID of version 7."""
    @property
    def stream(self) -> str:
        """The stream's name."""
    @property
    def n(self) -> int:
        """The author number, from 1."""
    @property
    def prev(self) -> bytes:
        """First 16 bytes of the hash of the author's event n - 1; zeros for n = 1."""
    @property
    def seen(self) -> tuple[int, bytes]:
        """[seq, chain] of this stream that the author had verified."""
    @property
    def devices_seen(self) -> tuple[int, bytes]:
        """[seq, chain] of ``$devices`` that the author had verified."""
    @property
    def key(self) -> bytes | None:
        """16 bytes: what is written, for the policy ``latest``."""
    @property
    def hlc(self) -> int:
        """Unix milliseconds · 2^16 + counter."""
    @property
    def ttl_s(self) -> int | None:
        """Life after received_at, seconds."""
    @property
    def header(self) -> bytes:
        """As signed."""
    @property
    def sig(self) -> bytes:
        """64 bytes, not verified by parsing."""
    @property
    def payload(self) -> bytes:
        """As the header's payload_hash names it; empty where it was dropped."""
    @property
    def payload_dropped(self) -> bool:
        """Whether there is none, in an event that was stored before."""
    @property
    def trace(self) -> bytes | None:
        """At most 256 bytes of trace context; relayed, never stored."""
    @property
    def hash(self) -> bytes:
        """H("keepstep/v1/event-hash", header ‖ sig), 32 bytes."""

@final
class Events:
    """The events of one publish message, parsed in one pass; a badly formed event is kept with its error."""
    @staticmethod
    def parse(raw: Buffer, *, events_max: int, payload_bytes_max: int, payloads_may_be_missing: bool = False) -> Events:
        """``raw``: MessagePack ``[[header, sig, payload|nil, trace|nil]...]``, minimal encoding, nothing after it.

        Raises malformed (not that form at all, or no event) or too_large (more than ``events_max``). Of what is wrong
        inside an event, the first in this order is its own error, which ``event`` raises and ``ingest`` answers:
        ``too_large`` (payload above ``payload_bytes_max``, trace above 256 bytes); ``malformed`` (signature not 64
        bytes), ``unsupported`` (version of the header), ``malformed`` (header not the documented form: id not a UUIDv7,
        n = 0, ttl not in 1 s to 100 years ...), ``unsupported`` (kind), ``unknown_stream`` (a ``$`` name other than
        ``$devices``, ``$keys`` and inboxes), ``malformed`` (kind in the wrong stream, ttl in another event than an
        application stream's of kind 0, payload nil or not the one the header names), ``malformed`` or ``unsupported``
        (the payload of a policy).

        ``payloads_may_be_missing`` for events that were stored before, for example in an account's export: a payload
        of nil is one that was dropped, and stays so in what ``ingest`` makes of the event.
        """
    def __len__(self) -> int:
        """At least 1."""
    @property
    def payload_bytes(self) -> int:
        """Bytes of all payloads, those of badly formed events too."""
    @property
    def streams(self) -> list[str]:
        """Names used by the well-formed events, each once, in order of first use."""
    @property
    def kinds(self) -> list[int]:
        """Kinds used by the well-formed events, each once, ascending."""
    @property
    def devices_seen(self) -> list[tuple[int, bytes]]:
        """``devices_seen`` of the well-formed events, each position once, in order of first use."""
    @property
    def checked_apart(self) -> bool:
        """Whether an event is of kind 2, 3 or 4: checked against what is stored before it is, and stored alone."""
    def split(self) -> list[Events]:
        """One ``Events`` per event, in order; verdicts already computed are kept."""
    def event(self, index: int) -> ParsedEvent:
        """Raises the event's own error if it is badly formed; IndexError outside 0 .. len - 1."""

@final
class Submission:
    """Events with the device that sent them; what a pipeline batches. Immutable; verdicts are computed once."""
    def __new__(
        cls,
        *,
        user_pk: int,
        user_key: Buffer,
        device_pk: int,
        device_id: Buffer,
        device_key: DeviceKey,
        capabilities: int,
        events: Events,
        suspect: bool = False,
        anew: bool = False,
    ) -> Submission:
        """``suspect``: verify apart from what others signed (a device that sent a bad signature before).

        ``anew``: a restore took the events' places away: neither ``base`` nor ``seen`` is asked.
        ``user_key`` has 32 bytes, ``device_id`` 16; ``capabilities`` are the bits of ``model.Capability``.
        """
    @property
    def user_pk(self) -> int:
        """The user's row number."""
    @property
    def device_pk(self) -> int:
        """The device's row number."""
    @property
    def device_id(self) -> bytes:
        """The device's UUID, 16 bytes."""
    @property
    def capabilities(self) -> int:
        """The bits of ``model.Capability``."""
    @property
    def events(self) -> Events:
        """Those it was made with, as another object each time."""
    def __len__(self) -> int:
        """How many events."""
    @property
    def payload_bytes(self) -> int:
        """As ``Events.payload_bytes``."""
    @property
    def has_reserved(self) -> bool:
        """Whether a well-formed event is of kind 5 or 6: it lives in ``$devices`` or ``$keys``."""
    @property
    def weight(self) -> tuple[int, int, bool]:
        """Bytes of memory that it takes, how many events, and ``has_reserved``, in one call.

        The bytes are those of the message, with headers, signatures and what is no event at all, and some hundred for
        what was parsed of each event.
        """
    def with_events(self, events: Events) -> Submission:
        """The same device with other events."""
    def with_capabilities(self, capabilities: int) -> Submission:
        """The same device and events with other capabilities; verdicts are kept."""
    def as_suspect(self) -> Submission:
        """The same, verified one by one."""

_Opened: TypeAlias = tuple[int, Submission | ProtocolError] | bytes | ProtocolError
_End: TypeAlias = Literal["closed", "broken", "too_large", "malformed", "gone", "timeout"]

@final
class RecordReader:
    """What a device sends in its session: records opened in order, rekeys heeded, publishes parsed.

    Publishes are the device's, and not suspect. Nothing comes after a fault.
    """
    def __new__(
        cls,
        opener: RecordOpener,
        *,
        user_pk: int,
        user_key: Buffer,
        device_pk: int,
        device_id: Buffer,
        device_key: Buffer,
        capabilities: int,
        events_max: int,
        payload_bytes_max: int,
        records_max: int,
    ) -> RecordReader:
        """``opener``: shared with the caller. ``device_key``: 32 bytes, the others as for ``Submission``.

        ``events_max`` in a publish, ``payload_bytes_max`` as for ``Events.parse``; ``records_max`` under one secret,
        the rekey among them. Raises malformed.
        """
    def read(self, records: Sequence[Buffer]) -> list[_Opened]:
        """What the next records were, in order.

        A publish as its rid with its events, or with why they are refused; any other message as its plaintext, a
        rekey included; what ends the session as its error: ``bad_record``, ``malformed``, ``too_large``,
        ``unexpected``.
        """

@final
class StreamHead:
    """One stream's head and its authors: one row version, cached as one value. Immutable."""
    @staticmethod
    def create(
        *, user_pk: int, user_key: Buffer, stream_pk: int, name: str, retention_class: int, auth_epoch: int
    ) -> StreamHead:
        """Policy ``append``, seq 0, chain_0, no authors."""
    @staticmethod
    def load(
        *,
        user_pk: int,
        stream_pk: int,
        name: str,
        retention_class: int,
        policy: int = ...,
        ttl_max_s: int | None = ...,
        bytes_max: int | None = ...,
        stored_bytes: int = ...,
        seq: int,
        chain: Buffer,
        received_at_ms: int,
        auth_epoch: int,
        authors_packed: Buffer,
        authors: Sequence[tuple[int, int, int, Buffer]] = ...,
    ) -> StreamHead:
        """As stored; ``policy`` is ``append`` and there is no ``ttl_max_s`` nor ``bytes_max`` where they are left out.

        Above AUTHORS_PACKED_MAX authors ``authors_packed`` is empty and ``authors`` holds ALL rows of the
        authors table for this stream: (device_pk, last_n, last_seq, last_hash). A stream with events always has
        authors.

        Raises ValueError where the authors cannot belong to such a head.
        """
    @property
    def user_pk(self) -> int:
        """The user's row number."""
    @property
    def stream_pk(self) -> int:
        """The stream's row number."""
    @property
    def name(self) -> str:
        """The stream's name."""
    @property
    def retention_class(self) -> int:
        """Which event table its rows live in (``model.RetentionClass``)."""
    @property
    def policy(self) -> int:
        """What becomes of concurrent events (``model.Policy``)."""
    @property
    def ttl_max_s(self) -> int | None:
        """The longest life of an application event, seconds; None where it may live for ever."""
    @property
    def bytes_max(self) -> int | None:
        """What the stream may store, bytes; None where it has no bound of its own."""
    @property
    def stored_bytes(self) -> int:
        """Bytes of headers, signatures and payloads, those that went since it was loaded among them."""
    def with_stored_bytes(self, stored_bytes: int) -> StreamHead:
        """The same head of a stream that stores so many bytes."""
    @property
    def seq(self) -> int:
        """Seq of the last event, 0 for none."""
    @property
    def chain(self) -> bytes:
        """The chain at ``seq``."""
    @property
    def received_at_ms(self) -> int:
        """When the last event was received, unix milliseconds."""
    @property
    def auth_epoch(self) -> int:
        """Guards the head against changes of the account."""
    @property
    def authors_packed(self) -> bytes:
        """Empty above AUTHORS_PACKED_MAX authors: then they live in the authors table.

        Per author, ascending by device_pk: device_pk, last_n, last_seq as big-endian 8 bytes each, last_hash.
        """
    @property
    def author_count(self) -> int:
        """How many devices have written."""
    def author(self, device_pk: int) -> tuple[int, int, bytes] | None:
        """(last_n, last_seq, last_hash); None for a device that never wrote."""

AUTHORS_PACKED_MAX: Final[int]
"""Most authors packed into the streams row."""

@final
class Run:
    """Consecutive committed events of one stream as a session sends them; what the in-memory tail holds. Immutable."""
    @property
    def user_pk(self) -> int:
        """The user's row number."""
    @property
    def stream_pk(self) -> int:
        """The stream's row number."""
    @property
    def first_seq(self) -> int:
        """Seq of its first event."""
    @property
    def last_seq(self) -> int:
        """Seq of its last event."""
    @property
    def prev_chain(self) -> bytes:
        """The chain at first_seq - 1."""
    @property
    def chain(self) -> bytes:
        """The chain at last_seq."""
    @property
    def count(self) -> int:
        """How many events."""
    @property
    def rows_bytes(self) -> int:
        """Bytes of their rows."""
    @property
    def size_bytes(self) -> int:
        """Bytes it holds in memory."""
    def continues(self, last: Run) -> bool:
        """Whether it is the next one behind ``last``, of the same stream."""
    def message(self, stream: str) -> bytes:
        """``messages.Events`` of all of it, with the stream's name."""
    @property
    def expires_at_ms(self) -> int | None:
        """Earliest expiry of any event in it: from then on the database, not this run, answers for it."""
    def page(self, after: int, *, events_max: int, bytes_max: int) -> tuple[bytes, int, int, bytes]:
        """(rows, count, last_seq, chain): rows with seq > ``after`` as concatenated MessagePack ``EventRow``s.

        At least one row even if it alone is above ``bytes_max``. Raises ValueError where ``after`` is not in
        ``first_seq - 1 .. last_seq - 1``.
        """

@final
class Ingested:
    """What one batch becomes, before the commit. Nothing in it is true until the transaction committed.

    Lists are built anew at each access.
    """
    @property
    def results(self) -> list[list[tuple[object, ...]]]:
        """Per submission, runs of answers in order of its events. A run is one of

        ``(0, count, first_seq, received_at_ms, chain)`` new (chain after the last) ·
        ``(1, seq, chain | None, received_at_ms | None)`` duplicate of the author's last event, or of one in this batch
        (both None where the event is neither of this batch nor the stream's head) ·
        ``(2, code, detail)`` refused (detail as in ``messages.ResultError``) ·
        ``(3, index, n, hash, last_seq)`` n below the author's last and not in this batch: look it up, walking
        author_prev_seq from last_seq; ``index`` is the event's index in its submission.
        """
    @property
    def moved(self) -> list[tuple[StreamHead, StreamHead]]:
        """(old, new) of every stream that moves, ascending by (user_pk, stream_pk)."""
    @property
    def changed_authors(self) -> list[tuple[int, int, int, int, int, bytes]]:
        """(user_pk, stream_pk, device_pk, last_n, last_seq, last_hash) for streams above AUTHORS_PACKED_MAX.

        All authors of a stream that crosses the limit in this batch, the changed ones of one already above it.
        """
    @property
    def changed_policies(self) -> list[StreamHead]:
        """New heads of the moved streams whose policy, longest ttl or bound of bytes is another one than before."""
    @property
    def keyed(self) -> list[tuple[int, int, bytes, int, int, bytes, int]]:
        """(user_pk, stream_pk, key, seq, hlc, device_id, received_at_ms) of new events that compete for their key.

        Those of kind 0 in streams of the policy ``latest``, in order of ``moved`` and seq.
        """
    @property
    def only_moves(self) -> bool:
        """Whether heads and events are all there is: no ``changed_authors``, no ``changed_policies``, no ``keyed``."""
    @property
    def retention_classes(self) -> list[int]:
        """Classes of the moved streams, ascending."""
    def copy_bytes(self, retention_class: int, *, excluding: AbstractSet[tuple[int, int]] = ...) -> bytes:
        """A whole binary COPY stream (header, rows, trailer) for that class' event table.

        ``excluding``: (user_pk, stream_pk) of streams to leave out, a set or frozenset.

        Columns: user_pk int8, stream_pk int8, seq int8, received_at int8 (unix ms), device_pk int8, n int8,
        author_prev_seq int8 (0: none), expires_at int8 null (unix ms), header, sig, payload null, chain (bytea).
        """
    @property
    def runs(self) -> list[Run]:
        """One per moved stream, in the order of ``moved``."""
    @property
    def runs_by_stream(self) -> list[tuple[tuple[int, str], Run]]:
        """``runs`` with (user_pk, stream name)."""
    def encoded_answers(self) -> list[bytes]:
        """``results`` per submission, encoded as in ``messages.Accepted``.

        Of what ``ingest_remembered`` gave: raises ValueError where there are look-ups in it.
        """
    def counts(self) -> dict[str, int]:
        """How many events were answered ``accepted``, ``duplicate`` or the code of an error; as ``encoded_answers``."""
    @property
    def suspects(self) -> list[int]:
        """Indices of submissions with a bad signature, ascending."""

@final
class RememberedHeads:
    """Heads of the ``streams_max`` streams used last, of one generation of the database."""
    def __new__(cls, *, streams_max: int) -> Self: ...
    def get(self, keys: Sequence[tuple[int, str]], *, generation: int) -> dict[tuple[int, str], StreamHead]:
        """Those of ``keys`` that are remembered. With another generation than before, everything is forgotten first."""
    def put(self, heads: Sequence[StreamHead], *, generation: int) -> None:
        """Remember heads, unless the generation is over."""
    def keep(self, ingested: Ingested, *, generation: int) -> None:
        """``put`` of the new heads of all that moved."""
    def drop(self, keys: Sequence[tuple[int, str]]) -> None:
        """Forget heads, where they are remembered."""
    @property
    def hits(self) -> tuple[int, int]:
        """How many of the heads asked for were there, and how many not."""

@final
class RememberedAccounts:
    """Live devices of the users used last, and positions that ``$devices`` went through, of one generation."""
    def __new__(cls, *, users_max: int, positions_max: int) -> Self: ...
    def get(
        self, user_pks: Sequence[int], *, generation: int
    ) -> dict[int, tuple[int, dict[int, int | None], int | None]]:
        """By user_pk, (auth_epoch, expires_at_ms by device_pk, bytes_max) as in ``eventlog.store.LiveDevices``."""
    def put(
        self, accounts: Sequence[tuple[int, tuple[int, dict[int, int | None], int | None]]], *, generation: int
    ) -> None:
        """Remember accounts, unless the generation is over."""
    def holds(self, positions: Sequence[tuple[int, tuple[int, Buffer]]], *, generation: int) -> list[bool]:
        """Which of the positions, (user_pk, (seq, chain)), are remembered."""
    def hold(self, positions: Sequence[tuple[int, tuple[int, Buffer]]], *, generation: int) -> None:
        """Remember positions, unless the generation is over."""
    @property
    def hits(self) -> tuple[int, int]:
        """How many of the users asked for were there, and how many not."""

def ingest(
    submissions: Sequence[Submission],
    heads: Mapping[tuple[int, str], StreamHead],
    *,
    now_ms: int,
    rooms: Mapping[int, int] = ...,
    essential: bool = ...,
) -> Ingested:
    """Verify, decide, number, hash, chain and encode a whole batch, in order, in one call without the GIL.

    ``heads``: keyed by (user_pk, stream name), looked up once per stream that the batch names; an event of a stream
    that is missing gets ``unknown_stream``. received_at = max(now_ms, head's received_at). ``rooms``: what users may
    still store outside ``$devices`` and ``$keys``, bytes by user_pk; without a bound where one is missing.
    ``essential``: the events go beyond every bound of bytes.

    Checks in the order of protocol.md section 3 ("The server checks in this order"): the event's own error from
    ``Events.parse``; ``bad_signature``; the author number (duplicate, look-up, ``id_reused``, ``out_of_order``); then,
    for a new event only, ``forbidden`` (kinds 0, 2 and 3 need publish, 4 publish or manage, 1, 5 and 6 manage),
    ``unknown_position`` (``seen`` is above the head, or at it, in this batch or at 0 with another chain),
    ``unprocessable`` (hlc above
    received_at + 10 min, id's time above ``now_ms`` + 10 min, a ttl or a key other than the stream's policy asks for, a
    policy that cannot follow the one in force), ``conflict`` and ``quota_exceeded`` (the stream's bound or the user's
    room; events of kinds 1, 3 and 4 may go ``CONTROL_BYTES`` beyond it, 5 and 6 have a bound of their own). A policy
    holds from the event after its own on. In a stream that is missing every event counts as new. An event that is
    refused changes nothing for those after it.

    Signatures are verified once: verdicts are kept in the ``Events``, for the signer they were computed for.

    Raises ValueError where ``now_ms`` is above 2^48 - 1.
    """

@final
class Flight:
    """One transaction on the socket of an open, idle and unencrypted connection to PostgreSQL, in one write.

    On POSIX systems only. All heads move or none, the events are copied, the transaction is committed, and the session
    is idle again; or there is an error and all of it was rolled back.

    ``move_heads`` and ``copies``, by retention class: names of the prepared statements of queries.sql.
    """
    def __new__(cls, ingested: Ingested, *, move_heads: str, copies: Mapping[int, str]) -> Self: ...
    def fly(self, descriptor: int, timeout_s: float | None) -> bool:
        """Send and receive, without the GIL. Blocks.

        ``descriptor`` is the socket's: nobody else uses it meanwhile, and it stays open.

        Returns:
            Whether everything was answered; ``False`` after ``timeout_s`` seconds, and another call goes on. ``None``:
            for as long as it takes.

        Raises:
            ConnectionError: the connection is lost, or the server's answers are none to what was asked.
            ValueError: no descriptor, no time.
        """
    @property
    def xid(self) -> str | None:
        """The transaction's number, as soon as it was answered."""
    @property
    def error(self) -> dict[int, bytes] | None:
        """The fields of the first error by their codes, as in ``psycopg.pq.DiagnosticField``."""
    @property
    def warned(self) -> bool:
        """Whether the commit warned."""
    @property
    def in_step(self) -> bool:
        """Whether everything was answered and nothing more was said: the connection can be used again."""

@final
class Committer:
    """A thread that decides batches upon what is remembered and commits them, one at a time; it ends with this object.

    On POSIX systems only. It takes the GIL for nothing but a probe.
    """
    def __new__(cls) -> Self:
        """Raises OSError, RuntimeError where there is no thread to be had."""
    def fileno(self) -> int:
        """Readable from when a batch is done until it is taken."""
    def start(
        self,
        submissions: Sequence[Submission],
        heads: RememberedHeads,
        accounts: RememberedAccounts,
        *,
        now_ms: int,
        received_at_ms_max: int,
        generation: int,
        connection: object,
        descriptor: int,
        timeout_s: float,
        move_heads: str,
        copies: Mapping[int, str],
        probe: Callable[[str], None] | None = None,
    ) -> None:
        """Begin with a batch; does not wait. What is stored are the streams' next events, as by ``ingest``.

        It goes this way where every stream is remembered, without a bound of bytes and received up to
        ``received_at_ms_max``, every account with the epoch of its heads and without a quota, every device as live
        without an end, and every position of ``$devices`` that the events name; where no event is ``checked_apart``;
        and where every stream moves, what is stored ``only_moves``, and every event is new or refused.

        ``descriptor`` is the socket of ``connection``, which is open, idle and unencrypted, and kept alive; nobody else
        uses it until the batch is done. ``move_heads`` and ``copies`` as for ``Flight``, ``copies`` of all classes.
        ``probe`` is called in the thread with "before_commit" and "after_commit".

        Raises:
            RuntimeError: another one is on its way.
            ValueError: no descriptor, no time.
        """
    def take(self) -> tuple[Ingested, Flight | None] | None:
        """What became of the batch, as soon as it is done: ``None`` where it does not go this way and nothing was sent.

        Without a flight it is committed, and its heads are remembered. A flight is one that took ``timeout_s`` seconds
        or did not end as they do in general.

        Raises:
            RuntimeError: nothing is done.
            Exception: what the probe raised.
        """

def encode_rows(rows: Sequence[tuple[int, Buffer, int, Buffer, Buffer, Buffer | None]]) -> bytes:
    """Rows (seq, device_id, received_at_ms, header, sig, payload) from the database as ``EventRow``s, trace nil."""

def verify_chain(
    user_key: Buffer, stream: str, seq: int, chain: Buffer, rows: Sequence[tuple[int, int, Buffer, Buffer]]
) -> bytes:
    """Chain after rows (seq, received_at_ms, header, sig) that follow (seq, chain).

    Raises malformed where a row's seq does not follow, or ``chain`` at seq 0 is not the stream's chain_0.
    """

# -- WebSocket frames (RFC 6455 section 5), as a server reads and writes them -----------------------------------------

@final
class FrameReader:
    """One peer's frames: bytes in, whole messages out. Binary messages only; no extension.

    It holds one message of at most the limit and one control frame; nothing between messages.
    """
    def __new__(cls, message_bytes_max: int) -> FrameReader:
        """``message_bytes_max``: largest message."""
    def limit(self, message_bytes_max: int) -> None:
        """From the next frame on messages may have so many bytes."""
    def feed(
        self, data: Buffer
    ) -> tuple[list[bytes], bytes, Literal["closed", "broken", "too_large", "malformed"] | None]:
        """(messages, replies, end) of the next bytes, however they are cut. After its end it takes bytes for nothing.

        ``replies`` are frames to send: pongs, the answer to a close frame, and a close frame with 1002 or 1007 where
        the peer broke RFC 6455. ``end``: ``closed`` by the peer · ``broken``: not RFC 6455 · ``too_large``: a message
        above the limit, 1024 fragments or 256 control frames without a message · ``malformed``: a text message. What
        to say about the last two is the caller's.
        """

def frame_many(messages: Sequence[Buffer | None], sealer: RecordSealer | None = None) -> bytes:
    """Binary messages as unmasked frames, one after the other; with a sealer as its next records.

    ``None`` among them: there the sealer goes on under its next secret, as by ``RecordSealer.rekey``.
    """

def frame_close(code: int, reason: str) -> bytes:
    """A close frame; of the reason as many characters as fit."""

if sys.platform == "linux":
    __all__ += ["SocketHub"]

    @final
    class SocketHub:
        """Many sockets behind one epoll descriptor. No call waits; ``receive`` and ``send`` release the GIL."""
        def __new__(cls, unfinished_bytes_max: int) -> SocketHub:
            """``unfinished_bytes_max``: of all sockets' messages that are not whole yet. Raises OSError."""
        def fileno(self) -> int:
            """Readable while ``receive`` has something to give."""
        @staticmethod
        def accept(listener: int) -> list[tuple[int, str]]:
            """(descriptor, IP address) of connections that have come, at most 64; the caller owns the descriptors.

            ``listener``: the descriptor of a listening socket that does not block. What is set for it holds for them.
            IPv4 is written as such where it came mapped into IPv6. Raises OSError where nothing could be accepted,
            but for the errors that accept(2) has tried again.
            """
        def welcome(self, descriptor: int) -> int:
            """Watch a connected socket, from now on the hub's to close; its token, never given twice.

            It is to send an upgrade request of at most 16 KiB: ``receive`` gives its head and what came behind it, or
            ``gone`` where it sends none. The caller owns the descriptor and gives it away, as ``socket.detach``
            returns it. Raises OSError.
            """
        def upgraded(
            self, token: int, answer: Buffer, rest: Buffer, message_bytes_max: int
        ) -> tuple[list[_Opened], _End | None]:
            """Send bytes as they are; from now on there are frames, in clear, of which ``rest`` came already.

            ``receive`` gives their messages, one chunk's at a time: ``listen`` asks for more. Returns what it would of
            ``rest``: messages, and end. Raises KeyError.
            """
        def listen(self, token: int) -> None:
            """Take what a stranger says next. Raises KeyError, OSError."""
        def begin(self, token: int, records: RecordReader, sealer: RecordSealer | None, message_bytes_max: int) -> None:
            """From now on messages are records; ``sealer`` makes them of what is sent. Raises KeyError, OSError."""
        def farewell(self, token: int, frame: Buffer, ended: bool) -> bool:
            """Send bytes as they are, and nothing behind them; whether the peer is there still.

            What it says is passed over, until it closes (``closed``, ``gone``). ``ended``: it has said that it says
            nothing more, and is told the same. Raises KeyError.
            """
        def remove(self, token: int) -> tuple[int, int]:
            """(descriptor, bytes that were not sent): the socket is the caller's again. Raises KeyError."""
        def discard(self, token: int) -> None:
            """Close a socket with all that waits for it; nothing where it is closed already."""
        def unsent(self, token: int) -> int:
            """Bytes that the socket has not taken. Raises KeyError."""
        def pause(self, token: int, paused: bool) -> None:
            """Whether to take nothing from a socket for now."""
        def receive(
            self,
        ) -> list[tuple[int, list[_Opened], int, _End | None, bool]]:
            """(token, opened, record bytes, end, writable) of ready sockets: at most 256, and 64 KiB from each.

            At 4 MiB, where a message counts for 256 bytes beside its own, it ends: those that were ready and had no
            turn come with the next call, before any that comes again.

            ``opened``: as ``RecordReader.read`` gives it, of so many bytes of records.

            ``end`` as ``FrameReader.feed`` gives it, or ``gone``: the peer, without a word; or ``timeout``: all hold
            more of unfinished messages than they may, and this one's began first. The socket is not watched any more.
            ``writable``: what ``send`` left has gone. Replies have been sent, or wait with the rest.
            """
        def send(self, outgoing: Sequence[tuple[int, Sequence[Buffer | None]]]) -> list[tuple[int, int, bool]]:
            """Send messages to many sockets, as ``frame_many`` makes them, as much as they take.

            (token, unsent, gone) of those where bytes are left, or whose peer is gone. What is left goes by itself.
            """
