"""The extension's heads, ingest and runs: the decide table, and what it leaves for the database and the sessions."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import msgspec
import pytest

from keepstep import _keepstep
from keepstep.client import crypto
from keepstep.errors import ProtocolError
from keepstep.interfaces import Page
from keepstep.model import Capability, RetentionClass
from keepstep.pages import encode_events
from keepstep.protocol.chain import chain_next, event_hash
from keepstep.protocol.event import NO_PREV
from keepstep.protocol.messages import ResultAccepted, ResultDuplicate, ResultError
from keepstep.protocol.results import decode_results
from tests.support.events import NOW_MS, DeviceFixture, UserFixture, parse, submission
from tests.support.ingesting import copied_rows, ingest, new_head, principal

if TYPE_CHECKING:
    from collections.abc import Mapping

MANY: Final = _keepstep.AUTHORS_PACKED_MAX


@pytest.fixture
def user() -> UserFixture:
    """A user."""
    return UserFixture("ada")


@pytest.fixture
def device(user: UserFixture) -> DeviceFixture:
    """A device of the user."""
    return DeviceFixture(user, "laptop")


# -- heads --------------------------------------------------------------------------------------------------------


def stored(**changes: object) -> dict[str, Any]:
    """What the database has of a stream with one author."""
    author = b"".join(number.to_bytes(8, "big") for number in (5, 2, 4)) + b"h" * 32
    row = {
        "user_pk": 7,
        "stream_pk": 3,
        "name": "notes",
        "retention_class": 1,
        "seq": 4,
        "chain": b"c" * 32,
        "received_at_ms": 99,
        "auth_epoch": 6,
        "authors_packed": author,
    }
    return {**row, **changes}


def test_a_head_is_loaded_as_it_was_stored() -> None:
    """Packed authors and all."""
    head = _keepstep.StreamHead.load(**stored())
    assert (head.user_pk, head.stream_pk, head.name, head.retention_class) == (7, 3, "notes", 1)
    assert (head.seq, head.chain, head.received_at_ms, head.auth_epoch) == (4, b"c" * 32, 99, 6)
    assert (head.authors_packed, head.author_count) == (stored()["authors_packed"], 1)
    assert head.author(5) == (2, 4, b"h" * 32)
    assert head.author(6) is None


def test_a_new_head_has_chain_0_and_no_author(user: UserFixture) -> None:
    """protocol.md section 3."""
    head = new_head(user, "notes")
    assert (head.seq, head.chain, head.received_at_ms) == (0, user.chain_0("notes"), 0)
    assert (head.authors_packed, head.author_count, head.author(1)) == (b"", 0, None)


def test_authors_of_the_table_are_not_packed() -> None:
    """However few there are: a stream above the limit never comes back below it."""
    rows = [(9, 1, 2, b"n" * 32), (5, 2, 4, b"h" * 32)]
    head = _keepstep.StreamHead.load(**stored(authors_packed=b"", authors=rows))
    assert (head.author_count, head.authors_packed) == (2, b"")
    assert head.author(9) == (1, 2, b"n" * 32)


@pytest.mark.parametrize(
    "changes",
    [
        {"authors_packed": b""},
        {"authors_packed": bytes(55)},
        {"authors_packed": stored()["authors_packed"] * 2},
        {"authors": [(6, 1, 1, bytes(32))]},
        {"seq": 0},
        {"seq": 3},
        {"received_at_ms": 2**48},
        {"chain": bytes(31)},
        {"authors_packed": b"", "authors": [(5, 1, 1, bytes(31))]},
    ],
)
def test_a_head_that_cannot_be_is_refused(changes: dict[str, Any]) -> None:
    """Better no head than a wrong one: what is appended to it would be wrong for ever."""
    with pytest.raises(ValueError, match=r"authors|bytes"):
        _keepstep.StreamHead.load(**stored(**changes))


def test_a_head_for_a_key_of_another_length_is_refused() -> None:
    """The caller's mistake."""
    with pytest.raises(ValueError, match="user key"):
        _keepstep.StreamHead.create(
            user_pk=1, user_key=bytes(31), stream_pk=1, name="x", retention_class=1, auth_epoch=0
        )


# -- ingest -------------------------------------------------------------------------------------------------------


