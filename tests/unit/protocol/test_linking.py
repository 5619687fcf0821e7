"""Linking, between the two state machines: what is accepted, and everything else is the end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from keepstep.client import crypto
from keepstep.errors import ProtocolError
from keepstep.protocol.codec import encode
from keepstep.protocol.linking import (
    CODE_TRIES_MAX,
    HANDOVER_BYTES_MAX,
    INVITATION_PREFIX,
    MESSAGE_BYTES_MAX,
    MESSAGES_MAX,
    Handover,
    NewLink,
    State,
    TrustedLink,
    format_invitation,
    parse_invitation,
)
from tests.support.events import seed
from tests.support.linking import (
    BOX_KEY,
    CLIENT,
    DEVICE_ID,
    DEVICE_SECRET,
    EXTENSION,
    HANDOVER,
    invitation,
    new_side,
    reveal,
    trusted_side,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from keepstep.protocol.primitives import Primitives


def code_of(call: Callable[[], object]) -> str:
    """The code of the error that a call raises."""
    with pytest.raises(ProtocolError) as caught:
        call()
    return caught.value.code


def met() -> tuple[TrustedLink, NewLink]:
    """Both sides with shared keys; the code is not typed yet."""
    trusted, new = trusted_side(), new_side()
    trusted.receive_reveal(reveal(new, trusted.receive_commitment(new.commit())))
    return trusted, new


def confirmed() -> tuple[TrustedLink, NewLink]:
    """Both sides after the code."""
    trusted, new = met()
    trusted.check_code(new.code)
    return trusted, new


# -- as it should be ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("one", "other"), [(EXTENSION, CLIENT), (CLIENT, EXTENSION), (CLIENT, CLIENT)])
def test_a_device_is_linked(one: Primitives, other: Primitives) -> None:
    """From the invitation to the last word, whatever libraries the two sides are built on."""
    trusted, new = trusted_side(one), new_side(other)
    introduction = trusted.receive_reveal(reveal(new, trusted.receive_commitment(new.commit())))
    assert (introduction.device_id, introduction.box_key) == (DEVICE_ID, BOX_KEY)
    assert introduction.device_key == crypto.ed25519_public(DEVICE_SECRET)
    assert (introduction.name, introduction.platform) == ("phone", "Linux")
    assert len(new.code) == 6
    assert new.code.isdigit()
    trusted.check_code(new.code)
    (part,) = trusted.hand_over(HANDOVER)
    assert new.receive_handover(part) == HANDOVER
    trusted.receive_done(new.done())
    assert trusted.state is new.state is State.LINKED


def test_a_large_handover_goes_in_parts() -> None:
    """As many as there are messages left, each within its limit."""
    trusted, new = confirmed()
    room = HANDOVER_BYTES_MAX - len(encode(HANDOVER)) - 10
    heads = {f"s{number}": (b"h" * 512, b"s" * 64) for number in range(room // 590)}
    large = msgspec.structs.replace(HANDOVER, heads=heads)
    parts = trusted.hand_over(large)
    assert len(parts) == MESSAGES_MAX - 1
    assert max(map(len, parts)) <= MESSAGE_BYTES_MAX
    received = [new.receive_handover(part) for part in parts]
    assert received == [None] * (len(parts) - 1) + [large]


def test_an_invitation_is_text() -> None:
    """That a person can paste, with what a terminal adds around it."""
    text = format_invitation(invitation())
    assert text.startswith(INVITATION_PREFIX)
    assert parse_invitation(f"  {text}\n") == invitation()


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "malformed"),
        ("https://keepstep.example", "malformed"),
        (INVITATION_PREFIX, "malformed"),
        (INVITATION_PREFIX + "AQID", "malformed"),
        (INVITATION_PREFIX + "not base64!", "malformed"),
        (INVITATION_PREFIX + "A" * 2_000, "too_large"),
        (format_invitation(msgspec.structs.replace(invitation(), version=2)), "malformed"),
        (format_invitation(msgspec.structs.replace(invitation(), secret=b"short")), "malformed"),
    ],
)
def test_what_is_no_invitation_is_refused(text: str, code: str) -> None:
    """Before anything is sent anywhere."""
    assert code_of(lambda: parse_invitation(text)) == code


def test_secrets_do_not_show_in_logs() -> None:
    """An invitation's representation names the link only."""
    assert invitation().secret.hex() not in repr(invitation())
    assert repr(invitation()) == f"Invitation({invitation().link_id.hex()})"


