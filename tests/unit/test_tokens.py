"""From a signed challenge to a device on every request, and how all of it ends."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import pytest
import structlog
import trio
import trio.testing

from keepstep import accesstokens
from keepstep import tokens as tokens_module
from keepstep.accesstokens import SigningKey
from keepstep.client import crypto
from keepstep.errors import ProtocolError, StartupError, Unavailable
from keepstep.memory import MemoryTokens
from keepstep.model import Capability
from keepstep.protocol.challenge import Purpose, Statement, sign_statement
from keepstep.tokens import CHECK_KEPT_S, OVERLAP_MS, Grant, RevocationScope, Tokens
from tests.support.events import DeviceFixture, UserFixture, seed, submission
from tests.support.parts import Parts
from tests.support.tokens import ISSUER, ListedKeys, make_tokens, prove, sign_challenge, sign_in

if TYPE_CHECKING:
    from keepstep.model import Principal

HOUR_MS: Final = 3_600_000


@dataclass
class Bench:
    """Two nodes on one database, and a user with two devices."""

    parts: Parts
    keys: ListedKeys
    store: MemoryTokens
    node: Tokens
    other_node: Tokens
    phone: DeviceFixture
    laptop: DeviceFixture

    @classmethod
    async def make(cls, **laptop: Any) -> Bench:
        """Alice's phone and laptop; ``laptop`` may expire."""
        parts = Parts()
        (phone,) = await parts.register("alice", "phone")
        other = DeviceFixture(phone.user, "laptop", **laptop)
        await parts.enrol(phone, other)
        keys, store = ListedKeys(), MemoryTokens(parts.database)
        node, other_node = [make_tokens(parts, store=store, keys=keys) for _ in range(2)]
        return cls(parts, keys, store, node, other_node, phone, other)

    def pass_ms(self, milliseconds: int) -> None:
        """Let the wall clock go on."""
        self.parts.clock.at_ms += milliseconds


def bearer(grant: Grant) -> str:
    """The header that a client sends."""
    return f"Bearer {grant.access_token}"


async def refused(node: Tokens, authorization: str | None) -> str:
    """Why a request is refused; always under one code."""
    with pytest.raises(ProtocolError) as caught:
        await node.authenticate(authorization)
    assert caught.value.code == "invalid_token"
    return caught.value.detail


async def later() -> None:
    """Until no answer that was kept counts any more."""
    await trio.sleep(CHECK_KEPT_S)


# -- challenges ------------------------------------------------------------------------------------------------------


async def test_a_device_that_signs_its_challenge_is_let_in(autojump_clock: trio.testing.MockClock) -> None:
    """With an access token for an hour and a refresh token for a month, on every node."""
    bench = await Bench.make()
    grant = await sign_in(bench.node, bench.phone)

    assert (grant.expires_in_s, grant.refresh_expires_in_s) == (3_600, 30 * 86_400)
    assert len(grant.refresh_token) == 32
    expected = await bench.parts.principal(bench.phone)
    assert await bench.node.authenticate(bearer(grant)) == expected
    assert await bench.other_node.authenticate(bearer(grant).replace("Bearer", "bearer")) == expected
    assert grant.access_token not in repr(grant)


async def attempt(bench: Bench, device: DeviceFixture, **changes: Any) -> Principal:
    """Take a challenge that ``phone`` was given; ``changes`` replace what is presented."""
    challenge = await bench.node.challenge(bench.phone.user.user_key, bench.phone.device_id, Purpose.TOKEN)
    presented: dict[str, Any] = {
        "nonce": challenge.nonce,
        "user_key": device.user.user_key,
        "device_id": device.device_id,
        "purpose": Purpose.TOKEN,
        "signature": sign_challenge(device, challenge.nonce),
        "device_key": device.device_key,
    }
    return await bench.node.take_challenge(**presented | changes)


async def fails(bench: Bench, device: DeviceFixture, **changes: Any) -> None:
    """The one answer to every attempt that is not right."""
    with pytest.raises(ProtocolError) as caught:
        await attempt(bench, device, **changes)
    assert caught.value.code == "auth_failed"