def test_a_batch_is_numbered_chained_and_encoded(user: UserFixture, device: DeviceFixture) -> None:
    """Everything that the log stores and the sessions send."""
    events = [device.event("notes", b"one", ttl_s=60), device.event("notes", b"two", trace=b"t")]
    head = new_head(user, "notes")
    ingested = ingest(submission(principal(device), *events), heads=[head])
    chains = [user.chain_0("notes")]
    for seq, event in enumerate(events, 1):
        chains.append(chain_next(crypto, chains[-1], seq, NOW_MS, event.hash))
    assert ingested.results == [[(0, 2, 1, NOW_MS, chains[2])]]
    ((old, new),) = ingested.moved
    assert (old.seq, new.seq, new.chain, new.received_at_ms) == (0, 2, chains[2], NOW_MS)
    assert new.author(1) == (2, 2, events[1].hash)
    assert ingested.changed_authors == []
    assert ingested.retention_classes == [1]
    columns: list[list[int | None]] = [[7, 3, 1, NOW_MS, 1, 1, 0, NOW_MS + 60_000], [7, 3, 2, NOW_MS, 1, 2, 1, None]]
    expected: list[list[bytes | None]] = []
    for numbers, event, chain in zip(columns, events, chains[1:], strict=True):
        integers = [None if number is None else number.to_bytes(8, "big") for number in numbers]
        expected.append([*integers, event.header, event.sig, event.payload, chain])
    assert copied_rows(ingested.copy_bytes(1)) == expected
    (run,) = ingested.runs
    assert (run.user_pk, run.stream_pk, run.first_seq, run.last_seq) == (7, 3, 1, 2)
    assert (run.prev_chain, run.chain, run.expires_at_ms) == (chains[0], chains[2], NOW_MS + 60_000)
    rows, count, last_seq, chain = run.page(0, events_max=10, bytes_max=10_000)
    assert (count, last_seq, chain) == (2, 2, chains[2])
    assert run.size_bytes > len(rows)
    assert msgspec.msgpack.decode(b"\x92" + rows) == [
        [seq, device.device_id, NOW_MS, event.header, event.sig, event.payload, event.trace]
        for seq, event in enumerate(events, 1)
    ]


def test_refusals_carry_what_is_needed_to_recover(user: UserFixture, device: DeviceFixture) -> None:
    """protocol.md section 3: last_n and last_hash, or seq and hash of what is stored."""
    first, second = device.events("notes", 2)
    head = ingest(submission(principal(device), first, second), heads=[new_head(user, "notes")]).moved[0][1]
    forged = device.sign("notes", b"forged", n=2, prev=first.hash[:16])
    far = device.sign("notes", n=4, prev=second.hash[:16])
    wrong_prev = device.sign("notes", n=3, prev=first.hash[:16])
    ingested = ingest(submission(principal(device), second, forged, first, far, wrong_prev), heads=[head])
    assert ingested.results == [
        [
            (1, 2, head.chain, NOW_MS),
            (2, "id_reused", [2, second.hash]),
            (3, 2, 1, first.hash, 2),
            (2, "out_of_order", [2, second.hash]),
            (2, "out_of_order", [2, second.hash]),
        ]
    ]
    assert (ingested.moved, ingested.runs, ingested.retention_classes) == ([], [], [])
    assert copied_rows(ingested.copy_bytes(1)) == []


def test_answers_are_encoded_as_messages_say_them(user: UserFixture, device: DeviceFixture) -> None:
    """The same as ``results``, and counted; what only the database knows cannot be said."""
    first, second, third = device.events("notes", 3)
    head = ingest(submission(principal(device), first, second), heads=[new_head(user, "notes")]).moved[0][1]
    forged = replace(third, sig=bytes(64))
    gap = device.sign("notes", n=9, prev=third.hash[:16])
    reused = device.sign("notes", b"another", n=2, prev=first.hash[:16])
    ingested = ingest(submission(principal(device), second, forged, gap, reused, third), heads=[head])
    assert [decode_results(each) for each in ingested.encoded_answers()] == [
        [
            ResultDuplicate(2, head.chain, NOW_MS),
            ResultError("bad_signature", []),
            ResultError("out_of_order", [2, second.hash]),
            ResultError("id_reused", [2, second.hash]),
            ResultAccepted(1, 3, NOW_MS, ingested.moved[0][1].chain),
        ]
    ]
    counts = {"accepted": 1, "bad_signature": 1, "duplicate": 1, "id_reused": 1, "out_of_order": 1}
    assert ingested.counts() == counts
    unknown = ingest(submission(principal(device), first), heads=[head])
    with pytest.raises(ValueError, match="stored"):
        unknown.encoded_answers()
    with pytest.raises(ValueError, match="stored"):
        unknown.counts()


