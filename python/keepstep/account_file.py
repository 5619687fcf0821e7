"""A whole account as one file: what one server writes, another reads and verifies again.

The file is the line ``MAGIC`` and then frames: a length of four bytes, big-endian, and a MessagePack value. The first
frame says whose account it is, then each stream follows as its signed head and pages of its events, and the last frame
is a hash over all frames before it, so that a file that was cut short is not taken for a whole one.

``account_import`` reads it in.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, BinaryIO, Final

import msgspec
from msgspec import Meta, Struct

from keepstep import _keepstep
from keepstep.errors import KeepstepError, ProtocolError, Pruned
from keepstep.model import DEVICES_STREAM
from keepstep.pages import encode_rows
from keepstep.protocol.messages import (
    INTEGER_MAX,
    KEPT_ROWS_MAX,
    U64,
    Bytes16,
    Bytes32,
    EventRow,
    SignedHead,
    StreamName,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from keepstep.administration import ListedUser
    from keepstep.heads import HeadSigner
    from keepstep.interfaces import Clock, EventLog, StreamInfo
    from keepstep.model import Principal

MAGIC: Final = b"keepstep account 1\n"
CONTENT_TYPE: Final = "application/vnd.keepstep.account"
PAGE_EVENTS_MAX: Final = 256
"""Events in one frame; also what is replayed in one transaction at most."""
PAGE_BYTES_MAX: Final = 1024 * 1024
"""Bytes of events in one frame; one event above it still goes."""
FRAME_BYTES_MAX: Final = 32 * 1024 * 1024
"""Largest frame that is read: the largest payload there can be, and its framing."""
_LENGTH_BYTES: Final = 4
_START: Final = bytes(32)
"""The hash before the first frame."""

Milliseconds = Annotated[int, Meta(ge=0, le=INTEGER_MAX)]


class Begin(Struct, frozen=True, array_like=True, tag=1):
    """``[1, user_key, server_key, epoch, exported_at_ms]``."""

    user_key: Bytes32
    server_key: Bytes32
    epoch: Milliseconds
    exported_at_ms: Milliseconds


class StreamBegin(Struct, frozen=True, array_like=True, tag=2):
    """``[2, name, signed head]``: the events up to that head follow."""

    name: StreamName
    head: SignedHead


class Rows(Struct, frozen=True, array_like=True, tag=3):
    """``[3, [row ...]]``: consecutive events of the stream that began last."""

    rows: list[EventRow]


class Gone(Struct, frozen=True, array_like=True, tag=5):
    """``[5, to, chain, {device_id: [n, hash]}, [row ...], signed head of to]``: events up to ``to`` are gone.

    Of the stream that began last, before its events; the rows are those that are kept of what is gone.
    """

    to_seq: Annotated[int, Meta(ge=1, le=INTEGER_MAX)]
    chain: Bytes32
    authors: dict[Bytes16, tuple[U64, Bytes32]]
    kept: Annotated[list[EventRow], Meta(max_length=KEPT_ROWS_MAX)]
    head: SignedHead


class End(Struct, frozen=True, array_like=True, tag=4):
    """``[4, hash]``: of each frame in turn, ``BLAKE3(hash before ‖ frame)``."""

    digest: Bytes32


_FRAME: Final = msgspec.msgpack.Decoder(Begin | StreamBegin | Rows | End | Gone)
_ROWS_HEAD: Final = b"\x92\x03"
"""An array of two that begins with 3."""


class AccountFileError(KeepstepError):
    """An account file cannot be read in; the message says why, and at which event, in plain words."""


# -- writing --------------------------------------------------------------------------------------------------------


class AccountExport:
    """The pieces of an account file: an async iterator, one frame at a time.

    Args:
        log: what is exported.
        signer: signs the heads.
        principal: whose account; for its operator the user.
        clock: the one ``received_at`` follows.
        server_key: the server's identity key, 32 bytes.
        check: called before each piece; what it raises ends the file without its last frame.
    """

    def __init__(
        self,
        log: EventLog,
        signer: HeadSigner,
        principal: Principal | ListedUser,
        clock: Clock,
        *,
        server_key: bytes,
        check: Callable[[], Awaitable[None]],
    ) -> None:
        self._log = log
        self._signer = signer
        self._principal = principal
        self._clock = clock
        self._server_key = server_key
        self._check = check
        self._digest = _START
        self._streams: deque[StreamInfo] | None = None
        self._stream: StreamInfo | None = None
        self._after = 0
        self._is_whole = True
        self._ended = False

    def __aiter__(self) -> AccountExport:
        return self

    async def __anext__(self) -> bytes:
        """The next piece. Raises ProtocolError where the log cannot be read on."""
        if self._ended:
            raise StopAsyncIteration
        await self._check()
        if self._streams is None:
            self._streams = deque(await self._log.streams(self._principal.user_pk))
            now_ms = self._clock.now_ms()
            begin = Begin(self._principal.user_key, self._server_key, self._signer.epoch, now_ms)
            return MAGIC + self._frame(msgspec.msgpack.encode(begin))
        if self._stream is not None and not self._is_whole:
            return self._frame(await self._beginning(self._stream))
        if self._stream is not None and self._after < self._stream.head.seq:
            return self._frame(await self._rows(self._stream))
        if not self._streams:
            self._ended = True
            return self._frame(msgspec.msgpack.encode(End(self._digest)))
        self._stream, self._after = self._streams.popleft(), 0
        self._is_whole = self._stream.tail is None
        head = self._stream.head
        signed = self._signer.sign(self._principal.user_key, self._stream.name, seq=head.seq, chain=head.chain)
        return self._frame(msgspec.msgpack.encode(StreamBegin(self._stream.name, signed)))

    async def _beginning(self, stream: StreamInfo) -> bytes:
        """The first events of a stream that begins later in the log: out of the archive, or what stands for them."""
        try:
            rows = await self._rows(stream)
        except Pruned:
            return await self._gone(stream)
        self._is_whole = True
        return rows

    async def _gone(self, stream: StreamInfo) -> bytes:
        """What stands for the beginning of a stream that is gone."""
        prefix = await self._log.pruned(self._principal.user_pk, stream.name)
        if prefix is None or prefix.to.seq > stream.head.seq:
            raise ProtocolError("unavailable", "the stream has changed since the export began")
        self._is_whole, self._after = True, prefix.to.seq
        to = prefix.to
        head = self._signer.sign(self._principal.user_key, stream.name, seq=to.seq, chain=to.chain)
        kept: list[EventRow] = [(*row, None) for row in prefix.kept]
        return msgspec.msgpack.encode(Gone(to.seq, to.chain, prefix.authors, kept, head))

    async def _rows(self, stream: StreamInfo) -> bytes:
        page = await self._log.read(
            self._principal.user_pk,
            stream.name,
            after=self._after,
            events_max=min(PAGE_EVENTS_MAX, stream.head.seq - self._after),
            bytes_max=PAGE_BYTES_MAX,
            now_ms=self._clock.now_ms(),
        )
        if page.after != self._after or page.count != page.last_seq - page.after or not page.count:
            raise ProtocolError("unavailable", "the log does not continue a position")
        self._after = page.last_seq
        return _ROWS_HEAD + encode_rows(page)

    def _frame(self, value: bytes) -> bytes:
        self._digest = _keepstep.blake3(self._digest + value)
        return len(value).to_bytes(_LENGTH_BYTES, "big") + value


# -- reading --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _StreamPlace:
    """Where a stream is in a file: its head, the offset and length of each page, and what of it is gone."""

    head: SignedHead
    pages: list[tuple[int, int]]
    gone: list[Gone]


class AccountFile:
    """An account file that is whole.

    Args:
        file: open for reading, at its beginning; used until the object is not.

    Raises:
        AccountFileError: it is none, or not a whole one.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        if file.read(len(MAGIC)) != MAGIC:
            raise AccountFileError("this is not an account file")
        self.streams: dict[str, _StreamPlace] = {}
        self.begin = self._scan()

    def rows(self, stream: str) -> Iterator[EventRow]:
        """The events of a stream, in order."""
        for offset, length in self.streams[stream].pages:
            self._file.seek(offset)
            page = _FRAME.decode(self._file.read(length))
            assert isinstance(page, Rows)
            yield from page.rows

    def _scan(self) -> Begin:
        """Look at every frame once, and remember where the events are."""
        begin: Begin | None = None
        place: _StreamPlace | None = None
        digest = _START
        while True:
            value = self._next()
            try:
                frame = _FRAME.decode(value)
            except (ValueError, RecursionError) as exc:
                raise AccountFileError("the file is damaged: a frame does not have its form") from exc
            match frame:
                case Begin() if begin is None:
                    begin = frame
                case StreamBegin() if begin is not None and frame.name not in self.streams:
                    place = self.streams[frame.name] = _StreamPlace(frame.head, [], [])
                case Rows() if place is not None:
                    place.pages.append((self._file.tell() - len(value), len(value)))
                case Gone() if place is not None and not place.pages and not place.gone:
                    place.gone.append(frame)
                case End() if begin is not None and frame.digest == digest and DEVICES_STREAM in self.streams:
                    return begin
                case _:
                    raise AccountFileError("the file is damaged: its frames do not follow each other")
            digest = _keepstep.blake3(digest + value)

    def _next(self) -> bytes:
        length = int.from_bytes(self._file.read(_LENGTH_BYTES), "big")
        value = self._file.read(length) if length <= FRAME_BYTES_MAX else b""
        if not value or len(value) != length:
            raise AccountFileError("the file was cut short or is damaged")
        return value
