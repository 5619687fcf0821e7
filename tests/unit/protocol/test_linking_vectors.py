"""The vectors of linking, presence and signals, held against the code over both sides' cryptography."""

from __future__ import annotations

from typing import Any, Final

import pytest

from keepstep.client.livesealing import LivePlace, open_live, seal_live
from keepstep.client.payload import ContentKey, content_epoch_of
from keepstep.errors import ProtocolError
from keepstep.protocol.codec import encode
from keepstep.protocol.linking import NewLink, TrustedLink, format_invitation, parse_invitation
from keepstep.protocol.primitives import Primitives
from tests.support.linking import CLIENT, EXTENSION
from tests.support.vectors import load, unhex

LINK: Final[dict[str, Any]] = load("linking.json")
MESSAGES: Final = {name: bytes.fromhex(text) for name, text in LINK["messages"].items()}
BOTH: Final = pytest.mark.parametrize("primitives", [EXTENSION, CLIENT], ids=["extension", "client"])


def new_side(primitives: Primitives) -> NewLink:
    """The new device's side of the vector."""
    secret, nonce = unhex(LINK, "new_ephemeral_secret", "new_nonce")
    return NewLink(primitives, parse_invitation(LINK["invitation"]), ephemeral_secret=secret, nonce=nonce)


def trusted_side(primitives: Primitives) -> TrustedLink:
    """The trusted device's."""
    secret, nonce = unhex(LINK, "trusted_ephemeral_secret", "trusted_nonce")
    return TrustedLink(primitives, parse_invitation(LINK["invitation"]), ephemeral_secret=secret, nonce=nonce)


def reveal(side: NewLink, primitives: Primitives) -> bytes:
    """The new device's second message."""
    device_id, device_secret, box_secret = unhex(LINK, "device_id", "device_secret", "box_secret")
    return side.receive_nonce(
        MESSAGES["trusted_0"],
        device_id=device_id,
        device_secret=device_secret,
        box_key=primitives.x25519_public(box_secret),
        name=LINK["name"],
        platform=LINK["platform"],
    )


@BOTH
def test_the_new_side_makes_and_takes_the_vectors_messages(primitives: Primitives) -> None:
    """Byte for byte, and shows its code."""
    side = new_side(primitives)
    assert side.commit() == MESSAGES["new_0"]
    assert reveal(side, primitives) == MESSAGES["new_1"]
    assert side.code == LINK["code"]
    handover = side.receive_handover(MESSAGES["trusted_1"])
    assert encode(handover) == bytes.fromhex(LINK["handover"])
    assert side.done() == MESSAGES["new_2"]


@BOTH
def test_the_trusted_side_makes_and_takes_the_vectors_messages(primitives: Primitives) -> None:
    """Byte for byte, and takes the code."""
    side, new = trusted_side(primitives), new_side(primitives)
    assert side.receive_commitment(MESSAGES["new_0"]) == MESSAGES["trusted_0"]
    assert encode(side.receive_reveal(MESSAGES["new_1"])) == bytes.fromhex(LINK["introduction"])
    side.check_code(LINK["code"])
    reveal(new, primitives)
    handover = new.receive_handover(MESSAGES["trusted_1"])
    assert handover is not None
    assert side.hand_over(handover) == [MESSAGES["trusted_1"]]
    side.receive_done(MESSAGES["new_2"])


@BOTH
def test_a_refusal_is_the_vectors(primitives: Primitives) -> None:
    """On both sides."""
    side, new = trusted_side(primitives), new_side(primitives)
    side.receive_commitment(MESSAGES["new_0"])
    side.receive_reveal(MESSAGES["new_1"])
    assert side.refuse() == MESSAGES["refusal"]
    reveal(new, primitives)
    with pytest.raises(ProtocolError, match="forbidden"):
        new.receive_handover(MESSAGES["refusal"])


def test_the_invitation_is_the_vectors() -> None:
    """As text, with every field."""
    invitation = parse_invitation(LINK["invitation"])
    assert format_invitation(invitation) == LINK["invitation"]
    assert (invitation.rest_url, invitation.device_url) == (LINK["rest_url"], LINK["device_url"])
    assert [invitation.link_id, invitation.secret] == unhex(LINK, "link_id", "secret")


@pytest.mark.parametrize("vector", load("live.json"), ids=["presence", "no state", "signal"])
def test_presence_and_signals_are_sealed_as_the_vectors_say(vector: dict[str, Any]) -> None:
    """And open again."""
    content_key, user_key, author, session, nonce, plaintext, sealed = unhex(
        vector, "content_key", "user_key", "from", "session", "nonce", "plaintext", "sealed"
    )
    key = ContentKey(content_epoch_of(content_key), 1, content_key, bytes(32))
    to = [None if vector[name] is None else bytes.fromhex(vector[name]) for name in ("to", "to_session")]
    place = LivePlace(user_key, author, *to)
    assert seal_live(key, place, plaintext, session=session, counter=vector["counter"], nonce=nonce) == sealed
    opened = open_live(key, place, sealed)
    assert (opened.session, opened.counter, opened.plaintext) == (session, vector["counter"], plaintext)
