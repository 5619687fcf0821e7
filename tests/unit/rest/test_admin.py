"""The administration of users, sessions, invites and the server, asked over REST."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

import msgspec
import pytest
import structlog

from keepstep import keys
from keepstep.admin import AdminKey
from keepstep.cleanup import DAY_MS
from keepstep.protocol.messages import ResultAccepted
from keepstep.rest import admin, operation
from keepstep.rest.endpoints import Access
from keepstep.runtime import WorkerThreads
from keepstep.validation import parse_base64url
from tests.support.events import NOW_MS, DeviceFixture, UserFixture, seed
from tests.support.logs import append
from tests.support.parts import Parts
from tests.support.rest import Site, site
from tests.support.wire import closing_reason

if TYPE_CHECKING:
    from pathlib import Path

    import httpx

KEY: Final = "correct-horse-battery-staple-0123456789"
HEADERS: Final = {"authorization": f"Bearer {KEY}"}
ENDPOINTS: Final = (*admin.ENDPOINTS, *operation.ENDPOINTS)
NOBODY: Final = seed("nobody").hex()


@asynccontextmanager
async def administrated(parts: Parts | None = None, **changes: Any) -> AsyncIterator[Site]:
    """A site with an administration key; ``changes`` as for ``site``."""
    parts = parts or Parts()
    access = AdminKey(KEY, parts.administration, parts.clock, parts.metrics, structlog.get_logger())
    async with site(parts=parts, admin=access, **changes) as here:
        here.http.headers.update(HEADERS)
        yield here


def path_of(endpoint: Any) -> str:
    """An endpoint's path with its example's parameters."""
    return str(endpoint.path.format(**endpoint.example.path))


async def call(here: Site, endpoint: Any, **changes: Any) -> httpx.Response:
    """An endpoint as in its example."""
    return await here.http.request(
        endpoint.method, path_of(endpoint), params=dict(endpoint.example.query), json=endpoint.example.body, **changes
    )


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda endpoint: endpoint.operation)
async def test_only_the_key_opens_an_endpoint(endpoint: Any) -> None:
    """A device's token does not, nor another key; without a key there is no such endpoint."""
    assert endpoint.access is Access.ADMIN
    parts = Parts()
    (phone,) = await parts.register("alice", "phone")
    async with administrated(parts) as here:
        token = await here.token(phone)
        for headers in ({"authorization": "Bearer wrong"}, token):
            assert (await call(here, endpoint, headers=headers)).status_code == 401
    async with site(parts=parts) as here:
        assert (await call(here, endpoint, headers=HEADERS)).status_code == 404


async def test_users_are_listed_page_by_page() -> None:
    """Each as the operator sees it."""
    parts = Parts()
    users = [(await parts.register(name, "phone"))[0] for name in ("alice", "bob", "carol")]
    async with administrated(parts) as here:
        seen: list[str] = []
        cursor: dict[str, str] = {}
        while True:
            answer = (await here.http.get("/admin/users", params={"limit": "2", **cursor})).json()
            seen += [user["user_id"] for user in answer["users"]]
            if answer["next_cursor"] is None:
                break
            cursor = {"cursor": answer["next_cursor"]}
        assert seen == [phone.user.user_key.hex() for phone in users]
        assert answer["users"][0] == {
            "user_id": seen[-1],
            "created_at_ms": NOW_MS,
            "disabled_at_ms": None,
            "devices": 1,
            "streams": 2,
            "stored_bytes": 0,
            "reserved_bytes": answer["users"][0]["reserved_bytes"],
            "quota": {"streams_max": None, "devices_max": None, "bytes_max": None, "retention_days": None},
        }
        assert (await here.http.get("/admin/users", params={"cursor": "_" * 40})).json()["users"] == []
        assert (await here.http.get(f"/admin/users/{NOBODY}")).json()["code"] == "not_found"