@pytest.mark.parametrize("count", [1, 15, 16])
def test_a_run_is_the_message_of_its_page(user: UserFixture, device: DeviceFixture, count: int) -> None:
    """Byte for byte, also where an array's length is written in another way."""
    stream = "notes-of-a-long-afternoon-in-may-and-june"
    ingested = ingest(submission(principal(device), *device.events(stream, count)), heads=[new_head(user, stream)])
    (run,) = ingested.runs
    rows, _, last_seq, chain = run.page(0, events_max=count, bytes_max=1 << 20)
    assert (run.count, run.rows_bytes) == (count, len(rows))
    assert run.message(stream) == encode_events(stream, Page(0, rows, count, last_seq, chain, last_seq))


def test_a_run_continues_the_one_before_it(user: UserFixture, device: DeviceFixture) -> None:
    """By number and chain: neither itself, nor one behind a gap, nor one of another history."""
    head, runs = new_head(user, "notes"), []
    for _ in range(3):
        ingested = ingest(submission(principal(device), device.event("notes")), heads=[head])
        ((_, head),) = ingested.moved
        runs += ingested.runs
    first, second, third = runs
    stranger = DeviceFixture(user, "stranger")
    (other,) = ingest(submission(principal(stranger), stranger.event("notes")), heads=[new_head(user, "notes")]).runs
    assert second.continues(first)
    assert not first.continues(first)
    assert not third.continues(first)
    assert not second.continues(other)


def test_a_duplicate_behind_the_head_has_no_chain_to_show(user: UserFixture, device: DeviceFixture) -> None:
    """The head knows the last event's chain only."""
    mine = device.event("notes")
    other = DeviceFixture(user, "phone")
    batch = [submission(principal(device), mine), submission(principal(other, 2), other.event("notes"))]
    head = ingest(*batch, heads=[new_head(user, "notes")]).moved[0][1]
    assert ingest(submission(principal(device), mine), heads=[head]).results == [[(1, 1, None, None)]]


def test_refusals_without_detail_have_an_empty_one(user: UserFixture, device: DeviceFixture) -> None:
    """Every code of the decide table that says all by itself."""
    good = device.event("notes")
    bad = replace(good, sig=bytes(64))
    future = DeviceFixture(user, "ahead").event("notes", at_ms=NOW_MS + 600_001)
    ahead = DeviceFixture(user, "ahead")
    batch = [
        submission(principal(device), bad),
        submission(principal(device), device.sign("notes", n=1, prev=NO_PREV, kind=9)),
        submission(principal(device), device.event("elsewhere")),
        submission(principal(device, capabilities=Capability.SUBSCRIBE), good),
        submission(principal(ahead), future),
    ]
    codes = ["bad_signature", "unsupported", "unknown_stream", "forbidden", "unprocessable"]
    assert ingest(*batch, heads=[new_head(user, "notes")]).results == [[(2, code, [])] for code in codes]


def test_events_exactly_ten_minutes_ahead_are_accepted(user: UserFixture, device: DeviceFixture) -> None:
    """The bound itself is inside."""
    event = device.event("notes", at_ms=NOW_MS + 600_000)
    assert ingest(submission(principal(device), event), heads=[new_head(user, "notes")]).results[0][0][0] == 0


def test_received_at_never_steps_back(user: UserFixture, device: DeviceFixture) -> None:
    """A clock that does is overruled by the stream."""
    head = ingest(submission(principal(device), device.event("notes")), heads=[new_head(user, "notes")]).moved[0][1]
    later = ingest(submission(principal(device), device.event("notes")), heads=[head], now_ms=NOW_MS - 5_000)
    assert later.moved[0][1].received_at_ms == NOW_MS
    assert later.results[0][0][3] == NOW_MS


def test_a_suspect_gets_the_same_answers(user: UserFixture, device: DeviceFixture) -> None:
    """Only the way of verifying differs."""
    good = device.event("notes")
    bad = replace(good, sig=good.sig[:63] + b"\x00")
    for events in ((good,), (bad, good)):
        plain, suspect = (submission(principal(device), *events, suspect=suspect) for suspect in (False, True))
        heads = [new_head(user, "notes")]
        assert ingest(plain, heads=heads).results == ingest(suspect, heads=heads).results


