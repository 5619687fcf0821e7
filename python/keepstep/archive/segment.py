"""One segment: consecutive events of one stream, compressed, behind a manifest that the server signs.

``MAGIC ‖ length of the manifest (4 bytes, big-endian) ‖ manifest ‖ signature (64) ‖ zstd frame``. The frame is one
MessagePack array of events. See docs/reference/archive-format.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Final

import msgspec
import zstandard
from msgspec import Meta, Struct

from keepstep import _keepstep
from keepstep.errors import ArchiveError, ProtocolError
from keepstep.model import Position
from keepstep.protocol.chain import chain_next, event_hash
from keepstep.protocol.codec import decode_strict, encode
from keepstep.protocol.event import decode_header
from keepstep.protocol.messages import U64, Bytes16, Bytes32, Bytes64, StreamName

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from keepstep.eventlog.retention import TailAuthors

MAGIC: Final = b"keepstep segment 1\n"
SIGNATURE_PREFIX: Final = b"keepstep/v1/segment\0"
USER_CONTEXT: Final = "keepstep/v1/archive-user"
STREAM_CONTEXT: Final = "keepstep/v1/archive-stream"
LEVEL: Final = 9
"""Of zstd: written once, off the path of any device."""
ROWS_MAX: Final = 65_536
"""Most events of a segment that is read."""
BYTES_MAX: Final = 64 * 1024 * 1024
"""Largest segment that is read, and what it is unpacked to: the most that may be set, with one largest event."""
MANIFEST_BYTES_MAX: Final = 1024 * 1024
"""Largest manifest: authors take about 60 bytes each, twice."""
_LENGTH_BYTES: Final = 4
_SIGNATURE_BYTES: Final = 64
_PREFIX_BYTES: Final = 16

SegmentRow = tuple[U64, Bytes16, U64, bytes, Bytes64, bytes | None]
"""``[seq, device_id, received_at_ms, header, sig, payload|nil]``."""
Authors = dict[Bytes16, tuple[U64, Bytes32]]


class Manifest(Struct, frozen=True, array_like=True, tag=1):
    """What a segment holds: an array that begins with 1, and these fields in this order.

    Attributes:
        user_key: whose.
        stream: its name.
        from_seq: the events after this one.
        from_chain: the chain there.
        from_authors: each author's last number and the hash of that event there, by device id, ascending.
        from_at_ms: ``received_at`` of the event at ``from_seq``, or earlier.
        to_seq: the last event.
        to_chain: the chain there.
        to_authors: as ``from_authors``, there.
        to_at_ms: its ``received_at``.
        rows_bytes: size of the events before they were compressed.
        digest: BLAKE3 of the zstd frame.
    """

    user_key: Bytes32
    stream: StreamName
    from_seq: U64
    from_chain: Bytes32
    from_authors: Authors
    from_at_ms: U64
    to_seq: U64
    to_chain: Bytes32
    to_authors: Authors
    to_at_ms: U64
    rows_bytes: U64
    digest: Bytes32


_MANIFEST: Final = msgspec.msgpack.Decoder(Manifest)
_ROWS: Final = msgspec.msgpack.Decoder(Annotated[list[SegmentRow], Meta(min_length=1, max_length=ROWS_MAX)])


@dataclass(frozen=True, slots=True)
class Edge:
    """One end of a segment.

    Attributes:
        position: its event, and the chain there.
        authors: each author's last number and the hash of that event, by device id.
        received_at_ms: of the event, or earlier.
    """

    position: Position
    authors: TailAuthors
    received_at_ms: int


@dataclass(frozen=True, slots=True)
class Segment:
    """A segment that is what the server signed; its rows lead from one end to the other.

    Attributes:
        manifest: as signed.
        rows: the events.
        chains: after each of them.
    """

    manifest: Manifest
    rows: Sequence[SegmentRow]
    chains: Sequence[bytes]


def pack(
    secret: bytes, user_key: bytes, stream: str, *, start: Edge, end: Edge, rows: Sequence[SegmentRow]
) -> tuple[str, bytes]:
    """A segment: the name of its object, and its bytes. The same events make the same segment.

    Args:
        secret: the seed of the server's identity key.
        user_key: whose events.
        stream: of which.
        start: where they begin.
        end: the last of them.
        rows: the events.
    """
    body = msgspec.msgpack.encode(rows)
    packed = zstandard.ZstdCompressor(level=LEVEL, write_checksum=False, write_content_size=True).compress(body)
    digest = _keepstep.blake3(packed)
    manifest = encode(
        Manifest(
            user_key,
            stream,
            start.position.seq,
            start.position.chain,
            _sorted(start.authors),
            start.received_at_ms,
            end.position.seq,
            end.position.chain,
            _sorted(end.authors),
            end.received_at_ms,
            len(body),
            digest,
        )
    )
    signature = _keepstep.ed25519_sign(secret, SIGNATURE_PREFIX + manifest)
    data = b"".join((MAGIC, len(manifest).to_bytes(_LENGTH_BYTES, "big"), manifest, signature, packed))
    name = f"{stream_folder(user_key, stream)}{start.position.seq:016x}-{end.position.seq:016x}-{digest[:16].hex()}"
    return name, data


def user_folder(user_key: bytes) -> str:
    """Where the segments of a user are: it names nobody to who does not know the user id."""
    return f"{_keepstep.blake3_derive(USER_CONTEXT, user_key)[:_PREFIX_BYTES].hex()}/"


def stream_folder(user_key: bytes, stream: str) -> str:
    """Where the segments of a stream are; the name of the stream cannot be read off it."""
    return f"{user_folder(user_key)}{_keepstep.blake3_derive(STREAM_CONTEXT, user_key + stream.encode())[:16].hex()}/"


def unpack(data: bytes, keys: Sequence[bytes]) -> Segment:
    """Read and verify a segment. Blocks for some milliseconds a mebibyte.

    Signatures of the events' authors are not verified: that is for who reads them, and for ``verifying``.

    Args:
        data: the object's bytes.
        keys: the server's identity keys, of now and before.

    Raises:
        ArchiveError: it is not what was written: ``segment_damaged`` or ``segment_forged``.
    """
    manifest, packed = read_manifest(data, keys)
    if _keepstep.blake3(packed) != manifest.digest:
        raise ArchiveError("segment_damaged", "the events are not those of which the manifest has the digest")
    if manifest.rows_bytes > BYTES_MAX:
        raise ArchiveError("segment_damaged", "the events are larger than any segment is made")
    try:
        body = zstandard.ZstdDecompressor().decompress(packed, max_output_size=manifest.rows_bytes)
        rows = _ROWS.decode(body)
    except (zstandard.ZstdError, ValueError, RecursionError) as exc:
        raise ArchiveError("segment_damaged", "the events cannot be unpacked") from exc
    return Segment(manifest, rows, _chains(manifest, rows))


def read_manifest(data: bytes, keys: Sequence[bytes]) -> tuple[Manifest, bytes]:
    """The manifest of a segment, if the server signed it, and what follows it. Raises ArchiveError as ``unpack``."""
    head_bytes = len(MAGIC) + _LENGTH_BYTES
    length = int.from_bytes(data[len(MAGIC) : head_bytes], "big")
    signed_end = head_bytes + length
    end = signed_end + _SIGNATURE_BYTES
    if not data.startswith(MAGIC) or length > MANIFEST_BYTES_MAX or len(data) <= end:
        raise ArchiveError("segment_damaged", "it is no segment, or was cut short")
    signed, signature = data[head_bytes:signed_end], data[signed_end:end]
    if not any(_is_signed(key, signed, signature) for key in keys):
        raise ArchiveError("segment_forged", "its manifest is not signed by this server")
    try:
        manifest = decode_strict(_MANIFEST, signed, "a manifest", bytes_max=MANIFEST_BYTES_MAX)
    except ProtocolError as exc:
        raise ArchiveError("segment_damaged", "its manifest does not have its form") from exc
    return manifest, data[end:]


def without(segment: Segment, erased: Collection[tuple[bytes, int]]) -> list[SegmentRow]:
    """The rows of a segment without the payloads of some events, by (device_id, author number)."""
    rows: list[SegmentRow] = []
    for row in segment.rows:
        is_erased = row[5] is not None and (row[1], decode_header(row[3]).n) in erased
        rows.append((*row[:5], None) if is_erased else row)
    return rows


def expires_at_ms(row: SegmentRow) -> int | None:
    """When the payload of a row has to go, unix milliseconds; ``None`` for never, or where it is gone."""
    ttl_s = None if row[5] is None else decode_header(row[3]).ttl_s
    return None if ttl_s is None else row[2] + ttl_s * 1000


def edges(manifest: Manifest) -> tuple[Edge, Edge]:
    """Both ends of a segment."""
    return (
        Edge(Position(manifest.from_seq, manifest.from_chain), dict(manifest.from_authors), manifest.from_at_ms),
        Edge(Position(manifest.to_seq, manifest.to_chain), dict(manifest.to_authors), manifest.to_at_ms),
    )


def _is_signed(key: bytes, signed: bytes, signature: bytes) -> bool:
    try:
        _keepstep.ed25519_verify(key, SIGNATURE_PREFIX + signed, signature)
    except ProtocolError:
        return False
    return True


def _sorted(authors: TailAuthors) -> Authors:
    return dict(sorted(authors.items()))


def _chains(manifest: Manifest, rows: Sequence[SegmentRow]) -> list[bytes]:
    """The chain after each row. Raises ArchiveError where they do not lead from one end to the other."""
    chains: list[bytes] = []
    chain = manifest.from_chain
    for seq, row in enumerate(rows, manifest.from_seq + 1):
        if row[0] != seq:
            raise ArchiveError("segment_damaged", f"the event {seq} is not where it should be")
        chain = chain_next(_keepstep, chain, seq, row[2], event_hash(_keepstep, row[3], row[4]))
        chains.append(chain)
        if row[5] is not None:
            _check_payload(seq, row[3], row[5])
    if (manifest.from_seq + len(rows), chain) != (manifest.to_seq, manifest.to_chain):
        raise ArchiveError("segment_damaged", "its events do not lead to its end")
    return chains


def _check_payload(seq: int, header: bytes, payload: bytes) -> None:
    try:
        expected = decode_header(header).payload_hash
    except ProtocolError as exc:
        raise ArchiveError("segment_damaged", f"the header of the event {seq} does not have its form") from exc
    if _keepstep.blake3(payload) != expected:
        raise ArchiveError("segment_damaged", f"the payload of the event {seq} is not the one that was signed")
