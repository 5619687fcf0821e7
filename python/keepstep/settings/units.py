"""Durations and sizes as people write them: a number in the setting's unit, or one with another unit behind it.

A setting's unit is the end of its name: ``_s``, ``_ms``, ``_days``, or ``bytes`` in it. So ``15m`` is 900 for a setting
in seconds and 900_000 for one in milliseconds, and ``64MiB`` is 67_108_864 bytes. There is one way: no space, the
units below and no others, and a result that is no whole number is refused where the setting is one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final

_DURATIONS_MS: Final = {
    "ms": 1,
    "s": 1_000,
    "m": 60 * 1_000,
    "h": 60 * 60 * 1_000,
    "d": 24 * 60 * 60 * 1_000,
    "w": 7 * 24 * 60 * 60 * 1_000,
}
_SIZES_BYTES: Final = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
_UNITS: Final = {
    "milliseconds": ("ms", _DURATIONS_MS),
    "seconds": ("s", _DURATIONS_MS),
    "days": ("d", _DURATIONS_MS),
    "bytes": ("B", _SIZES_BYTES),
}
"""By the name of a unit: what it is written as, and the ones that may stand behind a number instead."""
_WRITTEN: Final = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,6})?)([A-Za-z]{1,3})")
_RATES: Final = {"minute": "per minute", "hour": "per hour"}


def unit_of(name: str) -> str:
    """What a number setting counts, in words; empty for a plain count."""
    *_, last = parts = name.split("_")
    if "bytes" in parts:
        return "bytes"
    if last == "port":
        return "TCP port"
    return {"s": "seconds", "ms": "milliseconds", "days": "days"}.get(last) or _RATES.get(last, "")


def parse(name: str, value: Any) -> Any:
    """The number that a text with a unit stands for, in the unit of a setting; anything else as it is."""
    unit = _UNITS.get(unit_of(name))
    if unit is None or not isinstance(value, str):
        return value
    match = _WRITTEN.fullmatch(value)
    own, sizes = unit
    if match is None or match[2] not in sizes:
        return value
    number = Decimal(match[1]) * sizes[match[2]] / sizes[own]
    return int(number) if number == number.to_integral_value() else float(number)


def parse_all(values: Mapping[str, Any]) -> dict[str, Any]:
    """``parse`` for the values of all settings."""
    return {name: parse(name, value) for name, value in values.items()}


def written(name: str, value: float) -> str:
    """A number with the largest unit in which it is whole: ``15m``; empty where the setting has no such unit."""
    unit = _UNITS.get(unit_of(name))
    if unit is None or value <= 0:
        return ""
    own, sizes = unit
    smallest = Decimal(str(value)) * sizes[own]
    fitting = [(size, text) for text, size in sizes.items() if smallest % size == 0]
    if not fitting:
        return ""
    size, text = max(fitting)
    return f"{int(smallest / size)}{text}"
