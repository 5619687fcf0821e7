"""A man in the middle who owns the mailbox: he drops, replays, swaps and makes up messages, and links nothing."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Final

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from keepstep.client import crypto
from keepstep.errors import ProtocolError
from keepstep.protocol.linking import State, format_invitation, parse_invitation
from tests.support.events import seed
from tests.support.linking import DEVICE_ID, HANDOVER, invitation, new_side, reveal, trusted_side

if TYPE_CHECKING:
    from keepstep.protocol.linking import Introduction, TrustedLink

THIEF: Final = {"device_id": b"t" * 16, "device_secret": seed("thief"), "box_key": crypto.x25519_public(seed("t"))}

messages = st.sampled_from(["own", "thief", "guess", "junk", "twice"])


def made_by(attacker: str, honest: bytes, forged: dict[str, bytes]) -> bytes:
    """What the middle puts into the mailbox in place of an honest message."""
    return honest if attacker == "own" else forged.get(attacker, b"\x91\x00")


def meet(trusted: TrustedLink, first: str, second: str, *, saw_invitation: bool) -> tuple[Introduction | None, str]:
    """One link with the middle choosing each message; who was introduced, and the code the own device shows."""
    known = invitation() if saw_invitation else msgspec.structs.replace(invitation(), secret=seed("guess"))
    own, thief, guess = new_side(), new_side(who="thief", invitation=known), new_side(who="guess", invitation=known)
    sides = {"thief": thief, "guess": guess}
    commits = {name: side.commit() for name, side in sides.items()} | {"junk": b"junk", "twice": own.commit()}
    code, introduced = "", None
    try:
        nonce = trusted.receive_commitment(made_by(first, own.commit(), commits))
        reveals = {name: reveal(side, nonce, **THIEF) for name, side in sides.items()} | {"junk": b"junk"}
        honest = reveal(own, nonce)
        code = own.code
        introduced = trusted.receive_reveal(made_by(second, honest, reveals | {"twice": commits["twice"]}))
    except ProtocolError:
        pass
    return introduced, code


def lets_in(trusted: TrustedLink, code: str) -> bool:
    """Whether the trusted device takes a code for the right one."""
    with contextlib.suppress(ProtocolError):
        trusted.check_code(code)
    return trusted.state is State.AWAIT_DECISION


@given(first=messages, second=messages, saw_invitation=st.booleans())
def test_whoever_is_in_the_middle_the_code_lets_only_the_own_device_in(
    first: str, second: str, saw_invitation: bool
) -> None:
    """With the digits of the own device typed, no other device is ever enrolled."""
    trusted = trusted_side()
    introduced, code = meet(trusted, first, second, saw_invitation=saw_invitation)
    if introduced is None:
        assert trusted.state is State.CLOSED
        return
    assert lets_in(trusted, code) == (introduced.device_id == DEVICE_ID)
    if not saw_invitation:
        assert introduced.device_id == DEVICE_ID


@given(changes=st.lists(st.tuples(st.sampled_from(["drop", "twice", "flip", "swap"]), st.integers(0, 7)), max_size=3))
def test_a_handover_arrives_as_it_was_sent_or_not_at_all(changes: list[tuple[str, int]]) -> None:
    """Whatever happens to its parts on the way."""
    trusted, new = trusted_side(), new_side()
    trusted.receive_reveal(reveal(new, trusted.receive_commitment(new.commit())))
    trusted.check_code(new.code)
    heads = {f"s{number}": (b"h" * 500, b"s" * 64) for number in range(60)}
    sent = msgspec.structs.replace(HANDOVER, heads=heads)
    parts: list[Any] = trusted.hand_over(sent)
    honest = list(parts)
    for change, where in changes:
        at = where % max(1, len(parts))
        if change == "twice":
            parts.insert(at, parts[at] if parts else b"")
        elif change == "swap":
            parts.reverse()
        elif parts and change == "drop":
            del parts[at]
        elif parts:
            parts[at] = bytes([parts[at][0] ^ 1]) + parts[at][1:] if parts[at] else b"\0"
    received = None
    try:
        for part in parts:
            received = new.receive_handover(part) or received
    except ProtocolError:
        assert parts != honest
    assert received in (None, sent)
    if parts == honest:
        assert received == sent


@given(text=st.one_of(st.text(max_size=50), st.text(alphabet="ABCabc123_-", max_size=400).map("keepstep:".__add__)))
def test_any_text_is_an_invitation_or_a_protocol_error(text: str) -> None:
    """Whatever somebody pastes."""
    with contextlib.suppress(ProtocolError):
        assert format_invitation(parse_invitation(text)) == text.strip()