async def test_only_the_device_that_was_challenged_is_let_in() -> None:
    """One answer for a wrong signature, key, device, user, nonce, purpose."""
    bench = await Bench.make()
    stranger = DeviceFixture(UserFixture("stranger"), "phone")
    impostor = DeviceFixture(bench.phone.user, "impostor")
    await fails(bench, bench.phone, signature=bytes(64))
    await fails(bench, bench.phone, signature=b"short")
    await fails(bench, bench.phone, nonce=bytes(32))
    await fails(bench, bench.phone, nonce=b"short")
    await fails(bench, bench.phone, purpose=Purpose.DELETE_ACCOUNT)
    await fails(bench, bench.phone, device_key=bench.laptop.device_key)
    await fails(bench, bench.phone, device_key=bytes(32))
    await fails(bench, bench.laptop)
    await fails(bench, stranger)
    await fails(bench, impostor, device_id=bench.phone.device_id)
    assert await attempt(bench, bench.phone) == await bench.parts.principal(bench.phone)


async def test_a_stranger_with_a_key_of_its_own_learns_nothing() -> None:
    """Neither of a user that is there nor of one that is not, whatever it signs."""
    bench = await Bench.make()
    for user in (bench.phone.user, UserFixture("nobody")):
        device = DeviceFixture(user, "made up")
        with pytest.raises(ProtocolError) as caught:
            await prove(bench.node, device)
        assert (caught.value.code, caught.value.detail) == ("auth_failed", "no such device")


async def test_a_known_device_id_with_another_key_is_refused() -> None:
    """The key that signed must be the one that is enrolled."""
    bench = await Bench.make()
    user_key, device_id = bench.phone.user.user_key, bench.phone.device_id
    challenge = await bench.node.challenge(user_key, device_id, Purpose.TOKEN)
    statement = Statement(bench.node.server_key, bench.node.origin, user_key, device_id, challenge.nonce, Purpose.TOKEN)
    secret = seed("impostor")
    await fails(
        bench,
        bench.phone,
        nonce=challenge.nonce,
        signature=sign_statement(crypto, secret, statement),
        device_key=crypto.ed25519_public(secret),
    )


async def test_a_signature_for_another_server_or_address_is_refused() -> None:
    """Somebody between device and server cannot pass one on."""
    bench = await Bench.make()
    for changes in ({"origin": "https://evil.example.org"}, {"server_key": seed("evil")}):
        challenge = await bench.node.challenge(bench.phone.user.user_key, bench.phone.device_id, Purpose.TOKEN)
        await fails(
            bench,
            bench.phone,
            nonce=challenge.nonce,
            signature=sign_challenge(bench.phone, challenge.nonce, **changes),
        )


async def test_a_challenge_is_good_once_and_for_a_minute() -> None:
    """On all nodes together."""
    bench = await Bench.make()
    challenge = await bench.node.challenge(bench.phone.user.user_key, bench.phone.device_id, Purpose.TOKEN)
    presented: dict[str, Any] = {
        "nonce": challenge.nonce,
        "user_key": bench.phone.user.user_key,
        "device_id": bench.phone.device_id,
        "purpose": Purpose.TOKEN,
        "signature": sign_challenge(bench.phone, challenge.nonce),
        "device_key": bench.phone.device_key,
    }
    assert challenge.expires_at_ms == bench.parts.clock.now_ms() + 60_000
    await bench.other_node.take_challenge(**presented)
    for node in (bench.node, bench.other_node):
        with pytest.raises(ProtocolError, match="auth_failed"):
            await node.take_challenge(**presented)
    for waited_ms, is_good in ((59_999, True), (60_000, False)):
        challenge = await bench.node.challenge(bench.phone.user.user_key, bench.phone.device_id, Purpose.TOKEN)
        bench.pass_ms(waited_ms)
        late = {"nonce": challenge.nonce, "signature": sign_challenge(bench.phone, challenge.nonce)}
        if is_good:
            await bench.node.take_challenge(**presented | late)
        else:
            await fails(bench, bench.phone, **late)


