"""A device over REST alone: for programs that run now and then, where nothing keeps a WebSocket open.

It is the same device, with the same file: what it publishes is numbered, sealed and signed by its outbox, what it
reads is verified against the same heads and kept in the same log. It only asks instead of being told.

::

    async with open_rest_device(path) as device:
        receipt = await device.publish("notes", b"hello")
        for event in await device.read("notes"):
            print(event.seq, event.data)
"""

from __future__ import annotations

import contextlib
import uuid
from typing import TYPE_CHECKING, Annotated, Final
from urllib.parse import quote, urlencode

import msgspec
import trio
from msgspec import Meta

from keepstep.client import crypto
from keepstep.client.accounts import register
from keepstep.client.environment import SYSTEM
from keepstep.client.follower import Follower
from keepstep.client.http import raise_for_problem
from keepstep.client.keys import Keyring
from keepstep.client.locallog import LocalLog
from keepstep.client.outbox import Draft, Outbox
from keepstep.client.publication import Receipt
from keepstep.client.rest import JSON, RestClient, decode_answer
from keepstep.client.store import check_live, open_store
from keepstep.client.subscription import EventSource, check_readable
from keepstep.errors import ERRORS, ClientError, ProtocolError, Retry, SessionNeeded
from keepstep.model import DEVICES_STREAM, KEYS_STREAM, Position
from keepstep.protocol.chain import decode_head, verify_head
from keepstep.protocol.messages import CaughtUp, Events, Resumed
from keepstep.validation import format_base64url, parse_base64url

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from keepstep.client.environment import Environment
    from keepstep.client.follower import Arrived, Outcome
    from keepstep.client.outbox import Entry
    from keepstep.client.store import Store
    from keepstep.client.subscription import Event
    from keepstep.client.worker import Worker
    from keepstep.protocol.messages import EventRow, SignedHead

PAGE_EVENTS: Final = 500
"""Events asked for at a time."""
PUBLISH_EVENTS_MAX: Final = 256
PUBLISH_BYTES_MAX: Final = 1024 * 1024
"""What one publish holds at most (protocol.md section 4)."""
WAIT_S_MAX: Final = 20
"""Longest wait for an event, seconds: well within the time of one request."""
CATCH_UPS_MAX: Final = 10
"""Tries to reach the head of a stream in which others write all the time."""
_FIELD_BYTES_MAX: Final = 32 * 1024 * 1024
_NO_HASH: Final = bytes(32)

_Hex32 = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
_Uuid = Annotated[str, Meta(pattern="^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")]


class ShownHead(msgspec.Struct, frozen=True):
    """A signed head as REST shows it."""

    head: str
    sig: str


class _Author(msgspec.Struct, frozen=True):
    last_n: int
    last_hash: _Hex32


class StreamPlace(msgspec.Struct, frozen=True):
    """Where a stream ends, as REST shows it."""

    signed_head: ShownHead


class _Stream(StreamPlace, frozen=True):
    """A stream, as far as it matters here."""

    author: _Author


class PageEvent(msgspec.Struct, frozen=True):
    """An event as REST shows it."""

    seq: int
    device_id: _Uuid
    received_at_ms: int
    header: str
    sig: str
    payload: str | None


class EventPage(msgspec.Struct, frozen=True):
    """Consecutive events."""

    events: list[PageEvent]
    chain: _Hex32
    head_seq: int


class _Accepted(msgspec.Struct, frozen=True, tag_field="result", tag="accepted"):
    count: int
    first_seq: int
    received_at_ms: int
    chain: _Hex32


class _Duplicate(msgspec.Struct, frozen=True, tag_field="result", tag="duplicate"):
    seq: int | None
    received_at_ms: int | None
    chain: _Hex32 | None


class _Refused(msgspec.Struct, frozen=True, tag_field="result", tag="refused"):
    code: str


class _Published(msgspec.Struct, frozen=True):
    """What became of each event of a publish."""

    results: list[_Accepted | _Duplicate | _Refused]


