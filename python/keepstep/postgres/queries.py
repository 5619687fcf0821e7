"""The statements of ``queries.sql`` by name."""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files
from typing import Final

from keepstep.model import RetentionClass

EVENT_TABLES: Final = {RetentionClass.KEEP: "events_keep", RetentionClass.STANDARD: "events_standard"}
"""Where events live, by their stream's retention class."""

_NAME: Final = re.compile(r"^-- (\w+) --$", re.MULTILINE)
_COMMENT: Final = re.compile(r"^--.*\n", re.MULTILINE)


def _statements() -> dict[str, str]:
    text = files("keepstep.postgres").joinpath("queries.sql").read_text(encoding="utf-8")
    _, *parts = _NAME.split(text)
    return {name: _COMMENT.sub("", body).strip() for name, body in zip(parts[::2], parts[1::2], strict=True)}


_STATEMENTS: Final = _statements()


@cache
def query(name: str, retention_class: int | None = None) -> bytes:
    """A statement; ``retention_class`` says which table ``events_of_class`` is."""
    text = _STATEMENTS[name]
    assert ("events_of_class" in text) == (retention_class is not None), name
    if retention_class is not None:
        text = text.replace("events_of_class", EVENT_TABLES[RetentionClass(retention_class)])
    return text.encode()
