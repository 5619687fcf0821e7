"""The statements of the SQL files beside this one by name."""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files
from typing import Final

from keepstep.model import RetentionClass

EVENT_TABLES: Final = {RetentionClass.KEEP: "events_keep", RetentionClass.STANDARD: "events_standard"}
"""Where events live, by their stream's retention class."""

_FILES: Final = (
    "queries.sql",
    "stored_events.sql",
    "archive.sql",
    "deletion.sql",
    "housekeeping.sql",
    "links.sql",
    "restores.sql",
    "retention.sql",
    "verification.sql",
)
_NAME: Final = re.compile(r"^-- (\w+) --$", re.MULTILINE)
_PARAMETER: Final = re.compile(r"%\((\w+)\)s")
_COMMENT: Final = re.compile(r"^--.*\n", re.MULTILINE)


def _statements() -> dict[str, str]:
    statements: dict[str, str] = {}
    for file in _FILES:
        _, *parts = _NAME.split(files("keepstep.postgres").joinpath(file).read_text(encoding="utf-8"))
        statements |= {name: _COMMENT.sub("", body).strip() for name, body in zip(parts[::2], parts[1::2], strict=True)}
    return statements


_STATEMENTS: Final = _statements()


def statement_names() -> tuple[str, ...]:
    """All statements, in the order of their files."""
    return tuple(_STATEMENTS)


def is_of_class(name: str) -> bool:
    """Whether a statement is about the table of one retention class, which ``query`` then has to be told."""
    return "events_of_class" in _STATEMENTS[name]


@cache
def query(name: str, retention_class: int | None = None) -> bytes:
    """A statement; ``retention_class`` says which table ``events_of_class`` is."""
    text = _STATEMENTS[name]
    assert ("events_of_class" in text) == (retention_class is not None), name
    if retention_class is not None:
        text = text.replace("events_of_class", EVENT_TABLES[RetentionClass(retention_class)])
    return text.encode()


@cache
def numbered(name: str) -> tuple[bytes, tuple[str, ...]]:
    """A statement with PostgreSQL's own placeholders, $1 and so on, and the names of its parameters in that order."""
    names = tuple(dict.fromkeys(_PARAMETER.findall(_STATEMENTS[name])))
    numbers = {parameter: f"${index}" for index, parameter in enumerate(names, 1)}
    return _PARAMETER.sub(lambda match: numbers[match[1]], _STATEMENTS[name]).encode(), names
