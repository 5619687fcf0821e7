"""The schema's invariants: what the log relies on, the database itself refuses to break."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from keepstep.postgres import migrate

USER = "INSERT INTO users (user_id, next_root_hash, created_at) VALUES (sha256('u'), sha256('n'), 1)"
DEVICE = (
    "INSERT INTO devices (user_pk, device_pk, device_id, device_key, box_key, capabilities, issued_at, sealed_label,"
    " enrolled_at) VALUES ({user_pk}, {device_pk}, substr(sha256('{id}'), 1, {id_bytes}), sha256('{key}'), sha256('b'),"
    " {capabilities}, 1, '{label}', 1)"
)
STREAM = (
    "INSERT INTO streams (user_pk, stream_pk, name, retention_class, head_seq, head_chain, head_received_at,"
    " auth_epoch, authors, created_at) VALUES ({user_pk}, {stream_pk}, '{name}', {class_}, {seq}, {chain}, {at}, 0,"
    " {authors}, 1)"
)
EVENT = "INSERT INTO events_standard VALUES ({user_pk}, 3, {seq}, 5, 1, {n}, {prev}, NULL, 'h', {sig}, 'p', {chain})"
DEVICE_ARGUMENTS = {"device_pk": 2, "id": "2", "id_bytes": 16, "key": "2", "capabilities": 7, "label": ""}
STREAM_ARGUMENTS = {
    "stream_pk": 4,
    "name": "other",
    "class_": 1,
    "seq": 0,
    "chain": "sha256('c')",
    "at": 0,
    "authors": "''",
}
EVENT_ARGUMENTS = {
    "seq": 2,
    "n": 1,
    "prev": 0,
    "sig": "sha512('s')",
    "chain": "sha256('c')",
}


@pytest.fixture
def database(database_url: str) -> Iterator[psycopg.Connection]:
    """With a user, a device, the three streams "$devices", "$keys", "notes", and a partition for early 1970."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(USER)
        connection.execute(DEVICE.format(user_pk=1, **DEVICE_ARGUMENTS | {"device_pk": 1, "id": "1", "key": "1"}))
        for stream_pk, name in enumerate(("$devices", "$keys", "notes"), 1):
            connection.execute(STREAM.format(user_pk=1, **STREAM_ARGUMENTS | {"stream_pk": stream_pk, "name": name}))
        connection.execute("CREATE TABLE early PARTITION OF events_standard FOR VALUES FROM (0) TO (10)")
        yield connection


def refused(database: psycopg.Connection, statement: str) -> str | None:
    """The constraint that a statement breaks."""
    with pytest.raises(psycopg.errors.IntegrityError) as caught:
        database.execute(statement)
    return caught.value.diag.constraint_name


@pytest.mark.parametrize(
    ("changes", "constraint"),
    [
        ({"id": "1"}, "devices_id_once"),
        ({"key": "1"}, "devices_key_once"),
        ({"id_bytes": 15}, "devices_id_length"),
        ({"capabilities": 8}, "devices_capabilities_known"),
        ({"label": "x" * 257}, "devices_label_length"),
        ({"device_pk": 0}, "devices_numbered"),
        ({"user_pk": 2}, "devices_user_pk_fkey"),
    ],
)
def test_devices(database: psycopg.Connection, changes: dict[str, object], constraint: str) -> None:
    """Ids and keys are never reused; entries are as the protocol describes them."""
    arguments = {"user_pk": 1} | DEVICE_ARGUMENTS
    assert refused(database, DEVICE.format(**arguments | changes)) == constraint
    database.execute(DEVICE.format(**arguments))


@pytest.mark.parametrize(
    ("changes", "constraint"),
    [
        ({"name": "notes"}, "streams_name_once"),
        ({"stream_pk": 3}, "streams_pkey"),
        ({"name": "no spaces"}, "stream_name_form"),
        ({"name": "x" * 129}, "stream_name_form"),
        ({"name": "$devices"}, "streams_reserved"),
        ({"class_": 2}, "streams_class_known"),
        ({"chain": "'short'"}, "streams_head_chain_length"),
        ({"seq": 1}, "streams_head_possible"),
        ({"at": 1}, "streams_head_possible"),
        ({"seq": 1, "at": 1, "authors": "'x'"}, "streams_authors_packed"),
        ({"seq": 1, "at": 1, "authors": "convert_to(repeat('x', 56 * 17), 'UTF8')"}, "streams_authors_packed"),
        ({"authors": "convert_to(repeat('x', 56), 'UTF8')"}, "streams_authors_packed"),
        ({"user_pk": 2}, "streams_user_pk_fkey"),
    ],
)
def test_streams(database: psycopg.Connection, changes: dict[str, object], constraint: str) -> None:
    """Names are well formed and unique per user; a head without events has no time and no authors."""
    arguments = {"user_pk": 1} | STREAM_ARGUMENTS
    assert refused(database, STREAM.format(**arguments | changes)) == constraint
    database.execute(STREAM.format(**arguments))


@pytest.mark.parametrize(
    ("changes", "constraint"),
    [
        ({"seq": 0}, "events_numbered"),
        ({"n": 0, "prev": 1}, "events_numbered"),
        ({"n": 2, "prev": 2}, "events_numbered"),
        ({"n": 2}, "events_author_continues"),
        ({"prev": 1}, "events_author_continues"),
        ({"sig": "'short'"}, "events_sig_length"),
        ({"chain": "'short'"}, "events_chain_length"),
    ],
)
def test_events(database: psycopg.Connection, changes: dict[str, object], constraint: str) -> None:
    """Numbers count from 1, an author's events follow each other, signatures and chains have their length."""
    arguments = {"user_pk": 1} | EVENT_ARGUMENTS
    assert refused(database, EVENT.format(**arguments | changes)) == constraint
    database.execute(EVENT.format(**arguments))