async def test_a_user_is_disabled_and_enabled() -> None:
    """And nothing of it is let in meanwhile."""
    parts = Parts()
    (phone,) = await parts.register("alice", "phone")
    path = f"/admin/users/{phone.user.user_key.hex()}"
    async with administrated(parts) as here:
        answer = await here.http.patch(path, json={"disabled": True})
        assert answer.json()["disabled_at_ms"] == NOW_MS
        assert await parts.accounts.principal(phone.user.user_key, phone.device_id) is None
        assert (await here.http.patch(path, json={"disabled": False})).json()["disabled_at_ms"] is None
        assert await parts.accounts.principal(phone.user.user_key, phone.device_id) is not None
        assert (await here.http.patch(f"/admin/users/{NOBODY}", json={"disabled": True})).status_code == 404
        assert (await here.http.patch(path, json={})).status_code == 400


async def test_a_quota_bounds_streams_devices_and_bytes() -> None:
    """What is there stays; the next one is refused, until the quota is lifted."""
    parts = Parts()
    (phone,) = await parts.register("alice", "phone")
    path = f"/admin/users/{phone.user.user_key.hex()}/quota"
    async with administrated(parts) as here, parts.running() as nursery:
        quota = {"streams_max": 3, "devices_max": 1, "bytes_max": 1_000, "retention_days": None}
        assert (await here.http.put(path, json=quota)).json() == quota
        session = await parts.connect(nursery, phone)
        assert isinstance((await session.publish(phone.event("first")))[0], ResultAccepted)
        refused = phone.event("second")
        head = (await parts.log.stream((await parts.principal(phone)).user_pk, "$devices")).head
        phone.seen["$devices"] = head.seq, head.chain
        enrolment, _ = phone.enrol(DeviceFixture(phone.user, "laptop"))
        for event in (refused, enrolment):
            assert (await session.publish(event))[0].code == "quota_exceeded"
        last = phone.authored["first"]
        assert (await session.publish(phone.event("first", b"x" * 1_000)))[0].code == "quota_exceeded"
        phone.authored["first"] = last
        assert (await here.http.put(path, json={"streams_max": None, "devices_max": None})).status_code == 200
        assert isinstance((await session.publish(phone.event("first", b"x" * 1_000)))[0], ResultAccepted)
        for event in (refused, enrolment):
            assert isinstance((await session.publish(event))[0], ResultAccepted)


async def test_devices_and_streams_of_a_user_are_listed() -> None:
    """Without what only the user may read: labels stay sealed, payloads unseen."""
    parts = Parts()
    phone, laptop = await parts.register("alice", "phone", "laptop")
    event = phone.event("notes/kitchen")
    await append(parts.log, await parts.principal(phone), event)
    path = f"/admin/users/{phone.user.user_key.hex()}"
    async with administrated(parts) as here:
        first = (await here.http.get(f"{path}/devices", params={"limit": "1"})).json()
        rest = (await here.http.get(f"{path}/devices", params={"cursor": first["next_cursor"]})).json()
        ids = [device["device_id"].replace("-", "") for device in [*first["devices"], *rest["devices"]]]
        assert ids == [phone.device_id.hex(), laptop.device_id.hex()]
        assert set(first["devices"][0]) == {
            "device_id", "capabilities", "issued_at_ms", "expires_at_ms", "revoked_at_ms", "last_seen_ms",
        }  # fmt: skip
        streams = (await here.http.get(f"{path}/streams")).json()["streams"]
        assert [stream["stream"] for stream in streams] == ["$devices", "$keys", "notes/kitchen"]
        assert streams[1]["stored_bytes"] == 0
        assert streams[2]["stored_bytes"] == len(event.header) + len(event.sig) + len(event.payload or b"")
        assert streams[2]["head"]["seq"] == 1
        for part in ("devices", "streams"):
            assert (await here.http.get(f"/admin/users/{NOBODY}/{part}")).status_code == 404


async def test_it_is_shown_when_a_device_was_seen_last() -> None:
    """A session counts; of one that never came it says so."""
    parts = Parts()
    phone, _ = await parts.register("alice", "phone", "laptop")
    await parts.accounts.open_session(await parts.principal(phone), bytes(16), now_ms=parts.clock.now_ms())
    async with administrated(parts) as here:
        shown = (await here.http.get(f"/admin/users/{phone.user.user_key.hex()}/devices")).json()["devices"]
        assert [device["last_seen_ms"] for device in shown] == [parts.clock.now_ms(), None]


