"""A stream's own rules as its readers check them, and what they let go missing (protocol.md section 3)."""

from __future__ import annotations

from typing import Any

import pytest

from keepstep.model import Capability, Kind, Policy, Position, inbox_of
from keepstep.protocol import missing as missing_module
from keepstep.protocol.policy import encode_policy
from keepstep.protocol.reader import StreamVerifier
from keepstep.protocol.snapshot import encode_confirm, encode_erase, encode_snapshot
from keepstep.protocol.streamstate import decode_state, state_at
from keepstep.protocol.verified import Problem, VerifiedEvent
from tests.support.events import FULL, NOW_MS
from tests.support.scripted_log import ScriptedStream, ScriptedUser, follow, make_device

HLC = NOW_MS << 16


def key(name: str) -> bytes:
    """What an event writes."""
    return name.encode().ljust(16, b"\0")


def stream_of(policy: Policy) -> ScriptedStream:
    """A stream whose first event sets its policy."""
    stream = ScriptedUser().stream()
    stream.append(stream.user.laptop, encode_policy(policy), kind=Kind.POLICY)
    return stream


def read(stream: ScriptedStream, reader: StreamVerifier | None = None) -> list[VerifiedEvent]:
    """Everything from where a reader is."""
    reader = reader or follow(stream)
    return reader.feed(*stream.page(reader.position.seq))


def problems(events: list[VerifiedEvent]) -> list[Problem | None]:
    """In order."""
    return [event.problem for event in events]


# -- the rules


def test_control_events_are_delivered_with_their_payload() -> None:
    """They are for the application too: it shows what was erased and starts from snapshots."""
    stream = stream_of(Policy.APPEND)
    laptop = stream.user.laptop
    stream.append(laptop, b"one")
    covers = Position(2, stream.chains[2])
    snapshot = encode_snapshot(covers, {laptop.device_id: 2}, b"sealed")
    stream.append(laptop, snapshot, kind=Kind.SNAPSHOT)
    stream.append(laptop, encode_confirm(3), kind=Kind.CONFIRM)
    stream.append(laptop, encode_erase({laptop.device_id: [2]}), kind=Kind.ERASE)
    events = read(stream)
    assert problems(events) == [None] * 5
    assert events[2].payload == snapshot


@pytest.mark.parametrize("kind", [Kind.POLICY, Kind.SNAPSHOT, Kind.CONFIRM, Kind.ERASE])
def test_one_of_another_form_has_no_effect(kind: Kind) -> None:
    """It is in the chain; a server that stored it did not read it."""
    stream = stream_of(Policy.APPEND)
    stream.append(stream.user.laptop, b"\x91\x01", kind=kind)
    assert problems(read(stream)) == [None, Problem.INVALID]


def test_only_a_managing_device_sets_policies_and_erases_what_others_wrote() -> None:
    """Its own events any device erases."""
    stream = stream_of(Policy.APPEND)
    user, pen = stream.user, make_device("pen", Capability.PUBLISH)
    user.enrol(pen)
    stream.append(pen, encode_policy(Policy.EXPECT), kind=Kind.POLICY)
    stream.append(pen, b"anything")
    stream.append(pen, encode_erase({user.laptop.device_id: [1]}), kind=Kind.ERASE)
    stream.append(pen, encode_erase({pen.device_id: [2]}), kind=Kind.ERASE)
    stream.append(pen, b"\x91\x01", kind=Kind.ERASE)
    expected = [None, Problem.NOT_ALLOWED, None, Problem.NOT_ALLOWED, None, Problem.INVALID]
    assert problems(read(stream)) == expected


def test_expect_is_checked_by_readers_too() -> None:
    """A server that stores what does not build on the head is not believed."""
    stream = stream_of(Policy.EXPECT)
    user = stream.user
    phone = make_device("phone")
    user.enrol(phone)
    stream.append(user.laptop, b"on the head", base=(1, stream.chains[1]))
    stream.append(user.laptop, b"on its own", base=2)
    stream.append(phone, b"on the head", base=(3, stream.chains[3]))
    stream.append(user.laptop, b"not on the head", base=3)
    stream.append(user.laptop, b"another chain", base=(5, bytes(32)))
    stream.append(user.laptop, b"without a base")
    expected = [None, None, None, None, Problem.INVALID, Problem.INVALID, Problem.INVALID]
    assert problems(read(stream)) == expected


def test_latest_needs_a_key() -> None:
    """Without one an event has no effect."""
    stream = stream_of(Policy.LATEST)
    stream.append(stream.user.laptop, b"no key")
    stream.append(stream.user.laptop, b"a key", key=key("a"))
    assert problems(read(stream)) == [None, Problem.INVALID, None]


def test_a_policy_that_may_not_follow_has_no_effect() -> None:
    """What was promised before it still holds."""
    stream = stream_of(Policy.LATEST)
    stream.append(stream.user.laptop, encode_policy(Policy.APPEND), kind=Kind.POLICY)
    stream.append(stream.user.laptop, b"no key")
    assert problems(read(stream)) == [None, Problem.INVALID, Problem.INVALID]


