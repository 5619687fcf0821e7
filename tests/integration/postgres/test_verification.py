"""``keepstep verify`` on a database with everything in it: each fault is found and named, and nothing else."""

# ruff: noqa: S608  # statements of our own

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from keepstep.client import crypto
from keepstep.errors import StartupError
from keepstep.postgres.verification import PostgresSource, verify_database
from keepstep.protocol.chain import chain_next, event_hash
from keepstep.protocol.event import sign_event
from keepstep.verification import Progress, Report
from keepstep.verification import verify as verify_source
from tests.support.events import NOW_MS, DeviceFixture, seed
from tests.support.populated import ADA, BOB, LATER_MS, Populated

if TYPE_CHECKING:
    from collections.abc import Callable

ADA_PK = "(SELECT min(user_pk) FROM users)"
BOB_PK = "(SELECT max(user_pk) FROM users)"
NOTES = f"user_pk = {ADA_PK} AND stream_pk = 3"
"""Ada's notes: 1 to 4 of the phone (2 erased), 5 to 7 of the laptop, 8 whose time is over, 9 the erasure, 10 a
snapshot, 11 its confirmation, 12 and 13 of a device that was revoked later."""
REST = "device_pk, n, author_prev_seq, expires_at, header, sig, payload, chain"
STATE = f"user_pk = {ADA_PK} AND stream_pk = 4"
"""A policy, then keys a, b, a, b: 3 and 4 have won."""


def verify(url: str, **filters: Any) -> Report:
    """Everything, some time after it was written."""
    return verify_database(url, now_ms=LATER_MS, **filters)


def execute(url: str, *statements: str) -> None:
    """What no server does."""
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement.encode())


def flipped(column: str, where: str, *, table: str = "events_standard", byte: int = 5) -> str:
    """One bit of one value."""
    value = f"{column}::bytea"
    return f"UPDATE {table} SET {column} = set_byte({value}, {byte}, get_byte({value}, {byte}) # 1) WHERE {where}"


def named(report: Report) -> list[tuple[str, str | None, int | None]]:
    """What was found, and where."""
    return [(fault.code, fault.stream, fault.seq) for fault in report.faults]


# -- no false alarm


def test_a_clean_database_has_no_fault(populated_url: str, populated: tuple[str, Populated]) -> None:
    """With policies, payloads that ran out, were erased, overwritten or read, devices revoked, an account rotated."""
    report = verify(populated_url)
    assert report.is_clean, [str(fault) for fault in report.faults]
    assert (report.users, report.streams, report.events) == (2, 11, populated[1].events)


def test_an_empty_database_has_no_fault(database_url: str) -> None:
    """Nothing is nothing."""
    report = verify(database_url)
    assert (report.is_clean, report.users, report.events) == (True, 0, 0)


def test_an_account_that_is_being_deleted_is_left_out(populated_url: str) -> None:
    """It is half there, in whatever order its rows go."""
    execute(
        populated_url,
        "UPDATE users SET disabled_at = 1, deleted_at = 1 WHERE user_pk = 2",
        f"DELETE FROM events_standard WHERE {NOTES} AND seq < 4",
        f"DELETE FROM streams WHERE {STATE}",
    )
    report = verify(populated_url)
    assert (report.is_clean, report.users) == (True, 1)


def test_what_runs_out_while_others_are_verified_is_not_lost(populated_url: str) -> None:
    """The server drops it on time, however long it takes to come to it; but not before its time."""
    with psycopg.connect(populated_url, autocommit=True) as connection:
        source = PostgresSource(connection)
        early = verify_source(source, now_ms=NOW_MS - 60 * 60 * 1000, monotonic_s=lambda: 0.0)
        assert {("payload_lost", "notes", 8), ("payload_lost", "forking", 2)} == set(named(early))
        seconds = iter(range(0, 1_000_000, 60 * 60))
        late = verify_source(source, now_ms=NOW_MS - 60 * 60 * 1000, monotonic_s=lambda: float(next(seconds)))
        assert late.is_clean


