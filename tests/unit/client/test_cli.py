"""How the device commands show what others made; the commands themselves are in tests/integration/client."""

from __future__ import annotations

import unicodedata
from types import SimpleNamespace
from typing import cast

import pytest

from keepstep.client import cli
from keepstep.client.device import Device
from keepstep.client.subscription import Event

NOW_MS = 1_760_000_000_000
SHOWN = "\N{REPLACEMENT CHARACTER}"


def line(data: bytes, received_at_ms: int = NOW_MS) -> str:
    """An event of a device without a name, as ``tail`` prints it."""
    return cli._format(Event("notes", 1, b"d" * 16, 1, b"i" * 16, 0, received_at_ms, None, None, data, None), [])


@pytest.mark.parametrize(
    ("last_problem", "is_healing", "postponed", "reason"),
    [
        ("no route", True, "busy", "no route"),
        ("", True, "busy", "the server was restored and waits for your other devices"),
        ("", False, "the server cannot do this right now", "the server cannot do this right now"),
        ("", False, "", "no answer"),
    ],
)
def test_why_an_event_still_waits_is_said(last_problem: str, is_healing: bool, postponed: str, reason: str) -> None:
    """A server that asks for it again later did answer: it is there, and its owner has to look after it."""
    device = SimpleNamespace(last_problem=last_problem, is_healing=is_healing, postponed=postponed)
    assert cli._reason(cast("Device", device)) == reason


@pytest.mark.parametrize(
    "name",
    [
        "RIGHT-TO-LEFT OVERRIDE",
        "LEFT-TO-RIGHT ISOLATE",
        "POP DIRECTIONAL ISOLATE",
        "RIGHT-TO-LEFT MARK",
        "LINE SEPARATOR",
    ],
)
def test_nothing_turns_the_direction_of_a_line(name: str) -> None:
    """A terminal that follows it would show another text than was written."""
    assert line(f"a{unicodedata.lookup(name)}b".encode()).endswith(f"  a{SHOWN}b")


def test_every_control_character_but_the_tab_is_replaced() -> None:
    """Those of eight bits too, which some terminals take for escape sequences."""
    controls = "".join(map(chr, [*range(0x20), *range(0x7F, 0xA0)]))
    assert line(controls.encode()).rpartition("  ")[2] == SHOWN * 9 + "\t" + SHOWN * 55


def test_text_of_any_script_is_shown_as_it_is() -> None:
    """Joined emoji too, whose joiner steers nothing."""
    text = "naïve \N{HEBREW LETTER ALEF} \N{WOMAN}\N{ZERO WIDTH JOINER}\N{PERSONAL COMPUTER}"
    assert line(text.encode()).endswith(f"  {text}")


def test_a_time_that_no_calendar_has_is_shown_as_a_number() -> None:
    """A server may state any."""
    assert line(b"hello", 2**48 - 1) == "281474976710655 ms  64646464  hello"
