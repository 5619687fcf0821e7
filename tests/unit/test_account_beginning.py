"""An account whose streams have lost their beginnings: exported, verified and read in elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec
import pytest

from keepstep import _keepstep
from keepstep.account_file import MAGIC, AccountFileError, End, Gone
from keepstep.eventlog.retention import DAY_MS, RetentionRules
from keepstep.memory.retention import MemoryRetention
from keepstep.model import Kind, Policy
from keepstep.protocol.policy import encode_policy
from tests.support.parts import Parts
from tests.unit.test_account_file import Target, append, export, of_user

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.events import DeviceFixture

RULES: Final = RetentionRules(30)


async def a_pruned_life(parts: Parts) -> DeviceFixture:
    """An account with one stream of which something is left, and one of which nothing is."""
    phone, laptop = await parts.register("alice", "phone", "laptop")
    await append(parts, phone, phone.event("notes", encode_policy(Policy.EXPECT), kind=Kind.POLICY))
    await append(parts, laptop, laptop.event("over", b"1"))
    parts.clock.at_ms += 60 * DAY_MS
    retention = MemoryRetention(parts.database)
    while await retention.advance_tail(now_ms=parts.clock.now_ms(), rules=RULES, events_max=9) is not None:
        pass
    principal = await parts.principal(phone)
    head = (await parts.log.stream(principal.user_pk, "notes")).head
    await append(parts, phone, phone.event("notes", b"left", base=(head.seq, head.chain)))
    return phone


async def test_a_pruned_account_is_the_same_on_another_server() -> None:
    """What is left, what stands for the beginning, and the policy that is in force; also when it is read in again."""
    parts = Parts()
    phone = await a_pruned_life(parts)
    data = await export(parts, phone)
    target = Target()

    imported = await target.read_in(data)

    here, there = of_user(parts.database, phone.user.user_key), of_user(target.database, phone.user.user_key)
    assert there["events"] == here["events"]
    assert {name: head[:2] for name, head in there["heads"].items()} == {
        name: head[:2] for name, head in here["heads"].items()
    }
    assert [(tail.seq, tail.chain, tail.authors) for tail in target.database.tails.values()] == [
        (tail.seq, tail.chain, tail.authors) for tail in parts.database.tails.values()
    ]
    assert [row.payload for tail in target.database.tails.values() for row in tail.kept] == [
        encode_policy(Policy.EXPECT)
    ]
    again = await target.read_in(data)
    assert (again.events, again.stored) == (imported.events, 0)


def changed(data: bytes, change: Callable[[list[Any]], None]) -> bytes:
    """A file whose frames on what is gone are changed, whole again."""
    frames: list[Any] = []
    rest = data[len(MAGIC) :]
    while rest:
        length = int.from_bytes(rest[:4], "big")
        frames.append(msgspec.msgpack.decode(rest[4 : 4 + length]))
        rest = rest[4 + length :]
    tag = Gone.__struct_config__.tag
    change(next(frame for frame in frames if frame[0] == tag and frame[4]))
    digest = bytes(32)
    pieces = [MAGIC]
    for frame in frames:
        value = msgspec.msgpack.encode(End(digest) if frame is frames[-1] else frame)
        pieces.append(len(value).to_bytes(4, "big") + value)
        digest = _keepstep.blake3(digest + value)
    return b"".join(pieces)


def of_another_chain(frame: list[Any]) -> None:
    """Another chain than is signed."""
    frame[2] = bytes(32)


def of_nobody(frame: list[Any]) -> None:
    """The head is not signed by the server."""
    frame[5][1] = bytes(64)


def of_fewer(frame: list[Any]) -> None:
    """Authors who did not write so much."""
    frame[3] = {}


def of_other_events(frame: list[Any]) -> None:
    """What is kept was not there."""
    frame[4][0][0] = 99


def without_form(frame: list[Any]) -> None:
    """What is kept is no event."""
    frame[4][0][3] = b"no header"


def of_another_author(frame: list[Any]) -> None:
    """What is kept is not signed by its author."""
    frame[4][0][4] = bytes(64)


def with_another_payload(frame: list[Any]) -> None:
    """What is kept is not what was signed for."""
    frame[4][0][5] = encode_policy(Policy.LATEST)


def of_strangers(frame: list[Any]) -> None:
    """An author who is no device of the user."""
    frame[3][b"nobody's device!"] = frame[3].popitem()[1]
    frame[4] = []


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (of_another_chain, "another stream or place"),
        (of_nobody, "not signed by the server"),
        (of_fewer, "as many events"),
        (of_other_events, "not in the beginning"),
        (without_form, "does not have its form"),
        (of_another_author, "not what its author signed"),
        (with_another_payload, "not what its author signed"),
        (of_strangers, "refused as unprocessable"),
    ],
)
async def test_a_beginning_that_was_changed_is_refused(change: Callable[[list[Any]], None], reason: str) -> None:
    """Whatever it says: the file is not what a server wrote."""
    parts = Parts()
    data = await export(parts, await a_pruned_life(parts))
    with pytest.raises(AccountFileError, match=reason):
        await Target().read_in(changed(data, change))