def test_servers_may_go_on_meanwhile(populated_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each user is read as of one moment: what comes in between two pages is seen by the next run."""
    monkeypatch.setattr("keepstep.postgres.verification.EVENTS_PAGE", 2)
    seen: list[int] = []

    def meanwhile(progress: Progress) -> None:
        if not seen and progress.events > 30:  # in the middle of Ada's notes
            execute(
                populated_url,
                f"UPDATE streams SET stored_bytes = 0, head_seq = 99 WHERE {NOTES}",
                f"DELETE FROM events_standard WHERE {NOTES} AND seq > 3",
            )
            seen.append(progress.events)

    assert verify(populated_url, progress=meanwhile).is_clean
    assert seen == [31]
    assert not verify(populated_url).is_clean


# -- faults of rows

ROW_FAULTS = {
    "a flipped bit in a header": (
        flipped("header", f"{NOTES} AND seq = 6"),
        {("bad_signature", 6), ("chain_differs", 6)},
    ),
    "a flipped bit in a signature": (
        flipped("sig", f"{NOTES} AND seq = 6"),
        {("bad_signature", 6), ("chain_differs", 6)},
    ),
    "a flipped bit in a payload": (flipped("payload", f"{NOTES} AND seq = 6"), {("payload_differs", 6)}),
    "a payload cut short": (
        f"UPDATE events_standard SET payload = substr(payload, 2) WHERE {NOTES} AND seq = 6",
        {("payload_differs", 6)},
    ),
    "a payload that is gone": (
        f"UPDATE events_standard SET payload = NULL WHERE {NOTES} AND seq = 6",
        {("payload_lost", 6)},
    ),
    "an erasure without its payload": (
        f"UPDATE events_standard SET payload = NULL WHERE {NOTES} AND seq = 9",
        {("payload_lost", 9), ("payload_lost", 2)},
    ),
    "a flipped bit in a chain": (flipped("chain", f"{NOTES} AND seq = 6"), {("chain_differs", 6)}),
    "a received_at that goes back": (
        f"UPDATE events_standard SET received_at = received_at - 1 WHERE {NOTES} AND seq = 6",
        {("received_at_back", 6), ("chain_differs", 6)},
    ),
    "another author number": (
        f"UPDATE events_standard SET n = 4 WHERE {NOTES} AND seq = 6",
        {("author_number", 6)},
    ),
    "another way back to the author's event before": (
        f"UPDATE events_standard SET author_prev_seq = 4 WHERE {NOTES} AND seq = 6",
        {("author_prev_seq", 6)},
    ),
    "another author": (f"UPDATE events_standard SET device_pk = 1 WHERE {NOTES} AND seq = 6", {("bad_signature", 6)}),
    "an author that is no device": (
        f"UPDATE events_standard SET device_pk = 99 WHERE {NOTES} AND seq = 6",
        {("unknown_author", 6)},
    ),
    "a time at which it runs out": (
        f"UPDATE events_standard SET expires_at = 5 WHERE {NOTES} AND seq = 6",
        {("expiry_differs", 6)},
    ),
    "the first row deleted": (f"DELETE FROM events_standard WHERE {NOTES} AND seq = 1", {("seq_missing", 1)}),
    "a row in the middle deleted": (f"DELETE FROM events_standard WHERE {NOTES} AND seq = 6", {("seq_missing", 6)}),
    "the last row deleted": (f"DELETE FROM events_standard WHERE {NOTES} AND seq = 13", {("seq_missing", 13)}),
    "a row twice": (
        (
            f"INSERT INTO events_standard SELECT user_pk, stream_pk, seq, received_at + 1, {REST}"
            f" FROM events_standard WHERE {NOTES} AND seq = 6"
        ),
        {("seq_repeated", 6)},
    ),
}


@pytest.mark.parametrize("name", ROW_FAULTS)
def test_a_fault_of_a_row_is_found_and_named(populated_url: str, name: str) -> None:
    """By its code and its place, and no other row is blamed."""
    statement, codes = ROW_FAULTS[name]
    execute(populated_url, statement)
    report = verify(populated_url)
    found = named(report)
    assert {each for each in found if each[2] is not None} == {(code, "notes", at) for code, at in codes}
    assert {code for code, _, at in found if at is None} <= {"stored_bytes_differ"}
    assert {stream for _, stream, _ in found} == {"notes"}
    assert {fault.user_key for fault in report.faults} == {ADA.user_key}


# -- faults of what follows from the rows

STATE_FAULTS = {
    "a head moved on": (
        f"UPDATE streams SET head_seq = 14 WHERE {NOTES}",
        {("seq_missing", "notes", 14)},
    ),
    "a head moved back": (
        f"UPDATE streams SET head_seq = 12 WHERE {NOTES}",
        {("head_differs", "notes", 12), ("position_differs", "notes", 13)},
    ),
    "a head with another chain": (
        flipped("head_chain", NOTES, table="streams"),
        {("head_differs", "notes", 13)},
    ),
    "a head of another time": (
        f"UPDATE streams SET head_received_at = head_received_at + 1 WHERE {NOTES}",
        {("head_differs", "notes", 13)},
    ),
    "an author of the head": (
        flipped("authors", NOTES, table="streams", byte=15),
        {("authors_differ", "notes", None)},
    ),
    "an author's hash in the head": (
        flipped("authors", NOTES, table="streams", byte=30),
        {("authors_differ", "notes", None)},
    ),
    "an author in the table of authors": (
        f"UPDATE authors SET last_seq = last_seq + 1 WHERE user_pk = {ADA_PK} AND stream_pk = 7 AND device_pk = 9",
        {("authors_differ", "crowd", None)},
    ),
    "an author that is not kept": (
        f"DELETE FROM authors WHERE user_pk = {ADA_PK} AND stream_pk = 7 AND device_pk = 9",
        {("authors_differ", "crowd", None)},
    ),
    "a policy": (f"UPDATE streams SET policy = 2 WHERE {NOTES}", {("policy_differs", "notes", None)}),
    "a longest ttl": (
        f"UPDATE streams SET ttl_max_s = NULL WHERE user_pk = {ADA_PK} AND stream_pk = 6",
        {("policy_differs", "forking", None)},
    ),
    "a count of bytes": (
        f"UPDATE streams SET stored_bytes = stored_bytes + 1 WHERE {NOTES}",
        {("stored_bytes_differ", "notes", None)},
    ),
    "an epoch": (f"UPDATE streams SET auth_epoch = 0 WHERE {NOTES}", {("epoch_differs", None, None)}),
    "a position": (
        f"UPDATE positions SET acked_seq = 14 WHERE {NOTES}",
        {("position_differs", "notes", 14)},
    ),
    "a snapshot that covers something else": (
        f"UPDATE snapshots SET covers_seq = 6 WHERE {NOTES}",
        {("snapshot_differs", "notes", 10)},
    ),
    "a snapshot of another history": (
        flipped("covers_chain", NOTES, table="snapshots"),
        {("snapshot_differs", "notes", 10)},
    ),
    "a snapshot that nobody confirmed": (
        f"UPDATE snapshots SET confirmed_seq = NULL, confirmed_by = NULL WHERE {NOTES}",
        {("snapshot_differs", "notes", 10)},
    ),
    "a snapshot that is not listed": (f"DELETE FROM snapshots WHERE {NOTES}", {("snapshot_differs", "notes", 10)}),
    "a snapshot that is none": (
        f"UPDATE snapshots SET seq = 12, confirmed_seq = 13 WHERE {NOTES}",
        {("snapshot_differs", "notes", 10), ("snapshot_differs", "notes", 12)},
    ),
    "a loser that is said to win": (
        f"UPDATE latest SET seq = 2, hlc = (hlc >> 16 << 16) + 1 WHERE {STATE} AND seq = 4",
        {("latest_differs", "state", 4), ("payload_lost", "state", 2)},
    ),
    "a winner of another time": (
        f"UPDATE latest SET hlc = hlc + 1 WHERE {STATE} AND seq = 4",
        {("latest_differs", "state", 4)},
    ),
    "a key without a winner": (
        f"DELETE FROM latest WHERE {STATE} AND seq = 4",
        {("latest_differs", "state", 2), ("latest_differs", "state", 4)},
    ),
    "a key that nobody wrote": (
        (
            "INSERT INTO latest SELECT user_pk, stream_pk, set_byte(key, 9, 9), seq, hlc, device_id, received_at"
            f" FROM latest WHERE {STATE} AND seq = 4"
        ),
        {("latest_differs", "state", None)},
    ),
    "the winner's payload gone": (
        f"UPDATE events_standard SET payload = NULL WHERE {STATE} AND seq = 4",
        {("payload_lost", "state", 4), ("stored_bytes_differ", "state", None)},
    ),
    "a restore that set it back elsewhere": (
        f"INSERT INTO rewinds VALUES ({ADA_PK}, 3, 5, 7, sha256('x'))",
        {("rewind_differs", "notes", 7)},
    ),
    "a restore that set it back beyond its head": (
        f"INSERT INTO rewinds VALUES ({ADA_PK}, 3, 5, 99, sha256('x'))",
        {("rewind_differs", "notes", 99)},
    ),
    "a restore that set it back to another beginning": (
        f"INSERT INTO rewinds VALUES ({ADA_PK}, 3, 5, 0, sha256('x'))",
        {("rewind_differs", "notes", 0)},
    ),
    "a next root key": (
        f"UPDATE users SET next_root_hash = sha256('x') WHERE user_pk = {ADA_PK}",
        {("root_differs", "$devices", None)},
    ),
    "a device that was never enrolled": (
        (
            "INSERT INTO devices (user_pk, device_pk, device_id, device_key, box_key, capabilities, issued_at,"
            " sealed_label, enrolled_at) VALUES "
            f"({ADA_PK}, 99, substr(sha256('x'), 1, 16), sha256('y'), sha256('z'), 7, 1, '', 1)"
        ),
        {("device_unknown", "$devices", None)},
    ),
    "rows of no stream": (
        f"INSERT INTO latest SELECT user_pk, 99, key, seq, hlc, device_id, received_at FROM latest WHERE {STATE}",
        {("stray_rows", None, None)},
    ),
    "events of no stream": (
        (
            f"INSERT INTO events_standard SELECT user_pk, 99, seq, received_at, {REST}"
            f" FROM events_standard WHERE {NOTES}"
        ),
        {("stray_rows", None, None)},
    ),
    "an event of another user": (
        f"UPDATE events_standard SET user_pk = {BOB_PK} WHERE {NOTES} AND seq = 6",
        {
            ("seq_missing", "notes", 6),
            ("unknown_author", "notes", 6),
            ("chain_differs", "notes", 6),
            ("head_differs", "notes", 5),
            ("stored_bytes_differ", "notes", None),
        },
    ),
}


@pytest.mark.parametrize("name", STATE_FAULTS)
def test_a_fault_of_what_follows_from_the_rows_is_found_and_named(populated_url: str, name: str) -> None:
    """Heads, authors, policies, counts, snapshots, winners, positions, rewinds, devices: each by itself."""
    statement, expected = STATE_FAULTS[name]
    execute(populated_url, statement)
    assert set(named(verify(populated_url))) == expected


DEVICE_COLUMNS = {
    "device_key": "sha256('other')",
    "box_key": "sha256('other')",
    "capabilities": "capabilities # 4",
    "issued_at": "issued_at + 1",
    "expires_at": "99",
    "sealed_label": "'other'",
    "enrolled_at": "enrolled_at + 1",
    "manage_from": "manage_from + 1",
    "revoked_at": "revoked_at + 1",
    "revoked_seq": "revoked_seq + 1",
}


@pytest.mark.parametrize("column", DEVICE_COLUMNS)
def test_a_device_that_was_altered_is_named_with_the_column(populated_url: str, column: str) -> None:
    """The table is a view of $devices; what the events say is what counts, so nothing else is blamed."""
    execute(
        populated_url,
        f"UPDATE devices SET {column} = {DEVICE_COLUMNS[column]} WHERE user_pk = {ADA_PK} AND device_pk = 3",
    )
    report = verify(populated_url)
    assert named(report) == [("device_differs", "$devices", 3)]
    assert report.faults[0].detail.startswith(f"{column} of the device ")


def test_a_device_that_is_missing_is_named(populated_url: str) -> None:
    """And its events are of nobody."""
    who = f"user_pk = {ADA_PK} AND device_pk = 3"
    execute(populated_url, f"DELETE FROM devices WHERE {who}")
    assert {("device_missing", "$devices", 3), ("unknown_author", "notes", 12)} <= set(named(verify(populated_url)))


def test_an_event_of_the_account_that_was_altered_is_found(populated_url: str) -> None:
    """Who may do what cannot be told from there on; the other streams are verified by the table's keys."""
    execute(populated_url, flipped("payload", f"user_pk = {ADA_PK} AND stream_pk = 1 AND seq = 3", table="events_keep"))
    assert set(named(verify(populated_url))) == {("account_event", "$devices", 3), ("payload_differs", "$devices", 3)}


def test_where_the_account_cannot_be_followed_the_table_has_the_keys(populated_url: str) -> None:
    """What is no key there verifies nothing."""
    execute(
        populated_url,
        flipped("payload", f"user_pk = {ADA_PK} AND stream_pk = 1 AND seq = 3", table="events_keep"),
        f"UPDATE devices SET device_key = decode(repeat('00', 32), 'hex') WHERE user_pk = {ADA_PK} AND device_pk = 3",
    )
    found = set(named(verify(populated_url)))
    assert {each for each in found if each[1] == "notes"} == {
        ("unknown_author", "notes", 12),
        ("unknown_author", "notes", 13),
    }


def test_a_stream_that_was_moved_to_another_class_is_found(populated_url: str) -> None:
    """Its rows went with it: its policy says for how long they were to be kept."""
    stream = f"user_pk = {ADA_PK} AND stream_pk = 5"
    execute(
        populated_url,
        f"INSERT INTO events_standard SELECT * FROM events_keep WHERE {stream}",
        f"DELETE FROM events_keep WHERE {stream}",
        f"UPDATE streams SET retention_class = 1 WHERE {stream}",
    )
    assert named(verify(populated_url)) == [("policy_differs", "expecting", None)]


def test_a_user_without_its_streams_is_found(populated_url: str) -> None:
    """The rows of such a stream belong to none."""
    execute(populated_url, f"DELETE FROM streams WHERE user_pk = {BOB_PK} AND stream_pk <= 2")
    assert {("stream_missing", "$devices", None), ("stream_missing", "$keys", None), ("stray_rows", None, None)} <= set(
        named(verify(populated_url))
    )


# -- somebody who knows how it is kept


def rewritten(url: str, change: Callable[[list[dict[str, Any]]], None]) -> None:
    """Change the rows of Ada's notes, and make chains, head and authors fit again, as who has the database could."""
    names = ("seq", "received_at", "device_pk", "header", "sig", "chain")
    with psycopg.connect(url) as connection:
        query = f"SELECT {', '.join(names)} FROM events_standard WHERE {NOTES} ORDER BY seq"
        columns = "device_pk = %s, header = %s, sig = %s, chain = %s"
        update = f"UPDATE events_standard SET {columns} WHERE {NOTES} AND seq = %s"
        rows = [dict(zip(names, row, strict=True)) for row in connection.execute(query.encode()).fetchall()]
        change(rows)
        chain = ADA.chain_0("notes")
        for seq, row in enumerate(rows, 1):
            chain = chain_next(crypto, chain, seq, row["received_at"], event_hash(crypto, row["header"], row["sig"]))
            connection.execute(update.encode(), (row["device_pk"], row["header"], row["sig"], chain, seq))
        connection.execute(f"UPDATE streams SET head_chain = %s WHERE {NOTES}".encode(), [chain])


def test_an_event_forged_with_another_key_is_found(populated_url: str) -> None:
    """Chain, head, numbers and payload fit: only the signature tells."""

    def forge(rows: list[dict[str, Any]]) -> None:
        rows[11]["sig"] = sign_event(
            crypto,
            secret=seed("a thief's key"),
            user_key=ADA.user_key,
            device_id=DeviceFixture(ADA, "lost").device_id,
            header=rows[11]["header"],
        )

    rewritten(populated_url, forge)
    assert named(verify(populated_url)) == [("bad_signature", "notes", 12)]


def test_a_pair_that_changed_places_is_found(populated_url: str) -> None:
    """Each is signed, and the chain was made to fit: the author's numbers tell."""

    def swap(rows: list[dict[str, Any]]) -> None:
        for column in ("device_pk", "header", "sig"):
            rows[5][column], rows[6][column] = rows[6][column], rows[5][column]

    rewritten(populated_url, swap)
    found = named(verify(populated_url))
    assert ("author_number", "notes", 6) in found
    assert ("author_number", "notes", 7) in found


def test_a_pair_of_rows_that_changed_seqs_is_found(populated_url: str) -> None:
    """By somebody who does not know of chains."""
    execute(
        populated_url,
        f"UPDATE events_standard SET seq = 60 WHERE {NOTES} AND seq = 4",
        f"UPDATE events_standard SET seq = 4 WHERE {NOTES} AND seq = 5",
        f"UPDATE events_standard SET seq = 5 WHERE {NOTES} AND seq = 60",
    )
    assert {("chain_differs", "notes", 4), ("chain_differs", "notes", 5)} <= set(named(verify(populated_url)))


def test_an_event_of_another_stream_is_found(populated_url: str) -> None:
    """It is signed by its author, and chain and head fit."""
    with psycopg.connect(populated_url) as connection:
        query = f"SELECT header, sig FROM events_standard WHERE {STATE} AND seq = 3"
        elsewhere = connection.execute(query.encode()).fetchone()
    assert elsewhere is not None

    def put(rows: list[dict[str, Any]]) -> None:
        rows[3]["header"], rows[3]["sig"] = elsewhere

    rewritten(populated_url, put)
    assert ("wrong_stream", "notes", 4) in named(verify(populated_url))


def test_a_header_of_no_known_form_is_found(populated_url: str) -> None:
    """As one whose signature does not fit."""
    execute(populated_url, f"UPDATE events_standard SET header = '\\x00' WHERE {NOTES} AND seq = 7")
    assert {("header_malformed", "notes", 7), ("bad_signature", "notes", 7)} <= set(named(verify(populated_url)))


# -- what is asked for


def test_one_user_or_one_stream_can_be_asked_for(populated_url: str) -> None:
    """Faults of others are not looked for."""
    execute(populated_url, flipped("sig", f"{NOTES} AND seq = 6"), f"UPDATE streams SET stored_bytes = 0 WHERE {STATE}")
    of_bob = verify(populated_url, user_key=BOB.user_key)
    assert (of_bob.is_clean, of_bob.users, of_bob.streams) == (True, 1, 3)
    assert verify(populated_url, user_key=bytes(32)).users == 0
    assert {stream for _, stream, _ in named(verify(populated_url, user_key=ADA.user_key))} == {"notes", "state"}
    assert named(verify(populated_url, stream="state")) == [("stored_bytes_differ", "state", None)]
    assert verify(populated_url, stream="crowd").is_clean


def test_an_account_above_its_quota_is_noted_and_no_fault(populated_url: str) -> None:
    """The quota may have been lowered since."""
    execute(
        populated_url,
        f"UPDATE users SET streams_max = 2, devices_max = 1, bytes_max = 0 WHERE user_pk = {ADA_PK}",
        f"UPDATE users SET streams_max = 9, devices_max = 9, bytes_max = 99999 WHERE user_pk = {BOB_PK}",
    )
    report = verify(populated_url)
    assert report.is_clean
    assert [note.partition(" has ")[2] for note in report.notes[:2]] == [
        "8 streams, and its quota is 2",
        "2 devices, and its quota is 1",
    ]
    assert len(report.notes) == 3


def test_it_tells_how_far_it_is(populated_url: str, populated: tuple[str, Populated]) -> None:
    """After each page of rows and each user."""
    told: list[Progress] = []
    verify(populated_url, progress=told.append)
    assert told[-1] == Progress(2, populated[1].events, 0)


def test_every_fault_is_counted_and_the_first_are_listed(populated_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A torn table does not fill the memory."""
    monkeypatch.setattr("keepstep.verification.faults.FAULTS_LISTED_MAX", 3)
    execute(populated_url, "UPDATE events_standard SET sig = sha512('x')")
    report = verify(populated_url)
    assert len(report.faults) == 3
    assert report.faults_count > 40


def test_a_database_that_cannot_be_read_is_said_so(empty_database_url: str, populated_url: str) -> None:
    """It has no schema, or it is not there."""
    with pytest.raises(StartupError, match="cannot be verified: there is nothing of keepstep in it"):
        verify(empty_database_url)
    with pytest.raises(StartupError, match="cannot be verified: connect as the role that owns its tables"):
        verify(make_conninfo(populated_url, options="-c role=keepstep_reader"))
    with pytest.raises(StartupError, match="the database cannot be verified: "):
        verify(populated_url.replace("/test_", "/missing_"))
