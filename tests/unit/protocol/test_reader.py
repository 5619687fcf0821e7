"""What a device checks of the streams it reads (protocol.md section 3): lies stop it, an author's faults do not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from keepstep.errors import ProtocolError
from keepstep.model import Capability, Kind, Position
from keepstep.protocol import reader as reader_module
from keepstep.protocol.reader import BehindDevices
from keepstep.protocol.streamstate import decode_state, state_at
from keepstep.protocol.verified import Problem, VerifiedEvent
from tests.support.events import NOW_MS, seed
from tests.support.scripted_log import ScriptedStream, ScriptedUser, follow, lie, make_device, replaced, two_authors

if TYPE_CHECKING:
    from collections.abc import Callable

    from keepstep.protocol.messages import EventRow

OTHER_CHAIN = seed("another chain")


def payloads(events: list[VerifiedEvent]) -> list[bytes | None]:
    """Payloads in order."""
    return [event.payload for event in events]


# -- what is right


def test_a_stream_is_read_in_pages() -> None:
    """Every event comes out with its payload, its place and its chain."""
    _, stream = two_authors()
    reader = follow(stream)
    events = reader.feed(*stream.page(0, 2)) + reader.feed(*stream.page(2, 2)) + reader.feed(*stream.page(2))
    assert payloads(events) == [b"event %d" % number for number in range(6)]
    assert [event.seq for event in events] == [1, 2, 3, 4, 5, 6]
    assert [event.chain for event in events] == stream.chains[1:]
    assert {event.problem for event in events} == {None}
    assert reader.position == Position(6, stream.chains[6])
    first, row = events[0], stream.rows[0]
    assert (first.seq, first.device_id, first.received_at_ms, first.header_bytes, first.sig) == row[:5]
    assert first.header.encode() == first.header_bytes


def test_reading_goes_on_from_a_stored_state() -> None:
    """The state goes through a store as bytes and knows what it knew: authors, heads, missing payloads."""
    user, stream = two_authors()
    stream.append(user.laptop, ttl_s=5, stored_payload=None)
    reader = follow(stream)
    reader.note(stream.head(7))
    reader.feed(*stream.page(0, 3))
    restored = follow(stream, state=decode_state(reader.state.encode()))
    assert restored.state == reader.state
    restored.feed(*stream.page(3))
    assert restored.state.missing.keys() == {7}
    assert restored.state.position == Position(7, stream.chains[7])
    assert restored.caught_up(stream.head()) == [7]


@pytest.mark.parametrize("data", [b"", b"\x90", b"\x91\x01", bytes(10)])
def test_a_damaged_state_is_refused(data: bytes) -> None:
    """A store that was damaged is noticed."""
    with pytest.raises(ProtocolError, match="malformed"):
        decode_state(data)


def test_reading_from_a_later_position_takes_authors_as_they_are() -> None:
    """From the end on nothing is known of the past, but from then on everything is checked."""
    user, stream = two_authors()
    reader = follow(stream, state=state_at(Position(*stream.head_position)))
    stream.append(user.laptop, b"later")
    assert payloads(reader.feed(*stream.page(6))) == [b"later"]
    stream.append(user.laptop, b"too far", n=9)
    assert "missing, repeated or exchanged" in lie(lambda: reader.feed(*stream.page(7))).reason


def test_the_first_event_of_an_author_names_none_before_it() -> None:
    """Also where the past is not known."""
    user = ScriptedUser()
    stream = user.stream()
    reader = follow(stream, state=state_at(Position(*stream.head_position)))
    stream.append(user.laptop, prev=seed("prev")[:16])
    assert "names one before it" in lie(lambda: reader.feed(*stream.page(0))).reason


# -- lies of the server


def tampered(change: Callable[[ScriptedStream], tuple[list[EventRow], bytes]]) -> str:
    """The reason why a reader that has read three events refuses the changed page after them; it has not moved."""
    _, stream = two_authors()
    reader = follow(stream)
    reader.feed(*stream.page(0, 3))
    before = reader.state
    page = change(stream)
    error = lie(lambda: reader.feed(*page))
    assert reader.state == before
    assert error.stream == "notes"
    assert error.seq is not None
    return error.reason


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda s: (s.rows[4:], s.chains[6]), "the event after 3 is missing"),
        (lambda s: ([s.rows[4], s.rows[3]], s.chains[6]), "the event after 3 is missing"),
        (lambda s: (s.rows[:3], s.chains[3]), "the event after 3 is missing"),
        (lambda s: (s.rows[3:], OTHER_CHAIN), "does not end in the chain"),
        (lambda s: (s.rows[:0], OTHER_CHAIN), "does not end in the chain"),
        (lambda s: ([replaced(s.rows[3], 5, b"other")], s.chains[4]), "not the one that the author signed for"),
        (lambda s: ([replaced(s.rows[3], 5, b"event 4")], s.chains[4]), "not the one that the author signed for"),
        (lambda s: ([replaced(s.rows[3], 2, 0)], s.chains[4]), "steps back"),
        (lambda s: ([replaced(s.rows[3], 2, 2**48)], s.chains[4]), "no such time of reception"),
        (lambda s: ([replaced(s.rows[3], 2, NOW_MS + 9)], s.chains[4]), "does not end in the chain"),
        (lambda s: ([replaced(s.rows[3], 4, bytes(64))], s.chains[4]), "does not end in the chain"),
        (lambda s: ([replaced(s.rows[3], 3, b"\xc0")], s.chains[4]), "documented form"),
        (lambda s: ([replaced(s.rows[3], 1, s.rows[2][1])], s.chains[4]), "missing, repeated or exchanged"),
        (lambda s: ([replaced(s.rows[3], 1, seed("nobody")[:16])], s.chains[4]), "first event is missing"),
        (
            lambda s: ([replaced(s.rows[3], 3, s.header(s.user.laptop, b"x", stream="other").encode())], s.chains[4]),
            "of another stream",
        ),
    ],
)
def test_a_page_that_was_tampered_with_stops_the_reader(
    change: Callable[[ScriptedStream], tuple[list[EventRow], bytes]], reason: str
) -> None:
    """Dropped, reordered, repeated, exchanged or altered events and payloads are seen, and nothing is taken over."""
    assert reason in tampered(change)


@pytest.mark.parametrize(
    "changes", [{"n": 1}, {"n": 5}, {"prev": bytes(16)}, {"prev": seed("prev")[:16]}], ids=lambda each: str([*each])
)
def test_authors_numbers_ascend_by_one(changes: dict[str, Any]) -> None:
    """A server that leaves out, replays or swaps an author's events is seen even if chain and signature are right."""
    user, stream = two_authors()
    reader = follow(stream)
    reader.feed(*stream.page(0))
    stream.append(user.laptop, **changes)
    assert "missing, repeated or exchanged" in lie(lambda: reader.feed(*stream.page(6))).reason


