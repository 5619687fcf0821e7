"""Administration of two servers on one PostgreSQL, over real sockets."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import httpx
import msgspec
import trio

from tests.support.events import DeviceFixture, UserFixture
from tests.support.server import RunningServer, running_server
from tests.support.wire import WireDevice, closing_reason, open_socket

KEY: Final = "correct-horse-battery-staple-0123456789"


def administrator(server: RunningServer) -> httpx.AsyncClient:
    """Who asks a server with the administration key."""
    return httpx.AsyncClient(base_url=server.rest_url, headers={"authorization": f"Bearer {KEY}"}, timeout=60)


async def register(server: RunningServer, name: str) -> DeviceFixture:
    """An account's first device; it was invited, and its devices may be one and its streams three."""
    device = DeviceFixture(UserFixture(name), "phone")
    genesis = device.genesis()
    async with administrator(server) as http:
        invite = (await http.post("/admin/invites", json={"note": name})).json()
        answer = await http.post(
            "/api/v1/accounts",
            content=msgspec.msgpack.encode([genesis.header, genesis.sig, genesis.payload]),
            headers={"content-type": "application/msgpack", "keepstep-invite": invite["code"]},
        )
        assert answer.status_code == 201, answer.text
        quota = {"streams_max": 3, "devices_max": 1}
        path = f"/admin/users/{genesis.user_key.hex()}/quota"
        assert (await http.put(path, json=quota)).json() == {**quota, "bytes_max": None, "retention_days": None}
    seq, _, chain, _ = msgspec.msgpack.decode(answer.content)
    device.seen["$devices"] = seq, chain
    return device


async def test_what_is_done_on_one_node_holds_on_the_other(data_dir: Path, database_url: str, tmp_path: Path) -> None:
    """Quotas, a cut session, a disabled account, each told of on the node that has the device."""
    settings = {"admin_api_key": KEY, "registration": "invite"}
    async with (
        running_server(data_dir, database_url=database_url, settings=settings) as asked,
        running_server(tmp_path / "other", database_url=database_url, settings=settings) as serving,
        administrator(asked) as http,
    ):
        phone = await register(asked, "alice")
        user = f"/admin/users/{phone.user.user_key.hex()}"
        async with open_socket(serving.device_url) as end:
            session = await WireDevice.connect(phone, end, serving.started.server_key)
            accepted = await session.publish(phone.event("first"), phone.event("first"))
            assert [type(result).__name__ for result in accepted] == ["ResultAccepted"]
            for event in (phone.event("second"), phone.enrol(DeviceFixture(phone.user, "laptop"))[0]):
                assert (await session.publish(event))[0].code == "quota_exceeded"
            (listed,) = (await http.get("/admin/sessions")).json()["sessions"]
            assert (await http.delete(f"/admin/sessions/{listed['session_id']}")).status_code == 204
            with trio.fail_after(60):
                assert await closing_reason(session.receive) == "session_cut"
        async with open_socket(serving.device_url) as end:
            session = await WireDevice.connect(phone, end, serving.started.server_key, nonce="again")
            assert (await http.patch(user, json={"disabled": True})).status_code == 200
            with trio.fail_after(60):
                assert await closing_reason(session.receive) == "account_disabled"
        streams = (await http.get(f"{user}/streams")).json()["streams"]
        assert [(stream["stream"], stream["head"]["seq"]) for stream in streams] == [
            ("$devices", 1),
            ("$keys", 0),
            ("first", 2),
        ]
        counted = (await http.get("/admin/statistics")).json()
        assert (counted["users"], counted["disabled_users"], counted["open_sessions"]) == (1, 1, 0)
        actions = [entry["action"] for entry in (await http.get("/admin/audit")).json()["entries"]]
        assert actions[0] == "get_admin_statistics"
        assert actions[-1] == "post_admin_invites"
