"""Whatever a client sends as a token: what our key signed, or one typed refusal."""

from __future__ import annotations

from typing import Final

from hypothesis import given
from hypothesis import strategies as st

from keepstep.accesstokens import AccessToken, SigningKey, decode, encode, kid_of
from keepstep.errors import ProtocolError
from tests.support.events import NOW_MS, seed

KEY: Final = SigningKey.from_secret(seed("token key"))
ISSUER: Final = "keepstep:server"
TOKEN: Final = AccessToken(seed("user"), bytes(16), bytes(16), bytes(16), 0, NOW_MS // 1000, NOW_MS // 1000 + 60)
TEXT: Final = encode(TOKEN, KEY, issuer=ISSUER)


def read(text: str) -> AccessToken | None:
    """What the server makes of it; ``None`` where it is refused."""
    try:
        kid_of(text)
        return decode(text, KEY.public, issuer=ISSUER, now_ms=NOW_MS)
    except ProtocolError:
        return None


@given(st.text(max_size=300) | st.lists(st.text("eyJ0-_=", max_size=40), max_size=5).map(".".join))
def test_any_text_is_refused(text: str) -> None:
    """Nothing but a signature of ours makes a token."""
    assert read(text) is None


@given(st.integers(0, len(TEXT) - 1), st.characters(codec="ascii"))
def test_a_changed_character_changes_nothing_or_ends_the_token(at: int, character: str) -> None:
    """Base64 has bits that mean nothing; every other one is signed."""
    assert read(TEXT[:at] + character + TEXT[at + 1 :]) in (None, TOKEN)


@given(st.integers(0, len(TEXT)), st.integers(0, len(TEXT)))
def test_a_part_of_a_token_is_refused(start: int, end: int) -> None:
    """Cut anywhere."""
    part = TEXT[start:end]
    assert read(part) == (TOKEN if part == TEXT else None)