def test_an_authors_first_events_cannot_be_left_out() -> None:
    """Who reads from the start must see every author begin at 1."""
    user = ScriptedUser()
    stream = user.stream()
    stream.append(user.laptop, n=2)
    assert "first event is missing" in lie(lambda: follow(stream).feed(*stream.page(0))).reason


def test_an_author_that_was_shown_another_history_is_seen() -> None:
    """``seen`` carries what the author had verified; a fork between two devices shows at the next event."""
    user, stream = two_authors()
    stream.append(user.laptop, seen=(4, OTHER_CHAIN))
    assert "another history of this stream" in lie(lambda: follow(stream).feed(*stream.page(0))).reason


def test_an_author_that_was_shown_another_account_log_is_seen() -> None:
    """The same for ``devices_seen``."""
    user, stream = two_authors()
    stream.append(user.laptop, devices_seen=(2, OTHER_CHAIN))
    assert "another history of $devices" in lie(lambda: follow(stream).feed(*stream.page(0))).reason


def test_seen_of_the_empty_stream_is_compared() -> None:
    """Position 0 has a chain too."""
    user = ScriptedUser()
    stream = user.stream()
    stream.append(user.laptop, seen=(0, OTHER_CHAIN))
    assert "another history" in lie(lambda: follow(stream).feed(*stream.page(0))).reason


def test_seen_below_what_the_reader_holds_is_asked_of_its_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """Old chains come from the store where it has them; where not, they cannot be compared."""
    monkeypatch.setattr(reader_module, "CHAINS_MAX", 2)
    user, stream = two_authors()
    stream.append(user.laptop, seen=(2, OTHER_CHAIN))
    follow(stream).feed(*stream.page(0))
    held = {2: stream.chains[2]}
    reader = follow(stream, chain_at=held.get)
    assert "another history" in lie(lambda: reader.feed(*stream.page(0))).reason


