"""Up to where a device has written, in every stream of its user: what a revocation accepts (protocol.md section 1).

A number is believed where this device has verified the stream from its beginning. Other streams are read once, over
REST, from their first event to their head, verified and not kept.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from urllib.parse import urlencode

import msgspec
import trio

from keepstep.client import crypto
from keepstep.client.http import raise_for_problem
from keepstep.client.rest import decode_answer
from keepstep.client.restdevice import PAGE_EVENTS, EventPage, to_row
from keepstep.errors import ClientError
from keepstep.model import DEVICES_STREAM, KEYS_STREAM, is_inbox
from keepstep.protocol.reader import BehindDevices, StreamVerifier
from keepstep.protocol.streamstate import state_at_start

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Sequence

    from keepstep.client.follower import Follower
    from keepstep.client.rest import RestClient
    from keepstep.client.store import Store
    from keepstep.client.worker import Worker
    from keepstep.protocol.messages import EventRow
    from keepstep.protocol.streamstate import Author

STREAMS_PER_PAGE: Final = 100
DEVICES_WAIT_S: Final = 30
"""How long an event waits for a position in ``$devices`` that its author knew, seconds."""
STREAMS_MAX: Final = 8192
"""Streams that a revocation can name."""


class _Stream(msgspec.Struct, frozen=True):
    stream: str


class _Streams(msgspec.Struct, frozen=True):
    """One page of the list of streams."""

    streams: list[_Stream]
    next_cursor: str | None = None


class Survey:
    """Looks through a user's streams for one device.

    Args:
        store: the device's file.
        follower: what it has verified.
        worker: for calls that block.
        client: REST as this device.
        catch_up: waits until everything that the server has of a stream is verified here.
        read_devices: waits until ``$devices`` is verified up to a seq.
    """

    def __init__(
        self,
        store: Store,
        follower: Follower,
        worker: Worker,
        client: RestClient,
        catch_up: Callable[[str], Awaitable[None]],
        read_devices: Callable[[int], Awaitable[None]],
    ) -> None:
        self._store = store
        self._follower = follower
        self._worker = worker
        self._client = client
        self._catch_up = catch_up
        self._read_devices = read_devices

    async def author_numbers(self, device_ids: Collection[bytes]) -> dict[bytes, dict[str, int]]:
        """For each device its last author number in every stream where it has written; without inboxes.

        Raises:
            ClientError: the server cannot be reached, or names more streams than a revocation can.
            ProtocolError: the server refuses.
            VerificationError: a stream is not what its authors signed, or not what this device has read of it.

        A cancellation leaves nothing behind.
        """
        numbers: dict[bytes, dict[str, int]] = {device_id: {} for device_id in device_ids}
        for stream in await self._streams():
            if is_inbox(stream):
                continue
            held = stream in self._follower.positions() or stream in (DEVICES_STREAM, KEYS_STREAM)
            if held:
                await self._catch_up(stream)
            found = {each: self._follower.author_n(stream, each) if held else None for each in device_ids}
            if None in found.values():
                authors = await self._read(stream)
                found = {each: authors[each].n if each in authors else 0 for each in device_ids}
            for device_id, n in found.items():
                if n:
                    numbers[device_id][stream] = n
        return numbers

    async def _streams(self) -> list[str]:
        """Every stream that the server lists, and every one that this device holds."""
        names: set[str] = {DEVICES_STREAM, KEYS_STREAM, *self._follower.positions()}
        query: dict[str, str | int] = {"limit": STREAMS_PER_PAGE}
        while True:
            response = await self._client.request("GET", f"/api/v1/streams?{urlencode(query)}")
            raise_for_problem(response)
            page = decode_answer(response, _Streams)
            names |= {each.stream for each in page.streams}
            if len(names) > STREAMS_MAX:
                raise ClientError(f"the server lists more than {STREAMS_MAX} streams")
            if page.next_cursor is None or not page.streams:
                return sorted(names)
            query["cursor"] = page.next_cursor

    async def _read(self, stream: str) -> dict[bytes, Author]:
        """Verify a stream from its first event on, and keep nothing of it but its authors."""
        identity = self._store.identity
        verifier = StreamVerifier(
            crypto,
            user_key=identity.user_key,
            server_key=identity.server_key,
            stream=stream,
            account=self._follower.account,
            state=state_at_start(crypto, identity.user_key, stream),
        )
        known = self._follower.positions().get(stream)
        if known is not None:
            verifier.compare(known.seq, known.chain)
        while True:
            query = urlencode({"stream": stream, "after": verifier.position.seq, "limit": PAGE_EVENTS})
            response = await self._client.request("GET", f"/api/v1/events?{query}")
            raise_for_problem(response)
            page = decode_answer(response, EventPage)
            rows = [to_row(event) for event in page.events]
            if not rows:
                break
            await self._feed(verifier, rows, bytes.fromhex(page.chain))
            if page.head_seq <= verifier.position.seq:
                break
        return verifier.state.authors

    async def _feed(self, verifier: StreamVerifier, rows: Sequence[EventRow], chain: bytes) -> None:
        try:
            await self._worker.run(lambda: verifier.feed(rows, chain))
        except BehindDevices as behind:
            # What the server has not shown by then it hides.
            with trio.move_on_after(DEVICES_WAIT_S):
                await self._read_devices(behind.seq)
            await self._worker.run(lambda: verifier.feed(rows, chain, devices_complete=True))
