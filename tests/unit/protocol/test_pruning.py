"""What a device takes in place of a beginning that is gone, and what it calls a lie (protocol.md section 3)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec
import pytest

from keepstep.model import PREV_BYTES, Capability, Kind, Policy, Position, RetentionClass
from keepstep.protocol.messages import Pruned
from keepstep.protocol.policy import encode_policy
from keepstep.protocol.reader import BehindDevices
from keepstep.protocol.streamstate import state_at
from tests.support.events import seed
from tests.support.scripted_log import ScriptedStream, ScriptedUser, follow, lie, make_device, replaced, two_authors

if TYPE_CHECKING:
    from keepstep.protocol.messages import EventRow
    from keepstep.protocol.reader import StreamVerifier

OTHER: Final = seed("another chain")


def gap(stream: ScriptedStream, after: int, to_seq: int, *kept: EventRow, **changes: Any) -> Pruned:
    """What an honest server shows in place of the events up to a seq; ``changes`` replace fields."""
    authors: dict[bytes, tuple[int, bytes]] = {}
    copy = ScriptedStream(stream.user, stream.name, stream.kind)
    for row in stream.rows[:to_seq]:
        copy.take(row[1], row[3], row[4], row[5], received_at_ms=row[2])
        n, hash_ = copy.authors[row[1]]
        authors[row[1]] = (n, hash_[:PREV_BYTES])
    message = Pruned(
        stream=stream.name,
        after=after,
        to_seq=to_seq,
        chain=stream.chains[to_seq],
        authors=authors,
        kept=list(kept),
        head=stream.head(to_seq),
    )
    return msgspec.structs.replace(message, **changes)


def away(stream: ScriptedStream, seq: int = 2) -> StreamVerifier:
    """A device that has read up to a seq."""
    reader = follow(stream)
    reader.feed(*stream.page(0, seq))
    return reader


# -- what is right


@pytest.mark.parametrize("read", [0, 1, 3])
def test_a_device_that_was_away_goes_on_after_the_gap(read: int) -> None:
    """It verifies what follows: chain, authors and times go on from what the server showed."""
    _, stream = two_authors()
    reader = away(stream, read)

    assert reader.pruned(gap(stream, read, 4)) == []

    assert reader.position == Position(4, stream.chains[4])
    events = reader.feed(*stream.page(4))
    assert [event.payload for event in events] == [b"event 4", b"event 5"]
    assert reader.caught_up(stream.head()) == []
    assert reader.state.authors.keys() == {row[1] for row in stream.rows}


def test_everything_may_be_gone() -> None:
    """Then there is nothing to read, and the device is caught up."""
    _, stream = two_authors()
    reader = away(stream)
    reader.pruned(gap(stream, 2, 6))
    assert reader.caught_up(stream.head()) == []


def test_an_author_who_is_not_among_those_of_the_gap_begins_at_one() -> None:
    """The vector is of all authors, so a device that began in the middle knows who is new."""
    user, stream = two_authors()
    tablet = make_device("tablet")
    user.enrol(tablet)
    stream.append(tablet, n=2, prev=b"p" * 16)
    reader = follow(stream, state=state_at(Position(2, stream.chains[2])))
    reader.pruned(gap(stream, 2, 6))
    assert "first event is missing" in lie(lambda: reader.feed(*stream.page(6))).reason


def test_payloads_that_were_missing_are_not_looked_for_any_more() -> None:
    """They are named, for whoever waits for them."""
    user, stream = two_authors()
    stream.append(user.laptop, stored_payload=None)
    stream.append(user.laptop)
    reader = away(stream, 7)
    assert reader.state.missing.keys() == {7}
    assert reader.pruned(gap(stream, 7, 8)) == [7]
    assert reader.caught_up(stream.head()) == []


def test_the_policy_that_was_in_force_stays_so() -> None:
    """As its author signed it: what does not keep it is withheld, also by a device that starts after it."""
    user, stream = two_authors()
    row = stream.append(user.laptop, encode_policy(Policy.LATEST), kind=Kind.POLICY)
    stream.append(user.laptop, b"no key")
    reader = away(stream)
    reader.pruned(gap(stream, 2, 7, row))
    (event,) = reader.feed(*stream.page(7))
    assert event.payload is None


def test_a_policy_that_nobody_was_allowed_to_set_has_no_effect() -> None:
    """As where it is read in its place."""
    user = ScriptedUser()
    watch = make_device("watch", Capability.PUBLISH)
    user.enrol(watch)
    stream = user.stream()
    row = stream.append(watch, encode_policy(Policy.LATEST), kind=Kind.POLICY)
    stream.append(user.laptop, b"no key")
    reader = follow(stream)
    reader.pruned(gap(stream, 0, 1, row))
    (event,) = reader.feed(*stream.page(1))
    assert event.payload == b"no key"


def test_a_policy_whose_payload_is_gone_is_unknown() -> None:
    """Nothing is withheld for it."""
    user, stream = two_authors()
    row = stream.append(user.laptop, encode_policy(Policy.LATEST), kind=Kind.POLICY, stored_payload=None)
    stream.append(user.laptop, b"no key")
    reader = away(stream)
    reader.pruned(gap(stream, 2, 7, row))
    (event,) = reader.feed(*stream.page(7))
    assert event.payload == b"no key"
    assert reader.state.rules.policy is None


def test_authors_of_what_is_kept_are_judged_by_devices_that_are_read_first() -> None:
    """As those of pages."""
    user, stream = two_authors()
    row = stream.append(user.laptop, encode_policy(Policy.LATEST), kind=Kind.POLICY)
    reader = follow(stream, account=user.account(upto=1))
    with pytest.raises(BehindDevices):
        reader.pruned(gap(stream, 0, 7, row))
    assert "knows more of $devices" in lie(lambda: reader.pruned(gap(stream, 0, 7, row), devices_complete=True)).reason


def test_a_head_of_the_gap_says_nothing_of_the_end() -> None:
    """After a restore it is of a later epoch and a lower seq than one that was seen before."""
    _, stream = two_authors()
    reader = away(stream)
    reader.note(stream.head(6, epoch=1))
    reader.pruned(gap(stream, 2, 4, head=stream.head(4, epoch=2)))
    reader.feed(*stream.page(4))
    reader.caught_up(stream.head(6, epoch=2))


# -- what is a lie


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"chain": OTHER}, "not that of the gap"),
        ({"authors": {}}, "as many events"),
    ],
)
def test_a_gap_that_contradicts_itself_is_a_lie(changes: dict[str, Any], reason: str) -> None:
    """Or is none of where this device is; nothing of it is taken."""
    _, stream = two_authors()
    reader = away(stream)
    state = reader.state
    assert reason in lie(lambda: reader.pruned(gap(stream, 2, 4, **changes))).reason
    for after in (1, 3):
        assert "another gap" in lie(lambda after=after: reader.pruned(gap(stream, after, 4))).reason  # type: ignore[misc]
    assert reader.state == state


def test_a_gap_that_ends_where_the_device_is_is_a_lie() -> None:
    """The server prunes what the device holds, and says that it does not."""
    _, stream = two_authors()
    reader = away(stream, 4)
    assert "another gap" in lie(lambda: reader.pruned(gap(stream, 4, 4))).reason


def test_a_head_that_nobody_signed_is_a_lie() -> None:
    """Or of another stream."""
    user, stream = two_authors()
    reader = away(stream)
    head, _ = stream.head(4)
    assert "does not verify" in lie(lambda: reader.pruned(gap(stream, 2, 4, head=(head, bytes(64))))).reason
    other = user.stream("other")
    for _ in range(4):
        other.append(user.laptop)
    assert "another stream" in lie(lambda: reader.pruned(gap(stream, 2, 4, head=other.head(4)))).reason


def test_another_chain_than_was_signed_before_is_called_out() -> None:
    """With both heads as evidence where they are of one epoch; and where a checkpoint of another device says so."""
    _, stream = two_authors()
    forged = {"chain": OTHER, "head": stream.head(4, chain=OTHER)}
    reader = away(stream)
    reader.note(stream.head(4))
    failure = lie(lambda: reader.pruned(gap(stream, 2, 4, **forged)))
    assert ("two histories" in failure.reason, len(failure.evidence)) == (True, 2)
    later = {"chain": OTHER, "head": stream.head(4, chain=OTHER, epoch=2)}
    assert "not those of a signed head" in lie(lambda: reader.pruned(gap(stream, 2, 4, **later))).reason
    reader = away(stream)
    reader.compare(4, stream.chains[4])
    assert "as its checkpoint says" in lie(lambda: reader.pruned(gap(stream, 2, 4, **forged))).reason


def test_another_chain_than_goes_on_is_found_at_the_next_page() -> None:
    """The next author had seen the chain that it hides; without one, what follows does not recompute."""
    user, stream = two_authors()
    reader = away(stream)
    reader.pruned(gap(stream, 2, 4, chain=OTHER, head=stream.head(4, chain=OTHER)))
    assert "shown another history" in lie(lambda: reader.feed(*stream.page(4))).reason
    stream.append(user.laptop, seen=(0, stream.chains[0]))
    reader = away(stream)
    reader.pruned(gap(stream, 2, 6, chain=OTHER, head=stream.head(6, chain=OTHER)))
    assert "does not end in the chain" in lie(lambda: reader.feed(*stream.page(6))).reason


def test_authors_who_wrote_less_than_before_are_a_lie() -> None:
    """Or something else under the same number, or that do not continue."""
    user, stream = two_authors()
    laptop, phone = stream.rows[0][1], stream.rows[1][1]
    honest = gap(stream, 2, 4).authors
    reader = away(stream)
    for authors in ({laptop: honest[laptop], b"x" * 16: (2, b"p" * 16)}, {laptop: (4, b"p" * 16)}):
        reason = lie(lambda authors=authors: reader.pruned(gap(stream, 2, 4, authors=authors))).reason  # type: ignore[misc]
        assert "takes back" in reason
    three = away(stream, 3)
    with_other = {laptop: (2, b"p" * 16), phone: honest[phone]}
    assert "takes back" in lie(lambda: three.pruned(gap(stream, 3, 4, authors=with_other))).reason
    longer = {laptop: (3, b"p" * 16), phone: (1, reader.state.authors[phone].prev)}
    reader.pruned(gap(stream, 2, 4, authors=longer))
    assert "missing, repeated or exchanged" in lie(lambda: reader.feed(*stream.page(4))).reason
    assert user.laptop.device_id == laptop


@pytest.mark.parametrize("name", ["$devices", "$keys"])
def test_nothing_is_ever_gone_from_reserved_streams(name: str) -> None:
    """They are kept for ever."""
    user = ScriptedUser()
    stream = user.devices_stream if name == "$devices" else user.keys_stream()
    if name == "$keys":
        stream.append(user.laptop)
    assert "kept for ever" in lie(lambda: follow(stream).pruned(gap(stream, 0, 1))).reason


def test_nothing_is_ever_gone_from_a_stream_that_is_kept() -> None:
    """As its policy says, which the device has read or is shown."""
    user = ScriptedUser()
    stream = user.stream()
    policy = encode_policy(Policy.APPEND, retention_class=RetentionClass.KEEP)
    row = stream.append(user.laptop, policy, kind=Kind.POLICY)
    stream.append(user.laptop)
    assert "kept for ever" in lie(lambda: follow(stream).pruned(gap(stream, 0, 2, row))).reason
    assert "kept for ever" in lie(lambda: away(stream, 1).pruned(gap(stream, 1, 2, row))).reason


def test_a_policy_that_the_device_knows_cannot_be_left_out() -> None:
    """It was in force, and nothing else is."""
    user, stream = two_authors()
    stream.append(user.laptop, encode_policy(Policy.LATEST), kind=Kind.POLICY)
    stream.append(user.laptop, key=bytes(16))
    assert "hides the policy" in lie(lambda: away(stream, 7).pruned(gap(stream, 7, 8))).reason


def test_what_is_kept_was_in_what_is_gone() -> None:
    """Of this stream, of a kind that is kept, from before the end of the gap, with the payload that was signed."""
    user, stream = two_authors()
    policy = stream.append(user.laptop, encode_policy(Policy.LATEST), kind=Kind.POLICY)
    elsewhere = user.stream("other").append(user.laptop, encode_policy(Policy.LATEST), kind=Kind.POLICY)
    reader = away(stream)
    for row, reason in (
        (stream.rows[0], "does not belong there"),
        (elsewhere, "does not belong there"),
        (replaced(policy, 5, b"other"), "not the one that the author signed"),
        (replaced(policy, 3, b"no header"), "documented form"),
    ):
        assert reason in lie(lambda row=row: reader.pruned(gap(stream, 2, 7, row))).reason  # type: ignore[misc]
    assert "was not in it" in lie(lambda: reader.pruned(gap(stream, 2, 4, policy))).reason
