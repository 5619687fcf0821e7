"""What a hostile device makes of the time after a restore: nothing that it could not do before."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from keepstep.heads import HeadSigner
from keepstep.healing import CLOSE_REPORT, Healing
from keepstep.model import DEVICES_STREAM, Capability, Kind, Policy
from keepstep.protocol.messages import Heal, ResultAccepted
from keepstep.protocol.policy import encode_policy
from keepstep.protocol.rewind import CLOCKS_APART_MS_MAX
from tests.contract.test_healing import ADA, SERVER_SECRET, STREAM, WINDOW_MS, Restored, restored
from tests.support.events import NOW_MS, DeviceFixture
from tests.support.logs import append, enrol, principal_of

if TYPE_CHECKING:
    from tests.support.events import SignedEvent
    from tests.support.logs import Place


def row(seq: int, device: DeviceFixture, event: SignedEvent, *, at_ms: int = NOW_MS + 9) -> Any:
    """An event of which a device says that it was lost."""
    return (seq, device.device_id, at_ms, event.header, event.sig, event.payload, None)


async def closed(place: Place) -> Restored:
    """A restored database after the time for handing in: what nothing proves is waited for no more."""
    bench = await restored(place)
    await bench.report(bench.principal, CLOSE_REPORT)
    return bench


async def offer(bench: Restored, *rows: Any, stream: str = STREAM, healing: Healing | None = None) -> str:
    """Hand in rows that nothing proves, behind the head or from the first on; the answer."""
    chain = bench.chains[rows[0][0] - 1] if stream == STREAM else ADA.chain_0(stream)
    message = Heal(1, stream, (rows[0][0] - 1, chain), list(rows), None, 0)
    result: Any = await (healing or bench.healing).heal(bench.principal, message)
    return str(result.answer)


async def test_a_device_that_only_reads_places_nothing_of_its_own(place: Place) -> None:
    """Not behind the head, not as a stream of its own; nor does one that does not manage set rules."""
    bench = await closed(place)
    reader = DeviceFixture(ADA, "reader", capabilities=Capability.SUBSCRIBE)
    writer = DeviceFixture(ADA, "writer", capabilities=Capability.PUBLISH | Capability.SUBSCRIBE)
    for device in (reader, writer):
        await enrol(place, bench.log, bench.phone, device)
    assert await offer(bench, row(3, reader, reader.event(STREAM))) == "refused"
    assert await offer(bench, row(1, reader, reader.event("own")), stream="own") == "refused"
    rules = writer.event(STREAM, encode_policy(Policy.LATEST), kind=Kind.POLICY)
    assert await offer(bench, row(3, writer, rules)) == "refused"
    assert (await bench.log.stream(bench.principal.user_pk, STREAM)).head.seq == 2


async def test_what_a_device_that_had_ended_wrote_is_not_placed(place: Place) -> None:
    """Expired by then, or revoked since; nor is it appended anew."""
    bench = await closed(place)
    expired = DeviceFixture(ADA, "expired", expires_at_ms=NOW_MS + 5)
    gone = DeviceFixture(ADA, "gone")
    for device in (expired, gone):
        await enrol(place, bench.log, bench.phone, device)
    event, change = bench.phone.revoke(gone)
    (result,) = await append(bench.log, bench.principal, event, account_change=change)
    assert isinstance(result, ResultAccepted)
    for device in (expired, gone):
        lost = row(3, device, device.event(STREAM))
        assert await offer(bench, lost) == "refused"
        anew: Any = await bench.healing.heal(bench.principal, Heal(1, STREAM, None, [lost], None, 0))
        assert anew.lost == [3]


async def test_nothing_is_dated_back_that_is_newer_than_the_restore(place: Place) -> None:
    """What a restore lost was received before it."""
    bench = await closed(place)
    bench.clock.at_ms = NOW_MS + 2 * CLOCKS_APART_MS_MAX
    late = NOW_MS + CLOCKS_APART_MS_MAX + 1
    event = bench.rows[2]
    assert await offer(bench, (*event[:2], late, *event[3:])) == "refused"
    assert await offer(bench, event) == "placed"


async def test_an_event_that_names_what_never_was_is_not_placed(place: Place) -> None:
    """A reader would stop at it and take the server for a liar."""
    bench = await closed(place)
    phone = DeviceFixture(ADA, "phone")
    phone.event(STREAM)
    phone.seen[DEVICES_STREAM] = (1, bytes(32))
    assert await offer(bench, row(3, phone, phone.event(STREAM))) == "refused"


@pytest.mark.parametrize("limits", [{"bytes_per_user_max": 100}, {"streams_per_user_max": 3}])
async def test_what_nothing_proves_stays_within_the_account_s_bounds(place: Place, limits: dict[str, int]) -> None:
    """Else a restore would give everybody as much room as they like; what a head proves was within them."""
    bench = await closed(place)
    log = place.node(**limits)
    await log.stream(bench.principal.user_pk, DEVICES_STREAM)
    signer = HeadSigner(SERVER_SECRET, epoch=log.epoch, clock=bench.clock)
    healing = Healing(
        log, place.accounts, place.restores, signer, bench.clock, payload_bytes_max=2**20, window_ms=WINDOW_MS
    )
    phone = DeviceFixture(ADA, "phone")
    assert await offer(bench, row(1, phone, phone.event("more")), stream="more", healing=healing) == "refused"
    bench.healing = healing
    assert (await bench.heal(3, 6)).answer == "placed"


async def test_an_account_event_from_before_the_one_before_it_is_not_stored(place: Place) -> None:
    """It would come to another place than it says: refused before anything is stored."""
    bench = await closed(place)
    user_pk = bench.principal.user_pk
    head = (await bench.log.stream(user_pk, DEVICES_STREAM)).head
    bench.phone.seen[DEVICES_STREAM] = head.seq, head.chain
    event, _ = bench.phone.enrol(DeviceFixture(ADA, "watch"))
    early = row(head.seq + 1, bench.phone, event, at_ms=NOW_MS - 1)
    message = Heal(1, DEVICES_STREAM, (head.seq, head.chain), [early], None, 0)
    result: Any = await bench.healing.heal(bench.principal, message)
    assert result.answer in ("refused", "diverged")
    assert (await bench.log.stream(user_pk, DEVICES_STREAM)).head == head
    assert (await principal_of(place, bench.phone)).device_pk == bench.principal.device_pk