def test_fork_shows_what_an_event_is_concurrent_with() -> None:
    """From the base that its author signed."""
    stream = stream_of(Policy.FORK)
    user, phone = stream.user, make_device("phone")
    user.enrol(phone)
    stream.append(user.laptop, b"one", base=(1, stream.chains[1]))
    stream.append(phone, b"two", base=(1, stream.chains[1]))
    stream.append(user.laptop, b"three", base=2)
    stream.append(phone, b"four")
    shown = [event.concurrent_with for event in read(stream)]
    assert shown == [None, None, (2, 2), (3, 3), (1, 4)]


def test_who_does_not_know_the_policy_judges_nothing_by_it() -> None:
    """A reader that begins in the middle learns it from the next policy event."""
    stream = stream_of(Policy.EXPECT)
    stream.append(stream.user.laptop, b"without a base")
    reader = follow(stream, state=state_at(Position(1, stream.chains[1])))
    assert problems(read(stream, reader)) == [None]
    stream.append(stream.user.laptop, encode_policy(Policy.EXPECT), kind=Kind.POLICY)
    stream.append(stream.user.laptop, b"without a base")
    assert problems(read(stream, reader)) == [None, Problem.INVALID]


def test_a_policy_that_is_gone_leaves_the_rules_unknown() -> None:
    """Nothing removes it, so it is reported; what follows is not judged by a guess."""
    stream = ScriptedUser().stream()
    stream.append(stream.user.laptop, encode_policy(Policy.EXPECT), kind=Kind.POLICY, stored_payload=None)
    stream.append(stream.user.laptop, b"without a base")
    reader = follow(stream)
    assert problems(read(stream, reader)) == [Problem.MISSING, None]
    assert reader.caught_up(stream.head()) == [1]


def test_rules_do_not_reach_into_inboxes() -> None:
    """They hold nothing but messages."""
    user = ScriptedUser()
    stream = user.stream(inbox_of(user.laptop.device_id))
    stream.append(user.laptop, b"message")
    assert problems(read(stream)) == [None]


# -- what may go missing


def lost_and_won(*, gone: tuple[int, ...], written: tuple[tuple[str, int], ...]) -> ScriptedStream:
    """A stream of the policy latest: (key, hlc) in order, the payloads at ``gone`` (0 is the first of them) missing."""
    stream = stream_of(Policy.LATEST)
    for index, (name, hlc) in enumerate(written):
        changes: dict[str, Any] = {"stored_payload": None} if index in gone else {}
        stream.append(stream.user.laptop, b"value", key=key(name), hlc=HLC + hlc, **changes)
    return stream


def test_losers_may_have_lost_their_payload() -> None:
    """Whether the winner comes after or before; at the end nothing is left to ask for."""
    stream = lost_and_won(gone=(0, 1, 3), written=(("a", 1), ("a", 2), ("a", 9), ("a", 3), ("b", 1)))
    reader = follow(stream)
    events = read(stream, reader)
    assert problems(events)[1:] == [Problem.MISSING, Problem.MISSING, None, Problem.SUPERSEDED, None]
    assert reader.caught_up(stream.head()) == []


def test_a_winner_that_is_gone_is_withheld() -> None:
    """The best of its key has to be there."""
    stream = lost_and_won(gone=(0, 1), written=(("a", 1), ("a", 2), ("b", 3)))
    reader = follow(stream)
    read(stream, reader)
    assert reader.caught_up(stream.head()) == [3]
    (event,) = reader.reread(stream.rows[2:3])
    assert event.problem is Problem.WITHHELD


def test_winners_are_known_from_one_page_to_the_next_and_through_a_store() -> None:
    """The reader's state carries them."""
    stream = lost_and_won(gone=(1, 2), written=(("a", 9), ("a", 1), ("b", 1), ("b", 2)))
    reader = follow(stream)
    reader.feed(*stream.page(0, 2))
    reader = follow(stream, state=decode_state(reader.state.encode()))
    assert problems(reader.feed(*stream.page(2, 4))) == [Problem.SUPERSEDED, Problem.MISSING]
    reader = follow(stream, state=decode_state(reader.state.encode()))
    reader.feed(*stream.page(4))
    assert reader.caught_up(stream.head()) == []


def test_a_forged_winner_excuses_nothing() -> None:
    """A server could make one up; and a key in another policy decides nothing."""
    stream = lost_and_won(gone=(0,), written=(("a", 1),))
    stream.append(stream.user.laptop, b"forged", key=key("a"), hlc=HLC + 9, sig=bytes(64))
    reader = follow(stream)
    read(stream, reader)
    assert reader.caught_up(stream.head()) == [2]
    plain = stream_of(Policy.APPEND)
    plain.append(plain.user.laptop, b"gone", key=key("a"), hlc=HLC, stored_payload=None)
    plain.append(plain.user.laptop, b"there", key=key("a"), hlc=HLC + 1)
    reader = follow(plain)
    read(plain, reader)
    assert reader.caught_up(plain.head()) == [2]


