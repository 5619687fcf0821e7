"""Reads the files of tests/vectors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

FOLDER: Final = Path(__file__).parents[1] / "vectors"


def load(name: str) -> Any:
    """A vector file as it is; bytes are hexadecimal text."""
    return json.loads((FOLDER / name).read_text(encoding="utf-8"))


def unhex(vector: dict[str, Any], *names: str) -> list[bytes]:
    """Fields of a vector as bytes, in the order asked for."""
    return [bytes.fromhex(vector[name]) for name in names]