async def test_a_session_is_listed_and_cut() -> None:
    """By its id; afterwards there is no such session."""
    parts = Parts()
    (phone,) = await parts.register("alice", "phone")
    (other,) = await parts.register("bob", "phone")
    async with administrated(parts) as here, parts.running() as nursery:
        on_phone = await parts.connect(nursery, phone)
        await parts.connect(nursery, other)
        listed = (await here.http.get("/admin/sessions", params={"limit": "1"})).json()
        rest = (await here.http.get("/admin/sessions", params={"cursor": listed["next_cursor"]})).json()
        both = [*listed["sessions"], *rest["sessions"]]
        (session,) = [each for each in both if each["user_id"] == phone.user.user_key.hex()]
        assert len(both) == 2
        mine = (await here.http.get("/admin/sessions", params={"user_id": phone.user.user_key.hex()})).json()
        assert mine["sessions"] == [session]
        path = f"/admin/sessions/{session['session_id']}"
        assert (await here.http.delete(path)).status_code == 204
        assert await closing_reason(on_phone.receive) == "session_cut"
        assert (await here.http.delete(path)).status_code == 404
        assert (await here.http.get("/admin/sessions", params={"user_id": NOBODY})).status_code == 404


async def test_an_invite_is_made_used_and_taken_back() -> None:
    """Its code is shown once, and lets one account in."""
    parts = Parts()
    async with administrated(parts) as here:
        made = await here.http.post("/admin/invites", json={"note": "for Ada", "lifetime_s": 60})
        assert made.status_code == 201
        invite = made.json()
        code = parse_base64url(invite["code"], bytes_max=16, what="a code")
        assert len(code) == 16
        (listed,) = (await here.http.get("/admin/invites")).json()["invites"]
        assert listed == {
            "invite_id": invite["invite_id"],
            "note": "for Ada",
            "created_at_ms": NOW_MS,
            "expires_at_ms": NOW_MS + 60_000,
            "used_at_ms": None,
            "used_by": None,
        }
        genesis = DeviceFixture(UserFixture("ada"), "phone").genesis()
        await parts.log.create_account(genesis, now_ms=NOW_MS, invite_hash=bytes.fromhex(invite["invite_id"]))
        (used,) = (await here.http.get("/admin/invites")).json()["invites"]
        assert (used["used_at_ms"], used["used_by"]) == (NOW_MS, genesis.user_key.hex())
        path = f"/admin/invites/{invite['invite_id']}"
        assert [(await here.http.delete(path)).status_code for _ in range(2)] == [204, 404]
        refused = await here.http.post("/admin/invites", json={"note": "two\nlines"})
        assert refused.status_code == 400


async def test_the_same_invite_is_answered_to_the_same_key() -> None:
    """A lost answer makes no second invite."""
    async with administrated() as here:
        headers = {"idempotency-key": "once"}
        answers = [await here.http.post("/admin/invites", json={}, headers=headers) for _ in range(2)]
        assert answers[0].json() == answers[1].json()
        assert len((await here.http.get("/admin/invites")).json()["invites"]) == 1


async def test_every_call_is_in_the_audit_trail() -> None:
    """Also one that failed, and one that was not understood; the newest first, page by page."""
    async with administrated() as here:
        await here.http.get("/admin/users", headers={"x-request-id": "first"})
        await here.http.get(f"/admin/users/{NOBODY}", headers={"x-request-id": "second"})
        await here.http.get("/admin/users", headers={"authorization": "Bearer wrong"})
        page = (await here.http.get("/admin/audit", params={"limit": "1"})).json()
        (entry,) = page["entries"]
        assert entry == {
            "audit_no": 2,
            "at_ms": NOW_MS,
            "request_id": "second",
            "address": entry["address"],
            "action": "get_admin_users_by_user_id",
            "target": msgspec.json.encode({"user_id": NOBODY}).decode(),
            "status": 404,
        }
        rest = (await here.http.get("/admin/audit", params={"cursor": page["next_cursor"]})).json()
        assert [(entry["request_id"], entry["status"]) for entry in rest["entries"]] == [("first", 200)]