def test_a_bounded_number_of_winners_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The key that changed longest ago is forgotten first."""
    monkeypatch.setattr(missing_module, "WINNERS_MAX", 2)
    stream = lost_and_won(gone=(), written=(("a", 1), ("b", 1), ("a", 2), ("c", 1)))
    reader = follow(stream)
    read(stream, reader)
    assert list(reader.state.rules.winners) == [key("a"), key("c")]


def test_what_was_erased_may_be_gone() -> None:
    """By whoever may erase it; another event of that number is still missed."""
    stream = stream_of(Policy.APPEND)
    laptop = stream.user.laptop
    for _ in range(3):
        stream.append(laptop, b"gone", stored_payload=None)
    stream.append(
        laptop, encode_erase({laptop.device_id: [2, 4], make_device("phone").device_id: [3]}), kind=Kind.ERASE
    )
    reader = follow(stream)
    assert problems(read(stream, reader))[1:4] == [Problem.MISSING] * 3
    assert reader.caught_up(stream.head()) == [3]


def test_what_was_erased_from_among_contenders_may_be_gone() -> None:
    """The winner too: its key is empty then."""
    stream = lost_and_won(gone=(0, 1), written=(("a", 1), ("a", 2)))
    laptop = stream.user.laptop
    stream.append(laptop, encode_erase({laptop.device_id: [3]}), kind=Kind.ERASE)
    reader = follow(stream)
    read(stream, reader)
    assert reader.caught_up(stream.head()) == []


def test_an_erasure_that_is_not_allowed_excuses_nothing() -> None:
    """Nor one whose own payload is gone."""
    stream = stream_of(Policy.APPEND)
    user, pen = stream.user, make_device("pen", Capability.PUBLISH)
    user.enrol(pen)
    stream.append(user.laptop, b"gone", stored_payload=None)
    erasure = encode_erase({user.laptop.device_id: [2]})
    stream.append(pen, erasure, kind=Kind.ERASE)
    stream.append(user.laptop, erasure, kind=Kind.ERASE, stored_payload=None)
    reader = follow(stream)
    read(stream, reader)
    assert reader.caught_up(stream.head()) == [2, 4]


@pytest.mark.parametrize(("known", "problem"), [(1, Problem.NOT_ALLOWED), (2, Problem.INVALID)])
@pytest.mark.parametrize(
    "changes",
    [
        {"payload": b"won", "key": key("a"), "hlc": HLC + 9},
        {"payload": encode_erase({ScriptedUser().laptop.device_id: [2]}), "kind": Kind.ERASE},
    ],
)
def test_what_an_author_does_that_names_too_old_devices_may_be_done(
    known: int, problem: Problem, changes: dict[str, Any]
) -> None:
    """The server acts upon it: only the event's own payload is withheld, and nobody takes the server for a liar."""
    stream = stream_of(Policy.LATEST)
    user, phone = stream.user, make_device("phone", FULL)
    user.enrol(phone)
    user.enrol(make_device("watch", Capability.PUBLISH))
    stream.append(user.laptop, b"gone", key=key("a"), hlc=HLC, stored_payload=None)
    stream.append(phone, b"begun", key=key("b"), hlc=HLC)
    stream.append(phone, devices_seen=(known, user.devices_stream.chains[known]), **changes)
    reader = follow(stream)
    assert problems(read(stream, reader))[1:] == [Problem.MISSING, None, problem]
    assert reader.caught_up(stream.head()) == []


def undone_erasure(**changes: Any) -> tuple[ScriptedStream, StreamVerifier]:
    """A payload that a device erased before it was revoked, together with the erasure; its reader at the end."""
    stream = stream_of(Policy.APPEND)
    user, phone = stream.user, make_device("phone", changes.pop("capabilities", FULL))
    user.enrol(phone)
    stream.append(user.laptop, b"gone", stored_payload=None)
    devices_seen = user.devices_stream.head_position
    user.revoke(phone, received_at_ms=NOW_MS + 100)
    erasure = encode_erase({user.laptop.device_id: [2]})
    stream.append(phone, erasure, kind=Kind.ERASE, **({"devices_seen": devices_seen} | changes))
    reader = follow(stream)
    assert problems(read(stream, reader))[1:] == [Problem.MISSING, Problem.AFTER_REVOCATION]
    return stream, reader


def test_what_a_device_erased_before_it_was_revoked_may_be_gone() -> None:
    """The server acted in good faith; the event itself is undone all the same."""
    stream, reader = undone_erasure()
    assert reader.caught_up(stream.head()) == []


@pytest.mark.parametrize(
    "changes", [{"sig": bytes(64)}, {"received_at_ms": NOW_MS + 101}, {"capabilities": Capability.PUBLISH}]
)
def test_a_revoked_device_excuses_nothing_that_it_could_not_have_done(changes: dict[str, Any]) -> None:
    """Forged, taken after the revocation, or beyond what it was allowed."""
    stream, reader = undone_erasure(**changes)
    assert reader.caught_up(stream.head()) == [2]