def test_verdicts_do_not_pass_to_another_signer(user: UserFixture, device: DeviceFixture) -> None:
    """The same parsed events under another device's name are bad."""
    thief = DeviceFixture(user, "thief")
    events = parse(device.event("notes"))
    heads = [new_head(user, "notes")]
    own = submission(principal(device), device.event("notes")).with_events(events)
    stolen = submission(principal(thief, 2), thief.event("notes")).with_events(events)
    assert ingest(own, heads=heads).results[0][0][0] == 0
    assert ingest(stolen, heads=heads).results == [[(2, "bad_signature", [])]]
    assert ingest(own, heads=heads).results[0][0][0] == 0


def test_streams_may_be_left_out_of_the_copy(user: UserFixture, device: DeviceFixture) -> None:
    """Those that another node moved meanwhile."""
    heads = [new_head(user, "a", stream_pk=5), new_head(user, "b", stream_pk=4)]
    ingested = ingest(submission(principal(device), device.event("a"), device.event("b")), heads=heads)
    assert [new.stream_pk for _, new in ingested.moved] == [4, 5]
    assert [run.stream_pk for run in ingested.runs] == [4, 5]
    assert len(copied_rows(ingested.copy_bytes(1))) == 2
    for excluding in (frozenset({(7, 4)}), {(7, 4)}):
        (row,) = copied_rows(ingested.copy_bytes(1, excluding=excluding))
        assert row[1] == (5).to_bytes(8, "big")


def test_every_class_has_a_copy_of_its_own(user: UserFixture, device: DeviceFixture) -> None:
    """One event table per retention class."""
    heads = [
        new_head(user, "$keys", stream_pk=2, retention_class=RetentionClass.KEEP),
        new_head(user, "notes", stream_pk=3, retention_class=RetentionClass.STANDARD),
    ]
    ingested = ingest(submission(principal(device), device.event("$keys", kind=6), device.event("notes")), heads=heads)
    assert ingested.retention_classes == [0, 1]
    assert [len(copied_rows(ingested.copy_bytes(number))) for number in (0, 1, 2)] == [1, 1, 0]


def test_authors_move_to_their_table_when_there_are_too_many(user: UserFixture) -> None:
    """All of them at once; from then on only the changed ones."""
    devices = [DeviceFixture(user, f"device {number}") for number in range(MANY + 1)]
    head = new_head(user, "notes")
    batch = [submission(principal(device, number), device.event("notes")) for number, device in enumerate(devices)]
    packed = ingest(*batch[:MANY], heads=[head])
    assert (packed.changed_authors, packed.moved[0][1].author_count) == ([], MANY)
    crossing = ingest(batch[MANY], heads=[packed.moved[0][1]])
    head = crossing.moved[0][1]
    assert [row[:5] for row in crossing.changed_authors] == [(7, 3, n, 1, n + 1) for n in range(MANY + 1)]
    assert (head.authors_packed, head.author_count) == (b"", MANY + 1)
    event = devices[2].event("notes")
    above = ingest(submission(principal(devices[2], 2), event), heads=[head])
    assert above.changed_authors == [(7, 3, 2, 2, MANY + 2, event.hash)]


def test_heads_may_be_any_mapping(user: UserFixture, device: DeviceFixture) -> None:
    """Each is looked up once; an error of the mapping's own is passed on."""
    event = submission(principal(device), device.event("notes"))
    heads = MappingProxyType({(7, "notes"): new_head(user, "notes")})
    assert _keepstep.ingest([event], heads, now_ms=NOW_MS).results[0][0][0] == 0

    class Broken(dict[tuple[int, str], _keepstep.StreamHead]):
        def __getitem__(self, key: tuple[int, str]) -> _keepstep.StreamHead:
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        _keepstep.ingest([event], Broken(), now_ms=NOW_MS)
    other: Mapping[Any, Any] = {(7, "notes"): "no head"}
    with pytest.raises(TypeError):
        _keepstep.ingest([event], other, now_ms=NOW_MS)


def test_a_time_that_no_uuid_can_hold_is_the_callers_mistake() -> None:
    """Milliseconds of 48 bits."""
    assert _keepstep.ingest([], {}, now_ms=2**48 - 1).results == []
    with pytest.raises(ValueError, match="time"):
        _keepstep.ingest([], {}, now_ms=2**48)


