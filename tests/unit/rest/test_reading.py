"""What a device reads over REST: its account, devices, streams and events."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
import trio
import trio.testing

from keepstep.client import crypto
from keepstep.errors import ProtocolError, Unavailable
from keepstep.interfaces import SnapshotInfo
from keepstep.model import Kind, Policy, Position, RetentionClass
from keepstep.protocol.chain import chain_next, event_hash, verify_head
from keepstep.protocol.policy import encode_policy
from keepstep.rest.account import format_device_id
from keepstep.validation import parse_base64url
from tests.support.events import DeviceFixture, SignedEvent, submission
from tests.support.parts import SERVER_KEY
from tests.support.rest import Site, site


async def alice(here: Site, *devices: str) -> tuple[DeviceFixture, dict[str, str]]:
    """A user's first device, and what proves it."""
    phone, *_ = await here.parts.register("alice", *(devices or ("phone",)))
    return phone, await here.token(phone)


async def append(here: Site, device: DeviceFixture, *events: SignedEvent) -> None:
    """Store events, past the publisher."""
    principal = await here.parts.principal(device)
    await here.parts.log.append([submission(principal, *events)], now_ms=here.parts.clock.now_ms())


async def get(here: Site, path: str, headers: dict[str, str], **query: Any) -> httpx.Response:
    """A GET with a query."""
    return await here.http.get(f"/api/v1/{path}", headers=headers, params=query)


def decoded(text: str) -> bytes:
    """Bytes of an answer."""
    return parse_base64url(text, bytes_max=1_000_000, what="an answer")


# -- account and devices --------------------------------------------------------------------------------------------


async def test_an_account_says_whose_it_is() -> None:
    """The user, the calling device, and where the account log stands."""
    async with site() as here:
        phone, token = await alice(here, "phone", "laptop")
        answer = await get(here, "account", token)
        principal = await here.parts.principal(phone)
        head = (await here.parts.log.stream(principal.user_pk, "$devices")).head
        assert answer.json() == {
            "user_id": phone.user.user_key.hex(),
            "device_id": format_device_id(phone.device_id),
            "capabilities": ["publish", "subscribe", "manage"],
            "devices": 2,
            "devices_head": {"seq": head.seq, "chain": head.chain.hex()},
            "stored_bytes": 0,
            "bytes_max": None,
            "reserved_bytes": (await here.parts.log.stream(principal.user_pk, "$devices")).stored_bytes,
        }


async def test_devices_come_in_pages() -> None:
    """In the order in which they were enrolled; each once."""
    async with site() as here:
        _, token = await alice(here, "phone", "laptop", "tablet")
        seen: list[str] = []
        query: dict[str, Any] = {"limit": 2}
        while True:
            page = (await get(here, "devices", token, **query)).json()
            seen += [device["device_id"] for device in page["devices"]]
            if page["next_cursor"] is None:
                break
            query["cursor"] = page["next_cursor"]
        names = ("phone", "laptop", "tablet")
        user = (await here.parts.register("alice"))[0].user
        assert seen == [format_device_id(DeviceFixture(user, name).device_id) for name in names]


async def test_one_device_is_as_it_was_enrolled() -> None:
    """And one that is not of the account is not there, whoever else has it."""
    async with site() as here:
        phone, token = await alice(here)
        (bobs,) = await here.parts.register("bob", "phone")
        found = await get(here, f"devices/{format_device_id(phone.device_id)}", token)
        assert found.json() == {
            "device_id": format_device_id(phone.device_id),
            "device_key": phone.device_key.hex(),
            "box_key": phone.entry.box_key.hex(),
            "capabilities": ["publish", "subscribe", "manage"],
            "issued_at_ms": phone.entry.issued_at_ms,
            "expires_at_ms": None,
            "sealed_label": "c2VhbGVkIHBob25l",
            "manage_from_ms": 0,
            "revoked_at_ms": None,
            "revoked_seq": None,
            "last_seen_ms": None,
        }
        missing = await get(here, f"devices/{format_device_id(bobs.device_id)}", token)
        assert (missing.status_code, missing.json()["code"]) == (404, "not_found")


@pytest.mark.parametrize("path", ["account", "devices", "streams", "streams/$devices"])
async def test_what_a_client_has_is_not_sent_again(path: str) -> None:
    """Until it changes."""
    async with site() as here:
        phone, token = await alice(here)
        etag = (await get(here, path, token)).headers["etag"]
        here.parts.clock.at_ms += 1
        again = await get(here, path, token | {"if-none-match": etag})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag)
        assert again.headers["cache-control"] == "private, no-cache"
        await here.parts.enrol(phone, DeviceFixture(phone.user, "laptop"))
        changed = await get(here, path, token | {"if-none-match": etag})
        assert changed.status_code == 200
        assert changed.headers["etag"] != etag


