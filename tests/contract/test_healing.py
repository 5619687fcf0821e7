"""After a restore: rewinds, the time for handing in, and events that come back to their places."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pytest

from keepstep import _keepstep
from keepstep.errors import ProtocolError
from keepstep.eventlog.healing import LostEvents
from keepstep.heads import HeadSigner
from keepstep.healing import CLOSE_REPORT, HEAL_RATE, RETRY_AFTER_MS, Healing
from keepstep.model import DEVICES_STREAM, Capability, Kind, Policy, Position
from keepstep.protocol.chain import chain_0, event_hash
from keepstep.protocol.messages import ChainAt, Heal, ResultAccepted
from keepstep.protocol.policy import encode_policy
from keepstep.protocol.rewind import CLOCKS_APART_MS_MAX, verify_rewind
from keepstep.protocol.snapshot import encode_erase
from keepstep.ratelimit import RateLimited
from keepstep.restores import EVERYTHING, PROVEN, StreamRewind
from tests.support.events import NOW_MS, DeviceFixture, UserFixture, seed
from tests.support.logs import FixedClock, append, create_account, enrol, principal_of, read_all

if TYPE_CHECKING:
    from collections.abc import Sequence

    from keepstep.eventlog.log import StoredLog
    from keepstep.model import Principal
    from keepstep.protocol.messages import EventRow, SignedHead
    from tests.support.logs import Place

ADA = UserFixture("ada")
STREAM = "notes"
WINDOW_MS = 600_000
SERVER_SECRET = seed("server")
ROWS = tuple["EventRow", ...]


@dataclass
class Restored:
    """A database that was restored from before most of a stream was written.

    Attributes:
        rows: what the stream held, as devices have it.
        chains: at each seq from 0 on.
        head: of all of it, signed before the restore.
    """

    place: Place
    log: StoredLog
    clock: FixedClock
    phone: DeviceFixture
    laptop: DeviceFixture
    principal: Principal
    rows: Sequence[EventRow]
    chains: Sequence[bytes]
    head: SignedHead
    healing: Healing

    async def heal(self, first: int, last: int, *, by: Principal | None = None, **changes: Any) -> Any:
        """Hand in rows by seq, proven by the head unless ``proof`` says otherwise."""
        links = b"".join(row[2].to_bytes(8, "big") + event_hash(_keepstep, row[3], row[4]) for row in self.rows[last:])
        fields: dict[str, Any] = {
            "after": (first - 1, self.chains[first - 1]),
            "rows": list(self.rows[first - 1 : last]),
            "proof": (links, self.head),
        } | changes
        message = Heal(1, STREAM, fields["after"], fields["rows"], fields["proof"], 0)
        return await self.healing.heal(by or self.principal, message)

    async def report(self, by: Principal, step: Any) -> Any:
        """A device's report."""
        return await self.healing.heal(by, Heal(1, DEVICES_STREAM, None, [], None, step))