def test_two_pipelines_may_ingest_at_once(user: UserFixture) -> None:
    """The same events on two threads: the same answers, and every verdict right."""
    devices = [DeviceFixture(user, f"device {number}") for number in range(4)]
    batch = [submission(principal(device, n), *device.events("notes", 20)) for n, device in enumerate(devices)]
    heads = [new_head(user, "notes")]
    with ThreadPoolExecutor(4) as threads:
        results = list(threads.map(lambda _: ingest(*batch, heads=heads).results, range(8)))
    assert [run[:3] for answers in results[0] for run in answers] == [(0, 20, 1 + 20 * n) for n in range(4)]
    assert all(other == results[0] for other in results)


# -- runs and rows ------------------------------------------------------------------------------------------------


def test_a_page_is_bounded_in_events_and_bytes(user: UserFixture, device: DeviceFixture) -> None:
    """And holds at least one event."""
    events = device.events("notes", 4)
    (run,) = ingest(submission(principal(device), *events), heads=[new_head(user, "notes")]).runs
    whole, *_ = run.page(0, events_max=9, bytes_max=1 << 20)
    first, count, last_seq, chain = run.page(0, events_max=1, bytes_max=1 << 20)
    assert (count, last_seq) == (1, 1)
    assert chain == chain_next(crypto, user.chain_0("notes"), 1, NOW_MS, events[0].hash)
    rest, count, last_seq, chain = run.page(1, events_max=9, bytes_max=1 << 20)
    assert (first + rest, count, last_seq, chain) == (whole, 3, 4, run.chain)
    assert run.page(1, events_max=9, bytes_max=0)[1:3] == (1, 2)
    assert run.page(1, events_max=9, bytes_max=len(rest) - 1)[1:3] == (2, 3)
    for after in (4, 5, 2**63):
        with pytest.raises(ValueError, match="page"):
            run.page(after, events_max=1, bytes_max=1)


def test_stored_rows_are_encoded_as_the_tail_does(user: UserFixture, device: DeviceFixture) -> None:
    """A reader cannot tell where its page came from; a deleted payload is nil."""
    events = device.events("notes", 3)
    (run,) = ingest(submission(principal(device), *events), heads=[new_head(user, "notes")]).runs
    rows = [(n, device.device_id, NOW_MS, event.header, event.sig, event.payload) for n, event in enumerate(events, 1)]
    assert _keepstep.encode_rows(rows) == run.page(0, events_max=3, bytes_max=1 << 20)[0]
    assert _keepstep.encode_rows([]) == b""
    pruned = _keepstep.encode_rows([(1, device.device_id, 5, memoryview(b"header"), bytes(64), None)])
    assert msgspec.msgpack.decode(pruned) == [1, device.device_id, 5, b"header", bytes(64), None, None]
    with pytest.raises(ValueError, match="device id"):
        _keepstep.encode_rows([(1, bytes(15), 5, b"", b"", b"")])


def test_a_chain_is_recomputed_from_its_rows() -> None:
    """From chain_0 or from anywhere on; a gap, or another start, is malformed."""
    user_key = bytes(32)
    rows = [(seq, 1_000 + seq, f"header {seq}".encode(), bytes([seq]) * 64) for seq in range(1, 5)]
    chain = UserFixture("any").chain_0("notes")
    assert _keepstep.verify_chain(user_key, "notes", 5, chain, []) == chain
    start = crypto.blake3_derive("keepstep/v1/chain-0", user_key + b"notes")
    chains = [start]
    for seq, received_at_ms, header, sig in rows:
        chains.append(chain_next(crypto, chains[-1], seq, received_at_ms, event_hash(crypto, header, sig)))
    assert _keepstep.verify_chain(user_key, "notes", 0, start, rows) == chains[4]
    assert _keepstep.verify_chain(user_key, "notes", 2, chains[2], rows[2:]) == chains[4]
    for arguments in ((0, start, rows[1:]), (1, chains[1], rows), (0, chain, rows), (2**64 - 1, chain, rows)):
        with pytest.raises(ProtocolError, match="malformed"):
            _keepstep.verify_chain(user_key, "notes", *arguments)
    for wrong in ((bytes(31), "notes", 0, start, rows), (user_key, "notes", 0, bytes(31), rows)):
        with pytest.raises(ValueError, match="bytes, not"):
            _keepstep.verify_chain(*wrong)