# -- streams --------------------------------------------------------------------------------------------------------


async def test_streams_come_in_pages_reserved_ones_first() -> None:
    """Then by name, each once."""
    async with site() as here:
        phone, token = await alice(here)
        for name in ("b", "a", "c"):
            await append(here, phone, phone.event(name))
        seen: list[str] = []
        query: dict[str, Any] = {"limit": 2}
        while True:
            page = (await get(here, "streams", token, **query)).json()
            seen += [stream["stream"] for stream in page["streams"]]
            if page["next_cursor"] is None:
                break
            query["cursor"] = page["next_cursor"]
        assert seen == ["$devices", "$keys", "a", "b", "c"]


@pytest.mark.parametrize("name", ["notes", "notes/kitchen", "/notes//a", "$keys"])
async def test_one_stream_says_where_it_and_its_reader_stand(name: str) -> None:
    """With a head that the server signed; a name may hold slashes anywhere."""
    async with site() as here:
        phone, token = await alice(here)
        if name != "$keys":
            await append(here, phone, *phone.events(name, 2))
        principal = await here.parts.principal(phone)
        info = await here.parts.log.stream(principal.user_pk, name)
        last_n, last_hash = await here.parts.log.author(principal.user_pk, name, principal.device_pk)
        answer = (await get(here, f"streams/{name}", token)).json()
        signed = answer.pop("signed_head")
        assert answer == {
            "stream": name,
            "policy": "append",
            "retention_class": answer["retention_class"],
            "ttl_max_s": None,
            "head": {"seq": info.head.seq, "chain": info.head.chain.hex()},
            "tail": None,
            "stored_bytes": info.stored_bytes,
            "stream_bytes_max": None,
            "author": {"last_n": last_n, "last_hash": last_hash.hex()},
        }
        head = verify_head(crypto, SERVER_KEY, (decoded(signed["head"]), decoded(signed["sig"])))
        assert (head.user_key, head.stream, head.seq) == (phone.user.user_key, name, info.head.seq)


@pytest.mark.parametrize(
    ("name", "status", "code"),
    [
        ("nothing", 404, "unknown_stream"),
        ("$other", 404, "unknown_stream"),
        (f"$inbox/{'0' * 32}", 403, "forbidden"),
    ],
)
async def test_what_is_not_there_or_not_ones_own_is_not_read(name: str, status: int, code: str) -> None:
    """Neither its head nor its events, at once or as they come."""
    async with site() as here:
        _, token = await alice(here)
        for answer in (
            await get(here, f"streams/{name}", token),
            await get(here, "events", token, stream=name),
            await get(here, "events/live", token, stream=name),
        ):
            assert (answer.status_code, answer.json()["code"]) == (status, code)


async def test_the_stream_of_another_user_is_not_there() -> None:
    """Whatever its name."""
    async with site() as here:
        _, token = await alice(here)
        (bobs,) = await here.parts.register("bob", "phone")
        await append(here, bobs, bobs.event("diary"))
        assert (await get(here, "streams/diary", token)).status_code == 404
        assert (await get(here, "events", token, stream="diary")).status_code == 404


async def test_a_policy_that_was_published_shows() -> None:
    """The server makes no stream and sets no policy itself: a signed event does."""
    async with site() as here:
        phone, token = await alice(here)
        policy = encode_policy(Policy.LATEST, retention_class=RetentionClass.KEEP, ttl_max_s=3_600)
        await append(here, phone, phone.event("scores", policy, kind=Kind.POLICY))
        answer = (await get(here, "streams/scores", token)).json()
        assert (answer["policy"], answer["retention_class"], answer["ttl_max_s"]) == ("latest", "keep", 3_600)


async def test_snapshots_say_what_they_cover() -> None:
    """And who confirmed them."""
    async with site() as here:
        phone, token = await alice(here)
        await append(here, phone, *phone.events("notes", 2))
        assert (await get(here, "snapshots", token, stream="notes")).json() == {"stream": "notes", "snapshots": []}
        assert (await get(here, "snapshots", token, stream="$devices/x")).status_code == 404
        covers = Position(2, b"c" * 32)
        found = [
            SnapshotInfo(4, covers, phone.device_id, 5, (6, phone.device_id)),
            SnapshotInfo(3, covers, phone.device_id, 4, None),
        ]

        async def snapshots(*_arguments: object) -> list[SnapshotInfo]:
            return found

        here.parts.log.snapshots = snapshots  # type: ignore[method-assign, assignment]
        device_id = format_device_id(phone.device_id)
        first, second = (await get(here, "snapshots", token, stream="notes")).json()["snapshots"]
        assert first == {
            "seq": 4,
            "covers": {"seq": 2, "chain": "63" * 32},
            "device_id": device_id,
            "received_at_ms": 5,
            "confirmed": {"seq": 6, "device_id": device_id},
        }
        assert (second["seq"], second["confirmed"]) == (3, None)