async def test_a_challenge_is_given_to_anybody_in_bounded_number(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of those that wait; others have room again when they have run out."""
    bench = await Bench.make()
    monkeypatch.setattr(tokens_module, "CHALLENGES_WAITING_MAX", 2)
    nobody = DeviceFixture(UserFixture("nobody"), "phone")
    for _ in range(2):
        await bench.node.challenge(nobody.user.user_key, nobody.device_id, Purpose.TOKEN)
    with pytest.raises(ProtocolError, match="rate_limited") as caught:
        await bench.node.challenge(nobody.user.user_key, nobody.device_id, Purpose.TOKEN)
    assert caught.value.retry_after_ms is not None
    assert 0 < caught.value.retry_after_ms <= 60_000
    await trio.sleep(60)
    await bench.node.challenge(nobody.user.user_key, nobody.device_id, Purpose.TOKEN)


async def test_an_expired_device_is_let_in_no_more(autojump_clock: trio.testing.MockClock) -> None:
    """Neither with a challenge, nor with tokens it has, nor with the answer that is kept about them."""
    at_ms = Parts().clock.now_ms() + 10_000
    bench = await Bench.make(capabilities=Capability.SUBSCRIBE, expires_at_ms=at_ms)
    grant = await sign_in(bench.node, bench.laptop)
    await bench.node.authenticate(bearer(grant))
    bench.pass_ms(10_000)

    assert await refused(bench.node, bearer(grant)) == "its device has expired"
    assert await refused(bench.other_node, bearer(grant)) == "has been revoked"
    with pytest.raises(ProtocolError, match="auth_failed"):
        await bench.node.refresh(bench.laptop.user.user_key, grant.refresh_token)
    with pytest.raises(ProtocolError, match="auth_failed"):
        await prove(bench.node, bench.laptop)


# -- what a token is worth -------------------------------------------------------------------------------------------


async def test_an_answer_about_another_log_is_not_kept() -> None:
    """After a restore the same row number may be somebody else."""
    bench = await Bench.make()
    grant = await sign_in(bench.node, bench.phone)
    principal = await bench.node.authenticate(bearer(grant))
    bench.parts.database.generation += 1
    await bench.parts.log.streams(principal.user_pk)  # shows that it is another one
    bench.parts.database.users.clear()
    assert await refused(bench.node, bearer(grant)) == "has been revoked"


@pytest.mark.parametrize("authorization", [None, "", "Bearer", "Bearer ", "Basic YTpi", "Bearer a b", "Token x"])
async def test_a_request_without_a_token_is_refused(authorization: str | None) -> None:
    """Whatever else it carries."""
    bench = await Bench.make()
    await refused(bench.node, authorization)


async def test_an_access_token_is_good_for_an_hour() -> None:
    """By the clock that all nodes follow."""
    bench = await Bench.make()
    grant = await sign_in(bench.node, bench.phone)
    bench.pass_ms(HOUR_MS - 1)
    await bench.node.authenticate(bearer(grant))
    bench.pass_ms(1)
    assert await refused(bench.node, bearer(grant)) == "has expired"


async def test_a_token_of_another_user_or_device_gives_nothing() -> None:
    """Our own signature over claims that do not belong together: the family is of another user."""
    bench = await Bench.make()
    (bob,) = await bench.parts.register("bob", "phone")
    access = await bench.node.access(bearer(await sign_in(bench.node, bench.phone)))
    for number, (user, device_id) in enumerate([(bob.user, bob.device_id), (bench.phone.user, bytes(15) + b"x")]):
        forged = replace(access.token, token_id=bytes([number]) * 16, user_key=user.user_key, device_id=device_id)
        text = accesstokens.encode(forged, bench.keys.current, issuer=ISSUER)
        assert await refused(bench.node, f"Bearer {text}") == "has been revoked"


async def test_a_token_from_before_a_restore_is_refused() -> None:
    """The restore took back revocations; nobody knows which."""
    bench = await Bench.make()
    grant = await sign_in(bench.node, bench.phone)
    bench.parts.database.epoch += 1
    assert await refused(bench.node, bearer(grant)) == "has been revoked"
    await bench.node.authenticate(bearer(await sign_in(bench.node, bench.phone)))


async def test_a_token_of_a_key_that_is_not_known_makes_the_keys_be_read_again(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Once a second at most, so that nobody can keep the disk busy."""
    bench = await Bench.make()
    access = await bench.node.access(bearer(await sign_in(bench.node, bench.phone)))
    new = SigningKey.from_secret(seed("made by another process"))
    text = f"Bearer {accesstokens.encode(access.token, new, issuer=ISSUER)}"

    assert await refused(bench.node, text) == "signed with no key of ours"
    bench.keys.others = [new]
    await refused(bench.node, text)
    assert bench.keys.reloads == 1
    await trio.sleep(1)
    await bench.node.authenticate(text)
    assert bench.keys.reloads == 2


async def test_keys_that_cannot_be_read_again_are_logged() -> None:
    """The token is refused, everybody else's work on."""
    bench = await Bench.make()
    grant = await sign_in(bench.node, bench.phone)
    access = await bench.node.access(bearer(grant))

    def broken() -> None:
        raise StartupError("damaged")

    bench.keys.reload = broken  # type: ignore[method-assign]
    text = accesstokens.encode(access.token, SigningKey.from_secret(seed("unknown")), issuer=ISSUER)
    with structlog.testing.capture_logs() as lines:
        await refused(bench.node, f"Bearer {text}")
    assert [line["event"] for line in lines] == ["token_keys_unreadable"]
    await bench.node.authenticate(bearer(grant))


async def test_nobody_is_let_in_while_the_database_is_away(autojump_clock: trio.testing.MockClock) -> None:
    """Beyond what was answered half a second ago."""
    bench = await Bench.make()
    grant = await sign_in(bench.node, bench.phone)
    await bench.node.authenticate(bearer(grant))
    bench.parts.database.away = True
    await bench.node.authenticate(bearer(grant))
    await later()
    with pytest.raises(Unavailable):
        await bench.node.authenticate(bearer(grant))


async def test_answers_are_kept_in_bounded_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those used last; the others are asked for again."""
    bench = await Bench.make()
    monkeypatch.setattr(tokens_module, "CHECKS_MAX", 2)
    first, second, third = [bearer(await sign_in(bench.node, bench.phone)) for _ in range(3)]
    for authorization in (first, second, first, third):
        await bench.node.authenticate(authorization)
    bench.parts.database.away = True
    await bench.node.authenticate(first)
    await bench.node.authenticate(third)
    with pytest.raises(Unavailable):
        await bench.node.authenticate(second)


# -- refreshing ------------------------------------------------------------------------------------------------------


async def test_a_refresh_token_gives_the_next_pair() -> None:
    """Of the same family; the access token before goes on until it runs out."""
    bench = await Bench.make()
    first = await sign_in(bench.node, bench.phone)
    second = await bench.other_node.refresh(bench.phone.user.user_key, first.refresh_token)

    assert second.refresh_token != first.refresh_token
    ours, theirs = [await bench.node.access(bearer(grant)) for grant in (first, second)]
    assert ours.token.family_id == theirs.token.family_id
    assert ours.token.token_id != theirs.token.token_id
    assert ours.principal == theirs.principal


async def test_reusing_a_refresh_token_kills_the_family(autojump_clock: trio.testing.MockClock) -> None:
    """A thief and the owner both have it: neither goes on, here at once and elsewhere within half a second."""
    bench = await Bench.make()
    user_key = bench.phone.user.user_key
    stolen = await sign_in(bench.node, bench.phone)
    separate = await sign_in(bench.node, bench.phone)
    thief = await bench.node.refresh(user_key, stolen.refresh_token)
    await bench.node.authenticate(bearer(thief))
    await bench.other_node.authenticate(bearer(thief))

    with structlog.testing.capture_logs() as lines, pytest.raises(ProtocolError, match="auth_failed"):
        await bench.node.refresh(user_key, stolen.refresh_token)

    assert [line["event"] for line in lines] == ["token_family_ended"]
    await refused(bench.node, bearer(thief))
    await later()
    await refused(bench.other_node, bearer(thief))
    await refused(bench.node, bearer(stolen))
    with pytest.raises(ProtocolError, match="auth_failed"):
        await bench.node.refresh(user_key, thief.refresh_token)
    await bench.node.authenticate(bearer(separate))


async def test_a_refresh_token_is_its_users_own_and_runs_out() -> None:
    """Under another user's id it is none; after a month it is none."""
    bench = await Bench.make()
    (bob,) = await bench.parts.register("bob", "phone")
    grant = await sign_in(bench.node, bench.phone)
    for user_key, token in ((bob.user.user_key, grant.refresh_token), (bench.phone.user.user_key, bytes(32))):
        with pytest.raises(ProtocolError, match="auth_failed"):
            await bench.node.refresh(user_key, token)
    bench.pass_ms(30 * 24 * HOUR_MS)
    with pytest.raises(ProtocolError, match="auth_failed"):
        await bench.node.refresh(bench.phone.user.user_key, grant.refresh_token)


# -- ending ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scope", "still_good"),
    [
        (RevocationScope.TOKEN, [False, True, True, True]),
        (RevocationScope.FAMILY, [False, False, True, True]),
        (RevocationScope.DEVICE, [False, False, False, True]),
    ],
)
async def test_what_is_revoked_ends_everywhere(
    scope: RevocationScope, still_good: list[bool], autojump_clock: trio.testing.MockClock
) -> None:
    """The token alone, its family, or all of its device: here at once, on another node within half a second."""
    bench = await Bench.make()
    first = await sign_in(bench.node, bench.phone)
    refreshed = await bench.node.refresh(bench.phone.user.user_key, first.refresh_token)
    grants = [first, refreshed, await sign_in(bench.node, bench.phone), await sign_in(bench.node, bench.laptop)]
    for grant in grants:
        await bench.node.authenticate(bearer(grant))
        await bench.other_node.authenticate(bearer(grant))

    await bench.node.revoke(await bench.node.access(bearer(first)), scope)

    for node in (bench.node, bench.other_node):
        for grant, is_good in zip(grants, still_good, strict=True):
            if is_good:
                await node.authenticate(bearer(grant))
            else:
                assert await refused(node, bearer(grant)) == "has been revoked"
        await later()


