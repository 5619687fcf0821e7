"""A stolen device that manages, whose thief acts first, is locked out with the recovery root key: over real sockets."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import httpx
import msgspec
import pytest
import trio

from keepstep.client import crypto
from keepstep.errors import DeviceRevoked
from keepstep.model import Capability
from keepstep.protocol.account import AccountEvent, AccountLog
from keepstep.protocol.messages import Read, ReadResult, ResultAccepted, Revoked
from tests.support.events import DeviceFixture, UserFixture, seed
from tests.support.server import running_server
from tests.support.wire import Closed, WireDevice, closing_reason, open_socket

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.events import SignedEvent
    from tests.support.server import RunningServer

MSGPACK = {"content-type": "application/msgpack"}
PATIENCE_S = 60.0
"""So that a session that is never closed fails the test; how soon it is closed is measured by the benchmark."""


class Home:
    """Alice's devices, on two nodes over one database."""

    def __init__(self, here: RunningServer, there: RunningServer, stack: AsyncExitStack) -> None:
        self.here = here
        self.there = there
        self._stack = stack
        user = UserFixture("alice")
        self.phone, self.laptop, self.tablet, self.spy = (
            DeviceFixture(user, name) for name in ("phone", "laptop", "tablet", "spy")
        )
        self.watch = DeviceFixture(user, "watch", Capability.PUBLISH | Capability.SUBSCRIBE)
        self._nonces = 0

    async def post(self, path: str, event: SignedEvent | Any) -> httpx.Response:
        """Post a genesis or a rotation."""
        body = msgspec.msgpack.encode([event.header, event.sig, event.payload])
        async with httpx.AsyncClient(base_url=self.here.rest_url, timeout=60) as http:
            return await http.post(path, content=body, headers=MSGPACK)

    async def connect(self, device: DeviceFixture, server: RunningServer | None = None) -> WireDevice:
        """A session that stays until the test is over."""
        server = server or self.here
        self._nonces += 1
        end = await self._stack.enter_async_context(open_socket(server.device_url))
        return await WireDevice.connect(device, end, server.started.server_key, nonce=f"{self._nonces}")

    async def change(self, session: WireDevice, event: SignedEvent, *readers: DeviceFixture) -> None:
        """Publish an event of ``$devices``, which its author and ``readers`` have seen then."""
        (accepted,) = await session.publish(event)
        assert isinstance(accepted, ResultAccepted), accepted
        for device in (session.device, *readers):
            device.seen["$devices"] = accepted.first_seq, accepted.chain

    async def account(self, session: WireDevice) -> AccountLog:
        """The account as a device verifies it, from its first event on."""
        await session.send(Read(1, "$devices", 0, 100))
        log = AccountLog(crypto, self.phone.user.user_key)
        for _, device_id, received_at_ms, header, sig, payload, _ in (await session.expect(ReadResult)).rows:
            assert payload is not None
            log.apply(AccountEvent(device_id, header, sig, payload, received_at_ms))
        return log


async def test_a_thief_who_acts_first_is_locked_out(data_dir: Path, database_url: str) -> None:
    """It enrols a device of its own and revokes the owner's; a rotation undoes both, on both nodes."""
    async with (
        running_server(data_dir, database_url=database_url) as here,
        running_server(data_dir, database_url=database_url) as there,
        AsyncExitStack() as stack,
    ):
        home = Home(here, there, stack)
        phone, laptop, watch, tablet, spy = home.phone, home.laptop, home.watch, home.tablet, home.spy
        registered = await home.post("/api/v1/accounts", phone.genesis())
        seq, _, chain, _ = msgspec.msgpack.decode(registered.content)
        phone.seen["$devices"] = seq, chain
        on_phone = await home.connect(phone)
        await home.change(on_phone, phone.enrol(laptop)[0], laptop)
        await home.change(on_phone, phone.enrol(watch)[0], laptop, watch)
        on_laptop, on_watch = await home.connect(laptop, there), await home.connect(watch, there)

        # The phone is stolen. Its thief acts first: a managing device of its own, the owner's laptop revoked.
        await home.change(on_phone, phone.enrol(spy)[0], spy)
        on_spy = await home.connect(spy, there)
        await home.change(on_phone, phone.revoke(laptop, {})[0], spy, tablet)
        with trio.fail_after(PATIENCE_S):
            assert isinstance(await on_laptop.expect(Revoked), Revoked)
            assert await closing_reason(on_laptop.receive) == "revoked"
        (accepted,) = await on_watch.publish(watch.event("notes"))
        assert isinstance(accepted, ResultAccepted)

        # A thief's own root key does nothing; that of the recovery file locks it out, whatever it has enrolled.
        path = f"/api/v1/accounts/{phone.user.user_key.hex()}/rotate"
        refused = await home.post(path, tablet.rotate(root_secret=seed("a thief's root")))
        assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")
        tablet.authored.clear()
        rotation = tablet.rotate(laptop, watch)
        assert (await home.post(path, rotation)).status_code == 201
        with trio.fail_after(PATIENCE_S):
            for session in (on_phone, on_spy):
                assert (await session.expect(Revoked)).row[3] == rotation.header
                assert await closing_reason(session.receive) == "revoked"
        for device in (phone, spy):
            with pytest.raises(DeviceRevoked):
                await home.connect(device)
        with pytest.raises(Closed) as closed:
            await home.connect(DeviceFixture(phone.user, "stranger"))
        assert closed.value.reason == "auth_failed"

        # The laptop is back, and all devices agree on who is live.
        on_laptop, on_tablet = await home.connect(laptop, there), await home.connect(tablet)
        for session in (on_laptop, on_watch, on_tablet):
            (accepted,) = await session.publish(session.device.event("notes"))
            assert isinstance(accepted, ResultAccepted)
        account = await home.account(on_laptop)
        live = {device_id for device_id, each in account.devices.items() if each.ended is None}
        assert live == {laptop.device_id, watch.device_id, tablet.device_id}