# -- events ---------------------------------------------------------------------------------------------------------


async def test_events_are_read_after_a_position() -> None:
    """As their author signed them, and with the chain that they make."""
    async with site() as here:
        phone, token = await alice(here)
        events = phone.events("notes", 5)
        await append(here, phone, *events)
        first = (await get(here, "events", token, stream="notes", limit=2)).json()
        assert [event["seq"] for event in first["events"]] == [1, 2]
        assert first["head_seq"] == 5
        second = (await get(here, "events", token, stream="notes", after=2)).json()
        assert [decoded(event["header"]) for event in second["events"]] == [event.header for event in events[2:]]
        assert [decoded(event["sig"]) for event in second["events"]] == [event.sig for event in events[2:]]
        assert [decoded(event["payload"]) for event in second["events"]] == [event.payload for event in events[2:]]
        assert {event["device_id"] for event in second["events"]} == {format_device_id(phone.device_id)}
        chain = phone.user.chain_0("notes")
        for event in first["events"] + second["events"]:
            hash_ = event_hash(crypto, decoded(event["header"]), decoded(event["sig"]))
            chain = chain_next(crypto, chain, event["seq"], event["received_at_ms"], hash_)
        assert second["chain"] == chain.hex()


async def test_a_payload_that_ran_out_is_null() -> None:
    """Header and signature stay."""
    async with site() as here:
        phone, token = await alice(here)
        await append(here, phone, phone.event("notes", b"soon gone", ttl_s=1))
        here.parts.clock.at_ms += 2_000
        (event,) = (await get(here, "events", token, stream="notes")).json()["events"]
        assert event["payload"] is None


async def test_a_position_above_the_head_is_not_known() -> None:
    """The log was set back, or the client is mistaken."""
    async with site() as here:
        phone, token = await alice(here)
        await append(here, phone, phone.event("notes"))
        answer = await get(here, "events", token, stream="notes", after=2)
        assert (answer.status_code, answer.json()["code"]) == (409, "unknown_position")


async def test_a_page_that_does_not_continue_is_read_again() -> None:
    """From whichever source answers; in the end the client is told to come back."""
    async with site() as here:
        phone, token = await alice(here)
        await append(here, phone, *phone.events("notes", 2))
        read, tries = here.parts.log.read, []

        async def astray(*arguments: Any, after: int, **keywords: Any) -> Any:
            tries.append(after)
            return await read(*arguments, after=after + 1, **keywords)

        here.parts.log.read = astray  # type: ignore[method-assign]
        answer = await get(here, "events", token, stream="notes")
        assert (answer.status_code, answer.json()["code"], tries) == (503, "unavailable", [0, 0, 0])


async def waiting(here: Site, token: Any, during: Any, **query: Any) -> tuple[httpx.Response, float]:
    """The answer to a request that waits, and when it came; ``during`` runs once it does."""
    answers: list[tuple[httpx.Response, float]] = []

    async def ask() -> None:
        arguments = {"stream": "notes", "after": 1, "wait_s": 30} | query
        answers.append((await get(here, "events", token, **arguments), trio.current_time()))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await trio.sleep(5)
        await during()
    return answers[0]


async def test_a_reader_that_waits_is_answered_with_the_next_event(autojump_clock: trio.testing.MockClock) -> None:
    """Not with what is committed elsewhere."""
    async with site() as here:
        phone, token = await alice(here)
        await append(here, phone, phone.event("notes"))

        async def publish() -> None:
            await append(here, phone, phone.event("other"))
            await trio.sleep(5)
            await append(here, phone, phone.event("notes"))

        answer, at_s = await waiting(here, token, publish)
        assert ([event["seq"] for event in answer.json()["events"]], at_s) == ([2], 10)


async def test_a_reader_does_not_wait_for_what_is_there(autojump_clock: trio.testing.MockClock) -> None:
    """Answered at once."""
    async with site() as here:
        phone, token = await alice(here)
        await append(here, phone, phone.event("notes"))
        answer = await get(here, "events", token, stream="notes", wait_s=30)
        assert (len(answer.json()["events"]), trio.current_time()) == (1, 0)