@pytest.mark.parametrize("scope", RevocationScope)
async def test_an_answer_from_before_a_revocation_is_not_kept_after_it(scope: RevocationScope) -> None:
    """A request whose question was under way meanwhile does not let the next one in."""
    bench = await Bench.make()
    grant = await sign_in(bench.node, bench.phone)
    access = await bench.node.access(bearer(grant))
    slow = make_tokens(bench.parts, store=bench.store, keys=bench.keys)
    asked = bench.store.token_state

    async def revoked_meanwhile(*arguments: Any, **keywords: Any) -> Any:
        state = await asked(*arguments, **keywords)
        bench.store.token_state = asked  # type: ignore[method-assign]
        await slow.revoke(access, scope)
        return state

    bench.store.token_state = revoked_meanwhile  # type: ignore[method-assign]
    await slow.authenticate(bearer(grant))
    assert await refused(slow, bearer(grant)) == "has been revoked"


async def test_a_revocation_that_is_not_written_down_is_not_promised() -> None:
    """The caller hears that it failed, and the token goes on."""
    bench = await Bench.make()
    grant = await sign_in(bench.node, bench.phone)
    access = await bench.node.access(bearer(grant))
    bench.parts.database.away = True
    for scope in RevocationScope:
        with pytest.raises(Unavailable):
            await bench.node.revoke(access, scope)
    bench.parts.database.away = False
    await bench.node.authenticate(bearer(grant))


