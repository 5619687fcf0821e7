"""The schema's invariants about tokens."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

USER = "INSERT INTO users (user_id, next_root_hash, created_at) VALUES (sha256('u'), sha256('n'), 1)"
DEVICE = (
    "INSERT INTO devices (user_pk, device_pk, device_id, device_key, box_key, capabilities, issued_at, sealed_label,"
    " enrolled_at) VALUES (1, 1, substr(sha256('d'), 1, 16), sha256('k'), sha256('b'), 7, 1, '', 1)"
)
CHALLENGE = "INSERT INTO challenges VALUES ({nonce}, sha256('u'), substr(sha256('d'), 1, {id_bytes}), '{purpose}', 5)"
FAMILY = (
    "INSERT INTO refresh_families (user_pk, family_id, device_pk, created_at, expires_at, refreshes)"
    " VALUES ({user_pk}, substr(sha256('{family}'), 1, {id_bytes}), {device_pk}, 1, 5, {refreshes})"
)
TOKEN = "INSERT INTO refresh_tokens VALUES (1, sha256('{token}'), substr(sha256('{family}'), 1, 16), 5, NULL)"
REVOKED = "INSERT INTO revoked_tokens VALUES ({user_pk}, substr(sha256('t'), 1, {id_bytes}), 5)"


@pytest.fixture
def database(database_url: str) -> Iterator[psycopg.Connection]:
    """With a user and a device."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(USER)
        connection.execute(DEVICE)
        yield connection


def refused(database: psycopg.Connection, statement: str) -> str | None:
    """The constraint that a statement breaks."""
    with pytest.raises(psycopg.errors.IntegrityError) as caught:
        database.execute(statement)
    return caught.value.diag.constraint_name


@pytest.mark.parametrize(
    ("changes", "constraint"),
    [
        ({"nonce": "'short'"}, "hash32_length"),
        ({"id_bytes": 15}, "challenges_device_id_length"),
        ({"purpose": ""}, "challenges_purpose_length"),
        ({"purpose": "x" * 65}, "challenges_purpose_length"),
    ],
)
def test_challenges(database: psycopg.Connection, changes: dict[str, object], constraint: str) -> None:
    """Of nobody that has to be there: anybody may ask for one; each nonce once."""
    arguments = {"nonce": "sha256('n')", "id_bytes": 16, "purpose": "token"}
    assert refused(database, CHALLENGE.format(**arguments | changes)) == constraint
    database.execute(CHALLENGE.format(**arguments))
    assert refused(database, CHALLENGE.format(**arguments)) == "challenges_pkey"


@pytest.mark.parametrize(
    ("changes", "constraint"),
    [
        ({"id_bytes": 15}, "refresh_families_id_length"),
        ({"refreshes": -1}, "refresh_families_counted"),
        ({"device_pk": 2}, "refresh_families_user_pk_device_pk_fkey"),
        ({"user_pk": 2}, "refresh_families_user_pk_device_pk_fkey"),
    ],
)
def test_families(database: psycopg.Connection, changes: dict[str, object], constraint: str) -> None:
    """Each belongs to a device."""
    arguments = {"user_pk": 1, "family": "f", "id_bytes": 16, "device_pk": 1, "refreshes": 0}
    assert refused(database, FAMILY.format(**arguments | changes)) == constraint
    database.execute(FAMILY.format(**arguments))


def test_refresh_tokens_end_with_their_family(database: psycopg.Connection) -> None:
    """None is there without one."""
    database.execute(FAMILY.format(user_pk=1, family="f", id_bytes=16, device_pk=1, refreshes=0))
    database.execute(TOKEN.format(token="t", family="f"))
    assert refused(database, TOKEN.format(token="t", family="f")) == "refresh_tokens_pkey"
    assert refused(database, TOKEN.format(token="u", family="g")) == "refresh_tokens_user_pk_family_id_fkey"
    database.execute("DELETE FROM refresh_families")
    assert database.execute("SELECT count(*) FROM refresh_tokens").fetchone() == (0,)


@pytest.mark.parametrize(
    ("changes", "constraint"),
    [({"id_bytes": 15}, "revoked_tokens_id_length"), ({"user_pk": 2}, "revoked_tokens_user_pk_fkey")],
)
def test_revoked_tokens(database: psycopg.Connection, changes: dict[str, object], constraint: str) -> None:
    """Each belongs to a user."""
    arguments = {"user_pk": 1, "id_bytes": 16}
    assert refused(database, REVOKED.format(**arguments | changes)) == constraint
    database.execute(REVOKED.format(**arguments))
