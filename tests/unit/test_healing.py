"""Healing where the storage or a device does not do as it should; what it does else is in tests/contract."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from keepstep.errors import ProtocolError, Unavailable
from keepstep.healing import CLOSE_REPORT
from keepstep.protocol.messages import ChainAt
from tests.contract.test_healing import STREAM, Restored, restored
from tests.support.logs import MemoryPlace

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


def failing(error: Exception) -> Callable[..., Awaitable[Any]]:
    """A call of the storage that fails."""

    async def fail(*_arguments: Any, **_named: Any) -> Any:
        raise error

    return fail


async def finished() -> Restored:
    """A restored stream whose user's time for handing in is over."""
    bench = await restored(MemoryPlace())
    await bench.report(bench.principal, CLOSE_REPORT)
    return bench


@pytest.mark.parametrize("call", ["stream", "chain_at", "heal"])
async def test_a_database_that_is_away_is_no_answer(call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The device asks again; it does not give up what it holds."""
    bench = await restored(MemoryPlace())
    monkeypatch.setattr(bench.log, call, failing(Unavailable("away")))
    with pytest.raises(Unavailable):
        await bench.heal(2, 4)


async def test_a_chain_that_the_server_has_no_more_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where it was pruned."""
    bench = await restored(MemoryPlace())
    monkeypatch.setattr(bench.log, "chain_at", failing(ProtocolError("pruned")))
    assert (await bench.healing.chains(bench.principal, ChainAt(1, STREAM, [1]))).chains == [None]


async def test_an_author_who_is_no_device_of_the_account_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a head proves the event."""
    bench = await restored(MemoryPlace())

    async def nobody(_user_pk: int) -> list[Any]:
        return []

    monkeypatch.setattr(bench.place.accounts, "devices", nobody)
    assert (await bench.heal(3, 4)).answer == "refused"


async def test_what_is_to_be_appended_anew_waits_for_the_others() -> None:
    """Until they have handed in what they can prove."""
    bench = await restored(MemoryPlace())
    await bench.healing.arrived(bench.principal)
    assert (await bench.heal(3, 4, after=None, proof=None)).answer == "later"


async def test_a_header_that_is_none_is_taken_nowhere() -> None:
    """Not in its place, where a payload that is gone asks for its kind, and not appended anew."""
    bench = await finished()
    seq, device_id, at_ms, _, sig, payload, more = bench.rows[2]
    without_payload = (seq, device_id, at_ms, b"\xc0", sig, None, more)
    assert (await bench.heal(3, 3, rows=[without_payload], proof=None)).answer == "refused"
    row = (seq, device_id, at_ms, b"\xc0", sig, payload, more)
    anew = await bench.heal(3, 3, after=None, rows=[row], proof=None)
    assert (anew.answer, anew.lost) == ("placed", [3])


async def test_a_device_that_may_not_read_hands_in_nothing() -> None:
    """It could not hold it."""
    bench = await restored(MemoryPlace())
    blind = replace(bench.principal, capabilities=type(bench.principal.capabilities)(0))
    with pytest.raises(ProtocolError, match="forbidden"):
        await bench.heal(3, 4, by=blind)