async def test_a_revoked_device_is_out_everywhere(autojump_clock: trio.testing.MockClock) -> None:
    """Here with the commit that revokes it, elsewhere within half a second; its families end with it."""
    bench = await Bench.make()
    on_phone, on_laptop = await sign_in(bench.node, bench.phone), await sign_in(bench.node, bench.laptop)
    for node in (bench.node, bench.other_node):
        await node.authenticate(bearer(on_phone))
        await node.authenticate(bearer(on_laptop))

    event, change = bench.phone.revoke(bench.laptop)
    await bench.parts.log.append(
        [submission(await bench.parts.principal(bench.phone), event)],
        now_ms=bench.parts.clock.now_ms(),
        account_change=change,
    )

    assert await refused(bench.node, bearer(on_laptop)) == "has been revoked"
    await later()
    assert await refused(bench.other_node, bearer(on_laptop)) == "has been revoked"
    with pytest.raises(ProtocolError, match="auth_failed"):
        await bench.node.refresh(bench.laptop.user.user_key, on_laptop.refresh_token)
    with pytest.raises(ProtocolError, match="auth_failed"):
        await prove(bench.node, bench.laptop)
    await bench.node.authenticate(bearer(on_phone))


# -- keys and clean-up -----------------------------------------------------------------------------------------------