async def test_a_wait_ends_with_an_empty_page(autojump_clock: trio.testing.MockClock) -> None:
    """When the time is over, with the chain where the reader stands."""
    async with site() as here:
        phone, token = await alice(here)
        await append(here, phone, phone.event("notes"))
        answer, at_s = await waiting(here, token, trio.lowlevel.checkpoint, wait_s=7)
        assert (answer.json()["events"], answer.json()["head_seq"], at_s) == ([], 1, 7)


async def test_a_device_that_is_revoked_waits_no_longer(autojump_clock: trio.testing.MockClock) -> None:
    """Within a second."""
    async with site() as here:
        phone, token = await alice(here)
        await append(here, phone, phone.event("notes"))

        async def revoke() -> None:
            here.tokens.away = ProtocolError("invalid_token")

        answer, at_s = await waiting(here, token, revoke)
        assert (answer.status_code, answer.json()["code"]) == (401, "invalid_token")
        assert at_s <= 6


async def test_a_device_that_is_revoked_does_not_wait_on_with_another_ones_token(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Not even one that came with the request in a header of the same name, before or after its own."""
    async with site() as here:
        phone, token = await alice(here)
        await append(here, phone, phone.event("notes"))
        (stranger,) = await here.parts.register("mallory", "laptop")
        other = await here.token(stranger, "other")

        async def revoke() -> None:
            here.tokens.principals.pop("token")

        headers = [*token.items(), *other.items()]
        answer, at_s = await waiting(here, headers, revoke)
        assert (answer.status_code, answer.json()["code"]) == (401, "invalid_token")
        assert at_s <= 6


async def test_a_request_that_waits_ends_where_its_token_becomes_another_devices(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """It goes on as the device that began it, or not at all."""
    async with site() as here:
        phone, token = await alice(here)
        await append(here, phone, phone.event("notes"))
        (stranger,) = await here.parts.register("mallory", "laptop")

        async def replace_device() -> None:
            await here.token(stranger)

        answer, _ = await waiting(here, token, replace_device)
        assert (answer.status_code, answer.json()["code"]) == (401, "invalid_token")


async def test_a_server_that_goes_down_lets_nobody_wait(autojump_clock: trio.testing.MockClock) -> None:
    """The client comes back when there is another."""
    draining: list[bool] = []
    async with site(is_draining=lambda: bool(draining)) as here:
        phone, token = await alice(here)
        await append(here, phone, phone.event("notes"))

        async def drain() -> None:
            draining.append(True)

        answer, at_s = await waiting(here, token, drain)
        assert (answer.status_code, answer.json()["code"]) == (503, "draining")
        assert at_s <= 6


async def test_a_log_that_becomes_another_one_ends_a_wait(autojump_clock: trio.testing.MockClock) -> None:
    """Positions mean nothing in it."""
    async with site() as here:
        phone, token = await alice(here)
        await append(here, phone, phone.event("notes"))

        async def replace() -> None:
            here.parts.log.generation = lambda: 99

        answer, _ = await waiting(here, token, replace)
        assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")


async def test_so_many_requests_of_a_user_wait() -> None:
    """One more is refused, and none is forgotten afterwards."""
    async with site() as here:
        phone, _ = await alice(here)
        user_pk = (await here.parts.principal(phone)).user_pk
        watches = here.services.watches
        held = [watches.add(user_pk) for _ in range(16)]
        with pytest.raises(ProtocolError, match="limit_exceeded"):
            watches.add(user_pk)
        for watch in held:
            watches.remove(user_pk, watch)
        assert not watches._by_user
        assert watches._count == 0


async def test_an_event_of_the_account_log_is_read_as_any_other() -> None:
    """So that a client can check what the server says of its devices."""
    async with site() as here:
        phone, token = await alice(here, "phone", "laptop")
        answer = (await get(here, "events", token, stream="$devices")).json()
        assert len(answer["events"]) == 2
        assert phone.event("$devices", kind=Kind.ACCOUNT).n == 3


async def test_a_log_that_is_away_is_a_problem_with_a_time() -> None:
    """Not an empty page."""
    async with site() as here:
        _, token = await alice(here)

        async def away(*_arguments: Any, **_keywords: Any) -> Any:
            raise Unavailable(retry_after_ms=2_500)

        here.parts.log.read = away  # type: ignore[method-assign]
        answer = await get(here, "events", token, stream="$devices")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "3")
