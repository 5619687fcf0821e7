"""Statements that a device signs over REST."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import pytest

from keepstep import _keepstep
from keepstep.client import crypto
from keepstep.errors import ProtocolError
from keepstep.protocol.challenge import Purpose, Statement, sign_statement, verify_statement
from tests.support.vectors import load, unhex

if TYPE_CHECKING:
    from keepstep.protocol.primitives import Primitives

EXTENSION: Final[Primitives] = _keepstep
CLIENT: Final[Primitives] = crypto
VECTORS: Final = load("challenge.json")
BOTH: Final = pytest.mark.parametrize("primitives", [EXTENSION, CLIENT], ids=["extension", "client"])


def statement_of(vector: dict[str, Any]) -> Statement:
    """What a vector's device signs."""
    server_key, user_key, device_id, nonce = unhex(vector, "server_key", "user_key", "device_id", "nonce")
    return Statement(server_key, vector["origin"], user_key, device_id, nonce, Purpose(vector["purpose"]))


@BOTH
@pytest.mark.parametrize("vector", VECTORS, ids=[str(index) for index in range(len(VECTORS))])
def test_what_is_signed_is_as_documented(vector: dict[str, Any], primitives: Primitives) -> None:
    """Byte for byte, over both sides' cryptography."""
    statement = statement_of(vector)
    signing_input, device_secret, device_key, signature = unhex(
        vector, "signing_input", "device_secret", "device_key", "signature"
    )

    assert statement.signing_input() == signing_input
    assert sign_statement(primitives, device_secret, statement) == signature
    verify_statement(primitives, device_key, statement, signature)


@pytest.mark.parametrize(
    "changes",
    [
        {"server_key": bytes(32)},
        {"origin": "http://127.0.0.1:8441"},
        {"user_key": bytes(32)},
        {"device_id": bytes(16)},
        {"nonce": bytes(32)},
        {"purpose": Purpose.DELETE_ACCOUNT},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_signature_is_good_for_nothing_else(changes: dict[str, Any]) -> None:
    """Every field is part of what is signed."""
    device_key, signature = unhex(VECTORS[0], "device_key", "signature")
    with pytest.raises(ProtocolError, match="bad_signature"):
        verify_statement(EXTENSION, device_key, replace(statement_of(VECTORS[0]), **changes), signature)


@pytest.mark.parametrize(
    "changes",
    [
        {"server_key": bytes(31)},
        {"origin": "x" * 513},
        {"user_key": bytes(33)},
        {"device_id": bytes(15)},
        {"nonce": b""},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_fields_of_another_length_are_malformed(changes: dict[str, Any]) -> None:
    """So that no two statements have the same bytes."""
    with pytest.raises(ProtocolError, match="malformed"):
        replace(statement_of(VECTORS[0]), **changes).signing_input()