class RestDevice:
    """A device over REST. ``open_rest_device`` makes it; one task at a time uses it."""

    def __init__(self, store: Store, worker: Worker, environment: Environment, client: RestClient) -> None:
        self._store = store
        self._worker = worker
        self._client = client
        self._log = LocalLog(store)
        self._keyring = Keyring(store.content_keys())
        # Each needs the other: what is signed says what was read, and what was acknowledged is compared with it.
        self._outbox = outbox = Outbox(
            store,
            self._keyring,
            environment,
            lambda stream: self._follower.position(stream),
            lambda stream: stream in self._follower.followed,
        )
        self._follower = Follower(store, self._log, self._keyring, environment, outbox.settle_within)
        self._source = EventSource(self._log, self._keyring, worker, store.identity.user_key)
        self._server_epoch = 0
        client.follow_server(lambda: self._follower.account.announcements, self._repin)

    async def _repin(self, server_key: bytes) -> None:
        await self._worker.run(lambda: self._follower.repin(server_key))

    @property
    def client(self) -> RestClient:
        """For everything else that REST offers, with the same token."""
        return self._client

    async def publish(self, stream: str, data: bytes) -> Receipt:
        """Encrypt, sign, keep and send an event. As ``publish_many``, of one."""
        return (await self.publish_many(stream, [data]))[0]

    async def publish_many(self, stream: str, data: Sequence[bytes]) -> list[Receipt]:
        """Encrypt, sign and keep events, and wait until the server has them on its disk.

        Raises:
            ClientError: they cannot be published like that; or the server cannot be reached or cannot take them now:
                they are in the outbox, and the next publish, over REST or WebSocket, sends them.
            SessionNeeded: the server was restored, or has other events of this device; they are in the outbox.
            ProtocolError: the server refused an event for good.
            VerificationError: the server lies about this account.

        After a cancellation they are in the outbox or not, and on the server or not; nothing is stored twice.
        """
        await self._get_ready()
        entries = await self._worker.run(lambda: self._outbox.add([Draft(stream, each) for each in data], sending=True))
        receipts: dict[int, Receipt] = {}
        while waiting := await self._worker.run(self._next_batch):
            receipts |= await self._send(waiting)
        return [receipts[entry.entry] for entry in entries]

    async def sign(self, stream: str, data: bytes) -> bytes:
        """Encrypt, sign and keep an event that something else posts to ``/api/v1/events``, as the body to post.

        The body begins with what waits in the outbox already. Until a publish or a session of this device has heard
        that the events are stored they stay there, and are sent again: that does no harm.

        Raises:
            ClientError: it cannot be published like that, or the server cannot be reached.
            ProtocolError, VerificationError: as ``publish_many``.

        After a cancellation it is in the outbox or not.
        """
        await self._get_ready()
        await self._worker.run(lambda: self._outbox.add([Draft(stream, data)], sending=True))
        return _body(await self._worker.run(self._next_batch))

    async def read(self, stream: str, *, after: int = 0, wait_s: int = 0) -> list[Event]:
        """Verified, decrypted events with a seq above ``after``, up to the end of the stream; none where there is none.

        Args:
            stream: 1 to 128 of ``A-Z a-z 0-9 . _ : @ / $ -``, not beginning with ``$``.
            after: the last one that is known.
            wait_s: how long to wait where there is no new one, seconds, at most 20.

        Raises:
            ClientError: that is no name for a stream; the server cannot be reached.
            SessionNeeded: the server was restored to a moment before what this device has read, or has pruned what
                comes after it: open the device with ``open_device`` once.
            ProtocolError: the server does not let this device read it.
            VerificationError: the server or an author lies about it.

        After a cancellation what was read is kept, and not read again.
        """
        check_readable(stream, self._store.identity.device_id)
        await self._follow(stream, wait_s=min(wait_s, WAIT_S_MAX), after=after)
        return await self._worker.run(lambda: self._kept(stream, after))

    def _kept(self, stream: str, after: int) -> list[Event]:
        events: list[Event] = []
        while rows := self._log.read(stream, after=after, events_max=PAGE_EVENTS):
            opened = [self._source.open(row, decided=True) for row in rows]
            events += [event for event in opened if event is not None]
            after = rows[-1].seq
        return events

    # -- reading ----------------------------------------------------------------------------------------------------

    async def _get_ready(self) -> None:
        """Others accept what this device writes, and can read it."""
        await self._follow(DEVICES_STREAM)
        await self._follow(KEYS_STREAM)
        if self._store.identity.device_id not in self._follower.account.devices or not self._keyring.all():
            raise ClientError("this device may not write: it is not enrolled, or has not been given a content key")

    async def _follow(self, stream: str, *, wait_s: int = 0, after: int = 0) -> None:
        """Read a stream to its head, verified, into this device's log; ``$devices`` and ``$keys`` first."""
        if stream not in (DEVICES_STREAM, KEYS_STREAM):
            await self._follow(DEVICES_STREAM)
            await self._follow(KEYS_STREAM)
        self._follower.follow(stream, "start")
        for _ in range(CATCH_UPS_MAX):
            self._follower.ask_from(stream)
            shown = await self._stream(stream)
            await self._check_restored(stream, None if shown is None else signed_head(shown.signed_head))
            if shown is None:
                await self._apply([Resumed(stream, "contiguous", None, (0, _NO_HASH))])
                return
            head = signed_head(shown.signed_head)
            author = shown.author.last_n, bytes.fromhex(shown.author.last_hash)
            await self._apply([Resumed(stream, "contiguous", head, author)])
            position = self._follower.position(stream)
            if decode_head(head[0]).seq == position.seq:
                safe_at_ms = self._store.safe_at_ms()  # as a session told it last: REST does not
                await self._apply([CaughtUp(stream, head, safe_at_ms)])
                if not wait_s or position.seq > after:
                    return
            await self._read_pages(stream, wait_s=wait_s)
            wait_s = 0
        raise ClientError(f"{stream} grows faster than it can be read")

    async def _read_pages(self, stream: str, *, wait_s: int) -> None:
        while True:
            after = self._follower.position(stream).seq
            page = await self._page(stream, after=after, events_max=PAGE_EVENTS, wait_s=wait_s)
            if page.events:
                await self._apply([Events(stream, [to_row(event) for event in page.events], bytes.fromhex(page.chain))])
            if not page.events or page.head_seq <= page.events[-1].seq:
                return
            wait_s = 0

    async def _page(self, stream: str, *, after: int, events_max: int, wait_s: int = 0) -> EventPage:
        query = urlencode({"stream": stream, "after": after, "limit": events_max, "wait_s": wait_s})
        response = await self._client.request("GET", f"/api/v1/events?{query}")
        try:
            raise_for_problem(response)
        except ProtocolError as refusal:
            if refusal.code == "pruned":
                raise SessionNeeded(stream, "pruned") from refusal
            raise
        return decode_answer(response, EventPage)

    async def _check_restored(self, stream: str, signed: SignedHead | None) -> None:
        """A restore that this device has not heard of in a session left what it holds of a stream.

        Only sessions bring the signed rewinds (protocol.md section 4, "After a restore"); without them what such a
        server shows would look like a lie. Raises SessionNeeded where the stream went back.
        """
        head = None
        if signed is not None:
            try:
                head = verify_head(crypto, self._store.identity.server_key, signed)
            except ProtocolError:
                return  # the follower calls it out
            self._server_epoch = max(self._server_epoch, head.epoch)
        if self._server_epoch <= self._store.epoch():
            return
        for known in (self._follower.position(stream), self._store.receipt(stream)):
            if known.seq and (head is None or not await self._stands(stream, known, Position(head.seq, head.chain))):
                raise SessionNeeded(stream, "restored")

    async def _stands(self, stream: str, known: Position, head: Position) -> bool:
        """Whether the server still has a position in its place."""
        if known.seq >= head.seq:
            return known == head
        page = await self._page(stream, after=known.seq - 1, events_max=1)
        return bytes.fromhex(page.chain) == known.chain

    async def _stream(self, stream: str) -> _Stream | None:
        response = await self._client.request("GET", f"/api/v1/streams/{quote(stream, safe='/$@:')}")
        if response.status == 404:
            return None
        raise_for_problem(response)
        return decode_answer(response, _Stream)

    async def _apply(self, arrived: Sequence[Arrived]) -> None:
        """Verify and keep what came; where it names a place in ``$devices`` beyond what is known, read that first."""
        outcome: Outcome = await self._worker.run(lambda: self._follower.apply(arrived))
        if outcome.waiting:
            await self._follow(DEVICES_STREAM)
            waiting = outcome.waiting
            await self._worker.run(lambda: self._follower.apply(waiting, again=len(waiting), devices_complete=True))
        for message in arrived:
            failure = self._follower.followed[message.stream].failure
            if failure is not None:
                raise failure

    # -- writing ----------------------------------------------------------------------------------------------------

    def _next_batch(self) -> list[Entry]:
        """The next events to send, in the order of the outbox; marked as sent before they are."""
        batch: list[Entry] = []
        left = PUBLISH_BYTES_MAX
        for entry in self._outbox.pending(skip=(), held=(), entries_max=PUBLISH_EVENTS_MAX):
            left -= entry.size_bytes
            if batch and left < 0:
                break
            batch.append(entry)
        # protocol.md section 3: "A device writes the signed bytes to its store, and marks them sent"
        self._outbox.mark_sent(batch)
        return batch

    async def _send(self, batch: Sequence[Entry]) -> dict[int, Receipt]:
        """Publish a batch; receipts by number in the outbox."""
        response = await self._client.request("POST", "/api/v1/events", body=_body(batch), content_type=JSON)
        raise_for_problem(response)
        published = decode_answer(response, _Published)
        return await self._worker.run(lambda: self._take(batch, published.results))

    def _take(self, batch: Sequence[Entry], results: Sequence[_Accepted | _Duplicate | _Refused]) -> dict[int, Receipt]:
        receipts: dict[int, Receipt] = {}
        refused: tuple[Entry, str] | None = None
        at = 0
        for result in results:
            count = result.count if isinstance(result, _Accepted) else 1
            entries = batch[at : at + count]
            if len(entries) != count:
                break
            at += count
            if isinstance(result, _Refused):
                refused = refused or (entries[0], result.code)
                continue
            places, last = _places(result, entries)
            receipts |= places
            self._outbox.accept(entries[-1], last, result.received_at_ms)
        self._outbox.settle()
        if refused is not None:
            self._refuse(*refused)
        if at != len(batch):
            raise ClientError("the server's answer does not fit what was published")
        return receipts

    def _refuse(self, entry: Entry, code: str) -> None:
        """The first event that was refused; those after it are out of order because of it."""
        row = ERRORS.get(code, ERRORS["internal"])
        if row.retry is Retry.NEVER and code != "id_reused":
            self._outbox.refuse(entry)
            raise ProtocolError(row.code, f"the server refused an event for {entry.stream}")
        if row.retry is Retry.LATER:
            raise ClientError(f"the server cannot take events now ({row.meaning}); they are safe in the outbox")
        raise SessionNeeded(entry.stream, "diverged")