# -- the code -------------------------------------------------------------------------------------------------------


def test_a_wrong_code_may_be_mended_twice() -> None:
    """A typing error is not the end."""
    trusted, new = met()
    wrong = f"{(int(new.code) + 1) % 1_000_000:06}"
    for left in (2, 1):
        assert code_of(lambda: trusted.check_code(wrong)) == "auth_failed"
        assert trusted.tries_left == left
    trusted.check_code(new.code)
    assert trusted.state is State.AWAIT_DECISION


def test_the_third_wrong_code_is_the_end() -> None:
    """Also the right one does not help any more."""
    trusted, new = met()
    for _ in range(CODE_TRIES_MAX):
        assert code_of(lambda: trusted.check_code("nothing")) == "auth_failed"
    assert code_of(lambda: trusted.check_code(new.code)) == "unexpected"
    assert code_of(lambda: trusted.hand_over(HANDOVER)) == "unexpected"


def test_nothing_is_handed_over_before_the_code() -> None:
    """Whoever is at the other end."""
    trusted, _ = met()
    assert code_of(lambda: trusted.hand_over(HANDOVER)) == "unexpected"


def test_a_refusal_is_told() -> None:
    """Where both sides share keys; before that there is nobody to tell."""
    trusted, new = met()
    refusal = trusted.refuse()
    assert refusal is not None
    assert code_of(lambda: new.receive_handover(refusal)) == "forbidden"
    assert (trusted.state, new.state) == (State.CLOSED, State.CLOSED)
    assert trusted_side().refuse() is None


# -- somebody else --------------------------------------------------------------------------------------------------


def test_without_the_invitation_nobody_gets_as_far_as_the_code() -> None:
    """The mailbox's owner knows the link's id and everything that passed, but not the secret."""
    trusted = trusted_side()
    guessed = msgspec.structs.replace(invitation(), secret=seed("guess"))
    stranger = new_side(invitation=guessed, who="stranger")
    message = reveal(stranger, trusted.receive_commitment(stranger.commit()))
    assert code_of(lambda: trusted.receive_reveal(message)) == "bad_record"
    assert trusted.state is State.CLOSED


def test_somebody_who_saw_the_invitation_shows_another_code() -> None:
    """What the user reads from the own device is not what the thief's link asks for."""
    trusted, thief, own = trusted_side(), new_side(who="thief"), new_side()
    nonce = trusted.receive_commitment(thief.commit())
    trusted.receive_reveal(reveal(thief, nonce, device_secret=seed("thief"), box_key=seed("thief box")))
    reveal(own, nonce)  # the own device was let to believe that it goes on
    assert own.code != thief.code
    assert code_of(lambda: trusted.check_code(own.code)) == "auth_failed"


def test_keys_that_were_not_committed_to_are_refused() -> None:
    """Else somebody in the middle could look for keys whose code fits."""
    trusted, thief = trusted_side(), new_side(who="thief")
    nonce = trusted.receive_commitment(new_side().commit())
    message = reveal(thief, nonce)
    assert code_of(lambda: trusted.receive_reveal(message)) == "bad_signature"


def test_a_device_has_to_prove_its_key() -> None:
    """An introduction with somebody else's device key is refused."""
    trusted, new = trusted_side(), new_side()
    nonce = trusted.receive_commitment(new.commit())

    class Lying:
        """Signs with another key than it shows."""

        def __getattr__(self, name: str) -> Any:
            return (lambda _: seed("not mine")) if name == "ed25519_public" else getattr(crypto, name)

    new._primitives = Lying()
    message = reveal(new, nonce)
    assert code_of(lambda: trusted.receive_reveal(message)) in ("bad_signature", "malformed")