@pytest.mark.parametrize(
    ("statement", "constraint"),
    [
        (
            "INSERT INTO users (user_id, next_root_hash, created_at) VALUES ('x', sha256('n'), 1)",
            "hash32_length",
        ),
        (
            "INSERT INTO users (user_id, next_root_hash, created_at) VALUES (sha256('v'), sha256('n'), -1)",
            "unix_ms_range",
        ),
        (USER, "users_user_id_key"),
        ("INSERT INTO authors VALUES (1, 3, 1, 0, 1, sha256('h'))", "authors_wrote"),
        ("INSERT INTO authors VALUES (1, 3, 1, 2, 1, sha256('h'))", "authors_wrote"),
        ("INSERT INTO positions VALUES (1, 1, 3, -1, substr(sha256('c'), 1, 16))", "positions_possible"),
        ("INSERT INTO positions VALUES (1, 1, 3, 1, 'short')", "positions_possible"),
        ("INSERT INTO positions VALUES (1, 9, 3, 1, substr(sha256('c'), 1, 16))", "positions_user_pk_device_pk_fkey"),
        ("INSERT INTO sessions VALUES (1, 1, 1, 'short', 1)", "sessions_id_length"),
        (
            "INSERT INTO sessions VALUES (1, 1, 1, substr(sha256('s'), 1, 16), 1, 2)",
            "sessions_closed_for_a_reason",
        ),
        (
            "INSERT INTO sessions VALUES (1, 1, 1, substr(sha256('s'), 1, 16), 1, 2, repeat('x', 65))",
            "sessions_reason_length",
        ),
        ("UPDATE streams SET policy = 4", "streams_policy_known"),
        ("UPDATE streams SET ttl_max_s = 0", "streams_ttl_max_possible"),
        ("INSERT INTO latest VALUES (1, 3, 'short', 1, 1, substr(sha256('d'), 1, 16), 1)", "latest_lengths"),
        ("INSERT INTO snapshots VALUES (1, 3, 5, 5, sha256('c'), 1, 1)", "snapshots_cover_what_was"),
        ("INSERT INTO snapshots VALUES (1, 3, 5, 4, sha256('c'), 1, 1, 5, 1)", "snapshots_confirmed_later"),
        ("INSERT INTO snapshots VALUES (1, 3, 5, 4, sha256('c'), 1, 1, 6)", "snapshots_confirmed_later"),
        ("INSERT INTO server_state (epoch) VALUES (1)", "server_state_pkey"),
        ("INSERT INTO server_state VALUES (false, 1)", "server_state_only_row"),
        ("UPDATE server_state SET epoch = -1", "server_state_epoch_possible"),
        ("UPDATE users SET deleted_at = 1", "users_deleted_are_disabled"),
        ("UPDATE users SET streams_max = 1", "users_quotas_possible"),
        ("UPDATE users SET devices_max = 0", "users_quotas_possible"),
        ("INSERT INTO audit VALUES (DEFAULT, 1, '', '', '', repeat('x', 257), 200)", "audit_lengths"),
    ],
)
def test_the_other_tables(database: psycopg.Connection, statement: str, constraint: str) -> None:
    """Users, authors, positions, sessions, rules of streams, winners, snapshots, and the one row of state."""
    assert refused(database, statement) == constraint


def test_every_constraint_of_ours_says_why_it_is_there(database: psycopg.Connection) -> None:
    """Each one that has a name of its own has a comment."""
    rows = database.execute(
        "SELECT conname FROM pg_constraint WHERE connamespace = 'public'::regnamespace AND contype = 'c'"
        " AND conrelid NOT IN (SELECT inhrelid FROM pg_inherits)"
        " AND obj_description(oid, 'pg_constraint') IS NULL"
        " AND conrelid <> coalesce(to_regclass('schema_version'), 0)::oid"
    ).fetchall()
    assert rows == []


def test_heads_stay_on_their_page(database: psycopg.Connection) -> None:
    """No index has a column that changes when a head moves, so that moving one writes no index."""
    indexed = database.execute(
        "SELECT DISTINCT a.attname FROM pg_index i JOIN pg_attribute a"
        " ON a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey) WHERE i.indrelid = 'streams'::regclass"
    ).fetchall()
    assert {name for (name,) in indexed} == {"user_pk", "stream_pk", "name"}


def test_every_key_begins_with_the_user(database: psycopg.Connection) -> None:
    """So that the tables can be distributed by user; what belongs to no user is listed here."""
    rows = database.execute(
        "SELECT c.relname, a.attname FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid"
        " JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]"
        " WHERE i.indisunique AND c.relnamespace = 'public'::regnamespace AND a.attname <> 'user_pk'"
    ).fetchall()
    of_no_user = {"users", "server_state", "invites", "challenges", "audit", "deleted_users", "links", "link_messages"}
    of_no_user |= {"turns", "partition_drops"}
    assert {table for table, _ in rows} - {"schema_version"} == of_no_user


def test_the_log_is_gone_after_the_way_down(empty_database_url: str) -> None:
    """Up, down and up again: nothing is left of it in between."""
    migrate.up(empty_database_url)
    migrate.down(empty_database_url, to=0)
    with psycopg.connect(empty_database_url) as connection:
        left = connection.execute(
            "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace"
            " AND relname NOT LIKE 'schema_version%'"
            " UNION ALL SELECT typname FROM pg_type WHERE typnamespace = 'public'::regnamespace AND typtype = 'd'"
        ).fetchall()
    assert left == []
    migrate.up(empty_database_url)