def _body(batch: Sequence[Entry]) -> bytes:
    """Events as ``POST /api/v1/events`` takes them."""
    events = [
        {
            "header": format_base64url(entry.header),
            "sig": format_base64url(entry.sig),
            "payload": format_base64url(entry.payload),
        }
        for entry in batch
    ]
    return msgspec.json.encode({"events": events})


def _places(result: _Accepted | _Duplicate, entries: Sequence[Entry]) -> tuple[dict[int, Receipt], Position | None]:
    """Receipts, and the last place that the server named."""
    last = entries[-1]
    if isinstance(result, _Duplicate):
        known = result.seq is not None and result.chain is not None
        place = Position(result.seq or 0, bytes.fromhex(result.chain or "")) if known else None
        return {last.entry: Receipt(last.stream, last.n, result.seq, result.received_at_ms)}, place
    receipts = {
        entry.entry: Receipt(entry.stream, entry.n, seq, result.received_at_ms)
        for seq, entry in enumerate(entries, result.first_seq)
    }
    return receipts, Position(result.first_seq + result.count - 1, bytes.fromhex(result.chain))


@contextlib.asynccontextmanager
async def open_rest_device(
    path: Path,
    *,
    rest_url: str | None = None,
    environment: Environment = SYSTEM,
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[RestDevice]:
    """Open a device's file for use over REST until the block ends; nothing is asked of the server yet.

    Args:
        path: the device's file.
        rest_url: where REST is, if not where it was; it is part of what the device signs.
        environment: clock and randomness.
        tls: for ``https``; the system's trusted certificates by default.

    Raises:
        ClientError: the file is not there, not a device's, or in use by another process.
    """
    store = await trio.to_thread.run_sync(open_store, path)
    with contextlib.closing(store):
        yield await make_rest_device(store, rest_url=rest_url, environment=environment, tls=tls)


async def make_rest_device(
    store: Store, *, rest_url: str | None = None, environment: Environment = SYSTEM, tls: ssl.SSLContext | None = None
) -> RestDevice:
    """The device of an open file, registered where it never was. As ``open_rest_device``."""
    check_live(store)
    client = RestClient(store.identity, rest_url=rest_url, environment=environment, tls=tls)
    if store.genesis() is not None:
        await register(store, environment, tls=tls)
    worker = environment.make_worker()
    return await worker.run(lambda: RestDevice(store, worker, environment, client))


def to_row(event: PageEvent) -> EventRow:
    """The event as a session would have brought it. Raises ProtocolError where a field is not what it should be."""

    def decoded(text: str) -> bytes:
        return parse_base64url(text, bytes_max=_FIELD_BYTES_MAX, what="a field of an event")

    return (
        event.seq,
        uuid.UUID(event.device_id).bytes,
        event.received_at_ms,
        decoded(event.header),
        decoded(event.sig),
        None if event.payload is None else decoded(event.payload),
        None,
    )


def signed_head(shown: ShownHead) -> SignedHead:
    """The head as a session would have brought it, not verified. Raises ProtocolError."""
    return (
        parse_base64url(shown.head, bytes_max=_FIELD_BYTES_MAX, what="a head"),
        parse_base64url(shown.sig, bytes_max=_FIELD_BYTES_MAX, what="a signature"),
    )