async def test_a_call_that_is_not_understood_is_in_the_audit_trail() -> None:
    """Whoever has the key and tries things out is seen."""
    async with administrated() as here:
        answers = [
            await here.http.get("/admin/users", params={"limit": "many"}),
            await here.http.get("/admin/users/%00nobody"),
            await here.http.post("/admin/invites", content=b"{", headers={"content-type": "application/json"}),
            await here.http.post("/admin/invites", content=b"x", headers={"content-type": "text/plain"}),
        ]
        assert [answer.status_code for answer in answers] == [400, 400, 400, 415]
        entries = (await here.http.get("/admin/audit")).json()["entries"]
        assert [(entry["action"], entry["target"], entry["status"]) for entry in reversed(entries)] == [
            ("get_admin_users", "{}", 400),
            ("get_admin_users_by_user_id", '{"user_id":"\\u0000nobody"}', 400),
            ("post_admin_invites", "{}", 400),
            ("post_admin_invites", "{}", 415),
        ]


async def test_statistics_and_retention_say_what_is() -> None:
    """Nothing is removed by age and no backup is made yet, and that is what is told."""
    parts = Parts()
    await parts.register("alice", "phone", "laptop")
    async with administrated(parts) as here:
        assert (await here.http.get("/admin/statistics")).json() == {
            "users": 1,
            "disabled_users": 0,
            "devices": 2,
            "streams": 2,
            "events": 2,
            "open_sessions": 0,
            "database_bytes": None,
        }
        retention = (await here.http.get("/admin/retention")).json()
        assert retention == {"events_days": None, "audit_days": 365, "backup": None}


async def test_retention_says_what_is_removed_and_what_was_backed_up() -> None:
    """As it is configured, and as this server's own backups went."""
    async with administrated(retention_days=90) as here:
        here.parts.metrics.backup_last_timestamp.set(NOW_MS / 1000)
        backup = {"at_ms": NOW_MS, "verified_at_ms": None}
        expected = {"events_days": 90, "audit_days": 365, "backup": backup}
        assert (await here.http.get("/admin/retention")).json() == expected
        here.parts.metrics.backup_verified_timestamp.set(NOW_MS / 1000 - 60)
        backup["verified_at_ms"] = NOW_MS - 60_000
        assert (await here.http.get("/admin/retention")).json() == expected


async def test_the_next_server_key_is_announced_once(tmp_path: Path) -> None:
    """It waits in the data directory; a damaged one is no fault of the operator's request."""
    parts = Parts()
    key = keys.load_or_create(tmp_path, parts.randomness)
    server_keys = keys.ServerKeys(tmp_path, parts.randomness, WorkerThreads())
    async with administrated(parts, server_keys=server_keys, server_key=key.public) as here:
        before = (await here.http.get("/admin/keys")).json()
        assert (before["server_key"], before["successor"]) == (key.public.hex(), None)
        made = await here.http.post("/admin/keys/server/announce", json={"from_days": 1, "overlap_days": 2})
        assert made.status_code == 201
        assert made.json() == {
            "server_key": keys.load(tmp_path, name=keys.NEXT_FILE_NAME).public.hex(),
            "from_ms": NOW_MS + DAY_MS,
            "until_ms": NOW_MS + 3 * DAY_MS,
        }
        assert (await here.http.get("/admin/keys")).json()["successor"] == made.json()
        again = await here.http.post("/admin/keys/server/announce", json={})
        assert (again.status_code, again.json()["code"]) == (409, "unexpected")
        assert keys.take_over(tmp_path, now_ms=NOW_MS + DAY_MS)
        assert (await here.http.get("/admin/keys")).json()["successor"] is None
        (tmp_path / keys.ANNOUNCEMENTS_FILE_NAME).write_bytes(b"damaged")
        assert (await here.http.get("/admin/keys")).status_code == 503


async def test_the_token_key_is_rotated() -> None:
    """The new one is published."""
    async with administrated() as here:
        kid = (await here.http.post("/admin/keys/tokens/rotate", json={})).json()["kid"]
        published = (await here.http.get("/.well-known/jwks.json")).json()["keys"]
        assert published[0]["kid"] == kid
        assert len(published) == 2
        stolen = (await here.http.post("/admin/keys/tokens/rotate", json={"stolen": True})).json()["kid"]
        assert [key["kid"] for key in (await here.http.get("/.well-known/jwks.json")).json()["keys"]] == [stolen]
