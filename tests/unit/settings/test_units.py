"""Durations and sizes: what is understood, and that nothing else is."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keepstep.config import Settings
from keepstep.settings import units


@pytest.mark.parametrize(
    ("name", "text", "number"),
    [
        ("idle_timeout_s", "90s", 90),
        ("idle_timeout_s", "1.5m", 90),
        ("handshake_timeout_s", "250ms", 0.25),
        ("refresh_token_lifetime_s", "2w", 1_209_600),
        ("statement_timeout_ms", "15s", 15_000),
        ("audit_retention_days", "90d", 90),
        ("audit_retention_days", "48h", 2),
        ("audit_retention_days", "1w", 7),
        ("payload_bytes_max", "64KiB", 65_536),
        ("tail_bytes_max", "0.5GiB", 536_870_912),
        ("tail_stream_bytes_max", "0B", 0),
        ("payload_bytes_max", "65536", 65_536),
    ],
)
def test_a_number_with_a_unit_is_one_of_the_settings_unit(name: str, text: str, number: float) -> None:
    """Whatever the unit that is written."""
    assert getattr(Settings.model_validate({name: text}), name) == number


@pytest.mark.parametrize("text", ["1h30m", "5 m", "5M", "-5m", "m", "5min", "1e3s", "0x5s", "\u0665s", "5mm", "5KiB"])
@pytest.mark.parametrize("name", ["idle_timeout_s"])
def test_there_is_one_way_to_write_it(name: str, text: str) -> None:
    """What else people write stays what it is, and is refused as no number."""
    assert units.parse(name, text) == text


@pytest.mark.parametrize(("name", "value"), [("server_name", "5m"), ("idle_timeout_s", 5), ("rest_port", "8s")])
def test_nothing_else_is_touched(name: str, value: Any) -> None:
    """Texts, numbers, and counts without a unit."""
    assert units.parse(name, value) == value


@pytest.mark.parametrize(
    ("name", "unit"),
    [
        ("rest_port", "TCP port"),
        ("rest_calls_per_user_minute", "per minute"),
        ("registrations_per_hour", "per hour"),
        ("pipelines", ""),
    ],
)
def test_units_are_named(name: str, unit: str) -> None:
    """Those without another way to write them, too."""
    assert units.unit_of(name) == unit


@given(st.integers(1, 10**12))
def test_what_is_written_reads_as_it_was(value: int) -> None:
    """For bytes and seconds alike."""
    for name in ("payload_bytes_max", "idle_timeout_s"):
        assert units.parse(name, units.written(name, value)) == value


def test_what_has_no_whole_unit_is_not_written() -> None:
    """Half a millisecond, nothing, and counts."""
    assert units.written("idle_timeout_s", 0.0005) == ""
    assert units.written("idle_timeout_s", 0) == ""
    assert units.written("pipelines", 2) == ""