@pytest.mark.parametrize("field", ["user_key", "server_key", "rest_url", "device_url", "link_id", "ephemeral"])
def test_an_invitation_that_was_changed_links_nothing(field: str) -> None:
    """Every field of it is part of the transcript."""
    other = {
        "rest_url": "https://elsewhere.example",
        "device_url": "wss://elsewhere.example/v1/connect",
        "link_id": b"l" * 16,
        "ephemeral": crypto.x25519_public(seed("elsewhere")),
    }.get(field, seed("elsewhere"))
    trusted = trusted_side()
    new = new_side(invitation=msgspec.structs.replace(invitation(), **{field: other}))
    message = reveal(new, trusted.receive_commitment(new.commit()))
    assert code_of(lambda: trusted.receive_reveal(message)) in ("bad_record", "bad_signature")


# -- order and form -------------------------------------------------------------------------------------------------


def test_messages_come_once_and_in_order() -> None:
    """A replay or another order ends the link."""
    first = new_side().commit()
    trusted = trusted_side()
    trusted.receive_commitment(first)
    assert code_of(lambda: trusted.receive_commitment(first)) == "unexpected"
    assert code_of(lambda: trusted_side().receive_reveal(first)) == "unexpected"
    assert code_of(lambda: trusted_side().check_code("000000")) == "unexpected"
    assert code_of(lambda: trusted_side().receive_done(b"")) == "unexpected"
    assert code_of(lambda: new_side().receive_handover(b"")) == "unexpected"


def test_parts_of_a_handover_come_once_and_in_order() -> None:
    """Else they do not open."""
    trusted, new = confirmed()
    parts = trusted.hand_over(
        msgspec.structs.replace(HANDOVER, heads={f"s{n}": (b"h" * 500, b"s" * 64) for n in range(60)})
    )
    assert code_of(lambda: new.receive_handover(parts[1])) == "bad_record"
    trusted, new = confirmed()
    (part,) = trusted.hand_over(HANDOVER)
    new.receive_handover(part)
    assert code_of(lambda: new.receive_handover(part)) == "unexpected"


@pytest.mark.parametrize("data", [b"", b"\xc0", b"\x91\x00", encode([0, b"short"]), encode([0, bytes(32), 1])])
def test_what_has_another_form_is_refused(data: bytes) -> None:
    """In each step."""
    assert code_of(lambda: trusted_side().receive_commitment(data)) == "malformed"
    trusted = trusted_side()
    trusted.receive_commitment(new_side().commit())
    assert code_of(lambda: trusted.receive_reveal(data)) == "malformed"
    assert code_of(lambda: reveal(new_side(), data)) == "malformed"


def test_what_is_too_large_is_refused() -> None:
    """On both sides."""
    trusted, new = confirmed()
    assert code_of(lambda: new.receive_handover(bytes(MESSAGE_BYTES_MAX + 17))) == "too_large"
    heads = {f"s{number}": (b"h" * 512, b"s" * 64) for number in range(300)}
    assert code_of(lambda: trusted.hand_over(msgspec.structs.replace(HANDOVER, heads=heads))) == "too_large"
    assert code_of(lambda: trusted_side().receive_commitment(bytes(MESSAGE_BYTES_MAX + 1))) == "too_large"


def test_a_handover_without_end_is_refused() -> None:
    """A trusted device that goes on for ever fills nothing."""
    trusted, new = confirmed()
    assert trusted._sealer is not None
    parts = trusted._sealer.seal_many([encode([3, False, b"x"])] * MESSAGES_MAX)
    for part in parts[:-1]:
        assert new.receive_handover(part) is None
    assert code_of(lambda: new.receive_handover(parts[-1])) == "too_large"


def test_the_end_has_to_be_the_new_devices() -> None:
    """A message of the trusted device, sent back to it, is none."""
    trusted, new = confirmed()
    (part,) = trusted.hand_over(HANDOVER)
    assert new.receive_handover(part) == HANDOVER
    assert code_of(lambda: trusted.receive_done(part)) == "bad_record"


def test_a_handover_says_what_it_is() -> None:
    """Decoded as it was encoded, byte for byte."""
    assert msgspec.msgpack.decode(encode(HANDOVER), type=Handover) == HANDOVER