async def test_replacing_the_key_locks_nobody_out() -> None:
    """Old tokens go on, new ones are signed with the new key, and both keys are published."""
    bench = await Bench.make()
    before = await sign_in(bench.node, bench.phone)
    overlaps: list[int] = []
    rotate = bench.keys.rotate

    def note(now_ms: int, *, overlap_ms: int) -> None:
        overlaps.append(overlap_ms)
        rotate(now_ms, overlap_ms=overlap_ms)

    bench.keys.rotate = note  # type: ignore[method-assign]
    kid = await bench.node.rotate_keys()
    after = await sign_in(bench.node, bench.phone)

    assert overlaps == [OVERLAP_MS]
    assert accesstokens.kid_of(after.access_token) == kid != accesstokens.kid_of(before.access_token)
    assert [key["kid"] for key in bench.node.public_keys()] == [kid, accesstokens.kid_of(before.access_token)]
    for grant in (before, after):
        await bench.node.authenticate(bearer(grant))


async def test_replacing_stolen_keys_ends_every_token_signed_with_them() -> None:
    """Refresh tokens are no signatures, and go on."""
    bench = await Bench.make()
    before = await sign_in(bench.node, bench.phone)
    await bench.node.rotate_keys(stolen=True)
    assert await refused(bench.node, bearer(before)) == "signed with no key of ours"
    after = await bench.node.refresh(bench.phone.user.user_key, before.refresh_token)
    await bench.node.authenticate(bearer(after))


async def test_keys_that_cannot_be_written_stay() -> None:
    """The caller hears that it failed, and why is in the log."""
    bench = await Bench.make()
    grant = await sign_in(bench.node, bench.phone)

    def broken(now_ms: int, *, overlap_ms: int) -> None:
        raise StartupError("disk full")

    bench.keys.rotate = broken  # type: ignore[method-assign]
    with structlog.testing.capture_logs() as lines, pytest.raises(ProtocolError, match="unavailable"):
        await bench.node.rotate_keys()
    assert [line["event"] for line in lines] == ["token_keys_unwritable"]
    await bench.node.authenticate(bearer(grant))


async def test_cleaning_up_drops_what_ran_out_and_nothing_else() -> None:
    """In bounded steps."""
    bench = await Bench.make()
    for _ in range(5):
        await bench.node.challenge(bench.phone.user.user_key, bench.phone.device_id, Purpose.TOKEN)
    grant = await sign_in(bench.node, bench.phone)
    bench.pass_ms(60_000)
    now_ms = bench.parts.clock.now_ms()
    assert [await bench.store.clean_up_tokens(now_ms=now_ms, rows_max=2) for _ in range(4)] == [2, 2, 1, 0]
    await bench.node.authenticate(bearer(grant))


async def test_what_becomes_of_tokens_is_counted() -> None:
    """By what an operator would ask."""
    bench = await Bench.make()
    grant = await sign_in(bench.node, bench.phone)
    await bench.node.refresh(bench.phone.user.user_key, grant.refresh_token)
    for token in (grant.refresh_token, bytes(32)):
        with pytest.raises(ProtocolError):
            await bench.node.refresh(bench.phone.user.user_key, token)
    await bench.node.revoke(
        await bench.node.access(bearer(await sign_in(bench.node, bench.phone))), RevocationScope.TOKEN
    )
    counted = {
        result: bench.parts.metrics.registry.get_sample_value("keepstep_tokens_total", {"result": result})
        for result in ("issued", "refreshed", "reused", "refused", "revoked")
    }
    assert counted == {"issued": 2, "refreshed": 1, "reused": 1, "refused": 1, "revoked": 1}