async def restored(place: Place, *, kept: int = 2, lost: int = 4) -> Restored:
    """A stream of two devices, of which the restore leaves the first ``kept`` events."""
    log = place.node()
    clock = FixedClock()
    phone, laptop = DeviceFixture(ADA, "phone"), DeviceFixture(ADA, "laptop")
    principal = await create_account(place, log, phone)
    await enrol(place, log, phone, laptop)
    authors = {device: await principal_of(place, device) for device in (phone, laptop)}
    for number in range(kept + lost):
        if number == kept:
            place.back_up()
        device = (phone, laptop)[number % 2]
        (accepted,) = await append(log, authors[device], device.event(STREAM), now_ms=NOW_MS + number // 2)
        assert isinstance(accepted, ResultAccepted)
    reading = await read_all(log, principal, STREAM)
    chains = [await log.chain_at(principal.user_pk, STREAM, seq) for seq in range(kept + lost + 1)]
    before = HeadSigner(SERVER_SECRET, epoch=lambda: 0, clock=clock)
    head = before.sign(ADA.user_key, STREAM, seq=kept + lost, chain=reading.chain)
    place.restore()
    clock.at_ms = NOW_MS + 10
    log = place.node()
    await log.stream(principal.user_pk, DEVICES_STREAM)
    signer = HeadSigner(SERVER_SECRET, epoch=log.epoch, clock=clock)
    healing = Healing(log, place.accounts, place.restores, signer, clock, payload_bytes_max=2**20, window_ms=WINDOW_MS)
    principal = await principal_of(place, phone)
    return Restored(place, log, clock, phone, laptop, principal, reading.rows, chains, head, healing)


async def test_a_rewind_says_where_each_stream_stood(place: Place) -> None:
    """A stream that the restore took away whole, or that nobody had, went back to nothing."""
    bench = await restored(place)
    user_pk = bench.principal.user_pk
    assert list(await place.restores.rewinds(user_pk, STREAM)) == [StreamRewind(NOW_MS, Position(2, bench.chains[2]))]
    nothing = Position(0, chain_0(_keepstep, ADA.user_key, "other"))
    assert list(await place.restores.rewinds(user_pk, "other")) == [StreamRewind(NOW_MS, nothing)]
    (signed,) = await bench.healing.rewinds(user_pk, ADA.user_key, STREAM)
    rewind = verify_rewind(_keepstep, _keepstep.ed25519_public(SERVER_SECRET), signed)
    assert (rewind.stream, rewind.epoch, rewind.seq, rewind.chain) == (STREAM, NOW_MS, 2, bench.chains[2])


async def test_an_account_from_after_a_restore_has_no_rewinds(place: Place) -> None:
    """And nobody waits for its devices."""
    bench = await restored(place)
    bob = await create_account(place, bench.log, DeviceFixture(UserFixture("bob"), "phone"))
    assert list(await place.restores.rewinds(bob.user_pk, STREAM)) == []
    assert await place.restores.window(bob.user_pk, now_ms=NOW_MS) is None
    assert await bench.healing.wait_ms(bob.user_pk) is None


async def test_what_a_signed_head_proves_comes_back_to_its_place(place: Place) -> None:
    """Same seqs, same times, same chain, in pages, also twice; and authors go on from there."""
    bench = await restored(place)
    for first, last in ((3, 4), (3, 4), (5, 6), (3, 6)):
        result = await bench.heal(first, last)
        assert (result.answer, result.lost) == ("placed", [])
    reading = await read_all(bench.log, bench.principal, STREAM)
    assert reading.rows == list(bench.rows)
    assert reading.chain == bench.chains[6]
    await bench.healing.heal(bench.principal, Heal(1, DEVICES_STREAM, None, [], None, CLOSE_REPORT))
    (accepted,) = await append(bench.log, bench.principal, bench.phone.event(STREAM), now_ms=NOW_MS + 9)
    assert isinstance(accepted, ResultAccepted)
    assert accepted.first_seq == 7


async def test_a_stream_that_went_whole_comes_back(place: Place) -> None:
    """From its first event on."""
    bench = await restored(place, kept=0)
    assert (await bench.heal(1, 4)).answer == "placed"
    assert (await read_all(bench.log, bench.principal, STREAM)).rows == list(bench.rows)


async def test_what_nothing_proves_waits_for_what_something_does(place: Place) -> None:
    """Until every device that was seen lately has handed in what it can prove."""
    bench = await restored(place)
    laptop = await principal_of(place, bench.laptop)
    later = await bench.heal(3, 4, proof=None)
    assert (later.answer, later.retry_after_ms) == ("later", RETRY_AFTER_MS)
    assert (await bench.report(bench.principal, PROVEN)).answer == "open"
    assert (await bench.heal(3, 4, proof=None)).answer == "later"
    assert (await bench.report(laptop, PROVEN)).answer == "closed"
    assert (await bench.heal(3, 4, proof=None)).answer == "placed"
    assert (await read_all(bench.log, bench.principal, STREAM)).rows == list(bench.rows[:4])


async def test_publishing_waits_until_all_devices_have_handed_in(place: Place) -> None:
    """Or until the time is over, or a device that manages ends it."""
    bench = await restored(place)
    user_pk = bench.principal.user_pk
    laptop = await principal_of(place, bench.laptop)
    assert await bench.healing.wait_ms(user_pk) == RETRY_AFTER_MS
    await bench.report(bench.principal, EVERYTHING)
    assert await bench.healing.wait_ms(user_pk) == RETRY_AFTER_MS
    await bench.report(laptop, EVERYTHING)
    assert await bench.healing.wait_ms(user_pk) is None


async def test_the_time_for_handing_in_is_bounded(place: Place) -> None:
    """From the first look on."""
    bench = await restored(place)
    assert await bench.healing.wait_ms(bench.principal.user_pk) == RETRY_AFTER_MS
    bench.clock.at_ms += WINDOW_MS
    assert await bench.healing.wait_ms(bench.principal.user_pk) is None


async def test_a_device_that_manages_ends_the_time(place: Place) -> None:
    """No other may."""
    bench = await restored(place)
    watch = await principal_of(place, bench.phone)
    assert await bench.healing.wait_ms(watch.user_pk) == RETRY_AFTER_MS
    assert (await bench.report(watch, CLOSE_REPORT)).answer == "closed"
    assert await bench.healing.wait_ms(watch.user_pk) is None


async def test_a_proof_that_proves_nothing_is_refused(place: Place) -> None:
    """Another server's head, links to somewhere else, or an altered event."""
    bench = await restored(place)
    stranger = HeadSigner(seed("stranger"), epoch=lambda: 0, clock=bench.clock)
    forged = stranger.sign(ADA.user_key, STREAM, seq=6, chain=bench.chains[6])
    row = bench.rows[2]
    altered = (row[0], row[1], row[2] + 1, *row[3:])
    for changes in (
        {"proof": (b"", forged)},
        {"proof": (b"x" * 40, bench.head)},
        {"proof": (b"x", bench.head)},
        {"rows": [altered, *bench.rows[3:]]},
        {"rows": [bench.rows[4]]},
    ):
        assert (await bench.heal(3, 6, **changes)).answer == "refused", changes
    assert (await bench.log.stream(bench.principal.user_pk, STREAM)).head.seq == 2


async def test_another_history_is_no_place_to_go_on_from(place: Place) -> None:
    """Rows that do not continue what is there are answered so; nothing is stored."""
    bench = await restored(place)
    await bench.healing.heal(bench.principal, Heal(1, DEVICES_STREAM, None, [], None, CLOSE_REPORT))
    other = DeviceFixture(ADA, "phone")
    other.authored = dict(bench.phone.authored)
    (accepted,) = await append(bench.log, await principal_of(place, bench.phone), again(bench), now_ms=NOW_MS + 50)
    assert isinstance(accepted, ResultAccepted)
    assert (await bench.heal(3, 6)).answer == "diverged"
    assert (await bench.heal(4, 6)).answer == "diverged"
    assert (await bench.log.stream(bench.principal.user_pk, STREAM)).head.seq == 3


def again(bench: Restored) -> Any:
    """The phone's next event as the restored log has it: its second one, signed anew."""
    phone = DeviceFixture(ADA, "phone")
    phone.event(STREAM)
    return phone.event(STREAM, b"another")


async def test_what_has_no_place_is_appended_anew(place: Place) -> None:
    """As signed, where it joins on to its author's last event; what does not is named."""
    bench = await restored(place)
    await bench.healing.heal(bench.principal, Heal(1, DEVICES_STREAM, None, [], None, CLOSE_REPORT))
    rows = [bench.rows[4], bench.rows[2], bench.rows[3]]
    result = await bench.heal(3, 6, after=None, rows=rows, proof=None)
    assert (result.answer, result.lost) == ("placed", [5])
    reading = await read_all(bench.log, bench.principal, STREAM)
    assert [row[3] for row in reading.rows[2:]] == [bench.rows[2][3], bench.rows[3][3]]


async def test_what_has_no_place_need_not_build_on_the_head(place: Place) -> None:
    """In a stream of the policy ``expect``: what was signed before the restore, and saw what that explains."""
    bench = await restored(place)
    name, phone, dead = "expecting", bench.phone, seed("dead")
    expecting = phone.event(name, encode_policy(Policy.EXPECT), kind=Kind.POLICY)
    (created,) = await append(bench.log, bench.principal, expecting)
    assert isinstance(created, ResultAccepted)
    await bench.report(bench.principal, CLOSE_REPORT)
    before: dict[str, Any] = {"base": (9, dead), "hlc": NOW_MS << 16}
    seen = ((7, dead), (0, chain_0(_keepstep, ADA.user_key, name)), (1, created.chain))
    events = [phone.event(name, b"x", seen=each, **before) for each in seen]
    bench.clock.at_ms = later_ms = NOW_MS + CLOCKS_APART_MS_MAX + 1
    last_n, last_hash = phone.authored[name]
    late: dict[str, Any] = {"n": last_n + 1, "prev": last_hash[:16], "seen": (1, created.chain), "hlc": later_ms << 16}
    events.append(phone.sign(name, b"x", base=(9, dead), **late))
    rows: list[EventRow] = [
        (seq, phone.device_id, NOW_MS, event.header, event.sig, event.payload, None)
        for seq, event in enumerate(events, 5)
    ]
    result: Any = await bench.healing.heal(bench.principal, Heal(1, name, None, rows, None, 0))
    assert (result.answer, result.lost, result.head_seq) == ("placed", [8], 4)


async def test_chains_are_told_as_far_as_the_log_goes(place: Place) -> None:
    """Nothing above the head; nothing of another device's inbox."""
    bench = await restored(place)
    told = await bench.healing.chains(bench.principal, ChainAt(7, STREAM, [0, 1, 2, 3]))
    assert (told.rid, told.chains, told.head_seq) == (7, [*bench.chains[:3], None], 2)
    inbox = f"$inbox/{bench.laptop.device_id.hex()}"
    with pytest.raises(ProtocolError):
        await bench.healing.chains(bench.principal, ChainAt(7, inbox, [0]))


async def test_a_new_epoch_ends_what_was_handed_out(place: Place) -> None:
    """Refresh families and open invites; each epoch is above the one before."""
    bench = await restored(place)
    place.invite(b"c" * 32, expires_at_ms=NOW_MS + 1000)
    place.back_up()
    place.restore()
    log = place.node()
    await log.stream(bench.principal.user_pk, DEVICES_STREAM)
    assert log.epoch() == NOW_MS + 1
    bob = DeviceFixture(UserFixture("bob"), "phone")
    result = await log.create_account(bob.genesis(), now_ms=NOW_MS, invite_hash=b"c" * 32)
    assert getattr(result, "code", None) == "invite_invalid"
    assert [each.epoch for each in await place.restores.rewinds(bench.principal.user_pk, STREAM)] == [
        NOW_MS,
        NOW_MS + 1,
    ]


async def test_the_account_log_comes_back_by_whoever_has_it(place: Place) -> None:
    """Each event through the account's own rules, into its place; another one is refused, a stranger's place too."""
    log = place.node()
    phone = DeviceFixture(ADA, "phone")
    principal = await create_account(place, log, phone)
    head = (await log.stream(principal.user_pk, DEVICES_STREAM)).head
    phone.seen[DEVICES_STREAM] = head.seq, head.chain
    clock = FixedClock()
    signer = HeadSigner(SERVER_SECRET, epoch=lambda: NOW_MS, clock=clock)
    event, _ = phone.enrol(DeviceFixture(ADA, "laptop"))
    row = (2, phone.device_id, NOW_MS + 1, event.header, event.sig, event.payload, None)
    clock.at_ms = NOW_MS + 5
    healing = Healing(log, place.accounts, place.restores, signer, clock, payload_bytes_max=2**20, window_ms=WINDOW_MS)
    for altered, answer in ((row[:4] + (bytes(64),) + row[5:], "refused"), (row, "placed"), (row, "placed")):
        message = Heal(1, DEVICES_STREAM, (1, head.chain), [altered], None, 0)
        assert (await healing.heal(principal, message)).answer == answer
    assert await place.accounts.principal(ADA.user_key, DeviceFixture(ADA, "laptop").device_id) is not None
    anew = await healing.heal(principal, Heal(1, DEVICES_STREAM, None, [row], None, 0))
    assert (anew.answer, anew.lost) == ("placed", [2])


async def test_an_erasure_and_what_it_erased_come_back(place: Place) -> None:
    """It takes effect again where its target is there."""
    log = place.node()
    phone = DeviceFixture(ADA, "phone")
    principal = await create_account(place, log, phone)
    kept = phone.event(STREAM, b"secret")
    await append(log, principal, kept)
    place.back_up()
    payload = encode_erase({phone.device_id: [1]})
    await append(log, principal, phone.event(STREAM, payload, kind=Kind.ERASE), now_ms=NOW_MS + 1)
    reading = await read_all(log, principal, STREAM)
    head = HeadSigner(SERVER_SECRET, epoch=lambda: 0, clock=FixedClock()).sign(
        ADA.user_key, STREAM, seq=2, chain=reading.chain
    )
    place.restore()
    log = place.node()
    principal = await principal_of(place, phone)
    await log.stream(principal.user_pk, STREAM)
    signer = HeadSigner(SERVER_SECRET, epoch=log.epoch, clock=FixedClock())
    healing = Healing(
        log, place.accounts, place.restores, signer, FixedClock(), payload_bytes_max=2**20, window_ms=WINDOW_MS
    )
    chain = await log.chain_at(principal.user_pk, STREAM, 1)
    message = Heal(1, STREAM, (1, chain), [reading.rows[1]], (b"", head), 0)
    assert (await healing.heal(principal, message)).answer == "placed"
    assert (await read_all(log, principal, STREAM)).payloads == [None, payload]


async def test_what_does_not_fit_is_not_stored(place: Place) -> None:
    """The log itself refuses: another head, another end, an author's number that is not next."""
    bench = await restored(place)
    key = (int(bench.principal.user_pk), STREAM)
    at, end = Position(2, bench.chains[2]), Position(3, bench.chains[3])
    authors = await place.accounts.devices(bench.principal.user_pk)
    author = next(each for each in authors if each.entry.device_id == bench.rows[2][1])
    third = bench.healing._submission(bench.principal, author, [bench.rows[2]], 7)
    fifth = bench.healing._submission(bench.principal, author, [bench.rows[4]], 7)
    for before, lost, code in (
        (Position(1, bench.chains[1]), LostEvents(third, bench.rows[2][2], end), "conflict"),
        (at, LostEvents(third, bench.rows[2][2] + 1, end), "unprocessable"),
        (at, LostEvents(fifth, bench.rows[4][2], end), "unprocessable"),
    ):
        with pytest.raises(ProtocolError, match=code):
            await bench.log.heal(key, before, [lost], is_proven=True)
    with pytest.raises(ProtocolError, match="unknown_stream"):
        await bench.log.heal((key[0], "$unknown"), at, [], is_proven=True)
    assert (await bench.log.stream(bench.principal.user_pk, STREAM)).head.seq == 2


async def test_who_may_not_read_hands_nothing_in(place: Place) -> None:
    """Nor does anybody where there was no restore, and only a device that manages ends the time."""
    bench = await restored(place)
    writer = replace(bench.principal, capabilities=Capability.PUBLISH)
    with pytest.raises(ProtocolError, match="forbidden"):
        await bench.heal(3, 6, by=writer)
    with pytest.raises(ProtocolError, match="forbidden"):
        await bench.report(writer, CLOSE_REPORT)
    never = HeadSigner(SERVER_SECRET, epoch=lambda: 0, clock=bench.clock)
    healing = Healing(
        bench.log, place.accounts, place.restores, never, bench.clock, payload_bytes_max=2**20, window_ms=WINDOW_MS
    )
    assert await healing.rewinds(bench.principal.user_pk, ADA.user_key, STREAM) == []
    with pytest.raises(ProtocolError, match="unsupported"):
        await healing.heal(bench.principal, Heal(1, STREAM, None, [], None, 0))


async def test_a_device_that_heals_too_often_waits_and_others_do_not(place: Place) -> None:
    """It is told how long; what it sends before is not looked at, and its turn comes back evenly."""
    bench = await restored(place)
    for _ in range(HEAL_RATE.calls):
        await bench.report(bench.principal, PROVEN)
    with pytest.raises(RateLimited) as caught:
        await bench.heal(3, 6)
    assert (caught.value.code, caught.value.retry_after_ms) == ("rate_limited", 32)
    laptop = await principal_of(place, bench.laptop)
    assert (await bench.heal(3, 4, by=laptop)).answer == "placed"
    bench.clock.at_s += 0.032
    assert (await bench.heal(5, 6)).answer == "placed"
    with pytest.raises(RateLimited):
        await bench.heal(5, 6)