def test_there_is_a_bound_on_authors(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server cannot make a reader remember without end."""
    monkeypatch.setattr(reader_module, "AUTHORS_MAX", 1)
    _, stream = two_authors()
    assert "too many authors" in lie(lambda: follow(stream).feed(*stream.page(0))).reason


# -- $devices has to be read as far as the authors had


def test_a_page_waits_until_the_account_log_is_read_far_enough() -> None:
    """The reader is told how far, and takes the page afterwards."""
    user, stream = two_authors()
    account = user.account(upto=1)
    reader = follow(stream, account=account)
    with pytest.raises(BehindDevices) as caught:
        reader.feed(*stream.page(0))
    assert caught.value.seq == 2
    assert reader.position.seq == 0
    account.adopt(user.account())
    assert len(reader.feed(*stream.page(0))) == 6


def test_a_hidden_part_of_the_account_log_shows() -> None:
    """Who has read $devices to its head and still misses what an author knows, is being lied to."""
    user, stream = two_authors()
    reader = follow(stream, account=user.account(upto=1))
    assert "more of $devices" in lie(lambda: reader.feed(*stream.page(0), devices_complete=True)).reason


def test_with_everything_read_completeness_changes_nothing() -> None:
    """The flag matters only where something is missing."""
    _, stream = two_authors()
    assert len(follow(stream).feed(*stream.page(0), devices_complete=True)) == 6


# -- faults of authors


def odd_event(**changes: Any) -> VerifiedEvent:
    """What a reader makes of an event that is odd; the good one after it must still be read.

    ``author``: a device that writes it.
    """
    user, stream = two_authors()
    author = changes.pop("author", user.laptop)
    stream.append(author, b"odd", **changes)
    stream.append(make_device("phone"), b"good", seen=stream.head_position)
    events = follow(stream).feed(*stream.page(0))
    assert payloads(events[-1:]) == [b"good"]
    return events[-2]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"sig": bytes(64)}, Problem.BAD_SIGNATURE),
        ({"author": make_device("stranger")}, Problem.NOT_ALLOWED),
        ({"seen": (7, OTHER_CHAIN)}, Problem.INVALID),
        ({"seen": (99, OTHER_CHAIN)}, Problem.INVALID),
        ({"kind": Kind.KEYS}, Problem.INVALID),
        ({"kind": 7}, Problem.UNSUPPORTED),
        ({"kind": 99}, Problem.UNSUPPORTED),
    ],
)
def test_an_authors_fault_keeps_its_place_and_loses_its_payload(changes: dict[str, Any], problem: Problem) -> None:
    """Such an event is in the chain, but what it says is not handed on."""
    event = odd_event(**changes)
    assert (event.seq, event.payload, event.problem) == (7, None, problem)


@pytest.mark.parametrize(
    ("capabilities", "expires_at_ms", "problem"),
    [
        (Capability.PUBLISH, None, None),
        (Capability.SUBSCRIBE, None, Problem.NOT_ALLOWED),
        (Capability.PUBLISH, NOW_MS + 10, Problem.NOT_ALLOWED),
        (Capability.PUBLISH, NOW_MS + 11, None),
    ],
)
def test_an_author_needs_its_capability_when_the_event_came(
    capabilities: Capability, expires_at_ms: int | None, problem: Problem | None
) -> None:
    """Expiry counts by received_at, never by the reader's clock."""
    user = ScriptedUser()
    watch = make_device("watch", capabilities, expires_at_ms=expires_at_ms)
    user.enrol(watch)
    stream = user.stream()
    stream.append(watch, received_at_ms=NOW_MS + 10)
    assert follow(stream).feed(*stream.page(0))[0].problem is problem


def test_what_an_author_has_seen_of_the_account_log_never_goes_back() -> None:
    """An event that names an older $devices head than the author's last one is withheld."""
    user, stream = two_authors()
    before = (1, user.devices_stream.chains[1])
    stream.append(user.laptop, devices_seen=before)
    stream.append(user.laptop, devices_seen=before)
    stream.append(user.laptop)
    problems = [event.problem for event in follow(stream).feed(*stream.page(0))[-3:]]
    assert problems == [Problem.INVALID, Problem.INVALID, None]


def test_only_managing_devices_write_keys() -> None:
    """$keys takes the capability ``manage``."""
    user = ScriptedUser()
    watch = make_device("watch", Capability.PUBLISH)
    user.enrol(watch)
    stream = user.keys_stream()
    stream.append(user.laptop)
    stream.append(watch)
    events = follow(stream).feed(*stream.page(0))
    assert [event.problem for event in events] == [None, Problem.NOT_ALLOWED]


# -- $devices itself


def test_reading_the_account_log_feeds_it() -> None:
    """What the reader verifies of $devices is live for all other streams at once."""
    user = ScriptedUser()
    phone = make_device("phone")
    user.enrol(phone)
    account = user.account(upto=0)
    reader = follow(user.devices_stream, account=account)
    reader.feed(*user.devices_stream.page(0, 1))
    assert set(account.devices) == {user.laptop.device_id}
    reader.feed(*user.devices_stream.page(1))
    assert set(account.devices) == {user.laptop.device_id, phone.device_id}
    assert account.position == reader.position


def test_a_refused_account_event_has_no_effect_and_keeps_its_place() -> None:
    """Enrolments by strangers, or with an operation of a later version, do nothing."""
    user = ScriptedUser()
    phone = make_device("phone")
    user.enrol(make_device("spy"), by=make_device("stranger"))
    user.devices_stream.append(user.laptop, b"\x91\x06")
    user.enrol(make_device("spy"), sig=bytes(64))
    user.enrol(make_device("spy"), devices_seen=(9, OTHER_CHAIN))
    user.enrol(make_device("spy"), seen=(9, OTHER_CHAIN))
    user.enrol(phone)
    account = user.account(upto=0)
    events = follow(user.devices_stream, account=account).feed(*user.devices_stream.page(0))
    problems = [event.problem for event in events]
    assert problems == [
        None,
        Problem.NOT_ALLOWED,
        Problem.UNSUPPORTED,
        Problem.BAD_SIGNATURE,
        Problem.INVALID,
        Problem.INVALID,
        None,
    ]
    assert set(account.devices) == {user.laptop.device_id, phone.device_id}


def test_a_page_of_the_account_log_that_does_not_verify_changes_nothing() -> None:
    """Not even its good beginning is taken over."""
    user = ScriptedUser()
    user.enrol(make_device("phone"))
    account = user.account(upto=0)
    reader = follow(user.devices_stream, account=account)
    rows, _ = user.devices_stream.page(0)
    lie(lambda: reader.feed(rows, OTHER_CHAIN))
    assert (account.position.seq, len(account.devices)) == (0, 0)


def test_a_missing_payload_of_the_account_log_is_a_lie() -> None:
    """Nothing ever removes one."""
    user = ScriptedUser()
    user.enrol(make_device("phone"), stored_payload=None)
    reader = follow(user.devices_stream)
    assert "which nothing ever removes" in lie(lambda: reader.feed(*user.devices_stream.page(0))).reason


# -- revoked authors, checkpoints


def test_events_after_a_revocation_keep_their_place_without_payload() -> None:
    """Those up to the accepted number stay."""
    user = ScriptedUser()
    phone = make_device("phone")
    user.enrol(phone)
    stream = user.stream()
    for number in range(3):
        stream.append(phone, b"event %d" % number)
    user.revoke(phone, {"notes": 2})
    events = follow(stream).feed(*stream.page(0))
    assert [event.problem for event in events] == [None, None, Problem.AFTER_REVOCATION]
    assert [event.payload for event in events] == [b"event 0", b"event 1", None]


def test_a_hidden_revocation_shows() -> None:
    """As soon as any device that knows of it writes anything."""
    user = ScriptedUser()
    phone = make_device("phone")
    user.enrol(phone)
    user.revoke(phone)
    stream = user.stream()
    stream.append(user.laptop)
    reader = follow(stream, account=user.account(upto=2))
    with pytest.raises(BehindDevices):
        reader.feed(*stream.page(0))
    assert lie(lambda: reader.feed(*stream.page(0), devices_complete=True)).seq == 1


def test_a_checkpoint_is_compared_with_what_the_reader_holds() -> None:
    """At once where it is read already, at 0 too."""
    _, stream = two_authors()
    reader = follow(stream)
    reader.feed(*stream.page(0))
    for seq in (0, 3, 6):
        reader.compare(seq, stream.chains[seq])
        assert lie(lambda seq=seq: reader.compare(seq, OTHER_CHAIN)).seq == seq  # type: ignore[misc]


def test_a_checkpoint_ahead_of_the_reader_is_compared_when_it_gets_there() -> None:
    """The highest one is remembered, in its state too."""
    _, stream = two_authors()
    reader = follow(stream)
    reader.compare(5, stream.chains[5])
    reader.compare(4, OTHER_CHAIN)
    assert lie(lambda: reader.compare(5, OTHER_CHAIN)).seq == 5
    reader = follow(stream, state=decode_state(reader.state.encode()))
    reader.feed(*stream.page(0, 5))
    passed = reader.state
    reader.compare(6, OTHER_CHAIN)
    assert (passed.claimed, reader.state.claimed) == (None, (6, OTHER_CHAIN))
    assert lie(lambda: reader.feed(*stream.page(5))).seq == 6


@pytest.mark.parametrize(
    "changes",
    [
        {"seen": (1, OTHER_CHAIN)},
        {"seen": (9, OTHER_CHAIN)},
        {"devices_seen": (1, OTHER_CHAIN)},
        {"devices_seen": (99, OTHER_CHAIN)},
    ],
)
def test_revoking_a_device_heals_the_stream_that_it_broke(changes: dict[str, Any]) -> None:
    """What a stolen device says of histories stops readers only until it is revoked below that event."""
    user = ScriptedUser()
    phone = make_device("phone")
    user.enrol(phone)
    stream = user.stream()
    for device, forged in ((user.laptop, {}), (phone, changes), (user.laptop, {})):
        stream.append(device, **forged)
    user.revoke(phone, {"notes": 0})
    events = follow(stream).feed(*stream.page(0), devices_complete=True)
    assert [event.problem for event in events] == [None, Problem.AFTER_REVOCATION, None]
