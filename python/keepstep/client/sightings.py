"""When the user's other devices were last connected, as the server says: nobody signs it (protocol.md section 1).

It is asked for over REST once a day while a device is open, and kept in its file. A device that was away for very long
may be lost, or forgotten in a drawer with all its keys: its user is told once.
"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Annotated, Final
from urllib.parse import urlencode

import msgspec
import trio
from msgspec import Meta

from keepstep.client.http import raise_for_problem
from keepstep.client.notices import Notice, NoticeKind
from keepstep.client.rest import decode_answer
from keepstep.errors import ClientError, ProtocolError

if TYPE_CHECKING:
    from collections.abc import Callable

    from keepstep.client.environment import Environment
    from keepstep.client.rest import RestClient
    from keepstep.client.store import Store
    from keepstep.client.worker import Worker

UNSEEN_MS: Final = 90 * 24 * 60 * 60 * 1000
"""A device that was not connected for this long is told of."""
FIRST_S: Final = 600.0
"""From opening a device to asking, and as long again, spread over devices, seconds."""
ASK_EVERY_S: Final = 24 * 60 * 60.0
RETRY_S: Final = 60 * 60.0
"""After a failure, seconds."""
DEVICES_PER_PAGE: Final = 100
PAGES_MAX: Final = 100
"""Pages read at most: more devices than an account ever has."""


_Milliseconds = Annotated[int, Meta(ge=0, le=2**53 - 1)]


class _Device(msgspec.Struct, frozen=True):
    device_id: uuid.UUID
    issued_at_ms: _Milliseconds
    revoked_at_ms: _Milliseconds | None
    last_seen_ms: _Milliseconds | None = None


class _Devices(msgspec.Struct, frozen=True):
    """One page of the list of devices."""

    devices: list[_Device]
    next_cursor: str | None = None


class Sightings:
    """Asks for one device. ``run`` is its one task.

    Args:
        store: the device's file.
        worker: for calls that block.
        environment: clock and chance.
        rest: REST as this device.
        announce: called when there is a notice.
    """

    def __init__(
        self,
        store: Store,
        worker: Worker,
        environment: Environment,
        rest: Callable[[], RestClient],
        announce: Callable[[], None],
    ) -> None:
        self._store = store
        self._worker = worker
        self._environment = environment
        self._rest = rest
        self._announce = announce

    async def run(self) -> None:
        """Ask once a day, until cancelled. What goes wrong is tried again: nothing depends on it."""
        await trio.sleep(FIRST_S + self._environment.jitter(FIRST_S))
        while True:
            try:
                await self.ask()
            except (ClientError, ProtocolError):
                await trio.sleep(RETRY_S)
            else:
                await trio.sleep(ASK_EVERY_S)

    async def ask(self) -> dict[bytes, int]:
        """When each live device was last connected, unix milliseconds, by id; those that never were are left out.

        Raises:
            ClientError: the server cannot be reached.
            ProtocolError: it refuses, or its answer is none.

        After a cancellation it is kept in the device's file or not.
        """
        devices = [each for each in await self._read() if each.revoked_at_ms is None]
        since = {each.device_id.bytes: each.last_seen_ms or each.issued_at_ms for each in devices}
        known = {each.device_id.bytes: each.last_seen_ms for each in devices if each.last_seen_ms is not None}
        if await self._worker.run(lambda: self._keep(known, since)):
            self._announce()
        return known

    async def _read(self) -> list[_Device]:
        client = self._rest()
        devices: list[_Device] = []
        cursor: str | None = None
        for _ in range(PAGES_MAX):
            query = {"limit": DEVICES_PER_PAGE} | ({} if cursor is None else {"cursor": cursor})
            response = await client.request("GET", f"/api/v1/devices?{urlencode(query)}")
            raise_for_problem(response)
            page = decode_answer(response, _Devices)
            devices += page.devices
            cursor = page.next_cursor
            if cursor is None:
                break
        return devices

    def _keep(self, seen: dict[bytes, int], since: dict[bytes, int]) -> bool:
        """Keep it; whether there is a new notice."""
        now_ms = self._environment.now_ms()
        told = {each.device_id: each.at_ms for each in self._store.notices() if each.kind is NoticeKind.UNSEEN}
        own = self._store.identity.device_id
        unseen = [
            device_id
            for device_id, since_ms in since.items()
            if device_id != own and now_ms - since_ms > UNSEEN_MS and told.get(device_id, -1) < since_ms
        ]
        with self._store.transaction():
            self._store.keep_seen(seen)
            for device_id in unseen:
                self._store.add_notice(Notice(NoticeKind.UNSEEN, now_ms, device_id))
        return bool(unseen)
